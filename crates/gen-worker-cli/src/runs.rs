//! `gen-worker runs` and `gen-worker cancel`: what an orchestrator has been asked for, and how it stands.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use gen_worker_orchestrator::RunView;
use serde_json::json;

use crate::{Failure, client::Server, text::span};

/// Most lines shown: of more, the latest.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show this run alone, with what it gave
    run_id: Option<String>,
    /// Say it for programs, all of it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    /// Which run
    run_id: String,
    #[command(flatten)]
    server: Server,
}

#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let client = arguments.server.client()?;
    if let Some(run_id) = &arguments.run_id {
        println!("{:#}", json!(client.get(run_id).await?));
        return Ok(ExitCode::SUCCESS);
    }
    let runs = client.list().await?;
    if arguments.json {
        println!("{:#}", json!({ "runs": runs }));
    } else {
        lines(runs, SystemTime::now()).iter().for_each(|line| println!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Says whether the run had ended or was asked to stop; it may take a while to.
#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
pub(crate) async fn cancel(arguments: CancelArguments) -> Result<ExitCode, Failure> {
    let run = arguments.server.client()?.cancel(&arguments.run_id).await?;
    let state = state(&run);
    if run.function.is_empty() {
        println!("{} is not known; it will be refused when it is asked for", run.run_id);
        return Ok(ExitCode::SUCCESS);
    }
    match run.state.is_terminal() {
        true => println!("{} has ended: {state}", run.run_id),
        false => println!("{} was asked to stop", run.run_id),
    }
    Ok(ExitCode::SUCCESS)
}

/// The latest runs, the last one first.
fn lines(mut runs: Vec<RunView>, now: SystemTime) -> Vec<String> {
    runs.sort_by_key(|run| std::cmp::Reverse(run.created_at_ms));
    let left_out = runs.len().saturating_sub(SHOWN);
    let mut lines: Vec<String> = runs.iter().take(SHOWN).map(|run| line(run, now)).collect();
    if left_out > 0 {
        lines.push(format!("and {left_out} older ones: --json shows all"));
    }
    lines
}

fn line(run: &RunView, now: SystemTime) -> String {
    let age = now.duration_since(UNIX_EPOCH + Duration::from_millis(run.created_at_ms)).unwrap_or_default();
    let why = run.error.as_ref().map(|error| format!("  {}: {}", error.kind, error.message));
    let (run_id, function) = (&run.run_id, &run.function);
    format!("{run_id:<36}  {:<9}  {:>7} ago  {function}{}", state(run), span(age), why.unwrap_or_default())
}

/// The word of the API.
fn state(run: &RunView) -> String {
    json!(run.state).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(run_id: &str, created_at_ms: u64) -> RunView {
        let error = json!({"kind": "validation", "message": "no", "retryable": false});
        let view = json!({"run_id": run_id, "function": "draw", "state": "failed", "attempt": 1,
                          "created_at_ms": created_at_ms, "error": error});
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn the_latest_runs_are_shown_and_the_rest_is_counted() {
        let now = UNIX_EPOCH + Duration::from_secs(60);
        let lines = lines((0..22).map(|at| view(&at.to_string(), at)).collect(), now);
        let first = format!("{:<36}  failed        59 s ago  draw  validation: no", 21);
        assert_eq!((lines.len(), &lines[0], &*lines[20]), (21, &first, "and 2 older ones: --json shows all"));
    }
}
