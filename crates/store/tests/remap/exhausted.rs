//! No slot is to be had: what the tables say of the units stays right.

use bytes::Bytes;
use holdfast_store::{BadSector, DiskErrorKind, RemapOp};

use crate::bed::{BLOCK, Bed, at, blocks, slot_offset};

#[test]
fn a_lost_block_stays_lost_when_its_slot_fails_and_there_is_no_other() {
    let bed = Bed::new(64, 4096, &[1]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    assert_eq!(rig.ask(RemapOp::MarkLost { range: blocks(4, 1) }).lost, 1);
    rig.spoil(blocks(4, 1), BadSector::Forever);
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 0), BLOCK), BadSector::Forever);
    for fill in [2, 3] {
        let error = rig.try_write(blocks(4, 1), fill).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::SpareFull);
        assert_eq!((rig.stats().lost, rig.stats().bad_slots), (1, 0), "its entry stays");
    }
    assert_eq!(rig.stats().spare_errors, 2, "and the errors are counted");
    assert_eq!(rig.partial(blocks(3, 3)).bad, [blocks(4, 1)]);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.partial(blocks(3, 3)).bad, [blocks(4, 1)], "after a restart, too");
    rig.write(blocks(4, 1), 5);
    assert_eq!(rig.fills(blocks(3, 3)), [1, 5, 1]);
}

#[test]
fn a_block_stays_in_a_slot_with_a_weak_table_when_no_better_one_takes_it() {
    // Two blocks of the table: 168 slots each.
    let bed = Bed::new(64, 4096, &[300]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    assert_eq!(rig.ask(RemapOp::MarkLost { range: blocks(4, 1) }).lost, 1);
    let copy_b = bed.spares[0].size() - 3 * BLOCK;
    rig.spares[0].spoil(at(copy_b, BLOCK), BadSector::Forever);
    rig.spares[0].spoil(at(slot_offset(2, BLOCK, 168), 132 * BLOCK), BadSector::Forever);
    rig.spoil(blocks(4, 2), BadSector::Forever);
    // One that has a slot, though it holds nothing yet, and one that has none.
    rig.write(blocks(4, 2), 9);
    let stats = rig.stats();
    assert_eq!((stats.mapped, stats.lost, stats.weak_blocks), (2, 0, 1));
    let mut slots: Vec<_> = rig.disk.remap_entries().map(|entry| entry.slot).collect();
    slots.sort_unstable();
    assert_eq!(slots[..2], [0, 1], "the rest are those that failed");
    // Nobody else gets these slots.
    rig.spares[0].mend(at(slot_offset(2, BLOCK, 168), 132 * BLOCK));
    assert_eq!(rig.ask(RemapOp::Move { range: blocks(20, 3), imported: false }).placed, 3);
    assert_eq!(rig.fills(blocks(3, 4)), [1, 9, 9, 1]);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(3, 4)), [1, 9, 9, 1]);
    assert_eq!((rig.stats().mapped, rig.stats().lost), (5, 0));
}

#[test]
fn slots_of_a_spare_on_a_full_filesystem_are_not_bad() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    assert_eq!(rig.ask(RemapOp::MarkLost { range: blocks(9, 1) }).lost, 1);
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.spoil(blocks(9, 1), BadSector::Forever);
    let all = format!("write:range={}+{}:error=ENOSPC", slot_offset(1, BLOCK, 0), 8 * BLOCK);
    rig.spares[0].add(all.parse().unwrap()).unwrap();
    for (block, fill) in [(3, 2), (9, 2), (3, 3)] {
        let error = rig.try_write(blocks(block, 1), fill).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::NoSpace, "{error}");
        let stats = rig.stats();
        assert_eq!((stats.free, stats.lost, stats.bad_slots, stats.mapped), (7, 1, 0, 0));
    }
    // There is room again.
    rig.spares[0].clear();
    rig.write(blocks(3, 1), 4);
    rig.write(blocks(9, 1), 5);
    assert_eq!((rig.stats().free, rig.stats().bad_slots), (6, 0));
    // A slot that is written again, of a file whose filesystem makes a copy.
    rig.spares[0].add(all.parse().unwrap()).unwrap();
    let data = Bytes::from(vec![6; 4096]);
    let (result, _) = rig.disk.remap_now(RemapOp::Repair { range: blocks(3, 1), data });
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::NoSpace);
    assert_eq!((rig.stats().free, rig.stats().bad_slots), (6, 0));
    assert_eq!(rig.fills(blocks(3, 1)), [4]);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!([rig.fills(blocks(3, 1)), rig.fills(blocks(9, 1))], [[4], [5]]);
}

#[test]
fn where_one_filesystem_is_full_the_other_spares_are_used() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.ask(RemapOp::Move { range: blocks(9, 1), imported: false });
    rig.spoil(blocks(3, 2), BadSector::Forever);
    let all = format!("write:range={}+{}:error=ENOSPC", slot_offset(1, BLOCK, 0), 8 * BLOCK);
    rig.spares[0].add(all.parse().unwrap()).unwrap();
    rig.write(blocks(2, 4), 2);
    let counts = |rig: &crate::bed::Rig| {
        rig.disk.spares().iter().map(|s| (s.mapped, s.bad_slots, s.free)).collect::<Vec<_>>()
    };
    assert_eq!(counts(&rig), [(1, 0, 7), (2, 0, 6)]);
    // One that has a slot there already.
    let data = Bytes::from(vec![6; 4096]);
    assert_eq!(rig.ask(RemapOp::Repair { range: blocks(9, 1), data }).placed, 1);
    assert_eq!(counts(&rig), [(0, 0, 8), (3, 0, 5)]);
    // Some that are there and are written again by a request, all of them or a part.
    rig.spares[0].clear();
    rig.ask(RemapOp::Move { range: blocks(20, 3), imported: false });
    assert_eq!(counts(&rig), [(3, 0, 5), (3, 0, 5)]);
    rig.spares[0].add(all.parse().unwrap()).unwrap();
    rig.write(blocks(19, 3), 7);
    rig.write(at(22 * BLOCK + 512, 512), 8);
    assert_eq!(counts(&rig), [(0, 0, 8), (6, 0, 2)]);
    assert_eq!(rig.stats().spare_errors, 0);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!((rig.fills(blocks(2, 4)), rig.fills(blocks(9, 1))), (vec![2; 4], vec![6]));
    assert_eq!(rig.fills(blocks(18, 4)), [0, 7, 7, 7]);
    let found = rig.try_read(blocks(22, 1)).unwrap();
    assert!(found[512..1024].iter().all(|byte| *byte == 8));
    assert_eq!(found.iter().filter(|byte| **byte != 0).count(), 512);
}

#[test]
fn an_error_that_says_nothing_of_a_block_costs_no_slot() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.ask(RemapOp::Move { range: blocks(9, 1), imported: false });
    rig.ask(RemapOp::MarkLost { range: blocks(12, 1) });
    let counts = |rig: &crate::bed::Rig| {
        rig.disk.spares().iter().map(|s| (s.mapped, s.lost, s.bad_slots)).collect::<Vec<_>>()
    };
    let repair = |rig: &mut crate::bed::Rig, block| {
        let data = Bytes::from(vec![6; 4096]);
        let (result, report) =
            rig.disk.remap_now(RemapOp::Repair { range: blocks(block, 1), data });
        (result.map_err(|error| error.errno), (report.in_place, report.placed, report.failed))
    };
    // The main disk does not take anything for the moment.
    for error in ["EINVAL", "ETIMEDOUT"] {
        for op in ["write", "read"] {
            rig.main.add(format!("{op}:error={error}").parse().unwrap()).unwrap();
            for block in [3, 12] {
                let (result, report) = repair(&mut rig, block);
                assert_eq!((result.is_err(), report), (true, (0, 0, 1)), "{op}, {error}");
            }
            assert!(rig.try_write(blocks(12, 1), 2).is_err());
            rig.main.clear();
        }
        assert_eq!(counts(&rig), [(1, 1, 0), (0, 0, 0)]);
    }
    assert_eq!(rig.partial(blocks(11, 3)).bad, [blocks(12, 1)]);
    // A spare does not: the other one has to.
    let slots = |op: &str, error: &str| {
        let at = slot_offset(1, BLOCK, 0);
        format!("{op}:range={at}+{}:error={error}", 8 * BLOCK).parse().unwrap()
    };
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.spares[0].add(slots("write", "EINVAL")).unwrap();
    rig.write(blocks(3, 1), 3);
    assert_eq!(repair(&mut rig, 9), (Ok(()), (0, 1, 0)));
    assert_eq!(counts(&rig), [(0, 1, 0), (2, 0, 0)]);
    // None does, or one that cannot be read back.
    rig.spares[1].add(slots("read", "ETIMEDOUT")).unwrap();
    rig.spoil(blocks(30, 1), BadSector::Forever);
    for _ in 0..10 {
        let error = rig.try_write(blocks(30, 1), 4).unwrap_err();
        assert_eq!(error.kind, DiskErrorKind::Io, "{error}");
        assert_eq!(repair(&mut rig, 9), (Err(Some(22)), (0, 0, 1)));
    }
    assert_eq!(counts(&rig), [(0, 1, 0), (2, 0, 0)]);
    rig.spares.iter().for_each(holdfast_store::FaultHandle::clear);
    rig.write(blocks(30, 1), 4);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!((rig.fills(blocks(3, 1)), rig.fills(blocks(30, 1))), (vec![3], vec![4]));
    assert_eq!(rig.fills(blocks(9, 1)), [6]);
}
