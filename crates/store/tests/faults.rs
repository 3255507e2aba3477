//! Disks that fail: injected faults, and what a failed flush does to every engine.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{beds, drain, read};
use holdfast_store::{
    BufferPool, Completion, Disk, DiskError, DiskErrorKind, DiskOp, FaultHandle, FaultHits,
    MemoryStore, OpId, Outcome,
};
use holdfast_units::ByteRange;

const SIZE: u64 = 1 << 20;

fn faulty(rules: &[&str]) -> (Disk, FaultHandle, MemoryStore) {
    let store = MemoryStore::new(SIZE);
    let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let disk = Disk::memory(&store, &BufferPool::new(1 << 20)).unwrap();
    let (disk, handle) = disk.with_faults(&rules);
    (disk, handle, store)
}

fn write_op(block: u64, fill: u8, fua: bool) -> DiskOp {
    let range = ByteRange::new(block * 4096, 4096);
    DiskOp::Write { range, data: Bytes::from(vec![fill; 4096]), fua }
}

fn kind(result: Result<Outcome, DiskError>) -> DiskErrorKind {
    result.unwrap_err().kind
}

#[test]
fn a_rule_hits_its_range_after_so_many_and_so_often() {
    let (mut disk, handle, store) = faulty(&["write:range=0+8192:after=1:count=2:error=EIO"]);
    let mut results = Vec::new();
    for block in [0, 5, 1, 0, 1, 0] {
        results.push(disk.execute(write_op(block, 1, false)).map_err(|error| error.errno));
    }
    let (good, bad) = (Ok(Outcome::Done), Err(Some(5)));
    assert_eq!(results, [good.clone(), good.clone(), bad.clone(), bad, good.clone(), good]);
    assert_eq!(handle.hits(0), FaultHits { selected: 5, hit: 2 });
    assert_eq!(store.allocated(), 3 * 4096);
    assert!(disk.execute(DiskOp::Flush).is_ok(), "a failed write does not end the disk");
}

#[test]
fn a_full_filesystem_is_told_apart() {
    let (mut disk, ..) = faulty(&["write:error=ENOSPC"]);
    let error = disk.execute(write_op(1, 1, true)).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::NoSpace);
    assert!(error.to_string().starts_with("write of 4096+4096 failed: no space is left"));
}

#[test]
fn a_torn_write_leaves_its_first_part_and_fails() {
    let (mut disk, _, store) = faulty(&["write:count=1:torn=1000", "read:torn=1"]);
    assert_eq!(kind(disk.execute(write_op(2, 9, true))), DiskErrorKind::Io);
    let mut found = [0; 4096];
    store.read(8192, &mut found);
    assert_eq!(found[..1000], [9; 1000]);
    assert_eq!(found[1000..], [0; 3096]);
    let range = ByteRange::new(0, 4096);
    assert_eq!(kind(disk.execute(DiskOp::Read { range, holes: false })), DiskErrorKind::Io);
}

#[test]
fn a_torn_write_ends_on_a_block_of_the_device() {
    for bed in beds(SIZE).into_iter().filter(|bed| bed.name == "io_uring, direct") {
        let (mut disk, _) = bed.open().with_faults(&["write:count=2:torn=1500".parse().unwrap()]);
        assert_eq!(kind(disk.execute(write_op(0, 9, false))), DiskErrorKind::Io);
        assert_eq!(kind(disk.execute(write_op(1, 9, true))), DiskErrorKind::Io);
        let written = 1500 / disk.info().block_size as usize * disk.info().block_size as usize;
        let found = read(&mut disk, 0, 4096);
        assert!(found[..written].iter().all(|byte| *byte == 9));
        assert!(found[written..].iter().all(|byte| *byte == 0));
        assert!(!disk.is_poisoned());
    }
}

#[test]
fn a_dropped_write_is_reported_as_done() {
    let (mut disk, _, store) = faulty(&["write:drop", "flush:drop"]);
    assert_eq!(disk.execute(write_op(0, 1, true)), Ok(Outcome::Done));
    assert_eq!(store.allocated(), 0);
}

#[test]
fn held_operations_wait_for_their_release() {
    for bed in beds(SIZE) {
        let (mut disk, handle) = bed.open().with_faults(&["write:count=2:hold".parse().unwrap()]);
        let mut done: Vec<Completion> = Vec::new();
        for number in 0..3 {
            done.extend(disk.submit(OpId(number), write_op(number, 4, false)));
        }
        while done.is_empty() {
            disk.wait(&mut done, Duration::from_secs(10));
        }
        assert_eq!(done.iter().map(|c| c.op).collect::<Vec<_>>(), [OpId(2)], "{}", bed.name);
        assert_eq!((handle.held(), disk.in_flight()), (2, 2));
        let other = handle.clone();
        std::thread::spawn(move || other.release()).join().unwrap();
        assert!(common::readable(&disk, Duration::from_secs(10)));
        drain(&mut disk, &mut done);
        assert!(done.iter().all(|completion| completion.result == Ok(Outcome::Done)));
        assert_eq!(handle.held(), 0);
        assert_eq!(read(&mut disk, 0, 12288), vec![4; 12288]);
    }
}

#[test]
fn a_delayed_operation_completes_by_itself() {
    let (mut disk, handle, _) = faulty(&["any:delay=30"]);
    let begin = std::time::Instant::now();
    assert_eq!(disk.execute(write_op(0, 1, false)), Ok(Outcome::Done));
    assert!(begin.elapsed() >= Duration::from_millis(30));
    handle.clear();
    assert!(disk.submit(OpId(1), write_op(0, 1, false)).is_some());
}

#[test]
fn rules_are_bounded() {
    let (_disk, handle, _) = faulty(&[]);
    let rule = "any:drop".parse().unwrap();
    assert_eq!((0..300).filter_map(|_| handle.add(rule)).count(), 256);
}

#[test]
fn a_failed_flush_ends_the_disk_for_good() {
    for bed in beds(SIZE) {
        let rule = "flush:after=1:count=1:error=EIO".parse().unwrap();
        let (mut disk, _) = bed.open().with_faults(&[rule]);
        disk.execute(write_op(0, 1, false)).unwrap();
        disk.execute(DiskOp::Flush).unwrap();
        let error = disk.execute(DiskOp::Flush).unwrap_err();
        assert_eq!((error.kind, error.errno), (DiskErrorKind::FlushFailed, Some(5)));
        assert!(disk.is_poisoned());
        let range = ByteRange::new(0, 4096);
        for request in [
            DiskOp::Flush,
            write_op(0, 2, false),
            DiskOp::Read { range, holes: false },
            DiskOp::Discard { range },
            DiskOp::WriteZeroes { range, unmap: true, fua: true },
        ] {
            assert_eq!(kind(disk.execute(request)), DiskErrorKind::Poisoned, "{}", bed.name);
        }
    }
}

#[test]
fn a_durable_write_without_its_flush_ends_the_disk() {
    let (mut disk, ..) = faulty(&["flush:error=EIO"]);
    let error = disk.execute(write_op(3, 1, true)).unwrap_err();
    assert_eq!(error.kind, DiskErrorKind::FlushFailed);
    assert_eq!(error.range, ByteRange::new(12288, 4096));
    assert!(disk.is_poisoned());
}

#[test]
fn flushes_that_wait_share_the_next_one() {
    let (mut disk, handle, _) = faulty(&["flush:count=1:hold"]);
    let mut done = Vec::new();
    for number in 0..5 {
        done.extend(disk.submit(OpId(number), DiskOp::Flush));
        disk.kick();
    }
    done.extend(disk.submit(OpId(5), write_op(0, 1, true)));
    disk.completions(&mut done);
    assert_eq!((done.len(), disk.in_flight()), (0, 6));
    handle.release();
    drain(&mut disk, &mut done);
    assert_eq!(done.len(), 6);
    assert_eq!(handle.hits(0).selected, 2, "one that was held, one for all who came meanwhile");
}

#[test]
fn flushes_before_one_kick_are_one() {
    let (mut disk, handle, _) = faulty(&["flush:delay=1"]);
    let mut done = Vec::new();
    for number in 0..5 {
        done.extend(disk.submit(OpId(number), DiskOp::Flush));
    }
    drain(&mut disk, &mut done);
    assert_eq!((done.len(), handle.hits(0).selected), (5, 1));
}

#[test]
fn nobody_behind_a_failed_flush_is_told_that_all_is_well() {
    let rules = ["flush:count=1:hold", "write:range=4096+4096:hold"];
    let (mut disk, handle, _) = faulty(&rules);
    let mut done = Vec::new();
    let mut submit = |number, request| {
        done.extend(disk.submit(OpId(number), request));
        disk.kick();
    };
    submit(0, DiskOp::Flush);
    submit(1, DiskOp::Flush);
    submit(2, write_op(0, 1, true));
    submit(3, write_op(1, 1, true));
    assert_eq!(done, []);
    // The flush that is held was matched already, so this hits the one after it.
    handle.add("flush:error=EIO".parse().unwrap()).unwrap();
    handle.release();
    drain(&mut disk, &mut done);
    done.sort_by_key(|completion| completion.op);
    let kinds: Vec<_> = done.into_iter().map(|c| c.result.map_err(|error| error.kind)).collect();
    assert_eq!(kinds[0], Ok(Outcome::Done));
    assert_eq!(kinds[1], Err(DiskErrorKind::FlushFailed));
    assert_eq!(kinds[2], Err(DiskErrorKind::FlushFailed));
    assert!(matches!(kinds[3], Err(DiskErrorKind::FlushFailed | DiskErrorKind::Poisoned)));
}

#[test]
fn a_durable_write_that_ends_after_a_failed_flush_fails() {
    for bed in beds(SIZE) {
        let rules = ["write:hold", "flush:error=EIO"].map(|rule| rule.parse().unwrap());
        let (mut disk, handle) = bed.open().with_faults(&rules);
        let mut done = Vec::new();
        done.extend(disk.submit(OpId(0), write_op(0, 1, true)));
        done.extend(disk.submit(OpId(1), write_op(1, 1, false)));
        assert_eq!(done, []);
        done.extend(disk.submit(OpId(2), DiskOp::Flush));
        disk.completions(&mut done);
        let flush = done.pop().unwrap();
        assert_eq!((flush.op, kind(flush.result)), (OpId(2), DiskErrorKind::FlushFailed));
        handle.clear();
        handle.release();
        drain(&mut disk, &mut done);
        done.sort_by_key(|completion| completion.op);
        let results: Vec<_> =
            done.into_iter().map(|c| c.result.map_err(|error| error.kind)).collect();
        let expected = [Err(DiskErrorKind::Poisoned), Ok(Outcome::Done)];
        assert_eq!(results, expected, "{}", bed.name);
    }
}
