//! One process that can be killed and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{File, read_dir, read_link, read_to_string},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::now_ms;

/// Its number is the same wherever there is a `kill`.
const SIGTERM: i32 = 15;

/// A program with its settings, and the process that runs it now. Dropping it kills it.
pub(crate) struct Process {
    command: Vec<OsString>,
    env: BTreeMap<&'static str, String>,
    home: PathBuf,
    log: PathBuf,
    /// How long the log was when the process was started.
    said_before: u64,
    child: Child,
    started_ms: u64,
}

/// What a process has of the system.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
    /// Open descriptors that are no files: sockets, pipes and the like.
    pub(crate) sockets: usize,
    /// The files that are open.
    pub(crate) files: BTreeSet<PathBuf>,
}

impl Process {
    /// Starts a program in a folder of its own, which is made; what it says goes to the end of `log`.
    pub(crate) fn start(
        command: Vec<OsString>,
        env: BTreeMap<&'static str, String>,
        home: PathBuf,
        log: &Path,
    ) -> Self {
        for folder in [Some(home.display().to_string()), env.get("TMPDIR").cloned()].into_iter().flatten() {
            std::fs::create_dir_all(folder).expect("the folder can be written");
        }
        let child = spawn(&command, &env, &home, log);
        Self { command, env, home, log: log.to_owned(), said_before: 0, child, started_ms: now_ms() }
    }

    /// Starts it again, once it has ended.
    pub(crate) fn start_again(&mut self) {
        self.said_before = std::fs::metadata(&self.log).map_or(0, |log| log.len());
        self.child = spawn(&self.command, &self.env, &self.home, &self.log);
        self.started_ms = now_ms();
    }

    /// When it was started last, in milliseconds since the Unix epoch.
    pub(crate) fn started_ms(&self) -> u64 {
        self.started_ms
    }

    /// How it has ended; `None`: it runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// SIGKILL, and the end.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("a child can be killed");
    }

    /// SIGTERM, and the end within `patience`; else SIGKILL.
    ///
    /// # Errors
    /// How it ended, if not as it should.
    pub(crate) async fn terminate(&mut self, patience: Duration) -> Result<(), String> {
        self.signal("-TERM").await;
        match timeout(patience, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            // Before it has begun it has nothing to hand over, and heeds no signal yet.
            Ok(Ok(status)) if status.signal() == Some(SIGTERM) && !self.has_said("connected") => Ok(()),
            Ok(status) => Err(format!("ended otherwise: {status:?}")),
            Err(_) => {
                self.child.kill().await.expect("a child can be killed");
                Err(format!("did not within {patience:?}"))
            }
        }
    }

    /// Sends a signal by its name, such as `-STOP`. One that has ended gets none.
    pub(crate) async fn signal(&self, signal: &str) {
        if let Some(id) = self.child.id() {
            let sent = Command::new("kill").args([signal, &id.to_string()]).status().await;
            assert!(sent.is_ok_and(|sent| sent.success()), "kill is there");
        }
    }

    /// Whether its log has this word since it was started.
    fn has_said(&self, word: &str) -> bool {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let since = log.get(self.said_before as usize..).unwrap_or_default();
        String::from_utf8_lossy(since).contains(word)
    }

    /// Zeros for one that has ended.
    pub(crate) fn measured(&self) -> Measured {
        let Some(id) = self.child.id() else { return Measured::default() };
        let status = read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok());
        let mut measured = Measured { resident: kib.unwrap_or(0_u64) * 1024, ..Measured::default() };
        for entry in read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten() {
            match read_link(entry.path()) {
                Ok(file) if file.is_absolute() => {
                    measured.files.insert(file);
                }
                _ => measured.sockets += 1,
            }
        }
        measured
    }
}

fn spawn(command: &[OsString], env: &BTreeMap<&'static str, String>, home: &Path, log: &Path) -> Child {
    let (program, arguments) = command.split_first().expect("a command has a program");
    let stderr = File::options().create(true).append(true).open(log).expect("the folder can be written");
    Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(env)
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// All files in a folder and the folders in it; those that go meanwhile are left out.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
