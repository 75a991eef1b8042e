//! HTTP for gen-worker: checked addresses, retry classes, streams to verified files.
