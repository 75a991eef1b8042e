//! Cancels that came before their runs: a run that is asked for under such an id is refused. They outlive the process.
//!
//! One line of JSON each, in a file of the data folder that only grows while the orchestrator runs, and is written anew
//! with what is still remembered when it starts.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use tempfile::NamedTempFile;

/// Most that are remembered; the oldest go first.
const MAX: usize = 10_000;

/// A run's id, and whose run it would be; `None`: anybody's.
type Tombstone = (String, Option<String>);

/// What is remembered of runs that have not been asked for.
#[derive(Debug)]
pub(crate) struct Tombstones(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    known: HashSet<Tombstone>,
    by_age: VecDeque<Tombstone>,
    /// `None`: they are kept in memory only.
    file: Option<File>,
}

impl Tombstones {
    /// Reads what is in the file, which is made if there is none.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut kept = Kept::default();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        // A line that was cut off when the process ended was not answered for.
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .for_each(|tombstone| kept.put(tombstone));
        let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        for tombstone in &kept.by_age {
            file.write_all(&line(tombstone))?;
        }
        file.as_file().sync_data()?;
        kept.file = Some(file.persist(path).map_err(|error| error.error)?);
        Ok(Self(Mutex::new(kept)))
    }

    /// Remembers that this run is not wanted, on the disk when it returns. `tenant_id`: whose; `None`: whoever asks.
    pub(crate) fn put(&self, run_id: &str, tenant_id: Option<&str>) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let tombstone = of(run_id, tenant_id);
        if kept.known.contains(&tombstone) {
            return Ok(());
        }
        if let Some(file) = &mut kept.file {
            file.write_all(&line(&tombstone))?;
            file.sync_data()?;
        }
        kept.put(tombstone);
        Ok(())
    }

    /// Whether a run that this tenant asks for is not wanted.
    pub(crate) fn cover(&self, run_id: &str, tenant_id: Option<&str>) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !kept.known.is_empty()
            && [None, tenant_id].iter().any(|owner| kept.known.contains(&of(run_id, *owner)))
    }
}

impl Kept {
    fn put(&mut self, tombstone: Tombstone) {
        if self.known.insert(tombstone.clone()) {
            self.by_age.push_back(tombstone);
        }
        while self.by_age.len() > MAX {
            self.by_age.pop_front().map(|oldest| self.known.remove(&oldest));
        }
    }
}

fn of(run_id: &str, tenant_id: Option<&str>) -> Tombstone {
    (run_id.to_owned(), tenant_id.map(str::to_owned))
}

fn line(tombstone: &Tombstone) -> Vec<u8> {
    let mut line = serde_json::to_vec(tombstone).expect("two texts have a JSON form");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_cancel_covers_its_own_runs_only() {
        let folder = tempfile::tempdir().unwrap();
        let tombstones = Tombstones::open(&folder.path().join("t")).unwrap();
        tombstones.put("r", Some("a")).unwrap();
        assert!(tombstones.cover("r", Some("a")));
        assert!(!tombstones.cover("r", Some("b")) && !tombstones.cover("r", None));
        assert!(!tombstones.cover("s", Some("a")));
        tombstones.put("r", None).unwrap();
        assert!(tombstones.cover("r", Some("b")) && tombstones.cover("r", None));
    }

    #[test]
    fn they_outlive_the_process_and_a_line_that_was_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        Tombstones::open(&path).unwrap().put("r", Some("a \"b\"")).unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("[\"cut");
        fs::write(&path, text).unwrap();
        let again = Tombstones::open(&path).unwrap();
        assert!(again.cover("r", Some("a \"b\"")));
        again.put("s", None).unwrap();
        assert!(Tombstones::open(&path).unwrap().cover("s", None));
    }

    #[test]
    fn the_oldest_go_first() {
        let tombstones = Tombstones(Mutex::default());
        for number in 0..=MAX {
            tombstones.put(&number.to_string(), None).unwrap();
            tombstones.put(&number.to_string(), None).unwrap();
        }
        assert!(!tombstones.cover("0", None) && tombstones.cover("1", None));
        let kept = tombstones.0.into_inner().unwrap();
        assert_eq!((kept.known.len(), kept.by_age.len()), (MAX, MAX));
    }
}
