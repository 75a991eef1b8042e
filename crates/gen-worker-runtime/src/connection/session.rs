//! One stream, from the dial to its end.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use gen_worker_core::ports::CredentialSource;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tonic::{
    Request, Response, Status,
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
    meters::Meters,
    outbox::{Losses, Outbox, Speech},
    shutdown::{Phase, Shutdown},
    wire::{
        call::{Heard, connect_worker},
        inbound,
        v1::WorkerSchedulerMessage,
    },
};

/// A look-up with its TCP and TLS handshakes that takes longer has failed.
const DIAL: Duration = Duration::from_secs(10);

/// The same for a worker that leaves, which has few seconds to hand over what it holds.
const LAST_DIAL: Duration = Duration::from_secs(2);

/// How long the peer may take to read what was said and end the stream, once the worker leaves.
const GOODBYE: Duration = Duration::from_secs(5);

/// How soon a scheduler that wants to know hears how models came and went. People watch it.
const MODELS: Duration = Duration::from_secs(1);

/// How many messages are heard in a row before anything else is looked at.
const BURST: usize = 64;

/// What a session is linked to; all of it outlives every stream.
#[derive(Clone)]
pub(crate) struct Link {
    pub outbox: Arc<Outbox>,
    pub reporter: Arc<Reporter>,
    pub dispatcher: Arc<Dispatcher>,
    pub credential: Arc<dyn CredentialSource>,
    pub shutdown: Shutdown,
    pub meters: Arc<Meters>,
}

/// How a scheduler is dialled.
pub(super) fn endpoint(
    config: &RuntimeConfig,
    address: &Address,
    ping_interval: Duration,
) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(address.uri())?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(ping_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true);
    if address.is_tls() {
        endpoint.tls_config(config.tls.config(address.server_name()))
    } else {
        Ok(endpoint)
    }
}

type Answer = Result<Response<Heard>, Status>;

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
    /// Time between pings.
    ping_interval: Duration,
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
        ping_interval: Duration,
        gap: &'a mut Gap,
    ) -> Self {
        Self {
            config,
            link,
            address,
            ping_interval,
            gap,
            opened: Instant::now(),
            connected: false,
            answered: false,
        }
    }

    /// Dials and holds the stream to its end.
    pub(super) async fn run(mut self) -> Course {
        let ended = match self.dial().await {
            Ok(channel) => self.hold(channel).await,
            Err(cause) => Ended::Lost { cause },
        };
        let uptime = self.connected.then(|| self.opened.elapsed());
        // One round of pings ends a peer that does not speak HTTP/2: who is there after two has answered them.
        let pinged = (self.ping_interval + self.config.keepalive_timeout) * 2;
        let answered = self.answered || uptime.is_some_and(|uptime| uptime >= pinged);
        Course { ended, uptime, answered }
    }

    async fn dial(&mut self) -> Result<Channel, String> {
        if let Err(refused) = self.link.credential.renew().await {
            return Err(format!("no token to dial with: {}", refused.chain()));
        }
        let since = Instant::now();
        let dialled = tokio::select! {
            dialled = self.connect() => dialled.map_err(|error| format!("cannot connect: {}", innermost(&error))),
            waited = self.patience() => Err(format!("cannot connect: no answer within {} s", waited.as_secs())),
        };
        self.gap.dialled(since.elapsed());
        self.opened = Instant::now();
        dialled
    }

    /// Comes to its end when a dial has taken too long, and says how long that is.
    async fn patience(&self) -> Duration {
        let leaving = async {
            self.link.shutdown.reached(Phase::Flushing).await;
            sleep(LAST_DIAL).await;
        };
        tokio::select! {
            () = sleep(DIAL) => DIAL,
            () = leaving => LAST_DIAL,
        }
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        endpoint(self.config, self.address, self.ping_interval)?.connect().await
    }

    async fn hold(&mut self, channel: Channel) -> Ended {
        self.link.dispatcher.new_stream();
        self.link.outbox.take_in();
        let news = self.link.reporter.news();
        // Made before the call, so that nothing can come before it.
        let registration = self.link.reporter.registration(false);
        let (speech, said) = self.link.outbox.start_stream(registration);
        let request = match self.request(speech) {
            Ok(request) => request,
            Err(cause) => return Ended::Lost { cause },
        };
        let call = connect_worker(channel, self.config.max_message_bytes, request);
        match self.pump(call, said, news).await {
            Ok(()) => Ended::Left,
            Err(status) => {
                self.link.dispatcher.stream_lost();
                classify(&status)
            }
        }
    }

    fn request(&self, speech: Speech) -> Result<Request<Speech>, String> {
        let mut request = Request::new(speech);
        if let Some(token) = self.link.credential.bearer() {
            let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| "the worker's token holds characters that no header can carry".to_owned())?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }

    /// Hears the peer, while HTTP/2 takes what there is to say from the outbox. It hears from the start: a scheduler may
    /// answer the call only when it has something to say.
    async fn pump(
        &mut self,
        call: impl Future<Output = Answer>,
        mut said: oneshot::Receiver<()>,
        mut news: watch::Receiver<()>,
    ) -> Result<(), Status> {
        let Link { outbox, shutdown, reporter, dispatcher, .. } = self.link;
        let call = call.fuse();
        tokio::pin!(call);
        let mut heard: Option<Heard> = None;
        let now = Instant::now();
        let mut heartbeat = interval_at(now + self.config.heartbeat, self.config.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut models = interval_at(now + MODELS, MODELS);
        models.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut model_memory = None;
        let proven = sleep_until(now + self.config.connected_after);
        tokio::pin!(proven);
        let mut phase = shutdown.phase();
        let next_phase = shutdown.changed(phase);
        tokio::pin!(next_phase);
        loop {
            if phase >= Phase::Flushing {
                outbox.finish();
            }
            tokio::select! {
                biased;
                due = heartbeat.tick() => {
                    self.link.meters.heartbeat(due.elapsed());
                    outbox.heartbeat(reporter.registration(true));
                    self.keep_books();
                }
                next = &mut next_phase => {
                    phase = next;
                    next_phase.set(shutdown.changed(phase));
                    if phase < Phase::Flushing {
                        outbox.heartbeat(reporter.registration(true));
                    }
                }
                // The sender lives as long as the link.
                _ = news.changed() => outbox.heartbeat(reporter.registration(true)),
                _ = models.tick(), if dispatcher.tells_model_memory() => {
                    let now = reporter.model_memory();
                    if std::mem::replace(&mut model_memory, now) != now {
                        outbox.heartbeat(reporter.registration(true));
                    }
                }
                () = &mut proven, if !self.connected => self.connected(),
                answer = &mut call, if heard.is_none() => {
                    heard = Some(answer?.into_inner());
                    self.answered = true;
                    self.connected();
                }
                _ = &mut said, if phase >= Phase::Flushing => return self.leave(call, heard).await,
                message = next_once_relieved(outbox, &mut heard) => {
                    self.hear(message?)?;
                    self.hear_more(&mut heard)?;
                }
            }
        }
    }

    fn hear(&self, message: Option<WorkerSchedulerMessage>) -> Result<(), Status> {
        let message = message.ok_or_else(|| Status::ok("the scheduler closed the stream"))?;
        self.link.dispatcher.handle(inbound::command(message, self.config.tenant_id.as_ref()));
        Ok(())
    }

    /// Hears what has already come: looking at all else for each message costs more than hearing it.
    fn hear_more(&self, heard: &mut Option<Heard>) -> Result<(), Status> {
        for _ in 1..BURST {
            if self.link.outbox.is_congested() {
                break;
            }
            let Some(message) = next(heard).now_or_never() else { break };
            self.hear(message?)?;
        }
        Ok(())
    }

    /// What a worker that has said everything still hears: more to do could not be answered.
    fn hear_last(&self, message: WorkerSchedulerMessage) {
        let command = inbound::command(message, self.config.tenant_id.as_ref());
        if let Command::Acknowledge { .. } = command {
            self.link.dispatcher.handle(command);
        }
    }

    fn connected(&mut self) {
        if !std::mem::replace(&mut self.connected, true) {
            self.link.meters.connected();
            self.gap.connected(self.address);
        }
    }

    fn keep_books(&self) {
        self.link.outbox.expire(self.config.result_retention);
        let Losses { events, results } = self.link.outbox.take_losses();
        if events > 0 {
            warn!(dropped = events, "events were dropped: the scheduler reads more slowly than runs talk");
        }
        if results > 0 {
            debug!(
                results,
                "results were forgotten before their retention was over, to stay within WORKER_RESULT_BUFFER_BYTES"
            );
        }
    }

    /// After the half-close, reads the peer to its end: resetting the stream could throw away what it has not read yet.
    async fn leave(
        &self,
        call: impl Future<Output = Answer>,
        mut heard: Option<Heard>,
    ) -> Result<(), Status> {
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
            // It broke: what is held is said again, on another stream or by the next process.
            Ok(Err(status)) if !self.link.outbox.is_delivered() => return Err(status),
            Ok(_) => {
                debug!("the scheduler ended the stream");
                self.link.outbox.expire(Duration::ZERO);
            }
            Err(_) => {
                warn!(waited_ms = GOODBYE.as_millis() as u64, "the scheduler did not end the stream");
                self.link.outbox.give_up_unkept();
            }
        }
        match self.link.outbox.can_leave() {
            true => Ok(()),
            false => Err(Status::unavailable("the scheduler left results unacknowledged")),
        }
    }
}

/// The next message, once there is room for what it makes to say.
async fn next_once_relieved(
    outbox: &Outbox,
    heard: &mut Option<Heard>,
) -> Result<Option<WorkerSchedulerMessage>, Status> {
    outbox.relieved().await;
    next(heard).await
}

async fn next(heard: &mut Option<Heard>) -> Result<Option<WorkerSchedulerMessage>, Status> {
    match heard {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}
