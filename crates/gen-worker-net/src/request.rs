//! A request: what is sent, to whom its credentials go, and how redirects are followed.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use gen_worker_core::{OutputBody, Secret, TraceContext};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use reqwest::Body;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use url::Url;

use crate::{
    body::{self, BodySource, OpenBody},
    client::{HttpClient, Reuse, Trust},
    error::NetError,
    pace::Pace,
    response::HttpResponse,
};

/// Most redirects followed; what curl and browsers meet in practice is 1 or 2.
const MAX_REDIRECTS: usize = 5;

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// A request that was not sent yet; see [`HttpClient::request`].
#[must_use = "a request does nothing until it is sent"]
pub struct HttpRequest {
    client: HttpClient,
    method: Method,
    url: Url,
    trust: Trust,
    headers: HeaderMap,
    unusable_credential: bool,
    body: Option<Arc<dyn BodySource>>,
    reuse: Reuse,
    timeout: Option<Duration>,
}

impl HttpRequest {
    pub(crate) fn new(client: HttpClient, method: Method, url: Url, trust: Trust) -> Self {
        Self {
            client,
            method,
            url,
            trust,
            headers: HeaderMap::new(),
            unusable_credential: false,
            body: None,
            reuse: Reuse::Open,
            timeout: None,
        }
    }

    /// Sends this token as `Authorization: Bearer`, to the origin of the request's URL only.
    pub fn bearer(mut self, token: &Secret<String>) -> Self {
        match HeaderValue::try_from(format!("Bearer {}", token.expose())) {
            Ok(value) => self.sensitive_header(header::AUTHORIZATION, value),
            Err(_) => {
                self.unusable_credential = true;
                self
            }
        }
    }

    /// Sends this header, in place of an earlier one of its name. A value that is marked sensitive is sent to the
    /// origin of the request's URL only, as `Authorization` and `Cookie` always are.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sends this header to the origin of the request's URL only.
    pub fn sensitive_header(self, name: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        self.header(name, value)
    }

    /// Says below which place in a trace it is answered, to the origin of the request's URL only: a trace's id leads to what its
    /// sender knows, so it goes to hosts that the operator named, and not to where they redirect.
    pub fn traced(self, trace: Option<&TraceContext>) -> Self {
        let Some(trace) = trace else { return self };
        let text = |text: &str| HeaderValue::try_from(text).expect("it is checked");
        let request = self.sensitive_header(TRACE_PARENT, text(trace.parent()));
        match trace.state() {
            Some(state) => request.sensitive_header(TRACE_STATE, text(state)),
            None => request,
        }
    }

    /// Sends this body with its length. A file is streamed from disk, and opened anew for each try.
    pub fn body(self, body: OutputBody) -> Self {
        self.source(Arc::new(body))
    }

    /// Sends what this opens, with its length. It is opened anew for each try.
    pub fn source(mut self, source: Arc<dyn BodySource>) -> Self {
        self.body = Some(source);
        self
    }

    /// Dials anew, whatever connections are open: for a caller that tries again by itself.
    pub fn fresh_connection(mut self) -> Self {
        self.reuse = Reuse::Never;
        self
    }

    /// Bounds each try, from the first byte out to the last byte in. Without it only silence is bounded.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Tries once. `GET` and `HEAD` follow up to 5 redirects; to other verbs a redirect is an answer.
    ///
    /// # Errors
    /// There was no answer. An answer of any status is none of this function's errors.
    pub async fn send(self) -> Result<HttpResponse, NetError> {
        self.send_once(self.reuse).await
    }

    /// Tries `GET`, `HEAD` and `PUT` up to [`NetConfig::attempts`](crate::NetConfig::attempts) times, other verbs once.
    /// Each further try has a connection of its own.
    ///
    /// # Errors
    /// There was no answer in the last try, or one of 408, 429 or 5xx. Other statuses are no error, and end the tries.
    pub async fn send_retrying(self) -> Result<HttpResponse, NetError> {
        let (request, mut reuse) = (&self, self.reuse);
        let attempt = || {
            let reuse = std::mem::replace(&mut reuse, Reuse::Never);
            async move { request.send_once(reuse).await?.unless_transient() }
        };
        if matches!(self.method, Method::GET | Method::HEAD | Method::PUT) {
            self.client.retry(attempt, |error| Some(error)).await
        } else {
            self.send_once(self.reuse).await?.unless_transient()
        }
    }

    async fn send_once(&self, reuse: Reuse) -> Result<HttpResponse, NetError> {
        if self.unusable_credential {
            return Err(NetError::Credential);
        }
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut url = self.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_to(&url, reuse, deadline).await?;
            match self.redirect(&url, &response)? {
                Some(next) => url = next,
                None => return Ok(response),
            }
        }
        Err(NetError::Redirects)
    }

    async fn send_to(
        &self,
        url: &Url,
        reuse: Reuse,
        deadline: Option<Instant>,
    ) -> Result<HttpResponse, NetError> {
        let pool = self.client.pool(url, self.trust, reuse)?;
        let config = self.client.config();
        let idle = config.idle_timeout;
        let moved = Arc::new(Notify::new());
        let mut request = reqwest::Request::new(self.method.clone(), url.clone());
        *request.headers_mut() = self.headers_for(url);
        if let Some(body) = &self.body {
            let OpenBody { length, chunks } = body::open(&**body, Arc::clone(&moved)).await?;
            request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
            *request.body_mut() = Some(Body::wrap_stream(chunks));
        }
        let response = unless_silent(pool.execute(request), &moved, idle, deadline)
            .await?
            .map_err(|error| NetError::from_reqwest(error, url.host_str().unwrap_or_default()))?;
        HttpResponse::new(response, Pace::new(idle, config.min_rate), deadline)
    }

    /// The headers that may be sent to this address.
    fn headers_for(&self, url: &Url) -> HeaderMap {
        if url.origin() == self.url.origin() {
            return self.headers.clone();
        }
        let own = |(name, value): &(&HeaderName, &HeaderValue)| {
            !value.is_sensitive() && **name != header::AUTHORIZATION && **name != header::COOKIE
        };
        let headers = self.headers.iter().filter(own);
        headers.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Where the answer sends us; `None`: it is the answer.
    fn redirect(&self, url: &Url, response: &HttpResponse) -> Result<Option<Url>, NetError> {
        let follows = matches!(self.method, Method::GET | Method::HEAD)
            && matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        if !follows {
            return Ok(None);
        }
        let location = response.header(&header::LOCATION).ok_or(NetError::Redirects)?;
        let next = url.join(location).map_err(|_| NetError::Redirects)?;
        Ok(Some(next))
    }
}

impl fmt::Debug for HttpRequest {
    /// Neither headers nor query: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, &self.url[..url::Position::AfterPath])
    }
}

/// Waits for the exchange as long as something moves.
async fn unless_silent<T>(
    exchange: impl Future<Output = T>,
    moved: &Notify,
    idle: Duration,
    deadline: Option<Instant>,
) -> Result<T, NetError> {
    let mut exchange = std::pin::pin!(exchange);
    loop {
        let step = async {
            tokio::select! {
                biased;
                answer = &mut exchange => Some(answer),
                () = moved.notified() => None,
            }
        };
        let until = Instant::now() + idle;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        if let Some(answer) = timeout_at(until, step).await.map_err(|_| NetError::Timeout)? {
            return Ok(answer);
        }
    }
}
