//! How long the stages of requests take: `GET /v1/latency`.
//!
//! All numbers only grow, from the start of a resource on: who wants to know how it is now takes the
//! difference of two answers ([`StageLatency::since`]).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The upper bounds of the buckets, in microseconds: 10 µs to 10 s in steps of 1, 2, 5.
pub const BUCKET_BOUNDS_MICROS: [u64; 19] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000,
    500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

/// The stages of all resources that are up on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// The upper bounds of the buckets in seconds; there is one more bucket, for what is above.
    pub bounds_seconds: Vec<f64>,
    /// By name.
    pub resources: Vec<ResourceLatency>,
}

/// The stages of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceLatency {
    /// The resource.
    pub name: String,
    /// Each stage and operation that there was at least once.
    pub stages: Vec<StageLatency>,
}

/// How long one operation took at one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageLatency {
    /// `client`: from a client's request to its answer. `disk`: an operation of this node's disk, or of
    /// the journal before it. `peer`: from sending to a peer until its answer.
    pub stage: String,
    /// The peer of the stage `peer`; `null` for the others.
    pub peer: Option<String>,
    /// `read`, `write`, `discard` (zeroes, too) or `flush`.
    pub op: String,
    /// How many there were.
    pub count: u64,
    /// How long all of them took together.
    pub sum_seconds: f64,
    /// How many were in each bucket: above the bound before, and not above its own.
    pub buckets: Vec<u64>,
}

impl StageLatency {
    /// Whether it is about the same stage, peer and operation.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.stage, &self.peer, &self.op) == (&other.stage, &other.peer, &other.op)
    }

    /// What came since an earlier answer: all of it when the numbers began anew meanwhile.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let pairs = || self.buckets.iter().zip(&before.buckets);
        if self.buckets.len() != before.buckets.len() || pairs().any(|(now, then)| now < then) {
            return self.clone();
        }
        Self {
            count: self.count.saturating_sub(before.count),
            sum_seconds: (self.sum_seconds - before.sum_seconds).max(0.0),
            buckets: pairs().map(|(now, then)| now - then).collect(),
            ..self.clone()
        }
    }
}

/// The time in seconds that the share `of` (0 to 1) of a row of buckets did not exceed: within its
/// bucket the times are taken to be even, as Prometheus' `histogram_quantile` does. What is above all
/// bounds counts as the last of them. `None` for an empty row.
#[must_use]
pub fn quantile(buckets: &[u64], of: f64) -> Option<f64> {
    let count: u64 = buckets.iter().sum();
    if count == 0 {
        return None;
    }
    let rank = of.clamp(0.0, 1.0) * count as f64;
    let seconds = |micros: &u64| *micros as f64 / 1e6;
    let (mut passed, mut low) = (0.0, 0.0);
    for (bucket, bound) in buckets.iter().zip(&BUCKET_BOUNDS_MICROS) {
        let (here, high) = (*bucket as f64, seconds(bound));
        if here > 0.0 && passed + here >= rank {
            return Some(low + (high - low) * ((rank - passed) / here).clamp(0.0, 1.0));
        }
        passed += here;
        low = high;
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(filled: &[(usize, u64)]) -> Vec<u64> {
        let mut row = vec![0; BUCKET_BOUNDS_MICROS.len() + 1];
        for (at, count) in filled {
            row[*at] = *count;
        }
        row
    }

    #[test]
    fn quantiles_of_buckets() {
        let micros = |buckets: &[u64], of| quantile(buckets, of).map(|s| (s * 1e6).round() as u64);
        assert_eq!(micros(&row(&[]), 0.5), None);
        assert_eq!(micros(&[], 0.5), None);
        // 100 between 100 and 200 µs.
        let even = row(&[(4, 100)]);
        assert_eq!(micros(&even, 0.5), Some(150));
        assert_eq!(micros(&even, 0.99), Some(199));
        assert_eq!(micros(&even, 1.0), Some(200));
        // 98 up to 10 µs, two of half a second to a second.
        let slow = row(&[(0, 98), (15, 2)]);
        assert_eq!(micros(&slow, 0.98), Some(10));
        assert_eq!(micros(&slow, 0.99), Some(750_000));
        // Nobody knows how long the longest took.
        assert_eq!(micros(&row(&[(19, 7)]), 0.5), Some(10_000_000));
    }

    #[test]
    fn the_difference_of_two_answers() {
        let stage = |filled: &[(usize, u64)], sum_seconds| StageLatency {
            stage: "disk".into(),
            op: "read".into(),
            count: filled.iter().map(|(_, count)| count).sum(),
            sum_seconds,
            buckets: row(filled),
            ..StageLatency::default()
        };
        let before = stage(&[(2, 5), (3, 1)], 1.0);
        let now = stage(&[(2, 6), (3, 4)], 1.5);
        assert!(now.is_of(&before) && !now.is_of(&StageLatency::default()));
        assert_eq!(now.since(&before), stage(&[(2, 1), (3, 3)], 0.5));
        // The resource was started anew.
        assert_eq!(before.since(&now), before);
        assert_eq!(now.since(&StageLatency::default()), now);
    }
}
