//! Facts about the machine: read in the background, so that reporting them touches no driver and no disk.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nvml_wrapper::{Nvml, cuda_driver_version_major, cuda_driver_version_minor, error::NvmlError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::config::FakeGpu;

/// How often GPU memory is read again. Heartbeats come every 10 seconds, so none is older than half of one.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// What the machine has. GPU fields are those of the first device, as on the wire; all zero or empty without one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostFacts {
    pub cpu_cores: u32,
    pub memory_bytes: u64,
    pub gpu: GpuFacts,
}

/// The GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GpuFacts {
    pub count: u32,
    pub memory_bytes: u64,
    pub memory_used_bytes: u64,
    pub memory_free_bytes: u64,
    pub name: String,
    pub driver: String,
    pub cuda_version: String,
    /// Compute capability without its dot, such as `90`.
    pub compute_capability: String,
    /// Each of them.
    pub devices: Vec<DeviceUse>,
}

/// How far one GPU is used; zero is also what its driver does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceUse {
    pub memory_bytes: u64,
    pub memory_used_bytes: u64,
    /// Of the driver's last sampling period, between a sixth of a second and a second.
    pub busy_percent: u32,
}

/// The latest facts. Reading them locks only for as long as it takes to copy a pointer.
#[derive(Clone)]
pub(crate) struct Host(Arc<RwLock<Arc<HostFacts>>>);

impl Host {
    /// Reads everything once and, if there is a GPU, goes on reading its memory on a thread of its own until `stop`.
    pub(crate) fn observe(fake: Option<&FakeGpu>, stop: CancellationToken) -> Self {
        let nvml = if fake.is_some() { None } else { open_nvml() };
        let gpu = fake.map_or_else(|| nvml.as_ref().map(read_gpu).unwrap_or_default(), made_up);
        let facts = HostFacts { cpu_cores: cpu_cores(), memory_bytes: memory_bytes(), gpu };
        let host = Self(Arc::new(RwLock::new(Arc::new(facts))));
        if let Some(nvml) = nvml {
            let host = host.clone();
            let sampler = move || host.sample(&nvml, &stop);
            let started = std::thread::Builder::new().name("gpu-facts".to_owned()).spawn(sampler);
            started.map_or_else(|error| debug!(%error, "gpu facts stay as they were at start"), drop);
        }
        host
    }

    pub(crate) fn facts(&self) -> Arc<HostFacts> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn sample(&self, nvml: &Nvml, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            std::thread::park_timeout(SAMPLE_EVERY);
            let facts = HostFacts { gpu: read_gpu(nvml), ..(*self.facts()).clone() };
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(facts);
        }
    }
}

pub(crate) fn cpu_cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// Main memory: the container's limit where there is one, else the machine's; 0 when the system does not say.
pub(crate) fn memory_bytes() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    system.refresh_memory();
    system.cgroup_limits().map_or(system.total_memory(), |limits| limits.total_memory)
}

fn open_nvml() -> Option<Nvml> {
    match Nvml::init() {
        Ok(nvml) => Some(nvml),
        Err(NvmlError::LibloadingError(_)) => None,
        Err(error) => {
            info!(%error, "no GPU is reported: its driver does not answer");
            None
        }
    }
}

pub(crate) fn read_gpu(nvml: &Nvml) -> GpuFacts {
    let count = nvml.device_count().unwrap_or(0);
    let mut facts = GpuFacts {
        count,
        driver: nvml.sys_driver_version().unwrap_or_default(),
        cuda_version: nvml.sys_cuda_driver_version().map(cuda_text).unwrap_or_default(),
        devices: (0..count).map(|number| read_use(nvml, number)).collect(),
        ..GpuFacts::default()
    };
    let Ok(device) = nvml.device_by_index(0) else {
        return facts;
    };
    facts.name = device.name().unwrap_or_default();
    if let Ok(memory) = device.memory_info() {
        facts.memory_bytes = memory.total;
        facts.memory_used_bytes = memory.used;
        facts.memory_free_bytes = memory.free;
    }
    if let Ok(capability) = device.cuda_compute_capability() {
        facts.compute_capability = format!("{}{}", capability.major, capability.minor);
    }
    facts
}

fn read_use(nvml: &Nvml, number: u32) -> DeviceUse {
    let Ok(device) = nvml.device_by_index(number) else { return DeviceUse::default() };
    let (memory, rates) = (device.memory_info(), device.utilization_rates());
    DeviceUse {
        memory_bytes: memory.as_ref().map_or(0, |memory| memory.total),
        memory_used_bytes: memory.map_or(0, |memory| memory.used),
        busy_percent: rates.map_or(0, |rates| rates.gpu),
    }
}

fn cuda_text(version: i32) -> String {
    format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
}

fn made_up(fake: &FakeGpu) -> GpuFacts {
    if fake.count == 0 {
        return GpuFacts::default();
    }
    let device = DeviceUse { memory_bytes: fake.memory_bytes, ..DeviceUse::default() };
    GpuFacts {
        count: fake.count,
        devices: vec![device; fake.count as usize],
        memory_bytes: fake.memory_bytes,
        memory_free_bytes: fake.memory_bytes,
        name: fake.name.clone(),
        driver: fake.driver.clone(),
        ..GpuFacts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_cores_and_memory() {
        let facts = Host::observe(None, CancellationToken::new()).facts();
        assert!(facts.cpu_cores >= 1);
        assert!(facts.memory_bytes > 1 << 20);
    }

    /// On a machine with an NVIDIA driver only.
    #[test]
    fn each_gpu_says_how_far_it_is_used() {
        let gpu = &Host::observe(None, CancellationToken::new()).facts().gpu;
        assert_eq!(gpu.devices.len(), gpu.count as usize);
        for device in &gpu.devices {
            assert!(
                device.memory_bytes >= device.memory_used_bytes && device.busy_percent <= 100,
                "{device:?}"
            );
        }
        assert_eq!(gpu.devices.first().map_or(0, |first| first.memory_bytes), gpu.memory_bytes);
    }

    #[test]
    fn a_made_up_gpu_is_all_free() {
        let fake = FakeGpu { count: 2, memory_bytes: 8, name: "n".into(), driver: "d".into() };
        let gpu = &Host::observe(Some(&fake), CancellationToken::new()).facts().gpu;
        assert_eq!((gpu.count, gpu.memory_free_bytes, gpu.memory_used_bytes), (2, 8, 0));
        assert_eq!(gpu.devices, [DeviceUse { memory_bytes: 8, ..DeviceUse::default() }; 2]);
    }
}
