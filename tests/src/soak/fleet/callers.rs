//! The callers of a fleet: each asks for one run after another at whichever orchestrator answers, and counts what comes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use gen_worker_core::OutputBody;
use gen_worker_net::{HeaderName, HeaderValue, HttpResponse, Method, NetError, Trust, header::CONTENT_TYPE};
use gen_worker_orchestrator::{RunState, RunSubmission, RunView};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::world::World;
use crate::calls::Task;

/// How many ask at once.
const CALLERS: usize = 48;

/// Longest wait for a run to be accepted, and for it to end: elections, lost workers and all.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest wait for one answer: whoever is cut off says nothing.
const ANSWER: Duration = Duration::from_secs(20);

/// How long an orchestrator may wait for a run's end before it answers that there is none.
const WAIT_MS: u64 = 5_000;

/// How long nobody is asked again that did not do what it was asked.
const PAUSE: Duration = Duration::from_millis(50);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The call of this number: most do nothing, some take their time, some are to fail.
fn task(seed: u64, number: u64) -> Task {
    let rng = &mut Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match rng.u32(0..20) {
        0 | 1 => Task::Sleep { ms: rng.u64(1..300) },
        2 => Task::Spin { ms: rng.u64(1..20) },
        3 => Task::WhoAmI,
        4 => Task::Fail { kind: "validation" },
        _ => Task::Echo { text: number.to_string() },
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) settled: u64,
    attempts: BTreeMap<i64, u64>,
    /// Requests that were refused with 429 or 503, and those that got no answer.
    refused: u64,
    unanswered: u64,
    waits: Vec<Duration>,
    /// Answers of the end that did not know it.
    lagging: u64,
    /// How each run ended when it was first seen to have.
    ends: BTreeMap<String, RunView>,
    pub(crate) wrong: Vec<String>,
}

/// Asks for all runs, and tells `ended` how many have ended so far, well or not.
pub(crate) async fn ask(world: &Arc<World>, seed: u64, runs: u64, ended: watch::Sender<u64>) -> Counts {
    let (next, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(ended));
    let counts = Arc::<Mutex<Counts>>::default();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (world, counts, next, ended) = (world.clone(), counts.clone(), next.clone(), ended.clone());
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= runs {
                    return;
                }
                let caller = Caller { world: &world, counts: &counts, seed, number };
                if let Err(wrong) = caller.call().await {
                    counts.lock().await.wrong.push(format!("run {number} {wrong}"));
                }
                ended.send_modify(|ended| *ended += 1);
            }
        });
    }
    callers.join_all().await;
    Arc::into_inner(counts).expect("nobody asks any more").into_inner()
}

/// Reads all runs once more, and counts what is not as it was: a run that ended otherwise was settled twice. One that is
/// not known to have ended is read from a server that lags, and read again.
pub(crate) async fn compare(world: &Arc<World>, counts: &mut Counts) -> u64 {
    let (changed, lagging) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicU64>::default());
    let mut ends = JoinSet::new();
    for (number, end) in (0..).zip(std::mem::take(&mut counts.ends).into_values()) {
        while ends.len() >= CALLERS {
            ends.join_next().await;
        }
        let (world, changed, lagging) = (world.clone(), changed.clone(), lagging.clone());
        ends.spawn(async move {
            let reading = async {
                for turn in number.. {
                    let path = format!("v1/runs/{}", end.run_id);
                    if let Asked::Answered(answer) = ask_at(&world, turn, Method::GET, &path, None).await
                        && let Ok(view) = answer.json::<RunView>(1 << 20).await
                    {
                        if view.state.is_terminal() {
                            return view;
                        }
                        lagging.fetch_add(1, Relaxed);
                    }
                    sleep(PAUSE).await;
                }
                unreachable!("there is always another turn")
            };
            match timeout(PATIENCE, reading).await {
                Ok(view) if view == end => {}
                found => {
                    let line = format!("{} ended as {end:?} and later was {found:?}", end.run_id);
                    changed.lock().await.push(line);
                }
            }
        });
    }
    ends.join_all().await;
    counts.lagging = lagging.load(Relaxed);
    let changed = std::mem::take(&mut *changed.lock().await);
    let count = changed.len() as u64;
    counts.wrong.extend(changed);
    count
}

/// What came of one request.
enum Asked {
    Answered(HttpResponse),
    /// 429 or 503.
    Refused,
    Unanswered,
}

/// Asks the orchestrator whose turn it is. With a body it is a submission, under this key.
async fn ask_at(
    world: &World,
    turn: u64,
    method: Method,
    path: &str,
    body: Option<(&str, Vec<u8>)>,
) -> Asked {
    let base = &world.bases[turn as usize % world.bases.len()];
    let url = base.join(path).expect("it is a path");
    let mut request = world.http.request(method, url, Trust::Operator);
    if let Some((key, body)) = body {
        request = request
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(IDEMPOTENCY_KEY, HeaderValue::from_str(key).expect("it is plain"))
            .body(OutputBody::Bytes(body.into()));
    }
    match timeout(ANSWER, request.send()).await {
        Ok(Ok(answer)) if matches!(answer.status().as_u16(), 429 | 503) => Asked::Refused,
        Ok(Ok(answer)) => Asked::Answered(answer),
        Ok(Err(_)) | Err(_) => Asked::Unanswered,
    }
}

struct Caller<'a> {
    world: &'a World,
    counts: &'a Mutex<Counts>,
    seed: u64,
    number: u64,
}

impl Caller<'_> {
    async fn call(&self) -> Result<(), String> {
        let (task, since) = (task(self.seed, self.number), Instant::now());
        let submitted = timeout(PATIENCE, self.submit(&task)).await;
        let run_id = submitted.map_err(|_| format!("was not accepted within {PATIENCE:?}"))??;
        self.counts.lock().await.accepted += 1;
        let ended = timeout(PATIENCE, self.end_of(&run_id)).await;
        let view = ended.map_err(|_| format!("({run_id}) has not ended within {PATIENCE:?}"))??;
        let judged = judge(&task, &view);
        let mut counts = self.counts.lock().await;
        counts.settled += 1;
        *counts.attempts.entry(view.attempt).or_default() += 1;
        counts.waits.push(since.elapsed());
        counts.ends.insert(view.run_id.clone(), view);
        judged
    }

    /// Asks until somebody takes the run.
    async fn submit(&self, task: &Task) -> Result<String, String> {
        #[derive(Deserialize)]
        struct Submitted {
            run_id: String,
        }
        let submission = RunSubmission {
            function: task.function().to_owned(),
            payload: task.payload(),
            ..RunSubmission::default()
        };
        let body = serde_json::to_vec(&submission).expect("a submission has a JSON form");
        let key = format!("{}-{}", self.seed, self.number);
        for turn in self.number.. {
            let asked = ask_at(self.world, turn, Method::POST, "v1/runs", Some((&key, body.clone()))).await;
            if let Some(Submitted { run_id }) = self.read(asked, 1 << 16).await? {
                return Ok(run_id);
            }
        }
        unreachable!("there is always another turn")
    }

    /// Asks until somebody says how the run ended.
    async fn end_of(&self, run_id: &str) -> Result<RunView, String> {
        let path = format!("v1/runs/{run_id}/result?wait_ms={WAIT_MS}");
        for turn in self.number + 1.. {
            let asked = ask_at(self.world, turn, Method::GET, &path, None).await;
            if let Some(view) = self.read::<RunView>(asked, 1 << 20).await?
                && view.state.is_terminal()
            {
                return Ok(view);
            }
        }
        unreachable!("there is always another turn")
    }

    /// `None`: it must be asked again.
    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        asked: Asked,
        max: u64,
    ) -> Result<Option<T>, String> {
        match asked {
            Asked::Answered(answer) => match answer.into_success() {
                Ok(answer) => match timeout(ANSWER, answer.json(max)).await {
                    Ok(Ok(read)) => return Ok(Some(read)),
                    Ok(Err(NetError::Json { .. })) => return Err("got an answer that is none".to_owned()),
                    Ok(Err(_)) | Err(_) => self.counts.lock().await.unanswered += 1,
                },
                Err(error) => return Err(format!("was refused: {error}")),
            },
            Asked::Refused => self.counts.lock().await.refused += 1,
            Asked::Unanswered => self.counts.lock().await.unanswered += 1,
        }
        sleep(PAUSE).await;
        Ok(None)
    }
}

/// # Errors
/// What is not as it must be.
fn judge(task: &Task, view: &RunView) -> Result<(), String> {
    let output = view.output.clone().unwrap_or_default();
    let right = match task {
        Task::Echo { text } => output == json!({"text": text}),
        Task::Sleep { ms } => output == json!({"slept_ms": ms}),
        Task::Spin { ms } => output["spun_ms"].as_u64() >= Some(*ms),
        // The attempt that counts is the one whose result was taken.
        Task::WhoAmI => output["attempt"] == view.attempt && output["run_id"] == view.run_id.as_str(),
        _ => view.error.as_ref().map(|error| error.kind.as_str()) == task.fails_as(),
    };
    let succeeded = view.state == RunState::Succeeded;
    match right && succeeded == task.fails_as().is_none() && view.attempt >= 1 {
        true => Ok(()),
        false => Err(format!("({}) ended wrongly: {view:?}", task.function())),
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts: i64 = self.attempts.iter().map(|(attempt, runs)| attempt * *runs as i64).sum();
        let most = self.attempts.last_key_value().map_or(0, |(attempt, _)| *attempt);
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let wait = |share: usize| waits.get(waits.len() * share / 1000).copied().unwrap_or_default();
        writeln!(to, "runs accepted       {}", self.accepted)?;
        writeln!(
            to,
            "runs settled        {}, after {attempts} attempts, at most {most} of one",
            self.settled
        )?;
        writeln!(to, "requests refused    {}, and tried again elsewhere", self.refused)?;
        writeln!(to, "requests unanswered {}, and tried again elsewhere", self.unanswered)?;
        writeln!(to, "answers that lagged {}, of those that were asked for at the end", self.lagging)?;
        writeln!(
            to,
            "submit to result    p50 {:.0?}, p99 {:.0?}, at most {:.1?}",
            wait(500),
            wait(990),
            waits.last().copied().unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(state: &str, attempt: i64, output: serde_json::Value) -> RunView {
        serde_json::from_value(json!({
            "run_id": "r", "function": "f", "state": state, "attempt": attempt, "created_at_ms": 1,
            "output": output,
        }))
        .unwrap()
    }

    #[test]
    fn a_result_of_another_attempt_is_wrong() {
        let output = json!({"attempt": 1, "run_id": "r"});
        assert!(judge(&Task::WhoAmI, &view("succeeded", 1, output.clone())).is_ok());
        assert!(judge(&Task::WhoAmI, &view("succeeded", 2, output)).is_err());
    }

    #[test]
    fn what_must_fail_may_not_succeed() {
        let task = Task::Fail { kind: "validation" };
        assert!(judge(&task, &view("succeeded", 1, json!(null))).is_err());
        assert!(
            judge(&Task::Echo { text: "x".to_owned() }, &view("failed", 1, json!({"text": "x"}))).is_err()
        );
    }
}
