//! Callers of orchestrators over HTTP: each asks for a run, waits for its result, and asks for the next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gen_worker_core::OutputBody;
use gen_worker_net::{
    AllowList, HeaderValue, HttpClient, HttpResponse, Method, NetConfig, Trust, header::CONTENT_TYPE,
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use url::Url;

/// No answer takes this long.
const PATIENCE: Duration = Duration::from_secs(60);
const WAIT_MS: u64 = 30_000;

/// 100 bytes in all.
const TEXT: &str = "a picture of a lighthouse on a cliff at dusk, oil on canvas, with gulls above the sea";

/// What a run is called with.
pub(crate) fn payload() -> Vec<u8> {
    json!({"text": TEXT}).to_string().into_bytes()
}

pub(crate) struct Callers {
    http: HttpClient,
    bases: Vec<Url>,
    tenants: usize,
}

/// Runs that were settled within a window, and how long each took.
pub(crate) struct Settled {
    waits: Vec<Duration>,
}

impl Settled {
    pub(crate) fn per_second(&self, window: Duration) -> f64 {
        self.waits.len() as f64 / window.as_secs_f64()
    }

    /// By how much so many of a thousand were not exceeded, in milliseconds.
    pub(crate) fn wait_ms(&self, share: usize) -> f64 {
        let wait = self.waits.get(self.waits.len() * share / 1000).copied().unwrap_or_default();
        wait.as_secs_f64() * 1e3
    }
}

impl Callers {
    /// Callers for so many tenants, by turns.
    pub(crate) fn of(bases: Vec<Url>, tenants: usize) -> Self {
        let net = NetConfig {
            connect_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            min_rate: 0,
            attempts: 1,
            url_allow: AllowList::default(),
        };
        Self { http: HttpClient::new(net).expect("HTTP can be set up"), bases, tenants }
    }

    /// How many workers are connected to the orchestrators that answer.
    pub(crate) async fn workers(&self) -> usize {
        let mut workers = 0;
        for base in &self.bases {
            let asked = self.http.request(
                Method::GET,
                base.join("v1/workers").expect("it is a path"),
                Trust::Operator,
            );
            if let Ok(answer) = asked.send().await {
                let view: Value = answer.json(1 << 20).await.unwrap_or_default();
                workers += view["workers"].as_array().map_or(0, Vec::len);
            }
        }
        workers
    }

    /// So many ask at once; what ends within the window is counted, and what is under way is waited for.
    pub(crate) async fn ask(&self, in_flight: usize, before: Duration, window: Duration) -> Settled {
        let from = Instant::now() + before;
        let until = from + window;
        let ended = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for number in 0..in_flight {
            let (http, base) = (self.http.clone(), self.bases[number % self.bases.len()].clone());
            let (ended, tenants) = (ended.clone(), self.tenants);
            callers.spawn(async move {
                let mut waits = Vec::new();
                for turn in 0.. {
                    if ended.load(Relaxed) {
                        break;
                    }
                    let since = Instant::now();
                    call(&http, &base, (number + turn * in_flight) % tenants).await;
                    if (from..until).contains(&Instant::now()) {
                        waits.push(since.elapsed());
                    }
                }
                waits
            });
        }
        sleep(before + window).await;
        ended.store(true, Relaxed);
        let mut waits = callers.join_all().await.concat();
        waits.sort_unstable();
        Settled { waits }
    }
}

/// Asks for one run and waits for its result.
async fn call(http: &HttpClient, base: &Url, tenant: usize) {
    let body =
        json!({"function": "echo", "payload": {"text": TEXT}, "tenant_id": format!("tenant-{tenant}")});
    let runs = base.join(&format!("v1/runs?wait_ms={WAIT_MS}")).expect("it is a path");
    let asked = http
        .request(Method::POST, runs, Trust::Operator)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(OutputBody::Bytes(body.to_string().into()));
    let view = read(asked.send().await.expect("the orchestrator answers")).await;
    assert_eq!(view["output"]["text"], TEXT, "{view}");
}

async fn read(answer: HttpResponse) -> Value {
    let answer = answer.into_success().expect("the orchestrator does what it is asked");
    answer.json(1 << 20).await.expect("the orchestrator speaks JSON")
}
