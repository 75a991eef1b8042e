use gen_worker::{State, WorkerError, worker_teardown};

struct Database;

#[worker_teardown]
async fn without_state(_database: Database) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_teardown]
async fn borrowed(_database: &State<Database>) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_teardown]
fn with_a_value(_database: State<Database>) -> Result<u8, WorkerError> {
    Ok(1)
}

#[worker_teardown]
fn missing(_database: State<Database>) {}

fn main() {}
