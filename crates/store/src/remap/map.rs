//! Which units of the main disk are special, and where those are that were moved.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use holdfast_units::ByteRange;

/// Units in one page of the bitmap.
const PAGE_UNITS: u64 = 32768;
const WORDS: usize = 512;

/// A slot of a spare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct SlotRef {
    pub(super) spare: usize,
    pub(super) slot: u32,
}

/// Where a unit is that the main disk does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) slot: SlotRef,
    /// The slot is kept for the unit, but holds nothing.
    pub(super) lost: bool,
    /// It is lost since the main disk could not read it: reads are tried there.
    pub(super) unread: bool,
}

/// A bit for each special unit: one that has a place, or that somebody works on. Pages that have
/// none take no memory.
#[derive(Default)]
struct Bits {
    pages: Vec<Option<Box<[u64; WORDS]>>>,
    set: u64,
}

impl Bits {
    fn at(unit: u64) -> (usize, usize, u64) {
        let page = usize::try_from(unit / PAGE_UNITS).unwrap_or(usize::MAX);
        let word = usize::try_from(unit % PAGE_UNITS / 64).unwrap_or(0);
        (page, word, 1 << (unit % 64))
    }

    fn put(&mut self, unit: u64, on: bool) {
        let (page, word, bit) = Self::at(unit);
        if page >= self.pages.len() {
            if !on {
                return;
            }
            self.pages.resize_with(page + 1, || None);
        }
        if self.pages[page].is_none() && !on {
            return;
        }
        let words = self.pages[page].get_or_insert_with(|| Box::new([0; WORDS]));
        match (words[word] & bit != 0, on) {
            (false, true) => self.set += 1,
            (true, false) => self.set -= 1,
            _ => return,
        }
        words[word] ^= bit;
    }

    /// The first special unit in `from..end`.
    fn next(&self, from: u64, end: u64) -> Option<u64> {
        let mut unit = from;
        while unit < end {
            let (page, word, _) = Self::at(unit);
            let Some(words) = self.pages.get(page)? else {
                unit = (unit / PAGE_UNITS + 1) * PAGE_UNITS;
                continue;
            };
            let rest = words[word] >> (unit % 64);
            if rest != 0 {
                let found = unit + u64::from(rest.trailing_zeros());
                return (found < end).then_some(found);
            }
            unit = (unit / 64 + 1) * 64;
        }
        None
    }
}

/// The map of a disk.
pub(super) struct Map {
    /// How many bytes a unit has, as a power of two.
    shift: u32,
    bits: Bits,
    places: HashMap<u64, Place, BuildHasherDefault<Mix>>,
}

impl Map {
    pub(super) fn new(unit: u32) -> Self {
        Self { shift: unit.trailing_zeros(), bits: Bits::default(), places: HashMap::default() }
    }

    pub(super) const fn unit_len(&self) -> u64 {
        1 << self.shift
    }

    /// The units that a range touches.
    pub(super) const fn units(&self, range: ByteRange) -> std::ops::Range<u64> {
        let unit = 1_u64 << self.shift;
        range.offset >> self.shift..range.end().saturating_add(unit - 1) >> self.shift
    }

    /// The bytes of these units.
    pub(super) const fn bytes(&self, units: &std::ops::Range<u64>) -> ByteRange {
        ByteRange::new(units.start << self.shift, (units.end - units.start) << self.shift)
    }

    /// Whether a request must not simply go to the main disk.
    pub(super) fn touches(&self, range: ByteRange) -> bool {
        if self.bits.set == 0 {
            return false;
        }
        let units = self.units(range);
        self.bits.next(units.start, units.end).is_some()
    }

    pub(super) fn next_special(&self, from: u64, end: u64) -> Option<u64> {
        self.bits.next(from, end)
    }

    pub(super) fn get(&self, unit: u64) -> Option<Place> {
        self.places.get(&unit).copied()
    }

    pub(super) fn insert(&mut self, unit: u64, place: Place) {
        self.bits.put(unit, true);
        self.places.insert(unit, place);
    }

    pub(super) fn remove(&mut self, unit: u64) {
        self.bits.put(unit, false);
        self.places.remove(&unit);
    }

    /// Somebody works on the unit: requests to it take the slow way.
    pub(super) fn begin(&mut self, unit: u64) {
        self.bits.put(unit, true);
    }

    /// Nobody works on it any more.
    pub(super) fn end(&mut self, unit: u64) {
        self.bits.put(unit, self.places.contains_key(&unit));
    }
}

/// Unit numbers are not chosen by an enemy: one multiplication spreads them.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::{Map, Place, SlotRef};
    use holdfast_units::ByteRange;
    use std::collections::BTreeSet;

    const PLACE: Place = Place { slot: SlotRef { spare: 0, slot: 1 }, lost: false, unread: false };

    #[test]
    fn special_units_are_found_as_in_a_plain_set() {
        let mut map = Map::new(4096);
        let mut model = BTreeSet::new();
        let mut seed = 1_u64;
        for round in 0..4000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let unit = (seed >> 33) % 200_000;
            if round % 3 == 2 {
                map.remove(unit);
                model.remove(&unit);
            } else {
                map.insert(unit, PLACE);
                model.insert(unit);
            }
            let from = (seed >> 20) % 200_000;
            let end = from + (seed >> 50) % 5000;
            assert_eq!(map.next_special(from, end), model.range(from..end).next().copied());
            assert_eq!(map.get(unit).is_some(), model.contains(&unit));
        }
        model.iter().for_each(|unit| map.remove(*unit));
        assert!(!map.touches(ByteRange::new(0, 1 << 40)));
    }

    #[test]
    fn a_unit_that_was_worked_on_stays_special_only_with_a_place() {
        let mut map = Map::new(512);
        map.begin(7);
        assert!(
            map.touches(ByteRange::new(7 * 512, 1)) && !map.touches(ByteRange::new(0, 7 * 512))
        );
        map.end(7);
        assert!(!map.touches(ByteRange::new(0, 1 << 20)));
        map.begin(7);
        map.insert(7, PLACE);
        map.end(7);
        assert!(map.touches(ByteRange::new(7 * 512, 1)));
    }
}
