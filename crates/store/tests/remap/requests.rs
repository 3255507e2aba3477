//! Reads, writes, zeroes, flushes over bad blocks.

use bytes::Bytes;
use holdfast_format::remap::EntryState;
use holdfast_store::{
    BadSector, DiskErrorKind, DiskOp, OpId, Outcome, RemapEntry, RemapOp, SpareFill,
};

use crate::bed::{BLOCK, Bed, at, blocks, slot_offset};

#[test]
fn a_write_to_a_bad_block_goes_to_the_spare_and_neighbours_stay() {
    let bed = Bed::new(64, 4096, &[16]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(10, 1), BadSector::Forever);
    rig.write(blocks(10, 1), 2);
    assert_eq!(rig.fills(blocks(9, 3)), [1, 2, 1]);
    let stats = rig.stats();
    assert_eq!((stats.mapped, stats.placed, stats.free, stats.write_errors), (1, 1, 15, 1));
    drop(rig);
    let mut rig = bed.open();
    rig.spoil(blocks(10, 1), BadSector::Forever);
    assert_eq!(rig.fills(blocks(0, 64))[8..13], [1, 1, 2, 1, 1]);
    assert_eq!(rig.stats().hits, 0, "one read, in pieces");
    assert_eq!(rig.fills(blocks(10, 1)), [2]);
    assert_eq!(rig.stats().hits, 1);
}

#[test]
fn a_long_write_over_bad_blocks_is_split_and_all_of_it_is_written() {
    let bed = Bed::new(256, 4096, &[64]);
    let mut rig = bed.open();
    let bad = [0, 7, 8, 9, 77, 78, 200, 255];
    bad.iter().for_each(|block| rig.spoil(blocks(*block, 1), BadSector::Forever));
    rig.write(blocks(0, 256), 5);
    assert!(rig.fills(blocks(0, 256)).iter().all(|fill| *fill == 5));
    assert_eq!(rig.stats().mapped, bad.len() as u64);
    let entries: Vec<_> =
        rig.disk.remap_entries().map(|entry| entry.range.offset / BLOCK).collect();
    let mut sorted = entries.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, bad);
}

#[test]
fn a_run_of_bad_blocks_gets_a_run_of_slots() {
    let bed = Bed::new(2048, 4096, &[1200]);
    let mut rig = bed.open();
    rig.spoil(blocks(100, 1000), BadSector::Forever);
    rig.write(blocks(0, 2048), 3);
    assert!(rig.fills(blocks(0, 2048)).iter().all(|fill| *fill == 3));
    assert_eq!(rig.stats().mapped, 1000);
    let before = rig.stats().hits;
    assert_eq!(rig.fills(blocks(100, 1000)).len(), 1000);
    assert_eq!(rig.stats().hits, before + 1, "one request to the spare");
    assert_eq!(bed.open().fills(blocks(99, 1002)), vec![3; 1002]);
}

#[test]
fn a_failed_read_names_exactly_the_bad_blocks_and_changes_nothing() {
    let bed = Bed::new(256, 4096, &[16]);
    let mut rig = bed.open();
    rig.write(blocks(0, 256), 4);
    for block in [3, 4, 100, 255] {
        rig.spoil(blocks(block, 1), BadSector::UntilWritten);
    }
    let partial = rig.partial(blocks(0, 256));
    assert_eq!(partial.bad, [blocks(3, 2), blocks(100, 1), blocks(255, 1)]);
    for (block, data) in partial.data.chunks(4096).enumerate() {
        let bad = partial.bad.iter().any(|range| range.contains(blocks(block as u64, 1)));
        assert!(bad || data.iter().all(|byte| *byte == 4));
    }
    assert_eq!(rig.disk.partial(OpId(0)), None, "told once");
    assert_eq!(rig.stats().mapped, 0, "a read never maps");
    let partial = rig.partial(at(3 * BLOCK + 512, 1024));
    assert_eq!(partial.bad, [at(3 * BLOCK + 512, 1024)], "inside of what was asked for");
    assert_eq!(rig.partial(blocks(4, 1)).bad, [blocks(4, 1)], "again and again");
}

#[test]
fn small_units_move_only_what_is_bad() {
    let bed = Bed::new(16, 512, &[16]);
    let mut rig = bed.open();
    rig.write(blocks(0, 16), 1);
    rig.spoil(at(5 * BLOCK + 1024, 512), BadSector::Forever);
    rig.write(blocks(5, 1), 2);
    assert_eq!(rig.stats().mapped, 1);
    assert_eq!(rig.fills(blocks(4, 3)), [1, 2, 1]);
    assert_eq!(rig.disk.remap_entries().next().unwrap().range, at(5 * BLOCK + 1024, 512));
}

#[test]
fn a_part_of_a_unit_is_placed_with_its_rest() {
    let bed = Bed::new(64, 4096, &[16]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(5, 1), BadSector::Stuck);
    rig.write(at(5 * BLOCK + 512, 1024), 2);
    let data = rig.try_read(blocks(5, 1)).unwrap();
    assert!(data[..512].iter().chain(&data[1536..]).all(|byte| *byte == 1));
    assert!(data[512..1536].iter().all(|byte| *byte == 2));
    assert_eq!(rig.stats().mapped, 1);
    // What cannot be read cannot be completed: an error, and never something invented.
    rig.spoil(blocks(6, 1), BadSector::Forever);
    assert_eq!(rig.try_write(at(6 * BLOCK, 512), 3).unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!(rig.stats().mapped, 1);
    rig.write(at(5 * BLOCK, 512), 7);
    let data = rig.try_read(blocks(5, 1)).unwrap();
    assert_eq!([data[0], data[511], data[512], data[4095]], [7, 7, 2, 1]);
}

#[test]
fn zeroes_and_discards_reach_the_slots() {
    let bed = Bed::new(64, 4096, &[16]);
    let mut rig = bed.open();
    rig.spoil(blocks(8, 2), BadSector::Forever);
    rig.write(blocks(0, 64), 1);
    let range = blocks(4, 8);
    let zeroes = DiskOp::WriteZeroes { range, unmap: true, fua: true };
    assert_eq!(rig.disk.execute(zeroes), Ok(Outcome::Done));
    let mut expected = [1; 16];
    expected[4..12].fill(0);
    assert_eq!(rig.fills(blocks(0, 16)), expected);
    rig.write(blocks(0, 64), 2);
    let discard = DiskOp::Discard { range: blocks(7, 2) };
    assert_eq!(rig.disk.execute(discard), Ok(Outcome::Done));
    assert_eq!(rig.fills(blocks(6, 4)), [2, 0, 0, 2]);
    // Zeroes that meet a bad block for the first time.
    rig.spoil(blocks(20, 1), BadSector::Forever);
    let zeroes = DiskOp::WriteZeroes { range: blocks(18, 5), unmap: false, fua: false };
    assert_eq!(rig.disk.execute(zeroes), Ok(Outcome::Done));
    assert_eq!(rig.fills(blocks(17, 7)), [2, 0, 0, 0, 0, 0, 2]);
    assert_eq!(rig.stats().mapped, 3);
}

#[test]
fn a_full_spare_says_so_and_keeps_what_it_has() {
    let bed = Bed::new(256, 4096, &[100]);
    let mut rig = bed.open();
    rig.spoil(blocks(0, 256), BadSector::Stuck);
    rig.main.mend(blocks(0, 1));
    rig.main.mend(blocks(255, 1));
    let levels = [(79, SpareFill::Fine), (80, SpareFill::Low), (95, SpareFill::Critical)];
    for (count, level) in levels.into_iter().chain([(100, SpareFill::Full)]) {
        rig.write(blocks(1, count), 1);
        assert_eq!((rig.stats().mapped, rig.stats().fill), (count, level));
    }
    let error = rig.try_write(blocks(101, 1), 2).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::SpareFull);
    assert!(error.to_string().contains("no spare has room"), "{error}");
    rig.write(blocks(1, 100), 3);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(1, 100)), vec![3; 100]);
    assert_eq!(rig.fills(blocks(101, 1)), [0]);
}

#[test]
fn a_bad_slot_is_replaced_and_never_used_again() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.spoil(blocks(1, 3), BadSector::Forever);
    // Slots 0 and 2 take nothing, and what goes to slot 3 does not read back.
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 0), BLOCK), BadSector::Forever);
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 2), BLOCK), BadSector::Stuck);
    let lie = format!("write:range={}+{BLOCK}:drop", slot_offset(1, BLOCK, 3));
    rig.spares[0].add(lie.parse().unwrap()).unwrap();
    rig.write(blocks(1, 3), 7);
    assert_eq!(rig.fills(blocks(0, 5)), [0, 7, 7, 7, 0]);
    let stats = rig.stats();
    assert_eq!((stats.mapped, stats.bad_slots, stats.free), (3, 3, 2));
    // A slot that fails later.
    let holds = |e: &RemapEntry| e.range == blocks(1, 1) && e.state == EntryState::Mapped;
    let slot = rig.disk.remap_entries().find(holds).unwrap().slot;
    let offset = slot_offset(1, BLOCK, u64::from(slot));
    rig.spares[0].spoil(at(offset, BLOCK), BadSector::Stuck);
    rig.write(blocks(0, 8), 8);
    assert_eq!((rig.stats().mapped, rig.stats().bad_slots, rig.stats().free), (3, 4, 1));
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(0, 9)), [8, 8, 8, 8, 8, 8, 8, 8, 0]);
    rig.spoil(blocks(30, 1), BadSector::Forever);
    rig.write(blocks(30, 1), 9);
    assert_eq!((rig.stats().mapped, rig.stats().bad_slots, rig.stats().free), (4, 4, 0));
    assert_eq!(rig.fills(blocks(30, 1)), [9]);
}

#[test]
fn a_lost_block_fails_until_all_of_it_is_written() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    assert_eq!(rig.ask(RemapOp::MarkLost { range: blocks(4, 3) }).lost, 3);
    assert_eq!(rig.partial(blocks(0, 10)).bad, [blocks(4, 3)]);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.partial(blocks(5, 1)).bad, [blocks(5, 1)], "after a restart, too");
    assert_eq!(rig.try_write(at(4 * BLOCK, 512), 2).unwrap_err().kind, DiskErrorKind::Io);
    rig.write(blocks(4, 1), 2);
    rig.spoil(blocks(5, 1), BadSector::Forever);
    rig.write(at(5 * BLOCK, BLOCK), 3);
    assert_eq!(rig.partial(blocks(0, 10)).bad, [blocks(6, 1)]);
    assert_eq!((rig.stats().lost, rig.stats().mapped, rig.stats().free), (1, 1, 6));
    let zeroes = DiskOp::WriteZeroes { range: blocks(6, 1), unmap: false, fua: false };
    assert_eq!(rig.disk.execute(zeroes), Ok(Outcome::Done));
    assert_eq!(rig.fills(blocks(3, 5)), [1, 2, 3, 0, 1]);
    drop(rig);
    assert_eq!(bed.open().fills(blocks(3, 5)), [1, 2, 3, 0, 1]);
}

#[test]
fn a_block_that_could_not_be_read_is_tried_and_its_writes_are_looked_at() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(9, 1), BadSector::Forever);
    rig.write(blocks(9, 1), 4);
    let unread = |range| RemapOp::MarkUnread { range };
    assert_eq!(rig.ask(unread(blocks(4, 6))).lost, 5, "what is in a slot stays there");
    for _ in 0..2 {
        assert_eq!(rig.fills(blocks(3, 7)), [1, 1, 1, 1, 1, 1, 4]);
        assert_eq!((rig.stats().lost, rig.stats().mapped), (5, 1));
        drop(rig);
        rig = bed.open();
    }
    rig.spoil(blocks(5, 1), BadSector::Forever);
    assert_eq!(rig.partial(blocks(3, 7)).bad, [blocks(5, 1)]);
    rig.write(blocks(5, 1), 2);
    let data = Bytes::from(vec![1; 4096]);
    rig.ask(RemapOp::Repair { range: blocks(6, 1), data });
    assert_eq!((rig.stats().lost, rig.stats().mapped), (3, 2));
    assert_eq!(rig.fills(blocks(3, 7)), [1, 1, 2, 1, 1, 1, 4]);
    // What may be old is not tried.
    assert_eq!(rig.ask(RemapOp::MarkLost { range: blocks(7, 1) }).lost, 1);
    assert_eq!(rig.ask(unread(blocks(7, 1))).lost, 0);
    assert_eq!(rig.partial(blocks(3, 7)).bad, [blocks(7, 1)]);
    drop(rig);
    assert_eq!(bed.open().partial(blocks(3, 7)).bad, [blocks(7, 1)]);
}

#[test]
fn errors_that_are_not_of_the_medium_are_passed_on() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.main.add("write:count=1:error=ENOSPC".parse().unwrap()).unwrap();
    assert_eq!(rig.try_write(blocks(3, 1), 1).unwrap_err().kind, DiskErrorKind::NoSpace);
    rig.main.add("write:count=1:error=ETIMEDOUT".parse().unwrap()).unwrap();
    assert_eq!(rig.try_write(blocks(3, 1), 1).unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!((rig.stats().mapped, rig.stats().free), (0, 8));
}

#[test]
fn a_disk_that_is_gone_does_not_fill_the_spare() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.main.add("any:error=EIO".parse().unwrap()).unwrap();
    assert_eq!(rig.try_write(blocks(3, 2), 1).unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!((rig.stats().mapped, rig.stats().free), (0, 8));
    rig.main.clear();
    rig.write(blocks(3, 2), 1);
}

#[test]
fn a_flush_reaches_each_spare_that_was_written_and_a_failed_one_ends_the_disk() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.write(blocks(3, 1), 1);
    let rule = rig.spares[0].add("flush:after=1000:drop".parse().unwrap()).unwrap();
    assert_eq!(rig.disk.execute(DiskOp::Flush), Ok(Outcome::Done));
    assert_eq!(rig.spares[0].hits(rule).selected, 0, "nothing was written to it since");
    rig.write(blocks(3, 1), 2);
    assert_eq!(rig.disk.execute(DiskOp::Flush), Ok(Outcome::Done));
    assert_eq!(rig.spares[0].hits(rule).selected, 1);
    let data = Bytes::from(vec![3; 4096]);
    let durable = DiskOp::Write { range: blocks(3, 1), data, fua: true };
    assert_eq!(rig.disk.execute(durable), Ok(Outcome::Done));
    assert_eq!(rig.spares[0].hits(rule).selected, 2, "durable means there, too");
    rig.spares[0].clear();
    rig.spares[0].add("flush:error=EIO".parse().unwrap()).unwrap();
    rig.write(blocks(3, 1), 4);
    let error = rig.disk.execute(DiskOp::Flush).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::FlushFailed);
    assert_eq!(rig.try_read(blocks(0, 1)).unwrap_err().kind, DiskErrorKind::Poisoned);
}

#[test]
fn a_flush_waits_for_one_of_the_spare_that_is_under_way() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.spoil(blocks(3, 2), BadSector::Forever);
    rig.write(blocks(3, 1), 1);
    rig.write(blocks(3, 1), 2);
    // The next flush is that of another block's slot. It may end in an error, for all one knows.
    let rule = rig.spares[0].add("flush:count=1:hold".parse().unwrap()).unwrap();
    let data = Bytes::from(vec![3; 4096]);
    let write = DiskOp::Write { range: blocks(4, 1), data, fua: false };
    assert_eq!(rig.disk.submit(OpId(1), write), None);
    let mut done = Vec::new();
    let drive = |rig: &mut crate::bed::Rig, done: &mut Vec<_>| {
        (0..8).for_each(|_| rig.disk.completions(done));
    };
    drive(&mut rig, &mut done);
    assert_eq!((done.len(), rig.spares[0].held()), (0, 1), "the flush of its slot is held up");
    assert_eq!(rig.disk.submit(OpId(2), DiskOp::Flush), None);
    drive(&mut rig, &mut done);
    assert_eq!(done, [], "nobody knows yet whether the second write is durable");
    rig.spares[0].release();
    drive(&mut rig, &mut done);
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    assert_eq!((done.len(), rig.disk.in_flight()), (2, 0));
    assert!(rig.spares[0].hits(rule).selected > 1, "and it was flushed for the second time");
    // The second one fails: so does who waits for it.
    rig.write(blocks(3, 1), 4);
    rig.spares[0].clear();
    for rule in ["flush:count=1:hold", "flush:error=EIO"] {
        rig.spares[0].add(rule.parse().unwrap()).unwrap();
    }
    let what = RemapOp::Move { range: blocks(9, 1), imported: false };
    assert_eq!(rig.disk.remap(OpId(3), what), None);
    drive(&mut rig, &mut done);
    assert_eq!(rig.disk.submit(OpId(4), DiskOp::Flush), None);
    rig.spares[0].release();
    drive(&mut rig, &mut done);
    assert!(
        rig.disk.is_poisoned() && done[2..].iter().all(|completion| completion.result.is_err())
    );
}

#[test]
fn a_table_that_cannot_be_made_durable_ends_the_disk() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.spares[0].add("flush:after=1:error=EIO".parse().unwrap()).unwrap();
    assert_eq!(rig.try_write(blocks(3, 1), 1).unwrap_err().kind, DiskErrorKind::FlushFailed);
    assert!(rig.disk.is_poisoned());
}

#[test]
fn requests_wait_for_work_on_their_blocks_and_nobody_else_does() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(3, 1), BadSector::Forever);
    // The slot is written and read back, and then the table is held up.
    rig.spares[0].add("write:range=0+8192:hold".parse().unwrap()).unwrap();
    let write = |block, fill| {
        let data = Bytes::from(vec![fill; 4096]);
        DiskOp::Write { range: blocks(block, 1), data, fua: false }
    };
    assert_eq!(rig.disk.submit(OpId(1), write(3, 2)), None);
    let mut done = Vec::new();
    for _ in 0..8 {
        rig.disk.completions(&mut done);
    }
    assert_eq!((done.len(), rig.spares[0].held()), (0, 1), "it waits for the table");
    let read = |block| DiskOp::Read { range: blocks(block, 1), holes: false };
    assert_eq!(rig.disk.submit(OpId(2), read(3)), None);
    assert_eq!(rig.disk.submit(OpId(3), write(3, 3)), None);
    assert!(rig.disk.submit(OpId(4), read(4)).is_some(), "a neighbour");
    rig.spares[0].clear();
    rig.spares[0].release();
    while rig.disk.in_flight() > 0 {
        rig.disk.wait(&mut done, std::time::Duration::from_secs(10));
    }
    let ends: Vec<_> = done.iter().map(|completion| completion.op.0).collect();
    assert_eq!(ends, [1, 2, 3]);
    let data = Bytes::from(vec![2; 4096]);
    assert_eq!(done[1].result, Ok(Outcome::Data(data)));
    assert_eq!(rig.fills(blocks(2, 3)), [1, 3, 1]);
}

#[test]
fn a_late_write_is_not_lost_when_its_block_is_moved() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.main.add("write:count=1:hold".parse().unwrap()).unwrap();
    let data = Bytes::from(vec![6; 4096]);
    let write = DiskOp::Write { range: blocks(3, 1), data, fua: false };
    assert_eq!(rig.disk.submit(OpId(1), write), None);
    let what = RemapOp::Move { range: blocks(3, 1), imported: false };
    assert_eq!(rig.disk.remap(OpId(2), what), None, "it waits for the write");
    rig.main.release();
    let mut done = Vec::new();
    while rig.disk.in_flight() > 0 {
        rig.disk.wait(&mut done, std::time::Duration::from_secs(10));
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(rig.fills(blocks(3, 1)), [6]);
    assert_eq!(rig.stats().mapped, 1);
}

#[test]
fn a_write_waits_while_its_block_is_moved() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(3, 1), 1);
    rig.spares[0].add("write:count=1:hold".parse().unwrap()).unwrap();
    let what = RemapOp::Move { range: blocks(3, 1), imported: false };
    assert_eq!(rig.disk.remap(OpId(1), what), None, "its slot is being written");
    let data = Bytes::from(vec![2; 4096]);
    let write = DiskOp::Write { range: blocks(3, 1), data, fua: false };
    assert_eq!(rig.disk.submit(OpId(2), write), None, "it must not go to the old place");
    rig.spares[0].release();
    let mut done = Vec::new();
    while rig.disk.in_flight() > 0 {
        rig.disk.wait(&mut done, std::time::Duration::from_secs(10));
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!((rig.stats().mapped, rig.fills(blocks(3, 1))), (1, vec![2]));
}
