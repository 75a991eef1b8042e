use gen_worker::{ActionContext, WorkerError, worker_setup};

#[worker_setup]
async fn with_context(ctx: ActionContext) -> Result<String, WorkerError> {
    Ok(ctx.run_id().to_owned())
}

#[worker_setup]
fn bare() -> String {
    String::new()
}

#[worker_setup]
fn missing() {}

#[worker_setup(timeout = 30)]
fn keys() -> Result<u8, WorkerError> {
    Ok(1)
}

#[worker_setup]
fn not_shared() -> Result<std::rc::Rc<u8>, WorkerError> {
    Ok(std::rc::Rc::new(1))
}

#[worker_setup]
static NUMBER: u8 = 1;

fn main() {}
