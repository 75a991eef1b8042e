//! What is known of a function before it is called.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use crate::{extract::StateType, id::FunctionName, need::ModelNeed, units::ByteSize};

/// What a function asks of the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResourceRequirements {
    /// The model it was written for, for people and schedulers.
    pub model_name: Option<String>,
    /// The family its models belong to, such as `sdxl`.
    pub model_family: Option<String>,
    /// Device memory without which it cannot run, in GiB.
    pub min_vram_gb: Option<f64>,
    /// Device memory with which it runs well, in GiB.
    pub recommended_vram_gb: Option<f64>,
    /// Whether it holds a GPU while it runs.
    pub requires_gpu: bool,
    /// How many of its runs may go on at once; `None`: as many as the worker allows.
    pub max_concurrency: Option<NonZeroU32>,
}

impl ResourceRequirements {
    /// `min_vram_gb` in bytes.
    pub fn min_vram(&self) -> Option<ByteSize> {
        self.min_vram_gb.map(|gib| ByteSize((gib * ByteSize::gib(1).0 as f64) as u64))
    }
}

/// Where the reference of an injected model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelBinding {
    /// The deployment's configuration, under this key.
    Deployment(&'static str),
    /// This field of the payload.
    Payload(&'static str),
}

impl ModelBinding {
    /// The word on the wire: `deployment` or `payload`.
    pub const fn source(self) -> &'static str {
        match self {
            Self::Deployment(_) => "deployment",
            Self::Payload(_) => "payload",
        }
    }

    /// The deployment's key or the payload's field.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Deployment(key) | Self::Payload(key) => key,
        }
    }
}

/// One parameter of a function that the worker fills with a model.
#[derive(Debug, Clone, Copy)]
pub struct InjectionSpec {
    /// The parameter's name.
    pub param: &'static str,
    /// Its type's name.
    pub type_name: &'static str,
    /// Where the reference comes from.
    pub binding: ModelBinding,
    /// What must be there before the function is called.
    pub need: ModelNeed,
}

/// How a function's output comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputMode {
    /// One value.
    Single,
    /// One file or byte string.
    Raw,
    /// A stream of deltas.
    Incremental,
    /// Frames, while frames come in: a handler of realtime sessions.
    Realtime,
}

/// A function as it is registered.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Its name on the wire.
    pub name: FunctionName,
    /// The Rust module it was written in.
    pub module: &'static str,
    /// What it asks of the machine.
    pub resources: ResourceRequirements,
    /// The Rust type of its payload.
    pub input_type: &'static str,
    /// The Rust type of its output, or of one delta.
    pub output_type: &'static str,
    /// The schema of its payload.
    pub input_schema: Value,
    /// The schema of its output, or of one delta when the output is incremental.
    pub output_schema: Value,
    /// How its output comes.
    pub output_mode: OutputMode,
    /// The models it is called with, in the order of its parameters.
    pub injections: Vec<InjectionSpec>,
    /// The values of the application that it takes.
    pub states: Vec<StateType>,
}

impl FunctionSpec {
    /// Whether it serves realtime sessions, and no runs.
    pub fn is_realtime(&self) -> bool {
        self.output_mode == OutputMode::Realtime
    }

    /// The injections as the wire carries them.
    pub fn injection_json(&self) -> Value {
        self.injections
            .iter()
            .map(|injection| {
                json!({
                    "model_ref": {"key": injection.binding.key(), "source": injection.binding.source()},
                    "param": injection.param,
                    "type": injection.type_name,
                })
            })
            .collect()
    }

    /// The fields of the payload's type, and whether each must be there.
    pub fn input_fields(&self) -> Vec<(&str, bool)> {
        let object = self.input_object();
        let required = |name: &str| {
            let names = object.get("required").and_then(Value::as_array);
            names.is_some_and(|names| names.iter().any(|each| each == name))
        };
        let properties = object.get("properties").and_then(Value::as_object);
        properties.into_iter().flatten().map(|(name, _)| (name.as_str(), required(name))).collect()
    }

    /// The schema of a field of the payload's type; `None` when the type has no such field.
    pub fn input_field(&self, field: &str) -> Option<&Value> {
        self.input_object().get("properties")?.get(field)
    }

    /// The schema of the payload's type itself.
    fn input_object(&self) -> &Value {
        let root = self.input_schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        root.and_then(|pointer| self.input_schema.pointer(pointer)).unwrap_or(&self.input_schema)
    }
}
