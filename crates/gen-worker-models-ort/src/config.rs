//! The settings: where the library is, how many threads a model gets, on what it runs.

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use gen_worker_core::{
    ByteSize, VisibleGpus,
    config::{ConfigErrors, Env, Reader, Var},
};

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
    "list of `cpu`, `cuda`, `tensorrt`, `coreml`, `directml`, `openvino`",
    "cpu",
    "What models run on: the first of these that works. The worker does not start when none does. All but `cpu` need the worker \
     built with the feature of their name, and a library that has them. Functions with `requires_gpu` are offered on `cuda` and \
     `tensorrt`, for which a session says that it has the card; the memory of the other three counts as main memory.",
);

const SESSIONS: Var = Var::new(
    "WORKER_ORT_SESSIONS",
    "sessions",
    "1",
    "Calls of one model at the same time; its threads are shared out among them. Each takes memory of its own.",
);
const SHORT_CALL: Var = Var::new(
    "WORKER_ORT_SHORT_CALL_US",
    "microseconds",
    "200",
    "A call of a model that is awaited is made on the thread that awaits it, which spares the way to another and back, if the last \
     8 of the model took no longer than this with inputs as large; it computes there until it is done or the run is told to stop. \
     All others are made on a thread of the model's. 0: all are.",
);
const GPUS: Var = Var::new(
    "WORKER_ORT_GPUS",
    "cards",
    "1",
    "NVIDIA cards that models are spread over: so many of those that CUDA_VISIBLE_DEVICES shows, the first first, and 16 at most. \
     Each model is on one of them. 0: all.",
);
pub(crate) const MAX_VRAM: Var = Var::new(
    "WORKER_MAX_VRAM_GB",
    "GiB",
    "",
    "Memory of each card that models may take. Unset: all that the card has, less WORKER_VRAM_SAFETY_MARGIN_GB.",
);
const VRAM_MARGIN: Var = Var::new(
    "WORKER_VRAM_SAFETY_MARGIN_GB",
    "GiB",
    "3.5",
    "Memory of each card left for what calls take beside their models.",
);
pub(crate) const MAX_RAM: Var = Var::new(
    "WORKER_MAX_RAM_GB",
    "GiB",
    "",
    "Main memory that models may take. Unset: the container's limit (cgroup v2, else v1), else the machine's memory, less \
     WORKER_RAM_SAFETY_MARGIN_GB; unlimited where the system does not say.",
);
const RAM_MARGIN: Var = Var::new(
    "WORKER_RAM_SAFETY_MARGIN_GB",
    "GiB",
    "1",
    "Main memory left for what calls and the worker take beside models.",
);
const HOST_TIER: Var = Var::new(
    "WORKER_ORT_HOST_TIER",
    "flag",
    "false",
    "Whether models are kept so that they come back quickly after an eviction: the optimised graph in `.ort` beside the \
     model's file, and the weights in main memory while there is room. Sessions share the weights as they are, so calls may be \
     slower than with weights that were repacked for the processor.",
);
pub(crate) const WARM_UP: Var = Var::new(
    "WORKER_ORT_WARM_UP_SECONDS",
    "seconds",
    "60",
    "Longest warm-up of a graph with the `warmup.json` beside it, all its sessions together, as part of the model's load. One that \
     takes longer is ended, and the model taken as it is. 0: no model is warmed up.",
);
pub(crate) const WAIT: Var = Var::new(
    "WORKER_MODEL_WAIT_SECONDS",
    "seconds",
    "300",
    "Longest wait of a run for a model that comes into memory, or for others' leases to end so that it can; then it is \
     `retryable`. A run's own deadline may come first.",
);

/// The variables that [`OrtConfig::from_env`] reads.
pub const VARS: &[Var] = &[
    DYLIB,
    THREADS,
    PROVIDERS,
    SESSIONS,
    SHORT_CALL,
    GPUS,
    MAX_VRAM,
    VRAM_MARGIN,
    MAX_RAM,
    RAM_MARGIN,
    HOST_TIER,
    WARM_UP,
    WAIT,
];

/// How models are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrtConfig {
    /// The ONNX Runtime library; `None`: look for it.
    pub dylib: Option<PathBuf>,
    /// Threads for each model in memory; 0: as many as the process may use cores.
    pub intra_threads: usize,
    /// What models run on: the first of these that works; empty: the processor.
    pub providers: Vec<Provider>,
    /// Calls of one model at the same time.
    pub sessions: NonZeroUsize,
    /// Longest call that is made on the thread that awaits it, as far as those before it tell; zero: none is.
    pub short_call: Duration,
    /// Cards that models are spread over, of those that are visible; 0: all.
    pub gpus: usize,
    /// The cards that CUDA shows this process.
    pub visible_gpus: VisibleGpus,
    /// Memory of each card that models may take; `None`: all that there is, less the margin.
    pub max_vram: Option<ByteSize>,
    /// Memory of each card left for what calls take.
    pub vram_margin: ByteSize,
    /// Main memory that models may take; `None`: all that this process may have, less the margin.
    pub max_ram: Option<ByteSize>,
    /// Main memory left for everything else.
    pub ram_margin: ByteSize,
    /// Whether the weights of models that are evicted stay in main memory while there is room.
    pub host_tier: bool,
    /// Longest warm-up of a graph; zero: none is warmed up.
    pub warm_up: Duration,
    /// Longest wait for a model to come into memory.
    pub wait: Duration,
}

/// Something that models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// The processor.
    Cpu,
    /// An NVIDIA card; needs the feature `cuda` and a library built for it.
    Cuda,
    /// An NVIDIA card through TensorRT, and through CUDA for what TensorRT does not take; needs the feature `tensorrt`.
    TensorRt,
    /// Apple's processors; needs the feature `coreml`.
    CoreMl,
    /// A card through Windows; needs the feature `directml`.
    DirectMl,
    /// Intel's processors and cards; needs the feature `openvino`.
    OpenVino,
}

impl OrtConfig {
    /// Reads the settings; mistakes go to `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut reader = Reader::new(env, errors);
        let dylib = reader.path(&DYLIB);
        let intra_threads = reader.number(&THREADS);
        let names = reader.list(&PROVIDERS);
        let sessions = reader.number(&SESSIONS);
        let mut config = Self {
            dylib,
            intra_threads,
            providers: Vec::new(),
            sessions: NonZeroUsize::new(sessions).unwrap_or(NonZeroUsize::MIN),
            short_call: Duration::from_micros(reader.number(&SHORT_CALL)),
            gpus: reader.number(&GPUS),
            visible_gpus: VisibleGpus::from_env(env),
            max_vram: reader.gigabytes(&MAX_VRAM),
            vram_margin: reader.gigabytes(&VRAM_MARGIN).unwrap_or_default(),
            max_ram: reader.gigabytes(&MAX_RAM),
            ram_margin: reader.gigabytes(&RAM_MARGIN).unwrap_or_default(),
            host_tier: reader.flag(&HOST_TIER),
            warm_up: reader.seconds(&WARM_UP),
            wait: reader.seconds(&WAIT),
        };
        let parsed =
            names.iter().filter_map(|name| name.parse().map_err(|mistake| errors.push(mistake)).ok());
        config.providers = parsed.collect();
        config
    }

    /// The number of threads for one session of a model, never 0.
    pub(crate) fn threads(&self) -> usize {
        let all = match self.intra_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        (all / self.sessions).max(1)
    }
}

impl Provider {
    const ALL: [Self; 6] =
        [Self::Cpu, Self::Cuda, Self::TensorRt, Self::CoreMl, Self::DirectMl, Self::OpenVino];

    /// The name in settings, which is also that of the feature.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
            Self::CoreMl => "coreml",
            Self::DirectMl => "directml",
            Self::OpenVino => "openvino",
        }
    }

    /// Whether models are in the memory of an NVIDIA card, which the driver measures. Of the others nobody says which memory they
    /// take.
    pub const fn is_nvidia(self) -> bool {
        match self {
            Self::Cuda | Self::TensorRt => true,
            Self::Cpu | Self::CoreMl | Self::DirectMl | Self::OpenVino => false,
        }
    }
}

impl FromStr for Provider {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|provider| provider.as_str().eq_ignore_ascii_case(name));
        named.ok_or_else(|| {
            let known = Self::ALL.map(|provider| format!("`{provider}`"));
            format!("{} has `{name}`: expected one of {}", PROVIDERS.name, known.join(", "))
        })
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
        assert_eq!((config.max_ram, config.vram_margin), (None, ByteSize(7 << 29)));
    }

    #[test]
    fn sessions_share_the_threads_and_none_has_none() {
        let threads = |sessions, threads| {
            let env = Env::from_iter([("WORKER_ORT_SESSIONS", sessions), ("WORKER_ORT_THREADS", threads)]);
            OrtConfig::from_env(&env, &mut ConfigErrors::default()).threads()
        };
        assert_eq!((threads("2", "8"), threads("3", "2"), threads("0", "5")), (4, 1, 5));
    }

    #[test]
    fn providers_are_read_in_order_and_mistakes_kept() {
        let env = Env::from_iter([("WORKER_ORT_PROVIDERS", "CUDA, tpu, cpu"), ("WORKER_ORT_THREADS", "x")]);
        let mut errors = ConfigErrors::default();
        let config = OrtConfig::from_env(&env, &mut errors);
        assert_eq!(config.providers, [Provider::Cuda, Provider::Cpu]);
        assert_eq!(
            errors.to_string().lines().last(),
            Some(
                "WORKER_ORT_PROVIDERS has `tpu`: expected one of `cpu`, `cuda`, `tensorrt`, `coreml`, `directml`, `openvino`"
            )
        );
        assert_eq!(errors.to_string().lines().count(), 2);
    }
}
