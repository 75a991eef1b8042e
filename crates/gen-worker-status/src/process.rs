//! What the operating system says of this process, under the names that every Prometheus client uses.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gen_worker_core::metric::{Metric, Readings};

/// In how many ticks the kernel counts a second of processor time for programs; the same on every architecture.
const TICKS: u64 = 100;

static START: Metric = Metric::gauge(
    "process_start_time_seconds",
    "seconds",
    &[],
    "When the process started, in seconds since 1970.",
);
static CPU: Metric =
    Metric::counter("process_cpu_seconds_total", "seconds", &[], "Processor time that the process has used.");
static MEMORY: Metric =
    Metric::gauge("process_resident_memory_bytes", "bytes", &[], "Main memory that the process takes.");
static THREADS: Metric = Metric::gauge("process_threads", "threads", &[], "Threads of the process.");
static OPEN: Metric = Metric::gauge("process_open_fds", "descriptors", &[], "Descriptors that are open.");
static MAX_OPEN: Metric =
    Metric::gauge("process_max_fds", "descriptors", &[], "Descriptors that may be open; absent: unlimited.");

/// What is measured of the process. All but its start are there on Linux only.
pub static METRICS: &[&Metric] = &[&START, &CPU, &MEMORY, &THREADS, &OPEN, &MAX_OPEN];

/// The process, known from its start.
#[derive(Debug)]
pub(crate) struct Process {
    started: Duration,
}

impl Process {
    /// Taken at the start.
    pub(crate) fn starts() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }

    /// Reads four files of /proc, which the kernel makes up without touching a disk.
    pub(crate) fn measure(&self, readings: &mut Readings) {
        readings.add(&START, self.started);
        if let Some(status) = read("status") {
            let number = |name| number_after(&status, name);
            if let Some(kib) = number("VmRSS:") {
                readings.add(&MEMORY, kib * 1024);
            }
            if let Some(threads) = number("Threads:") {
                readings.add(&THREADS, threads);
            }
        }
        if let Some(ticks) = read("stat").as_deref().and_then(ticks) {
            readings.add(&CPU, Duration::from_millis(ticks * 1000 / TICKS));
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is this look at them.
            readings.add(&OPEN, open.count().saturating_sub(1));
        }
        if let Some(most) = read("limits").and_then(|limits| number_after(&limits, "Max open files")) {
            readings.add(&MAX_OPEN, most);
        }
    }
}

fn read(file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{file}")).ok()
}

/// The number behind this name.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Time in the program and in the kernel: the 14th and 15th field. The second is the program's name, in parentheses, and may
/// hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 115 0 0 0 250 30 0 0 20 0 3 0 104 2 3";
        assert_eq!(ticks(stat), Some(280));
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  1536 kB\n", "VmRSS:"), Some(1536));
        assert_eq!(number_after("Max open files            unlimited   unlimited", "Max open files"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn all_of_it_is_there_on_linux() {
        let mut readings = Readings::default();
        Process::starts().measure(&mut readings);
        let mut names: Vec<_> = readings.iter().map(|(metric, _)| metric.name).collect();
        let mut expected: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
