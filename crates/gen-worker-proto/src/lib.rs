//! Generated stubs of the gen-worker wire protocol, one module per protobuf package.
//!
//! The contract is `proto/*.proto` at the root of the repository; `cargo xtask proto` writes `generated/` from it.
//! `bytes` fields are [`bytes::Bytes`], so that cloning a message does not copy its payload. A message or a field that
//! these stubs do not know is skipped when decoding; an unknown member of a oneof decodes to `None`.

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
