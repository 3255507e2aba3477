//! A bitmap in memory: pages that are all clear or all set take no room.

use super::page::{BITS_PER_PAGE, BitmapPage, PageAddress, WORDS_PER_PAGE, low_bits, valid_mask};
use crate::block::{Block, BlockError};
use std::ops::Range;

/// One bit for each block of a device, with the number of set bits and the pages that differ from
/// what is on disk.
///
/// An empty or full bitmap takes 18 bytes per 126 MiB of the device; a bitmap with bits all over
/// takes 32 MiB per TiB.
#[derive(Clone, Debug)]
pub struct SparseBitmap {
    bits: u64,
    set: u64,
    pages: Vec<BitmapPage>,
    /// How many bits of each page are set.
    counts: Vec<u16>,
    dirty: DirtyPages,
}

/// A part of a page: bits `from..to` of page `page`.
struct Part {
    page: usize,
    from: u64,
    to: u64,
}

impl SparseBitmap {
    /// A bitmap for a device of `bits` blocks with no bit set and no dirty page.
    #[must_use]
    pub fn new(bits: u64) -> Self {
        let pages = index(bits.div_ceil(BITS_PER_PAGE));
        Self {
            bits,
            set: 0,
            pages: vec![BitmapPage::Clear; pages],
            counts: vec![0; pages],
            dirty: DirtyPages::new(pages),
        }
    }

    /// How many blocks the device has.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.bits
    }

    /// Whether the device has no block.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// How many bits are set.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.set
    }

    /// Whether the bit of `block` is set; false past the end.
    #[must_use]
    pub fn get(&self, block: u64) -> bool {
        if block >= self.bits {
            return false;
        }
        let (page, bit) = split(block);
        let word = self.pages[page].word(index(bit / 64), self.valid(page));
        word >> (bit % 64) & 1 == 1
    }

    /// Sets the bits of these blocks; how many were clear. Blocks past the end are left out.
    pub fn set_range(&mut self, blocks: Range<u64>) -> u64 {
        let mut changed = 0;
        for part in self.parts(blocks) {
            changed += self.set_part(&part);
        }
        self.set += changed;
        changed
    }

    /// Clears the bits of these blocks; how many were set. Blocks past the end are left out.
    pub fn clear_range(&mut self, blocks: Range<u64>) -> u64 {
        let mut changed = 0;
        for part in self.parts(blocks) {
            changed += self.clear_part(&part);
        }
        self.set -= changed;
        changed
    }

    /// Sets every bit; how many were clear.
    pub fn set_all(&mut self) -> u64 {
        self.set_range(0..self.bits)
    }

    /// Clears every bit; how many were set.
    pub fn clear_all(&mut self) -> u64 {
        self.clear_range(0..self.bits)
    }

    /// How many of these blocks have their bit set.
    #[must_use]
    pub fn count_range(&self, blocks: Range<u64>) -> u64 {
        self.parts(blocks).map(|part| self.count_part(&part)).sum()
    }

    /// The first block at or after `from` whose bit is set.
    #[must_use]
    pub fn next_set(&self, from: u64) -> Option<u64> {
        if self.set == 0 { None } else { self.find(from, true) }
    }

    /// The first block at or after `from` whose bit is clear.
    #[must_use]
    pub fn next_clear(&self, from: u64) -> Option<u64> {
        self.find(from, false)
    }

    /// The first blocks at or after `from` whose bits are set, in one stretch of at most
    /// `max_len` blocks. `None` when there is none, or `max_len` is 0.
    #[must_use]
    pub fn next_run(&self, from: u64, max_len: u64) -> Option<Range<u64>> {
        if max_len == 0 {
            return None;
        }
        let start = self.next_set(from)?;
        let limit = start.saturating_add(max_len).min(self.bits);
        let end = self.find_below(start, limit, false).unwrap_or(limit);
        Some(start..end)
    }

    /// All stretches of blocks whose bits are set, lowest first, each as long as it can be.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end;
            Some(run)
        })
    }

    /// Sets every bit that is set in `other`; how many were clear. Bits of `other` past the end of
    /// this bitmap are left out.
    pub fn or_assign(&mut self, other: &Self) -> u64 {
        let mut changed = 0;
        for i in 0..self.pages.len().min(other.pages.len()) {
            changed += match &other.pages[i] {
                BitmapPage::Clear => 0,
                BitmapPage::Full => {
                    let start = i as u64 * BITS_PER_PAGE;
                    self.set_range(start..start + other.valid(i))
                }
                BitmapPage::Bits(_) => self.or_page(i, other),
            };
        }
        changed
    }

    /// Makes the bitmap longer or shorter. New bits are set when `set_new`, else clear; bits past
    /// a new end are forgotten. Pages whose bytes change by it are dirty.
    pub fn resize(&mut self, bits: u64, set_new: bool) {
        if bits < self.bits {
            self.clear_range(bits..self.bits);
        }
        let old = self.bits;
        let pages = index(bits.div_ceil(BITS_PER_PAGE));
        // The page at the old end may be full for the old length only.
        let last = index(old / BITS_PER_PAGE);
        if bits > old && last < self.pages.len() && self.pages[last] == BitmapPage::Full {
            let valid = self.valid(last);
            self.pages[last] = BitmapPage::Bits(words_of(&BitmapPage::Full, valid));
        }
        self.bits = bits;
        self.pages.resize(pages, BitmapPage::Clear);
        self.counts.resize(pages, 0);
        self.dirty.resize(pages);
        if let Some(last) = pages.checked_sub(1) {
            self.collapse(last);
        }
        if set_new && bits > old {
            self.set_range(old..bits);
        }
    }

    /// How many pages the bitmap has.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("the largest device has fewer pages than 2^32")
    }

    /// The page that holds the bit of `block`.
    ///
    /// # Panics
    /// When `block` is past the end.
    #[must_use]
    pub fn page_of(&self, block: u64) -> u32 {
        assert!(block < self.bits, "the device has {} blocks, no block {block}", self.bits);
        u32::try_from(block / BITS_PER_PAGE).expect("page numbers have 32 bits")
    }

    /// The blocks whose bits page `page` holds; empty when there is no such page.
    #[must_use]
    pub fn blocks_of_page(&self, page: u32) -> Range<u64> {
        let start = (u64::from(page) * BITS_PER_PAGE).min(self.bits);
        start..(start + BITS_PER_PAGE).min(self.bits)
    }

    /// How many pages differ from what is on disk.
    #[must_use]
    pub const fn dirty_count(&self) -> u32 {
        self.dirty.count
    }

    /// The dirty pages, lowest first.
    pub fn dirty_pages(&self) -> impl Iterator<Item = u32> {
        self.dirty.iter_from(0)
    }

    /// The dirty pages among those that hold the bits of these blocks, lowest first.
    pub fn dirty_pages_of(&self, blocks: Range<u64>) -> impl Iterator<Item = u32> {
        let end = blocks.end.min(self.bits);
        let (first, past) = if blocks.start < end {
            (index(blocks.start / BITS_PER_PAGE), end.div_ceil(BITS_PER_PAGE))
        } else {
            (self.pages.len(), 0)
        };
        self.dirty.iter_from(first).take_while(move |page| u64::from(*page) < past)
    }

    /// At most `limit` dirty pages, lowest first; they count as clean from now on. The caller
    /// encodes them at once; if a write fails it calls [`SparseBitmap::mark_dirty`]. A bit that
    /// changes meanwhile makes its page dirty again.
    pub fn take_dirty_pages(&mut self, limit: usize) -> Vec<u32> {
        let pages: Vec<u32> = self.dirty_pages().take(limit).collect();
        for page in &pages {
            self.mark_clean(*page);
        }
        pages
    }

    /// Counts the page as on disk as it is in memory.
    pub fn mark_clean(&mut self, page: u32) {
        self.dirty.remove(index(u64::from(page)));
    }

    /// Counts the page as different from what is on disk.
    pub fn mark_dirty(&mut self, page: u32) {
        self.dirty.insert(index(u64::from(page)));
    }

    /// The bytes of the page that `address` names.
    ///
    /// # Panics
    /// When the bitmap has no such page.
    #[must_use]
    pub fn encode_page(&self, address: &PageAddress) -> Block {
        let page = index(u64::from(address.page()));
        self.pages[page].encode(address, self.valid(page))
    }

    /// Replaces the page that `address` names with what was read from disk, and counts it clean.
    ///
    /// # Errors
    /// [`BlockError`] when the bytes cannot be trusted. Then every bit of the page is set and the
    /// page is dirty: too much will be resynced, never too little.
    ///
    /// # Panics
    /// When the bitmap has no such page.
    pub fn load_page(&mut self, address: &PageAddress, block: &Block) -> Result<(), BlockError> {
        let page = index(u64::from(address.page()));
        let decoded = BitmapPage::decode(block, address, self.valid(page));
        let error = decoded.as_ref().err().copied();
        self.replace_page(page, decoded.unwrap_or(BitmapPage::Full));
        match error {
            None => {
                self.dirty.remove(page);
                Ok(())
            }
            Some(error) => {
                self.dirty.insert(page);
                Err(error)
            }
        }
    }

    /// Sets every bit of a page that could not be read from disk, and makes it dirty.
    ///
    /// # Panics
    /// When the bitmap has no such page.
    pub fn lose_page(&mut self, page: u32) {
        let page = index(u64::from(page));
        self.replace_page(page, BitmapPage::Full);
        self.dirty.insert(page);
    }

    fn replace_page(&mut self, page: usize, content: BitmapPage) {
        let count = content.count(self.valid(page));
        self.set = self.set - u64::from(self.counts[page]) + count;
        self.counts[page] = small(count);
        self.pages[page] = content;
    }

    /// How many bits of the page stand for a block of the device.
    fn valid(&self, page: usize) -> u64 {
        (self.bits - page as u64 * BITS_PER_PAGE).min(BITS_PER_PAGE)
    }

    fn parts(&self, blocks: Range<u64>) -> impl Iterator<Item = Part> + use<> {
        let end = blocks.end.min(self.bits);
        let mut at = blocks.start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (page, from) = split(at);
            let to = BITS_PER_PAGE.min(from + (end - at));
            at += to - from;
            Some(Part { page, from, to })
        })
    }

    fn set_part(&mut self, part: &Part) -> u64 {
        let valid = self.valid(part.page);
        let page = &mut self.pages[part.page];
        let changed = match page {
            BitmapPage::Full => 0,
            _ if part.to - part.from == valid => {
                *page = BitmapPage::Full;
                valid - u64::from(self.counts[part.page])
            }
            _ => change(page, part, valid, |word, mask| {
                let fresh = mask & !*word;
                *word |= mask;
                fresh
            }),
        };
        self.counts[part.page] += small(changed);
        self.changed(part.page, changed);
        changed
    }

    fn clear_part(&mut self, part: &Part) -> u64 {
        let valid = self.valid(part.page);
        let page = &mut self.pages[part.page];
        let changed = match page {
            BitmapPage::Clear => 0,
            _ if part.to - part.from == valid => {
                *page = BitmapPage::Clear;
                u64::from(self.counts[part.page])
            }
            _ => change(page, part, valid, |word, mask| {
                let gone = mask & *word;
                *word &= !mask;
                gone
            }),
        };
        self.counts[part.page] -= small(changed);
        self.changed(part.page, changed);
        changed
    }

    fn count_part(&self, part: &Part) -> u64 {
        match &self.pages[part.page] {
            BitmapPage::Clear => 0,
            BitmapPage::Full => part.to - part.from,
            BitmapPage::Bits(words) => masks(part.from, part.to)
                .map(|(i, mask)| u64::from((words[i] & mask).count_ones()))
                .sum(),
        }
    }

    fn or_page(&mut self, page: usize, other: &Self) -> u64 {
        let valid = self.valid(page);
        let whole = Part { page, from: 0, to: valid };
        let source = &other.pages[page];
        let changed = match &mut self.pages[page] {
            BitmapPage::Full => 0,
            target => {
                let mut i = 0;
                change(target, &whole, valid, |word, mask| {
                    let fresh = source.word(i, BITS_PER_PAGE) & mask & !*word;
                    i += 1;
                    *word |= fresh;
                    fresh
                })
            }
        };
        self.counts[page] += small(changed);
        self.set += changed;
        self.changed(page, changed);
        changed
    }

    /// After `changed` bits of a page changed.
    fn changed(&mut self, page: usize, changed: u64) {
        if changed > 0 {
            self.dirty.insert(page);
        }
        self.collapse(page);
    }

    fn collapse(&mut self, page: usize) {
        let count = u64::from(self.counts[page]);
        if count == 0 {
            self.pages[page] = BitmapPage::Clear;
        } else if count == self.valid(page) {
            self.pages[page] = BitmapPage::Full;
        }
    }

    fn find(&self, from: u64, wanted: bool) -> Option<u64> {
        self.find_below(from, self.bits, wanted)
    }

    /// The first block in `from..limit` whose bit is as wanted.
    fn find_below(&self, from: u64, limit: u64, wanted: bool) -> Option<u64> {
        self.parts(from..limit).find_map(|part| {
            let start = part.page as u64 * BITS_PER_PAGE;
            match &self.pages[part.page] {
                BitmapPage::Clear => (!wanted).then_some(start + part.from),
                BitmapPage::Full => wanted.then_some(start + part.from),
                BitmapPage::Bits(words) => masks(part.from, part.to).find_map(|(i, mask)| {
                    let word = if wanted { words[i] } else { !words[i] } & mask;
                    (word != 0).then(|| start + i as u64 * 64 + u64::from(word.trailing_zeros()))
                }),
            }
        })
    }
}

/// Two bitmaps are equal when they are of one length and the same bits are set.
impl PartialEq for SparseBitmap {
    fn eq(&self, other: &Self) -> bool {
        self.bits == other.bits && self.set == other.set && self.pages == other.pages
    }
}

impl Eq for SparseBitmap {}

/// Applies `op` to the words of a part, which tells the bits that it changed; how many they were.
fn change(
    page: &mut BitmapPage,
    part: &Part,
    valid: u64,
    mut op: impl FnMut(&mut u64, u64) -> u64,
) -> u64 {
    if !matches!(page, BitmapPage::Bits(_)) {
        *page = BitmapPage::Bits(words_of(page, valid));
    }
    let BitmapPage::Bits(words) = page else { unreachable!("it was made so above") };
    masks(part.from, part.to).map(|(i, mask)| u64::from(op(&mut words[i], mask).count_ones())).sum()
}

fn words_of(page: &BitmapPage, valid: u64) -> Box<[u64; WORDS_PER_PAGE]> {
    match page {
        BitmapPage::Clear => Box::new([0; WORDS_PER_PAGE]),
        BitmapPage::Full => Box::new(std::array::from_fn(|i| valid_mask(i, valid))),
        BitmapPage::Bits(words) => words.clone(),
    }
}

/// The words that bits `from..to` of a page lie in, and which bits of each.
fn masks(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |word| {
        let start = word * 64;
        let below = low_bits(from.saturating_sub(start));
        (index(word), low_bits(to - start) & !below)
    })
}

fn split(block: u64) -> (usize, u64) {
    (index(block / BITS_PER_PAGE), block % BITS_PER_PAGE)
}

/// A number of pages or words as an index.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("what is in memory can be indexed")
}

/// A number of bits within one page.
fn small(bits: u64) -> u16 {
    u16::try_from(bits).expect("a page has fewer bits than 65536")
}

/// Which pages are dirty.
#[derive(Clone, Debug)]
struct DirtyPages {
    words: Vec<u64>,
    pages: usize,
    count: u32,
}

impl DirtyPages {
    fn new(pages: usize) -> Self {
        Self { words: vec![0; pages.div_ceil(64)], pages, count: 0 }
    }

    fn insert(&mut self, page: usize) {
        if page < self.pages && self.words[page / 64] >> (page % 64) & 1 == 0 {
            self.words[page / 64] |= 1 << (page % 64);
            self.count += 1;
        }
    }

    fn remove(&mut self, page: usize) {
        if page < self.pages && self.words[page / 64] >> (page % 64) & 1 == 1 {
            self.words[page / 64] &= !(1 << (page % 64));
            self.count -= 1;
        }
    }

    fn resize(&mut self, pages: usize) {
        for page in pages..self.pages {
            self.remove(page);
        }
        self.words.resize(pages.div_ceil(64), 0);
        self.pages = pages;
    }

    fn iter_from(&self, first: usize) -> impl Iterator<Item = u32> {
        let mut at = first;
        std::iter::from_fn(move || {
            while at < self.pages {
                let rest = self.words[at / 64] >> (at % 64);
                if rest != 0 {
                    at += index(u64::from(rest.trailing_zeros()));
                    let page = u32::try_from(at).expect("page numbers have 32 bits");
                    at += 1;
                    return Some(page);
                }
                at = (at / 64 + 1) * 64;
            }
            None
        })
    }
}

#[cfg(test)]
mod tests;
