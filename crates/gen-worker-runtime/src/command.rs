//! What a scheduler can ask for: a closed set, whatever the wire may carry.

use std::collections::HashMap;

use bytes::Bytes;
use gen_worker_core::{FunctionName, ModelRef, RunId, RunScope, Secret, UserId};

/// One request to run a function.
#[derive(Debug)]
pub(crate) struct RunRequest {
    pub run_id: RunId,
    /// 0: unfenced.
    pub attempt: i64,
    pub function: FunctionName,
    /// MessagePack, as it came.
    pub payload: Bytes,
    /// `None`: no deadline.
    pub timeout: Option<std::time::Duration>,
    pub user_id: Option<UserId>,
    pub scope: RunScope,
}

/// One request to open a realtime session.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The session as a run: its id is the session's, and its payload is empty.
    pub run: RunRequest,
    /// The models of the handler's parameters, by position; what is missing or empty is the deployment's.
    pub models: Vec<String>,
}

/// The models of a deployment, as the scheduler or its `cozy.toml` configured them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelConfig {
    pub ids_by_key: HashMap<String, String>,
    /// An empty list allows none; `*` allows all.
    pub allowed: Vec<String>,
}

impl ModelConfig {
    /// These, by key, in this order, and no others.
    pub(crate) fn of(models: &[(String, ModelRef)]) -> Self {
        let id = |model: &ModelRef| model.as_str().to_owned();
        Self {
            ids_by_key: models.iter().map(|(key, model)| (key.clone(), id(model))).collect(),
            allowed: models.iter().map(|(_, model)| id(model)).collect(),
        }
    }
}

/// One inbound message, understood.
#[derive(Debug)]
pub(crate) enum Command {
    Run(Box<RunRequest>),
    /// A run that cannot be understood well enough to be started, but well enough to be answered.
    RefuseRun {
        run_id: RunId,
        attempt: i64,
        problem: String,
    },
    Interrupt {
        run_id: RunId,
        attempt: i64,
    },
    LoadModel(String),
    UnloadModel(String),
    Configure(ModelConfig),
    /// The scheduler speaks these extensions.
    Hello {
        features: Vec<String>,
    },
    Acknowledge {
        run_id: RunId,
        attempt: i64,
    },
    /// `None`: however long runs take.
    Drain {
        deadline: Option<std::time::Duration>,
        reason: String,
    },
    OpenRealtime(Box<Opening>),
    /// A session that cannot be understood well enough to be opened.
    RefuseRealtime {
        session_id: String,
        problem: String,
    },
    RealtimeFrame {
        session_id: RunId,
        data: Bytes,
        is_text: bool,
    },
    CloseRealtime {
        session_id: RunId,
    },
    /// The worker's own token, for the next dial.
    RefreshToken(Secret<String>),
    /// Not for this worker, or not known to it.
    Ignore {
        what: &'static str,
    },
}
