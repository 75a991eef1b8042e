//! The example worker with more checkpoints than fit into its memory.

use std::collections::BTreeSet;

use checkpoints::reference;
use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig};
use gen_worker_tests::WorkerSettings;

const CHECKPOINTS: &str = env!("CARGO_BIN_EXE_checkpoints-under-test");
/// 96 MiB, of which the example's own settings, 64 MiB, cannot hold more than seven.
const COUNT: usize = 12;
const CALLS: usize = 60;

#[tokio::test]
async fn more_checkpoints_than_fit_are_all_served() {
    let folder = tempfile::tempdir().unwrap();
    checkpoints::make(folder.path(), COUNT).unwrap();
    let orchestrator = Orchestrator::start(OrchestratorConfig {
        models_dir: Some(folder.path().to_owned()),
        ..OrchestratorConfig::local(folder.path().join("data"))
    })
    .await
    .unwrap();
    let base = orchestrator.base_url().clone();
    let worker = WorkerSettings::anywhere(CHECKPOINTS)
        .set("SCHEDULER_ADDR", orchestrator.grpc_addr().to_string())
        .set("COZY_HUB_URL", format!("{base}hub"))
        .set("WORKER_MAX_RAM_GB", "0.0625")
        .start();
    let client = OrchestratorClient::new(base, None).unwrap();
    let (mut hits, mut most, mut wanted) = (0, 0, BTreeSet::new());
    let sent = checkpoints::send(&client, COUNT, CALLS, 1, |served, tally| {
        assert_eq!(served.answer, served.checkpoint as f64, "another checkpoint answered");
        hits += u32::from(served.hit);
        most = most.max(tally.resident.len());
        wanted.insert(reference(served.checkpoint));
    });
    let tally = sent.await.unwrap_or_else(|error| panic!("{error}\n{}", worker.log()));
    assert!(wanted.len() > 7, "more are wanted than fit");
    assert_eq!(hits + tally.loads, CALLS as u32);
    assert_eq!(tally.loads - tally.evictions, tally.resident.len() as u32);
    assert!(hits > 0, "none stays: {tally:?}");
    assert!(tally.loads > wanted.len() as u32, "none comes back: {tally:?}");
    assert!(most < 8, "{most} checkpoints of 8 MiB in 64 MiB");
    assert!(tally.resident.is_subset(&wanted), "{tally:?}");
    orchestrator.stop().await;
}
