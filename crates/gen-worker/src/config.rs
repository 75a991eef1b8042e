//! Where settings come from: `cozy.toml` `[worker]`, over which the process environment goes; and its `[models]`.

use std::path::Path;

use gen_worker_auth::AuthConfig;
use gen_worker_core::{
    ModelRef,
    config::{ConfigErrors, Env, Var},
};
use gen_worker_hub::HubConfig;
#[cfg(feature = "ort")]
use gen_worker_models_ort::OrtConfig;
use gen_worker_net::NetConfig;
use gen_worker_runtime::RuntimeConfig;
use gen_worker_status::StatusConfig;
use gen_worker_upload::UploadConfig;

use crate::{isolation::ProcessConfig, logging::LogConfig};

/// Every setting of a worker, one field for each crate's.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Connection, admission, waits.
    pub runtime: RuntimeConfig,
    /// HTTP.
    pub net: NetConfig,
    /// The worker's token and whom it believes.
    pub auth: AuthConfig,
    /// Models and input files.
    pub hub: HubConfig,
    /// Outputs.
    pub upload: UploadConfig,
    /// What is set up for the whole process.
    pub process: ProcessConfig,
    /// How it logs.
    pub log: LogConfig,
    /// Where it is seen.
    pub status: StatusConfig,
    /// ONNX Runtime.
    #[cfg(feature = "ort")]
    pub ort: OrtConfig,
}

impl WorkerConfig {
    /// Reads all settings.
    ///
    /// # Errors
    /// Every mistake in them, in one list.
    pub fn from_env(env: &Env) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let config = Self {
            runtime: RuntimeConfig::from_env(env, &mut errors),
            net: NetConfig::from_env(env, &mut errors),
            auth: AuthConfig::from_env(env, &mut errors),
            hub: HubConfig::from_env(env, &mut errors),
            upload: UploadConfig::from_env(env, &mut errors),
            process: ProcessConfig::from_env(env, &mut errors),
            log: LogConfig::from_env(env, &mut errors),
            status: StatusConfig::from_env(env, &mut errors),
            #[cfg(feature = "ort")]
            ort: OrtConfig::from_env(env, &mut errors),
        };
        errors.into_result(config)
    }

    /// The tables of all variables, by subject.
    pub fn variables() -> Vec<(&'static str, &'static [Var])> {
        vec![
            ("The worker", RuntimeConfig::VARS),
            ("Credentials", AuthConfig::VARS),
            ("Models and input files", HubConfig::VARS),
            ("Outputs", UploadConfig::VARS),
            ("HTTP", NetConfig::VARS),
            ("Health and metrics", StatusConfig::VARS),
            ("Logs", LogConfig::VARS),
            ("The process", ProcessConfig::VARS),
            #[cfg(feature = "dev")]
            ("The orchestrator of `dev`", gen_worker_orchestrator::OrchestratorConfig::VARS),
            #[cfg(feature = "ort")]
            ("ONNX Runtime", gen_worker_models_ort::VARS),
        ]
    }
}

/// What a worker is told before it starts.
#[derive(Debug)]
pub(crate) struct Project {
    /// The process environment, over the `[worker]` table of `cozy.toml`.
    pub(crate) env: Env,
    /// The `[models]` table of `cozy.toml`: keys and models, in the order of the file.
    pub(crate) models: Vec<(String, ModelRef)>,
}

impl Project {
    /// Reads the environment, and `cozy.toml` in `directory`, if there is one.
    pub(crate) fn read(directory: &Path) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::default();
        let cozy_toml = read(directory, &mut errors);
        let env = over(process(), &cozy_toml, &mut errors);
        let models = models(&cozy_toml, &mut errors);
        errors.into_result(Self { env, models })
    }
}

/// The process environment, over the `[worker]` table of `cozy.toml` in `directory`, if there is one. A key of the table is
/// a variable's name in lower case.
///
/// # Errors
/// `cozy.toml` cannot be read, or its `[worker]` table has a key that is no variable, or a value that is no scalar.
pub fn environment(directory: &Path) -> Result<Env, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let cozy_toml = read(directory, &mut errors);
    let env = over(process(), &cozy_toml, &mut errors);
    errors.into_result(env)
}

fn process() -> Env {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the process environment")]
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The tables of `cozy.toml`; none where there is no such file.
fn read(directory: &Path, errors: &mut ConfigErrors) -> toml::Table {
    match std::fs::read_to_string(directory.join("cozy.toml")) {
        Ok(text) => parse(&text, errors),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => toml::Table::new(),
        Err(error) => {
            errors.push(format!("cozy.toml cannot be read: {error}"));
            toml::Table::new()
        }
    }
}

fn parse(cozy_toml: &str, errors: &mut ConfigErrors) -> toml::Table {
    cozy_toml.parse().unwrap_or_else(|error| {
        errors.push(format!("cozy.toml: {error}"));
        toml::Table::new()
    })
}

/// The table of this name; `None`: there is none.
fn table<'t>(cozy_toml: &'t toml::Table, name: &str, errors: &mut ConfigErrors) -> Option<&'t toml::Table> {
    let table = cozy_toml.get(name)?;
    if !table.is_table() {
        errors.push(format!("cozy.toml: `{name}` must be a table"));
    }
    table.as_table()
}

fn over(mut env: Env, cozy_toml: &toml::Table, errors: &mut ConfigErrors) -> Env {
    let known: Vec<&Var> = WorkerConfig::variables().into_iter().flat_map(|(_, vars)| vars).collect();
    for (key, value) in table(cozy_toml, "worker", errors).into_iter().flatten() {
        match (known.iter().find(|var| var.name.eq_ignore_ascii_case(key)), scalar(value)) {
            (Some(var), Some(text)) => env.set_default(var.name, &text),
            (None, _) => errors.push(format!(
                "cozy.toml: `[worker] {key}` is no setting: keys are the names of docs/configuration.md in lower case"
            )),
            (_, None) => errors.push(format!("cozy.toml: `[worker] {key}` must be a text, a number or a flag")),
        }
    }
    env
}

fn models(cozy_toml: &toml::Table, errors: &mut ConfigErrors) -> Vec<(String, ModelRef)> {
    let mut models = Vec::new();
    for (key, value) in table(cozy_toml, "models", errors).into_iter().flatten() {
        match value.as_str().map(ModelRef::parse) {
            Some(Ok(model)) => models.push((key.clone(), model)),
            Some(Err(error)) => errors.push(format!("cozy.toml: `[models] {key}`: {error}")),
            None => {
                errors.push(format!("cozy.toml: `[models] {key}` must be a text, such as `org/repo:tag`"))
            }
        }
    }
    models
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write};

    use super::*;

    /// What is read from this environment and this text, and the mistakes in it.
    fn read(env: &[(&str, &str)], text: &str) -> (Project, ConfigErrors) {
        let mut errors = ConfigErrors::default();
        let cozy_toml = parse(text, &mut errors);
        let env = over(env.iter().copied().collect(), &cozy_toml, &mut errors);
        let models = models(&cozy_toml, &mut errors);
        (Project { env, models }, errors)
    }

    #[test]
    fn the_environment_goes_over_cozy_toml() {
        let text = "[worker]\nworker_id = 'from-file'\nworker_max_concurrency = 3\n[functions]\nx = 1";
        let (Project { env, .. }, errors) = read(&[("WORKER_ID", "from-env")], text);
        assert_eq!((env.get("WORKER_ID"), env.get("WORKER_MAX_CONCURRENCY")), (Some("from-env"), Some("3")));
        assert_eq!(errors, ConfigErrors::default());
    }

    #[test]
    fn models_come_in_the_order_of_the_file() {
        let (project, errors) = read(&[], "[models]\nz = 'org/one'\na = 'hf:org/two'\nm = ' org/three:v1 '");
        let models: Vec<_> =
            project.models.iter().map(|(key, model)| (key.as_str(), model.as_str())).collect();
        assert_eq!(models, [("z", "org/one"), ("a", "hf:org/two"), ("m", "org/three:v1")]);
        assert_eq!(errors, ConfigErrors::default());
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let text = "[worker]\nworker_idd = 'x'\nworker_id = []\n[models]\na = 3\nb = 'ftp://h/m'\nc = 'o/m'";
        let (project, errors) = read(&[], text);
        assert_eq!((errors.to_string().lines().count(), project.models.len()), (4, 1), "{errors}");
        let (_, errors) = read(&[], "worker = 1\nmodels = []");
        assert_eq!(
            errors.to_string(),
            "cozy.toml: `worker` must be a table\ncozy.toml: `models` must be a table"
        );
        let env =
            Env::from_iter([("RECONNECT_DELAY", "soon"), ("COZY_HUB_URL", "hub"), ("WORKER_URL_ALLOW", "/")]);
        let errors = WorkerConfig::from_env(&env).unwrap_err();
        assert_eq!(errors.to_string().lines().count(), 3, "{errors}");
    }

    /// `docs/configuration.md` as the tables say it. `UPDATE_DOCS=1` writes it.
    #[test]
    fn the_configuration_page_is_up_to_date() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let page = page();
        #[expect(clippy::disallowed_methods, reason = "a switch of this test, no setting")]
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let current = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(current == page, "docs/configuration.md is stale: run `cargo xtask docs`");
    }

    fn page() -> String {
        let mut page = String::from(include_str!("docs/configuration.md"));
        let mut seen = BTreeSet::new();
        for (subject, vars) in WorkerConfig::variables() {
            write!(page, "\n## {subject}\n\n| variable | unit | default | meaning |\n|---|---|---|---|\n")
                .unwrap();
            for var in vars.iter().filter(|var| seen.insert(var.name)) {
                let default =
                    if var.default.is_empty() { "–".to_owned() } else { format!("`{}`", var.default) };
                writeln!(page, "| `{}` | {} | {default} | {} |", var.name, var.unit, var.doc).unwrap();
            }
        }
        page
    }
}
