//! Which functions wait for which models. Pure.

use std::collections::{BTreeMap, HashSet};

use gen_worker_core::ModelRef;

use crate::command::ModelConfig;

/// The functions that wait, each with the models that it waits for.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<String, HashSet<ModelRef>>);

impl Waiting {
    /// Each of these functions, given with its keys of the deployment, waits for the models among `missing` that its keys mean.
    pub(super) fn new(
        config: &ModelConfig,
        functions: &[(String, Vec<&'static str>)],
        missing: &HashSet<ModelRef>,
    ) -> Self {
        let meant = |key: &&str| {
            let id = config.ids_by_key.get(*key).map_or(*key, String::as_str);
            ModelRef::parse(id).ok().filter(|model| missing.contains(model))
        };
        let waits = |(name, keys): &(String, Vec<&'static str>)| {
            let models: HashSet<_> = keys.iter().filter_map(meant).collect();
            (!models.is_empty()).then(|| (name.clone(), models))
        };
        Self(functions.iter().filter_map(waits).collect())
    }

    /// Nobody waits for this model any more. Returns the functions that wait for nothing else.
    pub(super) fn settle(&mut self, model: &ModelRef) -> Vec<String> {
        self.0.values_mut().for_each(|models| {
            models.remove(model);
        });
        self.0.extract_if(.., |_, models| models.is_empty()).map(|(name, _)| name).collect()
    }

    /// Those that wait, in alphabetical order.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Those that wait for this model.
    pub(super) fn of(&self, model: &ModelRef) -> Vec<&str> {
        let waits = self.0.iter().filter(|(_, models)| models.contains(model));
        waits.map(|(name, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> ModelRef {
        ModelRef::parse(text).unwrap()
    }

    fn waiting(missing: &[&str]) -> Waiting {
        let keys = [("main", "org/main"), ("extra", "cozy:org/extra:latest")];
        let config = ModelConfig {
            ids_by_key: keys.iter().map(|(key, id)| ((*key).to_owned(), (*id).to_owned())).collect(),
            allowed: vec!["*".to_owned()],
        };
        let functions = [
            ("both", vec!["main", "extra"]),
            ("none", vec![]),
            ("one", vec!["main"]),
            ("written", vec!["org/x"]),
        ];
        let functions = functions.map(|(name, keys)| (name.to_owned(), keys));
        Waiting::new(&config, &functions, &missing.iter().map(|text| model(text)).collect())
    }

    #[test]
    fn a_function_waits_for_what_is_missing_of_what_its_keys_mean() {
        for (missing, names) in [
            (&[][..], &[][..]),
            (&["org/other"], &[]),
            (&["org/main"], &["both", "one"]),
            (&["org/extra", "org/x"], &["both", "written"]),
        ] {
            assert_eq!(waiting(missing).names(), names, "{missing:?}");
        }
    }

    #[test]
    fn a_function_is_ready_when_it_waits_for_nothing_else() {
        let mut waiting = waiting(&["org/main", "org/extra"]);
        assert_eq!(waiting.of(&model("org/extra")), ["both"]);
        assert_eq!(waiting.settle(&model("org/main")), ["one"]);
        assert_eq!(waiting.settle(&model("org/main")), [""; 0]);
        assert_eq!(waiting.names(), ["both"]);
        assert_eq!(waiting.settle(&model("org/extra")), ["both"]);
    }
}
