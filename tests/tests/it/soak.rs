//! Thousands of runs over a stream that keeps breaking: none is lost, none is executed twice.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use gen_worker::{Call, Env, Function, Worker, WorkerConfig, WorkerError};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use tokio::time::{Instant, timeout_at};

const IN_FLIGHT: usize = 200;

/// How often each run was executed.
type Executions = Arc<Mutex<BTreeMap<String, u32>>>;

fn nap(executions: Executions) -> Function {
    Function::builder::<serde_json::Value>("nap", "tests")
        .asynchronous(move |call: Call<serde_json::Value>| {
            let executions = executions.clone();
            async move {
                *executions.lock().unwrap().entry(call.context.run_id().to_owned()).or_default() += 1;
                let ms = call.input["ms"].as_u64().unwrap_or(0);
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok::<_, WorkerError>(ms)
            }
        })
        .unwrap()
}

/// A scheduler that on every new stream sends again what it has no result of.
struct Schedule {
    runs: usize,
    acknowledges: bool,
    stream_lives: Duration,
    waiting: VecDeque<String>,
    sent: BTreeSet<String>,
    results: BTreeMap<String, u32>,
}

impl Schedule {
    fn request(run_id: &str) -> Msg {
        let ms = run_id.bytes().map(u64::from).sum::<u64>() % 50;
        Msg::RunRequest(v1::TaskExecutionRequest {
            run_id: run_id.to_owned(),
            function_name: "nap".to_owned(),
            input_payload: gen_worker_tests::pack(&serde_json::json!({"ms": ms})).into(),
            attempt: 1,
            ..Default::default()
        })
    }

    /// One stream, for as long as it lives or until everything has a result.
    async fn serve(&mut self, stream: &mut WorkerStream) {
        let end = Instant::now() + self.stream_lives;
        let (mut told, mut asked_again) = (BTreeSet::new(), self.sent.clone());
        stream.next_registration().await;
        for run_id in &self.sent {
            stream.send(Self::request(run_id)).await;
        }
        while self.results.len() < self.runs {
            while self.sent.len() < IN_FLIGHT
                && let Some(run_id) = self.waiting.pop_front()
            {
                stream.send(Self::request(&run_id)).await;
                self.sent.insert(run_id);
            }
            let Ok(result) = timeout_at(end, stream.next_result()).await else { return };
            assert!(result.success && result.attempt == 1, "{result:?}");
            let once_or_asked = told.insert(result.run_id.clone()) || asked_again.remove(&result.run_id);
            assert!(once_or_asked, "twice on one stream: {result:?}");
            if self.acknowledges {
                stream.ack(&result).await;
            }
            self.sent.remove(&result.run_id);
            *self.results.entry(result.run_id).or_default() += 1;
        }
    }
}

#[tokio::test]
async fn no_result_is_lost_and_no_run_executed_twice_while_the_stream_keeps_breaking() {
    break_streams(5_000, true, Duration::from_millis(300)).await;
}

#[tokio::test]
async fn nor_when_the_scheduler_acknowledges_nothing() {
    break_streams(2_000, false, Duration::from_millis(100)).await;
}

async fn break_streams(runs: usize, acknowledges: bool, stream_lives: Duration) {
    let scheduler = FakeScheduler::start().await;
    let env = Env::from_iter([
        ("SCHEDULER_ADDR", scheduler.addr().to_string().as_str()),
        ("RECONNECT_DELAY", "0.02"),
        ("RECONNECT_MAX_DELAY", "0.05"),
        ("RECONNECT_JITTER_SECONDS", "0.02"),
    ]);
    let config = WorkerConfig::from_env(&env).unwrap();
    let executions = Executions::default();
    let worker = Worker::builder(config.runtime).function(nap(executions.clone())).build().unwrap();
    let shutdown = worker.shutdown();
    let working = std::thread::spawn(move || worker.run());
    let waiting = (0..runs).map(|n| format!("run-{n}")).collect();
    let (sent, results) = (BTreeSet::new(), BTreeMap::new());
    let mut schedule = Schedule { runs, acknowledges, stream_lives, waiting, sent, results };
    let mut streams = 0;
    while schedule.results.len() < runs {
        let mut stream = scheduler.accept().await;
        streams += 1;
        schedule.serve(&mut stream).await;
        if schedule.results.len() < runs {
            stream.drop_connection();
        } else {
            shutdown.drain();
            stream.ended().await.unwrap();
        }
    }
    tokio::task::spawn_blocking(|| working.join().unwrap().unwrap()).await.unwrap();
    let executions = executions.lock().unwrap();
    assert!(streams > 1, "the stream never broke");
    assert_eq!(executions.len(), runs);
    assert!(executions.values().all(|times| *times == 1), "executed twice after {streams} streams");
}

/// A day in fifteen seconds: what `cargo xtask soak` runs for ten minutes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_day_in_which_everything_fails_ends_with_nothing_wrong() {
    let asked = ["run", "--seconds", "15", "--seed", "3", "--kill-orchestrator"];
    soak(&asked, "--weed", gen_worker_tests::seaweed_program()).await;
}

/// One fault of each kind: what `cargo xtask soak --fleet --partition` runs at length. The end is a bound, far off.
#[tokio::test]
async fn every_accepted_run_survives_a_fleet_that_is_killed_part_by_part() {
    let asked = ["fleet", "--runs=300", "--faults=8", "--partition", "--seed=3", "--seconds=500"];
    soak(&asked, "--nats", gen_worker_tests::nats_program()).await;
}

async fn soak(asked: &[&str], peer: &str, program: PathBuf) {
    let ended = tokio::process::Command::new(env!("CARGO_BIN_EXE_soak"))
        .args(asked)
        .args(["--worker", super::CONFORMANCE, "--ort", &gen_worker_tests::ort_library()])
        .arg(peer)
        .arg(program)
        .output()
        .await
        .unwrap();
    let said = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
    assert!(ended.status.success(), "{}{}", said(&ended.stdout), said(&ended.stderr));
}
