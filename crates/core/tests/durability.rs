//! What must be on the disk before something else is forgotten: extents of the activity log, bits of
//! a resync, and what there is left to do after a crash or a failed disk.

mod common;

use bytes::Bytes;
use common::{World, n};
use holdfast_core::{Action, Command, CommandId, Event, IoFailure, RequestKind};
use holdfast_format::{DiskFlags, PeerFlags};
use holdfast_units::{ByteRange, DiskState, ReplicationState, Role};
use holdfast_wire::Message;

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 4 * MIB;
/// Blocks of an extent.
const BLOCKS: u64 = EXTENT / 4096;

/// 72 extents, and room for 67 of them in the activity log, with one block written in each of these.
fn full_log() -> World {
    let mut w = World::with(2, 72 * EXTENT, 67);
    w.promote(0);
    for extent in 0..67 {
        w.write(0, extent * BLOCKS, 1);
    }
    assert_eq!(w.snapshot(1).hot_extents, 67);
    w
}

/// Node 1 gives five extents up, and its power fails.
fn evict_and_lose_power(w: &mut World) {
    for extent in 67..72 {
        w.write(0, extent * BLOCKS, 1);
    }
    assert_eq!(w.snapshot(1).hot_extents, 67);
    w.lose_power(1);
    assert!(w.nodes[1].data.len() < 72, "what was written last is not durable");
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

fn write_mib(w: &mut World, i: u8, mib: u64) {
    let data = Bytes::from(vec![3; 1 << 20]);
    let id = w
        .request(i, RequestKind::Write { range: ByteRange::new(mib * MIB, MIB), data, fua: false });
    assert!(w.ok(i, id));
}

#[test]
fn an_extent_is_given_up_only_behind_a_flush_of_its_writes() {
    let mut w = full_log();
    evict_and_lose_power(&mut w);
}

#[test]
fn an_extent_that_was_hot_before_a_kill_is_given_up_only_behind_a_flush() {
    let mut w = full_log();
    w.kill(1);
    w.start(1);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    assert!(w.nodes[1].durable.is_empty(), "all that it wrote is in its cache");
    evict_and_lose_power(&mut w);
}

#[test]
fn an_extent_stays_hot_while_the_flush_before_its_end_is_under_way() {
    let mut w = full_log();
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    let id = w.write(0, 70 * BLOCKS, 1);
    assert_eq!(w.result(0, id), None, "no room in the log before the flush");
    w.lose_power(1);
    w.nodes[1].hold_op = None;
    w.start(1);
    assert!(w.ok(0, id));
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

/// Node 1 gets the first 8 MiB from the Primary, without its last write, and all that it flushes is
/// held.
fn filled_but_for_the_last(early: bool) -> World {
    let mut w = World::new(2);
    w.promote(0);
    w.kill(1);
    for mib in u64::from(early)..8 {
        write_mib(&mut w, 0, mib);
    }
    if early {
        for block in 0..100 {
            w.write(0, block, 4);
        }
    }
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(1);
    assert_eq!(w.peer(1, 0).replication, ReplicationState::SyncTarget);
    w
}

fn flushes_and_last_write(op: &Action) -> bool {
    match op {
        Action::DiskFlush { .. } => true,
        Action::DiskWrite { range, .. } => range.offset >= 7 * MIB,
        _ => false,
    }
}

fn flushes_and_all_but_the_first_write(op: &Action) -> bool {
    match op {
        Action::DiskFlush { .. } => true,
        Action::DiskWrite { range, .. } => range.offset >= MIB,
        _ => false,
    }
}

/// The flushes that wait at a node's disk.
fn flushes(w: &World, i: u8) -> Vec<usize> {
    let held = &w.nodes[usize::from(i)].held;
    let is_flush = |(_, (_, op)): &(usize, &(_, Action))| matches!(op, Action::DiskFlush { .. });
    held.iter().enumerate().filter(is_flush).map(|(at, _)| at).collect()
}

#[test]
fn bits_of_a_resync_are_cleared_on_disk_only_behind_a_flush_of_their_blocks() {
    let mut w = filled_but_for_the_last(false);
    w.nodes[1].hold_op = Some(flushes_and_last_write);
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.peer(1, 0).out_of_sync, MIB);
    // The first flush covers one MiB, and another one does not begin before it ends.
    assert_eq!(flushes(&w, 1).len(), 1);
    let at = flushes(&w, 1)[0];
    w.disk_op(1, at);
    w.run();
    assert_eq!(w.nodes[1].durable.len(), 256);
    w.lose_power(1);
    w.nodes[1].hold_op = None;
    w.log.clear();
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.resynced(), 7 * MIB, "the first MiB was done for good");
}

#[test]
fn a_flush_covers_what_earlier_ones_would_that_are_still_under_way() {
    let mut w = filled_but_for_the_last(true);
    w.nodes[1].hold_op = Some(flushes_and_all_but_the_first_write);
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(flushes(&w, 1), [], "too little for one");
    w.request(0, RequestKind::Flush);
    assert_eq!(flushes(&w, 1).len(), 1, "the client's");
    w.nodes[1].hold_op = Some(flushes_and_last_write);
    w.run();
    let waiting = flushes(&w, 1);
    assert_eq!(waiting.len(), 2);
    w.disk_op(1, waiting[1]);
    w.run();
    // It counts when the first one has not failed.
    w.disk_op(1, waiting[0]);
    w.run();
    let durable = w.nodes[1].durable.len() as u64;
    assert!(durable > 100);
    w.lose_power(1);
    w.nodes[1].hold_op = None;
    w.log.clear();
    w.start(1);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.resynced(), (100 + 7 * 256 - durable) * 4096);
}

/// The kernel drops what it could not write, and tells one flush of it: another one may end well.
#[test]
fn a_flush_that_overtakes_one_that_fails_does_not_count() {
    let mut w = World::new(2);
    w.promote(0);
    write_mib(&mut w, 0, 0);
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    let ids = [(); 2].map(|()| w.request(0, RequestKind::Flush));
    let waiting = flushes(&w, 0);
    assert_eq!(waiting.len(), 2);
    w.disk_op(0, waiting[1]);
    w.run();
    assert!(ids.iter().all(|id| w.result(0, *id).is_none()), "the first one may fail");
    w.nodes[0].fail_flush = true;
    w.disk_op(0, waiting[0]);
    w.run();
    assert_eq!(w.snapshot(0).disk, DiskState::Failed);
    assert!(ids.iter().all(|id| w.ok(0, *id)), "durable at the other node");
}

#[test]
fn a_killed_primary_costs_no_more_than_its_hot_extents() {
    let mut w = World::new(2);
    w.promote(0);
    (0..16).for_each(|mib| write_mib(&mut w, 0, mib));
    assert_eq!(w.command(0, Command::Stop), Some(Ok(())));
    w.kill(0);
    w.start(0);
    w.promote(0);
    for extent in [1, 3] {
        w.write(0, extent * BLOCKS + 5, 7);
    }
    assert_eq!(w.snapshot(0).hot_extents, 2);
    w.kill(0);
    w.promote(1);
    w.log.clear();
    w.start(0);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
    assert_eq!(w.resynced(), 2 * EXTENT);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn a_killed_secondary_gets_exactly_what_it_missed() {
    let mut w = World::new(2);
    w.promote(0);
    (0..16).for_each(|mib| write_mib(&mut w, 0, mib));
    for missed in [&[][..], &[1, 7, 3000]] {
        w.kill(1);
        missed.iter().for_each(|block| {
            w.write(0, *block, 9);
        });
        w.log.clear();
        w.start(1);
        assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
        assert_eq!(w.resynced(), missed.len() as u64 * 4096);
        assert_eq!(w.nodes[0].data, w.nodes[1].data);
    }
}

#[test]
fn a_secondary_that_lost_power_gets_its_hot_extents_too() {
    let mut w = World::new(2);
    w.promote(0);
    (0..16).for_each(|mib| write_mib(&mut w, 0, mib));
    w.lose_power(1);
    w.write(0, 1, 9);
    w.log.clear();
    w.start(1);
    assert_eq!(w.resynced(), 16 * MIB);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn after_a_failed_flush_a_disk_is_not_used_and_its_node_misses_writes() {
    for (primary, failed) in [(0u8, 0u8), (0, 1)] {
        let mut w = World::new(2);
        let other = 1 - failed;
        w.promote(primary);
        write_mib(&mut w, primary, 0);
        w.nodes[usize::from(failed)].fail_flush = true;
        let before = w.snapshot(other).generation;
        let id = w.request(primary, RequestKind::Flush);
        assert!(w.ok(primary, id), "durable at the other node");
        let left_behind = w.on_disk(other).superblock.current != before;
        assert!(left_behind, "durably known before the flush completes");
        assert_eq!(w.snapshot(failed).disk, DiskState::Failed);
        assert_eq!(w.peer(other, failed).disk, DiskState::Failed);
        assert!(w.nodes[usize::from(failed)].closed);
        // It would work again.
        w.nodes[usize::from(failed)].fail_flush = false;
        w.nodes[usize::from(failed)].hold_disk = true;
        let writes = w.nodes[usize::from(failed)].meta_writes;
        for block in [0, 300] {
            let id = w.write(primary, block, 9);
            assert!(w.ok(primary, id));
        }
        let id = w.request(primary, RequestKind::Flush);
        assert!(w.ok(primary, id));
        assert_eq!(w.read(primary, 300), Ok(9));
        w.cut(0, 1);
        w.heal();
        w.pass(1000);
        assert_eq!(w.snapshot(failed).disk, DiskState::Failed);
        assert!(w.nodes[usize::from(failed)].held.is_empty(), "nothing was asked of it");
        assert_eq!(w.nodes[usize::from(failed)].meta_writes, writes);
        assert_eq!(w.peer(other, failed).out_of_sync, 2 * 4096);
        // Attached anew.
        w.kill(failed);
        w.nodes[usize::from(failed)].hold_disk = false;
        w.log.clear();
        w.start(failed);
        assert_eq!(w.snapshot(failed).disk, DiskState::UpToDate);
        assert!(w.resynced() >= 2 * 4096);
        assert_eq!(w.nodes[0].data, w.nodes[1].data);
    }
}

#[test]
fn a_primary_whose_disk_failed_serves_nothing_without_its_peer() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.nodes[0].fail_flush = true;
    w.request(0, RequestKind::Flush);
    assert_eq!(w.read(0, 1), Ok(1));
    w.kill(1);
    let id = w.write(0, 1, 2);
    assert_eq!(w.result(0, id), Some(Err(IoFailure::NoData)));
    w.start(1);
    assert_eq!(w.read(0, 1), Ok(1));
    let id = w.write(0, 1, 3);
    assert!(w.ok(0, id));
}

const DECREE: Command = Command::Promote { force: true };

fn begin_decree(w: &mut World, i: u8) {
    w.event(i, Event::Command(CommandId(1000), DECREE));
    w.run();
}

fn decreed(w: &World, i: u8) -> bool {
    w.nodes[usize::from(i)].commands.get(&1000) == Some(&Ok(()))
}

#[test]
fn half_copied_data_are_flushed_before_a_decree_makes_them_good() {
    let mut w = filled_but_for_the_last(false);
    w.nodes[1].hold_op = Some(flushes_and_last_write);
    w.nodes[0].hold_op = None;
    w.run();
    w.kill(0);
    begin_decree(&mut w, 1);
    let last_write =
        w.nodes[1].held.iter().position(|(_, op)| !matches!(op, Action::DiskFlush { .. }));
    assert!(!decreed(&w, 1), "a block is still under way to the disk");
    w.disk_op(1, last_write.unwrap());
    w.run();
    assert!(!decreed(&w, 1), "nothing of it is durable");
    assert!(!w.on_disk(1).superblock.flags.contains(DiskFlags::CONSISTENT));
    w.nodes[1].hold_op = None;
    w.run();
    assert!(decreed(&w, 1));
    let had = w.nodes[1].data.clone();
    assert!(w.on_disk(1).superblock.flags.contains(DiskFlags::CONSISTENT));
    w.lose_power(1);
    assert!(w.nodes[1].data == had);
}

#[test]
fn nothing_is_pulled_over_data_that_are_being_decreed() {
    let mut w = World::new(3);
    w.promote(0);
    w.kill(2);
    (0..8).for_each(|mib| write_mib(&mut w, 0, mib));
    assert_eq!(w.command(1, Command::Disconnect { peer: Some(n(0)) }), Some(Ok(())));
    w.kill(0);
    // An Outdated one fills node 2, so that no good data are in reach.
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.cut(1, 2);
    w.start(2);
    w.limit_resync_window(2, MIB);
    w.heal();
    assert_eq!(w.peer(2, 1).replication, ReplicationState::SyncTarget);
    w.nodes[2].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    w.log.clear();
    begin_decree(&mut w, 2);
    assert_eq!(flushes(&w, 2).len(), 1);
    w.nodes[1].hold_op = None;
    w.run();
    assert!(!w.nodes[2].data.is_empty(), "what was asked for before has come");
    let asked = |(_, _, m): &(u8, u8, Message)| matches!(m, Message::ResyncRequest { .. });
    assert!(!w.log.iter().any(asked));
    // The first flush does not cover that.
    let at = flushes(&w, 2);
    w.disk_op(2, at[0]);
    w.run();
    assert!(!decreed(&w, 2));
    w.nodes[2].hold_op = None;
    w.run();
    assert!(decreed(&w, 2));
    assert_eq!(w.snapshot(2).role, Role::Primary);
    assert!(!w.log.iter().any(asked));
    assert!(w.nodes[2].durable == w.nodes[2].data);
}

/// 72 extents, and room for 67 in the activity logs. Node 1 lacks 8 MiB and is being filled by node 0,
/// which reads nothing; `primary` is the one without a disk, if there is one.
fn filling(diskless: Option<u8>) -> World {
    let count = if diskless.is_some() { 3 } else { 2 };
    let mut w = World::build(count, 72 * EXTENT, 67, diskless);
    let primary = diskless.unwrap_or(0);
    w.promote(primary);
    w.kill(1);
    (0..8).for_each(|mib| write_mib(&mut w, primary, mib));
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(1);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::SyncSource);
    assert!(w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FILLING));
    w
}

/// Node 0 is started again and fills node 1.
fn restart_source(w: &mut World) {
    w.nodes[0].hold_op = None;
    w.start(0);
    assert!(w.snapshot(1).disk > DiskState::Inconsistent);
    assert!(w.nodes[0].data == w.nodes[1].data);
}

#[test]
fn a_clean_stop_of_the_source_keeps_how_far_a_resync_is() {
    let mut w = filling(None);
    assert_eq!(w.command(0, Command::Stop), Some(Ok(())));
    let stopped = w.on_disk(0).superblock;
    assert!(stopped.flags.contains(DiskFlags::CLEAN));
    assert!(stopped.peers[1].flags.contains(PeerFlags::FILLING));
    w.kill(0);
    restart_source(&mut w);
}

#[test]
fn a_source_that_was_killed_sends_also_what_it_noted_after_the_fill_began() {
    let mut w = filling(None);
    w.hold = Some(Box::new(|from, _, m| from == 0 && matches!(m, Message::Write { .. })));
    w.write(0, 20 * BLOCKS, 9);
    w.kill(0);
    w.hold = None;
    // What it doubts after the crash node 1 knows to lack only when it has the new bitmap.
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    w.start(0);
    assert!(!w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FILLING));
    w.nodes[1].hold_op = None;
    w.run();
    assert!(w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FILLING));
    w.promote(0);
    (0..72).filter(|extent| *extent != 20).for_each(|extent| {
        w.write(0, extent * BLOCKS + 700, 1);
    });
    assert_eq!(w.nodes[1].data.get(&(20 * BLOCKS)), None);
    w.kill(0);
    restart_source(&mut w);
    assert_eq!(w.nodes[1].data.get(&(20 * BLOCKS)), Some(&9));
}

#[test]
fn a_source_unsays_that_its_target_knows_all_before_it_gives_up_what_that_does_not_know() {
    let mut w = filling(Some(2));
    w.hold =
        Some(Box::new(|from, to, m| (from, to) == (2, 1) && matches!(m, Message::Write { .. })));
    for extent in 2..72 {
        w.write(2, extent * BLOCKS + 700, 9);
    }
    let given_up = 3 * BLOCKS + 700;
    assert_eq!(w.nodes[1].data.get(&given_up), None);
    assert!(!w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FILLING));
    w.kill(0);
    w.kill(2);
    w.hold = None;
    restart_source(&mut w);
    assert_eq!(w.nodes[1].data.get(&given_up), Some(&9));
}

/// The Primary has no disk; node 0 has given three extents up in which it wrote, and node 1 gets nothing.
fn given_up_unsettled() -> World {
    let mut w = World::build(3, 72 * EXTENT, 67, Some(2));
    w.promote(2);
    let held = |from, to, m: &Message| (from, to) == (2, 1) && matches!(m, Message::Write { .. });
    w.hold = Some(Box::new(held));
    for extent in 0..70 {
        w.write(2, extent * BLOCKS, 9);
    }
    assert_eq!(w.snapshot(0).hot_extents, 67);
    w
}

#[test]
fn what_is_not_settled_counts_as_lacking_on_disk_once_its_extent_is_given_up() {
    let mut w = given_up_unsettled();
    assert_eq!(w.lacking_on_disk(0, 1, 0..1), 1);
    assert_eq!(w.lacking_on_disk(0, 1, 0..72 * BLOCKS), 3);
    assert_eq!(w.peer(0, 1).out_of_sync, 0, "in memory it is marked only when its writer is lost");
    w.kill(0);
    w.kill(2);
    w.hold = None;
    assert_eq!(w.nodes[1].data.get(&0), None);
    w.start(0);
    assert_eq!(w.nodes[1].data.get(&0), Some(&9));
    assert!(w.nodes[0].data == w.nodes[1].data);
}

#[test]
fn what_is_settled_meanwhile_is_not_lacking_on_disk_any_more() {
    let mut w = given_up_unsettled();
    w.hold = None;
    w.run();
    w.pass(200);
    assert_eq!(w.lacking_on_disk(0, 1, 0..72 * BLOCKS), 3);
    // The next extent that is given up takes the pages along.
    w.write(2, 71 * BLOCKS, 9);
    assert_eq!(w.lacking_on_disk(0, 1, 0..72 * BLOCKS), 0);
    assert_eq!(w.peer(0, 1).out_of_sync, 0);
}

/// Node 1's disk has failed to flush what it was sent, and its node is not running; its page cache
/// shows what the disk has. The Primary was connected to it then, or was connected again later.
fn peer_disk_failed(connected: bool) -> World {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.nodes[1].fail_flush = true;
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    w.request(0, RequestKind::Flush);
    if !connected {
        w.cut(0, 1);
    }
    w.nodes[1].hold_op = None;
    w.run();
    w.heal();
    assert_eq!(w.peer(0, 1).disk, DiskState::Failed);
    w.kill(1);
    w.nodes[1].fail_flush = false;
    w.nodes[1].data.remove(&1);
    w
}

fn gets_what_its_disk_never_had(w: &mut World) {
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[1].data.get(&1), Some(&1));
}

#[test]
fn a_node_whose_disk_failed_gets_its_hot_extents_from_who_saw_it() {
    for connected in [true, false] {
        let mut w = peer_disk_failed(connected);
        gets_what_its_disk_never_had(&mut w);
    }
}

#[test]
fn a_failed_disk_that_was_filled_again_has_nothing_to_make_up_for() {
    let mut w = peer_disk_failed(true);
    gets_what_its_disk_never_had(&mut w);
    assert!(!w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FAILED));
    w.kill(1);
    w.log.clear();
    w.start(1);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    assert_eq!(w.resynced(), 0);
}

#[test]
fn a_node_that_saw_a_disk_fail_remembers_that_when_it_is_started_again() {
    let mut w = peer_disk_failed(true);
    assert_eq!(w.command(0, Command::Stop), Some(Ok(())));
    w.kill(0);
    w.start(0);
    assert_eq!(w.snapshot(0).hot_extents, 0, "it has no doubts of its own");
    w.promote(0);
    gets_what_its_disk_never_had(&mut w);
}

#[test]
fn a_flush_waits_also_for_a_peer_that_comes_back_before_it_ends() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    for i in [0, 1] {
        w.nodes[i].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    }
    let id = w.request(0, RequestKind::Flush);
    w.cut(0, 1);
    w.heal();
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.result(0, id), None, "it counts as having what it answered before");
    w.nodes[1].hold_op = None;
    w.run();
    assert!(w.ok(0, id));
    assert_eq!(w.nodes[1].durable.get(&1), Some(&1));
}

#[test]
fn a_failed_disk_that_lost_nothing_has_nothing_to_make_up_for() {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].fail_flush = true;
    w.request(0, RequestKind::Flush);
    assert_eq!(w.peer(0, 1).disk, DiskState::Failed);
    w.kill(1);
    w.nodes[1].fail_flush = false;
    w.log.clear();
    w.start(1);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    assert_eq!(w.resynced(), 0);
    assert!(!w.on_disk(0).superblock.peers[1].flags.contains(PeerFlags::FAILED));
}

#[test]
fn a_primary_whose_disk_failed_does_not_give_its_stale_data_to_who_saw_that() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.nodes[0].fail_flush = true;
    let id = w.request(0, RequestKind::Flush);
    assert!(w.ok(0, id));
    w.kill(0);
    w.nodes[0].fail_flush = false;
    w.nodes[0].data.remove(&1);
    w.start(0);
    assert_eq!(w.nodes[1].data.get(&1), Some(&1));
    assert_eq!(w.nodes[0].data.get(&1), Some(&1));
}

#[test]
fn that_a_disk_failed_is_durable_where_it_was_seen_also_after_a_kill() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    assert_eq!(w.command(0, Command::Stop), Some(Ok(())));
    w.kill(0);
    w.start(0);
    w.promote(0);
    w.nodes[1].fail_flush = true;
    let id = w.request(0, RequestKind::Flush);
    assert!(w.ok(0, id));
    w.kill(1);
    w.nodes[1].fail_flush = false;
    w.nodes[1].data.remove(&1);
    w.kill(0);
    w.start(0);
    w.promote(0);
    w.start(1);
    assert_eq!(w.nodes[1].data.get(&1), Some(&1));
}

fn is_flush(op: &Action) -> bool {
    matches!(op, Action::DiskFlush { .. })
}

/// Who answered a write may have lost it with its power: a flush that ends without it must leave it
/// behind durably, or whoever has flushed could be filled from it.
#[test]
fn a_flush_that_goes_on_without_a_member_leaves_it_behind_first() {
    for while_flushing in [false, true] {
        let mut w = World::new(3);
        w.promote(0);
        w.write(0, 1, 7);
        let before = w.snapshot(0).generation;
        let lose = |w: &mut World| [1, 2].into_iter().for_each(|i| w.lose_power(i));
        let id = if while_flushing {
            w.nodes[1].hold_op = Some(is_flush);
            w.nodes[2].hold_op = Some(is_flush);
            let id = w.request(0, RequestKind::Flush);
            assert_eq!(w.result(0, id), None);
            lose(&mut w);
            w.run();
            id
        } else {
            lose(&mut w);
            w.request(0, RequestKind::Flush)
        };
        assert!(w.ok(0, id));
        assert_ne!(w.on_disk(0).superblock.current, before);
        w.lose_power(0);
        for i in [1, 2] {
            w.nodes[usize::from(i)].hold_op = None;
            w.start(i);
        }
        w.start(0);
        assert_eq!(w.nodes[0].data.get(&1), Some(&7), "it was flushed");
        assert_eq!(w.nodes[1].data, w.nodes[0].data);
        assert_eq!(w.nodes[2].data, w.nodes[0].data);
    }
}

/// Whoever is lost when nothing was written since the last flush has all of it.
#[test]
fn a_flush_of_nothing_begins_no_generation() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 7);
    for lost in [false, true] {
        if lost {
            w.kill(1);
        }
        let before = w.snapshot(0).generation;
        let id = w.request(0, RequestKind::Flush);
        assert!(w.ok(0, id));
        assert_eq!(w.snapshot(0).generation, before);
    }
}

/// The kernel drops what it could not write, and the next flush ends well.
#[test]
fn a_flush_that_ends_behind_one_that_failed_does_not_count() {
    let mut w = World::new(2);
    w.promote(0);
    write_mib(&mut w, 0, 0);
    let before = w.snapshot(1).generation;
    w.nodes[0].hold_op = Some(is_flush);
    let ids = [(); 2].map(|()| w.request(0, RequestKind::Flush));
    let waiting = flushes(&w, 0);
    w.nodes[1].hold_meta = true;
    w.nodes[0].fail_flush = true;
    w.disk_op(0, waiting[0]);
    w.nodes[0].fail_flush = false;
    w.disk_op(0, flushes(&w, 0)[0]);
    w.run();
    assert!(ids.iter().all(|id| w.result(0, *id).is_none()), "nobody durably knows who lacks it");
    w.nodes[1].hold_meta = false;
    w.release_meta(1);
    w.run();
    assert!(ids.iter().all(|id| w.ok(0, *id)), "durable at the other node");
    assert_ne!(w.on_disk(1).superblock.current, before);
}

/// A stop makes what was written durable when nobody is connected any more that could be told that
/// this failed: so the disk says it itself.
#[test]
fn a_disk_that_fails_in_a_stop_is_filled_again() {
    for stopped in [0u8, 1] {
        let at = usize::from(stopped);
        let mut w = World::new(2);
        w.promote(0);
        w.write(0, 1, 1);
        w.nodes[at].fail_flush = true;
        assert_eq!(w.command(stopped, Command::Stop), Some(Ok(())));
        w.kill(stopped);
        w.nodes[at].fail_flush = false;
        w.nodes[at].data.remove(&1);
        w.start(stopped);
        assert_eq!(w.nodes[at].data.get(&1), Some(&1), "n{stopped}");
        assert_eq!(w.nodes[1 - at].data.get(&1), Some(&1), "n{stopped}");
    }
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_disk_that_does_not_answer() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.nodes[1].hold_op = Some(is_flush);
    assert_eq!(w.command(1, Command::Stop), None);
    w.pass(30_000);
    assert_eq!(w.nodes[1].commands.values().last(), Some(&Ok(())));
    w.lose_power(1);
    w.nodes[1].hold_op = None;
    w.start(1);
    assert_eq!(w.nodes[1].data.get(&1), Some(&1), "it was not called clean");
}
