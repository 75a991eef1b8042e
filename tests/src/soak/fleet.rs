//! A fleet under faults: three NATS servers, three orchestrators, eight workers, and a number of runs, each of which must
//! end exactly once whatever is killed or cut off meanwhile.

mod callers;
mod schedule;
mod world;

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use self::{
    callers::{Counts, ask, compare},
    schedule::{Entry, schedule},
    world::{Programs, World},
};
use crate::world::seconds;

#[derive(clap::Args)]
pub(crate) struct Fleet {
    /// How many runs are asked for
    #[arg(long)]
    runs: u64,
    /// How many faults happen meanwhile
    #[arg(long)]
    faults: u64,
    /// How long it may all take
    #[arg(long)]
    seconds: u64,
    /// What the schedule and the calls are made of
    #[arg(long)]
    seed: u64,
    /// Let networks fail too: between the servers, and between orchestrators and servers
    #[arg(long)]
    partition: bool,
    #[command(flatten)]
    programs: Programs,
}

pub(crate) async fn run(asked: &Fleet) -> ExitCode {
    let since = Instant::now();
    let world = match World::start(&asked.programs, asked.partition).await {
        Ok(world) => Arc::new(world),
        Err(wrong) => {
            eprintln!("wrong: {wrong}");
            return ExitCode::FAILURE;
        }
    };
    let lanes = schedule(asked.seed, asked.runs, asked.faults, asked.partition);
    let faults: usize = lanes.iter().map(Vec::len).sum();
    println!("seed {}, {} runs, {faults} faults; started in {:.1} s", asked.seed, asked.runs, seconds(since));
    let all = timeout(Duration::from_secs(asked.seconds), settle(&world, asked, lanes));
    let wrong = match all.await {
        Ok(wrong) => wrong,
        Err(_) => vec![format!("it had not ended after {} s", asked.seconds)],
    };
    if wrong.is_empty() {
        println!("nothing is wrong");
        return ExitCode::SUCCESS;
    }
    wrong.iter().for_each(|line| eprintln!("wrong: {line}"));
    let logs = Arc::into_inner(world).map(|world| world.keep_logs().display().to_string());
    let logs = logs.unwrap_or_default();
    eprintln!("{} things are wrong with seed {}; logs are in {logs}", wrong.len(), asked.seed);
    ExitCode::FAILURE
}

/// Asks for all runs while the schedule goes on, and says what is wrong.
async fn settle(world: &Arc<World>, asked: &Fleet, lanes: [Vec<Entry>; 2]) -> Vec<String> {
    let begin = Instant::now();
    let (ended, progress) = watch::channel(0);
    let mut befalling = JoinSet::new();
    for lane in lanes {
        befalling.spawn(befall(world.clone(), lane, progress.clone()));
    }
    let mut counts = ask(world, asked.seed, asked.runs, ended).await;
    let took = begin.elapsed().as_secs_f64();
    counts.wrong.extend(befalling.join_all().await.concat());
    counts.wrong.extend(world.at_rest().await.err());
    let changed = compare(world, &mut counts).await;
    counts.wrong.extend(world.leave().await);
    tell(&counts, changed, took);
    if counts.accepted != asked.runs || counts.settled != counts.accepted {
        let line = format!("{} accepted and {} settled of {}", counts.accepted, counts.settled, asked.runs);
        counts.wrong.push(line);
    }
    counts.wrong
}

/// Lets what is on the list happen, as the runs go on, and says what is wrong.
async fn befall(world: Arc<World>, lane: Vec<Entry>, mut progress: watch::Receiver<u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    for Entry { begins, ends, fault } in lane {
        let _ = progress.wait_for(|ended| *ended >= begins).await;
        println!("{:>6} runs on     {fault:?}", *progress.borrow());
        wrong.extend(world.befall(fault).await.err());
        let _ = progress.wait_for(|ended| *ended >= ends).await;
        world.mend(fault).await;
        println!("{:>6} runs on     mended: {fault:?}", *progress.borrow());
    }
    wrong
}

fn tell(counts: &Counts, changed: u64, took: f64) {
    print!("{counts}");
    println!("settled twice       {changed}");
    println!("stuck               {}", counts.accepted - counts.settled);
    println!("time                {took:.1} s, {:.0} runs a second", counts.settled as f64 / took);
}
