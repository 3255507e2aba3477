//! Who may become Primary, and how nodes leave.

mod common;

use common::{World, n};
use holdfast_core::{Command, CommandId, Event, Refusal};
use holdfast_units::{ConnectionState, DiskState, ReplicationState, Role};
use holdfast_wire::Message;

fn promotion(w: &mut World, i: u8, force: bool) -> Option<Result<(), Refusal>> {
    w.command(i, Command::Promote { force })
}

fn begin_promotion(w: &mut World, i: u8, id: u64) {
    w.event(i, Event::Command(CommandId(id), Command::Promote { force: false }));
}

fn disconnect(w: &mut World, i: u8) {
    assert_eq!(w.command(i, Command::Disconnect { peer: None }), Some(Ok(())));
}

fn stop(w: &mut World, i: u8) {
    assert_eq!(w.command(i, Command::Stop), Some(Ok(())));
    w.kill(i);
}

#[test]
fn nobody_is_promoted_while_a_peer_is_connected_to_a_primary() {
    let mut w = World::new(3);
    w.promote(0);
    w.cut(0, 1);
    assert_eq!(w.peer(1, 0).role, Role::Unknown);
    for force in [false, true] {
        let refused = Some(Err(Refusal::PeerIsPrimary(n(2))));
        assert_eq!(promotion(&mut w, 1, force), refused);
        assert_eq!(w.snapshot(1).role, Role::Secondary);
    }
    let id = w.write(0, 1, 1);
    assert!(w.ok(0, id));
}

#[test]
fn nobody_is_promoted_under_a_connected_primary() {
    let mut w = World::new(3);
    w.promote(0);
    for force in [false, true] {
        assert_eq!(promotion(&mut w, 1, force), Some(Err(Refusal::PeerIsPrimary(n(0)))));
    }
    let refused = Some(&Err(Refusal::PeerIsPrimary(n(0))));
    w.hold = Some(Box::new(|from, _, _| from == 0));
    for (id, force) in [(1000, false), (1001, true)] {
        w.next_command(1, id, Command::Promote { force });
        assert_eq!(w.nodes[1].commands.get(&id), None, "it does not answer");
        w.pass(5_000);
        assert_eq!(w.nodes[1].commands.get(&id), refused);
    }
    // One that was lost before it answered may be Primary still.
    w.next_command(1, 1002, Command::Promote { force: false });
    assert_eq!(w.nodes[1].commands.get(&1002), None);
    w.cut(0, 1);
    assert_eq!(w.nodes[1].commands.get(&1002), refused);
    assert_eq!(w.snapshot(1).role, Role::Secondary);
}

#[test]
fn a_primary_that_has_just_stepped_back_is_followed_at_once() {
    for count in [2, 3] {
        let mut w = World::new(count);
        w.promote(0);
        // Nobody has heard of it when the next one is to be promoted.
        w.hold = Some(Box::new(|from, _, _| from == 0));
        assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
        assert_eq!(w.peer(1, 0).role, Role::Primary);
        w.next_command(1, 1000, Command::Promote { force: false });
        assert_eq!(w.nodes[1].commands.get(&1000), None);
        w.hold = None;
        w.run();
        assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
        assert_eq!((w.snapshot(0).role, w.snapshot(1).role), (Role::Secondary, Role::Primary));
    }
    // Also when it leaves before it answers.
    let mut w = World::new(2);
    w.promote(0);
    w.hold = Some(Box::new(|from, _, _| from == 1));
    w.next_command(1, 1000, Command::Promote { force: false });
    assert_eq!(w.command(0, Command::Stop), Some(Ok(())));
    w.hold = None;
    w.run();
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
}

#[test]
fn of_two_promotions_at_once_the_lower_number_wins() {
    let mut w = World::new(2);
    begin_promotion(&mut w, 1, 1000);
    begin_promotion(&mut w, 0, 1000);
    w.run();
    assert_eq!(w.nodes[0].commands.get(&1000), Some(&Ok(())));
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Err(Refusal::PeerBusy(n(0)))));
    assert_eq!((w.snapshot(0).role, w.snapshot(1).role), (Role::Primary, Role::Secondary));
}

#[test]
fn of_two_promotions_at_once_a_third_node_agrees_to_one() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut w = World::new(3);
        begin_promotion(&mut w, first, 1000);
        begin_promotion(&mut w, second, 1000);
        w.run();
        assert_eq!(w.nodes[2].commands.get(&1000).map(Result::is_err), Some(true));
        assert!(w.nodes[1].commands.contains_key(&1000));
        let primaries = (0..3).filter(|i| w.snapshot(*i).role == Role::Primary);
        assert!(primaries.count() <= 1);
        // Nobody is held up by what was agreed to.
        w.command(1, Command::Demote { force: false });
        w.promote(2);
    }
}

#[test]
fn a_third_node_agrees_to_one_of_two_that_do_not_see_each_other() {
    let mut w = World::new(3);
    w.cut(1, 2);
    begin_promotion(&mut w, 2, 1000);
    begin_promotion(&mut w, 1, 1000);
    w.run();
    assert_eq!(w.nodes[2].commands.get(&1000), Some(&Ok(())));
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Err(Refusal::PeerBusy(n(0)))));
}

#[test]
fn a_promotion_waits_for_the_writes_of_the_last_primary() {
    let mut w = World::new(3);
    w.promote(0);
    w.nodes[1].hold_disk = true;
    w.write(0, 1, 1);
    w.kill(0);
    // Here, and at a member.
    assert_eq!(promotion(&mut w, 1, false), None);
    w.nodes[1].hold_disk = false;
    w.run();
    assert_eq!(w.snapshot(1).role, Role::Primary);
    w.nodes[2].hold_disk = true;
    w.write(1, 1, 2);
    w.kill(1);
    w.start(0);
    assert_eq!(promotion(&mut w, 0, false), None);
    w.nodes[2].hold_disk = false;
    w.run();
    assert_eq!(w.snapshot(0).role, Role::Primary);
    assert_eq!(w.nodes[0].data, w.nodes[2].data);
}

#[test]
fn who_promised_waits_for_the_one_that_it_promised_to() {
    let mut w = World::new(3);
    // Node 0 has agreed, node 1 has not answered yet.
    w.hold = Some(Box::new(|a, b, _| (a, b) == (1, 2)));
    begin_promotion(&mut w, 2, 1000);
    w.run();
    assert_eq!(promotion(&mut w, 0, false), Some(Err(Refusal::PeerBusy(n(2)))));
    w.hold = None;
    w.run();
    assert_eq!(w.nodes[2].commands.get(&1000), Some(&Ok(())));
    assert_eq!(promotion(&mut w, 0, false), Some(Err(Refusal::PeerIsPrimary(n(2)))));
    w.command(2, Command::Demote { force: false });
    w.promote(0);
}

#[test]
fn who_was_left_behind_is_not_promoted() {
    let mut w = World::new(3);
    w.promote(0);
    w.cut(0, 2);
    w.write(0, 1, 1);
    assert_eq!(w.snapshot(2).disk, DiskState::Outdated);
    w.kill(1);
    w.kill(0);
    assert!(!w.snapshot(2).promotable);
    assert_eq!(promotion(&mut w, 2, false), Some(Err(Refusal::Outdated)));
    // It remembers that.
    w.kill(2);
    w.start(2);
    assert_eq!(promotion(&mut w, 2, false), Some(Err(Refusal::Outdated)));
    assert_eq!(promotion(&mut w, 2, true), Some(Ok(())));
}

#[test]
fn a_member_with_newer_data_refuses() {
    let mut w = World::new(3);
    w.promote(0);
    // Node 2 does not hear what it was left behind with.
    w.hold = Some(Box::new(|a, b, _| (a, b) == (1, 2) || (a, b) == (2, 1)));
    w.cut(0, 2);
    w.write(0, 1, 1);
    assert_eq!(w.snapshot(2).disk, DiskState::UpToDate);
    begin_promotion(&mut w, 2, 1000);
    w.kill(0);
    w.hold = None;
    w.run();
    assert_eq!(w.nodes[2].commands.get(&1000), Some(&Err(Refusal::Outdated)));
    assert_eq!(w.snapshot(2).role, Role::Secondary);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

#[test]
fn who_leaves_a_primary_is_outdated_and_not_promoted_without_force() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    disconnect(&mut w, 1);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::StandAlone);
    assert_eq!(promotion(&mut w, 1, false), Some(Err(Refusal::Outdated)));
    let id = w.write(0, 1, 2);
    assert!(w.ok(0, id), "the Primary goes on");
    // Neither time nor another start makes it forget.
    w.kill(1);
    w.kill(0);
    w.start(1);
    assert_eq!(promotion(&mut w, 1, false), Some(Err(Refusal::Outdated)));
    w.start(0);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn who_is_sent_away_by_a_primary_is_outdated() {
    let mut w = World::new(2);
    w.promote(0);
    disconnect(&mut w, 0);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    assert_eq!(promotion(&mut w, 1, false), Some(Err(Refusal::Outdated)));
}

#[test]
fn who_leaves_goes_only_when_it_is_durably_outdated() {
    let mut w = World::new(2);
    w.promote(0);
    let writes = w.nodes[1].meta_writes;
    w.nodes[1].crash_at = Some((writes, common::Torn::Nothing));
    let id = w.command(1, Command::Disconnect { peer: None });
    assert_eq!(id, None, "it died before that");
    assert!(!w.log.iter().any(|(a, _, m)| *a == 1 && matches!(m, Message::Goodbye)));
    w.kill(0);
    w.start(1);
    assert_eq!(promotion(&mut w, 1, false), Some(Ok(())), "it was not sent away");
}

#[test]
fn without_a_primary_nobody_is_outdated_by_leaving() {
    let mut w = World::new(2);
    disconnect(&mut w, 1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    w.promote(1);
}

#[test]
fn a_clean_stop_of_a_secondary_leaves_it_outdated_and_without_doubts() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    stop(&mut w, 1);
    w.kill(0);
    w.start(1);
    assert_eq!(w.snapshot(1).hot_extents, 0);
    assert_eq!(promotion(&mut w, 1, false), Some(Err(Refusal::Outdated)));
    w.log.clear();
    w.start(0);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn a_clean_stop_turns_doubts_into_bits_and_keeps_all_bits() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.kill(1);
    w.kill(0);
    // It does not know whether the other one has what it wrote into its one hot extent.
    w.start(0);
    assert_eq!((w.snapshot(0).hot_extents, w.peer(0, 1).out_of_sync), (1, 0));
    stop(&mut w, 0);
    for _ in 0..2 {
        w.start(0);
        assert_eq!((w.snapshot(0).hot_extents, w.peer(0, 1).out_of_sync), (0, 4 << 20));
        stop(&mut w, 0);
    }
    w.start(0);
    w.promote(0);
    w.write(0, 2000, 1);
    assert_eq!(w.peer(0, 1).out_of_sync, (4 << 20) + 4096);
    w.log.clear();
    w.start(1);
    let payload = w.resynced();
    assert!((2 * 4096..=64 << 10).contains(&payload), "what is not zero, not {payload}");
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn a_promotion_turns_doubts_about_who_is_away_into_bits() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    w.kill(1);
    w.kill(0);
    w.start(0);
    w.promote(0);
    assert_eq!(w.peer(0, 1).out_of_sync, 4 << 20);
}

#[test]
fn what_waits_is_answered_before_a_clean_stop_ends() {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_disk = true;
    let id = w.write(0, 1, 1);
    assert_eq!(w.command(0, Command::Stop), None);
    assert_eq!(w.result(0, id), None);
    w.nodes[1].hold_disk = false;
    w.run();
    assert!(w.ok(0, id));
    assert!(w.nodes[0].closed);
    w.kill(0);
    w.log.clear();
    w.start(0);
    assert_eq!(w.resynced(), 0);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn a_clean_stop_flushes() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 1, 1);
    stop(&mut w, 0);
    w.lose_power(0);
    assert_eq!(w.nodes[0].data.get(&1), Some(&1));
    w.start(0);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn a_disk_that_is_detached_is_durably_outdated_before_it_is_given_up() {
    for detached in [0u8, 1] {
        let other = 1 - detached;
        let mut w = World::new(2);
        w.promote(0);
        w.nodes[usize::from(detached)].hold_meta = true;
        assert_eq!(w.command(detached, Command::Detach), None);
        assert!(!w.nodes[usize::from(detached)].closed, "what it says is not durable yet");
        w.kill(detached);
        w.nodes[usize::from(detached)].hold_meta = false;
        w.kill(other);
        // That was under way, and is on the disk.
        w.start(detached);
        assert_eq!(promotion(&mut w, detached, false), Some(Err(Refusal::Outdated)));
    }
}

#[test]
fn who_has_detached_its_disk_is_not_promoted_with_it_later() {
    let mut w = World::new(2);
    w.promote(0);
    assert_eq!(w.command(0, Command::Detach), Some(Ok(())));
    assert!(w.nodes[0].closed);
    let id = w.write(0, 1, 5);
    assert!(w.ok(0, id), "node 1 alone has it");
    w.kill(0);
    w.kill(1);
    w.start(0);
    assert_eq!(promotion(&mut w, 0, false), Some(Err(Refusal::Outdated)));
    w.start(1);
    w.promote(0);
    assert_eq!(w.read(0, 1), Ok(5));
}

#[test]
fn who_leaves_a_primary_is_behind_also_when_a_verdict_comes_before_that_is_durable() {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_meta = true;
    assert_eq!(w.command(1, Command::Disconnect { peer: None }), None);
    w.pass(1000);
    w.release_meta(1);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::StandAlone);
    assert_eq!(w.snapshot(1).disk, DiskState::Outdated);
    assert_eq!(
        w.command(1, Command::Promote { force: false }),
        Some(Err(Refusal::Outdated)),
        "the Primary goes on without it"
    );
}
