//! What the journal keeps, as messages: a result is itself, a delivered one is its acknowledgement.

use gen_worker_core::RunId;

use prost::Message as _;

use super::{
    Message,
    v1::{self, worker_scheduler_message::Msg},
};

/// What a message in the journal says.
pub(crate) enum Kept {
    /// This attempt has a result, the message itself.
    Result(RunId, i64),
    /// The result of this attempt need not be sent any more.
    Delivered(RunId, i64),
}

/// Reads a message of the journal; `None`: the journal holds no such messages.
pub(crate) fn kept(message: &Message) -> Option<Kept> {
    match v1::WorkerSchedulerMessage::decode(message.as_bytes()).ok()?.msg? {
        Msg::RunResult(result) => Some(Kept::Result(RunId::parse(&result.run_id).ok()?, result.attempt)),
        Msg::ResultAck(ack) => Some(Kept::Delivered(RunId::parse(&ack.run_id).ok()?, ack.attempt)),
        _ => None,
    }
}

/// The result of this attempt need not be sent any more.
pub(crate) fn delivered(run_id: &RunId, attempt: i64) -> Message {
    let ack = v1::ResultAck { run_id: run_id.as_str().to_owned(), attempt };
    v1::WorkerSchedulerMessage { msg: Some(Msg::ResultAck(ack)) }.into()
}
