//! Schedulers over TLS: whom the worker trusts, and as whom it shows itself.

use std::{fs, path::Path, time::Duration};

use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::time::timeout;
use tonic::{
    Status,
    transport::{self, Identity, ServerTlsConfig},
};

use super::CONFORMANCE;

/// A certificate authority of this test's own.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key as PEM.
struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("it can be made");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("it can be made");
        Self {
            certificate: params.self_signed(&key).expect("it can be made"),
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, name: &str) -> Signed {
        let key = KeyPair::generate().expect("it can be made");
        let params = CertificateParams::new([name.to_owned()]).expect("it can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("it can be made").pem();
        Signed { certificate, key: key.serialize_pem() }
    }

    /// What a scheduler on loopback shows.
    fn server(&self) -> ServerTlsConfig {
        let Signed { certificate, key } = self.sign("127.0.0.1");
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }
}

/// A worker that dials over TLS, with these files in its folder and these variables naming them.
fn worker(scheduler: &FakeScheduler, files: &[(&str, &str)]) -> WorkerProcess {
    worker_with(scheduler, files, |settings| settings)
}

fn worker_with(
    scheduler: &FakeScheduler,
    files: &[(&str, &str)],
    more: impl FnOnce(WorkerSettings) -> WorkerSettings,
) -> WorkerProcess {
    let mut settings = WorkerSettings::new(CONFORMANCE, scheduler).set("USE_TLS", "true");
    for (variable, pem) in files {
        let file = settings.directory().join(variable);
        fs::write(&file, pem).expect("its folder is there");
        settings = settings.set(variable, file.to_string_lossy());
    }
    more(settings).set("MAX_RECONNECT_ATTEMPTS", "2").start()
}

#[tokio::test]
async fn a_scheduler_of_the_given_authority_is_accepted() {
    let authority = Authority::new();
    let scheduler = FakeScheduler::start_tls(authority.server()).await;
    let _worker = worker(&scheduler, &[("SCHEDULER_TLS_CA", &authority.certificate.pem())]);
    scheduler.accept().await.next_registration().await;
}

#[tokio::test]
async fn the_scheme_of_an_address_decides_about_tls() {
    let authority = Authority::new();
    let ca = authority.certificate.pem();
    let (secured, plain) = (FakeScheduler::start_tls(authority.server()).await, FakeScheduler::start().await);
    for (scheduler, scheme, use_tls) in [
        (&secured, "grpcs", "false"),
        (&secured, "https", "false"),
        (&plain, "grpc", "true"),
        (&plain, "http", "true"),
    ] {
        let address = format!("{scheme}://{}", scheduler.addr());
        let _worker = worker_with(scheduler, &[("SCHEDULER_TLS_CA", &ca)], |settings| {
            settings.set("SCHEDULER_ADDR", address).set("USE_TLS", use_tls)
        });
        scheduler.accept().await.next_registration().await;
    }
}

#[tokio::test]
async fn a_scheduler_of_an_unknown_authority_is_refused_with_the_reason() {
    let scheduler = FakeScheduler::start_tls(Authority::new().server()).await;
    let mut worker = worker(&scheduler, &[("SCHEDULER_TLS_CA", &Authority::new().certificate.pem())]);
    assert_eq!(worker.ended().await.code(), Some(4));
    assert!(worker.log().contains("invalid peer certificate"), "{}", worker.log());
}

#[tokio::test]
async fn a_scheduler_that_asks_for_a_certificate_is_shown_it() {
    let authority = Authority::new();
    let root = transport::Certificate::from_pem(authority.certificate.pem());
    let scheduler = FakeScheduler::start_tls(authority.server().client_ca_root(root)).await;
    let certificate = authority.certificate.pem();
    let own = authority.sign("worker.example");
    let files = [
        ("SCHEDULER_TLS_CA", certificate.as_str()),
        ("SCHEDULER_TLS_CERT", own.certificate.as_str()),
        ("SCHEDULER_TLS_KEY", own.key.as_str()),
    ];
    {
        let _worker = worker(&scheduler, &files);
        scheduler.accept().await.next_registration().await;
    }
    let mut unknown = worker(&scheduler, &files[..1]);
    assert_eq!(unknown.ended().await.code(), Some(4));
}

#[tokio::test]
async fn mistakes_in_the_files_end_the_start() {
    let authority = Authority::new();
    let (one, other) = (authority.sign("one.example"), authority.sign("other.example"));
    let scheduler = FakeScheduler::start().await;
    for (files, expected) in [
        (vec![("SCHEDULER_TLS_CA", "no certificate")], "holds no CERTIFICATE in PEM form"),
        (vec![("SCHEDULER_TLS_CERT", one.certificate.as_str())], "set without SCHEDULER_TLS_KEY"),
        (vec![("SCHEDULER_TLS_KEY", one.key.as_str())], "set without SCHEDULER_TLS_CERT"),
        (
            vec![("SCHEDULER_TLS_CERT", one.certificate.as_str()), ("SCHEDULER_TLS_KEY", other.key.as_str())],
            "SCHEDULER_TLS_CERT and SCHEDULER_TLS_KEY: ",
        ),
    ] {
        let mut worker = worker(&scheduler, &files);
        assert_eq!(worker.ended().await.code(), Some(2));
        assert!(worker.log().contains(expected), "{expected}: {}", worker.log());
        assert!(!worker.log().contains("PRIVATE KEY-----"));
    }
    let missing = Path::new("no-such-file.pem").to_string_lossy();
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("SCHEDULER_TLS_CA", missing).start();
    assert_eq!(worker.ended().await.code(), Some(2));
}

#[tokio::test]
async fn no_redirect_leads_from_tls_to_plaintext() {
    let authority = Authority::new();
    let follower = FakeScheduler::start_tls(authority.server()).await;
    let leader = FakeScheduler::start().await;
    follower.refuse_next(Status::failed_precondition(format!("not_leader:grpc://{}", leader.addr())));
    let ca = authority.certificate.pem();
    let worker = worker_with(&follower, &[("SCHEDULER_TLS_CA", &ca)], |settings| {
        settings.set("SCHEDULER_REDIRECT_ALLOW", leader.addr().to_string()).set("AUTH_TOKEN", "hunter2")
    });
    follower.accept().await.next_registration().await;
    assert!(timeout(Duration::ZERO, leader.accept()).await.is_err(), "the redirect was followed");
    worker.says("from TLS to plaintext").await;
}
