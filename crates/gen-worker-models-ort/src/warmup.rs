//! A call of each session with the example that lies beside a graph, so that no run pays for what a first call prepares.

use std::{
    fs::File,
    io::Read,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use gen_worker_core::{ByteSize, LocalModel};
use half::{bf16, f16};
use ndarray::ArrayD;
use ort::session::{RunOptions, Session};
use serde_json::{Map, Value};

use crate::{
    config::WARM_UP,
    error::ModelError,
    graph::{Graph, Inputs},
    session::{self, Values},
    tensor::{ElementType, Tensor},
};

/// The example's name: a JSON object with an object for each input, `{"x": {"shape": [1, 3], "data": [1, 2, 3]}}`. Without
/// `data` it is all zeros, empty texts or `false`.
const EXAMPLE: &str = "warmup.json";
/// Most elements of an input: 64 MiB of 32-bit numbers.
const MAX_ELEMENTS: usize = 1 << 24;
/// Longest example: a million numbers with all their digits. Larger inputs can do without `data`.
const MAX_FILE: ByteSize = ByteSize::mib(16);

/// Why the example is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExampleError {
    #[error("{EXAMPLE} cannot be read")]
    Unreadable(#[from] std::io::Error),
    #[error("{EXAMPLE} has more than {MAX_FILE}: leave out `data`, which is zeros then")]
    TooLong,
    #[error("{EXAMPLE} is no JSON object")]
    Json(#[from] serde_json::Error),
    #[error(
        "{EXAMPLE} has no `{input}` with a `shape` of at most {MAX_ELEMENTS} elements and as many `data` of its type"
    )]
    Input { input: String },
}

/// Why a model was not warmed up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WarmUpError {
    #[error("its example is of no use")]
    Example(#[from] ExampleError),
    #[error("its example does not run")]
    Call(#[from] ModelError),
    #[error("its example takes more than {limit:?}: {} says how long it may take", WARM_UP.name)]
    TooLong { limit: Duration },
}

/// Calls each session once, one after the other and within `limit`, and says how many they were. Blocks.
pub(crate) fn warm_up(
    sessions: &mut [Session],
    graph: &Graph,
    example: Result<Inputs, ExampleError>,
    limit: Duration,
) -> Result<usize, WarmUpError> {
    let (example, started) = (example?, Instant::now());
    graph.check(&example)?;
    let values = session::values(example)?;
    sessions.iter_mut().try_fold(0, |called, session| {
        let is_in_time = call_within(limit.saturating_sub(started.elapsed()), session, &values)?;
        if is_in_time { Ok(called + 1) } else { Err(WarmUpError::TooLong { limit }) }
    })
}

/// One call, which another thread ends when it takes too long; false: it did.
fn call_within(limit: Duration, session: &mut Session, values: &Values) -> Result<bool, ModelError> {
    let options = &RunOptions::new().map_err(ModelError::run)?;
    let (done, waited_for) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watch = move || {
            let is_late = waited_for.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            is_late.then(|| options.terminate())
        };
        let watch = thread::Builder::new()
            .name("ort-warm-up".into())
            .spawn_scoped(scope, watch)
            .map_err(|source| ModelError::Thread { source: source.into() })?;
        let outputs = session::run(session, values, options);
        drop(done);
        match watch.join() {
            Ok(None) => outputs.map(|_| true),
            Ok(Some(_)) | Err(_) => Ok(false),
        }
    })
}

/// The inputs of the example; `None`: there is none.
pub(crate) fn example(
    local: &LocalModel,
    file: &Path,
    graph: &Graph,
) -> Option<Result<Inputs, ExampleError>> {
    let wanted = file.with_file_name(EXAMPLE);
    let found = local.files.values().find(|file| **file == wanted)?;
    Some(read(found, graph))
}

fn read(file: &Path, graph: &Graph) -> Result<Inputs, ExampleError> {
    let mut text = Vec::new();
    File::open(file)?.take(MAX_FILE.0 + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE.0 {
        return Err(ExampleError::TooLong);
    }
    let given: Map<String, Value> = serde_json::from_slice(&text)?;
    let inputs = graph.inputs.iter().map(|spec| {
        let tensor =
            given.get(&spec.name).zip(spec.element).and_then(|(given, element)| tensor(element, given));
        let tensor = tensor.ok_or_else(|| ExampleError::Input { input: spec.name.clone() })?;
        Ok((spec.name.clone(), tensor))
    });
    inputs.collect()
}

fn tensor(element: ElementType, given: &Value) -> Option<Tensor> {
    let float = |value: &Value| value.as_f64();
    Some(match element {
        ElementType::F16 => array(given, |value| float(value).map(f16::from_f64))?.into(),
        ElementType::Bf16 => array(given, |value| float(value).map(bf16::from_f64))?.into(),
        ElementType::F32 => array(given, |value| float(value).map(|number| number as f32))?.into(),
        ElementType::F64 => array(given, float)?.into(),
        ElementType::I64 => array(given, Value::as_i64)?.into(),
        ElementType::I32 => array::<i32>(given, signed)?.into(),
        ElementType::I16 => array::<i16>(given, signed)?.into(),
        ElementType::I8 => array::<i8>(given, signed)?.into(),
        ElementType::U64 => array(given, Value::as_u64)?.into(),
        ElementType::U32 => array::<u32>(given, unsigned)?.into(),
        ElementType::U16 => array::<u16>(given, unsigned)?.into(),
        ElementType::U8 => array::<u8>(given, unsigned)?.into(),
        ElementType::Bool => array(given, Value::as_bool)?.into(),
        ElementType::String => array(given, |value| value.as_str().map(str::to_owned))?.into(),
    })
}

fn signed<T: TryFrom<i64>>(value: &Value) -> Option<T> {
    value.as_i64()?.try_into().ok()
}

fn unsigned<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    value.as_u64()?.try_into().ok()
}

fn array<T: Clone + Default>(given: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<ArrayD<T>> {
    let axes = given.get("shape")?.as_array()?.iter();
    let shape: Vec<usize> = axes.map(|length| length.as_u64()?.try_into().ok()).collect::<Option<_>>()?;
    let elements = shape.iter().try_fold(1_usize, |all, length| all.checked_mul(*length));
    let elements = elements.filter(|all| *all <= MAX_ELEMENTS)?;
    let data = match given.get("data") {
        Some(data) => data.as_array()?.iter().map(read).collect::<Option<_>>()?,
        None => vec![T::default(); elements],
    };
    ArrayD::from_shape_vec(shape, data).ok()
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_example_is_read_as_the_graphs_type() {
        let of = |element, data| tensor(element, &json!({"shape": [1, 2], "data": data}));
        assert_eq!(of(ElementType::F32, json!([1, 2.5])), Some(array![[1.0_f32, 2.5]].into()));
        assert_eq!(of(ElementType::Bool, json!([true, false])), Some(array![[true, false]].into()));
        assert_eq!(
            of(ElementType::String, json!(["a", ""])),
            Some(array![["a".to_owned(), String::new()]].into())
        );
        assert_eq!(tensor(ElementType::U8, &json!({"shape": [2]})), Some(array![0_u8, 0].into()));
        for (element, data) in [
            (ElementType::I64, json!([1.5, 2])),
            (ElementType::U8, json!([1, 256])),
            (ElementType::F32, json!([1])),
            (ElementType::F32, json!({})),
        ] {
            assert_eq!(of(element, data), None);
        }
        assert_eq!(tensor(ElementType::U8, &json!({"shape": [1 << 24, 2]})), None);
        assert_eq!(tensor(ElementType::U8, &json!({"shape": [-1]})), None);
    }
}
