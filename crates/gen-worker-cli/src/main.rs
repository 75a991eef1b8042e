//! The gen-worker command.
fn main() {}
