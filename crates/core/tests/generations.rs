//! New generations: when they begin, what waits for them, and who has them in the end.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, Notice, RequestKind};
use holdfast_units::{ConnectionState, DiskState, Role};
use holdfast_wire::Message;

/// Verdicts of this node stay under way, so that its peer reports and begins no generation.
fn hold_verdicts_of(w: &mut World, node: u8) {
    w.hold = Some(Box::new(move |from, _, m| from == node && matches!(m, Message::Verdict { .. })));
}

fn release(w: &mut World) {
    w.hold = None;
    w.run();
}

#[test]
fn a_write_that_waits_for_a_generation_goes_on_when_the_lost_member_is_back() {
    let mut w = World::new(2);
    w.promote(1);
    let before = w.snapshot(1).generation;
    w.cut(0, 1);
    hold_verdicts_of(&mut w, 0);
    w.heal();
    let id = w.write(1, 3, 3);
    assert_eq!(w.result(1, id), None, "the member that was lost does not get it yet");
    assert!(w.nodes[1].data.is_empty(), "it has not begun");
    release(&mut w);
    assert!(w.ok(1, id));
    assert_eq!(w.snapshot(1).generation, before, "nobody missed anything");
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn what_a_member_missed_gets_its_generation_although_it_is_back() {
    let mut w = World::new(3);
    w.promote(2);
    // Node 1 is away and known to be; then it stands in a handshake that does not end, so that the
    // Primary can begin no generation.
    w.cut(1, 2);
    w.write(2, 0, 1);
    hold_verdicts_of(&mut w, 1);
    w.heal();
    let before = w.snapshot(2).generation;
    w.nodes[2].hold_disk = true;
    let id = w.write(2, 3, 3);
    w.cut(0, 2);
    w.nodes[0].data.remove(&3);
    w.heal();
    assert_eq!(w.peer(2, 0).connection, ConnectionState::Connected);
    w.nodes[2].hold_disk = false;
    w.run();
    assert_eq!(w.result(2, id), None, "nobody durably knows yet that it was missed");
    assert_eq!(w.snapshot(2).generation, before);
    release(&mut w);
    assert!(w.ok(2, id));
    assert_ne!(w.snapshot(2).generation, before);
    for i in [0, 1] {
        assert_eq!(w.snapshot(i).generation, w.snapshot(2).generation);
        assert_eq!(w.nodes[usize::from(i)].data, w.nodes[2].data);
    }
}

#[test]
fn a_write_that_a_member_missed_waits_until_that_is_durable_at_the_others() {
    let mut w = World::new(3);
    w.promote(0);
    w.nodes[0].hold_disk = true;
    let id = w.write(0, 3, 3);
    w.hold = Some(Box::new(|_, _, m| matches!(m, Message::GenerationAck { .. })));
    // It has answered, but it is lost before the write completes.
    w.kill(2);
    w.nodes[0].hold_disk = false;
    w.run();
    assert_eq!(w.result(0, id), None, "the other member has not said that it knows");
    release(&mut w);
    assert!(w.ok(0, id));
    w.kill(0);
    w.promote(1);
    w.start(2);
    assert_eq!(w.peer(1, 2).connection, ConnectionState::Connected);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

#[test]
fn who_loses_its_disk_says_so_before_it_answers_what_waited_for_it() {
    let mut w = World::new(3);
    w.promote(0);
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskFlush { .. }));
    w.request(0, RequestKind::Flush);
    w.nodes[1].hold_meta = true;
    w.kill(2);
    w.write(0, 3, 3);
    w.log.clear();
    w.nodes[1].fail_flush = true;
    w.nodes[1].hold_op = None;
    w.run();
    let from_1: Vec<&Message> =
        w.log.iter().filter(|(a, b, _)| (*a, *b) == (1, 0)).map(|(_, _, m)| m).collect();
    let at = |what: fn(&Message) -> bool| from_1.iter().position(|m| what(m)).expect("it says so");
    let lost = at(|m| matches!(m, Message::Changed { disk: DiskState::Failed, .. }));
    let answer = at(|m| matches!(m, Message::GenerationAck { .. }));
    assert!(lost < answer, "its disk does not have the new generation");
}

#[test]
fn a_half_filled_primary_that_is_killed_is_no_split_brain() {
    let mut w = World::new(3);
    for block in 0..50 {
        w.nodes[0].data.insert(block, 1);
    }
    for i in [1, 2] {
        w.nodes[i].data = w.nodes[0].data.clone();
    }
    w.limit_resync_window(1, 1 << 20);
    w.nodes[0].hold_op = Some(|op| matches!(op, Action::DiskRead { .. }));
    assert_eq!(w.command(1, Command::Invalidate { peer: None }), Some(Ok(())));
    w.promote(1);
    assert_eq!(w.snapshot(1).disk, DiskState::Inconsistent);
    let before = w.snapshot(0).generation;
    w.kill(2);
    let id = w.write(1, 2000, 7);
    assert!(w.ok(1, id), "the peer's disk has it");
    assert_ne!(w.snapshot(0).generation, before, "a new generation, which the Primary lacks");
    assert_eq!(w.snapshot(1).generation, before);
    w.kill(1);
    w.start(1);
    for (a, b) in [(0, 1), (1, 0)] {
        assert_eq!(w.peer(a, b).connection, ConnectionState::Connected);
        assert!(!w.nodes[usize::from(a)].notices.contains(&Notice::SplitBrain(n(b))));
    }
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.snapshot(1).role, Role::Secondary);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.nodes[1].data.get(&2000), Some(&7));
}

#[test]
fn a_member_that_is_back_and_has_filled_another_one_notes_durably_what_that_misses() {
    let mut w = World::new(3);
    w.promote(0);
    w.cut(0, 2);
    let id = w.write(0, 1, 1);
    assert!(w.ok(0, id));
    // Node 1 brings node 2 up to date while the Primary is away, which writes nothing meanwhile.
    w.cut(0, 1);
    assert_eq!(w.nodes[2].data.get(&1), Some(&1));
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    let before = w.snapshot(2).generation;
    assert_eq!(w.snapshot(0).generation, before);
    w.cut(1, 2);
    w.heal_between(0, 1);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::Connected);
    let id = w.write(0, 2, 2);
    assert!(w.ok(0, id));
    w.kill(0);
    w.kill(1);
    w.promote(2);
    w.write(2, 3, 3);
    w.start(1);
    w.heal();
    assert_eq!(w.peer(1, 2).connection, ConnectionState::StandAlone);
    assert!(w.nodes[1].notices.contains(&Notice::SplitBrain(n(2))));
    assert_eq!(w.nodes[1].data.get(&2), Some(&2), "a write that was completed is not undone");
}
