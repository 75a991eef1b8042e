//! Which bytes of a file are here, and in which pieces the rest is fetched.

use std::ops::Range;

/// The bytes that are here: spans in order, with a gap between each two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spans(Vec<Range<u64>>);

impl Spans {
    /// Adds bytes, which may be here already.
    pub(crate) fn add(&mut self, mut new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let first = self.0.partition_point(|span| span.end < new.start);
        let beyond = self.0.partition_point(|span| span.start <= new.end);
        if let Some(touched) = self.0.get(first..beyond).filter(|touched| !touched.is_empty()) {
            new.start = new.start.min(touched[0].start);
            new.end = new.end.max(touched[touched.len() - 1].end);
        }
        self.0.splice(first..beyond, [new]);
    }

    /// How many bytes are here.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|span| span.end - span.start).sum()
    }

    /// How many bytes are here from the file's first on.
    pub(crate) fn prefix(&self) -> u64 {
        self.0.first().filter(|span| span.start == 0).map_or(0, |span| span.end)
    }

    /// Where the last span ends.
    pub(crate) fn end(&self) -> u64 {
        self.0.last().map_or(0, |span| span.end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().cloned()
    }

    /// What is missing of a file of `size` bytes, in order. No piece crosses a multiple of `most`, so that those who
    /// resume cut as those before them did.
    pub(crate) fn missing(&self, size: u64, most: u64) -> impl Iterator<Item = Range<u64>> {
        let most = most.max(1);
        let starts = [0].into_iter().chain(self.0.iter().map(|span| span.end));
        let ends = self.0.iter().map(|span| span.start).chain([size]);
        let gaps = starts.zip(ends).map(move |(start, end)| start..end.min(size));
        gaps.flat_map(move |gap| {
            let next = move |start: &u64| Some((start / most + 1).saturating_mul(most));
            let cuts = std::iter::successors(Some(gap.start), next);
            let end = gap.end;
            cuts.take_while(move |start| *start < end)
                .map(move |start| start..(start / most + 1).saturating_mul(most).min(end))
        })
    }
}

impl FromIterator<Range<u64>> for Spans {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(spans: I) -> Self {
        let mut all = Self::default();
        spans.into_iter().for_each(|span| all.add(span));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(spans: &[Range<u64>], size: u64, most: u64) -> Vec<Range<u64>> {
        spans.iter().cloned().collect::<Spans>().missing(size, most).collect()
    }

    #[test]
    fn gaps_are_cut_at_multiples() {
        assert_eq!(missing(&[], 0, 4), []);
        assert_eq!(missing(&[], 10, 4), [0..4, 4..8, 8..10]);
        assert_eq!(missing(&[0..1, 6..7], 10, 4), [1..4, 4..6, 7..8, 8..10]);
        assert_eq!(missing(&[0..5, 5..10], 10, 4), []);
        assert_eq!(missing(&[], 3, u64::MAX).first(), Some(&(0..3)));
    }

    /// Files of a few bytes, byte by byte: what is here and what is planned make the file, once.
    #[test]
    fn what_is_here_and_what_is_missing_make_the_file() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..20_000 {
            let size = random.u64(0..60);
            let most = random.u64(1..20);
            let mut times = vec![0_u32; size as usize];
            let mut spans = Spans::default();
            for _ in 0..random.usize(0..6) {
                let start = random.u64(0..=size);
                let end = random.u64(start..=size);
                spans.add(start..end);
                times[start as usize..end as usize].fill(1);
            }
            let here = times.iter().sum::<u32>();
            let prefix = times.iter().take_while(|times| **times == 1).count();
            assert_eq!((spans.total(), spans.prefix()), (u64::from(here), prefix as u64), "{spans:?}");
            let apart = spans.0.windows(2).all(|two| two[0].end < two[1].start);
            assert!(apart && spans.0.iter().all(|span| !span.is_empty()), "{spans:?}");

            let pieces: Vec<_> = spans.missing(size, most).collect();
            for piece in &pieces {
                assert!(piece.start / most == (piece.end - 1) / most, "{piece:?} crosses {most}");
                times[piece.start as usize..piece.end as usize].iter_mut().for_each(|times| *times += 1);
            }
            assert!(times.iter().all(|times| *times == 1), "{size} {most} {spans:?} {pieces:?}");
            pieces.into_iter().for_each(|piece| spans.add(piece));
            assert_eq!((spans.prefix(), spans.missing(size, most).count()), (size, 0));
        }
    }
}
