//! `cozy.toml`: what a project says of itself, read strictly, every mistake with its place.
//!
//! ```toml
//! deployment = "my-worker"             # 3 to 63 lower-case letters, digits and single hyphens
//! [functions]
//! modules = ["my_worker"]              # where the functions are
//! [runtime]
//! base_image = "debian:bookworm-slim"  # what an image is built upon
//! [resources]
//! vram_gb = 16                         # also memory_gb, cpu_cores, gpu_type
//! [models]
//! base = "org/repo:tag"                # a key for `#[model(deployment = "base")]`
//! [worker]
//! worker_max_concurrency = 4           # settings, by their names in lower case
//! ```

use std::{collections::BTreeMap, fmt, ops::Range};

use gen_worker_core::{ModelRef, config::Var};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    config::WorkerConfig,
    nearest::{did_you_mean, quoted},
};

/// The project's own words. What is absent is empty or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CozyToml {
    /// Which deployment it is.
    pub deployment: Option<String>,
    /// The Rust modules that hold functions.
    pub modules: Vec<String>,
    /// The image that its own is built upon.
    pub base_image: Option<String>,
    /// What it asks of a machine: whole numbers, and `gpu_type`.
    pub resources: BTreeMap<String, serde_json::Value>,
    /// Models and the keys that functions use for them, in the order of the file.
    pub models: Vec<(String, ModelRef)>,
    /// Settings, by the names of their variables.
    pub worker: BTreeMap<&'static str, String>,
    /// Those of the settings that are credentials. A worker here may have them; wherever the file is packed, they are too.
    pub credentials: Vec<CozyMistake>,
}

/// One thing that is wrong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CozyMistake {
    /// The line, from 1.
    pub line: usize,
    /// The character within the line, from 1.
    pub column: usize,
    /// What it lies in.
    pub place: CozyPlace,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// What a mistake lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CozyPlace {
    /// The text is no TOML, and nothing of it was read.
    Text,
    /// None of the tables.
    Top,
    /// The table of this name.
    Table(&'static str),
}

impl fmt::Display for CozyMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cozy.toml:{}:{}: {}", self.line, self.column, self.message)
    }
}

impl CozyToml {
    /// Reads the text of one. What is wrong is left out of the result and told beside it, in the order of the text.
    pub fn parse(text: &str) -> (Self, Vec<CozyMistake>) {
        let mut reader = Reader { text, place: CozyPlace::Top, mistakes: Vec::new() };
        let mut cozy = Self::default();
        match DeTable::parse(text) {
            Ok(table) => cozy.read(&mut reader, table.get_ref()),
            Err(error) => {
                reader.place = CozyPlace::Text;
                reader.mistake(error.span().unwrap_or_default(), error.message());
            }
        }
        reader.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        (cozy, reader.mistakes)
    }

    fn read(&mut self, reader: &mut Reader<'_>, table: &DeTable<'_>) {
        const SECTIONS: [&str; 5] = ["functions", "runtime", "resources", "models", "worker"];
        for (key, value) in table {
            let Some(section) = SECTIONS.into_iter().find(|section| section == key.get_ref()) else {
                match key.get_ref().as_ref() {
                    "deployment" => self.deployment = reader.deployment(value),
                    _ => reader.unknown(key, "", SECTIONS.into_iter().chain(["deployment"])),
                }
                continue;
            };
            reader.place = CozyPlace::Table(section);
            let entries = reader.expect(value, "a table", DeValue::as_table);
            let mut entries: Vec<_> = entries.into_iter().flatten().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            for (key, value) in entries {
                self.entry(reader, section, key, value);
            }
            reader.place = CozyPlace::Top;
        }
    }

    fn entry(&mut self, reader: &mut Reader<'_>, section: &'static str, key: &Key<'_>, value: &Value<'_>) {
        match (section, key.get_ref().as_ref()) {
            ("functions", "modules") => self.modules = reader.texts(value),
            ("functions", _) => reader.unknown(key, section, ["modules"]),
            ("runtime", "base_image") => self.base_image = reader.name(value),
            ("runtime", _) => reader.unknown(key, section, ["base_image"]),
            ("resources", "gpu_type") => {
                let name = reader.name(value);
                self.resources.extend(name.map(|name| ("gpu_type".to_owned(), name.into())));
            }
            ("resources", name @ ("vram_gb" | "memory_gb" | "cpu_cores")) => {
                let number = reader.whole(value);
                self.resources.extend(number.map(|number| (name.to_owned(), number.into())));
            }
            ("resources", _) => {
                reader.unknown(key, section, ["vram_gb", "memory_gb", "cpu_cores", "gpu_type"]);
            }
            ("models", name) => {
                let model = reader.model(value);
                self.models.extend(model.map(|model| (name.to_owned(), model)));
            }
            _ => self.setting(reader, key, value),
        }
    }

    fn setting(&mut self, reader: &mut Reader<'_>, key: &Key<'_>, value: &Value<'_>) {
        let variables: Vec<&Var> = WorkerConfig::variables().into_iter().flat_map(|(_, vars)| vars).collect();
        match variables.iter().find(|var| var.name.eq_ignore_ascii_case(key.get_ref())) {
            Some(var) => {
                let text = reader.expect(value, "a text, a number or a flag", scalar);
                if var.is_secret() && text.as_ref().is_some_and(|text| !text.trim().is_empty()) {
                    let message = format!(
                        "`{}` is a credential, which would be in every archive and image: set {} where the worker runs",
                        key.get_ref(),
                        var.name,
                    );
                    self.credentials.push(reader.at(key.span(), message));
                }
                self.worker.extend(text.map(|text| (var.name, text)));
            }
            None => {
                let names: Vec<String> = variables.iter().map(|var| var.name.to_ascii_lowercase()).collect();
                let guess = did_you_mean(key.get_ref(), names.iter().map(String::as_str));
                let message = format!(
                    "`[worker] {}` is no setting{guess}; keys are the names of docs/configuration.md in lower case",
                    key.get_ref(),
                );
                reader.mistake(key.span(), message);
            }
        }
    }
}

type Key<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;

struct Reader<'a> {
    text: &'a str,
    place: CozyPlace,
    mistakes: Vec<CozyMistake>,
}

impl Reader<'_> {
    fn mistake(&mut self, at: Range<usize>, message: impl Into<String>) {
        let mistake = self.at(at, message);
        self.mistakes.push(mistake);
    }

    fn at(&self, at: Range<usize>, message: impl Into<String>) -> CozyMistake {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        CozyMistake {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            place: self.place,
            message: message.into(),
        }
    }

    fn unknown<'n>(&mut self, key: &Key<'_>, section: &str, names: impl IntoIterator<Item = &'n str>) {
        let names: Vec<&str> = names.into_iter().collect();
        let place = if section.is_empty() { String::new() } else { format!(" in `[{section}]`") };
        let guess = did_you_mean(key.get_ref(), names.iter().copied());
        let message = format!("unknown key `{}`{place}{guess}; there are {}", key.get_ref(), quoted(names));
        self.mistake(key.span(), message);
    }

    fn expect<'v, 'i, T>(
        &mut self,
        value: &'v Value<'i>,
        expected: &str,
        read: impl Fn(&'v DeValue<'i>) -> Option<T>,
    ) -> Option<T> {
        let read = read(value.get_ref());
        if read.is_none() {
            let found = value.get_ref().type_str();
            self.mistake(value.span(), format!("expected {expected}, found {} {found}", article(found)));
        }
        read
    }

    fn name(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.expect(value, "a text", DeValue::as_str)?;
        let fits = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if !fits {
            self.mistake(value.span(), "expected a name without spaces");
        }
        fits.then(|| text.to_owned())
    }

    fn texts(&mut self, value: &Value<'_>) -> Vec<String> {
        let items = self.expect(value, "a list of texts", DeValue::as_array);
        items.into_iter().flat_map(|items| items.iter()).filter_map(|item| self.name(item)).collect()
    }

    fn whole(&mut self, value: &Value<'_>) -> Option<u64> {
        self.expect(value, "a whole number", |value| {
            let number = value.as_integer()?;
            u64::from_str_radix(number.as_str(), number.radix()).ok()
        })
    }

    fn model(&mut self, value: &Value<'_>) -> Option<ModelRef> {
        let text = self.expect(value, "a model reference", DeValue::as_str)?;
        let model = ModelRef::parse(text);
        model.inspect_err(|error| self.mistake(value.span(), error.to_string())).ok()
    }

    fn deployment(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.expect(value, "a text", DeValue::as_str)?;
        let fits = is_deployment(text);
        if !fits {
            let form =
                "3 to 63 lower-case letters, digits and single hyphens, a letter first and no hyphen last";
            self.mistake(value.span(), format!("a deployment id has {form}"));
        }
        fits.then(|| text.to_owned())
    }
}

fn is_deployment(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (3..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.split('-').all(|part| !part.is_empty() && part.chars().all(plain))
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// Whether this text says something without a mistake. Whatever it is, each mistake has a place in it.
///
/// # Panics
/// One has none.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(text: &str) -> bool {
    let (cozy, mistakes) = CozyToml::parse(text);
    for mistake in &mistakes {
        let line = text.split('\n').nth(mistake.line - 1);
        let fits = line.is_some_and(|line| (1..=line.chars().count() + 1).contains(&mistake.column));
        assert!(fits, "{mistake}");
    }
    assert!(mistakes.is_sorted_by_key(|mistake| (mistake.line, mistake.column)));
    mistakes.is_empty() && cozy != CozyToml::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/cozy_toml");
        let texts =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let right = texts.filter(|text| super::check(&String::from_utf8_lossy(text))).count();
        assert!(right > 0, "{right}");
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let (_, mistakes) = CozyToml::parse(text);
        assert_eq!(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn everything_that_may_be_said_is_read() {
        let (cozy, mistakes) = CozyToml::parse(
            "deployment = 'my-worker-2'\n[functions]\nmodules = ['a', 'b::c']\n[runtime]\nbase_image = 'x:1'\n\
             [resources]\nvram_gb = 0x10\ngpu_type = 'h100'\n[models]\nz = 'org/repo:tag'\na = 'hf:org/b'\n\
             [worker]\nworker_id = 'w'\nworker_max_concurrency = 3\n",
        );
        assert_eq!(mistakes, []);
        let models = [("z", "org/repo:tag"), ("a", "hf:org/b")]
            .map(|(key, model)| (key.to_owned(), ModelRef::parse(model).unwrap()));
        let resources =
            [("gpu_type", serde_json::json!("h100")), ("vram_gb", 16.into())].map(|(k, v)| (k.to_owned(), v));
        let worker =
            [("WORKER_ID", "w"), ("WORKER_MAX_CONCURRENCY", "3")].map(|(name, text)| (name, text.to_owned()));
        let expected = CozyToml {
            deployment: Some("my-worker-2".to_owned()),
            modules: vec!["a".to_owned(), "b::c".to_owned()],
            base_image: Some("x:1".to_owned()),
            resources: resources.into(),
            models: models.into(),
            credentials: Vec::new(),
            worker: worker.into(),
        };
        assert_eq!(cozy, expected);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest() {
        check(
            "[runtme]\n[functions]\nmodule = []\n[worker]\nworker_idd = 1\n",
            &[
                "cozy.toml:1:2: unknown key `runtme`: did you mean `runtime`?; there are `functions`, `runtime`, \
                 `resources`, `models`, `worker`, `deployment`",
                "cozy.toml:3:1: unknown key `module` in `[functions]`: did you mean `modules`?; there are `modules`",
                "cozy.toml:5:1: `[worker] worker_idd` is no setting: did you mean `worker_id`?; keys are the names of \
                 docs/configuration.md in lower case",
            ],
        );
    }

    #[test]
    fn a_wrong_type_is_named_where_it_stands() {
        check(
            "[functions]\nmodules = ['ok', 3]\n[resources]\nvram_gb = 'é16'\nmemory_gb = -1\n[runtime]\n\
             base_image = [] # é\n[worker]\nworker_id = []\n",
            &[
                "cozy.toml:2:18: expected a text, found an integer",
                "cozy.toml:4:11: expected a whole number, found a string",
                "cozy.toml:5:13: expected a whole number, found an integer",
                "cozy.toml:7:14: expected a text, found an array",
                "cozy.toml:9:13: expected a text, a number or a flag, found an array",
            ],
        );
        check("functions = 1", &["cozy.toml:1:13: expected a table, found an integer"]);
    }

    #[test]
    fn what_no_hub_or_deployment_takes_is_refused() {
        check(
            "deployment = 'My'\n[models]\nbase = 'ftp://x'\n",
            &[
                "cozy.toml:1:14: a deployment id has 3 to 63 lower-case letters, digits and single hyphens, a letter \
                 first and no hyphen last",
                "cozy.toml:3:8: model reference scheme `ftp:` is not known; use org/repo, cozy:, hf:, https: or file:",
            ],
        );
        let good = ["abc", "a1-b2", &"a".repeat(63)];
        let bad = ["ab", "1bc", "a--b", "ab-", "aBc", "abc\n", &"a".repeat(64)];
        assert!(good.iter().all(|id| is_deployment(id)) && !bad.iter().any(|id| is_deployment(id)));
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_place() {
        let (_, mistakes) = CozyToml::parse("[a]\nb = \n");
        assert_eq!((mistakes.len(), mistakes[0].line), (1, 2));
    }

    #[test]
    fn a_credential_among_the_settings_is_told_with_its_place() {
        let text = "[worker]\nworker_id = 'w'\nCOZY_HUB_TOKEN = 'x'\nhf_token = ''\n";
        let (cozy, mistakes) = CozyToml::parse(text);
        assert_eq!((mistakes.len(), cozy.worker.len()), (0, 3));
        let told: Vec<String> = cozy.credentials.iter().map(ToString::to_string).collect();
        let expected = "cozy.toml:3:1: `COZY_HUB_TOKEN` is a credential, which would be in every archive and image: set \
                        COZY_HUB_TOKEN where the worker runs";
        assert_eq!(told, [expected]);
    }
}
