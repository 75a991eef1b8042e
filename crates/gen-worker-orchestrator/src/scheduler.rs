//! The stream, from the scheduler's side.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use gen_worker_core::Secret;
use gen_worker_proto::scheduler::{
    self as v1, scheduler_worker_service_server::SchedulerWorkerService, worker_scheduler_message::Msg,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::debug;

use crate::{
    auth::{Now, admits, bearer},
    broker::Broker,
    workers::Outbound,
};

/// Largest message in either direction: the largest payload and room for what surrounds it.
pub(crate) const MAX_MESSAGE: usize = 64 << 20;

/// Most results of one worker that are being stored; the worker is not read beyond.
const STORING: usize = 256;

/// How long a new stream may be silent.
pub(crate) const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The service that workers connect to.
#[derive(Debug, Clone)]
pub(crate) struct Scheduler {
    pub(crate) broker: Arc<Broker>,
    pub(crate) token: Option<Secret<String>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl SchedulerWorkerService for Scheduler {
    type ConnectWorkerStream =
        Pin<Box<dyn Stream<Item = Result<v1::WorkerSchedulerMessage, Status>> + Send + 'static>>;

    async fn connect_worker(
        &self,
        request: Request<Streaming<v1::WorkerSchedulerMessage>>,
    ) -> Result<Response<Self::ConnectWorkerStream>, Status> {
        authorise(self.token.as_ref(), request.metadata())?;
        let (outbound, messages) = Outbound::new();
        let scheduler = self.clone();
        self.tasks.spawn(async move {
            if let Err(status) = scheduler.serve(request.into_inner(), outbound.clone()).await {
                debug!(error = %status, "stream ended");
                // A full queue means that nobody reads it.
                let _ = outbound.messages.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

impl Scheduler {
    /// Serves one stream until it ends.
    async fn serve(
        &self,
        mut inbound: Streaming<v1::WorkerSchedulerMessage>,
        outbound: Outbound,
    ) -> Result<(), Status> {
        let first = timeout(FIRST_MESSAGE, self.stop.run_until_cancelled(inbound.message()))
            .await
            .map_err(|_| Status::deadline_exceeded("no registration came"))?
            .ok_or_else(closed)??;
        let Some(Msg::WorkerRegistration(registration)) = first.and_then(|message| message.msg) else {
            return Err(Status::invalid_argument("the first message must be a registration"));
        };
        let closing = self.stop.child_token();
        let joined = self.broker.join(registration, outbound.clone(), closing.clone()).await;
        let session = joined.map_err(|error| Status::unavailable(error.to_string()))?;
        // Results that are being stored: many share one write, so the next is read while the last is under way.
        let mut storing = FuturesUnordered::new();
        let ended = self.listen(session, &mut inbound, &outbound, &closing, &mut storing).await;
        // Their runs are no longer the session's: whoever forgets them now leaves them running for ever.
        while let Some(()) = storing.next().await {}
        self.broker.leave(session).await;
        ended
    }

    async fn listen<'a>(
        &'a self,
        session: u64,
        inbound: &mut Streaming<v1::WorkerSchedulerMessage>,
        outbound: &Outbound,
        closing: &CancellationToken,
        storing: &mut FuturesUnordered<BoxFuture<'a, ()>>,
    ) -> Result<(), Status> {
        loop {
            tokio::select! {
                Some(()) = storing.next() => {}
                message = inbound.message(), if storing.len() < STORING => match message? {
                    Some(v1::WorkerSchedulerMessage { msg: Some(msg) }) => {
                        storing.extend(self.broker.hear(session, msg, Now::read()));
                    }
                    // A message of a kind that is not known here.
                    Some(_) => {}
                    None => return Ok(()),
                },
                () = outbound.messages.closed() => return Ok(()),
                () = closing.cancelled() => return Err(self.farewell(session)),
            }
        }
    }

    /// Why a stream is closed: its worker is sent to another orchestrator, or is to come back.
    fn farewell(&self, session: u64) -> Status {
        match self.broker.sent_to(session) {
            Some(address) => Status::failed_precondition(format!("not_leader:{address}")),
            None => closed(),
        }
    }
}

fn closed() -> Status {
    Status::unavailable("the stream is closed; come back")
}

/// Lets in whoever sent the token, if one is wanted.
fn authorise(wanted: Option<&Secret<String>>, metadata: &MetadataMap) -> Result<(), Status> {
    if admits(wanted, sent_token(metadata)) { Ok(()) } else { Err(unauthenticated()) }
}

/// The bearer token that a call carries.
pub(crate) fn sent_token(metadata: &MetadataMap) -> Option<&str> {
    bearer(metadata.get("authorization").and_then(|value| value.to_str().ok()))
}

pub(crate) fn unauthenticated() -> Status {
    Status::unauthenticated("a valid bearer token is needed")
}
