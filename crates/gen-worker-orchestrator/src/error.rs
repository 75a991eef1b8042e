//! Why an orchestrator does not start.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::queue::embedded::JournalError;

/// Why an orchestrator does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrchestratorError {
    /// Others could reach it and nothing would ask who they are.
    #[error("listening on {address} lets other machines in; set {variable} or listen on a loopback address")]
    Unprotected {
        /// The address.
        address: SocketAddr,
        /// The setting that is missing.
        variable: &'static str,
    },
    /// The address is taken or not this machine's.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The folder for files cannot be used.
    #[error("cannot use the data folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file that runs are kept in cannot be used.
    #[error("cannot keep runs in {}", path.display())]
    Queue {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: JournalError,
    },
    /// The NATS servers that runs are kept on cannot be used.
    #[error("cannot keep runs on the NATS servers")]
    Nats(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The settings ask for what this program was built without.
    #[error("this program was built without the feature `nats`")]
    NoNats,
}
