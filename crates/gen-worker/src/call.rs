//! One call from a command line: words go in, what the run says is shown, results come out on stdout, files in a folder.

mod files;
mod schema;
mod show;
mod words;

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use gen_worker_core::OutputBody;
use gen_worker_orchestrator::{ClientError, OrchestratorClient, RunState, RunSubmission, RunView};
use serde_json::{Map, Value};

use self::{
    files::Folder,
    show::Show,
    words::{Content, Spoken, speak},
};
use crate::{isolation::Stdin, signals::Signals};

/// Largest payload, and largest file whose content becomes part of one: what the orchestrator takes.
const MAX_PAYLOAD: u64 = 64 << 20;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The words, the payload or a file that they name is wrong.
    #[error("{0}")]
    Usage(String),
    /// The orchestrator could not be asked for the run, or refused it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The run was asked for, and then the orchestrator could not be asked any more, or refused: it may go on.
    #[error("the run {run_id} was asked for, and what came of it cannot be had")]
    Lost {
        /// Its id.
        run_id: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// The run failed.
    #[error("the run failed: {message}")]
    Failed {
        /// The kind of failure, such as `validation`.
        kind: String,
        /// For the caller.
        message: String,
    },
    /// This process was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// The run was told to stop, from here or elsewhere, and has.
    #[error("the run was canceled")]
    Canceled,
    /// A file of the result, or the process's own signals, could not be had.
    #[error("{what} failed")]
    Io {
        /// What.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CallError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// What the process leaves behind: 1, 2 or 130.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { .. } | Self::Lost { .. } | Self::Io { .. } => 1,
            Self::Usage(_) | Self::Client(_) => 2,
            // As shells report a process that SIGINT ended.
            Self::Interrupted | Self::Canceled => 130,
        }
    }
}

/// What to call, and with what.
#[derive(Debug, clap::Args)]
pub struct CallArguments {
    /// The function's name
    pub function: String,
    /// The payload's fields: `field=value`, `field:=json`, `field@path`, `outer.inner=value`; a word alone is the first
    /// text that must be there
    #[arg(value_name = "FIELD=VALUE")]
    words: Vec<String>,
    /// What the fields are put into: a JSON object, `@` and a file that holds one, or `-` for stdin
    #[arg(long, value_name = "JSON|@FILE|-")]
    payload: Option<String>,
    /// The deadline of the run, in milliseconds
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Folder for the files of the result
    #[arg(long, value_name = "FOLDER", default_value = "out")]
    out: PathBuf,
    /// Show results for people, not as a line of JSON each
    #[arg(long)]
    pretty: bool,
}

/// The schemas of a function.
#[derive(Debug, Clone, Default)]
pub struct Signature {
    /// Of its payload.
    pub input: Value,
    /// Of its output, or of one delta.
    pub output: Value,
}

impl CallArguments {
    /// What becomes of standard input: the payload may come from there.
    pub(crate) fn stdin(&self) -> Stdin {
        match self.payload.as_deref() {
            // One more shows that there is too much.
            Some("-") => Stdin::Kept { at_most: MAX_PAYLOAD + 1 },
            _ => Stdin::Dropped,
        }
    }

    /// The call that they mean; nothing has been started. Without a signature only `--payload` is taken.
    ///
    /// # Errors
    /// Everything that is wrong with the words, or a file that cannot be read.
    pub fn read(self, signature: Option<Signature>) -> Result<Call, CallError> {
        let base = self.payload.as_deref().map_or_else(|| Ok(Map::new()), payload)?;
        let signature = match signature {
            Some(signature) => signature,
            None if self.words.is_empty() => Signature { input: Value::Bool(true), output: Value::Null },
            None => {
                return Err(CallError::Usage(format!(
                    "no worker that is connected has the function `{}`, so its fields are not known: start one, or \
                     give all of the payload with --payload",
                    self.function
                )));
            }
        };
        let spoken = speak(&signature.input, base, &self.words).map_err(|errors| {
            CallError::Usage(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        Ok(Call {
            spoken: read_files(spoken)?,
            is_raw: signature.output["title"] == "RawOutput",
            function: self.function,
            timeout_ms: self.timeout_ms,
            folder: Folder::new(self.out),
            pretty: self.pretty,
        })
    }
}

/// What `--payload` gives.
fn payload(argument: &str) -> Result<Map<String, Value>, CallError> {
    let text = match argument.strip_prefix('@') {
        Some(path) => read_text(Path::new(path))?,
        None if argument == "-" => {
            read_all(io::stdin().lock()).map_err(|error| CallError::Usage(format!("stdin: {error}")))?
        }
        None => argument.to_owned(),
    };
    serde_json::from_str(&text)
        .map_err(|error| CallError::Usage(format!("the payload is no JSON object: {error}")))
}

fn read_text(path: &Path) -> Result<String, CallError> {
    let read = std::fs::File::open(path).and_then(read_all);
    read.map_err(|error| CallError::Usage(format!("{} cannot be read: {error}", path.display())))
}

fn read_all(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MAX_PAYLOAD + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_PAYLOAD {
        return Err(io::Error::other(format!("it has more than {MAX_PAYLOAD} bytes")));
    }
    Ok(text)
}

/// Puts the content of files into the payload; those that are to be stored must exist.
fn read_files(mut spoken: Spoken) -> Result<Spoken, CallError> {
    for file in std::mem::take(&mut spoken.files) {
        let value = match file.content {
            Content::Text => read_text(&file.path)?.into(),
            Content::Json => serde_json::from_str(&read_text(&file.path)?)
                .map_err(|error| CallError::Usage(format!("{} is no JSON: {error}", file.path.display())))?,
            Content::Asset if file.path.is_file() => {
                spoken.files.push(file);
                continue;
            }
            Content::Asset => {
                return Err(CallError::Usage(format!("there is no file {}", file.path.display())));
            }
        };
        if let Some(place) = spoken.payload_mut(&file.place) {
            *place = value;
        }
    }
    Ok(spoken)
}

/// A call whose words have been understood.
#[derive(Debug)]
pub struct Call {
    function: String,
    spoken: Spoken,
    is_raw: bool,
    timeout_ms: Option<u64>,
    folder: Folder,
    pretty: bool,
}

impl Call {
    /// Makes the call through this orchestrator, and shows it. `submission` says whose it is. The
    /// first Ctrl-C asks the run to stop, the second leaves.
    ///
    /// # Errors
    /// The run did not succeed, or could not be asked for; or a file of its result cannot be had.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the run.
    pub async fn make(self, client: &OrchestratorClient, submission: RunSubmission) -> Result<(), CallError> {
        let mut signals = Signals::listen().map_err(CallError::io("listening for signals"))?;
        let submitted = async {
            let payload = Value::Object(self.store_inputs(client, submission.tenant_id.as_deref()).await?);
            let submission = RunSubmission {
                function: self.function.clone(),
                payload,
                timeout_ms: self.timeout_ms,
                ..submission
            };
            Ok::<_, CallError>(client.submit(&submission).await?)
        };
        let run_id = tokio::select! {
            run_id = submitted => run_id?,
            () = signals.next() => return Err(CallError::Interrupted),
        };
        let watched = self.watch(client, &run_id, &mut signals).await;
        watched.map_err(|error| match error {
            CallError::Client(source) => CallError::Lost { run_id, source },
            error => error,
        })
    }

    /// A run that was asked for, to its end and that of its files.
    async fn watch(
        &self,
        client: &OrchestratorClient,
        run_id: &str,
        signals: &mut Signals,
    ) -> Result<(), CallError> {
        let mut show = Show::new(&self.function, self.pretty);
        let ended = follow(client, run_id, signals, &mut show).await;
        show.leave_bars();
        tokio::select! {
            concluded = self.conclude(client, ended?, &mut show) => concluded,
            () = signals.next() => Err(CallError::Interrupted),
        }
    }

    /// The payload, with an asset for each file that the words named.
    async fn store_inputs(
        &self,
        client: &OrchestratorClient,
        tenant_id: Option<&str>,
    ) -> Result<Map<String, Value>, CallError> {
        let mut spoken = Spoken { payload: self.spoken.payload.clone(), files: Vec::new() };
        for file in &self.spoken.files {
            let name = file.path.file_name().unwrap_or(file.path.as_os_str()).to_string_lossy();
            let asset = client.upload(&name, OutputBody::File(file.path.clone()), tenant_id).await?;
            if let Some(place) = spoken.payload_mut(&file.place) {
                *place = serde_json::to_value(asset).expect("an asset has a JSON form");
            }
        }
        Ok(spoken.payload)
    }

    async fn conclude(
        &self,
        client: &OrchestratorClient,
        run: RunView,
        show: &mut Show,
    ) -> Result<(), CallError> {
        match run.state {
            RunState::Succeeded => {}
            RunState::Canceled => return Err(CallError::Canceled),
            state => {
                let (kind, message) = match run.error {
                    Some(error) => (error.kind, error.message),
                    None => ("unknown".to_owned(), format!("{state:?}")),
                };
                return Err(CallError::Failed { kind, message });
            }
        }
        let mut output = run.output.unwrap_or_default();
        let mut saved = Vec::new();
        if self.is_raw {
            saved.extend(self.folder.keep_inline(&self.function, &mut output)?);
        }
        saved.extend(self.folder.fetch(client, &output).await?);
        show.result(&output, &saved);
        show.timings();
        Ok(())
    }
}

/// Waits for SIGINT or SIGTERM; for ever where they cannot be heard.
pub(crate) async fn next_signal() {
    match Signals::listen() {
        Ok(mut signals) => signals.next().await,
        Err(_) => std::future::pending().await,
    }
}

/// Until the run has ended. After the first signal it is asked to stop; after the second it is left alone.
async fn follow(
    client: &OrchestratorClient,
    run_id: &str,
    signals: &mut Signals,
    show: &mut Show,
) -> Result<RunView, CallError> {
    let following = client.follow(run_id, |event| show.event(event));
    tokio::pin!(following);
    tokio::select! {
        ended = &mut following => return Ok(ended?),
        () = signals.next() => {}
    }
    show::say("canceling; once more to leave at once");
    let canceled = async {
        client.cancel(run_id).await?;
        following.await
    };
    tokio::select! {
        ended = canceled => Ok(ended?),
        () = signals.next() => Err(CallError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(words: &[&str], payload: &str) -> CallArguments {
        CallArguments {
            function: "f".to_owned(),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            payload: Some(payload.to_owned()),
            timeout_ms: None,
            out: "out".into(),
            pretty: false,
        }
    }

    fn read(words: &[&str], payload: &str) -> Result<Map<String, Value>, String> {
        let signature = Signature { input: json!({}), output: Value::Null };
        let call = arguments(words, payload).read(Some(signature)).map_err(|error| error.to_string())?;
        Ok(call.spoken.payload)
    }

    #[test]
    fn a_payload_is_given_or_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let whole = file("p.json", r#"{"n": 2}"#);
        assert_eq!(
            read(&["a=1"], &format!("@{whole}")).unwrap(),
            *json!({"n": 2, "a": "1"}).as_object().unwrap()
        );
        let text = file("t.txt", "a text");
        assert_eq!(read(&[&format!("a@{text}")], "{}").unwrap()["a"], "a text");
        assert!(read(&[], "@/nowhere").unwrap_err().starts_with("/nowhere cannot be read"));
        assert!(read(&[], "[]").unwrap_err().starts_with("the payload is no JSON object"));
    }

    #[test]
    fn without_a_signature_only_a_whole_payload_is_taken() {
        assert_eq!(arguments(&[], r#"{"n": 1}"#).read(None).unwrap().spoken.payload["n"], 1);
        let refused = arguments(&["n=1"], "{}").read(None).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.to_string().starts_with("no worker that is connected has the function `f`"));
    }
}
