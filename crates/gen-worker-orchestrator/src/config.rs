//! What the orchestrator is told: where it listens, where it keeps things, whom it lets in.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gen_worker_core::{
    ByteLimit, ByteSize, Secret, TenantId,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

use crate::{
    error::OrchestratorError,
    queue::{
        fair::{MAX_WEIGHT, Weights},
        limits::TenantLimits,
    },
};

const GRPC_ADDR: Var = Var::new(
    "ORCHESTRATOR_GRPC_ADDR",
    "address:port",
    "127.0.0.1:8080",
    "Where workers and gRPC clients connect. Beyond loopback it needs tokens for workers and callers.",
);
const HTTP_ADDR: Var = Var::new(
    "ORCHESTRATOR_HTTP_ADDR",
    "address:port",
    "127.0.0.1:8081",
    "Where the HTTP API, the files and the models are served. Beyond loopback it needs tokens for callers.",
);
const PUBLIC_GRPC_ADDR: Var = Var::new(
    "ORCHESTRATOR_PUBLIC_GRPC_ADDR",
    "address:port",
    "",
    "How workers reach the gRPC address, if not under that address itself: where the other orchestrators of a fleet send them. \
     Unset, and all of the machine's addresses listened on: nobody sends any.",
);
const PUBLIC_URL: Var = Var::new(
    "ORCHESTRATOR_PUBLIC_URL",
    "URL",
    "",
    "How workers and callers reach the HTTP address, if not under that address itself.",
);
const DATA_DIR: Var = Var::new(
    "ORCHESTRATOR_DATA_DIR",
    "path",
    ".gen-worker",
    "Where files are kept. Created if it does not exist.",
);
const MODELS_DIR: Var = Var::new(
    "ORCHESTRATOR_MODELS_DIR",
    "path",
    "",
    "A folder of models, served under `/hub/`. Unset: none is.",
);
const QUEUE: Var = Var::new(
    "ORCHESTRATOR_QUEUE",
    "file, memory or nats",
    "file",
    "Where runs are kept: in `runs.redb` in the data folder; in memory, where they end with the process; or on NATS servers.",
);
pub(crate) const NATS_URL: Var = Var::new(
    "ORCHESTRATOR_NATS_URL",
    "URLs, comma-separated",
    "nats://127.0.0.1:4222",
    "The NATS servers of `ORCHESTRATOR_QUEUE=nats`, with `tls://` for TLS. `nats://user:password@host` says who asks, \
     `nats://token@host` shows a token; what is no letter or digit in them is written as in URLs, such as `%40` for `@`.",
);
pub(crate) const NATS_CREDENTIALS: Var = Var::new(
    "ORCHESTRATOR_NATS_CREDENTIALS_FILE",
    "path",
    "",
    "The credentials of a NATS user, as `nsc` writes them, in the place of who is in the URLs. Unset: none are sent. Read anew for \
     each connection.",
);
pub(crate) const NATS_CA: Var = Var::new(
    "ORCHESTRATOR_NATS_CA",
    "path",
    "",
    "Certificates of authorities to trust in the place of the system's, in PEM. Set: NATS servers are asked over TLS only.",
);
pub(crate) const NATS_CLIENT_CERT: Var = Var::new(
    "ORCHESTRATOR_NATS_CLIENT_CERT",
    "path",
    "",
    "The certificate, and its chain, that NATS servers are shown, in PEM. Set: they are asked over TLS only. Read anew for each connection.",
);
pub(crate) const NATS_CLIENT_KEY: Var = Var::new(
    "ORCHESTRATOR_NATS_CLIENT_KEY",
    "path",
    "",
    "The private key of `ORCHESTRATOR_NATS_CLIENT_CERT`, in PEM.",
);
const NATS_PREFIX: Var = Var::new(
    "ORCHESTRATOR_NATS_PREFIX",
    "name",
    "gen-worker",
    "What the names of streams, buckets and subjects begin with: one for each fleet in an account. Letters, digits, `-` and `_`.",
);
pub(crate) const NATS_API_PREFIX: Var = Var::new(
    "ORCHESTRATOR_NATS_API_PREFIX",
    "subject",
    "",
    "The subject on which JetStream is asked, where an account imports it from another. Unset: `$JS.API`.",
);
const NATS_REPLICAS: Var = Var::new(
    "ORCHESTRATOR_NATS_REPLICAS",
    "servers",
    "1",
    "On how many servers everything is kept: 1, 3 or 5.",
);
const NATS_MAX_AGE: Var = Var::new(
    "ORCHESTRATOR_NATS_MAX_AGE_SECONDS",
    "seconds",
    "604800",
    "How long NATS servers know a run, from its last step on; one that waits for longer is forgotten.",
);
const NATS_MAX_OPEN: Var = Var::new(
    "ORCHESTRATOR_NATS_MAX_OPEN",
    "runs",
    "100000",
    "Most runs that wait or run on NATS servers; more are refused.",
);
const TENANT_MAX_QUEUED: Var = Var::new(
    "ORCHESTRATOR_TENANT_MAX_QUEUED",
    "runs",
    "0",
    "Most runs of one tenant that wait; more are refused. 0 means no limit but that of all, 10,000 that wait or run.",
);
const TENANT_MAX_RUNNING: Var = Var::new(
    "ORCHESTRATOR_TENANT_MAX_RUNNING",
    "runs",
    "0",
    "Most runs of one tenant that run at once, on NATS servers of each function; more wait. As many realtime sessions may \
     be open beside them; more are refused. 0 means no limit.",
);
const TENANT_WEIGHTS: Var = Var::new(
    "ORCHESTRATOR_TENANT_WEIGHTS",
    "tenant=weight, comma-separated",
    "",
    "The tenants' shares of the workers while all have runs waiting, 1 to 10,000; a tenant that is not named has 1.",
);
const FUNCTION_WEIGHTS: Var = Var::new(
    "ORCHESTRATOR_FUNCTION_WEIGHTS",
    "function=weight, comma-separated",
    "",
    "The functions' shares of what their tenant gets, 1 to 10,000; a function that is not named has 1.",
);
const HISTORY: Var = Var::new("ORCHESTRATOR_HISTORY", "runs", "1000", "How many ended runs are remembered.");
const MAX_ATTEMPTS: Var = Var::new(
    "ORCHESTRATOR_MAX_ATTEMPTS",
    "attempts",
    "3",
    "How often a run is tried in all when it fails with a retryable error; 0 and 1 mean once.",
);
const RUN_TIMEOUT: Var = Var::new(
    "ORCHESTRATOR_RUN_TIMEOUT_SECONDS",
    "seconds",
    "0",
    "The deadline of one attempt of a run that names none itself; 0 means none.",
);
const WORKER_GRACE: Var = Var::new(
    "ORCHESTRATOR_WORKER_GRACE_SECONDS",
    "seconds",
    "10",
    "How long the runs of a worker whose stream was lost wait for it before another worker gets them.",
);
const API_TOKEN: Var = Var::new(
    "ORCHESTRATOR_API_TOKEN",
    "secret",
    "",
    "The bearer token of callers who see all tenants. Unset, and no tenant has one: everybody on this machine may call.",
);
const WORKER_TOKEN: Var = Var::new(
    "ORCHESTRATOR_WORKER_TOKEN",
    "secret",
    "",
    "The bearer token that workers must send. Unset: every worker on this machine may connect.",
);
const TENANT_TOKENS: Var = Var::new(
    "ORCHESTRATOR_TENANT_TOKENS",
    "secret",
    "",
    "Bearer tokens of tenants, as `tenant=token,tenant=token`; a tenant may have several. It sees its own runs and files \
     only; who sends the API token sees all.",
);
const MAX_BODY: Var = Var::new(
    "ORCHESTRATOR_MAX_BODY_BYTES",
    "bytes",
    "67108864",
    "The largest JSON body that is read; files have a limit of their own. 0 means unlimited.",
);
const RATE_LIMIT: Var = Var::new(
    "ORCHESTRATOR_RATE_LIMIT",
    "requests/s",
    "0",
    "How often each caller may ask, over HTTP and gRPC together, with ten seconds' worth at once; 0 means no limit.",
);
const MAX_FILE: Var = Var::new(
    "ORCHESTRATOR_MAX_FILE_BYTES",
    "bytes",
    "1073741824",
    "The largest file that is stored; 0 means unlimited.",
);

/// Where runs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueStore {
    /// In memory: they end with the process.
    Memory,
    /// In memory and in one file in the data folder: they survive the process, however it ends.
    File,
    /// On NATS servers, for any number of orchestrators. It needs the feature `nats`.
    Nats(NatsConfig),
}

/// Where the NATS servers are, and how runs are kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// The servers' URLs, `nats://` or `tls://`; secret, as they may say who asks: `nats://user:password@host`. All that do
    /// say the same.
    pub urls: Vec<Secret<String>>,
    /// A file with a user's credentials, as `nsc` writes it; `None`: none are sent.
    pub credentials: Option<PathBuf>,
    /// A file with certificates of authorities to trust in the place of the system's, in PEM; `None`: the system's.
    pub tls_ca: Option<PathBuf>,
    /// Files with the certificate that the servers are shown, and with its private key, in PEM; `None`: they are shown none.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// What the names of streams, buckets and subjects begin with: letters, digits, `-` and `_`.
    pub prefix: String,
    /// The subject that JetStream is asked on, where an account imports it from another; `None`: `$JS.API`.
    pub api_prefix: Option<String>,
    /// On how many servers everything is kept: 1, 3 or 5.
    pub replicas: usize,
    /// How long a run is known, from its last step on, whether it has ended or not.
    pub max_age: Duration,
    /// Most runs that wait or run.
    pub max_open: u64,
}

impl NatsConfig {
    /// These servers, and the defaults for all else.
    pub fn of(urls: Vec<String>) -> Self {
        let mut errors = ConfigErrors::default();
        let config = Self::from_env(&Env::default(), &mut errors);
        Self { urls: urls.into_iter().map(Secret::new).collect(), ..config }
    }

    fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        let (certificate, key) = (read.path(&NATS_CLIENT_CERT), read.path(&NATS_CLIENT_KEY));
        let half = match (&certificate, &key) {
            (Some(_), None) => Some((NATS_CLIENT_CERT, NATS_CLIENT_KEY)),
            (None, Some(_)) => Some((NATS_CLIENT_KEY, NATS_CLIENT_CERT)),
            _ => None,
        };
        let config = Self {
            urls: read.list(&NATS_URL).into_iter().map(Secret::new).collect(),
            credentials: read.path(&NATS_CREDENTIALS),
            tls_ca: read.path(&NATS_CA),
            tls_identity: certificate.zip(key),
            prefix: read.text(&NATS_PREFIX).unwrap_or_default(),
            api_prefix: read.text(&NATS_API_PREFIX),
            replicas: read.number(&NATS_REPLICAS),
            max_age: read.seconds(&NATS_MAX_AGE),
            max_open: read.number(&NATS_MAX_OPEN),
        };
        if let Some((set, missing)) = half {
            errors.push(format!("{} is set without {}: it takes both", set.name, missing.name));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if config.prefix.is_empty() || !config.prefix.chars().all(plain) {
            errors.push(format!("{} has letters, digits, `-` and `_` only", NATS_PREFIX.name));
        }
        if ![1, 3, 5].contains(&config.replicas) {
            errors.push(format!("{} is 1, 3 or 5", NATS_REPLICAS.name));
        }
        config
    }
}

/// How an orchestrator is set up.
#[derive(Debug, Clone)]
pub struct OrchestratorConfig {
    /// Where workers and gRPC clients connect; port 0 takes any free port.
    pub grpc: SocketAddr,
    /// Where HTTP is served; port 0 takes any free port.
    pub http: SocketAddr,
    /// How workers reach `grpc`; `None`: under its own address, unless that stands for all of the machine's.
    pub public_grpc: Option<String>,
    /// How others reach `http`; `None`: under its own address.
    pub public_url: Option<Url>,
    /// Where files are kept; created if need be.
    pub data_dir: PathBuf,
    /// A folder of models to serve; `None`: none is served.
    pub models_dir: Option<PathBuf>,
    /// Where runs are kept.
    pub queue: QueueStore,
    /// How much of the queue one tenant may have.
    pub limits: TenantLimits,
    /// How many ended runs are remembered; 0 is taken as 1.
    pub history: usize,
    /// How often a run is tried in all; 0 is taken as 1.
    pub max_attempts: u32,
    /// The deadline of an attempt of a run that names none; `None`: no deadline.
    pub run_timeout: Option<Duration>,
    /// How long the runs of a lost worker wait for it.
    pub worker_grace: Duration,
    /// What callers send who see all tenants; `None`, while no tenant has a token either: nothing, which is allowed on
    /// loopback only.
    pub api_token: Option<Secret<String>>,
    /// What workers must send; `None`: nothing, which is allowed on loopback only.
    pub worker_token: Option<Secret<String>>,
    /// Tokens of tenants, who see their own runs and files only; a tenant may have several.
    pub tenant_tokens: Vec<(TenantId, Secret<String>)>,
    /// The largest file that is stored.
    pub max_file: ByteLimit,
    /// The largest JSON body that is read.
    pub max_body: ByteLimit,
    /// How many requests a second each caller may make; 0: any number.
    pub rate_limit: u32,
}

impl OrchestratorConfig {
    /// The variables that [`from_env`](Self::from_env) reads.
    pub const VARS: &'static [Var] = &[
        GRPC_ADDR,
        HTTP_ADDR,
        PUBLIC_GRPC_ADDR,
        PUBLIC_URL,
        DATA_DIR,
        MODELS_DIR,
        QUEUE,
        HISTORY,
        MAX_ATTEMPTS,
        RUN_TIMEOUT,
        WORKER_GRACE,
        API_TOKEN,
        WORKER_TOKEN,
        TENANT_TOKENS,
        MAX_FILE,
        MAX_BODY,
        RATE_LIMIT,
        TENANT_MAX_QUEUED,
        TENANT_MAX_RUNNING,
        TENANT_WEIGHTS,
        FUNCTION_WEIGHTS,
        NATS_URL,
        NATS_CREDENTIALS,
        NATS_CA,
        NATS_CLIENT_CERT,
        NATS_CLIENT_KEY,
        NATS_PREFIX,
        NATS_API_PREFIX,
        NATS_REPLICAS,
        NATS_MAX_AGE,
        NATS_MAX_OPEN,
    ];

    /// For this machine only: free ports on loopback, no tokens, no models, runs in memory only.
    pub fn local(data_dir: impl Into<PathBuf>) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            grpc: any_port,
            http: any_port,
            public_grpc: None,
            public_url: None,
            data_dir: data_dir.into(),
            models_dir: None,
            queue: QueueStore::Memory,
            limits: TenantLimits::default(),
            history: 1000,
            max_attempts: 3,
            run_timeout: None,
            worker_grace: Duration::from_secs(10),
            api_token: None,
            worker_token: None,
            tenant_tokens: Vec::new(),
            max_file: ByteLimit::Max(ByteSize::gib(1)),
            max_body: ByteLimit::Max(ByteSize::mib(64)),
            rate_limit: 0,
        }
    }

    /// Reads [`VARS`](Self::VARS); mistakes go to `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let [grpc, http] = [GRPC_ADDR, HTTP_ADDR].map(|var| address(&var, env, errors));
        let [tenant_weights, function_weights] =
            [TENANT_WEIGHTS, FUNCTION_WEIGHTS].map(|var| weights(&var, env, errors));
        let queue = queue(env, errors);
        let tenant_tokens = tenant_tokens(env, errors);
        let mut read = Reader::new(env, errors);
        Self {
            grpc,
            http,
            public_grpc: read.text(&PUBLIC_GRPC_ADDR),
            public_url: read.url(&PUBLIC_URL),
            data_dir: read.path(&DATA_DIR).unwrap_or_default(),
            models_dir: read.path(&MODELS_DIR),
            queue,
            limits: TenantLimits {
                max_queued: read.optional_number(&TENANT_MAX_QUEUED).filter(|&max| max > 0),
                max_running: read.optional_number(&TENANT_MAX_RUNNING).filter(|&max| max > 0),
                tenant_weights,
                function_weights,
            },
            history: read.number(&HISTORY),
            max_attempts: read.number(&MAX_ATTEMPTS),
            run_timeout: Some(read.seconds(&RUN_TIMEOUT)).filter(|timeout| !timeout.is_zero()),
            worker_grace: read.seconds(&WORKER_GRACE),
            api_token: read.secret(&API_TOKEN),
            worker_token: read.secret(&WORKER_TOKEN),
            tenant_tokens,
            max_file: read.byte_limit(&MAX_FILE),
            max_body: read.byte_limit(&MAX_BODY),
            rate_limit: read.number(&RATE_LIMIT),
        }
    }

    /// Whoever listens beyond this machine must ask who calls. Both services share the gRPC address.
    pub(crate) fn check(&self) -> Result<(), OrchestratorError> {
        let callers_are_asked = self.api_token.is_some() || !self.tenant_tokens.is_empty();
        let demands = [
            (self.grpc, self.worker_token.is_some(), &WORKER_TOKEN),
            (self.grpc, callers_are_asked, &API_TOKEN),
            (self.http, callers_are_asked, &API_TOKEN),
        ];
        for (address, is_asked, var) in demands {
            if !address.ip().is_loopback() && !is_asked {
                return Err(OrchestratorError::Unprotected { address, variable: var.name });
            }
        }
        Ok(())
    }
}

/// What is wrong is said without the token.
fn tenant_tokens(env: &Env, errors: &mut ConfigErrors) -> Vec<(TenantId, Secret<String>)> {
    let mut tokens: Vec<(TenantId, Secret<String>)> = Vec::new();
    let listed = env.get(TENANT_TOKENS.name).unwrap_or_default().split(',').map(str::trim);
    for (at, entry) in (1..).zip(listed).filter(|(_, entry)| !entry.is_empty()) {
        let mut wrong = |what: &str| errors.push(format!("{}, entry {at}: {what}", TENANT_TOKENS.name));
        let pair = entry.split_once('=').map(|(tenant, token)| (tenant, token.trim()));
        let Some((tenant, token)) = pair.filter(|(_, token)| !token.is_empty()) else {
            wrong("expected `tenant=token`");
            continue;
        };
        match TenantId::parse(tenant.trim()) {
            Err(error) => wrong(&error.to_string()),
            Ok(_) if tokens.iter().any(|(_, other)| other.expose() == token) => {
                wrong("the token is another entry's too");
            }
            Ok(tenant) => tokens.push((tenant, token.into())),
        }
    }
    tokens
}

fn address(var: &Var, env: &Env, errors: &mut ConfigErrors) -> SocketAddr {
    let text = env.get(var.name).unwrap_or(var.default);
    text.parse().unwrap_or_else(|_| {
        errors.push(format!(
            "{} is `{text}`: expected an address and a port, such as `{}`",
            var.name, var.default
        ));
        SocketAddr::from(([127, 0, 0, 1], 0))
    })
}

fn queue(env: &Env, errors: &mut ConfigErrors) -> QueueStore {
    match env.get(QUEUE.name).unwrap_or(QUEUE.default) {
        "file" => QueueStore::File,
        "memory" => QueueStore::Memory,
        "nats" => {
            if cfg!(not(feature = "nats")) {
                errors.push(format!("{} is `nats`, and this program was built without it", QUEUE.name));
            }
            QueueStore::Nats(NatsConfig::from_env(env, errors))
        }
        other => {
            errors.push(format!("{} is `{other}`: expected `file`, `memory` or `nats`", QUEUE.name));
            QueueStore::File
        }
    }
}

fn weights(var: &Var, env: &Env, errors: &mut ConfigErrors) -> Weights {
    let text = env.get(var.name).unwrap_or(var.default);
    let named = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let parsed = pair.split_once('=').and_then(|(name, weight)| {
            let weight = weight.trim().parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))?;
            Some((name.trim().to_owned(), weight))
        });
        if parsed.is_none() {
            errors.push(format!(
                "{} has `{pair}`: expected a name, `=` and a weight from 1 to {MAX_WEIGHT}, such as `acme=3`",
                var.name
            ));
        }
        parsed
    });
    Weights::new(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        let mut errors = ConfigErrors::default();
        let config = OrchestratorConfig::from_env(&Env::default(), &mut errors);
        assert_eq!(errors, ConfigErrors::default());
        assert_eq!(config.http.port(), 8081);
        assert_eq!(config.run_timeout, None);
        assert!(config.check().is_ok());
    }

    #[test]
    fn an_open_address_needs_a_token() {
        let mut config = OrchestratorConfig::local("x");
        config.http = ([0, 0, 0, 0], 0).into();
        assert!(config.check().is_err());
        config.api_token = Some("t".into());
        assert!(config.check().is_ok());
        config.grpc = ([0, 0, 0, 0], 0).into();
        assert!(config.check().is_err());
        config.worker_token = Some("t".into());
        assert!(config.check().is_ok());
    }

    #[test]
    fn a_wrong_weight_is_named() {
        let mut errors = ConfigErrors::default();
        let env = Env::from_iter([(TENANT_WEIGHTS.name, "acme=3, b=0"), (QUEUE.name, "disk")]);
        let config = OrchestratorConfig::from_env(&env, &mut errors);
        let errors = errors.to_string();
        assert!(errors.contains("ORCHESTRATOR_TENANT_WEIGHTS has `b=0`"), "{errors}");
        assert!(errors.contains("ORCHESTRATOR_QUEUE is `disk`"), "{errors}");
        assert_eq!(config.limits.tenant_weights, Weights::new([("acme".to_owned(), 3)]));
    }

    #[test]
    fn tokens_of_tenants_are_read_and_never_said() {
        let read = |text: &str| {
            let mut errors = ConfigErrors::default();
            let env = Env::from_iter([(TENANT_TOKENS.name, text)]);
            let config = OrchestratorConfig::from_env(&env, &mut errors);
            let tokens = config.tenant_tokens.iter();
            let tokens: Vec<_> = tokens.map(|(name, token)| format!("{name}:{}", token.expose())).collect();
            (tokens, errors.to_string())
        };
        let (tokens, errors) = read("acme=s3cret=, other = b,acme=c");
        assert_eq!(tokens, ["acme:s3cret=", "other:b", "acme:c"]);
        assert_eq!(errors, "");
        let (tokens, errors) = read("a=s3cret,s3cret,b=s3cret,=s3cret2,c=");
        assert_eq!(tokens, ["a:s3cret"]);
        assert!(
            !errors.contains("s3cret") && errors.contains("entry 2: expected `tenant=token`"),
            "{errors}"
        );
        assert!(errors.contains("entry 3: the token is another entry's too"), "{errors}");
        assert!(errors.contains("entry 4") && errors.contains("entry 5"), "{errors}");
    }

    #[test]
    fn who_asks_nats_servers_is_never_said() {
        let mut errors = ConfigErrors::default();
        let urls = "nats://s3cret:s3cret@one, s3cret@two, s3cret";
        let env = Env::from_iter([(QUEUE.name, "nats"), (NATS_URL.name, urls)]);
        let config = OrchestratorConfig::from_env(&env, &mut errors);
        assert!(matches!(&config.queue, QueueStore::Nats(nats) if nats.urls.len() == 3));
        let said = format!("{config:?} {errors}");
        assert!(!said.contains("s3cret"), "{said}");
    }

    #[test]
    fn a_certificate_for_nats_servers_needs_its_key() {
        for (set, missing) in [(NATS_CLIENT_CERT, NATS_CLIENT_KEY), (NATS_CLIENT_KEY, NATS_CLIENT_CERT)] {
            let mut errors = ConfigErrors::default();
            let env = Env::from_iter([(QUEUE.name, "nats"), (set.name, "x")]);
            OrchestratorConfig::from_env(&env, &mut errors);
            let said = format!("{} is set without {}", set.name, missing.name);
            assert!(errors.to_string().contains(&said), "{errors}");
        }
    }

    #[test]
    fn a_wrong_address_is_named() {
        let mut errors = ConfigErrors::default();
        OrchestratorConfig::from_env(&Env::from_iter([(GRPC_ADDR.name, "here")]), &mut errors);
        assert!(errors.to_string().starts_with("ORCHESTRATOR_GRPC_ADDR is `here`"));
    }
}
