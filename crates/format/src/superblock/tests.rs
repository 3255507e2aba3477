use super::*;
use crate::testing::{RESOURCE, each_corruption, hex, layout, node, torn};
use crate::{BlockError, looks_used};
use proptest::prelude::*;

fn sample() -> Superblock {
    let mut sb = Superblock::new(RESOURCE, node(1), *b"this boot's id..", layout(100_000, 1237));
    sb.sequence = 6;
    sb.following = Some(node(2));
    sb.flags = DiskFlags::CONSISTENT.with(DiskFlags::PRIMARY).with(DiskFlags::from_bits(1 << 31));
    sb.compatible_features = 0x100;
    sb.current = GenerationId(0x1122_3344_5566_7788);
    sb.history[0] = GenerationId(0x0a);
    sb.history[31] = GenerationId(0x1f);
    sb.peers[2] = PeerRecord {
        bitmap: GenerationId(0xb2),
        current: GenerationId(0xc2),
        flags: PeerFlags::MEMBER.with(PeerFlags::SEEN),
    };
    sb.peers[31].current = GenerationId(0xcf);
    sb
}

#[test]
fn golden_bytes() {
    let golden = "\
000: 48 4f 4c 44 46 41 53 54 01 00 01 00 4d d9 58 dd
010: 00 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 06 00 00 00 00 00 00 00
030: 01 02 00 04 05 00 00 80 00 00 00 00 00 01 00 00
040: 00 00 6a 18 00 00 00 00 00 00 00 00 00 00 00 00
050: 00 20 00 00 00 00 00 00 08 00 00 00 d5 04 00 00
060: 00 a0 00 00 00 00 00 00 74 68 69 73 20 62 6f 6f
070: 74 27 73 20 69 64 2e 2e 88 77 66 55 44 33 22 11
080: 0a 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
170: 00 00 00 00 00 00 00 00 1f 00 00 00 00 00 00 00
1b0: b2 00 00 00 00 00 00 00 c2 00 00 00 00 00 00 00
1c0: 03 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
470: cf 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
";
    assert_eq!(hex(&sample().encode()), golden);
}

#[test]
fn what_was_written_is_read() {
    let mut sb = sample();
    assert_eq!(Superblock::decode(&sb.encode(), 0), Ok(sb.clone()));
    let (offset, block) = sb.advance();
    assert_eq!((sb.sequence, sb.copy(), offset), (7, 1, 4096));
    assert_eq!(Superblock::decode(&block, 1), Ok(sb.clone()));
    let (offset, block) = sb.advance();
    assert_eq!((sb.sequence, sb.copy(), offset), (8, 0, 0));
    assert_eq!(Superblock::decode(&block, 0), Ok(sb));
    assert_eq!(looks_used(&block), Some("the superblock of a Holdfast resource"));
    assert_eq!(looks_used(&[0; 4096]), None);
    assert_eq!(looks_used(&[0xff; 4096]), None);
}

#[test]
fn internal_placement_is_kept() {
    let placement = Placement::Internal { device_len: (1 << 30) + 512 };
    let size = MetaLayout::usable_size((1 << 30) + 512, 8, 8).unwrap();
    let layout = MetaLayout::new(size, 6000, 8, 8, placement).unwrap();
    let sb = Superblock::new(RESOURCE, node(31), [7; 16], layout);
    assert_eq!(Superblock::decode(&sb.encode(), 0), Ok(sb));
}

#[test]
fn a_disk_with_spares_is_for_programs_that_know_them() {
    let sb = Superblock { spares: Some(*b"sixteen disk id."), ..sample() };
    let block = sb.encode();
    assert_eq!(Superblock::decode(&block, 0), Ok(sb));
    // What an older program looks at: a bit that it does not know.
    assert_eq!(block[56..60], [1, 0, 0, 0]);
    assert_eq!(&block[1152..1168], b"sixteen disk id.");
    let without = edit(block, AT_FEATURES, &[0]);
    assert_eq!(Superblock::decode(&without, 0).unwrap().spares, None);
}

#[test]
fn every_corruption_of_one_byte_is_seen() {
    each_corruption(&sample().encode(), |block| Superblock::decode(block, 0).is_ok());
}

#[test]
fn a_block_in_the_wrong_place_is_seen() {
    let block = sample().encode();
    let wrong = BlockError::Misplaced { found: 0, expected: 1 };
    assert_eq!(Superblock::decode(&block, 1), Err(wrong));
    assert_eq!(Superblock::decode(&[0; 4096], 0), Err(BlockError::Blank));
}

/// Rewrites some bytes and makes the checksum right again.
fn edit(mut block: Block, at: usize, bytes: &[u8]) -> Block {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[12..16].fill(0);
    let crc = crc32c::crc32c(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}

#[test]
fn values_that_no_version_writes_are_refused() {
    let block = sample().encode();
    let refused: [(usize, &[u8], &str); 9] = [
        (AT_NODE, &[32], "impossible node number"),
        (AT_FOLLOWING, &[254], "impossible node number"),
        (AT_PLACEMENT, &[2], "unknown placement"),
        (AT_SLOTS, &[33], "sizes are impossible"),
        (AT_DEVICE_SIZE, &[1], "sizes are impossible"),
        (AT_AL_BLOCKS, &[0], "sizes are impossible"),
        (AT_BITMAP_START, &[1], "offsets do not fit"),
        (AT_SEQUENCE, &[7], "into the other copy"),
        (AT_SEQUENCE + 7, &[0xff], "impossible sequence number"),
    ];
    for (at, bytes, why) in refused {
        let error = Superblock::decode(&edit(block, at, bytes), 0).unwrap_err();
        assert!(error.to_string().contains(why), "{error} for byte {at}");
    }
}

#[test]
fn a_newer_copy_is_never_passed_over() {
    let mut sb = sample();
    let old = Superblock::decode(&sb.encode(), 0);
    let (_, new) = sb.advance();
    for (at, bytes) in [(8, [2, 0]), (AT_FEATURES, [0, 0x80])] {
        let newer = Superblock::decode(&edit(new, at, &bytes), 1);
        let error = newer.clone().unwrap_err();
        assert!(matches!(error, BlockError::Version { found: 2 } | BlockError::Features { .. }));
        assert_eq!(Superblock::choose(old.clone(), newer.clone()), Err([error; 2]));
        assert_eq!(Superblock::choose(newer, old.clone()), Err([error; 2]));
    }
}

#[test]
fn a_torn_write_leaves_the_old_state_or_the_new_one() {
    let mut sb = sample();
    let (_, before) = sb.advance();
    sb.current = GenerationId(0x99);
    sb.flags.remove(DiskFlags::PRIMARY);
    let (_, a) = sb.advance();
    let old = sb.clone();
    sb.current = GenerationId(0xaa);
    sb.flags.insert(DiskFlags::OUTDATED);
    sb.peers[30].bitmap = GenerationId(1);
    let (_, b) = sb.advance();
    let new = sb.clone();
    let first = Superblock::decode(&a, 0);
    let mut seen = [false; 2];
    for mixed in torn(&before, &b) {
        let found = Superblock::choose(first.clone(), Superblock::decode(&mixed, 1)).unwrap();
        assert!(found == old || found == new);
        seen[usize::from(found == new)] = true;
        // The next write never goes over the only good copy.
        let mut next = found;
        let (offset, _) = next.advance();
        assert_eq!(offset == 0, next.sequence == new.sequence + 1);
    }
    assert_eq!(seen, [true; 2]);
}

#[test]
fn flags_have_names_and_keep_unknown_bits() {
    let mut flags = DiskFlags::from_bits(1 << 20);
    flags.insert(DiskFlags::CLEAN);
    flags.set(DiskFlags::FAILED, true);
    flags.set(DiskFlags::FAILED, false);
    assert_eq!(flags.to_string(), "CLEAN,0x100000");
    assert_eq!(DiskFlags::EMPTY.to_string(), "-");
    assert!(flags.contains(DiskFlags::CLEAN) && !flags.contains(DiskFlags::PRIMARY));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 4096), edits in
        proptest::collection::vec((40_usize..1152, any::<u8>()), 0..8))
    {
        let noise: Block = bytes.try_into().unwrap();
        prop_assert!(Superblock::decode(&noise, 0).is_err());
        let mut block = sample().encode();
        for (at, byte) in edits {
            block = edit(block, at, &[byte]);
        }
        if let Ok(sb) = Superblock::decode(&block, 0) {
            prop_assert_eq!(Superblock::decode(&sb.encode(), 0), Ok(sb));
        }
    }
}

#[test]
fn a_list_of_blocks_that_could_not_be_read_is_for_programs_that_know_it() {
    for (flag, bits) in [(DiskFlags::LOST, 1 << 3), (DiskFlags::UNREAD, 1 << 4)] {
        let mut sb = sample();
        sb.flags = DiskFlags::default();
        sb.flags.set(flag, true);
        let block = sb.encode();
        assert_eq!(block[56..60], [bits, 0, 0, 0]);
        assert_eq!(Superblock::decode(&block, 0), Ok(sb));
    }
}
