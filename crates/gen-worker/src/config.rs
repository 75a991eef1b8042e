//! Where settings come from: `cozy.toml` `[worker]`, over which the process environment goes; and its `[models]`.

use std::path::Path;

use gen_worker_auth::AuthConfig;
use gen_worker_core::{
    ModelRef,
    config::{ConfigErrors, Env, Reader, Var},
};
use gen_worker_hub::HubConfig;
#[cfg(feature = "ort")]
use gen_worker_models_ort::OrtConfig;
use gen_worker_net::NetConfig;
use gen_worker_runtime::RuntimeConfig;
use gen_worker_status::StatusConfig;
use gen_worker_upload::UploadConfig;

use crate::{
    cozy_toml::{CozyMistake, CozyPlace, CozyToml},
    isolation::ProcessConfig,
    logging::LogConfig,
    otel::OtelConfig,
};

const MODEL_MANAGER: Var = Var::new(
    "MODEL_MANAGER_CLASS",
    "Rust path",
    "",
    "The model manager, of those that were registered with `register_model_manager!`. Unset: ONNX Runtime's, if a function \
     has a model in memory.",
);

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
    /// Where traces are sent.
    pub otel: OtelConfig,
    /// Where it is seen.
    pub status: StatusConfig,
    /// The Rust path of the model manager; `None`: ONNX Runtime's.
    pub model_manager: Option<String>,
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
            otel: OtelConfig::from_env(env, &mut errors),
            status: StatusConfig::from_env(env, &mut errors),
            model_manager: Reader::new(env, &mut errors).text(&MODEL_MANAGER),
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
            ("Traces, with feature `otel`", OtelConfig::VARS),
            ("The process", ProcessConfig::VARS),
            #[cfg(feature = "dev")]
            ("The orchestrator of `dev`", gen_worker_orchestrator::OrchestratorConfig::VARS),
            ("Models in memory", &[MODEL_MANAGER]),
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
        let cozy = read(directory, &["worker", "models"], &mut errors);
        let env = over(process(), &cozy);
        errors.into_result(Self { env, models: cozy.models })
    }
}

/// The process environment, over the `[worker]` table of `cozy.toml` in `directory`, if there is one. A key of the table is
/// a variable's name in lower case.
///
/// # Errors
/// `cozy.toml` cannot be read, or its `[worker]` table has a key that is no variable, or a value that is no scalar.
pub fn environment(directory: &Path) -> Result<Env, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let cozy = read(directory, &["worker"], &mut errors);
    errors.into_result(over(process(), &cozy))
}

fn process() -> Env {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the process environment")]
    let variables = std::env::vars_os();
    variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// `cozy.toml` in `directory`; empty: there is none.
fn read(directory: &Path, tables: &[&str], errors: &mut ConfigErrors) -> CozyToml {
    parse(&cozy_toml(directory, errors), tables, errors)
}

/// The text of `cozy.toml` in `directory`; empty: there is none.
pub(crate) fn cozy_toml(directory: &Path, errors: &mut ConfigErrors) -> String {
    match std::fs::read_to_string(directory.join("cozy.toml")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            errors.push(format!("cozy.toml cannot be read: {error}"));
            String::new()
        }
    }
}

/// What other tables say is no matter of a worker that starts: `gen-worker check` looks at it.
fn parse(text: &str, tables: &[&str], errors: &mut ConfigErrors) -> CozyToml {
    let (cozy, mistakes) = CozyToml::parse(text);
    let concerns = |mistake: &&CozyMistake| match mistake.place {
        CozyPlace::Text => true,
        CozyPlace::Top => false,
        CozyPlace::Table(name) => tables.contains(&name),
    };
    mistakes.iter().filter(concerns).for_each(|mistake| errors.push(mistake.to_string()));
    cozy
}

fn over(mut env: Env, cozy: &CozyToml) -> Env {
    cozy.worker.iter().for_each(|(name, text)| env.set_default(name, text));
    env
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write};

    use super::*;

    #[test]
    fn the_environment_goes_over_cozy_toml() {
        let mut errors = ConfigErrors::default();
        let text = "[worker]\nworker_id = 'from-file'\nworker_max_concurrency = 3\n[functions]\nx = 1";
        let env = over(Env::from_iter([("WORKER_ID", "from-env")]), &parse(text, &["worker"], &mut errors));
        assert_eq!((env.get("WORKER_ID"), env.get("WORKER_MAX_CONCURRENCY")), (Some("from-env"), Some("3")));
        assert_eq!(errors, ConfigErrors::default());
    }

    #[test]
    fn every_mistake_is_listed_at_once() {
        let text = "[worker]\nworker_idd = 'x'\nworker_id = []\n[models]\na = 3\nb = 'ftp://h/m'\nc = 'o/m'";
        let of = |tables: &[&str]| {
            let mut errors = ConfigErrors::default();
            let cozy = parse(text, tables, &mut errors);
            (cozy.models.len(), errors.to_string().lines().count())
        };
        assert_eq!((of(&["worker"]), of(&["worker", "models"])), ((1, 2), (1, 4)));
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
