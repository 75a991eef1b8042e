//! Names that macro output uses. Nobody else may: they change without notice.

use std::{any::type_name, process::ExitCode, sync::Arc};

use gen_worker_core::ports::ModelManager;
use gen_worker_runtime::WorkerBuilder;

pub use gen_worker_core::{
    Call, DeltaStream, Extract, Function, FunctionError, ModelBinding, ModelNeed, ResourceRequirements,
    SetUp, TakesState, TearDown, WorkerError,
};
pub use inventory::submit;

/// A function that registers itself when the binary is linked.
pub struct Registration {
    /// Makes the function.
    pub make: fn() -> Function,
}

inventory::collect!(Registration);

/// Every function that registered itself, in no particular order.
pub fn registered() -> Vec<Function> {
    inventory::iter::<Registration>.into_iter().map(|registration| (registration.make)()).collect()
}

/// What is done before the first run, registered when the binary is linked.
pub struct SetUpRegistration {
    /// Makes it.
    pub make: fn() -> SetUp,
}

inventory::collect!(SetUpRegistration);

/// What is done after the last run, registered when the binary is linked.
pub struct TearDownRegistration {
    /// Makes it.
    pub make: fn() -> TearDown,
}

inventory::collect!(TearDownRegistration);

/// What `main!` is given.
pub struct Configuration {
    /// Changes the worker before it is built.
    pub configure: fn(WorkerBuilder) -> WorkerBuilder,
}

inventory::collect!(Configuration);

/// The worker with every hook that registered itself, and as `main!` was told.
pub(crate) fn configured(builder: WorkerBuilder) -> WorkerBuilder {
    let set_ups = inventory::iter::<SetUpRegistration>.into_iter();
    let builder = set_ups.fold(builder, |builder, one| builder.set_up((one.make)()));
    let tear_downs = inventory::iter::<TearDownRegistration>.into_iter();
    let builder = tear_downs.fold(builder, |builder, one| builder.tear_down((one.make)()));
    inventory::iter::<Configuration>.into_iter().fold(builder, |builder, one| (one.configure)(builder))
}

/// A model manager that registers itself when the binary is linked.
pub struct ManagerRegistration {
    /// Its Rust path, by which `MODEL_MANAGER_CLASS` names it.
    pub path: fn() -> &'static str,
    /// Makes it.
    pub make: fn() -> Arc<dyn ModelManager>,
}

inventory::collect!(ManagerRegistration);

impl ManagerRegistration {
    /// The registration of this type.
    pub const fn of<M: ModelManager + Default + 'static>() -> Self {
        Self { path: type_name::<M>, make: || Arc::new(M::default()) }
    }
}

/// What `main!` calls.
pub fn main() -> ExitCode {
    crate::app::main(registered())
}
