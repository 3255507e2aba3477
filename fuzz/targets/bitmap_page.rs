//! A page of a bitmap with any changes: refused, or bits that all stand for a block of the device.
#![no_main]

use holdfast_format::{BITS_PER_PAGE, BLOCK_LEN, BitmapPage, PageAddress, SparseBitmap};
use holdfast_fuzz::{Patch, RESOURCE, layout};
use holdfast_units::{BLOCK_SIZE, NodeId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, Vec<(u32, u32)>, Vec<Patch>)| {
    let (blocks, runs, patches) = input;
    let bits = u64::from(blocks) + 1;
    let layout = layout(bits * BLOCK_SIZE, 7, 1);
    let slot = NodeId::new(0).expect("0 is a node");
    let mut bitmap = SparseBitmap::new(bits);
    for (first, count) in runs.iter().take(64) {
        let first = u64::from(*first) % bits;
        bitmap.set_range(first..(first + u64::from(*count)).min(bits));
    }
    let mut loaded = SparseBitmap::new(bits);
    for page in 0..bitmap.page_count() {
        let address = PageAddress::new(RESOURCE, &layout, slot, page);
        let mut block = bitmap.encode_page(&address);
        loaded.load_page(&address, &block).expect("it was encoded just now");

        patches.iter().for_each(|patch| patch.apply(&mut block));
        let valid = (bits - u64::from(page) * BITS_PER_PAGE).min(BITS_PER_PAGE);
        if let Ok(found) = BitmapPage::decode(&block, &address, valid) {
            assert!(found.count(valid) <= valid);
            let written = found.encode(&address, valid);
            assert_eq!(written.len(), BLOCK_LEN);
            assert_eq!(BitmapPage::decode(&written, &address, valid), Ok(found));
        }
        let mut damaged = SparseBitmap::new(bits);
        let _ = damaged.load_page(&address, &block);
        assert!(damaged.count() <= bits);
    }
    assert_eq!(loaded.count(), bitmap.count());
    assert!(loaded.runs().eq(bitmap.runs()));
});
