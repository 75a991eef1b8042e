//! What the worker reports of itself, at the start of every stream and as heartbeat.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gen_worker_core::ports::{LeasedModel, ModelDownload, ModelManager};
use tokio::sync::watch;

use crate::{
    admission::Admission,
    config::RuntimeConfig,
    fitness::Unfit,
    hooks::Prepared,
    host::{Host, HostFacts},
    ports::Ports,
    prefetch::Prefetch,
    registry::Registry,
    wire::{Message, outbound, v1},
};

/// The extensions this worker speaks.
const FEATURES: [&str; 9] = [
    "result-ack",
    "run-accepted",
    "attempt",
    "active-runs",
    "drain",
    "token-refresh",
    "loading-functions",
    "trace-context",
    "model-memory",
];

/// Everything a report is made from. Making one takes no lock that work holds, and asks no driver.
pub(crate) struct Reporter {
    config: Arc<RuntimeConfig>,
    admission: Admission,
    host: Host,
    ports: Ports,
    waits: Waits,
    functions: Vec<String>,
    function_concurrency: HashMap<String, i32>,
    schemas: Vec<v1::FunctionSchema>,
    gpu_runs: Arc<AtomicUsize>,
}

/// What functions wait for before they are ready.
pub(crate) struct Waits {
    pub prepared: Prepared,
    pub prefetch: Prefetch,
}

impl Reporter {
    pub(crate) fn new(
        config: Arc<RuntimeConfig>,
        registry: &Registry,
        admission: Admission,
        host: Host,
        ports: Ports,
        waits: Waits,
        unfit: &Unfit,
    ) -> Self {
        let limited = registry.iter().filter_map(|function| {
            let limit = function.spec().resources.max_concurrency?;
            Some((function.spec().name.to_string(), limit.get() as i32))
        });
        Self {
            config,
            admission,
            host,
            ports,
            waits,
            functions: registry
                .names()
                .filter(|function| !unfit.contains(function))
                .map(str::to_owned)
                .collect(),
            function_concurrency: limited.collect(),
            schemas: registry.runnable().map(|function| outbound::schema(function.spec())).collect(),
            gpu_runs: Arc::default(),
        }
    }

    /// Counts runs that hold a GPU.
    pub(crate) fn gpu_runs(&self) -> Arc<AtomicUsize> {
        self.gpu_runs.clone()
    }

    /// The functions: how many are advertised, and which wait.
    pub(crate) fn functions(&self) -> (usize, Vec<String>) {
        let capacity = self.capacity();
        (capacity.ready.len(), capacity.loading)
    }

    /// Facts about the machine.
    pub(crate) fn host(&self) -> Arc<HostFacts> {
        self.host.facts()
    }

    /// The models on disk: what the source has there, and what only the manager knows of.
    pub(crate) fn on_disk(&self) -> Vec<String> {
        let mut models = self.ports.model_source.as_ref().map(|source| source.on_disk()).unwrap_or_default();
        models.extend(self.ports.model_manager.as_ref().map(|manager| manager.on_disk()).unwrap_or_default());
        models
    }

    /// The models in memory.
    pub(crate) fn resident(&self) -> Vec<String> {
        self.ports.model_manager.as_ref().map(|manager| manager.resident()).unwrap_or_default()
    }

    /// Who has models in memory; `None`: they are files on disk.
    pub(crate) fn model_manager(&self) -> Option<&dyn ModelManager> {
        self.ports.model_manager.as_deref()
    }

    /// The models that are leased, and by whom.
    pub(crate) fn leases(&self) -> Vec<LeasedModel> {
        self.ports.model_manager.as_ref().map(|manager| manager.leases()).unwrap_or_default()
    }

    /// The models on their way to this machine.
    pub(crate) fn downloads(&self) -> Vec<ModelDownload> {
        self.ports.model_source.as_ref().map(|source| source.under_way()).unwrap_or_default()
    }

    /// Changes when a report is due before the next heartbeat: other functions are ready than were.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.waits.prefetch.changes()
    }

    /// What models take of memory, and how they came and went; `None`: none are held in memory.
    pub(crate) fn model_memory(&self) -> Option<v1::ModelMemory> {
        let stats = self.model_manager()?.stats();
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Some(v1::ModelMemory {
            used_bytes: number(stats.used_bytes),
            budget_bytes: number(stats.budget_bytes),
            hits: number(stats.hits),
            misses: number(stats.misses),
            loads: number(stats.loads),
            evictions: number(stats.evictions),
        })
    }

    /// The report of this moment.
    pub(crate) fn registration(&self, is_heartbeat: bool) -> Message {
        outbound::registration(self.resources(), self.admission.active(), is_heartbeat)
    }

    /// What may be sent here: work that does not stop takes from it. A limit of 0 would mean "unlimited" on the wire, so what
    /// has no place left is not listed at all.
    fn capacity(&self) -> Capacity {
        let zombies = self.admission.zombies();
        let left = |limit: i32, taken: u32| limit.saturating_sub(taken as i32);
        let max_concurrency = self.config.max_concurrency.map(|limit| left(limit.get() as i32, zombies.all));
        let mut function_concurrency = self.function_concurrency.clone();
        for (function, taken) in &zombies.by_function {
            if let Some(limit) = function_concurrency.get_mut(function.as_str()) {
                *limit = left(*limit, *taken);
            }
        }
        let is_open = self.admission.is_open() && max_concurrency != Some(0);
        let loading = self.loading();
        let has_place = |name: &&String| is_open && function_concurrency.get(*name) != Some(&0);
        let is_ready = |name: &&String| !loading.contains(name);
        let ready = self.functions.iter().filter(is_ready).filter(has_place).cloned().collect();
        let max_concurrency = max_concurrency.unwrap_or(0);
        Capacity { ready, loading, max_concurrency, function_concurrency }
    }

    /// The functions that wait: all for the set-ups, then some for their models. What this machine cannot run does not get ready.
    fn loading(&self) -> Vec<String> {
        if self.waits.prepared.is_pending() {
            let mut all = self.functions.clone();
            all.sort_unstable();
            return all;
        }
        let mut loading = self.waits.prefetch.loading();
        loading.retain(|name| self.functions.contains(name));
        loading
    }

    fn resources(&self) -> v1::WorkerResources {
        let (config, host) = (&self.config, self.host.facts());
        let (gpu, models) = (&host.gpu, self.ports.model_manager.as_ref());
        let capacity = self.capacity();
        v1::WorkerResources {
            worker_id: config.worker_id.to_string(),
            cpu_cores: host.cpu_cores as i32,
            memory_bytes: host.memory_bytes as i64,
            gpu_count: gpu.count as i32,
            gpu_memory_bytes: gpu.memory_bytes as i64,
            available_functions: capacity.ready,
            vram_models: self.resident(),
            supports_model_loading: models.is_some(),
            deployment_id: config.deployment_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            runpod_pod_id: config.runpod_pod_id.clone(),
            gpu_is_busy: self.gpu_runs.load(Ordering::Relaxed) > 0,
            gpu_memory_used_bytes: gpu.memory_used_bytes as i64,
            gpu_name: gpu.name.clone(),
            gpu_driver: gpu.driver.clone(),
            gpu_memory_free_bytes: gpu.memory_free_bytes as i64,
            max_concurrency: capacity.max_concurrency,
            function_concurrency: capacity.function_concurrency,
            cuda_version: config.cuda_version.clone().unwrap_or_else(|| gpu.cuda_version.clone()),
            torch_version: config.torch_version.clone().unwrap_or_default(),
            function_schemas: self.schemas.clone(),
            gpu_sm: gpu.compute_capability.clone(),
            tensorrt_version: String::new(),
            onnxruntime_version: models.and_then(|models| models.engine_version()).unwrap_or_default(),
            disk_models: self.on_disk(),
            features: FEATURES.map(str::to_owned).to_vec(),
            loading_functions: capacity.loading,
            model_memory: self.model_memory(),
        }
    }
}

/// What may be sent to this worker now.
struct Capacity {
    ready: Vec<String>,
    /// That wait for the set-ups, or for their models.
    loading: Vec<String>,
    max_concurrency: i32,
    function_concurrency: HashMap<String, i32>,
}
