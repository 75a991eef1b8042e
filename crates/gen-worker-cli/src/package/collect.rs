//! The files of a project: all but what git ignores and what is built.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use ignore::{DirEntry, WalkBuilder};

use super::archive::{Content, Entry};
use crate::Failure;

/// Largest project that is packed, in bytes: models are fetched, not packed.
const MAX_BYTES: u64 = 1 << 30;

/// What the build needs, whatever git ignores.
const ALWAYS: [&str; 3] = ["Cargo.toml", "Cargo.lock", "cozy.toml"];

/// The files below `root` but those at or below `without`.
pub(super) fn collect(root: &Path, without: &[&Path]) -> Result<Vec<Entry>, Failure> {
    let mut paths = listed(root, without)?;
    paths.extend(ALWAYS.iter().map(|name| root.join(name)).filter(|path| path.is_file()));
    paths.sort();
    paths.dedup();
    let mut entries = Vec::new();
    let mut bytes = 0;
    for path in paths {
        let entry = entry(root, &path)?;
        bytes += entry.data().len() as u64;
        if bytes > MAX_BYTES {
            let text =
                "the project has more than 1 GiB: let git ignore what is no part of it, such as models";
            return Err(text.into());
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn listed(root: &Path, without: &[&Path]) -> Result<Vec<PathBuf>, Failure> {
    let without: Vec<PathBuf> = without.iter().map(|path| path.to_path_buf()).collect();
    let wanted = move |entry: &DirEntry| {
        entry.file_name() != ".git" && !without.iter().any(|path| entry.path().starts_with(path))
    };
    let in_repository = root.ancestors().any(|folder| folder.join(".git").exists());
    let mut walk = WalkBuilder::new(root);
    // A `.gitignore` counts before there is a repository; those of folders above only within one.
    walk.standard_filters(false).git_ignore(true).git_exclude(true).git_global(true);
    walk.require_git(false).parents(in_repository).filter_entry(wanted);
    let mut paths = Vec::new();
    for entry in walk.build() {
        let entry = entry?;
        if entry.file_type().is_some_and(|kind| !kind.is_dir()) {
            paths.push(entry.into_path());
        }
    }
    Ok(paths)
}

fn entry(root: &Path, path: &Path) -> Result<Entry, Failure> {
    let below = path.strip_prefix(root)?;
    let name = slashed(below).ok_or_else(|| format!("{}: its name is no UTF-8", path.display()))?;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        let target = fs::read_link(path)?;
        // As it is written, since it is packed so; and where it really ends, behind other links.
        let within = stays_within(below, &target) && {
            let leads_to = fs::canonicalize(path)
                .map_err(|error| format!("{name} is a link that leads nowhere: remove it ({error})"))?;
            leads_to.starts_with(fs::canonicalize(root)?)
        };
        let target = slashed(&target).filter(|_| within);
        let target = target.ok_or_else(|| {
            format!("{name} is a link that leads out of the project: put a copy in its place")
        })?;
        return Ok(Entry { path: name, content: Content::Link { target } });
    }
    if !metadata.is_file() {
        return Err(format!("{name} is neither a file nor a folder").into());
    }
    if metadata.len() > MAX_BYTES {
        return Err(format!("{name} has more than 1 GiB").into());
    }
    let content = Content::File { data: fs::read(path)?, executable: is_executable(&metadata) };
    Ok(Entry { path: name, content })
}

fn slashed(path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path.components().map(|part| part.as_os_str().to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

/// Whether a link at `link`, below the project's folder, leads to something below it, as it is written.
fn stays_within(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count() - 1;
    target.components().all(|part| match part {
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::ParentDir => {
            let inside = depth > 0;
            depth = depth.saturating_sub(1);
            inside
        }
        Component::CurDir => true,
        Component::RootDir | Component::Prefix(_) => false,
    })
}

#[cfg(unix)]
fn is_executable(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_metadata: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn names(root: &Path, without: &[&Path]) -> Vec<String> {
        collect(root, without).unwrap().into_iter().map(|entry| entry.path).collect()
    }

    #[test]
    fn what_git_ignores_and_what_is_built_is_left_out() {
        let project = project(&[
            (".gitignore", "/out\n*.log\nCargo.lock\n"),
            (".cargo/config.toml", ""),
            (".git/HEAD", ""),
            ("Cargo.lock", ""),
            ("Cargo.toml", ""),
            ("out/a.png", ""),
            ("src/main.rs", ""),
            ("src/.gitignore", "b.rs"),
            ("src/b.rs", ""),
            ("target/debug/w", ""),
            ("w.log", ""),
            ("w.tar.gz", ""),
        ]);
        let root = project.path();
        let expected =
            [".cargo/config.toml", ".gitignore", "Cargo.lock", "Cargo.toml", "src/.gitignore", "src/main.rs"];
        assert_eq!(names(root, &[&root.join("target"), &root.join("w.tar.gz")]), expected);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_out_is_refused() {
        let project = project(&[("src/main.rs", "")]);
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, project.path().join(from)).unwrap();
        link("../src/main.rs", "src/again.rs");
        assert_eq!(names(project.path(), &[]), ["src/again.rs", "src/main.rs"]);
        link("../../outside", "src/out");
        let said = collect(project.path(), &[]).unwrap_err().to_string();
        assert!(said.starts_with("src/out is a link that leads out"), "{said}");
    }

    /// `b/up` leads to the project's folder as it is written, and out of it where `b` really lies.
    #[cfg(unix)]
    #[test]
    fn a_chain_of_links_that_leads_out_is_refused() {
        let project = project(&[("src/main.rs", ""), ("secret", ""), ("p/src/main.rs", "")]);
        let root = project.path().join("p");
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, root.join(from)).unwrap();
        link(".", "b");
        link("b/../secret", "out");
        let said = collect(&root, &[]).unwrap_err().to_string();
        assert!(said.starts_with("out is a link that leads out"), "{said}");
        fs::remove_file(root.join("out")).unwrap();
        link("b/src/main.rs", "again.rs");
        assert_eq!(names(&root, &[]), ["again.rs", "b", "src/main.rs"]);
        link("nowhere", "dangling");
        let said = collect(&root, &[]).unwrap_err().to_string();
        assert!(said.starts_with("dangling is a link that leads nowhere"), "{said}");
    }
}
