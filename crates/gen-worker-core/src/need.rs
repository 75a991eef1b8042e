//! What of a model a parameter needs.

/// What must be there before a parameter can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelNeed {
    /// No model.
    None,
    /// The model's files on disk.
    Files,
    /// The model in memory, leased from the model manager.
    Resident,
}
