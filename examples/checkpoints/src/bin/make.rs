//! Writes the checkpoints that the worker serves.

use std::{io, path::PathBuf};

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// How many, of 8 MiB each
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// The folder of models that `dev` serves
    #[arg(long, default_value = "models")]
    models: PathBuf,
}

fn main() -> io::Result<()> {
    let Arguments { count, models } = Arguments::parse();
    checkpoints::make(&models, count)
}
