//! Orchestrators that are killed in the middle of everything, or leave, with real workers.

use std::{collections::HashMap, net::SocketAddr, path::Path, time::Duration};

use gen_worker_orchestrator::{OrchestratorClient, RunState, RunSubmission, RunView};
use gen_worker_testkit::NatsServers;
use gen_worker_tests::{WorkerProcess, WorkerSettings, nats_program};
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
    settings(grpc, http, data).start()
}

fn settings(grpc: SocketAddr, http: SocketAddr, data: &Path) -> WorkerSettings {
    WorkerSettings::anywhere(ORCHESTRATOR)
        .set("ORCHESTRATOR_GRPC_ADDR", grpc.to_string())
        .set("ORCHESTRATOR_HTTP_ADDR", http.to_string())
        .set("ORCHESTRATOR_DATA_DIR", data.to_string_lossy())
        .set("ORCHESTRATOR_WORKER_GRACE_SECONDS", "2")
        .set("ORCHESTRATOR_MAX_ATTEMPTS", "20")
}

/// One of a fleet on these NATS servers.
async fn of_fleet(addrs: (SocketAddr, SocketAddr), data: &Path, servers: &NatsServers) -> WorkerProcess {
    let process = settings(addrs.0, addrs.1, data)
        .set("ORCHESTRATOR_QUEUE", "nats")
        .set("ORCHESTRATOR_NATS_URL", servers.urls().join(","))
        .set("ORCHESTRATOR_WORKER_GRACE_SECONDS", "20")
        .start();
    process.says("orchestrator listening").await;
    process
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
    let client = client(http);
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

fn client(http: SocketAddr) -> OrchestratorClient {
    OrchestratorClient::new(format!("http://{http}").parse().unwrap(), None).unwrap()
}

/// Waits until an orchestrator has so many workers or more.
async fn has_workers(client: &OrchestratorClient, count: usize) {
    let all = async {
        while client.workers().await.unwrap()["workers"].as_array().unwrap().len() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("there are not {count} workers"));
}

/// Two orchestrators and workers that were told of the first only, with runs that last while all of them change over.
struct Fleet {
    _servers: NatsServers,
    processes: [WorkerProcess; 2],
    clients: [OrchestratorClient; 2],
    _workers: [WorkerProcess; 4],
    _data: [tempfile::TempDir; 2],
}

const LASTING: usize = 8;

impl Fleet {
    /// All workers are at the first orchestrator, and as soon as they have their runs there is the second.
    async fn start() -> Self {
        let servers = NatsServers::start(nats_program(), 1).await;
        let data = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let addrs = [(); 2].map(|()| (free(), free()));
        let clients = addrs.map(|(_, http)| client(http));
        let first = of_fleet(addrs[0], data[0].path(), &servers).await;
        let workers = [(); 4].map(|()| worker(addrs[0].0));
        has_workers(&clients[0], 4).await;
        for number in 0..LASTING {
            let submission = RunSubmission {
                function: "sleep".to_owned(),
                payload: json!({"ms": 6000}),
                run_id: Some(format!("run-{number}")),
                ..Default::default()
            };
            clients[0].submit(&submission).await.unwrap();
        }
        let second = of_fleet(addrs[1], data[1].path(), &servers).await;
        Self { _servers: servers, processes: [first, second], clients, _workers: workers, _data: data }
    }

    /// Every run ends well at its first attempt, as the second orchestrator says.
    async fn all_end_at_once(&self) {
        for number in 0..LASTING {
            let run_id = format!("run-{number}");
            let run = self.clients[1].follow(&run_id, |_| {});
            let run = timeout(PATIENCE, run).await.unwrap().unwrap();
            assert_eq!((run.state, run.attempt), (RunState::Succeeded, 1), "{run:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_go_where_there_are_fewer_and_keep_their_runs() {
    let fleet = Fleet::start().await;
    tokio::join!(has_workers(&fleet.clients[0], 2), has_workers(&fleet.clients[1], 2));
    fleet.all_end_at_once().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_that_leaves_sends_its_workers_to_another_with_their_runs() {
    let mut fleet = Fleet::start().await;
    // The first has heard of the second.
    has_workers(&fleet.clients[1], 1).await;
    fleet.processes[0].terminate().await;
    assert!(fleet.processes[0].ended().await.success(), "{}", fleet.processes[0].log());
    has_workers(&fleet.clients[1], 4).await;
    fleet.all_end_at_once().await;
}
