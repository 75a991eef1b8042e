//! `models prefetch`: models made present before anybody asks for them.

use std::{path::Path, sync::Arc};

use gen_worker_core::{
    Event, JobFailure, LocalModel, ModelRef,
    ports::{EventSink, ModelSource},
};
use gen_worker_hub::{Hub, HubConfig};
use gen_worker_net::HttpClient;
use tokio::{runtime::Builder, task::JoinSet};

use crate::{
    app::AppError,
    assemble::AssembleError,
    config::{Project, WorkerConfig},
    logging,
};

#[derive(clap::Subcommand)]
pub(crate) enum ModelsVerb {
    /// Fetch models into WORKER_MODEL_CACHE_DIR, and print where each is. Exits with 3 if one cannot be had
    Prefetch {
        /// Which; else those of `[models]` in cozy.toml
        #[arg(value_name = "REFERENCE")]
        references: Vec<String>,
    },
}

pub(crate) fn run(verb: ModelsVerb) -> Result<(), AppError> {
    let ModelsVerb::Prefetch { references } = verb;
    let Project { env, models: of_project } = Project::read(Path::new("."))?;
    logging::start(&env, "warn").map_err(AssembleError::Threads)?;
    let models = models(&references, of_project)?;
    let config = WorkerConfig::from_env(&env)?;
    let client = HttpClient::new(config.net).map_err(AssembleError::Http)?;
    let hub = HubConfig { show_bars: true, ..config.hub };
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(AssembleError::Threads)?;
    let missing = runtime.block_on(fetch(Arc::new(Hub::new(hub, client)), models));
    if missing == 0 { Ok(()) } else { Err(AppError::Missing { missing }) }
}

/// Those that are named, else those of the project.
fn models(references: &[String], of_project: Vec<(String, ModelRef)>) -> Result<Vec<ModelRef>, AppError> {
    let parse =
        |text: &String| ModelRef::parse(text).map_err(|error| AppError::Usage(format!("`{text}`: {error}")));
    let models: Vec<ModelRef> = match references {
        [] => of_project.into_iter().map(|(_, model)| model).collect(),
        references => references.iter().map(parse).collect::<Result<_, _>>()?,
    };
    match models.is_empty() {
        true => Err(AppError::Usage(
            "there is no model to fetch: name one, or put it into `[models]` of cozy.toml".to_owned(),
        )),
        false => Ok(models),
    }
}

/// Fetches all of them, as many at once as the settings allow, and says how many could not be had.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what was fetched is what the person asked for"
)]
async fn fetch(hub: Arc<Hub>, models: Vec<ModelRef>) -> usize {
    let mut fetches = JoinSet::new();
    for model in models {
        let hub = hub.clone();
        fetches.spawn(async move { (hub.ensure(&model, Arc::new(Nobody)).await, model) });
    }
    let mut missing = 0;
    for (fetched, model) in fetches.join_all().await {
        match fetched {
            Ok::<LocalModel, JobFailure>(local) => println!("{}\t{}", model.known_as(), local.root.display()),
            Err(failure) => {
                missing += 1;
                eprintln!("{}: {}", model.known_as(), failure.chain());
            }
        }
    }
    missing
}

/// Hears how far a download is; the bars show it already.
struct Nobody;

impl EventSink for Nobody {
    fn emit(&self, _event: Event) {}
}
