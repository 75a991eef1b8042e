//! The settings of this crate, and the table of their variables.

use std::path::PathBuf;

use gen_worker_core::{
    ByteLimit, Secret, TenantId,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

const FILE_API_URL: Var = Var::new(
    "FILE_API_BASE_URL",
    "URL",
    "",
    "Where runs store and find files, unless a run names its own place.",
);
const ORCHESTRATOR_URL: Var =
    Var::new("ORCHESTRATOR_HTTP_URL", "URL", "", "The file API when `FILE_API_BASE_URL` is absent.");
const HUB_URL: Var = Var::new(
    "COZY_HUB_URL",
    "URL",
    "",
    "The hub that models come from; also the file API when nothing else names one.",
);
const FILE_API_TOKEN: Var =
    Var::new("FILE_API_TOKEN", "token", "", "The credential for the file API, for runs that bring none.");
const HUB_TOKEN: Var = Var::new(
    "COZY_HUB_TOKEN",
    "token",
    "",
    "The credential for the hub; also for the file API when `FILE_API_TOKEN` is absent.",
);
const TENANT_ID: Var = Var::new("TENANT_ID", "text", "", "Whose runs these are when a run does not say.");
const MAX_OUTPUT_FILE: Var = Var::new(
    "WORKER_MAX_OUTPUT_FILE_BYTES",
    "bytes",
    "209715200",
    "Largest file that a run may save; 0 means unlimited.",
);
const MAX_UPLOAD: Var = Var::new(
    "WORKER_MAX_UPLOAD_BYTES",
    "bytes",
    "0",
    "Largest output that is uploaded where the payload says; 0 means unlimited.",
);

const BUFFER: Var = Var::new(
    "WORKER_UPLOAD_BUFFER_BYTES",
    "bytes",
    "67108864",
    "How much of all outputs on their way out may be in buffers at once; 0 means unlimited.",
);
const CONCURRENCY: Var = Var::new(
    "WORKER_UPLOAD_CONCURRENCY",
    "count",
    "8",
    "How many outputs, or parts of large ones, are sent at once; 0 means unlimited.",
);
const SPOOL_DIR: Var = Var::new(
    "WORKER_RUN_DIR",
    "path",
    "/tmp/cozy",
    "Where the input files of runs are put; each run's are removed when it ends.",
);

/// Where outputs go, and how large they may be.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// The file API for runs that name none; `None`: such runs cannot save.
    pub file_api_url: Option<Url>,
    /// The credential for `file_api_url`; `None`: requests go without one unless the run has its own.
    pub file_api_token: Option<Secret<String>>,
    /// Whose runs these are when a run does not say.
    pub tenant_id: Option<TenantId>,
    /// Largest file that a run may save.
    pub max_output_file: ByteLimit,
    /// Largest output that is uploaded where the payload says.
    pub max_upload: ByteLimit,
    /// How much of all outputs on their way out may be in buffers at once. One upload goes on however little it is.
    pub buffer: ByteLimit,
    /// How many requests with a body go on at once; 0: any number.
    pub concurrency: usize,
    /// Where a stream is kept until it is sent: only a file can be sent again.
    pub spool_dir: PathBuf,
}

impl UploadConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[
        FILE_API_URL,
        ORCHESTRATOR_URL,
        HUB_URL,
        FILE_API_TOKEN,
        HUB_TOKEN,
        TENANT_ID,
        MAX_OUTPUT_FILE,
        MAX_UPLOAD,
        BUFFER,
        CONCURRENCY,
        SPOOL_DIR,
    ];

    /// Reads the settings and keeps mistakes in `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        let urls = [&FILE_API_URL, &ORCHESTRATOR_URL, &HUB_URL];
        let tokens = [&FILE_API_TOKEN, &HUB_TOKEN];
        let tenant = read.text(&TENANT_ID).map(|text| TenantId::parse(&text));
        let mut config = Self {
            file_api_url: urls.into_iter().find_map(|var| read.url(var)),
            file_api_token: tokens.into_iter().find_map(|var| read.secret(var)),
            tenant_id: None,
            max_output_file: read.byte_limit(&MAX_OUTPUT_FILE),
            max_upload: read.byte_limit(&MAX_UPLOAD),
            buffer: read.byte_limit(&BUFFER),
            concurrency: read.number(&CONCURRENCY),
            spool_dir: read.path(&SPOOL_DIR).expect("it has a default"),
        };
        match tenant.transpose() {
            Ok(tenant_id) => config.tenant_id = tenant_id,
            Err(error) => errors.push(format!("{}: {error}", TENANT_ID.name)),
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::ByteSize;

    use super::*;

    fn read<const N: usize>(variables: [(&str, &str); N]) -> (UploadConfig, ConfigErrors) {
        let mut errors = ConfigErrors::default();
        let config = UploadConfig::from_env(&Env::from_iter(variables), &mut errors);
        (config, errors)
    }

    #[test]
    fn what_is_said_for_files_wins_over_the_hub() {
        let (config, _) = read([
            ("COZY_HUB_URL", "https://hub.example"),
            ("COZY_HUB_TOKEN", "hub"),
            ("ORCHESTRATOR_HTTP_URL", "https://orchestrator.example"),
            ("FILE_API_TOKEN", "files"),
        ]);
        assert_eq!(config.file_api_url.unwrap().as_str(), "https://orchestrator.example/");
        assert_eq!(config.file_api_token, Some("files".into()));
    }

    #[test]
    fn files_are_capped_and_uploads_are_not() {
        let (config, errors) = read([]);
        assert_eq!(config.max_output_file, ByteLimit::Max(ByteSize::mib(200)));
        assert_eq!(config.max_upload, ByteLimit::Unlimited);
        assert_eq!(errors, ConfigErrors::default());
        let (config, _) = read([("WORKER_MAX_OUTPUT_FILE_BYTES", "0")]);
        assert_eq!(config.max_output_file, ByteLimit::Unlimited);
    }

    #[test]
    fn mistakes_are_named() {
        let long = "x".repeat(300);
        let (_, errors) = read([("FILE_API_BASE_URL", "files"), ("TENANT_ID", &long)]);
        let text = errors.to_string();
        assert!(text.contains("FILE_API_BASE_URL") && text.contains("TENANT_ID"), "{text}");
    }
}
