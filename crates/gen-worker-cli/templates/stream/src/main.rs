//! Items that reach the caller while the function still works.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use gen_worker::{ActionContext, WorkerError, worker_function};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Text {
    text: String,
    /// The pause before each word, in milliseconds.
    #[serde(default)]
    pause_ms: u64,
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Word {
    word: String,
}

#[worker_function]
async fn words(
    _ctx: ActionContext,
    input: Text,
) -> Result<impl Stream<Item = Result<Word, WorkerError>>, WorkerError> {
    if input.text.trim().is_empty() {
        return Err(WorkerError::validation("text has no words"));
    }
    let words: Vec<String> = input.text.split_whitespace().map(str::to_owned).collect();
    let pause = Duration::from_millis(input.pause_ms);
    // A run that is told to stop is dropped here, while it waits.
    Ok(stream::iter(words).then(move |word| async move {
        tokio::time::sleep(pause).await;
        Ok(Word { word })
    }))
}

gen_worker::main!();
