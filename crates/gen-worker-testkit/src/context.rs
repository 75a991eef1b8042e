//! A context that keeps what a function says and saves.

use std::{sync::Arc, time::Duration};

use gen_worker_core::{
    ActionContext, CancelReason, Cancellation, Deadline, Event, FunctionName, RunFacts, RunId, RunScope,
    TenantId, UserId,
    ports::SaveRequest,
    testing::{RecordedEvents, RecordedFiles},
};

const VALID: &str = "an id is not empty, has at most 256 bytes and no control character";

/// The facts of a made-up run, and a record of what was done with its context.
#[derive(Debug, Clone)]
pub struct TestContext {
    facts: RunFacts,
    cancellation: Cancellation,
    events: Arc<RecordedEvents>,
    files: Arc<RecordedFiles>,
}

impl Default for TestContext {
    fn default() -> Self {
        Self::new()
    }
}

impl TestContext {
    /// A run `test-run` of function `test`, of nobody, without a deadline.
    pub fn new() -> Self {
        let run_id = RunId::parse("test-run").expect(VALID);
        let scope = RunScope {
            run_id: run_id.clone(),
            tenant_id: None,
            file_base_url: None,
            file_token: None,
            trace: None,
        };
        let facts = RunFacts {
            run_id,
            function: FunctionName::parse("test").expect(VALID),
            attempt: 0,
            user_id: None,
            deadline: None,
            scope,
        };
        Self { facts, cancellation: Cancellation::new(), events: Arc::default(), files: Arc::default() }
    }

    /// The same run under this id.
    ///
    /// # Panics
    /// The text is no id.
    #[must_use]
    pub fn run_id(mut self, run_id: &str) -> Self {
        self.facts.run_id = RunId::parse(run_id).expect(VALID);
        self.facts.scope.run_id = self.facts.run_id.clone();
        self
    }

    /// The same run, of this tenant.
    ///
    /// # Panics
    /// The text is no id.
    #[must_use]
    pub fn tenant(mut self, tenant_id: &str) -> Self {
        self.facts.scope.tenant_id = Some(TenantId::parse(tenant_id).expect(VALID));
        self
    }

    /// The same run, asked for by this user.
    ///
    /// # Panics
    /// The text is no id.
    #[must_use]
    pub fn user(mut self, user_id: &str) -> Self {
        self.facts.user_id = Some(UserId::parse(user_id).expect(VALID));
        self
    }

    /// The same run with this attempt's number; 0: not counted.
    #[must_use]
    pub fn attempt(mut self, attempt: i64) -> Self {
        self.facts.attempt = attempt;
        self
    }

    /// The same run with this much time left. Nobody ends it when the time is over.
    #[must_use]
    pub fn deadline(mut self, after: Duration) -> Self {
        self.facts.deadline = Some(Deadline::after(after));
        self
    }

    /// The context to call the function with. Each call gives one of the same run.
    pub fn context(&self) -> ActionContext {
        let (events, files) = (self.events.clone(), self.files.clone());
        ActionContext::new(self.facts.clone(), self.cancellation.clone(), events, files)
    }

    /// Tells the run to stop.
    pub fn cancel(&self, reason: CancelReason) {
        self.cancellation.cancel(reason);
    }

    /// What the function said, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.all()
    }

    /// The payloads of the events of one type, oldest first.
    pub fn payloads(&self, event_type: &str) -> Vec<serde_json::Value> {
        self.events.payloads(event_type)
    }

    /// What the function saved, oldest first.
    pub fn saved(&self) -> Vec<SaveRequest> {
        self.files.all()
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{OutputBody, WorkerError};

    use super::*;

    async fn paint(ctx: ActionContext) -> Result<(), WorkerError> {
        ctx.save_bytes(&ctx.output_ref("a.png"), "pixels").await?;
        ctx.progress(0.5, None);
        ctx.check_canceled()
    }

    #[tokio::test]
    async fn keeps_what_is_said_and_saved() {
        let test = TestContext::new().run_id("r1").tenant("t").user("u").attempt(2);
        let ctx = test.context();
        assert_eq!((ctx.tenant_id(), ctx.user_id(), ctx.attempt()), (Some("t"), Some("u"), 2));
        paint(ctx).await.unwrap();
        assert_eq!(test.events()[0].run_id.as_ref().unwrap().as_str(), "r1");
        assert_eq!(test.payloads("job.progress")[0]["progress"], 0.5);
        assert_eq!(test.saved()[0].reference, "runs/r1/outputs/a.png");
        assert!(matches!(&test.saved()[0].body, OutputBody::Bytes(bytes) if bytes == "pixels"));
    }

    #[test]
    fn attaches_until_the_function_has_returned() {
        let ctx = TestContext::new().run_id("r1").tenant("t").context();
        let asset = ctx.attach("a.png", b"pixels".to_vec()).unwrap();
        assert_eq!((asset.reference(), asset.size_bytes()), ("runs/r1/outputs/a.png", Some(6)));
        for _ in 1..1024 {
            ctx.attach("b", Vec::new()).unwrap();
        }
        assert!(ctx.attach("c", Vec::new()).is_err());
        assert_eq!(ctx.take_attached().len(), 1024);
        assert!(ctx.attach("d", Vec::new()).is_err() && ctx.take_attached().is_empty());
    }

    #[tokio::test]
    async fn cancels_and_has_a_deadline() {
        let test = TestContext::new().deadline(Duration::from_secs(60));
        assert!(test.context().time_remaining().unwrap() > Duration::from_secs(50));
        test.cancel(CancelReason::User);
        assert!(paint(test.context()).await.is_err());
    }
}
