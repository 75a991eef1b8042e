//! Functions that return one value, with every key of the attribute.
#![deny(unsafe_code, missing_docs, warnings)]

use gen_worker::{ActionContext, RawOutput, ResourceRequirements, WorkerError, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A payload.
#[derive(Deserialize, JsonSchema)]
pub struct Prompt {
    text: String,
}

#[derive(Serialize, JsonSchema)]
struct Reply {
    text: String,
}

#[worker_function]
async fn bare(_ctx: ActionContext, input: Prompt) -> Result<Reply, WorkerError> {
    Ok(Reply { text: input.text })
}

#[worker_function()]
fn blocking(_ctx: ActionContext, Prompt { text }: Prompt) -> Result<Reply, WorkerError> {
    Ok(Reply { text })
}

#[worker_function(
    name = "every/key",
    model_family = "sdxl",
    model_name = "sdxl-turbo",
    requires_gpu = true,
    max_concurrency = 2,
    min_vram_gb = 8,
    recommended_vram_gb = 12.5
)]
async fn every_key(_ctx: gen_worker::ActionContext, _input: Prompt) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_function]
async fn untyped(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function]
fn untyped_map(_ctx: ActionContext, mut input: Map<String, Value>) -> Result<Option<Value>, WorkerError> {
    Ok(input.remove("x"))
}

#[worker_function]
async fn own_error(_ctx: ActionContext, input: Prompt) -> std::io::Result<Reply> {
    Ok(Reply { text: input.text })
}

#[worker_function]
async fn parse_error(_ctx: ActionContext, input: Prompt) -> Result<i64, std::num::ParseIntError> {
    input.text.parse()
}

#[worker_function]
async fn raw(_ctx: ActionContext, input: Prompt) -> Result<RawOutput, WorkerError> {
    Ok(RawOutput::bytes(input.text, "text/plain"))
}

/// Functions elsewhere.
pub mod nested {
    use super::*;

    /// A function with a keyword as its name.
    #[worker_function]
    pub async fn r#match(_ctx: ActionContext, _input: Prompt) -> Result<(), WorkerError> {
        Ok(())
    }
}

macro_rules! function_of {
    ($name:ident, $payload:ty) => {
        #[worker_function]
        async fn $name(_ctx: ActionContext, _input: $payload) -> Result<(), WorkerError> {
            Ok(())
        }
    };
}
function_of!(written_by_a_macro, Prompt);

fn main() {
    let mut names: Vec<_> = gen_worker::__private::registered()
        .iter()
        .map(|function| function.spec().name.to_string())
        .collect();
    names.sort();
    let expected = [
        "bare",
        "blocking",
        "every/key",
        "match",
        "own_error",
        "parse_error",
        "raw",
        "untyped",
        "untyped_map",
        "written_by_a_macro",
    ];
    assert_eq!(names, expected);

    let resources = ResourceRequirements {
        model_name: Some("sdxl-turbo".to_owned()),
        model_family: Some("sdxl".to_owned()),
        min_vram_gb: Some(8.0),
        recommended_vram_gb: Some(12.5),
        requires_gpu: true,
        max_concurrency: std::num::NonZeroU32::new(2),
    };
    assert_eq!(gen_worker::function!(every_key).spec().resources, resources);
    assert_eq!(
        gen_worker::function!(bare).spec().resources,
        ResourceRequirements::default()
    );

    let nested = gen_worker::function!(nested::r#match);
    assert!(nested.spec().module.ends_with("::nested"));
}
