//! What became of checkpoints in memory, as the worker tells it.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

/// What one worker said of its models so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// How often a model came into memory.
    pub loads: u32,
    /// How often one was taken out.
    pub evictions: u32,
    /// The references of those that are in memory.
    pub resident: BTreeSet<String>,
    /// When it said the last of this, in Unix seconds.
    newest: f64,
}

/// The payload of a `model.state` event.
#[derive(Deserialize)]
struct State {
    model_id: String,
    state: String,
    timestamp: f64,
}

impl Tally {
    /// Takes in what the worker has said since; `workers` is the answer of `GET /v1/workers`, which has its last events, the
    /// newest first.
    pub fn see(&mut self, workers: &Value) {
        let workers = workers["workers"].as_array().into_iter().flatten();
        let events =
            workers.filter_map(|worker| worker["events"].as_array()).flat_map(|all| all.iter().rev());
        let states = events.filter(|event| event["event"] == "model.state");
        for state in states.filter_map(|event| State::deserialize(&event["payload"]).ok()) {
            if state.timestamp > self.newest {
                self.newest = state.timestamp;
                self.take(state);
            }
        }
    }

    fn take(&mut self, told: State) {
        match told.state.as_str() {
            "resident" => {
                self.loads += 1;
                self.resident.insert(told.model_id);
            }
            "evicting" => {
                self.evictions += 1;
                self.resident.remove(&told.model_id);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Newest first.
    fn workers(states: &[(f64, &str, &str)]) -> Value {
        let event = |(timestamp, model_id, state): &(f64, &str, &str)| json!({"event": "model.state", "payload": {"timestamp": timestamp, "model_id": model_id, "state": state}});
        json!({"workers": [{"events": states.iter().map(event).collect::<Value>()}]})
    }

    #[test]
    fn what_was_seen_is_not_counted_again() {
        let mut tally = Tally::default();
        tally.see(&workers(&[(2.5, "a", "resident"), (2.0, "a", "loading")]));
        assert_eq!((tally.loads, tally.evictions, tally.resident.contains("a")), (1, 0, true));
        let more =
            [(4.0, "b", "resident"), (3.5, "a", "on_disk"), (3.0, "a", "evicting"), (2.5, "a", "resident")];
        tally.see(&workers(&more));
        tally.see(&workers(&more));
        assert_eq!((tally.loads, tally.evictions), (2, 1));
        assert_eq!(tally.resident, ["b".to_owned()].into());
        tally.see(&json!({}));
        assert_eq!(tally.loads, 2);
    }
}
