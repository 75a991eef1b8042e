//! Fakes and conformance suites of the ports, for tests of other crates and of tenants.

mod models;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::{
    asset::{Asset, AssetRef},
    cancel::Cancellation,
    context::{ActionContext, RunFacts},
    event::Event,
    failure::JobFailure,
    id::{FunctionName, RunId},
    ports::{EventSink, FileStore, SaveRequest, Watch},
    scope::RunScope,
};

pub use self::models::{FakeLease, FakeModels, check_model_manager};
pub use crate::{
    model_ref::check as check_model_ref, payload::check as check_payload, redact::check as check_redacted,
};

/// The context of a run of nobody, whose events and files are not looked at.
///
/// # Panics
/// The text is no id.
pub fn context(run_id: &str) -> ActionContext {
    let run_id = RunId::parse(run_id).expect("it is an id");
    let scope = RunScope {
        run_id: run_id.clone(),
        tenant_id: None,
        file_base_url: None,
        file_token: None,
        trace: None,
    };
    let function = FunctionName::parse("f").expect("it is a name");
    let facts = RunFacts { run_id, function, attempt: 0, user_id: None, deadline: None, scope };
    let (events, files) = (Arc::<RecordedEvents>::default(), Arc::<RecordedFiles>::default());
    ActionContext::new(facts, Cancellation::new(), events, files)
}

/// Keeps every event.
#[derive(Debug, Default)]
pub struct RecordedEvents(Mutex<Vec<Event>>);

impl RecordedEvents {
    /// The events so far, oldest first.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The payloads of the events of one type, oldest first.
    pub fn payloads(&self, event_type: &str) -> Vec<serde_json::Value> {
        self.all()
            .iter()
            .filter(|event| event.event_type == event_type)
            .map(|event| serde_json::from_slice(&event.payload_json).unwrap_or_default())
            .collect()
    }
}

impl EventSink for RecordedEvents {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// Keeps every file that was saved.
#[derive(Debug, Default)]
pub struct RecordedFiles(Mutex<Vec<SaveRequest>>);

impl RecordedFiles {
    /// The files so far, oldest first.
    pub fn all(&self) -> Vec<SaveRequest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl FileStore for RecordedFiles {
    async fn save(&self, scope: &RunScope, request: SaveRequest, _: &Watch) -> Result<Asset, JobFailure> {
        let sent = AssetRef {
            reference: request.reference.clone(),
            tenant_id: scope.tenant_id.as_ref().map(ToString::to_string),
            mime_type: None,
            size_bytes: None,
            sha256: None,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        Ok(Asset::new(sent))
    }
}
