//! Calls, one after the other, of one worker behind an orchestrator.

use std::time::Duration;

use gen_worker_orchestrator::{ClientError, OrchestratorClient, RunState, RunSubmission, RunView};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{checkpoint::reference, popularity::Popularity, tally::Tally};

/// Longest wait for the worker to say that it has a checkpoint that it has just run. What it says of its models travels beside the
/// results.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// One call that was answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    /// The checkpoint, counted from 1.
    pub checkpoint: usize,
    /// What it made of the number 1: its own.
    pub answer: f64,
    /// Whether it was in memory.
    pub hit: bool,
}

/// Why the calls came to no end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrafficError {
    /// The orchestrator did not do what it was asked.
    #[error(transparent)]
    Orchestrator(#[from] ClientError),
    /// A call was not answered with a number.
    #[error("checkpoint {checkpoint} was not run: {reason}")]
    Run {
        /// Which, counted from 1.
        checkpoint: usize,
        /// What the worker says.
        reason: String,
    },
    /// Its events do not arrive; perhaps there are several workers, or it was started again.
    #[error("the worker does not say that checkpoint {checkpoint} is in memory")]
    Silent {
        /// Which, counted from 1.
        checkpoint: usize,
    },
}

/// Sends so many calls of `apply`, each for the checkpoint that [`Popularity`] picks of so many; `said` is told of each.
///
/// # Errors
/// A call fails, or the worker does not tell what it has in memory.
pub async fn send(
    client: &OrchestratorClient,
    checkpoints: usize,
    calls: usize,
    seed: u64,
    mut said: impl FnMut(Served, &Tally),
) -> Result<Tally, TrafficError> {
    let (mut popularity, mut tally) = (Popularity::of(checkpoints, seed), Tally::default());
    for _ in 0..calls {
        let checkpoint = popularity.pick();
        let answer = call(client, checkpoint).await?;
        let loads = tally.loads;
        let told = timeout(TOLD_WITHIN, hear(client, &reference(checkpoint), &mut tally)).await;
        told.map_err(|_| TrafficError::Silent { checkpoint })??;
        said(Served { checkpoint, answer, hit: tally.loads == loads }, &tally);
    }
    Ok(tally)
}

async fn call(client: &OrchestratorClient, checkpoint: usize) -> Result<f64, TrafficError> {
    let submission = RunSubmission {
        function: "apply".to_owned(),
        payload: json!({"model_ref": reference(checkpoint), "value": 1.0}),
        ..RunSubmission::default()
    };
    let RunView { state, output, error, .. } = client.run(&submission, |_| ()).await?;
    let answer = output.as_ref().and_then(|output| output["value"].as_f64());
    answer.filter(|_| state == RunState::Succeeded).ok_or_else(|| TrafficError::Run {
        checkpoint,
        reason: error.map_or_else(|| format!("{state:?}"), |error| error.message),
    })
}

/// Listens until the worker has said that it has the model in memory.
async fn hear(client: &OrchestratorClient, model: &str, tally: &mut Tally) -> Result<(), ClientError> {
    loop {
        tally.see(&client.workers().await?);
        if tally.resident.contains(model) {
            return Ok(());
        }
        sleep(ASK_EVERY).await;
    }
}
