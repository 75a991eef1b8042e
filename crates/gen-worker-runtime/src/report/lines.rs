//! The last lines of the log, for the reports of runs that fail.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::clipped;

/// Bytes of lines that are kept: some hundred lines.
const KEPT_BYTES: usize = 128 << 10;

/// Longest line that a report quotes, in bytes; the rest of a longer one is cut off.
const MAX_LINE: usize = 2 << 10;

/// Most lines that a report has.
const MAX_LINES: usize = 16;

/// There is one log for each process.
pub(crate) static RECENT: Recent =
    Recent { wanted: AtomicBool::new(false), lines: Mutex::new(Lines { kept: VecDeque::new(), bytes: 0 }) };

/// Shows a line of the log to the reports of runs that fail, which quote the last ones about the run. Costs nothing unless
/// there are such reports.
pub fn keep_line(line: &[u8]) {
    RECENT.take(line);
}

pub(crate) struct Recent {
    wanted: AtomicBool,
    lines: Mutex<Lines>,
}

struct Lines {
    kept: VecDeque<String>,
    bytes: usize,
}

impl Recent {
    /// From now on.
    pub(super) fn keep(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    fn take(&self, line: &[u8]) {
        if self.wanted.load(Ordering::Relaxed) {
            let line = String::from_utf8_lossy(line).trim_end().to_owned();
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    /// The last lines that name the run, oldest first.
    pub(super) fn about(&self, run_id: &str) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).about(run_id)
    }
}

impl Lines {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.kept.push_back(line);
        while self.bytes > KEPT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }

    fn about(&self, run_id: &str) -> Vec<String> {
        // In both forms of the log a text stands between quotation marks.
        let name = format!("{run_id:?}");
        let lines = self.kept.iter().rev().filter(|line| line.contains(&name)).take(MAX_LINES);
        let mut lines: Vec<_> = lines.map(|line| clipped(line.clone(), MAX_LINE)).collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_the_run_are_quoted_and_no_others() {
        let mut lines = Lines { kept: VecDeque::new(), bytes: 0 };
        for number in 0..MAX_LINES + 2 {
            lines.push(format!(r#"{{"run_id":"r1","n":{number}}}"#));
            lines.push(r#"job{run_id="r11"}: another"#.to_owned());
        }
        let about = lines.about("r1");
        assert_eq!(about.len(), MAX_LINES);
        assert!(about.iter().all(|line| line.contains(r#""r1""#)), "{about:?}");
        assert!(about[0].contains(":2}") && about[MAX_LINES - 1].contains(":17}"), "{about:?}");
    }

    #[test]
    fn a_long_line_is_found_by_what_stands_at_its_end_and_quoted_in_part() {
        let mut lines = Lines { kept: VecDeque::new(), bytes: 0 };
        lines.push(format!("{} {:?}", "x".repeat(2 * MAX_LINE), "r1"));
        assert_eq!(lines.about("r1"), ["x".repeat(MAX_LINE)]);
        lines.push("x".repeat(KEPT_BYTES + 1));
        assert_eq!((lines.kept.len(), lines.bytes), (0, 0));
    }

    #[test]
    fn old_lines_go_when_there_are_too_many() {
        let mut lines = Lines { kept: VecDeque::new(), bytes: 0 };
        let line = |run: usize| format!("{run:?} {}", "x".repeat(MAX_LINE - 8));
        (0..200).for_each(|run| lines.push(line(run)));
        assert!(lines.bytes <= KEPT_BYTES && lines.kept.len() < 70, "{} lines", lines.kept.len());
        assert_eq!(lines.bytes, lines.kept.iter().map(String::len).sum::<usize>());
        assert!(lines.kept.back().is_some_and(|last| last.starts_with("199 ")));
    }
}
