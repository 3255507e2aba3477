//! What all metadata blocks share: the header and the checksum.

use holdfast_units::ResourceId;

/// The size of every metadata block, in bytes.
pub const BLOCK_LEN: usize = 4096;

/// The bytes of one metadata block.
pub type Block = [u8; BLOCK_LEN];

/// The version of the format that is written, and the newest that is read.
pub const FORMAT_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"HOLDFAST";

// Magic, version and checksum keep these places in every future version, so that any version can
// tell "newer than me" from "broken".
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 8;
const AT_KIND: usize = 10;
pub(crate) const AT_CRC: usize = 12;
const AT_NUMBER: usize = 16;
const AT_RESOURCE: usize = 24;
/// Where the fields of the kind begin.
pub(crate) const HEAD_LEN: usize = 40;

const _: () = assert!(AT_RESOURCE + 16 == HEAD_LEN);
const _: () = assert!(BLOCK_LEN as u64 == holdfast_units::BLOCK_SIZE);

/// No sequence number is written that is so high: one more always fits.
pub(crate) const MAX_SEQUENCE: u64 = 1 << 62;

/// What a metadata block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum BlockKind {
    /// One of the two copies of the superblock.
    Superblock = 1,
    /// A transaction of the activity log.
    ActivityLog = 2,
    /// A page of a peer's bitmap.
    Bitmap = 3,
    /// The first block of a segment of the journal.
    JournalSegment = 4,
    /// One of the two copies of the journal's cursors.
    JournalCursors = 5,
    /// One of the two copies of what a node that follows knows of its disk.
    JournalFollowing = 6,
    /// One of the two copies of the header of a spare for bad sectors.
    Spare = 7,
    /// A block of a spare's table.
    SpareTable = 8,
    /// One of the two copies of the header of a disk's checksums.
    Checksums = 9,
    /// Which pages of checksums can be believed: one of the two copies.
    ChecksumState = 10,
    /// A page of checksums.
    ChecksumPage = 11,
    /// One of the two copies of the table of a device that holds a journal.
    JournalDevice = 16,
}

impl BlockKind {
    const fn from_number(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Superblock),
            2 => Some(Self::ActivityLog),
            3 => Some(Self::Bitmap),
            4 => Some(Self::JournalSegment),
            5 => Some(Self::JournalCursors),
            6 => Some(Self::JournalFollowing),
            7 => Some(Self::Spare),
            8 => Some(Self::SpareTable),
            9 => Some(Self::Checksums),
            10 => Some(Self::ChecksumState),
            11 => Some(Self::ChecksumPage),
            16 => Some(Self::JournalDevice),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::ActivityLog => "activity log",
            Self::Bitmap => "bitmap",
            Self::JournalSegment => "journal",
            Self::JournalCursors => "journal's cursors",
            Self::JournalFollowing => "follower's state",
            Self::Spare => "spare's header",
            Self::SpareTable => "spare's table",
            Self::Checksums => "checksums' header",
            Self::ChecksumState => "checksums' state",
            Self::ChecksumPage => "checksums",
            Self::JournalDevice => "table of a journal's device",
        }
    }
}

impl std::fmt::Display for BlockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a block was not accepted. `Display` completes the sentence "the block cannot be used: ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlockError {
    /// All bytes are zero: it was never written.
    #[error("it was never written (all its bytes are zero)")]
    Blank,
    /// It could not be read.
    #[error("it could not be read")]
    Unreadable,
    /// It does not begin with the magic number.
    #[error("it is not Holdfast metadata")]
    NotMetadata,
    /// Its checksum does not fit its bytes: rotten or half written.
    #[error("its checksum is {computed:08x} and should be {stored:08x}")]
    Checksum {
        /// What the block says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// It was written by a newer version.
    #[error(
        "it has format version {found}, and this program knows versions up to {FORMAT_VERSION}"
    )]
    Version {
        /// The version that the block has.
        found: u16,
    },
    /// It uses features of the format that this program does not know.
    #[error("it uses format features that this program does not know (bits {unknown:#x})")]
    Features {
        /// The unknown feature bits.
        unknown: u32,
    },
    /// It is whole, but the other copy, which is broken now, was newer.
    #[error("it is old: the other copy was newer before it broke")]
    Old,
    /// It is a block of another kind.
    #[error("it is of kind {found}, not a block of the {expected}")]
    Kind {
        /// The number of the kind that it has.
        found: u16,
        /// The kind that was looked for.
        expected: BlockKind,
    },
    /// It belongs elsewhere: a write went to the wrong place.
    #[error("it is metadata block {found} in the place of block {expected}")]
    Misplaced {
        /// The block number that it has.
        found: u64,
        /// The block number of its place.
        expected: u64,
    },
    /// It belongs to another resource.
    #[error("it belongs to resource {found}, not to {expected}")]
    Resource {
        /// The resource that it has.
        found: ResourceId,
        /// The resource that was looked for.
        expected: ResourceId,
    },
    /// Its checksum is right, but a field has a value that no version writes.
    #[error("{0}")]
    Content(&'static str),
}

/// What a metadata block says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) kind: BlockKind,
    /// Its number within the metadata area.
    pub(crate) number: u64,
    pub(crate) resource: ResourceId,
}

/// Writes header and checksum into a block whose other fields are complete.
pub(crate) fn seal(block: &mut Block, head: Head) {
    put(block, AT_MAGIC, MAGIC);
    put(block, AT_VERSION, FORMAT_VERSION.to_le_bytes());
    put(block, AT_KIND, (head.kind as u16).to_le_bytes());
    put(block, AT_NUMBER, head.number.to_le_bytes());
    put(block, AT_RESOURCE, head.resource.0);
    let crc = checksum(block);
    put(block, AT_CRC, crc.to_le_bytes());
}

/// Verifies header and checksum; whose block it is.
pub(crate) fn open(block: &Block, kind: BlockKind, number: u64) -> Result<ResourceId, BlockError> {
    if is_zero(block) {
        return Err(BlockError::Blank);
    }
    if get::<8>(block, AT_MAGIC) != MAGIC {
        return Err(BlockError::NotMetadata);
    }
    let (stored, computed) = (get_u32(block, AT_CRC), checksum(block));
    if stored != computed {
        return Err(BlockError::Checksum { stored, computed });
    }
    let version = get_u16(block, AT_VERSION);
    if version != FORMAT_VERSION {
        return Err(BlockError::Version { found: version });
    }
    let found = get_u16(block, AT_KIND);
    if found != kind as u16 {
        return Err(BlockError::Kind { found, expected: kind });
    }
    let found = get_u64(block, AT_NUMBER);
    if found != number {
        return Err(BlockError::Misplaced { found, expected: number });
    }
    Ok(ResourceId(get(block, AT_RESOURCE)))
}

/// As [`open`], and the block must be of `head.resource`.
pub(crate) fn open_of(block: &Block, head: Head) -> Result<(), BlockError> {
    let found = open(block, head.kind, head.number)?;
    if found == head.resource {
        Ok(())
    } else {
        Err(BlockError::Resource { found, expected: head.resource })
    }
}

/// Whether the beginning of a block is that of this one, whatever its checksum says.
pub(crate) fn begins_as(block: &Block, head: Head) -> bool {
    get::<8>(block, AT_MAGIC) == MAGIC
        && get_u16(block, AT_VERSION) == FORMAT_VERSION
        && get_u16(block, AT_KIND) == head.kind as u16
        && get_u64(block, AT_NUMBER) == head.number
        && get::<16>(block, AT_RESOURCE) == head.resource.0
}

/// Whether these bytes are metadata of Holdfast, of whatever resource, version or age; what they
/// are, for a message such as "the disk holds ...". A block with a wrong checksum counts: what is
/// to be overwritten may still be of worth to somebody.
#[must_use]
pub fn looks_used(block: &Block) -> Option<&'static str> {
    if get::<8>(block, AT_MAGIC) != MAGIC {
        return None;
    }
    Some(match BlockKind::from_number(get_u16(block, AT_KIND)) {
        Some(BlockKind::Superblock) => "the superblock of a Holdfast resource",
        Some(BlockKind::ActivityLog) => "the activity log of a Holdfast resource",
        Some(BlockKind::Bitmap) => "a bitmap of a Holdfast resource",
        Some(
            BlockKind::JournalSegment
            | BlockKind::JournalCursors
            | BlockKind::JournalFollowing
            | BlockKind::JournalDevice,
        ) => "the journal of a Holdfast resource",
        Some(BlockKind::Spare | BlockKind::SpareTable) => {
            "the bad sectors of a disk of a Holdfast resource"
        }
        Some(BlockKind::Checksums | BlockKind::ChecksumState | BlockKind::ChecksumPage) => {
            "the checksums of a disk of a Holdfast resource"
        }
        None => "metadata of Holdfast",
    })
}

/// Whose a block says that it is, be it true or not.
pub(crate) fn resource_in(block: &Block) -> ResourceId {
    ResourceId(get(block, AT_RESOURCE))
}

pub(crate) fn is_zero(block: &Block) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn checksum(block: &Block) -> u32 {
    let crc = crc32c::crc32c(&block[..AT_CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[AT_CRC + 4..])
}

pub(crate) fn put<const N: usize>(block: &mut Block, at: usize, bytes: [u8; N]) {
    block[at..at + N].copy_from_slice(&bytes);
}

pub(crate) fn get<const N: usize>(block: &Block, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

pub(crate) fn get_u16(block: &Block, at: usize) -> u16 {
    u16::from_le_bytes(get(block, at))
}

pub(crate) fn get_u32(block: &Block, at: usize) -> u32 {
    u32::from_le_bytes(get(block, at))
}

pub(crate) fn get_u64(block: &Block, at: usize) -> u64 {
    u64::from_le_bytes(get(block, at))
}
