//! The superblock: what the node knows about its copy of the data, and where the rest lies.

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get, get_u16, get_u32, get_u64,
    put,
};
use crate::layout::{MetaLayout, Placement};
use holdfast_units::{GenerationId, MAX_NODES, NodeId, ResourceId};
use std::fmt;

/// How many past generations are kept.
pub const HISTORY_LEN: usize = 32;

/// The disk has spares for its bad sectors: parts of its data are there.
pub const FEATURE_SPARES: u32 = 1;

/// Feature bit: the node's own bitmap has blocks of which there is no good copy here. It is there as
/// long as [`DiskFlags::LOST`] is.
const FEATURE_LOST: u32 = 1 << 3;

/// Feature bit: of some of them it says that they only could not be read. It is there as long as
/// [`DiskFlags::UNREAD`] is.
const FEATURE_UNREAD: u32 = 1 << 4;

/// The incompatible format features that this program knows.
pub const KNOWN_FEATURES: u32 = FEATURE_SPARES | FEATURE_LOST | FEATURE_UNREAD;

const PEERS: usize = MAX_NODES as usize;
const NO_NODE: u8 = 255;

const AT_SEQUENCE: usize = HEAD_LEN;
const AT_NODE: usize = 48;
const AT_FOLLOWING: usize = 49;
const AT_PLACEMENT: usize = 50;
const AT_SLOTS: usize = 51;
const AT_FLAGS: usize = 52;
const AT_FEATURES: usize = 56;
const AT_COMPATIBLE: usize = 60;
const AT_DEVICE_SIZE: usize = 64;
const AT_ANCHOR: usize = 72;
const AT_AL_START: usize = 80;
const AT_AL_BLOCKS: usize = 88;
const AT_AL_EXTENTS: usize = 92;
const AT_BITMAP_START: usize = 96;
const AT_BOOT: usize = 104;
const AT_CURRENT: usize = 120;
const AT_HISTORY: usize = 128;
const AT_PEERS: usize = AT_HISTORY + HISTORY_LEN * 8;
const PEER_LEN: usize = 24;
const AT_DISK_ID: usize = AT_PEERS + PEERS * PEER_LEN;

const _: () = assert!(AT_PEERS == 384);
const _: () = assert!(AT_DISK_ID == 1152);
const _: () = assert!(AT_DISK_ID + 16 <= BLOCK_LEN);

/// Makes a set of named bits. Bits without a name are kept as they are, so that an older program
/// does not lose what a newer one wrote.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $flag:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub struct $name(u32);

        impl $name {
            /// No flag.
            pub const EMPTY: Self = Self(0);
            $($(#[$fdoc])* pub const $flag: Self = Self(1 << $bit);)*

            const NAMES: &[(u32, &'static str)] = &[$((1 << $bit, stringify!($flag)),)*];

            /// The flags whose bits are set; bits without a name are kept.
            #[must_use]
            pub const fn from_bits(bits: u32) -> Self {
                Self(bits)
            }

            /// The flags as bits.
            #[must_use]
            pub const fn bits(self) -> u32 {
                self.0
            }

            /// Whether all flags of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Sets the flags of `other`.
            pub const fn insert(&mut self, other: Self) {
                self.0 |= other.0;
            }

            /// Takes the flags of `other` away.
            pub const fn remove(&mut self, other: Self) {
                self.0 &= !other.0;
            }

            /// Sets the flags of `other` or takes them away.
            pub const fn set(&mut self, other: Self, on: bool) {
                if on { self.insert(other) } else { self.remove(other) }
            }

            /// The flags of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl fmt::Display for $name {
            /// The names, with commas; `-` when there is none.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_flags(f, self.0, Self::NAMES)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

fn write_flags(
    f: &mut fmt::Formatter<'_>,
    bits: u32,
    names: &[(u32, &'static str)],
) -> fmt::Result {
    if bits == 0 {
        return f.write_str("-");
    }
    let mut unnamed = bits;
    let mut comma = "";
    for (bit, name) in names.iter().filter(|(bit, _)| bits & bit != 0) {
        write!(f, "{comma}{name}")?;
        unnamed &= !bit;
        comma = ",";
    }
    if unnamed != 0 {
        write!(f, "{comma}{unnamed:#x}")?;
    }
    Ok(())
}

flags! {
    /// What the local copy was worth when the superblock was written.
    DiskFlags {
        /// All blocks are of one point in time. Without it a resync was under way.
        CONSISTENT = 0,
        /// The data was current when last written.
        WAS_UPTODATE = 1,
        /// The node was Primary when last written.
        PRIMARY = 2,
        /// Stopped in an orderly way: no extent is hot, all bitmaps are written.
        CLEAN = 3,
        /// A peer is known to have newer data.
        OUTDATED = 4,
        /// The disk failed, or a flush on it did, and was given up.
        FAILED = 5,
        /// Some blocks may be old here: the node's own bitmap says which.
        LOST = 6,
        /// Some blocks could not be read here, and were not written since: it says which, too.
        UNREAD = 7,
    }
}

flags! {
    /// What is remembered of a peer.
    PeerFlags {
        /// The node is a member of the resource, so that its bitmap is kept.
        MEMBER = 0,
        /// The peer was connected with its disk at least once.
        SEEN = 1,
        /// The peer's data is known to be outdated.
        OUTDATED = 2,
        /// The peer needs every block, whatever the bitmap says.
        FULL_SYNC = 3,
        /// The peer is fenced.
        FENCED = 4,
        /// The node's disk holds blocks of a resync from this member that did not end.
        FILLED_FROM = 5,
        /// The node was filling this member's disk, or had begun to, and noted nothing more that it misses.
        FILLING = 6,
        /// The member's disk failed, and it has not had the same data since.
        FAILED = 7,
    }
}

/// What is remembered of one peer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PeerRecord {
    /// The generation since which the peer's bitmap collects what it missed;
    /// [`GenerationId::NONE`] when it misses nothing.
    pub bitmap: GenerationId,
    /// The current generation that the peer had when last heard of.
    pub current: GenerationId,
    /// More that is known.
    pub flags: PeerFlags,
}

/// The superblock of a resource on one node.
///
/// There are two copies; sequence numbers go up by one with every write, and the even ones go to
/// copy 0, the odd ones to copy 1. So a write never touches the newest copy, and a torn write
/// leaves the state before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Goes up by one with every write.
    pub sequence: u64,
    /// Whose metadata this is.
    pub resource: ResourceId,
    /// The number of this node.
    pub node: NodeId,
    /// The Primary that this node followed last.
    pub following: Option<NodeId>,
    /// What the local copy is worth.
    pub flags: DiskFlags,
    /// Compatible format features; a program that does not know them keeps the bits and may
    /// ignore them.
    pub compatible_features: u32,
    /// Which boot of the machine wrote this.
    pub boot: [u8; 16],
    /// The generation of the local data.
    pub current: GenerationId,
    /// Past generations, newest first.
    pub history: [GenerationId; HISTORY_LEN],
    /// What is known of the peers, by node number.
    pub peers: [PeerRecord; PEERS],
    /// The identity of the disk, when it has spares for its bad sectors. It must not be used without
    /// them then: parts of its data are there.
    pub spares: Option<[u8; 16]>,
    /// Where everything lies.
    pub layout: MetaLayout,
}

impl Superblock {
    /// The superblock of a disk that never held data of the resource: sequence 0, generation
    /// [`GenerationId::JUST_CREATED`], no flags, no peers.
    #[must_use]
    pub fn new(resource: ResourceId, node: NodeId, boot: [u8; 16], layout: MetaLayout) -> Self {
        Self {
            sequence: 0,
            resource,
            node,
            following: None,
            flags: DiskFlags::EMPTY,
            compatible_features: 0,
            boot,
            current: GenerationId::JUST_CREATED,
            history: [GenerationId::NONE; HISTORY_LEN],
            peers: [PeerRecord::default(); PEERS],
            spares: None,
            layout,
        }
    }

    /// The copy, 0 or 1, that holds this sequence number.
    #[must_use]
    pub const fn copy(&self) -> u8 {
        if self.sequence.is_multiple_of(2) { 0 } else { 1 }
    }

    /// Counts the sequence number up, and gives the block to write and where.
    ///
    /// The write must be durable before the next one starts.
    pub fn advance(&mut self) -> (u64, Block) {
        self.sequence += 1;
        (self.layout.superblock_offset(self.copy()), self.encode())
    }

    /// The bytes, for the copy that belongs to the sequence number.
    #[must_use]
    pub fn encode(&self) -> Block {
        let mut block = [0; BLOCK_LEN];
        let b = &mut block;
        put(b, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(b, AT_NODE, [self.node.number()]);
        put(b, AT_FOLLOWING, [self.following.map_or(NO_NODE, NodeId::number)]);
        put(b, AT_FLAGS, self.flags.bits().to_le_bytes());
        let spares = if self.spares.is_some() { FEATURE_SPARES } else { 0 };
        let lost = if self.flags.contains(DiskFlags::LOST) { FEATURE_LOST } else { 0 };
        let unread = if self.flags.contains(DiskFlags::UNREAD) { FEATURE_UNREAD } else { 0 };
        put(b, AT_FEATURES, (spares | lost | unread).to_le_bytes());
        put(b, AT_DISK_ID, self.spares.unwrap_or_default());
        put(b, AT_COMPATIBLE, self.compatible_features.to_le_bytes());
        put(b, AT_BOOT, self.boot);
        put(b, AT_CURRENT, self.current.0.to_le_bytes());
        for (i, generation) in self.history.iter().enumerate() {
            put(b, AT_HISTORY + i * 8, generation.0.to_le_bytes());
        }
        for (i, peer) in self.peers.iter().enumerate() {
            let at = AT_PEERS + i * PEER_LEN;
            put(b, at, peer.bitmap.0.to_le_bytes());
            put(b, at + 8, peer.current.0.to_le_bytes());
            put(b, at + 16, peer.flags.bits().to_le_bytes());
        }
        encode_layout(b, &self.layout);
        let number = u64::from(self.copy());
        block::seal(b, Head { kind: BlockKind::Superblock, number, resource: self.resource });
        block
    }

    /// Reads the bytes that were found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them. [`BlockError::Version`] and
    /// [`BlockError::Features`] mean that they are whole, but not for this program.
    pub fn decode(block: &Block, copy: u8) -> Result<Self, BlockError> {
        let resource = block::open(block, BlockKind::Superblock, u64::from(copy & 1))?;
        let features = get_u32(block, AT_FEATURES);
        let unknown = features & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(BlockError::Features { unknown });
        }
        let sequence = get_u64(block, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let node = NodeId::new(block[AT_NODE])
            .ok_or(BlockError::Content("it has an impossible node number"))?;
        let following = match block[AT_FOLLOWING] {
            NO_NODE => None,
            number => Some(
                NodeId::new(number)
                    .ok_or(BlockError::Content("it follows an impossible node number"))?,
            ),
        };
        let generation = |at| GenerationId(get_u64(block, at));
        let superblock = Self {
            sequence,
            resource,
            node,
            following,
            flags: DiskFlags::from_bits(get_u32(block, AT_FLAGS)),
            compatible_features: get_u32(block, AT_COMPATIBLE),
            boot: get(block, AT_BOOT),
            current: generation(AT_CURRENT),
            history: std::array::from_fn(|i| generation(AT_HISTORY + i * 8)),
            peers: std::array::from_fn(|i| {
                let at = AT_PEERS + i * PEER_LEN;
                PeerRecord {
                    bitmap: generation(at),
                    current: generation(at + 8),
                    flags: PeerFlags::from_bits(get_u32(block, at + 16)),
                }
            }),
            spares: (features & FEATURE_SPARES != 0).then(|| get(block, AT_DISK_ID)),
            layout: decode_layout(block)?,
        };
        if superblock.copy() == copy & 1 {
            Ok(superblock)
        } else {
            Err(BlockError::Content("its sequence number belongs into the other copy"))
        }
    }

    /// The superblock that counts, of the bytes found in the places of copy 0 and copy 1: the
    /// valid one with the higher sequence number.
    ///
    /// # Errors
    /// What is wrong with both copies. When one copy is whole but not for this program, that is
    /// the error of both: the older copy must not be used behind the back of a newer program.
    pub fn choose(
        first: Result<Self, BlockError>,
        second: Result<Self, BlockError>,
    ) -> Result<Self, [BlockError; 2]> {
        for copy in [&first, &second] {
            if let Err(e @ (BlockError::Version { .. } | BlockError::Features { .. })) = copy {
                return Err([*e, *e]);
            }
        }
        match (first, second) {
            (Ok(a), Ok(b)) => Ok(if a.sequence > b.sequence { a } else { b }),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(a), Err(b)) => Err([a, b]),
        }
    }
}

fn encode_layout(b: &mut Block, layout: &MetaLayout) {
    let (placement, anchor) = match layout.placement() {
        Placement::External { base } => (0, base),
        Placement::Internal { device_len } => (1, device_len),
    };
    put(b, AT_PLACEMENT, [placement]);
    put(b, AT_SLOTS, [layout.slots()]);
    put(b, AT_DEVICE_SIZE, layout.device_size().to_le_bytes());
    put(b, AT_ANCHOR, anchor.to_le_bytes());
    put(b, AT_AL_START, layout.al_start().to_le_bytes());
    put(b, AT_AL_BLOCKS, layout.al_blocks().to_le_bytes());
    put(b, AT_AL_EXTENTS, layout.al_extents().to_le_bytes());
    put(b, AT_BITMAP_START, layout.bitmap_start().to_le_bytes());
}

fn decode_layout(block: &Block) -> Result<MetaLayout, BlockError> {
    let anchor = get_u64(block, AT_ANCHOR);
    let placement = match block[AT_PLACEMENT] {
        0 => Placement::External { base: anchor },
        1 => Placement::Internal { device_len: anchor },
        _ => return Err(BlockError::Content("it has an unknown placement")),
    };
    let layout = MetaLayout::new(
        get_u64(block, AT_DEVICE_SIZE),
        get_u16(block, AT_AL_EXTENTS),
        get_u32(block, AT_AL_BLOCKS),
        block[AT_SLOTS],
        placement,
    )
    .map_err(|_| BlockError::Content("its sizes are impossible"))?;
    let starts = (get_u64(block, AT_AL_START), get_u64(block, AT_BITMAP_START));
    if starts == (layout.al_start(), layout.bitmap_start()) {
        Ok(layout)
    } else {
        Err(BlockError::Content("its offsets do not fit its sizes"))
    }
}

#[cfg(test)]
mod tests;
