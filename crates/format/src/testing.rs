//! What the tests of this crate share.

use crate::{BLOCK_LEN, Block, MetaLayout, Placement, al_blocks_for};
use holdfast_units::{NodeId, ResourceId};
use std::fmt::Write as _;

pub(crate) const RESOURCE: ResourceId = ResourceId(*b"sixteen bytes ok");
pub(crate) const OTHER: ResourceId = ResourceId(*b"another resource");

pub(crate) fn node(number: u8) -> NodeId {
    NodeId::new(number).unwrap()
}

/// An external layout for `blocks` blocks with 4 bitmap slots.
pub(crate) fn layout(blocks: u64, al_extents: u16) -> MetaLayout {
    let ring = al_blocks_for(al_extents);
    MetaLayout::new(blocks * 4096, al_extents, ring, 4, Placement::External { base: 0 }).unwrap()
}

/// The lines of 16 bytes that are not all zeros, as `offset: bytes`.
pub(crate) fn hex(block: &Block) -> String {
    let mut text = String::new();
    for (i, line) in block.chunks(16).enumerate().filter(|(_, l)| l.iter().any(|b| *b != 0)) {
        write!(text, "{:03x}:", i * 16).unwrap();
        line.iter().for_each(|byte| write!(text, " {byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

/// Every mixture of the 512-byte sectors of two blocks.
pub(crate) fn torn(old: &Block, new: &Block) -> impl Iterator<Item = Block> {
    (0..256_u32).map(|mask| {
        let mut mixed = *old;
        for sector in (0..8).filter(|sector| mask >> sector & 1 == 1) {
            let range = sector * 512..(sector + 1) * 512;
            mixed[range.clone()].copy_from_slice(&new[range]);
        }
        mixed
    })
}

/// Calls `accepts` with the block after each change of one byte: one bit, and all bits.
pub(crate) fn each_corruption(block: &Block, accepts: impl Fn(&Block) -> bool) {
    assert!(accepts(block));
    for at in 0..BLOCK_LEN {
        for flip in [1 << (at % 8), 0xff] {
            let mut broken = *block;
            broken[at] ^= flip;
            assert!(!accepts(&broken), "byte {at} changed by {flip:#x} was not seen");
        }
    }
}
