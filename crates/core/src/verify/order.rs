//! In which order a run looks at the device, by chunks of 1 MiB.

use super::{SurveyKind, SurveyProgress};
use holdfast_units::{ByteRange, Millis, PeerSet};
use holdfast_wire::RepairMode;

/// So much is compared at a time: one segment.
pub(crate) const CHUNK: u64 = 1 << 20;
/// Segments of one region are read in different passes, so that errors, which come in clusters, are
/// found early.
const REGION: u64 = 128 << 20;
/// How far around a place with an error is looked at at once.
const NEIGHBOURHOOD: u64 = 10 << 20;

/// The chunks of a run, by number: in which order it looks at a device.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    kind: SurveyKind,
    range: ByteRange,
}

impl Order {
    /// Of a run over a range.
    #[must_use]
    pub fn new(kind: SurveyKind, range: ByteRange) -> Self {
        Self { kind, range }
    }

    /// How a run stands that begins at this number, on a device of so many bytes.
    #[must_use]
    pub fn begin(
        &self,
        next: u64,
        size: u64,
        repair: RepairMode,
        started: Millis,
    ) -> SurveyProgress {
        SurveyProgress {
            kind: self.kind,
            repair,
            started,
            paused: false,
            waiting: None,
            size,
            next,
            total: (next..self.count()).filter_map(|n| self.chunk(n)).map(|c| c.len).sum(),
            done: 0,
            compared: 0,
            differing: 0,
            repaired: 0,
            unreadable: 0,
            skipped: 0,
            peers: PeerSet::EMPTY,
            found: Vec::new(),
        }
    }

    fn regions(&self) -> u64 {
        self.range.len.div_ceil(REGION).max(1)
    }

    /// How many numbers there are. Some may stand for nothing.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self.kind {
            SurveyKind::Verify => self.range.len.div_ceil(CHUNK),
            // All segments of the longest region, in all regions.
            SurveyKind::Scrub => self.regions() * (REGION / CHUNK),
        }
    }

    /// What a number stands for.
    #[must_use]
    pub fn chunk(&self, number: u64) -> Option<ByteRange> {
        let from = match self.kind {
            SurveyKind::Verify => number.checked_mul(CHUNK)?,
            SurveyKind::Scrub => {
                let (segment, region) = (number / self.regions(), number % self.regions());
                if segment >= REGION / CHUNK {
                    return None;
                }
                region.checked_mul(REGION)?.checked_add(segment.checked_mul(CHUNK)?)?
            }
        };
        let left = self.range.len.checked_sub(from)?;
        let len = left.min(CHUNK);
        (len > 0).then(|| ByteRange::new(self.range.offset + from, len))
    }

    /// The numbers of the chunks around a place.
    pub fn around(&self, range: ByteRange) -> impl Iterator<Item = u64> + use<> {
        let order = *self;
        let from = range.offset.saturating_sub(self.range.offset);
        let first = from.saturating_sub(NEIGHBOURHOOD) / CHUNK;
        let last = (from + range.len + NEIGHBOURHOOD).min(self.range.len.max(1)).div_ceil(CHUNK);
        (first..last).map(move |at| match order.kind {
            SurveyKind::Verify => at,
            SurveyKind::Scrub => {
                let (region, segment) = (at / (REGION / CHUNK), at % (REGION / CHUNK));
                segment * order.regions() + region
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, NEIGHBOURHOOD, Order, REGION};
    use crate::verify::SurveyKind;
    use holdfast_units::ByteRange;

    #[test]
    fn every_byte_is_looked_at_once() {
        for len in [4096, CHUNK, CHUNK + 4096, REGION, 3 * REGION + 5 * CHUNK + 8192] {
            for kind in [SurveyKind::Verify, SurveyKind::Scrub] {
                let order = Order::new(kind, ByteRange::new(8192, len));
                let mut chunks: Vec<ByteRange> =
                    (0..order.count()).filter_map(|n| order.chunk(n)).collect();
                assert!(order.chunk(order.count()).is_none(), "{kind:?} of {len}");
                chunks.sort_by_key(|c| c.offset);
                let mut at = 8192;
                for chunk in chunks {
                    assert_eq!(chunk.offset, at);
                    at = chunk.end();
                }
                assert_eq!(at, 8192 + len);
            }
        }
    }

    #[test]
    fn a_scrub_goes_through_all_regions_before_it_reads_the_next_segment() {
        let order = Order::new(SurveyKind::Scrub, ByteRange::new(0, 4 * REGION));
        let offsets: Vec<u64> = (0..5).map(|n| order.chunk(n).unwrap().offset).collect();
        assert_eq!(offsets, [0, REGION, 2 * REGION, 3 * REGION, CHUNK]);
    }

    #[test]
    fn the_neighbourhood_of_a_place_is_ten_mebibytes_each_way() {
        let order = Order::new(SurveyKind::Scrub, ByteRange::new(0, 4 * REGION));
        let hit = ByteRange::new(REGION, 4096);
        let mut found: Vec<u64> =
            order.around(hit).map(|n| order.chunk(n).unwrap().offset).collect();
        found.sort_unstable();
        assert_eq!(found.first(), Some(&(REGION - NEIGHBOURHOOD)));
        assert_eq!(found.last(), Some(&(REGION + NEIGHBOURHOOD)));
        assert_eq!(found.len(), 21);
    }
}
