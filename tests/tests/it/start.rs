//! What ends a worker before it starts.

use gen_worker_tests::WorkerSettings;

use super::CONFORMANCE;

#[tokio::test]
async fn every_mistake_in_the_settings_is_listed_and_ends_the_start() {
    let mut worker = WorkerSettings::anywhere(CONFORMANCE)
        .set("SCHEDULER_ADDR", "nowhere")
        .set("RECONNECT_DELAY", "soon")
        .set("COZY_HUB_URL", "hub")
        .set("WORKER_MAX_CONCURRENCY", "-1")
        .start();
    assert_eq!(worker.ended().await.code(), Some(2));
    let log = worker.log();
    for name in ["nowhere", "RECONNECT_DELAY", "COZY_HUB_URL", "WORKER_MAX_CONCURRENCY"] {
        assert!(log.contains(name), "{name} is missing in\n{log}");
    }
}

#[tokio::test]
async fn a_missing_onnx_runtime_ends_the_start_with_the_remedy() {
    let mut worker =
        WorkerSettings::anywhere(CONFORMANCE).set("ORT_DYLIB_PATH", "/no/such/library.so").start();
    assert_eq!(worker.ended().await.code(), Some(1));
    let log = worker.log();
    assert!(log.contains("ORT_DYLIB_PATH"), "{log}");
}

#[tokio::test]
async fn a_token_that_cannot_be_verified_ends_the_start_before_any_dial() {
    let mut worker = WorkerSettings::anywhere(CONFORMANCE)
        .set("WORKER_JWT", "not.a.token")
        .set("SCHEDULER_JWKS_URL", "http://127.0.0.1:9/keys")
        .start();
    assert_eq!(worker.ended().await.code(), Some(5));
    assert!(!worker.log().contains("not.a.token"));
}
