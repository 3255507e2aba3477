//! What a spare is, whose it is, and where its parts lie.

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get, get_u32, get_u64, put,
};
use crate::remap::ENTRIES_PER_BLOCK;
use holdfast_units::ResourceId;
use std::fmt;

/// The most spares that a disk can have.
pub const MAX_SPARES: usize = 16;

const BLOCK: u64 = BLOCK_LEN as u64;
const MAX_SLOTS: u64 = 1 << 24;
/// Nothing is longer: it keeps sums of offsets far from overflow.
const MAX_LENGTH: u64 = 1 << 56;
const KNOWN_FEATURES: u32 = 0;

const AT_SEQUENCE: usize = HEAD_LEN;
const AT_SPARE: usize = 48;
const AT_DISK: usize = 64;
const AT_DISK_SIZE: usize = 80;
const AT_FEATURES: usize = 88;
const AT_STATE: usize = 92;
const AT_UNIT: usize = 96;
const AT_SLOTS: usize = 100;
const AT_LENGTH: usize = 104;
const AT_TABLE_A: usize = 112;
const AT_SLOT_AREA: usize = 120;
const AT_TABLE_B: usize = 128;
const AT_CREATED: usize = 136;
const AT_MEMBERS: usize = 144;
const AT_MEMBER_IDS: usize = 152;

const _: () = assert!(AT_MEMBER_IDS + 16 * MAX_SPARES <= BLOCK_LEN);

/// What makes a spare the same spare wherever it is found: a random number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SpareId(pub [u8; 16]);

impl fmt::Display for SpareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for SpareId {
    type Err = ();

    /// Reads what `Display` writes: 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, ()> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 32 || !text.bytes().all(is_digit) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(drop)
    }
}

impl fmt::Debug for SpareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a spare cannot have this shape. `Display` completes "the spare cannot be used: ...".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpareLayoutError {
    /// Units have 512 or 4096 bytes.
    #[error("a unit has 512 or 4096 bytes, not {0}")]
    Unit(u32),
    /// It has too few bytes.
    #[error("it has {given} bytes, and {needed} are needed")]
    TooSmall {
        /// How many bytes it must have.
        needed: u64,
        /// How many whole blocks of 4096 it has, in bytes.
        given: u64,
    },
    /// So many slots can be asked for at most.
    #[error("{0} slots are more than a spare can have ({MAX_SLOTS})")]
    TooMany(u64),
}

/// Where the parts of a spare lie. Table and slots never overlap: all offsets follow from the
/// length, the unit and the number of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpareLayout {
    length: u64,
    unit: u32,
    slots: u32,
}

impl SpareLayout {
    /// The layout of a spare of `length` bytes with `slots` slots of `unit` bytes.
    ///
    /// # Errors
    /// [`SpareLayoutError`], with the bytes that are needed when there are too few.
    pub fn new(length: u64, unit: u32, slots: u32) -> Result<Self, SpareLayoutError> {
        if unit != 512 && unit != 4096 {
            return Err(SpareLayoutError::Unit(unit));
        }
        if u64::from(slots) > MAX_SLOTS {
            return Err(SpareLayoutError::TooMany(u64::from(slots)));
        }
        let given = (length / BLOCK * BLOCK).min(MAX_LENGTH);
        let needed = needed(unit, slots.max(1));
        if slots == 0 || needed > given {
            return Err(SpareLayoutError::TooSmall { needed, given });
        }
        Ok(Self { length: given, unit, slots })
    }

    /// The layout with as many slots as fit into `length` bytes.
    ///
    /// # Errors
    /// [`SpareLayoutError`] when not even one fits.
    pub fn largest(length: u64, unit: u32) -> Result<Self, SpareLayoutError> {
        let (mut low, mut high) = (1, u32::try_from(MAX_SLOTS).unwrap_or(u32::MAX));
        let fits = |slots| Self::new(length, unit, slots).is_ok();
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        Self::new(length, unit, low)
    }

    /// How many bytes of the spare are used: its length in whole blocks.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// How many bytes are moved as one.
    #[must_use]
    pub const fn unit(&self) -> u32 {
        self.unit
    }

    /// How many slots there are.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// How many blocks each copy of the table has.
    #[must_use]
    pub const fn table_blocks(&self) -> u32 {
        self.slots.div_ceil(ENTRIES_PER_BLOCK)
    }

    /// Where copy 0 or 1 of the header lies.
    #[must_use]
    pub const fn header_offset(&self, copy: usize) -> u64 {
        if copy == 0 { 0 } else { self.length - BLOCK }
    }

    /// Where a block of copy 0 or 1 of the table lies.
    #[must_use]
    pub fn table_offset(&self, copy: usize, block: u32) -> u64 {
        let start = if copy == 0 {
            BLOCK
        } else {
            self.length - (u64::from(self.table_blocks()) + 1) * BLOCK
        };
        start + u64::from(block) * BLOCK
    }

    /// Where a slot lies.
    #[must_use]
    pub fn slot_offset(&self, slot: u32) -> u64 {
        (u64::from(self.table_blocks()) + 1) * BLOCK + u64::from(slot) * u64::from(self.unit)
    }
}

/// How long a spare must be.
fn needed(unit: u32, slots: u32) -> u64 {
    let table = u64::from(slots.div_ceil(ENTRIES_PER_BLOCK));
    let area = (u64::from(slots) * u64::from(unit)).div_ceil(BLOCK);
    (2 + 2 * table + area) * BLOCK
}

/// The header of a spare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpareHeader {
    /// Up by one with each change; both copies have the same.
    pub sequence: u64,
    /// The resource that the main disk is of.
    pub resource: ResourceId,
    /// This spare.
    pub spare: SpareId,
    /// The main disk, as its owner names it.
    pub disk: [u8; 16],
    /// The main disk's size in bytes, when this was written.
    pub disk_size: u64,
    /// Where everything lies.
    pub layout: SpareLayout,
    /// It is in use no more and holds nothing of worth.
    pub retired: bool,
    /// When it was formatted, in seconds since 1970.
    pub created: u64,
    /// All spares of the disk: 1 to [`MAX_SPARES`], none twice.
    pub members: Vec<SpareId>,
}

impl SpareHeader {
    /// The bytes of copy 0 or 1. Members behind the first [`MAX_SPARES`] are left out.
    #[must_use]
    pub fn encode(&self, copy: usize) -> Block {
        let mut block = [0; BLOCK_LEN];
        let (b, layout) = (&mut block, &self.layout);
        put(b, AT_SEQUENCE, self.sequence.to_le_bytes());
        put(b, AT_SPARE, self.spare.0);
        put(b, AT_DISK, self.disk);
        put(b, AT_DISK_SIZE, self.disk_size.to_le_bytes());
        put(b, AT_FEATURES, KNOWN_FEATURES.to_le_bytes());
        put(b, AT_STATE, u32::from(self.retired).to_le_bytes());
        put(b, AT_UNIT, layout.unit.to_le_bytes());
        put(b, AT_SLOTS, layout.slots.to_le_bytes());
        put(b, AT_LENGTH, layout.length.to_le_bytes());
        put(b, AT_TABLE_A, layout.table_offset(0, 0).to_le_bytes());
        put(b, AT_SLOT_AREA, layout.slot_offset(0).to_le_bytes());
        put(b, AT_TABLE_B, layout.table_offset(1, 0).to_le_bytes());
        put(b, AT_CREATED, self.created.to_le_bytes());
        let mut count = 0_u32;
        for (at, member) in (AT_MEMBER_IDS..).step_by(16).zip(&self.members[..]).take(MAX_SPARES) {
            put(b, at, member.0);
            count += 1;
        }
        put(b, AT_MEMBERS, count.to_le_bytes());
        block::seal(b, head(copy, self.resource));
        block
    }

    /// Reads the bytes that were found in the place of copy 0 or 1.
    ///
    /// # Errors
    /// [`BlockError`] says what is wrong with them. [`BlockError::Version`] and
    /// [`BlockError::Features`] mean that they are whole, but not for this program.
    pub fn decode(block: &Block, copy: usize) -> Result<Self, BlockError> {
        let number = head(copy, ResourceId::default()).number;
        let resource = block::open(block, BlockKind::Spare, number)?;
        let unknown = get_u32(block, AT_FEATURES) & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(BlockError::Features { unknown });
        }
        let sequence = get_u64(block, AT_SEQUENCE);
        if sequence >= block::MAX_SEQUENCE {
            return Err(BlockError::Content("it has an impossible sequence number"));
        }
        let retired = match get_u32(block, AT_STATE) {
            0 => false,
            1 => true,
            _ => return Err(BlockError::Content("it has an unknown state")),
        };
        Ok(Self {
            sequence,
            resource,
            spare: SpareId(get(block, AT_SPARE)),
            disk: get(block, AT_DISK),
            disk_size: get_u64(block, AT_DISK_SIZE),
            layout: decode_layout(block)?,
            retired,
            created: get_u64(block, AT_CREATED),
            members: decode_members(block)?,
        })
    }
}

fn head(copy: usize, resource: ResourceId) -> Head {
    Head { kind: BlockKind::Spare, number: u64::from(copy != 0), resource }
}

fn decode_layout(block: &Block) -> Result<SpareLayout, BlockError> {
    let length = get_u64(block, AT_LENGTH);
    let layout = SpareLayout::new(length, get_u32(block, AT_UNIT), get_u32(block, AT_SLOTS))
        .map_err(|_| BlockError::Content("its sizes are impossible"))?;
    let found = [AT_LENGTH, AT_TABLE_A, AT_SLOT_AREA, AT_TABLE_B].map(|at| get_u64(block, at));
    let right = [
        layout.length,
        layout.table_offset(0, 0),
        layout.slot_offset(0),
        layout.table_offset(1, 0),
    ];
    if found == right {
        Ok(layout)
    } else {
        Err(BlockError::Content("its offsets do not fit its sizes"))
    }
}

fn decode_members(block: &Block) -> Result<Vec<SpareId>, BlockError> {
    let wrong = BlockError::Content("its list of spares is impossible");
    let count = usize::try_from(get_u32(block, AT_MEMBERS)).map_err(|_| wrong)?;
    if !(1..=MAX_SPARES).contains(&count) {
        return Err(wrong);
    }
    let members: Vec<_> = (0..count).map(|i| SpareId(get(block, AT_MEMBER_IDS + i * 16))).collect();
    let twice = members.iter().enumerate().any(|(i, id)| members[..i].contains(id));
    if twice { Err(wrong) } else { Ok(members) }
}
