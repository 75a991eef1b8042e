//! The way to the servers, and what is made there.

use std::{error::Error, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, Context, ErrorCode,
        context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind},
        kv,
        object_store::{self, ObjectStore},
        stream::{self, DiscardPolicy, RetentionPolicy},
    },
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    connect::{Refused, connect},
    names::Names,
};
use crate::{
    config::{NATS_API_PREFIX, NatsConfig},
    queue::limits::TenantLimits,
};

/// How long the servers may take to be there when an orchestrator starts, and how often they are asked.
const STARTING: Duration = Duration::from_secs(30);
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// How long the servers know the runs that were published, to drop repetitions.
const DUPLICATES: Duration = Duration::from_secs(120);

/// A connection, and what one fleet has at its other end.
pub(super) struct Servers {
    pub(super) client: Client,
    pub(super) context: Context,
    /// The runs that have not ended.
    pub(super) stream: stream::Stream<()>,
    /// The number of its last message.
    pub(super) newest: u64,
    /// What is known of each run.
    pub(super) runs: kv::Store,
    /// Large payloads and outputs.
    pub(super) blobs: ObjectStore,
}

impl Servers {
    /// Connects, and makes what is not there yet. Servers that cannot be asked just now are asked again for a while; where
    /// it is for the settings to change, nothing is.
    pub(super) async fn open(
        config: &NatsConfig,
        limits: &TenantLimits,
        names: &Names,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let until = Instant::now() + STARTING;
        loop {
            match Self::try_open(config, limits, names).await {
                Err(error) if !error.is::<Refused>() && Instant::now() < until => {
                    warn!(%error, "the NATS servers cannot be used yet; trying again");
                    sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    async fn try_open(
        config: &NatsConfig,
        limits: &TenantLimits,
        names: &Names,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let client = connect(config).await?;
        let context = match &config.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        let info = context.create_or_update_stream(stream_of(config, limits, names)).await;
        let info = info.map_err(|error| unserved(config, error))?;
        let newest = info.state.last_sequence;
        let stream = context.get_stream_no_info(&info.config.name).await?;
        let runs = context
            .create_or_update_key_value(kv::Config {
                bucket: names.bucket("runs"),
                history: 1,
                max_age: config.max_age,
                num_replicas: config.replicas,
                ..Default::default()
            })
            .await?;
        let blobs = blobs(&context, config, names).await?;
        Ok(Self { client, context, stream, newest, runs, blobs })
    }
}

/// JetStream is not there yet, or elsewhere, or not for this user.
#[derive(Debug, thiserror::Error)]
#[error(
    "JetStream does not serve on `{subject}`, which {} sets: turn it on for this account, or import it from another, and \
     let the user ask there",
    NATS_API_PREFIX.name
)]
struct Unserved {
    subject: String,
    source: CreateStreamError,
}

/// A question that may not be asked is not answered.
fn unserved(config: &NatsConfig, source: CreateStreamError) -> Box<dyn Error + Send + Sync> {
    let is_unserved = match source.kind() {
        CreateStreamErrorKind::JetStreamUnavailable | CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(error) => {
            error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        }
        _ => false,
    };
    if !is_unserved {
        return source.into();
    }
    let subject = config.api_prefix.clone().unwrap_or_else(|| "$JS.API".to_owned());
    Box::new(Unserved { subject, source })
}

/// The client makes object stores, but changes none: their streams are changed.
async fn blobs(
    context: &Context,
    config: &NatsConfig,
    names: &Names,
) -> Result<ObjectStore, Box<dyn Error + Send + Sync>> {
    let bucket = names.bucket("blobs");
    match context.get_stream(format!("OBJ_{bucket}")).await {
        Ok(stream) => {
            let mut wanted = stream.cached_info().config.clone();
            wanted.max_age = config.max_age;
            wanted.num_replicas = config.replicas;
            if wanted != stream.cached_info().config {
                context.update_stream(wanted).await?;
            }
            Ok(context.get_object_store(bucket).await?)
        }
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(missing) if missing.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                let wanted = object_store::Config {
                    bucket,
                    max_age: config.max_age,
                    num_replicas: config.replicas,
                    ..Default::default()
                };
                Ok(context.create_object_store(wanted).await?)
            }
            _ => Err(error.into()),
        },
    }
}

/// The servers' own limits are those of the fleet.
fn stream_of(config: &NatsConfig, limits: &TenantLimits, names: &Names) -> stream::Config {
    stream::Config {
        name: names.stream(),
        subjects: vec![names.all_runs()],
        retention: RetentionPolicy::WorkQueue,
        // Whoever submits is told, where the oldest would be dropped otherwise.
        discard: DiscardPolicy::New,
        discard_new_per_subject: limits.max_queued.is_some(),
        max_messages: i64::try_from(config.max_open).unwrap_or(i64::MAX),
        max_messages_per_subject: limits.max_queued.map_or(-1, |max| max as i64),
        max_age: config.max_age,
        duplicate_window: DUPLICATES.min(config.max_age),
        num_replicas: config.replicas,
        allow_direct: true,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_testkit::NatsServers;

    use super::*;

    async fn unserved(config: NatsConfig) -> String {
        let opened = Servers::try_open(&config, &TenantLimits::default(), &Names::new("p")).await;
        let error = opened.err().unwrap();
        assert!(!error.is::<Refused>(), "it may be there soon");
        error.to_string()
    }

    #[tokio::test]
    async fn jetstream_is_asked_where_the_settings_say() {
        let servers = NatsServers::start(NatsServers::program(), 1).await;
        let api_prefix = Some("nobody.js".to_owned());
        let error = unserved(NatsConfig { api_prefix, ..NatsConfig::of(servers.urls()) }).await;
        assert!(error.contains("`nobody.js`, which ORCHESTRATOR_NATS_API_PREFIX sets"), "{error}");
    }

    #[tokio::test]
    async fn an_account_without_jetstream_is_told_so() {
        let settings = r#"accounts: { a: { users: [{ user: u, password: p }] } }"#;
        let servers = NatsServers::start_with(NatsServers::program(), 1, settings).await;
        let urls = servers.addrs().iter().map(|addr| format!("u:p@{addr}")).collect();
        let error = unserved(NatsConfig::of(urls)).await;
        assert!(error.contains("`$JS.API`") && error.contains("turn it on for this account"), "{error}");
    }
}
