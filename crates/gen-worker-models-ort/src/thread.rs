//! One thread for each model in memory, because a session runs one call at a time and blocks.

use std::{sync::Arc, thread::JoinHandle};

use ort::session::{RunOptions, Session};
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::ModelError,
    graph::{Graph, Inputs},
    model::Outputs,
    session,
};

/// Calls that wait for one model; callers beyond them wait to be queued. Deep enough that the thread never idles while
/// somebody waits, and shallow because each holds its inputs.
const QUEUED_CALLS: usize = 16;

/// The thread that owns a session. It ends when this is dropped, after the call that it is running.
#[derive(Debug)]
pub(crate) struct SessionThread {
    queue: mpsc::Sender<QueuedCall>,
    thread: JoinHandle<()>,
}

struct QueuedCall {
    inputs: Inputs,
    options: Arc<RunOptions>,
    answer: oneshot::Sender<Result<Outputs, ModelError>>,
}

/// Ends the inference when the caller goes away. Does nothing to one that has ended.
struct TerminateOnDrop(Arc<RunOptions>);

impl Drop for TerminateOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(%error, "inference could not be ended");
        }
    }
}

impl SessionThread {
    /// Starts the thread and waits until `open` has loaded the session on it.
    ///
    /// # Cancel safety
    /// When the future is dropped the load goes on to its end, and is dropped then.
    pub(crate) async fn start(
        open: impl FnOnce() -> Result<(Session, Graph), ModelError> + Send + 'static,
    ) -> Result<(Self, Graph), ModelError> {
        let (queue, calls) = mpsc::channel(QUEUED_CALLS);
        let (opened, graph) = oneshot::channel();
        let serve_when_open = move || {
            let (session, graph) = match open() {
                Ok((session, graph)) => (Some(session), Ok(graph)),
                Err(error) => (None, Err(error)),
            };
            // Nobody waits if the caller is gone; then the session is dropped.
            if let (Ok(()), Some(session)) = (opened.send(graph), session) {
                serve(session, calls);
            }
        };
        let thread = std::thread::Builder::new()
            .name("ort-session".into())
            .spawn(serve_when_open)
            .map_err(|source| ModelError::Thread { source })?;
        let graph = graph.await.map_err(|_| ModelError::ThreadEnded)??;
        Ok((Self { queue, thread }, graph))
    }

    /// Whether calls can be answered.
    pub(crate) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Runs the model.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference.
    pub(crate) async fn run(&self, inputs: Inputs) -> Result<Outputs, ModelError> {
        let (call, answer, _terminate) = queued(inputs)?;
        self.queue.send(call).await.map_err(|_| ModelError::ThreadEnded)?;
        answer.await.map_err(|_| ModelError::ThreadEnded)?
    }

    /// Runs the model and blocks until it is done.
    pub(crate) fn run_blocking(&self, inputs: Inputs) -> Result<Outputs, ModelError> {
        let (call, answer, _terminate) = queued(inputs)?;
        self.queue.blocking_send(call).map_err(|_| ModelError::ThreadEnded)?;
        answer.blocking_recv().map_err(|_| ModelError::ThreadEnded)?
    }
}

type Answer = oneshot::Receiver<Result<Outputs, ModelError>>;

fn queued(inputs: Inputs) -> Result<(QueuedCall, Answer, TerminateOnDrop), ModelError> {
    let options = Arc::new(RunOptions::new().map_err(ModelError::run)?);
    let (answer, receiver) = oneshot::channel();
    let terminate = TerminateOnDrop(options.clone());
    let call = QueuedCall { inputs, options, answer };
    Ok((call, receiver, terminate))
}

fn serve(mut session: Session, mut calls: mpsc::Receiver<QueuedCall>) {
    while let Some(call) = calls.blocking_recv() {
        if call.answer.is_closed() {
            continue;
        }
        let outputs = session::run(&mut session, call.inputs, &call.options);
        // Nobody waits for the answer if the caller is gone.
        drop(call.answer.send(outputs));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use gen_worker_core::{LocalModel, ModelRef};

    use super::*;
    use crate::{config::Provider, library, session::Recipe};

    #[tokio::test]
    async fn ends_when_it_is_dropped() {
        let engine = library::load(None).unwrap_or_else(|error| panic!("{error}"));
        let recipe = Recipe::new(engine.environment, &[Provider::Cpu], 1).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/double_plus_one.onnx");
        let local = LocalModel {
            model: ModelRef::parse("org/repo").unwrap(),
            root: file.parent().unwrap().to_owned(),
            files: BTreeMap::from([("model.onnx".to_owned(), file)]),
            size_bytes: 0,
            pin: None,
        };
        let (started, _) = SessionThread::start(move || recipe.open(&local)).await.unwrap();
        assert!(started.is_alive());
        let SessionThread { queue, thread } = started;
        drop(queue);
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_load_that_panics_is_an_error() {
        let error = SessionThread::start(|| panic!("on purpose")).await.unwrap_err();
        assert!(matches!(error, ModelError::ThreadEnded));
    }
}
