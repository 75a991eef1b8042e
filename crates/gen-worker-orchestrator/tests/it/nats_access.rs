//! Whom real NATS servers let in, and whether they are who they should be.

use std::{error::Error, fs, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use gen_worker_core::Secret;
use gen_worker_net::Method;
use gen_worker_orchestrator::{NatsConfig, Orchestrator, OrchestratorConfig, QueueStore};
use gen_worker_testkit::NatsServers;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::harness::{ALL, Harness};

/// Less than the servers are given to be there.
const AT_ONCE: Duration = Duration::from_secs(20);

const PASSWORD: &str = "s3cr@t,/";
const USERS: &str = r#"authorization: { users: [{ user: "u", password: "s3cr@t,/" }] }"#;

/// A server over TLS, with its authority's certificate in a file. The authority has also signed `client`, and another one `other`, the
/// keys of which are beside them.
struct Tls {
    servers: NatsServers,
    folder: TempDir,
}

impl Tls {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// One that lets in whom its authority knows.
    async fn start_mutual() -> Self {
        Self::start_with("verify: true").await
    }

    async fn start_with(setting: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: String| fs::write(folder.path().join(name), pem).unwrap();
        for (authority, names) in [("ca", &["cert", "client"][..]), ("other-ca", &["other"])] {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            write(authority, params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            for name in names {
                let key = rcgen::KeyPair::generate().unwrap();
                let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
                write(name, params.signed_by(&key, &issuer).unwrap().pem());
                write(&format!("{name}-key"), key.serialize_pem());
            }
        }
        let file = |name: &str| format!("{:?}", folder.path().join(name));
        let settings = format!(
            "tls: {{ cert_file: {}, key_file: {}, ca_file: {}, {setting} }}",
            file("cert"),
            file("cert-key"),
            file("ca")
        );
        Self { servers: NatsServers::start_with(NatsServers::program(), 1, &settings).await, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.file("ca")
    }

    /// The same as [`config`](Self::config) with its authority, and as whom it is asked.
    fn config_as(&self, certificate: &str, key: &str) -> NatsConfig {
        let tls_identity = Some((self.file(certificate), self.file(key)));
        NatsConfig { tls_identity, ..self.config(Some(self.ca())) }
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
    serves(tls.config(Some(tls.ca()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_is_tried_again() {
    let tls = Tls::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tls://{}", listener.local_addr().unwrap());
    let nats = NatsConfig { urls: vec![Secret::new(url)], ..tls.config(Some(tls.ca())) };
    let server = tls.servers.addrs()[0];
    let mut network = JoinSet::new();
    network.spawn(async move {
        // Before a word.
        drop(listener.accept().await.unwrap());
        // In the handshake, which the server's first words lead to.
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(server).await.unwrap();
        let mut said = vec![0; 1 << 16];
        let count = far.read(&mut said).await.unwrap();
        near.write_all(&said[..count]).await.unwrap();
        assert_ne!(near.read(&mut said).await.unwrap(), 0);
        drop((near, far));
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(server).await.unwrap();
        let _ = copy_bidirectional(&mut near, &mut far).await;
    });
    serves(nats).await;
}

#[tokio::test]
async fn servers_of_another_authority_are_refused_with_the_setting() {
    let tls = Tls::start().await;
    let error = refused(tls.config(None)).await;
    assert!(error.contains("ORCHESTRATOR_NATS_CA is not set"), "{error}");
    assert!(error.contains("invalid peer certificate"), "{error}");
    let missing = tls.file("missing");
    let error = refused(tls.config(Some(missing.clone()))).await;
    assert!(error.contains(&format!("ORCHESTRATOR_NATS_CA is {}", missing.display())), "{error}");
    assert!(error.contains("No such file"), "{error}");
    // It has no authority in it.
    let error = refused(tls.config(Some(tls.file("cert-key")))).await;
    assert!(error.contains("ORCHESTRATOR_NATS_CA is "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_servers_authority_lets_in() {
    let tls = Tls::start_mutual().await;
    serves(tls.config_as("client", "client-key")).await;
}

#[tokio::test]
async fn without_a_certificate_that_the_servers_trust_the_setting_is_named() {
    let tls = Tls::start_mutual().await;
    let error = refused(tls.config(Some(tls.ca()))).await;
    assert!(error.contains("ORCHESTRATOR_NATS_CLIENT_CERT is not set"), "{error}");
    let error = refused(tls.config_as("other", "other-key")).await;
    let named = format!("ORCHESTRATOR_NATS_CLIENT_CERT is {}", tls.file("other").display());
    assert!(error.contains(&named) && error.contains("that they trust"), "{error}");
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_and_no_key_is_said() {
    let tls = Tls::start_mutual().await;
    fs::write(tls.file("text"), "s3cret").unwrap();
    let key = fs::read_to_string(tls.file("client-key")).unwrap();
    fs::write(tls.file("broken"), key.replace("-----END", "")).unwrap();
    for (certificate, key, named) in [
        ("missing", "client-key", "CLIENT_CERT is "),
        ("client-key", "client-key", "CLIENT_CERT is "),
        ("client", "missing", "CLIENT_KEY is "),
        ("client", "text", "CLIENT_KEY is "),
        ("client", "broken", "CLIENT_KEY is "),
        ("client", "other-key", "CLIENT_KEY is not the key of ORCHESTRATOR_NATS_CLIENT_CERT"),
    ] {
        let error = refused(tls.config_as(certificate, key)).await;
        assert!(error.contains(&format!("ORCHESTRATOR_NATS_{named}")), "{error}");
        assert_eq!(error.contains("No such file"), [certificate, key].contains(&"missing"), "{error}");
        assert!(!error.contains("s3cret") && !error.contains("PRIVATE"), "{error}");
    }
}

#[tokio::test]
async fn servers_without_tls_are_refused_where_it_is_asked_for() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let (plain, asked) = (urls(&servers, "nats://"), urls(&servers, "tls://"));
    let authority = Tls::start().await;
    let with_authority =
        NatsConfig { urls: NatsConfig::of(plain.clone()).urls, ..authority.config(Some(authority.ca())) };
    let mixed = NatsConfig::of([plain, asked.clone()].concat());
    let with_certificate = NatsConfig {
        tls_ca: None,
        urls: with_authority.urls.clone(),
        ..authority.config_as("client", "client-key")
    };
    for config in [NatsConfig::of(asked), mixed, with_authority, with_certificate] {
        let error = refused(config).await;
        assert!(error.contains("over TLS"), "{error}");
    }
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

/// A name that an operator, an account or a user has signed: a token of the kind that `nsc` makes.
fn signed(by: &KeyPair, of: &KeyPair, name: &str, claims: Value) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let (issuer, subject) = (by.public_key(), of.public_key());
    let body = part(json!({ "jti": name, "iss": issuer, "sub": subject, "name": name, "nats": claims }));
    let signature = by.sign(format!("{head}.{body}").as_bytes()).unwrap();
    format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// What `nsc` writes for a user of this account.
fn credentials(account: &KeyPair, name: &str) -> String {
    credentials_of(&KeyPair::new_user(), account, name)
}

fn credentials_of(user: &KeyPair, account: &KeyPair, name: &str) -> String {
    let jwt = signed(
        account,
        user,
        name,
        json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 }),
    );
    let seed = user.seed().unwrap();
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// What a server needs to know of an operator with this account, which has JetStream, and one of the system's.
fn operated(account: &KeyPair) -> String {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let of_operator = signed(&operator, &operator, "o", json!({ "type": "operator", "version": 2 }));
    let of_account = |account: &KeyPair, name: &str, storage: i64| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        signed(&operator, account, name, json!({ "type": "account", "version": 2, "limits": limits }))
    };
    format!(
        "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}",
        system.public_key(),
        system.public_key(),
        of_account(&system, "s", 0),
        account.public_key(),
        of_account(account, "a", -1),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_of_the_account_lets_in_and_no_other() {
    let account = KeyPair::new_account();
    let servers = NatsServers::start_with(NatsServers::program(), 1, &operated(&account)).await;
    let folder = tempfile::tempdir().unwrap();
    let config = |name: &str, of: &KeyPair| {
        let path = folder.path().join(name);
        fs::write(&path, credentials(of, name)).unwrap();
        NatsConfig { credentials: Some(path), ..NatsConfig::of(servers.urls()) }
    };
    serves(config("ours", &account)).await;
    let error = refused(config("theirs", &KeyPair::new_account())).await;
    assert!(error.contains("credentials in ORCHESTRATOR_NATS_CREDENTIALS_FILE"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_read_anew_for_each_connection() {
    let (account, users) = (KeyPair::new_account(), [(); 2].map(|()| KeyPair::new_user()));
    let mut servers = NatsServers::start_with(NatsServers::program(), 1, &operated(&account)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user");
    fs::write(&path, credentials_of(&users[0], &account, "first")).unwrap();
    let nats = NatsConfig { credentials: Some(path.clone()), ..NatsConfig::of(servers.urls()) };
    let harness = Harness::with(|config| config.queue = QueueStore::Nats(nats)).await;
    let ready = async || harness.send(Method::GET, "/readyz", &[], b"").await.status().as_u16();
    assert_eq!(ready().await, 200);
    let connected = async |servers: &NatsServers| servers.monitor(0, "/connz?auth=true").await.unwrap();
    assert!(connected(&servers).await.contains(&users[0].public_key()));
    // One that cannot be read is read again.
    fs::remove_file(&path).unwrap();
    servers.kill(0).await;
    servers.restart(0).await;
    let tried = timeout(AT_ONCE, async { while ready().await != 503 {} });
    tried.await.unwrap();
    fs::write(&path, credentials_of(&users[1], &account, "second")).unwrap();
    let back = timeout(AT_ONCE, async { while ready().await != 200 {} });
    back.await.unwrap();
    let connected = connected(&servers).await;
    assert!(connected.contains(&users[1].public_key()), "{connected}");
}

#[tokio::test]
async fn credentials_that_cannot_be_read_are_named() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let folder = tempfile::tempdir().unwrap();
    let (missing, malformed) = (folder.path().join("missing"), folder.path().join("malformed"));
    fs::write(&malformed, "s3cret").unwrap();
    let half = folder.path().join("half");
    fs::write(&half, "-----BEGIN NATS USER JWT-----\ns3cret\n-----BEGIN USER NKEY SEED-----\ns3cret\n")
        .unwrap();
    for (path, why) in [
        (missing, "No such file"),
        (malformed, "there is no user JWT in it"),
        (half, "there is no seed of a key in it"),
    ] {
        let named = format!("ORCHESTRATOR_NATS_CREDENTIALS_FILE is {}", path.display());
        let config = NatsConfig { credentials: Some(path), ..NatsConfig::of(servers.urls()) };
        let error = refused(config).await;
        assert!(error.contains(&named) && error.contains(why), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
