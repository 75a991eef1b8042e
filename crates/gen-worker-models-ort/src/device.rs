//! What memory there is for models, and how much of it this process uses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gen_worker_core::ByteSize;

use crate::{
    budget::{MAX_DEVICES, Memory},
    config::{OrtConfig, Provider},
};

/// Measures memory.
pub(crate) trait Gauge: Send + Sync {
    /// What this process, and on each device all processes, use; 0: it cannot be measured.
    fn used(&self) -> Memory;
}

/// Main memory, and the memory of the cards that models run on.
pub(crate) struct Machine {
    provider: Provider,
    /// How many cards are used; 1 where models run on something else.
    devices: usize,
    #[cfg(feature = "cuda")]
    cards: Option<Cards>,
}

/// The cards as CUDA numbers them.
#[cfg(feature = "cuda")]
struct Cards {
    driver: nvml_wrapper::Nvml,
    visible: Vec<gen_worker_core::Gpu>,
}

/// What models may take of main memory, and of each device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) host: u64,
    pub(crate) devices: Vec<u64>,
}

impl Machine {
    /// The memory of what models run on.
    pub(crate) fn of(provider: Provider, config: &OrtConfig) -> Self {
        #[cfg(feature = "cuda")]
        let cards = provider.is_nvidia().then(|| Cards::see(config)).flatten();
        #[cfg(feature = "cuda")]
        let seen = cards.as_ref().map_or(1, |cards| cards.visible.len());
        #[cfg(not(feature = "cuda"))]
        let seen = 1;
        let wanted = if config.gpus == 0 { seen } else { config.gpus.min(seen) };
        Self {
            provider,
            devices: wanted.clamp(1, MAX_DEVICES),
            #[cfg(feature = "cuda")]
            cards,
        }
    }

    /// What models may take.
    pub(crate) fn budget(&self, config: &OrtConfig) -> Budget {
        let share = |max: Option<ByteSize>, total: Option<u64>, margin: ByteSize| {
            max.map_or_else(|| total.map_or(u64::MAX, |total| total.saturating_sub(margin.0)), |max| max.0)
        };
        let total = main_memory(&|path| fs::read_to_string(path).ok());
        let of_device = |device| match self.provider.is_nvidia() {
            true => {
                share(config.max_vram, self.device_memory(device).map(|(total, _)| total), config.vram_margin)
            }
            false => 0,
        };
        Budget {
            host: share(config.max_ram, total, config.ram_margin),
            devices: (0..self.devices).map(of_device).collect(),
        }
    }

    /// A device's memory, and what of it is used; `None`: there is no such device, or its driver does not say.
    #[cfg(feature = "cuda")]
    fn device_memory(&self, device: usize) -> Option<(u64, u64)> {
        self.cards.as_ref()?.memory(device)
    }

    #[cfg(not(feature = "cuda"))]
    fn device_memory(&self, _device: usize) -> Option<(u64, u64)> {
        None
    }
}

#[cfg(feature = "cuda")]
impl Cards {
    /// `None`: the driver does not answer.
    fn see(config: &OrtConfig) -> Option<Self> {
        let driver = nvml_wrapper::Nvml::init().ok()?;
        let id = |index| driver.device_by_index(index).and_then(|card| card.uuid()).unwrap_or_default();
        let ids: Vec<String> = (0..driver.device_count().ok()?).map(id).collect();
        let visible = config.visible_gpus.of(&ids);
        Some(Self { driver, visible })
    }

    fn memory(&self, device: usize) -> Option<(u64, u64)> {
        let card = match self.visible.get(device)? {
            gen_worker_core::Gpu::Index(index) => self.driver.device_by_index(*index),
            gen_worker_core::Gpu::Part(id) => self.driver.device_by_uuid(id.as_str()),
        };
        let memory = card.ok()?.memory_info().ok()?;
        Some((memory.total, memory.used))
    }
}

impl Gauge for Machine {
    fn used(&self) -> Memory {
        let mut used = Memory { host: own_memory().unwrap_or(0), ..Memory::default() };
        let devices = if self.provider.is_nvidia() { self.devices } else { 0 };
        for device in 0..devices {
            used.devices[device] = self.device_memory(device).map_or(0, |(_, used)| used);
        }
        used
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
    use gen_worker_core::config::{ConfigErrors, Env};

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
        let budget = |provider, settings: &[(&str, &str)]| {
            let env = Env::from_iter(settings.iter().copied());
            let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
            Machine::of(provider, &config).budget(&config)
        };
        let ram = [("WORKER_MAX_RAM_GB", "2"), ("WORKER_RAM_SAFETY_MARGIN_GB", "1")];
        assert_eq!(budget(Provider::Cpu, &ram), Budget { host: 2 << 30, devices: vec![0] });
        assert_eq!(budget(Provider::Cuda, &[("WORKER_MAX_VRAM_GB", "0.5")]).devices, [1 << 29]);
        assert_eq!(budget(Provider::Cpu, &[("WORKER_RAM_SAFETY_MARGIN_GB", "9999999")]).host, 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_is_seen() {
        let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
        let machine = Machine::of(Provider::Cpu, &config);
        let before = machine.used().host;
        let held = vec![1_u8; 64 << 20];
        let gained = machine.used().host.saturating_sub(before);
        assert!(gained >= held.len() as u64 / 2, "{gained}");
    }
}
