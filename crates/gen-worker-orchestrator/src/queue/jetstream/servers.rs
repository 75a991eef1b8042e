//! The way to the servers, and what is made there.

use std::{error::Error, time::Duration};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self, Context, ErrorCode,
        context::GetStreamErrorKind,
        kv,
        object_store::{self, ObjectStore},
        stream::{self, DiscardPolicy, RetentionPolicy},
    },
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{PATIENCE, names::Names};
use crate::{config::NatsConfig, queue::limits::TenantLimits};

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
    /// Connects, and makes what is not there yet. Servers that cannot be asked just now are asked again for a while.
    pub(super) async fn open(
        config: &NatsConfig,
        limits: &TenantLimits,
        names: &Names,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let until = Instant::now() + STARTING;
        loop {
            match Self::try_open(config, limits, names).await {
                Err(error) if Instant::now() < until => {
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
        let info = context.create_or_update_stream(stream_of(config, limits, names)).await?;
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

async fn connect(config: &NatsConfig) -> Result<Client, Box<dyn Error + Send + Sync>> {
    let mut options = ConnectOptions::new()
        .name("gen-worker orchestrator")
        // What is said here is known here.
        .no_echo()
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .max_reconnects(None)
        .subscription_capacity(1 << 16);
    if let Some(credentials) = &config.credentials {
        options = options.credentials_file(credentials).await?;
    }
    if let Some(authorities) = &config.tls_ca {
        options = options.add_root_certificates(authorities.clone());
    }
    Ok(options.connect(config.urls.clone()).await?)
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
