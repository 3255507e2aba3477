//! Bitmaps: which blocks a peer missed. One bit a block, one bitmap a peer.

mod lost;
mod page;
mod sparse;

pub use lost::LostBlocks;
pub use page::{BITS_PER_PAGE, BitmapPage, PageAddress, PageWords, WORDS_PER_PAGE};
pub use sparse::SparseBitmap;
