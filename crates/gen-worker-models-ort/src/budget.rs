//! Bytes of memory, counted apart where they are apart.

use std::fmt;

use gen_worker_core::ByteSize;

/// Bytes of main memory and of the device. Models that run on the processor use no bytes of the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) host: u64,
    pub(crate) device: u64,
}

/// What a model takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// In memory and ready, with what it keeps when it is warm.
    pub(crate) resident: Bytes,
    /// Bytes of main memory when it is warm; 0: it cannot be.
    pub(crate) warm: u64,
}

impl Bytes {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self { host: self.host.saturating_add(other.host), device: self.device.saturating_add(other.device) }
    }

    pub(crate) const fn minus(self, other: Self) -> Self {
        Self { host: self.host.saturating_sub(other.host), device: self.device.saturating_sub(other.device) }
    }

    /// Of each kind the larger.
    pub(crate) fn at_least(self, least: Self) -> Self {
        Self { host: self.host.max(least.host), device: self.device.max(least.device) }
    }

    pub(crate) const fn fits_in(self, budget: Self) -> bool {
        self.host <= budget.host && self.device <= budget.device
    }

    /// Whether both have bytes of main memory, or both of the device.
    pub(crate) const fn shares_a_kind_with(self, other: Self) -> bool {
        (self.host > 0 && other.host > 0) || (self.device > 0 && other.device > 0)
    }
}

impl fmt::Display for Bytes {
    /// `1.5 GiB of memory`, `… of device memory`, or both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, device) = (ByteSize(self.host), ByteSize(self.device));
        match (self.host, self.device) {
            (_, 0) => write!(f, "{host} of memory"),
            (0, _) => write!(f, "{device} of device memory"),
            _ => write!(f, "{host} of memory and {device} of device memory"),
        }
    }
}
