//! One transfer, in a process that does nothing else.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use gen_worker_core::{
    Event, ModelRef,
    config::{ConfigErrors, Env},
    ports::{EventSink, ModelSource},
};
use gen_worker_hub::{Hub, HubConfig};
use gen_worker_net::{HttpClient, NetConfig};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

/// What a transfer took.
#[derive(Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// How much more memory was resident at most than at the start.
    pub(crate) growth_bytes: f64,
}

impl Told {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.stderr(Stdio::inherit()).output().expect("this program runs");
        assert!(output.status.success(), "a transfer failed");
        serde_json::from_slice(&output.stdout).expect("it tells what it took")
    }
}

struct Silence;

impl EventSink for Silence {
    fn emit(&self, _: Event) {}
}

/// Does the transfer and tells, as JSON, what it took.
pub(crate) async fn told(transfer: impl Future<Output = ()>) -> String {
    let before = status("VmRSS:");
    let started = Instant::now();
    transfer.await;
    let seconds = started.elapsed().as_secs_f64();
    let told = Told { seconds, cpu_seconds: cpu_seconds(), growth_bytes: status("VmHWM:") - before };
    serde_json::to_string(&told).expect("numbers have a JSON form")
}

pub(crate) async fn by_hub(base: &str, directory: &Path, connections: usize) {
    let directory = directory.to_string_lossy();
    let connections = connections.to_string();
    let env = Env::from_iter([
        ("COZY_HUB_URL", base),
        ("COZY_HUB_API", "direct"),
        ("WORKER_MODEL_CACHE_DIR", &directory),
        ("WORKER_DOWNLOAD_CONNECTIONS", &connections),
    ]);
    let mut errors = ConfigErrors::default();
    let client = HttpClient::new(NetConfig::from_env(&env, &mut errors)).expect("HTTP can be set up");
    let config = HubConfig::from_env(&env, &mut errors);
    let hub = Hub::new(errors.into_result(config).expect("the settings are right"), client);
    let model = ModelRef::parse("org/m.bin").expect("it is a reference");
    hub.ensure(&model, Arc::new(Silence)).await.expect("the model arrives");
}

#[expect(clippy::disallowed_methods, reason = "the yardstick is what anybody would write")]
pub(crate) async fn plainly(url: &str, path: &Path, sync: bool) {
    let mut response = reqwest::Client::new().get(url).send().await.expect("the server answers");
    let mut file = tokio::fs::File::create(path).await.expect("the file can be made");
    while let Some(chunk) = response.chunk().await.expect("the server goes on") {
        file.write_all(&chunk).await.expect("the file can be written");
    }
    file.flush().await.expect("the file can be written");
    if sync {
        file.sync_all().await.expect("the disk takes it");
    }
}

/// A line of this process's status, in bytes; 0 where there is no `/proc`.
fn status(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_end_matches("kB").trim().parse::<f64>().unwrap_or(0.0) * 1024.0
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold spaces: the state is field 3, user time 14, system time 15, in hundredths.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
