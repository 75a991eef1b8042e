//! What the driver, or for the processor the system, says of memory: asked for apart from the manager that is checked.

use gen_worker_models_ort::Provider;

/// Where bytes are counted.
pub(crate) enum Memory {
    /// Anonymous memory of this process.
    Process,
    /// All that is used of the first card that CUDA shows this process.
    #[cfg(feature = "cuda")]
    Card { driver: Box<nvml_wrapper::Nvml>, card: gen_worker_core::Gpu },
}

impl Memory {
    /// Where models of this provider are.
    ///
    /// # Errors
    /// What is missing here.
    pub(crate) fn of(provider: Provider) -> Result<Self, String> {
        match provider {
            Provider::Cuda | Provider::TensorRt => Self::of_card(),
            _ => Ok(Self::Process),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn of_card() -> Result<Self, String> {
        Err("this program was built without the feature `cuda`".into())
    }

    #[cfg(feature = "cuda")]
    fn of_card() -> Result<Self, String> {
        let driver = nvml_wrapper::Nvml::init()
            .map_err(|error| format!("no NVIDIA driver answers on this machine ({error})"))?;
        let count = driver.device_count().map_err(|error| format!("the driver counts no cards ({error})"))?;
        let id = |index| driver.device_by_index(index).and_then(|card| card.uuid()).unwrap_or_default();
        let ids: Vec<String> = (0..count).map(id).collect();
        #[expect(clippy::disallowed_methods, reason = "a check has no settings of its own")]
        let setting = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let env = setting.map(|value| ("CUDA_VISIBLE_DEVICES", value)).into_iter().collect();
        let visible = gen_worker_core::VisibleGpus::from_env(&env).of(&ids);
        let card = visible.into_iter().next();
        let card = card.ok_or_else(|| format!("CUDA_VISIBLE_DEVICES shows none of the {count} cards"))?;
        Ok(Self::Card { driver: Box::new(driver), card })
    }

    /// Bytes that are used.
    pub(crate) fn used(&self) -> u64 {
        match self {
            Self::Process => of_process().expect("the system says so in /proc/self/status"),
            #[cfg(feature = "cuda")]
            Self::Card { driver, card } => {
                let found = match card {
                    gen_worker_core::Gpu::Index(index) => driver.device_by_index(*index),
                    gen_worker_core::Gpu::Part(id) => driver.device_by_uuid(id.as_str()),
                };
                found.and_then(|card| card.memory_info()).expect("the driver has answered before").used
            }
        }
    }
}

fn of_process() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}
