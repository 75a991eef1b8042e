use gen_worker::{ActionContext, WorkerError, worker_function};

#[derive(serde::Deserialize)]
struct Prompt {}

#[worker_function]
fn generate(_ctx: ActionContext, _input: Prompt) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
