//! Names that macro output uses. Nobody else may: they change without notice.

pub use gen_worker_core::{Call, DeltaStream, Function, ModelBinding, ResourceRequirements};
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
