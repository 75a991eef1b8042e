//! Manifests say what is special about a package; all else comes from the workspace.

use std::fs;

use toml::{Table, Value};

use crate::run::{Doing, Done};
use crate::workspace::{Package, Workspace};

const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "license"];
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// Its code is generated.
const UNLINTED: &str = "gen-worker-proto";

/// What the members of the workspace say for themselves and should not. Examples stand for projects of others.
pub(super) fn breaches(workspace: &Workspace) -> Done<Vec<String>> {
    let mut breaches = Vec::new();
    for package in workspace.packages.iter().filter(|package| !package.dir().starts_with("examples")) {
        let manifest = read(package)?;
        breaches.extend(in_manifest(&package.name, &manifest));
    }
    Ok(breaches)
}

fn read(package: &Package) -> Done<Table> {
    let text = fs::read_to_string(&package.manifest_path).doing(&package.name)?;
    text.parse().doing(&package.name)
}

fn in_manifest(name: &str, manifest: &Table) -> Vec<String> {
    let mut breaches = Vec::new();
    let package = manifest.get("package");
    for key in INHERITED {
        if !inherits(package.and_then(|package| package.get(key))) {
            breaches.push(format!("{name} must say `{key}.workspace = true`"));
        }
    }
    if name != UNLINTED && !inherits(manifest.get("lints")) {
        breaches.push(format!("{name} must say `[lints] workspace = true`"));
    }
    for (dependency, from) in dependencies(manifest) {
        if !inherits(Some(from)) {
            breaches.push(format!("{name} must take {dependency} from the workspace"));
        }
    }
    breaches
}

fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}

/// All dependencies of all kinds, those of `[target.….dependencies]` included.
fn dependencies(manifest: &Table) -> impl Iterator<Item = (&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    let tables = targets.filter_map(|(_, target)| target.as_table());
    let sections =
        [manifest].into_iter().chain(tables).flat_map(|table| DEPENDENCIES.map(|kind| table.get(kind)));
    sections.flatten().filter_map(Value::as_table).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFORM: &str = "[package]\nname = \"a\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\n";

    #[track_caller]
    fn check(manifest: &str, expected: &[&str]) {
        assert_eq!(in_manifest("a", &manifest.parse().unwrap()), expected);
    }

    #[test]
    fn a_uniform_manifest_is_fine() {
        check(
            &format!(
                "{UNIFORM}[lints]\nworkspace = true\n[dependencies]\nserde.workspace = true\n\
                ort = {{ workspace = true, optional = true }}\n"
            ),
            &[],
        );
    }

    #[test]
    fn what_is_not_inherited_is_named() {
        check(
            &UNIFORM.replace("edition.workspace = true", "edition = \"2024\""),
            &["a must say `edition.workspace = true`", "a must say `[lints] workspace = true`"],
        );
    }

    #[test]
    fn generated_code_needs_no_lints() {
        assert_eq!(in_manifest(UNLINTED, &UNIFORM.parse().unwrap()), [""; 0]);
    }

    #[test]
    fn own_versions_are_named_in_every_section() {
        check(
            &format!(
                "lints.workspace = true\n{UNIFORM}[dependencies]\nb = \"1\"\n[build-dependencies]\nc = \"1\"\n\
                [target.'cfg(unix)'.dev-dependencies]\nd = {{ version = \"1\" }}\n"
            ),
            &[
                "a must take b from the workspace",
                "a must take c from the workspace",
                "a must take d from the workspace",
            ],
        );
    }
}
