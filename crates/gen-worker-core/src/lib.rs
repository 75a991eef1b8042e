//! What all gen-worker crates agree on: ids, units, digests, model refs, functions, contexts, failures, ports, settings.
