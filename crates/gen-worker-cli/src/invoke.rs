//! `gen-worker invoke`: calls a function through an orchestrator, with the words that a worker's own `run` takes.

use std::process::ExitCode;

use clap::Args;
use gen_worker::__command::{CallArguments, CallError, Signature, tell};
use gen_worker_orchestrator::{OrchestratorClient, RunSubmission};
use serde_json::Value;

use crate::{Failure, client::Server};

/// What to call, and where.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    call: CallArguments,
    #[command(flatten)]
    server: Server,
    /// Your own id for the run: asking again with the same id does not run it again
    #[arg(long)]
    run_id: Option<String>,
    /// Whose run it is
    #[arg(long)]
    tenant: Option<String>,
}

/// Leaves behind what a worker's `run` does, but for 3: from here nobody sees what a worker fetches.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let Arguments { call, server, run_id, tenant } = arguments;
    let client = server.client()?;
    let signature = signature(&client, &call.function).await?;
    let submission = RunSubmission { run_id, tenant_id: tenant, ..Default::default() };
    match call.read(signature)?.make(&client, submission).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let code = error.exit_code();
            tell(&error);
            Ok(ExitCode::from(code))
        }
    }
}

/// The function's schemas, from a worker that has it; `None`: none that is connected does.
async fn signature(client: &OrchestratorClient, function: &str) -> Result<Option<Signature>, CallError> {
    let workers = client.workers().await?;
    let functions = workers["workers"].as_array().into_iter().flatten();
    let mut functions = functions.filter_map(|worker| worker["functions"].as_array()).flatten();
    let found = functions.find(|one| one["name"] == function && one["input_schema"] != Value::Null);
    Ok(found
        .map(|one| Signature { input: one["input_schema"].clone(), output: one["output_schema"].clone() }))
}
