//! Bad sectors of a disk that fails on demand.

use std::collections::BTreeMap;

use holdfast_units::ByteRange;

const SECTOR: u64 = 512;

/// In which way a sector of 512 bytes is bad.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BadSector {
    /// It cannot be read until it is written again, as drives do that find a good place for it.
    UntilWritten,
    /// It can be neither read nor written.
    Forever,
    /// It can be read, but takes no writes.
    Stuck,
}

/// Which sectors are bad.
#[derive(Default)]
pub(super) struct Spots(BTreeMap<u64, BadSector>);

impl Spots {
    pub(super) fn spoil(&mut self, range: ByteRange, bad: BadSector) {
        self.0.extend(sectors(range).map(|sector| (sector, bad)));
    }

    pub(super) fn mend(&mut self, range: ByteRange) {
        sectors(range).for_each(|sector| {
            self.0.remove(&sector);
        });
    }

    pub(super) fn list(&self) -> Vec<(u64, BadSector)> {
        self.0.iter().map(|(sector, bad)| (sector * SECTOR, *bad)).collect()
    }

    /// Where the first sector of the range begins that cannot be read.
    pub(super) fn first_unreadable(&self, range: ByteRange) -> Option<u64> {
        let mut bad = self.0.range(sectors(range));
        bad.find(|(_, bad)| **bad != BadSector::Stuck).map(|(sector, _)| sector * SECTOR)
    }

    /// Writes the range: where the first sector begins that cannot be written. Those before it that
    /// were bad until written are good now.
    pub(super) fn write(&mut self, range: ByteRange) -> Option<u64> {
        let touched: Vec<_> = self.0.range(sectors(range)).map(|(s, bad)| (*s, *bad)).collect();
        for (sector, bad) in touched {
            if bad != BadSector::UntilWritten {
                return Some(sector * SECTOR);
            }
            self.0.remove(&sector);
        }
        None
    }
}

/// The sectors that a range touches.
fn sectors(range: ByteRange) -> std::ops::Range<u64> {
    range.offset / SECTOR..range.end().div_ceil(SECTOR)
}

#[cfg(test)]
mod tests {
    use super::{BadSector, Spots};
    use holdfast_units::ByteRange;

    #[test]
    fn sectors_fail_in_their_way() {
        let at = |offset, len| ByteRange::new(offset, len);
        let mut spots = Spots::default();
        spots.spoil(at(4096, 4096), BadSector::UntilWritten);
        spots.spoil(at(8192, 512), BadSector::Forever);
        spots.spoil(at(0, 512), BadSector::Stuck);
        assert_eq!(spots.first_unreadable(at(0, 4096)), None);
        assert_eq!(spots.first_unreadable(at(0, 4608)), Some(4096));
        assert_eq!(spots.write(at(0, 4096)), Some(0));
        assert_eq!(spots.write(at(4096, 512)), None);
        assert_eq!(spots.first_unreadable(at(4096, 512)), None);
        assert_eq!(spots.first_unreadable(at(4096, 513)), Some(4608));
        assert_eq!(spots.write(at(4096, 8192)), Some(8192));
        assert_eq!(spots.list(), [(0, BadSector::Stuck), (8192, BadSector::Forever)]);
        spots.mend(at(0, 512));
        assert_eq!(spots.write(at(0, 512)), None);
    }
}
