//! Names that macro output uses. Nobody else may: they change without notice.

use std::{any::type_name, process::ExitCode, sync::Arc};

use gen_worker_core::ports::ModelManager;

pub use gen_worker_core::{
    Call, DeltaStream, Extract, Function, ModelBinding, ModelNeed, ResourceRequirements, WorkerError,
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
