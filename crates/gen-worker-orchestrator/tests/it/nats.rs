//! The orchestrator on a real NATS server that goes away and comes back.

use gen_worker_net::Method;
use gen_worker_orchestrator::{NatsConfig, QueueStore};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::NatsServers;
use serde_json::{Value, json};

use tokio::time::timeout;
use tonic::Status;

use crate::harness::{ALL, Harness, PATIENCE, Worker, registration};

impl Worker {
    /// All that comes until the stream ends, and why it ended.
    async fn until_the_end(&mut self) -> (Vec<Msg>, Option<Status>) {
        let mut told = Vec::new();
        loop {
            match timeout(PATIENCE, self.inbound.message()).await.unwrap() {
                Ok(Some(message)) => told.extend(message.msg),
                Ok(None) => return (told, None),
                Err(status) => return (told, Some(status)),
            }
        }
    }

    /// Whether a result is acknowledged before the stream ends.
    async fn hears_an_ack(mut self) -> bool {
        loop {
            match timeout(PATIENCE, self.inbound.message()).await.unwrap() {
                Ok(Some(v1::WorkerSchedulerMessage { msg: Some(Msg::ResultAck(_)) })) => return true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_servers_are_away_nobody_is_told_what_is_not_known() {
    let mut servers = NatsServers::start(NatsServers::program(), 1).await;
    let urls = servers.urls();
    let harness = Harness::with(|config| config.queue = QueueStore::Nats(NatsConfig::of(urls))).await;
    let json = [("content-type", "application/json")];
    let waiting = harness.send(Method::POST, "/v1/runs?wait_ms=60000", &json, br#"{"function": "f"}"#);
    let script = async {
        let run = harness.worker(&ALL, 1).await.run().await;
        servers.kill(0).await;
        run
    };
    let (waited, run) = tokio::join!(waiting, script);
    let run_id = run.run_id.clone();
    // Whoever waits is told that the run was taken, and asks for it like all others.
    assert_eq!(waited.status().as_u16(), 202);
    assert_eq!(waited.json::<Value>(1000).await.unwrap(), json!({"run_id": run_id}));
    let asked = |method: Method, path: &str| {
        let path = format!("/v1/runs/{run_id}{path}");
        let harness = &harness;
        async move {
            let answer = harness.send(method, &path, &[], b"").await;
            let again = answer.headers().get("retry-after").cloned();
            let status = answer.status().as_u16();
            (status, again, answer.json::<Value>(1000).await.unwrap()["error"]["code"].clone())
        }
    };
    let answers = tokio::join!(
        asked(Method::GET, ""),
        asked(Method::GET, "/result"),
        asked(Method::GET, "/events"),
        asked(Method::POST, "/cancel"),
    );
    for (status, again, code) in [answers.0, answers.1, answers.2, answers.3] {
        assert_eq!((status, code.as_str()), (503, Some("unavailable")));
        assert_eq!(again.unwrap(), "1");
    }
    let ready = async || harness.send(Method::GET, "/readyz", &[], b"").await.status().as_u16();
    assert_eq!(ready().await, 503);
    // What is not known is not said to be nothing.
    let metrics = harness.send(Method::GET, "/metrics", &[], b"").await.bytes(1 << 20).await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("gen_worker_orchestrator_submitted_runs_total 1"), "{metrics}");
    assert!(!metrics.contains("gen_worker_orchestrator_queue_runs{"), "{metrics}");
    // A worker that comes back is not told to stop: it is told to come once more.
    let active = v1::ActiveRun { run_id: run_id.clone(), attempt: run.attempt };
    let registered = registration(&ALL, 1, vec![active]);
    let mut away = Worker::connect(&harness, registered.clone(), None).await.unwrap();
    let (told, status) = away.until_the_end().await;
    assert!(matches!(told[..], [Msg::SchedulerHello(_)]), "{told:?}");
    assert_eq!(status.unwrap().code(), tonic::Code::Unavailable);
    servers.restart(0).await;
    let heard = timeout(PATIENCE, async {
        loop {
            let back = Worker::connect(&harness, registered.clone(), None).await.unwrap();
            back.answer(&run, Ok(7.into())).await;
            if back.hears_an_ack().await {
                break;
            }
        }
    });
    heard.await.unwrap();
    let seen = timeout(PATIENCE, async { while ready().await != 200 {} });
    seen.await.unwrap();
    assert_eq!(harness.client.get(&run_id).await.unwrap().output, Some(7.into()));
}
