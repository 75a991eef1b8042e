//! A worker that exercises the runtime from outside; its function names and shapes are a contract (README.md).

mod files;
mod models;
mod realtime;
mod runs;

gen_worker::main!();
