//! The worker itself: connection, admission, job pipeline, outbox, shutdown.
