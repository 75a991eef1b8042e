//! Runs sent to a peer, and how long their results took.

use std::time::{Duration, Instant};

use gen_worker_proto::scheduler::{ResultAck, TaskExecutionRequest, worker_scheduler_message::Msg};
use serde::Serialize;

use crate::link::Link;

/// How many runs, and how they overlap.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) in_flight: usize,
    pub(crate) until: Until,
    /// Acknowledge each result, as a scheduler that knows the extension does.
    pub(crate) acknowledge: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Until {
    Elapsed(Duration),
    Runs(usize),
}

/// What a load came to.
pub(crate) struct Measured {
    pub(crate) elapsed: Duration,
    /// From the request to the result, sorted.
    latencies: Vec<Duration>,
}

impl Measured {
    pub(crate) fn runs(&self) -> usize {
        self.latencies.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that this share of the runs did not exceed, in microseconds.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let at = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}

/// Keeps `in_flight` runs going, one for each result that comes back. Events of the peer are read and ignored.
pub(crate) async fn drive(link: &mut Link, load: Load, function: &str, input: &impl Serialize) -> Measured {
    let request = request(function, input);
    let since = Instant::now();
    let wanted = |sent: usize| match load.until {
        Until::Elapsed(window) => since.elapsed() < window,
        Until::Runs(runs) => sent < runs,
    };
    let mut sent: Vec<Instant> = Vec::with_capacity(1 << 20);
    let mut latencies = Vec::with_capacity(1 << 20);
    while sent.len() < load.in_flight && wanted(sent.len()) {
        link.say(numbered(&request, sent.len())).await;
        sent.push(Instant::now());
    }
    while latencies.len() < sent.len() {
        let Some((number, run_id)) = result(link).await else { continue };
        latencies.push(sent[number].elapsed());
        if load.acknowledge {
            link.say(Msg::ResultAck(ResultAck { run_id, attempt: 0 })).await;
        }
        if wanted(sent.len()) {
            link.say(numbered(&request, sent.len())).await;
            sent.push(Instant::now());
        }
    }
    let elapsed = since.elapsed();
    latencies.sort_unstable();
    Measured { elapsed, latencies }
}

/// One run beside those that [`drive`] counts; its result is ignored there.
pub(crate) async fn start_aside(link: &Link, run_id: &str, function: &str, input: &impl Serialize) {
    let request = TaskExecutionRequest { run_id: run_id.to_owned(), ..request(function, input) };
    link.say(Msg::RunRequest(request)).await;
}

fn request(function: &str, input: &impl Serialize) -> TaskExecutionRequest {
    TaskExecutionRequest {
        function_name: function.to_owned(),
        input_payload: rmp_serde::to_vec_named(input).expect("it has a MessagePack form").into(),
        tenant_id: "tenant".to_owned(),
        user_id: "user".to_owned(),
        ..Default::default()
    }
}

/// Run ids are as long as a UUID, which is what schedulers send.
fn numbered(request: &TaskExecutionRequest, number: usize) -> Msg {
    let run_id = format!("00000000-0000-4000-8000-{number:012}");
    Msg::RunRequest(TaskExecutionRequest { run_id, ..request.clone() })
}

async fn result(link: &mut Link) -> Option<(usize, String)> {
    let Msg::RunResult(result) = link.hear().await else { return None };
    assert!(result.success, "a run failed: {}", result.error_message);
    let number = result.run_id.rsplit('-').next().and_then(|digits| digits.parse().ok())?;
    Some((number, result.run_id))
}
