//! What the export looked like: whether another server has the same.

use super::negotiate::Agreed;
use super::remembered::{PLACES, Print, Remembered, print};
use super::session::Shape;
use crate::codec::consts::flag;
use holdfast_units::ByteRange;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// How long a sample is, in bytes; more where the blocks of the export are larger.
const SAMPLE: u64 = 4096;
/// How many places are always looked at.
const FIXED: usize = 16;
/// How many more places that were written lately.
const RECENT: usize = PLACES - FIXED;

/// What is remembered of an export.
#[derive(Debug, Default)]
pub(super) struct Identity {
    known: Option<Known>,
    /// The fixed ones first.
    samples: Vec<Sample>,
    fixed: usize,
    /// Where the next recent one goes.
    oldest: usize,
    unit: u64,
}

/// What does not change.
#[derive(Debug)]
struct Known {
    shape: Shape,
    flush: bool,
    name: Option<String>,
}

#[derive(Debug)]
struct Sample {
    range: ByteRange,
    /// `None` while it is not known what it is.
    print: Option<Print>,
    /// Grows with every change.
    version: u64,
}

/// A sample to be read, at a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Look {
    pub(super) range: ByteRange,
    index: usize,
    version: u64,
}

impl Identity {
    /// Compares what a server tells of its export with what is known; the first time, that is
    /// taken for known.
    ///
    /// # Errors
    /// What is different.
    pub(super) fn check_shape(&mut self, agreed: &Agreed, shape: Shape) -> Result<(), String> {
        let flush = agreed.flags.has(flag::SEND_FLUSH);
        let Some(known) = &self.known else {
            self.begin(shape);
            self.known = Some(Known { shape, flush, name: agreed.name.clone() });
            return Ok(());
        };
        if shape.size != known.shape.size {
            let (is, was) = (shape.size, known.shape.size);
            return Err(format!("it has {is} bytes now, and had {was}"));
        }
        if shape.read_only != known.shape.read_only {
            let how = if shape.read_only { "read-only" } else { "writable" };
            return Err(format!("it is {how} now"));
        }
        if agreed.blocks.0 > known.shape.block {
            let (is, was) = (agreed.blocks.0, known.shape.block);
            return Err(format!("its blocks have {is} bytes now, more than {was}"));
        }
        if known.flush && !flush {
            return Err("it cannot flush any more".to_owned());
        }
        match (&agreed.name, &known.name) {
            (Some(is), Some(was)) if is != was => {
                Err(format!("it is called {is:?} now, and was {was:?}"))
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, shape: Shape) {
        self.unit = SAMPLE.max(shape.block.into());
        let count = shape.size.div_ceil(self.unit);
        // Partition tables, superblocks, their copies at the end; then evenly between.
        let mut places = vec![0, 1, 2, 16, count.saturating_sub(1)];
        let rest = (FIXED - places.len()) as u64;
        places.extend((1..=rest).map(|part| count / (rest + 1) * part));
        places.retain(|place| *place < count);
        places.sort_unstable();
        places.dedup();
        let range = |place: u64| {
            let offset = place * self.unit;
            ByteRange::new(offset, self.unit.min(shape.size - offset))
        };
        let sample = |place: &u64| Sample { range: range(*place), print: None, version: 0 };
        self.samples = places.iter().map(sample).collect();
        self.fixed = self.samples.len();
    }

    /// A range is about to be changed.
    pub(super) fn touch(&mut self, range: ByteRange) {
        for sample in self.samples.iter_mut().filter(|sample| sample.range.overlaps(range)) {
            sample.print = None;
            sample.version += 1;
        }
    }

    /// These ranges were written and flushed: good places for samples.
    pub(super) fn remember(&mut self, ranges: &[ByteRange]) {
        for range in ranges {
            let offset = range.offset.next_multiple_of(self.unit.max(1));
            let place = ByteRange::new(offset, self.unit);
            if !range.contains(place) || self.samples.iter().any(|s| s.range == place) {
                continue;
            }
            if self.samples.len() < self.fixed + RECENT {
                self.samples.push(Sample { range: place, print: None, version: 0 });
            } else {
                let sample = &mut self.samples[self.fixed + self.oldest];
                *sample = Sample { range: place, print: None, version: sample.version + 1 };
                self.oldest = (self.oldest + 1) % RECENT;
            }
        }
    }

    /// Where exports of this shape are always looked at.
    pub(super) fn places(&self) -> Vec<ByteRange> {
        self.samples[..self.fixed].iter().map(|sample| sample.range).collect()
    }

    /// Where it was written to lately.
    pub(super) fn recent(&self) -> Vec<ByteRange> {
        self.samples[self.fixed..].iter().map(|sample| sample.range).collect()
    }

    /// All that is known of its content.
    pub(super) fn remembered(&self) -> Remembered {
        let known = self.samples.iter().filter_map(|s| Some((s.range, s.print?)));
        Remembered::new(known)
    }

    /// Takes over what was known of the content, after the shape.
    pub(super) fn recall(&mut self, remembered: &Remembered) {
        let end = self.known.as_ref().map_or(0, |known| known.shape.size);
        for (range, print) in remembered.places() {
            let known = self.samples.iter_mut().find(|sample| sample.range == *range);
            let fits = range.len == self.unit && range.end() <= end;
            if let Some(sample) = known {
                sample.print = Some(*print);
            } else if fits && self.samples.len() < self.fixed + RECENT {
                self.samples.push(Sample { range: *range, print: Some(*print), version: 0 });
            }
        }
    }

    /// Samples that are not known and could be read now.
    pub(super) fn unknown(&self) -> Vec<Look> {
        self.looks(|sample| sample.print.is_none())
    }

    /// Samples that another server must have.
    pub(super) fn known(&self) -> Vec<Look> {
        self.looks(|sample| sample.print.is_some())
    }

    fn looks(&self, which: impl Fn(&Sample) -> bool) -> Vec<Look> {
        let all = self.samples.iter().enumerate().filter(|(_, sample)| which(sample));
        all.map(|(index, sample)| Look { range: sample.range, index, version: sample.version })
            .collect()
    }

    /// A sample was read. Does nothing when it has been changed since.
    pub(super) fn learn(&mut self, look: Look, data: &[u8]) {
        let sample = &mut self.samples[look.index];
        if sample.version == look.version {
            sample.print = Some(print(data));
        }
    }

    /// Whether a sample is what it was, as far as that is known.
    pub(super) fn is_same(&self, look: Look, data: &[u8]) -> bool {
        let sample = &self.samples[look.index];
        sample.version != look.version || sample.print.is_none_or(|known| known == print(data))
    }

    /// A short name of shape and fixed samples; empty before the export was seen.
    pub(super) fn fingerprint(&self) -> String {
        let Some(known) = &self.known else { return String::new() };
        let mut hash = Sha256::new();
        hash.update(known.shape.size.to_be_bytes());
        for sample in &self.samples[..self.fixed] {
            hash.update(sample.print.unwrap_or_default());
        }
        let mut text = String::new();
        for byte in &hash.finalize()[..16] {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{ReplyStyle, TransmissionFlags};

    fn agreed(size: u64) -> (Agreed, Shape) {
        let flags = TransmissionFlags(flag::HAS_FLAGS | flag::SEND_FLUSH);
        let agreed = Agreed {
            style: ReplyStyle::Structured,
            base_allocation: None,
            size,
            flags,
            blocks: (512, 4096, 32 << 20),
            name: Some("disk".to_owned()),
        };
        (agreed, Shape { size, block: 512, read_only: false })
    }

    fn identity(size: u64) -> Identity {
        let mut identity = Identity::default();
        let (agreed, shape) = agreed(size);
        identity.check_shape(&agreed, shape).unwrap();
        identity
    }

    #[test]
    fn another_shape_is_noticed() {
        let mut identity = identity(1 << 20);
        let (good, shape) = agreed(1 << 20);
        assert_eq!(identity.check_shape(&good, shape), Ok(()));
        let check = |identity: &mut Identity, agreed: &Agreed, shape| {
            identity.check_shape(agreed, shape).unwrap_err()
        };
        let other = Shape { size: 4096, ..shape };
        assert!(check(&mut identity, &good, other).contains("1048576"));
        let other = Shape { read_only: true, ..shape };
        assert!(check(&mut identity, &good, other).contains("read-only"));
        let coarse = Agreed { blocks: (4096, 4096, 1 << 20), ..good.clone() };
        assert!(check(&mut identity, &coarse, shape).contains("4096"));
        let plain = Agreed { flags: TransmissionFlags(1), ..good.clone() };
        assert!(check(&mut identity, &plain, shape).contains("flush"));
        let named = Agreed { name: Some("other".into()), ..good.clone() };
        assert!(check(&mut identity, &named, shape).contains("other"));
        let silent = Agreed { name: None, ..good };
        assert_eq!(identity.check_shape(&silent, shape), Ok(()));
    }

    #[test]
    fn a_change_makes_a_sample_unknown_until_it_is_learnt() {
        let mut identity = identity(1 << 20);
        assert!(identity.known().is_empty());
        for look in identity.unknown() {
            identity.learn(look, &[7; 4096]);
        }
        let looks = identity.known();
        assert!(looks.len() >= 10 && identity.unknown().is_empty());
        assert!(identity.is_same(looks[0], &[7; 4096]));
        assert!(!identity.is_same(looks[0], &[8; 4096]));
        let before = identity.fingerprint();
        identity.touch(ByteRange::new(100, 1));
        assert!(identity.is_same(looks[0], &[8; 4096]), "nobody knows what it is");
        identity.learn(looks[0], &[9; 4096]);
        assert_eq!(identity.known().len(), looks.len() - 1, "that was read before the change");
        let look = identity.unknown()[0];
        identity.learn(look, &[9; 4096]);
        assert_ne!(identity.fingerprint(), before);
    }

    #[test]
    fn places_written_lately_are_samples() {
        let mut identity = identity(64 << 20);
        let fixed = identity.unknown().len();
        identity.remember(&[ByteRange::new(4097 * 4096, 4095), ByteRange::new(5000, 100)]);
        assert_eq!(identity.unknown().len(), fixed, "no whole block was written");
        for place in 0..100 {
            identity.remember(&[ByteRange::new((1000 + place) * 4096 - 512, 8192)]);
        }
        assert_eq!(identity.unknown().len(), fixed + RECENT);
        assert!(identity.unknown().iter().any(|look| look.range.offset == 1099 * 4096));
    }

    #[test]
    fn what_is_remembered_is_known_to_another() {
        let mut one = identity(64 << 20);
        one.remember(&[ByteRange::new(777 * 4096, 4096)]);
        for look in one.unknown() {
            one.learn(look, &[7; 4096]);
        }
        let mut other = identity(64 << 20);
        other.recall(&one.remembered());
        assert_eq!(other.known(), one.known());
        assert_eq!(other.recent(), [ByteRange::new(777 * 4096, 4096)]);
        let mut small = identity(1 << 20);
        small.recall(&one.remembered());
        assert!(small.known().iter().all(|look| look.range.end() <= 1 << 20));
    }

    #[test]
    fn small_exports_have_samples_inside() {
        for size in [512, 4096, 5120, 1 << 16] {
            let looks = identity(size).unknown();
            assert!(!looks.is_empty());
            assert!(looks.iter().all(|look| look.range.end() <= size), "{size}: {looks:?}");
        }
    }
}
