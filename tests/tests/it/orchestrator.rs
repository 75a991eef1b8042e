//! An orchestrator that is killed in the middle of everything, with real workers.

use std::{collections::HashMap, net::SocketAddr, path::Path, time::Duration};

use gen_worker_orchestrator::{OrchestratorClient, RunState, RunSubmission, RunView};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::json;
use tokio::time::timeout;

use crate::CONFORMANCE;

const ORCHESTRATOR: &str = env!("CARGO_BIN_EXE_orchestrator-under-test");
const RUNS: usize = 90;
const PATIENCE: Duration = Duration::from_secs(60);

/// An address that is free now. Whoever is started there again finds it free again.
fn free() -> SocketAddr {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

fn orchestrator(grpc: SocketAddr, http: SocketAddr, data: &Path) -> WorkerProcess {
    WorkerSettings::anywhere(ORCHESTRATOR)
        .set("ORCHESTRATOR_GRPC_ADDR", grpc.to_string())
        .set("ORCHESTRATOR_HTTP_ADDR", http.to_string())
        .set("ORCHESTRATOR_DATA_DIR", data.to_string_lossy())
        .set("ORCHESTRATOR_WORKER_GRACE_SECONDS", "2")
        .set("ORCHESTRATOR_MAX_ATTEMPTS", "20")
        .start()
}

fn worker(orchestrator: SocketAddr) -> WorkerProcess {
    WorkerSettings::anywhere(CONFORMANCE)
        .set("SCHEDULER_ADDR", orchestrator.to_string())
        .set("RECONNECT_MAX_DELAY", "0.1")
        .set("WORKER_MAX_CONCURRENCY", "4")
        .start()
}

/// Submits a run as often as it takes to be answered; its id makes that safe.
async fn submit(client: &OrchestratorClient, number: usize) {
    let submission = RunSubmission {
        function: "sleep".to_owned(),
        payload: json!({"ms": number % 7 * 10, "heed_cancel": true}),
        run_id: Some(format!("run-{number}")),
        ..Default::default()
    };
    while client.submit(&submission).await.is_err() {
        tokio::task::yield_now().await;
    }
}

/// The runs that have ended, as soon as there are so many.
async fn ended(client: &OrchestratorClient, least: usize) -> HashMap<String, RunView> {
    loop {
        let mut ended = HashMap::new();
        for number in 0..RUNS {
            if let Ok(run) = client.get(&format!("run-{number}")).await
                && run.state.is_terminal()
            {
                ended.insert(run.run_id.clone(), run);
            }
        }
        if ended.len() >= least {
            return ended;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_run_survives_the_orchestrator() {
    let (grpc, http, data) = (free(), free(), tempfile::tempdir().unwrap());
    let mut process = orchestrator(grpc, http, data.path());
    let mut workers = [worker(grpc), worker(grpc)];
    let client = OrchestratorClient::new(format!("http://{http}").parse().unwrap(), None).unwrap();
    let submitted = async {
        for number in 0..RUNS {
            submit(&client, number).await;
        }
    };
    let killed = async {
        let mut told = HashMap::new();
        for least in [5, 30, 60] {
            told.extend(ended(&client, least).await);
            process.kill().await;
            if least == 30 {
                workers[0].kill().await;
                workers[0] = worker(grpc);
            }
            process = orchestrator(grpc, http, data.path());
        }
        told
    };
    let all = timeout(PATIENCE, async {
        let ((), told) = tokio::join!(submitted, killed);
        (told, ended(&client, RUNS).await)
    });
    let (told, all) = all.await.unwrap_or_else(|_| panic!("runs are stuck\n{}", process.log()));
    assert!(told.len() >= 60);
    assert_eq!(all.len(), RUNS);
    for (run_id, run) in &all {
        assert_eq!(run.state, RunState::Succeeded, "{run:?}");
        assert!(run.output.is_some() && run.attempt >= 1, "{run:?}");
        // What a caller was once told is true for ever.
        assert!(told.get(run_id).is_none_or(|before| before == run), "{run:?}");
    }
}
