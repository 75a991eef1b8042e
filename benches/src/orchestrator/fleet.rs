//! Orchestrators and their workers, as processes. They end when this is dropped.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::Duration,
};

use gen_worker_testkit::NatsServers;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use url::Url;

use crate::callers::Callers;

/// How many workers there are, whoever they are connected to.
const WORKERS: usize = 3;

/// How many runs each takes at once.
const SLOTS: &str = "256";

/// Nobody takes this long to start, elections of leaders included.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);

pub(crate) struct Fleet {
    bases: Vec<Url>,
    processes: Vec<Child>,
    folder: TempDir,
}

impl Fleet {
    /// So many orchestrators on these servers. Each count of them has a prefix of its own, and so nothing of another's.
    pub(crate) async fn on_nats(
        orchestrator: &Path,
        worker: &Path,
        orchestrators: usize,
        servers: &NatsServers,
        replicas: usize,
    ) -> Self {
        let settings = [
            ("ORCHESTRATOR_QUEUE", "nats".to_owned()),
            ("ORCHESTRATOR_NATS_URL", servers.urls().join(",")),
            ("ORCHESTRATOR_NATS_REPLICAS", replicas.to_string()),
            ("ORCHESTRATOR_NATS_PREFIX", format!("bench-{orchestrators}")),
        ];
        Self::start(orchestrator, worker, orchestrators, &settings).await
    }

    /// One that keeps its runs itself.
    pub(crate) async fn on_file(orchestrator: &Path, worker: &Path) -> Self {
        Self::start(orchestrator, worker, 1, &[("ORCHESTRATOR_QUEUE", "file".to_owned())]).await
    }

    async fn start(orchestrator: &Path, worker: &Path, count: usize, settings: &[(&str, String)]) -> Self {
        let mut fleet = Self {
            bases: Vec::new(),
            processes: Vec::new(),
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let mut addrs = Vec::new();
        for number in 0..count {
            let (grpc, http) = (free(), free());
            let mut command = fleet.command(orchestrator, &format!("orchestrator-{number}"));
            command.arg("orchestrator").envs(settings.iter().map(|(name, value)| (name, value)));
            command.env("ORCHESTRATOR_GRPC_ADDR", grpc.to_string());
            command.env("ORCHESTRATOR_HTTP_ADDR", http.to_string());
            fleet.spawn(command);
            addrs.push(grpc.to_string());
            fleet.bases.push(format!("http://{http}").parse().expect("an address makes a URL"));
        }
        for number in 0..WORKERS {
            let mut command = fleet.command(worker, &format!("worker-{number}"));
            addrs.rotate_left(1);
            command.env("SCHEDULER_ADDR", &addrs[0]).env("SCHEDULER_ADDRS", addrs.join(","));
            command.env("RECONNECT_MAX_DELAY", "0.1").env("WORKER_MAX_CONCURRENCY", SLOTS);
            fleet.spawn(command);
        }
        timeout(PATIENCE, fleet.connected()).await.expect("all workers are connected");
        fleet
    }

    /// Callers for so many tenants.
    pub(crate) fn callers(&self, tenants: usize) -> Callers {
        Callers::of(self.bases.clone(), tenants)
    }

    fn command(&self, program: &Path, name: &str) -> Command {
        let home = self.folder.path().join(name);
        std::fs::create_dir_all(&home).expect("the folder can be written");
        let mut command = Command::new(program);
        command
            .env("WORKER_ID", name)
            .env("WORKER_MODEL_CACHE_DIR", home.join("models"))
            .env("WORKER_RUN_DIR", home.join("runs"))
            .env("RUST_LOG", "warn")
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn spawn(&mut self, mut command: Command) {
        self.processes.push(command.spawn().expect("the program was built"));
    }

    /// Waits until the orchestrators have all workers between them.
    async fn connected(&self) {
        let callers = self.callers(1);
        while callers.workers().await != WORKERS {
            sleep(AGAIN).await;
        }
    }
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    let bound = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    bound.local_addr().expect("it is bound")
}
