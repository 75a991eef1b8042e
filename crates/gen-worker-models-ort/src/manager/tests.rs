//! Real models on the real library, with loads that fail, are given up, or panic.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
};

use gen_worker_core::{
    ByteSize, Event, FailureKind, RunId,
    config::{ConfigErrors, Env},
};
use tokio::task::{JoinSet, yield_now};

use super::*;
use crate::budget::Memory;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const GIB: u64 = 1 << 30;

/// With room for so many GiB; loads are measured by this.
fn models(gib: u64, gauge: impl Gauge + 'static) -> OrtModels {
    crate::library::for_tests();
    let env = Env::from_iter([("WORKER_ORT_THREADS", "1")]);
    let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
    let models = OrtModels::new(OrtConfig { max_ram: Some(ByteSize::gib(gib)), ..config });
    let office = Arc::try_unwrap(models.unwrap_or_else(|error| panic!("{error}")).0);
    let Ok(office) = office else { panic!("nobody else has it") };
    OrtModels(Arc::new(Office { gauge: Box::new(gauge), ..office }))
}

/// A model of this file that is said to have so many GiB.
fn local(name: &str, file: &str, gib: u64) -> LocalModel {
    LocalModel {
        model: ModelRef::parse(&format!("acme/{name}")).unwrap(),
        root: PathBuf::from(name),
        files: BTreeMap::from([("net.onnx".to_owned(), Path::new(FIXTURES).join(file))]),
        size_bytes: gib * GIB,
        pin: None,
    }
}

fn good(name: &str, gib: u64) -> LocalModel {
    local(name, "double_plus_one.onnx", gib)
}

fn assert_empty(models: &OrtModels) {
    let ModelStats { resident, leased, used_bytes, .. } = models.stats();
    assert_eq!((resident, leased, used_bytes), (0, 0, 0), "{:?}", models.stats());
    assert!(models.leases().is_empty());
}

/// Panics so many times.
struct Panics(AtomicUsize);

impl Gauge for Panics {
    fn used(&self) -> Memory {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(left.is_err(), "a fault of the load");
        Memory::default()
    }
}

#[tokio::test]
async fn a_load_that_panics_is_an_error_for_all_who_wait_and_the_next_load_works() {
    let (models, local) = (models(7, Panics(AtomicUsize::new(1))), good("a", 3));
    let (one, other) =
        (LeaseHolder::default(), LeaseHolder { run_id: RunId::parse("r").ok(), ..LeaseHolder::default() });
    let (first, second) = tokio::join!(models.lease(&local, &one), models.lease(&local, &other));
    for failure in [first.err().unwrap(), second.err().unwrap()] {
        assert_eq!(
            (failure.kind, &*failure.safe_message),
            (FailureKind::Internal, "a fault of the worker ended the load or the call of the model")
        );
    }
    assert_empty(&models);
    let lease = models.lease(&local, &one).await.unwrap();
    assert_eq!((models.stats().loads, models.stats().used_bytes), (2, 3 * GIB));
    drop(lease);
    models.unload(&local.model).await.unwrap();
    assert_empty(&models);
}

/// Each measurement waits until it may.
struct Held(Mutex<mpsc::Receiver<()>>);

impl Gauge for Held {
    fn used(&self) -> Memory {
        // The test has ended.
        let _ = self.0.lock().unwrap().recv();
        Memory::default()
    }
}

#[tokio::test]
async fn a_load_that_was_given_up_is_charged_until_it_leaves_and_serves_the_next() {
    let (go_on, held) = mpsc::channel();
    let (models, local) = (models(7, Held(Mutex::new(held))), good("a", 3));
    let holder = LeaseHolder::default();
    {
        let mut asking = Box::pin(models.lease(&local, &holder));
        assert!(futures_util::poll!(&mut asking).is_pending());
    }
    let stats = models.stats();
    assert_eq!((stats.leased, stats.used_bytes), (0, 3 * GIB), "it is being loaded");
    (0..2).for_each(|_| go_on.send(()).unwrap());
    drop(models.lease(&local, &holder).await.unwrap());
    assert_eq!((models.stats().loads, models.stats().used_bytes), (1, 3 * GIB), "one load served");
    models.unload(&local.model).await.unwrap();
    assert_empty(&models);
}

/// A listener with a fault.
struct Deaf;

impl EventSink for Deaf {
    fn emit(&self, _event: Event) {
        panic!("a fault of the listener");
    }
}

#[tokio::test]
async fn a_listener_that_panics_costs_its_events_only() {
    let (models, local) = (models(7, Panics(AtomicUsize::new(0))), good("a", 3));
    models.report_to(Arc::new(Deaf));
    models.load(&local).await.unwrap();
    models.unload(&local.model).await.unwrap();
    assert_empty(&models);
}

/// Panics now and then, until it is told to be calm.
struct Moody {
    random: Mutex<fastrand::Rng>,
    is_calm: Arc<AtomicBool>,
}

impl Gauge for Moody {
    fn used(&self) -> Memory {
        let is_moody = self.random.lock().unwrap_or_else(PoisonError::into_inner).u8(..8) == 0;
        assert!(!is_moody || self.is_calm.load(Ordering::Relaxed), "a fault of the load");
        Memory::default()
    }
}

async fn pause(turns: u8) {
    for _ in 0..turns {
        yield_now().await;
    }
}

/// One of many who ask, give up, hold and unload; nobody holds one model while it waits for another.
async fn come_and_go(models: Arc<OrtModels>, locals: Arc<[LocalModel]>, seed: u64) -> u32 {
    let (mut random, mut had) = (fastrand::Rng::with_seed(seed), 0);
    for _ in 0..60 {
        let local = &locals[random.usize(..locals.len())];
        let holder = LeaseHolder::default();
        let mut asking = Box::pin(models.model(local, &holder));
        // Some give up, at once or a little later.
        let leased = match random.u8(..6) {
            patience @ 0..2 => tokio::select! {
                biased;
                leased = &mut asking => leased.ok(),
                () = pause(patience * 8) => None,
            },
            _ => asking.await.ok(),
        };
        if let Some(model) = &leased {
            had += 1;
            let inputs = [("x", ndarray::array![[1.0_f32]])];
            let mut outputs = model.run(inputs).await.unwrap();
            assert_eq!(outputs.take::<f32>("y").unwrap()[[0, 0]], 3.0, "a lease was evicted");
            yield_now().await;
        }
        let stats = models.stats();
        assert!(stats.used_bytes <= stats.budget_bytes, "over the budget: {stats:?}");
        drop(leased);
        if random.u8(..6) == 0 {
            // Others may have it.
            let _ = models.unload(&local.model).await;
        }
    }
    had
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_fails_panics_or_is_given_up_no_byte_is_lost() {
    for seed in 0..6 {
        let is_calm = Arc::new(AtomicBool::new(false));
        let random = Mutex::new(fastrand::Rng::with_seed(seed));
        let models = Arc::new(models(7, Moody { random, is_calm: is_calm.clone() }));
        let locals: Arc<[LocalModel]> =
            [good("a", 2), good("b", 3), good("c", 4), good("large", 8), local("none", "fixtures.py", 1)]
                .into();
        let mut people = JoinSet::new();
        for person in 0..6 {
            people.spawn(come_and_go(models.clone(), locals.clone(), seed * 10 + person));
        }
        assert!(people.join_all().await.into_iter().sum::<u32>() > 0);
        is_calm.store(true, Ordering::Relaxed);
        assert_eq!(models.stats().leased, 0);
        // A load that nobody waits for any longer may still go on, and panic.
        while !models.resident().is_empty() || models.stats().used_bytes > 0 {
            for local in locals.iter() {
                let _ = models.unload(&local.model).await;
            }
            yield_now().await;
        }
        for local in &locals[..3] {
            drop(models.model(local, &LeaseHolder::default()).await.unwrap());
            models.unload(&local.model).await.unwrap();
        }
        assert_empty(&models);
    }
}
