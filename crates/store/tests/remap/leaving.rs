//! Spares that go while others use them.

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{BadSector, Completion, DiskOp, OpId, RemapOp};

use crate::bed::{Bed, Rig, blocks};

const FIRST: SpareId = SpareId([1; 16]);

fn drive(rig: &mut Rig, done: &mut Vec<Completion>) {
    (0..32).for_each(|_| rig.disk.completions(done));
}

fn ends(done: &[Completion]) -> Vec<(u64, bool)> {
    let end = |completion: &Completion| (completion.op.0, completion.result.is_ok());
    let mut ends: Vec<_> = done.iter().map(end).collect();
    ends.sort_unstable();
    ends
}

fn add(handle: &holdfast_store::FaultHandle, rule: &str) {
    handle.add(rule.parse().unwrap()).unwrap();
}

/// A block that takes no writes any more, and one whose write has taken a slot of the first of two
/// spares: the slot is being written.
fn while_a_block_is_placed() -> (Bed, Rig, Vec<Completion>) {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(3, 1), BadSector::Stuck);
    add(&rig.spares[0], "write:count=1:hold");
    let data = Bytes::from(vec![2; 4096]);
    let write = DiskOp::Write { range: blocks(3, 1), data, fua: false };
    assert_eq!(rig.disk.submit(OpId(1), write), None);
    let mut done = Vec::new();
    drive(&mut rig, &mut done);
    assert_eq!((done.len(), rig.spares[0].held()), (0, 1));
    (bed, rig, done)
}

#[test]
fn a_spare_does_not_leave_with_a_block_that_is_being_placed_in_it() {
    let (mut bed, mut rig, mut done) = while_a_block_is_placed();
    // The header of the other spare is what is written first.
    add(&rig.spares[1], "write:range=0+4096:hold");
    let what = RemapOp::RemoveSpare { spare: FIRST, empty: true };
    assert_eq!(rig.disk.remap(OpId(2), what), None);
    drive(&mut rig, &mut done);
    rig.spares[0].release();
    drive(&mut rig, &mut done);
    assert_eq!(ends(&done), [(1, true)], "the write is answered");
    rig.spares[1].clear();
    rig.spares[1].release();
    drive(&mut rig, &mut done);
    assert_eq!(ends(&done), [(1, true), (2, true)]);
    assert_eq!((rig.disk.spares().len(), rig.disk.in_flight()), (1, 0));
    assert_eq!(rig.fills(blocks(2, 3)), [1, 2, 1], "it has moved on to the other");
    drop(rig);
    bed.spares.remove(0);
    assert_eq!(bed.open().fills(blocks(2, 3)), [1, 2, 1], "after a restart, too");
}

#[test]
fn a_spare_that_is_not_to_be_emptied_stays_when_a_block_comes_into_it_meanwhile() {
    let (bed, mut rig, mut done) = while_a_block_is_placed();
    let what = RemapOp::RemoveSpare { spare: FIRST, empty: false };
    assert_eq!(rig.disk.remap(OpId(2), what), None, "it holds nothing yet");
    drive(&mut rig, &mut done);
    assert!(done.is_empty());
    rig.spares[0].release();
    drive(&mut rig, &mut done);
    assert_eq!(ends(&done), [(1, true), (2, false)]);
    assert_eq!(rig.disk.remap_report(OpId(2)).unwrap().busy, 1);
    // It goes on as before.
    assert!(rig.disk.spares().iter().all(|spare| !spare.leaving));
    rig.spoil(blocks(4, 1), BadSector::Stuck);
    rig.write(blocks(4, 1), 3);
    assert_eq!(rig.disk.spares()[0].mapped, 2);
    drop(rig);
    assert_eq!(bed.open().fills(blocks(2, 4)), [1, 2, 3, 1]);
}

#[test]
fn a_flush_that_is_under_way_on_a_spare_that_leaves_is_answered() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    // The last flush of the removal, behind the second copy of the header.
    add(&rig.spares[0], "flush:after=1:hold");
    let what = RemapOp::RemoveSpare { spare: FIRST, empty: true };
    assert_eq!(rig.disk.remap(OpId(1), what), None);
    let mut done = Vec::new();
    drive(&mut rig, &mut done);
    assert_eq!((done.len(), rig.spares[0].held()), (0, 1));
    assert_eq!(rig.disk.submit(OpId(2), DiskOp::Flush), None);
    drive(&mut rig, &mut done);
    for _ in 0..2 {
        rig.spares[0].release();
        drive(&mut rig, &mut done);
    }
    assert_eq!(ends(&done), [(1, true), (2, true)]);
    assert_eq!((rig.disk.spares().len(), rig.disk.in_flight()), (1, 0));
}
