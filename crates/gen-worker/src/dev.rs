//! `dev`: an orchestrator and this worker in one process, until they are told to leave.

use gen_worker_core::{Function, config::ConfigErrors};
use gen_worker_orchestrator::OrchestratorConfig;
use url::Url;

use crate::{
    app::{AppError, project, worker},
    here::{Folders, Here},
    logging,
};

pub(crate) fn run(functions: Vec<Function>, folders: &Folders) -> Result<(), AppError> {
    let project = project()?;
    logging::start(&project.env, "info");
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(&project.env, &mut errors);
    let config = errors.into_result(config)?;
    let mut here = Here::start(config, folders, project, |project| worker(functions, project))?;
    announce(here.base_url());
    // Until Ctrl-C, which the worker heeds.
    let _ = here.unless_ended(std::future::pending::<()>());
    here.leave()
}

#[expect(clippy::print_stderr, reason = "said to whoever started it")]
fn announce(base: &Url) {
    eprintln!("send runs to {base}v1/runs; Ctrl-C to leave");
}
