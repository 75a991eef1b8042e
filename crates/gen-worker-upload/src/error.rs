//! Why an output was not stored.

use std::io;

use gen_worker_core::{ByteSize, Classify, Digest, FailureKind};
use gen_worker_net::{NetError, StatusCode};

/// Why an output was not stored. No text holds a URL, a header or a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// Neither the run nor the settings name a file API.
    #[error("FILE_API_BASE_URL is required for file operations")]
    NoFileApi,
    /// The reference does not lie under the run's own prefix.
    #[error("the output's ref {problem}")]
    Reference {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// `output_upload` cannot be used.
    #[error("`{key}` {problem}")]
    Target {
        /// What of it.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The output is over the cap; nothing was sent.
    #[error("the output has {size} bytes, at most {} are allowed", max.0)]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The cap.
        max: ByteSize,
    },
    /// The output cannot be read.
    #[error("the output cannot be read")]
    Read {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A stream cannot be put on disk.
    #[error("the output cannot be put on disk: set WORKER_RUN_DIR to a directory that can be written")]
    Spool {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A stream was returned or saved a second time.
    #[error("the output's stream was read before")]
    StreamTaken,
    /// The function named a media type that no header can carry.
    #[error("the output's content type cannot be sent")]
    ContentType,
    /// The file API refuses the credential.
    #[error("file save unauthorized ({})", status.as_u16())]
    Unauthorized {
        /// 401 or 403.
        status: StatusCode,
    },
    /// Something is stored there, and it was to be created.
    #[error("output path already exists")]
    Exists,
    /// The file API did not store the file.
    #[error("file save failed")]
    Save {
        /// Why.
        #[source]
        source: NetError,
    },
    /// The file API stored something else than was sent.
    #[error("the file API did not store what was sent, sha256 {}", sent.hex())]
    DigestMismatch {
        /// What was sent.
        sent: Digest,
    },
    /// The store said yes to something else than the whole output, or did not say what became of it.
    #[error("the store did not confirm the output")]
    Unconfirmed,
    /// An S3-compatible store did not take the output.
    #[error("the upload to S3 failed{}", code.as_ref().map(|code| format!(": {code}")).unwrap_or_default())]
    S3 {
        /// Why.
        #[source]
        source: NetError,
        /// The store's own word for it; `None`: it has none.
        code: Option<String>,
    },
    /// The place that the payload named did not take the output.
    #[error("upload failed")]
    Upload {
        /// Why.
        #[source]
        source: NetError,
    },
}

impl Classify for UploadError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Reference { .. } | Self::Target { .. } | Self::TooLarge { .. } | Self::Exists => {
                FailureKind::Validation
            }
            Self::NoFileApi | Self::Read { .. } | Self::ContentType | Self::StreamTaken => {
                FailureKind::Internal
            }
            Self::Spool { source } if is_full(source) => FailureKind::Resource,
            Self::Spool { .. } => FailureKind::Retryable,
            Self::Unauthorized { .. } => FailureKind::Auth,
            Self::DigestMismatch { .. } | Self::Unconfirmed => FailureKind::Retryable,
            // Somebody else ended the upload; another one may end well.
            Self::S3 { code: Some(code), .. } if code == "NoSuchUpload" => FailureKind::Retryable,
            Self::Save { source: source @ NetError::Status { .. } } if !source.is_transient() => {
                FailureKind::Internal
            }
            Self::Save { source } | Self::Upload { source } | Self::S3 { source, .. } => source.kind(),
        }
    }

    fn safe_message(&self) -> String {
        match self {
            Self::NoFileApi => "the worker has no file API to save to".to_owned(),
            Self::TooLarge { max, .. } => {
                format!("output file too large: at most {} bytes are allowed", max.0)
            }
            Self::Read { .. } => "an output file could not be read".to_owned(),
            Self::Spool { source } if is_full(source) => "the worker's disk is full".to_owned(),
            Self::Spool { .. } => "the worker's disk failed".to_owned(),
            Self::Unauthorized { .. } => format!("{self}: check file_token validity"),
            Self::DigestMismatch { .. } => "the file API stored the output damaged".to_owned(),
            Self::Save { source: NetError::Status { status, .. } } => {
                format!("file save failed ({})", status.as_u16())
            }
            Self::Save { source } => format!("file save failed: {}", source.safe_message()),
            Self::S3 { source, code: Some(code) } => {
                format!("the output could not be uploaded: {} ({code})", source.safe_message())
            }
            Self::Upload { source } | Self::S3 { source, code: None } => {
                format!("the output could not be uploaded: {}", source.safe_message())
            }
            Self::Reference { .. }
            | Self::Target { .. }
            | Self::ContentType
            | Self::StreamTaken
            | Self::Exists
            | Self::Unconfirmed => self.to_string(),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
