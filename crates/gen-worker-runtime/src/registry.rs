//! The functions of this worker, by name.

use std::collections::BTreeMap;

use gen_worker_core::{Function, FunctionName};

/// Why a set of functions cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is none.
    #[error("no function is registered: mark one with `#[worker_function]`, or give one to the builder")]
    Empty,
    /// Two functions share a name.
    #[error(
        "the function `{name}` is defined twice, in {first} and in {second}: rename one, or set `name = \"…\"`"
    )]
    Duplicate {
        /// The shared name.
        name: String,
        /// The module of one.
        first: &'static str,
        /// The module of the other.
        second: &'static str,
    },
}

/// A checked set of functions, in alphabetical order.
#[derive(Debug)]
pub(crate) struct Registry(BTreeMap<FunctionName, Function>);

impl Registry {
    pub(crate) fn new(functions: Vec<Function>) -> Result<Self, RegistryError> {
        let mut by_name: BTreeMap<FunctionName, Function> = BTreeMap::new();
        for function in functions {
            let spec = function.spec().clone();
            if let Some(other) = by_name.insert(spec.name.clone(), function) {
                return Err(RegistryError::Duplicate {
                    name: spec.name.to_string(),
                    first: other.spec().module,
                    second: spec.module,
                });
            }
        }
        if by_name.is_empty() { Err(RegistryError::Empty) } else { Ok(Self(by_name)) }
    }

    pub(crate) fn get(&self, name: &FunctionName) -> Option<&Function> {
        self.0.get(name)
    }

    /// Every name: functions, then handlers of realtime sessions.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let realtime = self.iter().filter(|function| function.spec().is_realtime());
        self.runnable().chain(realtime).map(|function| function.spec().name.as_str())
    }

    /// Those that serve runs.
    pub(crate) fn runnable(&self) -> impl Iterator<Item = &Function> {
        self.iter().filter(|function| !function.spec().is_realtime())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Function> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{Call, WorkerError};

    use super::*;

    fn function(module: &'static str) -> Function {
        Function::builder::<serde_json::Value>("f", module)
            .asynchronous(|_: Call<serde_json::Value>| async { Ok::<_, WorkerError>(()) })
            .unwrap()
    }

    #[test]
    fn an_empty_or_ambiguous_set_is_refused() {
        assert_eq!(Registry::new(vec![]).unwrap_err(), RegistryError::Empty);
        let twice = Registry::new(vec![function("a"), function("b")]).unwrap_err();
        assert_eq!(twice, RegistryError::Duplicate { name: "f".into(), first: "a", second: "b" });
    }
}
