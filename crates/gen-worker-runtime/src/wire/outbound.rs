//! Outcomes, events and registrations → messages.

use bytes::Bytes;
use gen_worker_core::{Event, FailureKind, Frame, FunctionSpec, JobFailure, OutputMode, RunId};

use super::{
    Message,
    v1::{self, worker_scheduler_message::Msg},
};

/// The result of a run.
pub(crate) fn result(run_id: &RunId, attempt: i64, outcome: &Result<Bytes, JobFailure>) -> Message {
    message(Msg::RunResult(fields(run_id, attempt, outcome)))
}

/// The same result with the `error_message` of the first schedulers.
pub(crate) fn legacy_result(run_id: &RunId, attempt: i64, outcome: &Result<Bytes, JobFailure>) -> Message {
    let mut result = fields(run_id, attempt, outcome);
    if let Err(failure) = outcome {
        result.error_message = legacy_error(failure);
    }
    message(Msg::RunResult(result))
}

fn fields(run_id: &RunId, attempt: i64, outcome: &Result<Bytes, JobFailure>) -> v1::TaskExecutionResult {
    let mut result =
        v1::TaskExecutionResult { run_id: run_id.as_str().to_owned(), attempt, ..Default::default() };
    match outcome {
        Ok(output) => {
            result.success = true;
            result.output_payload = output.clone();
        }
        Err(failure) => {
            result.error_type = failure.kind.as_str().to_owned();
            result.retryable = failure.kind.is_retryable();
            result.safe_message = failure.safe_message.clone();
            result.error_message = failure.error_message();
        }
    }
    result
}

/// A JSON object, separated as Python does (contract §3.5).
fn legacy_error(failure: &JobFailure) -> String {
    let text = match failure.kind {
        FailureKind::Canceled => "Task was canceled during execution".to_owned(),
        _ => failure.error_message(),
    };
    let text = serde_json::Value::from(text);
    format!(r#"{{"message": {text}, "retryable": {}}}"#, failure.kind.is_retryable())
}

/// An event about a run or the worker.
pub(crate) fn event(event: Event) -> Message {
    message(Msg::WorkerEvent(v1::WorkerEvent {
        run_id: event.run_id.map(|run_id| run_id.as_str().to_owned()).unwrap_or_default(),
        event_type: event.event_type.into_owned(),
        payload_json: event.payload_json,
    }))
}

/// A run was admitted.
pub(crate) fn accepted(run_id: &RunId, attempt: i64) -> Message {
    message(Msg::RunAccepted(v1::RunAccepted { run_id: run_id.as_str().to_owned(), attempt }))
}

/// Answer to a load command; an empty problem is success.
pub(crate) fn loaded(model_id: String, problem: Option<String>) -> Message {
    let (success, error_message) = (problem.is_none(), problem.unwrap_or_default());
    message(Msg::LoadModelResult(v1::LoadModelResult { model_id, success, error_message }))
}

/// Answer to an unload command; an empty problem is success.
pub(crate) fn unloaded(model_id: String, problem: Option<String>) -> Message {
    let (success, error_message) = (problem.is_none(), problem.unwrap_or_default());
    message(Msg::UnloadModelResult(v1::UnloadModelResult { model_id, success, error_message }))
}

/// The end of a realtime session.
pub(crate) fn realtime_closed(session_id: String, reason: &str) -> Message {
    message(Msg::RealtimeCloseCmd(v1::RealtimeCloseCommand { session_id, reason: reason.to_owned() }))
}

/// One frame of a realtime session.
pub(crate) fn realtime_frame(session_id: &RunId, frame: Frame) -> Message {
    let (data, is_text) = match frame {
        Frame::Binary(data) => (data, false),
        Frame::Text(text) => (text.into(), true),
    };
    message(Msg::RealtimeFrame(v1::RealtimeFrame {
        session_id: session_id.as_str().to_owned(),
        data,
        is_text,
    }))
}

/// Who the worker is, at the start of a stream or as heartbeat.
pub(crate) fn registration(
    resources: v1::WorkerResources,
    active: Vec<(RunId, i64)>,
    is_heartbeat: bool,
) -> Message {
    let active_runs = active
        .into_iter()
        .map(|(run_id, attempt)| v1::ActiveRun { run_id: run_id.as_str().to_owned(), attempt })
        .collect();
    message(Msg::WorkerRegistration(v1::WorkerRegistration {
        resources: Some(resources),
        is_heartbeat,
        active_runs,
    }))
}

/// A function as the registration carries it.
pub(crate) fn schema(spec: &FunctionSpec) -> v1::FunctionSchema {
    let output: Bytes = spec.output_schema.to_string().into();
    let incremental_output = spec.output_mode == OutputMode::Incremental;
    v1::FunctionSchema {
        name: spec.name.as_str().to_owned(),
        input_schema_json: spec.input_schema.to_string().into(),
        output_schema_json: output.clone(),
        injection_json: spec.injection_json().to_string().into(),
        incremental_output,
        delta_schema_json: if incremental_output { output } else { Bytes::new() },
    }
}

fn message(msg: Msg) -> Message {
    v1::WorkerSchedulerMessage { msg: Some(msg) }.into()
}
