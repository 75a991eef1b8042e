//! The cat, enlarged in tiles by this worker, against the cat enlarged in one piece by `reference.py`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use gen_worker_core::{
    LocalModel, ModelRef, WorkerError,
    config::{ConfigErrors, Env},
    ports::LeaseHolder,
};
use gen_worker_models_ort::{OrtConfig, OrtModel, OrtModels};
use ndarray::{Array4, Ix4};
use upscale::Picture;

fn here(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), path].iter().collect()
}

fn picture(path: &str) -> Picture {
    Picture::decode(&fs::read(here(path)).unwrap()).unwrap()
}

/// Fails with the remedy when ONNX Runtime is missing.
fn network(name: &str) -> OrtModel {
    let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
    let models = OrtModels::new(config).unwrap_or_else(|error| panic!("{error}"));
    let file = here(&format!("models/waifu2x/upconv_7/{name}.onnx"));
    let local = LocalModel {
        model: ModelRef::parse(&format!("waifu2x/upconv_7/{name}.onnx")).unwrap(),
        root: file.parent().unwrap().to_owned(),
        size_bytes: fs::metadata(&file).unwrap().len(),
        files: BTreeMap::from([(format!("{name}.onnx"), file)]),
        pin: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(models.model(&local, &LeaseHolder::default())).unwrap()
}

fn run(model: &OrtModel) -> impl Fn(Array4<f32>) -> Result<Array4<f32>, WorkerError> + Sync {
    |pixels| {
        let output = model.run_blocking([("input", pixels)])?.take::<f32>("conv7")?;
        Ok(output.into_dimensionality::<Ix4>()?)
    }
}

#[test]
fn tiles_leave_no_seams() {
    let model = network("scale2x");
    let enlarged = picture("chelsea.png").enlarge(64, 2, run(&model), |_, _| ()).unwrap();
    let reference = picture("tests/chelsea_2x_reference.png");
    assert_eq!(enlarged.colours.dimensions(), reference.colours.dimensions());
    let levels = enlarged.colours.iter().zip(reference.colours.iter());
    let furthest = levels.map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
    assert!(furthest < Some(2), "{furthest:?} of 255 apart");
}

#[test]
fn every_network_in_the_folder_doubles() {
    for name in ["noise1_scale2x", "noise3_scale2x"] {
        let model = network(name);
        let colours = image::RgbImage::from_pixel(20, 10, image::Rgb([200, 100, 50]));
        let enlarged = Picture { colours, alpha: None }.enlarge(128, 1, run(&model), |_, _| ()).unwrap();
        assert_eq!(enlarged.colours.dimensions(), (40, 20));
        let middle = enlarged.colours.get_pixel(20, 10).0;
        assert!(middle.iter().zip([200, 100, 50]).all(|(a, b)| a.abs_diff(b) < 4), "{middle:?}");
    }
}
