//! Measures models in memory: calls against the same session called directly, leases, the way back after an eviction, hits
//! against exact least-recently-used, and cancels.
//!
//! A process has one ONNX Runtime environment, so that the manager and the session without it are processes of their own, which
//! call in turn. Each number is the median of its rounds. Nothing here asserts a time.
#![expect(clippy::print_stdout, reason = "it talks to the person at the terminal")]

#[path = "../../../crates/gen-worker-models-ort/tests/onnx/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod onnx;
#[path = "../report.rs"]
mod report;

use std::{
    collections::BTreeMap,
    fs,
    hint::black_box,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use gen_worker_core::{
    ByteSize, CancelReason, LocalModel, ModelRef,
    config::{ConfigErrors, Env},
    ports::{LeaseHolder, ModelManager},
};
use gen_worker_models_ort::{
    OrtConfig, OrtModel, OrtModels, Tensor,
    ndarray::{Array2, arr0, array},
};
use ort::{session::Session, value};
use tokio::{sync::oneshot, task::JoinSet};

use crate::{onnx::Onnx, report::Report};

/// Rounds of each measurement.
const ROUNDS: usize = 5;
/// Rounds of the measurement of calls, and how long they are counted in each.
const BLOCKS: usize = 21;
const BLOCK: Duration = Duration::from_millis(100);
/// Rows and columns of a large model's matrices, of 4 MiB each.
const SIDE: i64 = 1024;

/// What is measured.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    Calls,
    Leases,
    WayBack,
    Hits,
    Cancels,
}

#[derive(Parser)]
enum Arguments {
    /// Measures everything.
    Models {
        /// Where models are put.
        #[arg(long)]
        directory: PathBuf,
        /// Only this; may be given several times.
        #[arg(long)]
        only: Vec<Part>,
        /// Prints JSON in place of a table.
        #[arg(long)]
        json: bool,
    },
    /// Calls a model for a block of time whenever a line comes, and prints the microseconds of a call.
    Calls { way: Way, model: PathBuf, threads: usize, library: PathBuf },
}

/// How calls are made.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Way {
    /// Through the manager, awaited.
    Awaited,
    /// The same, and all on the model's thread, however short they are.
    Crossing,
    /// Through the manager, on the caller's thread, as blocking functions do.
    Blocking,
    /// A session without the manager.
    Bare,
    /// The same, each call in a `spawn_blocking` of tokio.
    BareSpawned,
    /// The same, on a thread that is told by a channel and answers by another.
    BareThread,
}

#[tokio::main]
async fn main() {
    match Arguments::parse() {
        Arguments::Calls { way, model, threads, library } => called(way, &model, threads, &library).await,
        Arguments::Models { directory, only, json } => {
            let directory = tempfile::tempdir_in(directory).expect("a folder for models");
            let report = measure(directory.path(), &only).await;
            print!("{}", if json { report.json() + "\n" } else { report.table() });
        }
    }
}

async fn measure(directory: &Path, only: &[Part]) -> Report {
    let mut report = Report::default();
    let parts = if only.is_empty() { Part::value_variants() } else { only };
    for part in parts {
        match part {
            Part::Calls => calls(&mut report, directory),
            Part::Leases => leases(&mut report, directory).await,
            Part::WayBack => {
                for matrices in [1, 16, 64, 256] {
                    way_back(&mut report, directory, matrices).await;
                }
            }
            Part::Hits => mix(&mut report, directory).await,
            Part::Cancels => cancels(&mut report, directory).await,
        }
    }
    report
}

/// A chain of matrices with as many inputs as they have rows, and their numbers in a file beside it.
fn write(path: &Path, side: i64, matrices: i64) {
    let mut onnx = Onnx::new().input("x", onnx::F32, &[1, side]).output("y", onnx::F32, &[1, side]);
    let numbers = (0..side * side).map(|at| (at % 7) as f32 / 7.0 - 0.4);
    let mut numbers: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
    let data = path.with_extension("data");
    let file = data.file_name().and_then(|name| name.to_str()).expect("it was named here").to_owned();
    let mut data = fs::File::create(&data).expect("there is room for a model");
    for at in 0..matrices {
        let from = if at == 0 { "x".to_owned() } else { format!("t{at}") };
        let to = if at + 1 == matrices { "y".to_owned() } else { format!("t{}", at + 1) };
        let (name, offset) = (format!("w{at}"), at as u64 * numbers.len() as u64);
        onnx = onnx.weights_beside(&name, &[side, side], &file, offset);
        onnx = onnx.node("", "MatMul", &[&from, &name], &[&to]);
        // The library keeps matrices that are alike once.
        numbers[..4].copy_from_slice(&(at as f32 / 256.0).to_le_bytes());
        data.write_all(&numbers).expect("there is room for a model");
    }
    fs::write(path, onnx.write()).expect("there is room for a model");
}

fn local(path: &Path) -> LocalModel {
    let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    LocalModel {
        model: ModelRef::parse(&format!("file:{}", path.display())).expect("an absolute path"),
        root: path.parent().expect("it lies in a folder").to_owned(),
        files: BTreeMap::from([("net.onnx".to_owned(), path.to_owned())]),
        size_bytes: size(path) + size(&path.with_extension("data")),
        pin: None,
    }
}

fn models(change: impl FnOnce(&mut OrtConfig)) -> OrtModels {
    let mut config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
    change(&mut config);
    OrtModels::new(config).expect("ORT_DYLIB_PATH or .ort/lib has ONNX Runtime")
}

async fn lease(models: &OrtModels, local: &LocalModel) -> OrtModel {
    models.model(local, &LeaseHolder::default()).await.expect("it can be loaded")
}

/// Answers each line with the microseconds of a call, of which the first prepares the others.
async fn blocks(mut call: impl AsyncFnMut()) {
    for _ in std::io::stdin().lines() {
        call().await;
        let (started, mut calls) = (Instant::now(), 0);
        while started.elapsed() < BLOCK {
            call().await;
            calls += 1;
        }
        println!("{}", started.elapsed().as_secs_f64() * 1e6 / f64::from(calls));
    }
}

async fn called(way: Way, path: &Path, threads: usize, library: &Path) {
    match way {
        Way::Awaited | Way::Crossing | Way::Blocking => managed(way, path, threads).await,
        Way::Bare | Way::BareSpawned | Way::BareThread => bare(way, path, threads, library).await,
    }
}

async fn managed(way: Way, path: &Path, threads: usize) {
    let models = models(|config| {
        config.intra_threads = threads;
        if matches!(way, Way::Crossing) {
            config.short_call = Duration::ZERO;
        }
    });
    let model = lease(&models, &local(path)).await;
    let side = model.inputs()[0].shape[1].expect("a fixed shape");
    blocks(async || {
        let inputs = [("x", Array2::<f32>::ones((1, side)))];
        let outputs = match way {
            Way::Blocking => model.run_blocking(inputs),
            _ => model.run(inputs).await,
        };
        black_box(outputs.expect("it runs").take::<f32>("y").expect("it has an output"));
    })
    .await;
}

async fn bare(way: Way, path: &Path, threads: usize, library: &Path) {
    let environment = ort::init_from(library).expect("a library").build().expect("the first environment");
    let threads =
        if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let builder = Session::builder(&environment).expect("a builder");
    let mut builder = builder.with_intra_threads(threads).expect("a number of threads");
    let mut session = builder.commit_from_file(path).expect("it can be loaded");
    let side = session.inputs()[0].dtype().tensor_shape().expect("a tensor")[1] as usize;
    let call = move |session: &mut Session| {
        let input = value::Tensor::from_array(Array2::<f32>::ones((1, side))).expect("a tensor");
        let outputs = session.run(ort::inputs!["x" => input]).expect("it runs");
        black_box(outputs["y"].try_extract_array::<f32>().expect("an output").to_owned());
    };
    match way {
        Way::BareSpawned => {
            let session = Arc::new(Mutex::new(session));
            blocks(async || {
                let session = session.clone();
                let called = tokio::task::spawn_blocking(move || {
                    call(&mut session.lock().expect("nobody panics"));
                });
                called.await.expect("it does not panic");
            })
            .await;
        }
        Way::BareThread => {
            let (ask, asked) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
            std::thread::spawn(move || {
                for answer in asked {
                    call(&mut session);
                    answer.send(()).expect("somebody waits");
                }
            });
            blocks(async || {
                let (answer, answered) = oneshot::channel();
                ask.send(answer).expect("the thread is there");
                answered.await.expect("it answers");
            })
            .await;
        }
        _ => blocks(async || call(&mut session)).await,
    }
}

/// A process that makes calls one way.
struct Caller {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Caller {
    fn start(way: Way, path: &Path, threads: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "xtask says where ONNX Runtime is")]
        let library = std::env::var("ORT_DYLIB_PATH").expect("ORT_DYLIB_PATH is set");
        let way = way.to_possible_value().expect("it has a name");
        let mut process = Command::new(std::env::current_exe().expect("this program has a path"));
        process.args(["calls", way.get_name()]).arg(path).args([threads, &library]);
        let process = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.expect("it starts");
        let answers = BufReader::new(process.stdout.take().expect("it was asked for")).lines();
        Self { process, answers }
    }

    /// The microseconds of a call, of a block of them.
    fn block(&mut self) -> f64 {
        let ask = self.process.stdin.as_mut().expect("it was asked for");
        ask.write_all(b"\n").expect("it listens");
        let answer = self.answers.next().expect("it goes on").expect("it is a text");
        answer.parse().expect("it is a number")
    }
}

impl Drop for Caller {
    /// It ends when there are no more lines.
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().expect("it ends");
    }
}

fn calls(report: &mut Report, directory: &Path) {
    for (what, side, matrices) in [("4 MiB", SIDE, 1), ("64 MiB", SIDE, 16), ("16 numbers", 4, 1)] {
        let path = directory.join("called.onnx");
        write(&path, side, matrices);
        for (threads, on) in [("1", "one thread"), ("0", "all cores")] {
            calls_of(report, &format!("{what}, {on}"), &path, threads);
        }
    }
}

/// Every way in turn, many times: what else the machine does meets all alike. A ratio is the median of those of the rounds, as is
/// what a call costs more.
fn calls_of(report: &mut Report, what: &str, path: &Path, threads: &str) {
    let mut bare = Caller::start(Way::Bare, path, threads);
    let mut ways = [
        ("blocking", Way::Blocking),
        ("awaited", Way::Awaited),
        ("awaited, none short", Way::Crossing),
        ("bare, by spawn_blocking", Way::BareSpawned),
        ("bare, by a thread and channels", Way::BareThread),
    ]
    .map(|(how, way)| (how, Caller::start(way, path, threads), Vec::new(), Vec::new()));
    let mut alone = Vec::new();
    for _ in 0..BLOCKS {
        for (_, caller, ratios, added) in &mut ways {
            let (without, with) = (bare.block(), caller.block());
            alone.push(without);
            ratios.push(without / with);
            added.push(with - without);
        }
    }
    let alone = 1e6 / median(alone);
    for (how, _, ratios, added) in ways {
        let is_ours = !how.starts_with("bare");
        let line = report.add(format!("calls a second, {what}, {how}"), "1/s", alone * median(ratios));
        line.beside(alone).goal(if is_ours { ">= 0.97" } else { "" });
        let line = report.add(format!("added to a call, {what}, {how}"), "µs", median(added));
        line.goal(if is_ours { "< 20 µs" } else { "" });
    }
}

async fn leases(report: &mut Report, directory: &Path) {
    const LEASES: u32 = 100_000;
    let path = directory.join("leased.onnx");
    write(&path, 4, 1);
    let (models, local) = (models(|_| {}), local(&path));
    drop(lease(&models, &local).await);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        for _ in 0..LEASES {
            black_box(lease(&models, &local).await);
        }
        rounds.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(LEASES));
    }
    report.add("lease of a resident model, and its end", "µs", median(rounds)).goal("< 2 µs");
}

/// An evicted model comes back from main memory, and from the disk, which the system has in memory too.
async fn way_back(report: &mut Report, directory: &Path, matrices: i64) {
    let paths = ["large.onnx", "other.onnx"].map(|name| directory.join(name));
    write(&paths[0], SIDE, matrices);
    write(&paths[1], 4, 1);
    let large = local(&paths[0]);
    // Said to be so large that both do not fit.
    let other = LocalModel { size_bytes: 4 << 30, ..local(&paths[1]) };
    let mut times = Vec::new();
    for host_tier in [true, false] {
        let models = models(|config| {
            config.host_tier = host_tier;
            config.max_ram = Some(ByteSize(other.size_bytes + large.size_bytes + large.size_bytes / 2));
        });
        let large = LocalModel { size_bytes: large.size_bytes * 7 / 4, ..large.clone() };
        drop(lease(&models, &large).await);
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            drop(lease(&models, &other).await);
            // Both ways have room then: what is measured is the load.
            models.unload(&other.model).await.expect("nobody leases it");
            let started = Instant::now();
            drop(lease(&models, &large).await);
            rounds.push(started.elapsed().as_secs_f64() * 1e3);
        }
        times.push(median(rounds));
    }
    let what = format!("back from main memory, {} MiB", matrices * 4);
    report.add(what, "ms", times[0]).beside(times[1]).goal("<= 0.33 of the disk");
    fs::remove_dir_all(directory.join(".ort")).expect("graphs were kept there");
    fs::remove_file(paths[0].with_extension("data")).expect("it was written");
}

/// A graph of so many steps that all take as long: one matrix over and over, with so many rows as input.
fn write_steps(path: &Path, rows: i64, steps: i64) {
    let numbers: Vec<f32> = (0..SIDE * SIDE).map(|at| (at % 7) as f32 / 7.0 - 0.4).collect();
    let shape = [rows, SIDE];
    let onnx = Onnx::new().input("x", onnx::F32, &shape).weights("w", &[SIDE, SIDE], &numbers);
    let name = |at| if at == 0 { "x".to_owned() } else { format!("t{at}") };
    let graph =
        (0..steps).fold(onnx, |onnx, at| onnx.node("", "MatMul", &[&name(at), "w"], &[&name(at + 1)]));
    let graph = graph.output(&name(steps), onnx::F32, &shape);
    fs::write(path, graph.write()).expect("there is room for a model");
}

/// Inferences that are told to stop: one of very many small steps, and one of large ones.
async fn cancels(report: &mut Report, directory: &Path) {
    let counter = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../crates/gen-worker-models-ort/tests/fixtures/count_up.onnx");
    let count = || vec![("rounds", arr0(i64::MAX).into()), ("x", array![0_i64].into())];
    let small = cancel(&counter, count).await;
    report.add("a canceled inference has ended, steps of one sum", "ms", small).goal("< 100 ms");
    let (rows, steps) = (256, directory.join("steps.onnx"));
    write_steps(&steps, rows, 2000);
    let large = cancel(&steps, || vec![("x", Array2::<f32>::zeros((rows as usize, 1024)).into())]).await;
    report.add("a canceled inference has ended, steps of 0.5 GFLOP", "ms", large).goal("< 100 ms");
}

/// How long after the cancel the model's thread has ended and its memory is free, in milliseconds: the longest of many. The call
/// itself comes back before.
async fn cancel(path: &Path, inputs: impl Fn() -> Vec<(&'static str, Tensor)>) -> f64 {
    const CANCELS: usize = 20;
    /// For how long it computes before: not so long that it could end.
    const AT_WORK: Duration = Duration::from_millis(200);
    let (models, local) = (models(|config| config.intra_threads = 1), local(path));
    let mut longest = 0.0_f64;
    for _ in 0..CANCELS {
        let holder = LeaseHolder::default();
        let model = models.model(&local, &holder).await.expect("it can be loaded");
        let inputs = inputs();
        let mut running = JoinSet::new();
        running.spawn(async move { model.run(inputs).await.map(drop) });
        tokio::time::sleep(AT_WORK).await;
        assert!(running.try_join_next().is_none(), "it computes on");
        let told = Instant::now();
        holder.cancellation.cancel(CancelReason::User);
        let ended = running.join_next().await.expect("there is one").expect("it does not panic");
        ended.expect_err("it was told to stop");
        models.unload(&local.model).await.expect("nobody leases it");
        longest = longest.max(told.elapsed().as_secs_f64() * 1e3);
    }
    longest
}

/// Fifty checkpoints, the first of them asked for most, and room for ten.
async fn mix(report: &mut Report, directory: &Path) {
    const ASKED: usize = 2000;
    let checkpoints: Vec<LocalModel> = (0..50)
        .map(|at| {
            let path = directory.join(format!("checkpoint-{at}.onnx"));
            write(&path, 4, 1);
            LocalModel { size_bytes: 1 << 30, ..local(&path) }
        })
        .collect();
    let models = models(|config| config.max_ram = Some(ByteSize((21 << 30) / 2)));
    let all: f64 = (1..=50).map(|rank| 1.0 / f64::from(rank)).sum();
    let mut random = fastrand::Rng::with_seed(6);
    let (mut exact, mut hits) = (Vec::new(), 0);
    for _ in 0..ASKED {
        let mut left = random.f64() * all;
        let rank = (0..50).find(|rank| {
            left -= 1.0 / f64::from(rank + 1);
            left <= 0.0
        });
        let asked = rank.unwrap_or(49) as usize;
        match exact.iter().position(|held| *held == asked) {
            Some(at) => {
                hits += 1;
                exact.remove(at);
            }
            None if exact.len() == 10 => drop(exact.remove(0)),
            None => {}
        }
        exact.push(asked);
        drop(lease(&models, &checkpoints[asked]).await);
    }
    let share = |hits: u64| hits as f64 * 100.0 / ASKED as f64;
    report
        .add("hits, 50 checkpoints, room for 10", "%", share(models.stats().hits))
        .beside(share(hits))
        .goal("1.00");
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}
