use gen_worker::{ActionContext, WorkerError, worker_function};

#[derive(schemars::JsonSchema)]
struct Prompt {}

#[worker_function]
async fn generate(_ctx: ActionContext, _input: Prompt) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
