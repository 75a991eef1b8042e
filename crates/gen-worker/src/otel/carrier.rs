//! Brings what the SDK sends to the collector, by the worker's own HTTP client.

use std::{io, time::Duration};

use async_trait::async_trait;
use gen_worker_core::OutputBody;
use gen_worker_net::{HttpClient, Method, NetError, Trust};
use opentelemetry_http::{Bytes, HttpClient as SdkClient, HttpError, Request, Response};
use tokio::runtime::{Builder, Runtime};

/// Largest answer that is read: a collector says which spans it refused.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// The SDK waits on a thread of its own, outside any runtime; requests run on one that belongs to them.
#[derive(Debug)]
pub(super) struct Carrier {
    client: HttpClient,
    /// Of one request.
    timeout: Duration,
    runtime: Runtime,
}

impl Carrier {
    pub(super) fn start(client: HttpClient, timeout: Duration) -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("traces").enable_all().build()?;
        Ok(Self { client, timeout, runtime })
    }
}

#[async_trait]
impl SdkClient for Carrier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse()?;
        let request = self.client.request(Method::POST, url, Trust::Operator);
        let mut request = request.body(OutputBody::Bytes(body)).timeout(self.timeout);
        for (name, value) in &parts.headers {
            request = request.sensitive_header(name.clone(), value.clone());
        }
        let sent = async move {
            let answer = request.send().await?;
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            *response.body_mut() = answer.bytes(MAX_ANSWER_BYTES).await?;
            Ok::<_, NetError>(response)
        };
        Ok(self.runtime.spawn(sent).await??)
    }
}
