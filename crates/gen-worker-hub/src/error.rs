//! How a model or an input file is not made present.

use std::{io, sync::Arc};

use gen_worker_core::{Classify, FailureKind};
use gen_worker_net::NetError;

/// Why a model or an input file could not be made present.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The source does not know the model. Asking again will not help.
    #[error("model {model} not found")]
    NotFound {
        /// The reference, without query.
        model: String,
    },
    /// The source refused the worker's credential.
    #[error("model {model} refused with status {status}")]
    Refused {
        /// The reference, without query.
        model: String,
        /// 401 or 403; 400 of an address that carries its own permission.
        status: u16,
    },
    /// The file that the credential of a source lies in holds none.
    #[error("no token can be read from the file that {variable} names")]
    TokenFile {
        /// The setting that names the file.
        variable: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address of a file has expired; its source gives another.
    #[error("the address of a file of model {model} has expired")]
    Expired {
        /// The reference, without query.
        model: String,
        /// 400, 401 or 403.
        status: u16,
    },
    /// The source says what is wrong with the question.
    #[error("the source of model {model} answered {status}: {said}")]
    Denied {
        /// The reference, without query.
        model: String,
        /// The status.
        status: u16,
        /// What it says, shortened.
        said: String,
    },
    /// The source's list of files cannot be used.
    #[error("the file list of model {model} cannot be used: {reason}")]
    Listing {
        /// The reference, without query.
        model: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository has no files that are wanted.
    #[error("model {model} has no ONNX files; name others with `#glob` behind the reference")]
    NothingWanted {
        /// The reference, without query.
        model: String,
    },
    /// The files wanted can run code when they are loaded.
    #[error("model {model} has pickled files, which can run code; WORKER_ALLOW_PICKLE=1 admits them")]
    Pickle {
        /// The reference, without query.
        model: String,
    },
    /// The disk has no room for what is missing.
    #[error("{need} bytes are needed and the disk has {have}")]
    NoRoom {
        /// How many bytes are missing.
        need: u64,
        /// How many bytes are free.
        have: u64,
    },
    /// The model cache may not grow that far, and what is in it is in use.
    #[error("{need} bytes are needed and WORKER_LOCAL_CACHE_GB leaves {have}")]
    OverLimit {
        /// How many bytes are missing.
        need: u64,
        /// How many the limit leaves.
        have: u64,
    },
    /// A model of the hub is asked for and no hub is set.
    #[error("model refs need COZY_HUB_URL")]
    NoHub,
    /// A `file:` ref leads to nothing that can be read.
    #[error("{model} cannot be read")]
    Local {
        /// The reference, without query.
        model: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server continued from another place than it was asked to.
    #[error("the server sent another range of model {model} than was asked for")]
    Range {
        /// The reference, without query.
        model: String,
    },
    /// The transfer of a model failed after its retries.
    #[error("fetching model {model} failed")]
    Fetch {
        /// The reference, without query.
        model: String,
        /// How the last try failed.
        #[source]
        source: NetError,
    },
    /// The download was given up because the worker leaves.
    #[error("fetching model {model} was given up")]
    GivenUp {
        /// The reference, without query.
        model: String,
    },
    /// The model cache cannot be read or written.
    #[error("the model cache cannot be used")]
    Store {
        /// What the system said.
        #[source]
        source: NetError,
    },
    /// An input's reference leads to no place an input may come from.
    #[error("{reference} is no input file")]
    InputRef {
        /// The reference, without query.
        reference: String,
    },
    /// An input of the file API is asked for and there is no file API.
    #[error("input files need FILE_API_BASE_URL")]
    NoFileApi,
    /// There is no such input.
    #[error("input {reference} not found")]
    InputNotFound {
        /// The reference, without query.
        reference: String,
    },
    /// The run's credential does not open the input.
    #[error("input {reference} refused with status {status}")]
    InputRefused {
        /// The reference, without query.
        reference: String,
        /// 401 or 403.
        status: u16,
    },
    /// The URL in the payload does not open the input.
    #[error(
        "input {reference} answered {status}: its URL must open it without a credential, and not have expired"
    )]
    InputDenied {
        /// The reference, without query.
        reference: String,
        /// 401 or 403.
        status: u16,
    },
    /// The input is larger than the worker takes.
    #[error("input {reference} is larger than {max} bytes")]
    InputTooLarge {
        /// The reference, without query.
        reference: String,
        /// What the worker takes.
        max: u64,
    },
    /// The input's content is not what the payload says it is.
    #[error("input {reference} does not have the sha256 of the payload")]
    InputDigest {
        /// The reference, without query.
        reference: String,
    },
    /// The transfer of an input failed after its retries.
    #[error("fetching input {reference} failed")]
    InputFetch {
        /// The reference, without query.
        reference: String,
        /// How the last try failed.
        #[source]
        source: NetError,
    },
}

impl HubError {
    /// The transport's failure, if it is one.
    pub(crate) fn transport(&self) -> Option<&NetError> {
        match self {
            Self::Fetch { source, .. } | Self::InputFetch { source, .. } => Some(source),
            Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::TokenFile { .. }
            | Self::Expired { .. }
            | Self::Denied { .. }
            | Self::Listing { .. }
            | Self::NothingWanted { .. }
            | Self::Pickle { .. }
            | Self::NoRoom { .. }
            | Self::OverLimit { .. }
            | Self::NoHub
            | Self::Local { .. }
            | Self::Range { .. }
            | Self::GivenUp { .. }
            | Self::Store { .. }
            | Self::InputRef { .. }
            | Self::NoFileApi
            | Self::InputNotFound { .. }
            | Self::InputRefused { .. }
            | Self::InputDenied { .. }
            | Self::InputTooLarge { .. }
            | Self::InputDigest { .. } => None,
        }
    }

    /// Whether the source may answer well later.
    pub(crate) fn is_transient(&self) -> bool {
        self.transport().is_some_and(NetError::is_transient)
    }

    /// Whether what came is of no use, so that one more try from the start is.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Range { .. }
                | Self::InputDigest { .. }
                | Self::Fetch { source: NetError::DigestMismatch { .. }, .. }
                | Self::InputFetch { source: NetError::DigestMismatch { .. }, .. }
        )
    }
}

impl From<io::Error> for HubError {
    fn from(source: io::Error) -> Self {
        Self::Store { source: source.into() }
    }
}

impl Classify for HubError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::NothingWanted { .. }
            | Self::Pickle { .. }
            | Self::NoHub
            | Self::Local { .. }
            | Self::InputRef { .. }
            | Self::NoFileApi
            | Self::InputNotFound { .. }
            | Self::InputDenied { .. }
            | Self::InputTooLarge { .. }
            | Self::InputDigest { .. } => FailureKind::Validation,
            Self::Refused { .. } | Self::TokenFile { .. } | Self::InputRefused { .. } => FailureKind::Auth,
            Self::Range { .. } | Self::Listing { .. } | Self::Expired { .. } | Self::GivenUp { .. } => {
                FailureKind::Retryable
            }
            Self::NoRoom { .. } | Self::OverLimit { .. } => FailureKind::Resource,
            Self::Fetch { source, .. } | Self::Store { source } | Self::InputFetch { source, .. } => {
                source.kind()
            }
        }
    }

    fn safe_message(&self) -> String {
        match self {
            Self::NotFound { .. }
            | Self::TokenFile { .. }
            | Self::Expired { .. }
            | Self::Denied { .. }
            | Self::Listing { .. }
            | Self::NothingWanted { .. }
            | Self::Pickle { .. }
            | Self::NoHub
            | Self::InputRef { .. }
            | Self::NoFileApi
            | Self::InputNotFound { .. }
            | Self::InputDenied { .. }
            | Self::InputTooLarge { .. }
            | Self::InputDigest { .. }
            | Self::GivenUp { .. } => self.to_string(),
            Self::Refused { model, status } => format!("model {model} read unauthorized ({status})"),
            Self::NoRoom { need, have } | Self::OverLimit { need, have } => {
                format!("the worker's disk is full: {need} bytes needed, {have} left")
            }
            Self::Local { .. } => "the model file is not on this worker".to_owned(),
            Self::Range { model } => format!("model {model} arrived damaged"),
            Self::Fetch { model, source } => format!("model {model}: {}", source.safe_message()),
            Self::Store { source } => source.safe_message(),
            Self::InputRefused { reference, status } => {
                format!("input {reference} read unauthorized ({status}): check file_token validity")
            }
            Self::InputFetch { reference, source } => format!("input {reference}: {}", source.safe_message()),
        }
    }
}

/// One failure that several waiters are told of.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub(crate) struct SharedError(#[from] Arc<HubError>);

impl From<HubError> for SharedError {
    fn from(error: HubError) -> Self {
        Self(Arc::new(error))
    }
}

impl Classify for SharedError {
    fn kind(&self) -> FailureKind {
        self.0.kind()
    }

    fn safe_message(&self) -> String {
        self.0.safe_message()
    }
}
