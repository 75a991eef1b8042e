//! What is done before the first run and after the last.

use gen_worker::{State, WorkerError, worker_setup, worker_teardown};

struct Labels;
struct Database;

#[worker_setup]
fn labels() -> Result<Labels, std::io::Error> {
    Ok(Labels)
}

#[worker_setup]
async fn database() -> Result<Database, WorkerError> {
    Ok(Database)
}

#[worker_setup]
async fn nothing_to_take() -> Result<(), WorkerError> {
    Ok(())
}

#[worker_teardown]
async fn both(_labels: State<Labels>, State(_database): State<Database>) -> Result<(), std::io::Error> {
    Ok(())
}

#[worker_teardown]
fn none() -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
