//! The processes and networks of a fleet: NATS servers, orchestrators, workers, and what fails between them.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use gen_worker_net::{HttpClient, Method, Trust};
use gen_worker_testkit::{FaultProxy, NatsServers};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, RwLock},
    time::{sleep, timeout},
};
use url::Url;

use super::schedule::{Fault, ORCHESTRATORS, SERVERS, WORKERS};
use crate::world::{Process, free_address, net};

/// Longest wait for a process to start or leave, and for the fleet to be at rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a fleet is asked whether it is as it should be.
const ASKED_EVERY: Duration = Duration::from_millis(50);

/// How often a run is tried in all: what is killed all the time is not given up.
const ATTEMPTS: &str = "1000";

/// Where the programs are that a fleet is made of.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The conformance worker
    #[arg(long)]
    worker: PathBuf,
    /// The NATS server
    #[arg(long)]
    nats: PathBuf,
    /// The library of ONNX Runtime
    #[arg(long)]
    ort: PathBuf,
}

/// All of it. What is running ends when this is dropped.
pub(crate) struct World {
    pub(crate) http: HttpClient,
    /// Where each orchestrator answers HTTP.
    pub(crate) bases: Vec<Url>,
    servers: RwLock<NatsServers>,
    /// Between each orchestrator and each server; empty: they reach each other as they are.
    networks: Vec<Vec<FaultProxy>>,
    orchestrators: Vec<Mutex<Process>>,
    workers: Vec<Mutex<Process>>,
    folder: TempDir,
}

impl World {
    /// Starts everything, and waits until all workers are connected.
    ///
    /// # Errors
    /// They are not within a minute.
    pub(crate) async fn start(programs: &Programs, partition: bool) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let servers = match partition {
            true => NatsServers::start_apart(&programs.nats, SERVERS).await,
            false => NatsServers::start(&programs.nats, SERVERS).await,
        };
        let (mut networks, mut orchestrators, mut addrs, mut bases) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 0..ORCHESTRATORS {
            let mut urls = servers.urls();
            if partition {
                let mut to_servers = Vec::new();
                for addr in servers.addrs() {
                    to_servers.push(FaultProxy::start(addr).await);
                }
                urls = to_servers.iter().map(|network| format!("nats://{}", network.addr())).collect();
                networks.push(to_servers);
            }
            let (grpc, http) = (free_address(), free_address());
            addrs.push(grpc);
            bases.push(format!("http://{http}").parse().expect("an address makes a URL"));
            orchestrators.push(Mutex::new(orchestrator(&folder, number, (grpc, http), &urls)));
        }
        let workers = (0..WORKERS).map(|number| Mutex::new(worker(&folder, number, &addrs, programs)));
        let world = Self {
            http: HttpClient::new(net()).expect("HTTP can be set up"),
            bases,
            servers: RwLock::new(servers),
            networks,
            orchestrators,
            workers: workers.collect(),
            folder,
        };
        world.until("workers were connected", WORKERS as f64, "gen_worker_orchestrator_workers").await?;
        Ok(world)
    }

    /// Lets a fault begin.
    ///
    /// # Errors
    /// Who was told to stop did not, or otherwise than it should.
    pub(crate) async fn befall(&self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::KillServer(server) => self.servers.write().await.kill(server).await,
            Fault::CutServer { server, silent } => self.servers.read().await.cut_off(server, silent),
            Fault::KillOrchestrator(number) => self.orchestrators[number].lock().await.kill().await,
            Fault::StopOrchestrator(number) => {
                let stopped = self.orchestrators[number].lock().await.terminate(PATIENCE).await;
                return stopped.map_err(|how| format!("orchestrator-{number} was told to stop and {how}"));
            }
            Fault::KillWorker(number) => self.workers[number].lock().await.kill().await,
            Fault::CutOrchestrator(number) => self.networks[number].iter().for_each(FaultProxy::pause),
        }
        Ok(())
    }

    /// Mends it. A server is mended once it has what the others have.
    pub(crate) async fn mend(&self, fault: Fault) {
        match fault {
            Fault::KillServer(server) => {
                let mut servers = self.servers.write().await;
                servers.restart(server).await;
                servers.caught_up(server).await;
            }
            Fault::CutServer { server, .. } => {
                let servers = self.servers.read().await;
                servers.join_again(server);
                servers.caught_up(server).await;
            }
            Fault::KillOrchestrator(number) | Fault::StopOrchestrator(number) => {
                self.orchestrators[number].lock().await.start_again();
            }
            Fault::KillWorker(number) => self.workers[number].lock().await.start_again(),
            Fault::CutOrchestrator(number) => {
                for network in &self.networks[number] {
                    network.drop_all();
                    network.resume();
                }
            }
        }
    }

    /// Waits until nothing waits or runs at the servers.
    ///
    /// # Errors
    /// Something still does.
    pub(crate) async fn at_rest(&self) -> Result<(), String> {
        self.until("runs waited at the servers", 0.0, "gen_worker_orchestrator_queue_runs").await?;
        self.until("runs ran at the servers", 0.0, "gen_worker_orchestrator_running_runs").await
    }

    /// Waits until the orchestrators' gauges of this name have this sum.
    async fn until(&self, what: &str, wanted: f64, gauge: &str) -> Result<(), String> {
        let mut found = None;
        let all = async {
            loop {
                found = self.sum(gauge).await;
                if found == Some(wanted) {
                    return;
                }
                sleep(ASKED_EVERY).await;
            }
        };
        timeout(PATIENCE, all).await.map_err(|_| {
            let found = found.map_or_else(|| "an unknown number of".to_owned(), |found| found.to_string());
            format!("{found} {what} after {PATIENCE:?}, not {wanted}")
        })
    }

    /// `None`: somebody did not answer, or nobody knows.
    async fn sum(&self, gauge: &str) -> Option<f64> {
        let (mut sum, mut said) = (0.0, false);
        for base in &self.bases {
            let url = base.join("metrics").expect("it is a path");
            let answer = self.http.request(Method::GET, url, Trust::Operator).send().await.ok()?;
            let page = answer.into_success().ok()?.bytes(1 << 20).await.ok()?;
            let page = String::from_utf8_lossy(&page);
            let samples = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(gauge));
            let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            for value in values {
                sum += value;
                said = true;
            }
        }
        said.then_some(sum)
    }

    /// Tells every worker to leave, and says what is wrong: an end that nobody asked for, or none.
    pub(crate) async fn leave(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, worker) in self.workers.iter().enumerate() {
            let mut worker = worker.lock().await;
            match worker.ended() {
                Some(status) => wrong.push(format!("worker-{number} ended by itself: {status}")),
                None => {
                    let left = worker.terminate(PATIENCE).await;
                    wrong
                        .extend(left.err().map(|how| format!("worker-{number} was told to leave and {how}")));
                }
            }
        }
        for (number, orchestrator) in self.orchestrators.iter().enumerate() {
            if let Some(status) = orchestrator.lock().await.ended() {
                wrong.push(format!("orchestrator-{number} ended by itself: {status}"));
            }
        }
        wrong
    }

    /// Leaves the folder with the logs where it is, and says where.
    pub(crate) fn keep_logs(mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

fn orchestrator(
    folder: &TempDir,
    number: usize,
    (grpc, http): (SocketAddr, SocketAddr),
    servers: &[String],
) -> Process {
    let this = std::env::current_exe().expect("this program is a file");
    let home = folder.path().join(format!("orchestrator-{number}"));
    let env = BTreeMap::from([
        ("ORCHESTRATOR_GRPC_ADDR", grpc.to_string()),
        ("ORCHESTRATOR_HTTP_ADDR", http.to_string()),
        ("ORCHESTRATOR_DATA_DIR", home.join("data").display().to_string()),
        ("ORCHESTRATOR_MAX_ATTEMPTS", ATTEMPTS.to_owned()),
        ("ORCHESTRATOR_WORKER_GRACE_SECONDS", "2".to_owned()),
        ("ORCHESTRATOR_QUEUE", "nats".to_owned()),
        ("ORCHESTRATOR_NATS_URL", servers.join(",")),
        ("ORCHESTRATOR_NATS_REPLICAS", "3".to_owned()),
        ("TMPDIR", home.join("tmp").display().to_string()),
        ("RUST_LOG", "info".to_owned()),
    ]);
    let log = folder.path().join(format!("orchestrator-{number}.log"));
    Process::start(vec![this.into(), "orchestrator".into()], env, home, &log)
}

/// A worker that dials an orchestrator of its own first, and notices soon what fails.
fn worker(folder: &TempDir, number: usize, orchestrators: &[SocketAddr], programs: &Programs) -> Process {
    let home = folder.path().join(format!("worker-{number}"));
    let path = |name: &str| home.join(name).display().to_string();
    let mut addrs: Vec<_> = orchestrators.iter().map(ToString::to_string).collect();
    addrs.rotate_left(number % orchestrators.len());
    let env = BTreeMap::from([
        ("WORKER_ID", format!("worker-{number}")),
        ("SCHEDULER_ADDR", addrs[0].clone()),
        ("SCHEDULER_ADDRS", addrs.join(",")),
        ("RECONNECT_DELAY", "0.1".to_owned()),
        ("RECONNECT_MAX_DELAY", "1".to_owned()),
        ("RECONNECT_JITTER_SECONDS", "0.1".to_owned()),
        ("WORKER_MAX_CONCURRENCY", "8".to_owned()),
        ("WORKER_MODEL_CACHE_DIR", path("models")),
        ("WORKER_CACHE_DIR", path("kept")),
        ("WORKER_RUN_DIR", path("runs")),
        ("WORKER_STATE_DIR", path("state")),
        ("ORT_DYLIB_PATH", programs.ort.display().to_string()),
        ("TMPDIR", path("tmp")),
        ("RUST_LOG", "info".to_owned()),
    ]);
    let log = folder.path().join(format!("worker-{number}.log"));
    Process::start(vec![programs.worker.clone().into()], env, home, &log)
}
