//! The frontend service: what callers may ask over gRPC. [`http`](crate::http) is its twin.

use std::{sync::Arc, time::Duration};

use gen_worker_proto::frontend::{
    self as v1, frontend_service_server::FrontendService, realtime_proxy_message::Msg,
};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    auth::{Caller, Callers},
    intake::{Intake, IntakeError, Naming},
    queue::{Refusal, Unavailable},
    rate::RateLimit,
    realtime::{Heard, Opening},
    run::{RetryPolicy, RunRequest, Trace},
    scheduler::{FIRST_MESSAGE, sent_token, unauthenticated},
};

/// The service that callers connect to.
#[derive(Debug)]
pub(crate) struct Frontend {
    pub(crate) intake: Intake,
    pub(crate) callers: Callers,
    pub(crate) rate: Arc<RateLimit>,
    /// Most realtime sessions of one tenant; `None`: no limit.
    pub(crate) most_sessions: Option<usize>,
    pub(crate) tasks: TaskTracker,
}

impl Frontend {
    /// Who calls, counted against its rate.
    fn admit(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let caller = self.callers.identify(sent_token(metadata)).ok_or_else(unauthenticated)?;
        self.rate.count(&caller, Instant::now()).map_err(|wait| {
            Status::resource_exhausted(format!("too many requests; wait {} ms", wait.as_millis()))
        })?;
        Ok(caller)
    }
}

#[tonic::async_trait]
impl FrontendService for Frontend {
    type RealtimeSessionStream = Heard;

    async fn execute_action(
        &self,
        request: Request<v1::ExecuteActionRequest>,
    ) -> Result<Response<v1::ExecuteActionResponse>, Status> {
        let caller = self.admit(request.metadata())?;
        let trace = trace(request.metadata());
        let request = request.into_inner();
        let options = request.options.unwrap_or_default();
        let single = Some(request.required_model_id).filter(|model| !model.is_empty());
        let mut models = request.required_model_ids;
        if models.is_empty() {
            models.extend(single);
        }
        let run = RunRequest {
            function: request.function_name,
            payload: request.input_payload,
            timeout: millis(options.timeout_ms),
            tenant_id: caller.tenant().map(str::to_owned),
            user_id: Some(request.user_id).filter(|user| !user.is_empty()),
            models,
            retry: policy(self.intake.retry(), options.retry_policy.unwrap_or_default()),
            trace,
        };
        let naming = if options.id.is_empty() { Naming::Ours } else { Naming::Chosen(options.id) };
        let (run_id, _) = self.intake.submit(naming, run).await.map_err(status)?;
        Ok(Response::new(v1::ExecuteActionResponse { run_id }))
    }

    /// A run that has not ended is FAILED_PRECONDITION: the answer has no word for it.
    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::GetRunResponse>, Status> {
        let caller = self.admit(request.metadata())?;
        let run_id = request.into_inner().run_id;
        let missing = || Status::not_found("there is no such run");
        if !self.intake.knows(&caller, &run_id).await.map_err(unavailable)? {
            return Err(missing());
        }
        let outcome = self
            .intake
            .broker
            .outcome(&run_id)
            .await
            .map_err(unavailable)?
            .ok_or_else(missing)?
            .ok_or_else(|| Status::failed_precondition("the run has not ended"))?;
        Ok(Response::new(match outcome {
            Ok(output_payload) => {
                v1::GetRunResponse { success: true, output_payload, error_message: String::new() }
            }
            Err(error) => v1::GetRunResponse { error_message: error.message, ..Default::default() },
        }))
    }

    /// A run that is not known yet, which is not `ok`, is refused when it is asked for.
    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let caller = self.admit(request.metadata())?;
        let canceled = self.intake.cancel(&caller, &request.into_inner().run_id).await.map_err(status)?;
        Ok(Response::new(v1::CancelRunResponse { ok: canceled.is_some() }))
    }

    async fn realtime_session(
        &self,
        request: Request<Streaming<v1::RealtimeProxyMessage>>,
    ) -> Result<Response<Self::RealtimeSessionStream>, Status> {
        let caller = self.admit(request.metadata())?;
        let trace = trace(request.metadata());
        let mut inbound = request.into_inner();
        let first = timeout(FIRST_MESSAGE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no `open` came"))??;
        let Some(Msg::Open(open)) = first.and_then(|message| message.msg) else {
            return Err(Status::invalid_argument("a realtime session begins with `open`"));
        };
        let opening = Opening::read(&caller, open, trace)?;
        let (line, heard) = self.intake.broker.converse(opening, self.most_sessions)?;
        self.tasks.spawn(line.carry(inbound));
        Ok(Response::new(heard))
    }
}

/// The place in the caller's trace that it named.
fn trace(metadata: &MetadataMap) -> Option<Trace> {
    Trace::of(|name| metadata.get(name).and_then(|value| value.to_str().ok()))
}

fn millis(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().filter(|&ms| ms > 0).map(Duration::from_millis)
}

/// What a caller asks for, with our defaults where it asks for nothing.
fn policy(default: RetryPolicy, asked: v1::RetryPolicy) -> RetryPolicy {
    RetryPolicy {
        attempts: u32::try_from(asked.maximum_attempts).ok().filter(|&n| n > 0).unwrap_or(default.attempts),
        first: millis(asked.initial_interval_ms).unwrap_or(default.first),
        factor: Some(f64::from(asked.backoff_coefficient))
            .filter(|factor| *factor >= 1.0)
            .unwrap_or(default.factor),
        longest: millis(asked.maximum_interval_ms).unwrap_or(default.longest),
        final_kinds: asked.non_retryable_error_types,
    }
}

fn unavailable(error: Unavailable) -> Status {
    Status::unavailable(format!("{error}; ask again"))
}

fn status(error: IntakeError) -> Status {
    let refusal = match error {
        IntakeError::Invalid(message) => return Status::invalid_argument(message),
        IntakeError::Canceled => return Status::cancelled("this run was canceled before it was asked for"),
        IntakeError::NotStored => return Status::unavailable("the cancel could not be stored; ask again"),
        IntakeError::Refused(refusal) => refusal,
    };
    match refusal {
        Refusal::Conflict => Status::already_exists("this run id names another request"),
        Refusal::TenantFull { .. } => Status::resource_exhausted("this tenant has too many runs waiting"),
        Refusal::Full { .. } => Status::resource_exhausted("too many runs are waiting"),
        Refusal::Unavailable => {
            Status::unavailable("the run could not be stored; ask again with the same id")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_the_default() {
        let default = RetryPolicy::new(3);
        assert_eq!(policy(default.clone(), v1::RetryPolicy::default()), default);
        let asked = v1::RetryPolicy {
            maximum_attempts: 7,
            backoff_coefficient: 0.5,
            maximum_interval_ms: 2000,
            ..Default::default()
        };
        let policy = policy(default, asked);
        assert_eq!((policy.attempts, policy.factor), (7, 2.0));
        assert_eq!(policy.delay(9), Duration::from_secs(2));
    }
}
