//! The clients of an orchestrator: `invoke`, `runs`, `cancel`, `workers`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::timeout};

use crate::harness::{Done, command, done, ended, signal, template};

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

/// A peer that answers as an orchestrator would, each request on a connection of its own; `None`: it never answers. Says on the
/// channel what it was asked.
fn scripted(answers: fn(&str) -> Option<(u16, String)>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, asks) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let line = request(&stream);
            match answers(&line) {
                Some((status, body)) => {
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                }
                None => kept.push(stream),
            }
            let _ = asked.send(line);
        }
    });
    (url, asks)
}

/// The first line of a request, which is read to its end.
fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    first
}

const REFUSAL: &str =
    r#"{"error": {"code": "not_found", "message": "there is no such thing", "remedy": "ask for another"}}"#;

/// A run that succeeds at once, with a file that never comes.
fn never_gives_the_file(line: &str) -> Option<(u16, String)> {
    let run = json!({"run_id": "r", "function": "f", "state": "succeeded", "attempt": 1, "created_at_ms": 0,
                     "output": {"file": {"ref": "runs/r/outputs/a.bin"}}});
    let body = match line {
        line if line.starts_with("GET /v1/workers ") => json!({"workers": []}).to_string(),
        line if line.starts_with("POST /v1/runs ") => json!({"run_id": "r"}).to_string(),
        line if line.starts_with("GET /v1/runs/r/events ") => {
            format!("id: 1\nevent: result\ndata: {run}\n\n")
        }
        _ => return None,
    };
    Some((200, body))
}

#[cfg(unix)]
#[test]
fn an_interrupt_is_heard_while_a_file_is_fetched() {
    let (url, asks) = scripted(never_gives_the_file);
    let folder = tempfile::tempdir().unwrap();
    let mut call = command();
    call.args(["invoke", "f", "--payload", "{}", "--url", &url]).current_dir(folder.path());
    let mut call = call.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !asks.recv_timeout(REGISTERED).unwrap().starts_with("GET /v1/files/runs/r/outputs/a.bin ") {}
    signal(&call, "-INT");
    let status = ended(&mut call);
    assert_eq!(status.code(), Some(130));
    assert_eq!(
        std::fs::read_dir(folder.path().join("out")).unwrap().count(),
        0,
        "no part of the file is left"
    );
}

#[test]
fn what_fails_before_a_run_is_asked_for_is_told_from_what_fails_later() {
    let refused = |line: &str| match line {
        line if line.starts_with("POST /v1/runs ") => Some((400, REFUSAL.to_owned())),
        line => never_gives_the_file(line),
    };
    let forgotten = |line: &str| match line {
        line if line.starts_with("GET /v1/runs/r/events ") => Some((404, REFUSAL.to_owned())),
        line => never_gives_the_file(line),
    };
    let say = |answers| {
        let (url, _asks) = scripted(answers);
        done(command().args(["invoke", "f", "--payload", "{}", "--url", &url]))
    };
    let refused = say(refused).ends(2);
    assert!(refused.log.contains("error: there is no such thing; ask for another"), "{refused:#?}");
    let forgotten = say(forgotten).ends(1);
    assert!(forgotten.log.contains("the run r was asked for"), "{forgotten:#?}");
    assert!(forgotten.log.contains("because there is no such thing; ask for another"), "{forgotten:#?}");
}
