//! Measures how a file comes to disk: by the hub, verified; by plain reqwest, unverified; by curl.
//!
//! Each transfer is a process of its own, from a server that is another. Rounds are interleaved, and each number is the
//! median of its rounds. Nothing here asserts a time.
#![expect(clippy::print_stdout, reason = "it talks to the person at the terminal")]

#[path = "../report.rs"]
mod report;

#[path = "../hub/fetch.rs"]
mod fetch;
#[path = "../hub/server.rs"]
mod server;

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;

use crate::{fetch::Told, report::Report};

/// Rounds of each measurement.
const ROUNDS: usize = 5;
const SIZE: u64 = 1 << 30;
/// What is fetched where each connection is capped.
const CAPPED_SIZE: u64 = 320 << 20;
/// Bytes a second of one connection where it is.
const CAP: u64 = 20_000_000;
/// How often a download is killed before it is let through.
const KILLS: u32 = 12;

#[derive(Parser)]
enum Arguments {
    /// Measures everything.
    Hub {
        /// Where files are put; unset, in the temporary folder.
        #[arg(long)]
        directory: Option<PathBuf>,
        /// Prints JSON in place of a table.
        #[arg(long)]
        json: bool,
    },
    /// Serves a file of so many bytes on loopback and prints its address; a line on stdin ends it with what it served.
    Serve {
        size: u64,
        #[arg(long)]
        cap: Option<u64>,
    },
    /// Fetches a model into a directory with so many connections.
    Fetch { base: String, directory: PathBuf, connections: usize },
    /// Fetches a URL into a file, as plain as can be.
    Plain {
        url: String,
        file: PathBuf,
        /// And waits until the disk has it.
        #[arg(long)]
        sync: bool,
    },
}

#[tokio::main]
async fn main() {
    match Arguments::parse() {
        Arguments::Serve { size, cap } => server::serve(size, cap).await,
        Arguments::Fetch { base, directory, connections } => {
            println!("{}", fetch::told(fetch::by_hub(&base, &directory, connections)).await);
        }
        Arguments::Plain { url, file, sync } => {
            println!("{}", fetch::told(fetch::plainly(&url, &file, sync)).await);
        }
        Arguments::Hub { directory, json } => {
            let parent = directory.unwrap_or_else(std::env::temp_dir);
            let report = measure(&tempfile::tempdir_in(parent).expect("a temporary folder"));
            print!("{}", if json { report.json() + "\n" } else { report.table() });
        }
    }
}

fn measure(directory: &tempfile::TempDir) -> Report {
    let at = |name: &str| directory.path().join(name);
    let mut report = Report::default();
    uncapped(&mut report, &at);
    capped(&mut report, &at);
    killed(&mut report, &at);
    report
}

fn uncapped(report: &mut Report, at: &dyn Fn(&str) -> PathBuf) {
    let server = Server::start(SIZE, None);
    let url = format!("{}/m.bin", server.base);
    let (mut hub, mut one, mut plain, mut synced, mut curl) =
        <(Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
    let (mut growth, mut cpu, mut plain_cpu) = <(Vec<_>, Vec<_>, Vec<_>)>::default();
    for _ in 0..ROUNDS {
        warm();
        let told = fetched(&server.base, &at("cache"), 8);
        hub.push(rate(SIZE, told.seconds));
        growth.push(told.growth_bytes / f64::from(1 << 20));
        cpu.push(told.cpu_seconds);
        warm();
        one.push(rate(SIZE, fetched(&server.base, &at("cache"), 1).seconds));
        warm();
        let told = plainly(&url, &at("plain"), false);
        plain.push(rate(SIZE, told.seconds));
        plain_cpu.push(told.cpu_seconds);
        warm();
        synced.push(rate(SIZE, plainly(&url, &at("plain"), true).seconds));
        warm();
        curl.extend(by_curl(&url, &at("plain")).map(|seconds| rate(SIZE, seconds)));
    }
    let (hub, plain, synced) = (median(hub), median(plain), median(synced));
    let line = report.add("1 GiB verified and synced, up to 8 connections", "MB/s", hub);
    line.beside(plain).goal("0.9 of plain");
    report.add("the same, beside plain synced", "MB/s", hub).beside(synced);
    report.add("the same, one connection", "MB/s", median(one)).beside(synced);
    report.add("plain reqwest, neither verified nor synced", "MB/s", plain);
    report.add("plain reqwest, synced", "MB/s", synced);
    if !curl.is_empty() {
        report.add("the hub beside curl, neither verified nor synced", "MB/s", hub).beside(median(curl));
    }
    report.add("CPU for 1 GiB, beside plain's", "s", median(cpu)).beside(median(plain_cpu));
    report.add("resident memory gained, 8 connections", "MiB", median(growth)).goal("< 64 MiB");
}

/// Takes as much memory as the file will, and gives it back. A virtual machine may have its free memory from its host page by page,
/// and whoever comes first after a pause would pay for that.
fn warm() {
    drop(std::hint::black_box(vec![1_u8; SIZE as usize + (512 << 20)]));
}

fn capped(report: &mut Report, at: &dyn Fn(&str) -> PathBuf) {
    let server = Server::start(CAPPED_SIZE, Some(CAP));
    let (mut eight, mut one) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS.min(3) {
        eight.push(rate(CAPPED_SIZE, fetched(&server.base, &at("cache"), 8).seconds));
        one.push(rate(CAPPED_SIZE, fetched(&server.base, &at("cache"), 1).seconds));
    }
    let line = report.add("20 MB/s a connection: 8 beside one", "MB/s", median(eight));
    line.beside(median(one)).goal("6 times one");
}

/// A process that is killed again and again: all that is served twice is what no state was written of.
fn killed(report: &mut Report, at: &dyn Fn(&str) -> PathBuf) {
    let server = Server::start(CAPPED_SIZE, Some(CAP));
    for n in 0..KILLS {
        let mut child = fetch_command(&server.base, &at("cache"), 8).spawn().expect("this program runs");
        std::thread::sleep(Duration::from_millis(u64::from(150 + 137 * n % 400)));
        child.kill().and_then(|()| child.wait()).expect("it can be killed");
    }
    fetched(&server.base, &at("cache"), 8);
    let served = server.end() as f64 / f64::from(1 << 20);
    let size = (CAPPED_SIZE >> 20) as f64;
    report.add(format!("killed {KILLS} times: MiB served"), "MiB", served).beside(size);
}

/// A server in a process of its own.
struct Server {
    base: String,
    process: Child,
}

impl Server {
    fn start(size: u64, cap: Option<u64>) -> Self {
        let mut command = this();
        command.arg("serve").arg(size.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(cap) = cap {
            command.arg("--cap").arg(cap.to_string());
        }
        let mut process = command.spawn().expect("this program runs");
        let base = server::line(process.stdout.as_mut().expect("it is piped"));
        Self { base, process }
    }

    /// How many bytes it served.
    fn end(mut self) -> u64 {
        drop(self.process.stdin.take());
        server::line(self.process.stdout.as_mut().expect("it is piped")).parse().expect("it says a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn this() -> Command {
    Command::new(std::env::current_exe().expect("this program is a file"))
}

fn fetch_command(base: &str, cache: &std::path::Path, connections: usize) -> Command {
    let mut command = this();
    command.arg("fetch").arg(base).arg(cache).arg(connections.to_string());
    command.stdout(Stdio::piped());
    command
}

/// Fetches into a cache and removes it.
fn fetched(base: &str, cache: &std::path::Path, connections: usize) -> Told {
    let told = Told::of(&mut fetch_command(base, cache, connections));
    std::fs::remove_dir_all(cache).expect("the cache can be removed");
    told
}

fn plainly(url: &str, file: &std::path::Path, sync: bool) -> Told {
    let mut command = this();
    command.arg("plain").arg(url).arg(file);
    if sync {
        command.arg("--sync");
    }
    let told = Told::of(&mut command);
    std::fs::remove_file(file).expect("the file can be removed");
    told
}

/// How many seconds curl takes; `None`: there is no curl.
fn by_curl(url: &str, file: &std::path::Path) -> Option<f64> {
    let started = Instant::now();
    let status = Command::new("curl").args(["-sf", "-o"]).arg(file).arg(url).status().ok()?;
    assert!(status.success(), "curl failed");
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_file(file).expect("the file can be removed");
    Some(seconds)
}

/// Megabytes a second.
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
