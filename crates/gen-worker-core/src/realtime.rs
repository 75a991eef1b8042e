//! The socket of a realtime session: frames both ways between a handler and its peer.

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::failure::WorkerError;

/// Frames between a handler and the session that carries them, each way. Few: what waits longer waits where it is counted
/// in bytes.
const IN_FLIGHT: usize = 16;

/// One message of a realtime session, of the kind it was sent as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes.
    Binary(Bytes),
    /// Text.
    Text(String),
}

impl Frame {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Binary(data) => data.len(),
            Self::Text(text) => text.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a handler says through its socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// A frame.
    Frame(Frame),
    /// That it is done; nothing follows.
    Close,
}

/// Given to a handler of realtime sessions beside its context. Everything takes `&self`, so that a handler may listen and
/// speak at the same time.
///
/// ```
/// use gen_worker_core::{Frame, RealtimeSocket};
///
/// async fn mirror(socket: RealtimeSocket) {
///     while let Some(frame) = socket.recv().await {
///         socket.send(frame).await;
///     }
/// }
/// ```
#[derive(Debug)]
pub struct RealtimeSocket {
    incoming: Mutex<mpsc::Receiver<Frame>>,
    outgoing: mpsc::Sender<Outgoing>,
    closed: CancellationToken,
}

/// The other end of a [`RealtimeSocket`]: the runtime's, or a test's.
#[derive(Debug)]
pub struct RealtimePeer {
    /// To the handler; once dropped, the handler hears the end after the frames before it.
    pub incoming: mpsc::Sender<Frame>,
    /// From the handler; once dropped, what the handler says goes nowhere.
    pub outgoing: mpsc::Receiver<Outgoing>,
}

impl RealtimeSocket {
    /// A socket and its other end; the runtime makes them, and so do tests.
    pub fn pair() -> (Self, RealtimePeer) {
        let (to_handler, incoming) = mpsc::channel(IN_FLIGHT);
        let (outgoing, from_handler) = mpsc::channel(IN_FLIGHT);
        let socket = Self { incoming: Mutex::new(incoming), outgoing, closed: CancellationToken::new() };
        (socket, RealtimePeer { incoming: to_handler, outgoing: from_handler })
    }

    /// The next frame; `None` once the peer has closed and every frame before that was taken, or after
    /// [`close`](Self::close).
    ///
    /// # Cancel safety
    /// Dropping the future loses no frame.
    pub async fn recv(&self) -> Option<Frame> {
        let next = async { self.incoming.lock().await.recv().await };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            frame = next => frame,
        }
    }

    /// Sends a frame; waits while the scheduler reads more slowly than the handler speaks. Once the session is closed, by
    /// whichever end, nothing is sent and nothing is said about it.
    ///
    /// # Cancel safety
    /// Dropping the future before it is done sends nothing.
    pub async fn send(&self, frame: Frame) {
        if !self.closed.is_cancelled() {
            // It fails only when the session is over.
            let _ = self.outgoing.send(Outgoing::Frame(frame)).await;
        }
    }

    /// Sends bytes, as [`send`](Self::send).
    pub async fn send_bytes(&self, data: impl Into<Bytes>) {
        self.send(Frame::Binary(data.into())).await;
    }

    /// Sends text, as [`send`](Self::send).
    pub async fn send_text(&self, text: impl Into<String>) {
        self.send(Frame::Text(text.into())).await;
    }

    /// Sends a value as a text frame of compact JSON with sorted keys, as [`send`](Self::send).
    ///
    /// # Errors
    /// The value has no JSON form.
    pub async fn send_json(&self, value: &impl Serialize) -> Result<(), WorkerError> {
        let mut json = serde_json::to_value(value)?;
        json.sort_all_objects();
        self.send_text(json.to_string()).await;
        Ok(())
    }

    /// Tells the peer that nothing follows, after every frame sent before. The handler may go on working; it hears and says
    /// nothing more.
    pub async fn close(&self) {
        if !self.closed.is_cancelled() {
            self.closed.cancel();
            let _ = self.outgoing.send(Outgoing::Close).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn the_end_comes_after_every_frame_before_it() {
        let (socket, peer) = RealtimeSocket::pair();
        for _ in 0..IN_FLIGHT {
            peer.incoming.send(Frame::Text("x".into())).await.unwrap();
        }
        drop(peer.incoming);
        let mut heard = 0;
        while socket.recv().await.is_some() {
            heard += 1;
        }
        assert_eq!(heard, IN_FLIGHT);
    }

    #[tokio::test]
    async fn after_a_close_nothing_is_heard_or_said() {
        let (socket, mut peer) = RealtimeSocket::pair();
        socket.send_json(&json!({"b": 1, "a": [2]})).await.unwrap();
        peer.incoming.send(Frame::Text("unheard".into())).await.unwrap();
        socket.close().await;
        socket.close().await;
        socket.send_bytes("unsaid").await;
        assert_eq!(socket.recv().await, None);
        drop(socket);
        let text = Frame::Text(r#"{"a":[2],"b":1}"#.into());
        assert_eq!(peer.outgoing.recv().await, Some(Outgoing::Frame(text)));
        assert_eq!(peer.outgoing.recv().await, Some(Outgoing::Close));
        assert_eq!(peer.outgoing.recv().await, None);
    }

    #[tokio::test]
    async fn a_session_that_is_over_holds_nobody_up() {
        let (socket, peer) = RealtimeSocket::pair();
        drop(peer);
        for _ in 0..=IN_FLIGHT {
            socket.send_text("to nobody").await;
        }
        assert_eq!(socket.recv().await, None);
    }
}
