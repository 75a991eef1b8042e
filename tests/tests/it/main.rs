//! The whole worker, from outside.
