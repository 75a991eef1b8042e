//! Message → [`Command`].

use std::time::Duration;

use gen_worker_core::{FunctionName, RunId, RunScope, Secret, TenantId, TraceContext, UserId};
use url::Url;

use super::v1::{self, worker_scheduler_message::Msg};
use crate::command::{Command, ModelConfig, Opening, RunRequest};

/// Understands a message. Never fails: what cannot be understood is ignored, or refused as a run's result.
pub(crate) fn command(message: v1::WorkerSchedulerMessage, default_tenant: Option<&TenantId>) -> Command {
    let Some(message) = message.msg else {
        return Command::Ignore { what: "a message of an unknown kind" };
    };
    match message {
        Msg::RunRequest(request) => run(request, default_tenant),
        Msg::InterruptRunCmd(interrupt) => match RunId::parse(&interrupt.run_id) {
            Ok(run_id) => Command::Interrupt { run_id, attempt: interrupt.attempt },
            Err(_) => Command::Ignore { what: "an interrupt without a run id" },
        },
        Msg::LoadModelCmd(load) => Command::LoadModel(load.model_id),
        Msg::UnloadModelCmd(unload) => Command::UnloadModel(unload.model_id),
        Msg::DeploymentModelConfig(config) => Command::Configure(ModelConfig {
            ids_by_key: config.model_id_by_key,
            allowed: config.supported_model_ids,
        }),
        Msg::SchedulerHello(hello) => Command::Hello { features: hello.features },
        Msg::ResultAck(ack) => match RunId::parse(&ack.run_id) {
            Ok(run_id) => Command::Acknowledge { run_id, attempt: ack.attempt },
            Err(_) => Command::Ignore { what: "an acknowledgement without a run id" },
        },
        Msg::DrainCmd(drain) => {
            Command::Drain { deadline: positive_ms(drain.deadline_ms), reason: drain.reason }
        }
        Msg::RealtimeOpenCmd(open) if !open.session_id.is_empty() && !open.function_name.is_empty() => {
            open_realtime(open, default_tenant)
        }
        Msg::RealtimeOpenCmd(_) => Command::Ignore { what: "a realtime session without an id or a function" },
        Msg::RealtimeFrame(frame) => match RunId::parse(&frame.session_id) {
            Ok(session_id) => Command::RealtimeFrame { session_id, data: frame.data, is_text: frame.is_text },
            Err(_) => Command::Ignore { what: "a frame without a usable session" },
        },
        Msg::RealtimeCloseCmd(close) => match RunId::parse(&close.session_id) {
            Ok(session_id) => Command::CloseRealtime { session_id },
            Err(_) => Command::Ignore { what: "a close without a usable session" },
        },
        Msg::TokenRefresh(refresh) if refresh.token.trim().is_empty() => {
            Command::Ignore { what: "a token refresh without a token" }
        }
        // When it expires, the token says itself.
        Msg::TokenRefresh(refresh) => Command::RefreshToken(Secret::new(refresh.token)),
        Msg::WorkerEvent(_) => Command::Ignore { what: "an event" },
        Msg::WorkerRegistration(_)
        | Msg::RunResult(_)
        | Msg::SpawnTasks(_)
        | Msg::LoadModelResult(_)
        | Msg::UnloadModelResult(_)
        | Msg::RunAccepted(_) => Command::Ignore { what: "a message that only workers send" },
    }
}

fn run(request: v1::TaskExecutionRequest, default_tenant: Option<&TenantId>) -> Command {
    let Ok(run_id) = RunId::parse(&request.run_id) else {
        return Command::Ignore { what: "a run without a usable id" };
    };
    let attempt = request.attempt;
    match understand(&run_id, request, default_tenant) {
        Ok(run) => Command::Run(Box::new(run)),
        Err(problem) => Command::RefuseRun { run_id, attempt, problem },
    }
}

fn open_realtime(open: v1::RealtimeOpenCommand, default_tenant: Option<&TenantId>) -> Command {
    let (session_id, models) = (open.session_id, open.required_models);
    let request = v1::TaskExecutionRequest {
        run_id: session_id.clone(),
        function_name: open.function_name,
        tenant_id: open.tenant_id,
        user_id: open.user_id,
        timeout_ms: open.timeout_ms,
        file_base_url: open.file_base_url,
        file_token: open.file_token,
        traceparent: open.traceparent,
        tracestate: open.tracestate,
        ..Default::default()
    };
    let run = RunId::parse(&session_id).map_err(|e| e.to_string());
    match run.and_then(|run_id| understand(&run_id, request, default_tenant)) {
        Ok(run) => Command::OpenRealtime(Box::new(Opening { run, models })),
        Err(problem) => Command::RefuseRealtime { session_id, problem },
    }
}

fn understand(
    run_id: &RunId,
    request: v1::TaskExecutionRequest,
    default_tenant: Option<&TenantId>,
) -> Result<RunRequest, String> {
    let file_base_url = match request.file_base_url.trim() {
        "" => None,
        text => Some(Url::parse(text).map_err(|_| "file_base_url is no URL".to_owned())?),
    };
    let scope = RunScope {
        run_id: run_id.clone(),
        tenant_id: optional(&request.tenant_id, TenantId::parse)?.or_else(|| default_tenant.cloned()),
        file_base_url,
        file_token: Some(request.file_token).filter(|token| !token.is_empty()).map(Secret::new),
        trace: TraceContext::parse(&request.traceparent, &request.tracestate),
    };
    Ok(RunRequest {
        run_id: run_id.clone(),
        attempt: request.attempt,
        function: FunctionName::parse(&request.function_name).map_err(|e| e.to_string())?,
        payload: request.input_payload,
        timeout: positive_ms(request.timeout_ms),
        user_id: optional(&request.user_id, UserId::parse)?,
        scope,
    })
}

fn optional<T, E: ToString>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some).map_err(|e| e.to_string()) }
}

/// Zero and negative milliseconds mean "no limit".
fn positive_ms(ms: i64) -> Option<Duration> {
    u64::try_from(ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis)
}

/// Whether these bytes are a message that means something. Whatever they are, they become a command or are ignored, and a command
/// shows no token.
///
/// # Panics
/// One does.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(bytes: &[u8]) -> bool {
    use prost::Message as _;

    let Ok(message) = v1::WorkerSchedulerMessage::decode(bytes) else { return false };
    let _ = super::kept::kept(&message.clone().into());
    let command = command(message, None);
    let shown = format!("{command:?}");
    if let Command::RefreshToken(token) = &command {
        assert!(token.expose().len() < 16 || !shown.contains(token.expose()), "{shown}");
    }
    !matches!(command, Command::Ignore { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/message");
        let messages =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let understood = messages.filter(|message| check(message)).count();
        assert!(understood > 5, "{understood}");
    }

    fn request(run_id: &str, tenant_id: &str) -> v1::WorkerSchedulerMessage {
        let request = v1::TaskExecutionRequest {
            run_id: run_id.into(),
            function_name: "f".into(),
            tenant_id: tenant_id.into(),
            timeout_ms: -5,
            ..Default::default()
        };
        v1::WorkerSchedulerMessage { msg: Some(Msg::RunRequest(request)) }
    }

    #[test]
    fn what_is_empty_is_absent() {
        let default = TenantId::parse("home").unwrap();
        let Command::Run(run) = command(request("r", ""), Some(&default)) else { panic!("a run") };
        assert_eq!(run.scope.tenant_id, Some(default));
        assert!(run.timeout.is_none() && run.user_id.is_none() && run.scope.file_token.is_none());
    }

    #[test]
    fn what_cannot_be_understood_is_answered_or_ignored() {
        assert!(matches!(command(request("", "t"), None), Command::Ignore { .. }));
        assert!(matches!(command(request("r", "a\nb"), None), Command::RefuseRun { .. }));
        assert!(matches!(command(v1::WorkerSchedulerMessage { msg: None }, None), Command::Ignore { .. }));
    }

    #[test]
    fn a_token_is_shown_by_no_command() {
        let refresh = |token: &str| {
            let refresh = v1::TokenRefresh { token: token.into(), expires_at_unix_ms: 1 };
            command(v1::WorkerSchedulerMessage { msg: Some(Msg::TokenRefresh(refresh)) }, None)
        };
        let command = refresh("hunter2");
        assert!(matches!(&command, Command::RefreshToken(token) if token.expose() == "hunter2"));
        assert!(!format!("{command:?}").contains("hunter2"));
        assert!(matches!(refresh(" "), Command::Ignore { .. }));
    }
}
