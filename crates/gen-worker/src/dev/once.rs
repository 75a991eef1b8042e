//! One run from the command line: its files go in, its events are shown, its files come out.

use std::path::{Path, PathBuf};

use gen_worker_core::{AssetRef, Function, OutputBody};
use gen_worker_orchestrator::{OrchestratorClient, RunState, RunSubmission, RunView};
use serde_json::{Map, Value};
use url::Url;

use super::{DevError, show::Show};

#[derive(clap::Args)]
pub(crate) struct Once {
    /// Run this function once, show how it goes, and leave
    #[arg(long, value_name = "FUNCTION")]
    run: Option<String>,
    /// The run's payload, a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", requires = "run")]
    payload: String,
    /// A file for a field of the payload; may be given several times
    #[arg(long, value_name = "FIELD=PATH", requires = "run")]
    file: Vec<String>,
    /// Folder for the files of the result
    #[arg(long, value_name = "FOLDER", default_value = "out", requires = "run")]
    out: PathBuf,
}

/// What `--run` asks for, checked before anything is started.
pub(super) struct OneRun {
    function: String,
    payload: Map<String, Value>,
    files: Vec<(String, PathBuf)>,
    out: PathBuf,
}

impl Once {
    /// `None`: no single run was asked for.
    pub(super) fn read(&self, functions: &[Function]) -> Result<Option<OneRun>, DevError> {
        let Some(function) = self.run.clone() else { return Ok(None) };
        let names: Vec<&str> = functions.iter().map(|function| function.spec().name.as_str()).collect();
        if !names.contains(&function.as_str()) {
            let text =
                format!("--run {function}: this worker has no such function; it has {}", names.join(", "));
            return Err(DevError::Usage(text));
        }
        let payload = serde_json::from_str(&self.payload)
            .map_err(|error| DevError::Usage(format!("--payload is no JSON object: {error}")))?;
        let files = self.file.iter().map(|text| file_argument(text)).collect::<Result<_, _>>()?;
        Ok(Some(OneRun { function, payload, files, out: self.out.clone() }))
    }
}

fn file_argument(text: &str) -> Result<(String, PathBuf), DevError> {
    let (field, path) =
        text.split_once('=').ok_or_else(|| DevError::Usage(format!("--file {text}: expected FIELD=PATH")))?;
    match Path::new(path).is_file() {
        true => Ok((field.to_owned(), path.into())),
        false => Err(DevError::Usage(format!("--file {text}: there is no file {path}"))),
    }
}

impl OneRun {
    pub(super) async fn run(&self, base: Url) -> Result<(), DevError> {
        let client = OrchestratorClient::new(base, None)?;
        let mut payload = self.payload.clone();
        for (field, path) in &self.files {
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            let asset = client.upload(&name, OutputBody::File(path.clone()), None).await?;
            payload.insert(field.clone(), serde_json::to_value(asset).unwrap_or_default());
        }
        let submission = RunSubmission {
            function: self.function.clone(),
            payload: Value::Object(payload),
            run_id: None,
            timeout_ms: None,
            tenant_id: None,
            user_id: None,
            required_models: Vec::new(),
        };
        let mut show = Show::new(&self.function);
        let ended = client.run(&submission, |event| show.event(event)).await;
        show.clear();
        self.conclude(&client, ended?, &show).await
    }

    async fn conclude(&self, client: &OrchestratorClient, run: RunView, show: &Show) -> Result<(), DevError> {
        if run.state != RunState::Succeeded {
            let message = run.error.map_or_else(|| format!("{:?}", run.state), |error| error.message);
            return Err(DevError::Run { message });
        }
        let output = run.output.unwrap_or_default();
        show.result(&output);
        for asset in assets(&output) {
            show.saved(&self.fetch(client, &asset).await?);
        }
        show.timings();
        Ok(())
    }

    async fn fetch(&self, client: &OrchestratorClient, asset: &AssetRef) -> Result<PathBuf, DevError> {
        tokio::fs::create_dir_all(&self.out).await?;
        let name = asset.reference.rsplit('/').next().unwrap_or_default();
        let target = self.out.join(name);
        client.download(&asset.reference, None, &target).await?;
        Ok(std::path::absolute(&target)?)
    }
}

/// The files that a result names, wherever they nest.
fn assets(output: &Value) -> Vec<AssetRef> {
    let stored = |asset: &AssetRef| asset.reference.starts_with("runs/");
    match output {
        Value::Object(fields) => match serde_json::from_value(output.clone()) {
            Ok(asset) if stored(&asset) => vec![asset],
            _ => fields.values().flat_map(assets).collect(),
        },
        Value::Array(items) => items.iter().flat_map(assets).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_files_of_a_result() {
        let output = serde_json::json!({
            "a": {"ref": "runs/1/outputs/a.png", "size_bytes": 3},
            "b": [{"c": {"ref": "runs/1/outputs/b.png"}}, {"ref": "inputs/x"}],
        });
        let found: Vec<String> = assets(&output).into_iter().map(|asset| asset.reference).collect();
        assert_eq!(found, ["runs/1/outputs/a.png", "runs/1/outputs/b.png"]);
    }

    #[test]
    fn a_mistake_in_the_arguments_is_named() {
        let usage = |text| matches!(file_argument(text), Err(DevError::Usage(_)));
        assert!(usage("image") && usage("image=/no/such/file"));
    }
}
