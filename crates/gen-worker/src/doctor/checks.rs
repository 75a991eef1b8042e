//! What the facts mean.

use std::time::Duration;

use gen_worker_runtime::Machine;
use indicatif::{HumanBytes, HumanDuration};

use super::{
    Check, Level,
    facts::{Clock, Engine, Facts, Faults, Folder, Library, Peer, Token, Worker},
};

/// With fewer descriptors a worker with many connections and files runs out of them: it is the usual soft limit.
const OPEN_FILES: u64 = 1024;

/// With less main memory there is hardly a model that fits.
const MEMORY: u64 = 1 << 30;

/// With less room on a disk a download or a result may not fit.
const ROOM: u64 = 1 << 30;

/// Clocks further apart than that make tokens be refused; it is what verifying them leaves as leeway.
const APART: Duration = Duration::from_secs(30);

/// A token that ends so soon must have somebody who renews it.
const SOON: Duration = Duration::from_secs(600);

/// Everything that was looked at, in the order in which it is mended best.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![settings(facts.worker.as_ref().err()), cozy(facts.cozy.as_deref())];
    checks.extend([memory(&facts.machine), open_files(facts.open_files)]);
    match &facts.worker {
        Ok(worker) => checks.extend(of_worker(worker, &facts.machine)),
        Err(_) => checks.push(driver(&facts.machine, false)),
    }
    checks
}

fn of_worker(worker: &Worker, machine: &Machine) -> Vec<Check> {
    let library = worker.engine.library.as_ref().ok();
    let wants_card = library.is_some_and(|library| library.providers.iter().any(|one| one.is_nvidia));
    let mut checks = vec![driver(machine, wants_card), engine(&worker.engine)];
    checks.extend(library.into_iter().flat_map(providers));
    checks.extend(worker.folders.iter().map(folder));
    checks.extend(schedulers(worker));
    checks.push(hub(worker.hub.as_ref()));
    checks.extend(worker.clock.as_ref().map(clock));
    checks.push(token(&worker.token));
    checks.extend(worker.faults.as_ref().map(faults));
    checks
}

pub(super) fn ok(name: &'static str, seen: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, seen: seen.into(), remedy: None }
}

pub(super) fn warn(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, level: Level::Warn, seen: seen.into(), remedy: Some(remedy.into()) }
}

pub(super) fn fail(name: &'static str, seen: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { level: Level::Fail, ..warn(name, seen, remedy) }
}

/// Not a fault of this machine, as a rule.
fn faults(faults: &Faults) -> Check {
    let Faults { directory, count, last } = faults;
    let directory = directory.display();
    match (count, last) {
        (Err(said), _) => fail(
            "failures",
            format!("the reports in {directory} cannot be read: {said}"),
            "give this user the right to, or ask as the worker's",
        ),
        (Ok(_), None) => ok("failures", "no run has left a report"),
        (Ok(count), Some(Err(said))) => fail(
            "failures",
            format!("{count} reports of runs that failed by a fault; the last cannot be read: {said}"),
            "ask as the worker's user, or remove it",
        ),
        (Ok(count), Some(Ok(last))) => {
            let ago = HumanDuration(last.ago);
            let last =
                format!("the last, {ago} ago: run {} of `{}`: {}", last.run_id, last.function, last.message);
            warn(
                "failures",
                format!("{count} reports of runs that failed by a fault; {last}"),
                format!("read them in {directory}; what is done with may be removed"),
            )
        }
    }
}

fn settings(mistakes: Option<&String>) -> Check {
    match mistakes {
        None => ok("settings", "no mistakes"),
        Some(mistakes) => fail(
            "settings",
            mistakes.lines().collect::<Vec<_>>().join("; "),
            "mend them: docs/configuration.md says what each variable takes; nothing that depends on them was looked at",
        ),
    }
}

fn cozy(mistakes: Option<&[String]>) -> Check {
    match mistakes {
        None => ok("cozy.toml", "none in this folder"),
        Some([]) => ok("cozy.toml", "no mistakes"),
        Some(mistakes) => {
            fail("cozy.toml", mistakes.join("; "), "mend it: `gen-worker check` looks at the whole project")
        }
    }
}

fn memory(machine: &Machine) -> Check {
    let Machine { cpu_cores, memory_bytes, .. } = machine;
    match memory_bytes {
        0 => warn(
            "memory",
            format!("{cpu_cores} cores; the system does not say how much memory there is"),
            "set WORKER_MAX_RAM_GB",
        ),
        bytes if *bytes < MEMORY => warn(
            "memory",
            format!("{cpu_cores} cores, {}", HumanBytes(*bytes)),
            "give the machine or its container more than 1 GiB",
        ),
        bytes => ok("memory", format!("{cpu_cores} cores, {}", HumanBytes(*bytes))),
    }
}

fn open_files(most: Option<u64>) -> Check {
    match most {
        None => ok("open files", "unlimited"),
        Some(most) if most < OPEN_FILES => warn(
            "open files",
            format!("at most {most}"),
            format!("raise the limit to {OPEN_FILES} or more: `ulimit -n`, LimitNOFILE="),
        ),
        Some(most) => ok("open files", format!("at most {most}")),
    }
}

fn driver(machine: &Machine, wants_card: bool) -> Check {
    match &machine.gpu {
        Ok(Some(gpu)) if gpu.count > 0 => {
            let (free, all) = (HumanBytes(gpu.memory_free_bytes), HumanBytes(gpu.memory_bytes));
            let (count, name) = (gpu.count, &gpu.name);
            ok(
                "driver",
                format!(
                    "{count} x {name}, {free} of {all} free, driver {}, CUDA {}",
                    gpu.driver, gpu.cuda_version
                ),
            )
        }
        Ok(Some(gpu)) => no_card(wants_card, format!("driver {} sees no card", gpu.driver)),
        Ok(None) => no_card(wants_card, "no NVIDIA driver is installed".to_owned()),
        Err(said) => {
            let remedy = "reinstall the driver that fits the kernel, or start the container with the host's driver (`--gpus all`)";
            Check {
                level: if wants_card { Level::Fail } else { Level::Warn },
                ..fail("driver", format!("NVIDIA's driver does not answer: {said}"), remedy)
            }
        }
    }
}

fn no_card(is_wanted: bool, seen: String) -> Check {
    match is_wanted {
        true => fail(
            "driver",
            seen,
            "install NVIDIA's driver, start the container with `--gpus all`, or leave `cuda` and `tensorrt` out of WORKER_ORT_PROVIDERS",
        ),
        false => ok("driver", seen),
    }
}

fn engine(engine: &Engine) -> Check {
    match (&engine.library, engine.is_needed) {
        (Ok(Library { path, version, .. }), _) => {
            let version = version.as_deref().unwrap_or("of an unknown version");
            ok("onnxruntime", format!("{version} at {}", path.display()))
        }
        (Err(said), Some(false)) => {
            ok("onnxruntime", format!("not needed by the functions of this worker ({said})"))
        }
        (Err(said), Some(true)) => fail("onnxruntime", said, LIBRARY),
        (Err(said), None) => {
            warn("onnxruntime", said, format!("if functions take models in memory: {LIBRARY}"))
        }
    }
}

const LIBRARY: &str =
    "`gen-worker ort install` puts the pinned one into .ort/lib; ORT_DYLIB_PATH names another";

/// None that works is a fault; one that does not, before one that does, may be meant.
fn providers(library: &Library) -> Vec<Check> {
    let some_works = library.providers.iter().any(|provider| provider.works.is_ok());
    let check = |provider: &super::facts::Provider| match &provider.works {
        Ok(()) => ok("provider", format!("{} runs a model", provider.name)),
        Err(said) => {
            let remedy = match provider.is_nvidia {
                true => {
                    "it takes a worker built with the feature of this name, `gen-worker ort install --cuda`, and CUDA 13 and cuDNN 9 where the loader finds them (LD_LIBRARY_PATH)"
                }
                false => "it takes a worker built with the feature of this name, and a library that has it",
            };
            let level = if some_works { Level::Warn } else { Level::Fail };
            Check { level, ..fail("provider", format!("{} does not work: {said}", provider.name), remedy) }
        }
    };
    library.providers.iter().map(check).collect()
}

fn folder(folder: &Folder) -> Check {
    let Folder { variable, path, writable, free } = folder;
    let path = path.display();
    if let Err(said) = writable {
        return fail(
            "folder",
            format!("{path} ({variable}) cannot be written to: {said}"),
            format!("give the worker's user the right to, or set {variable} to another"),
        );
    }
    match free {
        Some(free) if *free < ROOM => warn(
            "folder",
            format!("{path} ({variable}) has {} left", HumanBytes(*free)),
            format!("make room (`gen-worker cache gc`), or set {variable} to another disk"),
        ),
        Some(free) => ok("folder", format!("{path} ({variable}) has {} left", HumanBytes(*free))),
        None => ok("folder", format!("{path} ({variable}) can be written to")),
    }
}

/// One that is reached is enough; without a setting there may be none yet.
fn schedulers(worker: &Worker) -> Vec<Check> {
    let some_reached = worker.schedulers.iter().any(|peer| peer.reached.is_ok());
    let check = |Peer { address, reached }: &Peer| match reached {
        Ok(()) => ok("scheduler", format!("{address} takes connections")),
        Err(said) if !worker.names_scheduler => warn(
            "scheduler",
            format!("SCHEDULER_ADDR is not set, and {address} is not reached: {said}"),
            "`gen-worker orchestrator` starts one there; else set SCHEDULER_ADDR",
        ),
        Err(said) => {
            let level = if some_reached { Level::Warn } else { Level::Fail };
            let remedy =
                "look at SCHEDULER_ADDR, the network between, and with TLS at USE_TLS and SCHEDULER_TLS_CA";
            Check { level, ..fail("scheduler", format!("{address} is not reached: {said}"), remedy) }
        }
    };
    worker.schedulers.iter().map(check).collect()
}

fn hub(hub: Option<&Peer>) -> Check {
    match hub {
        None => ok("hub", "COZY_HUB_URL is not set"),
        Some(Peer { address, reached: Ok(()) }) => ok("hub", format!("{address} answers")),
        Some(Peer { address, reached: Err(said) }) => fail(
            "hub",
            format!("{address} does not answer: {said}"),
            "look at COZY_HUB_URL and the network between",
        ),
    }
}

fn clock(clock: &Clock) -> Check {
    let Clock { of, apart, is_behind } = clock;
    let way = if *is_behind { "behind" } else { "ahead of" };
    let seen = format!("{} s {way} that of {of}", apart.as_secs());
    match *apart > APART {
        true => fail(
            "clock",
            seen,
            "set it by NTP (`timedatectl set-ntp true`): tokens and signed URLs are refused so far off",
        ),
        false => ok("clock", seen),
    }
}

fn token(token: &Token) -> Check {
    let how = |verified: &bool| {
        if *verified {
            "verified by the scheduler's keys"
        } else {
            "not verified: SCHEDULER_JWKS_URL is not set"
        }
    };
    let renew = "put a new one into AUTH_TOKEN, or into the file that WORKER_JWT_FILE names";
    match token {
        Token::Absent => ok("token", "none is set: schedulers are dialled without"),
        Token::Refused(said) => fail("token", said, renew),
        Token::Usable { left: Some(Duration::ZERO), .. } => fail("token", "it has expired", renew),
        Token::Usable { verified, left: Some(left) } if *left < SOON => warn(
            "token",
            format!("{}, ends in {} s", how(verified), left.as_secs()),
            format!("see that somebody renews it: {renew}"),
        ),
        Token::Usable { verified, left: Some(left) } => {
            ok("token", format!("{}, ends in {} h", how(verified), left.as_secs() / 3600))
        }
        Token::Usable { verified, left: None } => {
            ok("token", format!("{}, does not say that it ends", how(verified)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use gen_worker_runtime::Gpu;

    use super::{
        super::facts::{Fault, Provider},
        *,
    };

    fn library(providers: &[(&str, bool)]) -> Library {
        let providers = providers.iter().map(|(name, works)| Provider {
            name: (*name).to_owned(),
            is_nvidia: *name == "cuda",
            works: works.then_some(()).ok_or_else(|| "no".to_owned()),
        });
        Library { path: "/l.so".into(), version: Some("1.2".to_owned()), providers: providers.collect() }
    }

    fn peer(reached: bool) -> Peer {
        Peer { address: "p:1".to_owned(), reached: reached.then_some(()).ok_or_else(|| "refused".to_owned()) }
    }

    fn worker() -> Worker {
        Worker {
            engine: Engine { is_needed: Some(true), library: Ok(library(&[("cpu", true)])) },
            folders: vec![Folder { variable: "V", path: "/f".into(), writable: Ok(()), free: Some(ROOM) }],
            names_scheduler: true,
            schedulers: vec![peer(true)],
            hub: Some(peer(true)),
            clock: Some(Clock { of: "h".to_owned(), apart: APART, is_behind: true }),
            token: Token::Usable { verified: true, left: Some(SOON) },
            faults: None,
        }
    }

    #[test]
    fn the_last_failure_is_told() {
        let of = |count, last| faults(&Faults { directory: "/s/reports".into(), count, last });
        assert_eq!(of(Ok(0), None).level, Level::Ok);
        let last = Fault {
            run_id: "r1".to_owned(),
            function: "paint".to_owned(),
            message: "InternalError: no paint".to_owned(),
            ago: Duration::from_secs(120),
        };
        let told = of(Ok(2), Some(Ok(last)));
        let seen = "2 reports of runs that failed by a fault; the last, 2 minutes ago: run r1 of `paint`: InternalError: no paint";
        assert_eq!((told.level, told.seen.as_str()), (Level::Warn, seen));
        assert!(told.remedy.unwrap().contains("/s/reports"));
    }

    fn machine(gpu: Result<Option<Gpu>, String>) -> Machine {
        Machine { cpu_cores: 2, memory_bytes: MEMORY, gpu }
    }

    fn facts(worker: Worker) -> Facts {
        Facts {
            machine: machine(Ok(None)),
            open_files: Some(OPEN_FILES),
            cozy: Some(Vec::new()),
            worker: Ok(worker),
        }
    }

    /// Checks what is not well, with its level.
    #[track_caller]
    fn check(facts: &Facts, expected: &[(&str, Level)]) {
        let found = all(facts);
        assert!(found.iter().all(|check| (check.level == Level::Ok) == check.remedy.is_none()), "{found:#?}");
        let found: Vec<_> = found.iter().map(|check| (check.name, check.level)).collect();
        let found: Vec<_> = found.into_iter().filter(|(_, level)| *level > Level::Ok).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_machine_that_is_well_has_nothing_to_mend() {
        check(&facts(worker()), &[]);
    }

    #[test]
    fn mistakes_in_the_settings_hide_what_depends_on_them() {
        let broken = Facts { worker: Err("A is `x`\nB is `y`".to_owned()), cozy: None, ..facts(worker()) };
        check(&broken, &[("settings", Level::Fail)]);
        assert_eq!(all(&broken)[0].seen, "A is `x`; B is `y`");
        check(&Facts { cozy: Some(vec!["m".to_owned()]), ..facts(worker()) }, &[("cozy.toml", Level::Fail)]);
    }

    #[test]
    fn a_small_machine_is_warned_of() {
        let small = Machine { memory_bytes: MEMORY - 1, ..machine(Ok(None)) };
        let facts = Facts { machine: small, open_files: Some(OPEN_FILES - 1), ..facts(worker()) };
        check(&facts, &[("memory", Level::Warn), ("open files", Level::Warn)]);
    }

    #[test]
    fn a_missing_library_matters_to_whoever_needs_it() {
        for (is_needed, expected) in [
            (Some(true), &[("onnxruntime", Level::Fail)][..]),
            (None, &[("onnxruntime", Level::Warn)]),
            (Some(false), &[]),
        ] {
            let engine = Engine { is_needed, library: Err("not found".to_owned()) };
            check(&facts(Worker { engine, ..worker() }), expected);
        }
    }

    #[test]
    fn of_the_providers_one_must_work() {
        let with = |providers: &[(&str, bool)], gpu| {
            let engine = Engine { is_needed: Some(true), library: Ok(library(providers)) };
            Facts { machine: machine(gpu), ..facts(Worker { engine, ..worker() }) }
        };
        let card = Gpu {
            count: 1,
            name: "n".to_owned(),
            memory_bytes: 1,
            memory_free_bytes: 1,
            driver: "d".to_owned(),
            cuda_version: "13.0".to_owned(),
        };
        check(&with(&[("cuda", true)], Ok(Some(card.clone()))), &[]);
        check(&with(&[("cuda", false), ("cpu", true)], Ok(Some(card.clone()))), &[("provider", Level::Warn)]);
        check(&with(&[("cuda", false)], Ok(Some(card.clone()))), &[("provider", Level::Fail)]);
        check(&with(&[("cuda", false)], Ok(None)), &[("driver", Level::Fail), ("provider", Level::Fail)]);
        let none = Gpu { count: 0, ..card };
        check(&with(&[("cpu", true)], Ok(Some(none))), &[]);
        check(&with(&[("cpu", true)], Err("mismatch".to_owned())), &[("driver", Level::Warn)]);
    }

    #[test]
    fn a_folder_must_be_written_to_and_have_room() {
        let with = |writable, free| {
            let folders = vec![Folder { variable: "V", path: PathBuf::from("/f"), writable, free }];
            facts(Worker { folders, ..worker() })
        };
        check(&with(Err("read-only".to_owned()), Some(ROOM)), &[("folder", Level::Fail)]);
        check(&with(Ok(()), Some(ROOM - 1)), &[("folder", Level::Warn)]);
        check(&with(Ok(()), None), &[]);
    }

    #[test]
    fn of_the_schedulers_one_must_be_reached() {
        let with = |schedulers, names_scheduler| facts(Worker { schedulers, names_scheduler, ..worker() });
        check(&with(vec![peer(false), peer(true)], true), &[("scheduler", Level::Warn)]);
        check(&with(vec![peer(false)], true), &[("scheduler", Level::Fail)]);
        check(&with(vec![peer(false)], false), &[("scheduler", Level::Warn)]);
        check(&facts(Worker { hub: Some(peer(false)), ..worker() }), &[("hub", Level::Fail)]);
        check(&facts(Worker { hub: None, clock: None, ..worker() }), &[]);
    }

    #[test]
    fn clock_and_token_must_be_right() {
        let apart = APART + Duration::from_secs(1);
        let clock = Some(Clock { of: "h".to_owned(), apart, is_behind: false });
        check(&facts(Worker { clock, ..worker() }), &[("clock", Level::Fail)]);
        for (token, expected) in [
            (Token::Absent, None),
            (Token::Refused("no".to_owned()), Some(Level::Fail)),
            (Token::Usable { verified: false, left: None }, None),
            (Token::Usable { verified: false, left: Some(Duration::ZERO) }, Some(Level::Fail)),
            (Token::Usable { verified: true, left: Some(SOON / 2) }, Some(Level::Warn)),
        ] {
            let expected: Vec<_> = expected.map(|level| ("token", level)).into_iter().collect();
            check(&facts(Worker { token, ..worker() }), &expected);
        }
    }
}
