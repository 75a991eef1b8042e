//! The checks.

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gen_worker_core::{
    ByteSize, CancelReason, FailureKind, JobFailure, LocalModel, ModelRef,
    config::{ConfigErrors, Env},
    ports::{LeaseHolder, ModelDevice, ModelManager},
};
use gen_worker_models_ort::{
    ModelError, OrtConfig, OrtModel, OrtModels, Provider, Tensor,
    ndarray::{Array2, arr0, array},
};

use super::{
    memory::Memory,
    onnx::{self, Onnx},
    table::Table,
    threads,
};

/// What is checked, and how hard.
pub(crate) struct Settings {
    pub(crate) provider: Provider,
    pub(crate) cycles: u32,
    pub(crate) mib: u32,
    pub(crate) cancel: Duration,
}

/// Columns and rows of a matrix of 4 MiB.
const SIDE: i64 = 1024;
/// The driver gives memory in pieces of 2 MiB, and the library keeps a few.
const SLACK: u64 = 16 << 20;

const COUNT_UP: &[u8] = include_bytes!("../../tests/fixtures/count_up.onnx");
const ZEROS: &[u8] = include_bytes!("../../tests/fixtures/zeros.onnx");

/// What all checks need.
struct Bench<'a> {
    settings: &'a Settings,
    memory: Memory,
    directory: tempfile::TempDir,
    table: Table,
}

/// Checks everything.
///
/// # Errors
/// What is missing on this machine; nothing was checked.
pub(crate) async fn all(settings: &Settings) -> Result<Table, String> {
    let memory = Memory::of(settings.provider)?;
    let directory = tempfile::tempdir().map_err(|error| format!("there is no room for models ({error})"))?;
    let mut bench = Bench { settings, memory, directory, table: Table::default() };
    let models = bench.models(None).map_err(|error| missing(&error))?;
    bench.provider(&models).await;
    let bytes = bench.bytes(&models).await;
    drop(models);
    bench.evictions(bytes).await;
    bench.cancel().await;
    bench.out_of_memory().await;
    bench.binding().await;
    bench.cycles().await;
    Ok(bench.table)
}

fn missing(error: &ModelError) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    let told = causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"));
    format!(
        "{told} (for a card: ORT_DYLIB_PATH of an ONNX Runtime built for CUDA, its CUDA and cuDNN in LD_LIBRARY_PATH)"
    )
}

impl Bench<'_> {
    fn models(&self, budget: Option<u64>) -> Result<OrtModels, ModelError> {
        #[expect(clippy::disallowed_methods, reason = "a check has no settings of its own")]
        let settings = ["ORT_DYLIB_PATH", "CUDA_VISIBLE_DEVICES"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var(name).ok()?)));
        let config = OrtConfig::from_env(&Env::from_iter(settings), &mut ConfigErrors::default());
        let (providers, budget) = (vec![self.settings.provider], budget.map(ByteSize));
        OrtModels::new(match self.is_card() {
            true => OrtConfig { providers, max_vram: budget, ..config },
            false => OrtConfig { providers, max_ram: budget, ..config },
        })
    }

    fn again(&self, budget: Option<u64>) -> OrtModels {
        self.models(budget).expect("it worked before")
    }

    fn is_card(&self) -> bool {
        matches!(self.settings.provider, Provider::Cuda | Provider::TensorRt)
    }

    fn file(&self, name: &str, onnx: &[u8]) -> LocalModel {
        let path = self.directory.path().join(format!("{name}.onnx"));
        fs::write(&path, onnx).expect("there is room for a model");
        local(&path)
    }

    /// A chain of matrices, so many MiB.
    fn matrices(&self, name: &str, mib: u32) -> LocalModel {
        let mut onnx = Onnx::new().input("x", onnx::F32, &[1, SIDE]).output("y", onnx::F32, &[1, SIDE]);
        let mut numbers: Vec<f32> = (0..SIDE * SIDE).map(|at| (at % 7) as f32 / 7.0 - 0.4).collect();
        let count = mib.div_ceil(4);
        for at in 0..count {
            // The library keeps matrices that are alike once.
            numbers[1] = at as f32;
            let (from, to) = (format!("t{at}"), format!("t{}", at + 1));
            let from = if at == 0 { "x" } else { from.as_str() };
            let to = if at + 1 == count { "y" } else { to.as_str() };
            let weight = format!("w{at}");
            onnx = onnx.weights(&weight, &[SIDE, SIDE], &numbers).node("", "MatMul", &[from, &weight], &[to]);
        }
        self.file(name, &onnx.write())
    }

    /// It is the one that was asked for, and computes.
    async fn provider(&mut self, models: &OrtModels) {
        let (wanted, found) = (self.settings.provider, models.provider());
        self.table.add("provider in use", found, wanted, found == wanted);
        let (wanted, found) =
            (if self.is_card() { ModelDevice::Gpu } else { ModelDevice::Processor }, models.device());
        self.table.add("models are on", format!("{found:?}"), format!("{wanted:?}"), found == wanted);
        let local = self.matrices("first", 4);
        let column = (0..SIDE).map(|row| ((row * SIDE) % 7) as f32 / 7.0 - 0.4).sum::<f32>();
        let found = match lease(models, &local).await.run([("x", ones())]).await {
            Ok(mut outputs) => outputs.take::<f32>("y").map(|y| y[[0, 0]]).map_err(JobFailure::from),
            Err(error) => Err(error.into()),
        };
        let is_near = found.as_ref().is_ok_and(|found| (found - column).abs() < 1e-2 * column.abs().max(1.0));
        let found = found.map_or_else(|failure| failure.safe_message, |found| format!("{found:.3}"));
        self.table.add("a product of matrices", found, format!("{column:.3}"), is_near);
    }

    /// What the manager says that a model takes, and what the driver does.
    async fn bytes(&mut self, models: &OrtModels) -> u64 {
        let local = self.matrices("measured", self.settings.mib);
        let (before, charged) = (self.memory.used(), models.stats().used_bytes);
        drop(lease(models, &local).await);
        let driver = self.memory.used().saturating_sub(before);
        let manager = models.stats().used_bytes - charged;
        let is_near = manager.abs_diff(driver) <= driver / 20;
        self.table.add("bytes of a model: manager, driver", ByteSize(manager), within(driver), is_near);
        models.unload(&local.model).await.expect("nobody leases it");
        let left = self.memory.used().saturating_sub(before);
        self.table.add("bytes left when it is unloaded", ByteSize(left), at_most(SLACK), left <= SLACK);
        manager
    }

    /// Three models and room for two.
    async fn evictions(&mut self, bytes: u64) {
        let budget = bytes / 2 * 5;
        let (models, before) = (self.again(Some(budget)), self.memory.used());
        let local = ["one", "two", "three"].map(|name| self.matrices(name, self.settings.mib));
        let (mut charged, mut driver) = (0, 0);
        for local in local.iter().chain(&local) {
            lease(&models, local).await.run([("x", ones())]).await.expect("it has run before");
            charged = models.stats().used_bytes.max(charged);
            driver = self.memory.used().saturating_sub(before).max(driver);
        }
        let evictions = models.stats().evictions;
        self.table.add("evictions of 3 models in turn, room for 2", evictions, 4, evictions == 4);
        self.table.add("most bytes charged", ByteSize(charged), at_most(budget), charged <= budget);
        let most = budget + budget / 20 + SLACK;
        self.table.add("most bytes by the driver", ByteSize(driver), at_most(most), driver <= most);
        for local in &local {
            models.unload(&local.model).await.expect("nobody leases it");
        }
    }

    /// A run that would take for ever ends, and its memory is free.
    async fn cancel(&mut self) {
        let (models, local) = (self.again(None), self.file("count", COUNT_UP));
        let mut longest = Duration::ZERO;
        for _ in 0..5 {
            let holder = LeaseHolder::default();
            let model = models.model(&local, &holder).await.expect("it can be loaded");
            let inputs: [(&str, Tensor); 2] =
                [("rounds", arr0(i64::MAX).into()), ("x", array![0_i64].into())];
            let (tell, told) = tokio::sync::oneshot::channel();
            let stop = async {
                computes().await;
                let _ = tell.send(Instant::now());
                holder.cancellation.cancel(CancelReason::User);
            };
            let (ended, ()) = tokio::join!(model.run(inputs), stop);
            ended.expect_err("it was told to stop");
            drop(model);
            models.unload(&local.model).await.expect("nobody leases it");
            longest = longest.max(told.await.map(|told| told.elapsed()).unwrap_or_default());
        }
        let wanted = format!("at most {:?}", self.settings.cancel);
        self.table.add(
            "a canceled run has ended",
            format!("{longest:?}"),
            wanted,
            longest <= self.settings.cancel,
        );
    }

    /// It is the run's failure, and the next call works.
    async fn out_of_memory(&mut self) {
        let (models, local) = (self.again(None), self.file("zeros", ZEROS));
        let model = lease(&models, &local).await;
        let error = model.run([("shape", array![1_i64 << 42])]).await.expect_err("16 TiB");
        let kind = JobFailure::from(error).kind;
        self.table.add(
            "16 TiB are",
            kind.as_str(),
            FailureKind::Resource.as_str(),
            kind == FailureKind::Resource,
        );
        let next = model.run([("shape", array![3_i64])]).await.is_ok();
        self.table.add("and the next call", next, true, next);
    }

    /// A loop of additions on one matrix, without a copy to and fro.
    async fn binding(&mut self) {
        const STEPS: u16 = 100;
        let shape = [SIDE, SIDE];
        let onnx = Onnx::new()
            .input("x", onnx::F32, &shape)
            .output("next", onnx::F32, &shape)
            .weights("one", &[1], &[1.0])
            .node("", "Add", &["x", "one"], &["next"]);
        let (models, local) = (self.again(None), self.file("add", &onnx.write()));
        let model = lease(&models, &local).await;
        let zeros = Array2::<f32>::zeros((SIDE as usize, SIDE as usize));
        let mut binding = model.bind([("x", zeros)], &[("next", "x")]).expect("they fit");
        let mut before = 0;
        for step in 0..STEPS {
            binding.run().await.expect("it runs");
            if step == 1 {
                before = self.memory.used();
            }
        }
        let grown = self.memory.used().saturating_sub(before);
        let on_device = binding.is_on_device("next").unwrap_or_default();
        self.table.add("bound tensors are on a card", on_device, self.is_card(), on_device == self.is_card());
        let found = binding.get::<f32>("next").map(|sum| sum[[0, 0]]).unwrap_or(f32::NAN);
        self.table.add("sum of 100 bound additions", found, STEPS, found == f32::from(STEPS));
        self.table.add("bytes that 98 of them took", ByteSize(grown), at_most(SLACK), grown <= SLACK);
    }

    /// Nothing is left of a model that was unloaded, however often.
    async fn cycles(&mut self) {
        let (models, local) = (self.again(None), self.matrices("cycle", 16));
        let mut used = Vec::new();
        for _ in 0..self.settings.cycles {
            drop(lease(&models, &local).await);
            models.unload(&local.model).await.expect("nobody leases it");
            used.push(self.memory.used());
        }
        // The least of several, because what a thread is about to free is counted too; and what the library sets up once is there
        // after the first.
        let (first, last) = used.split_at(used.len() / 2);
        let least = |used: &[u64]| used.iter().skip(1).copied().min().unwrap_or_default();
        let grown = least(last).saturating_sub(least(first));
        self.table.add("growth over all loads and unloads", ByteSize(grown), at_most(SLACK), grown <= SLACK);
        let stats = models.stats();
        let (loads, left) = (stats.loads, stats.used_bytes);
        let wanted = u64::from(self.settings.cycles);
        self.table.add("loads and unloads", loads, wanted, loads == wanted && left == 0);
    }
}

/// Waits until the thread of a session has computed for a while.
async fn computes() {
    const LIMIT: Duration = Duration::from_secs(60);
    let began = Instant::now();
    while threads::ticks_of("ort-session") < 3 {
        assert!(began.elapsed() < LIMIT, "no session computes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn ones() -> Array2<f32> {
    Array2::ones((1, SIDE as usize))
}

fn local(path: &Path) -> LocalModel {
    LocalModel {
        model: ModelRef::parse(&format!("file:{}", path.display())).expect("an absolute path"),
        root: path.parent().expect("it lies in a folder").to_owned(),
        files: BTreeMap::from([("net.onnx".to_owned(), path.to_owned())]),
        size_bytes: fs::metadata(path).expect("it was written").len(),
        pin: None,
    }
}

async fn lease(models: &OrtModels, local: &LocalModel) -> OrtModel {
    models.model(local, &LeaseHolder::default()).await.expect("it can be loaded")
}

fn within(bytes: u64) -> String {
    format!("{} ± 5 %", ByteSize(bytes))
}

fn at_most(bytes: u64) -> String {
    format!("at most {}", ByteSize(bytes))
}
