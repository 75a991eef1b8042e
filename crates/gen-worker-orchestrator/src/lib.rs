//! A small orchestrator for gen-worker: queue, hub folder, file store, frontend, in one process.
