//! The observer of a worker.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use async_trait::async_trait;
use gen_worker_core::{
    metric::Readings,
    ports::{Measured, Observer, Vitals},
};
use tracing::{info, warn};

#[cfg(unix)]
use crate::notify::Notify;
use crate::{config::StatusConfig, http, process::Process};

/// Why a worker cannot be seen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatusError {
    /// `WORKER_HTTP_ADDR` is taken, or no address of this machine.
    #[error("nothing can be served at {address}, which WORKER_HTTP_ADDR says")]
    Listen {
        /// The setting.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The service manager's socket is not there.
    #[error("the service manager cannot be told anything at {address}, which NOTIFY_SOCKET says")]
    Notify {
        /// The setting.
        address: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Serves health and metrics while a worker works, and tells the service manager of it.
pub struct Status {
    http: Option<Http>,
    #[cfg(unix)]
    notify: Option<Notify>,
    pages: Pages,
}

struct Http {
    listener: TcpListener,
    address: SocketAddr,
}

impl Http {
    fn open(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        info!(%address, "health and metrics are served");
        Ok(Self { listener, address })
    }

    async fn serve(&self, pages: &Pages, worker: &dyn Vitals) {
        let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        match listener {
            Ok(listener) => http::serve(&listener, pages, worker).await,
            Err(error) => warn!(%error, "health and metrics are not served"),
        }
    }
}

/// What is served, but for the worker.
pub(crate) struct Pages {
    process: Process,
    measured: Vec<Arc<dyn Measured>>,
}

impl Pages {
    /// All that is measured.
    pub(crate) fn readings(&self, worker: &dyn Vitals) -> Readings {
        let mut readings = Readings::default();
        worker.measure(&mut readings);
        self.measured.iter().for_each(|measured| measured.measure(&mut readings));
        self.process.measure(&mut readings);
        readings
    }
}

impl Status {
    /// Takes the address, so that a mistake ends the start; what is asked before the worker works waits. `measured` are those
    /// beside the worker that have numbers. `None`: nobody is to see the worker.
    ///
    /// # Errors
    /// The address cannot be had, or the service manager's socket is not there.
    pub fn open(
        config: &StatusConfig,
        measured: Vec<Arc<dyn Measured>>,
    ) -> Result<Option<Self>, StatusError> {
        let open = |address: &String| {
            Http::open(address).map_err(|source| StatusError::Listen { address: address.clone(), source })
        };
        let status = Self {
            http: config.http_addr.as_ref().map(open).transpose()?,
            #[cfg(unix)]
            notify: manager(config)?,
            pages: Pages { process: Process::starts(), measured },
        };
        Ok(status.is_seen().then_some(status))
    }

    /// Where health and metrics are served: the port that was taken, where the settings say 0; `None`: nowhere.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    #[cfg(unix)]
    fn is_seen(&self) -> bool {
        self.http.is_some() || self.notify.is_some()
    }

    #[cfg(not(unix))]
    fn is_seen(&self) -> bool {
        self.http.is_some()
    }

    #[cfg(unix)]
    async fn tell(&self, worker: &dyn Vitals) {
        if let Some(notify) = &self.notify {
            notify.tell(worker).await;
        }
    }

    #[cfg(not(unix))]
    async fn tell(&self, _worker: &dyn Vitals) {}
}

#[cfg(unix)]
fn manager(config: &StatusConfig) -> Result<Option<Notify>, StatusError> {
    let connect = |address: &String| {
        Notify::connect(address, config.watchdog)
            .map_err(|source| StatusError::Notify { address: address.clone(), source })
    };
    config.notify_socket.as_ref().map(connect).transpose()
}

#[async_trait]
impl Observer for Status {
    async fn watch(&self, worker: Arc<dyn Vitals>) {
        let serve = async {
            if let Some(http) = &self.http {
                http.serve(&self.pages, &*worker).await;
            }
        };
        tokio::join!(serve, self.tell(&*worker));
    }
}
