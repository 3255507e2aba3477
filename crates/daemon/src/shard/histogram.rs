//! Times by how often they came, in buckets whose width grows with the time.

/// Each power of two has so many buckets: times are within 1/16 of their bucket's.
const STEPS_BITS: u32 = 4;
const STEPS: u64 = 1 << STEPS_BITS;
/// Longer times, of more than an hour, count as this one, in microseconds.
const LONGEST: u64 = (1 << 32) - 1;
const BUCKETS: usize = ((32 - STEPS_BITS as usize) + 1) << STEPS_BITS;

/// A log-linear histogram of times in microseconds.
#[derive(Clone)]
pub(super) struct Histogram {
    buckets: [u32; BUCKETS],
    count: u64,
    max: u64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, max: 0 }
    }

    /// Counts a time.
    pub(super) fn note(&mut self, micros: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(micros)) {
            *bucket = bucket.saturating_add(1);
        }
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// Adds all that another one has.
    pub(super) fn add(&mut self, other: &Self) {
        for (sum, part) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum = sum.saturating_add(*part);
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) const fn max(&self) -> u64 {
        self.max
    }

    /// The time that so many of 1,000 did not exceed: the middle of its bucket. 0 for none.
    pub(super) fn quantile(&self, of_thousand: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(of_thousand)).div_ceil(1000);
        let mut passed = 0_u128;
        for (at, bucket) in self.buckets.iter().enumerate() {
            passed += u128::from(*bucket);
            if *bucket > 0 && passed >= rank {
                return middle_of(at).min(self.max);
            }
        }
        0
    }
}

fn bucket_of(micros: u64) -> usize {
    let micros = micros.min(LONGEST);
    let bucket = if micros < STEPS {
        micros
    } else {
        let octave = u64::from(micros.ilog2() - STEPS_BITS);
        (octave << STEPS_BITS) + (micros >> octave)
    };
    usize::try_from(bucket).unwrap_or(BUCKETS - 1)
}

fn middle_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let octave = (bucket >> STEPS_BITS) - 1;
    let lowest = (STEPS + bucket % STEPS) << octave;
    lowest + ((1 << octave) >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_bucket_whose_middle_is_near() {
        let mut before = 0;
        let steps = (0..20_000).chain((0..2000).map(|n| 20_000 + n * 2_147_483));
        for micros in steps.chain([LONGEST]).filter(|micros| *micros <= LONGEST) {
            let bucket = bucket_of(micros);
            assert!(bucket < BUCKETS && bucket >= before, "{micros}");
            before = bucket;
            let off = middle_of(bucket).abs_diff(micros);
            assert!(off * 32 <= micros, "{micros} is told as {}", middle_of(bucket));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let mut row = Histogram::new();
        assert_eq!(row.quantile(500), 0);
        for micros in 1..=10_000 {
            row.note(micros);
        }
        for (of_thousand, due) in [(500, 5000), (990, 9900), (999, 9990), (1000, 10_000)] {
            let found = row.quantile(of_thousand);
            assert!(found.abs_diff(due) * 32 <= due, "{of_thousand}: {found}");
        }
        let mut twice = Histogram::new();
        twice.add(&row);
        twice.add(&row);
        assert_eq!((twice.count(), twice.max()), (20_000, 10_000));
        assert_eq!(twice.quantile(500), row.quantile(500));
        let mut one = Histogram::new();
        one.note(200_000);
        assert!(one.quantile(500) <= 200_000 && one.quantile(500) * 32 >= 31 * 200_000);
    }
}
