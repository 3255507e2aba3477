//! Two Secondaries: who of them copies to whom, and what a Primary has to do with it.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, CommandId, Event, Notice};
use holdfast_units::{ConnectionState, DiskState, GenerationId, ReplicationState, Role};
use holdfast_wire::Message;

/// Node 0 is Primary; node 2 lacks 50 blocks, and is not running.
fn primary_and_one_behind() -> World {
    let mut w = World::new(3);
    w.promote(0);
    w.kill(2);
    for block in 0..50 {
        w.write(0, block, 1);
    }
    w.log.clear();
    w
}

/// Between which nodes blocks were copied.
fn copied(w: &World) -> Vec<(u8, u8)> {
    let of_resync = |m: &Message| matches!(m, Message::ResyncData { .. });
    let mut pairs: Vec<_> =
        w.log.iter().filter(|(_, _, m)| of_resync(m)).map(|(a, b, _)| (*a, *b)).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

fn states(w: &World, a: u8, b: u8) -> (ReplicationState, ReplicationState) {
    (w.peer(a, b).replication, w.peer(b, a).replication)
}

const PAUSED: (ReplicationState, ReplicationState) =
    (ReplicationState::PausedSyncS, ReplicationState::PausedSyncT);
const ESTABLISHED: (ReplicationState, ReplicationState) =
    (ReplicationState::Established, ReplicationState::Established);

#[test]
fn who_does_not_see_the_primary_is_not_filled_behind_its_back() {
    let mut w = primary_and_one_behind();
    w.cut(0, 2);
    w.start(2);
    assert_eq!(states(&w, 1, 2), PAUSED);
    assert_eq!(w.snapshot(2).disk, DiskState::Outdated, "the Primary went on without it");
    assert_eq!(copied(&w), []);
    w.heal();
    assert_eq!(copied(&w), [(0, 2)]);
    assert_eq!(states(&w, 1, 2), ESTABLISHED);
    assert_eq!(w.peer(1, 2).out_of_sync + w.peer(2, 1).out_of_sync, 0);
    assert_eq!(w.nodes[2].data, w.nodes[0].data);
}

#[test]
fn near_a_primary_the_primary_fills_and_its_word_ends_the_pause() {
    let mut w = primary_and_one_behind();
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(2);
    assert_eq!(states(&w, 0, 2), (ReplicationState::SyncSource, ReplicationState::SyncTarget));
    assert_eq!(states(&w, 1, 2), PAUSED);
    assert_eq!(w.peer(1, 2).out_of_sync, 50 * 4096);
    w.log.clear();
    w.nodes[0].hold_op = None;
    w.hold = Some(Box::new(|_, _, m| matches!(m, Message::Synced { .. })));
    w.run();
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    assert_eq!(states(&w, 1, 2), PAUSED, "the Primary has not said so");
    assert_eq!(w.peer(1, 2).out_of_sync, 50 * 4096);
    w.hold = None;
    w.run();
    assert_eq!(copied(&w), [(0, 2)]);
    assert_eq!(states(&w, 1, 2), ESTABLISHED);
    assert_eq!(w.peer(1, 2).out_of_sync + w.peer(2, 1).out_of_sync, 0);
}

#[test]
fn without_a_primary_secondaries_copy_from_each_other() {
    let mut w = primary_and_one_behind();
    w.kill(0);
    w.start(2);
    assert_eq!(copied(&w), [(1, 2)]);
    assert_eq!(states(&w, 1, 2), ESTABLISHED);
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

/// Two that are equal and both Outdated say so of each other, or each would fill a third one over and
/// over, because that one may have come to differ by what the other one gave it.
#[test]
fn two_equal_ones_that_are_outdated_fill_a_third_one_and_are_done() {
    let mut w = World::new(4);
    w.promote(3);
    w.kill(2);
    for block in 0..50 {
        w.write(3, block, 1);
    }
    for i in [0, 1] {
        let leave = Command::Disconnect { peer: Some(n(3)) };
        assert_eq!(w.command(i, leave), Some(Ok(())));
    }
    w.kill(3);
    w.log.clear();
    w.start(2);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_eq!(
            (w.snapshot(a).disk, w.snapshot(b).disk),
            (DiskState::Outdated, DiskState::Outdated)
        );
        assert_eq!(states(&w, a, b), ESTABLISHED);
        assert_eq!(w.peer(a, b).out_of_sync + w.peer(b, a).out_of_sync, 0);
    }
    assert!(w.resynced() <= 2 * 50 * 4096, "from each of them once at most");
    assert_eq!(w.nodes[2].data, w.nodes[0].data);
}

#[test]
fn a_pause_ends_with_its_primary() {
    let mut w = primary_and_one_behind();
    w.cut(0, 2);
    w.start(2);
    assert_eq!(states(&w, 1, 2), PAUSED);
    w.kill(0);
    assert_eq!(copied(&w), [(1, 2)]);
    assert_eq!(states(&w, 1, 2), ESTABLISHED);
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

/// Nodes 0 and 1 are both Primary, and node 2, which follows 0, can be reached by both.
fn two_primaries() -> World {
    let mut w = World::new(3);
    w.promote(0);
    w.cut(0, 1);
    w.cut(1, 2);
    w.promote(1);
    w.log.clear();
    w.heal_between(1, 2);
    w
}

fn writes_of(w: &World, from: u8, to: u8) -> usize {
    let is_write = |(a, b, m): &&(u8, u8, Message)| {
        (*a, *b) == (from, to) && matches!(m, Message::Write { .. })
    };
    w.log.iter().filter(is_write).count()
}

#[test]
fn nobody_takes_the_writes_of_two_primaries() {
    let mut w = two_primaries();
    for i in [1, 2] {
        assert_eq!(w.peer(i, 3 - i).connection, ConnectionState::Connecting, "it waits");
        assert_eq!(w.peer(i, 3 - i).role, Role::Unknown);
    }
    let id = w.write(1, 5, 5);
    assert!(w.ok(1, id), "alone");
    let id = w.write(0, 5, 6);
    assert!(w.ok(0, id));
    assert_eq!((writes_of(&w, 0, 2), writes_of(&w, 1, 2)), (1, 0));
    assert_eq!(w.nodes[2].data.get(&5), Some(&6));
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
}

#[test]
fn the_handshake_with_a_second_primary_ends_after_a_while_and_is_tried_again() {
    let mut w = two_primaries();
    let hellos = |w: &World| {
        let is_hello = |m: &Message| matches!(m, Message::Hello(_));
        w.log.iter().filter(|(a, b, m)| (*a, *b) == (1, 2) && is_hello(m)).count()
    };
    assert_eq!(hellos(&w), 1);
    w.pass(9_900);
    assert_eq!(hellos(&w), 1);
    w.pass(200);
    assert_eq!(hellos(&w), 2);
    assert!(w.nodes[1].notices.contains(&Notice::PeerTimeout(n(2))));
    assert_eq!(w.peer(1, 2).connection, ConnectionState::Connecting);
    // It was only not noticed yet that the first one is gone.
    w.kill(0);
    assert_eq!(w.peer(1, 2).connection, ConnectionState::Connected);
    let id = w.write(1, 5, 5);
    assert!(w.ok(1, id));
    assert_eq!(w.nodes[2].data.get(&5), Some(&5));
}

#[test]
fn the_connection_to_one_that_becomes_a_second_primary_ends() {
    let mut w = World::new(3);
    w.promote(0);
    w.cut(0, 1);
    w.cut(0, 2);
    // Node 2 has agreed, and sees the first Primary again before it hears of the second one.
    w.hold =
        Some(Box::new(|a, b, m| (a, b) == (2, 1) && matches!(m, Message::PromoteReply { .. })));
    w.event(1, Event::Command(CommandId(1000), Command::Promote { force: false }));
    w.run();
    w.heal_between(0, 2);
    assert_eq!(w.peer(2, 0).connection, ConnectionState::Connected);
    w.hold = None;
    w.run();
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
    assert!(w.nodes[2].notices.contains(&Notice::TwoPrimaries(n(1))));
    assert_eq!(w.peer(2, 1).connection, ConnectionState::Connecting);
    w.log.clear();
    let id = w.write(1, 5, 5);
    assert!(w.ok(1, id), "alone");
    assert_eq!(writes_of(&w, 1, 2), 0);
    assert_eq!(w.peer(2, 0).connection, ConnectionState::Connected);
}

#[test]
fn an_outdated_primary_is_up_to_date_when_all_members_are_connected_and_equal() {
    let mut w = primary_and_one_behind();
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    w.nodes[2].hold_op = Some(|op| matches!(op, Action::DiskWrite { .. }));
    w.start(2);
    w.promote(2);
    // One that has good data leaves, the other one dies; so the Primary is filled with Outdated data.
    assert_eq!(w.command(0, Command::Disconnect { peer: Some(n(2)) }), Some(Ok(())));
    assert_eq!(w.snapshot(0).disk, DiskState::Outdated);
    w.kill(1);
    assert_eq!(w.command(0, Command::Connect { peer: None, discard_my_data: false }), Some(Ok(())));
    w.nodes[2].hold_op = None;
    w.run();
    assert_eq!((w.snapshot(2).role, w.snapshot(2).disk), (Role::Primary, DiskState::Outdated));
    w.start(1);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_eq!(states(&w, a, b), ESTABLISHED);
    }
    for i in 0..3 {
        assert_eq!(w.snapshot(i).disk, DiskState::UpToDate);
        assert_eq!(w.nodes[usize::from(i)].data, w.nodes[0].data);
    }
}

#[test]
fn who_gets_no_writes_of_a_primary_that_begins_a_generation_is_outdated() {
    let mut w = World::new(2);
    w.promote(0);
    // Not told as a generation that it takes over: the data that are worked with are elsewhere.
    let current = GenerationId(0x2000);
    let (role, disk) = (Role::Primary, DiskState::UpToDate);
    assert!(w.forge(0, 1, Message::Changed { role, disk, current }));
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    w.kill(0);
    w.kill(1);
    w.start(1);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated, "it remembers that");
}

#[test]
fn a_source_tells_its_target_only_of_those_as_equal_that_still_answer() {
    let mut w = primary_and_one_behind();
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    w.start(2);
    // Node 1 dies, and nobody notices.
    w.hold = Some(Box::new(|a, b, _| a == 1 || b == 1));
    w.nodes[0].hold_op = None;
    w.log.clear();
    w.run();
    let sent = |w: &World, what: fn(&Message) -> bool| {
        w.log.iter().filter(|(a, b, m)| (*a, *b) == (0, 2) && what(m)).count()
    };
    assert_eq!(w.nodes[2].data, w.nodes[0].data);
    assert_eq!(sent(&w, |m| matches!(m, Message::ResyncGenerations { .. })), 0);
    w.lose_power(1);
    assert_eq!(sent(&w, |m| matches!(m, Message::ResyncGenerations { .. })), 1);
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    assert_eq!(w.peer(2, 1).out_of_sync, 50 * 4096, "it may come back with less");
    w.hold = None;
    w.start(1);
    assert_eq!(w.nodes[1].data, w.nodes[2].data);
}

#[test]
fn what_a_lost_primary_had_not_settled_counts_as_missing_there_too() {
    let mut w = World::new(3);
    w.promote(0);
    w.write(0, 1, 1);
    w.pass(1000);
    w.hold = Some(Box::new(|a, b, m| (a, b) == (0, 2) && matches!(m, Message::Write { .. })));
    let id = w.write(0, 5, 7);
    assert_eq!(w.result(0, id), None, "it reached node 1 and not node 2");
    let link = w.link(0, 1).unwrap();
    w.lose_power_unseen(0, 1);
    w.hold = None;
    w.start(0);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate, "node 2 filled it");
    assert_eq!((w.nodes[0].data.get(&5), w.nodes[1].data.get(&5)), (None, Some(&7)));
    w.hold = Some(Box::new(|a, b, _| (a.min(b), a.max(b)) == (1, 2)));
    w.notice_loss(1, 0, link);
    w.hold = None;
    w.run();
    assert_eq!(states(&w, 0, 1), ESTABLISHED);
    assert_eq!(states(&w, 1, 2), ESTABLISHED);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.nodes[0].data, w.nodes[2].data);
}
