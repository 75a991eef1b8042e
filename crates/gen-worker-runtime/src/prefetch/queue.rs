//! Which models are fetched ahead, and when. Pure.

use std::collections::{HashSet, VecDeque};

use gen_worker_core::{ModelRef, redact};

use crate::command::ModelConfig;

/// What is fetched next, and what is being fetched.
#[derive(Debug)]
pub(super) struct Queue {
    at_once: usize,
    next: VecDeque<ModelRef>,
    under_way: HashSet<ModelRef>,
}

impl Queue {
    /// So many are fetched at once; 0 is taken as 1.
    pub(super) fn new(at_once: usize) -> Self {
        Self { at_once: at_once.max(1), next: VecDeque::new(), under_way: HashSet::new() }
    }

    /// What was not begun is forgotten. What is under way goes on, and is not begun again beside itself.
    pub(super) fn replace(&mut self, plan: impl IntoIterator<Item = ModelRef>) {
        self.next = plan.into_iter().filter(|model| !self.under_way.contains(model)).collect();
    }

    /// The next model to fetch; `None`: enough are under way, or none is left.
    pub(super) fn begin(&mut self) -> Option<ModelRef> {
        if self.under_way.len() >= self.at_once {
            return None;
        }
        let model = self.next.pop_front()?;
        self.under_way.insert(model.clone());
        Some(model)
    }

    /// What is being fetched.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &ModelRef> {
        self.under_way.iter()
    }

    /// Its fetch has ended, one way or the other.
    pub(super) fn end(&mut self, model: &ModelRef) {
        self.under_way.remove(model);
    }
}

/// The models that a deployment names and allows, each once, in the order in which they are fetched: as they are listed, and
/// where all are allowed then what the keys lead to, by key. Beside them, what cannot be understood.
pub(super) fn plan(config: &ModelConfig) -> (Vec<ModelRef>, Vec<String>) {
    let (all, listed): (Vec<&String>, Vec<_>) = config.allowed.iter().partition(|id| *id == "*");
    // What is not listed may be fetched only where all may.
    let mut by_key: Vec<_> = config.ids_by_key.iter().filter(|_| !all.is_empty()).collect();
    by_key.sort_unstable();
    let (mut plan, mut unusable, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for id in listed.into_iter().chain(by_key.into_iter().map(|(_, id)| id)) {
        match ModelRef::parse(id) {
            Ok(model) if seen.insert(model.clone()) => plan.push(model),
            Ok(_) => {}
            Err(problem) => unusable.push(format!("model `{}`: {problem}", redact(id))),
        }
    }
    (plan, unusable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(refs: &[&str]) -> Vec<ModelRef> {
        refs.iter().map(|model| ModelRef::parse(model).unwrap()).collect()
    }

    fn config(allowed: &[&str], keys: &[(&str, &str)]) -> ModelConfig {
        ModelConfig {
            ids_by_key: keys.iter().map(|(key, id)| ((*key).to_owned(), (*id).to_owned())).collect(),
            allowed: allowed.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_listed_comes_first_and_each_model_once() {
        for (allowed, keys, expected) in [
            (&[][..], &[][..], &[][..]),
            (&["o/z", "o/a"], &[], &["o/z", "o/a"]),
            (&["o/z", "cozy:o/z:latest"], &[("k", "o/z")], &["o/z"]),
            // A key that leads to what is not allowed leads nowhere.
            (&["o/z"], &[("k", "o/other")], &["o/z"]),
            (&["o/m", "*"], &[("b", "o/1"), ("a", "o/2"), ("c", "o/m")], &["o/m", "o/2", "o/1"]),
        ] {
            assert_eq!(plan(&config(allowed, keys)), (models(expected), vec![]), "{allowed:?} {keys:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named_and_the_rest_is_fetched() {
        let (plan, unusable) = plan(&config(&["o/a", "ftp://h/m", "o/b"], &[]));
        assert_eq!(plan, models(&["o/a", "o/b"]));
        assert!(unusable.len() == 1 && unusable[0].contains("scheme"), "{unusable:?}");
    }

    #[test]
    fn so_many_are_under_way_in_the_order_given() {
        let mut queue = Queue::new(2);
        let [a, b, c] = &models(&["o/a", "o/b", "o/c"])[..] else { panic!("three") };
        queue.replace([a.clone(), b.clone(), c.clone()]);
        assert_eq!([queue.begin(), queue.begin(), queue.begin()], [Some(a.clone()), Some(b.clone()), None]);
        queue.end(b);
        assert_eq!([queue.begin(), queue.begin()], [Some(c.clone()), None]);
        assert_eq!(Queue::new(0).at_once, 1);
    }

    #[test]
    fn a_later_plan_replaces_what_was_not_begun() {
        let mut queue = Queue::new(2);
        let [a, b, c, d] = &models(&["o/a", "o/b", "o/c", "o/d"])[..] else { panic!("four") };
        queue.replace([a.clone(), b.clone(), c.clone()]);
        assert_eq!([queue.begin(), queue.begin()], [Some(a.clone()), Some(b.clone())]);
        queue.replace([b.clone(), d.clone()]);
        assert_eq!(queue.begin(), None, "what nobody wants any more has its place to its end");
        queue.end(a);
        assert_eq!([queue.begin(), queue.begin()], [Some(d.clone()), None], "and nothing is begun twice");
    }
}
