//! Admission without a runtime.

use std::time::Duration;

use gen_worker_core::{ByteSize, Call, Function, ResourceRequirements, WorkerError};

use super::{book::TOMBSTONE, *};
use crate::ports::Ports;

fn function(name: &'static str, max_concurrency: Option<u32>) -> Function {
    let resources = ResourceRequirements {
        max_concurrency: max_concurrency.and_then(NonZeroU32::new),
        ..Default::default()
    };
    Function::builder::<serde_json::Value>(name, "tests")
        .resources(resources)
        .asynchronous(|_: Call<serde_json::Value>| async { Ok::<_, WorkerError>(()) })
        .unwrap()
}

struct Desk {
    admission: Admission,
    shutdown: Shutdown,
    functions: Vec<Function>,
}

fn desk(max_concurrency: u32, functions: Vec<Function>) -> Desk {
    let limits =
        Limits { max_input: ByteLimit::Max(ByteSize(10)), max_concurrency: NonZeroU32::new(max_concurrency) };
    let (credential, shutdown) = (Ports::default().credential, Shutdown::new(std::time::Duration::ZERO));
    Desk { admission: Admission::new(limits, credential, shutdown.clone()), shutdown, functions }
}

/// A run that only keeps why it was told to stop, first.
#[derive(Default)]
struct Canceled(OnceLock<CancelReason>);

impl Stop for Canceled {
    fn doing(&self) -> Doing {
        Doing { age: std::time::Duration::ZERO, stage: None }
    }

    fn stop(self: Arc<Self>, _permit: PermitId, reason: CancelReason) {
        self.0.get_or_init(|| reason);
    }
}

impl Canceled {
    fn reason(&self) -> Option<CancelReason> {
        self.0.get().copied()
    }
}

impl Desk {
    fn ask(&self, run: &str, attempt: i64, function: &str) -> Result<(Permit, Arc<Canceled>), Refusal> {
        self.ask_with(run, attempt, function, 1, None)
    }

    fn ask_with(
        &self,
        run: &str,
        attempt: i64,
        function: &str,
        payload_bytes: usize,
        deadline: Option<Instant>,
    ) -> Result<(Permit, Arc<Canceled>), Refusal> {
        let (run_id, name) = (RunId::parse(run).unwrap(), FunctionName::parse(function).unwrap());
        let spec = self.functions.iter().map(|f| &**f.spec()).find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| Refusal::Failed(unknown_function(&name)))?;
        let applicant = Applicant { run_id: &run_id, attempt, spec, payload_bytes, deadline, is_room: true };
        let run = Arc::<Canceled>::default();
        self.admission.admit(&applicant, run.clone()).map(|permit| (permit, run))
    }
}

fn refusal<T>(asked: Result<T, Refusal>) -> (&'static str, String, String) {
    match asked {
        Err(Refusal::Failed(failure)) => {
            (failure.kind.as_str(), failure.safe_message.clone(), failure.error_message())
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("admitted"),
    }
}

#[test]
fn refusals_come_in_the_contracts_order_and_words() {
    let desk = desk(2, vec![function("f", Some(1)), function("g", None)]);
    let expect = |asked, kind, safe: &str, message: &str| {
        assert_eq!(refusal(asked), (kind, safe.to_owned(), message.to_owned()));
    };
    expect(
        desk.ask_with("r", 0, "no", 99, None),
        "internal",
        "internal error",
        "Unknown function requested: no",
    );
    let too_large = "Input payload too large: 99 bytes (max 10)";
    expect(desk.ask_with("r", 0, "f", 99, None), "validation", "invalid input", too_large);
    let _f = desk.ask("1", 0, "f").unwrap();
    expect(
        desk.ask("2", 0, "f"),
        "retryable",
        "worker busy",
        "Function concurrency limit reached for f (1).",
    );
    let _g = desk.ask("2", 0, "g").unwrap();
    expect(desk.ask("3", 0, "f"), "retryable", "worker busy", "Worker concurrency limit reached (2).");
    desk.shutdown.drain();
    let draining = "Worker is draining; refusing new tasks";
    expect(desk.ask("3", 0, "f"), "retryable", "worker busy", draining);
}

#[test]
fn no_run_starts_after_drain_begins() {
    let desk = desk(0, vec![function("f", None)]);
    desk.shutdown.drain();
    assert!(desk.ask("r", 0, "f").is_err());
}

#[test]
fn a_zombie_keeps_its_permit() {
    let desk = desk(1, vec![function("f", None)]);
    let (permit, _) = desk.ask("r", 0, "f").unwrap();
    desk.admission.answered(permit.id());
    assert!(desk.admission.active().is_empty());
    assert!(desk.ask("s", 0, "f").is_err());
    assert_eq!(
        (desk.admission.abandon(permit.id()), desk.admission.zombies().by_function.len()),
        (Some(1), 1)
    );
    drop(permit);
    assert_eq!(desk.admission.zombies(), Zombies::default());
    assert!(desk.ask("s", 0, "f").is_ok());
}

#[test]
fn the_same_attempt_is_not_started_twice_and_a_higher_one_supersedes() {
    let desk = desk(0, vec![function("f", None)]);
    let (_old, canceled) = desk.ask("r", 1, "f").unwrap();
    assert!(matches!(desk.ask("r", 1, "f"), Err(Refusal::AlreadyRunning)));
    assert_eq!(canceled.reason(), None);
    let (new, _) = desk.ask("r", 2, "f").unwrap();
    assert_eq!(canceled.reason(), Some(CancelReason::Superseded));
    assert!(matches!(desk.ask("r", 1, "f"), Err(Refusal::Stale)));
    drop(new);
    assert!(desk.ask("r", 2, "f").is_ok());
}

#[test]
fn what_is_running_is_not_refused_when_it_is_sent_again() {
    let desk = desk(1, vec![function("f", None)]);
    let (_running, canceled) = desk.ask("r", 2, "f").unwrap();
    desk.shutdown.drain();
    assert!(matches!(desk.ask("r", 2, "f"), Err(Refusal::AlreadyRunning)));
    assert!(matches!(desk.ask("r", 1, "f"), Err(Refusal::Stale)));
    assert_eq!(refusal(desk.ask("r", 3, "f")).1, "worker busy");
    assert_eq!(canceled.reason(), None, "a new attempt that is refused takes no place");
}

#[test]
fn a_new_attempt_takes_the_place_of_the_old_one() {
    let desk = desk(1, vec![function("f", Some(1))]);
    let (_old, canceled) = desk.ask("r", 1, "f").unwrap();
    let _new = desk.ask("r", 2, "f").unwrap();
    assert_eq!(canceled.reason(), Some(CancelReason::Superseded));
    assert!(desk.ask("other", 1, "f").is_err());
}

#[test]
fn a_cancel_that_overtook_its_run_ends_it_once() {
    let desk = desk(0, vec![function("f", None)]);
    desk.admission.interrupt(&RunId::parse("r").unwrap(), 0);
    assert_eq!(refusal(desk.ask("r", 0, "f")).0, "canceled");
    assert!(desk.ask("r", 0, "f").is_ok());
}

#[test]
fn a_tombstone_lasts_a_minute() {
    let mut book = Book::new(Limits { max_input: ByteLimit::Unlimited, max_concurrency: None });
    let (run_id, f, now) = (RunId::parse("r").unwrap(), function("f", None), Instant::now());
    let run = Applicant {
        run_id: &run_id,
        attempt: 0,
        spec: f.spec(),
        payload_bytes: 0,
        deadline: None,
        is_room: true,
    };
    book.interrupt(&run_id, 0, now);
    assert!(matches!(book.judge(&run, None, now + TOMBSTONE), Ok(None)));
    book.interrupt(&run_id, 0, now);
    assert!(matches!(book.judge(&run, None, now + TOMBSTONE / 2), Err(Refusal::Failed(_))));
}

#[test]
fn a_run_that_was_answered_may_come_again_while_a_thread_of_it_holds_its_place() {
    let desk = desk(2, vec![function("f", None)]);
    let permit = Arc::new(desk.ask("r", 0, "f").unwrap().0);
    let held_by_a_thread = permit.clone();
    permit.settle();
    assert!(desk.admission.active().is_empty());
    let again = Arc::new(desk.ask("r", 0, "f").unwrap().0);
    assert!(desk.ask("s", 0, "f").is_err(), "what goes on keeps the place");
    drop(held_by_a_thread);
    assert_eq!(desk.admission.active().len(), 1, "the old thread's end does not end the new run");
    again.settle();
    assert!(desk.admission.active().is_empty());
}

#[tokio::test(start_paused = true)]
async fn deadlines_are_enforced_in_their_order_and_not_after_the_end() {
    let desk = desk(0, vec![function("f", None)]);
    let since = tokio::time::Instant::now();
    let within = |seconds| Some((since + Duration::from_secs(seconds)).into_std());
    let ask = |run, deadline| desk.ask_with(run, 0, "f", 1, deadline).unwrap();
    let (_late, late) = ask("late", within(20));
    let (_never, never) = ask("never", None);
    let (ended, over) = ask("ended", within(5));
    drop(ended);
    let enforce =
        |seconds| tokio::time::timeout(Duration::from_secs(seconds), desk.admission.enforce_deadlines());
    assert!(enforce(6).await.is_err());
    // Comes while the later one is waited for.
    let (_soon, soon) = ask("soon", within(10));
    assert!(enforce(5).await.is_err());
    assert_eq!([over.reason(), soon.reason(), late.reason()], [None, Some(CancelReason::Deadline), None]);
    assert!(enforce(10).await.is_err());
    assert_eq!([late.reason(), never.reason()], [Some(CancelReason::Deadline), None]);
}

/// A credential that has expired.
struct Expired;

#[async_trait::async_trait]
impl CredentialSource for Expired {
    fn bearer(&self) -> Option<gen_worker_core::Secret<String>> {
        None
    }

    fn usable(&self, _at: SystemTime) -> bool {
        false
    }

    async fn refresh(&self, _token: gen_worker_core::Secret<String>) -> Result<(), JobFailure> {
        Ok(())
    }
}

#[test]
fn no_run_starts_without_a_usable_credential() {
    let mut desk = desk(0, vec![function("f", None)]);
    assert!(desk.admission.is_open());
    let limits = Limits { max_input: ByteLimit::Unlimited, max_concurrency: None };
    desk.admission = Admission::new(limits, Arc::new(Expired), desk.shutdown.clone());
    let expired = ("retryable", "worker busy".to_owned(), "The worker's credential has expired.".to_owned());
    assert_eq!(refusal(desk.ask("r", 0, "f")), expired);
    assert!(!desk.admission.is_open());
    assert_eq!(refusal(desk.ask("r", 0, "no")).0, "internal");
}
