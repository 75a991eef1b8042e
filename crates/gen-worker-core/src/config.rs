//! Settings: one table a crate, parsed once, with all mistakes collected.
//!
//! A crate declares its variables as [`Var`] constants and reads them through a [`Reader`], which keeps every mistake
//! instead of failing at the first. The same tables write `docs/configuration.md`.
//!
//! ```
//! use gen_worker_core::config::{ConfigErrors, Env, Reader, Var};
//!
//! const DELAY: Var = Var::new("RECONNECT_DELAY", "seconds", "5", "First delay before a reconnect.");
//!
//! let env = Env::from_iter([("RECONNECT_DELAY", "soon")]);
//! let mut errors = ConfigErrors::default();
//! Reader::new(&env, &mut errors).seconds(&DELAY);
//! assert_eq!(
//!     errors.to_string(),
//!     "RECONNECT_DELAY is `soon`: expected a number of seconds, such as `5`"
//! );
//! ```

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, time::Duration};

use url::Url;

use crate::{
    secret::Secret,
    units::{ByteLimit, ByteSize},
};

/// One variable: what `docs/configuration.md` says of it, and what it is when absent.
#[derive(Debug, Clone, Copy)]
pub struct Var {
    /// Its name in the environment.
    pub name: &'static str,
    /// The unit or form of its value.
    pub unit: &'static str,
    /// The value taken when it is unset or empty; empty means absent.
    pub default: &'static str,
    /// One sentence or two, saying what zero means where zero is special.
    pub doc: &'static str,
}

impl Var {
    /// A row of a crate's table.
    pub const fn new(
        name: &'static str,
        unit: &'static str,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { name, unit, default, doc }
    }

    /// Whether its value is a credential: its unit says so.
    pub fn is_secret(&self) -> bool {
        matches!(self.unit, "secret" | "token")
    }
}

/// The variables a process was given; a map, so that tests can give others.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The value of a variable, trimmed; `None` when it is unset or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// The value of a variable as it was given; `None` when it is unset, `Some("")` when it is empty.
    pub fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a variable, whatever it was.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// Sets a variable unless it already has a value.
    pub fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

impl fmt::Debug for Env {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// All mistakes found in the settings, each naming the variable, its value and what was expected.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<String>);

impl ConfigErrors {
    /// Adds a mistake, once: several crates may read one variable.
    pub fn push(&mut self, mistake: impl Into<String>) {
        let mistake = mistake.into();
        if !self.0.contains(&mistake) {
            self.0.push(mistake);
        }
    }

    /// The value, if no mistake was found.
    ///
    /// # Errors
    /// There was at least one mistake.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads variables into typed values. A mistake is kept in the [`ConfigErrors`] and the default taken in its place, so
/// that reading goes on and finds the next.
pub struct Reader<'a> {
    env: &'a Env,
    errors: &'a mut ConfigErrors,
}

impl<'a> Reader<'a> {
    /// Reads from `env` and keeps mistakes in `errors`.
    pub fn new(env: &'a Env, errors: &'a mut ConfigErrors) -> Self {
        Self { env, errors }
    }

    /// A text; `None` when absent.
    pub fn text(&mut self, var: &Var) -> Option<String> {
        self.read(var, "", |text| Some(text.to_owned()))
    }

    /// A secret; its value is in no message.
    pub fn secret(&mut self, var: &Var) -> Option<Secret<String>> {
        debug_assert!(var.is_secret(), "the unit of {} must be `secret`", var.name);
        self.env.get(var.name).map(Secret::from)
    }

    /// A comma-separated list without empty items.
    pub fn list(&mut self, var: &Var) -> Vec<String> {
        let text = self.text(var).unwrap_or_default();
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// A path; `None` when absent.
    pub fn path(&mut self, var: &Var) -> Option<PathBuf> {
        self.text(var).map(PathBuf::from)
    }

    /// An absolute `http` or `https` URL.
    pub fn url(&mut self, var: &Var) -> Option<Url> {
        self.read(var, "an http or https URL, such as `https://hub.example`", |text| {
            Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        })
    }

    /// `true`, `1`, `t`, `yes` or `y`, in any case, against `false`, `0`, `f`, `no` or `n`.
    pub fn flag(&mut self, var: &Var) -> bool {
        let flag = self.read(var, "`true` or `false`", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" | "yes" | "y" => Some(true),
            "false" | "0" | "f" | "no" | "n" => Some(false),
            _ => None,
        });
        flag.unwrap_or(false)
    }

    /// A whole number.
    pub fn number<T: FromStr + Default>(&mut self, var: &Var) -> T {
        self.optional_number(var).unwrap_or_default()
    }

    /// A whole number; `None` when absent.
    pub fn optional_number<T: FromStr>(&mut self, var: &Var) -> Option<T> {
        self.read(var, "a whole number, such as `4`", |text| text.parse().ok())
    }

    /// Seconds, with a fraction if need be.
    pub fn seconds(&mut self, var: &Var) -> Duration {
        let seconds = self.read(var, "a number of seconds, such as `5`", |text| {
            text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        });
        seconds.unwrap_or_default()
    }

    /// Gigabytes of 2^30 bytes, with a fraction if need be; `None` when absent.
    pub fn gigabytes(&mut self, var: &Var) -> Option<ByteSize> {
        self.read(var, "a number of GiB, such as `16`", |text| {
            let gib: f64 = text.parse().ok().filter(|gib: &f64| gib.is_finite() && *gib >= 0.0)?;
            Some(ByteSize((gib * ByteSize::gib(1).0 as f64) as u64))
        })
    }

    /// A number of bytes, as a limit: `0` means unlimited.
    pub fn byte_limit(&mut self, var: &Var) -> ByteLimit {
        match self.number(var) {
            0 => ByteLimit::Unlimited,
            max => ByteLimit::Max(ByteSize(max)),
        }
    }

    fn read<T>(&mut self, var: &Var, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        if let Some(text) = self.env.get(var.name) {
            let value = parse(text);
            if value.is_some() {
                return value;
            }
            self.errors.push(format!("{} is `{text}`: expected {expected}", var.name));
        }
        Some(var.default).filter(|default| !default.is_empty()).and_then(parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: Var = Var::new("COUNT", "", "3", "");
    const SIZE: Var = Var::new("SIZE", "bytes", "0", "");
    const URL: Var = Var::new("URL", "URL", "", "");
    const TOKEN: Var = Var::new("TOKEN", "secret", "", "");

    #[test]
    fn collects_every_mistake_and_goes_on() {
        let env = Env::from_iter([("COUNT", "many"), ("SIZE", "-1"), ("URL", "ftp://x")]);
        let mut errors = ConfigErrors::default();
        let mut reader = Reader::new(&env, &mut errors);
        assert_eq!(reader.number::<u32>(&COUNT), 3);
        assert_eq!(reader.byte_limit(&SIZE), ByteLimit::Unlimited);
        assert_eq!(reader.url(&URL), None);
        assert_eq!(errors.to_string().lines().count(), 3);
    }

    #[test]
    fn an_empty_number_is_the_default() {
        let env = Env::from_iter([("COUNT", " ")]);
        let mut errors = ConfigErrors::default();
        assert_eq!(Reader::new(&env, &mut errors).number::<u32>(&COUNT), 3);
        assert_eq!(errors, ConfigErrors::default());
    }

    #[test]
    fn values_are_not_shown() {
        let env = Env::from_iter([("TOKEN", "hunter2")]);
        let secret = Reader::new(&env, &mut ConfigErrors::default()).secret(&TOKEN);
        assert!(!format!("{env:?} {secret:?}").contains("hunter2"));
    }
}
