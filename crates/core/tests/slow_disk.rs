//! Disks that answer late, or not at all: what clients get meanwhile, and what may not happen.

mod common;

use common::{World, n};
use holdfast_core::{Action, Command, IoFailure, Options, RequestKind};
use holdfast_units::{ByteRange, DiskState};
use holdfast_wire::{Message, PeerResult};

/// `count` nodes, the first Primary, with blocks 0..8 of different values everywhere.
fn written(count: u8) -> World {
    let mut w = World::new(count);
    w.promote(0);
    for block in 0..8 {
        let id = w.write(0, block, value(block));
        assert!(w.ok(0, id));
    }
    w.log.clear();
    w
}

fn value(block: u64) -> u8 {
    u8::try_from(block + 1).expect("it is small")
}

fn is_read(action: &Action) -> bool {
    matches!(action, Action::DiskRead { .. })
}

fn is_write(action: &Action) -> bool {
    matches!(action, Action::DiskWrite { .. })
}

fn ask(w: &mut World, block: u64) -> u64 {
    w.request(0, RequestKind::Read(ByteRange::of_blocks(block..block + 1)))
}

/// What a read gave; `None` while it has no answer.
fn found(w: &World, id: u64) -> Option<Result<u8, IoFailure>> {
    w.result(0, id).map(|result| result.map(|data| data.expect("it is a read")[0]))
}

fn asked(w: &World, to: u8) -> usize {
    let read = |(from, at, m): &&(u8, u8, Message)| {
        *from == 0 && *at == to && matches!(m, Message::Read { .. })
    };
    w.log.iter().filter(read).count()
}

fn set(w: &mut World, options: Options) {
    assert_eq!(w.command(0, Command::Configure(options)), Some(Ok(())));
}

#[test]
fn a_read_that_the_disk_does_not_answer_in_time_is_answered_by_a_peer() {
    let mut w = written(2);
    w.nodes[0].hold_op = Some(is_read);
    let id = ask(&mut w, 3);
    w.pass(49);
    assert_eq!((found(&w, id), asked(&w, 1)), (None, 0), "it is not late yet");
    w.pass(1);
    assert_eq!((found(&w, id), asked(&w, 1)), (Some(Ok(4)), 1));
    let seen = w.snapshot(0);
    assert_eq!((seen.hedged_reads, seen.hedged_reads_won, seen.in_flight), (1, 1, 0));
    assert_eq!((seen.disk, seen.io_errors), (DiskState::UpToDate, 0));
    // What the disk gives in the end is of no use, also when another read has the place of that one.
    let other = ask(&mut w, 5);
    assert_eq!(w.nodes[0].held.len(), 2);
    w.disk_op(0, 0);
    w.run();
    assert_eq!(found(&w, other), None);
    w.disk_op(0, 0);
    w.run();
    assert_eq!(found(&w, other), Some(Ok(6)));
    w.pass(10_000);
    assert_eq!(asked(&w, 1), 1);
}

#[test]
fn the_disk_may_still_be_first_and_then_the_peers_answer_is_dropped() {
    let mut w = written(2);
    w.nodes[0].hold_op = Some(is_read);
    w.hold = Some(Box::new(|from, _, m| from == 1 && matches!(m, Message::ReadReply { .. })));
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!((found(&w, id), asked(&w, 1)), (None, 1));
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(found(&w, id), Some(Ok(4)));
    // The next read has the place of that one, and gets nothing of what comes for it.
    w.nodes[0].hold_op = Some(is_read);
    let other = ask(&mut w, 5);
    w.hold = None;
    w.run();
    assert_eq!(found(&w, other), None);
    w.pass(50);
    assert_eq!(found(&w, other), Some(Ok(6)));
    let seen = w.snapshot(0);
    assert_eq!((seen.hedged_reads, seen.hedged_reads_won), (2, 1));
    assert_eq!(w.peer(0, 1).pending, 0, "every question was answered");
}

#[test]
fn nothing_is_asked_of_a_peer_while_a_write_of_the_blocks_is_under_way() {
    let mut w = written(2);
    // The write is on this disk, where readers see it, and not on the peer's.
    w.nodes[1].hold_op = Some(is_write);
    let write = w.write(0, 3, 99);
    let first = ask(&mut w, 3);
    assert_eq!((found(&w, first), w.result(0, write)), (Some(Ok(99)), None));
    w.nodes[0].hold_op = Some(is_read);
    let (of_it, of_another) = (ask(&mut w, 3), ask(&mut w, 4));
    w.pass(50);
    w.pass(500);
    assert_eq!(found(&w, of_it), None, "the peer has what was there before");
    assert_eq!(found(&w, of_another), Some(Ok(5)));
    w.nodes[1].hold_op = None;
    w.run();
    assert!(w.ok(0, write));
    w.pass(500);
    assert_eq!(found(&w, of_it), Some(Ok(99)));
}

#[test]
fn who_lacks_the_blocks_or_is_away_is_not_asked() {
    let mut w = written(3);
    // The second does not get this.
    w.cut(0, 1);
    w.cut(1, 2);
    let id = w.write(0, 3, 99);
    assert!(w.ok(0, id));
    w.nodes[2].hold_op = Some(is_read);
    w.nodes[0].hold_op = Some(is_read);
    // It is there again, and its resync does not get on.
    w.heal();
    w.log.clear();
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!((asked(&w, 1), asked(&w, 2)), (0, 1));
    // The third goes away: what it was asked is asked of nobody who lacks it.
    w.cut(0, 2);
    w.pass(500);
    assert_eq!((found(&w, id), asked(&w, 1)), (None, 0));
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(found(&w, id), Some(Ok(99)));
}

#[test]
fn a_peer_that_cannot_give_it_is_followed_by_another_one() {
    let mut w = written(3);
    for node in [0, 1] {
        w.nodes[node].hold_op = Some(is_read);
    }
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!((found(&w, id), asked(&w, 1), asked(&w, 2)), (None, 1, 0));
    w.cut(0, 1);
    w.pass(50);
    assert_eq!((found(&w, id), asked(&w, 2)), (Some(Ok(4)), 1));
}

#[test]
fn of_a_lost_block_only_the_peers_word_counts() {
    let mut w = written(2);
    w.nodes[1].bad.insert(3);
    w.nodes[0].hold_op = Some(is_read);
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!((found(&w, id), asked(&w, 1)), (None, 1), "it cannot read it either");
    w.pass(500);
    assert_eq!(asked(&w, 1), 1, "it is not asked again");
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(found(&w, id), Some(Ok(4)));
}

#[test]
fn a_disk_that_is_far_behind_is_asked_last_and_gets_no_more_to_do() {
    let mut w = written(2);
    w.nodes[0].hold_op = Some(is_read);
    let mut ids = Vec::new();
    for round in 0..4 {
        ids.extend((0..32).map(|at| (at % 8, ask(&mut w, at % 8))));
        w.pass(50);
        let done = ids.iter().all(|(block, id)| found(&w, *id) == Some(Ok(value(*block))));
        assert!(done, "round {round}");
    }
    assert_eq!(w.nodes[0].held.len(), 64, "the others went to the peer at once");
    // Without a peer that has it, it is the disk's again.
    w.cut(0, 1);
    let id = ask(&mut w, 3);
    assert_eq!((found(&w, id), w.nodes[0].held.len()), (None, 65));
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(found(&w, id), Some(Ok(4)));
}

#[test]
fn so_many_questions_at_a_time_and_none_when_it_is_off() {
    let mut w = written(2);
    w.nodes[0].hold_op = Some(is_read);
    w.nodes[1].hold_op = Some(is_read);
    let ids: Vec<u64> = (0..100).map(|at| ask(&mut w, at % 8)).collect();
    w.pass(50);
    w.pass(500);
    assert_eq!(asked(&w, 1), 32);
    w.nodes[1].hold_op = None;
    w.run();
    w.pass(50);
    w.pass(50);
    let done = ids.iter().filter(|id| found(&w, **id).is_some()).count();
    assert_eq!(done, 96);
    w.nodes[0].hold_op = None;
    w.run();
    set(&mut w, Options { read_hedge_ms: 0, ..Options::default() });
    w.nodes[0].hold_op = Some(is_read);
    let (before, id) = (asked(&w, 1), ask(&mut w, 3));
    w.pass(100_000);
    assert_eq!((found(&w, id), asked(&w, 1)), (None, before));
}

#[test]
fn a_disk_that_does_not_answer_is_given_up_after_its_time_and_peers_serve() {
    let mut w = written(2);
    let options = Options { read_hedge_ms: 0, disk_timeout_ms: 3000, ..Options::default() };
    set(&mut w, options);
    w.pass(60_000);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate, "an idle disk owes nothing");
    w.nodes[0].hold_disk = true;
    let (write, read) = (w.write(0, 3, 99), ask(&mut w, 4));
    let flush = w.request(0, RequestKind::Flush);
    w.pass(2900);
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
    assert!([write, read, flush].iter().all(|id| w.result(0, *id).is_none()));
    for _ in 0..4 {
        w.pass(375);
    }
    assert_eq!(w.snapshot(0).disk, DiskState::Failed);
    assert_eq!((found(&w, read), w.snapshot(0).in_flight), (Some(Ok(5)), 0));
    assert!(w.ok(0, write) && w.ok(0, flush));
    let next = w.write(0, 3, 100);
    assert!(w.ok(0, next));
    assert_eq!(w.read(0, 3), Ok(100));
    // What the disk does in the end changes nothing for anybody.
    w.nodes[0].hold_disk = false;
    w.run();
    assert_eq!((w.snapshot(0).disk, w.read(0, 3)), (DiskState::Failed, Ok(100)));
    assert_eq!(w.nodes[0].data.get(&3), Some(&99), "it stored what it had been given");
    // It comes back and gets what it missed.
    w.kill(0);
    w.start(0);
    w.pass(1000);
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert_eq!(w.nodes[0].data.get(&3), Some(&100));
}

#[test]
fn metadata_that_are_not_written_cost_the_disk_too_and_a_secondary_lets_the_primary_go_on() {
    let mut w = written(2);
    set(&mut w, Options { disk_timeout_ms: 3000, ..Options::default() });
    w.nodes[0].hold_meta = true;
    // Its extent is not hot.
    let far = (4 << 20) / 4096 * 3;
    let write = w.write(0, far, 7);
    assert_eq!(w.result(0, write), None);
    (0..12).for_each(|_| w.pass(375));
    assert_eq!(w.snapshot(0).disk, DiskState::Failed);
    assert!(w.ok(0, write));
    let mut w = written(2);
    let options = Options { disk_timeout_ms: 3000, ..Options::default() };
    assert_eq!(w.command(1, Command::Configure(options)), Some(Ok(())));
    w.nodes[1].hold_disk = true;
    let write = w.write(0, 3, 99);
    assert_eq!(w.result(0, write), None);
    (0..12).for_each(|_| w.pass(375));
    assert!(w.ok(0, write));
    assert_eq!(
        (w.snapshot(1).disk, w.snapshot(0).missing.contains(n(1))),
        (DiskState::Failed, true)
    );
}

/// Another reader may look at this disk, which a write reaches later than the peer's.
#[test]
fn what_a_peer_shows_of_a_write_that_began_since_it_was_asked_is_not_given() {
    let mut w = written(2);
    w.nodes[0].hold_disk = true;
    w.hold = Some(Box::new(|from, _, m| from == 1 && matches!(m, Message::ReadReply { .. })));
    let id = ask(&mut w, 3);
    w.nodes[1].hold_op = Some(is_read);
    w.pass(50);
    assert_eq!(asked(&w, 1), 1);
    let write = w.write(0, 3, 99);
    w.nodes[1].hold_op = None;
    w.hold = None;
    w.run();
    assert_eq!((w.result(0, write), found(&w, id)), (None, None), "it has 99, and here is 4");
    w.nodes[0].hold_disk = false;
    w.run();
    assert!(w.ok(0, write));
    assert!(found(&w, id).is_some());
}

/// It was UpToDate when it was asked, and answers well.
#[test]
fn what_a_peer_gives_that_is_worth_nothing_by_then_is_dropped() {
    let mut w = written(2);
    w.nodes[0].hold_op = Some(is_read);
    w.nodes[1].hold_op = Some(is_read);
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!(asked(&w, 1), 1);
    assert_eq!(w.command(1, Command::Invalidate { peer: None }), Some(Ok(())));
    assert_eq!(w.peer(0, 1).disk, DiskState::Inconsistent);
    w.nodes[1].data.insert(3, 99);
    w.nodes[1].hold_op = None;
    w.run();
    let answers = w
        .log
        .iter()
        .filter(|(_, _, m)| matches!(m, Message::ReadReply { result: PeerResult::Ok, .. }));
    assert_eq!((answers.count(), found(&w, id)), (1, None), "it gives anything now");
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!((found(&w, id), w.snapshot(0).hedged_reads_won), (Some(Ok(4)), 0));
}

#[test]
fn what_a_peer_gives_of_a_lost_block_in_place_of_a_slow_disk_heals_it() {
    let mut w = written(2);
    // The disk does not take it.
    w.nodes[0].bad.insert(3);
    w.nodes[0].broken.insert(3);
    assert_eq!(w.read(0, 3), Ok(4));
    w.nodes[0].bad.clear();
    w.nodes[0].broken.clear();
    w.nodes[0].data.insert(3, 99);
    w.pass(60_000);
    assert_eq!(w.snapshot(0).unreadable_blocks, 1, "nobody asked for it");
    w.nodes[0].hold_op = Some(is_read);
    let id = ask(&mut w, 3);
    w.pass(50);
    assert_eq!((found(&w, id), w.snapshot(0).hedged_reads_won), (Some(Ok(4)), 1));
    // What the disk gives in the end is nobody's, and has nothing healed.
    w.nodes[0].hold_op = None;
    w.run();
    assert_eq!(w.snapshot(0).unreadable_blocks, 0);
    assert_eq!(w.nodes[0].data.get(&3), Some(&4));
}

#[test]
fn the_only_copy_is_not_given_up() {
    let mut w = written(2);
    set(&mut w, Options { disk_timeout_ms: 3000, ..Options::default() });
    w.kill(1);
    w.nodes[0].hold_disk = true;
    let read = ask(&mut w, 4);
    (0..100).for_each(|_| w.pass(375));
    assert_eq!((w.snapshot(0).disk, found(&w, read)), (DiskState::UpToDate, None));
    w.nodes[0].hold_disk = false;
    w.run();
    assert_eq!(found(&w, read), Some(Ok(5)));
}
