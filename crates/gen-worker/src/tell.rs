//! The last word of a command.

use std::{error::Error, io::Write};

use crate::backlog::STDERR;

/// The error and its causes on stderr, a line each, for a person. Behind the lines of the log, if there is one, and for no longer
/// than it takes who reads it a second to take them.
#[expect(clippy::print_stderr, reason = "the last word of a process is for whoever started it")]
pub fn tell(error: &dyn Error) {
    let text = told(error);
    if STDERR.is_written() {
        // It takes everything.
        let _ = (&STDERR).write_all(text.as_bytes());
        STDERR.flush();
    } else {
        eprint!("{text}");
    }
}

fn told(error: &dyn Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!("  because {error}\n"));
        cause = error.source();
    }
    text
}
