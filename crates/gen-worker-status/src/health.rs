//! Whether a worker lives, is ready and has started, and why not. Pure.

use std::time::Duration;

use gen_worker_core::ports::Condition;
use serde::Serialize;

/// A control loop that has not turned for so long hangs: it turns once a second.
pub(crate) const HANGS: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Whether only the end of the process can help it.
    Live,
    /// Whether a run that came now would be taken.
    Ready,
    /// Whether it has got as far as a scheduler.
    Started,
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) ok: bool,
    /// Empty if it is.
    pub(crate) why: Vec<String>,
}

pub(crate) fn judge(probe: Probe, condition: &Condition) -> Verdict {
    let why = match probe {
        Probe::Live => hangs(condition).into_iter().collect(),
        Probe::Ready => unready(condition),
        Probe::Started if condition.was_connected => Vec::new(),
        Probe::Started => vec!["no scheduler has answered yet".to_owned()],
    };
    Verdict { ok: why.is_empty(), why }
}

fn hangs(condition: &Condition) -> Option<String> {
    let ago = condition.turned_ago;
    (ago > HANGS).then(|| format!("the control loop last turned {:.1} s ago", ago.as_secs_f64()))
}

fn unready(condition: &Condition) -> Vec<String> {
    let Condition { is_connected, closed, available, loading, .. } = condition;
    let mut why: Vec<String> = hangs(condition).into_iter().collect();
    if !is_connected {
        why.push("not connected to a scheduler".to_owned());
    }
    why.extend(closed.map(str::to_owned));
    if *available == 0 && closed.is_none() {
        why.push(match loading.is_empty() {
            true => "no function has a place left".to_owned(),
            false => format!("no function is available; loading: {}", loading.join(", ")),
        });
    }
    why
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Condition {
        Condition {
            turned_ago: Duration::ZERO,
            was_connected: true,
            is_connected: true,
            is_leaving: false,
            closed: None,
            available: 1,
            loading: Vec::new(),
        }
    }

    #[track_caller]
    fn check(probe: Probe, condition: Condition, expected: &[&str]) {
        let verdict = judge(probe, &condition);
        assert_eq!(
            (verdict.why.as_slice(), verdict.ok),
            (&expected.iter().map(ToString::to_string).collect::<Vec<_>>()[..], expected.is_empty())
        );
    }

    #[test]
    fn a_worker_that_works_is_all_three() {
        for probe in [Probe::Live, Probe::Ready, Probe::Started] {
            check(probe, well(), &[]);
        }
    }

    #[test]
    fn a_worker_lives_while_its_control_loop_turns() {
        check(Probe::Live, Condition { turned_ago: HANGS, is_connected: false, ..well() }, &[]);
        let hangs = Condition { turned_ago: Duration::from_millis(5100), ..well() };
        check(Probe::Live, hangs.clone(), &["the control loop last turned 5.1 s ago"]);
        check(Probe::Ready, hangs, &["the control loop last turned 5.1 s ago"]);
    }

    #[test]
    fn a_worker_that_is_not_ready_says_every_reason() {
        let away = Condition { is_connected: false, closed: Some("draining"), available: 0, ..well() };
        check(Probe::Ready, away, &["not connected to a scheduler", "draining"]);
        let loading = Condition { available: 0, loading: vec!["a".into(), "b".into()], ..well() };
        check(Probe::Ready, loading, &["no function is available; loading: a, b"]);
        check(Probe::Ready, Condition { available: 0, ..well() }, &["no function has a place left"]);
    }

    #[test]
    fn a_worker_has_started_once_it_was_connected() {
        check(Probe::Started, Condition { is_connected: false, ..well() }, &[]);
        check(
            Probe::Started,
            Condition { was_connected: false, ..well() },
            &["no scheduler has answered yet"],
        );
    }
}
