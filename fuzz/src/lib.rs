//! What the fuzz targets share.

pub mod nbd_replies;

use holdfast_format::{
    BLOCK_LEN, Block, DEFAULT_AL_EXTENTS, MetaLayout, Placement, Superblock, al_blocks_for,
    format_blocks,
};
use holdfast_units::{NodeId, ResourceId};
use libfuzzer_sys::arbitrary::{self, Arbitrary};

/// The resource of all fuzzed metadata.
pub const RESOURCE: ResourceId = ResourceId(*b"fuzzed resource!");

/// Gives a metadata block the checksum that fits its bytes, so that the fuzzer gets past it.
pub fn seal(block: &mut Block) {
    block[12..16].fill(0);
    let crc = crc32c::crc32c(block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
}

/// The layout of a small resource with metadata in a file of its own.
pub fn layout(device_size: u64, al_extents: u16, slots: u8) -> MetaLayout {
    let placement = Placement::External { base: 0 };
    MetaLayout::new(device_size, al_extents, al_blocks_for(al_extents), slots, placement)
        .expect("the numbers are small")
}

/// The bytes of fresh metadata of a small resource.
pub fn fresh_image() -> Vec<u8> {
    let layout = layout(300 << 20, DEFAULT_AL_EXTENTS, 2);
    let node = NodeId::new(0).expect("0 is a node");
    let mut superblock = Superblock::new(RESOURCE, node, [7; 16], layout);
    let len = usize::try_from(layout.area().end()).expect("the area is small");
    let mut image = vec![0; len];
    for (at, block) in format_blocks(&mut superblock) {
        let at = usize::try_from(at).expect("the area is small");
        image[at..at + BLOCK_LEN].copy_from_slice(&block);
    }
    image
}

/// A change of some bytes of a metadata block.
#[derive(Arbitrary, Debug)]
pub struct Patch {
    /// Which block; taken modulo their number.
    pub block: u8,
    /// Where in it; taken modulo its length.
    pub at: u16,
    /// The new bytes.
    pub bytes: Vec<u8>,
    /// Whether the checksum is made to fit, as that of a faulty writer would.
    pub sealed: bool,
}

impl Patch {
    /// Changes one of these blocks.
    pub fn apply(&self, image: &mut [u8]) {
        let index = usize::from(self.block) % (image.len() / BLOCK_LEN);
        let start = index * BLOCK_LEN;
        let block: &mut Block =
            (&mut image[start..start + BLOCK_LEN]).try_into().expect("a block's length");
        let at = usize::from(self.at) % BLOCK_LEN;
        let len = self.bytes.len().min(BLOCK_LEN - at);
        block[at..at + len].copy_from_slice(&self.bytes[..len]);
        if self.sealed {
            seal(block);
        }
    }
}
