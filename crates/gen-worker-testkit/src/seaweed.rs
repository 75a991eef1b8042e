//! A real S3-compatible store, as a process.

use std::{net::TcpListener, path::Path, process::Stdio, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

/// Four servers on loopback come up in about 4 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it logs last, when it takes requests.
const READY: &str = "Start Seaweed S3 API Server";

/// SeaweedFS on loopback, with a folder of its own. It checks signatures and their expiry; whoever brings none may read. A
/// bucket is made when it is first written to, and has a host of its own below `localhost`. The process ends when this is dropped.
#[derive(Debug)]
pub struct SeaweedFs {
    port: u16,
    _process: Child,
    _log: JoinSet<()>,
    _directory: TempDir,
}

impl SeaweedFs {
    /// Whose key it is that may write.
    pub const ACCESS_KEY_ID: &str = "AKIDSEAWEED";
    /// The secret of that key.
    pub const SECRET_ACCESS_KEY: &str = "secret-of-seaweed";

    /// Starts `program`, which is `weed`, as `cargo xtask seaweed` puts it in place.
    ///
    /// # Panics
    /// It cannot be started, or takes no requests within a minute.
    pub async fn start(program: impl AsRef<Path>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let config = directory.path().join("s3.json");
        std::fs::write(&config, identities().to_string()).expect("the folder can be written");
        let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = free_ports();
        let mut process = Command::new(program.as_ref())
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-volume.max=100",
            ])
            .args(["-master.volumeSizeLimitMB=64", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg("-s3.domainName=localhost")
            .args([
                format!("-dir={}", directory.path().display()),
                format!("-s3.config={}", config.display()),
            ])
            .args([format!("-s3.port={s3}"), format!("-s3.port.grpc={s3_grpc}")])
            .args([format!("-master.port={master}"), format!("-master.port.grpc={master_grpc}")])
            .args([format!("-volume.port={volume}"), format!("-volume.port.grpc={volume_grpc}")])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={filer_grpc}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}: run `cargo xtask seaweed`", program.as_ref().display())
            });
        let mut lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(READY) {
                    return;
                }
            }
            panic!("SeaweedFS ended before it took requests");
        };
        timeout(PATIENCE, ready).await.expect("SeaweedFS takes requests within a minute");
        // A full pipe would stop it.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { port: s3, _process: process, _log: log, _directory: directory }
    }

    /// The endpoint, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn identities() -> serde_json::Value {
    let credentials =
        [json!({"accessKey": SeaweedFs::ACCESS_KEY_ID, "secretKey": SeaweedFs::SECRET_ACCESS_KEY})];
    json!({"identities": [
        {"name": "writer", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "anonymous", "actions": ["Read", "List"]},
    ]})
}

/// Ports that were free a moment ago, all different.
fn free_ports<const N: usize>() -> [u16; N] {
    let bound = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"));
    bound.map(|listener| listener.local_addr().expect("it is bound").port())
}
