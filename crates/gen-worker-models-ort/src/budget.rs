//! Bytes of memory, counted apart where they are apart.

use std::fmt;

use gen_worker_core::ByteSize;

/// Most devices that models are spread over; the largest machines that can be rented have as many.
pub(crate) const MAX_DEVICES: usize = 16;

/// Bytes of main memory and of one device. Models that run on the processor use no bytes of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub(crate) host: u64,
    pub(crate) device: u64,
}

/// Bytes of main memory and of each device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) host: u64,
    pub(crate) devices: [u64; MAX_DEVICES],
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
    /// Of each kind the larger.
    pub(crate) fn at_least(self, least: Self) -> Self {
        Self { host: self.host.max(least.host), device: self.device.max(least.device) }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let host = self.host.saturating_add(other.host);
        Self { host, device: self.device.saturating_add(other.device) }
    }

    /// These bytes where the device is this one.
    pub(crate) fn on(self, device: usize) -> Memory {
        let mut memory = Memory { host: self.host, ..Memory::default() };
        memory.devices[device] = self.device;
        memory
    }
}

impl Memory {
    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    pub(crate) fn fits_in(self, budget: Self) -> bool {
        self.minus(budget) == Self::default()
    }

    /// Whether both have bytes of main memory, or both of one device.
    pub(crate) fn shares_a_kind_with(self, other: Self) -> bool {
        self.with(other, u64::min) != Self::default()
    }

    /// Main memory and this device.
    pub(crate) fn of(self, device: usize) -> Bytes {
        Bytes { host: self.host, device: self.devices[device] }
    }

    /// All devices taken together.
    pub(crate) fn total(self) -> Bytes {
        let device = self.devices.into_iter().fold(0, u64::saturating_add);
        Bytes { host: self.host, device }
    }

    fn with(self, other: Self, operation: impl Fn(u64, u64) -> u64) -> Self {
        let device = |at: usize| operation(self.devices[at], other.devices[at]);
        Self { host: operation(self.host, other.host), devices: std::array::from_fn(device) }
    }
}

impl fmt::Display for Bytes {
    /// `1.5 GiB of memory`, `… of device memory`, or both.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes| match bytes {
            u64::MAX => "any amount".to_owned(),
            bytes => ByteSize(bytes).to_string(),
        };
        let (host, device) = (size(self.host), size(self.device));
        match (self.host, self.device) {
            (_, 0) => write!(f, "{host} of memory"),
            (0, _) => write!(f, "{device} of device memory"),
            _ => write!(f, "{host} of memory and {device} of device memory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_apart() {
        let (first, second) = (Bytes { host: 1, device: 4 }.on(0), Bytes { host: 1, device: 6 }.on(1));
        let both = first.plus(second);
        assert_eq!((both.of(0), both.of(1)), (Bytes { host: 2, device: 4 }, Bytes { host: 2, device: 6 }));
        assert_eq!((both.total(), both.minus(second)), (Bytes { host: 2, device: 10 }, first));
        assert!(first.fits_in(both) && !second.fits_in(first));
        assert!(first.shares_a_kind_with(second), "main memory is one");
        let only = |device| Bytes { host: 0, device: 1 }.on(device);
        assert!(only(0).shares_a_kind_with(first) && !only(0).shares_a_kind_with(second));
    }

    #[test]
    fn no_budget_is_no_number() {
        let shown = |host, device| Bytes { host, device }.to_string();
        assert_eq!(shown(u64::MAX, 0), "any amount of memory");
        assert_eq!(shown(3 << 30, 1 << 20), "3.0 GiB of memory and 1.0 MiB of device memory");
    }
}
