//! `gen-worker orchestrator`: runs one until it is told to stop.

use std::path::Path;

use gen_worker::{__command::Signals, ConfigErrors, environment};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};

use crate::Failure;

/// Runs until Ctrl-C or SIGTERM.
#[expect(clippy::print_stderr, reason = "the addresses are for whoever typed the command")]
pub(crate) async fn run() -> Result<(), Failure> {
    let env = environment(Path::new("."))?;
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(&env, &mut errors);
    let mut signals = Signals::listen()?;
    let orchestrator = Orchestrator::start(errors.into_result(config)?).await?;
    eprintln!("workers connect to  SCHEDULER_ADDR={}", orchestrator.grpc_addr());
    eprintln!("callers connect to  {}", orchestrator.base_url());
    signals.next().await;
    orchestrator.stop().await;
    Ok(())
}
