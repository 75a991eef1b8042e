//! Realtime sessions.

use gen_worker::{ActionContext, Frame, RealtimeSocket, WorkerError, worker_websocket};

#[worker_websocket]
async fn mirror(_ctx: ActionContext, socket: RealtimeSocket) -> Result<(), WorkerError> {
    while let Some(frame) = socket.recv().await {
        if matches!(&frame, Frame::Text(text) if text == "fail") {
            return Err(WorkerError::validation("the peer asked for it"));
        }
        socket.send(frame).await;
    }
    Ok(())
}
