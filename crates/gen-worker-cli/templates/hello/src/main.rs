//! One function, typed in and out.

use gen_worker::{ActionContext, WorkerError, worker_function};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Greeting {
    name: String,
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Reply {
    text: String,
}

#[worker_function]
async fn hello(ctx: ActionContext, input: Greeting) -> Result<Reply, WorkerError> {
    ctx.progress(0.5, "thinking of something to say");
    Ok(Reply { text: format!("Hello, {}!", input.name) })
}

gen_worker::main!();
