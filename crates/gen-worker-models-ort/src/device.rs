//! What memory there is for models, and how much of it this process uses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gen_worker_core::ByteSize;

use crate::{
    budget::Bytes,
    config::{OrtConfig, Provider},
};

/// Measures memory.
pub(crate) trait Gauge: Send + Sync {
    /// What this process, and on the device all processes, use; 0: it cannot be measured.
    fn used(&self) -> Bytes;
}

/// Main memory, and the memory of the device that models run on.
pub(crate) struct Machine {
    provider: Provider,
    #[cfg(feature = "cuda")]
    driver: Option<nvml_wrapper::Nvml>,
}

impl Machine {
    /// The memory of what models run on.
    pub(crate) fn of(provider: Provider) -> Self {
        Self {
            provider,
            #[cfg(feature = "cuda")]
            driver: provider.is_nvidia().then(nvml_wrapper::Nvml::init).and_then(Result::ok),
        }
    }

    /// What models may take.
    pub(crate) fn budget(&self, config: &OrtConfig) -> Bytes {
        let share = |max: Option<ByteSize>, total: Option<u64>, margin: ByteSize| {
            max.map_or_else(|| total.map_or(u64::MAX, |total| total.saturating_sub(margin.0)), |max| max.0)
        };
        let total = main_memory(&|path| fs::read_to_string(path).ok());
        let on_device =
            || share(config.max_vram, self.device_memory().map(|(total, _)| total), config.vram_margin);
        let device = if self.provider.is_nvidia() { on_device() } else { 0 };
        Bytes { host: share(config.max_ram, total, config.ram_margin), device }
    }

    /// The device's memory, and what of it is used; `None`: there is no device, or its driver does not say.
    #[cfg(feature = "cuda")]
    fn device_memory(&self) -> Option<(u64, u64)> {
        let memory = self.driver.as_ref()?.device_by_index(0).ok()?.memory_info().ok()?;
        Some((memory.total, memory.used))
    }

    #[cfg(not(feature = "cuda"))]
    fn device_memory(&self) -> Option<(u64, u64)> {
        None
    }
}

impl Gauge for Machine {
    fn used(&self) -> Bytes {
        let device = self.device_memory().map_or(0, |(_, used)| used);
        Bytes { host: own_memory().unwrap_or(0), device }
    }
}

/// Bytes of main memory that this process may have: the least of the machine's and its containers' limits.
fn main_memory(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files).filter_map(|file| read(&file)?.trim().parse().ok());
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    });
    limits.chain(machine).min()
}

/// Where the limits of a line of `/proc/self/cgroup` stand: those of the group and of all around it. Within a container the
/// line may name a path that only the host has; the root is the container's own then.
fn limit_files(line: &str) -> Vec<PathBuf> {
    let mut fields = line.splitn(3, ':');
    let (root, file) = match (fields.next(), fields.next()) {
        (Some("0"), Some("")) => ("/sys/fs/cgroup", "memory.max"),
        (Some(_), Some(kinds)) if kinds.split(',').any(|kind| kind == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let group = Path::new(fields.next().unwrap_or("/").trim_start_matches('/'));
    group.ancestors().map(|group| Path::new(root).join(group).join(file)).collect()
}

/// Bytes of memory that this process has of its own: without files that are mapped, which the system takes back at will.
fn own_memory() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/status").ok()?;
    let line = pages.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n");

    fn memory(files: &[(&str, &str)]) -> Option<u64> {
        main_memory(&|path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_counts() {
        assert_eq!(memory(&[]), None);
        assert_eq!(memory(&[MEMINFO]), Some(1_024_000));
        let v2 = [
            MEMINFO,
            ("/proc/self/cgroup", "0::/pod/box\n"),
            ("/sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "700000\n"),
            ("/sys/fs/cgroup/memory.max", "900000\n"),
        ];
        assert_eq!(memory(&v2), Some(700_000));
        let v1 = [
            MEMINFO,
            ("/proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/docker/1\n"),
            ("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "600000"),
        ];
        assert_eq!(memory(&v1), Some(600_000));
    }

    #[test]
    fn the_settings_go_before_what_there_is() {
        use gen_worker_core::config::{ConfigErrors, Env};

        let budget = |provider, settings: &[(&str, &str)]| {
            let env = Env::from_iter(settings.iter().copied());
            let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
            Machine::of(provider).budget(&config)
        };
        let ram = [("WORKER_MAX_RAM_GB", "2"), ("WORKER_RAM_SAFETY_MARGIN_GB", "1")];
        assert_eq!(budget(Provider::Cpu, &ram), Bytes { host: 2 << 30, device: 0 });
        assert_eq!(budget(Provider::Cuda, &[("WORKER_MAX_VRAM_GB", "0.5")]).device, 1 << 29);
        assert_eq!(budget(Provider::Cpu, &[("WORKER_RAM_SAFETY_MARGIN_GB", "9999999")]).host, 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_is_seen() {
        let machine = Machine::of(Provider::Cpu);
        let before = machine.used().host;
        let held = vec![1_u8; 64 << 20];
        let gained = machine.used().host.saturating_sub(before);
        assert!(gained >= held.len() as u64 / 2, "{gained}");
    }
}
