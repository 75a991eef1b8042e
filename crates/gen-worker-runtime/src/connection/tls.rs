//! Whom the worker trusts over TLS beside the public roots, and as whom it shows itself.

use gen_worker_core::{
    Secret,
    config::{ConfigErrors, Env, Var},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::status::innermost;

/// A certificate authority and a client certificate, each as PEM text.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    authority: Option<String>,
    identity: Option<(String, Secret<String>)>,
}

/// The variables that name the files.
pub(crate) struct TlsVars<'a> {
    pub authority: &'a Var,
    pub certificate: &'a Var,
    pub key: &'a Var,
}

impl ClientTls {
    /// Reads the files and keeps every mistake.
    pub(crate) fn read(vars: &TlsVars<'_>, env: &Env, errors: &mut ConfigErrors) -> Self {
        let authority = pem(vars.authority, "CERTIFICATE", env, errors);
        let certificate = pem(vars.certificate, "CERTIFICATE", env, errors);
        let key = pem(vars.key, "PRIVATE KEY", env, errors).map(Secret::new);
        for (set, missing) in [(vars.certificate, vars.key), (vars.key, vars.certificate)] {
            if env.get(set.name).is_some() && env.get(missing.name).is_none() {
                errors.push(format!("{} is set without {}: it takes both", set.name, missing.name));
            }
        }
        let tls = Self { authority, identity: certificate.zip(key) };
        if let Err(error) = Endpoint::from_static("https://check").tls_config(tls.config("check")) {
            errors.push(format!("{} and {}: {}", vars.certificate.name, vars.key.name, innermost(&error)));
        }
        tls
    }

    /// For a connection to this host.
    pub(super) fn config(&self, host: &str) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new().with_webpki_roots().domain_name(host);
        if let Some(authority) = &self.authority {
            config = config.ca_certificate(Certificate::from_pem(authority));
        }
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key.expose()));
        }
        config
    }
}

fn pem(var: &Var, kind: &str, env: &Env, errors: &mut ConfigErrors) -> Option<String> {
    let path = env.get(var.name)?;
    match std::fs::read_to_string(path) {
        Ok(text) if text.contains(&format!("{kind}-----")) => return Some(text),
        Ok(_) => errors.push(format!("{} is `{path}`: it holds no {kind} in PEM form", var.name)),
        Err(error) => errors.push(format!("{} is `{path}`: {error}", var.name)),
    }
    None
}
