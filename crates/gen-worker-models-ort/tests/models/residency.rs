//! Which models are in memory, and for whom.

use super::*;

#[tokio::test]
async fn a_model_in_use_is_not_unloaded_and_the_runs_are_named() {
    let models = models();
    let local = fixture("double_plus_one");
    let holder =
        |run: &str| LeaseHolder { run_id: Some(RunId::parse(run).unwrap()), ..LeaseHolder::default() };
    let one = models.model(&local, &holder("run-1")).await.unwrap();
    let two = models.model(&local, &holder("run-2")).await.unwrap();
    let refused = models.unload(&local.model).await.unwrap_err();
    assert_eq!(
        (refused.kind, &*refused.safe_message),
        (FailureKind::Retryable, "the model is in use by run-1, run-2")
    );
    drop((one, two));
    models.unload(&local.model).await.unwrap();
    models.unload(&local.model).await.unwrap();
    assert!(models.resident().is_empty());
    assert_eq!((models.stats().used_bytes, models.stats().resident), (0, 0));
}

#[tokio::test]
async fn who_leases_what_is_listed() {
    let (models, local) = (models(), fixture("double_plus_one"));
    let holder = LeaseHolder { run_id: Some(RunId::parse("r1").unwrap()), ..LeaseHolder::default() };
    let lease = models.lease(&local, &holder).await.unwrap();
    let [leased] = &models.leases()[..] else { panic!("one model is leased") };
    assert_eq!(
        (leased.model.as_str(), leased.held_by.join(","), leased.waiting.len()),
        (local.model.known_as(), "r1".to_owned(), 0)
    );
    assert!(leased.bytes > 0);
    drop(lease);
    assert!(models.leases().is_empty());
}

#[tokio::test]
async fn a_model_from_other_files_takes_the_place_of_the_old() {
    let models = models();
    let old = fixture("double_plus_one");
    let directory = tempfile::tempdir().unwrap();
    let moved = LocalModel { root: directory.path().to_owned(), ..old.clone() };
    let before = model(&models, &old).await.unwrap();
    let after = model(&models, &moved).await.unwrap();
    assert_ne!(before.inputs().as_ptr(), after.inputs().as_ptr());
    assert_eq!(models.resident().len(), 1);
}

/// A copy of a fixture that is said to be so large, which is what it is charged then: its own few kilobytes are less.
fn of_size(directory: &Path, name: &str, gib: u64) -> LocalModel {
    let path = directory.join(format!("{name}.onnx"));
    fs::copy(format!("{FIXTURES}/double_plus_one.onnx"), &path).unwrap();
    LocalModel { size_bytes: gib << 30, root: directory.join(name), ..local(path) }
}

fn with_budget(gib: u64) -> OrtModels {
    let max_ram = Some(ByteSize::gib(gib));
    OrtModels::new(OrtConfig { max_ram, ..config() }).unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn more_models_than_fit_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    // Each takes some more than it says: the library's own memory is measured too.
    let models = with_budget(11);
    let [a, b, c] = ["a", "b", "c"].map(|name| of_size(directory.path(), name, 5));
    drop(model(&models, &a).await.unwrap());
    let held = model(&models, &b).await.unwrap();
    drop(model(&models, &a).await.unwrap());
    assert_eq!((names(&models), models.stats().hits), (vec!["b".into(), "a".into()], 1));
    drop(model(&models, &c).await.unwrap());
    assert_eq!(names(&models), ["b", "c"], "b is older, and leased");
    held.run([("x", array![[1.0_f32]])]).await.unwrap();
    let stats = models.stats();
    assert_eq!((stats.loads, stats.evictions, stats.leased), (3, 1, 1));
    assert!(stats.used_bytes >= 10 << 30 && stats.used_bytes <= stats.budget_bytes, "{stats:?}");
    let large = of_size(directory.path(), "large", 12);
    let error = JobFailure::from(model(&models, &large).await.unwrap_err());
    assert_eq!(error.kind, FailureKind::Resource);
    assert_eq!(
        error.safe_message,
        "the model takes 12.0 GiB of memory; this worker has 11.0 GiB of memory for models: raise WORKER_MAX_RAM_GB"
    );
}

#[tokio::test]
async fn what_does_not_fit_now_waits_for_leases_and_not_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let models = with_budget(9);
    let [a, b] = ["a", "b"].map(|name| of_size(directory.path(), name, 5));
    let held = model(&models, &a).await.unwrap();
    let (waited, ()) = tokio::join!(model(&models, &b), async {
        tokio::task::yield_now().await;
        assert_eq!(names(&models), ["a"]);
        drop(held);
    });
    let held = waited.unwrap();
    assert_eq!(names(&models), ["b"]);
    let impatient =
        OrtConfig { wait: Duration::from_millis(50), max_ram: Some(ByteSize::gib(9)), ..config() };
    let models = OrtModels::new(impatient).unwrap();
    let _a = model(&models, &a).await.unwrap();
    let error = JobFailure::from(model(&models, &b).await.unwrap_err());
    assert_eq!(
        (error.kind, &*error.safe_message),
        (
            FailureKind::Retryable,
            "no room for the model in 50ms: others are in use; WORKER_MODEL_WAIT_SECONDS says how long to wait"
        )
    );
    assert_eq!(models.stats().leased, 1);
    drop(held);
}

#[tokio::test]
async fn those_who_go_away_leave_nothing_behind() {
    let models = models();
    let local = fixture("double_plus_one");
    for _ in 0..20 {
        let mut asking = Box::pin(model(&models, &local));
        assert!(futures_util::poll!(&mut asking).is_pending() || models.stats().resident == 1);
        drop(asking);
        assert_eq!(models.stats().leased, 0);
        models.unload(&local.model).await.unwrap();
        assert_eq!((models.stats().resident, models.stats().used_bytes), (0, 0));
    }
}
