//! Who waits for whom, and for what not.

use super::{Faults, PATIENCE, Rig};
use bytes::Bytes;
use holdfast_format::journal::PeerSwitches;
use holdfast_store::{DiskOp, OpId};
use holdfast_units::{ByteRange, LogPosition, NodeId};
use std::time::{Duration, Instant};

fn block_at(block: u64) -> ByteRange {
    ByteRange::of_blocks(block..block + 1)
}

fn write_of(block: u64, blocks: u64, fill: u8) -> DiskOp {
    let range = ByteRange::of_blocks(block..block + blocks);
    let len = usize::try_from(range.len).unwrap();
    DiskOp::Write { range, data: Bytes::from(vec![fill; len]), fua: false }
}

impl Rig {
    /// Waits until the thread waits for a sync that does not end.
    fn wait_syncing(&self) {
        let begun = Instant::now();
        while self.faults.lock().unwrap().holding == 0 {
            assert!(begun.elapsed() < PATIENCE, "no sync is waited for");
            std::thread::yield_now();
        }
    }

    /// Waits for one answer.
    fn next_done(&mut self) -> OpId {
        let mut done = Vec::new();
        self.disk.as_mut().unwrap().wait(&mut done, PATIENCE);
        assert_eq!(done.len(), 1);
        assert!(done[0].result.is_ok(), "{done:?}");
        done[0].op
    }

    fn submit(&mut self, id: u64, op: DiskOp) {
        let disk = self.disk.as_mut().unwrap();
        assert!(disk.submit(OpId(id), op).is_none());
        disk.kick();
    }
}

#[test]
fn neither_long_writes_nor_calls_hold_others_up_while_a_sync_is_under_way() {
    let mut rig = Rig::leading();
    rig.set_faults(Faults { hold_syncs: true, ..Faults::default() });
    rig.write(0, 1);
    rig.submit(1, DiskOp::Flush);
    rig.wait_syncing();
    let handle = rig.handle.clone();
    let looking = rig.runtime.spawn(async move { handle.links().await });
    rig.runtime.block_on(tokio::task::yield_now());
    rig.submit(2, write_of(100, 256, 2));
    assert_eq!(rig.next_done(), OpId(2), "it is long, and does not wait for the sync");
    rig.submit(3, write_of(1, 1, 3));
    assert_eq!(rig.next_done(), OpId(3), "nor does what comes behind it and the call");
    assert!(!looking.is_finished(), "the call was there all the time");
    rig.set_faults(Faults::default());
    assert_eq!(rig.next_done(), OpId(1));
    rig.runtime.block_on(looking).unwrap().unwrap();
    assert_eq!(rig.read(0..2), [1, 3]);
}

#[test]
fn who_reads_records_that_are_not_durable_waits_and_holds_nobody_up() {
    let mut rig = Rig::leading();
    rig.set_faults(Faults { hold_syncs: true, ..Faults::default() });
    rig.write(0, 1);
    let handle = rig.handle.clone();
    let from = LogPosition::START;
    let mut reading = rig.runtime.spawn(async move { handle.writes_from(from, 1 << 20).await });
    let begun = Instant::now();
    while rig.faults.lock().unwrap().holding == 0 {
        assert!(begun.elapsed() < PATIENCE);
        let moment = async { tokio::time::timeout(Duration::from_millis(1), &mut reading).await };
        let early = rig.runtime.block_on(moment);
        assert!(early.is_err(), "nothing is durable yet: {early:?}");
    }
    rig.write(1, 2);
    assert!(!reading.is_finished());
    rig.set_faults(Faults::default());
    let (found, _) = rig.runtime.block_on(reading).unwrap().unwrap();
    assert_eq!(found[0].range, ByteRange::of_blocks(0..1));
}

#[test]
fn who_reads_records_is_told_when_they_cannot_become_durable() {
    let mut rig = Rig::leading();
    let errno = rustix::io::Errno::IO;
    rig.set_faults(Faults { sync: Some(("segment", errno)), ..Faults::default() });
    rig.write(0, 1);
    let read = rig.handle.writes_from(LogPosition::START, 1 << 20);
    let read = rig.runtime.block_on(async { tokio::time::timeout(PATIENCE, read).await });
    assert!(read.expect("it is answered").is_err());
    assert_eq!(rig.read(0..1), [1]);
}

#[test]
fn a_flush_behind_an_emptied_journal_waits_for_nothing_of_before() {
    let mut rig = Rig::leading();
    (0..10).for_each(|block| rig.write(block, 1));
    rig.flush();
    rig.runtime.block_on(rig.handle.follow()).unwrap();
    rig.runtime.block_on(rig.handle.clear()).unwrap();
    rig.lead();
    rig.submit(1, DiskOp::Flush);
    assert_eq!(rig.next_done(), OpId(1));
    rig.write(0, 2);
    rig.submit(2, DiskOp::Flush);
    assert_eq!(rig.next_done(), OpId(2));
}

#[test]
fn a_position_does_not_wait_for_what_overwrote_an_old_record_and_is_not_durable() {
    let mut rig = Rig::new();
    // Frames of 8 KiB. The journal is made shorter from 2 MiB on, to 1.5 MiB; with the end of its
    // segment, at 4 MiB, and with 4 MiB that are not durable they are made so anyway.
    rig.reopen_with(|sizes| sizes.budget = 4 << 20);
    rig.lead();
    (0..200).for_each(|block| rig.write(block, 1));
    rig.flush();
    // The oldest record is none of those that are written back any more.
    rig.write(0, 2);
    (200..300).for_each(|block| rig.write(block, 1));
    rig.wait("its beginning is given up", |view| view.written_back > LogPosition::START);
    assert_eq!(rig.read(0..2), [2, 1]);
}

#[test]
fn it_says_so_when_a_write_waits_for_room() {
    let mut rig = Rig::leading();
    let peer = NodeId::new(3).unwrap();
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    rig.runtime.block_on(rig.handle.set_peer(peer, counts)).unwrap();
    let is_full = |rig: &mut Rig, block: u64| {
        rig.submit(block, write_of(block, 1, 1));
        let waits = rig.runtime.block_on(rig.handle.need_none_waiting(block_at(block))).is_err();
        if !waits {
            assert_eq!(rig.next_done(), OpId(block));
        }
        waits
    };
    // Nobody cuts it, as nothing is noted for the peer.
    let last = (0..100_000).find(|block| is_full(&mut rig, *block)).unwrap();
    let other = block_at(last + 1);
    rig.runtime.block_on(rig.handle.need_none_waiting(other)).unwrap();
    let (plan, _) = rig.runtime.block_on(rig.handle.plan_cut()).unwrap().unwrap();
    rig.runtime.block_on(rig.handle.cut(plan)).unwrap();
    assert_eq!(rig.next_done(), OpId(last));
    rig.runtime.block_on(rig.handle.need_none_waiting(block_at(last))).unwrap();
}
