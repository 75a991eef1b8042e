//! `gen-worker orchestrator`: runs one until it is told to stop.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

use gen_worker::{
    __command::{Signals, Stderr},
    ConfigErrors, environment,
};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use tracing_subscriber::EnvFilter;

use crate::Failure;

/// Runs until Ctrl-C or SIGTERM.
pub(crate) async fn run() -> Result<(), Failure> {
    let _stderr = log()?;
    let env = environment(Path::new("."))?;
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(&env, &mut errors);
    let mut signals = Signals::listen()?;
    let orchestrator = Orchestrator::start(errors.into_result(config)?).await?;
    let (workers, callers) = (orchestrator.grpc_addr(), orchestrator.base_url());
    let said = format!(
        "workers connect to  SCHEDULER_ADDR={workers}\nthe dashboard is at {callers}\ncallers connect to  {callers}\n"
    );
    Stderr::line().write_all(said.as_bytes())?;
    signals.next().await;
    orchestrator.stop().await;
    Ok(())
}

/// Log lines on stderr, at the levels that `RUST_LOG` says, else at `info`.
fn log() -> io::Result<Stderr> {
    let stderr = Stderr::start()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr::line);
    lines.with_ansi(io::stderr().is_terminal()).init();
    Ok(stderr)
}
