//! `gen-worker cache`: the models on this machine, looked at and mended. Its settings are the worker's.

use std::{path::Path, process::ExitCode, time::SystemTime};

use clap::Subcommand;
use gen_worker::{Cache, CachedModel, WorkerConfig, environment};

use crate::{
    Failure,
    text::{size, span},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// List the models, those that were asked for last first.
    Ls,
    /// Compare every file with its digest; what is damaged is set aside and fetched anew when it is wanted. Exits with 1
    /// if something was.
    Verify,
    /// Remove leftovers of downloads, and models until WORKER_LOCAL_CACHE_GB holds.
    Gc,
}

/// Does it, and says on stdout what there is or was done.
#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
pub(crate) fn run(verb: &Verb) -> Result<ExitCode, Failure> {
    let config = WorkerConfig::from_env(&environment(Path::new("."))?)?.hub;
    let cache = Cache::new(&config.cache_dir, config.cache_limit);
    match verb {
        Verb::Ls => {
            cache.list().iter().for_each(|model| println!("{}", line(model, SystemTime::now())));
            println!("{} on disk in {}", size(cache.used()), config.cache_dir.display());
        }
        Verb::Verify => {
            let mended = cache.verify()?;
            for model in &mended {
                println!("damaged: {} ({})", model.reference, model.damaged.join(", "));
            }
            println!("{} of {} models damaged", mended.len(), mended.len() + cache.list().len());
            return Ok(ExitCode::from(u8::from(!mended.is_empty())));
        }
        Verb::Gc => {
            let freed = cache.gc()?;
            println!("{} models removed, {} freed", freed.models, size(freed.bytes));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(model: &CachedModel, now: SystemTime) -> String {
    let age = model.last_used.and_then(|used| now.duration_since(used).ok());
    let used = match (model.in_use, age) {
        (true, _) => "in use".to_owned(),
        (false, Some(age)) => format!("{} ago", span(age)),
        (false, None) => String::new(),
    };
    let (files, size) = (model.files, size(model.size_bytes));
    format!("{size:>10}  {files:>5} files  {used:>12}  {}", model.reference)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_model_is_a_line() {
        let model = CachedModel {
            reference: "org/m".to_owned(),
            revision: None,
            files: 2,
            size_bytes: 1 << 20,
            last_used: Some(SystemTime::UNIX_EPOCH),
            in_use: false,
        };
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(line(&model, later), "   1.0 MiB      2 files      60 s ago  org/m");
    }
}
