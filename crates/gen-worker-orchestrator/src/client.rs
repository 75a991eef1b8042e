//! A client of the HTTP API, for programs on this side of it: the command line, `dev`, tests.

mod parse;

use std::{path::Path, time::Duration};

use gen_worker_core::{Algorithm, AssetRef, Backoff, Digest, OutputBody, Secret};
use gen_worker_net::{
    AllowList, Expected, FileSink, HeaderName, HeaderValue, HttpClient, HttpRequest, HttpResponse, Method,
    NetConfig, NetError, Trust, header,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;

use crate::{
    client::parse::EventParser,
    events::RunEvent,
    run::{RunSubmission, RunView},
    serve::SHA256,
};

/// Largest answer read into memory: an output of 64 MiB as base64 in JSON, and room.
const MAX_ANSWER: u64 = 128 << 20;

/// Largest answer that says that something went wrong.
const MAX_ERROR: u64 = 64 << 10;

/// How often a lost event stream is taken up again without an event in between.
const MAX_RECONNECTS: u32 = 8;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Why the orchestrator did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It could not be reached, or the answer did not arrive.
    #[error("the orchestrator did not answer")]
    Transport {
        /// Why.
        #[from]
        source: NetError,
    },
    /// It refused.
    #[error("{message}; {remedy}")]
    Refused {
        /// A word for programs, such as `usage`, `not_found`, `conflict`.
        code: String,
        /// What is wrong.
        message: String,
        /// What to do about it.
        remedy: String,
    },
    /// It said something that is not understood here; it may be another program, or a newer one.
    #[error("the answer is not that of an orchestrator")]
    Unexpected,
}

/// Talks to one orchestrator. Clones share connections.
#[derive(Debug, Clone)]
pub struct OrchestratorClient {
    http: HttpClient,
    base: Url,
    token: Option<Secret<String>>,
}

impl OrchestratorClient {
    /// A client of the orchestrator at `base`, such as `http://127.0.0.1:8081`. Connects to nothing.
    ///
    /// # Errors
    /// HTTP cannot be set up.
    pub fn new(base: Url, token: Option<Secret<String>>) -> Result<Self, ClientError> {
        let http = HttpClient::new(NetConfig {
            connect_timeout: Duration::from_secs(10),
            // Event streams say something every ten seconds.
            idle_timeout: Duration::from_secs(30),
            min_rate: 0,
            attempts: 3,
            url_allow: AllowList::default(),
        })?;
        Ok(Self { http, base, token })
    }

    /// Asks for a run and returns its id at once.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses.
    pub async fn submit(&self, submission: &RunSubmission) -> Result<String, ClientError> {
        #[derive(Deserialize)]
        struct Submitted {
            run_id: String,
        }
        let body = serde_json::to_vec(submission).expect("a submission has a JSON form");
        let request = self
            .request(Method::POST, "v1/runs", &[])
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(OutputBody::Bytes(body.into()));
        let Submitted { run_id } = json(request.send().await?).await?;
        Ok(run_id)
    }

    /// A run as it stands.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or does not know the run.
    pub async fn get(&self, run_id: &str) -> Result<RunView, ClientError> {
        let request = self.request(Method::GET, &format!("v1/runs/{run_id}"), &[]);
        json(request.send_retrying().await?).await
    }

    /// All runs that are remembered, without their outputs.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses.
    pub async fn list(&self) -> Result<Vec<RunView>, ClientError> {
        #[derive(Deserialize)]
        struct Listed {
            runs: Vec<RunView>,
        }
        let Listed { runs } = json(self.request(Method::GET, "v1/runs", &[]).send_retrying().await?).await?;
        Ok(runs)
    }

    /// Asks a run to stop and returns how it stands; it may not have stopped yet. One that is not known yet will be
    /// refused when it is asked for; it is returned as canceled, without a function.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses.
    pub async fn cancel(&self, run_id: &str) -> Result<RunView, ClientError> {
        let request = self.request(Method::POST, &format!("v1/runs/{run_id}/cancel"), &[]);
        json(request.send().await?).await
    }

    /// The workers that are connected, as the API shows them.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses.
    pub async fn workers(&self) -> Result<Value, ClientError> {
        json(self.request(Method::GET, "v1/workers", &[]).send_retrying().await?).await
    }

    /// Asks for a run and waits for its end; `on_event` is told what it says.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses. A run that ends badly is no error.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the run.
    pub async fn run(
        &self,
        submission: &RunSubmission,
        on_event: impl FnMut(&RunEvent),
    ) -> Result<RunView, ClientError> {
        let run_id = self.submit(submission).await?;
        self.follow(&run_id, on_event).await
    }

    /// Waits for a run's end; `on_event` is told what it says, from its beginning. A lost stream is taken up where it
    /// ended.
    ///
    /// # Errors
    /// The orchestrator does not know the run, or could not be reached for about a minute.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the run.
    pub async fn follow(
        &self,
        run_id: &str,
        mut on_event: impl FnMut(&RunEvent),
    ) -> Result<RunView, ClientError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10), Duration::ZERO);
        let mut last_seen = 0;
        loop {
            let seen = last_seen;
            let ended = self.follow_once(run_id, &mut last_seen, &mut on_event).await;
            match ended {
                Ok(Some(view)) => return Ok(view),
                Err(error @ (ClientError::Refused { .. } | ClientError::Unexpected)) => return Err(error),
                Err(error) if backoff.failures() >= MAX_RECONNECTS => return Err(error),
                Ok(None) | Err(_) => {}
            }
            if last_seen > seen {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next(0.0)).await;
        }
    }

    /// `None`: the stream ended before the run did.
    async fn follow_once(
        &self,
        run_id: &str,
        last_seen: &mut u64,
        on_event: &mut impl FnMut(&RunEvent),
    ) -> Result<Option<RunView>, ClientError> {
        let request = self
            .request(Method::GET, &format!("v1/runs/{run_id}/events"), &[])
            .header(LAST_EVENT_ID, (*last_seen).into());
        let mut response = accepted(request.send().await?).await?;
        let mut parser = EventParser::default();
        while let Some(chunk) = response.chunk().await? {
            for event in parser.feed(&chunk).ok_or(ClientError::Unexpected)? {
                if event.event_type == "result" {
                    let view = serde_json::from_slice(&event.payload);
                    return view.map(Some).map_err(|_| ClientError::Unexpected);
                }
                *last_seen = event.id.max(*last_seen);
                on_event(&event);
            }
        }
        Ok(None)
    }

    /// Stores a file for runs to read; what comes back can be put into a payload as it is. `tenant_id`: whose runs.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, or refuses.
    pub async fn upload(
        &self,
        name: &str,
        content: OutputBody,
        tenant_id: Option<&str>,
    ) -> Result<AssetRef, ClientError> {
        let query: Vec<_> = [("name", Some(name)), ("tenant_id", tenant_id)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect();
        let request = self.request(Method::POST, "v1/files", &query).body(content);
        json(request.send().await?).await
    }

    /// Brings a file here, as `target`, whose folder must exist. It is there whole, or not at all.
    ///
    /// # Errors
    /// The orchestrator cannot be reached, does not know the file, or what arrived is not what it announced.
    pub async fn download(
        &self,
        reference: &str,
        tenant_id: Option<&str>,
        target: &Path,
    ) -> Result<(), ClientError> {
        let query: Vec<_> = tenant_id.map(|tenant_id| ("tenant_id", tenant_id)).into_iter().collect();
        let request = self.request(Method::GET, &format!("v1/files/{reference}"), &query);
        let mut response = accepted(request.send_retrying().await?).await?;
        let digest = response.header(&SHA256).ok_or(ClientError::Unexpected)?;
        let digest = Digest::from_hex(Algorithm::Sha256, digest).map_err(|_| ClientError::Unexpected)?;
        let expected = Expected { size_bytes: response.content_length(), digest: Some(digest) };
        let mut sink = FileSink::beside(target).await?;
        while let Some(chunk) = response.chunk().await? {
            sink.write(chunk).await?;
        }
        sink.finish(target, expected).await?;
        Ok(())
    }

    fn request(&self, method: Method, path: &str, query: &[(&str, &str)]) -> HttpRequest {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url, Trust::Operator);
        match &self.token {
            Some(token) => request.bearer(token),
            None => request,
        }
    }
}

/// The answer, unless it says that something went wrong.
async fn accepted(response: HttpResponse) -> Result<HttpResponse, ClientError> {
    #[derive(Deserialize)]
    struct Envelope {
        error: Told,
    }
    #[derive(Deserialize)]
    struct Told {
        code: String,
        message: String,
        remedy: String,
    }
    if response.status().is_success() {
        return Ok(response);
    }
    let Ok(Envelope { error }) = response.json(MAX_ERROR).await else {
        return Err(ClientError::Unexpected);
    };
    Err(ClientError::Refused { code: error.code, message: error.message, remedy: error.remedy })
}

async fn json<T: DeserializeOwned>(response: HttpResponse) -> Result<T, ClientError> {
    match accepted(response).await?.json(MAX_ANSWER).await {
        Err(NetError::Json { .. }) => Err(ClientError::Unexpected),
        answer => Ok(answer?),
    }
}
