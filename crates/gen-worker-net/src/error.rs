//! How HTTP fails.

use std::{error::Error, io, time::Duration};

use gen_worker_core::{Classify, Digest, FailureKind};
use http::StatusCode;

use crate::guard::Forbidden;

/// Why a request, or the file it was to become, failed. No text holds a URL, a query or a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The client could not be set up.
    #[error("setting up HTTP failed")]
    Setup {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The address may not be reached. Asking again will not help.
    #[error("address of {host} is blocked; WORKER_URL_ALLOW names private ones that a payload may reach")]
    Blocked {
        /// The host that was named, without port.
        host: String,
    },
    /// The answers led from one place to the next too often, or nowhere.
    #[error("redirects lead nowhere")]
    Redirects,
    /// The credential has characters that no header can carry.
    #[error("the credential cannot be sent")]
    Credential,
    /// No connection could be made.
    #[error("connecting failed")]
    Connect {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing moved for too long, or the whole exchange took too long.
    #[error("no answer in time")]
    Timeout,
    /// Bytes came, but slower than is allowed.
    #[error("the answer came too slowly")]
    TooSlow,
    /// The server compressed what was asked for as it is: its size and digest cannot be told.
    #[error("the answer is compressed, unasked")]
    Encoded,
    /// What answered is not the service that was asked, but something in between.
    #[error("an answer of status {status} that is not the service's own")]
    Foreign {
        /// The status.
        status: StatusCode,
    },
    /// The server answered with a status that is no success.
    #[error("the server answered {status}")]
    Status {
        /// The status.
        status: StatusCode,
        /// How long the server asks to be left alone; `None`: it does not say.
        retry_after: Option<Duration>,
    },
    /// The connection broke, or what came over it ended early.
    #[error("the transfer broke off")]
    Broken {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// More arrived than is allowed.
    #[error("the content is larger than {max} bytes")]
    TooLarge {
        /// What is allowed.
        max: u64,
    },
    /// The answer is not the JSON that was expected.
    #[error("the answer is not the expected JSON")]
    Json {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The content has another size than was promised.
    #[error("the content has {actual} bytes, expected {expected}")]
    Size {
        /// What was promised.
        expected: u64,
        /// What arrived.
        actual: u64,
    },
    /// The content has another digest than was promised.
    #[error("the content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// What was promised.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// There is no room on the disk.
    #[error("the disk is full")]
    DiskFull {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file of this machine cannot be read or written.
    #[error("a local file cannot be used")]
    Io {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Timeout
            | Self::TooSlow
            | Self::Encoded
            | Self::Foreign { .. }
            | Self::Broken { .. }
            | Self::Size { .. } => true,
            Self::Status { status, .. } => is_transient(*status),
            Self::Setup { .. }
            | Self::Blocked { .. }
            | Self::Redirects
            | Self::Credential
            | Self::TooLarge { .. }
            | Self::Json { .. }
            | Self::DigestMismatch { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. } => false,
        }
    }

    /// What reqwest says, in our words. Its text loses the URL, which may carry a signature.
    pub(crate) fn from_reqwest(error: reqwest::Error, host: &str) -> Self {
        let source = error.without_url();
        if is_forbidden(&source) {
            Self::Blocked { host: host.to_owned() }
        } else if source.is_timeout() {
            Self::Timeout
        } else if source.is_connect() {
            Self::Connect { source }
        } else {
            Self::Broken { source }
        }
    }
}

impl From<io::Error> for NetError {
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { source },
            _ => Self::Io { source },
        }
    }
}

impl Classify for NetError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Setup { .. } => FailureKind::Internal,
            Self::Blocked { .. } | Self::Redirects | Self::TooLarge { .. } => FailureKind::Validation,
            Self::Credential => FailureKind::Auth,
            Self::Status { status, .. } => status_kind(*status),
            Self::DiskFull { .. } => FailureKind::Resource,
            Self::Connect { .. }
            | Self::Timeout
            | Self::TooSlow
            | Self::Encoded
            | Self::Foreign { .. }
            | Self::Broken { .. }
            | Self::Json { .. }
            | Self::Size { .. }
            | Self::DigestMismatch { .. }
            | Self::Io { .. } => FailureKind::Retryable,
        }
    }

    fn safe_message(&self) -> String {
        match self {
            Self::Setup { .. } => "internal error".to_owned(),
            Self::Blocked { .. } => "the URL's address is blocked".to_owned(),
            Self::Redirects => "the URL redirects too often".to_owned(),
            Self::Credential => "a credential cannot be used".to_owned(),
            Self::Connect { .. } => "a connection could not be made".to_owned(),
            Self::Timeout => "a server did not answer in time".to_owned(),
            Self::TooSlow => "a server sent too slowly".to_owned(),
            Self::Encoded | Self::Foreign { .. } => "a server's answer was not understood".to_owned(),
            Self::Status { status, .. } => format!("a server answered {}", status.as_u16()),
            Self::Broken { .. } => "a transfer broke off".to_owned(),
            Self::TooLarge { max } => format!("the content is larger than {max} bytes"),
            Self::Json { .. } => "a server's answer was not understood".to_owned(),
            Self::Size { .. } | Self::DigestMismatch { .. } => "a file arrived damaged".to_owned(),
            Self::DiskFull { .. } => "the worker's disk is full".to_owned(),
            Self::Io { .. } => "the worker's disk failed".to_owned(),
        }
    }
}

/// Whether an answer of this status may turn into a success by itself.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

fn status_kind(status: StatusCode) -> FailureKind {
    match status.as_u16() {
        401 | 403 => FailureKind::Auth,
        _ if is_transient(status) => FailureKind::Retryable,
        _ => FailureKind::Validation,
    }
}

/// Whether the guard's refusal is in the chain.
fn is_forbidden(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Forbidden>() {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_classes() {
        for (status, transient, kind) in [
            (400, false, FailureKind::Validation),
            (401, false, FailureKind::Auth),
            (403, false, FailureKind::Auth),
            (404, false, FailureKind::Validation),
            (408, true, FailureKind::Retryable),
            (429, true, FailureKind::Retryable),
            (500, true, FailureKind::Retryable),
            (503, true, FailureKind::Retryable),
        ] {
            let error = NetError::Status { status: StatusCode::from_u16(status).unwrap(), retry_after: None };
            assert_eq!((error.is_transient(), error.kind()), (transient, kind), "{status}");
        }
    }

    #[test]
    fn a_full_disk_is_a_resource() {
        let error = NetError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.kind(), FailureKind::Resource);
    }
}
