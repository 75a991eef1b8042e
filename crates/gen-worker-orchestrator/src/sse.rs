//! What a run says, as server-sent events: from the beginning or after the last one seen, until the run ends.
//!
//! Each event has the id that `Last-Event-ID` takes, the same at every orchestrator of a fleet. The last one is `result`, with
//! the run as `GET /v1/runs/{id}` shows it. Where events are no longer kept, or were not heard, an `events.dropped` without id
//! says how many are missing before the next ones; those of which nobody knows how many they were count as one.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use serde_json::json;
use tokio::sync::watch;

use crate::{events::RunEvent, http::App, http_error::HttpError, runs::Known};

/// Longest silence: shorter than the patience of clients and proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(crate) async fn follow(
    State(app): State<Arc<App>>,
    Known(run_id): Known,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpError> {
    let last_seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let changed = app.broker().watch(&run_id).await?.ok_or_else(|| HttpError::not_found("run"))?;
    let follower = Follower {
        app,
        run_id,
        last_seen: last_seen.unwrap_or(0),
        changed,
        ready: VecDeque::new(),
        ended: false,
    };
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Follower {
    app: Arc<App>,
    run_id: String,
    last_seen: u64,
    changed: watch::Receiver<()>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.read().await?;
            if self.ready.is_empty() {
                tokio::select! {
                    changed = self.changed.changed() => if changed.is_err() {
                        // What it said was forgotten, not always the run.
                        self.changed = self.app.broker().watch(&self.run_id).await.ok()??;
                    },
                    () = self.app.stop.cancelled() => return None,
                }
            }
        }
    }

    /// Takes what is new; `None`: the run was forgotten.
    async fn read(&mut self) -> Option<()> {
        // What cannot be read now is read at the next signal: such a queue gives one now and then.
        let Ok(known) = self.app.broker().events(&self.run_id, self.last_seen).await else { return Some(()) };
        let (batch, end) = known?;
        if batch.dropped > 0 {
            let gap = json!({"count": batch.dropped}).to_string();
            self.ready.push_back(Event::default().event("events.dropped").data(gap));
        }
        self.last_seen = batch.events.last().map_or(self.last_seen, |event| event.id);
        self.ready.extend(batch.events.into_iter().map(encode));
        if let Some((id, view)) = end {
            let result = serde_json::to_string(&view).expect("a run has a JSON form");
            self.ready.push_back(Event::default().id(id.to_string()).event("result").data(result));
            self.ended = true;
        }
        Some(())
    }
}

/// Payloads are JSON, so a line break in one is mere space.
fn encode(event: RunEvent) -> Event {
    let payload = String::from_utf8_lossy(&event.payload).replace(['\r', '\n'], " ");
    Event::default().id(event.id.to_string()).event(event.event_type).data(payload)
}
