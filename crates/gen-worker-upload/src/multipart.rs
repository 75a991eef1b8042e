//! How a large object is cut into parts.

use std::ops::Range;

/// Objects below this go in one request; also the smallest part.
pub(crate) const PART_BYTES: u64 = 16 << 20;
/// Most parts of one object, S3's limit.
const MAX_PARTS: u64 = 10_000;
/// Largest part, S3's limit.
const MAX_PART_BYTES: u64 = 5 << 30;

/// Equal parts, as R2 wants them, but for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartPlan {
    size: u64,
    part: u64,
}

/// One part of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Counted from 1.
    pub(crate) number: u64,
    /// Its bytes in the object.
    pub(crate) range: Range<u64>,
}

impl PartPlan {
    /// Parts of 16 MiB, or of as many whole MiB as it takes for 10,000 to suffice; `None`: no store takes an object of
    /// this size.
    pub(crate) fn of(size: u64) -> Option<Self> {
        let part = size.div_ceil(MAX_PARTS).next_multiple_of(1 << 20).max(PART_BYTES);
        (part <= MAX_PART_BYTES).then_some(Self { size, part })
    }

    /// The largest object that can be planned.
    pub(crate) const fn max_size() -> u64 {
        MAX_PARTS * MAX_PART_BYTES
    }

    /// The parts in order; one, and empty, for an object without bytes.
    pub(crate) fn parts(self) -> impl Iterator<Item = Part> {
        let count = self.size.div_ceil(self.part).max(1);
        (0..count).map(move |index| {
            let start = index * self.part;
            Part { number: index + 1, range: start..self.size.min(start + self.part) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(size: u64) {
        let plan = PartPlan::of(size).unwrap();
        let (mut next, mut count) = (0, 0);
        for part in plan.parts() {
            count += 1;
            assert_eq!((part.number, part.range.start), (count, next), "{size}");
            let length = part.range.end - part.range.start;
            let last = part.range.end == size;
            assert!(last || length == plan.part, "{size}: part {count} has {length}");
            assert!(length <= MAX_PART_BYTES && (length > 0 || size == 0), "{size}");
            next = part.range.end;
        }
        assert_eq!(next, size);
        assert!(count <= MAX_PARTS, "{size}: {count} parts");
    }

    #[test]
    fn parts_cover_an_object_of_any_size() {
        for edge in [0, PART_BYTES, 2 * PART_BYTES, MAX_PARTS * PART_BYTES, PartPlan::max_size()] {
            for size in edge.saturating_sub(1)..=(edge + 1).min(PartPlan::max_size()) {
                check(size);
            }
        }
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..300 {
            // Every order of magnitude as often as the others.
            check(random.u64(..PartPlan::max_size()) >> random.u32(..45));
        }
    }

    #[test]
    fn parts_are_small_while_they_suffice() {
        assert_eq!(PartPlan::of(1 << 30).unwrap().part, PART_BYTES);
        assert_eq!(PartPlan::of(1 << 30).unwrap().parts().count(), 64);
        assert_eq!(PartPlan::of(1 << 40).unwrap().part, 105 << 20);
    }

    #[test]
    fn what_no_store_takes_has_no_plan() {
        assert_eq!(PartPlan::of(PartPlan::max_size() + 1), None);
    }
}
