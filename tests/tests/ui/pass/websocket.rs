//! Handlers of realtime sessions.
#![deny(warnings)]

use gen_worker::{
    ActionContext, Frame, ModelArtifacts, RealtimeSocket, State, WorkerError, function, worker_websocket,
};

struct Palette;

#[worker_websocket(name = "talk", max_concurrency = 2, requires_gpu = true)]
async fn full(
    ctx: ActionContext,
    socket: RealtimeSocket,
    #[model(deployment = "vae")] _vae: ModelArtifacts,
    _palette: State<Palette>,
) -> Result<(), WorkerError> {
    while let Some(frame) = socket.recv().await {
        ctx.check_canceled()?;
        match frame {
            Frame::Binary(data) => socket.send_bytes(data).await,
            Frame::Text(text) => socket.send_json(&text).await?,
        }
    }
    socket.close().await;
    Ok(())
}

#[worker_websocket]
async fn fails_its_own_way(_ctx: ActionContext, socket: RealtimeSocket) -> std::io::Result<()> {
    socket.send_text("bye").await;
    Ok(())
}

fn main() {
    let spec = function!(full).spec().clone();
    assert!(spec.is_realtime() && spec.name.as_str() == "talk");
    assert_eq!(spec.injections.len(), 1);
    assert!(function!(fails_its_own_way).spec().is_realtime());
}
