//! The templates' workers do what they say.

use std::{fs, io::Cursor, process::Stdio};

use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use crate::harness::{Done, done, repository, template};

fn lines(done: Done) -> Vec<Value> {
    done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn hello_greets() {
    let folder = tempfile::tempdir().unwrap();
    let run = done(template("hello").args(["run", "hello", "world"]).current_dir(folder.path())).ends(0);
    assert_eq!(lines(run), [json!({"result": {"text": "Hello, world!"}})]);
}

#[test]
fn image_makes_a_thumbnail() {
    let folder = tempfile::tempdir().unwrap();
    let mut png = Cursor::new(Vec::new());
    RgbImage::new(400, 200).write_to(&mut png, ImageFormat::Png).unwrap();
    fs::write(folder.path().join("in.png"), png.into_inner()).unwrap();
    fs::write(folder.path().join("text.png"), "no picture").unwrap();
    let run = |words: &[&str]| {
        let words = [&["run", "thumbnail"], words].concat();
        done(template("image").args(words).current_dir(folder.path()))
    };
    let made = lines(run(&["image@in.png", "side=100"]).ends(0));
    assert_eq!((&made[0]["result"]["width"], &made[0]["result"]["height"]), (&json!(100), &json!(50)));
    let small = image::open(folder.path().join("out/thumbnail.png")).unwrap();
    assert_eq!((small.width(), small.height()), (100, 50));
    let failed = run(&["image@text.png"]).ends(1);
    assert!(failed.log.contains("image cannot be decoded"), "{failed:#?}");
}

#[test]
fn stream_sends_words() {
    let folder = tempfile::tempdir().unwrap();
    let run =
        done(template("stream").args(["run", "words", "one by one"]).current_dir(folder.path())).ends(0);
    let words = ["one", "by", "one"].map(|word| json!({"delta": {"word": word}}));
    assert_eq!(lines(run)[..3], words);
}

#[test]
fn model_infers() {
    let folder = tempfile::tempdir().unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "where the test run found ONNX Runtime, no setting of ours"
    )]
    let told = std::env::var_os("ORT_DYLIB_PATH");
    let name = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };
    let library = told.unwrap_or_else(|| repository().join(".ort/lib").join(name).into());
    let models = repository().join("crates/gen-worker-cli/templates/model/models");
    let mut run = template("model");
    run.args(["run", "infer", "values:=[1, -3.5]", "--models"]).arg(models);
    let run = done(run.env("ORT_DYLIB_PATH", library).current_dir(folder.path())).ends(0);
    assert_eq!(lines(run), [json!({"result": {"values": [3.0, -6.0]}})]);
}

#[test]
fn nobody_needs_to_read_the_results() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = template("hello");
    run.args(["run", "hello", "world"]).current_dir(folder.path());
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(run.stdout.take());
    let Done { code, log, .. } = Done::of(run.wait_with_output().unwrap());
    assert_eq!((code, log.contains("panicked")), (Some(0), false), "{log}");
}
