//! Segments: the files of the journal, and the chain that ties them together.

use super::MAX_POSITION;
use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get, get_u32, get_u64, put,
};
use holdfast_units::{GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use sha2::{Digest, Sha256};

/// The bytes of a segment before its first frame.
pub const SEGMENT_HEADER_LEN: u64 = BLOCK_LEN as u64;

/// Records of the segment may be compressed.
const PACKED: u32 = 1;
const KNOWN_FEATURES: u32 = PACKED;
const NO_NODE: u8 = 255;

const AT_EPOCH: usize = HEAD_LEN;
const AT_BASE: usize = 48;
const AT_CAPACITY: usize = 56;
const AT_ALIGNMENT: usize = 64;
const AT_ORIGIN: usize = 68;
const AT_PREDECESSOR_ORIGIN: usize = 69;
const AT_TIME: usize = 72;
const AT_CHAIN: usize = 80;
const AT_PREDECESSOR_LEN: usize = 96;
const AT_PREDECESSOR_EPOCH: usize = 104;
const AT_GENERATION: usize = 112;
const AT_FEATURES: usize = 120;

/// Whether frames can have this alignment: 512 or 4096 bytes.
#[must_use]
pub const fn is_alignment(alignment: u32) -> bool {
    matches!(alignment, 512 | 4096)
}

/// A segment in the chain: what two nodes tell each other of their journals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentLink {
    /// Which one.
    pub number: u64,
    /// Whose writes it holds.
    pub origin: NodeId,
    /// The epoch that began it: tells two segments of one origin and number apart.
    pub epoch: u64,
    /// The position of its first frame.
    pub base: LogPosition,
    /// The bytes of its frames, so far if it is the last one.
    pub len: u64,
    /// When it was begun.
    pub time: HybridTime,
    /// The chain over everything before it.
    pub chain: [u8; 16],
}

impl SegmentLink {
    /// The position behind its last frame.
    #[must_use]
    pub const fn end(&self) -> LogPosition {
        self.base.after(self.len)
    }

    /// The chain over everything up to the end of this segment.
    #[must_use]
    pub fn chain_after(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        hash.update(b"holdfast journal");
        hash.update(self.chain);
        hash.update([self.origin.number()]);
        hash.update(self.number.to_le_bytes());
        hash.update(self.epoch.to_le_bytes());
        hash.update(self.len.to_le_bytes());
        let mut chain = [0; 16];
        chain.copy_from_slice(&hash.finalize()[..16]);
        chain
    }
}

/// The first block of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Whose journal it is.
    pub resource: ResourceId,
    /// Which segment, from 1.
    pub number: u64,
    /// The node that wrote the records.
    pub origin: NodeId,
    /// The epoch of its writer when it was begun.
    pub epoch: u64,
    /// The position of its first frame.
    pub base: LogPosition,
    /// The bytes of the file, this block included; a multiple of 4096.
    pub capacity: u64,
    /// What frames are aligned to: 512 or 4096.
    pub alignment: u32,
    /// When it was begun.
    pub time: HybridTime,
    /// The chain over everything before it.
    pub chain: [u8; 16],
    /// Origin, epoch and final length of the segment before it; `None` for the first one ever.
    pub predecessor: Option<(NodeId, u64, u64)>,
    /// The generation of the data when it was begun.
    pub generation: GenerationId,
    /// Its records may be compressed: for whoever must be able to unpack them.
    pub packed: bool,
}

impl SegmentHeader {
    /// What it says of itself in the chain, with so many bytes of frames.
    #[must_use]
    pub const fn link(&self, len: u64) -> SegmentLink {
        SegmentLink {
            number: self.number,
            origin: self.origin,
            epoch: self.epoch,
            base: self.base,
            len,
            time: self.time,
            chain: self.chain,
        }
    }

    /// Whether it continues this segment.
    #[must_use]
    pub fn continues(&self, before: &SegmentLink) -> bool {
        self.number == before.number + 1
            && self.base == before.end()
            && self.predecessor == Some((before.origin, before.epoch, before.len))
            && self.chain == before.chain_after()
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_LEN];
        let b = &mut block;
        put(b, AT_EPOCH, self.epoch.to_le_bytes());
        put(b, AT_BASE, self.base.0.to_le_bytes());
        put(b, AT_CAPACITY, self.capacity.to_le_bytes());
        put(b, AT_ALIGNMENT, self.alignment.to_le_bytes());
        put(b, AT_ORIGIN, [self.origin.number()]);
        put(b, AT_PREDECESSOR_ORIGIN, [NO_NODE]);
        if let Some((origin, epoch, len)) = self.predecessor {
            put(b, AT_PREDECESSOR_ORIGIN, [origin.number()]);
            put(b, AT_PREDECESSOR_EPOCH, epoch.to_le_bytes());
            put(b, AT_PREDECESSOR_LEN, len.to_le_bytes());
        }
        put(b, AT_TIME, self.time.0.to_le_bytes());
        put(b, AT_CHAIN, self.chain);
        put(b, AT_GENERATION, self.generation.0.to_le_bytes());
        let features = if self.packed { PACKED } else { 0 };
        put(b, AT_FEATURES, features.to_le_bytes());
        let head =
            Head { kind: BlockKind::JournalSegment, number: self.number, resource: self.resource };
        block::seal(b, head);
        block
    }

    /// Reads the first block of the file with this segment's number.
    ///
    /// # Errors
    /// [`BlockError`]: it is not that segment's of that resource, or broken.
    pub fn decode(b: &Block, resource: ResourceId, number: u64) -> Result<Self, BlockError> {
        block::open_of(b, Head { kind: BlockKind::JournalSegment, number, resource })?;
        let features = get_u32(b, AT_FEATURES);
        let unknown = features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(BlockError::Features { unknown });
        }
        let content = |why| BlockError::Content(why);
        let origin = NodeId::new(b[AT_ORIGIN])
            .ok_or(content("its records are of an impossible node number"))?;
        let predecessor_fields = (get_u64(b, AT_PREDECESSOR_EPOCH), get_u64(b, AT_PREDECESSOR_LEN));
        let predecessor = match (b[AT_PREDECESSOR_ORIGIN], predecessor_fields) {
            (NO_NODE, (0, 0)) => None,
            (NO_NODE, _) => return Err(content("it has a length of no predecessor")),
            (node, (epoch, len)) => {
                let node = NodeId::new(node)
                    .ok_or(content("its predecessor is of an impossible node number"))?;
                Some((node, epoch, len))
            }
        };
        let header = Self {
            resource,
            number,
            origin,
            epoch: get_u64(b, AT_EPOCH),
            base: LogPosition(get_u64(b, AT_BASE)),
            capacity: get_u64(b, AT_CAPACITY),
            alignment: get_u32(b, AT_ALIGNMENT),
            time: HybridTime(get_u64(b, AT_TIME)),
            chain: get(b, AT_CHAIN),
            predecessor,
            generation: GenerationId(get_u64(b, AT_GENERATION)),
            packed: features & PACKED != 0,
        };
        header.fault().map_or(Ok(header), |why| Err(content(why)))
    }

    fn fault(&self) -> Option<&'static str> {
        let known_len = self.predecessor.map_or(0, |(_, _, len)| len);
        if self.number == 0 || self.number >= MAX_POSITION {
            Some("it has an impossible segment number")
        } else if !is_alignment(self.alignment) {
            Some("its frames have an impossible alignment")
        } else if !self.base.0.is_multiple_of(512) || self.base.0 >= MAX_POSITION {
            Some("it begins at an impossible position")
        } else if known_len > self.base.0 {
            Some("its predecessor is longer than all before it")
        } else if !self.capacity.is_multiple_of(SEGMENT_HEADER_LEN)
            || self.capacity <= SEGMENT_HEADER_LEN
            || self.capacity >= MAX_POSITION
        {
            Some("it has an impossible capacity")
        } else {
            None
        }
    }
}
