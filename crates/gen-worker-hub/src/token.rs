//! The credential for a model's source, which may lie in a file that gets another while the worker runs.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use gen_worker_core::{ModelRef, Secret, read_token};
use tokio::time::timeout;

use crate::{
    blocking::blocking,
    config::{HF_TOKEN_PATH, HUB_TOKEN_FILE, HubConfig},
    error::HubError,
};

/// How long one reading may take, for a file system that hangs.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The credential that belongs to where this model comes from, as it is at this moment; `None`: there is none.
pub(crate) async fn current(
    config: &HubConfig,
    model: &ModelRef,
) -> Result<Option<Secret<String>>, HubError> {
    let (set, file, variable) = match (model.hub(), model.hugging_face()) {
        (Some(_), _) => (&config.hub_token, &config.hub_token_file, HUB_TOKEN_FILE.name),
        (None, Some(_)) => (&config.hf_token, &config.hf_token_file, HF_TOKEN_PATH.name),
        (None, None) => return Ok(None),
    };
    match (set, file) {
        (None, Some(path)) => in_time(path.clone(), variable).await.map(Some),
        (set, _) => Ok(set.clone()),
    }
}

async fn in_time(path: PathBuf, variable: &'static str) -> Result<Secret<String>, HubError> {
    let failed = move |source| HubError::TokenFile { variable, source };
    let reading = blocking(move || read(&path).map_err(failed));
    timeout(READ_TIMEOUT, reading).await.unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))
}

fn read(path: &Path) -> io::Result<Secret<String>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"));
    }
    read_token(File::open(path)?)
}

#[cfg(test)]
mod tests {
    use gen_worker_core::config::{ConfigErrors, Env};

    use super::*;

    #[tokio::test]
    async fn each_source_has_its_own_and_a_setting_goes_before_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        fs::write(path("hub"), " from-hub-file\n").unwrap();
        fs::write(path("hf"), "from-hf-file").unwrap();
        let (hub, hf) = (path("hub"), path("hf"));
        let files = [("COZY_HUB_TOKEN_FILE", hub.as_str()), ("HF_TOKEN_PATH", hf.as_str())];
        let set = [("COZY_HUB_TOKEN", "hub-token"), ("HF_TOKEN", "hf-token")];
        for (settings, model, token) in [
            (&[][..], "org/repo", None),
            (&files, "org/repo", Some("from-hub-file")),
            (&files, "hf:org/repo", Some("from-hf-file")),
            (&files, "https://host/model", None),
            (&[files, set].concat(), "org/repo", Some("hub-token")),
            (&[files, set].concat(), "hf:org/repo", Some("hf-token")),
        ] {
            let env = Env::from_iter(settings.iter().copied());
            let config = HubConfig::from_env(&env, &mut ConfigErrors::default());
            let found = current(&config, &ModelRef::parse(model).unwrap()).await.unwrap();
            assert_eq!(found, token.map(Secret::from), "{settings:?} {model}");
        }
    }

    #[test]
    fn what_holds_no_token_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let problem = |path: &Path| read(path).unwrap_err().to_string();
        assert!(problem(&path).contains("No such file"));
        assert_eq!(problem(directory.path()), "it is no regular file");
        fs::write(&path, " \n").unwrap();
        assert_eq!(problem(&path), "it is empty");
    }
}
