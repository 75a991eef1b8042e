//! Input files kept for later runs, by their content and by whose they are.
//!
//! What is kept shares its bytes with the file of the run that fetched it, and a function may write to its input: whoever
//! takes a kept file compares it with its digest.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use gen_worker_core::{Algorithm, Digest};
use uuid::Uuid;

/// One tenant's file, whether or not it is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    root: PathBuf,
    limit: u64,
    path: PathBuf,
}

impl Kept {
    /// The place of this content among the files of `owner`.
    pub(super) fn new(root: &Path, limit: u64, owner: &[u8], digest: Digest) -> Self {
        let owner = Digest::of(Algorithm::Sha256, owner).hex();
        Self { root: root.to_owned(), limit, path: root.join(owner).join(digest.hex()) }
    }

    /// The file, if it is kept; it was used just now. Blocks.
    pub(super) fn take(&self) -> Option<fs::File> {
        // Its name is a caller's: the digest that a payload claims. What lies there may be a link only if it is none of ours.
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file =
            fs::File::options().read(true).append(true).custom_flags(nofollow).open(&self.path).ok()?;
        file.set_modified(SystemTime::now()).ok()?;
        Some(file)
    }

    /// Keeps a file, and lets others go that were not used for longest. Blocks.
    pub(super) fn keep(&self, file: &Path) -> io::Result<()> {
        if fs::metadata(file)?.len() > self.limit {
            return Ok(());
        }
        let owner = self.path.parent().unwrap_or(&self.root);
        // Callers' files are for nobody else on this machine, as those of a run are.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(owner)?;
        let fresh = owner.join(format!(".{}", Uuid::new_v4().simple()));
        // A file system without links keeps nothing: a copy would cost as much as it saves.
        if fs::hard_link(file, &fresh).is_ok() {
            fs::rename(&fresh, &self.path)?;
        }
        self.trim()
    }

    /// Lets go of it: it is not what it was. Blocks.
    pub(super) fn drop(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn trim(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for owner in fs::read_dir(&self.root)? {
            for file in fs::read_dir(owner?.path())? {
                let file = file?;
                let found = file.metadata()?;
                files.push((found.modified()?, found.len(), file.path()));
            }
        }
        files.sort();
        let mut used: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if used <= self.limit {
                break;
            }
            used -= bytes;
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use super::*;

    #[test]
    fn a_link_in_the_place_of_a_kept_file_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "as it was").unwrap();
        let before = fs::metadata(&victim).unwrap().modified().unwrap();
        let kept = Kept::new(
            &directory.path().join("kept"),
            100,
            b"one",
            Digest::of(Algorithm::Sha256, b"as it was"),
        );
        fs::create_dir_all(kept.path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&victim, &kept.path).unwrap();
        assert!(kept.take().is_none());
        assert_eq!(fs::metadata(&victim).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn what_was_not_used_for_longest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("kept");
        let keep = |name: &str, owner: &str, age: u64| {
            let file = directory.path().join(name);
            fs::write(&file, [0; 40]).unwrap();
            let private = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0;
            let digest = Digest::of(Algorithm::Sha256, name.as_bytes());
            let kept = Kept::new(&root, 100, owner.as_bytes(), digest);
            kept.keep(&file).unwrap();
            assert!(private(&root) && private(kept.path.parent().unwrap()), "others on this machine look in");
            let aged = fs::File::options().append(true).open(file).unwrap();
            aged.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            kept
        };
        let (a, b) = (keep("a", "one", 30), keep("b", "two", 20));
        assert!(a.take().is_some());
        let c = keep("c", "one", 10);
        assert_eq!([&a, &b, &c].map(|kept| kept.take().is_some()), [true, false, true]);
        a.drop().unwrap();
        assert!(a.take().is_none());
    }
}
