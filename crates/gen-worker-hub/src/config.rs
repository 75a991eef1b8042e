//! The settings of models and input files.

use std::path::PathBuf;

use gen_worker_core::{
    ByteLimit, Secret, TenantId,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

const HUB_URL: Var =
    Var::new("COZY_HUB_URL", "URL", "", "The Cozy hub; without it only URLs and files can be models.");
const HUB_TOKEN: Var =
    Var::new("COZY_HUB_TOKEN", "secret", "", "The credential for the hub, sent to no other host.");
const CACHE_DIR: Var =
    Var::new("WORKER_MODEL_CACHE_DIR", "path", "/tmp/cozy/models", "Where models are kept.");
const FILE_API: Var = Var::new(
    "FILE_API_BASE_URL",
    "URL",
    "",
    "The file API of runs that name none; else ORCHESTRATOR_HTTP_URL, else COZY_HUB_URL.",
);
const ORCHESTRATOR: Var =
    Var::new("ORCHESTRATOR_HTTP_URL", "URL", "", "The file API when FILE_API_BASE_URL is not set.");
const FILE_TOKEN: Var = Var::new(
    "FILE_API_TOKEN",
    "secret",
    "",
    "The credential for the file API of runs that name none; else COZY_HUB_TOKEN.",
);
const TENANT: Var =
    Var::new("TENANT_ID", "name", "", "Whose files are read when a run does not say whose it is.");
const MAX_INPUT_FILE: Var =
    Var::new("WORKER_MAX_INPUT_FILE_BYTES", "bytes", "209715200", "Largest input file; 0: unlimited.");
const PARALLEL: Var = Var::new(
    "WORKER_MAX_CONCURRENT_DOWNLOADS",
    "downloads",
    "2",
    "How many models are downloaded at once; 0 and 1: one.",
);

/// Where models and input files come from, and where models go.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The Cozy hub; `None`: only URLs and files can be models.
    pub hub_url: Option<Url>,
    /// The credential for the hub.
    pub hub_token: Option<Secret<String>>,
    /// Where models are kept.
    pub cache_dir: PathBuf,
    /// The file API of runs that name none; `None`: such runs cannot have input files.
    pub file_api: Option<Url>,
    /// The credential for `file_api`.
    pub file_token: Option<Secret<String>>,
    /// Whose files are read when a run does not say whose it is.
    pub tenant_id: Option<TenantId>,
    /// Largest input file.
    pub max_input_file: ByteLimit,
    /// How many models are downloaded at once; 0 is taken as 1.
    pub parallel_downloads: usize,
    /// Whether downloads draw a bar on stderr.
    pub show_bars: bool,
}

impl HubConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[
        HUB_URL,
        HUB_TOKEN,
        CACHE_DIR,
        FILE_API,
        ORCHESTRATOR,
        FILE_TOKEN,
        TENANT,
        MAX_INPUT_FILE,
        PARALLEL,
    ];

    /// Reads the settings and keeps mistakes in `errors`. `show_bars` is for the caller to set.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let tenant = tenant(env, errors);
        let mut reader = Reader::new(env, errors);
        let hub_url = reader.url(&HUB_URL);
        let hub_token = reader.secret(&HUB_TOKEN);
        Self {
            cache_dir: reader.path(&CACHE_DIR).unwrap_or_default(),
            file_api: reader.url(&FILE_API).or_else(|| reader.url(&ORCHESTRATOR)).or_else(|| hub_url.clone()),
            file_token: reader.secret(&FILE_TOKEN).or_else(|| hub_token.clone()),
            tenant_id: tenant,
            max_input_file: reader.byte_limit(&MAX_INPUT_FILE),
            parallel_downloads: reader.number(&PARALLEL),
            show_bars: false,
            hub_url,
            hub_token,
        }
    }
}

fn tenant(env: &Env, errors: &mut ConfigErrors) -> Option<TenantId> {
    let text = Reader::new(env, errors).text(&TENANT)?;
    TenantId::parse(&text).map_err(|error| errors.push(format!("{}: {error}", TENANT.name))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> HubConfig {
        let mut errors = ConfigErrors::default();
        let config = HubConfig::from_env(&Env::from_iter(pairs.iter().copied()), &mut errors);
        errors.into_result(config).unwrap()
    }

    #[test]
    fn the_file_api_falls_back_step_by_step() {
        let hub = ("COZY_HUB_URL", "http://hub");
        let orchestrator = ("ORCHESTRATOR_HTTP_URL", "http://orchestrator");
        let own = ("FILE_API_BASE_URL", "http://files");
        let host = |pairs: &[_]| config(pairs).file_api.map(|url| url.host_str().unwrap().to_owned());
        assert_eq!(host(&[]), None);
        assert_eq!(host(&[hub]).unwrap(), "hub");
        assert_eq!(host(&[hub, orchestrator]).unwrap(), "orchestrator");
        assert_eq!(host(&[hub, orchestrator, own]).unwrap(), "files");
    }

    #[test]
    fn an_input_file_of_any_size_is_asked_for_with_zero() {
        assert_eq!(config(&[]).max_input_file.max(), Some(209_715_200));
        assert_eq!(config(&[("WORKER_MAX_INPUT_FILE_BYTES", "0")]).max_input_file, ByteLimit::Unlimited);
    }
}
