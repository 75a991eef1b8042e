//! Admission without a runtime.

use gen_worker_core::{ByteSize, Call, Function, ResourceRequirements, WorkerError};

use super::*;
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

impl Desk {
    fn ask(&self, run: &str, attempt: i64, function: &str) -> Result<(Permit, Cancellation), Refusal> {
        self.ask_with(run, attempt, function, 1)
    }

    fn ask_with(
        &self,
        run: &str,
        attempt: i64,
        function: &str,
        payload_bytes: usize,
    ) -> Result<(Permit, Cancellation), Refusal> {
        let (run_id, name) = (RunId::parse(run).unwrap(), FunctionName::parse(function).unwrap());
        let spec = self.functions.iter().map(|f| &**f.spec()).find(|spec| spec.name == name);
        let cancellation = Cancellation::new();
        let applicant = Applicant { run_id: &run_id, attempt, function: &name, spec, payload_bytes };
        self.admission.admit(&applicant, &cancellation).map(|permit| (permit, cancellation))
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
    expect(desk.ask_with("r", 0, "no", 99), "internal", "internal error", "Unknown function requested: no");
    let too_large = "Input payload too large: 99 bytes (max 10)";
    expect(desk.ask_with("r", 0, "f", 99), "validation", "invalid input", too_large);
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
    permit.answered();
    assert!(desk.admission.active().is_empty());
    assert!(desk.ask("s", 0, "f").is_err());
    assert_eq!((permit.abandoned(), desk.admission.zombies().by_function.len()), (1, 1));
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
        function: &f.spec().name,
        spec: Some(f.spec()),
        payload_bytes: 0,
    };
    book.interrupt(&run_id, 0, now);
    assert!(matches!(book.judge(&run, None, now + TOMBSTONE), Ok(())));
    book.interrupt(&run_id, 0, now);
    assert!(matches!(book.judge(&run, None, now + TOMBSTONE / 2), Err(Refusal::Failed(_))));
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
