//! Functions about running: time, cancellation, failure, progress, streams.

use std::time::{Duration, Instant};

use futures_util::{Stream, stream};
use gen_worker::{ActionContext, LogLevel, WorkerError, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize, JsonSchema)]
struct Text {
    text: String,
}

#[worker_function]
async fn echo(_ctx: ActionContext, input: Text) -> Result<Text, WorkerError> {
    Ok(input)
}

#[derive(Deserialize, JsonSchema)]
struct Sleep {
    ms: u64,
    #[serde(default = "yes")]
    heed_cancel: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize, JsonSchema)]
struct Slept {
    slept_ms: u64,
}

#[worker_function]
async fn sleep(ctx: ActionContext, input: Sleep) -> Result<Slept, WorkerError> {
    let nap = tokio::time::sleep(Duration::from_millis(input.ms));
    if input.heed_cancel {
        tokio::select! {
            () = nap => {}
            reason = ctx.canceled() => return Err(WorkerError::canceled(reason.as_str())),
        }
    } else {
        nap.await;
    }
    Ok(Slept { slept_ms: input.ms })
}

#[derive(Deserialize, JsonSchema)]
struct Spin {
    ms: u64,
}

#[derive(Serialize, JsonSchema)]
struct Spun {
    spun_ms: u64,
}

#[worker_function]
fn spin(ctx: ActionContext, input: Spin) -> Result<Spun, WorkerError> {
    ctx.progress(0.0, "spinning");
    let (since, wanted) = (Instant::now(), Duration::from_millis(input.ms));
    while since.elapsed() < wanted {
        std::hint::spin_loop();
    }
    Ok(Spun { spun_ms: since.elapsed().as_millis() as u64 })
}

#[derive(Deserialize, JsonSchema)]
struct Fail {
    kind: String,
    message: String,
}

#[worker_function]
async fn fail(_ctx: ActionContext, input: Fail) -> Result<(), WorkerError> {
    Err(match input.kind.as_str() {
        "validation" => WorkerError::validation(input.message),
        "retryable" => WorkerError::retryable(input.message),
        "resource" => WorkerError::resource(input.message),
        "canceled" => WorkerError::canceled(input.message),
        "auth" => WorkerError::auth(input.message),
        "fatal" => WorkerError::fatal(input.message),
        "internal" => WorkerError::internal(input.message),
        "panic" => panic!("{}", input.message),
        other => WorkerError::validation(format!("there is no kind `{other}`")),
    })
}

#[derive(Deserialize, JsonSchema)]
struct Steps {
    steps: u32,
    #[serde(default)]
    delay_ms: u64,
}

#[derive(Serialize, JsonSchema)]
struct Stepped {
    steps: u32,
}

#[worker_function]
async fn progress(ctx: ActionContext, input: Steps) -> Result<Stepped, WorkerError> {
    for step in 1..=input.steps {
        ctx.check_canceled()?;
        tokio::time::sleep(Duration::from_millis(input.delay_ms)).await;
        ctx.progress(f64::from(step) / f64::from(input.steps), format!("step {step}").as_str());
        ctx.log(&format!("step {step} of {}", input.steps), LogLevel::Info);
    }
    Ok(Stepped { steps: input.steps })
}

#[derive(Deserialize, JsonSchema)]
struct Count {
    n: u32,
    #[serde(default)]
    delay_ms: u64,
    fail_at: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
struct Counted {
    i: u32,
}

#[worker_function]
fn count(_ctx: ActionContext, input: Count) -> impl Stream<Item = Result<Counted, WorkerError>> {
    stream::unfold(0, move |i| {
        let (n, delay_ms, fail_at) = (input.n, input.delay_ms, input.fail_at);
        async move {
            if i == n {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            let failed = fail_at == Some(i);
            let item = if failed {
                Err(WorkerError::retryable(format!("failing at {i}")))
            } else {
                Ok(Counted { i })
            };
            Some((item, i + 1))
        }
    })
}

#[derive(Deserialize, JsonSchema)]
struct Limited {
    ms: u64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Nothing {}

#[worker_function(max_concurrency = 1)]
async fn limited(_ctx: ActionContext, input: Limited) -> Result<Nothing, WorkerError> {
    tokio::time::sleep(Duration::from_millis(input.ms)).await;
    Ok(Nothing {})
}

#[derive(Serialize, JsonSchema)]
struct Identity {
    run_id: String,
    tenant_id: Option<String>,
    user_id: Option<String>,
    deadline_ms: Option<u64>,
    attempt: i64,
}

#[worker_function]
async fn whoami(ctx: ActionContext, _input: Nothing) -> Result<Identity, WorkerError> {
    Ok(Identity {
        run_id: ctx.run_id().to_owned(),
        tenant_id: ctx.tenant_id().map(str::to_owned),
        user_id: ctx.user_id().map(str::to_owned),
        deadline_ms: ctx.deadline().map(|deadline| deadline.unix_ms()),
        attempt: ctx.attempt(),
    })
}
