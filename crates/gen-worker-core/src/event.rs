//! What a run, or the worker, may say while it works.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::id::RunId;

/// Whether an event may be lost when the scheduler is slow or away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventClass {
    /// May be dropped; drops are counted. Progress and logs.
    Droppable,
    /// The end of what such events told of: dropped only when none of them is left to drop.
    Closing,
    /// Part of the run's output: whoever emits it waits for room.
    Durable,
}

/// Severity of a log line, in the words of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LogLevel {
    /// For developers.
    Debug,
    /// For users.
    #[default]
    Info,
    /// Unusual, still working.
    Warning,
    /// Something failed.
    Error,
}

impl LogLevel {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Where a model's download stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DownloadState {
    /// Bytes are arriving.
    Downloading,
    /// Complete and verified.
    Completed,
    /// Given up.
    Failed,
    /// Nothing had to be fetched.
    AlreadyPresent,
}

impl DownloadState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Downloading => "downloading",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::AlreadyPresent => "already_present",
        }
    }
}

/// Where a model is on its way into memory and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelState {
    /// It is being loaded.
    Loading,
    /// It is in memory and can be run.
    Resident,
    /// It is being taken out of memory.
    Evicting,
    /// It is out of memory, and what makes it come back cheaply is still there.
    Warm,
    /// Nothing of it is in memory.
    OnDisk,
    /// It could not be loaded.
    Failed,
}

impl ModelState {
    /// The word in events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Resident => "resident",
            Self::Evicting => "evicting",
            Self::Warm => "warm",
            Self::OnDisk => "on_disk",
            Self::Failed => "failed",
        }
    }
}

/// How far a model's download is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Download {
    /// Bytes present.
    pub done: u64,
    /// Bytes expected; `None`: the source does not say.
    pub total: Option<u64>,
    /// Bytes a second of late; `None`: not measured.
    pub rate: Option<u64>,
    /// Seconds until the rest is there at this rate; `None`: not known.
    pub eta_seconds: Option<u64>,
    /// The kind of place it comes from; empty: from none, it was here.
    pub source: &'static str,
}

/// One `worker_event`: a type and a JSON object, about a run or about the worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The run it is about; `None` when it is about the worker.
    pub run_id: Option<RunId>,
    /// The type, such as `job.progress`.
    pub event_type: Cow<'static, str>,
    /// The JSON object, serialised.
    pub payload_json: Bytes,
    /// Whether it may be lost.
    pub class: EventClass,
}

impl Event {
    /// An event of any type. A `timestamp` (Unix seconds) is added to the payload unless it has one.
    pub fn custom(event_type: impl Into<Cow<'static, str>>, mut payload: Map<String, Value>) -> Self {
        payload.entry("timestamp").or_insert_with(|| unix_seconds().into());
        Self {
            run_id: None,
            event_type: event_type.into(),
            payload_json: serde_json::to_vec(&payload).expect("a JSON object serialises").into(),
            class: EventClass::Droppable,
        }
    }

    /// `job.progress`: the share done, from 0 to 1, and what is being done.
    pub fn progress(fraction: f64, stage: Option<&str>) -> Self {
        let mut payload = Map::from_iter([("progress".to_owned(), fraction.into())]);
        if let Some(stage) = stage {
            payload.insert("stage".to_owned(), stage.into());
        }
        Self::custom("job.progress", payload)
    }

    /// `job.log`: a line for the caller.
    pub fn log(message: &str, level: LogLevel) -> Self {
        Self::custom(
            "job.log",
            Map::from_iter([
                ("message".to_owned(), message.into()),
                ("level".to_owned(), level.as_str().into()),
            ]),
        )
    }

    /// `model.download`: how far a model's download is. What was not measured is left out.
    pub fn model_download(model_id: &str, state: DownloadState, download: Download) -> Self {
        let mut payload = Map::from_iter([
            ("model_id".to_owned(), model_id.into()),
            ("state".to_owned(), state.as_str().into()),
            ("bytes_done".to_owned(), download.done.into()),
            ("bytes_total".to_owned(), download.total.into()),
        ]);
        let measured = [("bytes_per_second", download.rate), ("eta_seconds", download.eta_seconds)];
        for (name, value) in measured.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            payload.insert(name.to_owned(), value.into());
        }
        if !download.source.is_empty() {
            payload.insert("source".to_owned(), download.source.into());
        }
        let class = match state {
            DownloadState::Downloading => EventClass::Droppable,
            DownloadState::Completed | DownloadState::Failed | DownloadState::AlreadyPresent => {
                EventClass::Closing
            }
        };
        Self { class, ..Self::custom("model.download", payload) }
    }

    /// `model.state`: where a model is on its way into memory or out of it, the bytes that it takes there (0: none, or not
    /// known yet), and how long it took to get there.
    pub fn model_state(model_id: &str, state: ModelState, bytes: u64, took: Duration) -> Self {
        Self::custom(
            "model.state",
            Map::from_iter([
                ("model_id".to_owned(), model_id.into()),
                ("state".to_owned(), state.as_str().into()),
                ("bytes".to_owned(), bytes.into()),
                ("ms".to_owned(), (took.as_millis() as u64).into()),
            ]),
        )
    }

    /// `output.upload`: bytes sent and in all of one output on its way out. `name` is a saved file's reference; `None`: it
    /// is the run's whole output.
    pub fn output_upload(name: Option<&str>, done: u64, total: u64) -> Self {
        let mut payload = Map::from_iter([
            ("bytes_done".to_owned(), done.into()),
            ("bytes_total".to_owned(), total.into()),
        ]);
        if let Some(name) = name {
            payload.insert("ref".to_owned(), name.into());
        }
        Self::custom("output.upload", payload)
    }

    /// `output.delta`: one item of an incremental output, as compact JSON with sorted keys.
    pub fn delta(payload_json: Bytes) -> Self {
        Self::durable("output.delta", payload_json)
    }

    /// `output.completed`: no more deltas follow.
    pub fn output_completed() -> Self {
        Self::durable("output.completed", Bytes::from_static(b"{}"))
    }

    /// `output.error`: the incremental output ended badly.
    pub fn output_error(error_type: &str, safe_message: &str) -> Self {
        let message = Value::from(safe_message);
        let payload = format!(r#"{{"error_type":"{error_type}","message":{message}}}"#);
        Self::durable("output.error", payload.into())
    }

    /// The same event, about this run.
    pub fn about(mut self, run_id: &RunId) -> Self {
        self.run_id = Some(run_id.clone());
        self
    }

    fn durable(event_type: &'static str, payload_json: Bytes) -> Self {
        Self { run_id: None, event_type: event_type.into(), payload_json, class: EventClass::Durable }
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(event: &Event) -> Value {
        serde_json::from_slice(&event.payload_json).unwrap()
    }

    #[test]
    fn a_stage_is_sent_only_if_given() {
        assert!(json(&Event::progress(0.5, None)).get("stage").is_none());
        assert_eq!(json(&Event::progress(0.5, Some("half")))["stage"], "half");
    }

    #[test]
    fn what_was_not_measured_of_a_download_is_left_out() {
        let event = |download| json(&Event::model_download("m", DownloadState::Downloading, download));
        let bare = event(Download { done: 1, ..Download::default() });
        assert!(bare["bytes_total"].is_null() && bare["state"] == "downloading");
        assert!(["bytes_per_second", "eta_seconds", "source"].iter().all(|key| bare.get(key).is_none()));
        let download =
            Download { rate: Some(5), eta_seconds: Some(7), source: "cozy", ..Download::default() };
        let full = event(download);
        assert_eq!(
            (&full["bytes_per_second"], &full["eta_seconds"], &full["source"]),
            (&5.into(), &7.into(), &"cozy".into())
        );
    }

    #[test]
    fn a_timestamp_is_added_unless_there_is_one() {
        let own = Map::from_iter([("timestamp".to_owned(), 1.into())]);
        assert_eq!(json(&Event::custom("x", own))["timestamp"], 1);
        assert!(json(&Event::custom("x", Map::new()))["timestamp"].is_f64());
    }

    #[test]
    fn an_output_error_escapes_its_message() {
        let event = Event::output_error("validation", "say \"hi\"");
        assert_eq!(&event.payload_json[..], br#"{"error_type":"validation","message":"say \"hi\""}"#);
    }
}
