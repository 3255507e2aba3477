//! Whose data are given up: what a person says, and what a half-filled disk knows.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, Notice, Refusal};
use holdfast_units::{ConnectionState, DiskState, ReplicationState};
use holdfast_wire::Message;

fn connect(w: &mut World, i: u8, peer: Option<u8>, discard_my_data: bool) {
    let command = Command::Connect { peer: peer.map(n), discard_my_data };
    assert_eq!(w.command(i, command), Some(Ok(())));
}

fn demote(w: &mut World, i: u8) {
    assert_eq!(w.command(i, Command::Demote { force: false }), Some(Ok(())));
}

fn standalone(w: &World, a: u8, b: u8) -> bool {
    w.peer(a, b).connection == ConnectionState::StandAlone
}

fn equal(w: &World, a: u8, b: u8) {
    assert_eq!(w.nodes[usize::from(a)].data, w.nodes[usize::from(b)].data);
    assert_eq!(w.snapshot(a).generation, w.snapshot(b).generation);
    for (a, b) in [(a, b), (b, a)] {
        assert_eq!(w.snapshot(a).disk, DiskState::UpToDate);
        assert_eq!(w.peer(a, b).replication, ReplicationState::Established);
        assert_eq!(w.peer(a, b).out_of_sync, 0);
    }
}

/// Every node was Primary apart from the others and has written its number plus 1 into block 9.
fn split(count: u8) -> World {
    let mut w = World::new(count);
    for a in 0..count {
        for b in a + 1..count {
            w.cut(a, b);
        }
    }
    for i in 0..count {
        w.promote(i);
        let id = w.write(i, 9, i + 1);
        assert!(w.ok(i, id));
    }
    for i in 0..count {
        demote(&mut w, i);
    }
    w.heal();
    for a in 0..count {
        for b in (0..count).filter(|b| *b != a) {
            assert!(standalone(&w, a, b));
            assert!(w.nodes[usize::from(a)].notices.contains(&Notice::SplitBrain(n(b))));
        }
    }
    w.log.clear();
    w
}

#[test]
fn a_split_brain_is_resolved_by_the_victim_whichever_it_is() {
    for (victim, survivor) in [(0u8, 1u8), (1, 0)] {
        let mut w = split(2);
        connect(&mut w, survivor, None, false);
        connect(&mut w, victim, None, true);
        equal(&w, 0, 1);
        assert_eq!(w.nodes[usize::from(victim)].data.get(&9), Some(&(survivor + 1)));
        assert_eq!(w.resynced(), 4096, "both noted what they wrote");
    }
}

#[test]
fn without_a_victim_or_with_two_a_split_brain_stays() {
    for said in [false, true] {
        let mut w = split(2);
        connect(&mut w, 0, None, said);
        connect(&mut w, 1, None, said);
        assert!(standalone(&w, 0, 1) && standalone(&w, 1, 0));
        assert_eq!((w.nodes[0].data.get(&9), w.nodes[1].data.get(&9)), (Some(&1), Some(&2)));
        assert_eq!(w.resynced(), 0);
    }
}

#[test]
fn what_was_said_of_other_data_is_void() {
    let mut w = split(3);
    connect(&mut w, 2, None, true);
    connect(&mut w, 0, Some(2), false);
    equal(&w, 0, 2);
    assert_eq!(w.nodes[2].data.get(&9), Some(&1));
    // What node 2 gave up is gone; the data that it has now are those of node 0.
    connect(&mut w, 1, Some(2), false);
    assert!(standalone(&w, 1, 2) && standalone(&w, 2, 1));
    assert_eq!(w.nodes[2].data.get(&9), Some(&1));
    connect(&mut w, 2, Some(1), true);
    connect(&mut w, 1, Some(2), false);
    equal(&w, 1, 2);
    assert_eq!(w.nodes[2].data.get(&9), Some(&2));
}

#[test]
fn what_was_said_counts_for_one_verdict() {
    let mut w = World::new(2);
    w.cut(0, 1);
    connect(&mut w, 1, None, true);
    w.heal();
    // It was not needed.
    equal(&w, 0, 1);
    w.cut(0, 1);
    for i in [0, 1] {
        w.promote(i);
        w.write(i, 9, i + 10);
        demote(&mut w, i);
    }
    w.heal();
    assert!(standalone(&w, 0, 1) && standalone(&w, 1, 0));
}

#[test]
fn a_primary_gives_nothing_up() {
    let mut w = split(2);
    w.promote(1);
    let discard = Command::Connect { peer: None, discard_my_data: true };
    assert_eq!(w.command(1, discard.clone()), Some(Err(Refusal::IsPrimary)));
    demote(&mut w, 1);
    // Said before the promotion, it is void with that.
    assert_eq!(w.command(1, discard), Some(Ok(())));
    w.promote(1);
    connect(&mut w, 0, None, false);
    assert!(standalone(&w, 0, 1) && standalone(&w, 1, 0));
    assert_eq!(w.nodes[1].data.get(&9), Some(&2));
}

/// Node 0 has newer data, and node 1 with the older ones is Primary.
fn primary_behind() -> World {
    let mut w = World::new(2);
    w.promote(0);
    w.cut(0, 1);
    w.write(0, 9, 1);
    demote(&mut w, 0);
    w.promote(1);
    w.heal();
    w
}

#[test]
fn a_primary_is_not_filled_over_data_in_use() {
    let w = primary_behind();
    for i in [0u8, 1] {
        assert!(standalone(&w, i, 1 - i));
        let told =
            |notice: &Notice| matches!(notice, Notice::PeerRefused(node, _) if *node == n(1 - i));
        assert!(w.nodes[usize::from(i)].notices.iter().any(told));
    }
    assert_eq!(w.nodes[1].data.get(&9), None);
}

#[test]
fn newer_data_are_given_up_for_those_of_a_primary_when_a_person_says_so() {
    let mut w = primary_behind();
    w.log.clear();
    connect(&mut w, 1, None, false);
    connect(&mut w, 0, None, true);
    equal(&w, 0, 1);
    assert_eq!(w.nodes[0].data.get(&9), None);
    assert!(
        w.log.iter().all(|(from, _, m)| !matches!(m, Message::ResyncData { .. }) || *from == 1)
    );
    let id = w.write(1, 9, 5);
    assert!(w.ok(1, id));
    assert_eq!(w.nodes[0].data.get(&9), Some(&5));
}

/// Node 0 has the newest data and is gone; node 2 was being filled with them, node 1 has the old ones.
fn half_filled() -> World {
    let mut w = World::new(3);
    w.promote(0);
    for block in 0..1000 {
        w.write(0, block, 1);
    }
    w.kill(1);
    w.kill(2);
    for block in 500..1000 {
        w.write(0, block, 2);
    }
    let late =
        |op: &Action| matches!(op, Action::DiskWrite { range, .. } if range.blocks().start >= 700);
    w.nodes[2].hold_op = Some(late);
    w.start(2);
    assert_eq!(w.peer(2, 0).replication, ReplicationState::SyncTarget);
    assert_eq!((w.nodes[2].data.get(&600), w.nodes[2].data.get(&800)), (Some(&2), Some(&1)));
    w.kill(2);
    w.kill(0);
    w.nodes[2].hold_op = None;
    w
}

#[test]
fn a_half_filled_disk_waits_for_the_newer_data_that_it_was_to_get() {
    let mut w = half_filled();
    w.start(2);
    w.log.clear();
    w.start(1);
    assert_eq!(w.resynced(), 0);
    assert_eq!(w.peer(1, 2).connection, ConnectionState::Connected);
    assert_eq!(w.snapshot(2).disk, DiskState::Inconsistent);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated, "it knows now that there are newer ones");
    let promote = |force| Command::Promote { force };
    assert_eq!(w.command(1, promote(false)), Some(Err(Refusal::Outdated)));
    assert_eq!(w.command(2, promote(false)), Some(Err(Refusal::Inconsistent)));
    // The newer ones come back.
    w.start(0);
    equal(&w, 0, 1);
    equal(&w, 0, 2);
    assert_eq!(w.nodes[2].data.get(&800), Some(&2));
}

#[test]
fn a_person_decides_that_the_older_data_count() {
    let mut w = half_filled();
    w.start(2);
    w.start(1);
    assert_eq!(w.snapshot(2).disk, DiskState::Inconsistent);
    assert_eq!(w.command(1, Command::Promote { force: true }), Some(Ok(())));
    equal(&w, 1, 2);
    assert_eq!(w.nodes[2].data.get(&600), Some(&1));
    w.write(1, 9, 9);
    // Those of node 0 are split off from these.
    w.start(0);
    assert!(standalone(&w, 0, 1));
    assert_eq!(w.nodes[0].data.get(&600), Some(&2));
}

#[test]
fn half_filled_data_can_be_made_current_by_decree() {
    let mut w = half_filled();
    w.start(2);
    assert_eq!(w.command(2, Command::Promote { force: true }), Some(Ok(())));
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    assert_eq!(w.read(2, 600), Ok(2));
    // Nobody's data came from these, nor these from anybody's.
    for i in [1, 0] {
        w.start(i);
        assert!(standalone(&w, i, 2) && standalone(&w, 2, i));
        assert!(w.nodes[2].notices.contains(&Notice::SplitBrain(n(i))));
    }
}

/// Node 0 has the newest data and is gone; node 2 had them too, and they were to be copied to it anew.
/// Node 1 has the old ones.
fn given_up() -> World {
    let mut w = World::new(3);
    w.promote(0);
    for block in 0..1000 {
        w.write(0, block, 1);
    }
    w.kill(1);
    for block in 500..1000 {
        w.write(0, block, 2);
    }
    // What is equal is not written: nothing is compared either.
    let held = |op: &Action| matches!(op, Action::DiskRead { .. } | Action::DiskWrite { .. });
    w.nodes[2].hold_op = Some(held);
    assert_eq!(w.command(2, Command::Invalidate { peer: None }), Some(Ok(())));
    w.kill(2);
    w.kill(0);
    w.nodes[2].hold_op = None;
    w
}

#[test]
fn a_primary_with_good_data_fills_a_half_filled_disk_that_had_newer_ones() {
    let mut w = given_up();
    w.start(1);
    w.promote(1);
    w.start(2);
    equal(&w, 1, 2);
    assert_eq!(w.nodes[2].data.get(&600), Some(&1));
    w.write(1, 9, 9);
    w.start(0);
    assert!(standalone(&w, 0, 1));
    assert_eq!(w.nodes[0].data.get(&600), Some(&2));
}

#[test]
fn a_half_filled_disk_that_had_newer_data_gives_them_up_when_a_person_says_so() {
    let mut w = given_up();
    w.start(1);
    w.start(2);
    assert_eq!(w.command(2, Command::Disconnect { peer: None }), Some(Ok(())));
    assert_eq!(w.snapshot(2).disk, DiskState::Inconsistent, "newer ones are waited for");
    connect(&mut w, 2, None, true);
    assert_eq!(w.snapshot(2).disk, DiskState::Outdated, "as the one that they were copied from");
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}
