use super::*;
use crate::testing::{OTHER, RESOURCE, each_corruption, hex, torn};
use crate::{Block, BlockError, looks_used};
use proptest::prelude::*;

const SPARE: SpareId = SpareId(*b"this one's id is");

fn header() -> SpareHeader {
    SpareHeader {
        sequence: 5,
        resource: RESOURCE,
        spare: SPARE,
        disk: *b"the main disk is",
        disk_size: 1 << 30,
        layout: SpareLayout::new(1 << 20, 4096, 200).unwrap(),
        retired: false,
        created: 0x6543_2100,
        members: vec![SPARE, SpareId(*b"the other's id .")],
    }
}

fn table() -> TableBlock {
    let mut table = TableBlock { sequence: 7, ..TableBlock::default() };
    table.entries[0] = Entry {
        unit: 0x1234,
        order: 0x55,
        time: 0x6543_2101,
        errors: 3,
        state: EntryState::Mapped,
        reason: Reason::WriteError,
    };
    table.entries[31].state = EntryState::BadSlot;
    table.entries[31].reason = Reason::NotReadBack;
    table
}

fn decode(block: &Block) -> Result<TableBlock, BlockError> {
    TableBlock::decode(block, 1, RESOURCE, SPARE, 200)
}

#[test]
fn golden_bytes() {
    let golden = "\
000: 48 4f 4c 44 46 41 53 54 01 00 07 00 a6 6f a0 8a
010: 01 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 05 00 00 00 00 00 00 00
030: 74 68 69 73 20 6f 6e 65 27 73 20 69 64 20 69 73
040: 74 68 65 20 6d 61 69 6e 20 64 69 73 6b 20 69 73
050: 00 00 00 40 00 00 00 00 00 00 00 00 00 00 00 00
060: 00 10 00 00 c8 00 00 00 00 00 10 00 00 00 00 00
070: 00 10 00 00 00 00 00 00 00 30 00 00 00 00 00 00
080: 00 d0 0f 00 00 00 00 00 00 21 43 65 00 00 00 00
090: 02 00 00 00 00 00 00 00 74 68 69 73 20 6f 6e 65
0a0: 27 73 20 69 64 20 69 73 74 68 65 20 6f 74 68 65
0b0: 72 27 73 20 69 64 20 2e 00 00 00 00 00 00 00 00
";
    assert_eq!(hex(&header().encode(1)), golden);
    let golden = "\
000: 48 4f 4c 44 46 41 53 54 01 00 08 00 1f 13 18 e1
010: 01 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 07 00 00 00 00 00 00 00
030: 74 68 69 73 20 6f 6e 65 27 73 20 69 64 20 69 73
040: 34 12 00 00 00 00 00 00 55 00 00 00 00 00 00 00
050: 01 21 43 65 03 00 01 01 00 00 00 00 00 00 00 00
330: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 03 06
";
    assert_eq!(hex(&table().encode(1, RESOURCE, SPARE)), golden);
}

#[test]
fn what_was_written_is_read() {
    for copy in [0, 1] {
        let block = header().encode(copy);
        assert_eq!(SpareHeader::decode(&block, copy), Ok(header()));
        assert!(matches!(SpareHeader::decode(&block, 1 - copy), Err(BlockError::Misplaced { .. })));
    }
    let retired = SpareHeader { retired: true, ..header() };
    assert_eq!(SpareHeader::decode(&retired.encode(0), 0), Ok(retired));
    let block = table().encode(1, RESOURCE, SPARE);
    assert_eq!(decode(&block), Ok(table()));
    assert!(looks_used(&block).is_some() && looks_used(&header().encode(0)).is_some());
}

#[test]
fn what_is_not_right_is_refused_with_the_reason() {
    let block = table().encode(1, RESOURCE, SPARE);
    let other = SpareId(*b"some other spare");
    let of = |number, resource, spare, slots| {
        TableBlock::decode(&block, number, resource, spare, slots).unwrap_err()
    };
    assert!(matches!(of(0, RESOURCE, SPARE, 200), BlockError::Misplaced { .. }));
    assert!(matches!(of(1, OTHER, SPARE, 200), BlockError::Resource { .. }));
    assert_eq!(of(1, RESOURCE, other, 200).to_string(), "it belongs to another spare");
    assert!(of(1, RESOURCE, SPARE, 199).to_string().contains("slot that does not exist"));
    assert!(matches!(decode(&header().encode(1)), Err(BlockError::Kind { .. })));

    let with = |change: fn(&mut Entry)| {
        let mut table = table();
        change(&mut table.entries[0]);
        decode(&table.encode(1, RESOURCE, SPARE)).unwrap_err().to_string()
    };
    assert!(with(|e| e.state = EntryState::Free).contains("not empty"));
    assert!(with(|e| e.unit = MAX_UNIT).contains("impossible numbers"));
    assert!(with(|e| e.order = MAX_ORDER).contains("impossible numbers"));

    let members = |members| SpareHeader::decode(&SpareHeader { members, ..header() }.encode(0), 0);
    assert!(members(vec![]).is_err());
    assert!(members(vec![SPARE, SPARE]).is_err());
    assert!(members((0..16).map(|i| SpareId([i; 16])).collect()).is_ok());
}

#[test]
fn each_changed_byte_and_each_torn_write_is_seen() {
    each_corruption(&header().encode(0), |block| SpareHeader::decode(block, 0).is_ok());
    let (old, mut new) = (table().encode(1, RESOURCE, SPARE), table());
    each_corruption(&old, |block| decode(block).is_ok());
    new.sequence += 1;
    for (i, entry) in new.entries.iter_mut().enumerate().take(32) {
        *entry = Entry { unit: i as u64, state: EntryState::Lost, ..Entry::default() };
    }
    let new = new.encode(1, RESOURCE, SPARE);
    for block in torn(&old, &new) {
        assert!(block == old || block == new || decode(&block).is_err());
    }
}

#[test]
fn the_newest_copy_counts_and_a_newer_program_is_not_gone_behind() {
    let with = |sequence| Ok(SpareHeader { sequence, ..header() });
    let of = |a, b| newest(a, b, |h: &SpareHeader| h.sequence).map(|(h, i)| (h.sequence, i));
    assert_eq!(of(with(3), with(4)), Ok((4, 1)));
    assert_eq!(of(with(4), with(3)), Ok((4, 0)));
    assert_eq!(of(Err(BlockError::Blank), with(3)), Ok((3, 1)));
    assert_eq!(of(with(3), Err(BlockError::Blank)), Ok((3, 0)));
    let both = [BlockError::Blank, BlockError::NotMetadata];
    assert_eq!(of(Err(both[0]), Err(both[1])), Err(both));
    let newer = BlockError::Version { found: 2 };
    assert_eq!(of(with(3), Err(newer)), Err([newer; 2]));
}

#[test]
fn too_small_says_what_is_needed() {
    let needed = (2 + 2 + 168) * 4096;
    assert!(SpareLayout::new(needed, 4096, 168).is_ok());
    let error = SpareLayout::new(needed - 1, 4096, 168).unwrap_err();
    assert_eq!(error, SpareLayoutError::TooSmall { needed, given: needed - 4096 });
    assert_eq!(error.to_string(), "it has 700416 bytes, and 704512 are needed");
    let error = SpareLayout::largest(4 * 4096, 512).unwrap_err();
    assert_eq!(error, SpareLayoutError::TooSmall { needed: 5 * 4096, given: 4 * 4096 });
    assert_eq!(SpareLayout::largest(5 * 4096, 512).unwrap().slots(), 8);
    assert_eq!(SpareLayout::largest(u64::MAX, 4096).unwrap().slots(), 1 << 24);
    assert!(SpareLayout::new(1 << 40, 4096, (1 << 24) + 1).is_err());
    assert!(SpareLayout::new(1 << 40, 1024, 1).is_err());
}

proptest! {
    #[test]
    fn the_parts_never_overlap(length in 0_u64..(1 << 26), big in any::<bool>()) {
        let unit = if big { 4096 } else { 512 };
        let Ok(layout) = SpareLayout::largest(length, unit) else { return Ok(()) };
        let slots = layout.slots();
        prop_assert!(SpareLayout::new(length, unit, slots + 1).is_err());
        let last = layout.table_blocks() - 1;
        prop_assert!(layout.header_offset(0) + 4096 <= layout.table_offset(0, 0));
        prop_assert!(layout.table_offset(0, last) + 4096 <= layout.slot_offset(0));
        let end = layout.slot_offset(slots - 1) + u64::from(unit);
        prop_assert!(end <= layout.table_offset(1, 0));
        prop_assert!(layout.table_offset(1, last) + 4096 <= layout.header_offset(1));
        prop_assert!(layout.header_offset(1) + 4096 <= length);
        prop_assert!(slots <= layout.table_blocks() * ENTRIES_PER_BLOCK);
    }

    #[test]
    fn no_bytes_make_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 4096)) {
        for kind in [7_u8, 8] {
            bytes[..12].copy_from_slice(b"HOLDFAST\x01\x00\x00\x00");
            bytes[10] = kind;
            bytes[12..16].fill(0);
            let crc = crc32c::crc32c(&bytes);
            bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            let block: &Block = bytes[..].try_into().unwrap();
            let _ = SpareHeader::decode(block, 0);
            let _ = TableBlock::decode(block, 0, RESOURCE, SPARE, 168);
        }
    }
}
