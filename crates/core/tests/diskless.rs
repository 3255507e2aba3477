//! A Primary without a disk: its Secondaries copy from each other, in line with its writes.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, IoFailure};
use holdfast_units::{ByteRange, DiskState, PeerSet, ReplicationState, Role};
use holdfast_wire::Message;

/// Nodes 0 and 1 have disks, node 2 is Primary; node 1 lacks 50 blocks, and is not running.
fn one_behind() -> World {
    let mut w = World::with_diskless(3);
    w.promote(2);
    w.kill(1);
    for block in 0..50 {
        let id = w.write(2, block, 1);
        assert!(w.ok(2, id));
    }
    w.log.clear();
    w
}

fn sent(w: &World, from: u8, to: u8, what: fn(&Message) -> bool) -> usize {
    w.log.iter().filter(|(a, b, m)| (*a, *b) == (from, to) && what(m)).count()
}

fn all_is_equal(w: &World) {
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    for i in [0, 1] {
        assert_eq!(w.snapshot(i).disk, DiskState::UpToDate);
        assert_eq!(w.peer(i, 1 - i).replication, ReplicationState::Established);
        assert_eq!(w.peer(i, 1 - i).out_of_sync, 0);
    }
}

#[test]
fn secondaries_of_a_primary_without_a_disk_copy_from_each_other() {
    let mut w = one_behind();
    w.start(1);
    assert_eq!(w.resynced(), 50 * 4096);
    assert_eq!(sent(&w, 0, 1, |m| matches!(m, Message::ResyncData { .. })), 1);
    all_is_equal(&w);
}

#[test]
fn a_member_that_is_behind_gets_no_writes_before_it_is_being_filled() {
    let mut w = one_behind();
    w.cut(0, 1);
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    let before = w.nodes[1].data.clone();
    let id = w.write(2, 7, 2);
    assert!(w.ok(2, id));
    assert_eq!(w.nodes[0].data.get(&7), Some(&2));
    assert_eq!(w.nodes[1].data, before, "no mixture of old data and new");
    w.heal();
    all_is_equal(&w);
    assert_eq!(w.nodes[1].data.get(&7), Some(&2));
}

#[test]
fn a_target_is_up_to_date_only_when_the_primary_sends_it_its_writes() {
    let mut w = one_behind();
    w.hold = Some(Box::new(|a, b, m| (a, b) == (1, 2) && matches!(m, Message::Verdict { .. })));
    w.start(1);
    assert_eq!(w.peer(1, 0).out_of_sync, 0, "it has all that it lacked");
    assert_eq!(w.snapshot(1).disk, DiskState::Inconsistent, "but not what is written from now on");
    w.write(2, 2000, 9);
    assert_eq!((w.nodes[0].data.get(&2000), w.nodes[1].data.get(&2000)), (Some(&9), None));
    w.hold = None;
    w.run();
    all_is_equal(&w);
}

#[test]
fn who_missed_a_write_after_all_stays_marked_where_it_ends_later() {
    let mut w = one_behind();
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(1);
    assert_eq!(w.peer(1, 0).replication, ReplicationState::SyncTarget);
    // The target takes its time with a write that never reaches its source.
    let late = |op: &Action| matches!(op, Action::DiskWrite { range, .. } if range.blocks().contains(&2000));
    w.nodes[1].hold_op = Some(late);
    w.hold = Some(Box::new(|a, b, m| (a, b) == (2, 0) && matches!(m, Message::Write { .. })));
    let id = w.write(2, 2000, 9);
    w.log.clear();
    w.cut(0, 2);
    assert_eq!(sent(&w, 2, 1, |m| matches!(m, Message::Missed { .. })), 1);
    w.hold = None;
    w.heal();
    assert!(matches!(
        w.peer(1, 0).replication,
        ReplicationState::WFBitMapT | ReplicationState::SyncTarget
    ));
    assert_eq!(w.result(2, id), None);
    w.nodes[1].hold_op = None;
    w.run();
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.result(2, id), Some(Err(IoFailure::NoData)), "nobody with good data had it");
    all_is_equal(&w);
}

#[test]
fn who_lost_its_cache_is_outdated_until_an_equal_peer_has_filled_it() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    for block in 0..50 {
        w.write(2, block, 1);
    }
    w.lose_power(1);
    assert!(w.nodes[1].data.is_empty(), "nothing was flushed");
    w.cut(0, 1);
    w.start(1);
    assert_eq!(w.snapshot(1).generation, w.snapshot(0).generation);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    assert_eq!(w.read(2, 7), Ok(1));
    w.heal();
    all_is_equal(&w);
    assert_eq!(w.nodes[1].data.len(), 50);
}

#[test]
fn a_clean_stop_does_not_bring_a_lost_cache_back() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    w.write(2, 7, 1);
    w.lose_power(1);
    w.cut(0, 1);
    w.start(1);
    assert_eq!(w.command(1, Command::Stop), Some(Ok(())));
    w.kill(1);
    w.start(1);
    assert_eq!(w.snapshot(1).generation, w.snapshot(0).generation);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    w.heal();
    all_is_equal(&w);
    assert_eq!(w.nodes[1].data.get(&7), Some(&1));
}

#[test]
fn who_kept_its_cache_is_up_to_date_at_once() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    for block in 0..50 {
        w.write(2, block, 1);
    }
    w.kill(1);
    w.cut(0, 1);
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    w.kill(0);
    assert_eq!(w.read(2, 7), Ok(1));
}

#[test]
fn the_only_disk_goes_on_after_it_lost_its_cache() {
    let mut w = World::with_diskless(2);
    w.promote(1);
    w.write(1, 7, 1);
    w.lose_power(0);
    let id = w.write(1, 8, 1);
    assert_eq!(w.result(1, id), Some(Err(IoFailure::NoData)));
    w.start(0);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate, "nobody has anything better");
    let id = w.write(1, 8, 2);
    assert!(w.ok(1, id));
    assert_eq!(w.read(1, 8), Ok(2));
}

#[test]
fn who_leaves_is_outdated_also_beside_an_equal_member() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    let leave = Command::Disconnect { peer: Some(n(2)) };
    assert_eq!(w.command(0, leave), Some(Ok(())));
    assert_eq!(w.snapshot(0).disk, DiskState::Outdated, "the Primary goes on with node 1 alone");
    let id = w.write(2, 7, 2);
    assert!(w.ok(2, id));
    assert_eq!(w.snapshot(0).disk, DiskState::Outdated);
    assert_eq!(w.command(0, Command::Connect { peer: None, discard_my_data: false }), Some(Ok(())));
    all_is_equal(&w);
}

#[test]
fn late_news_of_a_member_do_not_take_a_new_generation_back() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    let before = w.snapshot(2).generation;
    w.kill(0);
    let id = w.write(2, 7, 2);
    assert!(w.ok(2, id));
    let begun = w.snapshot(2).generation;
    assert_ne!(begun, before);
    // From before it heard of the new one.
    let late =
        Message::Changed { role: Role::Secondary, disk: DiskState::UpToDate, current: before };
    assert!(w.forge(1, 2, late));
    assert_eq!(w.snapshot(2).generation, begun);
}

#[test]
fn a_target_takes_back_what_only_it_got_when_the_primary_calls_its_source_whole() {
    let mut w = one_behind();
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(1);
    assert_eq!(w.peer(1, 0).replication, ReplicationState::SyncTarget);
    // A write that never reaches the source, and so is not completed.
    w.hold = Some(Box::new(|a, b, m| (a, b) == (2, 0) && matches!(m, Message::Write { .. })));
    w.write(2, 2000, 9);
    assert_eq!(w.nodes[1].data.get(&2000), Some(&9));
    let mut peers = PeerSet::EMPTY;
    peers.insert(n(0));
    let range = ByteRange::new(2000 * 4096, 4096);
    assert!(w.forge(2, 1, Message::Missed { peers, range }));
    let current = w.snapshot(0).generation;
    assert!(w.forge(2, 1, Message::Synced { peer: n(0), current }));
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.nodes[1].data.get(&2000), None, "as at its source");
    assert_eq!(w.peer(1, 0).out_of_sync, 0);
}

#[test]
fn a_member_without_a_disk_misses_nothing_whatever_is_in_doubt() {
    let mut w = World::with_diskless(3);
    w.promote(0);
    w.write(0, 1, 1);
    w.kill(0);
    w.start(0);
    w.promote(0);
    w.kill(1);
    w.write(0, 2, 1);
    w.start(1);
    all_is_equal(&w);
    for i in [0, 1] {
        assert_eq!(w.peer(i, 2).out_of_sync, 0);
    }
}

#[test]
fn a_consistent_node_beside_one_whose_disk_cannot_be_used_is_promoted_by_force_only() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.kill(1);
    w.write(0, 2, 1);
    w.kill(0);
    // It comes back, and its metadata cannot be read.
    w.nodes[0].diskless = true;
    w.start(0);
    w.nodes[0].diskless = false;
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::Consistent);
    let promote = |force| Command::Promote { force };
    assert!(w.command(1, promote(false)).is_some_and(|result| result.is_err()));
    assert_eq!(w.command(1, promote(true)), Some(Ok(())));
}
