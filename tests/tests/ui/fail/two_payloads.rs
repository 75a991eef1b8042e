use gen_worker::{ActionContext, WorkerError, worker_function};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Prompt {}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Style {}

#[worker_function]
async fn generate(_ctx: ActionContext, _prompt: Prompt, _style: Style) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
