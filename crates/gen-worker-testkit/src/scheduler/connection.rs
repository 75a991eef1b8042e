//! A connection that can be cut.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Resets the connection that a request came by.
#[derive(Clone)]
pub(super) struct KillSwitch(CancellationToken);

impl KillSwitch {
    pub(super) fn kill(&self) {
        self.0.cancel();
    }
}

/// A TCP stream that ends in a reset when its switch is thrown.
pub(super) struct Connection {
    io: TcpStream,
    switch: CancellationToken,
    thrown: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    pub(super) fn new(io: TcpStream, switch: CancellationToken) -> Self {
        let thrown = Box::pin(switch.clone().cancelled_owned());
        Self { io, switch, thrown }
    }

    fn cut(&self) -> io::Error {
        // Fails only when the connection is gone already.
        let _ = self.io.set_zero_linger();
        io::ErrorKind::ConnectionReset.into()
    }
}

impl Connected for Connection {
    type ConnectInfo = KillSwitch;

    fn connect_info(&self) -> KillSwitch {
        KillSwitch(self.switch.clone())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.thrown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(self.cut()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.switch.is_cancelled() {
            return Poll::Ready(Err(self.cut()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
