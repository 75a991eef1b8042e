//! The gen-worker command: projects of workers, an orchestrator to run, runs to ask it for, and the models on this machine.

mod cache;
mod check;
mod client;
mod generate;
mod invoke;
mod new;
mod orchestrator;
mod ort;
mod package;
mod project;
mod runs;
mod text;
mod workers;

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};
use gen_worker::__command::{DoctorArguments, doctor, tell};

#[derive(Parser)]
#[command(
    name = "gen-worker",
    about = "Makes, checks and packs workers; runs an orchestrator, and asks it for runs",
    version
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a project
    New(new::Arguments),
    /// Say what keeps a project from being deployed. Exits with 1 if something does
    Check(check::Arguments),
    /// Pack a project into an archive that an image can be built from
    Package(package::Arguments),
    /// Run an orchestrator until Ctrl-C or SIGTERM. Its settings are variables named ORCHESTRATOR_…
    Orchestrator,
    /// Say what is wrong with this machine, and how to mend it. Exits with 1 if a worker cannot work so
    Doctor(DoctorArguments),
    /// Look at the models on this machine, and mend them
    #[command(subcommand)]
    Cache(cache::Verb),
    /// ONNX Runtime on this machine
    #[command(subcommand)]
    Ort(ort::Verb),
    /// Call a function: what it says goes to stderr, its result to stdout
    Invoke(invoke::Arguments),
    /// List the runs that an orchestrator remembers, or show one
    Runs(runs::Arguments),
    /// Ask a run to stop
    Cancel(runs::CancelArguments),
    /// List the workers that are connected to an orchestrator
    Workers(workers::Arguments),
    /// Print what a shell needs to complete this command
    Completions(generate::CompletionsArguments),
    /// Write the manual's pages
    Man(generate::ManArguments),
}

/// What went wrong before there was a result.
type Failure = Box<dyn Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.verb {
        Verb::New(arguments) => new::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Package(arguments) => package::run(&arguments),
        Verb::Orchestrator => orchestrator::run().await.map(|()| ExitCode::SUCCESS),
        Verb::Doctor(arguments) => Ok(ExitCode::from(u8::from(!doctor(&arguments, None).await))),
        Verb::Cache(verb) => cache::run(&verb),
        Verb::Ort(verb) => ort::run(&verb),
        Verb::Invoke(arguments) => invoke::run(arguments).await,
        Verb::Runs(arguments) => runs::run(arguments).await,
        Verb::Cancel(arguments) => runs::cancel(arguments).await,
        Verb::Workers(arguments) => workers::run(arguments).await,
        Verb::Completions(arguments) => generate::completions::<Arguments>(&arguments),
        Verb::Man(arguments) => generate::man::<Arguments>(&arguments),
    };
    done.unwrap_or_else(|failure| {
        tell(&*failure);
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command of a page's shell fences is one that there is.
    #[test]
    fn what_the_pages_tell_people_to_type_is_understood() {
        let pages = [
            include_str!("../../../README.md"),
            include_str!("../../../docs/cli.md"),
            include_str!("../../../docs/operations.md"),
        ];
        let fences = pages.into_iter().flat_map(|page| page.split("```sh").skip(1));
        let lines = fences.flat_map(|fence| fence.split("```").next().unwrap_or_default().lines());
        let mut understood = 0;
        for line in lines.filter(|line| line.starts_with("gen-worker ")) {
            let typed = line.split(" #").next().unwrap_or_default().split_whitespace();
            Arguments::try_parse_from(typed).unwrap_or_else(|error| panic!("{line}: {error}"));
            understood += 1;
        }
        assert!(understood > 5, "{understood} commands");
    }
}
