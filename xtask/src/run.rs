//! What the chores share: where the repository is, how a program is run, how a failure is said.

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// A chore is done, or a sentence says why not.
pub(crate) type Done<T = ()> = Result<T, String>;

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    /// Turns the error into a sentence that begins with `what`.
    fn doing(self, what: impl Display) -> Done<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Done<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// An error and its causes in one line.
pub(crate) fn reason(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository").to_owned()
}

/// A program that runs at the root of the repository.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Runs to the end, echoing the command before and its duration after.
pub(crate) fn run(command: &mut Command) -> Done {
    let line = line_of(command);
    println!("$ {line}");
    let start = Instant::now();
    let status = command.status().doing(&line)?;
    println!("  {:.1} s", start.elapsed().as_secs_f32());
    if status.success() { Ok(()) } else { Err(format!("{line}: {status}")) }
}

/// Runs to the end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Done<String> {
    let line = line_of(command);
    let output = command.output().doing(&line)?;
    if output.status.success() {
        String::from_utf8(output.stdout).doing(line)
    } else {
        Err(format!("{line}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn line_of(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
