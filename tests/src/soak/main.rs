//! A soak: an orchestrator, a hub, a store and three workers, for a set time, while everything fails by a seeded schedule; then
//! counts, and what is wrong. Or a [`fleet`]. `cargo xtask soak` builds and runs both.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it comes to is what it is run for")]

mod audit;
mod callers;
mod calls;
mod fleet;
mod schedule;
mod world;

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use gen_worker::{ConfigErrors, environment};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, interval, sleep_until, timeout},
};

use crate::{
    audit::{Tally, Watched, open_still},
    schedule::{SURVIVOR, schedule},
    world::{Programs, World, seconds},
};

/// How long the last transfers and reconnects may take before what is held is counted.
const CALM: Duration = Duration::from_secs(60);

#[derive(Parser)]
enum Arguments {
    /// Run a soak; leaves 1 behind if anything is wrong
    Run(Soak),
    /// Run a fleet of orchestrators on NATS servers; leaves 1 behind if anything is wrong
    Fleet(fleet::Fleet),
    /// Be an orchestrator of one
    Orchestrator,
}

#[derive(clap::Args)]
struct Soak {
    /// How long faults happen; starting, settling and counting come on top
    #[arg(long)]
    seconds: u64,
    /// What the schedule and the calls are made of
    #[arg(long)]
    seed: u64,
    /// Kill the orchestrator too: its runs must survive it
    #[arg(long)]
    kill_orchestrator: bool,
    #[command(flatten)]
    programs: Programs,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse() {
        Arguments::Orchestrator => orchestrator().await,
        Arguments::Run(asked) => soak(&asked).await,
        Arguments::Fleet(asked) => fleet::run(&asked).await,
    }
}

/// What `gen-worker orchestrator` does, in a process that can be killed or told to stop.
async fn orchestrator() -> ExitCode {
    let mut errors = ConfigErrors::default();
    let env = environment(Path::new(".")).expect("the environment is readable");
    let config = OrchestratorConfig::from_env(&env, &mut errors);
    let config = errors.into_result(config).expect("the settings are right");
    let levels = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr).init();
    let mut told = signal(SignalKind::terminate()).expect("signals can be heard");
    let orchestrator = Orchestrator::start(config).await.expect("the orchestrator starts");
    told.recv().await;
    orchestrator.stop().await;
    ExitCode::SUCCESS
}

async fn soak(asked: &Soak) -> ExitCode {
    let since = Instant::now();
    let world = Arc::new(World::start(&asked.programs).await);
    let able = world.able(asked.kill_orchestrator);
    if !able.fill_disk {
        println!("no disk is filled: no file system can be mounted here (unshare --user --mount)");
    }
    let length = Duration::from_secs(asked.seconds);
    let entries = schedule(asked.seed, length, able);
    println!(
        "seed {}, {} s, {} faults; started in {:.1} s",
        asked.seed,
        asked.seconds,
        entries.len(),
        seconds(since)
    );
    let at_first = world.measured().await;
    let begin = Instant::now();
    let mut sampler = JoinSet::new();
    let seen = Arc::<tokio::sync::Mutex<[Watched; 2]>>::default();
    sampler.spawn(sample(world.clone(), seen.clone()));
    let mut supervisor = JoinSet::new();
    let tended = world.clone();
    supervisor.spawn(async move { tended.tend().await });
    let mut faults = JoinSet::new();
    for entry in entries {
        let world = world.clone();
        faults.spawn(async move {
            sleep_until(begin + entry.at).await;
            world.befall(entry.fault).await;
        });
    }
    let mut tally = callers::ask(&world, asked.seed, begin + length).await;
    faults.join_all().await;
    world.connected().await;
    println!("all answered after {:.1} s", seconds(begin));
    sampler.shutdown().await;
    let [orchestrator, survivor] = &*seen.lock().await;
    tell_memory("orchestrator", orchestrator, &mut tally);
    tell_memory(&format!("worker-{SURVIVOR}"), survivor, &mut tally);
    tell_open(&world, &at_first, &mut tally).await;
    match world.client.list().await {
        Ok(remembered) => tally.compare(&remembered),
        Err(error) => tally.add_wrong([format!("the orchestrator cannot be asked: {error}")]),
    }
    supervisor.shutdown().await;
    tally.add_wrong(world.leave().await);
    let left = world.left_over();
    println!("files left          {}", left.len());
    tally.add_wrong(left.iter().map(|path| format!("{} was left", path.display())));
    println!("uploads left open   {}, by workers that were killed", world.open_uploads().await);
    println!("starts that failed  {}, on a full disk", world.failed_starts());
    println!("{tally}");
    end(asked.seed, Arc::into_inner(world).expect("nobody else has the world"), &tally.wrong())
}

fn end(seed: u64, world: World, wrong: &[String]) -> ExitCode {
    if wrong.is_empty() {
        println!("nothing is wrong");
        return ExitCode::SUCCESS;
    }
    wrong.iter().for_each(|line| eprintln!("wrong: {line}"));
    eprintln!(
        "{} things are wrong with seed {seed}; logs are in {}",
        wrong.len(),
        world.keep_logs().display()
    );
    ExitCode::FAILURE
}

/// Looks twice a second at the memory of those that live as long as the soak.
async fn sample(world: Arc<World>, seen: Arc<tokio::sync::Mutex<[Watched; 2]>>) {
    let mut ticks = interval(Duration::from_millis(500));
    loop {
        ticks.tick().await;
        let measured = world.measured().await;
        let mut seen = seen.lock().await;
        seen[0].see(&measured[0].1);
        seen[1].see(&measured[1 + SURVIVOR].1);
    }
}

fn tell_memory(name: &str, watched: &Watched, tally: &mut Tally) {
    let (before, after) = watched.memory();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("memory              {name}: {:.1} MiB, later {:.1} MiB", mib(before), mib(after));
    if watched.grew() {
        tally.add_wrong([format!("the memory of {name} grew from {before} to {after}")]);
    }
}

/// Looks until nothing is open that should not be: what just ended may be about to close.
async fn tell_open(world: &World, at_first: &[(String, world::Measured)], tally: &mut Tally) {
    let mut open = Vec::new();
    let closed = async {
        loop {
            let now = world.measured().await;
            let of_each = at_first.iter().zip(&now).map(|((name, first), (_, now))| {
                open_still(first, now).into_iter().map(move |line| format!("{name}: {line}"))
            });
            open = of_each.flatten().collect();
            if open.is_empty() {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if let Ok(now) = timeout(CALM, closed).await {
        for (name, measured) in now {
            println!(
                "open                {name}: {} sockets, {} files",
                measured.sockets,
                measured.files.len()
            );
        }
    }
    tally.add_wrong(open);
}
