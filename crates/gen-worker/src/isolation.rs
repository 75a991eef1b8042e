//! What user code does not get of the worker it runs in: credentials in the environment, and a core dump with everything.
//!
//! A process cannot take a variable out of the environment that it was started with: the kernel shows that to whoever may look
//! at the process, and every child inherits it. So the worker starts itself anew, as the same process, without its credentials;
//! they come along in a nameless file of memory, which is emptied as it is read. It is standard input; what the process was to
//! read from there comes along behind them.

use gen_worker_core::config::{ConfigErrors, Env, Reader, Var};

const KEEP: Var = Var::new(
    "WORKER_KEEP_CREDENTIALS_IN_ENV",
    "flag",
    "false",
    "Whether the worker's credentials stay in the environment, where user code and its children see them. Otherwise the binary takes them out, on Linux, before any user code runs.",
);
const CORE_DUMPS: Var = Var::new(
    "WORKER_CORE_DUMPS",
    "flag",
    "false",
    "Whether the system may write the memory of a worker that crashes, with credentials and payloads in it, to a file.",
);
const UMASK: Var = Var::new(
    "WORKER_UMASK",
    "octal",
    "",
    "Rights that files made by the worker and by user code do not have, such as `027`. Unset: as inherited.",
);

/// What is set up for the whole process, by a worker binary only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Whether credentials stay in the environment.
    pub keep_credentials: bool,
    /// Whether core dumps may be written.
    pub core_dumps: bool,
    /// Rights that new files do not have; `None`: as inherited.
    pub umask: Option<u32>,
}

/// What becomes of standard input where credentials are hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// Nobody reads it; it may be empty from then on.
    Dropped,
    /// It is read later, and no more of it than so many bytes.
    #[cfg_attr(not(feature = "dev"), expect(dead_code, reason = "only `run` reads it"))]
    Kept {
        /// How much is kept.
        at_most: u64,
    },
}

/// Why the worker cannot be kept apart from its user code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolationError {
    /// It cannot start itself anew without its credentials.
    #[error(
        "the worker's credentials cannot be taken out of the environment; WORKER_KEEP_CREDENTIALS_IN_ENV=true leaves them there"
    )]
    Credentials(#[source] std::io::Error),
    /// The system does not take the limit of core dumps.
    #[error("core dumps cannot be switched off; WORKER_CORE_DUMPS=true leaves them on")]
    CoreDumps(#[source] std::io::Error),
}

impl ProcessConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[KEEP, CORE_DUMPS, UMASK];

    /// Reads the settings and keeps every mistake.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        let keep_credentials = read.flag(&KEEP);
        let core_dumps = read.flag(&CORE_DUMPS);
        let text = read.text(&UMASK);
        let umask = text.as_deref().and_then(octal);
        if let (Some(text), None) = (&text, umask) {
            errors.push(format!(
                "{} is `{text}`: expected an octal number up to 777, such as `027`",
                UMASK.name
            ));
        }
        Self { keep_credentials, core_dumps, umask }
    }

    /// Sets the process up. Called before user code runs.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn apply(&self) -> Result<(), IsolationError> {
        #[cfg(unix)]
        {
            use rustix::process::{Resource, getrlimit, setrlimit, umask};
            if !self.core_dumps {
                let none = rustix::process::Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
                setrlimit(Resource::Core, none).map_err(|error| IsolationError::CoreDumps(error.into()))?;
            }
            if let Some(bits) = self.umask {
                umask(rustix::fs::Mode::from_bits_truncate(bits));
            }
        }
        Ok(())
    }
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn hide_credentials(_env: &mut Env, _stdin: Stdin) -> Result<(), IsolationError> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub(crate) use self::linux::hide_credentials;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        convert::Infallible,
        fs::File,
        io::{self, Read, Seek, Write},
        os::{fd::AsFd, unix::process::CommandExt},
        process::{Command, Stdio},
    };

    use gen_worker_core::config::{ConfigErrors, Env};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::{IsolationError, ProcessConfig, Stdin};
    use crate::config::WorkerConfig;

    /// Says that standard input holds the credentials of the process with this id: starting anew keeps it, a child has another.
    const MARK: &str = "GEN_WORKER_CREDENTIALS_OF";

    /// Takes credentials out of the process environment, into `env`. If there are any it does not return but starts the
    /// process anew. Called while there is one thread.
    ///
    /// # Errors
    /// It cannot be started anew.
    pub(crate) fn hide_credentials(env: &mut Env, stdin: Stdin) -> Result<(), IsolationError> {
        let failed = IsolationError::Credentials;
        if env.get(MARK) == Some(&std::process::id().to_string()) {
            return take_over(env).map_err(failed);
        }
        let names = in_process_environment();
        if names.is_empty() || ProcessConfig::from_env(env, &mut ConfigErrors::default()).keep_credentials {
            return Ok(());
        }
        match start_anew(env, &names, stdin) {
            Ok(never) => match never {},
            Err(error) => Err(failed(error)),
        }
    }

    /// The credentials that the process was started with, whatever `cozy.toml` holds beside them.
    fn in_process_environment() -> Vec<&'static str> {
        let secrets =
            WorkerConfig::variables().into_iter().flat_map(|(_, vars)| vars).filter(|var| var.is_secret());
        #[expect(
            clippy::disallowed_methods,
            reason = "what is to leave the process environment is looked for there"
        )]
        let is_there = |name: &&str| std::env::var_os(name).is_some();
        secrets.map(|var| var.name).filter(is_there).collect()
    }

    /// What is handed over: `NAME=value` and a zero for each credential, one more zero, and what is to be read later.
    fn start_anew(env: &Env, names: &[&str], stdin: Stdin) -> io::Result<Infallible> {
        let mut handed = File::from(memfd_create("credentials", MemfdFlags::CLOEXEC)?);
        for name in names {
            // One that is set to nothing counts as not set.
            if let Some(value) = env.get(name) {
                handed.write_all(format!("{name}={value}\0").as_bytes())?;
            }
        }
        handed.write_all(b"\0")?;
        if let Stdin::Kept { at_most } = stdin {
            io::copy(&mut io::stdin().lock().take(at_most), &mut handed)?;
        }
        handed.rewind()?;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        names.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.env(MARK, std::process::id().to_string());
        Err(command.args(arguments).stdin(Stdio::from(handed)).exec())
    }

    fn take_over(env: &mut Env) -> io::Result<()> {
        let mut handed = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut bytes = Vec::new();
        handed.read_to_end(&mut bytes)?;
        handed.set_len(0)?;
        handed.rewind()?;
        let mut rest = bytes.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == 0) {
            let pair = &rest[..end];
            rest = &rest[end + 1..];
            match str::from_utf8(pair).ok().and_then(|pair| pair.split_once('=')) {
                Some((name, value)) => env.set(name, value),
                None => break,
            }
        }
        handed.write_all(rest)?;
        handed.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_umask_is_octal() {
        for (text, expected) in
            [("027", Some(0o27)), ("0077", Some(0o77)), ("0", Some(0)), ("088", None), ("1777", None)]
        {
            assert_eq!(octal(text), expected, "{text}");
        }
        let mut errors = ConfigErrors::default();
        ProcessConfig::from_env(&Env::from_iter([("WORKER_UMASK", "rwx")]), &mut errors);
        assert_eq!(
            errors.to_string(),
            "WORKER_UMASK is `rwx`: expected an octal number up to 777, such as `027`"
        );
    }
}
