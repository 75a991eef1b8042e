//! The connection to the servers: where they are, who asks, and whom it trusts.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use async_nats::{
    AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr,
    rustls::{
        self, AlertDescription, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use gen_worker_core::config::Var;
use percent_encoding::percent_decode_str;
use tracing::warn;
use url::Url;

use super::{PATIENCE, credentials::Credentials};
use crate::config::{NATS_CA, NATS_CLIENT_CERT, NATS_CLIENT_KEY, NATS_CREDENTIALS, NATS_URL, NatsConfig};

/// What no second try mends: the settings must change. Nothing in it is secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "{}, entry {entry}: expected the URL of a NATS server, such as `nats://127.0.0.1:4222` or `tls://user:password@host`",
        NATS_URL.name
    )]
    Url { entry: usize },
    #[error("{} names several users: one connection has one", NATS_URL.name)]
    Users,
    #[error("{setting} is {}, which cannot be used as {used_as}", path.display())]
    File { setting: &'static str, path: PathBuf, used_as: &'static str, source: io::Error },
    #[error("{} is not the key of {}: name files that belong together", NATS_CLIENT_KEY.name, NATS_CLIENT_CERT.name)]
    Pair(#[source] rustls::Error),
    #[error(
        "the NATS servers let nobody in as whom the settings say: correct the user and password in {}, the user's \
         credentials in {}, or the certificate in {}",
        NATS_URL.name,
        NATS_CREDENTIALS.name,
        NATS_CLIENT_CERT.name
    )]
    User(#[source] ConnectError),
    #[error(
        "the NATS servers ask for a certificate that they trust: {} is {certificate}, and must name a file with one, and {} \
         one with its key",
        NATS_CLIENT_CERT.name,
        NATS_CLIENT_KEY.name
    )]
    Identity { certificate: String, source: ConnectError },
    #[error(
        "the NATS servers cannot be trusted over TLS: {} is {authorities}, and must name a file with the certificate of \
         the authority that signed theirs",
        NATS_CA.name
    )]
    Tls { authorities: String, source: ConnectError },
}

/// Who asks, as URLs say it.
#[derive(Clone, PartialEq, Eq)]
enum Login {
    User { name: String, password: String },
    Token(String),
}

pub(super) async fn connect(config: &NatsConfig) -> Result<Client, Box<dyn Error + Send + Sync>> {
    let options = match &config.credentials {
        Some(path) => with_credentials(path).await?,
        None => ConnectOptions::new(),
    };
    let mut options = options
        .name("gen-worker orchestrator")
        // What is said here is known here.
        .no_echo()
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .max_reconnects(None)
        .subscription_capacity(1 << 16);
    let (servers, login) = servers(config)?;
    let tls_files = config.tls_ca.is_some() || config.tls_identity.is_some();
    // Also of servers that others tell of, whose addresses do not say it.
    options = options.require_tls(tls_files || servers.iter().any(ServerAddr::tls_required));
    options = match login {
        Some(Login::User { name, password }) => options.user_and_password(name, password),
        Some(Login::Token(token)) => options.token(token),
        None => options,
    };
    if let Some(authorities) = &config.tls_ca {
        options = options.add_root_certificates(authorities.clone());
    }
    if let Some((certificate, key)) = &config.tls_identity {
        check_identity(certificate, key).await?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    options.connect(servers).await.map_err(|error| judged(config, error))
}

/// Whoever a file says at each connection: it may be renewed meanwhile, and once there is a connection, one that cannot be read is
/// read again at the next attempt.
async fn with_credentials(path: &Path) -> Result<ConnectOptions, Refused> {
    let unusable = |source| Refused::File {
        setting: NATS_CREDENTIALS.name,
        path: path.to_owned(),
        used_as: "the credentials of a NATS user",
        source,
    };
    Credentials::read(path).await.map_err(unusable)?;
    let path = path.to_owned();
    Ok(ConnectOptions::with_auth_callback(move |nonce| {
        let path = path.clone();
        async move {
            let read = Credentials::read(&path).await;
            read.and_then(|credentials| credentials.answer(&nonce)).map_err(|error| {
                let (setting, path) = (NATS_CREDENTIALS.name, path.display());
                warn!(setting, %path, %error, "these credentials cannot be used; they are read again soon");
                AuthError::new(format!("the credentials in {setting} cannot be used"))
            })
        }
    }))
}

/// The client would not say what is wrong with these files. Neither does this repeat what is in them.
async fn check_identity(certificate: &Path, key: &Path) -> Result<(), Refused> {
    let certificates = pem(&NATS_CLIENT_CERT, certificate, "a certificate in PEM", |bytes| {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().ok()?;
        (!chain.is_empty()).then_some(chain)
    });
    let certificates = certificates.await?;
    let key =
        pem(&NATS_CLIENT_KEY, key, "a private key in PEM", |bytes| PrivateKeyDer::from_pem_slice(bytes).ok());
    let checked = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(certificates, key.await?);
    checked.map(drop).map_err(Refused::Pair)
}

async fn pem<T>(
    setting: &Var,
    path: &Path,
    used_as: &'static str,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T, Refused> {
    let read = tokio::fs::read(path).await;
    let parsed = read.and_then(|bytes| {
        parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "there is none in it"))
    });
    parsed.map_err(|source| Refused::File { setting: setting.name, path: path.to_owned(), used_as, source })
}

fn judged(config: &NatsConfig, error: ConnectError) -> Box<dyn Error + Send + Sync> {
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            Refused::User(error).into()
        }
        kind => match of_tls(&error) {
            Some(rustls::Error::AlertReceived(alert)) if is_about_identity(*alert) => {
                let certificate = named(config.tls_identity.as_ref().map(|(certificate, _)| certificate));
                Refused::Identity { certificate, source: error }.into()
            }
            of_tls if kind == ConnectErrorKind::Tls || of_tls.is_some() => {
                let authorities = named(config.tls_ca.as_ref());
                Refused::Tls { authorities, source: error }.into()
            }
            _ => error.into(),
        },
    }
}

fn named(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| "not set".to_owned(), |path| path.display().to_string())
}

/// How a handshake came to a wrong end. One that broke off is no error of TLS.
fn of_tls(error: &ConnectError) -> Option<&rustls::Error> {
    let io = error.source()?.downcast_ref::<io::Error>()?;
    io.get_ref()?.downcast_ref()
}

/// Whether the other side says that it cannot trust us.
fn is_about_identity(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The servers, and who asks them. The client does not look for that in URLs, and writes URLs to its log.
fn servers(config: &NatsConfig) -> Result<(Vec<ServerAddr>, Option<Login>), Refused> {
    let mut servers = Vec::new();
    let mut login = None;
    for (entry, url) in (1..).zip(&config.urls) {
        let (server, named) = server(url.expose()).ok_or(Refused::Url { entry })?;
        servers.push(server);
        match (&login, named) {
            (Some(one), Some(other)) if *one != other => return Err(Refused::Users),
            (None, named) => login = named,
            _ => {}
        }
    }
    Ok((servers, login))
}

fn server(text: &str) -> Option<(ServerAddr, Option<Login>)> {
    let mut url = match text.contains("://") {
        true => Url::parse(text).ok()?,
        false => Url::parse(&format!("nats://{text}")).ok()?,
    };
    if !matches!(url.scheme(), "nats" | "tls") || !url.has_host() {
        return None;
    }
    let plain = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    let name = plain(url.username())?;
    let login = match url.password() {
        Some(password) => Some(Login::User { name, password: plain(password)? }),
        None if name.is_empty() => None,
        None => Some(Login::Token(name)),
    };
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some((ServerAddr::from_url(url).ok()?, login))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(urls: &[&str]) -> Result<(Vec<String>, Option<Login>), Refused> {
        let urls = urls.iter().map(|&url| url.to_owned()).collect();
        let (servers, login) = servers(&NatsConfig::of(urls))?;
        Ok((servers.iter().map(|server| server.as_url_str().to_owned()).collect(), login))
    }

    #[test]
    fn who_asks_is_taken_from_urls_that_do_not_say_it_then() {
        let of = |name: &str, password: &str| Login::User { name: name.into(), password: password.into() };
        let (servers, login) = read(&["nats://a:p%40%2c@one:1", "tls://two", "a:p%40%2c@three:3"]).unwrap();
        assert_eq!(servers, ["nats://one:1", "tls://two", "nats://three:3"]);
        assert!(login == Some(of("a", "p@,")));
        let (servers, login) = read(&["tls://t%2bk@[::1]:4222"]).unwrap();
        assert_eq!(servers, ["tls://[::1]:4222"]);
        assert!(login == Some(Login::Token("t+k".to_owned())));
        assert!(read(&["nats://one"]).unwrap().1.is_none());
    }

    #[test]
    fn urls_of_something_else_are_refused_and_not_said() {
        for url in [
            "http://s3cret@x",
            "nats://s3cret:s3cret@",
            "nats://s3cret:s3cret",
            "nats://s3cret:%ff@x",
            "nats://",
        ] {
            let error = read(&["nats://s3cret:s3cret@x", url]).err().unwrap();
            let said = format!("{error} {error:?}");
            assert!(said.starts_with("ORCHESTRATOR_NATS_URL, entry 2: "), "{said}");
            assert!(!said.contains("s3c"), "{said}");
        }
        let error = read(&["nats://a:b@x", "nats://a:c@x"]).err().unwrap();
        assert!(matches!(error, Refused::Users));
    }
}
