//! The worker_function attribute of gen-worker.
