//! `doctor`: what is wrong with this machine, and how to mend it. `facts` is what was seen, `checks` what it means; only `gather`
//! looks at anything.

mod checks;
mod facts;
mod gather;
mod snapshot;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use gen_worker_core::Function;
use serde::Serialize;
use serde_json::json;

use crate::app::AppError;

/// How to say what was found.
#[derive(Debug, clap::Args)]
pub struct DoctorArguments {
    /// Say it for programs
    #[arg(long)]
    json: bool,
    /// Instead of this machine, look at the last snapshot (SIGUSR1) in this log of a worker, `-` being standard input
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// A word for programs.
    name: &'static str,
    level: Level,
    /// What was found.
    seen: String,
    /// What helps; `None`: nothing has to.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    /// It works, or may be meant.
    Warn,
    /// A worker cannot work so.
    Fail,
}

/// Looks at everything, or at a snapshot, and prints what it is. Whether a worker can work here. `functions` are those of this
/// binary; `None`: it is no worker, and may be asked on behalf of any.
pub async fn doctor(arguments: &DoctorArguments, functions: Option<&[Function]>) -> bool {
    let checks = match &arguments.snapshot {
        Some(log) => snapshot::read(log),
        None => checks::all(&gather::facts(Path::new("."), functions).await),
    };
    show(&checks, arguments.json);
    is_well(&checks)
}

/// The verb of a worker's binary.
pub(crate) fn run(arguments: &DoctorArguments, functions: &[Function]) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(crate::assemble::AssembleError::Threads)?;
    match runtime.block_on(doctor(arguments, Some(functions))) {
        true => Ok(()),
        false => Err(AppError::Ill),
    }
}

fn is_well(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.level < Level::Fail)
}

#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
fn show(checks: &[Check], for_programs: bool) {
    match for_programs {
        true => println!("{:#}", json!({"ok": is_well(checks), "checks": checks})),
        false => checks.iter().for_each(|check| println!("{check}")),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:<4}  {:<12}  {}", self.name, self.seen)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "\n      {:<12}  -> {remedy}", ""))
    }
}
