//! The runs in memory: what waits, what runs, what ended. Pure state: it waits for nothing, and lists what the file is to
//! be told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use gen_worker_proto::scheduler as v1;
use tokio::time::Instant;

use crate::{
    auth::Now,
    dispatch::{Load, best},
    events::EventLog,
    queue::{
        Canceled, FunctionStats, Lease, Refusal,
        fair::{FairOrder, Spot},
        limits::{MAX_OPEN, RETRY_AFTER, TenantLimits},
        record::{Record, Standing, Verdict},
    },
    run::{RunRequest, RunView},
};

/// Most bytes of payloads, outputs and events held; ended runs are forgotten before new ones are refused.
const MAX_BYTES: usize = 1 << 30;

/// What the file is to be told, in this order.
#[derive(Debug)]
pub(super) enum Change {
    /// A run was taken, with this payload.
    Taken { place: u64, record: Vec<u8>, payload: Bytes },
    /// A run moved on.
    Moved { place: u64, record: Vec<u8> },
    /// A run ended; its payload is not needed any more.
    Ended { place: u64, record: Vec<u8>, output: Bytes },
    /// A run is not remembered any more.
    Forgotten { place: u64 },
}

/// A run as the file keeps it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) place: u64,
    pub(super) record: Record,
    pub(super) payload: Bytes,
    pub(super) output: Bytes,
}

#[derive(Debug)]
struct Run {
    /// When it came, as a number that grows. A run that is tried again keeps it.
    place: u64,
    record: Record,
    payload: Bytes,
    output: Bytes,
    not_before: Option<Instant>,
    lost_at: Option<Instant>,
    log: EventLog,
}

impl Run {
    fn bytes(&self) -> usize {
        self.payload.len() + self.output.len() + self.log.bytes()
    }

    fn spot(&self) -> Spot<'_> {
        let request = &self.record.request;
        Spot { tenant: tenant(request), function: &request.function, place: self.place }
    }
}

fn tenant(request: &RunRequest) -> &str {
    request.tenant_id.as_deref().unwrap_or_default()
}

/// What one tenant has.
#[derive(Debug, Default)]
struct Holding {
    queued: usize,
    running: usize,
}

/// All runs that are known.
#[derive(Debug)]
pub(super) struct Core {
    runs: HashMap<String, Run>,
    ready: FairOrder,
    /// Runs that wait for their time, by it and their place.
    delayed: BTreeMap<(Instant, u64), String>,
    running: BTreeSet<String>,
    /// Of those that run, the ones whose worker cannot be reached.
    lost: HashSet<String>,
    ended: VecDeque<String>,
    tenants: HashMap<String, Holding>,
    limits: TenantLimits,
    history: usize,
    next_place: u64,
    /// Bytes of ended runs; those of open ones are counted when it matters.
    ended_bytes: usize,
    open_bytes: usize,
    changes: Vec<Change>,
}

impl Core {
    /// Remembers `history` ended runs, at least one.
    pub(super) fn new(history: usize, limits: TenantLimits) -> Self {
        Self {
            runs: HashMap::new(),
            ready: FairOrder::new(limits.tenant_weights.clone(), limits.function_weights.clone()),
            delayed: BTreeMap::new(),
            running: BTreeSet::new(),
            lost: HashSet::new(),
            ended: VecDeque::new(),
            tenants: HashMap::new(),
            limits,
            history: history.max(1),
            next_place: 0,
            ended_bytes: 0,
            open_bytes: 0,
            changes: Vec::new(),
        }
    }

    /// Takes over what another process left, in the order of their places. What ran waits for its worker to come back.
    pub(super) fn restore(&mut self, stored: Vec<Stored>, now: Now) {
        let mut ended = Vec::new();
        for Stored { place, record, payload, output } in stored {
            let run_id = record.run_id.clone();
            self.next_place = self.next_place.max(place + 1);
            let log = EventLog::resumed(now.unix_ms);
            let run = Run { place, record, payload, output, not_before: None, lost_at: None, log };
            let standing = run.record.standing.clone();
            match standing {
                Standing::Ended { at_ms, .. } => {
                    self.ended_bytes += run.bytes();
                    ended.push((at_ms, place, run_id.clone()));
                }
                Standing::Queued | Standing::Running => self.open_bytes += run.payload.len(),
            }
            self.runs.insert(run_id.clone(), run);
            match standing {
                Standing::Queued => self.line_up(&run_id, now.at, Duration::ZERO),
                Standing::Running => {
                    self.hold(&run_id, |of| of.running += 1);
                    self.running.insert(run_id.clone());
                    self.lose(&run_id, self.runs[&run_id].record.attempt, now.at);
                }
                Standing::Ended { .. } => {}
            }
        }
        ended.sort_unstable();
        self.ended.extend(ended.into_iter().map(|(_, _, run_id)| run_id));
        self.forget();
    }

    /// What the file is to be told since the last time.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Takes a run; true if it is new, false if it was taken before.
    pub(super) fn enqueue(&mut self, run_id: &str, request: RunRequest, now: Now) -> Result<bool, Refusal> {
        if let Some(known) = self.runs.get(run_id) {
            return known.record.is_made_of(&request).map(|()| false);
        }
        let open = self.runs.len() - self.ended.len();
        if open >= MAX_OPEN || self.open_bytes + request.payload.len() > MAX_BYTES {
            return Err(Refusal::Full { retry_after: RETRY_AFTER });
        }
        let queued = self.tenants.get(tenant(&request)).map_or(0, |of| of.queued);
        if self.limits.max_queued.is_some_and(|max| queued >= max) {
            return Err(Refusal::TenantFull { retry_after: RETRY_AFTER });
        }
        let mut record = Record::new(run_id, request, now.unix_ms);
        let payload = std::mem::take(&mut record.request.payload);
        self.open_bytes += payload.len();
        let place = self.next_place;
        self.next_place += 1;
        self.changes.push(Change::Taken { place, record: record.encode(), payload: payload.clone() });
        let mut log = EventLog::new();
        log.push("queued", "{}");
        let run = Run { place, record, payload, output: Bytes::new(), not_before: None, lost_at: None, log };
        self.runs.insert(run_id.to_owned(), run);
        self.line_up(run_id, now.at, Duration::ZERO);
        Ok(true)
    }

    /// Lets a run wait, from `after` on for a worker.
    fn line_up(&mut self, run_id: &str, now: Instant, after: Duration) {
        let run = self.runs.get_mut(run_id).expect("only known runs wait");
        if after.is_zero() {
            run.not_before = None;
            self.ready.insert(run.spot(), run_id);
        } else {
            run.not_before = Some(now + after);
            self.delayed.insert((now + after, run.place), run_id.to_owned());
        }
        self.hold(run_id, |of| of.queued += 1);
    }

    /// Takes a run out of those that wait; nothing happens if it does not.
    fn step_out(&mut self, run_id: &str) {
        let run = self.runs.get_mut(run_id).expect("only known runs wait");
        match run.not_before.take() {
            Some(at) => drop(self.delayed.remove(&(at, run.place))),
            None => self.ready.remove(run.spot()),
        }
        self.hold(run_id, |of| of.queued -= 1);
    }

    fn hold(&mut self, run_id: &str, change: impl FnOnce(&mut Holding)) {
        let tenant = tenant(&self.runs[run_id].record.request);
        let holding = match self.tenants.get_mut(tenant) {
            Some(holding) => holding,
            None => self.tenants.entry(tenant.to_owned()).or_default(),
        };
        change(holding);
        if holding.queued == 0 && holding.running == 0 {
            self.tenants.remove(tenant);
        }
    }

    /// Leases what may start, in fair order, each to the worker that suits it best. A run that nobody can take holds up
    /// no other, nor does a tenant that has all it may.
    pub(super) fn lease(&mut self, workers: &mut [Load], now: Now) -> Vec<Lease> {
        self.wake_delayed(now.at);
        let mut leases = Vec::new();
        let mut full = HashSet::new();
        while workers.iter().any(Load::has_room) {
            let may_run = |tenant: &str| {
                let running = self.tenants.get(tenant).map_or(0, |of| of.running);
                self.limits.max_running.is_none_or(|max| running < max)
            };
            let next = self.ready.next(may_run, |function| !full.contains(function));
            let Some(run_id) = next.map(str::to_owned) else { break };
            let request = &self.runs[&run_id].record.request;
            match best(&request.function, &request.models, workers) {
                Some(worker) => {
                    worker.charge(&request.function);
                    let (session, worker_id) = (worker.session, worker.resources.worker_id.clone());
                    leases.push(Lease { session, request: self.start(&run_id, &worker_id, now) });
                }
                None => drop(full.insert(request.function.clone())),
            }
        }
        leases
    }

    fn wake_delayed(&mut self, now: Instant) {
        while let Some(due) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let run_id = due.remove();
            let run = self.runs.get_mut(&run_id).expect("only known runs wait");
            run.not_before = None;
            self.ready.insert(run.spot(), &run_id);
        }
    }

    fn start(&mut self, run_id: &str, worker_id: &str, now: Now) -> v1::TaskExecutionRequest {
        self.ready.take(self.runs[run_id].spot());
        self.hold(run_id, |of| {
            of.queued -= 1;
            of.running += 1;
        });
        self.running.insert(run_id.to_owned());
        let run = self.runs.get_mut(run_id).expect("only known runs wait");
        let started = run.record.start(worker_id, now.unix_ms);
        run.log.push("started", started.to_string());
        self.changes.push(Change::Moved { place: run.place, record: run.record.encode() });
        run.record.to_request(run.payload.clone())
    }

    /// Takes a worker's word that it still has a run; `None`: the run is not its any more.
    pub(super) fn adopt(&mut self, active: &v1::ActiveRun, worker_id: &str) -> Option<String> {
        let run = self.runs.get_mut(&active.run_id)?;
        if !run.record.adopt(active.attempt, worker_id) {
            return None;
        }
        run.lost_at = None;
        self.lost.remove(&active.run_id);
        Some(run.record.request.function.clone())
    }

    /// Takes a result.
    pub(super) fn settle(
        &mut self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
        now: Now,
    ) {
        let run_id = result.run_id.clone();
        if let Some(run) = self.runs.get_mut(&run_id) {
            let verdict = run.record.settle(result, worker_id, accepted, now.unix_ms);
            self.apply(&run_id, verdict, now);
        }
    }

    /// Does what was decided about a run that runs.
    fn apply(&mut self, run_id: &str, verdict: Verdict, now: Now) {
        if verdict == Verdict::Stale {
            return;
        }
        self.running.remove(run_id);
        self.lost.remove(run_id);
        self.hold(run_id, |of| of.running -= 1);
        match verdict {
            Verdict::Stale => {}
            Verdict::Ended { output } => self.end(run_id, output),
            Verdict::Again { after, failed } => {
                let run = self.runs.get_mut(run_id).expect("only known runs are given back");
                run.lost_at = None;
                if let Some(failed) = failed {
                    run.log.push("attempt_failed", failed.to_string());
                }
                self.changes.push(Change::Moved { place: run.place, record: run.record.encode() });
                self.line_up(run_id, now.at, after);
            }
        }
    }

    fn end(&mut self, run_id: &str, output: Bytes) {
        let run = self.runs.get_mut(run_id).expect("only known runs end");
        self.open_bytes -= std::mem::take(&mut run.payload).len();
        run.output = output.clone();
        run.log.wake();
        self.ended_bytes += run.bytes();
        self.changes.push(Change::Ended { place: run.place, record: run.record.encode(), output });
        self.ended.push_back(run_id.to_owned());
        self.forget();
    }

    fn forget(&mut self) {
        while self.ended.len() > self.history || (self.ended_bytes > MAX_BYTES && self.ended.len() > 1) {
            let oldest = self.ended.pop_front().and_then(|run_id| self.runs.remove(&run_id));
            let Some(oldest) = oldest else { break };
            self.ended_bytes -= oldest.bytes();
            self.changes.push(Change::Forgotten { place: oldest.place });
        }
    }

    /// The worker that has a run at this attempt cannot be reached; the run waits for it.
    pub(super) fn lose(&mut self, run_id: &str, attempt: i64, now: Instant) {
        if let Some(run) = self.runs.get_mut(run_id)
            && run.record.standing == Standing::Running
            && run.record.attempt == attempt
        {
            run.lost_at = Some(now);
            self.lost.insert(run_id.to_owned());
        }
    }

    /// Gives up on workers that have not come back within `grace`.
    pub(super) fn expire(&mut self, grace: Duration, now: Now) {
        let due = |run_id: &&String| self.runs[*run_id].lost_at.is_some_and(|at| at + grace <= now.at);
        for run_id in self.lost.iter().filter(due).cloned().collect::<Vec<_>>() {
            let run = self.runs.get_mut(&run_id).expect("only known runs are lost");
            let verdict = run.record.lose(now.unix_ms);
            self.apply(&run_id, verdict, now);
        }
    }

    /// When something will change by itself; `None`: nothing will.
    pub(super) fn next_change(&self, grace: Duration) -> Option<Instant> {
        let due = self.delayed.keys().next().map(|(at, _)| *at);
        let given_up = self.lost.iter().filter_map(|run_id| self.runs[run_id].lost_at.map(|at| at + grace));
        given_up.chain(due).min()
    }

    /// Asks for a run's end; `None`: there is no such run.
    pub(super) fn cancel(&mut self, run_id: &str, now: Now) -> Option<Canceled> {
        let run = self.runs.get_mut(run_id)?;
        let before = run.record.standing.clone();
        let verdict = run.record.cancel(now.unix_ms);
        Some(match before {
            Standing::Ended { .. } => Canceled::Ended,
            Standing::Queued => {
                self.step_out(run_id);
                if let Verdict::Ended { output } = verdict {
                    self.end(run_id, output);
                }
                Canceled::Waiting
            }
            Standing::Running => {
                let attempt = run.record.attempt;
                self.changes.push(Change::Moved { place: run.place, record: run.record.encode() });
                Canceled::Running { attempt }
            }
        })
    }

    /// Takes what a run says, if it runs.
    pub(super) fn event(&mut self, event: v1::WorkerEvent) {
        if let Some(run) = self.runs.get_mut(&event.run_id)
            && run.record.standing == Standing::Running
        {
            run.log.forward(&event.event_type, event.payload_json);
        }
    }

    /// A run with its output; `None`: there is no such run.
    pub(super) fn get(&self, run_id: &str) -> Option<(&Record, &Bytes)> {
        self.runs.get(run_id).map(|run| (&run.record, &run.output))
    }

    /// The newest runs of a tenant, or of all if none is named, newest first, without their outputs.
    pub(super) fn list(&self, tenant_id: Option<&str>, limit: usize) -> Vec<RunView> {
        let its = |run: &&Run| tenant_id.is_none() || run.record.request.tenant_id.as_deref() == tenant_id;
        let mut runs: Vec<_> = self.runs.values().filter(its).collect();
        runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.place));
        runs.into_iter().take(limit).map(|run| run.record.summary()).collect()
    }

    /// What a run said; `None`: there is no such run.
    pub(super) fn log(&self, run_id: &str) -> Option<&EventLog> {
        self.runs.get(run_id).map(|run| &run.log)
    }

    /// What waits and what runs, by function.
    pub(super) fn stats(&self, now_ms: u64) -> BTreeMap<String, FunctionStats> {
        let mut stats: BTreeMap<String, FunctionStats> = BTreeMap::new();
        let mut waits = |function: &str, count: usize, oldest: &str| {
            let age = Duration::from_millis(now_ms.saturating_sub(self.runs[oldest].record.created_ms));
            let of = stats.entry(function.to_owned()).or_default();
            of.waiting += count;
            of.oldest = of.oldest.max(age);
        };
        self.ready.by_function().for_each(|(function, count, oldest)| waits(function, count, oldest));
        for run_id in self.delayed.values() {
            waits(&self.runs[run_id].record.request.function, 1, run_id);
        }
        for run_id in &self.running {
            let function = &self.runs[run_id].record.request.function;
            stats.entry(function.clone()).or_default().running += 1;
        }
        stats
    }
}

#[cfg(test)]
mod tests;
