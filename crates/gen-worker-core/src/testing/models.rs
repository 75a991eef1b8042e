//! A model manager without models, and what is asked of every one.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::{
    failure::{FailureKind, JobFailure},
    id::RunId,
    model_ref::{LocalModel, ModelRef},
    ports::{LeaseHolder, ModelDevice, ModelLease, ModelManager, ModelStats},
};

/// Takes any model that has files for loaded, and knows who leases it. It has no budget.
#[derive(Debug, Default)]
pub struct FakeModels(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    /// Who leases each model that is there.
    users: HashMap<ModelRef, Vec<(u64, String)>>,
    stats: ModelStats,
    last: u64,
}

/// What [`FakeModels`] leases.
#[derive(Debug)]
pub struct FakeLease {
    model: ModelRef,
    id: u64,
    shelf: Arc<Mutex<Shelf>>,
}

impl FakeLease {
    /// The model.
    pub fn model(&self) -> &ModelRef {
        &self.model
    }
}

impl Drop for FakeLease {
    fn drop(&mut self) {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.stats.leased -= 1;
        if let Some(users) = shelf.users.get_mut(&self.model) {
            users.retain(|(id, _)| *id != self.id);
        }
    }
}

impl FakeModels {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease_now(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<FakeLease, JobFailure> {
        if local.files.is_empty() {
            return Err(JobFailure::new(FailureKind::Validation, "the model has no files"));
        }
        let mut shelf = self.shelf();
        let is_there = shelf.users.contains_key(&local.model);
        shelf.last += 1;
        shelf.stats.leased += 1;
        match is_there {
            true => shelf.stats.hits += 1,
            false => {
                shelf.stats.misses += 1;
                shelf.stats.loads += 1;
            }
        }
        let id = shelf.last;
        let user = holder.run_id.as_ref().map(ToString::to_string).unwrap_or_default();
        shelf.users.entry(local.model.clone()).or_default().push((id, user));
        Ok(FakeLease { model: local.model.clone(), id, shelf: self.0.clone() })
    }
}

#[async_trait]
impl ModelManager for FakeModels {
    async fn load(&self, local: &LocalModel) -> Result<(), JobFailure> {
        self.lease_now(local, &LeaseHolder::default()).map(drop)
    }

    async fn lease(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<ModelLease, JobFailure> {
        Ok(Arc::new(self.lease_now(local, holder)?))
    }

    async fn unload(&self, model: &ModelRef) -> Result<(), JobFailure> {
        let mut shelf = self.shelf();
        let users = shelf.users.get(model).map(Vec::as_slice).unwrap_or_default();
        if !users.is_empty() {
            let users: Vec<_> = users.iter().map(|(_, user)| user.as_str()).collect();
            let message = format!("the model is in use by {}", users.join(", "));
            return Err(JobFailure::new(FailureKind::Retryable, message));
        }
        let was_there = shelf.users.remove(model).is_some();
        shelf.stats.evictions += u64::from(was_there);
        Ok(())
    }

    fn resident(&self) -> Vec<String> {
        self.shelf().users.keys().map(|model| model.known_as().to_owned()).collect()
    }

    fn stats(&self) -> ModelStats {
        let shelf = self.shelf();
        ModelStats { resident: shelf.users.len() as u64, ..shelf.stats }
    }

    fn device(&self) -> ModelDevice {
        ModelDevice::Processor
    }

    fn engine_version(&self) -> Option<String> {
        None
    }
}

/// What is asked of every model manager, checked on one that has nothing in memory: `good` can be loaded, `broken` cannot.
///
/// # Panics
/// It does not keep to it; the message says to what.
pub async fn check_model_manager(manager: &dyn ModelManager, good: &LocalModel, broken: &LocalModel) {
    let at_first = manager.stats();
    assert!(manager.resident().is_empty(), "nothing is in memory at first");
    one_load_serves_all_who_ask(manager, good).await;
    a_leased_model_is_not_unloaded(manager, good).await;
    those_who_go_away_leave_no_lease(manager, good).await;
    what_cannot_be_loaded_leaves_nothing(manager, broken).await;
    manager.unload(&good.model).await.expect("what nobody leases is unloaded");
    let at_last = manager.stats();
    assert_eq!((at_last.resident, at_last.leased), (0, 0), "everything ends");
    assert_eq!(at_last.used_bytes, at_first.used_bytes, "no byte is lost");
}

fn run(id: &str) -> LeaseHolder {
    LeaseHolder { run_id: Some(RunId::parse(id).expect("it is an id")), ..LeaseHolder::default() }
}

async fn one_load_serves_all_who_ask(manager: &dyn ModelManager, model: &LocalModel) {
    let holder = LeaseHolder::default();
    let leases = join_all((0..8).map(|_| manager.lease(model, &holder))).await;
    assert!(leases.iter().all(Result::is_ok), "a good model can be leased");
    let stats = manager.stats();
    assert_eq!((stats.loads, stats.leased, stats.resident), (1, 8, 1), "callers share one load");
    assert_eq!(stats.hits + stats.misses, 8, "a lease is a hit or a miss");
    assert_eq!(manager.resident(), [model.model.known_as()], "as it was written");
    drop(leases);
    assert_eq!(manager.stats().leased, 0, "a lease ends when it is dropped");
    manager.load(model).await.expect("to load what is there is no mistake");
    let stats = manager.stats();
    assert_eq!((stats.loads, stats.leased), (1, 0), "a model stays, and loading it leases nothing");
}

async fn a_leased_model_is_not_unloaded(manager: &dyn ModelManager, model: &LocalModel) {
    let lease = manager.lease(model, &run("run-of-the-lease")).await.expect("it can be leased");
    let clone = lease.clone();
    drop(lease);
    let refused = manager.unload(&model.model).await.expect_err("a clone keeps it");
    assert_eq!(refused.kind, FailureKind::Retryable, "later it may be unloaded");
    assert!(refused.safe_message.contains("run-of-the-lease"), "it names the runs: {}", refused.safe_message);
    assert_eq!(manager.resident(), [model.model.known_as()]);
    drop(clone);
    for _ in 0..2 {
        manager.unload(&model.model).await.expect("unloading what is not there succeeds");
        assert!(manager.resident().is_empty(), "it is gone when `unload` returns");
    }
}

async fn those_who_go_away_leave_no_lease(manager: &dyn ModelManager, model: &LocalModel) {
    let holder = run("impatient");
    {
        let mut asking = pin!(manager.lease(model, &holder));
        // Done or not, it is dropped here.
        let _ = asking.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    assert_eq!(manager.stats().leased, 0, "whoever goes away has no lease");
    manager.lease(model, &run("next")).await.expect("and is in nobody's way");
}

async fn what_cannot_be_loaded_leaves_nothing(manager: &dyn ModelManager, broken: &LocalModel) {
    let before = manager.stats();
    for _ in 0..2 {
        let failure = manager.lease(broken, &run("unlucky")).await.expect_err("it is broken");
        assert_eq!(failure.kind, FailureKind::Validation, "the model is wrong, not the worker");
    }
    let after = manager.stats();
    assert_eq!((after.used_bytes, after.leased), (before.used_bytes, 0), "no byte is lost");
    assert!(!manager.resident().iter().any(|known| known == broken.model.known_as()));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_to_it() {
        let local = |name: &str, files| LocalModel {
            model: ModelRef::parse(name).unwrap(),
            root: "/m".into(),
            files,
            size_bytes: 0,
            pin: None,
        };
        let good = local("acme/good", BTreeMap::from([("m".to_owned(), "/m/m".into())]));
        check_model_manager(&FakeModels::default(), &good, &local("acme/broken", BTreeMap::new())).await;
    }
}
