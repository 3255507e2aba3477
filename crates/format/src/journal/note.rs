//! What a node that leads keeps of a node that follows it and cannot go on by the journal alone.

use super::small_file::{
    Kind, NoteError, RANGE_LEN, counts, put_counts, put_ranges, ranges, seal, u64_at,
};
use super::{MAX_POSITION, SegmentLink};
use holdfast_units::{ByteRange, HybridTime, LogPosition, NodeId, ResourceId};

/// The most segments that a note vouches for. With more of them the follower gets everything.
pub const MAX_NOTE_LINKS: usize = 4096;
/// The most ranges that a note has. With more of them, gaps between them are closed.
pub const MAX_NOTE_RANGES: usize = 256 << 10;

const HEAD_LEN: usize = 64;
const LINK_LEN: usize = 57;

/// What a follower lacks besides the journal. A file of its own, replaced as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerNote {
    /// Whose disk.
    pub resource: ResourceId,
    /// The follower.
    pub node: NodeId,
    /// The number of the filling that was begun last; 0: none.
    pub fill: u64,
    /// Where the journal begins that belongs to it.
    pub from: LogPosition,
    /// Who has everything before this lacks only `missing` and what is kept of the journal.
    pub needs: LogPosition,
    /// The segments from `needs` on that are not kept any more: they say whose history it is.
    pub links: Vec<SegmentLink>,
    /// What it lacks, lowest first; ranges neither overlap nor touch.
    pub missing: Vec<ByteRange>,
}

impl FollowerNote {
    const fn kind(resource: ResourceId, node: NodeId) -> Kind {
        Kind { magic: *b"HFFN", node: node.number(), resource }
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let len = HEAD_LEN + self.links.len() * LINK_LEN + self.missing.len() * RANGE_LEN;
        let mut b = Self::kind(self.resource, self.node).begin(len);
        for value in [self.fill, self.from.0, self.needs.0] {
            b.extend_from_slice(&value.to_le_bytes());
        }
        put_counts(&mut b, [self.links.len(), self.missing.len()]);
        for link in &self.links {
            b.extend_from_slice(&link.number.to_le_bytes());
            b.push(link.origin.number());
            for value in [link.epoch, link.base.0, link.len, link.time.0] {
                b.extend_from_slice(&value.to_le_bytes());
            }
            b.extend_from_slice(&link.chain);
        }
        put_ranges(&mut b, &self.missing);
        seal(b)
    }

    /// Reads the bytes of a note about `node`.
    ///
    /// # Errors
    /// [`NoteError`] says what is wrong with them.
    pub fn decode(b: &[u8], resource: ResourceId, node: NodeId) -> Result<Self, NoteError> {
        let (head, rest) = Self::kind(resource, node).open(b, HEAD_LEN)?;
        let [links, missing] = counts(head, 56, [MAX_NOTE_LINKS, MAX_NOTE_RANGES])?;
        if rest.len() != links * LINK_LEN + missing * RANGE_LEN {
            return Err(NoteError::Length);
        }
        let (links, missing) = rest.split_at(links * LINK_LEN);
        let links = links.chunks(LINK_LEN).map(link).collect::<Result<_, _>>()?;
        let missing = ranges(missing)?;
        let (from, needs) = (position(u64_at(head, 40))?, position(u64_at(head, 48))?);
        Ok(Self { resource, node, fill: u64_at(head, 32), from, needs, links, missing })
    }
}

fn link(bytes: &[u8]) -> Result<SegmentLink, NoteError> {
    let mut chain = [0; 16];
    chain.copy_from_slice(&bytes[41..57]);
    let link = SegmentLink {
        number: u64_at(bytes, 0),
        origin: NodeId::new(bytes[8]).ok_or(NoteError::Content("node"))?,
        epoch: u64_at(bytes, 9),
        base: position(u64_at(bytes, 17))?,
        len: u64_at(bytes, 25),
        time: HybridTime(u64_at(bytes, 33)),
        chain,
    };
    if link.len < MAX_POSITION { Ok(link) } else { Err(NoteError::Content("length")) }
}

const fn position(position: u64) -> Result<LogPosition, NoteError> {
    if position < MAX_POSITION {
        Ok(LogPosition(position))
    } else {
        Err(NoteError::Content("position"))
    }
}

#[cfg(test)]
mod tests {
    use super::{FollowerNote, NoteError};
    use crate::journal::SegmentLink;
    use crate::testing::{OTHER, RESOURCE, node};
    use holdfast_units::{ByteRange, HybridTime, LogPosition};
    use proptest::prelude::*;

    fn some() -> FollowerNote {
        FollowerNote {
            resource: RESOURCE,
            node: node(3),
            fill: 0x0123_4567_89ab_cdef,
            from: LogPosition(0x9000),
            needs: LogPosition(0x8000),
            links: vec![SegmentLink {
                number: 7,
                origin: node(1),
                epoch: 0x55,
                base: LogPosition(0x7000),
                len: 0x2000,
                time: HybridTime(0x66),
                chain: *b"0123456789abcdef",
            }],
            missing: vec![ByteRange::new(0, 4096), ByteRange::new(8192, 8192)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let note = some();
        let bytes = note.encode();
        assert_eq!(FollowerNote::decode(&bytes, RESOURCE, node(3)), Ok(note));
        assert_eq!(FollowerNote::decode(&bytes, RESOURCE, node(4)), Err(NoteError::Other));
        assert_eq!(FollowerNote::decode(&bytes, OTHER, node(3)), Err(NoteError::Other));
        for at in 0..bytes.len() {
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x10;
            assert!(FollowerNote::decode(&rotten, RESOURCE, node(3)).is_err(), "{at}");
            assert!(FollowerNote::decode(&bytes[..at], RESOURCE, node(3)).is_err());
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let bytes = some().encode();
        assert_eq!(bytes.len(), 64 + 57 + 32);
        assert_eq!(&bytes[..4], b"HFFN");
        assert_eq!(&bytes[8..16], &[1, 0, 3, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[16..32], b"sixteen bytes ok");
        assert_eq!(&bytes[32..40], &[0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        assert_eq!(&bytes[40..56], &[0, 0x90, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[56..64], &[1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&bytes[64..74], &[7, 0, 0, 0, 0, 0, 0, 0, 1, 0x55]);
        assert_eq!(&bytes[105..121], b"0123456789abcdef");
        assert_eq!(&bytes[137..145], &[0, 0x20, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            let _ = FollowerNote::decode(&bytes, RESOURCE, node(3));
            let head = some().encode();
            let n = bytes.len().min(32);
            bytes[..n].copy_from_slice(&head[..n]);
            if bytes.len() >= 8 {
                let crc = crc32c::crc32c(&bytes[8..]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = FollowerNote::decode(&bytes, RESOURCE, node(3));
        }
    }
}
