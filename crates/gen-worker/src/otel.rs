//! Runs as spans, sent to an OpenTelemetry collector.
//!
//! A run is a span below the one that the scheduler named, and each of its stages a span below that. The SDK keeps them in a
//! bounded queue, and a thread of its own sends them: a collector that is slow or away costs spans, and nothing else.

#[cfg(feature = "otel")]
mod carrier;
mod config;
#[cfg(feature = "otel")]
mod spans;

pub use self::config::OtelConfig;
#[cfg(feature = "otel")]
pub use self::spans::OtelError;
#[cfg(feature = "otel")]
pub(crate) use self::spans::Traces;
