//! The clients of an orchestrator: `invoke`, `runs`, `cancel`, `workers`.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};

use crate::harness::{Done, command, done, template};

/// Longest wait for a worker to register.
const REGISTERED: Duration = Duration::from_secs(30);

/// An orchestrator with one worker.
struct Fleet {
    url: String,
    worker: Child,
    runtime: Runtime,
    orchestrator: Option<Orchestrator>,
    _folder: TempDir,
}

impl Fleet {
    fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let config = OrchestratorConfig::local(folder.path().join("data"));
        let orchestrator = runtime.block_on(Orchestrator::start(config)).unwrap();
        let client = OrchestratorClient::new(orchestrator.base_url().clone(), None).unwrap();
        let mut worker = template(name);
        worker.env("SCHEDULER_ADDR", orchestrator.grpc_addr().to_string()).current_dir(folder.path());
        let worker = worker.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registered = async {
            while client.workers().await.unwrap()["workers"] == json!([]) {
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(async { timeout(REGISTERED, registered).await.unwrap() });
        let url = orchestrator.base_url().to_string();
        Self { url, worker, runtime, orchestrator: Some(orchestrator), _folder: folder }
    }

    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.args(arguments).args(["--url", &self.url]).current_dir(self._folder.path());
        command
    }

    fn say(&self, arguments: &[&str]) -> Done {
        done(&mut self.ask(arguments))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
        self.runtime.block_on(self.orchestrator.take().unwrap().stop());
    }
}

fn one_line(done: &Done) -> Value {
    serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{done:#?}"))
}

#[test]
fn a_function_is_called_with_the_words_of_its_schema() {
    let fleet = Fleet::start("hello");
    for words in [&["world"][..], &["name=world"], &["--payload", r#"{"name": "world"}"#]] {
        let called = fleet.say(&[&["invoke", "hello"], words].concat()).ends(0);
        assert_eq!(one_line(&called), json!({"result": {"text": "Hello, world!"}}));
    }
    let wrong = fleet.say(&["invoke", "hello", "nmae=world"]).ends(2);
    assert!(wrong.log.contains("unknown field `nmae`: did you mean `name`?"), "{wrong:#?}");
    let nobody = fleet.say(&["invoke", "goodbye", "name=world"]).ends(2);
    assert!(nobody.log.contains("no worker that is connected has the function `goodbye`"), "{nobody:#?}");
}

#[test]
fn an_orchestrator_that_is_not_there_is_said() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{silent}");
    let said = done(command().args(["invoke", "hello", "world", "--url", &url])).ends(2);
    assert!(said.log.contains("error: the orchestrator did not answer"), "{said:#?}");
}

#[test]
fn runs_and_workers_are_listed_and_a_run_is_canceled() {
    let fleet = Fleet::start("stream");
    let workers = fleet.say(&["workers"]).ends(0);
    assert!(workers.out.trim().ends_with("words") && workers.out.lines().count() == 1, "{workers:#?}");
    let all: Value = serde_json::from_str(&fleet.say(&["workers", "--json"]).ends(0).out).unwrap();
    assert_eq!(all["workers"][0]["functions"][0]["name"], "words");

    fleet.say(&["invoke", "words", "one two", "--run-id", "first"]).ends(0);
    let mut watching = fleet.ask(&["invoke", "words", "a b", "pause_ms=3600000", "--run-id", "second"]);
    let watching = watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let client = OrchestratorClient::new(fleet.url.parse().unwrap(), None).unwrap();
    let is_there = async { while client.get("second").await.is_err() {} };
    fleet.runtime.block_on(async { timeout(REGISTERED, is_there).await.unwrap() });
    assert_eq!(one_line(&fleet.say(&["runs", "second"]))["function"], "words");
    let canceled = fleet.say(&["cancel", "second"]).ends(0);
    assert_eq!(canceled.out, "second was asked to stop\n");
    // Whoever watches hears that it was.
    let watched = Done::of(watching.wait_with_output().unwrap()).ends(130);
    assert!(watched.log.contains("error: the run was canceled"), "{watched:#?}");
    let again = fleet.say(&["cancel", "second"]).ends(0);
    assert_eq!(again.out, "second has ended: canceled\n");

    let runs = fleet.say(&["runs"]).ends(0);
    let lines: Vec<Vec<&str>> = runs.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines[0][0], lines[0][1]), ("second", "canceled"));
    assert_eq!((lines[1][0], lines[1][1]), ("first", "succeeded"));
    let unknown = fleet.say(&["cancel", "third"]).ends(0);
    assert_eq!(unknown.out, "third is not known; it will be refused when it is asked for\n");
    let late = fleet.say(&["invoke", "words", "x", "--run-id", "third"]).ends(2);
    assert!(late.log.contains("this run was canceled before it was asked for"), "{late:#?}");
}
