//! The one HTTP client: two connection pools, one of which dials only what the guard admits.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};
use url::{Host, Url};

use crate::{
    allow::AllowList,
    config::NetConfig,
    error::NetError,
    guard::{Forbidden, judge},
    request::HttpRequest,
};

const USER_AGENT: &str = concat!("gen-worker/", env!("CARGO_PKG_VERSION"));

/// Where an address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// From the settings or the scheduler: any address may be dialled, also by the servers' redirects.
    Operator,
    /// From a caller: only public addresses and what `WORKER_URL_ALLOW` names are dialled, on every hop.
    Payload,
}

/// Sends requests. Clones share connections.
///
/// It takes no proxy from the environment and decompresses nothing: sizes and digests are those of what was sent.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    kept: Pools,
    /// Without idle connections. Made when the first try of anything has failed.
    unkept: OnceLock<Pools>,
    config: NetConfig,
}

/// Whether a connection that is open already may carry a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Open,
    /// A try failed on one: it, and those opened with it, may be dead.
    Never,
}

struct Pools {
    open: reqwest::Client,
    judged: reqwest::Client,
}

impl Pools {
    fn new(config: &NetConfig, reuse: Reuse) -> Result<Self, NetError> {
        let build =
            |builder: reqwest::ClientBuilder| builder.build().map_err(|source| NetError::Setup { source });
        let resolver = JudgingResolver { allow: Arc::new(config.url_allow.clone()) };
        Ok(Self {
            open: build(builder(config, reuse))?,
            judged: build(builder(config, reuse).dns_resolver(resolver))?,
        })
    }
}

impl HttpClient {
    /// Sets up the client; connects to nothing.
    ///
    /// # Errors
    /// TLS cannot be set up, for want of root certificates, say.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        let kept = Pools::new(&config, Reuse::Open)?;
        Ok(Self(Arc::new(Inner { kept, unkept: OnceLock::new(), config })))
    }

    /// A request to this address.
    pub fn request(&self, method: Method, url: Url, trust: Trust) -> HttpRequest {
        HttpRequest::new(self.clone(), method, url, trust)
    }

    /// Whether a request to this address may be tried, as far as can be told without resolving its host.
    ///
    /// # Errors
    /// [`NetError::Blocked`]: the scheme is not HTTP, or a payload named an address that is not public or has a user.
    pub fn check(&self, url: &Url, trust: Trust) -> Result<(), NetError> {
        self.pool(url, trust, Reuse::Open).map(drop)
    }

    pub(crate) fn config(&self) -> &NetConfig {
        &self.0.config
    }

    /// The connections by which this address is reached.
    pub(crate) fn pool(&self, url: &Url, trust: Trust, reuse: Reuse) -> Result<&reqwest::Client, NetError> {
        let blocked = || NetError::Blocked { host: url.host_str().unwrap_or_default().to_owned() };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(blocked());
        }
        if trust == Trust::Operator {
            return Ok(&self.pools(reuse)?.open);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(blocked());
        }
        let allow = &self.0.config.url_allow;
        if allow.admits_url(url) {
            return Ok(&self.pools(reuse)?.open);
        }
        // A literal address is dialled without asking the resolver.
        if literal(url).is_some_and(|ip| !admitted(allow, ip)) {
            return Err(blocked());
        }
        Ok(&self.pools(reuse)?.judged)
    }

    fn pools(&self, reuse: Reuse) -> Result<&Pools, NetError> {
        match (reuse, self.0.unkept.get()) {
            (Reuse::Open, _) => Ok(&self.0.kept),
            (Reuse::Never, Some(pools)) => Ok(pools),
            (Reuse::Never, None) => {
                let pools = Pools::new(self.config(), reuse)?;
                Ok(self.0.unkept.get_or_init(|| pools))
            }
        }
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpClient").field(&self.0.config).finish()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the place that the ban leads to")]
fn builder(config: &NetConfig, reuse: Reuse) -> reqwest::ClientBuilder {
    let identity = HeaderValue::from_static("identity");
    let builder = match reuse {
        Reuse::Open => reqwest::Client::builder(),
        Reuse::Never => reqwest::Client::builder().pool_max_idle_per_host(0),
    };
    builder
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]))
        .connect_timeout(config.connect_timeout)
        // Ranges that are fetched side by side are to have a connection each, not a share of one.
        .http1_only()
        .redirect(Policy::none())
        .no_proxy()
}

fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
        Host::Domain(_) => None,
    }
}

fn admitted(allow: &AllowList, ip: IpAddr) -> bool {
    allow.admits_ip(ip) || judge(ip).is_ok()
}

/// Hands out admitted addresses only. The connector dials what it is handed, so nothing can change in between.
struct JudgingResolver {
    allow: Arc<AllowList>,
}

impl Resolve for JudgingResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = Arc::clone(&self.allow);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses = found
                .filter(|address| admitted(&allow, address.ip()))
                .collect::<Vec<_>>()
                .into_iter()
                .peekable();
            if addresses.peek().is_none() {
                return Err(Forbidden.into());
            }
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
