//! Each module begins with a sentence on its duty.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{Doing, Done, root};

/// The modules under crates/*/src that begin otherwise; generated ones aside.
pub(super) fn breaches() -> Done<Vec<String>> {
    let mut silent = Vec::new();
    for package in entries(&root().join("crates"))? {
        let src = package.join("src");
        if src.is_dir() {
            collect(&src, &mut silent)?;
        }
    }
    silent.sort();
    Ok(silent.iter().map(|file| format!("{} must begin with `//!`", shown(file))).collect())
}

/// A file as a breach names it.
pub(super) fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn collect(dir: &Path, silent: &mut Vec<PathBuf>) -> Done {
    for path in entries(dir)? {
        if path.is_dir() {
            if !path.ends_with("src/generated") {
                collect(&path, silent)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).doing(path.display())?;
            if !text.starts_with("//!") {
                silent.push(path);
            }
        }
    }
    Ok(())
}

/// What lies in a folder.
pub(super) fn entries(dir: &Path) -> Done<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).doing(dir.display())?;
    entries.map(|entry| Ok(entry.doing(dir.display())?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silent_modules_are_collected() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("src");
        fs::create_dir_all(src.join("generated")).unwrap();
        fs::create_dir_all(src.join("deep")).unwrap();
        fs::write(src.join("generated/a.rs"), "struct A;").unwrap();
        fs::write(src.join("spoken.rs"), "//! Says what it is for.\n").unwrap();
        fs::write(src.join("deep/silent.rs"), "struct B;").unwrap();
        fs::write(src.join("deep/page.md"), "# Page").unwrap();
        let mut silent = Vec::new();
        collect(&src, &mut silent).unwrap();
        assert_eq!(silent, [src.join("deep/silent.rs")]);
    }
}
