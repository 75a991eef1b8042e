//! The files: a bounded number of them, the oldest removed, for the worker's user only.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use gen_worker_core::RunId;

/// A file that is not complete yet.
const NEW: &str = "report.new";

pub(super) struct Shelf {
    directory: PathBuf,
    most: usize,
}

impl Shelf {
    pub(super) fn new(directory: PathBuf, most: usize) -> Self {
        Self { directory, most }
    }

    /// Writes a report, and removes the oldest beyond the number that is kept. A name sorts by its time.
    pub(super) fn put(&mut self, at_unix_ms: u64, run_id: &RunId, text: &[u8]) -> io::Result<PathBuf> {
        make(&self.directory)?;
        let (new, name) = (self.directory.join(NEW), name(at_unix_ms, run_id));
        // Of a process that died while it wrote. Whatever lies there, it is removed and not followed.
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        private().open(&new)?.write_all(text)?;
        let path = self.directory.join(name);
        fs::rename(new, &path)?;
        for name in surplus(self.names()?, self.most) {
            // What cannot be removed is tried again with the next report, and keeps none of the others.
            let _ = fs::remove_file(self.directory.join(name));
        }
        Ok(path)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.directory)?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| is_report(name)).collect())
    }
}

fn name(at_unix_ms: u64, run_id: &RunId) -> String {
    format!("{at_unix_ms:013}-{}.json", run_id.directory_name())
}

/// Whatever else lies there is not ours to remove.
fn is_report(name: &str) -> bool {
    let time = name.split_once('-').map(|(time, _)| time);
    name.ends_with(".json")
        && time.is_some_and(|time| time.len() >= 13 && time.bytes().all(|c| c.is_ascii_digit()))
}

/// The oldest that are too many.
fn surplus(mut names: Vec<String>, most: usize) -> Vec<String> {
    names.sort();
    names.truncate(names.len().saturating_sub(most));
    names
}

/// A new file that only the worker's user reads: a report speaks of a tenant's run.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn make(directory: &PathBuf) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay() {
        let directory = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::new(directory.path().join("reports"), 3);
        for (at, run_id) in [(7, "a"), (12, "b"), (100, "c/../x"), (101, "d"), (9, "late")] {
            shelf.put(at, &RunId::parse(run_id).unwrap(), b"{}").unwrap();
        }
        let mut names = shelf.names().unwrap();
        names.sort();
        let expected = [(12, "b"), (100, "c/../x"), (101, "d")];
        assert_eq!(names, expected.map(|(at, run_id)| name(at, &RunId::parse(run_id).unwrap())));
    }

    #[cfg(unix)]
    #[test]
    fn a_report_is_for_the_workers_user_and_follows_no_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let directory = tempfile::tempdir().unwrap();
        let (reports, victim) = (directory.path().join("reports"), directory.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        make(&reports).unwrap();
        symlink(&victim, reports.join(NEW)).unwrap();
        let path = Shelf::new(reports.clone(), 1).put(1, &RunId::parse("r").unwrap(), b"{}").unwrap();
        assert_eq!(fs::read_to_string(victim).unwrap(), "as it was");
        let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&reports)), (0o600, 0o700));
    }
}
