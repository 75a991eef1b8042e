//! Real NATS servers with JetStream, as processes: one, or a cluster.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

/// A cluster on loopback has a leader in about 2 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server logs when it takes clients.
const READY: &str = "Server is ready";

/// NATS servers on loopback that form one cluster, each with a folder of its own. The processes end when this is dropped.
#[derive(Debug)]
pub struct NatsServers {
    program: PathBuf,
    ports: Vec<(u16, u16)>,
    running: Vec<Option<Running>>,
    directory: TempDir,
}

#[derive(Debug)]
struct Running {
    process: Child,
    _log: JoinSet<()>,
}

impl NatsServers {
    /// Starts `count` servers of `program`, which is `nats-server`, as `cargo xtask nats` puts it in place.
    ///
    /// # Panics
    /// One cannot be started, or takes no clients within a minute.
    pub async fn start(program: impl AsRef<Path>, count: usize) -> Self {
        let bound: Vec<_> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        let ports = bound.chunks(2).map(|pair| (port(&pair[0]), port(&pair[1]))).collect();
        drop(bound);
        let mut servers = Self {
            program: program.as_ref().to_owned(),
            ports,
            running: (0..count).map(|_| None).collect(),
            directory: tempfile::tempdir().expect("a temporary folder"),
        };
        for index in 0..count {
            servers.restart(index).await;
        }
        servers
    }

    /// Where clients connect, one URL for each server.
    pub fn urls(&self) -> Vec<String> {
        self.ports.iter().map(|(client, _)| format!("nats://127.0.0.1:{client}")).collect()
    }

    /// Ends a server at once, as SIGKILL does. It keeps what it has on disk.
    ///
    /// # Panics
    /// It is not running.
    pub async fn kill(&mut self, index: usize) {
        let mut running = self.running[index].take().expect("the server is running");
        running.process.kill().await.expect("the server is running");
    }

    /// Starts a server anew on what it has on disk, and waits until it takes clients.
    ///
    /// # Panics
    /// It cannot be started, or takes no clients within a minute.
    pub async fn restart(&mut self, index: usize) {
        let (client, cluster) = self.ports[index];
        let routes: Vec<_> =
            self.ports.iter().map(|(_, cluster)| format!("nats-route://127.0.0.1:{cluster}")).collect();
        let mut command = Command::new(&self.program);
        command
            .args(["--addr", "127.0.0.1", "--port", &client.to_string()])
            .args(["--name", &format!("n{index}"), "--jetstream", "--store_dir"])
            .arg(self.directory.path().join(index.to_string()));
        if self.ports.len() > 1 {
            command
                .args(["--cluster_name", "test", "--cluster", &format!("nats://127.0.0.1:{cluster}")])
                .args(["--routes", &routes.join(",")]);
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}: run `cargo xtask nats`", self.program.display()));
        let mut lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let mut said = String::new();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(READY) {
                    return true;
                }
                said.push_str(&line);
                said.push('\n');
            }
            false
        };
        let ready = timeout(PATIENCE, ready).await.unwrap_or(false);
        assert!(ready, "the NATS server takes no clients; it logged\n{said}");
        // A full pipe would stop it.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running[index] = Some(Running { process, _log: log });
    }
}
