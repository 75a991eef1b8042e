//! Which waiting run goes to which worker: a pure function of what waits and what is free.

use std::{cmp::Reverse, collections::HashMap};

use gen_worker_proto::scheduler as v1;

/// Most runs given at once to a worker that names no limit of its own.
const UNLIMITED: usize = 64;

/// A run that may start now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) function: &'a str,
    pub(crate) models: &'a [String],
}

/// A worker that takes runs, and how many it has.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) session: u64,
    pub(crate) resources: &'a v1::WorkerResources,
    pub(crate) running: HashMap<&'a str, usize>,
}

impl Load<'_> {
    fn total(&self) -> usize {
        self.running.values().sum()
    }

    fn has_room(&self) -> bool {
        self.total() < limit(self.resources.max_concurrency).unwrap_or(UNLIMITED)
    }

    fn takes(&self, function: &str) -> bool {
        let running = self.running.get(function).copied().unwrap_or(0);
        let max = self.resources.function_concurrency.get(function);
        self.has_room()
            && self.resources.available_functions.iter().any(|f| f == function)
            && max.and_then(|&max| limit(max)).is_none_or(|max| running < max)
    }

    fn holds(models: &[String], wanted: &[String]) -> usize {
        wanted.iter().filter(|model| models.contains(model)).count()
    }
}

/// A number on the wire as a limit: 0 and less mean none.
fn limit(number: i32) -> Option<usize> {
    usize::try_from(number).ok().filter(|&max| max > 0)
}

/// Gives each waiting run, first come first served, to the worker that has most of its models in memory, then on disk,
/// then the fewest runs. A run that nobody can take holds up no other.
pub(crate) fn plan<'a>(
    waiting: impl IntoIterator<Item = Waiting<'a>>,
    workers: &mut [Load<'a>],
) -> Vec<(String, u64)> {
    let mut assigned = Vec::new();
    let mut waiting = waiting.into_iter();
    while workers.iter().any(Load::has_room)
        && let Some(run) = waiting.next()
    {
        let best = workers.iter_mut().filter(|worker| worker.takes(run.function)).min_by_key(|worker| {
            let in_memory = Load::holds(&worker.resources.vram_models, run.models);
            let on_disk = Load::holds(&worker.resources.disk_models, run.models);
            (Reverse(in_memory), Reverse(on_disk), worker.total())
        });
        if let Some(worker) = best {
            *worker.running.entry(run.function).or_default() += 1;
            assigned.push((run.run_id.to_owned(), worker.session));
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(max: i32, per_function: &[(&str, i32)], vram: &[&str]) -> v1::WorkerResources {
        v1::WorkerResources {
            available_functions: vec!["f".to_owned(), "g".to_owned()],
            max_concurrency: max,
            function_concurrency: per_function.iter().map(|&(name, max)| (name.to_owned(), max)).collect(),
            vram_models: vram.iter().map(|&m| m.to_owned()).collect(),
            ..Default::default()
        }
    }

    /// The sessions that runs of these functions, each wanting the model `m`, are given to.
    fn check(functions: &[&str], workers: &[v1::WorkerResources]) -> Vec<(String, u64)> {
        let models = ["m".to_owned()];
        let mut loads: Vec<_> = (1..)
            .zip(workers)
            .map(|(session, resources)| Load { session, resources, running: HashMap::new() })
            .collect();
        let waiting =
            functions.iter().map(|function| Waiting { run_id: function, function, models: &models });
        plan(waiting, &mut loads)
    }

    fn sessions(plan: &[(String, u64)]) -> Vec<u64> {
        plan.iter().map(|(_, session)| *session).collect()
    }

    #[test]
    fn never_more_than_a_worker_takes() {
        let plan = check(&["f"; 5], &[resources(1, &[], &[]), resources(3, &[("f", 2)], &[])]);
        assert_eq!(sessions(&plan), [1, 2, 2]);
    }

    #[test]
    fn a_full_function_holds_up_no_other() {
        let plan = check(&["f", "f", "g"], &[resources(0, &[("f", 1)], &[])]);
        assert_eq!(plan, [("f".to_owned(), 1), ("g".to_owned(), 1)]);
    }

    #[test]
    fn zero_means_no_limit_but_ours() {
        let plan = check(&["f"; 100], &[resources(0, &[("f", 0)], &[])]);
        assert_eq!(plan.len(), UNLIMITED);
    }

    #[test]
    fn the_model_in_memory_wins_over_the_idle_worker() {
        let plan = check(&["f", "f"], &[resources(0, &[], &[]), resources(0, &[], &["m"])]);
        assert_eq!(sessions(&plan), [2, 2]);
    }

    #[test]
    fn what_is_not_ready_waits() {
        assert!(check(&["h"], &[resources(0, &[], &[])]).is_empty());
    }
}
