//! `gen-worker orchestrator`: runs one until it is told to stop.

use std::path::Path;

use gen_worker::{ConfigErrors, environment};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};

use crate::Failure;

/// Runs until Ctrl-C.
#[expect(clippy::print_stderr, reason = "the addresses are for whoever typed the command")]
pub(crate) async fn run() -> Result<(), Failure> {
    let env = environment(Path::new("."))?;
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(&env, &mut errors);
    let orchestrator = Orchestrator::start(errors.into_result(config)?).await?;
    eprintln!("workers connect to  SCHEDULER_ADDR={}", orchestrator.grpc_addr());
    eprintln!("callers connect to  {}", orchestrator.base_url());
    tokio::signal::ctrl_c().await?;
    orchestrator.stop().await;
    Ok(())
}
