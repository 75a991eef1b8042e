//! What all gen-worker crates agree on. No I/O, no tasks.
//!
//! A *function* is what a user wrote ([`Function`]: a [`FunctionSpec`] and its erased body). A *run* ([`RunId`]) asks
//! for one call of it; the running call is a *job*. User code sees an [`ActionContext`] and says things through it
//! ([`Event`]); what it returns or fails with becomes an output ([`Output`]) or a [`JobFailure`] of one [`FailureKind`].
//! What the runtime needs of the outside world are the traits in [`ports`]; where settings come from is [`config`].
//!
//! ```
//! use gen_worker_core::{FailureKind, JobFailure, WorkerError};
//!
//! let failure = JobFailure::from(WorkerError::validation("steps must be at most 50"));
//! assert_eq!(failure.kind, FailureKind::Validation);
//! assert_eq!(failure.safe_message, "steps must be at most 50");
//! ```

mod asset;
mod backoff;
mod cancel;
pub mod config;
mod context;
mod digest;
mod event;
mod extract;
mod failure;
mod function;
mod handler;
mod hook;
mod id;
mod json;
pub mod layer;
pub mod metric;
mod model_ref;
mod need;
mod output;
mod payload;
pub mod ports;
mod realtime;
mod redact;
mod schema;
mod scope;
mod secret;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod token;
mod trace;
mod units;

pub use crate::{
    asset::{Asset, AssetRef, AssetSlot, LocalFile},
    backoff::Backoff,
    cancel::{CancelReason, Cancellation},
    context::{ActionContext, RunFacts},
    digest::{Algorithm, Digest, DigestError, Hasher},
    event::{Download, DownloadState, Event, EventClass, LogLevel, ModelState},
    extract::{Call, CallParts, Extensions, Extract, InjectedModel, ModelArtifacts, State, StateType},
    failure::{Classify, FailureKind, FunctionError, JobFailure, WorkerError},
    function::{FunctionSpec, InjectionSpec, ModelBinding, OutputMode, ResourceRequirements},
    handler::{Body, Decoded, Function, FunctionBuilder, Input, RawCall},
    hook::{HookBody, Made, SetUp, TakesState, TearDown},
    id::{DeploymentId, FunctionName, IdError, RunId, TenantId, UserId, WorkerId},
    json::json_of,
    model_ref::{HubRef, HuggingFaceRef, LocalModel, ModelRef, ModelRefError},
    need::ModelNeed,
    output::{
        ByteStream, Chunks, Delta, DeltaStream, IntoOutput, Output, OutputBody, RawOutput, encode_value,
    },
    payload::{Payload, PayloadError},
    realtime::{Frame, Outgoing, RealtimePeer, RealtimeSocket},
    redact::{hide_credentials, hide_secrets, redact},
    schema::schema_of,
    scope::RunScope,
    secret::Secret,
    token::{MAX_TOKEN_BYTES, read_token},
    trace::TraceContext,
    units::{ByteLimit, ByteSize, Deadline},
};
