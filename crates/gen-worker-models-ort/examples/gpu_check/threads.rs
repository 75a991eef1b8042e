//! What the system says of this process's threads.

use std::{fs, path::Path};

/// For how long all threads of this name have computed, in the system's ticks: hundredths of a second.
pub(crate) fn ticks_of(name: &str) -> u64 {
    let threads = fs::read_dir("/proc/self/task").expect("the system lists threads");
    threads.filter_map(|thread| ticks(&thread.ok()?.path(), name)).sum()
}

/// `None`: it has another name, or has ended.
fn ticks(thread: &Path, name: &str) -> Option<u64> {
    let stat = fs::read_to_string(thread.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, found) = head.split_once('(')?;
    // Behind the name and ten other fields, in user code and in the kernel.
    let ticks = tail.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap_or(0));
    (found == name).then(|| ticks.sum())
}
