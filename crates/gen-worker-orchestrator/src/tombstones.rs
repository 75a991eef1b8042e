//! Cancels that came before their runs: a run that is asked for under such an id is refused. They outlive the process.
//!
//! One line of JSON each, in a file of the data folder that is written anew with what is still remembered when the
//! orchestrator starts, and whenever half of it is not.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::NamedTempFile;

/// Most that are remembered; the oldest go first.
const MAX: usize = 10_000;

/// A run's id, and whose run it would be; `None`: anybody's.
type Tombstone = (String, Option<String>);

/// What is remembered of runs that have not been asked for.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    /// Taken before what is known, and held while the disk works, so that nobody who asks for a run waits for the disk. `None`:
    /// they are kept in memory only.
    stored: Mutex<Option<Stored>>,
    known: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    known: HashSet<Tombstone>,
    by_age: VecDeque<Tombstone>,
}

/// The file.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    file: File,
    lines: usize,
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
        let stored = Stored::write(path, &kept.by_age)?;
        Ok(Self { stored: Mutex::new(Some(stored)), known: Mutex::new(kept) })
    }

    /// Remembers that this run is not wanted, on the disk when it returns. `tenant_id`: whose; `None`: whoever asks. Blocks.
    pub(crate) fn put(&self, run_id: &str, tenant_id: Option<&str>) -> io::Result<()> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let tombstone = of(run_id, tenant_id);
        if self.known().known.contains(&tombstone) {
            return Ok(());
        }
        if let Some(stored) = stored.as_mut() {
            if stored.lines >= 2 * MAX {
                let remembered = self.known().by_age.clone();
                *stored = Stored::write(&stored.path, &remembered)?;
            }
            stored.append(&tombstone)?;
        }
        self.known().put(tombstone);
        Ok(())
    }

    /// Whether a run that this tenant asks for is not wanted.
    pub(crate) fn cover(&self, run_id: &str, tenant_id: Option<&str>) -> bool {
        let kept = self.known();
        !kept.known.is_empty()
            && [None, tenant_id].iter().any(|owner| kept.known.contains(&of(run_id, *owner)))
    }

    fn known(&self) -> MutexGuard<'_, Kept> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    /// A file of these, in the place of what is there.
    fn write(path: &Path, tombstones: &VecDeque<Tombstone>) -> io::Result<Self> {
        let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        let text: Vec<u8> = tombstones.iter().flat_map(line).collect();
        file.write_all(&text)?;
        file.as_file().sync_data()?;
        let file = file.persist(path).map_err(|error| error.error)?;
        Ok(Self { path: path.to_owned(), file, lines: tombstones.len() })
    }

    /// Adds one. What could be written of it in part is taken back, so that the next one has a line of its own.
    fn append(&mut self, tombstone: &Tombstone) -> io::Result<()> {
        let end = self.file.stream_position()?;
        let written = self.file.write_all(&line(tombstone)).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.file.set_len(end)?;
            self.file.seek(SeekFrom::Start(end))?;
            return Err(error);
        }
        self.lines += 1;
        Ok(())
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
        let tombstones = Tombstones::default();
        for number in 0..=MAX {
            tombstones.put(&number.to_string(), None).unwrap();
            tombstones.put(&number.to_string(), None).unwrap();
        }
        assert!(!tombstones.cover("0", None) && tombstones.cover("1", None));
        let kept = tombstones.known.into_inner().unwrap();
        assert_eq!((kept.known.len(), kept.by_age.len()), (MAX, MAX));
    }

    #[test]
    fn the_file_is_written_anew_when_half_of_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let tombstones = Tombstones::open(&path).unwrap();
        tombstones.put("first", None).unwrap();
        tombstones.stored.lock().unwrap().as_mut().unwrap().lines = 2 * MAX;
        tombstones.put("second", None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert_eq!(tombstones.stored.lock().unwrap().as_ref().unwrap().lines, 2);
        let again = Tombstones::open(&path).unwrap();
        assert!(again.cover("first", None) && again.cover("second", None));
    }
}
