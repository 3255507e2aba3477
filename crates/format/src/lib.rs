//! The metadata and the journal of one resource on one node, as they are on disk: encode, decode,
//! verify.
//!
//! Nothing here does I/O, reads a clock or draws random numbers. Whoever has the bytes gives them
//! as [`Block`]s, or through [`ReadAt`]; whoever wants them written gets an offset and a block.
//! The bytes are drawn in `docs/design/metadata-format.md`.
//!
//! Every metadata block is [`BLOCK_LEN`] bytes and says what it is, where it belongs, whose it is,
//! and has a checksum over all of it: a torn, rotten, misdirected or foreign block is seen.

#![deny(clippy::cast_possible_truncation)]

mod al;
mod bitmap;
mod block;
pub mod checksums;
pub mod journal;
mod layout;
mod meta;
pub mod remap;
mod superblock;
#[cfg(test)]
mod testing;

pub use al::{
    AL_CONTEXT, AL_MAX_EXTENTS, AL_MAX_UPDATES, AlDamage, AlDamaged, AlError, AlLog, AlRecovered,
    AlUpdate, DEFAULT_AL_EXTENTS, al_blocks_for,
};
pub use bitmap::{
    BITS_PER_PAGE, BitmapPage, LostBlocks, PageAddress, PageWords, SparseBitmap, WORDS_PER_PAGE,
};
pub use block::{BLOCK_LEN, Block, BlockError, BlockKind, FORMAT_VERSION, looks_used};
pub use layout::{
    DEFAULT_EXTERNAL_SLOTS, DEFAULT_INTERNAL_SLOTS, LayoutError, MAX_AL_BLOCKS, MAX_DEVICE_SIZE,
    MetaLayout, Placement,
};
pub use meta::{
    Finding, MetaDump, MetaError, MetaImage, PeerDump, ReadAt, ReadFailed, Severity, StoredPage,
    format_blocks,
};
pub use superblock::{
    DiskFlags, FEATURE_SPARES, HISTORY_LEN, KNOWN_FEATURES, PeerFlags, PeerRecord, Superblock,
};
