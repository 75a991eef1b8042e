//! The callers of a soak: each asks for one run after another, and judges what comes of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest, OutputBody};
use gen_worker_orchestrator::{ClientError, RunState, RunSubmission, RunView};
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    audit::{Heard, Tally, Verdict},
    calls::{Target, Task, pattern},
    world::{ATTEMPTS, SMALL_DISK, World, now_ms},
};

/// How many ask at once: more than the workers take.
const CALLERS: usize = 16;

/// Longest wait for one result, with all its attempts.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long before its run an address may have been given, in milliseconds: a submission is tried again meanwhile.
const ASKED_BEFORE: u64 = 10_000;

const TENANT: &str = "acme";

/// Asks until `end`, waits for what was asked, and counts it.
pub(crate) async fn ask(world: &Arc<World>, seed: u64, end: Instant) -> Tally {
    let (tally, next) = (Arc::<Mutex<Tally>>::default(), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (world, tally, next) = (world.clone(), tally.clone(), next.clone());
        callers.spawn(async move {
            while Instant::now() < end {
                call(&world, &tally, seed, next.fetch_add(1, Relaxed)).await;
            }
        });
    }
    callers.join_all().await;
    Arc::into_inner(tally).expect("nobody asks any more").into_inner()
}

async fn call(world: &World, tally: &Mutex<Tally>, seed: u64, number: u64) {
    let task = Task::draw(seed, number);
    let run_id = format!("soak-{number}");
    let asked = match prepare(world, &task, &run_id).await {
        Ok(asked) => asked,
        Err(error) => {
            return tally.lock().await.add_wrong([format!("{run_id} could not be asked for: {error}")]);
        }
    };
    let submission = RunSubmission {
        function: task.function().to_owned(),
        payload: asked,
        run_id: Some(run_id.clone()),
        timeout_ms: task.timeout_ms(),
        tenant_id: Some(TENANT.to_owned()),
        ..RunSubmission::default()
    };
    // The same id names the same run.
    if let Err(error) = answered(|| world.client.submit(&submission)).await {
        return tally.lock().await.add_wrong([format!("{run_id} was not accepted: {error}")]);
    }
    tally.lock().await.accepted += 1;
    let mut heard = Heard::default();
    let follow = async {
        tokio::join!(world.client.follow(&run_id, |event| heard.hear(event)), cancel(world, &task, &run_id)).0
    };
    match timeout(PATIENCE, follow).await {
        Ok(Ok(view)) => {
            let verdict = judge(world, &task, &heard, &view).await;
            tally.lock().await.take(&view, &heard, verdict);
        }
        Ok(Err(error)) => tally.lock().await.add_wrong([format!("{run_id} could not be followed: {error}")]),
        Err(_) => {
            let now = world.client.get(&run_id).await;
            let line = format!("{run_id} ({}) had no result after {PATIENCE:?}: {now:?}", task.function());
            tally.lock().await.add_wrong([line]);
        }
    }
}

/// Asks until somebody answers: who is killed comes back.
async fn answered<T, F>(ask: impl Fn() -> F) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let since = Instant::now();
    loop {
        match ask().await {
            Err(ClientError::Transport { .. }) if since.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(100)).await;
            }
            answer => return answer,
        }
    }
}

async fn cancel(world: &World, task: &Task, run_id: &str) {
    if let Task::Canceled { after_ms, .. } = task {
        sleep(Duration::from_millis(*after_ms)).await;
        // One that fails leaves the run as it is, and then it ends by itself.
        let _ = world.client.cancel(run_id).await;
    }
}

/// The payload, with the file or the address that it names.
async fn prepare(world: &World, task: &Task, run_id: &str) -> Result<Value, String> {
    let mut payload = task.payload();
    match task {
        Task::Digest { size } => {
            let content: Bytes = pattern(*size).into();
            let content = || OutputBody::Bytes(content.clone());
            let file = answered(|| world.client.upload("in.bin", content(), Some(TENANT))).await;
            payload["file"] = json!(file.map_err(|error| error.to_string())?);
        }
        Task::Raw { to: Target::Presigned, .. } => {
            let name = format!("{run_id}.bin");
            payload["output_upload"] =
                answered(|| world.presigned(&name)).await.map_err(|error| error.to_string())?;
        }
        Task::Raw { to: Target::Store, .. } => payload["output_upload"] = world.at_store(run_id),
        Task::Raw { to: Target::Expired, .. } => {
            payload["output_upload"] = world.presigned_at_store(run_id, true);
        }
        _ => {}
    }
    Ok(payload)
}

async fn judge(world: &World, task: &Task, heard: &Heard, view: &RunView) -> Verdict {
    let kind = match (view.state, &view.error) {
        (RunState::Succeeded, _) => {
            return match (task, check(world, task, heard, view).await) {
                // Asked to stop too late.
                (Task::Canceled { .. }, _) => Verdict::FailedAsAsked,
                // Events are said once: what was on its way when a stream broke is gone.
                (Task::Count { n, .. }, Err(_)) if heard.skipped(*n) && world.broke_since(view).await => {
                    Verdict::Explained("events lost")
                }
                // A process that stood still wakes up with the deadline, the grace and the end of the function all behind it.
                (Task::Late, Ok(_)) => Verdict::Explained("late, but done"),
                (_, Err(what)) => Verdict::Wrong(format!("{} ({}): {what}", view.run_id, task.function())),
                (task, Ok(_)) if task.fails_as().is_some() => {
                    Verdict::Wrong(format!("{} ({}) succeeded", view.run_id, task.function()))
                }
                (_, Ok(bytes)) => Verdict::Right { bytes },
            };
        }
        (RunState::Canceled, _) => "canceled",
        (_, error) => error.as_ref().map_or("nothing", |error| error.kind.as_str()),
    };
    let small = format!("worker-{SMALL_DISK}");
    match kind {
        kind if task.fails_as() == Some(kind) => Verdict::FailedAsAsked,
        "retryable" | "timeout" if view.attempt >= ATTEMPTS => Verdict::Explained("tried too often"),
        "resource"
            if view.worker.as_ref() == Some(&small) && world.was_full_since(view.created_at_ms).await =>
        {
            Verdict::Explained("disk was full")
        }
        // Such addresses end with the process that gave them.
        "auth"
            if matches!(task, Task::Raw { to: Target::Presigned, .. })
                && world.killed_since(view.created_at_ms.saturating_sub(ASKED_BEFORE)) =>
        {
            Verdict::Explained("address had ended")
        }
        _ => Verdict::Wrong(format!("{} ({}) failed: {:?}", view.run_id, task.function(), view.error)),
    }
}

/// How many bytes are what they must be.
///
/// # Errors
/// What is not.
async fn check(world: &World, task: &Task, heard: &Heard, view: &RunView) -> Result<u64, String> {
    let output = view.output.clone().unwrap_or_default();
    let is = |expected: Value, bytes: usize| match output == expected {
        true => Ok(bytes as u64),
        false => Err(format!("{expected} was expected, and {output} came")),
    };
    match task {
        Task::Echo { text } => is(json!({"text": text}), text.len()),
        Task::Sleep { ms } => is(json!({"slept_ms": ms}), 0),
        Task::Spin { ms } => match output["spun_ms"].as_u64() >= Some(*ms) {
            true => Ok(0),
            false => Err(format!("it spun too short: {output}")),
        },
        Task::Progress { steps } => is(json!({"steps": steps}), 0),
        Task::Count { n, .. } if heard.counted_to(*n) => Ok(0),
        Task::Count { n, .. } => Err(format!("it did not count to {n}: {heard:?}")),
        Task::Limited { .. } => is(json!({}), 0),
        Task::WhoAmI => is(
            json!({
                "run_id": view.run_id, "tenant_id": TENANT, "user_id": null, "deadline_ms": null,
                "attempt": view.attempt,
            }),
            0,
        ),
        Task::Infer { values, .. } => {
            let doubled: Vec<f32> = values.iter().map(|value| value * 2.0 + 1.0).collect();
            match output["values"] == json!(doubled) {
                true => Ok(4 * doubled.len() as u64),
                false => Err(format!("{doubled:?} was expected, and {output} came")),
            }
        }
        Task::Digest { size } => {
            let sha256 = Digest::of(Algorithm::Sha256, &pattern(*size)).hex();
            is(json!({"sha256": sha256, "size_bytes": size, "mime_type": output["mime_type"]}), *size)
        }
        Task::Save { size, .. } => same(&saved(world, &output["file"]).await?, *size),
        Task::Raw { size, to: Target::Inline } => {
            let data = output["data"].as_str().ok_or_else(|| format!("no data came: {output}"))?;
            same(&BASE64_STANDARD.decode(data).map_err(|error| error.to_string())?, *size)
        }
        Task::Raw { size, to: Target::Presigned } => {
            let target = json!({"public_url": output["url"]});
            same(&world.uploaded(&target).await?, *size)
        }
        Task::Raw { size, to: Target::Store } => same(&world.stored(&view.run_id).await?, *size),
        Task::Late => is(json!({"slept_ms": 600}), 0),
        Task::Raw { to: Target::Expired, .. } | Task::Canceled { .. } | Task::Fail { .. } => Ok(0),
    }
}

/// What a run saved, as a caller reads it: its digest is checked on the way.
async fn saved(world: &World, file: &Value) -> Result<Vec<u8>, String> {
    let reference = file["ref"].as_str().ok_or_else(|| format!("no file came: {file}"))?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let target = folder.path().join(now_ms().to_string());
    let brought = answered(|| world.client.download(reference, Some(TENANT), &target)).await;
    brought.map_err(|error| error.to_string())?;
    tokio::fs::read(target).await.map_err(|error| error.to_string())
}

fn same(content: &[u8], size: usize) -> Result<u64, String> {
    match content == pattern(size) {
        true => Ok(size as u64),
        false => Err(format!("{} bytes of something else came", content.len())),
    }
}
