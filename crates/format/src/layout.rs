//! Where each metadata block lies.
//!
//! Block numbers are the same for both placements: 0 and 1 are the superblocks, then comes the
//! ring of the activity log, then the bitmap pages, page by page and within a page slot by slot.
//! So an area at a fixed start grows at its end when the device grows, and nothing moves.

use crate::al::{AL_CONTEXT, AL_MAX_EXTENTS};
use crate::bitmap::BITS_PER_PAGE;
use holdfast_units::{BLOCK_SIZE, ByteRange, MAX_NODES, NodeId, format_size};
use std::fmt;

/// The largest device that a resource can have, in bytes: 1 PiB.
pub const MAX_DEVICE_SIZE: u64 = 1 << 50;

/// The largest ring of the activity log, in blocks.
pub const MAX_AL_BLOCKS: u32 = 1024;

/// Bitmap slots of metadata in a file of its own: all that a resource can use. The file is sparse.
pub const DEFAULT_EXTERNAL_SLOTS: u8 = MAX_NODES;

/// Bitmap slots of metadata at the end of the data device, where every slot takes 32 MiB per TiB.
pub const DEFAULT_INTERNAL_SLOTS: u8 = 8;

const SUPERBLOCKS: u64 = 2;

/// Where the metadata area lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// In a file or device of its own, from `base` bytes on: superblocks, activity log, bitmaps.
    External {
        /// Where the area starts, in bytes; a multiple of 4096.
        base: u64,
    },
    /// At the end of the data device: bitmaps, activity log, superblocks. The superblocks are the
    /// last two whole blocks of the device, so its length is enough to find them.
    Internal {
        /// The length of the whole backing device, in bytes.
        device_len: u64,
    },
}

impl Placement {
    /// Where superblock copy 0 or 1 lies, in bytes.
    ///
    /// # Errors
    /// [`LayoutError`] when `base` is not a multiple of 4096 or the device has no two blocks.
    pub fn superblock_offset(self, copy: u8) -> Result<u64, LayoutError> {
        let copy = u64::from(copy & 1);
        match self {
            Self::External { base } if base.is_multiple_of(BLOCK_SIZE) => {
                base.checked_add(copy * BLOCK_SIZE).ok_or(LayoutError::Base { base })
            }
            Self::External { base } => Err(LayoutError::Base { base }),
            Self::Internal { device_len } => (device_len / BLOCK_SIZE)
                .checked_sub(SUPERBLOCKS - copy)
                .map(|block| block * BLOCK_SIZE)
                .ok_or(LayoutError::DeviceTooSmall {
                    device_len,
                    needed: SUPERBLOCKS * BLOCK_SIZE,
                }),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::External { base } => write!(f, "external, from byte {base}"),
            Self::Internal { device_len } => {
                write!(f, "internal, at the end of a device of {device_len} bytes")
            }
        }
    }
}

/// Why a metadata area cannot be laid out so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// The size of the resource is zero, not a multiple of 4096, or above [`MAX_DEVICE_SIZE`].
    #[error(
        "a resource cannot have {size} bytes: its size must be a multiple of 4096, at least 4096 \
         and at most {}",
        format_size(MAX_DEVICE_SIZE)
    )]
    Size {
        /// The size that was asked for, in bytes.
        size: u64,
    },
    /// The number of bitmap slots is not in `1..=MAX_NODES`.
    #[error("metadata cannot have {slots} bitmap slots: 1 to {MAX_NODES} are possible")]
    Slots {
        /// The number that was asked for.
        slots: u8,
    },
    /// The activity log does not fit its ring.
    #[error(
        "an activity log of {extents} extents cannot be kept in a ring of {blocks} blocks: \
         1 to {AL_MAX_EXTENTS} extents are possible, {AL_CONTEXT} a block, and one block more; \
         at most {MAX_AL_BLOCKS} blocks"
    )]
    ActivityLog {
        /// The number of extents that was asked for.
        extents: u16,
        /// The number of blocks in the ring.
        blocks: u32,
    },
    /// The start of an external area is not a multiple of 4096, or too large.
    #[error("metadata cannot start at byte {base}: the start must be a multiple of 4096")]
    Base {
        /// The start that was asked for.
        base: u64,
    },
    /// Data and metadata together are larger than the device.
    #[error(
        "a disk of {} is too small: data and metadata take {} ({needed} bytes)",
        format_size(*device_len), format_size(*needed)
    )]
    DeviceTooSmall {
        /// The length of the device, in bytes.
        device_len: u64,
        /// What would be needed at least, in bytes.
        needed: u64,
    },
}

/// The places of all metadata blocks of one resource on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaLayout {
    placement: Placement,
    device_size: u64,
    al_extents: u16,
    al_blocks: u32,
    slots: u8,
    pages: u32,
    superblocks_at: u64,
    al_at: u64,
    bitmap_at: u64,
}

impl MetaLayout {
    /// The layout for a resource of `device_size` bytes, an activity log of `al_extents` extents
    /// in a ring of `al_blocks` blocks (see [`crate::al_blocks_for`]), and bitmaps for nodes
    /// `0..slots`.
    ///
    /// # Errors
    /// [`LayoutError`] says which number is impossible, or that the device is too small.
    pub fn new(
        device_size: u64,
        al_extents: u16,
        al_blocks: u32,
        slots: u8,
        placement: Placement,
    ) -> Result<Self, LayoutError> {
        check_parts(al_extents, al_blocks, slots)?;
        let size_error = LayoutError::Size { size: device_size };
        if device_size == 0
            || !device_size.is_multiple_of(BLOCK_SIZE)
            || device_size > MAX_DEVICE_SIZE
        {
            return Err(size_error);
        }
        let pages = u32::try_from((device_size / BLOCK_SIZE).div_ceil(BITS_PER_PAGE))
            .map_err(|_| size_error)?;
        let superblocks_at = placement.superblock_offset(0)?;
        let al_len = u64::from(al_blocks) * BLOCK_SIZE;
        let bitmap_len = u64::from(pages) * u64::from(slots) * BLOCK_SIZE;
        let (al_at, bitmap_at) = match placement {
            Placement::External { base } => {
                let len = SUPERBLOCKS * BLOCK_SIZE + al_len + bitmap_len;
                let end = base.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
                end.ok_or(LayoutError::Base { base })?;
                let al_at = superblocks_at + SUPERBLOCKS * BLOCK_SIZE;
                (al_at, al_at + al_len)
            }
            Placement::Internal { device_len } => {
                let needed = device_size + SUPERBLOCKS * BLOCK_SIZE + al_len + bitmap_len;
                if needed > device_len {
                    return Err(LayoutError::DeviceTooSmall { device_len, needed });
                }
                (superblocks_at - al_len, superblocks_at - al_len - bitmap_len)
            }
        };
        Ok(Self {
            placement,
            device_size,
            al_extents,
            al_blocks,
            slots,
            pages,
            superblocks_at,
            al_at,
            bitmap_at,
        })
    }

    /// The largest resource, in bytes, whose data and internal metadata fit on a device of
    /// `device_len` bytes. A multiple of 4096, at most [`MAX_DEVICE_SIZE`].
    ///
    /// # Errors
    /// [`LayoutError`] says which number is impossible, or that not one block would be left.
    pub fn usable_size(device_len: u64, al_blocks: u32, slots: u8) -> Result<u64, LayoutError> {
        check_parts(1, al_blocks, slots)?;
        let slots = u64::from(slots);
        let fixed = SUPERBLOCKS + u64::from(al_blocks);
        let room = (device_len / BLOCK_SIZE).saturating_sub(fixed);
        // Either the last page of the bitmaps is used in part, or there is one page fewer and all
        // pages are used in full.
        let group = BITS_PER_PAGE + slots;
        let partial = room.saturating_sub(room.div_ceil(group) * slots);
        let full = room / group * BITS_PER_PAGE;
        let size = partial.max(full) * BLOCK_SIZE;
        if size == 0 {
            let needed = (fixed + slots + 1) * BLOCK_SIZE;
            return Err(LayoutError::DeviceTooSmall { device_len, needed });
        }
        Ok(size.min(MAX_DEVICE_SIZE))
    }

    /// This layout with another number of extents in the activity log. Nothing moves, but the
    /// ring must be formatted anew ([`crate::AlLog::new`]).
    ///
    /// # Errors
    /// [`LayoutError::ActivityLog`] when they do not fit into the ring.
    pub fn with_al_extents(self, al_extents: u16) -> Result<Self, LayoutError> {
        check_parts(al_extents, self.al_blocks, self.slots)?;
        Ok(Self { al_extents, ..self })
    }

    /// This layout for another size of the resource, with the same placement. With
    /// [`Placement::External`] no existing block moves, and what a larger size adds is all zeros
    /// where the area was zeroed or sparse.
    ///
    /// # Errors
    /// As [`MetaLayout::new`].
    pub fn with_device_size(self, device_size: u64) -> Result<Self, LayoutError> {
        Self::new(device_size, self.al_extents, self.al_blocks, self.slots, self.placement)
    }

    /// Where the area lies.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.placement
    }

    /// The size of the resource, in bytes.
    #[must_use]
    pub const fn device_size(&self) -> u64 {
        self.device_size
    }

    /// The size of the resource, in blocks: the bits of each bitmap.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.device_size / BLOCK_SIZE
    }

    /// How many extents the activity log holds.
    #[must_use]
    pub const fn al_extents(&self) -> u16 {
        self.al_extents
    }

    /// How many blocks the ring of the activity log has.
    #[must_use]
    pub const fn al_blocks(&self) -> u32 {
        self.al_blocks
    }

    /// How many bitmaps there are: one for each of the nodes `0..slots`.
    #[must_use]
    pub const fn slots(&self) -> u8 {
        self.slots
    }

    /// Whether there is a bitmap for this node.
    #[must_use]
    pub const fn has_slot(&self, node: NodeId) -> bool {
        node.number() < self.slots
    }

    /// How many pages each bitmap has.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// All of the metadata area, in bytes.
    #[must_use]
    pub fn area(&self) -> ByteRange {
        let len = self.block_count() * BLOCK_SIZE;
        ByteRange::new(self.superblocks_at.min(self.bitmap_at), len)
    }

    /// How many blocks the area has.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        SUPERBLOCKS + u64::from(self.al_blocks) + u64::from(self.pages) * u64::from(self.slots)
    }

    /// Where the copy (0 or 1) of the superblock lies, in bytes.
    #[must_use]
    pub fn superblock_offset(&self, copy: u8) -> u64 {
        self.superblocks_at + u64::from(copy & 1) * BLOCK_SIZE
    }

    /// Where the ring of the activity log starts, in bytes.
    #[must_use]
    pub const fn al_start(&self) -> u64 {
        self.al_at
    }

    /// Where block `index` of the activity log lies, in bytes.
    ///
    /// # Panics
    /// When the ring has no such block.
    #[must_use]
    pub fn al_offset(&self, index: u32) -> u64 {
        assert!(index < self.al_blocks, "the ring has {} blocks, no block {index}", self.al_blocks);
        self.al_at + u64::from(index) * BLOCK_SIZE
    }

    /// Where the bitmaps start, in bytes.
    #[must_use]
    pub const fn bitmap_start(&self) -> u64 {
        self.bitmap_at
    }

    /// How long all bitmaps together are, in bytes.
    #[must_use]
    pub fn bitmap_len(&self) -> u64 {
        u64::from(self.pages) * u64::from(self.slots) * BLOCK_SIZE
    }

    /// Where page `page` of the bitmap of node `slot` lies, in bytes.
    ///
    /// # Panics
    /// When there is no such slot or page.
    #[must_use]
    pub fn page_offset(&self, slot: NodeId, page: u32) -> u64 {
        self.bitmap_at + self.page_index(slot, page) * BLOCK_SIZE
    }

    /// The block number of page `page` of the bitmap of node `slot`.
    pub(crate) fn page_number(&self, slot: NodeId, page: u32) -> u64 {
        SUPERBLOCKS + u64::from(self.al_blocks) + self.page_index(slot, page)
    }

    /// The slot and page of the bitmap block with this number, counted from the first.
    pub(crate) fn page_at(&self, index: u64) -> (NodeId, u32) {
        let slots = u64::from(self.slots);
        let slot = u8::try_from(index % slots).ok().and_then(NodeId::new);
        let page = u32::try_from(index / slots).ok();
        slot.zip(page).expect("the bitmap has this block")
    }

    fn page_index(&self, slot: NodeId, page: u32) -> u64 {
        assert!(self.has_slot(slot), "the metadata has {} slots, none for node {slot}", self.slots);
        assert!(page < self.pages, "a bitmap has {} pages, no page {page}", self.pages);
        u64::from(page) * u64::from(self.slots) + u64::from(slot.number())
    }
}

/// The block number of block `index` of the activity log.
pub(crate) fn al_number(index: u32) -> u64 {
    SUPERBLOCKS + u64::from(index)
}

/// Checks that a torn newest transaction would still leave a full picture of the activity log,
/// and that there are bitmaps for a possible number of nodes.
fn check_parts(al_extents: u16, al_blocks: u32, slots: u8) -> Result<(), LayoutError> {
    if slots == 0 || slots > MAX_NODES {
        return Err(LayoutError::Slots { slots });
    }
    let held = u64::from(al_blocks.saturating_sub(1)) * u64::from(AL_CONTEXT);
    let fits = (1..=AL_MAX_EXTENTS).contains(&al_extents) && u64::from(al_extents) <= held;
    if !fits || al_blocks > MAX_AL_BLOCKS {
        return Err(LayoutError::ActivityLog { extents: al_extents, blocks: al_blocks });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
