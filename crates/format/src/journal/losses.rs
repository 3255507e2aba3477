//! What a node that follows keeps of its own disk: blocks of which there is no good copy on it.

use super::note::{u16_at, u32_at, u64_at, usize_of};
use crate::MAX_DEVICE_SIZE;
use crate::journal::NoteError;
use holdfast_units::{ByteRange, ResourceId};

/// The most stretches of blocks that a list has. With more of them, gaps between them are closed.
pub const MAX_LOSSES: usize = 32 << 10;

const MAGIC: [u8; 4] = *b"HFFL";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 40;
const RANGE_LEN: usize = 16;

/// The blocks of a disk of which there is no good copy on it. A file of its own, replaced as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LossList {
    /// Whose disk.
    pub resource: ResourceId,
    /// Blocks that are not what was written: not to be looked at until they are written. Lowest
    /// first; ranges neither overlap nor touch.
    pub old: Vec<ByteRange>,
    /// Blocks that could not be read, in the same way. Who can read them has what they hold.
    pub unread: Vec<ByteRange>,
}

impl LossList {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(HEAD_LEN + (self.old.len() + self.unread.len()) * RANGE_LEN);
        b.extend_from_slice(&MAGIC);
        b.extend_from_slice(&[0; 4]);
        b.extend_from_slice(&VERSION.to_le_bytes());
        b.extend_from_slice(&[0; 6]);
        b.extend_from_slice(&self.resource.0);
        for count in [self.old.len(), self.unread.len()] {
            b.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
        }
        for range in self.old.iter().chain(&self.unread) {
            b.extend_from_slice(&range.offset.to_le_bytes());
            b.extend_from_slice(&range.len.to_le_bytes());
        }
        let crc = crc32c::crc32c(&b[8..]);
        b[4..8].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads the bytes of a list.
    ///
    /// # Errors
    /// [`NoteError`] says what is wrong with them.
    pub fn decode(b: &[u8], resource: ResourceId) -> Result<Self, NoteError> {
        let Some((head, rest)) = b.split_at_checked(HEAD_LEN) else {
            return Err(NoteError::Length);
        };
        if head[..4] != MAGIC || u16_at(head, 8) != VERSION {
            return Err(NoteError::Magic);
        }
        if crc32c::crc32c(&b[8..]) != u32_at(head, 4) {
            return Err(NoteError::Checksum);
        }
        if head[16..32] != resource.0 {
            return Err(NoteError::Other);
        }
        let (old, unread) = (usize_of(u32_at(head, 32)), usize_of(u32_at(head, 36)));
        if old > MAX_LOSSES || unread > MAX_LOSSES {
            return Err(NoteError::Content("number of entries"));
        }
        if rest.len() != (old + unread) * RANGE_LEN {
            return Err(NoteError::Length);
        }
        let (old, unread) = rest.split_at(old * RANGE_LEN);
        Ok(Self { resource, old: ranges(old)?, unread: ranges(unread)? })
    }
}

fn ranges(bytes: &[u8]) -> Result<Vec<ByteRange>, NoteError> {
    let mut all: Vec<ByteRange> = Vec::with_capacity(bytes.len() / RANGE_LEN);
    for bytes in bytes.chunks(RANGE_LEN) {
        let range = ByteRange::new(u64_at(bytes, 0), u64_at(bytes, 8));
        let after = all.last().is_none_or(|last| last.end() < range.offset);
        let within = range.offset <= MAX_DEVICE_SIZE
            && range.len <= MAX_DEVICE_SIZE
            && range.end() <= MAX_DEVICE_SIZE;
        if range.is_empty() || !after || !within || !range.is_aligned() {
            return Err(NoteError::Content("range"));
        }
        all.push(range);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::LossList;
    use crate::journal::NoteError;
    use crate::testing::{OTHER, RESOURCE};
    use holdfast_units::ByteRange;
    use proptest::prelude::*;

    fn some() -> LossList {
        LossList {
            resource: RESOURCE,
            old: vec![ByteRange::new(0, 4096)],
            unread: vec![ByteRange::new(8192, 8192), ByteRange::new(1 << 20, 4096)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let list = some();
        let bytes = list.encode();
        assert_eq!(LossList::decode(&bytes, RESOURCE), Ok(list));
        assert_eq!(LossList::decode(&bytes, OTHER), Err(NoteError::Other));
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x10;
            assert!(LossList::decode(&rotten, RESOURCE).is_err(), "{at}");
            assert!(LossList::decode(&bytes[..at], RESOURCE).is_err());
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let bytes = some().encode();
        assert_eq!(bytes.len(), 40 + 3 * 16);
        assert_eq!(&bytes[..4], b"HFFL");
        assert_eq!(&bytes[8..16], &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[16..32], b"sixteen bytes ok");
        assert_eq!(&bytes[32..40], &[1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&bytes[56..64], &[0, 0x20, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            let _ = LossList::decode(&bytes, RESOURCE);
            let head = some().encode();
            let n = bytes.len().min(32);
            bytes[..n].copy_from_slice(&head[..n]);
            if bytes.len() >= 8 {
                let crc = crc32c::crc32c(&bytes[8..]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = LossList::decode(&bytes, RESOURCE);
        }
    }
}
