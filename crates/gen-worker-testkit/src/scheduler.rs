//! A scheduler that does what the test says.

mod connection;
mod stream;

use std::{
    collections::VecDeque,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use gen_worker_proto::scheduler::{
    WorkerSchedulerMessage,
    scheduler_worker_service_server::{SchedulerWorkerService, SchedulerWorkerServiceServer},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, ServerTlsConfig},
};

use self::connection::{Connection, KillSwitch};
use crate::http::lock;

pub use self::stream::WorkerStream;

/// How long a peer waits for the worker before the test fails. Long enough for a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Largest message taken from a worker unless the test says otherwise.
const DECODE_LIMIT: usize = 64 << 20;

/// Messages to the worker, and streams to the test, that wait to be taken.
const QUEUE: usize = 64;

/// A scheduler on loopback. It hands each stream that a worker opens to the test, and stops when dropped.
pub struct FakeScheduler {
    addr: SocketAddr,
    decode_limit: usize,
    tls: Option<ServerTlsConfig>,
    shared: Arc<Shared>,
    streams: tokio::sync::Mutex<mpsc::Receiver<WorkerStream>>,
    running: Option<Running>,
}

/// What ends with the server.
struct Running {
    tasks: JoinSet<()>,
    connections: CancellationToken,
}

struct Shared {
    opened: mpsc::Sender<WorkerStream>,
    refusals: Mutex<VecDeque<Status>>,
}

impl fmt::Debug for FakeScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FakeScheduler({})", self.addr)
    }
}

impl FakeScheduler {
    /// A scheduler that takes messages of up to 64 MiB.
    pub async fn start() -> Self {
        Self::start_with_decode_limit(DECODE_LIMIT).await
    }

    /// A scheduler that takes messages of up to `decode_limit` bytes; a larger one ends the stream.
    pub async fn start_with_decode_limit(decode_limit: usize) -> Self {
        Self::start_with(decode_limit, None).await
    }

    /// A scheduler that speaks TLS.
    ///
    /// # Panics
    /// The certificate or its key cannot be used.
    pub async fn start_tls(tls: ServerTlsConfig) -> Self {
        Self::start_with(DECODE_LIMIT, Some(tls)).await
    }

    async fn start_with(decode_limit: usize, tls: Option<ServerTlsConfig>) -> Self {
        let (opened, streams) = mpsc::channel(QUEUE);
        let mut scheduler = Self {
            addr: ([127, 0, 0, 1], 0).into(),
            decode_limit,
            tls,
            shared: Arc::new(Shared { opened, refusals: Mutex::default() }),
            streams: streams.into(),
            running: None,
        };
        scheduler.restart().await;
        scheduler
    }

    /// Where it listens; the same after a restart.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next stream that a worker opens.
    ///
    /// # Panics
    /// None is opened within 30 s.
    pub async fn accept(&self) -> WorkerStream {
        let mut streams = self.streams.lock().await;
        let stream = timeout(PATIENCE, streams.recv()).await.expect("a worker opens a stream within 30 s");
        stream.expect("the scheduler holds a sender itself")
    }

    /// Refuses the next stream with this status, before it is opened. May be called several times, for the streams after it.
    pub fn refuse_next(&self, status: Status) {
        lock(&self.shared.refusals).push_back(status);
    }

    /// Resets every connection, forgets streams that were not accepted, and stops listening. Does nothing if it is stopped.
    pub async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.connections.cancel();
            running.tasks.shutdown().await;
            while self.streams.get_mut().try_recv().is_ok() {}
        }
    }

    /// Listens again at the same address, stopped first if need be.
    ///
    /// # Panics
    /// Something else listens there by now.
    pub async fn restart(&mut self) {
        self.stop().await;
        let listener = TcpListener::bind(self.addr).await.expect("the port is free");
        self.addr = listener.local_addr().expect("a bound listener has an address");
        let service = SchedulerWorkerServiceServer::from_arc(self.shared.clone())
            .max_decoding_message_size(self.decode_limit)
            .max_encoding_message_size(usize::MAX);
        let connections = CancellationToken::new();
        let switch = connections.clone();
        let incoming = TcpListenerStream::new(listener)
            .map(move |stream| stream.map(|stream| Connection::new(stream, switch.child_token())));
        let mut server = Server::builder();
        if let Some(tls) = self.tls.clone() {
            server = server.tls_config(tls).expect("the certificate fits its key");
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let served = server.add_service(service).serve_with_incoming(incoming).await;
            served.expect("serving ends only with its task");
        });
        self.running = Some(Running { tasks, connections });
    }
}

impl Drop for FakeScheduler {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.connections.cancel();
        }
    }
}

#[tonic::async_trait]
impl SchedulerWorkerService for Shared {
    type ConnectWorkerStream = ReceiverStream<Result<WorkerSchedulerMessage, Status>>;

    async fn connect_worker(
        &self,
        request: Request<Streaming<WorkerSchedulerMessage>>,
    ) -> Result<Response<Self::ConnectWorkerStream>, Status> {
        if let Some(status) = lock(&self.refusals).pop_front() {
            return Err(status);
        }
        let (outbound, messages) = mpsc::channel(QUEUE);
        let switch = request.extensions().get::<KillSwitch>().cloned();
        let switch = switch.ok_or_else(|| Status::internal("the connection has no switch"))?;
        let (metadata, _, inbound) = request.into_parts();
        let stream = WorkerStream::new(metadata, inbound, outbound, switch);
        self.opened.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

#[cfg(test)]
mod tests;
