//! The settings: where the library is, how many threads a model gets, on what it runs.

use std::{fmt, path::PathBuf, str::FromStr};

use gen_worker_core::config::{ConfigErrors, Env, Reader, Var};

const DYLIB: Var = Var::new(
    "ORT_DYLIB_PATH",
    "path",
    "",
    "The ONNX Runtime library, 1.17 or newer. Unset: beside the executable, else in `.ort/lib` of the current directory, \
     the executable's, or a parent of theirs. A name without a directory is left to the system's loader.",
);
const THREADS: Var = Var::new(
    "WORKER_ORT_THREADS",
    "threads",
    "0",
    "Threads for each model in memory. 0: as many as the process may use cores.",
);
const PROVIDERS: Var = Var::new(
    "WORKER_ORT_PROVIDERS",
    "list of `cpu`, `cuda`",
    "cpu",
    "What models run on: the first of these that works. The worker does not start when none does.",
);

/// The variables that [`OrtConfig::from_env`] reads.
pub const VARS: &[Var] = &[DYLIB, THREADS, PROVIDERS];

/// How models are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrtConfig {
    /// The ONNX Runtime library; `None`: look for it.
    pub dylib: Option<PathBuf>,
    /// Threads for each model in memory; 0: as many as the process may use cores.
    pub intra_threads: usize,
    /// What models run on: the first of these that works; empty: the processor.
    pub providers: Vec<Provider>,
}

/// Something that models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// The processor.
    Cpu,
    /// An NVIDIA card; needs the feature `cuda` and a library built for it.
    Cuda,
}

impl OrtConfig {
    /// Reads the settings; mistakes go to `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut reader = Reader::new(env, errors);
        let dylib = reader.path(&DYLIB);
        let intra_threads = reader.number(&THREADS);
        let names = reader.list(&PROVIDERS);
        let providers = names
            .iter()
            .filter_map(|name| name.parse().map_err(|mistake| errors.push(mistake)).ok())
            .collect();
        Self { dylib, intra_threads, providers }
    }

    /// The number of threads for a model, never 0.
    pub(crate) fn threads(&self) -> usize {
        match self.intra_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_str() {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err(format!("{} has `{name}`: expected `cpu` or `cuda`", PROVIDERS.name)),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_is_the_processor_with_all_its_cores() {
        let mut errors = ConfigErrors::default();
        let config = OrtConfig::from_env(&Env::default(), &mut errors);
        assert_eq!(errors, ConfigErrors::default());
        assert_eq!(config.providers, [Provider::Cpu]);
        assert_eq!(config.threads(), std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn providers_are_read_in_order_and_mistakes_kept() {
        let env = Env::from_iter([("WORKER_ORT_PROVIDERS", "CUDA, tpu, cpu"), ("WORKER_ORT_THREADS", "x")]);
        let mut errors = ConfigErrors::default();
        let config = OrtConfig::from_env(&env, &mut errors);
        assert_eq!(config.providers, [Provider::Cuda, Provider::Cpu]);
        assert_eq!(
            errors.to_string().lines().last(),
            Some("WORKER_ORT_PROVIDERS has `tpu`: expected `cpu` or `cuda`")
        );
        assert_eq!(errors.to_string().lines().count(), 2);
    }
}
