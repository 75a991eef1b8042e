//! `gen-worker workers`: who is connected to an orchestrator.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::{Failure, client::Server};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Say it for programs, all of it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let workers = arguments.server.client()?.workers().await?;
    match (arguments.json, workers["workers"].as_array()) {
        (false, Some(workers)) => workers.iter().for_each(|worker| println!("{}", line(worker))),
        _ => println!("{workers:#}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// `w-1  running 1 of 4  draw, count (loading)`
fn line(worker: &Value) -> String {
    let functions = worker["functions"].as_array().into_iter().flatten().map(|function| {
        let loading = if function["ready"] == false { " (loading)" } else { "" };
        format!("{}{loading}", function["name"].as_str().unwrap_or_default())
    });
    let functions = functions.collect::<Vec<_>>().join(", ");
    let most = worker["max_concurrency"].as_u64().filter(|most| *most > 0);
    let most = most.map(|most| format!(" of {most}")).unwrap_or_default();
    let draining = if worker["draining"] == true { "  draining" } else { "" };
    let worker_id = worker["worker_id"].as_str().unwrap_or_default();
    format!("{worker_id}  running {}{most}{draining}  {functions}", worker["running"])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_worker_is_a_line() {
        let mut worker = json!({
            "worker_id": "w-1", "running": 1, "max_concurrency": 4, "draining": false,
            "functions": [{"name": "draw", "ready": true}, {"name": "count", "ready": false}],
        });
        assert_eq!(line(&worker), "w-1  running 1 of 4  draw, count (loading)");
        worker["draining"] = json!(true);
        worker["max_concurrency"] = json!(0);
        assert_eq!(line(&worker), "w-1  running 1  draining  draw, count (loading)");
    }
}
