//! What becomes of a run, event by event.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::{queue::fair::Weights, run::RunState};

const GRACE: Duration = Duration::from_secs(10);

fn at(seconds: u64) -> Now {
    use std::sync::LazyLock;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Now { at: *START + Duration::from_secs(seconds), unix_ms: seconds * 1000 }
}

fn request(function: &str) -> RunRequest {
    RunRequest { tenant_id: Some("t".to_owned()), ..RunRequest::of(function) }
}

fn of_tenant(tenant: &str) -> RunRequest {
    RunRequest { tenant_id: Some(tenant.to_owned()), ..RunRequest::of("f") }
}

/// A worker `w` that takes so many runs of `f` and `g`.
fn worker(slots: i32) -> Load {
    let resources = v1::WorkerResources {
        worker_id: "w".to_owned(),
        available_functions: vec!["f".to_owned(), "g".to_owned()],
        max_concurrency: slots,
        ..Default::default()
    };
    Load { session: 1, resources: Arc::new(resources), running: HashMap::new() }
}

/// The runs that such a worker is given, with their attempts.
fn lease(core: &mut Core, slots: i32, now: Now) -> Vec<(String, i64)> {
    let leases = core.lease(&mut [worker(slots)], now).into_iter();
    leases.map(|lease| (lease.request.run_id, lease.request.attempt)).collect()
}

fn core() -> Core {
    Core::new(10, TenantLimits::default())
}

fn result(attempt: i64, error_type: &str) -> v1::TaskExecutionResult {
    v1::TaskExecutionResult {
        run_id: "r".to_owned(),
        success: error_type.is_empty(),
        output_payload: Bytes::from_static(b"\x81\xa1y\x02"),
        error_type: error_type.to_owned(),
        retryable: error_type == "retryable",
        attempt,
        ..Default::default()
    }
}

/// Runs of which `r` is with the worker.
fn running() -> Core {
    let mut core = core();
    core.enqueue("r", request("f"), at(0)).unwrap();
    assert_eq!(lease(&mut core, 1, at(0)), [("r".to_owned(), 1)]);
    core
}

fn state(core: &Core) -> (RunState, i64) {
    let view = core.get("r").unwrap().0.summary();
    (view.state, view.attempt)
}

fn event_types(core: &Core) -> Vec<String> {
    let batch = core.log("r").unwrap().after(0);
    batch.events.into_iter().map(|event| event.event_type).collect()
}

#[test]
fn a_good_result_ends_the_run() {
    let mut core = running();
    core.settle(result(1, ""), "w", false, at(1));
    let view = core.get("r").map(|(record, output)| record.view(output)).unwrap();
    assert_eq!(view.state, RunState::Succeeded);
    assert_eq!(view.output, Some(json!({"y": 2})));
    assert_eq!(view.finished_at_ms, Some(1000));
}

#[test]
fn one_id_is_one_request_for_ever() {
    let mut core = running();
    assert_eq!(core.enqueue("r", request("f"), at(1)), Ok(false));
    assert_eq!(core.enqueue("r", request("g"), at(1)), Err(Refusal::Conflict));
    core.settle(result(1, ""), "w", false, at(1));
    assert_eq!(core.enqueue("r", request("f"), at(1)), Ok(false));
}

#[test]
fn a_retryable_failure_is_tried_again_later_until_attempts_run_out() {
    let mut core = running();
    core.settle(result(1, "retryable"), "w", true, at(1));
    assert_eq!(state(&core), (RunState::Queued, 2));
    assert!(lease(&mut core, 1, at(1)).is_empty());
    assert_eq!(core.next_change(GRACE), Some(at(1).at + Duration::from_millis(500)));
    for attempt in 2..=3 {
        let later = at(attempt as u64 * 100);
        assert_eq!(lease(&mut core, 1, later), [("r".to_owned(), attempt)]);
        core.settle(result(attempt, "retryable"), "w", true, later);
    }
    assert_eq!(state(&core), (RunState::Failed, 3));
    assert_eq!(
        event_types(&core),
        ["queued", "started", "attempt_failed", "started", "attempt_failed", "started"]
    );
}

#[test]
fn a_refusal_is_no_failure() {
    let mut core = running();
    for attempt in 1..=5 {
        core.settle(result(attempt, "retryable"), "w", false, at(attempt as u64));
        assert_eq!(lease(&mut core, 1, at(attempt as u64 + 1)), [("r".to_owned(), attempt + 1)]);
    }
    core.settle(result(6, "validation"), "w", true, at(9));
    assert_eq!(state(&core), (RunState::Failed, 6));
}

#[test]
fn a_stale_attempt_changes_nothing() {
    let mut core = running();
    core.settle(result(1, "retryable"), "w", true, at(1));
    core.settle(result(1, ""), "w", true, at(1));
    assert_eq!(state(&core), (RunState::Queued, 2));
    lease(&mut core, 1, at(9));
    core.settle(result(1, ""), "w", true, at(9));
    assert_eq!(state(&core), (RunState::Running, 2));
}

#[test]
fn a_lost_worker_has_a_while_to_come_back() {
    let mut core = running();
    core.lose("r", 1, at(5).at);
    core.expire(GRACE, at(14));
    assert_eq!(state(&core), (RunState::Running, 1));
    core.expire(GRACE, at(15));
    assert_eq!(state(&core), (RunState::Queued, 2));
}

#[test]
fn a_worker_that_comes_back_keeps_its_runs() {
    let mut core = running();
    core.lose("r", 1, at(5).at);
    let active = |attempt| v1::ActiveRun { run_id: "r".to_owned(), attempt };
    assert_eq!(core.adopt(&active(2), "w"), None);
    assert_eq!(core.adopt(&active(1), "w").as_deref(), Some("f"));
    core.expire(GRACE, at(99));
    assert_eq!(state(&core), (RunState::Running, 1));
    core.settle(result(1, ""), "w", true, at(99));
    assert_eq!(state(&core), (RunState::Succeeded, 1));
}

#[test]
fn an_unfenced_result_counts_from_the_worker_that_has_the_run() {
    let mut core = running();
    core.settle(result(0, ""), "other", true, at(1));
    assert_eq!(state(&core), (RunState::Running, 1));
    core.settle(result(0, ""), "w", true, at(1));
    assert_eq!(state(&core), (RunState::Succeeded, 1));
}

#[test]
fn a_canceled_run_is_not_tried_again() {
    let mut core = running();
    assert_eq!(core.cancel("r", at(1)), Some(Canceled::Running { attempt: 1 }));
    core.settle(result(1, "retryable"), "w", true, at(2));
    assert_eq!(state(&core), (RunState::Canceled, 1));
    assert_eq!(core.cancel("r", at(3)), Some(Canceled::Ended));
    assert_eq!(core.cancel("x", at(3)), None);
}

#[test]
fn a_waiting_run_is_canceled_at_once() {
    let mut core = core();
    core.enqueue("r", request("f"), at(0)).unwrap();
    assert_eq!(core.cancel("r", at(1)), Some(Canceled::Waiting));
    assert_eq!(state(&core).0, RunState::Canceled);
    assert!(lease(&mut core, 1, at(2)).is_empty());
}

#[test]
fn a_run_that_waits_for_its_time_is_canceled_too() {
    let mut core = running();
    core.settle(result(1, "retryable"), "w", true, at(1));
    assert_eq!(core.cancel("r", at(1)), Some(Canceled::Waiting));
    assert!(lease(&mut core, 1, at(99)).is_empty());
    assert_eq!(core.next_change(GRACE), None);
}

#[test]
fn only_so_many_ended_runs_are_remembered() {
    let mut core = Core::new(2, TenantLimits::default());
    for name in ["a", "b", "c"] {
        core.enqueue(name, request("f"), at(0)).unwrap();
        core.cancel(name, at(0));
    }
    assert!(core.get("a").is_none());
    assert_eq!(core.list(None, usize::MAX).len(), 2);
    assert_eq!((core.tenants.len(), core.open_bytes), (0, 0));
}

#[test]
fn a_file_token_is_good_a_while_longer_than_the_run() {
    let mut core = core();
    core.enqueue("r", request("f"), at(0)).unwrap();
    let token = core.lease(&mut [worker(1)], at(0)).remove(0).request.file_token;
    core.settle(result(1, ""), "w", true, at(1));
    let record = core.get("r").unwrap().0;
    let scope = record.file_scope(&token, 100_000).unwrap();
    assert_eq!((scope.run_id.as_str(), scope.tenant_id.as_deref()), ("r", Some("t")));
    assert_eq!(Record::run_of_token(&token), Some("r"));
    assert_eq!(record.file_scope(&token, 400_000), None);
    assert_eq!(record.file_scope("r~x", 0), None);
}

#[test]
fn a_run_says_nothing_after_its_end() {
    let mut core = running();
    let event = v1::WorkerEvent {
        run_id: "r".to_owned(),
        event_type: "job.log".to_owned(),
        payload_json: Bytes::from_static(b"{}"),
    };
    core.event(event.clone());
    core.settle(result(1, ""), "w", true, at(1));
    core.event(event);
    assert_eq!(event_types(&core), ["queued", "started", "job.log"]);
}

#[test]
fn a_tenant_that_has_all_it_may_is_refused_and_others_are_not() {
    let limits = TenantLimits { max_queued: Some(2), ..Default::default() };
    let mut core = Core::new(10, limits);
    core.enqueue("a", of_tenant("t"), at(0)).unwrap();
    core.enqueue("b", of_tenant("t"), at(0)).unwrap();
    let full = Err(Refusal::TenantFull { retry_after: RETRY_AFTER });
    assert_eq!(core.enqueue("c", of_tenant("t"), at(0)), full);
    assert_eq!(core.enqueue("a", of_tenant("t"), at(0)), Ok(false));
    assert_eq!(core.enqueue("d", of_tenant("u"), at(0)), Ok(true));
    lease(&mut core, 1, at(0));
    assert_eq!(core.enqueue("c", of_tenant("t"), at(0)), Ok(true));
}

#[test]
fn a_tenant_runs_no_more_than_it_may_and_the_rest_goes_to_others() {
    let limits = TenantLimits { max_running: Some(1), ..Default::default() };
    let mut core = Core::new(10, limits);
    for (run_id, tenant) in [("a", "t"), ("b", "t"), ("r", "u")] {
        core.enqueue(run_id, of_tenant(tenant), at(0)).unwrap();
    }
    assert_eq!(lease(&mut core, 9, at(0)), [("a".to_owned(), 1), ("r".to_owned(), 1)]);
    core.settle(result(1, ""), "w", true, at(1));
    assert!(lease(&mut core, 9, at(1)).is_empty());
    core.settle(v1::TaskExecutionResult { run_id: "a".to_owned(), ..result(1, "") }, "w", true, at(1));
    assert_eq!(lease(&mut core, 9, at(1)), [("b".to_owned(), 1)]);
}

#[test]
fn workers_are_shared_by_weight() {
    let limits = TenantLimits { tenant_weights: Weights::new([("big".to_owned(), 3)]), ..Default::default() };
    let mut core = Core::new(10, limits);
    for index in 0..40 {
        core.enqueue(&format!("big-{index}"), of_tenant("big"), at(0)).unwrap();
        core.enqueue(&format!("small-{index}"), of_tenant("small"), at(0)).unwrap();
    }
    let leased = lease(&mut core, 40, at(0));
    assert_eq!(leased.iter().filter(|(run_id, _)| run_id.starts_with("big")).count(), 30);
}

#[test]
fn a_function_that_nobody_takes_holds_up_no_other() {
    let mut core = core();
    core.enqueue("h", request("h"), at(0)).unwrap();
    core.enqueue("r", request("f"), at(0)).unwrap();
    assert_eq!(lease(&mut core, 2, at(0)), [("r".to_owned(), 1)]);
    let stats = core.stats(5000);
    assert_eq!((stats["h"].waiting, stats["h"].oldest), (1, Duration::from_secs(5)));
    assert_eq!((stats["f"].waiting, stats["f"].running), (0, 1));
}

/// What a file that was told everything would hold.
fn replay(changes: Vec<Change>) -> Vec<Stored> {
    let mut stored: BTreeMap<u64, Stored> = BTreeMap::new();
    for change in changes {
        match change {
            Change::Taken { place, record, payload } => {
                let record = Record::decode(&record).unwrap();
                stored.insert(place, Stored { place, record, payload, output: Bytes::new() });
            }
            Change::Moved { place, record } => {
                stored.get_mut(&place).unwrap().record = Record::decode(&record).unwrap();
            }
            Change::Ended { place, record, output } => {
                let of = stored.get_mut(&place).unwrap();
                (of.record, of.payload, of.output) = (Record::decode(&record).unwrap(), Bytes::new(), output);
            }
            Change::Forgotten { place } => drop(stored.remove(&place).unwrap()),
        }
    }
    stored.into_values().collect()
}

/// Whatever happens, what the file was told is what there is; and a process that reads it goes on from there.
#[test]
fn what_the_file_was_told_is_all_there_is() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut core = Core::new(5, TenantLimits::default());
        let (mut told, mut running) = (Vec::new(), Vec::new());
        for step in 0..random.u64(1..120) {
            let (now, name) = (at(step), format!("r{}", random.u8(0..20)));
            match random.u8(0..6) {
                0 | 1 => drop(core.enqueue(&name, of_tenant(&name[1..2]), now)),
                2 => running.extend(lease(&mut core, 4, now)),
                3 => drop(core.cancel(&name, now)),
                _ if running.is_empty() => {}
                at => {
                    let (run_id, attempt) = running.swap_remove(random.usize(..running.len()));
                    let error = ["", "retryable", "validation"][random.usize(..3)];
                    if at == 4 {
                        let result = v1::TaskExecutionResult { run_id, ..result(attempt, error) };
                        core.settle(result, "w", random.bool(), now);
                    } else {
                        core.lose(&run_id, attempt, now.at);
                        core.expire(Duration::ZERO, now);
                    }
                }
            }
            told.extend(core.take_changes());
        }
        let mut again = Core::new(5, TenantLimits::default());
        again.restore(replay(told), at(0));
        assert_eq!(again.list(None, usize::MAX), core.list(None, usize::MAX), "seed {seed}");
        assert!(again.take_changes().is_empty());
        for run in core.list(None, usize::MAX) {
            assert_eq!(again.get(&run.run_id).unwrap().1, core.get(&run.run_id).unwrap().1);
        }
        let holdings = |core: &Core| {
            let each = core.tenants.iter().map(|(name, of)| (name.clone(), of.queued, of.running));
            each.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(holdings(&again), holdings(&core), "seed {seed}");
        assert_eq!((again.open_bytes, again.ended_bytes <= core.ended_bytes), (core.open_bytes, true));
        // What ran waits for its worker, and then for another.
        again.expire(Duration::ZERO, at(1));
        assert!(again.running.is_empty());
    }
}

#[test]
fn a_worker_that_outlives_the_process_keeps_its_run() {
    let mut core = running();
    let mut again = self::core();
    again.restore(replay(core.take_changes()), at(1));
    assert_eq!(again.next_change(GRACE), Some(at(11).at));
    let active = v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 };
    assert_eq!(again.adopt(&active, "w").as_deref(), Some("f"));
    again.settle(result(1, ""), "w", true, at(2));
    assert_eq!(state(&again), (RunState::Succeeded, 1));
}
