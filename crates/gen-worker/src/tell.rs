//! The last word of a command.

use std::error::Error;

/// The error and its causes on stderr, a line each, for a person.
#[expect(clippy::print_stderr, reason = "the last word of a process is for whoever started it")]
pub fn tell(error: &dyn Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because {error}");
        cause = error.source();
    }
}
