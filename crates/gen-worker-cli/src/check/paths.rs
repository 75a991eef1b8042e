//! Dependencies that lie in folders: those outside the project are not there where it is built.

use std::path::{Component, Path, PathBuf};

use super::Finding;
use crate::project::Metadata;

/// Folders that the project's own manifests name and that lie outside it.
pub(super) fn that_leave(root: &Path, declared: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in declared.packages.iter().filter(|package| package.folder().starts_with(root)) {
        for dependency in &package.dependencies {
            if let Some(path) = dependency.path.as_deref().filter(|path| !plain(path).starts_with(root)) {
                findings.push(Finding::error(
                    "path_dependency",
                    format!(
                        "{} depends on {} in {}, outside the project: depend on a version or a git revision, or \
                         move it into the project",
                        package.name,
                        dependency.name,
                        path.display(),
                    ),
                ));
            }
        }
    }
    findings
}

/// Packages that it is built from here though no manifest of it says so: cargo's settings on this machine patch them.
pub(super) fn that_are_elsewhere(root: &Path, resolved: &Metadata) -> Vec<Finding> {
    let here = |path: &Path| path.starts_with(root);
    let named = resolved.packages.iter().filter(|package| here(package.folder()));
    let named: Vec<PathBuf> = named
        .flat_map(|package| &package.dependencies)
        .filter_map(|dependency| dependency.path.as_deref().map(plain))
        .collect();
    let elsewhere = resolved.packages.iter().filter(|package| {
        package.source.is_none()
            && !here(package.folder())
            && !named.iter().any(|path| path == package.folder())
    });
    // Of what lies together the first is enough.
    let first = elsewhere.take(1).map(|package| {
        Finding::warning(
            "patched",
            format!(
                "{} is taken from {}, which only this machine has: it cannot be built from elsewhere",
                package.name,
                package.folder().display(),
            ),
        )
    });
    first.collect()
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(packages: Value) -> Metadata {
        serde_json::from_value(json!({ "packages": packages })).unwrap()
    }

    fn package(name: &str, folder: &str, depends_on: &[(&str, Option<&str>)]) -> Value {
        let dependencies: Value =
            depends_on.iter().map(|(name, path)| json!({"name": name, "path": path})).collect();
        let manifest_path = format!("{folder}/Cargo.toml");
        json!({"name": name, "source": null, "manifest_path": manifest_path, "targets": [], "default_run": null,
               "dependencies": dependencies})
    }

    #[test]
    fn a_folder_within_the_project_is_fine_and_one_outside_is_named() {
        let depends = [("serde", None), ("inner", Some("/p/inner")), ("outer", Some("/p/../outer"))];
        let found = that_leave(Path::new("/p"), &metadata(json!([package("w", "/p", &depends)])));
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("w depends on outer in /p/../outer, outside"), "{found:?}");
    }

    #[test]
    fn what_only_this_machine_has_is_warned_of_once() {
        let packages = json!([
            package("w", "/p", &[("a", None), ("b", Some("/p/b")), ("said", Some("/said"))]),
            package("b", "/p/b", &[]),
            package("said", "/said", &[]),
            package("a", "/checkout/a", &[]),
            package("c", "/checkout/c", &[]),
        ]);
        let found = that_are_elsewhere(Path::new("/p"), &metadata(packages));
        assert_eq!(found.len(), 1);
        assert!(found[0].message.starts_with("a is taken from /checkout/a"), "{found:?}");
    }
}
