//! What a call of a model gave.

use gen_worker_core::WorkerError;
use ndarray::ArrayD;

use crate::{
    error::ModelError,
    graph::list,
    model::reported,
    tensor::{Element, Tensor},
};

/// What a call gave, by name.
#[derive(Debug)]
pub struct Outputs(Vec<(String, Tensor)>);

impl Outputs {
    pub(crate) fn new(tensors: Vec<(String, Tensor)>) -> Self {
        Self(tensors)
    }

    /// Takes an output out, as an array of `T`.
    ///
    /// # Errors
    /// `validation`: the model gave no such output, or one of another type.
    pub fn take<T: Element>(&mut self, name: &str) -> Result<ArrayD<T>, WorkerError> {
        let position = self.0.iter().position(|(given, _)| given == name);
        self.take_at(position, name)
    }

    /// Takes the first output out, as an array of `T`: for models whose outputs have any name.
    ///
    /// # Errors
    /// `validation`: the model gave no output, or one of another type.
    pub fn take_first<T: Element>(&mut self) -> Result<ArrayD<T>, WorkerError> {
        let position = (!self.0.is_empty()).then_some(0);
        self.take_at(position, "an output")
    }

    fn take_at<T: Element>(
        &mut self,
        position: Option<usize>,
        asked: &str,
    ) -> Result<ArrayD<T>, WorkerError> {
        let taken = position.map(|position| self.0.remove(position));
        let given = match taken {
            Some((name, tensor)) => match T::take(tensor) {
                Ok(array) => return Ok(array),
                Err(tensor) => format!("{name} {tensor}"),
            },
            None => list(self.0.iter().map(|(name, tensor)| format!("{name} {tensor}"))),
        };
        Err(reported(ModelError::Outputs { expected: format!("{asked} {}", T::TYPE), given }))
    }
}

impl IntoIterator for Outputs {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
