//! The sessions of one graph in memory: each runs one call at a time, and blocks meanwhile.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Wake, Waker},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gen_worker_core::Cancellation;
use ort::session::{RunOptions, Session, SessionInputValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{block::block_on, error::ModelError, pace::Pace};

/// So many calls of a session keep the memory that one of them took, and then it lets go of what none uses. To take it again costs a
/// call about what it costs it to fill it.
const KEPT_FOR: u32 = 64;

/// What is done with a session: one call. After it failed it may be made once more.
pub(crate) trait Work: Send + 'static {
    type Output: Send;

    /// How many elements its inputs have.
    fn elements(&self) -> usize;

    /// Blocks until it is done, or until the options are told to terminate.
    fn run(&mut self, session: &mut Session, options: &RunOptions) -> Result<Self::Output, ModelError>;
}

/// Sessions of one graph, which calls take in the order in which they come: a caller that may block on its own thread, all
/// others on a thread of the pool, unless the call is a short one. Dropping it blocks until the calls that go on have ended, and its
/// memory is free.
pub(crate) struct SessionPool {
    sessions: Arc<Sessions>,
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

struct Sessions {
    idle: Mutex<Vec<Idle>>,
    /// Has a permit for each that is idle, and a queue of those who wait for one.
    free: Arc<Semaphore>,
    count: u32,
    /// The memory that a session can let go of, in the library's words; empty: none.
    arenas: String,
    /// How often sessions were told to let go of it.
    shrinks: AtomicU64,
    pace: Mutex<Pace>,
}

struct Idle {
    session: Session,
    /// How often it was told to let go of memory and did.
    shrunk: u64,
    /// Calls since it let go of memory.
    calls: u32,
}

/// A session in use.
struct Taken {
    idle: Option<Idle>,
    sessions: Arc<Sessions>,
    _permit: OwnedSemaphorePermit,
}

/// Ends an inference when it is woken or dropped. Does nothing to one that has ended.
struct Terminate(Arc<RunOptions>);

impl SessionPool {
    /// Starts a thread for each session. `arenas` is the memory that they can let go of, in the library's words; a call that takes
    /// no longer than `short` is made where it is awaited.
    pub(crate) fn start(sessions: Vec<Session>, arenas: String, short: Duration) -> Result<Self, ModelError> {
        let (queue, jobs) = mpsc::channel();
        let (jobs, count) = (Arc::new(Mutex::new(jobs)), sessions.len());
        let serve = || {
            let jobs = jobs.clone();
            thread::Builder::new().name("ort-session".into()).spawn(move || serve(&jobs))
        };
        let threads = (0..count).map(|_| serve()).collect::<Result<_, _>>();
        let idle = sessions.into_iter().map(|session| Idle { session, shrunk: 0, calls: 0 }).collect();
        let sessions = Sessions {
            idle: Mutex::new(idle),
            free: Arc::new(Semaphore::new(count)),
            count: count as u32,
            arenas,
            shrinks: AtomicU64::new(0),
            pace: Mutex::new(Pace::new(short)),
        };
        let threads =
            threads.map_err(|source: std::io::Error| ModelError::Thread { source: source.into() })?;
        Ok(Self { sessions: Arc::new(sessions), jobs: Some(queue), threads })
    }

    /// Does the work, and gives it back with what it gave: on a thread of the pool, or here if that is done as soon as the thread
    /// would be woken. `None`: it was told to stop, which is not looked for while the pool's thread works.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference.
    pub(crate) async fn call<W: Work>(
        &self,
        mut work: W,
        cancellation: &Cancellation,
    ) -> Option<Result<(W, Result<W::Output, ModelError>), ModelError>> {
        let taken = self.sessions.take().await;
        if self.sessions.pace().is_short(work.elements()) {
            let given = taken.run_here(&mut work, cancellation)?;
            return Some(Ok((work, given)));
        }
        Some(self.call_elsewhere(taken, work).await)
    }

    async fn call_elsewhere<W: Work>(
        &self,
        mut taken: Taken,
        mut work: W,
    ) -> Result<(W, Result<W::Output, ModelError>), ModelError> {
        let options = taken.options()?;
        let _terminate = Terminate(options.clone());
        let (answer, answered) = oneshot::channel();
        let job = move || {
            let given = taken.run(&mut work, &options);
            // The next call need not wait for this one's answer to be heard.
            drop(taken);
            // Nobody waits for the answer if the caller is gone.
            drop(answer.send((work, given)));
        };
        let jobs = self.jobs.as_ref().ok_or(ModelError::Panicked)?;
        jobs.send(Box::new(job)).map_err(|_| ModelError::Panicked)?;
        answered.await.map_err(|_| ModelError::Panicked)
    }

    /// Does the work on this thread; `None`: it was told to stop.
    pub(crate) fn call_blocking<W: Work>(
        &self,
        work: &mut W,
        cancellation: &Cancellation,
    ) -> Option<Result<W::Output, ModelError>> {
        let taken = block_on(async {
            tokio::select! {
                biased;
                _ = cancellation.canceled() => None,
                taken = self.sessions.take() => Some(taken),
            }
        })?;
        taken.run_here(work, cancellation)
    }

    /// How many calls run at the same time.
    pub(crate) fn count(&self) -> usize {
        self.sessions.count as usize
    }

    /// Has each session let go of memory that calls took and do not use: those that are idle soon, others with their next call.
    pub(crate) fn shrink(&self) {
        self.sessions.shrinks.fetch_add(1, Ordering::Relaxed);
        if let Some(jobs) = self.jobs.as_ref().filter(|_| !self.sessions.arenas.is_empty()) {
            let sessions = self.sessions.clone();
            // Without a thread it is done with the next calls.
            let _ = jobs.send(Box::new(move || sessions.shrink_idle()));
        }
    }
}

impl Drop for SessionPool {
    fn drop(&mut self) {
        self.jobs = None;
        // Nobody closes the semaphore.
        let _all = block_on(self.sessions.free.acquire_many(self.sessions.count));
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

impl Sessions {
    /// Waits for a session. Dropping the future gives the place up.
    async fn take(self: &Arc<Self>) -> Taken {
        let permit = self.free.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let idle = self.idle().pop();
        Taken { idle, sessions: self.clone(), _permit: permit }
    }

    /// The library does it at the end of a call, also of one that was told to stop before it began. It may be that older libraries
    /// do not, so that the next call is told nevertheless.
    fn shrink_idle(self: &Arc<Self>) {
        let mut all = Vec::new();
        while let Ok(permit) = self.free.clone().try_acquire_owned() {
            all.push(Taken { idle: self.idle().pop(), sessions: self.clone(), _permit: permit });
        }
        for mut taken in all {
            let Ok(options) = self.shrinking() else { return };
            let session = &mut taken.idle.as_mut().expect("a permit is a session").session;
            let nothing = Vec::<(&str, SessionInputValue<'_>)>::new();
            if options.terminate().is_ok() {
                // It was told to stop.
                drop(session.run_with_options(nothing, &options));
            }
        }
    }

    /// A call at whose end memory is let go of.
    fn shrinking(&self) -> ort::Result<RunOptions> {
        let mut options = RunOptions::new()?;
        options.set("memory.enable_memory_arena_shrinkage", &self.arenas)?;
        Ok(options)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// How a call of it is made.
    fn options(&mut self) -> Result<Arc<RunOptions>, ModelError> {
        let (sessions, idle) = (&self.sessions, self.idle.as_mut().expect("a permit is a session"));
        let shrinks = sessions.shrinks.load(Ordering::Relaxed);
        idle.calls = idle.calls.saturating_add(1);
        let lets_go = idle.shrunk != shrinks || idle.calls >= KEPT_FOR;
        let options = match lets_go && !sessions.arenas.is_empty() {
            true => {
                (idle.shrunk, idle.calls) = (shrinks, 0);
                sessions.shrinking()
            }
            false => RunOptions::new(),
        };
        Ok(Arc::new(options.map_err(ModelError::run)?))
    }

    /// On this thread; `None`: it was told to stop.
    fn run_here<W: Work>(
        mut self,
        work: &mut W,
        cancellation: &Cancellation,
    ) -> Option<Result<W::Output, ModelError>> {
        let options = match self.options() {
            Ok(options) => options,
            Err(error) => return Some(Err(error)),
        };
        // The cancel wakes nobody who waits: it ends the inference, from whatever thread it comes.
        let terminate = Waker::from(Arc::new(Terminate(options.clone())));
        let mut canceled = pin!(cancellation.canceled());
        if canceled.as_mut().poll(&mut Context::from_waker(&terminate)).is_ready() {
            return None;
        }
        let given = self.run(work, &options);
        cancellation.reason().is_none().then_some(given)
    }

    fn run<W: Work>(&mut self, work: &mut W, options: &RunOptions) -> Result<W::Output, ModelError> {
        let session = &mut self.idle.as_mut().expect("a permit is a session").session;
        let (started, elements) = (Instant::now(), work.elements());
        let given = catch_unwind(AssertUnwindSafe(|| work.run(session, options)));
        self.sessions.pace().took(elements, started.elapsed());
        given.unwrap_or(Err(ModelError::Panicked))
    }
}

impl Drop for Taken {
    /// It is idle before its permit is free.
    fn drop(&mut self) {
        self.sessions.idle().extend(self.idle.take());
    }
}

impl Terminate {
    fn terminate(&self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(%error, "inference could not be ended");
        }
    }
}

impl Wake for Terminate {
    fn wake(self: Arc<Self>) {
        self.terminate();
    }
}

impl Drop for Terminate {
    fn drop(&mut self) {
        self.terminate();
    }
}

impl fmt::Debug for SessionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionPool({})", self.sessions.count)
    }
}

fn serve(jobs: &Mutex<mpsc::Receiver<Job>>) {
    // Those that have nothing to do wait for each other, and the first of them for the next call.
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
    while let Some(job) = next() {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library;

    const GRAPH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/double_plus_one.onnx");

    /// Panics the first time.
    struct Second(bool);

    impl Work for Second {
        type Output = &'static str;

        fn elements(&self) -> usize {
            1
        }

        fn run(&mut self, session: &mut Session, _options: &RunOptions) -> Result<&'static str, ModelError> {
            assert!(std::mem::replace(&mut self.0, true), "the first time");
            assert_eq!(session.inputs().len(), 1);
            Ok("done")
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_leaves_the_session_to_the_next() {
        let engine = library::for_tests();
        let session = Session::builder(&engine.environment).unwrap().commit_from_file(GRAPH).unwrap();
        let pool = SessionPool::start(vec![session], String::new(), Duration::ZERO).unwrap();
        let cancellation = Cancellation::new();
        let (work, panicked) = pool.call(Second(false), &cancellation).await.unwrap().unwrap();
        assert!(matches!(panicked, Err(ModelError::Panicked)));
        assert_eq!(pool.call(work, &cancellation).await.unwrap().unwrap().1.unwrap(), "done");
        let mut work = Second(false);
        let panicked = pool.call_blocking(&mut work, &cancellation);
        assert!(matches!(panicked, Some(Err(ModelError::Panicked))));
        assert_eq!(pool.call_blocking(&mut work, &cancellation).unwrap().unwrap(), "done");
        assert_eq!(pool.sessions.free.available_permits(), 1);
    }
}
