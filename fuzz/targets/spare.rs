//! The header and a block of the table of a spare, as they are and with a checksum that fits:
//! refused, or read, written and read again as the same.
#![no_main]

use holdfast_format::BLOCK_LEN;
use holdfast_format::remap::{
    Entry, EntryState, Reason, SpareHeader, SpareId, SpareLayout, TableBlock,
};
use holdfast_fuzz::{Patch, RESOURCE, seal};
use libfuzzer_sys::fuzz_target;

const SPARE: SpareId = SpareId([3; 16]);
const SLOTS: u32 = 200;

fn image() -> Vec<u8> {
    let layout = SpareLayout::new(1 << 20, 4096, SLOTS).expect("it is large enough");
    let header = SpareHeader {
        sequence: 5,
        resource: RESOURCE,
        spare: SPARE,
        disk: [4; 16],
        disk_size: 1 << 30,
        layout,
        retired: false,
        created: 1,
        members: vec![SPARE],
    };
    let mut table = TableBlock::default();
    table.entries[1] = Entry {
        unit: 77,
        order: 2,
        time: 3,
        errors: 1,
        state: EntryState::Mapped,
        reason: Reason::WriteError,
    };
    [header.encode(0), header.encode(1), table.encode(1, RESOURCE, SPARE)].concat()
}

fuzz_target!(|patches: Vec<Patch>| {
    let mut blocks = image();
    patches.iter().for_each(|patch| patch.apply(&mut blocks));
    for (i, bytes) in blocks.chunks_exact(BLOCK_LEN).enumerate() {
        let mut block = *bytes.first_chunk::<BLOCK_LEN>().expect("a whole block");
        let _ = SpareHeader::decode(&block, i);
        let _ = TableBlock::decode(&block, 1, RESOURCE, SPARE, SLOTS);
        seal(&mut block);
        if let Ok(header) = SpareHeader::decode(&block, i) {
            assert_eq!(SpareHeader::decode(&header.encode(i), i), Ok(header));
        }
        if let Ok(table) = TableBlock::decode(&block, 1, RESOURCE, SPARE, SLOTS) {
            let again = table.encode(1, RESOURCE, SPARE);
            assert_eq!(TableBlock::decode(&again, 1, RESOURCE, SPARE, SLOTS), Ok(table));
        }
    }
});
