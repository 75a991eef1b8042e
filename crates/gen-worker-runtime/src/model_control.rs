//! The scheduler's own commands about models, carried out beside the stream.

use std::sync::Arc;

use gen_worker_core::{Classify, FailureKind, JobFailure, ModelRef};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::{
    outbox::Outbox,
    ports::Ports,
    prefetch::Prefetch,
    wire::{Message, outbound},
};

/// Loads and unloads models when the scheduler says so.
#[derive(Clone)]
pub(crate) struct ModelControl {
    pub ports: Ports,
    pub prefetch: Prefetch,
    pub outbox: Arc<Outbox>,
    pub users: Handle,
    pub tracker: TaskTracker,
}

impl ModelControl {
    pub(crate) fn load(&self, model_id: String) {
        let this = self.clone();
        self.answer_later(async move {
            let problem = this.bring_in(&model_id).await.err();
            outbound::loaded(model_id, problem.map(|p| format!("LoadModelCommand: {p}")))
        });
    }

    pub(crate) fn unload(&self, model_id: String) {
        let this = self.clone();
        self.answer_later(async move {
            let problem = this.take_out(&model_id).await.err();
            outbound::unloaded(model_id, problem)
        });
    }

    async fn bring_in(&self, model_id: &str) -> Result<(), String> {
        let (Some(source), Some(manager)) = (&self.ports.model_source, &self.ports.model_manager) else {
            return Err("No model manager configured on worker.".to_owned());
        };
        let model = ModelRef::parse(model_id).map_err(|e| e.to_string())?;
        let local = source.ensure(&model, self.outbox.clone()).await.map_err(told)?;
        self.prefetch.settle(&model);
        manager.load(&local).await.map_err(told)
    }

    async fn take_out(&self, model_id: &str) -> Result<(), String> {
        let Some(manager) = &self.ports.model_manager else {
            return Err("No model manager configured on worker.".to_owned());
        };
        let model = ModelRef::parse(model_id).map_err(|e| e.to_string())?;
        manager.unload(&model).await.map_err(told)
    }

    fn answer_later(&self, answer: impl Future<Output = Message> + Send + 'static) {
        let outbox = self.outbox.clone();
        self.tracker.spawn_on(async move { outbox.answer(answer.await) }, &self.users);
    }
}

fn told(failure: JobFailure) -> String {
    warn!(error = failure.chain(), "a model command failed");
    failure.safe_message
}

/// A model that a run may not use, or that it did not name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ModelRefusal(pub String);

impl Classify for ModelRefusal {
    fn kind(&self) -> FailureKind {
        FailureKind::Validation
    }

    fn safe_message(&self) -> String {
        self.0.clone()
    }
}
