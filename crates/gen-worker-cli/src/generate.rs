//! `gen-worker completions` and `gen-worker man`: what shells and `man` are told of the command, from its own arguments.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use crate::Failure;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArguments {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArguments {
    /// Folder for the pages, one for each command
    #[arg(default_value = ".")]
    folder: PathBuf,
}

/// Prints the script.
pub(crate) fn completions<C: CommandFactory>(arguments: &CompletionsArguments) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut C::command(), "gen-worker", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages, and prints where each is.
pub(crate) fn man<C: CommandFactory>(arguments: &ManArguments) -> Result<ExitCode, Failure> {
    fs::create_dir_all(&arguments.folder)?;
    let mut command = C::command().disable_help_subcommand(true);
    command.build();
    pages(command, &arguments.folder)?;
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what was made is for whoever asked for it")]
fn pages(command: Command, folder: &Path) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages(inner.clone(), folder)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let path = folder.join(format!("{name}.1"));
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    fs::write(&path, page)?;
    println!("{}", path.display());
    Ok(())
}
