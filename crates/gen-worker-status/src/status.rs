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
}

/// Serves health and metrics while a worker works.
pub struct Status {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
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
    /// The address cannot be had.
    pub fn open(
        config: &StatusConfig,
        measured: Vec<Arc<dyn Measured>>,
    ) -> Result<Option<Self>, StatusError> {
        let Some(address) = &config.http_addr else { return Ok(None) };
        let failed = |source| StatusError::Listen { address: address.clone(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let pages = Pages { process: Process::starts(), measured };
        let served = listener.local_addr().map_err(failed)?;
        info!(address = %served, "health and metrics are served");
        Ok(Some(Self { listener, address: served, pages }))
    }

    /// Where they are served: the port that was taken, where the settings say 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[async_trait]
impl Observer for Status {
    async fn watch(&self, worker: Arc<dyn Vitals>) {
        let listener = self.listener.try_clone().and_then(tokio::net::TcpListener::from_std);
        match listener {
            Ok(listener) => http::serve(&listener, &self.pages, &*worker).await,
            Err(error) => warn!(%error, "health and metrics are not served"),
        }
    }
}
