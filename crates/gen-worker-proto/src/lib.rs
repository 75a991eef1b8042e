//! Generated stubs of the gen-worker wire protocol, one module per protobuf package.
//!
//! The contract is `proto/*.proto` at the root of the repository; `cargo xtask proto` writes `generated/` from it.
//! `bytes` fields are [`bytes::Bytes`], so that cloning a message does not copy its payload. A message or a field that
//! these stubs do not know is skipped when decoding; an unknown member of a oneof decodes to `None`.
//!
//! ```
//! use gen_worker_proto::scheduler::{InterruptTaskCommand, WorkerSchedulerMessage, worker_scheduler_message::Msg};
//! use prost::Message;
//!
//! let interrupt = InterruptTaskCommand { run_id: "r".to_owned(), ..Default::default() };
//! let message = WorkerSchedulerMessage { msg: Some(Msg::InterruptRunCmd(interrupt)) };
//! assert_eq!(message.encode_to_vec(), [0x6a, 3, 0x0a, 1, b'r']);
//! ```

/// The stream between a worker and its scheduler.
pub mod scheduler {
    #![allow(missing_docs, clippy::all)]
    include!("generated/scheduler.rs");
}

/// The client side of an orchestrator.
pub mod frontend {
    #![allow(missing_docs, clippy::all)]
    include!("generated/frontend.rs");
}
