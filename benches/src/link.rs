//! The scheduler's side of a stream, as bare as tonic has it, and the peer that only echoes.

use std::net::SocketAddr;

use gen_worker_proto::scheduler::{
    TaskExecutionRequest, TaskExecutionResult, WorkerRegistration, WorkerSchedulerMessage,
    scheduler_worker_service_client::SchedulerWorkerServiceClient,
    scheduler_worker_service_server::{SchedulerWorkerService, SchedulerWorkerServiceServer},
    worker_scheduler_message::Msg,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Endpoint, Server, server::TcpIncoming},
};

/// Messages between a peer and HTTP/2: more than are ever in flight, so that the bench itself never waits.
const QUEUE: usize = 16_384;

/// One open stream to a worker or to the echo.
pub(crate) struct Link {
    say: mpsc::Sender<Result<WorkerSchedulerMessage, Status>>,
    heard: Streaming<WorkerSchedulerMessage>,
}

impl Link {
    pub(crate) async fn say(&self, msg: Msg) {
        let message = WorkerSchedulerMessage { msg: Some(msg) };
        self.say.send(Ok(message)).await.expect("the peer is connected");
    }

    pub(crate) async fn hear(&mut self) -> Msg {
        let message = self.heard.message().await.expect("the stream is whole");
        message.and_then(|message| message.msg).expect("the peer goes on talking")
    }
}

/// Takes streams on loopback and hands them over, in the order of their coming.
pub(crate) struct Scheduler {
    pub(crate) addr: SocketAddr,
    opened: mpsc::Receiver<Link>,
    _serving: JoinSet<()>,
}

impl Scheduler {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let (open, opened) = mpsc::channel(16);
        let serve = Server::builder()
            .add_service(SchedulerWorkerServiceServer::new(Service { open: Mutex::new(open) }))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        let mut serving = JoinSet::new();
        serving.spawn(async move { serve.await.expect("serving ends only with its task") });
        Self { addr, opened, _serving: serving }
    }

    /// The next stream, once its first message, the registration, is there.
    pub(crate) async fn accept(&mut self) -> Link {
        let mut link = self.opened.recv().await.expect("the service holds a sender");
        assert!(matches!(link.hear().await, Msg::WorkerRegistration(_)), "a peer registers first");
        link
    }
}

struct Service {
    open: Mutex<mpsc::Sender<Link>>,
}

#[tonic::async_trait]
impl SchedulerWorkerService for Service {
    type ConnectWorkerStream = ReceiverStream<Result<WorkerSchedulerMessage, Status>>;

    async fn connect_worker(
        &self,
        request: Request<Streaming<WorkerSchedulerMessage>>,
    ) -> Result<Response<Self::ConnectWorkerStream>, Status> {
        let (say, said) = mpsc::channel(QUEUE);
        let link = Link { say, heard: request.into_inner() };
        self.open.lock().await.send(link).await.map_err(|_| Status::unavailable("the bench is over"))?;
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

/// The yardstick: answers each request with the result that a no-op worker would send, and does nothing else.
pub(crate) async fn echo(addr: SocketAddr) {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address makes a URI");
    let channel = endpoint.tcp_nodelay(true).connect().await.expect("the bench listens");
    let (say, said) = mpsc::channel(QUEUE);
    let registration = Msg::WorkerRegistration(WorkerRegistration::default());
    say.send(WorkerSchedulerMessage { msg: Some(registration) }).await.expect("the queue is held");
    let mut client = SchedulerWorkerServiceClient::new(channel);
    let answer = client.connect_worker(ReceiverStream::new(said)).await.expect("the bench answers");
    let mut heard = answer.into_inner();
    while let Ok(Some(WorkerSchedulerMessage { msg: Some(Msg::RunRequest(request)) })) = heard.message().await
    {
        let message = WorkerSchedulerMessage { msg: Some(Msg::RunResult(result_of(request))) };
        if say.send(message).await.is_err() {
            return;
        }
    }
}

fn result_of(request: TaskExecutionRequest) -> TaskExecutionResult {
    TaskExecutionResult {
        run_id: request.run_id,
        success: true,
        output_payload: request.input_payload,
        attempt: request.attempt,
        ..Default::default()
    }
}
