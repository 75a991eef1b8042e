//! Calls that are told to stop, and calls for which memory runs out.

use super::*;

#[tokio::test]
async fn a_run_that_is_told_to_stop_ends_its_inference() {
    let (models, cancellation) = (models(), Cancellation::new());
    let holder = LeaseHolder { run_id: None, cancellation: cancellation.clone() };
    let model = models.model(&fixture("count_up"), &holder).await.unwrap();
    let blocking = model.clone();
    let endless = tokio::task::spawn_blocking(move || blocking.run_blocking(counting(i64::MAX)));
    // The call has begun, or begins and ends at once; either way it would not end by itself.
    cancellation.cancel(CancelReason::Deadline);
    let told = told(endless.await.unwrap().unwrap_err());
    assert_eq!(told.0, FailureKind::Canceled);
    drop(model);
    // The thread is joined: were the inference going on, this would never return.
    models.unload(&fixture("count_up").model).await.unwrap();
}

#[tokio::test]
async fn a_cancel_ends_the_inference_of_a_thread_that_waits_for_it() {
    let (models, cancellation) = (models(), Cancellation::new());
    let holder = LeaseHolder { run_id: None, cancellation: cancellation.clone() };
    let local = fixture("count_up");
    let counter = models.model(&local, &holder).await.unwrap();
    let other = model(&models, &local).await.unwrap();
    // One computes and one waits for the session; neither would end.
    let calls = [counter.clone(), counter]
        .map(|counter| std::thread::spawn(move || counter.run_blocking(counting(i64::MAX)).unwrap_err()));
    // It is answered at once only as long as neither has begun.
    let next = loop {
        let mut next = Box::pin(other.run(counting(5)));
        if futures_util::poll!(&mut next).is_pending() {
            break next;
        }
    };
    assert!(cancellation.cancel(CancelReason::User));
    for call in calls {
        assert_eq!(told(call.join().unwrap()).0, FailureKind::Canceled);
    }
    assert_eq!(next.await.unwrap().take::<i64>("total").unwrap(), array![5].into_dyn());
}

#[tokio::test]
async fn a_dropped_call_ends_its_inference() {
    let model = load("count_up").await;
    // Hundreds of years. The time limit only lets it begin; ended or not, the call is dropped then.
    let endless = model.run(counting(i64::MAX));
    assert!(tokio::time::timeout(Duration::from_millis(300), endless).await.is_err());
    let next = model.run(counting(5));
    let mut outputs =
        tokio::time::timeout(Duration::from_secs(60), next).await.expect("the thread is free").unwrap();
    assert_eq!(outputs.take::<i64>("total").unwrap(), array![5].into_dyn());
}

#[tokio::test]
async fn out_of_memory_evicts_what_is_idle_and_the_worker_lives_on() {
    let models = models();
    models.load(&fixture("double_plus_one")).await.unwrap();
    let zeros = model(&models, &fixture("zeros")).await.unwrap();
    let error = zeros.run([("shape", array![1_i64 << 60])]).await.unwrap_err();
    assert_eq!(told(error), (FailureKind::Resource, "out of memory".into()));
    assert_eq!(names(&models), ["zeros"]);
    zeros.run([("shape", array![3_i64])]).await.unwrap();
}

#[test]
fn out_of_memory_evicts_on_a_thread_without_a_runtime_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let models = models();
    let zeros = runtime.block_on(async {
        models.load(&fixture("double_plus_one")).await.unwrap();
        model(&models, &fixture("zeros")).await.unwrap()
    });
    let call = move || zeros.run_blocking([("shape", array![1_i64 << 60])]).unwrap_err();
    let error = std::thread::spawn(call).join().expect("it does not panic");
    assert_eq!(told(error), (FailureKind::Resource, "out of memory".into()));
    assert_eq!(models.stats().resident, 1, "what was idle is gone");
}

pub(super) fn counting(rounds: i64) -> [(&'static str, Tensor); 2] {
    [("rounds", arr0(rounds).into()), ("x", array![0_i64].into())]
}
