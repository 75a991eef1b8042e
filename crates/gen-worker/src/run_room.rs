//! Where a worker process puts the files of its runs: a directory of its own below `WORKER_RUN_DIR`. A process that was killed
//! leaves it behind, and the next worker there removes it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use crate::config::WorkerConfig;

const PREFIX: &str = "worker-";
const LOCK: &str = "lock";

/// The directory of this process, and a locked file beside it. Both go when this is dropped.
#[derive(Debug)]
pub(crate) struct RunRoom {
    path: PathBuf,
    /// Held, never read: its end says that the directory is nobody's.
    _lock: File,
}

impl RunRoom {
    /// Gives the worker a directory of its own, and removes those of ended ones. `None`: runs' directories are to be kept, or it
    /// cannot be made; then the files lie in `WORKER_RUN_DIR` itself, which nobody clears.
    pub(crate) fn move_in(config: &mut WorkerConfig) -> Option<Self> {
        if config.runtime.keep_run_dir {
            return None;
        }
        let base = &config.runtime.run_dir;
        match Self::take(base) {
            Ok(room) => {
                config.upload.spool_dir.clone_from(&room.path);
                config.runtime.run_dir.clone_from(&room.path);
                Some(room)
            }
            Err(error) => {
                warn!(%error, path = %base.display(), "no directory of its own for this worker's runs");
                None
            }
        }
    }

    fn take(base: &Path) -> io::Result<Self> {
        private().recursive(true).create(base)?;
        sweep(base)?;
        loop {
            let path = base.join(format!("{PREFIX}{:08x}", fastrand::u32(..)));
            let lock = File::create_new(path.with_extension(LOCK))?;
            lock.lock()?;
            // Between the two, somebody who clears up may have taken the lock, and the file with it.
            if path.with_extension(LOCK).exists() {
                private().create(&path)?;
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for RunRoom {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes what ended processes left: whatever nobody has locked.
fn sweep(base: &Path) -> io::Result<()> {
    for entry in fs::read_dir(base)? {
        let lock = entry?.path();
        let named = lock.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if named
            && lock.extension().is_some_and(|extension| extension == LOCK)
            && let Ok(file) = File::open(&lock)
            && file.try_lock().is_ok()
        {
            info!(path = %lock.display(), "removing what a worker that was killed left");
            remove(&lock.with_extension(""));
        }
    }
    Ok(())
}

/// The directory first: without its lock nobody would look for it.
fn remove(path: &Path) {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let removed = fs::remove_dir_all(path).or_else(|error| if gone(&error) { Ok(()) } else { Err(error) });
    if let Err(error) = removed.and_then(|()| fs::remove_file(path.with_extension(LOCK))) {
        warn!(%error, path = %path.display(), "the files of a worker's runs could not be removed");
    }
}

/// Nobody else reads what callers sent.
fn private() -> DirBuilder {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "there are no modes"))]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

#[cfg(test)]
mod tests {
    use gen_worker_core::config::Env;

    use super::*;

    fn names(base: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(base)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_an_ended_worker_left_goes_and_what_a_live_one_has_stays() {
        let base = tempfile::tempdir().unwrap();
        let live = RunRoom::take(base.path()).unwrap();
        fs::write(live.path.join("input"), "x").unwrap();
        fs::create_dir_all(base.path().join("worker-0000dead/run-1")).unwrap();
        fs::write(base.path().join("worker-0000dead.lock"), "").unwrap();
        fs::create_dir(base.path().join("cache")).unwrap();
        let room = RunRoom::take(base.path()).unwrap();
        let left = names(base.path());
        assert!(left.len() == 5 && !left.contains(&"worker-0000dead".to_owned()), "{left:?}");
        assert!(live.path.join("input").exists());
        drop((live, room));
        assert_eq!(names(base.path()), ["cache"]);
    }

    #[test]
    fn directories_that_are_to_be_kept_are_nobodys_to_clear() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().to_string_lossy().into_owned();
        let own = |keep| {
            let env = Env::from_iter([("WORKER_RUN_DIR", place.as_str()), ("WORKER_KEEP_RUN_DIR", keep)]);
            let mut config = WorkerConfig::from_env(&env).unwrap();
            let room = RunRoom::move_in(&mut config);
            assert_eq!(config.runtime.run_dir, config.upload.spool_dir);
            (room.is_some(), config.runtime.run_dir != base.path())
        };
        assert_eq!(own("false"), (true, true));
        assert_eq!(own("true"), (false, false));
    }
}
