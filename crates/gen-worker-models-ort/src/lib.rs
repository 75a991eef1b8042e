//! ONNX Runtime sessions for gen-worker, within a memory budget.
