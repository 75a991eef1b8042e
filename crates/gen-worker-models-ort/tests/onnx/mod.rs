//! ONNX files as they are needed, written field by field: `onnx.proto3` has the numbers.

/// A graph in the making.
#[derive(Clone)]
pub(crate) struct Onnx {
    opsets: Vec<(&'static str, i64)>,
    nodes: Vec<Vec<u8>>,
    inputs: Vec<Vec<u8>>,
    outputs: Vec<Vec<u8>>,
    initializers: Vec<Vec<u8>>,
}

/// `TensorProto.DataType`.
pub(crate) const F32: i64 = 1;

impl Onnx {
    pub(crate) fn new() -> Self {
        Self { opsets: vec![("", 13)], nodes: vec![], inputs: vec![], outputs: vec![], initializers: vec![] }
    }

    /// The domains and versions of the operators it uses, in the place of the standard ones, version 13.
    pub(crate) fn opsets(self, opsets: &[(&'static str, i64)]) -> Self {
        Self { opsets: opsets.to_vec(), ..self }
    }

    pub(crate) fn node(mut self, domain: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| bytes(&mut node, 1, name.as_bytes()));
        outputs.iter().for_each(|name| bytes(&mut node, 2, name.as_bytes()));
        bytes(&mut node, 4, op.as_bytes());
        bytes(&mut node, 7, domain.as_bytes());
        self.nodes.push(node);
        self
    }

    /// An axis below 0 has any length.
    pub(crate) fn input(mut self, name: &str, element: i64, shape: &[i64]) -> Self {
        self.inputs.push(value(name, element, shape));
        self
    }

    pub(crate) fn output(mut self, name: &str, element: i64, shape: &[i64]) -> Self {
        self.outputs.push(value(name, element, shape));
        self
    }

    pub(crate) fn weights(mut self, name: &str, shape: &[i64], numbers: &[f32]) -> Self {
        let mut tensor = Vec::new();
        shape.iter().for_each(|length| number(&mut tensor, 1, *length));
        number(&mut tensor, 2, F32);
        bytes(&mut tensor, 8, name.as_bytes());
        bytes(&mut tensor, 9, &numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>());
        self.initializers.push(tensor);
        self
    }

    /// Numbers that lie in a file beside the graph, from `offset` on.
    pub(crate) fn weights_beside(mut self, name: &str, shape: &[i64], file: &str, offset: u64) -> Self {
        let length = shape.iter().product::<i64>() * 4;
        let mut tensor = Vec::new();
        shape.iter().for_each(|length| number(&mut tensor, 1, *length));
        number(&mut tensor, 2, F32);
        bytes(&mut tensor, 8, name.as_bytes());
        for (key, value) in
            [("location", file), ("offset", &offset.to_string()), ("length", &length.to_string())]
        {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, key.as_bytes());
            bytes(&mut entry, 2, value.as_bytes());
            bytes(&mut tensor, 13, &entry);
        }
        number(&mut tensor, 14, 1);
        self.initializers.push(tensor);
        self
    }

    /// The file.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut graph = Vec::new();
        for (field, parts) in
            [(1, &self.nodes), (5, &self.initializers), (11, &self.inputs), (12, &self.outputs)]
        {
            parts.iter().for_each(|part| bytes(&mut graph, field, part));
        }
        bytes(&mut graph, 2, b"made");
        let mut model = Vec::new();
        number(&mut model, 1, 8);
        bytes(&mut model, 7, &graph);
        for (domain, version) in &self.opsets {
            let mut opset = Vec::new();
            bytes(&mut opset, 1, domain.as_bytes());
            number(&mut opset, 2, *version);
            bytes(&mut model, 8, &opset);
        }
        model
    }
}

fn value(name: &str, element: i64, shape: &[i64]) -> Vec<u8> {
    let mut axes = Vec::new();
    for length in shape {
        let mut axis = Vec::new();
        match length {
            ..0 => bytes(&mut axis, 2, b"N"),
            _ => number(&mut axis, 1, *length),
        }
        bytes(&mut axes, 1, &axis);
    }
    let mut tensor = Vec::new();
    number(&mut tensor, 1, element);
    bytes(&mut tensor, 2, &axes);
    let mut of_tensor = Vec::new();
    bytes(&mut of_tensor, 1, &tensor);
    let mut value = Vec::new();
    bytes(&mut value, 1, name.as_bytes());
    bytes(&mut value, 2, &of_tensor);
    value
}

fn number(out: &mut Vec<u8>, field: u64, number: i64) {
    varint(out, field << 3);
    varint(out, number as u64);
}

fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
