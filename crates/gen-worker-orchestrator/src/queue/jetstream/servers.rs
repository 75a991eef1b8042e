//! The way to the servers, and what is made there.

use std::{error::Error, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        self, Context, ErrorCode,
        context::{AccountErrorKind, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind},
        kv,
        object_store::{self, ObjectStore},
        stream::{self, DiscardPolicy, RetentionPolicy},
    },
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, interval, sleep};
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

/// How often servers are asked that do not answer: while they have no leader, they drop questions. They elect one in half a
/// second when they are new, and in some seconds when they start again.
const ELECTING: Duration = Duration::from_millis(250);

/// How long the servers know the runs that were published, to drop repetitions.
const DUPLICATES: Duration = Duration::from_secs(120);

type Failure = Box<dyn Error + Send + Sync>;

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
    ) -> Result<Self, Failure> {
        let until = Instant::now() + STARTING;
        let client = tried(until, async || connect(config).await).await?;
        let made = async || {
            let made = Self::make(client.clone(), config, limits, names).await;
            if made.is_err() {
                // Another server may reach more of them than this one.
                let _ = client.force_reconnect().await;
            }
            made
        };
        tried(until, made).await
    }

    /// Makes what is not there yet.
    async fn make(
        client: Client,
        config: &NatsConfig,
        limits: &TenantLimits,
        names: &Names,
    ) -> Result<Self, Failure> {
        let context = match &config.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        // They have a leader, who alone answers this.
        let led = answered(async || context.query_account().await).await;
        led.map_err(|error| match error.kind() {
            AccountErrorKind::TimedOut | AccountErrorKind::JetStreamUnavailable => unserved(config, error),
            AccountErrorKind::JetStream(why)
                if why.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
            {
                unserved(config, error)
            }
            _ => error.into(),
        })?;
        found(&context, &names.stream()).await?;
        let info = context.create_or_update_stream(stream_of(config, limits, names)).await;
        let info = info.map_err(|error| match error.kind() {
            CreateStreamErrorKind::TimedOut => unserved(config, error),
            _ => error.into(),
        })?;
        let newest = info.state.last_sequence;
        let stream = context.get_stream_no_info(&info.config.name).await?;
        let bucket = names.bucket("runs");
        found(&context, &format!("KV_{bucket}")).await?;
        let runs = context
            .create_or_update_key_value(kv::Config {
                bucket,
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

/// Tries until it is done, for a while; what the settings are wrong about, once.
async fn tried<T>(until: Instant, attempt: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match attempt().await {
            Err(error) if !error.is::<Refused>() && Instant::now() < until => {
                warn!(%error, "the NATS servers cannot be used yet; trying again");
                sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}

/// Asks again and again until one of the questions is answered, or the first has been for too long.
async fn answered<T, E>(ask: impl AsyncFn() -> Result<T, E>) -> Result<T, E> {
    let mut asked = FuturesUnordered::new();
    let mut again = interval(ELECTING);
    loop {
        tokio::select! {
            Some(answer) = asked.next() => return answer,
            _ = again.tick() => asked.push(ask()),
        }
    }
}

/// A stream, if there is one: it has a leader, who alone answers this.
async fn found(context: &Context, stream: &str) -> Result<Option<stream::Stream>, GetStreamError> {
    match answered(async || context.get_stream(stream).await).await {
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            _ => Err(error),
        },
        Ok(stream) => Ok(Some(stream)),
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
    source: Failure,
}

/// A question that may not be asked is not answered.
fn unserved(config: &NatsConfig, source: impl Into<Failure>) -> Failure {
    let subject = config.api_prefix.clone().unwrap_or_else(|| "$JS.API".to_owned());
    Box::new(Unserved { subject, source: source.into() })
}

/// The client makes object stores, but changes none: their streams are changed.
async fn blobs(context: &Context, config: &NatsConfig, names: &Names) -> Result<ObjectStore, Failure> {
    let bucket = names.bucket("blobs");
    let Some(stream) = found(context, &format!("OBJ_{bucket}")).await? else {
        let wanted = object_store::Config {
            bucket,
            max_age: config.max_age,
            num_replicas: config.replicas,
            ..Default::default()
        };
        return Ok(context.create_object_store(wanted).await?);
    };
    let mut wanted = stream.cached_info().config.clone();
    wanted.max_age = config.max_age;
    wanted.num_replicas = config.replicas;
    if wanted != stream.cached_info().config {
        context.update_stream(wanted).await?;
    }
    Ok(context.get_object_store(bucket).await?)
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
    use std::collections::BTreeSet;

    use gen_worker_testkit::NatsServers;
    use tokio::{
        io::copy_bidirectional,
        net::{TcpListener, TcpStream},
        task::JoinSet,
    };

    use super::*;

    async fn unserved(config: NatsConfig) -> String {
        let client = connect(&config).await.unwrap();
        let made = Servers::make(client, &config, &TenantLimits::default(), &Names::new("p")).await;
        let error = made.err().unwrap();
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

    async fn open(config: &NatsConfig) -> Servers {
        Servers::open(config, &TenantLimits::default(), &Names::new("p")).await.unwrap()
    }

    #[tokio::test]
    async fn a_server_that_cannot_make_what_is_needed_is_left_for_another() {
        let account = |jetstream: &str| {
            format!("accounts: {{ a: {{ {jetstream} users: [{{ user: u, password: p }}] }} }}")
        };
        let without = NatsServers::start_with(NatsServers::program(), 1, &account("")).await;
        let with = NatsServers::start_with(NatsServers::program(), 1, &account("jetstream: enabled,")).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = NatsConfig::of(vec![format!("u:p@{}", listener.local_addr().unwrap())]);
        let (servers, mut network) = ([without.addrs()[0], with.addrs()[0]], JoinSet::new());
        network.spawn(async move {
            let mut connections = JoinSet::new();
            for server in servers {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(server).await.unwrap();
                connections.spawn(async move { copy_bidirectional(&mut near, &mut far).await });
            }
            connections.join_all().await;
        });
        open(&config).await;
    }

    #[tokio::test]
    async fn a_question_that_is_lost_is_asked_again_over_the_same_connection() {
        let servers = NatsServers::start(NatsServers::program(), 1).await;
        let config = NatsConfig { api_prefix: Some("far.js".to_owned()), ..NatsConfig::of(servers.urls()) };
        let between = connect(&NatsConfig::of(servers.urls())).await.unwrap();
        let mut asked = between.subscribe("far.js.>").await.unwrap();
        between.flush().await.unwrap();
        let (before, mut tasks) = (between.server_info().client_id, JoinSet::new());
        tasks.spawn(async move {
            let mut lost = BTreeSet::new();
            while let Some(question) = asked.next().await {
                if question.subject.contains("INFO") && lost.insert(question.subject.clone()) {
                    continue;
                }
                let subject = question.subject.replacen("far.js", "$JS.API", 1);
                let reply = question.reply.unwrap();
                between.publish_with_reply(subject, reply, question.payload).await.unwrap();
            }
        });
        let opened = open(&config).await;
        assert_eq!(opened.client.server_info().client_id, before + 1);
    }
}
