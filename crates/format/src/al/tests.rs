use super::*;
use crate::testing::{OTHER, RESOURCE, each_corruption, hex, layout, torn};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn set(slot: u16, extent: u32) -> AlUpdate {
    AlUpdate { slot, extent: Some(extent) }
}

fn unset(slot: u16) -> AlUpdate {
    AlUpdate { slot, extent: None }
}

/// A ring on disk.
#[derive(Clone)]
struct Ring {
    layout: MetaLayout,
    blocks: BTreeMap<u32, Option<Block>>,
}

impl Ring {
    fn fresh(extents: u16, blocks: u32) -> (Self, AlLog) {
        let external = crate::Placement::External { base: 0 };
        let layout = MetaLayout::new(1 << 40, extents, blocks, 4, external).unwrap();
        let mut log = AlLog::new(RESOURCE, &layout, 0);
        let blocks = log.format().into_iter().map(|(i, block)| (i, Some(block))).collect();
        (Self { layout, blocks }, log)
    }

    fn write(&mut self, (index, block): (u32, Block)) {
        self.blocks.insert(index, Some(block));
    }

    fn recover(&self) -> Result<AlRecovered, AlDamaged> {
        AlLog::recover(RESOURCE, &self.layout, self.blocks.clone())
    }
}

#[test]
fn ring_sizes() {
    assert_eq!(al_blocks_for(DEFAULT_AL_EXTENTS), 8);
    assert_eq!(al_blocks_for(1), 8);
    assert_eq!(al_blocks_for(6384), 8);
    assert_eq!(al_blocks_for(6385), 9);
    assert_eq!(al_blocks_for(AL_MAX_EXTENTS), 73);
}

#[test]
fn golden_bytes() {
    let mut log = AlLog::new(RESOURCE, &layout(1000, 3), 5);
    let (index, _) = log.encode_transaction(&[set(0, 7)]).unwrap();
    assert_eq!((index, log.next_sequence()), (0, 9));
    let (index, block) = log.encode_transaction(&[set(2, 0x0102_0304), unset(0)]).unwrap();
    assert_eq!(index, 1);
    let golden = "\
000: 48 4f 4c 44 46 41 53 54 01 00 02 00 1b 97 6d 95
010: 03 00 00 00 00 00 00 00 73 69 78 74 65 65 6e 20
020: 62 79 74 65 73 20 6f 6b 09 00 00 00 00 00 00 00
030: 03 00 02 00 00 00 03 00 08 00 00 00 44 c1 45 67
040: 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
0c0: 04 03 02 01 ff ff ff ff 00 00 00 00 00 00 00 00
1c0: ff ff ff ff ff ff ff ff 04 03 02 01 00 00 00 00
";
    assert_eq!(hex(&block), golden);
}

#[test]
fn a_fresh_log_is_empty() {
    for (extents, blocks) in [(1, 2), (912, 2), (913, 3), (1237, 8), (65534, 73)] {
        let (ring, log) = Ring::fresh(extents, blocks);
        assert_eq!(ring.blocks.len(), usize::try_from(blocks).unwrap());
        let found = ring.recover().unwrap();
        assert_eq!(found.log, log);
        assert_eq!(found.unused, []);
        assert_eq!(found.log.extents().count(), 0);
        assert_eq!(found.log.slots().len(), usize::from(extents));
    }
}

#[test]
fn updates_are_found_again() {
    let (mut ring, mut log) = Ring::fresh(2000, 4);
    ring.write(log.encode_transaction(&[set(0, 10), set(1999, 20), set(7, 30)]).unwrap());
    assert_eq!(ring.recover().unwrap().log.extents().collect::<Vec<_>>(), [10, 30, 20]);
    ring.write(log.encode_transaction(&[unset(0), set(7, 31), set(7, 32)]).unwrap());
    for _ in 0..9 {
        let found = ring.recover().unwrap();
        assert_eq!(found.log, log);
        assert_eq!(found.log.extents().collect::<Vec<_>>(), [32, 20]);
        ring.write(log.encode_transaction(&[]).unwrap());
    }
}

#[test]
fn impossible_updates_change_nothing() {
    let (_, mut log) = Ring::fresh(100, 8);
    let before = log.clone();
    let many = vec![unset(0); AL_MAX_UPDATES + 1];
    assert_eq!(log.encode_transaction(&many), Err(AlError::TooMany { count: 65 }));
    let refused = log.encode_transaction(&[set(0, 1), set(100, 1)]);
    assert_eq!(refused, Err(AlError::NoSuchSlot { slot: 100, slots: 100 }));
    let refused = log.encode_transaction(&[set(0, 1), set(1, u32::MAX)]);
    assert_eq!(refused, Err(AlError::NoSuchExtent));
    assert_eq!(log, before);
    assert!(log.encode_transaction(&many[1..]).is_ok());
}

#[test]
fn every_corruption_of_one_byte_is_seen() {
    let (_, mut log) = Ring::fresh(100, 8);
    let (index, block) = log.encode_transaction(&[set(3, 4)]).unwrap();
    let layout = layout(1000, 100);
    each_corruption(&block, |block| {
        let head =
            Head { kind: BlockKind::ActivityLog, number: al_number(index), resource: RESOURCE };
        Transaction::decode(block, head, &layout).is_ok()
    });
}

#[test]
fn blocks_of_others_are_not_taken() {
    let (ring, _) = Ring::fresh(100, 8);
    let damaged = AlLog::recover(OTHER, &ring.layout, ring.blocks.clone()).unwrap_err();
    assert_eq!(damaged.blocks.len(), 8);
    let expected = BlockError::Resource { found: RESOURCE, expected: OTHER };
    assert!(damaged.blocks.iter().all(|d| d.error == expected));
    let other_size = ring.layout.with_al_extents(101).unwrap();
    assert!(AlLog::recover(RESOURCE, &other_size, ring.blocks.clone()).is_err());
    let shifted = ring.blocks.iter().map(|(i, block)| ((i + 1) % 8, *block));
    assert!(AlLog::recover(RESOURCE, &ring.layout, shifted).is_err());
    assert!(AlLog::recover(RESOURCE, &ring.layout, []).is_err());
}

#[test]
fn a_torn_newest_block_leaves_the_old_state_or_the_new_one() {
    let (mut ring, mut log) = Ring::fresh(1500, 3);
    for i in 0..7 {
        ring.write(log.encode_transaction(&[set(i * 200, u32::from(i))]).unwrap());
    }
    let old = log.clone();
    let (index, new_block) = log.encode_transaction(&[set(0, 99), unset(200)]).unwrap();
    let old_block = ring.blocks[&index].unwrap();
    let mut seen = [false; 2];
    for mixed in torn(&old_block, &new_block) {
        let mut torn = ring.clone();
        torn.write((index, mixed));
        let found = torn.recover().unwrap();
        assert!(found.log == old || found.log == log);
        seen[usize::from(found.log == log)] = true;
        assert_eq!(found.again.is_some(), found.log == log && mixed != new_block);
        // What goes on from there is found again.
        found.again.into_iter().for_each(|block| torn.write(block));
        let mut next = found.log;
        torn.write(next.encode_transaction(&[set(5, 5)]).unwrap());
        assert_eq!(torn.recover().unwrap().log, next);
    }
    assert_eq!(seen, [true; 2]);
}

#[test]
fn a_missing_needed_block_is_damage_and_an_old_one_is_not() {
    let (mut ring, mut log) = Ring::fresh(1500, 8);
    let mut newest = 0;
    for i in 0..11 {
        let (index, block) = log.encode_transaction(&[set(i, 1)]).unwrap();
        ring.write((index, block));
        newest = index;
    }
    for back in 0..8_u32 {
        let index = (newest + 8 - back) % 8;
        let mut rotten = ring.clone();
        rotten.blocks.insert(index, Some([0x5a; 4096]));
        let mut unreadable = ring.clone();
        unreadable.blocks.insert(index, None);
        match back {
            // It may have been durable.
            0 => {
                assert!(rotten.recover().unwrap_err().why.contains("the newest block"));
                assert!(unreadable.recover().unwrap_err().why.contains("the newest block"));
            }
            // Two transactions make the whole picture.
            1 => {
                let damaged = rotten.recover().unwrap_err();
                assert_eq!(damaged.next_sequence, log.next_sequence());
                assert!(unreadable.recover().is_err());
            }
            // Here the next transaction would go, perhaps has gone.
            7 => {
                assert!(rotten.recover().is_err());
                assert!(unreadable.recover().is_err());
            }
            _ => {
                assert_eq!(rotten.recover().unwrap().log, log);
                let found = unreadable.recover().unwrap();
                assert_eq!(found.log, log);
                assert_eq!(found.unused, [AlDamage { index, error: BlockError::Unreadable }]);
            }
        }
    }
}

#[test]
fn an_old_slice_does_not_fill_a_gap() {
    let (mut ring, mut log) = Ring::fresh(1500, 8);
    for i in 0..11 {
        ring.write(log.encode_transaction(&[set(i, 1)]).unwrap());
    }
    // The newest slice and the fourth newest name every slot, but what was changed between is lost.
    for back in [2, 3] {
        let index = u32::try_from((log.next_sequence() - back) % 8).unwrap();
        ring.write((index, [0x5a; 4096]));
    }
    assert!(ring.recover().is_err());
}

#[test]
fn a_damaged_log_is_formatted_above_what_it_had() {
    let (mut ring, mut log) = Ring::fresh(1500, 3);
    for i in 0..5 {
        ring.write(log.encode_transaction(&[set(i, 1)]).unwrap());
    }
    let lost = u32::try_from((log.next_sequence() - 2) % 3).unwrap();
    ring.blocks.insert(lost, None);
    let damaged = ring.recover().unwrap_err();
    let mut fresh = AlLog::new(RESOURCE, &ring.layout, damaged.next_sequence);
    for block in fresh.format() {
        ring.write(block);
    }
    assert_eq!(ring.recover().unwrap().log, fresh);
    assert_eq!(fresh.extents().count(), 0);
}

/// Transactions with slots of a log of 1000 (two blocks of context) or 20 slots.
fn histories() -> impl Strategy<Value = (u16, u32, Vec<Vec<AlUpdate>>)> {
    prop_oneof![Just((20_u16, 2_u32)), Just((1000, 3)), Just((2500, 4)), Just((20, 8))]
        .prop_flat_map(|(slots, blocks)| {
            let update = (0..slots, proptest::option::of(0_u32..300_000))
                .prop_map(|(slot, extent)| AlUpdate { slot, extent });
            let transaction = proptest::collection::vec(update, 0..=8);
            (Just(slots), Just(blocks), proptest::collection::vec(transaction, 1..24))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn after_a_crash_at_any_point_the_log_is_as_before_or_after(
        (slots, blocks, history) in histories(),
        cut in 0_usize..4096,
    ) {
        let (mut ring, mut log) = Ring::fresh(slots, blocks);
        let mut model = vec![None; usize::from(slots)];
        for updates in history {
            let before = model.clone();
            for update in &updates {
                model[usize::from(update.slot)] = update.extent;
            }
            let (index, block) = log.encode_transaction(&updates).unwrap();
            // The write was lost: the state before it.
            let found = ring.recover().unwrap().log;
            prop_assert_eq!(found.slots(), &before[..]);
            // The block is rotten: its first sector has the updates, or nothing is sure.
            let mut torn = ring.clone();
            let mut mixed = block;
            mixed[cut..].fill(0xee);
            torn.write((index, mixed));
            match torn.recover() {
                Ok(found) => {
                    prop_assert!(cut >= 512);
                    prop_assert_eq!(found.log.slots(), &model[..]);
                    prop_assert_eq!(found.unused.len(), 1);
                    prop_assert_eq!(found.again, Some((index, block)));
                }
                Err(_) => prop_assert!(cut < 512),
            }
            // The write came through.
            ring.write((index, block));
            let found = ring.recover().unwrap().log;
            prop_assert_eq!(found.slots(), &model[..]);
            prop_assert_eq!(&found, &log);
        }
    }

    #[test]
    fn garbage_never_panics(
        noise in proptest::collection::vec(any::<u8>(), 4096),
        edits in proptest::collection::vec((40_usize..4096, any::<u8>()), 1..6),
        which in 0_u32..12,
    ) {
        let (mut ring, _) = Ring::fresh(2000, 8);
        let mut block = ring.blocks[&(which % 8)].unwrap();
        for (at, byte) in edits {
            block[at] = byte;
        }
        block[12..16].fill(0);
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        ring.blocks.insert(which, Some(block));
        let _ = ring.recover();
        ring.write((which % 8, noise.try_into().unwrap()));
        let _ = ring.recover();
    }
}
