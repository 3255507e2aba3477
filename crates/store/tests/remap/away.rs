//! Disks that drop off for a moment: none of their blocks is lost by that.

use holdfast_format::remap::SpareId;
use holdfast_store::{BadSector, DiskErrorKind, FaultHandle, RemapOp};

use crate::bed::{BLOCK, Bed, Rig, at, blocks, slot_offset};

const FIRST: SpareId = SpareId([1; 16]);

fn add(handle: &FaultHandle, rule: &str) {
    handle.add(rule.parse().unwrap()).unwrap();
}

fn import(first: u64, count: u64) -> RemapOp {
    RemapOp::Move { range: blocks(first, count), imported: true }
}

#[test]
fn blocks_of_a_disk_that_is_away_are_not_lost_when_they_are_moved() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    add(&rig.main, "any:error=EIO");
    let (result, report) = rig.disk.remap_now(import(4, 4));
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!((report.placed, report.lost, report.failed), (0, 0, 4));
    assert_eq!((rig.stats().lost, rig.stats().free), (0, 8));
    rig.main.clear();
    // Back before it was asked: what failed is read again.
    add(&rig.main, "read:count=4:error=EIO");
    let report = rig.ask(import(4, 4));
    assert_eq!((report.placed, report.lost), (4, 0));
    assert_eq!(rig.fills(blocks(3, 6)), [1; 6]);
    // An error that no bad block makes.
    add(&rig.main, &format!("read:range={}+{BLOCK}:error=ENXIO", 20 * BLOCK));
    let (result, report) = rig.disk.remap_now(import(19, 3));
    assert!(result.is_err());
    assert_eq!((report.placed, report.lost, report.failed), (2, 0, 1));
}

#[test]
fn a_moved_block_that_could_not_be_read_is_had_when_it_can_be() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(5, 1), BadSector::Forever);
    let report = rig.ask(import(4, 3));
    assert_eq!((report.placed, report.lost), (2, 1));
    assert_eq!(rig.partial(blocks(3, 5)).bad, [blocks(5, 1)]);
    // Drives get a sector at the hundredth attempt.
    rig.main.mend(blocks(5, 1));
    assert_eq!(rig.fills(blocks(3, 5)), [1; 5]);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!((rig.stats().lost, rig.fills(blocks(3, 5))), (1, vec![1; 5]));
    rig.write(blocks(5, 1), 2);
    assert_eq!((rig.stats().lost, rig.fills(blocks(3, 5))), (0, vec![1, 1, 2, 1, 1]));
}

/// Four blocks in the first of two spares; what the main disk has of them is old.
fn in_the_first_of_two() -> (Bed, Rig) {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(4, 4), BadSector::Stuck);
    rig.write(blocks(4, 4), 2);
    assert_eq!(rig.disk.spares()[0].mapped, 4);
    (bed, rig)
}

#[test]
fn blocks_of_a_spare_that_is_away_are_not_lost_when_it_is_emptied() {
    let (bed, mut rig) = in_the_first_of_two();
    let empty = || RemapOp::RemoveSpare { spare: FIRST, empty: true };
    add(&rig.spares[0], "read:error=EIO");
    let (result, report) = rig.disk.remap_now(empty());
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!((report.placed, report.lost, report.failed), (0, 0, 4));
    assert!(!rig.disk.is_poisoned() && !rig.disk.spares()[0].leaving);
    rig.spares[0].clear();
    assert_eq!(rig.fills(blocks(3, 6)), [1, 2, 2, 2, 2, 1]);
    // Back before it was asked.
    let slots = format!("read:range={}+{}:count=4:error=EIO", slot_offset(1, BLOCK, 0), 4 * BLOCK);
    add(&rig.spares[0], &slots);
    let report = rig.ask(empty());
    assert_eq!((report.placed, report.lost), (4, 0));
    drop(rig);
    assert_eq!(bed.open().fills(blocks(3, 6)), [1, 2, 2, 2, 2, 1]);
}

#[test]
fn what_a_spare_that_answers_cannot_read_is_lost_alone() {
    let (bed, mut rig) = in_the_first_of_two();
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 1), BLOCK), BadSector::Forever);
    // One copy of its header cannot be read either: that is no reason to think that it is gone.
    rig.spares[0].spoil(at(0, BLOCK), BadSector::UntilWritten);
    let report = rig.ask(RemapOp::RemoveSpare { spare: FIRST, empty: true });
    assert_eq!((report.placed, report.lost), (3, 1));
    assert_eq!(rig.partial(blocks(3, 6)).bad, [blocks(5, 1)], "never what the main disk has");
    drop(rig);
    assert_eq!(bed.open().partial(blocks(3, 6)).bad, [blocks(5, 1)]);
}
