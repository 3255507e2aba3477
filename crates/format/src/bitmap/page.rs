//! A page of a bitmap: one metadata block.

use crate::block::{
    self, BLOCK_LEN, Block, BlockError, BlockKind, HEAD_LEN, Head, get_u32, get_u64, put,
};
use crate::layout::MetaLayout;
use holdfast_units::{NodeId, ResourceId};

const AT_PAGE: usize = HEAD_LEN;
const AT_SLOT: usize = 44;
pub(super) const AT_BITS: usize = 64;

/// How many words of bits a page holds.
pub const WORDS_PER_PAGE: usize = (BLOCK_LEN - AT_BITS) / 8;

/// How many bits, and so blocks of the device, a page stands for: 126 MiB.
pub const BITS_PER_PAGE: u64 = WORDS_PER_PAGE as u64 * 64;

const _: () = assert!(WORDS_PER_PAGE == 504 && BITS_PER_PAGE == 32256);
const _: () = assert!(AT_BITS + WORDS_PER_PAGE * 8 == BLOCK_LEN);

/// The bits of a page, the lowest bit of the first word first.
pub type PageWords = [u64; WORDS_PER_PAGE];

/// Which page: it is written into the page, so that a misdirected write is seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageAddress {
    resource: ResourceId,
    slot: NodeId,
    page: u32,
    number: u64,
    offset: u64,
}

impl PageAddress {
    /// Page `page` of the bitmap of node `slot`.
    ///
    /// # Panics
    /// When the layout has no such slot or page.
    #[must_use]
    pub fn new(resource: ResourceId, layout: &MetaLayout, slot: NodeId, page: u32) -> Self {
        let number = layout.page_number(slot, page);
        Self { resource, slot, page, number, offset: layout.page_offset(slot, page) }
    }

    /// Where it lies, in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whose bitmap it is of.
    #[must_use]
    pub const fn slot(&self) -> NodeId {
        self.slot
    }

    /// Its number within the bitmap.
    #[must_use]
    pub const fn page(&self) -> u32 {
        self.page
    }
}

/// What a page holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum BitmapPage {
    /// No bit is set.
    #[default]
    Clear,
    /// Every bit that stands for a block of the device is set.
    Full,
    /// Some bits are set. Those past the end of the device are clear.
    Bits(Box<PageWords>),
}

impl BitmapPage {
    /// The bytes of the page. `valid` is how many of its bits stand for a block of the device.
    #[must_use]
    pub fn encode(&self, address: &PageAddress, valid: u64) -> Block {
        let mut block = [0; BLOCK_LEN];
        put(&mut block, AT_PAGE, address.page.to_le_bytes());
        put(&mut block, AT_SLOT, [address.slot.number()]);
        for i in 0..WORDS_PER_PAGE {
            put(&mut block, AT_BITS + i * 8, self.word(i, valid).to_le_bytes());
        }
        block::seal(&mut block, address.head());
        block
    }

    /// Reads a page; `valid` as for [`BitmapPage::encode`]. A block that was never written (all
    /// bytes zero) is a page with no bit set.
    ///
    /// # Errors
    /// [`BlockError`]; the caller must then take every bit for set.
    pub fn decode(block: &Block, address: &PageAddress, valid: u64) -> Result<Self, BlockError> {
        match block::open_of(block, address.head()) {
            Err(BlockError::Blank) => return Ok(Self::Clear),
            other => other?,
        }
        if get_u32(block, AT_PAGE) != address.page || block[AT_SLOT] != address.slot.number() {
            return Err(BlockError::Content("it is another page, or of another peer's bitmap"));
        }
        let words = Box::new(std::array::from_fn(|i| {
            get_u64(block, AT_BITS + i * 8) & valid_mask(i, valid)
        }));
        Ok(Self::Bits(words).collapsed(valid))
    }

    /// How many bits are set.
    #[must_use]
    pub fn count(&self, valid: u64) -> u64 {
        match self {
            Self::Clear => 0,
            Self::Full => valid,
            Self::Bits(words) => words.iter().map(|word| u64::from(word.count_ones())).sum(),
        }
    }

    /// The page in its smallest form.
    pub(super) fn collapsed(self, valid: u64) -> Self {
        match self.count(valid) {
            0 => Self::Clear,
            count if count == valid => Self::Full,
            _ => self,
        }
    }

    /// Word `i` of the page.
    pub(super) fn word(&self, i: usize, valid: u64) -> u64 {
        match self {
            Self::Clear => 0,
            Self::Full => valid_mask(i, valid),
            Self::Bits(words) => words[i],
        }
    }
}

impl PageAddress {
    fn head(&self) -> Head {
        Head { kind: BlockKind::Bitmap, number: self.number, resource: self.resource }
    }
}

/// Makes a page valid whose fields were changed.
pub(super) fn seal_page(page: &mut Block, address: &PageAddress) {
    block::seal(page, address.head());
}

/// The bits of word `i` that stand for a block of the device.
pub(super) fn valid_mask(i: usize, valid: u64) -> u64 {
    let before = i as u64 * 64;
    low_bits(valid.saturating_sub(before).min(64))
}

/// A word whose lowest `n` bits are set, `n` in `0..=64`.
pub(super) const fn low_bits(n: u64) -> u64 {
    if n >= 64 { u64::MAX } else { (1 << n) - 1 }
}
