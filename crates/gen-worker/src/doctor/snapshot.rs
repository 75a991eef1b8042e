//! What is stuck in a worker, by the snapshot that it wrote to its log when SIGUSR1 asked.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    time::Duration,
};

use indicatif::{HumanBytes, HumanDuration};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Check,
    checks::{fail, ok, warn},
};

/// Longest part of a line that is read at once; what is longer is no snapshot, which names at most so many runs.
const LINE_BYTES: u64 = 16 << 20;

/// A result that is held for longer than that is not just on its way.
const HELD: Duration = Duration::from_secs(10);

/// A reconnect that was sooner is worth a look.
const RECENT: Duration = Duration::from_secs(60);

/// Runs and models that are named; of the rest there is a count.
const NAMED: usize = 5;

/// A snapshot as it stands in the log. What a worker of another version does not say is empty.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Snapshot {
    timestamp: String,
    phase: String,
    is_connected: bool,
    closed: Option<String>,
    in_flight: u64,
    permits: u64,
    zombies: u64,
    runs: String,
    runs_left_out: u64,
    functions_loading: String,
    leases: String,
    outbox_results: u64,
    outbox_bytes: u64,
    outbox_unwritten: u64,
    outbox_oldest_ms: Option<u64>,
    /// Whether the scheduler says when it has a result for good.
    outbox_acknowledged: Option<bool>,
    result_retention_ms: Option<u64>,
    reconnects: String,
}

/// The last snapshot of a log.
struct Found {
    /// Where it stands; the first is 1.
    line: u64,
    /// An error: why it cannot be read.
    snapshot: serde_json::Result<Snapshot>,
}

#[derive(Deserialize)]
struct Run {
    run_id: String,
    function: String,
    age_ms: u64,
    stage: String,
    state: String,
    overdue_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Lease {
    model: String,
    held_by: Vec<String>,
    waiting: Vec<String>,
}

#[derive(Deserialize)]
struct Reconnect {
    ago_ms: u64,
    cause: String,
}

/// What the last snapshot means of a log with any lines around it; `-`: of standard input.
pub(super) fn read(path: &Path) -> Vec<Check> {
    let log: io::Result<Box<dyn BufRead>> = match path.to_str() {
        Some("-") => Ok(Box::new(io::stdin().lock())),
        _ => File::open(path).map(|file| Box::new(BufReader::new(file)) as _),
    };
    let last = log.and_then(last);
    let seen = |seen: String| {
        let remedy =
            "`kill -USR1` the worker, with WORKER_LOG_FORMAT=json and `info` in RUST_LOG, and give the log";
        vec![fail("snapshot", seen, remedy)]
    };
    match last {
        Ok(Some(Found { line, snapshot: Ok(snapshot) })) => checks(line, &snapshot),
        Ok(Some(Found { line, snapshot: Err(error) })) => {
            seen(format!("the one in line {line} of {} cannot be read: {error}", path.display()))
        }
        Ok(None) => seen(format!("there is none in {}", path.display())),
        Err(error) => seen(format!("{} cannot be read: {error}", path.display())),
    }
}

fn last(mut log: impl BufRead) -> io::Result<Option<Found>> {
    let (mut last, mut text, mut line) = (None, Vec::new(), 1);
    while log.by_ref().take(LINE_BYTES).read_until(b'\n', &mut text)? > 0 {
        let found = snapshot_in(&String::from_utf8_lossy(&text));
        last = found.map(|snapshot| Found { line, snapshot }).or(last);
        line += u64::from(text.ends_with(b"\n"));
        text.clear();
    }
    Ok(last)
}

/// Whoever collects logs may write something of its own before each line.
fn snapshot_in(line: &str) -> Option<serde_json::Result<Snapshot>> {
    let line = &line[line.find('{')?..];
    match serde_json::from_str::<Value>(line) {
        Ok(line) if line["message"] == "snapshot" => Some(serde_json::from_value(line)),
        Ok(_) => None,
        // Cut off, or two that were written at once. What others say of a snapshot has its quotation marks escaped.
        Err(error) => line.contains(r#""message":"snapshot""#).then_some(Err(error)),
    }
}

fn checks(line: u64, snapshot: &Snapshot) -> Vec<Check> {
    let lists = Lists { line };
    let mut checks = vec![ok("snapshot", format!("of {}, {}", snapshot.timestamp, snapshot.phase))];
    checks.push(stream(snapshot));
    checks.extend(lists.read("reconnects", &snapshot.reconnects, |all| vec![reconnects(&all)]));
    checks.extend(lists.read("runs", &snapshot.runs, |runs: Vec<Run>| {
        vec![overdue(&runs, snapshot), left_behind(&runs, snapshot.zombies)]
    }));
    checks.push(outbox(snapshot));
    checks.extend(lists.read("leases", &snapshot.leases, |all| vec![leases(&all)]));
    checks.extend(lists.read("functions_loading", &snapshot.functions_loading, loading));
    checks
}

/// The fields that hold JSON in a text.
struct Lists {
    line: u64,
}

impl Lists {
    /// What a field means; that it cannot be read, if it cannot.
    fn read<T: DeserializeOwned>(
        &self,
        field: &str,
        text: &str,
        checks: impl FnOnce(Vec<T>) -> Vec<Check>,
    ) -> Vec<Check> {
        let list = if text.is_empty() { Ok(Vec::new()) } else { serde_json::from_str(text) };
        match list {
            Ok(list) => checks(list),
            Err(error) => vec![fail(
                "snapshot",
                format!("`{field}` in line {} cannot be read: {error}", self.line),
                "look at the line itself; `gen-worker` and the worker should have one version",
            )],
        }
    }
}

fn loading(functions: Vec<String>) -> Vec<Check> {
    let remedy = "`downloads` and `models_fetching` in the snapshot say what they wait for";
    let check = || warn("loading", format!("not offered yet: {}", named(&functions)), remedy);
    (!functions.is_empty()).then(check).into_iter().collect()
}

fn stream(snapshot: &Snapshot) -> Check {
    match (&snapshot.closed, snapshot.is_connected) {
        (_, false) => fail(
            "stream",
            "there is none to a scheduler",
            "the lines `not connected` say why; `doctor` without a snapshot tries the addresses",
        ),
        (Some(why), true) => warn("stream", format!("it is up, and no run is taken: {why}"), "see the phase"),
        (None, true) => ok("stream", "it is up, and runs are taken"),
    }
}

fn reconnects(all: &[Reconnect]) -> Check {
    let told: Vec<_> = all.iter().map(|one| format!("{} ago: {}", human(one.ago_ms), one.cause)).collect();
    match all.last() {
        None => ok("reconnects", "none"),
        Some(last) if millis(last.ago_ms) > RECENT => ok("reconnects", told.join(", ")),
        Some(_) => warn("reconnects", told.join(", "), "the lines `not connected` before each say more"),
    }
}

fn overdue(runs: &[Run], snapshot: &Snapshot) -> Check {
    let overdue: Vec<_> =
        runs.iter().filter(|run| run.state == "running" && run.overdue_ms.is_some()).collect();
    let told =
        |run: &&Run| format!("{}, {} past its deadline", run.told(), human(run.overdue_ms.unwrap_or(0)));
    let Snapshot { in_flight, permits, .. } = snapshot;
    let unlisted = match snapshot.runs_left_out {
        0 => String::new(),
        count => format!(" of those that are listed, which are all but {count}"),
    };
    match overdue.is_empty() {
        true => {
            ok("runs", format!("{in_flight} in flight, {permits} permits, none past its deadline{unlisted}"))
        }
        false => warn(
            "runs",
            format!("past their deadline: {}", named(&overdue.iter().map(told).collect::<Vec<_>>())),
            "they are given up after WORKER_CANCEL_GRACE_SECONDS; a function should look at `ctx.is_canceled()`",
        ),
    }
}

/// A snapshot counts them all, and lists some runs only.
fn left_behind(runs: &[Run], count: u64) -> Check {
    let zombies: Vec<_> = runs.iter().filter(|run| run.state == "zombie").map(Run::told).collect();
    match count.max(zombies.len() as u64) {
        0 => ok("zombies", "none"),
        count => warn(
            "zombies",
            format!("told to stop and reported, and go on: {count}; {}", named(&zombies)),
            "they keep their places until they end, or the process does: WORKER_MAX_ZOMBIES bounds them",
        ),
    }
}

fn outbox(snapshot: &Snapshot) -> Check {
    let Snapshot { outbox_results, outbox_bytes, outbox_unwritten, outbox_oldest_ms, .. } = snapshot;
    let Some(oldest) = outbox_oldest_ms.filter(|_| *outbox_results > 0) else {
        return ok("outbox", "every result is delivered");
    };
    let seen = format!(
        "{outbox_results} results ({}) are held, {outbox_unwritten} of them not written; the oldest for {}",
        HumanBytes(*outbox_bytes),
        human(oldest)
    );
    if millis(oldest) <= HELD {
        return ok("outbox", seen);
    }
    if *outbox_unwritten > 0 {
        return warn("outbox", seen, "the stream is down, or the scheduler or the journal's disk is slow");
    }
    let retention = millis(snapshot.result_retention_ms.unwrap_or(0));
    match snapshot.outbox_acknowledged {
        None => {
            warn("outbox", seen, "they were written: the scheduler does not acknowledge them, or never does")
        }
        Some(true) => warn(
            "outbox",
            seen,
            "they were written: the scheduler, which acknowledges others, should say why",
        ),
        // Looked at with each heartbeat.
        Some(false) if millis(oldest) <= retention + 2 * HELD => {
            ok("outbox", format!("{seen}; all written to a scheduler that acknowledges nothing"))
        }
        Some(false) => warn(
            "outbox",
            format!("{seen}; all written to a scheduler that acknowledges nothing"),
            "they are forgotten once a stream has been up for WORKER_RESULT_RETENTION_SECONDS: see the reconnects",
        ),
    }
}

fn leases(all: &[Lease]) -> Check {
    let is_waited_for = |lease: &&Lease| !lease.waiting.is_empty();
    let told = |lease: &Lease| {
        let Lease { model, held_by, waiting } = lease;
        format!("{model}, held by [{}], awaited by [{}]", held_by.join(", "), waiting.join(", "))
    };
    let waited_for: Vec<_> = all.iter().filter(is_waited_for).map(told).collect();
    match waited_for.is_empty() {
        true => ok("leases", format!("{} models are leased, and no run waits for one", all.len())),
        false => warn(
            "leases",
            format!("runs wait for models: {}", named(&waited_for)),
            "they wait for room in memory or for a load: see the budget, and how long the holders take",
        ),
    }
}

impl Run {
    fn told(&self) -> String {
        let Self { run_id, function, age_ms, stage, .. } = self;
        let stage = if stage.is_empty() { "between two stages" } else { stage };
        format!("{run_id} of `{function}`, for {} ({stage})", human(*age_ms))
    }
}

fn named(all: &[String]) -> String {
    let shown = all[..all.len().min(NAMED)].join("; ");
    match all.len().checked_sub(NAMED).filter(|more| *more > 0) {
        Some(more) => format!("{shown}; and {more} more"),
        None => shown,
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn human(ms: u64) -> String {
    HumanDuration(millis(ms)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Level, *};

    fn line(fields: Value) -> String {
        let mut line =
            json!({"message": "snapshot", "timestamp": "T", "phase": "Running", "is_connected": true});
        line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        line.to_string()
    }

    fn found(log: &str) -> Vec<(&'static str, Level, String)> {
        let Found { line, snapshot } = last(log.as_bytes()).unwrap().expect("there is one");
        checks(line, &snapshot.unwrap())
            .into_iter()
            .map(|check| (check.name, check.level, check.seen))
            .collect()
    }

    #[test]
    fn a_worker_at_rest_is_well() {
        let all = found(&line(json!({"runs": "[]", "leases": "[]", "reconnects": "[]"})));
        assert!(all.iter().all(|check| check.1 == Level::Ok), "{all:?}");
    }

    #[test]
    fn what_is_stuck_is_named_from_the_last_snapshot() {
        let run = |id: &str, state: &str, overdue: Option<u64>| {
            json!({"run_id": id, "attempt": 1, "function": "f", "age_ms": 90_000, "stage": "run",
                "state": state, "overdue_ms": overdue})
        };
        let stuck = line(json!({
            "is_connected": false,
            "runs": json!([run("late", "running", Some(3000)), run("dead", "zombie", Some(9)), run("fine", "running", None)]).to_string(),
            "leases": r#"[{"model": "m", "bytes": 1, "held_by": ["fine"], "waiting": ["late"]}]"#,
            "zombies": 3, "outbox_results": 2, "outbox_bytes": 2048, "outbox_unwritten": 1, "outbox_oldest_ms": 61_000,
            "reconnects": r#"[{"ago_ms": 5000, "cause": "lost"}]"#,
            "functions_loading": r#"["g"]"#,
        }));
        let well = line(json!({}));
        let log = format!(
            "not json\n{well}\nworker-1 | {stuck}\n{{\"message\":\"connected\"}}\n{{\"message\": \"snap"
        );
        let all = found(&log);
        for (name, level, words) in [
            ("stream", Level::Fail, "none to a scheduler"),
            ("reconnects", Level::Warn, "5 seconds ago: lost"),
            ("runs", Level::Warn, "late of `f`, for 2 minutes (run), 3 seconds past its deadline"),
            ("zombies", Level::Warn, "go on: 3; dead of `f`"),
            (
                "outbox",
                Level::Warn,
                "2 results (2.00 KiB) are held, 1 of them not written; the oldest for 61 seconds",
            ),
            ("leases", Level::Warn, "m, held by [fine], awaited by [late]"),
            ("loading", Level::Warn, "g"),
        ] {
            let check = all.iter().find(|check| check.0 == name).expect(name);
            assert!(check.1 == level && check.2.contains(words), "{check:?}");
        }
        assert!(!all.iter().any(|check| check.2.contains("fine of")), "{all:?}");
    }

    #[test]
    fn held_results_are_judged_by_whether_anybody_acknowledges() {
        let level = |acknowledged: Option<bool>, oldest: u64| {
            let all = found(&line(json!({
                "outbox_results": 1, "outbox_bytes": 1, "outbox_unwritten": 0, "outbox_oldest_ms": oldest,
                "outbox_acknowledged": acknowledged, "result_retention_ms": 60_000,
            })));
            all.into_iter().find(|check| check.0 == "outbox").unwrap().1
        };
        let levels = |acknowledged| [9_000, 70_000, 90_000].map(|oldest| level(acknowledged, oldest));
        assert_eq!(levels(Some(false)), [Level::Ok, Level::Ok, Level::Warn]);
        assert_eq!(levels(Some(true)), [Level::Ok, Level::Warn, Level::Warn]);
        assert_eq!(levels(None), [Level::Ok, Level::Warn, Level::Warn]);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_is_no_empty_list() {
        let broken = line(json!({"runs": "[{\"run_id\"", "leases": "{}", "reconnects": "[]"}));
        let all = found(&format!("{{}}\n{broken}"));
        for field in ["runs", "leases"] {
            let words = format!("`{field}` in line 2 cannot be read");
            let check = all.iter().find(|check| check.2.contains(&words)).expect(field);
            assert_eq!(check.1, Level::Fail);
        }
        assert!(all.iter().all(|check| !["runs", "zombies", "leases"].contains(&check.0)), "{all:?}");
        let there = tempfile::NamedTempFile::new().unwrap();
        let of_another_form = line(json!({"permits": "many"}));
        for last in [&line(json!({}))[..60], &of_another_form] {
            std::fs::write(there.path(), format!("{}\n{last}", line(json!({})))).unwrap();
            let all = read(there.path());
            assert!(all.len() == 1 && all[0].level == Level::Fail, "{all:?}");
            assert!(all[0].seen.starts_with("the one in line 2 of "), "{all:?}");
        }
    }

    #[test]
    fn a_log_without_a_snapshot_says_how_to_get_one() {
        assert!(last("{\"message\":\"connected\"}\n".as_bytes()).unwrap().is_none());
        let all = read(Path::new("/nowhere/at/all"));
        assert!(all[0].level == Level::Fail && all[0].remedy.as_ref().unwrap().contains("kill -USR1"));
    }
}
