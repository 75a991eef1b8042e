//! The files that a payload names, made present before the function runs and removed after.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::Arc,
};

use gen_worker_core::{
    AssetSlot, Classify, FailureKind, InjectionSpec, JobFailure, ModelRef, RunId, ports::OutputTarget,
};
use tracing::{info, warn};

use super::{Job, decode::Decoded, timings::Stage};
use crate::config::RuntimeConfig;

/// A run whose input files are on this machine.
pub(crate) struct Local {
    pub job: Job,
    pub input: Box<dyn Any + Send>,
    pub models: Vec<(InjectionSpec, ModelRef)>,
    pub target: Option<Arc<dyn OutputTarget>>,
    pub directory: Option<RunDirectory>,
}

impl Decoded {
    /// Fetches every asset; the first that cannot be fetched fails the run.
    pub(crate) async fn fetch_inputs(self) -> Result<Local, JobFailure> {
        let Self { job, input, assets, models, target } = self;
        let directory = match assets.is_empty() {
            true => None,
            false => Some(Box::pin(fetch_all(&job, &assets)).await?),
        };
        Ok(Local { job, input, models, target, directory })
    }
}

async fn fetch_all(job: &Job, assets: &[AssetSlot]) -> Result<RunDirectory, JobFailure> {
    let directory = RunDirectory::create(&job.shop().config, &job.facts().run_id)?;
    let fetch = async {
        for slot in assets {
            let inputs = &job.shop().ports.inputs;
            slot.fill(inputs.fetch(&job.facts().scope, slot.asset(), directory.path()).await?);
        }
        Ok::<_, JobFailure>(())
    };
    job.stage(Stage::Inputs, fetch).await?;
    Ok(directory)
}

/// The run's directory cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {path}: set WORKER_RUN_DIR to a directory that can be written")]
struct NoDirectory {
    path: PathBuf,
    source: std::io::Error,
}

impl Classify for NoDirectory {
    fn kind(&self) -> FailureKind {
        FailureKind::Retryable
    }

    fn safe_message(&self) -> String {
        "the worker has no room for input files".to_owned()
    }
}

/// One run's own directory, which nobody else reads; removed when dropped, unless it is to be kept.
pub(crate) struct RunDirectory {
    path: PathBuf,
    keep: bool,
}

impl RunDirectory {
    fn create(config: &RuntimeConfig, run_id: &RunId) -> Result<Self, JobFailure> {
        // Two attempts of one run may overlap, so each has a directory of its own.
        let path = config.run_dir.join(format!("{}-{:08x}", run_id.directory_name(), fastrand::u32(..)));
        create_private(&path).map_err(|source| NoDirectory { path: path.clone(), source })?;
        Ok(Self { path, keep: config.keep_run_dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.keep {
            info!(path = %self.path.display(), "a run's directory is kept");
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            warn!(%error, "a run's directory could not be removed");
        }
    }
}

/// A new directory: what lies there already, such as a link to another place, is somebody else's.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    if let Some(parent) = path.parent() {
        builder.recursive(true).create(parent)?;
    }
    builder.recursive(false).create(path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_runs_directory_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let (runs, elsewhere) = (root.path().join("runs"), root.path().join("elsewhere"));
        create_private(&runs.join("r1")).unwrap();
        for made in [runs.clone(), runs.join("r1")] {
            assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
        std::fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, runs.join("r2")).unwrap();
        for taken in ["r1", "r2"] {
            assert!(create_private(&runs.join(taken)).is_err(), "{taken}");
        }
    }
}
