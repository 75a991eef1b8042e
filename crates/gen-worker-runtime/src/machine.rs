//! The machine as a worker sees it, for whoever looks for a fault.

use nvml_wrapper::{Nvml, error::NvmlError};

use crate::host::{self, GpuFacts};

/// What the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Cores that the process may use.
    pub cpu_cores: u32,
    /// Main memory in bytes: the container's limit where there is one, else the machine's; 0: the system does not say.
    pub memory_bytes: u64,
    /// NVIDIA's cards; `None`: no driver is installed. An error: one is, and does not answer; what it says.
    pub gpu: Result<Option<Gpu>, String>,
}

/// NVIDIA's cards, as their driver tells of them; all but the count and the versions are of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// How many there are.
    pub count: u32,
    /// What it is called.
    pub name: String,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// What nobody uses of that, in bytes.
    pub memory_free_bytes: u64,
    /// The driver's version.
    pub driver: String,
    /// The newest CUDA that the driver knows.
    pub cuda_version: String,
}

/// Asks the system and the driver, for as long as they take.
pub fn machine() -> Machine {
    Machine { cpu_cores: host::cpu_cores(), memory_bytes: host::memory_bytes(), gpu: gpu() }
}

fn gpu() -> Result<Option<Gpu>, String> {
    match Nvml::init() {
        Ok(nvml) => Ok(Some(host::read_gpu(&nvml).into())),
        Err(NvmlError::LibloadingError(_)) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

impl From<GpuFacts> for Gpu {
    fn from(facts: GpuFacts) -> Self {
        Self {
            count: facts.count,
            name: facts.name,
            memory_bytes: facts.memory_bytes,
            memory_free_bytes: facts.memory_free_bytes,
            driver: facts.driver,
            cuda_version: facts.cuda_version,
        }
    }
}
