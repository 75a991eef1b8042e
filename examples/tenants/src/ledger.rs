//! What the worker has at hand from its first run to its last.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Mutex, PoisonError},
};

use gen_worker::{State, worker_setup, worker_teardown};

use crate::tenant::Tenant;

/// Where it lies between two workers.
const FILE: &str = "ledger.json";

/// How many greetings each tenant has had.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<BTreeMap<String, u64>>);

impl Ledger {
    /// One more, and how many that makes.
    pub(crate) fn count(&self, tenant: &Tenant) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(tenant.0.clone()).or_default();
        *count += 1;
        *count
    }
}

/// Before the first run: goes on where the worker before left off.
#[worker_setup]
fn ledger() -> Result<Ledger, io::Error> {
    match fs::read_to_string(FILE) {
        Ok(text) => Ok(Ledger(Mutex::new(serde_json::from_str(&text)?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(error) => Err(error),
    }
}

/// After the last one.
#[worker_teardown]
fn keep(ledger: State<Ledger>) -> Result<(), io::Error> {
    let counts = ledger.0.0.lock().unwrap_or_else(PoisonError::into_inner);
    fs::write(FILE, serde_json::to_vec(&*counts)?)
}
