//! The facts, as they are now. Everything that another machine has a part in is bounded.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gen_worker_auth::AuthConfig;
use gen_worker_core::{Function, ports::CredentialSource};
use gen_worker_net::{HttpClient, Method, Trust, header};
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::facts::{Clock, Engine, Facts, Fault, Faults, Folder, Peer, Token, Worker};
use crate::{
    config::{WorkerConfig, environment},
    cozy_toml::CozyToml,
};

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at this machine, with the settings of the process and of `directory`.
pub(super) async fn facts(directory: &Path, functions: Option<&[Function]>) -> Facts {
    Facts {
        machine: gen_worker_runtime::machine(),
        open_files: open_files(),
        cozy: cozy(directory),
        worker: worker(directory, functions).await,
    }
}

/// A file that cannot be read is a mistake of the settings.
fn cozy(directory: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(directory.join("cozy.toml")).ok()?;
    Some(CozyToml::parse(&text).1.iter().map(ToString::to_string).collect())
}

async fn worker(directory: &Path, functions: Option<&[Function]>) -> Result<Worker, String> {
    let env = environment(directory).map_err(|errors| errors.to_string())?;
    let config = WorkerConfig::from_env(&env).map_err(|errors| errors.to_string())?;
    let client = HttpClient::new(config.net.clone()).map_err(|error| chain(&error))?;
    let (schedulers, hub, keys, token) = tokio::join!(
        gen_worker_runtime::reach(&config.runtime, PATIENCE),
        ask(&client, config.hub.hub_url.as_ref()),
        ask(&client, config.auth.jwks_url.as_ref()),
        token(&client, config.auth.clone()),
    );
    let (hub, clock) = hub.unzip();
    let keys = keys.map(|(_, clock)| clock);
    let schedulers = schedulers.into_iter();
    Ok(Worker {
        engine: engine(&config, functions),
        folders: folders(&config),
        names_scheduler: env.get("SCHEDULER_ADDR").is_some(),
        schedulers: schedulers
            .map(|(address, reached)| Peer { address: address.to_string(), reached })
            .collect(),
        hub,
        clock: clock.flatten().or(keys.flatten()),
        token,
        faults: config.runtime.state_dir.as_ref().map(|state| faults(&state.join("reports"))),
    })
}

/// Whether somebody answers, whatever it is, and what time it is there. `None`: nobody is to be asked.
async fn ask(client: &HttpClient, url: Option<&Url>) -> Option<(Peer, Option<Clock>)> {
    let url = url?;
    let asked = timeout(PATIENCE, client.request(Method::GET, url.clone(), Trust::Operator).send()).await;
    let address = url.origin().ascii_serialization();
    let (reached, clock) = match asked {
        Ok(Ok(answer)) => {
            let date = answer.header(&header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
            (Ok(()), date.map(|date| clock(address.clone(), date, SystemTime::now())))
        }
        Ok(Err(error)) => (Err(chain(&error)), None),
        Err(_) => (Err(format!("no answer within {} s", PATIENCE.as_secs())), None),
    };
    Some((Peer { address, reached }, clock))
}

fn clock(of: String, theirs: SystemTime, ours: SystemTime) -> Clock {
    match ours.duration_since(theirs) {
        Ok(apart) => Clock { of, apart, is_behind: false },
        Err(behind) => Clock { of, apart: behind.duration(), is_behind: true },
    }
}

/// The worker's token, put through the check of its start.
async fn token(client: &HttpClient, config: AuthConfig) -> Token {
    if config.token.is_none() && config.token_file.is_none() {
        return Token::Absent;
    }
    let verified = config.jwks_url.is_some();
    let credential = match timeout(PATIENCE, gen_worker_auth::check(config, client)).await {
        Ok(Ok(credential)) => credential,
        Ok(Err(refused)) => return Token::Refused(chain(&refused)),
        Err(_) => return Token::Refused(format!("it could not be verified within {} s", PATIENCE.as_secs())),
    };
    if credential.bearer().is_none() {
        // One from a file may be followed by a good one, so that it did not end the check.
        let why = timeout(PATIENCE, credential.renew()).await;
        let why = why.ok().and_then(Result::err).map(|refused| refused.chain());
        return Token::Refused(why.unwrap_or_else(|| "it was refused".to_owned()));
    }
    let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
    Token::Usable { verified, left: credential.expires_at().map(left) }
}

#[cfg(feature = "ort")]
fn engine(config: &WorkerConfig, functions: Option<&[Function]>) -> Engine {
    use gen_worker_core::ModelNeed;

    use super::facts::{Library, Provider};

    let resident = |function: &Function| {
        let injections = &function.spec().injections;
        injections.iter().any(|injection| injection.need == ModelNeed::Resident)
    };
    let has_own_manager = config.model_manager.is_some();
    let is_needed = functions.map(|functions| !has_own_manager && functions.iter().any(resident));
    let library = gen_worker_models_ort::survey(&config.ort).map_err(|error| chain(&error)).map(|survey| {
        let providers = survey.providers.into_iter().map(|(provider, works)| Provider {
            name: provider.to_string(),
            is_nvidia: provider.is_nvidia(),
            works: works.map_err(|error| chain(&error)),
        });
        Library { providers: providers.collect(), path: survey.library, version: survey.version }
    });
    Engine { is_needed, library }
}

#[cfg(not(feature = "ort"))]
fn engine(_config: &WorkerConfig, _functions: Option<&[Function]>) -> Engine {
    Engine {
        is_needed: Some(false),
        library: Err("this binary was built without the feature `ort`".to_owned()),
    }
}

/// A report's name sorts by its time.
fn faults(directory: &Path) -> Faults {
    let paths = reports(directory);
    let last = paths.as_ref().ok().and_then(|paths| paths.last()).map(|path| {
        let said = |error: String| format!("{}: {error}", path.display());
        let report = fs::read(path).map_err(|error| said(error.to_string()))?;
        fault(&report).map_err(|error| said(error.to_string()))
    });
    let count = paths.map(|paths| paths.len()).map_err(|error| error.to_string());
    Faults { directory: directory.to_owned(), count, last }
}

/// Without the directory no run has failed yet.
fn reports(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "json"));
    paths.sort();
    Ok(paths)
}

/// What a line has room for of a report.
#[derive(Deserialize)]
struct Report {
    at_unix_ms: u64,
    run_id: String,
    function: String,
    message: String,
}

fn fault(report: &[u8]) -> serde_json::Result<Fault> {
    let Report { at_unix_ms, run_id, function, message } = serde_json::from_slice(report)?;
    let at = UNIX_EPOCH + Duration::from_millis(at_unix_ms);
    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
    Ok(Fault { run_id, function, message, ago })
}

fn folders(config: &WorkerConfig) -> Vec<Folder> {
    let folders = [
        ("WORKER_MODEL_CACHE_DIR", Some(&config.hub.cache_dir)),
        ("WORKER_CACHE_DIR", Some(&config.hub.input_cache_dir)),
        ("WORKER_RUN_DIR", Some(&config.runtime.run_dir)),
        ("WORKER_STATE_DIR", config.runtime.state_dir.as_ref()),
    ];
    folders.into_iter().filter_map(|(variable, path)| Some(folder(variable, path?))).collect()
}

/// What is not there yet is made by the worker, in the nearest folder that is.
fn folder(variable: &'static str, path: &Path) -> Folder {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = absolute.ancestors().find(|folder| folder.exists()).unwrap_or(&absolute);
    let (writable, free) = disk(there);
    Folder { variable, path: path.to_owned(), writable, free }
}

#[cfg(unix)]
fn disk(folder: &Path) -> (Result<(), String>, Option<u64>) {
    use rustix::fs::{Access, access, statvfs};

    let writable = match folder.is_dir() {
        true => access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| std::io::Error::from(error).to_string()),
        false => Err(format!("{} is no folder", folder.display())),
    };
    let free = statvfs(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    (writable, free.ok())
}

#[cfg(not(unix))]
fn disk(_folder: &Path) -> (Result<(), String>, Option<u64>) {
    (Ok(()), None)
}

#[cfg(unix)]
fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn open_files() -> Option<u64> {
    None
}

/// The error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut chain = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if chain.last() != Some(&text) {
            chain.push(text);
        }
        cause = error.source();
    }
    chain.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_behind_or_ahead() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(43_200);
        let of = |ours| {
            let clock = clock("h".to_owned(), noon, ours);
            (clock.apart.as_secs(), clock.is_behind)
        };
        let minute = Duration::from_secs(60);
        assert_eq!((of(noon + minute), of(noon - minute)), ((60, false), (60, true)));
    }

    #[test]
    fn the_last_report_is_the_one_that_is_read() {
        let there = tempfile::tempdir().unwrap();
        assert_eq!(faults(&there.path().join("none")).count, Ok(0));
        for (name, run_id) in [("0002-b.json", "b"), ("0010-c.json", "c"), ("0001-a.json", "a")] {
            let report =
                serde_json::json!({"at_unix_ms": 1, "run_id": run_id, "function": "f", "message": "m"});
            fs::write(there.path().join(name), report.to_string()).unwrap();
        }
        fs::write(there.path().join("report.new"), "").unwrap();
        let faults = faults(there.path());
        assert_eq!((faults.count, faults.last.unwrap().unwrap().run_id.as_str()), (Ok(3), "c"));
    }

    #[test]
    fn a_report_that_cannot_be_read_is_named() {
        let there = tempfile::tempdir().unwrap();
        fs::write(there.path().join("0003-d.json"), "{}").unwrap();
        let said = faults(there.path()).last.unwrap().unwrap_err();
        assert!(said.contains("0003-d.json: missing field `at_unix_ms`"), "{said}");
        assert!(faults(&there.path().join("0003-d.json")).count.is_err(), "it is no directory");
    }

    #[test]
    fn a_folder_is_made_where_it_can_be() {
        let there = tempfile::tempdir().unwrap();
        assert_eq!(folder("V", &there.path().join("a/b")).writable, Ok(()));
        let file = there.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(folder("V", &file.join("a")).writable.unwrap_err().ends_with("is no folder"));
    }
}
