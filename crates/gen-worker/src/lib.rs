//! A Rust SDK and runtime for generative-AI workers.
