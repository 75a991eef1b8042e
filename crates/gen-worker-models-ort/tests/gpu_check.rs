//! The checks of `cargo xtask gpu-check`, on the processor: that they work, and that they can fail.
#![cfg(target_os = "linux")]

#[path = "../examples/gpu_check/checks.rs"]
mod checks;
#[path = "../examples/gpu_check/memory.rs"]
mod memory;
#[expect(dead_code, reason = "other tests use more of it")]
mod onnx;
#[path = "../examples/gpu_check/table.rs"]
mod table;
#[path = "../examples/gpu_check/threads.rs"]
mod threads;

use std::time::Duration;

use gen_worker_models_ort::Provider;

use self::{checks::Settings, table::Table};

fn settings(provider: Provider) -> Settings {
    Settings { provider, cycles: 10, mib: 32, cancel: Duration::from_secs(60) }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_well_on_the_processor_and_without_a_card_it_is_said_what_is_missing() {
    let table = checks::all(&settings(Provider::Cpu)).await.expect("a processor is there");
    assert!(table.is_all_well(), "\n{table}");
    assert_eq!(table.to_string().lines().filter(|line| line.ends_with("ok")).count(), 16, "\n{table}");
    if let Err(missing) = checks::all(&settings(Provider::Cuda)).await {
        let known = ["built without the feature `cuda`", "NVIDIA driver", "shows none of", "cannot use cuda"];
        assert!(known.iter().any(|known| missing.contains(known)), "{missing}");
    }
}

#[test]
fn one_line_that_is_not_well_fails_all() {
    let mut table = Table::default();
    assert!(!table.is_all_well(), "nothing was checked");
    table.add("one", 1, 1, true);
    assert!(table.is_all_well());
    table.add("two", 1, 2, false);
    assert!(!table.is_all_well() && table.to_string().trim_end().ends_with("FAILED"), "{table}");
}
