//! Realtime sessions: frames between a caller and a handler at a worker that is connected here. A session lives in the two
//! streams that it goes over and ends with either: nothing of it is queued, stored or tried again.
//!
//! Callers name their sessions as they like. A worker, to whom those of all callers come, knows a session by an id that is
//! made here.

use gen_worker_core::{FunctionName, TenantId, UserId};
use gen_worker_proto::{
    frontend::{self, realtime_proxy_message::Msg as Said},
    scheduler::{self as v1, worker_scheduler_message::Msg},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};
use tracing::info;
use uuid::Uuid;

use crate::{
    auth::{Caller, random_token, same},
    intake::check_id,
    pipe::{Pipe, PipeSender, Unsent, pipe},
    queue::{FileScope, record::TOKEN_SEPARATOR},
    run::Trace,
};

/// Most bytes of frames that wait for one reader, a caller or a worker: as many as a worker keeps for a handler unless it
/// is told otherwise (`WORKER_WS_BUFFER_BYTES`).
pub(crate) const WAITING: u32 = 16 << 20;

/// The reason that is not the last word: the handler says no more, and another close follows when it has ended.
const NOT_YET: &str = "closed";

/// What a caller hears.
pub(crate) type Heard = Pipe<Result<frontend::RealtimeProxyMessage, Status>>;

/// Why a session is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSession {
    /// No worker that is connected here has the function and a place for it.
    NoWorker,
    /// Its tenant has as many sessions as it may.
    TenantFull,
}

impl From<NoSession> for Status {
    fn from(reason: NoSession) -> Self {
        match reason {
            NoSession::NoWorker => Self::unavailable(
                "no worker that is connected here has this function and a place for a session; ask again",
            ),
            NoSession::TenantFull => {
                Self::resource_exhausted("this tenant has as many realtime sessions as it may; close one")
            }
        }
    }
}

/// A session that a caller asks for.
#[derive(Debug)]
pub(crate) struct Opening {
    name: String,
    pub(crate) function: String,
    pub(crate) tenant_id: Option<String>,
    user_id: String,
    timeout_ms: i64,
    trace: Option<Trace>,
}

impl Opening {
    /// What the first message asks for; an error says what is wrong with it.
    pub(crate) fn read(
        caller: &Caller,
        open: frontend::RealtimeOpen,
        trace: Option<Trace>,
    ) -> Result<Self, Status> {
        let named = Some(open.tenant_id).filter(|tenant| !tenant.is_empty());
        let tenant_id = caller
            .acts_for(named)
            .ok_or_else(|| Status::permission_denied("`tenant_id` names another tenant than the token"))?;
        let opening = Self {
            name: if open.session_id.is_empty() { Uuid::new_v4().to_string() } else { open.session_id },
            function: open.function_name,
            tenant_id,
            user_id: open.user_id,
            timeout_ms: open.timeout_ms.max(0),
            trace,
        };
        opening.check().map_err(Status::invalid_argument)?;
        Ok(opening)
    }

    fn check(&self) -> Result<(), String> {
        check_id(&self.name).map_err(|_| {
            "a session id has 1 to 128 letters, digits, `-`, `_` or `.`, and no `.` in front".to_owned()
        })?;
        FunctionName::parse(&self.function).map_err(|e| e.to_string())?;
        let tenant = self.tenant_id.as_deref().map(TenantId::parse);
        tenant.transpose().map_err(|e| e.to_string())?;
        let user = Some(self.user_id.as_str()).filter(|user| !user.is_empty()).map(UserId::parse);
        user.transpose().map(drop).map_err(|e| e.to_string())
    }
}

/// A session as the stream of its worker keeps it. Dropped before the worker has closed it, it tells the caller that the
/// stream is lost.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// As the caller names it.
    name: String,
    pub(crate) function: String,
    pub(crate) tenant_id: Option<String>,
    file_token: String,
    caller: PipeSender<Result<frontend::RealtimeProxyMessage, Status>>,
    /// Whether the caller has heard the last word.
    ended: bool,
    /// Ends what carries the caller's frames.
    _over: DropGuard,
}

/// What carries a caller's frames to the worker.
#[derive(Debug)]
pub(crate) struct Line {
    /// As the worker knows it.
    id: String,
    frames: PipeSender<v1::WorkerSchedulerMessage>,
    caller: PipeSender<Result<frontend::RealtimeProxyMessage, Status>>,
    over: CancellationToken,
}

/// Opens a session at the worker whose frames go to `frames`. Returns its id there.
pub(crate) fn open(
    opening: Opening,
    file_base_url: &str,
    frames: PipeSender<v1::WorkerSchedulerMessage>,
) -> (String, Conversation, Line, Heard) {
    let Opening { name, function, tenant_id, user_id, timeout_ms, trace } = opening;
    let id = Uuid::new_v4().to_string();
    let file_token = format!("{id}{TOKEN_SEPARATOR}{}", random_token());
    let (traceparent, tracestate) = trace.map(|trace| (trace.parent, trace.state)).unwrap_or_default();
    frames.push(message(Msg::RealtimeOpenCmd(v1::RealtimeOpenCommand {
        session_id: id.clone(),
        function_name: function.clone(),
        required_models: Vec::new(),
        tenant_id: tenant_id.clone().unwrap_or_default(),
        user_id,
        timeout_ms,
        file_base_url: file_base_url.to_owned(),
        file_token: file_token.clone(),
        traceparent,
        tracestate,
    })));
    info!(session_id = name, at_worker = id, function, "realtime session opened");
    let (caller, heard) = pipe(WAITING);
    let over = CancellationToken::new();
    let line = Line { id: id.clone(), frames, caller: caller.clone(), over: over.clone() };
    let _over = over.drop_guard();
    (id, Conversation { name, function, tenant_id, file_token, caller, ended: false, _over }, line, heard)
}

impl Conversation {
    /// Passes on what the handler said. False: the caller reads too slowly, and the handler is to be told that it is over.
    pub(crate) fn hear(&mut self, frame: v1::RealtimeFrame) -> bool {
        let bytes = frame.data.len();
        let frame = frontend::RealtimeFrame {
            session_id: self.name.clone(),
            data: frame.data,
            is_text: frame.is_text,
        };
        self.say(bytes, Said::Frame(frame))
    }

    /// Says something that is not the last word, unless that was said.
    fn say(&mut self, bytes: usize, msg: Said) -> bool {
        if self.ended {
            return true;
        }
        match self.caller.try_send(bytes, Ok(said(msg))) {
            // Of a caller that is gone, its line tells the worker.
            Ok(()) | Err(Unsent::Gone) => true,
            Err(Unsent::Full) => {
                self.end("overloaded");
                false
            }
        }
    }

    /// Passes on why the worker closed the session. True: that was its last word.
    pub(crate) fn close(&mut self, reason: String) -> bool {
        if reason == NOT_YET {
            // The handler ends by itself, so nobody needs to tell it.
            let _ = self.say(0, self.closed(reason));
            return false;
        }
        self.end(&reason);
        true
    }

    /// Whose files a token opens, if it is this session's.
    pub(crate) fn file_scope(&self, id: &str, token: &str) -> Option<FileScope> {
        same(&self.file_token, token)
            .then(|| FileScope { run_id: id.to_owned(), tenant_id: self.tenant_id.clone() })
    }

    fn end(&mut self, reason: &str) {
        if !self.ended {
            self.ended = true;
            info!(session_id = self.name, reason, "realtime session ended");
            self.caller.push(Ok(said(self.closed(reason.to_owned()))));
        }
    }

    fn closed(&self, reason: String) -> Said {
        Said::Close(frontend::RealtimeClose { session_id: self.name.clone(), reason })
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.end("stream_lost");
    }
}

impl Line {
    /// Carries frames until the session is over, or the caller has closed it, said no more, or is gone: then the worker is
    /// told, after every frame before.
    pub(crate) async fn carry(self, mut inbound: Streaming<frontend::RealtimeProxyMessage>) {
        let carried = self.over.run_until_cancelled(async {
            self.listen(&mut inbound).await;
            let _ = self.frames.send(0, message(close(self.id.clone()))).await;
            // Whoever has closed it still hears what the handler says, up to the end.
            self.caller.closed().await;
        });
        carried.await;
    }

    async fn listen(&self, inbound: &mut Streaming<frontend::RealtimeProxyMessage>) {
        loop {
            let said = tokio::select! {
                said = inbound.message() => said,
                () = self.caller.closed() => return,
            };
            let Ok(Some(frontend::RealtimeProxyMessage { msg: Some(Said::Frame(frame)) })) = said else {
                return;
            };
            let bytes = frame.data.len();
            let frame =
                v1::RealtimeFrame { session_id: self.id.clone(), data: frame.data, is_text: frame.is_text };
            if self.frames.send(bytes, message(Msg::RealtimeFrame(frame))).await.is_err() {
                return;
            }
        }
    }
}

/// Tells the worker that a session is over.
pub(crate) fn close(id: String) -> Msg {
    Msg::RealtimeCloseCmd(v1::RealtimeCloseCommand { session_id: id, reason: NOT_YET.to_owned() })
}

fn message(msg: Msg) -> v1::WorkerSchedulerMessage {
    v1::WorkerSchedulerMessage { msg: Some(msg) }
}

fn said(msg: Said) -> frontend::RealtimeProxyMessage {
    frontend::RealtimeProxyMessage { msg: Some(msg) }
}
