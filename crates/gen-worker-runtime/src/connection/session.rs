//! One stream, from the dial to its end.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use gen_worker_core::ports::CredentialSource;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use tracing::{debug, warn};

use super::{
    address::Address,
    gap::Gap,
    status::{Ended, classify, innermost},
};
use crate::{
    command::Command,
    config::RuntimeConfig,
    dispatch::Dispatcher,
    heartbeat::Reporter,
    outbox::Outbox,
    shutdown::{Phase, Shutdown},
    wire::{Client, Message, inbound},
};

/// A look-up with its TCP and TLS handshakes that takes longer has failed.
const DIAL: Duration = Duration::from_secs(10);

/// Messages between the outbox and HTTP/2. Small, so that what is sent next is decided as late as possible.
const IN_FLIGHT: usize = 16;

/// How long the peer may take to read what was said and end the stream, once the worker leaves.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a session is linked to; all of it outlives every stream.
#[derive(Clone)]
pub(crate) struct Link {
    pub outbox: Arc<Outbox>,
    pub reporter: Arc<Reporter>,
    pub dispatcher: Arc<Dispatcher>,
    pub credential: Arc<dyn CredentialSource>,
    pub shutdown: Shutdown,
}

/// How a session went.
#[derive(Debug)]
pub(super) struct Course {
    pub ended: Ended,
    /// How long the stream was up; `None`: it was never connected.
    pub uptime: Option<Duration>,
    /// Whether the peer has shown that it speaks the protocol.
    pub answered: bool,
}

pub(super) struct Session<'a> {
    config: &'a RuntimeConfig,
    link: &'a Link,
    address: &'a Address,
    gap: &'a mut Gap,
    opened: Instant,
    connected: bool,
    answered: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        config: &'a RuntimeConfig,
        link: &'a Link,
        address: &'a Address,
        gap: &'a mut Gap,
    ) -> Self {
        Self { config, link, address, gap, opened: Instant::now(), connected: false, answered: false }
    }

    /// Dials and holds the stream to its end.
    pub(super) async fn run(mut self) -> Course {
        let ended = match self.dial().await {
            Ok(channel) => self.hold(channel).await,
            Err(cause) => Ended::Lost { cause },
        };
        let uptime = self.connected.then(|| self.opened.elapsed());
        // One round of pings ends a peer that does not speak HTTP/2: who is there after two has answered them.
        let pinged = (self.config.keepalive_interval + self.config.keepalive_timeout) * 2;
        let answered = self.answered || uptime.is_some_and(|uptime| uptime >= pinged);
        Course { ended, uptime, answered }
    }

    async fn dial(&mut self) -> Result<Channel, String> {
        if let Err(refused) = self.link.credential.renew().await {
            return Err(format!("no token to dial with: {}", refused.chain()));
        }
        let since = Instant::now();
        let dialled = match timeout(DIAL, self.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(format!("cannot connect: {}", innermost(&error))),
            Err(_) => Err(format!("cannot connect: no answer within {} s", DIAL.as_secs())),
        };
        self.gap.dialled(since.elapsed());
        self.opened = Instant::now();
        dialled
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let mut endpoint = Endpoint::from_shared(self.address.uri())?
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout)
            .keep_alive_while_idle(true);
        if self.address.is_tls() {
            endpoint = endpoint.tls_config(self.config.tls.config(self.address.server_name()))?;
        }
        endpoint.connect().await
    }

    async fn hold(&mut self, channel: Channel) -> Ended {
        let (say, said) = mpsc::channel(IN_FLIGHT);
        // First in the queue before the call is made, so that nothing can come before it.
        say.try_send(self.link.reporter.registration(false)).expect("a new channel has room");
        self.link.dispatcher.new_stream();
        self.link.outbox.restart();
        let request = match self.request(said) {
            Ok(request) => request,
            Err(cause) => return Ended::Lost { cause },
        };
        let mut client = Client::new(channel)
            .max_decoding_message_size(self.config.max_message_bytes)
            .max_encoding_message_size(self.config.max_message_bytes);
        let call = client.connect_worker(request);
        match self.pump(say, call).await {
            Ok(()) => Ended::Left,
            Err(status) => {
                self.link.dispatcher.stream_lost();
                classify(&status)
            }
        }
    }

    fn request(&self, said: mpsc::Receiver<Message>) -> Result<Request<ReceiverStream<Message>>, String> {
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(token) = self.link.credential.bearer() {
            let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| "the worker's token holds characters that no header can carry".to_owned())?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    /// Both ways from the start: a scheduler may answer the call only when it has something to say.
    async fn pump(
        &mut self,
        say: mpsc::Sender<Message>,
        call: impl Future<Output = Result<tonic::Response<Streaming<Message>>, Status>>,
    ) -> Result<(), Status> {
        let call = call.fuse();
        tokio::pin!(call);
        let mut heard: Option<Streaming<Message>> = None;
        let now = Instant::now();
        let mut heartbeat = interval_at(now + self.config.heartbeat, self.config.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let proven = sleep_until(now + self.config.connected_after);
        tokio::pin!(proven);
        let mut heartbeat_due = false;
        let mut drain_seen = self.link.shutdown.phase();
        loop {
            let sendable = heartbeat_due || self.link.outbox.has_next();
            if !sendable && self.link.shutdown.phase() >= Phase::Flushing && self.link.outbox.is_said() {
                return self.leave(say, call, heard).await;
            }
            tokio::select! {
                answer = &mut call, if heard.is_none() => {
                    heard = Some(answer?.into_inner());
                    self.answered = true;
                    self.connected();
                }
                message = next(&mut heard) => match message? {
                    Some(message) => self.hear(message),
                    None => return Err(Status::ok("the scheduler closed the stream")),
                },
                room = say.reserve(), if sendable => {
                    let room = room.map_err(|_| Status::unavailable("the stream broke"))?;
                    if std::mem::take(&mut heartbeat_due) {
                        room.send(self.link.reporter.registration(true));
                    } else if let Some(message) = self.link.outbox.next() {
                        room.send(message);
                    }
                }
                () = self.link.outbox.filled(), if !sendable => {}
                _ = heartbeat.tick() => {
                    heartbeat_due = true;
                    self.keep_books();
                }
                () = &mut proven, if !self.connected => self.connected(),
                phase = self.link.shutdown.changed(drain_seen) => {
                    heartbeat_due |= phase < Phase::Flushing;
                    drain_seen = phase;
                }
            }
        }
    }

    fn hear(&self, message: Message) {
        self.link.dispatcher.handle(inbound::command(message, self.config.tenant_id.as_ref()));
    }

    /// What a worker that has said everything still hears: more to do could not be answered.
    fn hear_last(&self, message: Message) {
        let command = inbound::command(message, self.config.tenant_id.as_ref());
        if let Command::Acknowledge { .. } = command {
            self.link.dispatcher.handle(command);
        }
    }

    fn connected(&mut self) {
        if !std::mem::replace(&mut self.connected, true) {
            self.gap.connected(self.address);
        }
    }

    fn keep_books(&self) {
        if !self.link.dispatcher.acknowledges() {
            self.link.outbox.expire(self.config.result_retention);
        }
        let dropped = self.link.outbox.take_dropped();
        if dropped > 0 {
            warn!(dropped, "events were dropped: the scheduler reads more slowly than runs talk");
        }
    }

    /// Half-closes, then reads the peer to its end: resetting the stream could throw away what it has not read yet.
    async fn leave(
        &self,
        say: mpsc::Sender<Message>,
        call: impl Future<Output = Result<tonic::Response<Streaming<Message>>, Status>>,
        mut heard: Option<Streaming<Message>>,
    ) -> Result<(), Status> {
        drop(say);
        let read_out = async {
            if heard.is_none() {
                heard = Some(call.await?.into_inner());
            }
            while let Some(message) = next(&mut heard).await? {
                self.hear_last(message);
            }
            Ok::<_, Status>(())
        };
        match timeout(GOODBYE, read_out).await {
            // It broke: what is held is said again, on another stream.
            Ok(Err(status)) if !self.link.outbox.can_leave() => return Err(status),
            Ok(_) => debug!("the scheduler ended the stream"),
            Err(_) => {
                warn!(waited_ms = GOODBYE.as_millis() as u64, "the scheduler did not end the stream");
            }
        }
        if !self.link.dispatcher.acknowledges() {
            self.link.outbox.expire(Duration::ZERO);
        }
        match self.link.outbox.can_leave() {
            true => Ok(()),
            false => Err(Status::unavailable("the scheduler left results unacknowledged")),
        }
    }
}

async fn next(heard: &mut Option<Streaming<Message>>) -> Result<Option<Message>, Status> {
    match heard {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}
