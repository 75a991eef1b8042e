//! What every engine must do, whatever it keeps runs in: one suite, run against each by [`conformance`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use gen_worker_proto::scheduler as v1;
use serde_json::json;
use tokio::time::timeout;

use super::{Canceled, Lease, Queue, Refusal};
use crate::{
    dispatch::Load,
    run::{RunError, RunRequest, RunState},
};

/// How long a worker that was lost has to come back, in the engines that are tested.
pub(super) const GRACE: Duration = Duration::from_millis(300);

/// No step takes this long unless it never happens.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes the tests of one engine: `$open` opens a new queue, with what must be kept as long as it is used.
macro_rules! conformance {
    ($open:expr) => {
        $crate::queue::conformance::conformance!(
            $open;
            one_id_is_one_request
            a_run_goes_to_one_worker_and_its_result_is_kept
            no_more_is_leased_than_workers_take
            a_retryable_failure_is_leased_again_at_the_next_attempt
            a_late_result_of_an_old_attempt_is_refused
            a_refusal_is_no_failure
            a_lost_worker_comes_back_in_time
            the_runs_of_a_lost_worker_go_to_another
            a_waiting_run_is_canceled_at_once
            a_canceled_run_is_not_tried_again
            what_a_run_says_is_heard_until_its_end
            each_tenant_is_shown_its_newest_runs
            a_file_token_opens_its_own_run
            many_runs_at_once_are_each_settled_once
        );
    };
    ($open:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let (queue, _kept) = $open.await;
                $crate::queue::conformance::$case(queue.as_ref()).await;
                queue.close().await;
            }
        )*
    };
}
pub(super) use conformance;

pub(super) fn worker(session: u64, slots: i32) -> Load {
    let resources = v1::WorkerResources {
        worker_id: format!("w{session}"),
        available_functions: vec!["f".to_owned()],
        max_concurrency: slots,
        ..Default::default()
    };
    Load { session, resources: Arc::new(resources), running: HashMap::new() }
}

/// Leases until something is leased.
async fn lease(queue: &dyn Queue, workers: &mut [Load]) -> Vec<Lease> {
    let leased = timeout(PATIENCE, async {
        loop {
            let leases = queue.lease(workers).await.unwrap();
            if !leases.is_empty() {
                return leases;
            }
            queue.changed().await;
        }
    });
    leased.await.expect("something is leased")
}

/// The next run for the worker `w1`.
pub(super) async fn next(queue: &dyn Queue) -> v1::TaskExecutionRequest {
    lease(queue, &mut [worker(1, 1)]).await.remove(0).request
}

fn result(request: &v1::TaskExecutionRequest, error_type: &str) -> v1::TaskExecutionResult {
    v1::TaskExecutionResult {
        run_id: request.run_id.clone(),
        success: error_type.is_empty(),
        output_payload: Bytes::from_static(b"\x81\xa1y\x02"),
        error_type: error_type.to_owned(),
        retryable: error_type == "retryable",
        attempt: request.attempt,
        ..Default::default()
    }
}

fn request() -> RunRequest {
    let mut request = RunRequest { tenant_id: Some("t".to_owned()), ..RunRequest::of("f") };
    request.retry.first = Duration::from_millis(1);
    request
}

async fn stands(queue: &dyn Queue, run_id: &str) -> (RunState, i64) {
    let view = queue.view(run_id).await.unwrap().expect("the run is known");
    (view.state, view.attempt)
}

pub(super) async fn one_id_is_one_request(queue: &dyn Queue) {
    let other = || RunRequest { function: "g".to_owned(), ..request() };
    assert_eq!(queue.enqueue("r", request()).await, Ok(true));
    assert_eq!(queue.enqueue("r", request()).await, Ok(false));
    assert_eq!(queue.enqueue("r", other()).await, Err(Refusal::Conflict));
    let run = next(queue).await;
    queue.settle(result(&run, ""), "w1", true).await.unwrap();
    assert_eq!(queue.enqueue("r", request()).await, Ok(false));
    assert_eq!(queue.enqueue("r", other()).await, Err(Refusal::Conflict));
}

pub(super) async fn a_run_goes_to_one_worker_and_its_result_is_kept(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    assert_eq!(queue.outcome("r").await, Ok(Some(None)));
    let run = next(queue).await;
    assert_eq!((&*run.run_id, run.attempt, &*run.tenant_id), ("r", 1, "t"));
    assert_eq!(run.input_payload, request().payload);
    assert!(queue.lease(&mut [worker(2, 9)]).await.unwrap().is_empty());
    assert_eq!(stands(queue, "r").await, (RunState::Running, 1));
    queue.settle(result(&run, ""), "w1", true).await.unwrap();
    let view = queue.view("r").await.unwrap().unwrap();
    assert_eq!((view.state, view.output), (RunState::Succeeded, Some(json!({"y": 2}))));
    assert_eq!(queue.outcome("r").await, Ok(Some(Some(Ok(Bytes::from_static(b"\x81\xa1y\x02"))))));
    assert_eq!(queue.list(None, 9).await.unwrap().len(), 1);
    assert_eq!(queue.view("x").await, Ok(None));
}

pub(super) async fn no_more_is_leased_than_workers_take(queue: &dyn Queue) {
    for name in ["a", "b", "c", "d"] {
        queue.enqueue(name, request()).await.unwrap();
    }
    let mut workers = [worker(1, 1), worker(2, 2)];
    let mut sessions = Vec::new();
    while sessions.len() < 3 {
        sessions.extend(lease(queue, &mut workers).await.into_iter().map(|lease| lease.session));
    }
    sessions.sort_unstable();
    assert_eq!(sessions, [1, 2, 2]);
    assert!(queue.lease(&mut workers).await.unwrap().is_empty());
    assert_eq!(queue.stats().await.unwrap()["f"].waiting, 1);
}

pub(super) async fn a_retryable_failure_is_leased_again_at_the_next_attempt(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    for attempt in 1..=3 {
        let run = next(queue).await;
        assert_eq!(run.attempt, attempt);
        queue.settle(result(&run, "retryable"), "w1", true).await.unwrap();
    }
    assert_eq!(stands(queue, "r").await, (RunState::Failed, 3));
    assert!(queue.lease(&mut [worker(1, 1)]).await.unwrap().is_empty());
}

pub(super) async fn a_late_result_of_an_old_attempt_is_refused(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let old = next(queue).await;
    queue.settle(result(&old, "retryable"), "w1", true).await.unwrap();
    queue.settle(result(&old, ""), "w1", true).await.unwrap();
    let new = next(queue).await;
    queue.settle(result(&old, ""), "w1", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Running, 2));
    queue.settle(result(&new, "validation"), "w1", true).await.unwrap();
    queue.settle(result(&new, ""), "w1", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Failed, 2));
}

pub(super) async fn a_refusal_is_no_failure(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    for attempt in 1..=4 {
        let run = next(queue).await;
        assert_eq!(run.attempt, attempt);
        queue.settle(result(&run, "retryable"), "w1", false).await.unwrap();
    }
    let run = next(queue).await;
    queue.settle(result(&run, ""), "w1", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Succeeded, 5));
}

pub(super) async fn a_lost_worker_comes_back_in_time(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let run = next(queue).await;
    queue.lose(vec![("r".to_owned(), 1)]).await;
    let active = |attempt| v1::ActiveRun { run_id: "r".to_owned(), attempt };
    assert_eq!(queue.adopt(&active(2), "w1").await, Ok(None));
    assert_eq!(queue.adopt(&active(1), "w1").await, Ok(Some("f".to_owned())));
    queue.settle(result(&run, ""), "w1", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Succeeded, 1));
    assert_eq!(queue.adopt(&active(1), "w1").await, Ok(None));
}

pub(super) async fn the_runs_of_a_lost_worker_go_to_another(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let old = next(queue).await;
    queue.lose(vec![("r".to_owned(), 1)]).await;
    let new = lease(queue, &mut [worker(2, 1)]).await.remove(0).request;
    assert_eq!(new.attempt, 2);
    assert_eq!(queue.adopt(&v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 }, "w1").await, Ok(None));
    queue.settle(result(&old, ""), "w1", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Running, 2));
    queue.settle(result(&new, ""), "w2", true).await.unwrap();
    assert_eq!(stands(queue, "r").await, (RunState::Succeeded, 2));
}

pub(super) async fn a_waiting_run_is_canceled_at_once(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    assert_eq!(queue.cancel("r").await, Ok(Some(Canceled::Waiting)));
    assert_eq!(stands(queue, "r").await.0, RunState::Canceled);
    assert!(queue.lease(&mut [worker(1, 1)]).await.unwrap().is_empty());
    assert_eq!(queue.cancel("r").await, Ok(Some(Canceled::Ended)));
    assert_eq!(queue.cancel("x").await, Ok(None));
}

pub(super) async fn a_canceled_run_is_not_tried_again(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let run = next(queue).await;
    assert_eq!(queue.cancel("r").await, Ok(Some(Canceled::Running { attempt: 1 })));
    assert_eq!(queue.adopt(&v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 }, "w1").await, Ok(None));
    queue.settle(result(&run, "retryable"), "w1", true).await.unwrap();
    let outcome = queue.outcome("r").await.unwrap().unwrap().unwrap();
    assert!(matches!(outcome, Err(RunError { kind, .. }) if kind == "canceled"));
}

pub(super) async fn what_a_run_says_is_heard_until_its_end(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let mut heard = queue.watch("r").await.unwrap().unwrap();
    let run = next(queue).await;
    queue.event(v1::WorkerEvent {
        run_id: "r".to_owned(),
        event_type: "job.log".to_owned(),
        payload_json: Bytes::from_static(b"{}"),
    });
    queue.settle(result(&run, ""), "w1", true).await.unwrap();
    let (mut seen, mut last) = (Vec::new(), 0);
    let end = timeout(PATIENCE, async {
        loop {
            let (batch, end) = queue.events("r", last).await.unwrap().unwrap();
            last = batch.events.last().map_or(last, |event| event.id);
            seen.extend(batch.events.into_iter().map(|event| event.event_type));
            if let Some((id, view)) = end {
                assert!(id > last);
                return view;
            }
            heard.changed().await.unwrap();
        }
    });
    assert_eq!(end.await.unwrap().state, RunState::Succeeded);
    assert_eq!(seen, ["queued", "started", "job.log"]);
    assert!(queue.watch("x").await.unwrap().is_none());
}

pub(super) async fn each_tenant_is_shown_its_newest_runs(queue: &dyn Queue) {
    let of = |tenant: &str| RunRequest { tenant_id: Some(tenant.to_owned()), ..request() };
    queue.enqueue("small", of("t")).await.unwrap();
    for number in 0..9 {
        queue.enqueue(&format!("many{number}"), of("u")).await.unwrap();
    }
    let listed = async |tenant: Option<&str>, limit| {
        let runs = queue.list(tenant, limit).await.unwrap();
        runs.into_iter().map(|run| run.run_id).collect::<Vec<_>>()
    };
    assert_eq!(listed(Some("t"), 3).await, ["small"]);
    assert_eq!(listed(Some("u"), 3).await, ["many8", "many7", "many6"]);
    assert_eq!(listed(None, 2).await, ["many8", "many7"]);
    assert_eq!(listed(None, usize::MAX).await.len(), 10);
    assert!(listed(Some("x"), 3).await.is_empty());
}

pub(super) async fn a_file_token_opens_its_own_run(queue: &dyn Queue) {
    queue.enqueue("r", request()).await.unwrap();
    let token = next(queue).await.file_token;
    let scope = queue.file_scope(&token).await.unwrap().unwrap();
    assert_eq!((&*scope.run_id, scope.tenant_id.as_deref()), ("r", Some("t")));
    assert_eq!(queue.file_scope(&format!("{token}x")).await, Ok(None));
    assert_eq!(queue.file_scope("x").await, Ok(None));
}

pub(super) async fn many_runs_at_once_are_each_settled_once(queue: &dyn Queue) {
    const RUNS: usize = 300;
    let submit = async {
        let ids: Vec<_> = (0..RUNS).map(|index| format!("r{index}")).collect();
        let taken = join_all(ids.iter().map(|run_id| queue.enqueue(run_id, request()))).await;
        assert!(taken.iter().all(|taken| *taken == Ok(true)), "{taken:?}");
    };
    let work = async {
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < RUNS {
            let leases = lease(queue, &mut [worker(1, 16), worker(2, 16)]).await;
            join_all(leases.iter().map(async |lease| {
                let worker_id = format!("w{}", lease.session);
                queue.settle(result(&lease.request, ""), &worker_id, true).await.unwrap();
            }))
            .await;
            for Lease { request, .. } in leases {
                assert!(seen.insert(request.run_id.clone()), "leased twice: {}", request.run_id);
            }
        }
    };
    timeout(3 * PATIENCE, async { tokio::join!(submit, work) }).await.expect("all are settled");
    let ended =
        queue.list(None, RUNS).await.unwrap().into_iter().filter(|run| run.state == RunState::Succeeded);
    assert_eq!(ended.count(), RUNS);
}
