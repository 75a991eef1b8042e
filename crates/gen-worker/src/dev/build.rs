//! Whether a binary was built anew.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often the file is looked at. One that stays as it is from one look to the next has been written to its end.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// The file that a worker is started from.
#[derive(Debug)]
pub(super) struct Build {
    path: PathBuf,
    watch: Watch,
}

impl Build {
    /// The build in this file.
    pub(super) fn at(path: PathBuf) -> Self {
        let mut build = Self { path, watch: Watch::default() };
        build.take();
        build
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is there now is what is started.
    pub(super) fn take(&mut self) {
        let now = Identity::of(&self.path);
        self.watch = Watch { started: now, last: now };
    }

    /// Waits until there is another than the one that was taken.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) {
        let mut due = interval_at(Instant::now() + LOOK, LOOK);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            if self.watch.look(Identity::of(&self.path)) {
                return;
            }
        }
    }
}

/// What of a file changes when it is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    /// `None`: there is no file.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { inode: inode(&metadata), length: metadata.len(), modified: metadata.modified().ok() })
    }
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &fs::Metadata) -> u64 {
    0
}

/// What was seen of the file.
#[derive(Debug, Default)]
struct Watch {
    started: Option<Identity>,
    last: Option<Identity>,
}

impl Watch {
    /// Whether there is a build to start: another than the one that was, and the same as at the last look.
    fn look(&mut self, now: Option<Identity>) -> bool {
        let is_settled = now.is_some() && now == self.last;
        self.last = now;
        is_settled && now != self.started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_taken_once_it_has_been_written() {
        let build = |length| Some(Identity { inode: 1, length, modified: None });
        let mut watch = Watch { started: build(1), last: build(1) };
        for (seen, expected) in [
            (build(1), false),
            (None, false),
            (build(2), false),
            (build(3), false),
            (build(3), true),
            (None, false),
            (build(1), false),
            (build(1), false),
        ] {
            assert_eq!(watch.look(seen), expected, "{seen:?}");
        }
    }
}
