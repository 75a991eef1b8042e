//! Calls the worker, and shows which checkpoints are in its memory and how often the one that is wanted is.
#![expect(clippy::print_stdout, reason = "it talks to the person at the terminal")]

use std::error::Error;

use checkpoints::{Served, Tally};
use clap::Parser;
use gen_worker_orchestrator::OrchestratorClient;
use url::Url;

#[derive(Parser)]
struct Arguments {
    /// How many checkpoints there are
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// How many calls to make
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Which checkpoints are picked; the same of the same seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The orchestrator
    #[arg(long, default_value = "http://127.0.0.1:8081")]
    url: Url,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { count, calls, seed, url } = Arguments::parse();
    let client = OrchestratorClient::new(url, None)?;
    let (mut done, mut hits) = (0, 0);
    let show = |served: Served, tally: &Tally| {
        done += 1;
        hits += usize::from(served.hit);
        let found = if served.hit { "was there" } else { "loaded" };
        println!(
            "{done:4}  checkpoint {:2}  {found:9}  {} in memory, {} evicted, {:3} % hits",
            served.checkpoint,
            tally.resident.len(),
            tally.evictions,
            hits * 100 / done,
        );
    };
    checkpoints::send(&client, count, calls, seed, show).await?;
    Ok(())
}
