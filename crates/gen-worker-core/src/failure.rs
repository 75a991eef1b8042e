//! How a run can fail, and what is said about it to whom.

use std::{error::Error, fmt};

use crate::redact::{hide_secrets, redact};

/// The closed set of ways in which a run ends badly; the word on the wire is `error_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// It was told to stop.
    Canceled,
    /// The caller's input is wrong. Trying again with the same input will not help.
    Validation,
    /// The environment failed: network, a busy worker. Trying again may help.
    Retryable,
    /// It does not fit: memory, disk.
    Resource,
    /// The function cannot work at all.
    Fatal,
    /// A credential was refused.
    Auth,
    /// A fault in the function or the worker.
    Internal,
    /// The deadline passed.
    Timeout,
}

impl FailureKind {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Canceled => "canceled",
            Self::Validation => "validation",
            Self::Retryable => "retryable",
            Self::Resource => "resource",
            Self::Fatal => "fatal",
            Self::Auth => "auth",
            Self::Internal => "internal",
            Self::Timeout => "timeout",
        }
    }

    /// Whether a scheduler should try the run again.
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Retryable | Self::Timeout)
    }

    /// The original worker's exception class, which `error_message` starts with.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Canceled => "CanceledError",
            Self::Validation => "ValidationError",
            Self::Retryable => "RetryableError",
            Self::Resource => "ResourceError",
            Self::Fatal => "FatalError",
            Self::Auth => "AuthError",
            Self::Internal => "InternalError",
            Self::Timeout => "TimeoutError",
        }
    }

    /// What a caller is told when there is no text (contract §5).
    const fn plain_message(self) -> &'static str {
        match self {
            Self::Canceled => "canceled",
            Self::Validation => "invalid input",
            Self::Retryable => "retryable error",
            Self::Resource => "resource exhausted",
            Self::Fatal => "fatal error",
            Self::Auth => "authentication failed",
            Self::Internal => "internal error",
            Self::Timeout => "deadline exceeded",
        }
    }

    /// Whether the caller sees only [`plain_message`](Self::plain_message), whatever the text says.
    const fn hides_text(self) -> bool {
        matches!(self, Self::Canceled | Self::Internal)
    }
}

/// An error that ends a job and knows how to be reported. `?` turns it into a [`JobFailure`].
pub trait Classify: Error {
    /// Which kind of failure it is.
    fn kind(&self) -> FailureKind;

    /// A sentence for the caller: written for them, without path, host, token or another tenant's data.
    fn safe_message(&self) -> String;
}

/// Why a run failed, ready to be reported: what the caller is told, and the error for the log.
pub struct JobFailure {
    /// Which kind of failure it is.
    pub kind: FailureKind,
    /// For the caller.
    pub safe_message: String,
    detail: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl JobFailure {
    /// A failure with a message that was written for the caller.
    pub fn new(kind: FailureKind, safe_message: impl Into<String>) -> Self {
        Self { kind, safe_message: safe_message.into(), detail: None, source: None }
    }

    /// The same failure with a fuller `error_message` for the scheduler, as free of secrets as the safe one.
    #[must_use]
    pub fn detailed(mut self, error_message: impl Into<String>) -> Self {
        self.detail = Some(error_message.into());
        self
    }

    /// The `error_message` of the wire: the detail, else `<Class>: <safe message>`.
    pub fn error_message(&self) -> String {
        self.detail.clone().unwrap_or_else(|| format!("{}: {}", self.kind.class(), self.safe_message))
    }

    /// What caused it; `None`: only its message is known.
    pub fn cause(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|error| error as &(dyn Error + 'static))
    }

    /// The error and its causes in one line, for the worker's own log: without tokens and URLs, whoever wrote them. A cause that
    /// only repeats what stands before it is left out.
    pub fn chain(&self) -> String {
        let mut chain = vec![self.detail.as_ref().unwrap_or(&self.safe_message).clone()];
        let mut next = self.cause().map(|error| error as &dyn Error);
        while let Some(error) = next {
            let text = hide_secrets(&error.to_string()).into_owned();
            if chain.last() != Some(&text) {
                chain.push(text);
            }
            next = error.source();
        }
        chain.join(": ")
    }
}

impl<E: Classify + Send + Sync + 'static> From<E> for JobFailure {
    fn from(error: E) -> Self {
        Self {
            kind: error.kind(),
            safe_message: error.safe_message(),
            detail: None,
            source: Some(Box::new(error)),
        }
    }
}

impl From<WorkerError> for JobFailure {
    fn from(error: WorkerError) -> Self {
        let text = if error.kind.hides_text() { String::new() } else { redact(&error.text) };
        let safe_message = if text.is_empty() { error.kind.plain_message().to_owned() } else { text };
        Self { kind: error.kind, safe_message, detail: None, source: Some(Box::new(error.into_source())) }
    }
}

impl fmt::Debug for JobFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.chain())
    }
}

/// What a function returns when it fails: one constructor for each way in which the original's exceptions did.
///
/// Any other error that reaches `?` becomes [`internal`](Self::internal): logged by the worker, hidden from the caller.
///
/// ```
/// use gen_worker_core::WorkerError;
///
/// fn check(steps: u32) -> Result<(), WorkerError> {
///     if steps > 50 {
///         return Err(WorkerError::validation(format!("steps must be at most 50, not {steps}")));
///     }
///     Ok(())
/// }
/// # assert!(check(51).is_err());
/// ```
pub struct WorkerError {
    kind: FailureKind,
    text: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $kind:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(text: impl Into<String>) -> Self {
            Self { kind: FailureKind::$kind, text: text.into(), source: None }
        }
    )*};
}

impl WorkerError {
    constructors! {
        /// The caller's input is wrong; the caller reads the text, redacted.
        #[doc(alias = "ValidationError")]
        validation = Validation;
        /// The environment failed; the scheduler may try again.
        #[doc(alias = "RetryableError")]
        retryable = Retryable;
        /// It does not fit this machine.
        #[doc(alias = "ResourceError")]
        resource = Resource;
        /// The function cannot work at all; nobody should try again.
        #[doc(alias = "FatalError")]
        fatal = Fatal;
        /// A credential was refused.
        #[doc(alias = "AuthError")]
        auth = Auth;
        /// The function stopped because it was told to.
        #[doc(alias = "CanceledError")]
        canceled = Canceled;
        /// A fault; the caller reads only `internal error`.
        internal = Internal;
    }

    /// Keeps the error that caused this one, for the worker's log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Which kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    fn into_source(self) -> UserError {
        UserError { text: hide_secrets(&self.text).into_owned(), source: self.source }
    }
}

/// A type that a function may fail with: [`WorkerError`], or any error, which is `internal` then.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a function's error",
    label = "neither `WorkerError` nor an error that converts into it",
    note = "return `WorkerError`, or implement `std::error::Error` for it: then it is reported as `internal`"
)]
pub trait FunctionError {
    /// What is reported.
    fn reported(self) -> WorkerError;
}

impl<E: Into<WorkerError>> FunctionError for E {
    fn reported(self) -> WorkerError {
        self.into()
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for WorkerError {
    fn from(error: E) -> Self {
        Self::internal(error.to_string()).caused_by(error)
    }
}

impl From<JobFailure> for WorkerError {
    fn from(failure: JobFailure) -> Self {
        Self { kind: failure.kind, text: failure.safe_message, source: failure.source }
    }
}

impl fmt::Debug for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.as_str(), self.text)
    }
}

/// A user's error as a link in a chain: `WorkerError` itself cannot be an `Error`, or `?` could not convert into it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct UserError {
    text: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_maps_as_the_contract_says() {
        let table: [(WorkerError, &str, bool, &str); 7] = [
            (WorkerError::canceled("why"), "canceled", false, "canceled"),
            (WorkerError::validation("bad x"), "validation", false, "bad x"),
            (WorkerError::retryable(""), "retryable", true, "retryable error"),
            (WorkerError::resource(" "), "resource", false, "resource exhausted"),
            (WorkerError::fatal("no"), "fatal", false, "no"),
            (WorkerError::auth(""), "auth", false, "authentication failed"),
            (WorkerError::internal("secret detail"), "internal", false, "internal error"),
        ];
        for (error, kind, retryable, safe) in table {
            let failure = JobFailure::from(error);
            assert_eq!(
                (failure.kind.as_str(), failure.kind.is_retryable(), failure.safe_message.as_str()),
                (kind, retryable, safe)
            );
        }
        assert!(FailureKind::Timeout.is_retryable());
    }

    #[test]
    fn the_message_beside_the_safe_one_is_redacted_too() {
        let failure = JobFailure::from(WorkerError::retryable("GET https://a.b/?token=x failed"));
        assert_eq!(failure.error_message(), "RetryableError: GET <url> failed");
    }

    #[test]
    fn any_error_is_internal_and_its_text_stays_in_the_log() {
        fn fails() -> Result<(), WorkerError> {
            Err(std::io::Error::other("disk 7 is on fire"))?;
            Ok(())
        }
        let failure = JobFailure::from(fails().unwrap_err());
        assert_eq!(failure.error_message(), "InternalError: internal error");
        assert!(failure.chain().contains("disk 7"), "{}", failure.chain());
        let failure = JobFailure::from(WorkerError::internal("GET https://h/x?sig=1 from /tmp/x failed"));
        assert!(failure.chain().ends_with("GET <url> from /tmp/x failed"), "{}", failure.chain());
    }

    #[test]
    fn the_causes_of_an_error_lose_their_secrets_too() {
        let cause = std::io::Error::other("POST https://h/x?sig=hunter2 with token=hunter2");
        for error in [
            WorkerError::from(cause),
            WorkerError::fatal("no").caused_by(std::io::Error::other("sig=hunter2")),
        ] {
            let failure = JobFailure::from(error);
            assert!(!failure.chain().contains("hunter2"), "{}", failure.chain());
        }
    }
}
