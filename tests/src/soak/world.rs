//! The processes and networks of a soak: an orchestrator, a hub, a store, workers, and what fails between them.

mod disk;
mod process;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gen_worker_core::OutputBody;
use gen_worker_net::{
    AllowList, HeaderValue, HttpClient, Method, NetConfig, NetError, Trust, header::CONTENT_TYPE,
};
use gen_worker_orchestrator::{ClientError, OrchestratorClient, RunView};
use gen_worker_testkit::{FakeHub, Fault as Answer, FaultProxy, SeaweedFs};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep, timeout},
};
use url::Url;

use self::disk::SmallDisk;
use crate::{
    calls::model_ref,
    schedule::{Able, Fault, MODELS, Peer, WORKERS},
};

pub(crate) use self::process::{Measured, Process, files_below};

/// How often a run is tried in all.
pub(crate) const ATTEMPTS: i64 = 4;

/// Whose disk is small.
pub(crate) const SMALL_DISK: usize = WORKERS - 1;

/// Longest wait for a process to start, leave or answer.
const PATIENCE: Duration = Duration::from_secs(60);

const BUCKET: &str = "outputs";
const TOKEN: &str = "token-of-the-workers";
const EXPIRED: &str = "token-that-has-expired";

/// Each model is so large that it comes in several pieces.
const MODEL_BYTES: usize = 400_000;

/// Where the programs are that a world is made of.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Programs {
    /// The conformance worker
    #[arg(long)]
    worker: PathBuf,
    /// SeaweedFS
    #[arg(long)]
    weed: PathBuf,
    /// The library of ONNX Runtime
    #[arg(long)]
    ort: PathBuf,
}

/// All of it. What is running ends when this is dropped.
pub(crate) struct World {
    pub(crate) client: OrchestratorClient,
    pub(crate) http: HttpClient,
    orchestrator: Mutex<Process>,
    /// Where the orchestrator answers HTTP, past the network that fails.
    base: Url,
    hub: FakeHub,
    store: SeaweedFs,
    files_network: FaultProxy,
    hub_network: FaultProxy,
    store_network: FaultProxy,
    workers: Vec<Worker>,
    disk: Option<SmallDisk>,
    /// When the small disk was full, in milliseconds since the Unix epoch; an end that is not known yet is the end of time.
    full: Mutex<Vec<(u64, u64)>>,
    /// When the stream of each worker broke last, in milliseconds since the Unix epoch.
    broke: [AtomicU64; WORKERS],
    /// Held while the disk is filled: two at once would empty it under each other.
    filling: Mutex<()>,
    wrong: Mutex<Vec<String>>,
    /// How often a worker could not start because its disk was full.
    failed_starts: AtomicU64,
    /// When the orchestrator was killed last, in milliseconds since 1970.
    killed: AtomicU64,
    folder: TempDir,
}

struct Worker {
    process: Mutex<Process>,
    network: FaultProxy,
    token: PathBuf,
}

impl World {
    /// Starts everything, and waits until all workers are connected.
    pub(crate) async fn start(programs: &Programs) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (grpc, http) = (free_address(), free_address());
        let base: Url = format!("http://{http}").parse().expect("an address makes a URL");
        let files_network = FaultProxy::start(http).await;
        let store = SeaweedFs::start(&programs.weed).await;
        let store_network = FaultProxy::start(address_of(&store.url())).await;
        let hub = hub().await;
        let hub_network = FaultProxy::start(address_of(&hub.url())).await;
        let disk = SmallDisk::make(&folder.path().join("small")).await;
        let orchestrator = orchestrator(folder.path(), grpc, http, &files_network);
        let mut workers = Vec::new();
        for number in 0..WORKERS {
            let network = FaultProxy::start(grpc).await;
            let within = disk.as_ref().filter(|_| number == SMALL_DISK);
            let home = within.map_or_else(|| folder.path().join(name(number)), SmallDisk::path);
            let token = folder.path().join(format!("token-{number}"));
            std::fs::write(&token, TOKEN).expect("the folder can be written");
            if let Some(disk) = within {
                std::fs::create_dir_all(disk.seen_from_outside().join("tmp")).expect("the disk is empty");
            }
            let mut env = settings(&home, &network, &hub_network);
            env.insert("WORKER_ID", name(number));
            env.insert("WORKER_JWT_FILE", token.display().to_string());
            env.insert("ORT_DYLIB_PATH", programs.ort.display().to_string());
            let mut command = within.map(SmallDisk::enter).unwrap_or_default();
            command.push(programs.worker.clone().into());
            let process =
                Process::start(command, env, home, &folder.path().join(format!("worker-{number}.log")));
            workers.push(Worker { process: Mutex::new(process), network, token });
        }
        let world = Self {
            client: OrchestratorClient::new(base.clone(), None).expect("HTTP can be set up"),
            http: HttpClient::new(net()).expect("HTTP can be set up"),
            orchestrator: Mutex::new(orchestrator),
            base,
            hub,
            store,
            files_network,
            hub_network,
            store_network,
            workers,
            disk,
            full: Mutex::default(),
            broke: Default::default(),
            filling: Mutex::default(),
            wrong: Mutex::default(),
            failed_starts: AtomicU64::new(0),
            killed: AtomicU64::new(0),
            folder,
        };
        world.connected().await;
        world
    }

    /// What can be done here.
    pub(crate) fn able(&self, kill_orchestrator: bool) -> Able {
        Able { fill_disk: self.disk.is_some(), kill_orchestrator }
    }

    /// Waits until every worker is connected.
    pub(crate) async fn connected(&self) {
        let all = async {
            loop {
                let workers = self.client.workers().await.unwrap_or_default();
                if workers["workers"].as_array().is_some_and(|workers| workers.len() == WORKERS) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            self.wrong.lock().await.push(format!("not every worker was connected within {PATIENCE:?}"));
        }
    }

    /// Starts what ends by itself again, as a machine's supervisor does.
    pub(crate) async fn tend(&self) {
        loop {
            for number in 0..WORKERS {
                let mut process = self.worker(number).await;
                if self.look_at(number, &mut process).await {
                    process.start_again();
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whether a worker has ended by itself. It may where it cannot write down its results.
    async fn look_at(&self, number: usize, process: &mut Process) -> bool {
        let Some(status) = process.ended() else { return false };
        if number == SMALL_DISK && self.was_full_since(process.started_ms()).await {
            self.failed_starts.fetch_add(1, Relaxed);
        } else {
            self.wrong.lock().await.push(format!("worker-{number} ended by itself: {status}"));
        }
        true
    }

    /// How often a worker could not start because its disk was full.
    pub(crate) fn failed_starts(&self) -> u64 {
        self.failed_starts.load(Relaxed)
    }

    /// Lets a fault happen, and mends it.
    pub(crate) async fn befall(&self, fault: Fault) {
        match fault {
            Fault::Kill(worker) => {
                let mut process = self.worker(worker).await;
                if !self.look_at(worker, &mut process).await {
                    process.kill().await;
                }
                self.break_stream(worker);
                process.start_again();
            }
            Fault::Terminate(worker) => {
                let mut process = self.worker(worker).await;
                self.see_off(worker, &mut process).await;
                self.break_stream(worker);
                process.start_again();
            }
            Fault::Freeze(worker, lasts) => {
                let process = self.worker(worker).await;
                process.signal("-STOP").await;
                sleep(lasts).await;
                process.signal("-CONT").await;
            }
            Fault::DropStream(worker) => self.break_stream(worker),
            Fault::SilentStream(worker, lasts) => {
                self.workers[worker].network.pause();
                sleep(lasts).await;
                self.break_stream(worker);
                self.workers[worker].network.resume();
            }
            Fault::ExpiredToken(worker, lasts) => {
                give(&self.workers[worker].token, EXPIRED);
                self.break_stream(worker);
                sleep(lasts).await;
                give(&self.workers[worker].token, TOKEN);
            }
            Fault::DropTransfers(peer) => self.network(peer).drop_all(),
            Fault::SilentTransfers(peer, lasts) => silence(self.network(peer), lasts).await,
            Fault::CorruptModel(model) => self.hub.fault_once(&path(model), [Answer::Corrupt(1000); 2]),
            Fault::CutModel(model) => self.hub.fault_once(&path(model), [Answer::Truncate(100_000)]),
            Fault::BusyHub(model) => self.hub.fault_once(&path(model), [Answer::Status(503); 2]),
            Fault::FullDisk(lasts) => self.fill_disk(lasts).await,
            Fault::KillOrchestrator => {
                let mut orchestrator = self.orchestrator.lock().await;
                orchestrator.kill().await;
                self.killed.store(now_ms(), Relaxed);
                // Streams are cut off where the process is; what was on its way is gone as when a network breaks.
                (0..WORKERS).for_each(|worker| self.break_stream(worker));
                orchestrator.start_again();
            }
        }
    }

    /// Breaks the stream of a worker, now or some time ago.
    fn break_stream(&self, worker: usize) {
        self.workers[worker].network.drop_all();
        self.broke[worker].store(now_ms(), Relaxed);
    }

    /// Whether the orchestrator was killed since then, in milliseconds since 1970.
    pub(crate) fn killed_since(&self, since: u64) -> bool {
        self.killed.load(Relaxed) >= since
    }

    /// Whether the stream of a run's worker broke since the run was asked for.
    pub(crate) async fn broke_since(&self, view: &RunView) -> bool {
        let worker = (0..WORKERS).find(|number| view.worker.as_deref() == Some(&name(*number)));
        worker.is_some_and(|worker| self.broke[worker].load(Relaxed) >= view.created_at_ms)
    }

    async fn fill_disk(&self, lasts: Duration) {
        let Some(disk) = &self.disk else { return };
        let _alone = self.filling.lock().await;
        let mut full = self.full.lock().await;
        let since = now_ms();
        full.push((since, u64::MAX));
        drop(full);
        disk.fill().await;
        sleep(lasts).await;
        disk.empty().await;
        let mut full = self.full.lock().await;
        full.retain(|(began, _)| *began != since);
        full.push((since, now_ms()));
    }

    /// Whether the small disk was full at some time from `from` to now.
    pub(crate) async fn was_full_since(&self, from: u64) -> bool {
        self.full.lock().await.iter().any(|(_, end)| *end >= from)
    }

    /// Makes the store's address for one upload of this key, which is good for a minute; `expired`: it was.
    pub(crate) fn presigned_at_store(&self, key: &str, expired: bool) -> Value {
        use jiff::{SignedDuration, Timestamp};
        use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
        let endpoint = format!("http://{}", self.store_network.addr()).parse().expect("it is a URL");
        let bucket = Bucket::new(endpoint, UrlStyle::Path, BUCKET, "us-east-1").expect("the name is plain");
        let credentials = Credentials::new(SeaweedFs::ACCESS_KEY_ID, SeaweedFs::SECRET_ACCESS_KEY);
        let then = Timestamp::now() - SignedDuration::from_secs(if expired { 120 } else { 0 });
        let signed = bucket.put_object(Some(&credentials), key);
        json!({"put_url": signed.sign_with_time(Duration::from_secs(60), &then).as_str()})
    }

    /// What says that an output goes to this key of the store.
    pub(crate) fn at_store(&self, key: &str) -> Value {
        json!({"s3": {
            "bucket": BUCKET, "key": key, "region": "us-east-1",
            "endpoint": format!("http://{}", self.store_network.addr()),
            "access_key_id": SeaweedFs::ACCESS_KEY_ID, "secret_access_key": SeaweedFs::SECRET_ACCESS_KEY,
        }})
    }

    /// What the store has under this key, past the network that fails.
    pub(crate) async fn stored(&self, key: &str) -> Result<Vec<u8>, String> {
        self.get(&format!("{}/{BUCKET}/{key}", self.store.url())).await
    }

    /// Uploads in parts that are open at the store.
    pub(crate) async fn open_uploads(&self) -> usize {
        let listed = self.get(&format!("{}/{BUCKET}?uploads=", self.store.url())).await.unwrap_or_default();
        String::from_utf8_lossy(&listed).matches("<UploadId>").count()
    }

    /// An address of the orchestrator for one upload.
    pub(crate) async fn presigned(&self, name: &str) -> Result<Value, ClientError> {
        let url = self.base.join("v1/presign").expect("it is a path");
        let body = json!({"name": name}).to_string();
        let request = self.http.request(Method::POST, url, Trust::Operator);
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = request.body(OutputBody::Bytes(body.into())).send().await?.into_success()?;
        Ok(answer.json(1 << 20).await?)
    }

    /// What was put at such an address, past the network that fails.
    pub(crate) async fn uploaded(&self, target: &Value) -> Result<Vec<u8>, String> {
        let public: Url = target["public_url"].as_str().unwrap_or_default().parse().map_err(|_| "no URL")?;
        self.get(self.base.join(public.path()).expect("it is a path").as_str()).await
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, String> {
        let url: Url = url.parse().map_err(|_| "no URL".to_owned())?;
        // Also once the answer has begun: who answers may be killed then.
        let attempt = || async {
            let answer = self.http.request(Method::GET, url.clone(), Trust::Operator).send().await?;
            answer.into_success()?.bytes(1 << 30).await
        };
        let brought = self.http.retry(attempt, |error: &NetError| Some(error)).await;
        brought.map(Vec::from).map_err(|error| error.to_string())
    }

    /// The processes as they are now: the orchestrator and each worker.
    pub(crate) async fn measured(&self) -> Vec<(String, Measured)> {
        let mut measured = vec![("orchestrator".to_owned(), self.orchestrator.lock().await.measured())];
        for number in 0..WORKERS {
            measured.push((name(number), self.worker(number).await.measured()));
        }
        measured
    }

    async fn see_off(&self, number: usize, process: &mut Process) {
        if !self.look_at(number, process).await
            && let Err(how) = process.terminate(PATIENCE).await
        {
            self.wrong.lock().await.push(format!("worker-{number} was told to leave and {how}"));
        }
    }

    /// Tells every worker to leave, one after another, and says what is wrong: an end that nobody asked for, or none.
    pub(crate) async fn leave(&self) -> Vec<String> {
        for number in 0..WORKERS {
            self.see_off(number, &mut *self.worker(number).await).await;
        }
        if let Some(status) = self.orchestrator.lock().await.ended() {
            self.wrong.lock().await.push(format!("the orchestrator ended by itself: {status}"));
        }
        std::mem::take(&mut *self.wrong.lock().await)
    }

    /// Files that are nobody's any more, once every worker has left.
    pub(crate) fn left_over(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for number in 0..WORKERS {
            let disk = self.disk.as_ref().filter(|_| number == SMALL_DISK);
            let own = self.folder.path().join(name(number));
            let home = disk.map_or(own, SmallDisk::seen_from_outside);
            let kept =
                |path: &Path| path.starts_with(home.join("kept")) || path.starts_with(home.join("state"));
            // What a download that was broken off brought is there to be resumed.
            let models = home.join("models");
            let files = files_below(&home);
            // ONNX Runtime keeps one file of its own among the temporary ones.
            let library = home.join("tmp/.ses");
            let explained = |path: &Path| kept(path) || path.starts_with(&models) || path == library;
            left.extend(files.into_iter().filter(|path| !explained(path)));
        }
        let orchestrator = files_below(&self.folder.path().join("orchestrator"));
        let temporary = |path: &PathBuf| path.iter().any(|name| name == ".parts");
        left.extend(orchestrator.into_iter().filter(temporary));
        left.extend(files_below(&self.folder.path().join("tmp")));
        left
    }

    /// Leaves the folder with the logs where it is, and says where.
    pub(crate) fn keep_logs(mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    async fn worker(&self, number: usize) -> MutexGuard<'_, Process> {
        self.workers[number].process.lock().await
    }

    fn network(&self, peer: Peer) -> &FaultProxy {
        match peer {
            Peer::Files => &self.files_network,
            Peer::Hub => &self.hub_network,
            Peer::Store => &self.store_network,
        }
    }
}

/// A silence that ends as the networks of the world end one: with a reset.
async fn silence(network: &FaultProxy, lasts: Duration) {
    network.pause();
    sleep(lasts).await;
    network.drop_all();
    network.resume();
}

/// A worker's id.
fn name(worker: usize) -> String {
    format!("worker-{worker}")
}

/// Puts a token in place of another.
fn give(file: &Path, token: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, token)
        .and_then(|()| std::fs::rename(next, file))
        .expect("the folder can be written");
}

/// A hub with its models: one graph, and beside it as many words as make each another file.
async fn hub() -> FakeHub {
    let hub = FakeHub::start().await;
    for model in 0..MODELS {
        let mut onnx = include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../crates/gen-worker-models-ort/tests/fixtures/double_plus_one.onnx"
        ))
        .to_vec();
        // `doc_string` of `ModelProto`, field 6: its length as a varint of three bytes.
        let words = format!("{model:>4}").repeat(MODEL_BYTES / 4);
        let length = [7, 14, 21].map(|bits| words.len() >> (bits - 7) & 0x7f);
        onnx.extend([0x32, length[0] as u8 | 0x80, length[1] as u8 | 0x80, length[2] as u8]);
        onnx.extend(words.bytes());
        hub.put(&path(model), onnx);
    }
    hub
}

/// Where the hub has a model.
fn path(model: usize) -> String {
    format!("/{}", model_ref(model))
}

fn orchestrator(folder: &Path, grpc: SocketAddr, http: SocketAddr, files: &FaultProxy) -> Process {
    let this = std::env::current_exe().expect("this program is a file");
    let home = folder.join("orchestrator");
    let env = BTreeMap::from([
        ("ORCHESTRATOR_GRPC_ADDR", grpc.to_string()),
        ("ORCHESTRATOR_HTTP_ADDR", http.to_string()),
        ("ORCHESTRATOR_PUBLIC_URL", format!("http://{}", files.addr())),
        ("ORCHESTRATOR_DATA_DIR", home.join("data").display().to_string()),
        ("ORCHESTRATOR_MAX_ATTEMPTS", ATTEMPTS.to_string()),
        ("ORCHESTRATOR_WORKER_GRACE_SECONDS", "2".to_owned()),
        ("ORCHESTRATOR_WORKER_TOKEN", TOKEN.to_owned()),
        ("TMPDIR", folder.join("tmp").display().to_string()),
    ]);
    std::fs::create_dir_all(folder.join("tmp")).expect("the folder can be written");
    Process::start(vec![this.into(), "orchestrator".into()], env, home, &folder.join("orchestrator.log"))
}

/// A worker that notices soon what fails, and has a folder for everything.
fn settings(home: &Path, network: &FaultProxy, hub: &FaultProxy) -> BTreeMap<&'static str, String> {
    let folder = |name: &str| home.join(name).display().to_string();
    BTreeMap::from([
        ("SCHEDULER_ADDR", network.addr().to_string()),
        ("RECONNECT_DELAY", "0.1".to_owned()),
        ("RECONNECT_MAX_DELAY", "1".to_owned()),
        ("RECONNECT_JITTER_SECONDS", "0.1".to_owned()),
        ("WORKER_MAX_CONCURRENCY", "8".to_owned()),
        ("WORKER_CANCEL_GRACE_SECONDS", "0.2".to_owned()),
        ("WORKER_MAX_ZOMBIES", "100".to_owned()),
        ("WORKER_HTTP_IDLE_TIMEOUT_SECONDS", "2".to_owned()),
        ("WORKER_URL_ALLOW", "127.0.0.1".to_owned()),
        ("COZY_HUB_URL", format!("http://{}", hub.addr())),
        ("COZY_HUB_API", "direct".to_owned()),
        // Room for fewer models than there are, so that they come and go; for more on disk than in memory, which holds on to their
        // files.
        ("WORKER_LOCAL_CACHE_GB", "0.005".to_owned()),
        ("WORKER_MAX_RAM_GB", "0.003".to_owned()),
        ("WORKER_DOWNLOAD_RANGE_BYTES", "150000".to_owned()),
        ("WORKER_INPUT_CACHE_GB", "0.004".to_owned()),
        ("WORKER_MODEL_CACHE_DIR", folder("models")),
        ("WORKER_CACHE_DIR", folder("kept")),
        ("WORKER_RUN_DIR", folder("runs")),
        ("WORKER_STATE_DIR", folder("state")),
        ("WORKER_ORT_THREADS", "1".to_owned()),
        ("TMPDIR", folder("tmp")),
        ("RUST_LOG", "info".to_owned()),
    ])
}

pub(crate) fn net() -> NetConfig {
    NetConfig {
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(30),
        min_rate: 0,
        attempts: 3,
        url_allow: AllowList::default(),
    }
}

/// An address that was free a moment ago: a process that starts again needs the one it had.
pub(crate) fn free_address() -> SocketAddr {
    let bound = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    bound.local_addr().expect("it is bound")
}

fn address_of(url: &str) -> SocketAddr {
    url.strip_prefix("http://").and_then(|address| address.parse().ok()).expect("peers have an address each")
}

/// Milliseconds since the Unix epoch, as the orchestrator counts.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Time since the start of something, in seconds, for people.
pub(crate) fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
