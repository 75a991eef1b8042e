//! The one form in which HTTP callers are told that something went wrong.

use std::time::Duration;

use axum::{
    Json,
    extract::{
        FromRequest, Request,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::queue::{Refusal, Unavailable};

/// An answer that is no success: a status, a word for programs, a sentence for people, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpError {
    pub(crate) status: StatusCode,
    code: &'static str,
    message: String,
    remedy: &'static str,
    /// When asking again may help; `None`: that is not known.
    retry_after: Option<Duration>,
}

impl HttpError {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self { status, code, message: message.into(), remedy, retry_after: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "usage", message, "correct the request")
    }

    pub(crate) fn not_found(what: &str) -> Self {
        let remedy = "check the name; ended runs are forgotten after a while";
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"), remedy)
    }

    pub(crate) fn credential() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "credential",
            "a valid bearer token is needed",
            "send `Authorization: Bearer <token>`",
        )
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        let remedy = "use the reference or the token that belongs to it";
        Self::new(StatusCode::FORBIDDEN, "credential", message, remedy)
    }

    pub(crate) fn other_tenant() -> Self {
        let remedy = "leave `tenant_id` out, or send the token of that tenant";
        Self::new(StatusCode::FORBIDDEN, "credential", "the token is not this tenant's", remedy)
    }

    pub(crate) fn conflict(message: &str, remedy: &'static str) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, remedy)
    }

    pub(crate) fn too_large(max: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "capacity",
            format!("the content has more than {max} bytes"),
            "send less, or raise the limit",
        )
    }

    pub(crate) fn too_often(wait: Duration) -> Self {
        let remedy = "wait as long as `Retry-After` says, and ask less often";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many requests", remedy).after(wait)
    }

    /// The same, with the time after which asking again may help.
    fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    pub(crate) fn internal() -> Self {
        let remedy = "see the orchestrator's log";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the request failed", remedy)
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Self::conflict(
                "this run id or `Idempotency-Key` names another request",
                "choose another one, or repeat the first request exactly",
            ),
            Refusal::TenantFull { retry_after } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "capacity",
                "this tenant has too many runs waiting",
                "try again when some of them have started",
            )
            .after(retry_after),
            Refusal::Full { retry_after } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "capacity",
                "too many runs are waiting",
                "try again when some have ended",
            )
            .after(retry_after),
            Refusal::Unavailable => Unavailable.into(),
        }
    }
}

impl From<Unavailable> for HttpError {
    fn from(error: Unavailable) -> Self {
        let remedy = "ask again; with the same `run_id` or `Idempotency-Key` that is safe";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string(), remedy)
            .after(Duration::from_secs(1))
    }
}

impl From<QueryRejection> for HttpError {
    fn from(rejection: QueryRejection) -> Self {
        Self::usage(rejection.body_text())
    }
}

impl From<JsonRejection> for HttpError {
    fn from(rejection: JsonRejection) -> Self {
        let refusal = Self::usage(rejection.body_text());
        match rejection.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => {
                let remedy = "send less, put large content into files, or raise ORCHESTRATOR_MAX_BODY_BYTES";
                Self::new(status, "capacity", refusal.message, remedy)
            }
            status => Self { status, ..refusal },
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let error = json!({"code": self.code, "message": self.message, "remedy": self.remedy});
        let seconds =
            self.retry_after.map(|wait| [(header::RETRY_AFTER, wait.as_secs_f64().ceil().to_string())]);
        (self.status, seconds.map(AppendHeaders), Json(json!({"error": error}))).into_response()
    }
}

/// A JSON body, refused in our own form.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        let Json(value) = Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}
