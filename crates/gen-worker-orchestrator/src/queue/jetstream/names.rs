//! What things are called on the servers.

use std::fmt::Write;

use gen_worker_core::{Algorithm, Digest};

use crate::{queue::record::Record, run::RunRequest};

/// Longest name of a consumer: a folder of the servers is called so, which has at most 255 bytes.
const LONGEST: usize = 200;

/// A text as one token of a subject, a key or a name: what may not stand there is written as `=` and two digits.
pub(super) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            token.push(char::from(byte));
        } else {
            write!(token, "={byte:02X}").expect("a string takes everything");
        }
    }
    if token.is_empty() { "=".to_owned() } else { token }
}

/// The text that a token stands for; `None`: it is none of ours.
pub(super) fn text(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.strip_suffix('=').unwrap_or(token).bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'=' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Where the large payload of a run lies. Another request of the same id, which is refused, has a place of its own.
pub(super) fn payload(record: &Record) -> String {
    let request = token(record.digest());
    format!("in.{}.{request}", token(&record.run_id))
}

/// Where the large output of a run's attempt lies. What an earlier one says too late has a place of its own.
pub(super) fn output(record: &Record) -> String {
    format!("out.{}.{}", token(&record.run_id), record.attempt)
}

/// The runs of one function of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Lane {
    pub(super) function: String,
    /// Nobody's in particular is a tenant too, the empty one.
    pub(super) tenant: String,
}

impl Lane {
    pub(super) fn of(request: &RunRequest) -> Self {
        Self { function: request.function.clone(), tenant: request.tenant_id.clone().unwrap_or_default() }
    }

    /// What its consumer is called. What would be too long for the servers is told apart by its digest.
    pub(super) fn consumer(&self) -> String {
        let name = format!("{}~{}", token(&self.function), token(&self.tenant));
        if name.len() <= LONGEST {
            name
        } else {
            token(&Digest::of(Algorithm::Sha256, name.as_bytes()).to_string())
        }
    }
}

/// Names with the prefix of one fleet.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: token(prefix) }
    }

    pub(super) fn stream(&self) -> String {
        self.bucket("queue")
    }

    pub(super) fn bucket(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix).replace('=', "_")
    }

    pub(super) fn all_runs(&self) -> String {
        format!("{}.runs.>", self.prefix)
    }

    /// The subject of a lane's runs.
    pub(super) fn runs_of(&self, lane: &Lane) -> String {
        format!("{}.runs.{}.{}", self.prefix, token(&lane.function), token(&lane.tenant))
    }

    pub(super) fn run(&self, request: &RunRequest) -> String {
        self.runs_of(&Lane::of(request))
    }

    /// The lane of a subject of [`runs_of`](Self::runs_of).
    pub(super) fn lane_of(&self, subject: &str) -> Option<Lane> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".runs.")?;
        let (function, tenant) = rest.split_once('.')?;
        Some(Lane { function: text(function)?, tenant: text(tenant)? })
    }

    pub(super) fn everything_said(&self) -> String {
        format!("{}.said.>", self.prefix)
    }

    pub(super) fn said(&self, run_id: &str) -> String {
        format!("{}.said.run.{}", self.prefix, token(run_id))
    }

    /// The run of a subject of [`said`](Self::said).
    pub(super) fn run_said(&self, subject: &str) -> Option<String> {
        text(subject.strip_prefix(&self.prefix)?.strip_prefix(".said.run.")?)
    }

    pub(super) fn adopted(&self) -> String {
        format!("{}.said.adopted", self.prefix)
    }

    pub(super) fn presence(&self) -> String {
        format!("{}.said.presence", self.prefix)
    }

    pub(super) fn interrupt(&self) -> String {
        format!("{}.said.interrupt", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_one_token_and_comes_back() {
        for name in ["", "f", "a.b", "wild*>", "ten ant", "=", "é", "x="] {
            let token = token(name);
            assert!(!token.contains(['.', '*', '>', ' ']) && !token.is_empty(), "{name}: {token}");
            assert_eq!(text(&token).as_deref(), Some(name));
        }
    }

    #[test]
    fn every_lane_has_a_consumer_of_its_own() {
        let lane = |function: &str, tenant: &str| {
            Lane { function: function.to_owned(), tenant: tenant.to_owned() }.consumer()
        };
        let long = "x".repeat(300);
        let names = [lane("f", ""), lane("f", "t"), lane("f~t", ""), lane(&long, "t"), lane(&long, "u")];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        assert!(names.iter().all(|name| name.len() <= LONGEST && !name.contains(['.', '*', '>', ' ', ':'])));
    }

    #[test]
    fn subjects_say_what_they_are_about() {
        let names = Names::new("gw");
        let request = RunRequest { tenant_id: Some("a.b".to_owned()), ..RunRequest::of("f.g") };
        assert_eq!(names.run(&request), "gw.runs.f=2Eg.a=2Eb");
        assert_eq!(names.lane_of(&names.run(&request)), Some(Lane::of(&request)));
        let nobodys = RunRequest::of("f");
        assert_eq!(names.lane_of(&names.run(&nobodys)), Some(Lane::of(&nobodys)));
        assert_eq!(names.run_said(&names.said("r.1")).as_deref(), Some("r.1"));
        assert_eq!(names.run_said(&names.adopted()), None);
    }
}
