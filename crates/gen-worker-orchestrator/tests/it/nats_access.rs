//! Whom real NATS servers let in, and whether they are who they should be.

use std::{error::Error, fs, path::PathBuf, time::Duration};

use gen_worker_orchestrator::{NatsConfig, Orchestrator, OrchestratorConfig, QueueStore};
use gen_worker_testkit::NatsServers;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::harness::{ALL, Harness};

/// Less than the servers are given to be there.
const AT_ONCE: Duration = Duration::from_secs(20);

const PASSWORD: &str = "s3cr@t,/";
const USERS: &str = r#"authorization: { users: [{ user: "u", password: "s3cr@t,/" }] }"#;

/// A server over TLS, with its authority's certificate in a file.
struct Tls {
    servers: NatsServers,
    folder: TempDir,
}

impl Tls {
    async fn start() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        for (file, pem) in [("ca", authority), ("cert", certificate), ("key", key.serialize_pem())] {
            fs::write(folder.path().join(file), pem).unwrap();
        }
        let file = |name: &str| format!("{:?}", folder.path().join(name));
        let settings = format!("tls: {{ cert_file: {}, key_file: {} }}", file("cert"), file("key"));
        Self { servers: NatsServers::start_with(NatsServers::program(), 1, &settings).await, folder }
    }

    /// Where it is, and whom to trust.
    fn config(&self, tls_ca: Option<PathBuf>) -> NatsConfig {
        NatsConfig { tls_ca, ..NatsConfig::of(urls(&self.servers, "tls://")) }
    }
}

/// The same servers, with this before their addresses.
fn urls(servers: &NatsServers, before: &str) -> Vec<String> {
    servers.addrs().iter().map(|addr| format!("{before}{addr}")).collect()
}

/// A run goes to a worker.
async fn serves(nats: NatsConfig) {
    let harness = Harness::with(|config| config.queue = QueueStore::Nats(nats)).await;
    let run_id = harness.submit("f", None).await;
    assert_eq!(harness.worker(&ALL, 1).await.run().await.run_id, run_id);
}

/// Why an orchestrator does not start, with all causes, where that is known at once.
async fn refused(nats: NatsConfig) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut config = OrchestratorConfig::local(folder.path());
    config.queue = QueueStore::Nats(nats);
    let started = timeout(AT_ONCE, Orchestrator::start(config)).await.expect("no second try");
    let error = started.err().unwrap();
    let mut said = format!("{error:?}");
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_the_given_authority_are_trusted() {
    let tls = Tls::start().await;
    serves(tls.config(Some(tls.folder.path().join("ca")))).await;
}

#[tokio::test]
async fn servers_of_another_authority_are_refused_with_the_setting() {
    let tls = Tls::start().await;
    let error = refused(tls.config(None)).await;
    assert!(error.contains("ORCHESTRATOR_NATS_CA is not set"), "{error}");
    assert!(error.contains("invalid peer certificate"), "{error}");
    let missing = tls.folder.path().join("missing");
    let error = refused(tls.config(Some(missing.clone()))).await;
    assert!(error.contains(&format!("ORCHESTRATOR_NATS_CA is {}", missing.display())), "{error}");
    assert!(error.contains("No such file"), "{error}");
    // It has no authority in it.
    let error = refused(tls.config(Some(tls.folder.path().join("key")))).await;
    assert!(error.contains("ORCHESTRATOR_NATS_CA is "), "{error}");
}

#[tokio::test]
async fn servers_without_tls_are_refused_where_it_is_asked_for() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let error = refused(NatsConfig::of(urls(&servers, "tls://"))).await;
    assert!(error.contains("over TLS"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_a_password_are_taken_from_the_url() {
    let servers = NatsServers::start_with(NatsServers::program(), 1, USERS).await;
    serves(NatsConfig::of(urls(&servers, "nats://u:s3cr%40t%2C%2F@"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_from_the_url() {
    let settings = r#"authorization: { token: "s3cr@t" }"#;
    let servers = NatsServers::start_with(NatsServers::program(), 1, settings).await;
    serves(NatsConfig::of(urls(&servers, "nats://s3cr%40t@"))).await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_at_once_what_to_set() {
    let servers = NatsServers::start_with(NatsServers::program(), 1, USERS).await;
    for before in ["nats://u:s3cr@", "nats://s3cr@", "nats://"] {
        let error = refused(NatsConfig::of(urls(&servers, before))).await;
        assert!(error.contains("user and password in ORCHESTRATOR_NATS_URL"), "{error}");
        assert!(!error.contains("s3cr") && !error.contains(PASSWORD), "{error}");
    }
    let config = NatsConfig::of(urls(&servers, "http://u:s3cr@"));
    let error = refused(config).await;
    assert!(error.contains("ORCHESTRATOR_NATS_URL, entry 1"), "{error}");
    assert!(!error.contains("s3cr"), "{error}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_named() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let folder = tempfile::tempdir().unwrap();
    let (missing, malformed) = (folder.path().join("missing"), folder.path().join("malformed"));
    fs::write(&malformed, "s3cret").unwrap();
    for (path, why) in [(missing, "No such file"), (malformed, "cannot parse user JWT")] {
        let named = format!("ORCHESTRATOR_NATS_CREDENTIALS_FILE is {}", path.display());
        let config = NatsConfig { credentials: Some(path), ..NatsConfig::of(servers.urls()) };
        let error = refused(config).await;
        assert!(error.contains(&named) && error.contains(why), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
