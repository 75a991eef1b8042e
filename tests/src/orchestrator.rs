//! An orchestrator as a process of its own, for tests that end it in ways that no destructor sees. SIGTERM stops it.

use std::path::Path;

use gen_worker::{ConfigErrors, environment};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the test waits for it")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(&environment(Path::new("."))?, &mut errors);
    let mut told = signal(SignalKind::terminate())?;
    let orchestrator = Orchestrator::start(errors.into_result(config)?).await?;
    eprintln!("orchestrator listening");
    told.recv().await;
    orchestrator.stop().await;
    Ok(())
}
