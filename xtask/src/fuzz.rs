//! `fuzz`: each target of fuzz/ for a while, from its corpus on.

use std::fs;

use crate::prebuilt::FUZZ;
use crate::run::{self, Doing, Done, command, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this one; unset, all
    target: Option<String>,
}

pub(crate) fn run(args: &Args) -> Done {
    let program = FUZZ.program()?.display().to_string();
    let targets = match &args.target {
        Some(target) => vec![target.clone()],
        None => targets()?,
    };
    for target in targets {
        // What is found on the way stays out of the repository; what is worth keeping is put into the corpus by hand.
        let found = root().join("target/fuzz").join(&target);
        fs::create_dir_all(&found).doing(found.display())?;
        let mut fuzz = command(&program, &["fuzz", "run", &target]);
        fuzz.arg(&found).arg(format!("fuzz/corpus/{target}")).arg("--");
        fuzz.arg(format!("-max_total_time={}", args.seconds)).arg("-print_final_stats=1");
        // cargo-fuzz asks for a sanitizer by an option that stable compilers keep to themselves.
        run::run(fuzz.env("RUSTC_BOOTSTRAP", "1"))?;
    }
    Ok(())
}

/// One for each file in fuzz/fuzz_targets.
fn targets() -> Done<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).doing(folder.display())?;
    let names = entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}
