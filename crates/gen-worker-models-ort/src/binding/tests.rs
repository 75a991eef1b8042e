//! Bindings to real sessions.

use std::{collections::BTreeMap, fs, time::Duration};

use gen_worker_core::{
    CancelReason, FailureKind, JobFailure, LocalModel, ModelRef,
    config::{ConfigErrors, Env},
    ports::LeaseHolder,
};
use ndarray::{arr0, array};

use self::onnx::Onnx;
use super::*;
use crate::{OrtConfig, OrtModel, OrtModels};

#[path = "../../tests/onnx/mod.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod onnx;

impl OrtBinding {
    fn address(&self, output: &str) -> *const ort::sys::c_void {
        self.bound().last(output).unwrap().data_ptr()
    }
}

async fn model(name: &str, onnx: &Onnx, holder: &LeaseHolder) -> OrtModel {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("net.onnx");
    fs::write(&file, onnx.write()).unwrap();
    leased(name, file, holder).await
}

async fn leased(name: &str, file: std::path::PathBuf, holder: &LeaseHolder) -> OrtModel {
    crate::library::for_tests();
    let env = Env::from_iter([("WORKER_ORT_THREADS", "1")]);
    let models = OrtModels::new(OrtConfig::from_env(&env, &mut ConfigErrors::default()))
        .unwrap_or_else(|error| panic!("{error}"));
    let local = LocalModel {
        model: ModelRef::parse(&format!("acme/{name}")).unwrap(),
        root: file.parent().unwrap().to_owned(),
        files: BTreeMap::from([("net.onnx".to_owned(), file)]),
        size_bytes: 0,
        pin: None,
    };
    models.model(&local, holder).await.unwrap()
}

/// `next = x + 1`, `twice = x + x` and `fixed = 2`.
fn counter() -> Onnx {
    Onnx::new()
        .input("x", onnx::F32, &[-1])
        .output("next", onnx::F32, &[-1])
        .output("twice", onnx::F32, &[-1])
        .output("fixed", onnx::F32, &[1])
        .weights("one", &[1], &[1.0])
        .node("", "Add", &["x", "one"], &["next"])
        .node("", "Add", &["x", "x"], &["twice"])
        .node("", "Add", &["one", "one"], &["fixed"])
}

fn told(error: WorkerError) -> (FailureKind, String) {
    let failure = JobFailure::from(error);
    (failure.kind, failure.safe_message)
}

#[tokio::test]
async fn a_loop_goes_to_and_fro_between_two_buffers() {
    let model = model("loop", &counter(), &LeaseHolder::default()).await;
    let mut binding = model.bind([("x", array![0.0_f32, 10.0])], &[("next", "x")]).unwrap();
    assert_eq!(binding.is_on_device("next"), None, "there was no call yet");
    let mut addresses = Vec::new();
    for step in 1..=6_u8 {
        match step % 2 {
            0 => binding.run().await.unwrap(),
            _ => binding.run_blocking().unwrap(),
        }
        let count = f32::from(step);
        assert_eq!(binding.get::<f32>("next").unwrap(), array![count, count + 10.0].into_dyn());
        assert_eq!(binding.get::<f32>("twice").unwrap()[[0]], 2.0 * (count - 1.0));
        assert_eq!(binding.get::<f32>("fixed").unwrap(), array![2.0].into_dyn());
        addresses.push(["next", "twice", "fixed"].map(|output| binding.address(output)));
        // Others may call the model in between, though it has one session.
        model.run([("x", array![7.0_f32])]).await.unwrap();
    }
    let next: Vec<_> = addresses.iter().map(|[next, ..]| *next).collect();
    assert!(next[0] != next[1] && next[2..].chunks(2).all(|pair| pair == &next[..2]), "{addresses:?}");
    assert!(addresses.iter().all(|[_, twice, fixed]| [*twice, *fixed] == addresses[0][1..]), "{addresses:?}");
    assert_eq!(binding.is_on_device("next"), Some(false));
}

#[tokio::test]
async fn inputs_are_replaced_and_take_other_shapes() {
    let model = model("set", &counter(), &LeaseHolder::default()).await;
    let mut carried = model.bind([("x", array![0.0_f32, 10.0])], &[("next", "x")]).unwrap();
    carried.run().await.unwrap();
    carried.set("x", array![5.0_f32, 6.0]).unwrap();
    assert!(carried.get::<f32>("next").is_err(), "no call gave what was set");
    carried.run().await.unwrap();
    assert_eq!(carried.get::<f32>("next").unwrap(), array![6.0, 7.0].into_dyn());
    carried.set("x", array![7.0_f32]).unwrap();
    carried.run().await.unwrap();
    assert_eq!(carried.get::<f32>("next").unwrap(), array![8.0].into_dyn());
    let mut plain = model.bind([("x", array![0.0_f32])], &[]).unwrap();
    for inputs in [array![1.0_f32], array![2.0, 3.0], array![4.0, 5.0, 6.0]] {
        plain.set("x", inputs.clone()).unwrap();
        plain.run().await.unwrap();
        assert_eq!(plain.get::<f32>("next").unwrap(), (inputs.clone() + 1.0).into_dyn());
        assert_eq!(plain.get::<f32>("twice").unwrap(), (inputs * 2.0).into_dyn());
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_the_call() {
    let model = model("refused", &counter(), &LeaseHolder::default()).await;
    let bind = |name: &str, carried: &[(&str, &str)]| {
        let (kind, message) = told(model.bind([(name, array![1.0_f32])], carried).unwrap_err());
        assert_eq!(kind, FailureKind::Validation);
        message
    };
    assert_eq!(bind("z", &[]), "the model takes x f32[N]; the call gives z f32[1]");
    let reason = |from, to, reason| format!("the binding cannot carry {from} to {to}: {reason}");
    for (carried, refused) in [
        (&[("none", "x")][..], reason("none", "x", "the graph has no such output")),
        (&[("next", "y")], reason("next", "y", "the graph has no such input")),
        (&[("next", "x"), ("next", "x")], reason("next", "x", "the output is carried already")),
        (&[("next", "x"), ("twice", "x")], reason("twice", "x", "another output is carried there")),
    ] {
        assert_eq!(bind("x", carried), refused);
    }
    let one = Onnx::new().input("x", onnx::F32, &[1]).output("y", onnx::F32, &[-1]);
    let one = one.weights("by", &[2], &[1.0, 2.0]).node("", "Add", &["x", "by"], &["y"]);
    let one = self::model("one", &one, &LeaseHolder::default()).await;
    let mut grown = one.bind([("x", array![5.0_f32])], &[("y", "x")]).unwrap();
    for _ in 0..2 {
        let refused = told(grown.run().await.unwrap_err());
        let reason = reason("y", "x", "it got a shape that the input does not take");
        assert_eq!(refused, (FailureKind::Validation, reason));
    }
    let mut binding = model.bind([("x", array![1.0_f32])], &[]).unwrap();
    assert_eq!(
        told(binding.get::<f32>("next").unwrap_err()).1,
        "the model gives nothing; the call takes next"
    );
    binding.run().await.unwrap();
    let other = binding.get::<i64>("next").unwrap_err();
    assert_eq!(told(other).1, "the model gives next f32[1]; the call takes next i64");
    assert!(told(binding.set("x", array![1_i64]).unwrap_err()).1.ends_with("gives x i64[1]"));
    let texts = Onnx::new().input("x", 8, &[1]).output("y", 8, &[1]).node("", "Identity", &["x"], &["y"]);
    let texts = self::model("texts", &texts, &LeaseHolder::default()).await;
    let refused = texts.bind([("x", array!["a".to_owned()])], &[]).unwrap_err();
    assert_eq!(told(refused).1, "the model takes tensors of numbers or bools; the call gives x String[1]");
}

#[tokio::test]
async fn a_call_that_was_dropped_or_canceled_changes_nothing() {
    let counting = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/count_up.onnx");
    let holder = LeaseHolder::default();
    let model = leased("count", counting.into(), &holder).await;
    let inputs = [("rounds", Tensor::from(arr0(i64::MAX))), ("x", array![0_i64].into())];
    let mut binding = model.bind(inputs, &[("total", "x")]).unwrap();
    // The time limit only lets it begin; ended or not, the call is dropped then.
    let limit = Duration::from_millis(200);
    assert!(tokio::time::timeout(limit, binding.run()).await.is_err());
    binding.set("rounds", arr0(5_i64)).unwrap();
    for total in [5, 10] {
        binding.run().await.unwrap();
        assert_eq!(binding.get::<i64>("total").unwrap(), array![total].into_dyn());
    }
    binding.set("rounds", arr0(i64::MAX)).unwrap();
    let call = std::thread::spawn(move || binding.run_blocking().unwrap_err());
    assert!(holder.cancellation.cancel(CancelReason::User));
    assert_eq!(told(call.join().unwrap()).0, FailureKind::Canceled);
}

#[tokio::test]
async fn a_call_whose_answer_nobody_took_changes_nothing() {
    let counting = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/count_up.onnx");
    let model = leased("untaken", counting.into(), &LeaseHolder::default()).await;
    let inputs = |rounds: i64| [("rounds", Tensor::from(arr0(rounds))), ("x", array![0_i64].into())];
    let mut binding = model.bind(inputs(200_000), &[("total", "x")]).unwrap();
    let mut call = Box::pin(binding.run());
    assert!(futures_util::poll!(&mut call).is_pending(), "it counts");
    // There is one session, so that the call has ended when this one has.
    model.run(inputs(1)).await.unwrap();
    drop(call);
    binding.set("rounds", arr0(5_i64)).unwrap();
    binding.run().await.unwrap();
    assert_eq!(binding.get::<i64>("total").unwrap(), array![5].into_dyn());
}

/// `wide = x + [1, 2, 3]`, said to be of this shape.
fn wide(shape: &[i64]) -> Onnx {
    Onnx::new()
        .input("x", onnx::F32, &[-1])
        .output("wide", onnx::F32, shape)
        .weights("by", &[3], &[1.0, 2.0, 3.0])
        .node("", "Add", &["x", "by"], &["wide"])
}

#[tokio::test]
async fn what_a_graph_says_of_its_outputs_shapes_may_be_wrong() {
    for (at, shape) in [&[-1][..], &[2], &[3], &[]].into_iter().enumerate() {
        let model = model(&format!("wrong-{at}"), &wide(shape), &LeaseHolder::default()).await;
        let x = array![1.0_f32];
        let plain = model.run([("x", x.clone())]).await.unwrap().take::<f32>("wide").unwrap();
        let mut binding = model.bind([("x", x.clone())], &[]).unwrap();
        for _ in 0..2 {
            binding.run().await.unwrap();
            assert_eq!(binding.get::<f32>("wide").unwrap(), plain, "{shape:?}");
        }
        let mut carried = model.bind([("x", x)], &[("wide", "x")]).unwrap();
        for times in [1.0, 2.0, 3.0] {
            carried.run().await.unwrap();
            let expected = array![1.0, 2.0, 3.0] * times + 1.0;
            assert_eq!(carried.get::<f32>("wide").unwrap(), expected.into_dyn(), "{shape:?}");
        }
    }
}
