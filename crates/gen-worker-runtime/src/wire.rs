//! The only place that names wire types.

pub(crate) mod call;
pub(crate) mod inbound;
pub(crate) mod kept;
mod message;
pub(crate) mod outbound;

/// What stands in the place of a payload that is too large.
pub(crate) const TRUNCATED: &[u8] = br#"{"truncated":true}"#;

pub(crate) use gen_worker_proto::scheduler as v1;

pub(crate) use self::message::Message;
