//! Tensors that stay where a graph runs from one call to the next.

use std::{collections::HashMap, fmt, sync::Arc};

use gen_worker_core::WorkerError;
use ndarray::ArrayD;
use ort::{
    memory::{AllocationDevice, Allocator},
    session::{RunOptions, Session},
    value::{DynTensor, DynTensorValueType},
};
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

use crate::{
    block::block_on,
    config::Provider,
    error::{self, ModelError},
    graph::{Graph, Inputs, TensorSpec, list},
    model::{OrtSession, reported},
    outputs::Outputs,
    pool::Work,
    session,
    tensor::{Element, ElementType, Tensor},
};

/// The inputs and outputs of a session, kept between calls: [`OrtSession::bind`] makes one.
///
/// Outputs whose shapes follow from the inputs' are written to the same memory in every call, and what is carried goes to and fro
/// between two buffers. A graph may be wrong about the shapes of its outputs: then the first call is made twice, and these outputs
/// get memory of their own in each. A session is taken for each call only: others may call the model in between. A call that
/// failed, or was dropped, can be made again: it changes no input.
pub struct OrtBinding {
    /// A call has it while it runs, and a call that was dropped until it has ended. It goes before the lease: its tensors may be on
    /// a card.
    bound: Arc<Mutex<Bound>>,
    session: OrtSession,
}

struct Bound {
    /// Where tensors are.
    place: (Provider, usize),
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

struct Input {
    spec: TensorSpec,
    value: DynTensor,
    /// Whether the library made it, so that it can write to it.
    is_buffer: bool,
}

struct Output {
    spec: TensorSpec,
    element: ElementType,
    /// The shape that the next call is taken to give it; `None`: the library says with each call.
    shape: Option<Vec<usize>>,
    /// A call gave it another one.
    is_unforeseen: bool,
    /// The input that it becomes.
    becomes: Option<usize>,
    /// Where the next call writes it, if the shape is right.
    buffer: Option<DynTensor>,
    /// What the last call gave, unless it became an input.
    last: Option<DynTensor>,
    /// Whether there was a call that gave it, and none that failed on it since.
    is_given: bool,
}

impl OrtBinding {
    pub(crate) fn new(
        session: OrtSession,
        graph: &Graph,
        place: (Provider, usize),
        mut given: Inputs,
        carried: &[(&str, &str)],
    ) -> Result<Self, ModelError> {
        graph.check(&given)?;
        let inputs = graph
            .inputs
            .iter()
            .filter_map(|spec| Some(Input::new(spec.clone(), given.remove(&spec.name)?)))
            .collect::<Result<_, _>>()?;
        let outputs = graph.outputs.iter().map(|spec| Output::new(spec.clone())).collect::<Result<_, _>>()?;
        let mut bound = Bound { place, inputs, outputs };
        for &(from, to) in carried {
            bound.carry(from, to).map_err(|reason| ModelError::Binding {
                from: from.to_owned(),
                to: to.to_owned(),
                reason,
            })?;
        }
        bound.lay_out();
        Ok(Self { session, bound: Arc::new(Mutex::new(bound)) })
    }

    /// Replaces an input, from the next call on. One that is carried begins anew with it.
    ///
    /// # Errors
    /// `validation`: the graph has no such input, or takes another type or shape.
    pub fn set(&mut self, name: &str, tensor: impl Into<Tensor>) -> Result<(), WorkerError> {
        self.bound().set(name, tensor.into()).map_err(reported)
    }

    /// Calls the graph once.
    ///
    /// # Errors
    /// As of [`OrtSession::run`]; and `validation`: what is carried got a shape that the input does not take.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference. The inputs are as before.
    pub async fn run(&mut self) -> Result<(), WorkerError> {
        let call = Call(self.bound.clone().lock_owned().await);
        let (Call(mut bound), given) = self.session.call(call).await?;
        bound.take(given);
        Ok(())
    }

    /// Like [`run`](Self::run), on the caller's thread, which it blocks.
    ///
    /// # Errors
    /// As of `run`.
    pub fn run_blocking(&mut self) -> Result<(), WorkerError> {
        let mut call = Call(block_on(self.bound.clone().lock_owned()));
        let given = self.session.call_blocking(&mut call)?;
        call.0.take(given);
        Ok(())
    }

    /// A copy in main memory of what the last call gave.
    ///
    /// # Errors
    /// `validation`: the graph has no such output, none has been made yet, or it is of another type. `internal`: it cannot be
    /// copied from the device.
    pub fn get<T: Element>(&self, name: &str) -> Result<ArrayD<T>, WorkerError> {
        let tensor = self.bound().copy(name).map_err(reported)?;
        Outputs::new(vec![(name.to_owned(), tensor)]).take(name)
    }

    /// Whether the last call's output is in the memory of a card; `None`: there is no such output, or there was no call yet.
    pub fn is_on_device(&self, name: &str) -> Option<bool> {
        self.bound().last(name).map(is_on_device)
    }

    /// Waits for a call that was dropped and has not quite ended.
    fn bound(&self) -> MutexGuard<'_, Bound> {
        block_on(self.bound.lock())
    }
}

/// One call of what is bound. Whoever hears that it has ended has what was bound take what it gave.
struct Call(OwnedMutexGuard<Bound>);

/// What a call gave, output by output; `None`: it is in the output's buffer.
type Given = Vec<Option<DynTensor>>;

impl Work for Call {
    type Output = Given;

    fn elements(&self) -> usize {
        self.0.inputs.iter().map(|input| input.value.shape().num_elements()).sum()
    }

    fn run(&mut self, session: &mut Session, options: &RunOptions) -> Result<Given, ModelError> {
        self.0.run(session, options)
    }
}

impl Input {
    fn new(spec: TensorSpec, tensor: Tensor) -> Result<Self, ModelError> {
        let value = value_of(&spec, tensor)?;
        Ok(Self { spec, value, is_buffer: false })
    }
}

impl Output {
    fn new(spec: TensorSpec) -> Result<Self, ModelError> {
        let element = spec.element.filter(|element| *element != ElementType::String).ok_or_else(|| {
            ModelError::Outputs { expected: "tensors of numbers or bools".into(), given: spec.to_string() }
        })?;
        Ok(Self {
            spec,
            element,
            shape: None,
            is_unforeseen: false,
            becomes: None,
            buffer: None,
            last: None,
            is_given: false,
        })
    }
}

impl Bound {
    fn carry(&mut self, from: &str, to: &str) -> Result<(), &'static str> {
        let output = self.outputs.iter_mut().find(|output| output.spec.name == from);
        let output = output.ok_or("the graph has no such output")?;
        let input = self.inputs.iter().position(|input| input.spec.name == to);
        let input = input.ok_or("the graph has no such input")?;
        if self.inputs[input].spec.element != Some(output.element) {
            return Err("they have not the same type");
        }
        if output.becomes.replace(input).is_some() {
            return Err("the output is carried already");
        }
        let carried = self.outputs.iter().filter(|output| output.becomes == Some(input));
        if carried.count() > 1 { Err("another output is carried there") } else { Ok(()) }
    }

    /// Finds out what shapes outputs will have, if the graph is right about them. Of one that is carried it may say too little;
    /// most often it is that of the input.
    fn lay_out(&mut self) {
        let mut lengths = HashMap::new();
        for input in &self.inputs {
            lengths.extend(input.spec.lengths(&shape_of(&input.value)));
        }
        for output in &mut self.outputs {
            let before = || output.becomes.map(|input| shape_of(&self.inputs[input].value));
            output.shape = match output.is_unforeseen {
                false => output.spec.shape_with(&lengths).or_else(before),
                true => None,
            };
        }
    }

    fn set(&mut self, name: &str, tensor: Tensor) -> Result<(), ModelError> {
        let names = || list(self.inputs.iter().map(|input| input.spec.to_string()));
        let given = || format!("{name} {tensor}");
        let Some(at) = self.inputs.iter().position(|input| input.spec.name == name) else {
            return Err(ModelError::Inputs { expected: names(), given: given() });
        };
        let input = &self.inputs[at];
        if !input.spec.fits(&tensor) {
            return Err(ModelError::Inputs { expected: input.spec.to_string(), given: given() });
        }
        self.inputs[at] = Input::new(input.spec.clone(), tensor)?;
        // What the last call gave for it is gone.
        self.outputs
            .iter_mut()
            .filter(|output| output.becomes == Some(at))
            .for_each(|output| output.is_given = false);
        self.lay_out();
        Ok(())
    }

    /// One call, which changes nothing that is seen outside but outputs that it may have written to.
    fn run(&mut self, session: &mut Session, options: &RunOptions) -> Result<Given, ModelError> {
        let given = match self.call(session, options) {
            Err(error) if error::refuses_a_buffer(error.message()) => {
                self.call_without_buffers(session, options)
            }
            given => given,
        };
        let given = given.map_err(ModelError::run)?;
        for (output, given) in self.outputs.iter().zip(&given) {
            let (Some(input), Some(value)) = (output.becomes, given.as_ref().or(output.buffer.as_ref()))
            else {
                continue;
            };
            let input = &self.inputs[input].spec;
            if !input.fits_shape(&shape_of(value)) {
                return Err(ModelError::Binding {
                    from: output.spec.name.clone(),
                    to: input.name.clone(),
                    reason: "it got a shape that the input does not take",
                });
            }
        }
        Ok(given)
    }

    fn call_without_buffers(&mut self, session: &mut Session, options: &RunOptions) -> ort::Result<Given> {
        let foreseen: Vec<_> = self.outputs.iter_mut().map(|output| output.shape.take()).collect();
        let given = self.call(session, options);
        for (at, (output, foreseen)) in self.outputs.iter_mut().zip(foreseen).enumerate() {
            let found = given.as_ref().ok().and_then(|given| given[at].as_ref()).map(shape_of);
            output.is_unforeseen |= found.is_some() && foreseen.is_some() && found != foreseen;
        }
        self.lay_out();
        given
    }

    fn call(&mut self, session: &mut Session, options: &RunOptions) -> ort::Result<Given> {
        let (provider, device) = self.place;
        let memory = session::memory_of(session, provider, device)?;
        let mut binding = session.create_binding()?;
        for input in &mut self.inputs {
            if provider.is_nvidia() && !is_on_device(&input.value) {
                input.value = input.value.to(AllocationDevice::CUDA, device as i32)?;
            }
            binding.bind_input(input.spec.name.as_str(), &input.value)?;
        }
        for output in &mut self.outputs {
            output.make_ready(&memory)?;
            let name = output.spec.name.as_str();
            match &mut output.buffer {
                Some(buffer) => binding.bind_output(name, buffer)?,
                None => binding.bind_output_to_device(name, memory.memory_info())?,
            }
        }
        let mut given = session.run_binding_with_options(&binding, options)?;
        let given = self.outputs.iter().map(|output| match output.buffer {
            Some(_) => Ok(None),
            None => given
                .remove(output.spec.name.as_str())
                .ok_or_else(|| ort::Error::new("an output is missing"))?
                .downcast::<DynTensorValueType>()
                .map(Some),
        });
        given.collect()
    }

    /// Outputs are there, and what is carried becomes an input.
    fn take(&mut self, given: Given) {
        let mut is_reshaped = false;
        for (output, given) in self.outputs.iter_mut().zip(given) {
            let Some(value) = given.or_else(|| output.buffer.take()) else { continue };
            output.is_given = true;
            match output.becomes {
                None => output.last = Some(value),
                Some(input) => {
                    let input = &mut self.inputs[input];
                    is_reshaped |= shape_of(&input.value) != shape_of(&value);
                    let before = std::mem::replace(&mut input.value, value);
                    output.buffer = std::mem::replace(&mut input.is_buffer, true).then_some(before);
                }
            }
        }
        if is_reshaped {
            self.lay_out();
        }
    }

    fn last(&self, name: &str) -> Option<&DynTensor> {
        let output = self.outputs.iter().find(|output| output.spec.name == name && output.is_given)?;
        match output.becomes {
            Some(input) => Some(&self.inputs[input].value),
            None => output.last.as_ref(),
        }
    }

    fn copy(&self, name: &str) -> Result<Tensor, ModelError> {
        let Some(value) = self.last(name) else {
            let given = self.outputs.iter().filter(|output| output.is_given);
            let given = list(given.map(|output| output.spec.to_string()));
            return Err(ModelError::Outputs { expected: name.to_owned(), given });
        };
        match is_on_device(value) {
            true => Tensor::from_ort(name, &value.to(AllocationDevice::CPU, 0).map_err(ModelError::run)?),
            false => Tensor::from_ort(name, value),
        }
    }
}

impl Output {
    /// A buffer, if its shape is known; else the library makes one.
    fn make_ready(&mut self, memory: &Allocator) -> ort::Result<()> {
        let last = self.last.take();
        // What was there may be overwritten; what became an input is not.
        self.is_given &= self.becomes.is_some();
        let Some(shape) = &self.shape else {
            self.buffer = None;
            return Ok(());
        };
        let axes: Vec<_> = shape.iter().map(|length| *length as i64).collect();
        let fits = self.buffer.take().or(last).filter(|buffer| shape_of(buffer) == *shape);
        self.buffer = Some(match fits {
            Some(buffer) => buffer,
            None => DynTensor::new(memory, self.element.to_ort(), axes)?,
        });
        Ok(())
    }
}

fn value_of(spec: &TensorSpec, tensor: Tensor) -> Result<DynTensor, ModelError> {
    if tensor.element() == ElementType::String {
        return Err(ModelError::Inputs {
            expected: "tensors of numbers or bools".into(),
            given: spec.to_string(),
        });
    }
    tensor.into_ort()?.downcast::<DynTensorValueType>().map_err(ModelError::run)
}

fn shape_of(value: &DynTensor) -> Vec<usize> {
    value.shape().iter().map(|length| *length as usize).collect()
}

fn is_on_device(value: &DynTensor) -> bool {
    !value.memory_info().is_cpu_accessible()
}

impl fmt::Debug for OrtBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrtBinding({:?})", self.session)
    }
}

#[cfg(test)]
mod tests;
