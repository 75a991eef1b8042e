//! The settings of models and input files.

use std::path::PathBuf;

use gen_worker_core::{
    ByteLimit, ByteSize, Secret, TenantId,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

const HUB_URL: Var =
    Var::new("COZY_HUB_URL", "URL", "", "The Cozy hub; without it only URLs and files can be models.");
const HUB_TOKEN: Var =
    Var::new("COZY_HUB_TOKEN", "secret", "", "The credential for the hub, sent to no other host.");
pub(crate) const HUB_TOKEN_FILE: Var = Var::new(
    "COZY_HUB_TOKEN_FILE",
    "path",
    "",
    "Where the credential for the hub's models lies when COZY_HUB_TOKEN is not set; read for each look at the hub, and once more when that is refused.",
);
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
const RUN_DIR: Var =
    Var::new("WORKER_RUN_DIR", "path", "/tmp/cozy", "Where the input files of runs are put.");
const INPUT_CACHE_DIR: Var = Var::new(
    "WORKER_CACHE_DIR",
    "path",
    "",
    "Where input files are kept for later runs of the same tenant; unset, in `cache` below WORKER_RUN_DIR.",
);
const INPUT_CACHE_LIMIT: Var = Var::new(
    "WORKER_INPUT_CACHE_GB",
    "GiB",
    "2",
    "Most that kept input files take on disk; those not used for longest go first. 0: none is kept.",
);
const HUB_API: Var = Var::new(
    "COZY_HUB_API",
    "auto, snapshots or direct",
    "auto",
    "How the hub is asked: by its snapshot API, for a file at its URL plus the reference, or by what it has.",
);
const HF_ENDPOINT: Var =
    Var::new("HF_ENDPOINT", "URL", "https://huggingface.co", "Where `hf:` references lead.");
const HF_TOKEN: Var = Var::new(
    "HF_TOKEN",
    "secret",
    "",
    "The credential for Hugging Face, sent to no other host; else HUGGINGFACE_TOKEN, else HUGGINGFACEHUB_API_TOKEN.",
);
const HF_TOKEN_2: Var =
    Var::new("HUGGINGFACE_TOKEN", "secret", "", "The credential for Hugging Face when HF_TOKEN is not set.");
const HF_TOKEN_3: Var = Var::new(
    "HUGGINGFACEHUB_API_TOKEN",
    "secret",
    "",
    "The credential for Hugging Face when the two above are not set.",
);
pub(crate) const HF_TOKEN_PATH: Var = Var::new(
    "HF_TOKEN_PATH",
    "path",
    "",
    "Where the credential for Hugging Face lies when none of the three is set; read as COZY_HUB_TOKEN_FILE is.",
);
const ALLOW_PICKLE: Var = Var::new(
    "WORKER_ALLOW_PICKLE",
    "flag",
    "false",
    "Whether files that can run code when they are loaded are taken from Hugging Face.",
);
const CACHE_LIMIT: Var = Var::new(
    "WORKER_LOCAL_CACHE_GB",
    "GiB",
    "100",
    "Most that models take on disk; those not used for longest go first, those in use never. 0: unlimited.",
);
const CONNECTIONS: Var = Var::new(
    "WORKER_DOWNLOAD_CONNECTIONS",
    "connections",
    "8",
    "Most connections that bring one model; a file has one, and more of them while they pay. 0 and 1: one.",
);
const RANGE_BYTES: Var = Var::new(
    "WORKER_DOWNLOAD_RANGE_BYTES",
    "bytes",
    "16777216",
    "In pieces of which size a file is fetched, and resumed after a crash; 0: in one.",
);
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
    /// Where the credential for the hub's models lies if it is not set.
    pub hub_token_file: Option<PathBuf>,
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
    /// Where input files are kept for later runs of the same tenant.
    pub input_cache_dir: PathBuf,
    /// Most bytes that kept input files take; 0: none is kept.
    pub input_cache_limit: ByteSize,
    /// How the hub is asked.
    pub hub_api: HubApi,
    /// Where `hf:` references lead.
    pub hf_endpoint: Option<Url>,
    /// The credential for `hf_endpoint`.
    pub hf_token: Option<Secret<String>>,
    /// Where the credential for `hf_endpoint` lies if it is not set.
    pub hf_token_file: Option<PathBuf>,
    /// Whether files that can run code when they are loaded are taken from Hugging Face.
    pub allow_pickle: bool,
    /// Most bytes that models take on disk.
    pub cache_limit: ByteLimit,
    /// Most connections that bring one model; 0 is taken as 1.
    pub connections: usize,
    /// In pieces of how many bytes a file is fetched; 0: in one.
    pub range_bytes: u64,
    /// How many models are downloaded at once; 0 is taken as 1.
    pub parallel_downloads: usize,
    /// Whether downloads draw a bar on stderr.
    pub show_bars: bool,
}

/// How the Cozy hub is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubApi {
    /// By its snapshot API; a hub that has none, by its model manifests, and else for a file.
    Auto,
    /// By its snapshot API only.
    Snapshots,
    /// For the file at its URL plus the reference.
    Direct,
}

impl HubApi {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(Self::Auto),
            "snapshots" => Some(Self::Snapshots),
            "direct" => Some(Self::Direct),
            _ => None,
        }
    }
}

impl HubConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[
        HUB_URL,
        HUB_TOKEN,
        HUB_TOKEN_FILE,
        CACHE_DIR,
        FILE_API,
        ORCHESTRATOR,
        FILE_TOKEN,
        TENANT,
        MAX_INPUT_FILE,
        RUN_DIR,
        INPUT_CACHE_DIR,
        INPUT_CACHE_LIMIT,
        HUB_API,
        HF_ENDPOINT,
        HF_TOKEN,
        HF_TOKEN_2,
        HF_TOKEN_3,
        HF_TOKEN_PATH,
        ALLOW_PICKLE,
        CACHE_LIMIT,
        PARALLEL,
        CONNECTIONS,
        RANGE_BYTES,
    ];

    /// Reads the settings and keeps mistakes in `errors`. `show_bars` is for the caller to set.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let tenant = tenant(env, errors);
        let hub_api = hub_api(env, errors);
        let mut reader = Reader::new(env, errors);
        let hub_url = reader.url(&HUB_URL);
        let hub_token = reader.secret(&HUB_TOKEN);
        let hf_tokens = [&HF_TOKEN, &HF_TOKEN_2, &HF_TOKEN_3];
        Self {
            cache_dir: reader.path(&CACHE_DIR).unwrap_or_default(),
            file_api: reader.url(&FILE_API).or_else(|| reader.url(&ORCHESTRATOR)).or_else(|| hub_url.clone()),
            file_token: reader.secret(&FILE_TOKEN).or_else(|| hub_token.clone()),
            tenant_id: tenant,
            max_input_file: reader.byte_limit(&MAX_INPUT_FILE),
            input_cache_dir: reader
                .path(&INPUT_CACHE_DIR)
                .unwrap_or_else(|| reader.path(&RUN_DIR).unwrap_or_default().join("cache")),
            input_cache_limit: reader.gigabytes(&INPUT_CACHE_LIMIT).unwrap_or(ByteSize(0)),
            hf_endpoint: reader.url(&HF_ENDPOINT),
            hub_token_file: reader.path(&HUB_TOKEN_FILE),
            hf_token_file: reader.path(&HF_TOKEN_PATH),
            hf_token: hf_tokens.into_iter().find_map(|var| reader.secret(var)),
            allow_pickle: reader.flag(&ALLOW_PICKLE),
            cache_limit: match reader.gigabytes(&CACHE_LIMIT) {
                None | Some(ByteSize(0)) => ByteLimit::Unlimited,
                Some(most) => ByteLimit::Max(most),
            },
            connections: reader.number(&CONNECTIONS),
            range_bytes: reader.number(&RANGE_BYTES),
            hub_api,
            parallel_downloads: reader.number(&PARALLEL),
            show_bars: false,
            hub_url,
            hub_token,
        }
    }
}

fn hub_api(env: &Env, errors: &mut ConfigErrors) -> HubApi {
    let text = Reader::new(env, errors).text(&HUB_API).unwrap_or_default();
    HubApi::parse(&text).unwrap_or_else(|| {
        errors.push(format!("{} is `{text}`: expected {}", HUB_API.name, HUB_API.unit));
        HubApi::Auto
    })
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
    fn how_the_hub_is_asked_is_one_of_three() {
        let asked = |text| config(&[("COZY_HUB_API", text)]).hub_api;
        assert_eq!(config(&[]).hub_api, HubApi::Auto);
        assert_eq!([asked("Auto"), asked("direct")], [HubApi::Auto, HubApi::Direct]);
        assert_eq!(asked("snapshots"), HubApi::Snapshots);
        let mut errors = ConfigErrors::default();
        HubConfig::from_env(&Env::from_iter([("COZY_HUB_API", "files")]), &mut errors);
        let said = errors.to_string();
        assert!(said.contains("COZY_HUB_API is `files`: expected auto, snapshots or direct"), "{said}");
    }

    #[test]
    fn the_first_token_for_hugging_face_that_is_set_is_taken() {
        let tokens = [("HF_TOKEN", "a"), ("HUGGINGFACE_TOKEN", "b"), ("HUGGINGFACEHUB_API_TOKEN", "c")];
        let taken = |pairs: &[_]| config(pairs).hf_token.map(|token| token.expose().clone());
        let all = [0, 1, 2, 3].map(|first| taken(&tokens[first..]));
        assert_eq!(all.each_ref().map(Option::as_deref), [Some("a"), Some("b"), Some("c"), None]);
    }

    #[test]
    fn a_file_comes_over_eight_connections_in_16_mib_unless_said_otherwise() {
        let lanes = |pairs: &[_]| (config(pairs).connections, config(pairs).range_bytes);
        assert_eq!(lanes(&[]), (8, 16 << 20));
        let said = [("WORKER_DOWNLOAD_CONNECTIONS", "3"), ("WORKER_DOWNLOAD_RANGE_BYTES", "1000")];
        assert_eq!(lanes(&said), (3, 1000));
    }

    #[test]
    fn an_input_file_of_any_size_is_asked_for_with_zero() {
        assert_eq!(config(&[]).max_input_file.max(), Some(209_715_200));
        assert_eq!(config(&[("WORKER_MAX_INPUT_FILE_BYTES", "0")]).max_input_file, ByteLimit::Unlimited);
    }
}
