//! Realtime sessions: frames between the stream, which never waits for a handler, and handlers, which wait for the stream.
//!
//! A session is admitted like a run, whose id is the session's. What comes in is kept in its inbox, counted in bytes, until
//! the handler takes it; too much ends the session, and it is told. What goes out has a few places in the outbox. A session
//! ends with its stream.

mod inbox;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use gen_worker_core::{
    ByteLimit, CancelReason, FailureKind, Frame, JobFailure, Outgoing, RealtimePeer, RunId,
};
use tokio::{
    sync::{Notify, Semaphore, SetOnce, mpsc, oneshot},
    time::timeout,
};
use tracing::{info, warn};

use self::inbox::Inbox;
use crate::{
    admission::{PermitId, Refusal, Stop},
    command::Opening,
    job::Jobs,
    outbox::Outbox,
    wire::outbound,
};

/// Frames of one session that wait in the outbox; a handler that speaks faster waits.
const UNSENT: usize = 64;

/// What a session is held to.
#[derive(Debug, Clone)]
pub(crate) struct SessionLimits {
    /// Largest frame that may come in.
    pub max_frame: ByteLimit,
    /// Largest frame that a message can carry to the peer, in bytes.
    pub max_sent: usize,
    /// Bytes that may wait for the handler.
    pub buffer: usize,
    /// Longest silence, both ways; zero: no limit.
    pub idle: Duration,
}

/// The sessions that are open on this stream. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<RunId, Arc<Session>>>>);

impl Sessions {
    /// Opens a session, or says why not.
    pub(crate) fn open(&self, jobs: &Jobs, opening: Opening) {
        let (id, name) = (opening.run.run_id.clone(), &opening.run.function);
        if self.have(jobs, &id) {
            return;
        }
        let known = jobs.function(name).filter(|function| function.spec().is_realtime());
        let Some(handler) = known.cloned() else {
            return refuse(jobs.outbox(), &id, "unknown_function");
        };
        match jobs.converse(self, handler, opening) {
            Ok(session) => {
                self.table().insert(id, session);
            }
            Err(Refusal::Failed(failure)) => refuse(jobs.outbox(), &id, &refusal(&failure)),
            // One of this name is ending with the stream before, or a run has it.
            Err(_) => refuse(jobs.outbox(), &id, "worker busy"),
        }
    }

    /// Whether there is a session of this name, which hears of no second one: that is the same one, sent again, or comes too soon
    /// and is refused when the last words of the first were said.
    pub(crate) fn have(&self, jobs: &Jobs, id: &RunId) -> bool {
        let Some(session) = self.table().get(id).cloned() else { return false };
        match jobs.admission().is_running(id, 0) {
            true => info!(session_id = %id, "already open"),
            false => session.refuse_another(),
        }
        true
    }

    /// Takes a frame for a session; one that is not open takes none.
    pub(crate) fn hear(&self, id: &RunId, data: Bytes, is_text: bool) {
        if let Some(session) = self.table().get(id) {
            session.hear(data, is_text);
        }
    }

    /// The peer has closed: the handler is told to stop and hears the end after every frame before it.
    pub(crate) fn hang_up(&self, id: &RunId) {
        if let Some(session) = self.table().get(id) {
            session.hang_up();
        }
    }

    /// The stream is lost, and with it every session on it.
    pub(crate) fn lose(&self, outbox: &Outbox) {
        let lost: Vec<_> = self.table().drain().map(|(_, session)| session).collect();
        lost.iter().for_each(|session| session.end("stream_lost"));
        outbox.drop_frames();
    }

    /// The session is over.
    pub(crate) fn forget(&self, session: &Arc<Session>) {
        let mut table = self.table();
        if table.get(&session.id).is_some_and(|open| Arc::ptr_eq(open, session)) {
            table.remove(&session.id);
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Said in its turn: of a session before it that had the same name, there may be frames on their way.
fn refuse(outbox: &Outbox, id: &RunId, reason: &str) {
    warn!(session_id = %id, reason, "session refused");
    outbox.frame(outbound::realtime_closed(id.as_str().to_owned(), reason), None);
}

fn refusal(failure: &JobFailure) -> String {
    match failure.kind {
        FailureKind::Retryable => failure.safe_message.clone(),
        kind => format!("error:{}", kind.class()),
    }
}

/// One session, between the stream and its handler.
pub(crate) struct Session {
    id: RunId,
    limits: SessionLimits,
    handler: (PermitId, Arc<dyn Stop>),
    outbox: Arc<Outbox>,
    inbox: Mutex<Inbox>,
    /// Something came in.
    heard: Notify,
    /// A frame went either way.
    active: Notify,
    /// Why the worker ended it, whatever its handler does.
    ended: SetOnce<&'static str>,
    /// Another of its name was to be opened while its last words were on their way, and is refused behind them.
    has_refused: AtomicBool,
    /// For its frames that wait in the outbox.
    places: Arc<Semaphore>,
}

impl Session {
    pub(crate) fn new(
        id: RunId,
        limits: SessionLimits,
        handler: (PermitId, Arc<dyn Stop>),
        outbox: Arc<Outbox>,
    ) -> Self {
        let inbox = Mutex::new(Inbox::new(limits.buffer));
        let (heard, active, ended) = (Notify::new(), Notify::new(), SetOnce::new());
        let (has_refused, places) = (AtomicBool::new(false), Arc::new(Semaphore::new(UNSENT)));
        Self { id, limits, handler, outbox, inbox, heard, active, ended, has_refused, places }
    }

    /// Carries frames until the handler has ended, or the worker ends the session; then tells the peer why, once everything
    /// that the handler said is on its way.
    pub(crate) async fn serve(&self, peer: RealtimePeer, outcome: oneshot::Receiver<String>) {
        let RealtimePeer { incoming, mut outgoing } = peer;
        let outcome = tokio::select! {
            biased;
            _ = self.ended.wait() => None,
            outcome = outcome => outcome.ok(),
            never = self.carry(incoming, &mut outgoing) => match never {},
            () = self.silence() => {
                self.end("idle_timeout");
                None
            }
        };
        outgoing.close();
        tokio::select! {
            biased;
            _ = self.ended.wait() => {}
            () = self.speak(&mut outgoing) => {}
        }
        let ended = self.ended.get().copied();
        let reason = ended.or(outcome.as_deref()).unwrap_or("error:InternalError");
        info!(reason, "session closed");
        self.outbox.frame(outbound::realtime_closed(self.id.as_str().to_owned(), reason), None);
        if self.has_refused.load(Ordering::Relaxed) {
            refuse(&self.outbox, &self.id, "worker busy");
        }
    }

    /// Its handler has ended, and what that said is on its way: what is opened by its name now is refused when that has been
    /// said, once however often it is asked for, and what comes for it is not for this one.
    fn refuse_another(&self) {
        self.has_refused.store(true, Ordering::Relaxed);
        self.inbox().close();
    }

    fn hear(&self, data: Bytes, is_text: bool) {
        if self.inbox().is_finished() {
            return;
        }
        if !self.limits.max_frame.admits(data.len() as u64) {
            return self.end("frame_too_large");
        }
        let frame = match is_text {
            false => Frame::Binary(data),
            true => match String::from_utf8(data.into()) {
                Ok(text) => Frame::Text(text),
                Err(_) => return self.end("invalid_text"),
            },
        };
        match self.inbox().push(frame) {
            true => self.heard.notify_one(),
            false => self.end("overloaded"),
        }
        self.active.notify_one();
    }

    fn hang_up(&self) {
        self.inbox().finish();
        self.heard.notify_one();
        self.stop();
    }

    /// Ends the session from this side; the first reason stays.
    fn end(&self, reason: &'static str) {
        // It fails when there is a reason already.
        let _ = self.ended.set(reason);
        self.stop();
    }

    fn stop(&self) {
        let (permit, handler) = &self.handler;
        handler.clone().stop(*permit, CancelReason::User);
    }

    async fn carry(
        &self,
        incoming: mpsc::Sender<Frame>,
        outgoing: &mut mpsc::Receiver<Outgoing>,
    ) -> Infallible {
        tokio::join!(self.listen(incoming), self.speak(outgoing));
        pending().await
    }

    /// Hands frames to the handler as fast as it takes them, and then lets it hear the end.
    async fn listen(&self, incoming: mpsc::Sender<Frame>) {
        while let Ok(place) = incoming.reserve().await
            && let Some(frame) = self.next_heard().await
        {
            place.send(frame);
        }
    }

    async fn next_heard(&self) -> Option<Frame> {
        loop {
            let heard = self.heard.notified();
            let next = self.inbox().pop();
            match next {
                Poll::Ready(frame) => return frame,
                Poll::Pending => heard.await,
            }
        }
    }

    /// Passes on what the handler says until it has no more to say. Dropping the future loses no frame.
    async fn speak(&self, outgoing: &mut mpsc::Receiver<Outgoing>) {
        while let Ok(place) = self.places.clone().acquire_owned().await
            && let Some(said) = outgoing.recv().await
        {
            match said {
                Outgoing::Frame(frame) if frame.len() > self.limits.max_sent => {
                    warn!(
                        bytes = frame.len(),
                        max = self.limits.max_sent,
                        "a frame is too large for a message"
                    );
                    self.end("frame_too_large");
                }
                Outgoing::Frame(frame) => {
                    self.active.notify_one();
                    self.outbox.frame(outbound::realtime_frame(&self.id, frame), Some(place));
                }
                Outgoing::Close => {
                    self.inbox().close();
                    self.outbox.frame(outbound::realtime_closed(self.id.as_str().to_owned(), "closed"), None);
                }
            }
        }
    }

    /// Comes to its end when no frame went either way for too long.
    async fn silence(&self) {
        if self.limits.idle.is_zero() {
            return pending().await;
        }
        while timeout(self.limits.idle, self.active.notified()).await.is_ok() {}
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
