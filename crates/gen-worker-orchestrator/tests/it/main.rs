//! The whole orchestrator on loopback, against a scripted worker and real HTTP.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod callers;
mod files;
mod harness;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "nats")]
mod nats_access;
mod realtime;
mod runs;
mod waits;
