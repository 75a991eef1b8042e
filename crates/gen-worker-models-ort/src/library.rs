//! Finding and loading the ONNX Runtime library, once for the process.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ort::{environment::Environment, logging::LogLevel};

use crate::{
    error::ModelError,
    native::{give_back_what_is_freed, version_of},
};

/// The library, loaded.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) environment: Environment,
    pub(crate) version: Option<String>,
}

/// A process has one environment, and it cannot be made again once it is dropped.
static ENGINE: Mutex<Option<Engine>> = Mutex::new(None);

/// The library at `path`, else where it is found. Once one is loaded, that one.
pub(crate) fn load(path: Option<&Path>) -> Result<Engine, ModelError> {
    let mut loaded = ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = &*loaded {
        return Ok(engine.clone());
    }
    Ok(loaded.insert(load_from(&find(path)?)?).clone())
}

/// The library that the tests are given, else the one that is found; loaded, for the whole process.
#[cfg(test)]
pub(crate) fn for_tests() -> Engine {
    #[expect(clippy::disallowed_methods, reason = "a test has no settings of its own")]
    let given = env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    load(given.as_deref()).unwrap_or_else(|error| panic!("{error}"))
}

/// The library at `path`, whatever is there; else where one is found.
pub(crate) fn find(path: Option<&Path>) -> Result<PathBuf, ModelError> {
    match path {
        Some(path) => Ok(path.to_owned()),
        None => find_in(&candidates(env::current_dir().ok().as_deref(), env::current_exe().ok().as_deref())),
    }
}

fn load_from(path: &Path) -> Result<Engine, ModelError> {
    give_back_what_is_freed();
    let builder = ort::init_from(path)
        .map_err(|source| ModelError::LibraryUnusable { path: path.to_owned(), source: source.into() })?;
    let environment = builder
        .with_name("gen-worker")
        .with_telemetry(false)
        .build()
        .map_err(|source| ModelError::Environment { source: source.into() })?;
    // Below this the library formats a line for every node that it plans.
    environment.set_log_level(LogLevel::Warning);
    Ok(Engine { environment, version: version_of(path) })
}

fn find_in(directories: &[PathBuf]) -> Result<PathBuf, ModelError> {
    directories.iter().find_map(|directory| library_in(directory)).ok_or(ModelError::LibraryMissing)
}

/// The directories where the library may lie, best first.
fn candidates(current: Option<&Path>, executable: Option<&Path>) -> Vec<PathBuf> {
    let beside = executable.and_then(Path::parent);
    let kept = current
        .into_iter()
        .chain(beside)
        .flat_map(Path::ancestors)
        .map(|directory| directory.join(".ort/lib"));
    beside.map(Path::to_owned).into_iter().chain(kept).collect()
}

/// The library in a directory; of several, the last by name, which is the one with the full version.
fn library_in(directory: &Path) -> Option<PathBuf> {
    let entries = directory.read_dir().ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_library))
        .max()
}

/// Whether a file of this name is the library. Its plug-ins are named `libonnxruntime_providers_….so`.
fn is_library(name: &str) -> bool {
    name.starts_with("libonnxruntime.so")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
        || name == "onnxruntime.dll"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_beside_the_executable_then_upwards() {
        let found = candidates(Some(Path::new("/a/b")), Some(Path::new("/c/worker")));
        let expected = ["/c", "/a/b/.ort/lib", "/a/.ort/lib", "/.ort/lib", "/c/.ort/lib", "/.ort/lib"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(candidates(None, None).is_empty());
    }

    #[test]
    fn takes_the_library_and_not_its_plug_ins_or_says_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let directories = ["/nowhere".into(), directory.path().to_owned()];
        assert_eq!(
            find_in(&directories).unwrap_err().to_string(),
            "ONNX Runtime was not found: run `gen-worker ort install`, or set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer"
        );
        for name in ["libonnxruntime_providers_cuda.so", "libonnxruntime.so", "libonnxruntime.so.1.31.1"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(find_in(&directories).unwrap(), directory.path().join("libonnxruntime.so.1.31.1"));
        assert!(is_library("libonnxruntime.1.31.1.dylib"));
    }
}
