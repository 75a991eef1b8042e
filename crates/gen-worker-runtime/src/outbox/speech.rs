//! One stream's side of the outbox, which HTTP/2 reads.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::oneshot;

use super::Outbox;
use crate::wire::Message;

/// What one stream says. It is asked for the next message when HTTP/2 has room for it, so that what is sent next is decided
/// as late as possible, and what counts as written has left the outbox for the connection.
pub(crate) struct Speech {
    outbox: Arc<Outbox>,
    stream: u64,
    /// Its receiver hears the end of the stream, however it comes.
    ended: Option<oneshot::Sender<()>>,
}

impl Speech {
    pub(super) fn new(outbox: Arc<Outbox>, stream: u64) -> (Self, oneshot::Receiver<()>) {
        let (ended, heard) = oneshot::channel();
        (Self { outbox, stream, ended: Some(ended) }, heard)
    }
}

impl Stream for Speech {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        let next = self.outbox.poll_next(self.stream, context);
        if let Poll::Ready(None) = next {
            self.ended = None;
        }
        next
    }
}
