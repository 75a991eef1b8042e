//! Checkpoints as ONNX files.

use std::{fs, io, path::Path};

use prost::Message;

/// Numbers that a checkpoint takes.
const TAKES: usize = 1024;
/// Numbers that it gives.
const GIVES: usize = 2048;
/// The folder of all checkpoints, as references name it.
const FOLDER: &str = "zoo";

/// The reference of a checkpoint, counted from 1.
pub fn reference(number: usize) -> String {
    format!("{FOLDER}/checkpoint-{number:02}.onnx")
}

/// Writes so many checkpoints into a folder of models, of 8 MiB each. All of them are `y = x · w`; of checkpoint `n` each
/// number in `w` is `n / 1024`, so that each in `y` is `n` times the mean of `x`.
///
/// # Errors
/// The folder cannot be written to.
pub fn make(models: &Path, count: usize) -> io::Result<()> {
    fs::create_dir_all(models.join(FOLDER))?;
    (1..=count).try_for_each(|number| fs::write(models.join(reference(number)), onnx(number)))
}

fn onnx(number: usize) -> Vec<u8> {
    let weight = number as f32 / TAKES as f32;
    let graph = Graph {
        nodes: vec![Node {
            inputs: vec!["x".into(), "w".into()],
            outputs: vec!["y".into()],
            operator: "MatMul".into(),
        }],
        name: reference(number),
        initializers: vec![Tensor {
            dims: vec![TAKES as i64, GIVES as i64],
            data_type: F32,
            name: "w".into(),
            raw_data: weight.to_le_bytes().repeat(TAKES * GIVES),
        }],
        inputs: vec![row("x", TAKES)],
        outputs: vec![row("y", GIVES)],
    };
    Model { ir_version: 8, graph: Some(graph), opsets: vec![Opset { version: 13 }] }.encode_to_vec()
}

/// `f32[1, length]`.
fn row(name: &str, length: usize) -> Value {
    let axes = [1, length as i64].map(|length| Axis { length });
    let tensor = TensorType { element: F32, shape: Some(Shape { axes: axes.to_vec() }) };
    Value { name: name.into(), of: Some(Type { tensor: Some(tensor) }) }
}

/// `TensorProto.DataType.FLOAT`.
const F32: i32 = 1;

// What is needed of `onnx.proto3`, which has the numbers.

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opsets: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    operator: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    of: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    axes: Vec<Axis>,
}

#[derive(Clone, PartialEq, Message)]
struct Axis {
    #[prost(int64, tag = "1")]
    length: i64,
}
