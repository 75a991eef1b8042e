//! Which worker a run goes to: a pure function of what it needs and who is free.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use gen_worker_proto::scheduler as v1;

/// Most runs given at once to a worker that names no limit of its own.
const UNLIMITED: usize = 64;

/// A worker that takes runs, and how many it has.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) session: u64,
    pub(crate) resources: Arc<v1::WorkerResources>,
    /// By function.
    pub(crate) running: HashMap<String, usize>,
}

impl Load {
    fn total(&self) -> usize {
        self.running.values().sum()
    }

    /// Whether the worker takes another run of any function.
    pub(crate) fn has_room(&self) -> bool {
        self.total() < self.slots()
    }

    /// How many runs the worker takes at once.
    pub(crate) fn slots(&self) -> usize {
        limit(self.resources.max_concurrency).unwrap_or(UNLIMITED)
    }

    /// How many runs of a function the worker takes at once, if it has no others.
    pub(crate) fn slots_for(&self, function: &str) -> usize {
        let max = self.resources.function_concurrency.get(function).and_then(|&max| limit(max));
        max.map_or(self.slots(), |max| max.min(self.slots()))
    }

    /// How many more runs of a function the worker takes.
    pub(crate) fn room_for(&self, function: &str) -> usize {
        if !self.resources.available_functions.iter().any(|f| f == function) {
            return 0;
        }
        let running = self.running.get(function).copied().unwrap_or(0);
        let of_function = self.slots_for(function).saturating_sub(running);
        of_function.min(self.slots().saturating_sub(self.total()))
    }

    /// Counts one more run.
    pub(crate) fn charge(&mut self, function: &str) {
        *self.running.entry(function.to_owned()).or_default() += 1;
    }

    /// Counts one run less.
    #[cfg(feature = "nats")]
    pub(crate) fn discharge(&mut self, function: &str) {
        self.running.entry(function.to_owned()).and_modify(|count| *count -= 1);
    }

    fn holds(models: &[String], wanted: &[String]) -> usize {
        wanted.iter().filter(|model| models.contains(model)).count()
    }
}

/// A number on the wire as a limit: 0 and less mean none.
fn limit(number: i32) -> Option<usize> {
    usize::try_from(number).ok().filter(|&max| max > 0)
}

/// Of the workers that take a run of this function, the one that has most of its models in memory, then on disk, then the fewest runs.
pub(crate) fn best<'a>(function: &str, models: &[String], workers: &'a mut [Load]) -> Option<&'a mut Load> {
    workers.iter_mut().filter(|worker| worker.room_for(function) > 0).min_by_key(|worker| {
        let in_memory = Load::holds(&worker.resources.vram_models, models);
        let on_disk = Load::holds(&worker.resources.disk_models, models);
        (Reverse(in_memory), Reverse(on_disk), worker.total())
    })
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
        let mut loads: Vec<_> = (1..)
            .zip(workers)
            .map(|(session, resources)| Load {
                session,
                resources: Arc::new(resources.clone()),
                running: HashMap::new(),
            })
            .collect();
        let mut given = Vec::new();
        for function in functions {
            if let Some(worker) = best(function, &["m".to_owned()], &mut loads) {
                worker.charge(function);
                given.push(((*function).to_owned(), worker.session));
            }
        }
        given
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
