//! One real worker process against scripted peers on loopback.
//!
//! [`WorkerProcess`] starts a binary with exactly the environment that a test gives it, keeps everything it logs, and ends
//! it when dropped. [`Embedded`] is a worker in the test's own process. Peers come from the testkit.

mod browser;
mod embedded;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gen_worker_testkit::FakeScheduler;
use serde::{Serialize, de::DeserializeOwned};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

pub use crate::{
    browser::{Browser, Page},
    embedded::Embedded,
};

/// Longest wait for a process to end, or to say something.
const END: Duration = Duration::from_secs(30);

/// Where a worker's environment is put together.
pub struct WorkerSettings {
    binary: PathBuf,
    arguments: Vec<String>,
    env: BTreeMap<String, String>,
    directory: TempDir,
    is_log_read: bool,
}

impl WorkerSettings {
    /// A worker of this binary that dials `scheduler`, with short waits and folders of its own.
    pub fn new(binary: impl Into<PathBuf>, scheduler: &FakeScheduler) -> Self {
        Self::anywhere(binary).set("SCHEDULER_ADDR", scheduler.addr().to_string())
    }

    /// A worker that is not told where to dial.
    pub fn anywhere(binary: impl Into<PathBuf>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let folder = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let env = BTreeMap::from([
            ("RECONNECT_DELAY".to_owned(), "0.05".to_owned()),
            ("RECONNECT_JITTER_SECONDS".to_owned(), "0".to_owned()),
            ("RUST_LOG".to_owned(), "debug,h2=info,hyper=info,tower=info".to_owned()),
            ("WORKER_CANCEL_GRACE_SECONDS".to_owned(), "0.3".to_owned()),
            ("WORKER_MODEL_CACHE_DIR".to_owned(), folder("models")),
            ("WORKER_CACHE_DIR".to_owned(), folder("kept")),
            ("WORKER_RUN_DIR".to_owned(), folder("runs")),
            ("ORT_DYLIB_PATH".to_owned(), ort_library()),
        ]);
        Self { binary: binary.into(), arguments: Vec::new(), env, directory, is_log_read: true }
    }

    /// Sets a variable.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Nobody reads what it logs, until [`WorkerProcess::read_log`].
    #[must_use]
    pub fn leave_log(mut self) -> Self {
        self.is_log_read = false;
        self
    }

    /// The worker's own folder; it is its working directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts the process.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(self) -> WorkerProcess {
        let mut child = Command::new(&self.binary)
            .args(&self.arguments)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the worker starts");
        let out = Output::follow(child.stdout.take().expect("stdout is piped"));
        let mut process = WorkerProcess { child, out, log: Output::default(), directory: self.directory };
        if self.is_log_read {
            process.read_log();
        }
        process
    }
}

/// A running worker. Dropping it kills it.
pub struct WorkerProcess {
    child: Child,
    out: Output,
    log: Output,
    directory: TempDir,
}

impl WorkerProcess {
    /// The worker's own folder.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file that the system shows of the process, below `/proc/<id>`.
    ///
    /// # Panics
    /// The process has ended, or there is no such file.
    pub fn proc(&self, file: &str) -> String {
        let id = self.child.id().expect("the worker is running");
        let bytes = std::fs::read(format!("/proc/{id}/{file}")).expect("the system shows it");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many files and directories of runs lie in `WORKER_RUN_DIR`: in this worker's own, or those that are to be kept.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn run_files(&self) -> usize {
        let in_directory = |path: &Path| std::fs::read_dir(path).expect("it can be read").flatten();
        let in_entry = |entry: std::fs::DirEntry| {
            let own = entry.file_name().to_string_lossy().starts_with("worker-");
            match (own, entry.path().is_dir()) {
                (true, true) => in_directory(&entry.path()).count(),
                (true, false) => 0,
                (false, _) => 1,
            }
        };
        in_directory(&self.directory().join("runs")).map(in_entry).sum()
    }

    /// Begins to read what it logs.
    ///
    /// # Panics
    /// It is read already.
    pub fn read_log(&mut self) {
        self.log = Output::follow(self.child.stderr.take().expect("it is read once"));
    }

    /// Everything on stderr so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until these words stand in the log. What a worker logs before it sends may be read after what it sent.
    ///
    /// # Panics
    /// They do not within 30 s.
    pub async fn says(&self, words: &str) {
        let said = async {
            while !self.log().contains(words) {
                tokio::task::yield_now().await;
            }
        };
        let in_time = timeout(END, said).await.is_ok();
        assert!(in_time, "the worker did not say `{words}`; it logged\n{}", self.log());
    }

    /// Everything on stdout so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// The process has ended.
    pub async fn terminate(&self) {
        self.signal("-TERM").await;
    }

    /// Sends SIGINT.
    ///
    /// # Panics
    /// The process has ended.
    pub async fn interrupt(&self) {
        self.signal("-INT").await;
    }

    /// Sends SIGUSR1.
    ///
    /// # Panics
    /// The process has ended.
    pub async fn ask(&self) {
        self.signal("-USR1").await;
    }

    async fn signal(&self, signal: &str) {
        let id = self.child.id().expect("the worker is running").to_string();
        let sent = Command::new("kill").args([signal, &id]).status().await.expect("kill is there");
        assert!(sent.success());
    }

    /// Sends SIGKILL, and waits for the end of the process.
    ///
    /// # Panics
    /// The process has ended.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the worker is running");
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// It does not end within 30 s.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = match timeout(END, self.child.wait()).await {
            Ok(status) => status.expect("its status can be read"),
            Err(_) => panic!("the worker did not end; it logged\n{}", self.log()),
        };
        self.out.finish().await;
        self.log.finish().await;
        status
    }
}

/// What a process writes, kept as it comes.
#[derive(Default)]
struct Output {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn follow(stream: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let text = Arc::<Mutex<String>>::default();
        let kept = text.clone();
        let read = async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_str(&line);
                kept.push('\n');
            }
        };
        Self { text, reader: Some(tokio::runtime::Handle::current().spawn(read)) }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.await.expect("reading does not panic");
        }
    }
}

/// ONNX Runtime, as `cargo xtask test` says where it is, else where `cargo xtask ort` puts it.
pub fn ort_library() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "where the test run found ONNX Runtime, no setting of ours"
    )]
    let told = std::env::var("ORT_DYLIB_PATH").ok();
    told.unwrap_or_else(|| {
        let name = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };
        concat!(env!("CARGO_MANIFEST_DIR"), "/../.ort/lib/").to_owned() + name
    })
}

/// SeaweedFS's program, as `cargo xtask test` says where it is, else where `cargo xtask seaweed` puts it.
pub fn seaweed_program() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "where the test run found SeaweedFS, no setting of ours")]
    let told = std::env::var_os("WEED_PATH");
    told.map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../.weed/weed").into(), PathBuf::from)
}

/// The NATS server's program, as `cargo xtask test` says where it is, else where `cargo xtask nats` puts it.
pub fn nats_program() -> PathBuf {
    gen_worker_testkit::NatsServers::program()
}

/// A browser, as `cargo xtask test` says where it is, else the one on the path.
pub fn browser_program() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "where the test run found a browser, no setting of ours")]
    let told = std::env::var_os("CHROMIUM_PATH");
    told.map_or_else(|| "chromium".into(), PathBuf::from)
}

/// A value as a payload.
///
/// # Panics
/// It has no MessagePack form.
pub fn pack(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("it has a MessagePack form")
}

/// A result's output as a value.
///
/// # Panics
/// It is something else.
pub fn unpack<T: DeserializeOwned>(output: &[u8]) -> T {
    rmp_serde::from_slice(output).expect("the output has this type")
}
