//! A network that fails when told to.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::http::lock;

/// What one direction of a connection holds at most.
const BUFFER_BYTES: usize = 16 << 10;

/// A TCP proxy on loopback. It stops, and its connections with it, when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    addr: SocketAddr,
    faults: Arc<Faults>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Faults {
    refusing: AtomicBool,
    paused: AtomicBool,
    accepted: AtomicUsize,
    /// Resets the connections that there are; later ones get a new token.
    reset: Mutex<CancellationToken>,
}

impl FaultProxy {
    /// A proxy that passes everything on to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let faults = Arc::<Faults>::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, upstream, faults.clone()));
        Self { addr, faults, _tasks: tasks }
    }

    /// Where to connect instead of to the upstream.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets all connections, in both directions.
    pub fn drop_all(&self) {
        std::mem::take(&mut *lock(&self.faults.reset)).cancel();
    }

    /// Swallows everything from here on, the ends of connections too, while connections stay open: nobody on either side
    /// is told that the other is gone.
    pub fn pause(&self) {
        self.faults.paused.store(true, SeqCst);
    }

    /// Passes on what is sent from here on. What was swallowed is lost, so a protocol on an old connection finds a gap.
    pub fn resume(&self) {
        self.faults.paused.store(false, SeqCst);
    }

    /// Whether new connections are reset at once. Those that there are stay.
    pub fn refuse(&self, refuse: bool) {
        self.faults.refusing.store(refuse, SeqCst);
    }

    /// How many connections were passed on so far.
    pub fn accepted(&self) -> usize {
        self.faults.accepted.load(SeqCst)
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, faults: Arc<Faults>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((inbound, _)) = accepted {
                connections.spawn(carry(inbound, upstream, faults.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut inbound: TcpStream, upstream: SocketAddr, faults: Arc<Faults>) {
    let reset = lock(&faults.reset).clone();
    if faults.refusing.load(SeqCst) {
        return reset_on_drop(&inbound);
    }
    let Ok(mut outbound) = TcpStream::connect(upstream).await else {
        return reset_on_drop(&inbound);
    };
    faults.accepted.fetch_add(1, SeqCst);
    let (from_worker, to_worker) = inbound.split();
    let (from_upstream, to_upstream) = outbound.split();
    let both = async {
        tokio::try_join!(pump(from_worker, to_upstream, &faults), pump(from_upstream, to_worker, &faults))
    };
    let ended = tokio::select! {
        ended = both => ended.is_ok(),
        () = reset.cancelled() => false,
    };
    if !ended {
        reset_on_drop(&inbound);
        reset_on_drop(&outbound);
    }
}

/// Makes the peer of this stream see a reset, not an end, when the stream is dropped.
fn reset_on_drop(stream: &TcpStream) {
    // Fails only when the connection is gone already.
    let _ = stream.set_zero_linger();
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    faults: &Faults,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        match (faults.paused.load(SeqCst), length) {
            (true, 0) => std::future::pending().await,
            (true, _) => {}
            (false, 0) => return to.shutdown().await,
            (false, length) => to.write_all(&buffer[..length]).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy, and both ends of a connection through it.
    async fn connected() -> (FaultProxy, TcpListener, TcpStream, TcpStream) {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = FaultProxy::start(upstream.local_addr().unwrap()).await;
        let client = TcpStream::connect(proxy.addr()).await.unwrap();
        let (server, _) = upstream.accept().await.unwrap();
        (proxy, upstream, client, server)
    }

    async fn read(stream: &mut TcpStream, length: usize) -> String {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn passes_bytes_and_ends_both_ways() {
        let (proxy, _upstream, mut client, mut server) = connected().await;
        client.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut server, 4).await, "ping");
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        server.write_all(b"pong").await.unwrap();
        assert_eq!(read(&mut client, 4).await, "pong");
        assert_eq!(proxy.accepted(), 1);
    }

    #[tokio::test]
    async fn resets_all_connections_and_takes_new_ones() {
        let (proxy, upstream, mut client, mut server) = connected().await;
        proxy.drop_all();
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut server, _) = upstream.accept().await.unwrap();
        server.write_all(b"again").await.unwrap();
        assert_eq!(read(&mut client, 5).await, "again");
    }

    #[tokio::test]
    async fn refuses_new_connections_only() {
        let (proxy, _upstream, mut client, mut server) = connected().await;
        proxy.refuse(true);
        let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(refused.read(&mut [0]).await.is_err());
        client.write_all(b"still").await.unwrap();
        assert_eq!(read(&mut server, 5).await, "still");
    }

    #[tokio::test]
    async fn swallows_while_paused() {
        let (proxy, upstream, mut client, mut server) = connected().await;
        proxy.pause();
        // More than all buffers on the way hold: it can only be written if the proxy reads it.
        client.write_all(&vec![b'x'; 32 << 20]).await.unwrap();
        let mut second = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut second_server, _) = upstream.accept().await.unwrap();
        proxy.resume();
        second.write_all(b"new").await.unwrap();
        assert_eq!(read(&mut second_server, 3).await, "new");
        server.write_all(b"back").await.unwrap();
        assert_eq!(read(&mut client, 4).await, "back");
    }
}
