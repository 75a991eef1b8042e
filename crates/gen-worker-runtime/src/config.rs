//! The worker's own settings.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use gen_worker_core::{
    ByteLimit, DeploymentId, TenantId, VisibleGpus, WorkerId,
    config::{ConfigErrors, Env, Reader, Var},
};

use crate::connection::{Address, ClientTls, RedirectTarget, TlsVars};

macro_rules! vars {
    ($($name:ident = $text:literal, $unit:literal, $default:literal, $doc:literal;)*) => {
        $(const $name: Var = Var::new($text, $unit, $default, $doc);)*
        impl RuntimeConfig {
            /// The variables read.
            pub const VARS: &[Var] = &[$($name),*];
        }
    };
}

vars! {
    SCHEDULER_ADDR = "SCHEDULER_ADDR", "host:port", "localhost:8080",
        "The scheduler to dial first. A scheme decides about TLS: `grpcs://` and `https://` mean TLS, `grpc://` and `http://` plaintext.";
    SCHEDULER_ADDRS = "SCHEDULER_ADDRS", "list of host:port", "",
        "Further schedulers, tried in this order when the first cannot be reached.";
    USE_TLS = "USE_TLS", "flag", "false", "Use TLS for addresses without a scheme.";
    TLS_CA = "SCHEDULER_TLS_CA", "path", "",
        "A PEM file of certificate authorities to trust, beside the public ones, when a scheduler is dialled over TLS.";
    TLS_CERT = "SCHEDULER_TLS_CERT", "path", "",
        "A PEM file with the certificate, and its chain, that the worker shows to a scheduler that asks for one.";
    TLS_KEY = "SCHEDULER_TLS_KEY", "path", "", "A PEM file with the private key of `SCHEDULER_TLS_CERT`.";
    REDIRECT_ALLOW = "SCHEDULER_REDIRECT_ALLOW", "list of host or host:port", "",
        "Where a scheduler may redirect the worker, and with it its token, beside the listed addresses. Unset: anywhere over TLS, and in plaintext to the host that redirects and to listed hosts. No redirect leads from TLS to plaintext.";
    WORKER_ID = "WORKER_ID", "text", "",
        "The worker's name; unset, one that no other process has is made up at start.";
    DEPLOYMENT_ID = "DEPLOYMENT_ID", "text", "", "The deployment this worker serves.";
    TENANT_ID = "TENANT_ID", "text", "", "Whose runs these are when a run does not say.";
    RUNPOD_POD_ID = "RUNPOD_POD_ID", "text", "", "The pod, as the scheduler knows it.";
    RECONNECT_DELAY = "RECONNECT_DELAY", "seconds", "5", "Delay before the first reconnect; it doubles with every failure.";
    RECONNECT_MAX_DELAY = "RECONNECT_MAX_DELAY", "seconds", "60", "Longest delay between reconnects; 0 means no cap.";
    RECONNECT_JITTER = "RECONNECT_JITTER_SECONDS", "seconds", "1.0", "Up to this much is added to each delay, by chance.";
    MAX_RECONNECT_ATTEMPTS = "MAX_RECONNECT_ATTEMPTS", "count", "0",
        "Failed connection attempts in a row after which the worker gives up; 0 means never.";
    MAX_INPUT = "WORKER_MAX_INPUT_BYTES", "bytes", "0", "Largest payload of a run; 0 means unlimited.";
    MAX_OUTPUT = "WORKER_MAX_OUTPUT_BYTES", "bytes", "0", "Largest encoded output of a run; 0 means unlimited.";
    MAX_MESSAGE = "WORKER_MAX_MESSAGE_BYTES", "bytes", "67108864",
        "Largest message on the stream, either way. Raised by itself where a payload or output limit asks for more.";
    MAX_CONCURRENCY = "WORKER_MAX_CONCURRENCY", "count", "0",
        "Runs at the same time, each until its outputs are stored; 0 means unlimited.";
    GPU_CONCURRENCY = "WORKER_GPU_CONCURRENCY", "count", "1",
        "Functions that require a GPU and may run at the same time, for each device.";
    DRAIN_TIMEOUT = "WORKER_DRAIN_TIMEOUT_SECONDS", "seconds", "0",
        "How long runs may go on after SIGTERM; 0 means that they are canceled at once.";
    CANCEL_GRACE = "WORKER_CANCEL_GRACE_SECONDS", "seconds", "5",
        "How long a run may go on after it was told to stop, before the worker reports it without waiting any longer.";
    SETUP_TIMEOUT = "WORKER_SETUP_TIMEOUT_SECONDS", "seconds", "600",
        "How long all `#[worker_setup]` functions may take together before the worker ends with exit code 9; 0 means however long they take.";
    TEARDOWN_TIMEOUT = "WORKER_TEARDOWN_TIMEOUT_SECONDS", "seconds", "10",
        "How long all `#[worker_teardown]` functions may take together, after the last result was handed over; 0 means that they are not waited for.";
    MAX_ZOMBIES = "WORKER_MAX_ZOMBIES", "count", "8",
        "Blocking functions that may go on after they were told to stop and reported; with one more the worker drains and ends with exit code 7. 0 means that the first ends it.";
    LEGACY_ERRORS = "WORKER_LEGACY_ERRORS", "flag", "false",
        "Send `error_message` as the JSON object that the first schedulers read, `{\"message\": …, \"retryable\": …}`.";
    RESULT_RETENTION = "WORKER_RESULT_RETENTION_SECONDS", "seconds", "60",
        "How long a result is kept after it was written to a healthy stream of a scheduler that does not acknowledge.";
    RESULT_BUFFER = "WORKER_RESULT_BUFFER_BYTES", "bytes", "67108864",
        "Results kept in memory until they are delivered. Beyond it those that were written first are forgotten, if the scheduler does not acknowledge; no new run is taken, if it does; and nothing more is read from a scheduler that reads no more.";
    LOG_DELIVERY = "WORKER_LOG_DELIVERY_SECONDS", "seconds", "1",
        "How long the line of the log about a run that has ended waits for the delivery of its result, to say how long that took; it may be twice as long. 0 means not at all.";
    STATE_DIR = "WORKER_STATE_DIR", "path", "",
        "Where results are written before they are sent, so that they survive the process; one worker at a time. Unset, they are in memory only.";
    FAILURE_REPORTS = "WORKER_FAILURE_REPORTS", "count", "64",
        "Reports of runs that failed as `internal` or `fatal`, of some 60 KiB at most, that are kept in `reports` below `WORKER_STATE_DIR`; the oldest goes. 0 means none.";
    EVENT_BUFFER = "WORKER_EVENT_BUFFER", "count", "1024",
        "Events kept while the scheduler is slow or away; beyond it the oldest progress and logs are dropped and counted.";
    MAX_DELTA = "WORKER_MAX_OUTPUT_DELTA_BYTES", "bytes", "65536",
        "Largest item of an incremental output; a larger one is replaced by `{\"truncated\":true}`. 0 means unlimited.";
    MAX_DELTA_EVENTS = "WORKER_MAX_OUTPUT_DELTA_EVENTS", "count", "0",
        "Items of an incremental output after which the rest is left out; 0 means unlimited.";
    MAX_WS_FRAME = "WORKER_MAX_WS_FRAME_BYTES", "bytes", "0",
        "Largest frame that a realtime session takes; a larger one ends the session as `frame_too_large`. 0 means unlimited.";
    WS_BUFFER = "WORKER_WS_BUFFER_BYTES", "bytes", "16777216",
        "Frames kept for the handler of a realtime session while it is busy; more end the session as `overloaded`.";
    WS_IDLE = "WORKER_WS_IDLE_SECONDS", "seconds", "300",
        "How long a realtime session may go without a frame either way before it ends as `idle_timeout`; 0 means for ever.";
    RUN_DIR = "WORKER_RUN_DIR", "path", "/tmp/cozy", "Where the input files of runs are put; each run's are removed when it ends.";
    KEEP_RUN_DIR = "WORKER_KEEP_RUN_DIR", "flag", "false", "Whether the directory of a run stays when it ends, for whoever looks into one.";
    CUDA_VERSION = "WORKER_CUDA_VERSION", "text", "", "The CUDA version to report; unset, the driver is asked.";
    TORCH_VERSION = "WORKER_TORCH_VERSION", "text", "", "The torch version to report, for schedulers that choose by it.";
    FAKE_GPU_COUNT = "WORKER_FAKE_GPU_COUNT", "count", "", "Report this many made-up GPUs instead of the real ones.";
    FAKE_GPU_MEMORY = "WORKER_FAKE_GPU_MEMORY_BYTES", "bytes", "25769803776", "Memory of a made-up GPU.";
    FAKE_GPU_NAME = "WORKER_FAKE_GPU_NAME", "text", "FakeGPU", "Name of a made-up GPU.";
    FAKE_GPU_DRIVER = "WORKER_FAKE_GPU_DRIVER", "text", "fake", "Driver version of a made-up GPU.";
}

/// GPUs to report without having them, for tests of schedulers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeGpu {
    /// How many; 0: report that there is none.
    pub count: u32,
    /// Memory of the first, in bytes.
    pub memory_bytes: u64,
    /// Its name.
    pub name: String,
    /// Its driver's version.
    pub driver: String,
}

/// How a worker connects, what it admits, and how long it waits.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// The schedulers, in the order in which they are tried; at least one.
    pub addresses: Vec<Address>,
    /// Whom to trust beside the public authorities, and the worker's own certificate, where TLS is spoken.
    pub tls: ClientTls,
    /// Where redirects may point beside `addresses`; empty: anywhere over TLS, and to known hosts in plaintext.
    pub redirect_allow: Vec<RedirectTarget>,
    /// The worker's name.
    pub worker_id: WorkerId,
    /// The deployment it serves.
    pub deployment_id: Option<DeploymentId>,
    /// Whose runs these are when a run does not say.
    pub tenant_id: Option<TenantId>,
    /// The pod, as the scheduler knows it; empty: none.
    pub runpod_pod_id: String,
    /// Delay before the first reconnect.
    pub reconnect_delay: Duration,
    /// Longest delay; zero: no cap.
    pub reconnect_max_delay: Duration,
    /// Most that chance adds to a delay.
    pub reconnect_jitter: Duration,
    /// Failures in a row after which the worker gives up; `None`: never.
    pub max_reconnect_attempts: Option<NonZeroU32>,
    /// A stream that lived this long is connected, whether or not the scheduler has said anything: the original's says
    /// nothing until it has a run. 5 seconds; like the next three a field so that tests need not wait for it.
    pub connected_after: Duration,
    /// Uptime of a stream after which earlier failures are forgotten; one that opens and dies at once must not reset the
    /// delay. A minute.
    pub stable: Duration,
    /// Time between HTTP/2 pings, idle and busy. 20 seconds.
    pub keepalive_interval: Duration,
    /// How long the answer to a ping may take before the stream is given up. 10 seconds.
    pub keepalive_timeout: Duration,
    /// Largest payload.
    pub max_input: ByteLimit,
    /// Largest encoded output.
    pub max_output: ByteLimit,
    /// Largest message on the stream, in bytes.
    pub max_message_bytes: usize,
    /// Runs at the same time; `None`: unlimited.
    pub max_concurrency: Option<NonZeroU32>,
    /// Runs with `requires_gpu` at the same time, for each device.
    pub gpu_concurrency: NonZeroU32,
    /// Time between heartbeats. The contract's 10 seconds; a field so that tests need not wait for it.
    pub heartbeat: Duration,
    /// How long runs may go on once the worker drains.
    pub drain_timeout: Duration,
    /// How long a run may go on after it was told to stop.
    pub cancel_grace: Duration,
    /// How long all set-ups may take together; `None`: however long they take.
    pub setup_timeout: Option<Duration>,
    /// How long all tear-downs may take together.
    pub teardown_timeout: Duration,
    /// Blocking functions that may go on after they were told to stop and reported.
    pub max_zombies: u32,
    /// Whether `error_message` is the JSON object that the first schedulers read.
    pub legacy_errors: bool,
    /// How long an unacknowledged result is kept after it was written.
    pub result_retention: Duration,
    /// Bytes of results that are kept until they are delivered.
    pub result_buffer: usize,
    /// How long the line of a run waits for the delivery of its result; zero: not at all.
    pub log_delivery: Duration,
    /// Where results are kept so that they survive the process; `None`: in memory only.
    pub state_dir: Option<PathBuf>,
    /// Reports of failures that are kept below the state directory; 0: none.
    pub failure_reports: u32,
    /// Events kept while they cannot be sent.
    pub event_buffer: usize,
    /// Largest item of an incremental output.
    pub max_delta: ByteLimit,
    /// Items of an incremental output after which the rest is left out; `None`: unlimited.
    pub max_delta_events: Option<NonZeroU32>,
    /// Largest frame that a realtime session takes.
    pub max_ws_frame: ByteLimit,
    /// Bytes that a realtime session keeps while its handler is busy.
    pub ws_buffer: usize,
    /// How long a realtime session may be silent; zero: for ever.
    pub ws_idle: Duration,
    /// Where the input files of runs are put.
    pub run_dir: PathBuf,
    /// Whether the directory of a run stays when it ends.
    pub keep_run_dir: bool,
    /// The CUDA version to report; `None`: ask the driver.
    pub cuda_version: Option<String>,
    /// The torch version to report.
    pub torch_version: Option<String>,
    /// GPUs to report without having them.
    pub fake_gpu: Option<FakeGpu>,
    /// The cards that CUDA shows this process; no others are reported.
    pub visible_gpus: VisibleGpus,
}

/// Room for the envelope around a payload.
const ENVELOPE_BYTES: u64 = 1 << 20;

impl RuntimeConfig {
    /// Reads the settings and keeps every mistake.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let addresses = addresses(env, errors);
        let tls = TlsVars { authority: &TLS_CA, certificate: &TLS_CERT, key: &TLS_KEY };
        let tls = ClientTls::read(&tls, env, errors);
        let redirect_allow = redirect_allow(env, errors);
        let identity = Identity::read(env, errors);
        let mut read = Reader::new(env, errors);
        let max_input = read.byte_limit(&MAX_INPUT);
        let max_output = read.byte_limit(&MAX_OUTPUT);
        let caps = max_input.max().max(max_output.max()).unwrap_or(0) + ENVELOPE_BYTES;
        Self {
            addresses,
            tls,
            redirect_allow,
            worker_id: identity.worker_id,
            deployment_id: identity.deployment_id,
            tenant_id: identity.tenant_id,
            runpod_pod_id: read.text(&RUNPOD_POD_ID).unwrap_or_default(),
            reconnect_delay: read.seconds(&RECONNECT_DELAY),
            reconnect_max_delay: read.seconds(&RECONNECT_MAX_DELAY),
            reconnect_jitter: read.seconds(&RECONNECT_JITTER),
            max_reconnect_attempts: NonZeroU32::new(read.number(&MAX_RECONNECT_ATTEMPTS)),
            connected_after: Duration::from_secs(5),
            stable: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            max_input,
            max_output,
            max_message_bytes: read.number::<u64>(&MAX_MESSAGE).max(caps) as usize,
            max_concurrency: NonZeroU32::new(read.number(&MAX_CONCURRENCY)),
            gpu_concurrency: NonZeroU32::new(read.number(&GPU_CONCURRENCY)).unwrap_or(NonZeroU32::MIN),
            heartbeat: Duration::from_secs(10),
            drain_timeout: read.seconds(&DRAIN_TIMEOUT),
            cancel_grace: read.seconds(&CANCEL_GRACE),
            setup_timeout: Some(read.seconds(&SETUP_TIMEOUT)).filter(|limit| !limit.is_zero()),
            teardown_timeout: read.seconds(&TEARDOWN_TIMEOUT),
            max_zombies: read.number(&MAX_ZOMBIES),
            legacy_errors: read.flag(&LEGACY_ERRORS),
            result_retention: read.seconds(&RESULT_RETENTION),
            log_delivery: read.seconds(&LOG_DELIVERY),
            result_buffer: read.number(&RESULT_BUFFER),
            state_dir: read.path(&STATE_DIR),
            failure_reports: read.number(&FAILURE_REPORTS),
            event_buffer: read.number::<usize>(&EVENT_BUFFER).max(1),
            max_delta: read.byte_limit(&MAX_DELTA),
            max_delta_events: NonZeroU32::new(read.number(&MAX_DELTA_EVENTS)),
            max_ws_frame: read.byte_limit(&MAX_WS_FRAME),
            ws_buffer: read.number(&WS_BUFFER),
            ws_idle: read.seconds(&WS_IDLE),
            run_dir: read.path(&RUN_DIR).expect("it has a default"),
            keep_run_dir: read.flag(&KEEP_RUN_DIR),
            cuda_version: read.text(&CUDA_VERSION).or_else(|| cuda_version_of_image(env)),
            torch_version: read.text(&TORCH_VERSION),
            fake_gpu: fake_gpu(&mut read),
            visible_gpus: VisibleGpus::from_env(env),
        }
    }
}

struct Identity {
    worker_id: WorkerId,
    deployment_id: Option<DeploymentId>,
    tenant_id: Option<TenantId>,
}

impl Identity {
    fn read(env: &Env, errors: &mut ConfigErrors) -> Self {
        let made_up = || format!("worker-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let worker_id = env.get(WORKER_ID.name).map_or_else(made_up, str::to_owned);
        let parsed = WorkerId::parse(&worker_id);
        let worker_id = parsed.or_else(|e| {
            errors.push(format!("{}: {e}", WORKER_ID.name));
            WorkerId::parse(&made_up())
        });
        Self {
            worker_id: worker_id.expect("a made-up id is one"),
            deployment_id: identifier(env, errors, &DEPLOYMENT_ID, DeploymentId::parse),
            tenant_id: identifier(env, errors, &TENANT_ID, TenantId::parse),
        }
    }
}

fn identifier<T, E: std::fmt::Display>(
    env: &Env,
    errors: &mut ConfigErrors,
    var: &Var,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let parsed = parse(env.get(var.name)?);
    parsed.map_err(|e| errors.push(format!("{}: {e}", var.name))).ok()
}

fn addresses(env: &Env, errors: &mut ConfigErrors) -> Vec<Address> {
    let mut read = Reader::new(env, errors);
    let tls = read.flag(&USE_TLS);
    let mut texts: Vec<String> = read.text(&SCHEDULER_ADDR).into_iter().collect();
    texts.extend(read.list(&SCHEDULER_ADDRS));
    let mut addresses = Vec::new();
    for text in texts {
        match Address::parse(&text, tls) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(e) => errors.push(format!("scheduler address `{text}`: {e}")),
        }
    }
    addresses
}

fn redirect_allow(env: &Env, errors: &mut ConfigErrors) -> Vec<RedirectTarget> {
    let mut targets = Vec::new();
    for text in Reader::new(env, errors).list(&REDIRECT_ALLOW) {
        match RedirectTarget::parse(&text) {
            Ok(target) => targets.push(target),
            Err(_) => {
                errors.push(format!("{} holds `{text}`: expected host or host:port", REDIRECT_ALLOW.name))
            }
        }
    }
    targets
}

/// The variables that CUDA base images set.
fn cuda_version_of_image(env: &Env) -> Option<String> {
    ["CUDA_VERSION", "NVIDIA_CUDA_VERSION"].iter().find_map(|name| env.get(name)).map(str::to_owned)
}

fn fake_gpu(read: &mut Reader<'_>) -> Option<FakeGpu> {
    Some(FakeGpu {
        count: read.optional_number(&FAKE_GPU_COUNT)?,
        memory_bytes: read.number(&FAKE_GPU_MEMORY),
        name: read.text(&FAKE_GPU_NAME).unwrap_or_default(),
        driver: read.text(&FAKE_GPU_DRIVER).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Result<RuntimeConfig, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let config = RuntimeConfig::from_env(&Env::from_iter(pairs.iter().copied()), &mut errors);
        errors.into_result(config)
    }

    #[test]
    fn seeds_follow_the_primary_without_blanks_or_duplicates() {
        let config = config(&[("SCHEDULER_ADDR", "a:1"), ("SCHEDULER_ADDRS", "b:2, a:1,,c:3")]).unwrap();
        let shown: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "b:2", "c:3"]);
    }

    #[test]
    fn two_workers_do_not_share_a_made_up_name() {
        assert_ne!(config(&[]).unwrap().worker_id, config(&[]).unwrap().worker_id);
    }

    #[test]
    fn the_message_limit_is_above_the_payload_limit() {
        let config = config(&[("WORKER_MAX_INPUT_BYTES", "100000000")]).unwrap();
        assert!(config.max_message_bytes > 100_000_000);
    }

    #[test]
    fn every_mistake_is_listed() {
        let pairs =
            [("SCHEDULER_ADDR", "nowhere"), ("RECONNECT_DELAY", "soon"), ("DEPLOYMENT_ID", "a\u{7}b")];
        let errors = config(&pairs).unwrap_err().to_string();
        assert_eq!(errors.lines().count(), 3, "{errors}");
    }
}
