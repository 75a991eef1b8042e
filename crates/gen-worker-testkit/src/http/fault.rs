//! How an answer is to fail.

use std::collections::{HashMap, VecDeque};

use axum::http::StatusCode;

/// One way in which an answer fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// This status, without content.
    Status(u16),
    /// The connection ends after this many bytes of the content, though more were promised.
    Truncate(usize),
    /// The byte at this place of the content that is sent has its bits turned over.
    Corrupt(usize),
    /// The whole content, whatever range was asked for.
    IgnoreRange,
    /// Nothing says what digest the content has.
    NoDigest,
}

/// The faults of each path.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    next: HashMap<String, VecDeque<Fault>>,
    always: HashMap<String, Vec<Fault>>,
}

impl Faults {
    /// Each of these befalls one answer, in this order.
    pub(crate) fn once(&mut self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.next.entry(path.to_owned()).or_default().extend(faults);
    }

    /// This befalls every answer.
    pub(crate) fn always(&mut self, path: &str, fault: Fault) {
        self.always.entry(path.to_owned()).or_default().push(fault);
    }

    /// What befalls the next answer.
    pub(crate) fn take(&mut self, path: &str) -> Vec<Fault> {
        let next = self.next.get_mut(path).and_then(VecDeque::pop_front);
        next.into_iter().chain(self.always.get(path).into_iter().flatten().copied()).collect()
    }
}

/// The status that one of these faults asks for.
pub(crate) fn status(faults: &[Fault]) -> Option<StatusCode> {
    faults.iter().find_map(|fault| match fault {
        Fault::Status(code) => Some(StatusCode::from_u16(*code).expect("a status has three digits")),
        _ => None,
    })
}
