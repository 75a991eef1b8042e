//! What a model takes and gives, and whether a call fits it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use ort::value::{Outlet, ValueType};

use crate::{
    error::ModelError,
    tensor::{ElementType, Tensor},
};

/// An input or output of a model. Displayed as `x f32[1, N]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements; `None`: one that [`Tensor`] does not hold.
    pub element: Option<ElementType>,
    /// The length of each axis; `None`: any.
    pub shape: Vec<Option<usize>>,
    /// The name of each axis; empty: it has none.
    symbols: Vec<String>,
    shown: String,
}

/// The inputs and outputs of a model, in the graph's order.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) inputs: Vec<TensorSpec>,
    pub(crate) outputs: Vec<TensorSpec>,
}

/// The inputs of a call.
pub(crate) type Inputs = BTreeMap<String, Tensor>;

impl TensorSpec {
    pub(crate) fn from_ort(outlet: &Outlet) -> Self {
        let name = outlet.name().to_owned();
        let dtype = outlet.dtype();
        let element = dtype.tensor_type().and_then(ElementType::from_ort);
        let shape: Vec<_> = dtype
            .tensor_shape()
            .iter()
            .flat_map(|shape| shape.iter())
            .map(|length| usize::try_from(*length).ok())
            .collect();
        let shown = match (dtype, element) {
            (ValueType::Tensor { dimension_symbols, .. }, Some(element)) => {
                format!("{name} {element}[{}]", axes(&shape, dimension_symbols))
            }
            _ => format!("{name} {dtype}"),
        };
        let symbols = match dtype {
            ValueType::Tensor { dimension_symbols, .. } => dimension_symbols.to_vec(),
            _ => Vec::new(),
        };
        Self { name, element, shape, symbols, shown }
    }

    /// The shape that it has when axes of these names have these lengths; `None`: that does not say.
    pub(crate) fn shape_with(&self, lengths: &HashMap<String, usize>) -> Option<Vec<usize>> {
        let axes = self.shape.iter().zip(&self.symbols);
        axes.map(|(length, symbol)| length.or_else(|| lengths.get(symbol).copied())).collect()
    }

    /// The lengths that a tensor gives to the axes that have names.
    pub(crate) fn lengths<'a>(&'a self, shape: &'a [usize]) -> impl Iterator<Item = (String, usize)> + 'a {
        let named = self.symbols.iter().zip(shape).filter(|(symbol, _)| !symbol.is_empty());
        named.map(|(symbol, length)| (symbol.clone(), *length))
    }

    pub(crate) fn fits_shape(&self, shape: &[usize]) -> bool {
        self.shape.len() == shape.len()
            && self
                .shape
                .iter()
                .zip(shape)
                .all(|(length, given)| length.is_none_or(|length| length == *given))
    }

    pub(crate) fn fits(&self, tensor: &Tensor) -> bool {
        self.element == Some(tensor.element()) && self.fits_shape(tensor.shape())
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Graph {
    /// Whether a call gives each input once and as the model takes it.
    pub(crate) fn check(&self, given: &Inputs) -> Result<(), ModelError> {
        let known = |name: &String| self.inputs.iter().any(|input| input.name == *name);
        if given.len() != self.inputs.len() || !given.keys().all(known) {
            return Err(ModelError::Inputs {
                expected: list(self.inputs.iter().map(ToString::to_string)),
                given: list(given.iter().map(|(name, tensor)| format!("{name} {tensor}"))),
            });
        }
        match self.inputs.iter().find(|input| !input.fits(&given[&input.name])) {
            None => Ok(()),
            Some(input) => Err(ModelError::Inputs {
                expected: input.to_string(),
                given: format!("{} {}", input.name, given[&input.name]),
            }),
        }
    }
}

/// Items with commas; `nothing` if there are none.
pub(crate) fn list(items: impl Iterator<Item = String>) -> String {
    let joined = items.collect::<Vec<_>>().join(", ");
    if joined.is_empty() { "nothing".into() } else { joined }
}

fn axes(shape: &[Option<usize>], symbols: &[String]) -> String {
    let axis = |(length, symbol): (&Option<usize>, &String)| match length {
        Some(length) => length.to_string(),
        None if symbol.is_empty() => "?".into(),
        None => symbol.clone(),
    };
    shape.iter().zip(symbols).map(axis).collect::<Vec<_>>().join(", ")
}
