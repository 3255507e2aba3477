//! A peer that was away shortly is caught up from the Primary's journal.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, RequestKind};
use holdfast_units::{DiskState, ReplicationState};
use holdfast_wire::Message;

/// Two or more nodes with equal data; the first is Primary and has a journal with a write in it.
fn with_journal(count: u8) -> World {
    let mut w = World::new(count);
    w.promote(0);
    w.nodes[0].journal = Some(Vec::new());
    w.write(0, 0, 1);
    w.log.clear();
    w
}

/// The positions that were replayed to a node, or `None` for a flush, in order.
fn replayed(w: &World, to: u8) -> Vec<Option<u64>> {
    let to_it = w.log.iter().filter(|(from, at, _)| (*from, *at) == (0, to));
    let told = to_it.filter_map(|(_, _, message)| match message {
        Message::Replay { id, .. } => Some(Some(*id)),
        Message::Flush { id } if id >> 63 == 1 => Some(None),
        _ => None,
    });
    told.collect()
}

fn position(w: &World, index: usize) -> u64 {
    w.nodes[0].journal.as_ref().expect("it has one")[index].position.0
}

fn was_inconsistent(w: &World) -> bool {
    let bad = |m: &Message| {
        matches!(m, Message::Changed { disk: DiskState::Inconsistent, .. } | Message::Bitmap { .. })
    };
    w.log.iter().any(|(_, _, message)| bad(message))
}

fn assert_level(w: &World, peer: u8) {
    assert_eq!(w.peer(0, peer).replication, ReplicationState::Established);
    assert_eq!(w.snapshot(peer).disk, DiskState::UpToDate);
    assert_eq!(w.peer(0, peer).out_of_sync, 0);
    assert_eq!(w.snapshot(0).generation, w.snapshot(peer).generation);
    assert_eq!(w.nodes[0].data, w.nodes[usize::from(peer)].data);
}

#[test]
fn it_gets_what_it_did_not_answer_and_what_came_behind() {
    let mut w = with_journal(2);
    w.nodes[1].hold_op = Some(
        |action| matches!(action, Action::DiskWrite { range, .. } if range.offset == 5 * 4096),
    );
    let open = w.write(0, 5, 2);
    let answered = w.write(0, 6, 3);
    assert!(w.ok(0, answered) && !w.ok(0, open));
    w.cut(0, 1);
    assert!(w.ok(0, open), "it is done without the peer");
    w.write(0, 7, 4);
    w.nodes[1].hold_op = None;
    w.log.clear();
    w.heal();
    let (open, behind) = (position(&w, 1), position(&w, 3));
    assert_eq!(replayed(&w, 1), [Some(open), Some(behind), None], "and not what it answered");
    assert!(!was_inconsistent(&w));
    assert_level(&w, 1);
    let live = w.write(0, 8, 5);
    assert!(w.ok(0, live));
    assert_eq!(w.nodes[1].data.get(&8), Some(&5), "writes go to it again");
}

#[test]
fn a_flush_comes_before_what_came_behind_one() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    w.write(0, 1, 2);
    w.write(0, 2, 3);
    w.request(0, RequestKind::Flush);
    w.write(0, 1, 4);
    w.log.clear();
    w.heal();
    let at = |index| Some(position(&w, index));
    assert_eq!(replayed(&w, 1), [at(1), at(2), None, at(3), None]);
    assert_level(&w, 1);
}

#[test]
fn it_is_outdated_before_anything_is_written_and_goes_on_where_it_was_cut_off() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    for block in 1..=4 {
        w.write(0, block, 7);
    }
    w.nodes[1].hold_op = Some(
        |action| matches!(action, Action::DiskWrite { range, .. } if range.offset == 2 * 4096),
    );
    w.heal();
    let (here, there) = (w.peer(0, 1), w.peer(1, 0));
    assert_eq!(
        (here.replication, there.replication),
        (ReplicationState::SyncSource, ReplicationState::SyncTarget)
    );
    assert!(here.behind && there.behind && here.resync.unwrap().total > 0);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    let flags = w.on_disk(1).superblock.flags;
    assert!(flags.contains(holdfast_format::DiskFlags::OUTDATED));
    assert!(flags.contains(holdfast_format::DiskFlags::CONSISTENT));
    w.cut(0, 1);
    w.nodes[1].hold_op = None;
    w.log.clear();
    w.heal();
    assert_eq!(replayed(&w, 1), [Some(position(&w, 2)), None], "the one that was not answered");
    assert!(!was_inconsistent(&w));
    assert_level(&w, 1);
}

#[test]
fn writes_wait_for_it_only_a_moment() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    w.write(0, 1, 2);
    w.nodes[1].hold_disk = true;
    w.heal();
    let late = w.write(0, 2, 3);
    assert_eq!(w.result(0, late), None, "the rest goes first");
    w.pass(501);
    assert!(w.ok(0, late), "but not for ever");
    let next = w.write(0, 3, 4);
    assert!(w.ok(0, next));
    w.nodes[1].hold_disk = false;
    w.run();
    w.pass(2000);
    assert!(!was_inconsistent(&w));
    assert_level(&w, 1);
}

#[test]
fn what_is_not_kept_any_more_goes_by_the_bitmap() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    w.write(0, 1, 2);
    w.nodes[0].holds_journal = true;
    w.heal();
    w.write(0, 2, 3);
    w.nodes[0].journal = Some(Vec::new());
    w.go_on_reading(0);
    w.pass(600);
    assert!(was_inconsistent(&w));
    assert_level(&w, 1);
}

#[test]
fn a_killed_peer_is_caught_up_and_one_that_lost_its_power_is_not() {
    let mut w = with_journal(2);
    w.kill(1);
    w.write(0, 1, 2);
    w.log.clear();
    w.start(1);
    assert!(!was_inconsistent(&w));
    assert_level(&w, 1);
    w.lose_power(1);
    w.write(0, 2, 3);
    w.log.clear();
    w.start(1);
    assert!(replayed(&w, 1).is_empty() && was_inconsistent(&w));
    assert_level(&w, 1);
}

#[test]
fn among_three_only_a_peer_that_knows_who_changed_its_disk_is_caught_up() {
    let mut w = with_journal(3);
    w.cut(0, 1);
    w.write(0, 1, 2);
    w.log.clear();
    w.heal();
    assert!(!replayed(&w, 1).is_empty());
    assert_level(&w, 1);
    assert_eq!(w.peer(2, 1).out_of_sync, 0, "the third hears of it");
    w.kill(1);
    w.write(0, 2, 3);
    w.log.clear();
    w.start(1);
    assert!(replayed(&w, 1).is_empty(), "another one may have filled it");
    assert_level(&w, 1);
}

#[test]
fn a_primary_that_was_demoted_meanwhile_goes_by_the_bitmap() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    w.write(0, 1, 2);
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    w.promote(0);
    w.log.clear();
    w.heal();
    assert!(replayed(&w, 1).is_empty() && was_inconsistent(&w));
    assert_level(&w, 1);
}

#[test]
fn a_peer_that_wrote_apart_is_not_caught_up() {
    let mut w = with_journal(2);
    w.cut(0, 1);
    w.write(0, 1, 2);
    assert_eq!(w.command(1, Command::Promote { force: true }), Some(Ok(())));
    w.write(1, 1, 9);
    assert_eq!(w.command(1, Command::Demote { force: false }), Some(Ok(())));
    w.log.clear();
    w.heal();
    assert!(replayed(&w, 1).is_empty());
    assert_eq!(w.nodes[1].data.get(&1), Some(&9), "a person decides");
    assert_eq!(w.peer(0, 1).node, n(1));
}

#[test]
fn a_write_that_is_still_under_way_elsewhere_is_missed_by_who_is_lost_again() {
    let mut w = with_journal(3);
    w.cut(0, 1);
    w.nodes[2].hold_op = Some(
        |action| matches!(action, Action::DiskWrite { range, .. } if range.offset == 5 * 4096),
    );
    let open = w.write(0, 5, 2);
    w.heal_between(0, 1);
    assert_level(&w, 1);
    assert!(!w.ok(0, open), "the third has not stored it");
    w.cut(0, 1);
    // Another one that never got it may give its own block back to it.
    assert_eq!(w.peer(0, 1).out_of_sync, 4096);
    w.nodes[2].hold_op = None;
    w.run();
    assert!(w.ok(0, open));
    w.log.clear();
    w.heal();
    assert_eq!(replayed(&w, 1), [Some(position(&w, 1)), None]);
    assert_level(&w, 1);
}

/// A new generation cannot begin while a verdict is waited for, and who missed the write is back first.
#[test]
fn a_write_is_answered_when_who_missed_it_was_caught_up_before_a_new_generation_began() {
    let mut w = World::new(3);
    w.promote(2);
    w.nodes[2].journal = Some(Vec::new());
    w.write(2, 0, 1);
    w.cut(0, 2);
    w.write(2, 3, 2);
    w.hold =
        Some(Box::new(|from, to, m| (from, to) == (0, 2) && matches!(m, Message::Verdict { .. })));
    w.heal_between(0, 2);
    w.nodes[1].hold_op = Some(
        |action| matches!(action, Action::DiskWrite { range, .. } if range.offset == 5 * 4096),
    );
    let open = w.write(2, 5, 2);
    w.cut(1, 2);
    assert!(!w.ok(2, open), "it is not durably known that node 1 misses it");
    w.nodes[1].hold_op = None;
    w.heal_between(1, 2);
    let replay = |m: &Message| matches!(m, Message::Replay { .. });
    assert!(
        w.log.iter().any(|(from, to, m)| (*from, *to) == (2, 1) && replay(m)),
        "by the journal"
    );
    assert_eq!(w.peer(2, 1).replication, ReplicationState::Established);
    assert!(w.ok(2, open));
}
