//! Which orchestrator a command talks to.

use std::path::Path;

use clap::Args;
use gen_worker::environment;
use gen_worker_orchestrator::OrchestratorClient;

use crate::Failure;

/// Where the orchestrator is.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// The orchestrator. A token is taken from ORCHESTRATOR_API_TOKEN
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    url: String,
}

impl Server {
    /// A client of it. Connects to nothing.
    pub(crate) fn client(&self) -> Result<OrchestratorClient, Failure> {
        let env = environment(Path::new("."))?;
        let token = env.get("ORCHESTRATOR_API_TOKEN").map(Into::into);
        let base = self
            .url
            .parse()
            .map_err(|_| format!("`{}` is no URL, such as `http://127.0.0.1:8081`", self.url))?;
        Ok(OrchestratorClient::new(base, token)?)
    }
}
