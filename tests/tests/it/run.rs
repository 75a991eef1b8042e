//! `run`: one run from the command line, by the executor of production.

use std::fs;

use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::{Value, json};

use super::CONFORMANCE;

fn settings(words: &[&str]) -> WorkerSettings {
    let settings = WorkerSettings::anywhere(CONFORMANCE).set("RUST_LOG", "warn").argument("run");
    words.iter().fold(settings, |settings, word| settings.argument(*word))
}

/// Its exit code, once it has ended.
async fn code(worker: &mut WorkerProcess) -> i32 {
    worker.ended().await.code().expect("no signal ended it")
}

/// What is on stdout; it ended well.
async fn lines(settings: WorkerSettings) -> (Vec<Value>, WorkerProcess) {
    let mut worker = settings.start();
    assert_eq!(code(&mut worker).await, 0, "{}", worker.log());
    let out = worker.out();
    (out.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect(), worker)
}

/// Checks with what code a run ends that gives nothing, and what it says.
async fn check_failure(words: &[&str], expected: i32, said: &[&str]) {
    let mut worker = settings(words).start();
    let code = code(&mut worker).await;
    let log = worker.log();
    assert_eq!((code, worker.out().as_str()), (expected, ""), "{log}");
    for text in said {
        assert!(log.contains(text), "`{text}` is missing in\n{log}");
    }
}

#[tokio::test]
async fn a_result_is_one_line_and_all_else_is_on_stderr() {
    let (lines, worker) = lines(settings(&["echo", "hello there"])).await;
    assert_eq!(lines, [json!({"result": {"text": "hello there"}})]);
    assert!(!worker.directory().join("out").exists());
    let (lines, worker) = self::lines(settings(&["progress", "steps=2"])).await;
    assert_eq!(lines, [json!({"result": {"steps": 2}})]);
    assert!(worker.log().contains("step 2 of 2"), "{}", worker.log());
}

#[tokio::test]
async fn deltas_come_before_the_result() {
    let (lines, _) = lines(settings(&["count", "n=3"])).await;
    let deltas = [0, 1, 2].map(|i| json!({"delta": {"i": i}}));
    assert_eq!(lines[..3], deltas);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3], json!({"result": null}));
}

#[tokio::test]
async fn for_people_a_result_is_laid_out() {
    let mut worker = settings(&["echo", "hi", "--pretty"]).start();
    assert_eq!(code(&mut worker).await, 0, "{}", worker.log());
    assert_eq!(worker.out(), "{\n  \"text\": \"hi\"\n}\n");
    let mut worker = settings(&["count", "n=1", "--pretty"]).start();
    assert_eq!(code(&mut worker).await, 0, "{}", worker.log());
    assert_eq!(worker.out(), "{\n  \"i\": 0\n}\n");
}

#[tokio::test]
async fn what_is_wrong_with_the_words_is_said_before_anything_starts() {
    let said = ["unknown field `txt`: did you mean `text`?; there are `text`"];
    check_failure(&["echo", "txt=a"], 2, &said).await;
    check_failure(&["echo"], 2, &["`text` is missing: it takes a text"]).await;
    check_failure(&["digest", "file@/no/such/file"], 2, &["there is no file /no/such/file"]).await;
    check_failure(&["ecko"], 2, &["no function `ecko` to run: did you mean `echo`?"]).await;
    let mut worker = settings(&["echo", "txt=a"]).start();
    worker.ended().await;
    assert!(!worker.directory().join(".gen-worker").exists());
}

#[tokio::test]
async fn the_exit_code_tells_a_failure_from_what_could_not_be_fetched() {
    let failed = ["error: the run failed: no such style"];
    check_failure(&["fail", "kind=validation", "message=no such style"], 1, &failed).await;
    check_failure(&["fail", "kind=retryable", "message=later"], 1, &["error: the run failed: later"]).await;
    check_failure(&["infer", "model_ref=acme/none.onnx", "values:=[1]"], 3, &["acme/none.onnx"]).await;
    check_failure(&["digest", "file=inputs/none"], 3, &["error: the run failed"]).await;
}

#[tokio::test]
async fn files_go_in_and_come_out() {
    let input = settings(&["digest", "file@in.txt"]);
    fs::write(input.directory().join("in.txt"), "abc").unwrap();
    let (result, _) = lines(input).await;
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(result[0]["result"]["sha256"], abc);

    let (saved, worker) = lines(settings(&["save", "name=a.bin", "size=3"])).await;
    let path = fs::canonicalize(worker.directory()).unwrap().join("out/a.bin");
    assert_eq!(fs::read(&path).unwrap(), [0, 1, 2]);
    assert_eq!(saved[0]["files"][0]["path"], json!(path));
    assert_eq!(saved[0]["files"][0]["ref"], saved[0]["result"]["file"]["ref"]);
    assert!(worker.log().contains(&format!("saved: {} (", path.display())), "{}", worker.log());

    let (raw, worker) = lines(settings(&["raw", "size=3", "content_type=image/png"])).await;
    let path = fs::canonicalize(worker.directory()).unwrap().join("out/raw.png");
    assert_eq!(fs::read(&path).unwrap(), [0, 1, 2]);
    assert_eq!((&raw[0]["result"]["path"], raw[0]["result"].get("data")), (&json!(path), None));
    assert!(worker.log().contains("out/raw.png (image/png, 3 B)"), "{}", worker.log());
}

#[tokio::test]
async fn an_interrupt_cancels_and_a_second_one_leaves() {
    let mut worker = settings(&["spin", "ms=600000"]).start();
    worker.says("spinning").await;
    worker.interrupt().await;
    assert_eq!(code(&mut worker).await, 130, "{}", worker.log());
    assert_eq!(worker.out(), "");

    let mut worker = settings(&["spin", "ms=600000"]).set("WORKER_CANCEL_GRACE_SECONDS", "600").start();
    worker.says("spinning").await;
    worker.interrupt().await;
    worker.says("canceling").await;
    worker.interrupt().await;
    assert_eq!(code(&mut worker).await, 130, "{}", worker.log());
}

/// A deployed worker that cannot get rid of a function that goes on ends with 7.
#[tokio::test]
async fn the_worker_of_a_run_has_no_exit_codes_of_its_own() {
    let mut worker =
        settings(&["spin", "ms=600000", "--timeout-ms", "100"]).set("WORKER_MAX_ZOMBIES", "0").start();
    assert_eq!(code(&mut worker).await, 1, "{}", worker.log());
}

/// Each of these would end the start of the worker, or send it elsewhere.
#[tokio::test]
async fn nothing_that_a_deployed_worker_is_told_reaches_a_local_run() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (name, value) in [
        ("SCHEDULER_ADDR", "127.0.0.1:1"),
        ("SCHEDULER_ADDRS", "a b"),
        ("SCHEDULER_TLS_CA", "/no/such/file"),
        ("SCHEDULER_TLS_CERT", "/no/such/file"),
        ("WORKER_JWT_FILE", "/no/such/file"),
        ("SCHEDULER_JWKS_URL", "http://127.0.0.1:1"),
        ("WORKER_STATE_DIR", "/dev/null/state"),
        ("WORKER_HTTP_ADDR", taken.as_str()),
        ("NOTIFY_SOCKET", "/no/such/socket"),
        ("WATCHDOG_USEC", "soon"),
        ("COZY_HUB_API", "snapshots"),
    ] {
        let (in_env, in_file) = (settings(&["echo", "hi"]).set(name, value), settings(&["echo", "hi"]));
        let cozy = format!("[worker]\n{} = '{value}'\n", name.to_ascii_lowercase());
        fs::write(in_file.directory().join("cozy.toml"), cozy).unwrap();
        for settings in [in_env, in_file] {
            let mut worker = settings.start();
            assert_eq!(code(&mut worker).await, 0, "{name}:\n{}", worker.log());
        }
    }
}
