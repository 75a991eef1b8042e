//! The handler of a realtime session as a job: the pipeline of a run without its payload and its output.

use std::sync::Arc;

use bytes::Bytes;
use gen_worker_core::{Function, JobFailure, ModelBinding, ModelNeed, RealtimeSocket};
use tokio::sync::oneshot;
use tracing::Instrument;

use super::{Audience, Job, Jobs, decode::Decoded};
use crate::{
    admission::Refusal,
    command::Opening,
    realtime::{Session, SessionLimits, Sessions},
};

/// Room for a message's other fields beside a frame's data.
const FRAME_ENVELOPE_BYTES: usize = 1 << 10;

impl Jobs {
    /// Starts a session, if it is admitted: its handler on the user runtime, and what carries its frames on this one.
    pub(crate) fn converse(
        &self,
        sessions: &Sessions,
        handler: Function,
        opening: Opening,
    ) -> Result<Arc<Session>, Refusal> {
        let Opening { run: request, models } = opening;
        let (say, outcome) = oneshot::channel();
        let (run, permit) = self.admit(&handler, request, 0, Audience::of_session(say))?;
        let (socket, peer) = RealtimeSocket::pair();
        let config = &self.0.config;
        let limits = SessionLimits {
            max_frame: config.max_ws_frame,
            max_sent: config.max_message_bytes.saturating_sub(FRAME_ENVELOPE_BYTES),
            buffer: config.ws_buffer,
            idle: config.ws_idle,
        };
        let (id, outbox) = (run.facts.run_id.clone(), self.0.outbox.clone());
        let session = Arc::new(Session::new(id, limits, (permit.id(), run.clone()), outbox));
        let span = run.span();
        run.start(permit, |run, permit| run_handler(Job::new(run, handler, permit), models, socket));
        let (serving, sessions) = (session.clone(), sessions.clone());
        let serve = async move {
            serving.serve(peer, outcome).await;
            sessions.forget(&serving);
        };
        self.0.tracker.spawn(serve.instrument(span));
        Ok(session)
    }
}

/// `models` are the references by the position of the handler's models; those that are not there are the deployment's.
async fn run_handler(job: Job, models: Vec<String>, socket: RealtimeSocket) -> Result<Bytes, JobFailure> {
    let table = &job.shop().models;
    let wanted = job.function.spec().injections.iter().filter(|injection| injection.need != ModelNeed::None);
    let models = wanted
        .enumerate()
        .map(|(at, injection)| {
            let (key, binding) = match models.get(at).filter(|key| !key.is_empty()) {
                Some(key) => (key.as_str(), ModelBinding::Payload("required_models")),
                None => (injection.binding.key(), injection.binding),
            };
            Ok((*injection, table.named(key, binding, injection.param)?))
        })
        .collect::<Result<_, JobFailure>>()?;
    let decoded = Decoded { job, input: Box::new(socket), assets: Vec::new(), models, target: None };
    let returned = decoded.fetch_inputs().await?.lease_models().await?.invoke().await?;
    returned.job.store_attached().await?;
    Ok(Bytes::new())
}
