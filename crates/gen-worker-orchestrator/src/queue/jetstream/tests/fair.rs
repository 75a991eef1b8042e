//! Who is served next, of tenants and functions that all have runs waiting, and how many of a tenant's run at once.

use futures_util::{FutureExt, future::join_all};

use super::*;
use crate::{dispatch::Load, queue::fair::Weights};

fn of(tenant: &str, function: &str) -> RunRequest {
    RunRequest { tenant_id: Some(tenant.to_owned()), ..RunRequest::of(function) }
}

fn weights<const N: usize>(weights: [(&str, u32); N]) -> Weights {
    Weights::new(weights.map(|(name, weight)| (name.to_owned(), weight)))
}

/// A worker of `f` and `g`.
fn both(slots: i32) -> Load {
    let mut worker = worker(1, slots);
    Arc::make_mut(&mut worker.resources).available_functions.push("g".to_owned());
    worker
}

async fn submit(queue: &JetStream, runs: usize, request: RunRequest) {
    let tenant = request.tenant_id.clone().unwrap_or_default();
    let ids: Vec<_> = (0..runs).map(|run| format!("{tenant}-{}-{run}", request.function)).collect();
    let taken = join_all(ids.iter().map(|run_id| queue.enqueue(run_id, request.clone()))).await;
    assert!(taken.iter().all(|taken| *taken == Ok(true)));
}

/// Leases until something is leased.
async fn leased(queue: &JetStream, worker: Load) -> Vec<v1::TaskExecutionRequest> {
    let leased = timeout(4 * PATIENCE, async {
        loop {
            let leases = queue.lease(&mut [worker.clone()]).await.unwrap();
            if !leases.is_empty() {
                return leases.into_iter().map(|lease| lease.request).collect();
            }
            queue.changed().await;
        }
    });
    leased.await.expect("something is leased")
}

/// Serves runs with one place, and says whose they were.
async fn served(queue: &JetStream, runs: usize) -> Vec<(String, String)> {
    let mut served = Vec::new();
    while served.len() < runs {
        for run in leased(queue, both(1)).await {
            queue.settle(result(&run, false), "w1", true).await.unwrap();
            served.push((run.tenant_id, run.function_name));
        }
    }
    served
}

#[tokio::test]
async fn tenants_of_a_fleet_are_served_by_weight() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let limits = TenantLimits { tenant_weights: weights([("big", 3)]), ..Default::default() };
    let queue = engine(&servers, limits).await;
    submit(&queue, 60, of("small", "f")).await;
    submit(&queue, 60, of("big", "f")).await;
    let served = served(&queue, 40).await;
    let big = served.iter().filter(|(tenant, _)| tenant == "big").count();
    assert!((29..=31).contains(&big), "{big} of 40");
}

#[tokio::test]
async fn a_tenants_functions_are_served_by_weight() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let limits = TenantLimits { function_weights: weights([("g", 3)]), ..Default::default() };
    let queue = engine(&servers, limits).await;
    submit(&queue, 60, of("t", "f")).await;
    submit(&queue, 60, of("t", "g")).await;
    let served = served(&queue, 40).await;
    let of_g = served.iter().filter(|(_, function)| function == "g").count();
    assert!((29..=31).contains(&of_g), "{of_g} of 40");
}

#[tokio::test]
async fn nobody_in_a_fleet_waits_behind_another_tenants_backlog() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    submit(&queue, 500, of("many", "f")).await;
    served(&queue, 20).await;
    submit(&queue, 1, of("one", "f")).await;
    let next = served(&queue, 2).await;
    assert!(next.iter().any(|(tenant, _)| tenant == "one"), "{next:?}");
}

#[tokio::test]
async fn a_tenant_of_a_fleet_has_no_more_running_than_it_may() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let limits = TenantLimits { max_running: Some(2), ..Default::default() };
    let here = engine(&servers, limits.clone()).await;
    let there = engine(&servers, limits).await;
    let _extending = running(&[&here]);
    submit(&here, 9, of("t", "f")).await;
    let first = leased(&here, both(9)).await;
    assert_eq!(first.len(), 2);
    // It holds up no other.
    submit(&there, 1, of("u", "f")).await;
    let others = leased(&there, both(9)).await;
    assert_eq!(others.iter().map(|run| &*run.tenant_id).collect::<Vec<_>>(), ["u"]);
    there.settle(result(&others[0], false), "w1", true).await.unwrap();
    // However often others ask.
    for _ in 0..20 {
        there.consumers.freed(&Lane::of(&of("t", "f")));
        assert!(there.lease(&mut [both(9)]).await.unwrap().is_empty());
    }
    // One has ended, and the next may start at once.
    here.settle(result(&first[0], false), "w1", true).await.unwrap();
    let next = here.lease(&mut [both(9)]).await.unwrap();
    assert_eq!(next.len(), 1);
    // A lost one is among those that run, and is tried again all the same.
    here.lose(vec![(first[1].run_id.clone(), 1)]).await;
    let again = leased(&there, both(9)).await;
    let again: Vec<_> = again.iter().map(|run| (&*run.run_id, run.attempt)).collect();
    assert_eq!(again, [(&*first[1].run_id, 2)]);
}

#[tokio::test]
async fn whoever_waits_for_the_end_of_a_run_hears_that_another_may_start() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let limits = TenantLimits { max_running: Some(1), ..Default::default() };
    let here = engine(&servers, limits.clone()).await;
    let there = engine(&servers, limits).await;
    submit(&here, 3, of("t", "f")).await;
    let first = leased(&here, both(9)).await;
    assert!(there.lease(&mut [both(9)]).await.unwrap().is_empty());
    let mut heard = everything_said(&there).await;
    while here.changed.notified().now_or_never().is_some() {}
    here.settle(result(&first[0], false), "w1", true).await.unwrap();
    assert!(here.changed.notified().now_or_never().is_some());
    while !there.said.is_over(&first[0].run_id) {
        there.hear(timeout(PATIENCE, heard.next()).await.unwrap().unwrap());
    }
    assert_eq!(there.lease(&mut [both(9)]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_run_does_not_wait_behind_lanes_that_are_only_asked_in_case() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let _extending = running(&[&queue]);
    for tenant in ["a", "b", "c", "d", "e"] {
        submit(&queue, 1, of(tenant, "f")).await;
        leased(&queue, both(1)).await;
    }
    // Each of them is asked now and then, since its run may come back, and so often comes before one that was served.
    let until = Instant::now() + 2 * lanes::LONGEST_REST;
    for run in 0.. {
        queue.enqueue(&format!("z-{run}"), of("z", "f")).await.unwrap();
        let mut leases = Vec::new();
        while leases.is_empty() {
            leases = queue.lease(&mut [both(1)]).await.unwrap();
            assert!(!leases.is_empty() || queue.consumers.have_been_asked(), "run {run}");
        }
        queue.settle(result(&leases[0].request, false), "w1", true).await.unwrap();
        if Instant::now() > until {
            break;
        }
    }
}

#[tokio::test]
async fn a_lane_that_rests_is_asked_when_a_run_was_taken_elsewhere() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    let mut heard = everything_said(&there).await;
    assert!(there.lease(&mut [both(9)]).await.unwrap().is_empty());
    here.enqueue("r", of("t", "f")).await.unwrap();
    there.hear(timeout(PATIENCE, heard.next()).await.unwrap().unwrap());
    assert_eq!(there.lease(&mut [both(9)]).await.unwrap()[0].request.run_id, "r");
}

#[tokio::test]
async fn a_lane_that_cannot_be_fetched_costs_no_other_its_runs() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    submit(&queue, 1, of("t", "g")).await;
    served(&queue, 1).await;
    queue.stream.delete_consumer(&Lane::of(&of("t", "g")).consumer()).await.unwrap();
    queue.enqueue("r", of("t", "f")).await.unwrap();
    queue.enqueue("s", of("t", "g")).await.unwrap();
    let leases = queue.lease(&mut [both(9)]).await.unwrap();
    assert_eq!(leases.iter().map(|lease| &*lease.request.run_id).collect::<Vec<_>>(), ["r"]);
    // What failed is mended by the next.
    assert_eq!(leased(&queue, both(9)).await[0].run_id, "s");
}
