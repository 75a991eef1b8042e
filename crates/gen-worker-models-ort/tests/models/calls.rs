//! Calls of a model, and what they are checked for.

use super::{endings::counting, *};

#[tokio::test]
async fn computes() {
    let model = load("double_plus_one").await;
    assert_eq!(model.inputs()[0].to_string(), "x f32[1, N]");
    assert_eq!(model.outputs()[0].shape, [Some(1), None]);
    let mut outputs = model.run([("x", array![[1.0_f32, 2.0, -3.5]])]).await.unwrap();
    assert_eq!(outputs.take::<f32>("y").unwrap(), array![[3.0, 5.0, -6.0]].into_dyn());
    let again = outputs.take_first::<f32>().unwrap_err();
    assert_eq!(told(again).1, "the model gives nothing; the call takes an output f32");
}

#[test]
fn computes_for_blocking_functions() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let model = runtime.block_on(load("double_plus_one"));
    let mut outputs = model.run_blocking([("x", array![[4.0_f32]])]).unwrap();
    assert_eq!(outputs.take_first::<f32>().unwrap(), array![[9.0]].into_dyn());
}

#[tokio::test]
async fn every_type_comes_back_as_it_went_in() {
    // The numbers of the types, as `onnx.proto3` has them.
    let given: [(&str, i64, Tensor); 14] = [
        ("f32", 1, array![0.5_f32].into()),
        ("f64", 11, array![-0.25_f64, 2.0].into()),
        ("f16", 10, array![f16::from_f32(1.5), f16::MIN].into()),
        ("bf16", 16, array![bf16::from_f32(-3.0), bf16::MAX].into()),
        ("i64", 7, array![i64::MIN].into()),
        ("i32", 6, array![7_i32, 8, 9].into()),
        ("i16", 5, array![i16::MIN, 1].into()),
        ("i8", 3, array![i8::MIN, 1].into()),
        ("u64", 13, array![u64::MAX].into()),
        ("u32", 12, array![u32::MAX, 0].into()),
        ("u16", 4, array![u16::MAX].into()),
        ("u8", 2, Array1::<u8>::from_iter(0..=255).into()),
        ("bool", 9, array![true, false].into()),
        ("String", 8, array!["é".to_owned(), String::new()].into()),
    ];
    let mirror = given.iter().fold(Onnx::new(), |onnx, (name, element, _)| {
        let mirrored = format!("{name}_out");
        onnx.node("", "Identity", &[name], &[&mirrored]).input(name, *element, &[-1]).output(
            &mirrored,
            *element,
            &[-1],
        )
    });
    let (directory, models) = (tempfile::tempdir().unwrap(), models());
    let model = model(&models, &made(&directory, &mirror.write())).await.unwrap();
    for (spec, (name, _, tensor)) in model.inputs().iter().zip(&given) {
        assert_eq!(spec.to_string(), format!("{name} {name}[N]"));
        assert_eq!(spec.element, Some(tensor.element()));
    }
    let inputs = given.clone().map(|(name, _, tensor)| (name, tensor));
    let outputs = model.run(inputs).await.unwrap();
    let expected = given.map(|(name, _, tensor)| (format!("{name}_out"), tensor));
    assert_eq!(outputs.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn inputs_that_do_not_fit_are_refused_by_name() {
    let model = load("double_plus_one").await;
    let tensor: Tensor = array![[1.0_f32]].into();
    let wrong: [(Vec<(&str, Tensor)>, &str); 5] = [
        (vec![("z", tensor.clone())], "z f32[1, 1]"),
        (vec![], "nothing"),
        (vec![("x", tensor.clone()), ("z", tensor)], "x f32[1, 1], z f32[1, 1]"),
        (vec![("x", array![[1_i64]].into())], "x i64[1, 1]"),
        (vec![("x", array![[1.0_f32], [2.0]].into())], "x f32[2, 1]"),
    ];
    for (inputs, given) in wrong {
        let expected = format!("the model takes x f32[1, N]; the call gives {given}");
        assert_eq!(told(model.run(inputs).await.unwrap_err()), (FailureKind::Validation, expected));
    }
}

#[tokio::test]
async fn more_callers_than_the_queue_holds_are_all_answered() {
    let model = load("double_plus_one").await;
    let mut callers = JoinSet::new();
    for caller in 0..50_u8 {
        let model = model.clone();
        callers.spawn(async move {
            let given = f32::from(caller);
            let mut outputs = model.run([("x", array![[given]])]).await.unwrap();
            assert_eq!(outputs.take::<f32>("y").unwrap()[[0, 0]], 2.0 * given + 1.0);
        });
    }
    assert_eq!(callers.join_all().await.len(), 50);
}

#[tokio::test]
async fn sessions_of_one_graph_run_side_by_side() {
    let models = OrtModels::new(OrtConfig { sessions: NonZeroUsize::new(2).unwrap(), ..config() }).unwrap();
    let model = model(&models, &fixture("count_up")).await.unwrap();
    let endless = model.run(counting(i64::MAX));
    tokio::pin!(endless);
    assert!(futures_util::poll!(&mut endless).is_pending());
    let mut outputs = model.run(counting(5)).await.unwrap();
    assert_eq!(outputs.take::<i64>("total").unwrap(), array![5].into_dyn());
    assert!(futures_util::poll!(&mut endless).is_pending());
}

#[tokio::test]
async fn a_model_of_several_graphs_has_a_session_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    for (name, fixture) in [("unet", "double_plus_one"), ("vae", "count_up")] {
        fs::create_dir(directory.path().join(name)).unwrap();
        let path = directory.path().join(name).join("model.onnx");
        fs::copy(format!("{FIXTURES}/{fixture}.onnx"), &path).unwrap();
        files.insert(format!("{name}/model.onnx"), path);
    }
    let local = LocalModel { files, ..fixture("double_plus_one") };
    let model = model(&models(), &local).await.unwrap();
    assert_eq!(model.sessions().collect::<Vec<_>>(), ["unet", "vae"]);
    let unet = model.session("unet").unwrap();
    assert_eq!((unet.name(), unet.inputs()[0].to_string()), ("unet", "x f32[1, N]".into()));
    let inputs = [("x", array![[4.0_f32]])];
    assert_eq!(unet.run(inputs.clone()).await.unwrap().take::<f32>("y").unwrap(), array![[9.0]].into_dyn());
    let expected = |asked| format!("the model has the sessions unet, vae; the call names {asked}");
    assert_eq!(told(model.run(inputs).await.unwrap_err()), (FailureKind::Validation, expected("none")));
    assert_eq!(told(model.session("clip").unwrap_err()), (FailureKind::Validation, expected("clip")));
    assert!(model.inputs().is_empty() && model.outputs().is_empty());
}

#[tokio::test]
async fn a_call_after_short_ones_is_made_where_it_is_awaited() {
    let local = fixture("double_plus_one");
    // Whatever the machine is busy with.
    for (short_call, is_here) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let models = OrtModels::new(OrtConfig { short_call, ..config() }).unwrap();
        let model = model(&models, &local).await.unwrap();
        for _ in 0..8 {
            model.run([("x", array![[1.0_f32, 2.0]])]).await.unwrap();
        }
        for (inputs, is_no_larger) in
            [(array![[1.0_f32, 2.0]], true), (array![[1.0_f32, 2.0, 3.0]], false), (array![[1.0_f32]], true)]
        {
            // Made elsewhere it is not answered before this thread has looked for it.
            let mut call = Box::pin(model.run([("x", inputs)]));
            let polled = futures_util::poll!(&mut call);
            if is_here && is_no_larger {
                assert!(polled.is_ready());
            }
            if polled.is_pending() {
                call.await.unwrap();
            }
        }
        if !is_here {
            let mut pending = 0;
            while pending == 0 {
                let mut call = Box::pin(model.run([("x", array![[1.0_f32]])]));
                pending += u32::from(futures_util::poll!(&mut call).is_pending());
            }
        }
    }
}

#[tokio::test]
async fn a_cancel_ends_a_call_that_is_made_where_it_is_awaited() {
    let config = OrtConfig { short_call: Duration::from_secs(3600), ..config() };
    let models = OrtModels::new(config).unwrap();
    let signal = Cancellation::new();
    let holder = LeaseHolder { run_id: None, cancellation: signal.clone() };
    let model = models.model(&fixture("count_up"), &holder).await.unwrap();
    for _ in 0..8 {
        model.run(counting(5)).await.unwrap();
    }
    let canceling = std::thread::spawn(move || signal.cancel(CancelReason::User));
    // It has begun, or begins and ends at once; either way it would not end by itself.
    let error = model.run(counting(i64::MAX)).await.unwrap_err();
    assert_eq!(told(error).0, FailureKind::Canceled);
    assert!(canceling.join().unwrap());
}
