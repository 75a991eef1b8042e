//! A disk so small that it can be filled: a file system in memory, in a namespace that a process holds open.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Room for the models and kept files of a worker, and as much again.
const BYTES: usize = 64 << 20;

/// Dropping it ends it.
pub(crate) struct SmallDisk {
    path: PathBuf,
    holder: Child,
}

impl SmallDisk {
    /// Mounts one at `path`, which is made; `None`: it cannot be done here.
    pub(crate) async fn make(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).expect("the folder can be written");
        let mount =
            format!("mount -t tmpfs -o size={BYTES} small \"$0\" && echo mounted && exec sleep infinity");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut said = BufReader::new(holder.stdout.take()?).lines();
        let mounted = said.next_line().await.ok()?;
        let disk = Self { path: path.to_owned(), holder };
        // Whoever may not look in from outside may not fill it either.
        (mounted.as_deref() == Some("mounted") && disk.seen_from_outside().is_dir()).then_some(disk)
    }

    /// Where it is for those who entered.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Where it is for everybody else.
    pub(crate) fn seen_from_outside(&self) -> PathBuf {
        let path = self.path.strip_prefix("/").expect("it is an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.id())).join(path)
    }

    /// The words before a command that is to run where the disk is.
    pub(crate) fn enter(&self) -> Vec<OsString> {
        let target = self.id().to_string();
        ["nsenter", "--target", &target, "--user", "--mount", "--preserve-credentials"]
            .map(OsString::from)
            .into()
    }

    /// Fills it to the last byte.
    pub(crate) async fn fill(&self) {
        let ballast = self.ballast();
        let filled = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::create(ballast)?;
            std::io::copy(&mut std::io::repeat(1), &mut file)
        });
        filled.await.expect("writing does not panic").expect_err("an endless file fits on no disk");
    }

    /// Makes room again.
    pub(crate) async fn empty(&self) {
        tokio::fs::remove_file(self.ballast()).await.expect("what was written can be removed");
    }

    fn ballast(&self) -> PathBuf {
        self.seen_from_outside().join("ballast")
    }

    fn id(&self) -> u32 {
        self.holder.id().expect("it runs until it is killed")
    }
}
