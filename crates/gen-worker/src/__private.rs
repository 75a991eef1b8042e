//! Names that macro output uses. Nobody else may: they change without notice.

use std::process::ExitCode;

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

/// What `main!` calls.
pub fn main() -> ExitCode {
    crate::app::main(registered())
}
