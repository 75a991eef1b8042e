//! What is asked of the workers, and what must come back: a function of a seed and a number.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::schedule::MODELS;

/// Above this a store gets an output in parts.
const IN_PARTS_BYTES: usize = 17 << 20;

/// Where the bytes of a `raw` output go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into the result.
    Inline,
    /// To an address of the orchestrator that takes one upload.
    Presigned,
    /// To the store, signed by the worker.
    Store,
    /// To an address of the store that ran out.
    Expired,
}

/// One call of one function of the conformance worker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Task {
    Echo {
        text: String,
    },
    Sleep {
        ms: u64,
    },
    /// Asked to stop after a while; `heed`: it does.
    Canceled {
        heed: bool,
        after_ms: u64,
    },
    /// It sleeps longer than it may.
    Late,
    Spin {
        ms: u64,
    },
    Fail {
        kind: &'static str,
    },
    Progress {
        steps: u32,
    },
    Count {
        n: u32,
        fail_at: Option<u32>,
    },
    Digest {
        size: usize,
    },
    Save {
        size: usize,
        stream: bool,
    },
    Raw {
        size: usize,
        to: Target,
    },
    Limited {
        ms: u64,
    },
    WhoAmI,
    Infer {
        model: usize,
        values: Vec<f32>,
    },
}

impl Task {
    /// The call of this number. All kinds come in turn.
    pub(crate) fn draw(seed: u64, number: u64) -> Self {
        let rng = &mut Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        match number % 18 {
            0 => Self::Echo { text: "x".repeat(rng.usize(0..4096)) },
            1 => Self::Sleep { ms: rng.u64(1..400) },
            2 => Self::Canceled { heed: rng.bool(), after_ms: rng.u64(0..300) },
            3 => Self::Late,
            4 => Self::Spin { ms: rng.u64(1..60) },
            5 => Self::Fail { kind: KINDS[rng.usize(..KINDS.len())] },
            6 => Self::Progress { steps: rng.u32(1..20) },
            7 => Self::Count { n: rng.u32(0..100), fail_at: None },
            8 => Self::Count { n: 10, fail_at: Some(rng.u32(0..10)) },
            9 => Self::Digest { size: rng.usize(0..300_000) },
            10 => Self::Save { size: rng.usize(0..300_000), stream: false },
            11 => Self::Save { size: rng.usize(0..300_000), stream: true },
            12 => Self::Raw { size: rng.usize(0..50_000), to: Target::Inline },
            13 => Self::Raw { size: rng.usize(0..300_000), to: Target::Presigned },
            14 => Self::Raw { size: stored_size(rng), to: Target::Store },
            15 => match rng.u32(0..8) {
                0 => Self::Raw { size: 1000, to: Target::Expired },
                _ => Self::Limited { ms: rng.u64(0..50) },
            },
            16 => Self::WhoAmI,
            _ => {
                let length = rng.usize(1..8);
                let values = std::iter::repeat_with(|| rng.i8(..).into()).take(length).collect();
                Self::Infer { model: rng.usize(..MODELS), values }
            }
        }
    }

    pub(crate) fn function(&self) -> &'static str {
        match self {
            Self::Echo { .. } => "echo",
            Self::Sleep { .. } | Self::Canceled { .. } | Self::Late => "sleep",
            Self::Spin { .. } => "spin",
            Self::Fail { .. } => "fail",
            Self::Progress { .. } => "progress",
            Self::Count { .. } => "count",
            Self::Digest { .. } => "digest",
            Self::Save { stream: false, .. } => "save",
            Self::Save { stream: true, .. } => "save_stream",
            Self::Raw { .. } => "raw",
            Self::Limited { .. } => "limited",
            Self::WhoAmI => "whoami",
            Self::Infer { .. } => "infer",
        }
    }

    /// What it is called with, but for files and addresses, which the world has.
    pub(crate) fn payload(&self) -> Value {
        match self {
            Self::Echo { text } => json!({"text": text}),
            Self::Sleep { ms } | Self::Spin { ms } | Self::Limited { ms } => json!({"ms": ms}),
            Self::Canceled { heed, .. } => json!({"ms": 2000, "heed_cancel": heed}),
            Self::Late => json!({"ms": 600, "heed_cancel": false}),
            Self::Fail { kind } => json!({"kind": kind, "message": "as it was asked to"}),
            Self::Progress { steps } => json!({"steps": steps}),
            Self::Count { n, fail_at } => json!({"n": n, "fail_at": fail_at}),
            Self::Digest { .. } | Self::WhoAmI => json!({}),
            Self::Save { size, .. } => json!({"name": "out.bin", "size": size}),
            Self::Raw { size, .. } => json!({"size": size}),
            Self::Infer { model, values } => json!({"model_ref": model_ref(*model), "values": values}),
        }
    }

    /// The deadline of each attempt, in milliseconds; `None`: none.
    pub(crate) fn timeout_ms(&self) -> Option<u64> {
        (*self == Self::Late).then_some(100)
    }

    /// The kind of failure that it must end with; `None`: it must succeed.
    pub(crate) fn fails_as(&self) -> Option<&'static str> {
        match self {
            Self::Canceled { .. } => Some("canceled"),
            Self::Late => Some("timeout"),
            Self::Fail { kind: "panic" } => Some("internal"),
            Self::Fail { kind } => Some(kind),
            Self::Count { fail_at: Some(_), .. } => Some("retryable"),
            Self::Raw { to: Target::Expired, .. } => Some("auth"),
            _ => None,
        }
    }
}

const KINDS: [&str; 8] =
    ["validation", "retryable", "resource", "canceled", "auth", "fatal", "internal", "panic"];

/// One in thirty in parts.
fn stored_size(rng: &mut Rng) -> usize {
    if rng.u32(0..30) == 0 { IN_PARTS_BYTES } else { rng.usize(0..300_000) }
}

/// A model as payloads name it.
pub(crate) fn model_ref(model: usize) -> String {
    format!("soak/model-{model}.onnx")
}

/// What the conformance worker makes: byte `i` is `i mod 251`.
pub(crate) fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_and_a_number_are_a_call() {
        let calls = |seed| (0..200).map(|number| Task::draw(seed, number)).collect::<Vec<_>>();
        assert_eq!(calls(5), calls(5));
        assert_ne!(calls(5), calls(6));
    }

    #[test]
    fn every_function_that_an_orchestrator_can_call_is_called() {
        let called: BTreeSet<_> = (0..18).map(|number| Task::draw(0, number).function()).collect();
        let functions = [
            "count",
            "digest",
            "echo",
            "fail",
            "infer",
            "limited",
            "progress",
            "raw",
            "save",
            "save_stream",
            "sleep",
            "spin",
            "whoami",
        ];
        let (missing, uncalled) = (functions.iter().filter(|&f| !called.contains(f)).collect::<Vec<_>>(), 0);
        // One in eight of the fifteenth kind goes elsewhere.
        assert!(missing.len() == uncalled || missing == [&"limited"], "{missing:?}");
    }
}
