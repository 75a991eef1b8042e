//! Measures models in memory: calls against the same session called directly, leases, the way back after an eviction, hits
//! against exact least-recently-used, and cancels.
//!
//! A process has one ONNX Runtime environment, so that the manager and the session without it are processes of their own, in
//! turn. Each number is the median of its rounds. Nothing here asserts a time.
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
    io::Write,
    path::{Path, PathBuf},
    process::Command,
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
use tokio::task::JoinSet;

use crate::{onnx::Onnx, report::Report};

/// Rounds of each measurement.
const ROUNDS: usize = 5;
/// How long calls are counted in a round.
const ROUND: Duration = Duration::from_secs(1);
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
    /// Calls a model through the manager for a round, and prints the microseconds of a call.
    Managed { model: PathBuf, threads: usize },
    /// The same on the caller's thread, as blocking functions do.
    Blocking { model: PathBuf, threads: usize },
    /// The same without the manager.
    Direct { model: PathBuf, threads: usize, library: PathBuf },
}

#[tokio::main]
async fn main() {
    match Arguments::parse() {
        Arguments::Managed { model, threads } => println!("{}", managed(&model, threads, false).await),
        Arguments::Blocking { model, threads } => println!("{}", managed(&model, threads, true).await),
        Arguments::Direct { model, threads, library } => {
            println!("{}", direct(&model, threads, &library).await)
        }
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

/// The microseconds of a call, which the first prepares.
async fn timed(mut call: impl AsyncFnMut()) -> f64 {
    call().await;
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < ROUND {
        call().await;
        calls += 1;
    }
    started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

async fn managed(path: &Path, threads: usize, is_blocking: bool) -> f64 {
    let models = models(|config| config.intra_threads = threads);
    let model = lease(&models, &local(path)).await;
    let side = model.inputs()[0].shape[1].expect("a fixed shape");
    timed(async || {
        let inputs = [("x", Array2::<f32>::ones((1, side)))];
        let outputs = match is_blocking {
            true => model.run_blocking(inputs),
            false => model.run(inputs).await,
        };
        black_box(outputs.expect("it runs").take::<f32>("y").expect("it has an output"));
    })
    .await
}

async fn direct(path: &Path, threads: usize, library: &Path) -> f64 {
    let environment = ort::init_from(library).expect("a library").build().expect("the first environment");
    let threads =
        if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let builder = Session::builder(&environment).expect("a builder");
    let mut builder = builder.with_intra_threads(threads).expect("a number of threads");
    let mut session = builder.commit_from_file(path).expect("it can be loaded");
    let side = session.inputs()[0].dtype().tensor_shape().expect("a tensor")[1] as usize;
    timed(async || {
        let input = value::Tensor::from_array(Array2::<f32>::ones((1, side))).expect("a tensor");
        let outputs = session.run(ort::inputs!["x" => input]).expect("it runs");
        black_box(outputs["y"].try_extract_array::<f32>().expect("an output").to_owned());
    })
    .await
}

/// The microseconds of a call that a process of its own measures.
fn process(arguments: &[&str]) -> f64 {
    let own = std::env::current_exe().expect("this program has a path");
    let output = Command::new(own).args(arguments).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout);
    told.trim().parse().unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn calls(report: &mut Report, directory: &Path) {
    #[expect(clippy::disallowed_methods, reason = "xtask says where ONNX Runtime is")]
    let library = std::env::var("ORT_DYLIB_PATH").expect("ORT_DYLIB_PATH is set");
    for (what, side, matrices) in [("4 MiB", SIDE, 1), ("64 MiB", SIDE, 16), ("16 numbers", 4, 1)] {
        let path = directory.join("called.onnx");
        write(&path, side, matrices);
        let path = path.display().to_string();
        for (threads, on) in [("1", "one thread"), ("0", "all cores")] {
            let (mut ours, mut blocking, mut raw) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(process(&["managed", &path, threads]));
                blocking.push(process(&["blocking", &path, threads]));
                raw.push(process(&["direct", &path, threads, &library]));
            }
            let raw = median(raw);
            for (how, ours) in [("awaited", median(ours)), ("blocking", median(blocking))] {
                report
                    .add(format!("{how} calls a second, {what}, {on}"), "1/s", 1e6 / ours)
                    .beside(1e6 / raw)
                    .goal(">= 0.97");
                report.add(format!("added to a call, {what}, {on}, {how}"), "µs", ours - raw).goal("< 20 µs");
            }
        }
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
