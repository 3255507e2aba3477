//! What a node that follows keeps of its own disk: blocks of which there is no good copy on it.

use super::small_file::{Kind, NoteError, RANGE_LEN, counts, put_counts, put_ranges, ranges, seal};
use holdfast_units::{ByteRange, ResourceId};

/// The most stretches of blocks that a list has. With more of them, gaps between them are closed.
pub const MAX_LOSSES: usize = 32 << 10;

const HEAD_LEN: usize = 40;

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
    const fn kind(resource: ResourceId) -> Kind {
        Kind { magic: *b"HFFL", node: 0, resource }
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = HEAD_LEN + (self.old.len() + self.unread.len()) * RANGE_LEN;
        let mut b = Self::kind(self.resource).begin(len);
        put_counts(&mut b, [self.old.len(), self.unread.len()]);
        put_ranges(&mut b, &self.old);
        put_ranges(&mut b, &self.unread);
        seal(b)
    }

    /// Reads the bytes of a list.
    ///
    /// # Errors
    /// [`NoteError`] says what is wrong with them.
    pub fn decode(b: &[u8], resource: ResourceId) -> Result<Self, NoteError> {
        let (head, rest) = Self::kind(resource).open(b, HEAD_LEN)?;
        let [old, unread] = counts(head, 32, [MAX_LOSSES, MAX_LOSSES])?;
        if rest.len() != (old + unread) * RANGE_LEN {
            return Err(NoteError::Length);
        }
        let (old, unread) = rest.split_at(old * RANGE_LEN);
        Ok(Self { resource, old: ranges(old)?, unread: ranges(unread)? })
    }
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
