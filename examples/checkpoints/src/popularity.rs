//! Which checkpoint the next caller wants.

use fastrand::Rng;

/// Callers who want the first of some things twice as often as the second, three times as often as the third, and so on, which is
/// Zipf's law.
#[derive(Debug, Clone)]
pub struct Popularity {
    count: usize,
    all: f64,
    random: Rng,
}

impl Popularity {
    /// Callers of so many things; those of the same seed want the same.
    ///
    /// # Panics
    /// There are none.
    pub fn of(count: usize, seed: u64) -> Self {
        assert!(count > 0, "there is nothing to want");
        let all = (1..=count).map(weight).sum();
        Self { count, all, random: Rng::with_seed(seed) }
    }

    /// What the next caller wants, counted from 1.
    pub fn pick(&mut self) -> usize {
        let mut left = self.random.f64() * self.all;
        let picked = (1..self.count).find(|rank| {
            left -= weight(*rank);
            left <= 0.0
        });
        picked.unwrap_or(self.count)
    }
}

fn weight(rank: usize) -> f64 {
    1.0 / rank as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_wanted_twice_as_often_as_the_second() {
        let (mut popularity, mut wanted) = (Popularity::of(10, 1), [0_u32; 10]);
        for _ in 0..100_000 {
            wanted[popularity.pick() - 1] += 1;
        }
        assert!(wanted.is_sorted_by(|more, less| more > less), "{wanted:?}");
        assert!((19..=21).contains(&(wanted[0] * 10 / wanted[1])), "{wanted:?}");
    }
}
