//! Generated stubs of the gen-worker wire protocol.
