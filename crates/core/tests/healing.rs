//! Blocks that a disk cannot read: who gives them, and how they are stored again.

mod common;

use bytes::Bytes;
use common::{World, n};
use holdfast_core::{Action, Command, DiskOutcome, Event, IoFailure, Notice, RequestKind};
use holdfast_units::{ByteRange, DiskState, Role};
use holdfast_wire::{Message, PeerResult};

/// `count` nodes, the first Primary, with blocks 0..64 of different values everywhere.
fn written(count: u8) -> World {
    let mut w = World::new(count);
    w.promote(0);
    for block in 0..64 {
        let id = w.write(0, block, value(block));
        assert!(w.ok(0, id));
    }
    w.log.clear();
    w
}

fn value(block: u64) -> u8 {
    u8::try_from(block + 1).expect("it is small")
}

fn read_all(w: &mut World, i: u8) -> Result<Vec<u8>, IoFailure> {
    let id = w.request(i, RequestKind::Read(ByteRange::of_blocks(0..64)));
    let data = w.result(i, id).expect("answered")?.expect("it is there");
    Ok(data.chunks(4096).map(|block| block[0]).collect())
}

fn right() -> Vec<u8> {
    (0..64).map(value).collect()
}

fn sent(w: &World, what: fn(&Message) -> bool) -> usize {
    w.log.iter().filter(|(_, _, m)| what(m)).count()
}

/// First lost blocks, and those behind the last.
fn lost(w: &World, i: u8) -> Vec<(u64, u64)> {
    let core = w.nodes[usize::from(i)].core.as_ref().expect("it is there");
    core.unreadable().old.runs().map(|run| (run.start, run.end)).collect()
}

/// First blocks that only could not be read, and those behind the last.
fn unread(w: &World, i: u8) -> Vec<(u64, u64)> {
    let core = w.nodes[usize::from(i)].core.as_ref().expect("it is there");
    core.unreadable().unread.runs().map(|run| (run.start, run.end)).collect()
}

#[test]
fn a_read_that_fails_for_some_blocks_gives_all_and_stores_these_again() {
    let mut w = written(2);
    w.nodes[0].bad.extend([3, 4, 5, 40]);
    for block in [3, 4, 5, 40] {
        w.nodes[0].data.insert(block, 99);
    }
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    let bytes: u64 = w
        .log
        .iter()
        .filter_map(|(_, _, m)| match m {
            Message::Read { range, .. } => Some(range.len),
            _ => None,
        })
        .sum();
    assert_eq!(bytes, 4 * 4096, "only the bad ones are asked for");
    assert!(w.nodes[0].bad.is_empty(), "they were stored again");
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    let seen = w.snapshot(0);
    assert_eq!((seen.disk, seen.io_errors), (DiskState::UpToDate, 4));
    assert_eq!((seen.healed_blocks, seen.unreadable_blocks, seen.healing_blocks), (4, 0, 0));
    w.pass(1000);
    let healed: u64 = w.nodes[0]
        .notices
        .iter()
        .map(|notice| if let Notice::Healed(blocks) = notice { *blocks } else { 0 })
        .sum();
    assert_eq!(healed, 4, "{:?}", w.nodes[0].notices);
}

#[test]
fn what_nobody_has_fails_alone_and_stays_known_until_it_is_written() {
    let mut w = World::new(1);
    w.promote(0);
    (0..64).for_each(|block| {
        w.write(0, block, value(block));
    });
    w.nodes[0].bad.insert(7);
    assert_eq!(read_all(&mut w, 0), Err(IoFailure::NoData));
    assert_eq!(w.read(0, 6), Ok(7));
    assert_eq!(w.read(0, 8), Ok(9));
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![], vec![(7, 8)]));
    let first = ByteRange::of_blocks(7..8);
    assert!(w.nodes[0].notices.contains(&Notice::Unreadable { first, blocks: 1 }));
    assert_eq!(w.snapshot(0).unreadable, [first]);
    w.kill(0);
    w.start(0);
    w.promote(0);
    assert_eq!(w.read(0, 7), Err(IoFailure::NoData));
    assert_eq!(unread(&w, 0), [(7, 8)], "it is remembered");
    w.write(0, 7, 200);
    assert_eq!(w.read(0, 7), Ok(200));
    w.kill(0);
    w.start(0);
    w.promote(0);
    assert_eq!((w.read(0, 7), w.snapshot(0).unreadable_blocks), (Ok(200), 0));
}

/// One node, of whose blocks 7 and 8 could not be read once.
fn with_unread() -> World {
    let mut w = written(1);
    w.nodes[0].bad.extend([7, 8]);
    assert_eq!(read_all(&mut w, 0), Err(IoFailure::NoData));
    assert_eq!(unread(&w, 0), [(7, 9)]);
    w
}

#[test]
fn what_could_not_be_read_is_had_by_the_next_read_that_finds_it() {
    let mut w = with_unread();
    w.nodes[0].bad.remove(&7);
    assert_eq!((w.read(0, 7), w.read(0, 8)), (Ok(8), Err(IoFailure::NoData)));
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![], vec![(8, 9)]));
    w.nodes[0].bad.clear();
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    let seen = w.snapshot(0);
    assert_eq!((seen.unreadable_blocks, seen.healing_blocks, seen.healed_blocks), (0, 0, 0));
    w.kill(0);
    w.start(0);
    assert_eq!(w.snapshot(0).unreadable_blocks, 0, "that is durable");
}

#[test]
fn what_could_not_be_read_is_tried_again_when_the_node_starts() {
    let mut w = with_unread();
    w.nodes[0].bad.remove(&8);
    w.kill(0);
    w.start(0);
    w.promote(0);
    w.pass(100);
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![], vec![(7, 8)]));
}

#[test]
fn a_block_that_does_not_take_itself_again_is_read_all_the_same() {
    let mut w = with_unread();
    w.nodes[0].bad.clear();
    w.nodes[0].broken.extend([7, 8]);
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![], vec![]));
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
}

#[test]
fn what_holds_something_else_is_lost_whatever_it_gives_later() {
    let mut w = written(1);
    w.nodes[0].bad.extend([7, 8]);
    w.nodes[0].rotten.insert(7);
    assert_eq!(read_all(&mut w, 0), Err(IoFailure::NoData));
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![(7, 8)], vec![(8, 9)]));
    w.nodes[0].bad.clear();
    w.nodes[0].data.insert(7, 99);
    w.kill(0);
    w.start(0);
    w.promote(0);
    assert_eq!((w.read(0, 7), w.read(0, 8)), (Err(IoFailure::NoData), Ok(9)));
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![(7, 8)], vec![]));
    w.write(0, 7, 3);
    assert_eq!((w.read(0, 7), w.snapshot(0).unreadable_blocks), (Ok(3), 0));
}

#[test]
fn a_source_whose_block_can_be_read_again_heals_the_target_that_lost_it() {
    let mut w = written(2);
    w.kill(1);
    w.write(0, 20, 120);
    w.nodes[0].bad.insert(20);
    w.start(1);
    w.pass(1);
    assert_eq!((unread(&w, 0), lost(&w, 1)), (vec![(20, 21)], vec![(20, 21)]));
    w.nodes[0].bad.clear();
    assert_eq!(w.read(0, 20), Ok(120));
    assert_eq!((unread(&w, 0), lost(&w, 1)), (vec![], vec![(20, 21)]));
    w.command(0, Command::Demote { force: false });
    w.promote(1);
    assert_eq!(w.read(1, 20), Ok(120), "the source has it");
    w.pass(1);
    assert_eq!((lost(&w, 1), w.nodes[1].data.get(&20)), (vec![], Some(&120)));
}

#[test]
fn a_write_of_a_lost_block_ends_when_it_is_durable_that_it_is_there() {
    let mut w = World::new(1);
    w.promote(0);
    w.nodes[0].bad.insert(7);
    w.nodes[0].rotten.insert(7);
    assert_eq!(w.read(0, 7), Err(IoFailure::NoData));
    w.nodes[0].hold_meta = true;
    w.nodes[0].hold_disk = true;
    let id = w.write(0, 7, 5);
    let fua = |a: &Action| matches!(a, Action::DiskWrite { fua: true, .. });
    assert!(w.nodes[0].held.iter().any(|(_, action)| fua(action)));
    w.nodes[0].hold_disk = false;
    w.run();
    assert_eq!(w.result(0, id), None, "a crash now would say that it is lost");
}

#[test]
fn a_newer_write_wins_over_what_was_fetched_before() {
    let mut w = written(2);
    w.nodes[0].bad.insert(3);
    // The peer's answer waits, while the block is written anew.
    w.hold = Some(Box::new(|from, _, m| {
        from == 1 && matches!(m, Message::ReadReply { id, .. } if id >> 63 == 1)
    }));
    w.nodes[1].hold_op = Some(|a| matches!(a, Action::DiskWrite { .. }));
    let read = w.request(0, RequestKind::Read(ByteRange::of_blocks(3..4)));
    assert!(w.ok(0, read), "the reader does not wait for the repair");
    let write = w.write(0, 3, 77);
    w.nodes[1].hold_op = None;
    w.hold = None;
    w.run();
    assert!(w.ok(0, write));
    assert_eq!(w.nodes[0].data.get(&3), Some(&77));
    assert_eq!(w.nodes[1].data.get(&3), Some(&77));
    assert_eq!(w.snapshot(0).healing_blocks, 0);
}

#[test]
fn a_secondary_heals_from_the_primary_behind_writes_that_are_under_way() {
    let mut w = written(2);
    w.nodes[1].bad.insert(3);
    // The Primary's own write of the block is not done yet, the Secondary's is answered.
    w.nodes[0].hold_op = Some(|a| matches!(a, Action::DiskWrite { .. }));
    let write = w.write(0, 3, 77);
    w.nodes[1].bad.insert(3);
    w.nodes[1].data.insert(3, 99);
    let link = w.link(0, 1).unwrap();
    let read = Message::Read { id: 5, range: ByteRange::of_blocks(3..4) };
    w.event(1, holdfast_core::Event::PeerMessage(n(0), link, read));
    w.run();
    assert_eq!(w.snapshot(1).healing_blocks, 1, "the block is locked at the Primary");
    w.nodes[0].hold_op = None;
    w.run();
    assert!(w.ok(0, write));
    assert_eq!(w.nodes[1].data.get(&3), Some(&77), "not what it was before the write");
    assert_eq!(w.snapshot(1).healed_blocks, 1);
}

#[test]
fn the_next_peer_is_asked_when_one_cannot() {
    let mut w = written(3);
    w.nodes[0].bad.extend([1, 2]);
    w.nodes[1].bad.insert(1);
    w.nodes[2].bad.insert(2);
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    w.pass(1000);
    for i in 0..3 {
        assert!(w.nodes[i].bad.is_empty(), "node {i}");
        assert_eq!(w.nodes[i].data, w.nodes[0].data);
        assert_eq!(w.snapshot(u8::try_from(i).unwrap()).unreadable_blocks, 0);
    }
}

#[test]
fn a_client_without_a_disk_gets_each_half_from_who_has_it() {
    let mut w = World::with_diskless(3);
    w.promote(2);
    for block in 0..64 {
        w.write(2, block, value(block));
    }
    w.nodes[0].bad.extend([1, 30]);
    w.nodes[1].bad.extend([2, 60]);
    assert_eq!(read_all(&mut w, 2), Ok(right()));
    w.pass(1000);
    assert!(w.nodes[0].bad.is_empty() && w.nodes[1].bad.is_empty(), "they heal each other");
    w.nodes[0].bad.insert(9);
    w.nodes[1].bad.insert(9);
    assert_eq!(read_all(&mut w, 2), Err(IoFailure::NoData));
    assert_eq!(w.read(2, 8), Ok(9));
    assert_eq!((unread(&w, 0), unread(&w, 1)), (vec![(9, 10)], vec![(9, 10)]));
}

#[test]
fn what_cannot_be_stored_again_is_read_from_the_peer_and_is_lost_here() {
    let mut w = written(2);
    w.nodes[0].bad.insert(3);
    w.nodes[0].broken.insert(3);
    assert_eq!(w.read(0, 3), Ok(4));
    assert_eq!(lost(&w, 0), [(3, 4)]);
    w.nodes[0].data.insert(3, 99);
    w.nodes[0].bad.clear();
    assert_eq!(w.read(0, 3), Ok(4), "whatever the disk gives");
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
    w.nodes[0].broken.clear();
    assert_eq!(w.read(0, 3), Ok(4));
    w.pass(1);
    assert_eq!((lost(&w, 0).len(), w.nodes[0].data.get(&3)), (0, Some(&4)));
}

#[test]
fn a_block_that_cannot_be_stored_again_takes_no_neighbour_along() {
    let mut w = written(2);
    w.nodes[0].bad.extend(0..64);
    w.nodes[0].broken.extend([3, 40]);
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    assert_eq!(lost(&w, 0), [(3, 4), (40, 41)]);
    let seen = w.snapshot(0);
    assert_eq!((seen.healed_blocks, seen.healing_blocks, seen.unreadable_blocks), (62, 0, 2));
    assert_eq!(seen.disk, DiskState::UpToDate);
    // The others are there without the peer.
    w.cut(0, 1);
    for block in 0..64 {
        let there = !matches!(block, 3 | 40);
        assert_eq!(w.read(0, block).is_ok(), there, "block {block}");
    }
}

#[test]
fn blocks_that_are_stored_one_by_one_are_not_written_to_meanwhile() {
    let mut w = written(2);
    w.nodes[0].bad.extend(0..64);
    w.nodes[0].broken.insert(3);
    w.nodes[0].hold_op = Some(|a| matches!(a, Action::DiskRepair { .. }));
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    // All of them at once fail, and then it is one behind the other.
    w.disk_op(0, 0);
    w.run();
    assert_eq!(w.nodes[0].held.len(), 1);
    let write = w.write(0, 4, 200);
    assert_eq!(w.result(0, write), None, "its block is being stored");
    w.nodes[0].hold_op = None;
    w.run();
    assert!(w.ok(0, write));
    assert_eq!((w.read(0, 4), lost(&w, 0)), (Ok(200), vec![(3, 4)]));
}

#[test]
fn what_was_lost_is_healed_when_a_peer_comes_that_has_it() {
    let mut w = written(2);
    w.cut(0, 1);
    w.nodes[0].bad.insert(3);
    assert_eq!(w.read(0, 3), Err(IoFailure::NoData));
    assert_eq!(unread(&w, 0), [(3, 4)]);
    w.heal();
    w.pass(1);
    assert_eq!((w.snapshot(0).unreadable_blocks, w.read(0, 3)), (0, Ok(4)));
    assert_eq!(sent(&w, |m| matches!(m, Message::HealRead { .. })), 1);
}

#[test]
fn a_resync_over_a_bad_block_gets_it_from_another_member() {
    let mut w = written(3);
    w.kill(1);
    for block in 0..64 {
        w.write(0, block, 100 + u8::try_from(block).unwrap());
    }
    w.nodes[0].bad.insert(20);
    w.start(1);
    w.pass(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!(w.nodes[1].data, w.nodes[2].data);
    assert_eq!(w.nodes[0].data, w.nodes[2].data);
    assert_eq!(w.snapshot(0).healed_blocks, 1);
    assert_eq!(w.snapshot(1).unreadable_blocks, 0);
}

#[test]
fn a_resync_over_a_block_that_nobody_has_ends_and_the_target_has_lost_it_too() {
    let mut w = written(2);
    w.kill(1);
    for block in 0..64 {
        w.write(0, block, 100 + u8::try_from(block).unwrap());
    }
    w.nodes[0].bad.extend([0, 20, 21]);
    w.start(1);
    w.pass(1);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!((unread(&w, 0), lost(&w, 1)), (vec![(0, 1), (20, 22)], vec![(0, 1), (20, 22)]));
    assert_eq!((lost(&w, 0), unread(&w, 1)), (vec![], vec![]));
    // Its disk still has what was there before; nobody gets to see that, not even behind a restart.
    assert_eq!(w.nodes[1].data.get(&20), Some(&value(20)));
    w.kill(0);
    w.kill(1);
    w.start(1);
    assert_eq!(w.command(1, Command::Promote { force: true }), Some(Ok(())));
    assert_eq!((w.read(1, 20), w.read(1, 22)), (Err(IoFailure::NoData), Ok(122)));
    assert_eq!(w.snapshot(1).role, Role::Primary);
}

#[test]
fn a_peer_that_was_told_of_a_missed_write_gives_nothing_for_healing() {
    let mut w = written(3);
    // Node 2 differs in block 3 from node 1, as the Primary says.
    let range = ByteRange::of_blocks(3..4);
    let mut peers = holdfast_units::PeerSet::EMPTY;
    peers.insert(n(2));
    let link = w.link(0, 1).unwrap();
    let told = Message::Missed { peers, range };
    w.event(1, holdfast_core::Event::PeerMessage(n(0), link, told));
    let id = 1 << 63;
    w.log.clear();
    let _ = w.forge(2, 1, Message::HealRead { id, range });
    w.run();
    let refused = |m: &Message| matches!(m, Message::ReadReply { result: PeerResult::NoData, .. });
    assert_eq!(sent(&w, refused), 1);
    assert_eq!(sent(&w, |m| matches!(m, Message::ReadReply { result: PeerResult::Ok, .. })), 0);
}

#[test]
fn healing_is_bounded_and_goes_on_with_time() {
    let mut w = World::new(2);
    w.promote(0);
    w.write(0, 0, 1);
    // 4095 blocks of 4096.
    w.nodes[0].bad.extend(1..4096);
    for first in (0..4096).step_by(256) {
        let range = ByteRange::of_blocks(first..first + 256);
        let id = w.request(0, RequestKind::Read(range));
        assert!(w.ok(0, id), "readers do not wait");
    }
    let healed = w.snapshot(0).healed_blocks;
    assert_eq!(healed, 2048);
    assert_eq!(w.snapshot(0).healing_blocks, 4095 - 2048);
    w.pass(500);
    assert_eq!(w.snapshot(0).healed_blocks, 2048 + 1024);
    w.pass(1000);
    assert_eq!((w.snapshot(0).healed_blocks, w.snapshot(0).healing_blocks), (4095, 0));
    assert!(w.nodes[0].bad.is_empty());
    let told = w.nodes[0].notices.iter().filter(|n| matches!(n, Notice::Healed(_))).count();
    assert!(told <= 4, "{told}");
}

#[test]
fn zeroes_clear_a_lost_block_too() {
    let mut w = World::new(1);
    w.promote(0);
    w.write(0, 3, 9);
    w.nodes[0].bad.insert(3);
    assert_eq!(w.read(0, 3), Err(IoFailure::NoData));
    let range = ByteRange::of_blocks(0..8);
    w.request(0, RequestKind::Zeroes { range, fua: false });
    assert_eq!((w.read(0, 3), lost(&w, 0).len()), (Ok(0), 0));
    let data = Bytes::from(vec![1; 4096]);
    w.request(0, RequestKind::Write { range: ByteRange::of_blocks(3..4), data, fua: false });
    assert_eq!(w.read(0, 3), Ok(1));
}

#[test]
fn what_was_written_while_a_read_failed_is_not_lost() {
    let mut w = World::new(1);
    w.promote(0);
    (6..10).for_each(|block| {
        w.write(0, block, value(block));
    });
    w.nodes[0].bad.extend([7, 8]);
    w.nodes[0].hold_op = Some(|a| matches!(a, Action::DiskRead { .. }));
    let range = ByteRange::of_blocks(6..10);
    let read = w.request(0, RequestKind::Read(range));
    let (op, _) = w.nodes[0].held.remove(0);
    w.nodes[0].hold_op = None;
    let write = w.write(0, 7, 200);
    assert!(w.ok(0, write));
    // The disk had looked at the blocks before that write came.
    let bad = vec![ByteRange::of_blocks(7..9)];
    let data = vec![0; 4 * 4096].into();
    w.event(0, Event::DiskDone(op, Ok(DiskOutcome::Partial { data, bad, wrong: vec![] })));
    w.run();
    assert_eq!(w.result(0, read), Some(Err(IoFailure::NoData)));
    assert_eq!(unread(&w, 0), [(8, 9)], "of the other one there is still no good copy");
    assert_eq!((w.read(0, 7), w.read(0, 8)), (Ok(200), Err(IoFailure::NoData)));
    assert_eq!((w.snapshot(0).healing_blocks, w.snapshot(0).unreadable_blocks), (0, 1));
}

#[test]
fn a_reader_of_a_lost_block_has_nothing_but_that_block_healed() {
    let mut w = written(2);
    w.nodes[0].bad.extend(3..10);
    w.nodes[0].broken.extend(3..10);
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    assert_eq!(lost(&w, 0), [(3, 10)]);
    w.nodes[0].broken.retain(|block| *block == 3);
    w.nodes[0].hold_op = Some(|a| matches!(a, Action::DiskRead { .. }));
    let read = w.request(0, RequestKind::Read(ByteRange::of_blocks(3..10)));
    for block in 4..10 {
        let write = w.write(0, block, 200);
        assert!(w.ok(0, write));
    }
    assert_eq!(lost(&w, 0), [(3, 4)]);
    w.nodes[0].hold_op = None;
    w.run();
    assert!(w.ok(0, read));
    assert_eq!(lost(&w, 0), [(3, 4)], "the others are as good as they were");
}

#[test]
fn what_is_lost_is_not_tried_again_whenever_a_peer_says_something() {
    let mut w = written(3);
    w.nodes[0].bad.insert(3);
    w.nodes[0].broken.insert(3);
    assert_eq!(w.read(0, 3), Ok(4));
    assert_eq!(lost(&w, 0), [(3, 4)]);
    w.pass(2000);
    w.log.clear();
    for _ in 0..10 {
        assert_eq!(w.command(0, Command::Demote { force: false }), Some(Ok(())));
        w.promote(0);
    }
    let asks = |w: &World| sent(w, |m| matches!(m, Message::HealRead { .. }));
    assert!(asks(&w) <= 2, "{}", asks(&w));
    w.pass(1000);
    w.nodes[0].broken.clear();
    w.pass(1000);
    w.cut(0, 1);
    w.heal();
    w.pass(1);
    assert_eq!((lost(&w, 0).len(), w.nodes[0].data.get(&3)), (0, Some(&4)), "one came");
}

#[test]
fn very_much_that_was_lost_is_healed_step_by_step() {
    let mut w = World::with(2, 64 << 20, 67);
    w.promote(0);
    w.cut(0, 1);
    w.nodes[0].bad.extend(0..10_000);
    for first in (0..10_000).step_by(250) {
        let range = ByteRange::of_blocks(first..first + 250);
        let read = w.request(0, RequestKind::Read(range));
        assert!(!w.ok(0, read));
    }
    for _ in 0..6 {
        w.pass(1000);
    }
    assert_eq!(w.snapshot(0).unreadable_blocks, 10_000);
    w.heal();
    for _ in 0..6 {
        w.pass(1000);
    }
    assert_eq!((w.snapshot(0).unreadable_blocks, w.nodes[0].bad.len()), (0, 0));
}

#[test]
fn what_the_driver_has_is_given_and_stored_again_without_anybody_else() {
    let mut w = written(1);
    w.nodes[0].bad.extend([3, 4, 40]);
    w.nodes[0].kept.extend([3, 4]);
    let id = w.request(0, RequestKind::Read(ByteRange::of_blocks(0..40)));
    let data = w.result(0, id).expect("answered").expect("none of it is bad").expect("data");
    assert!(data.chunks(4096).map(|block| block[0]).eq(right()[..40].iter().copied()));
    assert_eq!(w.nodes[0].bad, [40].into(), "they were stored again");
    // Beside one that nobody has.
    w.nodes[0].bad.extend([3, 4]);
    let id = w.request(0, RequestKind::Read(ByteRange::of_blocks(0..64)));
    assert_eq!(w.result(0, id), Some(Err(IoFailure::NoData)));
    assert_eq!((w.nodes[0].bad.clone(), unread(&w, 0)), ([40].into(), vec![(40, 41)]));
    let seen = w.snapshot(0);
    assert_eq!((seen.disk, seen.io_errors), (DiskState::UpToDate, 5));
    assert_eq!((seen.healed_blocks, seen.unreadable_blocks, seen.healing_blocks), (4, 1, 0));
    // What only could not be read is had when the driver has it later.
    w.nodes[0].kept.insert(40);
    assert_eq!(w.read(0, 40), Ok(41));
    assert_eq!((w.nodes[0].bad.len(), w.snapshot(0).unreadable_blocks), (0, 0));
}

#[test]
fn what_a_source_lost_is_old_whoever_offers_it() {
    let mut w = written(2);
    w.kill(1);
    w.write(0, 40, 140);
    w.nodes[0].bad.insert(40);
    w.start(1);
    w.pass(1);
    assert_eq!(lost(&w, 1), vec![(40, 41)]);
    w.kill(0);
    assert_eq!(w.command(1, Command::Promote { force: true }), Some(Ok(())));
    w.nodes[1].bad.insert(40);
    w.nodes[1].kept.insert(40);
    assert_eq!(w.read(1, 40), Err(IoFailure::NoData));
    assert_eq!(lost(&w, 1), vec![(40, 41)]);
}

#[test]
fn what_the_driver_has_and_cannot_be_stored_is_had_by_every_reader() {
    let mut w = written(1);
    w.nodes[0].bad.insert(3);
    w.nodes[0].kept.insert(3);
    w.nodes[0].broken.insert(3);
    let repairs = |w: &World| w.snapshot(0).io_errors;
    for _ in 0..5 {
        assert_eq!(read_all(&mut w, 0), Ok(right()));
    }
    assert_eq!(repairs(&w), 5 + 1, "five reads, and it was stored once");
    assert_eq!((lost(&w, 0), unread(&w, 0)), (vec![], vec![]));
    assert_eq!(w.snapshot(0).disk, DiskState::UpToDate);
    // Later it is tried again.
    w.nodes[0].broken.clear();
    w.pass(10_000);
    assert_eq!(read_all(&mut w, 0), Ok(right()));
    assert_eq!((w.nodes[0].bad.len(), w.snapshot(0).healed_blocks), (0, 1));
}

#[test]
fn what_the_driver_has_is_given_to_a_peer_that_heals() {
    let mut w = written(2);
    w.nodes[0].bad.insert(3);
    w.nodes[0].kept.insert(3);
    w.nodes[1].bad.insert(3);
    let link = w.link(0, 1).expect("they are connected");
    let read = Message::Read { id: 5, range: ByteRange::of_blocks(0..8) };
    w.event(1, Event::PeerMessage(n(0), link, read));
    w.run();
    assert!(w.nodes[0].bad.is_empty() && w.nodes[1].bad.is_empty(), "both are stored again");
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[test]
fn what_somebody_else_could_not_read_is_healed_when_that_is_told() {
    let mut w = written(2);
    w.nodes[0].bad.extend([3, 4, 40]);
    let ranges = vec![ByteRange::of_blocks(3..5), ByteRange::of_blocks(40..41)];
    assert_eq!(w.command(0, Command::Heal(ranges)), Some(Ok(())));
    w.run();
    assert!(w.nodes[0].bad.is_empty());
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    // Outside of the device there is nothing to heal.
    let outside = vec![ByteRange::of_blocks(1 << 40..(1 << 40) + 1)];
    assert_eq!(w.command(0, Command::Heal(outside)), Some(Ok(())));
    assert_eq!(w.snapshot(0).healing_blocks, 0);
}
