//! `dev`: an orchestrator, and a worker that makes place for the next build of its binary.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use gen_worker_orchestrator::{OrchestratorClient, RunState, RunSubmission};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use super::{CONFORMANCE, UPSCALE};

/// Longest wait for a worker to come or a run to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a binary that can be built anew.
struct Project {
    folder: TempDir,
    binary: PathBuf,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self { binary: folder.path().join("worker"), folder };
        project.build(Path::new(CONFORMANCE));
        project
    }

    /// Puts another binary in its place, as cargo does. Another process writes it: one that is started here meanwhile would have
    /// the file open as well, which then could not be started itself.
    fn build(&self, from: &Path) {
        let made = self.folder.path().join("made");
        let copied = Command::new("cp").args([from, made.as_path()]).status().unwrap();
        assert!(copied.success());
        fs::rename(made, &self.binary).unwrap();
    }

    fn settings(&self) -> WorkerSettings {
        WorkerSettings::anywhere(&self.binary)
            .argument("dev")
            .set("RUST_LOG", "info")
            .set("ORCHESTRATOR_GRPC_ADDR", "127.0.0.1:0")
            .set("ORCHESTRATOR_HTTP_ADDR", "127.0.0.1:0")
            .set("ORCHESTRATOR_WORKER_TOKEN", "secret-of-workers")
            // Of a worker that is deployed: the one that works here is another.
            .set("AUTH_TOKEN", "secret-of-another")
            .set("WORKER_JWT_FILE", "/no/such/file")
            .set("WORKER_HTTP_ADDR", "256.0.0.1:1")
    }
}

async fn client(process: &WorkerProcess) -> OrchestratorClient {
    process.says("v1/runs; Ctrl-C to leave").await;
    let log = process.log();
    let line = log.lines().find_map(|line| line.strip_prefix("send runs to ")).unwrap();
    let base = line.strip_suffix("v1/runs; Ctrl-C to leave").unwrap();
    OrchestratorClient::new(base.parse().unwrap(), None).unwrap()
}

/// Waits until the workers that are connected have this function, or until none does.
async fn offered(client: &OrchestratorClient, process: &WorkerProcess, function: &str, expected: bool) {
    let names = async || -> BTreeSet<String> {
        let workers = client.workers().await.unwrap();
        let workers = workers["workers"].as_array().unwrap();
        let functions = workers.iter().flat_map(|worker| worker["functions"].as_array().unwrap());
        functions.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    let waits = async {
        while names().await.contains(function) != expected {
            tokio::task::yield_now().await;
        }
    };
    let waited = timeout(PATIENCE, waits).await;
    waited.unwrap_or_else(|_| panic!("{function}: not {expected}\n{}", process.log()));
}

#[tokio::test]
async fn a_worker_makes_place_for_its_next_build_and_finishes_its_run_first() {
    let project = Project::new();
    let mut process = project.settings().start();
    let client = client(&process).await;
    offered(&client, &process, "sleep", true).await;
    let sleep = RunSubmission {
        function: "sleep".to_owned(),
        payload: json!({"ms": 1500, "heed_cancel": true}),
        ..Default::default()
    };
    let run_id = client.submit(&sleep).await.unwrap();
    while client.get(&run_id).await.unwrap().state == RunState::Queued {}
    project.build(Path::new(UPSCALE));
    process.says("the binary was rebuilt: the worker finishes its runs and makes place").await;
    let run = timeout(PATIENCE, client.follow(&run_id, |_| {})).await.unwrap().unwrap();
    assert_eq!((run.state, run.attempt), (RunState::Succeeded, 1), "{}", process.log());
    offered(&client, &process, "upscale", true).await;
    offered(&client, &process, "sleep", false).await;

    // One that ends at once is not started over and over.
    let broken = project.folder.path().join("broken");
    fs::write(&broken, "#!/bin/sh\nexit 9\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    project.build(&broken);
    process.says("the worker ended, exit status: 9: it is started again once its binary is rebuilt").await;
    project.build(Path::new(CONFORMANCE));
    offered(&client, &process, "sleep", true).await;
    assert_eq!(process.log().matches("exit status: 9").count(), 1);

    process.terminate().await;
    assert_eq!(process.ended().await.code(), Some(0), "{}", process.log());
    assert!(!process.log().contains("secret-of"), "{}", process.log());
}

#[tokio::test]
async fn a_worker_that_cannot_start_ends_it() {
    let project = Project::new();
    let mut process = project.settings().set("WORKER_MAX_CONCURRENCY", "many").start();
    assert_eq!(process.ended().await.code(), Some(2), "{}", process.log());
    assert!(process.log().contains("WORKER_MAX_CONCURRENCY is `many`"), "{}", process.log());
}

#[tokio::test]
async fn a_worker_does_not_outlive_its_orchestrator() {
    let project = Project::new();
    let mut process = project.settings().start();
    let client = client(&process).await;
    offered(&client, &process, "sleep", true).await;
    process.kill().await;
    process.says("asked to leave by a signal").await;
}
