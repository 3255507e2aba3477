//! `verify` and `scrub`: copies are compared, and brought in line, while clients write.

mod common;

use common::{World, n};
use holdfast_core::{
    Action, Command, Notice, Options, Refusal, SurveyAction, SurveyEnd, SurveyKind, SurveyOrder,
    SurveyProgress,
};
use holdfast_units::{ByteRange, ReplicationState};
use holdfast_wire::{Differing, Message, RepairMode};

const BLOCK: u64 = 4096;

fn order(kind: SurveyKind, repair: RepairMode) -> SurveyOrder {
    SurveyOrder { kind, range: None, peer: None, repair, from: 0 }
}

fn begin(w: &mut World, i: u8, order: SurveyOrder) {
    assert_eq!(w.command(i, Command::Survey(order)), Some(Ok(())));
}

/// Lets time pass until a run has ended.
fn end(w: &mut World, i: u8) -> (SurveyEnd, SurveyProgress) {
    for _ in 0..500 {
        let ended = w.nodes[usize::from(i)]
            .notices
            .iter()
            .position(|n| matches!(n, Notice::SurveyEnded(..)));
        if let Some(at) = ended {
            let Notice::SurveyEnded(end, progress) = w.nodes[usize::from(i)].notices.remove(at)
            else {
                unreachable!()
            };
            return (end, *progress);
        }
        w.pass(20);
    }
    panic!("it never ends: {:?}", w.snapshot(i).surveys);
}

fn run(w: &mut World, i: u8, kind: SurveyKind, repair: RepairMode) -> SurveyProgress {
    begin(w, i, order(kind, repair));
    let (how, progress) = end(w, i);
    assert_eq!(how, SurveyEnd::Done);
    assert_eq!(progress.done, progress.total);
    progress
}

fn verify(w: &mut World, i: u8, repair: RepairMode) -> SurveyProgress {
    let progress = run(w, i, SurveyKind::Verify, repair);
    assert_eq!(progress.compared, common::SIZE);
    progress
}

/// So many nodes of which the first is Primary, with something on the disks.
fn cluster(count: u8) -> World {
    let mut w = World::new(count);
    w.promote(0);
    for block in 0..40 {
        w.write(0, block * 100, 7);
    }
    w
}

fn corrupt(w: &mut World, i: u8, block: u64) {
    w.nodes[usize::from(i)].data.insert(block, 99);
}

fn odd(node: u8, first: u64, repaired: bool, majority: bool) -> Differing {
    Differing { node: n(node), first, blocks: 1, repaired, majority }
}

#[test]
fn what_differs_is_found_marked_and_repaired_from_the_majority() {
    let mut w = cluster(3);
    corrupt(&mut w, 2, 300);
    corrupt(&mut w, 2, 301);
    corrupt(&mut w, 1, 3000);
    let found = verify(&mut w, 0, RepairMode::Never);
    assert_eq!((found.differing, found.repaired), (3, 0));
    let of_two = Differing { blocks: 2, ..odd(2, 300, false, true) };
    assert_eq!(found.found, [of_two, odd(1, 3000, false, true)]);
    assert_eq!(w.peer(0, 2).out_of_sync, 2 * BLOCK);
    assert_eq!(w.lacking_on_disk(0, 2, 300..302), 2, "durably");
    assert_eq!(w.peer(0, 2).replication, ReplicationState::Established);

    let repaired = verify(&mut w, 0, RepairMode::Always);
    assert_eq!((repaired.differing, repaired.repaired), (3, 3));
    assert_eq!(w.peer(0, 2).out_of_sync + w.peer(0, 1).out_of_sync, 0);
    assert_eq!(w.lacking_on_disk(0, 2, 300..302), 0);
    for i in 1..3 {
        assert_eq!(w.nodes[i].data, w.nodes[0].data);
    }
    assert_eq!(verify(&mut w, 0, RepairMode::Never).differing, 0);
}

#[test]
fn a_wrong_primary_is_outvoted_and_nothing_of_it_is_marked_for_others() {
    let mut w = cluster(3);
    corrupt(&mut w, 0, 700);
    let found = verify(&mut w, 0, RepairMode::Never);
    assert_eq!(found.found, [odd(0, 700, false, true)]);
    assert_eq!(w.peer(0, 1).out_of_sync + w.peer(0, 2).out_of_sync, 0, "its copy is the wrong one");
    let found = verify(&mut w, 0, RepairMode::Always);
    assert_eq!(found.found, [odd(0, 700, true, true)]);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

#[test]
fn a_secondary_has_the_primary_find_out() {
    for wrong in 0..3 {
        let mut w = cluster(3);
        corrupt(&mut w, wrong, 700);
        w.log.clear();
        let found = verify(&mut w, 1, RepairMode::Always);
        assert_eq!(found.found, [odd(wrong, 700, true, true)]);
        let asks = |(a, b, m): &(u8, u8, Message)| {
            (*a, *b) == (1, 0) && matches!(m, Message::VerifySpan { .. })
        };
        assert!(w.log.iter().any(asks));
        let repairs =
            |(a, _, m): &(u8, u8, Message)| *a != 0 && matches!(m, Message::VerifyRepair { .. });
        assert!(!w.log.iter().any(repairs), "only the Primary does that");
        assert_eq!(w.nodes[0].data, w.nodes[1].data);
        assert_eq!(w.nodes[0].data, w.nodes[2].data);
    }
}

#[test]
fn without_a_primary_any_node_can_do_it() {
    let mut w = cluster(3);
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    corrupt(&mut w, 2, 700);
    let found = verify(&mut w, 2, RepairMode::Always);
    assert_eq!(found.found, [odd(2, 700, true, true)]);
    assert_eq!(w.nodes[2].data, w.nodes[0].data);
}

#[test]
fn of_two_copies_that_of_the_primary_counts_and_only_on_an_order() {
    for wrong in 0..2 {
        for at in 0..2 {
            let mut w = cluster(2);
            corrupt(&mut w, wrong, 700);
            let (first, second) = (w.nodes[0].data.clone(), w.nodes[1].data.clone());
            let found = run(&mut w, at, SurveyKind::Scrub, RepairMode::Majority);
            assert_eq!((found.differing, found.repaired), (1, 0), "nobody knows who is right");
            assert_eq!((&w.nodes[0].data, &w.nodes[1].data), (&first, &second));
            assert_eq!(w.peer(0, 1).out_of_sync, BLOCK);
            let found = verify(&mut w, at, RepairMode::Always);
            assert_eq!(found.found, [odd(1, 700, true, false)]);
            assert_eq!(w.nodes[1].data, first);
            assert_eq!(w.peer(0, 1).out_of_sync, 0);
        }
    }
}

#[test]
fn a_write_that_is_under_way_is_no_difference() {
    let mut w = cluster(3);
    // The other nodes' disks take their time with the first writes of each block.
    w.nodes[1].hold_op = Some(|op| matches!(op, Action::DiskWrite { .. }));
    let write = w.write(0, 5, 1);
    assert!(!w.ok(0, write));
    begin(&mut w, 2, order(SurveyKind::Verify, RepairMode::Always));
    for _ in 0..10 {
        w.pass(20);
    }
    assert_eq!(w.snapshot(2).surveys[0].differing, 0);
    assert!(w.snapshot(2).surveys[0].done < common::SIZE, "the span waits for the write");
    w.nodes[1].hold_op = None;
    w.run();
    assert!(w.ok(0, write));
    let (_, progress) = end(&mut w, 2);
    assert_eq!((progress.differing, progress.done), (0, common::SIZE));
}

#[test]
fn a_write_waits_while_its_blocks_are_compared() {
    let mut w = cluster(2);
    corrupt(&mut w, 1, 700);
    w.hold = Some(Box::new(|_, to, m| to == 0 && matches!(m, Message::VerifyRepaired { .. })));
    begin(&mut w, 0, order(SurveyKind::Verify, RepairMode::Always));
    let there = w.write(0, 700, 3);
    let elsewhere = w.write(0, 900, 3);
    assert!(!w.ok(0, there));
    assert!(!w.ok(0, elsewhere), "its answer is behind the repair's on the connection");
    w.hold = None;
    w.run();
    assert!(w.ok(0, there) && w.ok(0, elsewhere));
    assert_eq!(end(&mut w, 0).1.repaired, 1);
    assert_eq!((w.nodes[0].data[&700], w.nodes[1].data[&700]), (3, 3));
}

#[test]
fn a_member_that_is_lost_is_waited_for() {
    let mut w = cluster(3);
    let slow = Options { verify_rate: 4 << 20, ..Options::default() };
    assert_eq!(w.command(0, Command::Configure(slow)), Some(Ok(())));
    begin(&mut w, 0, order(SurveyKind::Verify, RepairMode::Never));
    assert_eq!(w.peer(0, 1).replication, ReplicationState::VerifyS);
    assert_eq!(w.peer(1, 0).replication, ReplicationState::VerifyT);
    w.pass(1000);
    assert_eq!(w.peer(1, 0).verify.unwrap().total, common::SIZE);
    w.cut(0, 2);
    w.write(0, 50, 50);
    let before = w.snapshot(0).surveys[0].clone();
    assert_eq!(before.waiting, Some(n(2)));
    assert!(before.done > 0 && before.done < before.total);
    for _ in 0..20 {
        w.pass(1000);
    }
    assert_eq!(w.snapshot(0).surveys[0].done, before.done);
    w.heal();
    let (how, progress) = end(&mut w, 0);
    assert_eq!((how, progress.done, progress.differing), (SurveyEnd::Done, common::SIZE, 0));
    assert_eq!(w.peer(1, 0).replication, ReplicationState::Established);
}

#[test]
fn a_member_that_does_not_come_back_ends_it() {
    let mut w = cluster(2);
    w.hold = Some(Box::new(|from, _, m| from == 1 && matches!(m, Message::VerifyReply { .. })));
    begin(&mut w, 0, order(SurveyKind::Verify, RepairMode::Never));
    w.hold = None;
    w.cut(0, 1);
    w.pass(599_000);
    assert_eq!(w.snapshot(0).surveys.len(), 1);
    w.pass(2_000);
    assert_eq!(end(&mut w, 0).0, SurveyEnd::PeerLost(n(1)));
    let refused = w.command(0, Command::Survey(order(SurveyKind::Verify, RepairMode::Never)));
    assert_eq!(refused, Some(Err(Refusal::NotConnected)));
}

#[test]
fn a_run_is_paused_goes_on_and_is_stopped_and_there_is_one_of_a_kind() {
    let mut w = cluster(2);
    let slow = Options { scrub_rate: 1 << 20, ..Options::default() };
    assert_eq!(w.command(1, Command::Configure(slow)), Some(Ok(())));
    let control = |w: &mut World, action| {
        w.command(1, Command::SurveyControl(SurveyKind::Scrub, action)).unwrap()
    };
    assert_eq!(control(&mut w, SurveyAction::Pause), Err(Refusal::NoSurvey));
    let scrub = order(SurveyKind::Scrub, RepairMode::Majority);
    begin(&mut w, 1, scrub.clone());
    assert_eq!(w.command(1, Command::Survey(scrub.clone())), Some(Err(Refusal::SurveyRunning)));
    for _ in 0..100 {
        w.pass(20);
    }
    let at = w.snapshot(1).surveys[0].done;
    assert!((1 << 20..4 << 20).contains(&at), "two seconds at 1 MiB/s, but for holes: {at}");
    assert_eq!(control(&mut w, SurveyAction::Pause), Ok(()));
    for _ in 0..10 {
        w.pass(1000);
    }
    assert_eq!(w.snapshot(1).surveys[0].done, at);
    assert_eq!(control(&mut w, SurveyAction::Resume), Ok(()));
    for _ in 0..100 {
        w.pass(20);
    }
    assert!(w.snapshot(1).surveys[0].done > at);
    assert_eq!(control(&mut w, SurveyAction::Stop), Ok(()));
    let (how, progress) = end(&mut w, 1);
    assert_eq!(how, SurveyEnd::Stopped);
    // Another one goes on there.
    let rest = SurveyOrder { from: progress.next, ..scrub };
    let fast = Options { scrub_rate: 0, ..Options::default() };
    assert_eq!(w.command(1, Command::Configure(fast)), Some(Ok(())));
    begin(&mut w, 1, rest);
    let (_, second) = end(&mut w, 1);
    assert_eq!(progress.done + second.done, common::SIZE);
}

#[test]
fn a_scrub_gives_way_to_clients() {
    let mut w = World::with(1, 512 << 20, 67);
    w.promote(0);
    for mib in 0..512 {
        w.nodes[0].data.insert(mib * 256, 1);
    }
    let rate = Options { scrub_rate: 64 << 20, ..Options::default() };
    assert_eq!(w.command(0, Command::Configure(rate)), Some(Ok(())));
    begin(&mut w, 0, order(SurveyKind::Scrub, RepairMode::Majority));
    let seconds = |w: &mut World, busy: bool| {
        let before = w.snapshot(0).surveys[0].done;
        for step in 0..50 {
            if busy {
                w.write(0, step, 1);
            }
            w.pass(20);
        }
        (w.snapshot(0).surveys[0].done - before) >> 20
    };
    let quiet = seconds(&mut w, false);
    let busy = seconds(&mut w, true);
    let later = seconds(&mut w, true);
    seconds(&mut w, false);
    let again = seconds(&mut w, false);
    assert!((50..=72).contains(&quiet) && (50..=72).contains(&again), "{quiet} {again}");
    assert!(busy < 20 && (3..=6).contains(&later), "{busy} {later}");
}

#[test]
fn a_scrub_works_alone_and_on_part_of_the_device() {
    let mut w = World::new(1);
    let range = ByteRange::new(8 * BLOCK, 3 << 20);
    let part = SurveyOrder { range: Some(range), ..order(SurveyKind::Scrub, RepairMode::Majority) };
    begin(&mut w, 0, part);
    let (how, progress) = end(&mut w, 0);
    assert_eq!((how, progress.done, progress.compared), (SurveyEnd::Done, 3 << 20, 0));
    let outside = ByteRange::new(common::SIZE, BLOCK);
    let outside =
        SurveyOrder { range: Some(outside), ..order(SurveyKind::Scrub, RepairMode::Never) };
    assert_eq!(w.command(0, Command::Survey(outside)), Some(Err(Refusal::BadRange)));
    let alone = w.command(0, Command::Survey(order(SurveyKind::Verify, RepairMode::Never)));
    assert_eq!(alone, Some(Err(Refusal::NotConnected)));
}

#[test]
fn a_repair_by_somebody_who_sees_another_primary_or_none_of_late_is_refused() {
    let mut w = cluster(3);
    let repair = |epoch| Message::VerifyRepair {
        id: 1,
        epoch,
        range: ByteRange::new(0, BLOCK),
        zeroes: true,
        payload: bytes::Bytes::new(),
    };
    for epoch in 0..20 {
        assert!(w.forge(1, 2, repair(epoch)), "the connection stands");
        w.run();
    }
    assert_eq!(w.nodes[2].data.get(&0), Some(&7), "the Primary has not said so");
    let mut refused = 0;
    for epoch in 0..20 {
        w.log.clear();
        w.forge(0, 2, repair(epoch));
        w.run();
        let no = |m: &Message| {
            matches!(m, Message::VerifyRepaired { result: holdfast_wire::PeerResult::NoData, .. })
        };
        refused += w.log.iter().filter(|(_, _, m)| no(m)).count();
    }
    assert_eq!(refused, 19, "only the present epoch counts");
    assert_eq!(w.nodes[2].data.get(&0), None);
}

#[test]
fn a_promotion_waits_for_repairs_that_are_under_way() {
    let mut w = cluster(3);
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    corrupt(&mut w, 2, 700);
    w.hold = Some(Box::new(|_, to, m| to == 1 && matches!(m, Message::VerifyRepaired { .. })));
    begin(&mut w, 1, order(SurveyKind::Verify, RepairMode::Always));
    assert_eq!(w.command(0, Command::Promote { force: false }), None);
    w.hold = None;
    w.run();
    assert_eq!(w.snapshot(0).role, holdfast_units::Role::Primary);
    assert_eq!(end(&mut w, 1).0, SurveyEnd::Done);
    assert_eq!(w.nodes[2].data, w.nodes[0].data);
}

#[test]
fn a_block_that_nobody_can_read_does_not_hide_others_in_its_neighbourhood() {
    let mut w = cluster(3);
    for node in &mut w.nodes {
        node.bad.insert(301);
    }
    corrupt(&mut w, 2, 302);
    corrupt(&mut w, 0, 300);
    let found = run(&mut w, 0, SurveyKind::Scrub, RepairMode::Majority);
    assert_eq!(found.found, [odd(0, 300, true, true), odd(2, 302, true, true)]);
    assert_eq!((found.unreadable, found.compared), (1, common::SIZE - 4096));
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.nodes[2].data, w.nodes[1].data);
}

#[test]
fn what_was_only_marked_is_copied_by_the_next_resync() {
    let mut w = cluster(2);
    corrupt(&mut w, 1, 700);
    assert_eq!(verify(&mut w, 0, RepairMode::Never).differing, 1);
    w.cut(0, 1);
    w.heal();
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.peer(0, 1).out_of_sync, 0);
}

#[test]
fn what_a_lost_member_was_to_get_is_not_repaired_and_stays_marked() {
    let mut w = cluster(3);
    corrupt(&mut w, 2, 700);
    let to_it =
        |from, to, m: &Message| (from, to) == (0, 2) && matches!(m, Message::VerifyRepair { .. });
    w.cut_at = Some(Box::new(to_it));
    let found = run(&mut w, 0, SurveyKind::Scrub, RepairMode::Majority);
    assert_eq!(found.found, [odd(2, 700, false, true)]);
    assert_eq!((found.differing, found.repaired), (1, 0));
    assert_eq!(w.lacking_on_disk(0, 2, 700..701), 1);
    w.heal();
    assert_eq!(w.nodes[2].data, w.nodes[0].data, "the next resync copies it");
}

#[test]
fn a_hole_in_place_of_a_lost_block_is_no_copy() {
    // Whether it is compared by who has lost it, or told to who compares.
    for (without, at) in [(&[0][..], 0), (&[0], 1), (&[0, 1], 2), (&[1, 2], 1)] {
        let mut w = World::new(3);
        w.promote(0);
        w.write(0, 4000, 9);
        for i in without {
            let node = &mut w.nodes[usize::from(*i)];
            node.bad.insert(4000);
            node.broken.insert(4000);
            let read = Message::Read { id: 1 << 20, range: ByteRange::of_blocks(4000..4001) };
            assert!(*i == 0 || w.forge(0, *i, read));
            if *i == 0 {
                assert_eq!(w.read(0, 4000), Ok(9));
            }
            w.run();
            assert_eq!(w.snapshot(*i).unreadable_blocks, 1);
            let node = &mut w.nodes[usize::from(*i)];
            node.bad.clear();
            node.data.remove(&4000);
        }
        begin(&mut w, at, order(SurveyKind::Scrub, RepairMode::Always));
        assert_eq!(end(&mut w, at).1.repaired, 0);
        for i in (0..3).filter(|i| !without.contains(i)) {
            assert_eq!(w.nodes[usize::from(i)].data.get(&4000), Some(&9), "{without:?} {at}");
        }
    }
}

#[test]
fn two_that_compare_without_a_primary_do_not_wait_for_each_other() {
    let mut w = cluster(3);
    assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
    corrupt(&mut w, 1, 700);
    corrupt(&mut w, 2, 701);
    // Each has locked the blocks before the other is asked for its copy.
    w.hold = Some(Box::new(|_, _, m| matches!(m, Message::VerifyRequest { locked: true, .. })));
    begin(&mut w, 1, order(SurveyKind::Scrub, RepairMode::Majority));
    begin(&mut w, 2, order(SurveyKind::Scrub, RepairMode::Majority));
    w.hold = None;
    w.run();
    for i in 1..3 {
        assert_eq!(end(&mut w, i).0, SurveyEnd::Done, "node {i}");
    }
    w.promote(0);
    run(&mut w, 0, SurveyKind::Scrub, RepairMode::Majority);
    for i in 1..3 {
        assert_eq!(w.nodes[i].data, w.nodes[0].data);
    }
}

#[test]
fn what_could_not_be_read_here_was_not_compared() {
    let mut w = cluster(2);
    w.nodes[0].bad.insert(700);
    w.nodes[0].broken.insert(700);
    let progress = run(&mut w, 0, SurveyKind::Scrub, RepairMode::Majority);
    assert_eq!((progress.unreadable, progress.differing), (1, 0));
    assert_eq!((progress.compared, progress.size), (common::SIZE - 4096, common::SIZE));
}
