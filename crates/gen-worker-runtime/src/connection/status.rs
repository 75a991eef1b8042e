//! What the end of a stream means for the next dial: one table.

use tonic::{Code, Status};

use crate::meters::Cause;

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The worker said everything and left.
    Left,
    /// The stream broke, was closed, or never opened: dialled again for ever.
    Lost { cause: String },
    /// The token was refused: dialled again, since every dial looks for a newer one.
    Unauthenticated { cause: String },
    /// This worker may not connect: dialled again a few times, in case the scheduler is behind.
    Denied { cause: String },
    /// Another worker has taken this one's place: dialled again after a long wait.
    Superseded { cause: String },
    /// Another scheduler leads: dialled at once, where that is allowed.
    Redirected { leader: String },
    /// The peer's HTTP/2 wants fewer pings: dialled again with fewer.
    TooManyPings { cause: String },
    /// The service is not there: the process ends, unless it was there before. A proxy before a scheduler that restarts says
    /// this too.
    Unimplemented { message: String },
    /// The scheduler will never take this worker: the process ends.
    Refused { message: String },
}

impl Ended {
    /// As what it is counted, if it makes another dial due.
    pub(super) fn cause(&self, was_connected: bool) -> Option<Cause> {
        match self {
            Self::Left | Self::Refused { .. } => None,
            Self::Lost { .. } if was_connected => Some(Cause::Lost),
            Self::Lost { .. } => Some(Cause::Unreachable),
            Self::Unauthenticated { .. } => Some(Cause::Unauthenticated),
            Self::Denied { .. } => Some(Cause::Denied),
            Self::Superseded { .. } => Some(Cause::Superseded),
            Self::Redirected { .. } => Some(Cause::Redirected),
            Self::TooManyPings { .. } => Some(Cause::TooManyPings),
            Self::Unimplemented { .. } => Some(Cause::Unimplemented),
        }
    }
}

/// The table. Everything that is not in it is a lost connection.
pub(super) fn classify(status: &Status) -> Ended {
    let message = status.message();
    let cause = describe(status);
    match status.code() {
        Code::FailedPrecondition => match message.strip_prefix("not_leader:") {
            Some(leader) => Ended::Redirected { leader: leader.trim().to_owned() },
            None if message.starts_with("unsupported_worker_protocol:") => {
                Ended::Refused { message: message.to_owned() }
            }
            None => Ended::Lost { cause },
        },
        Code::Unimplemented => Ended::Unimplemented { message: message.to_owned() },
        Code::ResourceExhausted if is_from_http2(status) => Ended::TooManyPings { cause },
        Code::Unauthenticated => Ended::Unauthenticated { cause },
        Code::PermissionDenied => Ended::Denied { cause },
        Code::Aborted if message.to_ascii_lowercase().contains("superseded") => Ended::Superseded { cause },
        _ => Ended::Lost { cause },
    }
}

/// Whether the connection ended with this status, and not the scheduler: ENHANCE_YOUR_CALM, which gRPC servers send to those
/// who ping more often than they allow, stands for RESOURCE_EXHAUSTED.
fn is_from_http2(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.message().starts_with("h2 protocol error")
}

/// What the scheduler said; where the network ended the stream, what the network said.
fn describe(status: &Status) -> String {
    let said = format!("{:?}: {}", status.code(), status.message());
    match std::error::Error::source(status) {
        Some(source) => format!("{said}: {}", innermost(source)),
        None => said,
    }
}

/// The cause a person can act on: `connection refused` rather than `transport error`.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_means_one_thing() {
        let lost = |cause: &str| Ended::Lost { cause: cause.to_owned() };
        let refused = |message: &str| Ended::Refused { message: message.to_owned() };
        let redirected = |leader: &str| Ended::Redirected { leader: leader.to_owned() };
        let unauthenticated = Ended::Unauthenticated { cause: "Unauthenticated: expired".to_owned() };
        let denied = Ended::Denied { cause: "PermissionDenied: no".to_owned() };
        let superseded = Ended::Superseded { cause: "Aborted: Superseded by a newer stream".to_owned() };
        for (code, message, ended) in [
            (Code::Ok, "the scheduler closed the stream", lost("Ok: the scheduler closed the stream")),
            (Code::Unavailable, "x", lost("Unavailable: x")),
            (Code::DeadlineExceeded, "x", lost("DeadlineExceeded: x")),
            (Code::Internal, "x", lost("Internal: x")),
            (Code::Unauthenticated, "expired", unauthenticated),
            (Code::PermissionDenied, "no", denied),
            (Code::Aborted, "Superseded by a newer stream", superseded),
            (Code::Aborted, "conflict", lost("Aborted: conflict")),
            (Code::Unimplemented, "x", Ended::Unimplemented { message: "x".to_owned() }),
            (Code::ResourceExhausted, "too many workers", lost("ResourceExhausted: too many workers")),
            (
                Code::FailedPrecondition,
                "unsupported_worker_protocol: 2",
                refused("unsupported_worker_protocol: 2"),
            ),
            (Code::FailedPrecondition, "not_leader: h:1 ", redirected("h:1")),
            (Code::FailedPrecondition, "not_leader:", redirected("")),
            (Code::FailedPrecondition, "else", lost("FailedPrecondition: else")),
        ] {
            assert_eq!(classify(&Status::new(code, message)), ended);
        }
    }
}
