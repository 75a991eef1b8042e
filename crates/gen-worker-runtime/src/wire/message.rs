//! What is said, as bytes: encoded once, where it arises, however often it is sent.

use std::sync::Arc;

use prost::Message as _;

use super::v1::WorkerSchedulerMessage;

/// A message of this worker. Cloning it copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message(Arc<[u8]>);

impl Message {
    /// As it goes over the wire.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What it says.
    #[cfg(test)]
    pub(crate) fn decoded(&self) -> super::v1::worker_scheduler_message::Msg {
        WorkerSchedulerMessage::decode(self.as_bytes())
            .expect("it was encoded")
            .msg
            .expect("it says something")
    }
}

impl From<&[u8]> for Message {
    fn from(encoded: &[u8]) -> Self {
        Self(encoded.into())
    }
}

impl From<WorkerSchedulerMessage> for Message {
    fn from(message: WorkerSchedulerMessage) -> Self {
        Self(message.encode_to_vec().into())
    }
}
