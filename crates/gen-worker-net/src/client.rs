//! The one HTTP client: connection pools, of which some dial only what the guard admits.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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

const LOOPBACK: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
];

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
    config: NetConfig,
    /// Asked for the addresses of hosts that the guard judges.
    names: Arc<dyn Resolve>,
    /// For what the operator named: made at once, so that TLS that cannot be set up is found out at the start.
    open: reqwest::Client,
    /// The others, made when they are first needed: each keeps the root certificates of its own.
    judged: OnceLock<reqwest::Client>,
    open_anew: OnceLock<reqwest::Client>,
    judged_anew: OnceLock<reqwest::Client>,
}

/// Whether a connection that is open already may carry a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Open,
    /// A try failed on one: it, and those opened with it, may be dead.
    Never,
}

/// What a connection may be dialled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Anything,
    /// What the guard admits.
    Judged,
}

impl HttpClient {
    /// Sets up the client; connects to nothing.
    ///
    /// # Errors
    /// TLS cannot be set up, for want of root certificates, say.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        Self::with_names(config, Arc::new(SystemNames))
    }

    fn with_names(config: NetConfig, names: Arc<dyn Resolve>) -> Result<Self, NetError> {
        let open = builder(&config, Reuse::Open).build().map_err(|source| NetError::Setup { source })?;
        let (judged, open_anew, judged_anew) = Default::default();
        Ok(Self(Arc::new(Inner { config, names, open, judged, open_anew, judged_anew })))
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
            return self.pool_for(Reach::Anything, reuse);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(blocked());
        }
        let allow = &self.0.config.url_allow;
        if allow.admits_url(url) {
            return self.pool_for(Reach::Anything, reuse);
        }
        // A literal address is dialled without asking the resolver.
        if literal(url).is_some_and(|ip| !admitted(allow, ip)) {
            return Err(blocked());
        }
        self.pool_for(Reach::Judged, reuse)
    }

    fn pool_for(&self, reach: Reach, reuse: Reuse) -> Result<&reqwest::Client, NetError> {
        let pool = match (reach, reuse) {
            (Reach::Anything, Reuse::Open) => return Ok(&self.0.open),
            (Reach::Judged, Reuse::Open) => &self.0.judged,
            (Reach::Anything, Reuse::Never) => &self.0.open_anew,
            (Reach::Judged, Reuse::Never) => &self.0.judged_anew,
        };
        if let Some(made) = pool.get() {
            return Ok(made);
        }
        let made = self.build(reach, reuse)?;
        Ok(pool.get_or_init(|| made))
    }

    fn build(&self, reach: Reach, reuse: Reuse) -> Result<reqwest::Client, NetError> {
        let builder = builder(self.config(), reuse);
        let builder = match reach {
            Reach::Anything => builder,
            Reach::Judged => builder.dns_resolver(JudgingResolver {
                names: Arc::clone(&self.0.names),
                allow: Arc::new(self.config().url_allow.clone()),
            }),
        };
        builder.build().map_err(|source| NetError::Setup { source })
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

/// `localhost` and what lies below it is this machine, whatever a name server says (RFC 6761, section 6.3).
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// Hands out admitted addresses only. The connector dials what it is handed, so nothing can change in between.
struct JudgingResolver {
    names: Arc<dyn Resolve>,
    allow: Arc<AllowList>,
}

impl Resolve for JudgingResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, allow) = (Arc::clone(&self.names), Arc::clone(&self.allow));
        Box::pin(async move {
            let found: Addrs = match is_localhost(name.as_str()) {
                true => Box::new(LOOPBACK.into_iter()),
                false => names.resolve(name).await?,
            };
            let mut addresses = found.filter(move |address| admitted(&allow, address.ip())).peekable();
            if addresses.peek().is_none() {
                return Err(Forbidden.into());
            }
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

/// The names that this machine knows.
struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect::<Vec<_>>();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
