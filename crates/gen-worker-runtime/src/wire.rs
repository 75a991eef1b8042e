//! The only place that names wire types.

pub(crate) mod inbound;
pub(crate) mod kept;
pub(crate) mod outbound;

/// What stands in the place of a payload that is too large.
pub(crate) const TRUNCATED: &[u8] = br#"{"truncated":true}"#;

pub(crate) use gen_worker_proto::scheduler::{
    self as v1, WorkerSchedulerMessage as Message,
    scheduler_worker_service_client::SchedulerWorkerServiceClient as Client,
};
