use gen_worker::{ActionContext, ModelArtifacts, RealtimeSocket, WorkerError, worker_websocket};

#[worker_websocket]
fn blocking(_ctx: ActionContext, _socket: RealtimeSocket) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_websocket]
async fn talkative(_ctx: ActionContext, _socket: RealtimeSocket) -> Result<String, WorkerError> {
    Ok(String::new())
}

#[worker_websocket]
async fn deaf(_ctx: ActionContext, _input: serde_json::Value) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_websocket]
async fn chooses(
    _ctx: ActionContext,
    _socket: RealtimeSocket,
    #[model(payload = "model_ref")] _unet: ModelArtifacts,
) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
