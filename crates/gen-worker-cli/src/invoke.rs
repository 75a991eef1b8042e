//! `gen-worker invoke`: asks for a run, shows what it says, prints what it gives.

use std::{
    io::{self, Read},
    path::Path,
    process::ExitCode,
};

use clap::Args;
use gen_worker::environment;
use gen_worker_orchestrator::{OrchestratorClient, RunEvent, RunState, RunSubmission};
use serde_json::{Value, json};

use crate::Failure;

/// What to call, and where.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The function's name.
    function: String,
    /// What to call it with: a JSON object, `@` and a file that holds one, or `-` for stdin.
    #[arg(long, default_value = "{}")]
    payload: String,
    /// The orchestrator. A token is taken from ORCHESTRATOR_API_TOKEN.
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    url: String,
    /// Your own id for the run: asking again with the same id does not run it again.
    #[arg(long)]
    run_id: Option<String>,
    /// Whose run it is.
    #[arg(long)]
    tenant: Option<String>,
    /// The deadline of each attempt, in milliseconds.
    #[arg(long)]
    timeout_ms: Option<u64>,
}

/// Leaves 0 behind if the run succeeded, 1 if it did not. Ctrl-C ends the watching, not the run.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let env = environment(Path::new("."))?;
    let token = env.get("ORCHESTRATOR_API_TOKEN").map(Into::into);
    let base = arguments
        .url
        .parse()
        .map_err(|_| format!("`{}` is no URL, such as `http://127.0.0.1:8081`", arguments.url))?;
    let client = OrchestratorClient::new(base, token)?;
    let submission = RunSubmission {
        payload: payload(&arguments.payload)?,
        function: arguments.function,
        run_id: arguments.run_id,
        tenant_id: arguments.tenant,
        timeout_ms: arguments.timeout_ms,
        ..Default::default()
    };
    let view = client.run(&submission, show).await?;
    if view.state == RunState::Succeeded {
        print(&view.output.unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    print(&json!({"run_id": view.run_id, "state": view.state, "error": view.error}));
    Ok(ExitCode::from(1))
}

fn payload(argument: &str) -> Result<Value, Failure> {
    let text = match argument.strip_prefix('@') {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?
        }
        None if argument == "-" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            text
        }
        None => argument.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| format!("the payload is no JSON: {error}").into())
}

#[expect(clippy::print_stderr, reason = "stdout is for the result alone")]
fn show(event: &RunEvent) {
    eprintln!("{} {}", event.event_type, String::from_utf8_lossy(&event.payload));
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(result: &Value) {
    println!("{result:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_given_or_read_from_a_file() {
        assert_eq!(payload(r#"{"n": 1}"#).unwrap(), json!({"n": 1}));
        let file = std::env::temp_dir().join(format!("gen-worker-payload-{}.json", std::process::id()));
        std::fs::write(&file, r#"{"n": 2}"#).unwrap();
        assert_eq!(payload(&format!("@{}", file.display())).unwrap(), json!({"n": 2}));
        std::fs::remove_file(&file).unwrap();
        assert!(payload("@/nowhere").unwrap_err().to_string().contains("/nowhere"));
        assert!(payload("{").unwrap_err().to_string().starts_with("the payload is no JSON"));
    }
}
