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
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tracing::{debug, info, warn};

use super::address::Address;
use crate::{
    command::Command,
    config::RuntimeConfig,
    dispatch::Dispatcher,
    heartbeat::Reporter,
    outbox::Outbox,
    shutdown::{Phase, Shutdown},
    wire::{Client, Message, inbound},
};

/// A TCP and TLS handshake that takes longer has failed.
const DIAL: Duration = Duration::from_secs(10);

/// A stream that lived this long is connected, whether or not the scheduler has said anything: the original's says
/// nothing until it has a run.
const CONNECTED_AFTER: Duration = Duration::from_secs(5);

/// HTTP/2 pings, idle and busy: a peer that takes TCP and never answers is noticed after 30 seconds.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

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

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The worker said everything and left.
    Left,
    /// The stream broke, was closed, or never opened.
    Lost { cause: String },
    /// Another scheduler leads.
    Redirected { leader: String },
    /// The scheduler will never take this worker.
    Refused { message: String },
}

pub(super) struct Session<'a> {
    config: &'a RuntimeConfig,
    link: &'a Link,
    address: &'a Address,
    connected: bool,
}

impl<'a> Session<'a> {
    pub(super) fn open(config: &'a RuntimeConfig, link: &'a Link, address: &'a Address) -> Self {
        Self { config, link, address, connected: false }
    }

    /// Dials and holds the stream to its end; also says whether it was ever connected.
    pub(super) async fn run(mut self) -> (bool, Ended) {
        if let Err(refused) = self.link.credential.renew().await {
            return (false, Ended::Lost { cause: format!("no token to dial with: {}", refused.chain()) });
        }
        let ended = match self.dial().await {
            Ok(channel) => self.hold(channel).await,
            Err(error) => Ended::Lost { cause: format!("cannot connect: {}", innermost(&error)) },
        };
        (self.connected, ended)
    }

    async fn dial(&self) -> Result<Channel, tonic::transport::Error> {
        let mut endpoint = Endpoint::from_shared(self.address.uri())?
            .connect_timeout(DIAL)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        if self.address.is_tls() {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_webpki_roots())?;
        }
        endpoint.connect().await
    }

    async fn hold(&mut self, channel: Channel) -> Ended {
        let (say, said) = mpsc::channel(IN_FLIGHT);
        // First in the queue before the call is made, so that nothing can come before it.
        say.try_send(self.link.reporter.registration(false)).expect("a new channel has room");
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
            Err(status) => classify(&status),
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
        let proven = sleep_until(now + CONNECTED_AFTER);
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
                    heartbeat_due |= phase == Phase::Draining;
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
            info!(address = %self.address, "connected");
        }
    }

    fn keep_books(&self) {
        self.link.outbox.expire(self.config.result_retention);
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
            Ok(end) => {
                debug!(?end, "the scheduler ended the stream");
                // It has read everything; one that acknowledges says itself what it has for good.
                if end.is_ok() && !self.link.dispatcher.acknowledges() {
                    self.link.outbox.expire(Duration::ZERO);
                }
            }
            Err(_) => warn!(waited_ms = GOODBYE.as_millis() as u64, "the scheduler did not end the stream"),
        }
        Ok(())
    }
}

async fn next(heard: &mut Option<Streaming<Message>>) -> Result<Option<Message>, Status> {
    match heard {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

/// What the status of a stream that ended means for the next dial.
fn classify(status: &Status) -> Ended {
    let message = status.message();
    match status.code() {
        Code::FailedPrecondition if message.starts_with("not_leader:") => {
            Ended::Redirected { leader: message["not_leader:".len()..].trim().to_owned() }
        }
        Code::FailedPrecondition if message.starts_with("unsupported_worker_protocol:") => {
            Ended::Refused { message: message.to_owned() }
        }
        Code::Unimplemented => Ended::Refused { message: message.to_owned() },
        code => Ended::Lost { cause: format!("{code:?}: {message}") },
    }
}

/// The cause a person can act on: `connection refused` rather than `transport error`.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_refusals_end_the_worker() {
        let lost = |status| matches!(classify(&status), Ended::Lost { .. });
        assert!(lost(Status::ok("")) && lost(Status::unavailable("x")) && lost(Status::unauthenticated("x")));
        assert!(lost(Status::failed_precondition("something else")));
        assert!(matches!(classify(&Status::unimplemented("x")), Ended::Refused { .. }));
        let protocol = Status::failed_precondition("unsupported_worker_protocol: 2 needed");
        assert!(matches!(classify(&protocol), Ended::Refused { .. }));
        let Ended::Redirected { leader } = classify(&Status::failed_precondition("not_leader: h:1 ")) else {
            panic!("a redirect")
        };
        assert_eq!(leader, "h:1");
    }
}
