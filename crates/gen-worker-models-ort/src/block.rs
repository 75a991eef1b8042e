//! Waiting for a future on a thread that may block.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use tokio::task::unconstrained;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Blocks the thread until the future is done. It must need no runtime.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    block(future, || {
        thread::park();
        true
    })
    .expect("there is no limit")
}

/// The same for so long at most; `None`: it was not done by then.
pub(crate) fn block_on_for<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let started = Instant::now();
    block(future, || {
        let left = limit.saturating_sub(started.elapsed());
        thread::park_timeout(left);
        !left.is_zero()
    })
}

/// `park` says whether to go on.
fn block<F: Future>(future: F, park: impl Fn() -> bool) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    // Within a task tokio lets a future that is always ready wait after some polls, and here nobody gives it more.
    let mut future = pin!(unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        // A wake-up that came before this is not lost: it lets the thread pass at once.
        if !park() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_ends_the_wait() {
        let (tell, told) = tokio::sync::oneshot::channel();
        thread::spawn(move || tell.send(7));
        assert_eq!(block_on(told), Ok(7));
    }

    #[tokio::test]
    async fn a_wait_within_a_task_comes_to_an_end_however_often() {
        let free = tokio::sync::Semaphore::new(1);
        let limit = Duration::from_secs(10);
        assert!((0..1000).all(|_| block_on_for(limit, free.acquire()).is_some()));
    }

    #[test]
    fn a_limit_ends_the_wait() {
        let limit = Duration::from_millis(1);
        assert_eq!(block_on_for(limit, std::future::pending::<()>()), None);
        assert_eq!(block_on_for(Duration::ZERO, async { 7 }), Some(7));
    }
}
