//! Waiting for a future on a thread that may block.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

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
    .expect("it is waited for until it is done")
}

/// The same, for so long; `None`: it was not done, and is dropped.
pub(crate) fn block_within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let end = Instant::now() + limit;
    block(future, || {
        let left = end.saturating_duration_since(Instant::now());
        thread::park_timeout(left);
        !left.is_zero()
    })
}

/// `park` waits for a wake-up, and says whether to go on.
fn block<F: Future>(future: F, park: impl Fn() -> bool) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Some(output),
            // A wake-up that came before this is not lost: it lets the thread pass at once.
            Poll::Pending if park() => {}
            Poll::Pending => return None,
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
        assert_eq!(block_within(Duration::from_millis(5), std::future::pending::<()>()), None);
    }
}
