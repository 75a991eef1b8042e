//! Puts the parts together, starts and stops them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gen_worker_core::ByteLimit;
use gen_worker_proto::{
    frontend::frontend_service_server::FrontendServiceServer,
    scheduler::scheduler_worker_service_server::SchedulerWorkerServiceServer,
};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use tracing::{error, info};
use url::Url;

#[cfg(feature = "nats")]
use crate::queue::jetstream::JetStream;
use crate::{
    auth::Callers,
    broker::Broker,
    config::{OrchestratorConfig, QueueStore},
    digests::Digests,
    error::OrchestratorError,
    frontend::Frontend,
    http::{App, router},
    intake::Intake,
    presign::Grants,
    queue::{Queue, embedded::Embedded},
    rate::RateLimit,
    scheduler::{MAX_MESSAGE, Scheduler},
    store::Store,
    tombstones::Tombstones,
};

/// How often a silent peer is asked whether it is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long open requests may take to end when the orchestrator stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A running orchestrator. Dropping it ends it at once; [`stop`](Self::stop) lets requests end.
#[derive(Debug)]
pub struct Orchestrator {
    grpc: SocketAddr,
    http: SocketAddr,
    base_url: Url,
    broker: Arc<Broker>,
    stop: CancellationToken,
    streams: TaskTracker,
    servers: JoinSet<()>,
}

impl Orchestrator {
    /// Starts one.
    ///
    /// # Errors
    /// It would let others in unasked, an address cannot be listened on, or the data folder cannot be used.
    pub async fn start(config: OrchestratorConfig) -> Result<Self, OrchestratorError> {
        config.check()?;
        tokio::fs::create_dir_all(&config.data_dir)
            .await
            .map_err(|source| OrchestratorError::DataDir { path: config.data_dir.clone(), source })?;
        let (grpc_listener, grpc) = listen(config.grpc).await?;
        let (http_listener, http) = listen(config.http).await?;
        let base_url = config.public_url.clone().unwrap_or_else(|| url_of(http));
        let address = config.public_grpc.clone().or_else(|| reachable(grpc));
        let broker = Arc::new(Broker::new(queue(&config).await?, &base_url, address));
        let mut orchestrator = Self {
            grpc,
            http,
            base_url,
            broker: Arc::clone(&broker),
            stop: CancellationToken::new(),
            streams: TaskTracker::new(),
            servers: JoinSet::new(),
        };
        let rate = Arc::new(RateLimit::new(config.rate_limit));
        let tombstones = Tombstones::open(&config.data_dir.join("tombstones"))
            .map_err(|source| OrchestratorError::DataDir { path: config.data_dir.clone(), source })?;
        let intake = Intake {
            broker: Arc::clone(&broker),
            tombstones: Arc::new(tombstones),
            max_attempts: config.max_attempts,
            timeout: config.run_timeout,
        };
        orchestrator.serve_grpc(grpc_listener, &intake, &rate, &config);
        orchestrator.serve_http(http_listener, intake, rate, config);
        let stop = orchestrator.stop.clone();
        orchestrator.servers.spawn(async move { broker.run(stop).await });
        info!(%grpc, %http, dashboard = %orchestrator.base_url, "orchestrator listening");
        Ok(orchestrator)
    }

    /// Where workers and gRPC clients connect.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// How others reach HTTP.
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// Stops: workers are sent to the other orchestrators of the fleet, if there are any, and keep their runs; other requests
    /// get five seconds to end.
    pub async fn stop(mut self) {
        self.broker.depart();
        self.stop.cancel();
        self.streams.close();
        let ended = timeout(STOP_GRACE, async {
            self.streams.wait().await;
            while self.servers.join_next().await.is_some() {}
        });
        if ended.await.is_err() {
            info!("requests were still open");
        }
    }

    fn serve_grpc(
        &mut self,
        listener: TcpListener,
        intake: &Intake,
        rate: &Arc<RateLimit>,
        config: &OrchestratorConfig,
    ) {
        let scheduler = Scheduler {
            broker: Arc::clone(&intake.broker),
            token: config.worker_token.clone(),
            tasks: self.streams.clone(),
            stop: self.stop.clone(),
        };
        let frontend = Frontend {
            intake: intake.clone(),
            callers: callers(config),
            rate: Arc::clone(rate),
            most_sessions: config.limits.max_running,
            tasks: self.streams.clone(),
        };
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(
                SchedulerWorkerServiceServer::new(scheduler)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE),
            )
            .add_service(
                FrontendServiceServer::new(frontend)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE),
            );
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let stop = self.stop.clone().cancelled_owned();
        self.servers.spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                error!(%error, "serving gRPC failed");
            }
        });
    }

    fn serve_http(
        &mut self,
        listener: TcpListener,
        intake: Intake,
        rate: Arc<RateLimit>,
        config: OrchestratorConfig,
    ) {
        let digests = Arc::new(Digests::default());
        let store = |name: &str| {
            let store = Store::new(config.data_dir.join(name), config.max_file, Arc::clone(&digests));
            store.sweep();
            store
        };
        let models = config.models_dir.clone();
        let app = App {
            intake,
            files: store("files"),
            uploads: store("presigned"),
            grants: Grants::default(),
            models: models.map(|root| Store::new(root, ByteLimit::Unlimited, Arc::clone(&digests))),
            base_url: self.base_url.as_str().trim_end_matches('/').to_owned(),
            callers: callers(&config),
            rate,
            max_body: config.max_body,
            worker_token: config.worker_token,
            stop: self.stop.clone(),
        };
        let routes = router(Arc::new(app));
        let stop = self.stop.clone().cancelled_owned();
        self.servers.spawn(async move {
            if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
                error!(%error, "serving HTTP failed");
            }
        });
    }
}

fn callers(config: &OrchestratorConfig) -> Callers {
    Callers::new(config.api_token.clone(), config.tenant_tokens.clone())
}

async fn queue(config: &OrchestratorConfig) -> Result<Arc<dyn Queue>, OrchestratorError> {
    let (history, limits, grace) = (config.history, config.limits.clone(), config.worker_grace);
    Ok(match &config.queue {
        #[cfg(feature = "nats")]
        QueueStore::Nats(nats) => {
            let opened = JetStream::open(nats, &limits, grace).await;
            Arc::new(opened.map_err(OrchestratorError::Nats)?)
        }
        #[cfg(not(feature = "nats"))]
        QueueStore::Nats(_) => return Err(OrchestratorError::NoNats),
        QueueStore::Memory => Arc::new(Embedded::in_memory(history, limits, grace)),
        QueueStore::File => {
            let path = config.data_dir.join("runs.redb");
            let opened = path.clone();
            let open = spawn_blocking(move || Embedded::in_file(&opened, history, limits, grace));
            let opened = open.await.expect("opening the file does not panic");
            Arc::new(opened.map_err(|source| OrchestratorError::Queue { path, source })?)
        }
    })
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), OrchestratorError> {
    let failed = |source| OrchestratorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Where workers reach this address; `None`: it stands for all of this machine's.
fn reachable(address: SocketAddr) -> Option<String> {
    (!address.ip().is_unspecified()).then(|| address.to_string())
}

/// An address that stands for all of this machine's is reached through loopback.
fn url_of(mut address: SocketAddr) -> Url {
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    Url::parse(&format!("http://{address}")).expect("an address makes a URL")
}
