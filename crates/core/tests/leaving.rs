//! Who leaves, who was left, and what is durable when a crash comes in between.

mod common;

use common::{Torn, World, n};
use holdfast_core::{Command, CommandId, Event, Refusal};
use holdfast_units::{ConnectionState, DiskState, Role};
use holdfast_wire::Message;

/// The first of the metadata writes that are held ends.
fn end_one(w: &mut World, i: u8) {
    let op = w.nodes[usize::from(i)].held_meta.remove(0);
    w.event(i, Event::MetaDone(op, Ok(())));
    w.run();
}

/// Node 1 leaves its Primary while another write of its superblock is under way and takes so long that a
/// verdict comes before the one that says that it is behind.
fn leaving_behind_another_write() -> World {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_meta = true;
    let add = holdfast_core::PeerConfig { node: n(3), diskless: true, standalone: true };
    assert_eq!(w.command(1, Command::AddPeer(add)), None);
    w.next_command(1, 1000, Command::Disconnect { peer: None });
    w.pass(1000);
    w
}

#[test]
fn who_leaves_a_primary_goes_when_it_is_durably_behind() {
    let mut w = leaving_behind_another_write();
    end_one(&mut w, 1);
    assert_eq!(w.nodes[1].commands.get(&1000), None);
    // It dies as soon as it is gone.
    w.nodes[1].crash_at = Some((w.nodes[1].meta_writes, Torn::Nothing));
    end_one(&mut w, 1);
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
    w.kill(1);
    is_behind(&mut w, 1);
}

fn is_behind(w: &mut World, i: u8) {
    w.nodes[usize::from(i)].hold_meta = false;
    w.nodes[usize::from(i)].crash_at = None;
    let id = w.write(0, 5, 5);
    assert!(w.ok(0, id), "the Primary goes on");
    w.cut(0, i);
    w.start(i);
    assert_eq!(w.snapshot(i).disk, DiskState::Outdated);
    assert_eq!(w.command(i, Command::Promote { force: false }), Some(Err(Refusal::Outdated)));
}

#[test]
fn who_is_told_twice_to_leave_goes_when_it_is_durably_behind() {
    let mut w = leaving_behind_another_write();
    w.next_command(1, 1001, Command::Disconnect { peer: None });
    assert_eq!(w.nodes[1].commands.get(&1001), None);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::Connected);
    w.release_meta(1);
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
    assert_eq!(w.nodes[1].commands.get(&1001), Some(&Ok(())));
    w.kill(1);
    is_behind(&mut w, 1);
}

#[test]
fn who_is_told_twice_at_once_to_leave_goes_when_it_is_durably_behind() {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_meta = true;
    w.hold = Some(Box::new(|_, _, _| true));
    w.next_command(1, 1000, Command::Disconnect { peer: None });
    w.next_command(1, 1001, Command::Disconnect { peer: None });
    assert_eq!(w.nodes[1].commands.get(&1001), None);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::Connected);
    w.hold = None;
    w.release_meta(1);
    assert_eq!(w.peer(1, 0).connection, ConnectionState::StandAlone);
    w.kill(1);
    is_behind(&mut w, 1);
}

#[test]
fn who_stops_beside_a_primary_goes_when_it_is_durably_behind() {
    for after in [0, 20_000] {
        let mut w = World::new(2);
        w.promote(0);
        w.nodes[1].hold_meta = true;
        w.next_command(1, 1000, Command::Stop);
        assert_eq!(w.peer(1, 0).connection, ConnectionState::Connected);
        end_one(&mut w, 1);
        assert_eq!(w.peer(1, 0).connection, ConnectionState::StandAlone);
        w.pass(after);
        w.kill(1);
        is_behind(&mut w, 1);
    }
}

#[test]
fn who_stops_in_a_hurry_beside_a_primary_is_behind() {
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_disk = true;
    let id = w.write(0, 4, 4);
    assert_eq!(w.result(0, id), None);
    w.next_command(1, 1000, Command::Stop);
    assert_eq!(w.nodes[1].commands.get(&1000), None);
    w.now += 11_000;
    w.event(1, Event::Tick);
    w.run();
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
    w.kill(1);
    w.nodes[1].hold_disk = false;
    is_behind(&mut w, 1);
}

#[test]
fn who_leaves_a_primary_without_good_data_is_behind_when_others_may_have_them() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    w.cut(0, 1);
    assert_eq!(w.command(0, Command::Disconnect { peer: Some(n(2)) }), Some(Ok(())));
    let id = w.write(2, 7, 2);
    assert!(w.ok(2, id), "with node 1, which node 0 does not see");
    w.kill(1);
    w.kill(2);
    assert_eq!(w.command(0, Command::Promote { force: false }), Some(Err(Refusal::Outdated)));
}

#[test]
fn who_becomes_primary_while_it_leaves_keeps_good_data() {
    let mut w = leaving_behind_another_write();
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    w.next_command(1, 1001, Command::Promote { force: false });
    w.release_meta(1);
    w.pass(1000);
    let (role, disk) = (w.snapshot(1).role, w.snapshot(1).disk);
    let promoted = w.nodes[1].commands.get(&1001).copied();
    let of_good_data = (Some(Ok(())), Role::Primary, DiskState::UpToDate);
    assert_eq!((promoted, role, disk), of_good_data);
}

/// Node 1 has a write of node 0 that node 2 has not; node 0 lost its power, and is filled by node 2, before
/// node 1 hears of that.
fn filled_by_one_that_had_less(w: &mut World) -> holdfast_core::LinkId {
    w.promote(0);
    w.write(0, 1, 1);
    w.pass(1000);
    w.hold = Some(Box::new(|a, b, m| (a, b) == (0, 2) && matches!(m, Message::Write { .. })));
    let id = w.write(0, 5, 7);
    assert_eq!(w.result(0, id), None, "it reached node 1 and not node 2");
    let link = w.link(0, 1).expect("they are connected");
    w.lose_power_unseen(0, 1);
    w.hold = None;
    w.start(0);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate, "node 2 filled it");
    assert_eq!((w.nodes[0].data.get(&5), w.nodes[1].data.get(&5)), (None, Some(&7)));
    link
}

fn all_equal(w: &World) {
    for i in 0..w.nodes.len() {
        let disk = w.snapshot(u8::try_from(i).expect("there are few")).disk;
        assert_eq!(disk, DiskState::UpToDate, "{i}");
        assert_eq!(w.nodes[i].data, w.nodes[0].data, "{i}");
    }
}

#[test]
fn what_a_lost_primary_had_not_settled_is_known_after_a_clean_stop() {
    let mut w = World::new(3);
    let link = filled_by_one_that_had_less(&mut w);
    w.hold = Some(Box::new(|a, b, _| a == 1 || b == 1));
    w.event(1, Event::PeerDown(n(0), link));
    w.event(1, Event::Command(CommandId(1000), Command::Stop));
    w.run();
    w.pass(11_000);
    assert_eq!(w.nodes[1].commands.get(&1000), Some(&Ok(())));
    w.kill(1);
    w.hold = None;
    w.cut(1, 2);
    w.heal_between(0, 1);
    w.start(1);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    w.heal();
    all_equal(&w);
}

#[test]
fn a_killed_secondary_doubts_what_its_primary_had_not_settled_before_that_lost_its_power() {
    let mut w = World::new(3);
    filled_by_one_that_had_less(&mut w);
    w.kill(1);
    w.promote(0);
    w.heal();
    w.start(1);
    w.pass(1000);
    all_equal(&w);
}

#[test]
fn what_a_primary_that_stops_in_a_hurry_had_not_settled_is_marked() {
    let mut w = World::new(3);
    w.promote(0);
    w.write(0, 1, 1);
    w.pass(1000);
    w.hold = Some(Box::new(|a, b, m| (a, b) == (0, 2) && matches!(m, Message::Write { .. })));
    let id = w.write(0, 5, 7);
    assert_eq!(w.result(0, id), None, "it reached node 1 and not node 2");
    assert_eq!(w.command(0, Command::Stop), None);
    w.now += 11_000;
    w.event(0, Event::Tick);
    w.run();
    w.kill(0);
    w.hold = None;
    w.run();
    assert_eq!(w.nodes[1].data, w.nodes[2].data);
}

#[test]
fn what_a_lost_primary_had_not_settled_is_known_after_its_extent_was_given_up() {
    let mut w = World::with(3, 512 << 20, 67);
    let link = filled_by_one_that_had_less(&mut w);
    w.cut(1, 2);
    w.event(1, Event::PeerDown(n(0), link));
    w.run();
    w.promote(1);
    for extent in 1..100 {
        let id = w.write(1, extent * 1024, 3);
        assert!(w.ok(1, id));
    }
    w.kill(1);
    w.heal_between(0, 1);
    w.start(1);
    assert_eq!(w.nodes[0].data.get(&5), w.nodes[1].data.get(&5));
    w.heal();
    w.pass(1000);
    all_equal(&w);
}
