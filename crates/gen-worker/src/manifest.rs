//! What a build needs to know of a worker: its functions with their schemas, and what `cozy.toml` says.

use gen_worker_core::{
    Algorithm, Digest, Function, FunctionSpec, ModelBinding, OutputMode, ResourceRequirements,
};
use serde_json::{Map, Value, json};

use crate::cozy_toml::CozyToml;

/// The manifest: functions in alphabetical order, handlers of realtime sessions left out.
pub(crate) fn manifest(functions: &[Function], cozy: &CozyToml) -> Value {
    let mut manifest = json!({"functions": listed(functions).into_iter().map(entry).collect::<Value>()});
    let parts = [
        ("deployment", cozy.deployment.as_ref().map(|id| json!(id))),
        ("build", cozy.base_image.as_ref().map(|image| json!({ "base_image": image }))),
        ("resources", (!cozy.resources.is_empty()).then(|| json!(cozy.resources))),
        ("models", (!cozy.models.is_empty()).then(|| models(cozy))),
    ];
    for (key, part) in parts.into_iter().filter_map(|(key, part)| Some((key, part?))) {
        manifest[key] = part;
    }
    manifest
}

fn models(cozy: &CozyToml) -> Value {
    let models = cozy.models.iter().map(|(key, model)| (key.clone(), model.as_str().into()));
    Value::Object(models.collect())
}

/// The same for people: a line for each function.
pub(crate) fn lines(functions: &[Function]) -> Vec<String> {
    listed(functions).into_iter().map(line).collect()
}

fn listed(functions: &[Function]) -> Vec<&FunctionSpec> {
    let specs = functions.iter().map(|function| &**function.spec());
    let mut specs: Vec<_> = specs.filter(|spec| !spec.is_realtime()).collect();
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    specs
}

fn entry(spec: &FunctionSpec) -> Value {
    let incremental = spec.output_mode == OutputMode::Incremental;
    let required_models = spec.injections.iter().filter_map(|injection| match injection.binding {
        ModelBinding::Deployment(key) => Some(key),
        ModelBinding::Payload(_) => None,
    });
    let mut entry = json!({
        "name": spec.name.as_str(),
        "module": spec.module,
        "resources": resources(&spec.resources),
        "payload_type": type_of(spec.input_type),
        "payload_schema_sha256": digest(&spec.input_schema),
        "input_schema": spec.input_schema,
        "output_type": type_of(spec.output_type),
        "output_schema_sha256": digest(&spec.output_schema),
        "output_schema": spec.output_schema,
        "output_mode": if incremental { "incremental" } else { "single" },
        "incremental_output": incremental,
        "injection_json": spec.injection_json(),
        "required_models": required_models.collect::<Vec<_>>(),
    });
    if incremental {
        entry["delta_type"] = entry["output_type"].clone();
        entry["delta_schema_sha256"] = entry["output_schema_sha256"].clone();
        entry["delta_output_schema"] = entry["output_schema"].clone();
    }
    entry
}

fn resources(asked: &ResourceRequirements) -> Value {
    let parts = [
        ("model_name", asked.model_name.as_ref().map(|name| json!(name))),
        ("model_family", asked.model_family.as_ref().map(|family| json!(family))),
        ("min_vram_gb", asked.min_vram_gb.map(|gib| json!(gib))),
        ("recommended_vram_gb", asked.recommended_vram_gb.map(|gib| json!(gib))),
        ("requires_gpu", asked.requires_gpu.then_some(json!(true))),
        ("max_concurrency", asked.max_concurrency.map(|most| json!(most))),
    ];
    let said = parts.into_iter().filter_map(|(key, part)| Some((key.to_owned(), part?)));
    Value::Object(said.collect::<Map<_, _>>())
}

/// `my_worker::Prompt` as a module and a name in it.
fn type_of(name: &str) -> Value {
    let path = &name[..name.find('<').unwrap_or(name.len())];
    let at = path.rfind("::");
    let (module, qualname) = at.map_or(("", name), |at| (&name[..at], &name[at + 2..]));
    json!({"module": module, "qualname": qualname})
}

/// Of the schema's compact text, whose keys are sorted.
fn digest(schema: &Value) -> String {
    Digest::of(Algorithm::Sha256, schema.to_string().as_bytes()).hex()
}

/// `draw {prompt, seed?} -> Picture · max_concurrency=1 · model base`
fn line(spec: &FunctionSpec) -> String {
    let fields = spec.input_fields();
    let fields =
        fields.iter().map(|(name, required)| if *required { (*name).to_owned() } else { format!("{name}?") });
    let output = type_of(spec.output_type);
    let output = output["qualname"].as_str().unwrap_or_default();
    let output =
        if spec.output_mode == OutputMode::Incremental { format!("{output}…") } else { output.to_owned() };
    let mut line = format!("{} {{{}}} -> {output}", spec.name, fields.collect::<Vec<_>>().join(", "));
    for (key, value) in resources(&spec.resources).as_object().into_iter().flatten() {
        line += &format!(" · {key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    for injection in &spec.injections {
        line += &format!(" · model {} of the {}", injection.binding.key(), injection.binding.source());
    }
    line
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{Call, DeltaStream, FunctionBuilder, ModelArtifacts, WorkerError};

    use super::*;

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[expect(dead_code, reason = "only its schema is looked at")]
    struct Prompt {
        prompt: String,
        #[serde(default)]
        seed: u32,
    }

    #[derive(serde::Serialize, schemars::JsonSchema)]
    struct Picture {
        width: u32,
    }

    fn draw() -> FunctionBuilder<Prompt> {
        Function::builder::<Prompt>("draw", "my_worker::pictures")
    }

    fn functions() -> Vec<Function> {
        let resources = ResourceRequirements { max_concurrency: 1.try_into().ok(), ..Default::default() };
        let draw = draw()
            .resources(resources)
            .model::<ModelArtifacts>("base", ModelBinding::Deployment("base"))
            .model::<ModelArtifacts>("extra", ModelBinding::Payload("prompt"))
            .asynchronous(|_: Call<Prompt>| async { Ok::<_, WorkerError>(Picture { width: 1 }) });
        let count = Function::builder::<Value>("count", "my_worker").asynchronous(|_: Call<Value>| async {
            Ok::<_, WorkerError>(DeltaStream::new(futures_util::stream::iter([Ok(Picture { width: 1 })])))
        });
        let live = Function::realtime("live", "my_worker")
            .asynchronous(|_: Call<gen_worker_core::RealtimeSocket>| async { Ok::<_, WorkerError>(()) });
        vec![draw.unwrap(), live.unwrap(), count.unwrap()]
    }

    /// Builders of other projects read it: a change here is a change of the contract (§6.5).
    #[test]
    fn the_manifest_has_the_keys_of_the_contract() {
        let (cozy, mistakes) = CozyToml::parse(
            "deployment = 'my-worker'\n[runtime]\nbase_image = 'debian'\n[resources]\nvram_gb = 8\n\
             [models]\nbase = 'org/repo'\n",
        );
        assert_eq!(mistakes, []);
        let manifest = manifest(&functions(), &cozy);
        let golden: Value = serde_json::from_str(include_str!("manifest/golden.json")).unwrap();
        assert_eq!(manifest, golden, "it is\n{manifest:#}");
        assert_eq!(self::manifest(&[], &CozyToml::default()), json!({"functions": []}));
    }

    #[test]
    fn a_schema_has_the_digest_that_the_contract_computes() {
        let schema = json!({
            "$defs": {"In": {
                "properties": {"n": {"default": 1, "type": "integer"}, "prompt": {"type": "string"}},
                "required": ["prompt"], "title": "In", "type": "object",
            }},
            "$ref": "#/$defs/In",
        });
        assert_eq!(digest(&schema), "6e0305167f3ea409f54503fc42f1f1b41514059cc5ed6650e5de4fe3097c1245");
    }

    #[test]
    fn a_type_is_a_module_and_a_name() {
        let parts = |name| {
            let of = type_of(name);
            (of["module"].as_str().unwrap().to_owned(), of["qualname"].as_str().unwrap().to_owned())
        };
        let owned = |module: &str, name: &str| (module.to_owned(), name.to_owned());
        assert_eq!(parts("a::b::C"), owned("a::b", "C"));
        assert_eq!(parts("alloc::vec::Vec<a::B>"), owned("alloc::vec", "Vec<a::B>"));
        assert_eq!(parts("()"), owned("", "()"));
    }

    #[test]
    fn for_people_a_function_is_a_line() {
        let expected = [
            "count {} -> Picture…",
            "draw {prompt, seed?} -> Picture · max_concurrency=1 · model base of the deployment · model prompt of the \
             payload",
        ];
        assert_eq!(lines(&functions()), expected);
    }
}
