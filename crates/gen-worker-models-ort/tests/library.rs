//! What happens without a usable library; in a process of its own, because a process loads only one.

use gen_worker_core::config::{ConfigErrors, Env};
use gen_worker_models_ort::{ModelError, OrtConfig, OrtModels};

#[test]
fn what_is_no_library_is_refused_with_the_remedy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
    let config = OrtConfig { dylib: Some(file.path().to_owned()), ..config };
    let error = OrtModels::new(config).err().unwrap();
    assert!(matches!(error, ModelError::LibraryUnusable { .. }));
    assert!(error.to_string().ends_with("set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer"), "{error}");
}
