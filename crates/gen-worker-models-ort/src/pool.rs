//! The threads of one graph in memory: a session runs one call at a time and blocks, so each has a thread of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use ort::session::{RunOptions, Session};
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::ModelError,
    outputs::Outputs,
    session::{self, Values},
};

/// Calls that wait for one graph; callers beyond them wait to be queued. Deep enough that no thread idles while somebody
/// waits, and shallow because each holds its inputs.
const QUEUED_CALLS: usize = 16;

/// Sessions of one graph that take calls from one queue. Their threads end when this is dropped, after the calls that they
/// are running.
#[derive(Debug)]
pub(crate) struct SessionPool {
    queue: mpsc::Sender<Call>,
    threads: Vec<JoinHandle<()>>,
}

struct Call {
    values: Values,
    options: Arc<RunOptions>,
    answer: oneshot::Sender<Answer>,
}

/// What a call gave, and its inputs, so that it can be tried again.
pub(crate) struct Answer {
    pub(crate) values: Values,
    pub(crate) outputs: Result<Outputs, ModelError>,
}

type Calls = Arc<Mutex<mpsc::Receiver<Call>>>;

/// Ends the inference when the caller goes away. Does nothing to one that has ended.
struct TerminateOnDrop(Arc<RunOptions>);

impl Drop for TerminateOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(%error, "inference could not be ended");
        }
    }
}

impl SessionPool {
    /// Starts a thread for each session.
    pub(crate) fn start(sessions: Vec<Session>) -> Result<Self, ModelError> {
        let (queue, calls) = mpsc::channel(QUEUED_CALLS);
        let calls = Arc::new(Mutex::new(calls));
        let serve_from = |session| {
            let calls = calls.clone();
            std::thread::Builder::new().name("ort-session".into()).spawn(move || serve(session, &calls))
        };
        let threads = sessions.into_iter().map(serve_from).collect::<Result<_, _>>();
        Ok(Self { queue, threads: threads.map_err(|source| ModelError::Thread { source: source.into() })? })
    }

    /// Runs the graph.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference.
    pub(crate) async fn call(&self, values: Values) -> Result<Answer, ModelError> {
        let options = Arc::new(RunOptions::new().map_err(ModelError::run)?);
        let _terminate = TerminateOnDrop(options.clone());
        let (answer, answered) = oneshot::channel();
        let call = Call { values, options, answer };
        self.queue.send(call).await.map_err(|_| ModelError::Panicked)?;
        answered.await.map_err(|_| ModelError::Panicked)
    }

    /// Ends the threads, and blocks until they have: the memory of their sessions is free then.
    pub(crate) fn close(self) {
        drop(self.queue);
        for thread in self.threads {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

fn serve(mut session: Session, calls: &Calls) {
    while let Some(call) = next_of(calls) {
        if call.answer.is_closed() {
            continue;
        }
        let run = AssertUnwindSafe(|| session::run(&mut session, &call.values, &call.options));
        let outputs = catch_unwind(run).unwrap_or(Err(ModelError::Panicked));
        // Nobody waits for the answer if the caller is gone.
        drop(call.answer.send(Answer { values: call.values, outputs }));
    }
}

/// Sessions that have nothing to do wait for each other, and the first of them for the next call.
fn next_of(calls: &Calls) -> Option<Call> {
    calls.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv()
}
