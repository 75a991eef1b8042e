//! Which model each parameter means, whether this deployment may use it, and the lease that keeps it in memory.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use gen_worker_core::{
    FunctionSpec, InjectedModel, InjectionSpec, JobFailure, ModelBinding, ModelNeed, ModelRef, Payload,
    ports::{LeaseHolder, OutputTarget},
    redact,
};

use super::{
    Job,
    inputs::{Local, RunDirectory},
    timings::Stage,
};
use crate::{command::ModelConfig, model_control::ModelRefusal};

/// The deployment's models. Without a configuration nothing is restricted; an empty list allows nothing; `*` everything.
#[derive(Default)]
pub(crate) struct ModelTable(RwLock<Option<Arc<ModelConfig>>>);

impl ModelTable {
    pub(crate) fn configure(&self, config: ModelConfig) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(config));
    }

    /// The reference that a parameter means.
    pub(crate) fn resolve(
        &self,
        injection: &InjectionSpec,
        payload: &Payload<'_>,
        spec: &FunctionSpec,
    ) -> Result<ModelRef, JobFailure> {
        let key = match injection.binding {
            ModelBinding::Deployment(key) => key.to_owned(),
            ModelBinding::Payload(field) => payload_ref(field, payload, spec)?,
        };
        self.named(&key, injection.binding, injection.param)
    }

    /// The reference that a key of the deployment, or one written out, means.
    pub(crate) fn named(
        &self,
        key: &str,
        binding: ModelBinding,
        param: &str,
    ) -> Result<ModelRef, JobFailure> {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mapped = config.as_ref().and_then(|config| config.ids_by_key.get(key));
        let id = mapped.map_or(key, String::as_str);
        let model = ModelRef::parse(id).map_err(|e| refusal(format!("model `{}`: {e}", redact(id))))?;
        if mapped.is_none() && model.file().is_some() && matches!(binding, ModelBinding::Payload(_)) {
            return Err(refusal(format!("model `{id}`: a payload cannot name a file of the worker")));
        }
        match &config {
            Some(config) if !allows(config, &model) => Err(refusal(format!(
                "model_id not allowed for deployment: '{}' (injection param {param})",
                model.known_as(),
            ))),
            _ => Ok(model),
        }
    }
}

fn refusal(text: String) -> JobFailure {
    ModelRefusal(text).into()
}

/// The text in the payload's field, else the default that the payload's type gives it.
fn payload_ref(field: &str, payload: &Payload<'_>, spec: &FunctionSpec) -> Result<String, JobFailure> {
    let default = || spec.input_field(field).and_then(|schema| schema.get("default")?.as_str());
    match payload.text(field).or_else(default).map(str::trim) {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(refusal(format!("field `{field}` must name a model"))),
    }
}

fn allows(config: &ModelConfig, model: &ModelRef) -> bool {
    config.allowed.iter().any(|allowed| {
        allowed == "*"
            || allowed == model.as_str()
            || ModelRef::parse(allowed).is_ok_and(|allowed| allowed == *model)
    })
}

/// A run whose models are there.
pub(crate) struct Ready {
    pub job: Job,
    pub input: Box<dyn Any + Send>,
    pub models: HashMap<&'static str, InjectedModel>,
    pub target: Option<Arc<dyn OutputTarget>>,
    pub directory: Option<RunDirectory>,
}

impl Local {
    /// Waits for the set-ups, makes each model present and, where the parameter asks for it, leases it.
    pub(crate) async fn lease_models(self) -> Result<Ready, JobFailure> {
        let Self { job, input, models: wanted, target, directory } = self;
        job.run.needs(&wanted);
        // Before models are leased, which nobody else could have meanwhile.
        let prepared = &job.shop().prepared;
        if prepared.is_pending() {
            job.stage(Stage::SetUp, Box::pin(prepared.wait())).await?;
        }
        let mut models = HashMap::new();
        for (injection, model) in wanted {
            models.insert(injection.param, Box::pin(provide(&job, &injection, &model)).await?);
        }
        Ok(Ready { job, input, models, target, directory })
    }
}

async fn provide(
    job: &Job,
    injection: &InjectionSpec,
    model: &ModelRef,
) -> Result<InjectedModel, JobFailure> {
    let ports = &job.shop().ports;
    let Some(source) = &ports.model_source else {
        return Err(refusal("this worker was built without a source of models".to_owned()));
    };
    let local = job.stage(Stage::Model, source.ensure(model, job.run.clone())).await?;
    job.shop().prefetch.settle(model);
    let lease = match (injection.need, &ports.model_manager) {
        (ModelNeed::Resident, Some(manager)) => {
            let holder = LeaseHolder {
                run_id: Some(job.facts().run_id.clone()),
                cancellation: job.run.cancellation.clone(),
            };
            Some(job.stage(Stage::Load, manager.lease(&local, &holder)).await?)
        }
        (ModelNeed::Resident, None) => {
            return Err(refusal("this worker was built without a model manager".to_owned()));
        }
        (ModelNeed::Files | ModelNeed::None, _) => None,
    };
    Ok(InjectedModel { local, lease })
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{Call, Function, ModelArtifacts, WorkerError};

    use super::*;

    /// Ids by key, and the ids allowed.
    type Config<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

    const IN_PAYLOAD: ModelBinding = ModelBinding::Payload("model");

    fn resolve(binding: ModelBinding, payload: &[u8], config: Option<Config<'_>>) -> Result<String, String> {
        let table = ModelTable::default();
        if let Some((keys, allowed)) = config {
            table.configure(ModelConfig {
                ids_by_key: keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                allowed: allowed.iter().map(|a| (*a).to_owned()).collect(),
            });
        }
        let function = Function::builder::<serde_json::Value>("f", "tests")
            .model::<ModelArtifacts>("m", binding)
            .asynchronous(|_: Call<serde_json::Value>| async { Ok::<_, WorkerError>(()) })
            .unwrap();
        let payload = Payload::parse(payload).unwrap();
        let resolved = table.resolve(&function.spec().injections[0], &payload, function.spec());
        resolved.map(|model| model.as_str().to_owned()).map_err(|failure| failure.safe_message)
    }

    /// `{"model": <text>}`
    fn named(text: &str) -> Vec<u8> {
        [&[0x81, 0xa5][..], b"model", &[0xa0 | text.len() as u8], text.as_bytes()].concat()
    }

    #[test]
    fn a_key_of_the_deployment_is_mapped() {
        let config: Config<'_> = (&[("a", "org/one:v1")], &["org/one:v1"]);
        assert_eq!(resolve(IN_PAYLOAD, &named("a"), Some(config)).unwrap(), "org/one:v1");
        assert_eq!(resolve(ModelBinding::Deployment("a"), &[0x80], Some(config)).unwrap(), "org/one:v1");
    }

    #[test]
    fn the_allow_list_compares_references_and_not_spellings() {
        assert!(resolve(IN_PAYLOAD, &named("org/m"), Some((&[], &["cozy:org/m:latest"]))).is_ok());
        assert!(resolve(IN_PAYLOAD, &named("org/m"), Some((&[], &["*"]))).is_ok());
        assert!(resolve(IN_PAYLOAD, &named("org/m"), None).is_ok());
        let refused = resolve(IN_PAYLOAD, &named("org/m"), Some((&[], &[]))).unwrap_err();
        assert_eq!(refused, "model_id not allowed for deployment: 'org/m' (injection param m)");
    }

    #[test]
    fn local_path_from_a_payload_is_ignored() {
        assert!(resolve(IN_PAYLOAD, &named("file:/etc/passwd"), None).is_err());
        assert!(resolve(ModelBinding::Deployment("file:/models/m"), &[0x80], None).is_ok());
    }

    #[test]
    fn a_field_without_a_name_is_refused_by_name() {
        assert_eq!(resolve(IN_PAYLOAD, &[0x80], None).unwrap_err(), "field `model` must name a model");
        assert!(resolve(IN_PAYLOAD, &named(" "), None).is_err());
        assert!(resolve(IN_PAYLOAD, &[0x81, 0xa5, b'm', b'o', b'd', b'e', b'l', 7], None).is_err());
    }
}
