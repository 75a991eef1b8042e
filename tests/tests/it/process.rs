//! What a worker process gives away to user code in it, and to whoever looks at it.

use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::WorkerSettings;

use super::{CONFORMANCE, worker};

const TOKENS: [(&str, &str); 3] = [
    ("AUTH_TOKEN", "secret-of-the-worker"),
    ("COZY_HUB_TOKEN", "secret-of-the-hub"),
    ("HF_TOKEN", "secret-of-hf"),
];

/// The line of a file that begins so.
#[track_caller]
fn line(text: &str, name: &str) -> String {
    text.lines().find(|line| line.starts_with(name)).expect("the system says it").to_owned()
}

#[tokio::test]
async fn user_code_finds_no_credential_in_the_environment() {
    let (_scheduler, process, stream) = worker(&TOKENS).await;
    assert_eq!(stream.authorization(), Some("Bearer secret-of-the-worker"));
    let environment = process.proc("environ");
    assert!(environment.contains("SCHEDULER_ADDR=") && !environment.contains("secret"), "{environment}");
    assert!(!environment.contains("_TOKEN="), "{environment}");
    assert_eq!(process.proc("fd/0"), "", "what was handed over is gone once it was read");
}

#[tokio::test]
async fn credentials_stay_where_they_are_if_that_is_asked_for() {
    let keep = ("WORKER_KEEP_CREDENTIALS_IN_ENV", "true");
    let (_scheduler, process, stream) = worker(&[&TOKENS[..], &[keep]].concat()).await;
    assert_eq!(stream.authorization(), Some("Bearer secret-of-the-worker"));
    assert!(process.proc("environ").contains("secret-of-the-hub"));
}

/// The soft limit of core dumps of a worker that was started with the highest there may be, and that highest.
async fn core_limits(asked_for: &str) -> (String, String) {
    let scheduler = FakeScheduler::start().await;
    let raised = format!("ulimit -S -c \"$(ulimit -H -c)\" && exec {CONFORMANCE}");
    let settings = WorkerSettings::new("/bin/sh", &scheduler).set("WORKER_CORE_DUMPS", asked_for);
    let process = settings.argument("-c").argument(raised).start();
    let _stream = scheduler.accept().await;
    let limits = line(&process.proc("limits"), "Max core file size");
    let limits: Vec<_> = limits.split_whitespace().skip(4).map(str::to_owned).collect();
    (limits[0].clone(), limits[1].clone())
}

#[tokio::test]
async fn a_worker_that_crashes_leaves_no_core_dump_unless_asked() {
    assert_eq!(core_limits("false").await.0, "0");
    let (soft, hard) = core_limits("true").await;
    assert_eq!(soft, hard);
}

#[tokio::test]
async fn new_files_have_no_more_rights_than_the_umask_leaves() {
    let (_scheduler, process, _stream) = worker(&[("WORKER_UMASK", "0027")]).await;
    assert_eq!(line(&process.proc("status"), "Umask:"), "Umask:\t0027");
}

#[tokio::test]
async fn a_payload_on_standard_input_comes_along_and_credentials_stay_hidden() {
    let run = |function: &str, payload: &str| {
        let command = format!("exec {CONFORMANCE} run {function} --payload - < payload.json");
        let settings = WorkerSettings::anywhere("/bin/sh").argument("-c").argument(command);
        std::fs::write(settings.directory().join("payload.json"), payload).unwrap();
        TOKENS.iter().fold(settings, |settings, (name, value)| settings.set(name, *value)).start()
    };
    let mut echoes = run("echo", r#"{"text": "hi"}"#);
    assert_eq!(echoes.ended().await.code(), Some(0), "{}", echoes.log());
    assert_eq!(echoes.out(), "{\"result\":{\"text\":\"hi\"}}\n");

    let spins = run("spin", r#"{"ms": 600000}"#);
    spins.says("spinning").await;
    let environment = spins.proc("environ");
    assert!(environment.contains("WORKER_RUN_DIR=") && !environment.contains("secret"), "{environment}");
    assert!(!spins.proc("fd/0").contains("secret"));
}
