//! What an export held in some places, to know it again later.

use holdfast_units::ByteRange;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// The start of a SHA-256.
pub(super) type Print = [u8; 16];

/// The most places.
pub(super) const PLACES: usize = 32;
/// One place as bytes.
const BYTES: usize = 8 + 4 + 16;

/// The print of what a place holds.
pub(super) fn print(data: &[u8]) -> Print {
    let mut print = [0; 16];
    print.copy_from_slice(&Sha256::digest(data)[..16]);
    print
}

/// What an export held in at most 32 places: enough to know whether it is still the same disk in the
/// same state. As a text it is hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remembered(Vec<(ByteRange, Print)>);

impl Remembered {
    /// At most as many as there may be.
    pub(super) fn new(places: impl Iterator<Item = (ByteRange, Print)>) -> Self {
        Self(places.take(PLACES).collect())
    }

    pub(super) fn places(&self) -> &[(ByteRange, Print)] {
        &self.0
    }

    /// Without what may have changed.
    pub(super) fn outside(&self, changed: &[ByteRange]) -> Self {
        let is_certain = |range: &ByteRange| !changed.iter().any(|hot| hot.overlaps(*range));
        Self(self.0.iter().filter(|(range, _)| is_certain(range)).copied().collect())
    }

    /// Whether nothing is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both know at least one place that is not all zeroes, and no place differs.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        let mut telling = false;
        for (range, is) in &self.0 {
            let Some((_, was)) = other.0.iter().find(|(place, _)| place == range) else { continue };
            if is != was {
                return false;
            }
            let len = usize::try_from(range.len).unwrap_or(0);
            telling |= *is != print(&vec![0; len]);
        }
        telling
    }

    /// The number of places, and each of them.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(self.0.len()).unwrap_or(u8::MAX)];
        for (range, print) in &self.0 {
            bytes.extend(range.offset.to_le_bytes());
            bytes.extend(u32::try_from(range.len).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(print);
        }
        bytes
    }

    /// Reads what [`Remembered::to_bytes`] has written; the rest of the bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (count, rest) = bytes.split_first()?;
        let (places, rest) = rest.split_at_checked(usize::from(*count) * BYTES)?;
        let place = |place: &[u8]| {
            let offset = u64::from_le_bytes(place.get(..8)?.try_into().ok()?);
            let len = u32::from_le_bytes(place.get(8..12)?.try_into().ok()?);
            offset.checked_add(len.into())?;
            Some((ByteRange::new(offset, len.into()), place.get(12..)?.try_into().ok()?))
        };
        let places: Option<Vec<_>> = places.chunks_exact(BYTES).map(place).collect();
        Some((Self(places?), rest))
    }
}

impl fmt::Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Remembered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let damaged = || "what an export held is not a list of places".to_owned();
        let digits = text.as_bytes().as_chunks::<2>().0;
        let byte = |two: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = digits.iter().map(byte).collect();
        let bytes = bytes.filter(|_| text.len().is_multiple_of(2)).ok_or_else(damaged)?;
        match Self::from_bytes(&bytes) {
            Some((remembered, [])) => Ok(remembered),
            _ => Err(damaged()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(places: &[(u64, u8)]) -> Remembered {
        let place =
            |(at, byte): &(u64, u8)| (ByteRange::new(at * 4096, 4096), print(&[*byte; 4096]));
        Remembered::new(places.iter().map(place))
    }

    #[test]
    fn a_text_is_read_as_what_it_was_and_damage_is_noticed() {
        let one = some(&[(0, 1), (1 << 40, 7)]);
        let text = one.to_string();
        assert_eq!(text.parse(), Ok(one));
        assert_eq!(Remembered::default().to_string().parse(), Ok(Remembered::default()));
        for damaged in ["", "0", "zz", "\u{e9}\u{e9}", &text[2..], &text[..text.len() - 2]] {
            assert!(damaged.parse::<Remembered>().is_err(), "{damaged}");
        }
        assert!(format!("{text}00").parse::<Remembered>().is_err());
        let far = format!("01{}{}", "ff".repeat(12), "00".repeat(16));
        assert!(far.parse::<Remembered>().is_err());
    }

    #[test]
    fn only_what_is_written_somewhere_tells_disks_apart() {
        let disk = some(&[(0, 0), (5, 3)]);
        assert!(disk.looks_like(&some(&[(0, 0), (5, 3), (9, 9)])));
        assert!(!disk.looks_like(&some(&[(0, 0), (5, 4)])));
        assert!(!disk.looks_like(&some(&[(0, 0)])), "any new disk has that");
        assert!(!disk.looks_like(&Remembered::default()));
    }
}
