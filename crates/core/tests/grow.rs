//! A device grows while it is in use: who gets the new size when, and what an interruption leaves.

mod common;

use bytes::Bytes;
use common::{RESOURCE, Torn, World, n};
use holdfast_core::{Command, IoFailure, Notice, Refusal, RequestKind};
use holdfast_units::{ByteRange, ConnectionState, DiskState, ReplicationState};
use holdfast_wire::{Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};

const MIB: u64 = 1 << 20;
/// Not a whole extent, and less than a page of a bitmap.
const SMALL: u64 = 30 * MIB;
/// More than a page of a bitmap.
const LARGE: u64 = 190 * MIB;
/// The first block that only the large device has.
const NEW: u64 = SMALL / 4096;
const LAST: u64 = LARGE / 4096 - 1;

fn world(count: u8) -> World {
    World::with(count, SMALL, 61)
}

fn established(w: &World, a: u8, b: u8) -> bool {
    let peer = w.peer(a, b);
    peer.connection == ConnectionState::Connected
        && peer.replication == ReplicationState::Established
        && peer.disk == DiskState::UpToDate
        && peer.out_of_sync == 0
}

fn out_of_range(w: &mut World, i: u8, block: u64) -> bool {
    let id = w.write(i, block, 1);
    w.result(i, id) == Some(Err(IoFailure::Range))
}

#[test]
fn clients_get_the_size_when_every_connected_member_has_it() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut w = world(3);
        w.promote(0);
        let id = w.write(0, NEW - 1, 7);
        assert!(w.ok(0, id));
        for i in order {
            assert!(out_of_range(&mut w, 0, NEW), "{order:?}: not before node {i} has grown");
            assert_eq!(w.snapshot(0).size, SMALL);
            assert_eq!(w.grow(i, LARGE), Some(Ok(())));
            assert_eq!(w.snapshot(i).own_size, LARGE);
        }
        assert_eq!(w.snapshot(0).size, LARGE, "{order:?}");
        assert!(w.nodes[0].notices.contains(&Notice::Grown(LARGE)));
        for block in [NEW, LAST] {
            let id = w.write(0, block, 9);
            assert!(w.ok(0, id));
        }
        assert!(out_of_range(&mut w, 0, LAST + 1));
        assert_eq!(w.resynced(), 0, "nothing of it was out of sync");
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert!(established(&w, a, b));
        }
        assert_eq!(w.nodes[0].data, w.nodes[1].data);
        assert_eq!(w.nodes[0].data, w.nodes[2].data);
        assert_eq!(w.nodes[2].data.get(&LAST), Some(&9));
    }
}

#[test]
fn a_member_that_was_away_grows_first_and_gets_what_it_missed() {
    let mut w = world(2);
    w.promote(0);
    w.cut(0, 1);
    assert_eq!(w.grow(0, LARGE), Some(Ok(())));
    assert_eq!(w.snapshot(0).size, LARGE, "who is away is no hindrance");
    for block in [3, NEW, LAST] {
        let id = w.write(0, block, 5);
        assert!(w.ok(0, id));
    }
    assert_eq!(w.peer(0, 1).out_of_sync, 3 * 4096);
    w.kill(1);
    w.start(1);
    assert_eq!(w.snapshot(1).own_size, SMALL);
    assert_eq!(w.grow(1, LARGE), Some(Ok(())));
    w.log.clear();
    w.heal();
    assert!(established(&w, 0, 1));
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
    assert!(w.resynced() <= 3 * 4096, "exactly what it missed: {}", w.resynced());
}

#[test]
fn two_sizes_are_not_connected() {
    let mut w = world(2);
    w.promote(0);
    w.cut(0, 1);
    assert_eq!(w.grow(0, LARGE), Some(Ok(())));
    // The connection is tried again and again: it has to be cut before it comes to rest.
    w.cut_at = Some(Box::new(|_, _, message| matches!(message, Message::State(_))));
    let hello = |from: u8, to: u8, size| {
        Message::Hello(Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            features: 0,
            resource: RESOURCE,
            from: n(from),
            to: n(to),
            size,
        })
    };
    let link = holdfast_core::LinkId(1 << 40);
    w.event(0, holdfast_core::Event::PeerUp(n(1), link));
    w.event(0, holdfast_core::Event::PeerMessage(n(1), link, hello(1, 0, SMALL)));
    assert_ne!(w.peer(0, 1).connection, ConnectionState::Connected);
    assert_ne!(w.peer(0, 1).connection, ConnectionState::StandAlone, "it may grow at any time");
    assert_eq!(w.peer(0, 1).size, Some(SMALL));
    let told = Notice::SizesDiffer { peer: n(1), theirs: SMALL, ours: LARGE };
    let link = holdfast_core::LinkId(1 << 41);
    w.event(0, holdfast_core::Event::PeerUp(n(1), link));
    w.event(0, holdfast_core::Event::PeerMessage(n(1), link, hello(1, 0, SMALL)));
    assert_eq!(w.nodes[0].notices.iter().filter(|notice| **notice == told).count(), 1, "once");
    let id = w.write(0, LAST, 1);
    assert!(w.ok(0, id));
}

#[test]
fn a_further_hello_only_says_that_a_peer_has_grown() {
    let mut w = world(2);
    w.promote(0);
    let hello = |size| {
        Message::Hello(Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            features: 0,
            resource: RESOURCE,
            from: n(1),
            to: n(0),
            size,
        })
    };
    assert!(w.forge(1, 0, hello(LARGE)));
    assert_eq!(w.snapshot(0).size, SMALL, "there is no room for it here");
    assert!(established(&w, 0, 1));
    assert!(!w.forge(1, 0, hello(LARGE)), "the same again is out of turn");
    w.run();
    assert!(established(&w, 0, 1));
    assert!(!w.forge(1, 0, hello(4096)), "nobody shrinks");
}

#[test]
fn what_cannot_be_is_refused_and_a_smaller_size_changes_nothing() {
    let mut w = world(2);
    assert_eq!(w.grow(0, SMALL), Some(Ok(())));
    assert_eq!(w.command(0, Command::Grow { size: 4096, disk_ready: true }), Some(Ok(())));
    assert_eq!(
        w.command(0, Command::Grow { size: SMALL + 1, disk_ready: true }),
        Some(Err(Refusal::CannotGrow))
    );
    assert_eq!(
        w.command(0, Command::Grow { size: 1 << 51, disk_ready: true }),
        Some(Err(Refusal::CannotGrow))
    );
    assert_eq!(w.snapshot(0).own_size, SMALL);
    w.nodes[0].hold_meta = true;
    assert_eq!(w.grow(0, LARGE), None);
    assert_eq!(w.grow(0, 2 * LARGE), Some(Err(Refusal::Busy)));
    assert_eq!(w.snapshot(0).own_size, SMALL, "not before it is durable");
}

#[test]
fn a_disk_that_nobody_made_ready_keeps_the_size_that_it_has() {
    let mut w = world(2);
    let unready = || Command::Grow { size: LARGE, disk_ready: false };
    assert_eq!(w.command(0, unready()), Some(Err(Refusal::DiskNotReady)));
    assert_eq!(w.snapshot(0).own_size, SMALL);
    assert!(established(&w, 0, 1));
    let mut w = World::build(2, SMALL, 62, Some(1));
    assert_eq!(w.command(1, unready()), Some(Ok(())), "there is none");
}

#[test]
fn a_primary_without_a_disk_grows_too() {
    let mut w = World::build(2, SMALL, 61, Some(1));
    w.promote(1);
    assert_eq!(w.grow(1, LARGE), Some(Ok(())));
    assert!(out_of_range(&mut w, 1, NEW));
    assert_eq!(w.grow(0, LARGE), Some(Ok(())));
    let id = w.write(1, LAST, 3);
    assert!(w.ok(1, id));
    assert_eq!(w.nodes[0].data.get(&LAST), Some(&3));
    assert_eq!(w.read(1, LAST), Ok(3));
}

#[test]
fn a_resync_begins_anew_and_ends() {
    let mut w = world(2);
    w.promote(0);
    w.cut(0, 1);
    for block in 0..200 {
        let id = w.write(0, block * 30, 4);
        assert!(w.ok(0, id));
    }
    // It stands in the middle of the resync.
    w.hold = Some(Box::new(|from, _, message| {
        from == 0 && matches!(message, Message::ResyncData { .. })
    }));
    w.heal();
    assert_eq!(w.peer(0, 1).replication, ReplicationState::SyncSource);
    for i in [1, 0] {
        w.make_ready(i, LARGE);
    }
    for (i, id) in [(1, 1 << 50), (0, 1 << 51)] {
        let grow = Command::Grow { size: LARGE, disk_ready: true };
        w.event(i, holdfast_core::Event::Command(holdfast_core::CommandId(id), grow));
    }
    w.hold = None;
    w.run();
    assert_eq!((w.snapshot(0).size, w.snapshot(1).own_size), (LARGE, LARGE));
    assert!(established(&w, 0, 1));
    let id = w.write(0, LAST, 6);
    assert!(w.ok(0, id));
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

/// A node dies at each metadata write from the growth on, torn in every way.
#[test]
fn who_dies_while_it_grows_has_the_old_size_or_the_new_one() {
    let torn = [Torn::Nothing, Torn::FirstBlocks, Torn::LastBlocks, Torn::Sectors, Torn::All];
    for (dies, lives) in [(0, 1), (1, 0)] {
        for (at, torn) in (0..6).flat_map(|at| torn.map(|torn| (at, torn))) {
            let mut w = world(2);
            w.promote(0);
            let id = w.write(0, 5, 1);
            assert!(w.ok(0, id));
            w.nodes[usize::from(dies)].crash_at =
                Some((w.nodes[usize::from(dies)].meta_writes + at, torn));
            let mut last = 1;
            for i in [1, 0] {
                if w.nodes[usize::from(i)].core.is_some() {
                    w.grow(i, LARGE);
                }
            }
            if w.nodes[0].core.is_some() {
                let id = w.write(0, 5, 2);
                if w.ok(0, id) {
                    last = 2;
                }
                w.write(0, LAST, 3);
            }
            if w.nodes[usize::from(dies)].core.is_some() {
                w.kill(dies);
            }
            let size = w.on_disk(dies).superblock.layout.device_size();
            assert!([SMALL, LARGE].contains(&size), "{size}");
            // What it comes to by itself.
            w.cut(0, 1);
            w.nodes[usize::from(dies)].crash_at = None;
            w.start(dies);
            for i in [dies, lives] {
                assert_eq!(w.grow(i, LARGE), Some(Ok(())), "node {dies} died at {at}, {torn:?}");
            }
            w.heal();
            let what = format!("node {dies} died at {at}, {torn:?}");
            assert!(established(&w, 0, 1), "{what}: {:?}", w.snapshot(0));
            assert_eq!(w.nodes[0].data, w.nodes[1].data, "{what}");
            let found = w.nodes[0].data.get(&5).copied();
            assert!(found == Some(last) || found == Some(2), "{what}: {found:?}");
            if w.snapshot(0).role == holdfast_units::Role::Secondary {
                w.promote(0);
            }
            let range = ByteRange::new(LAST * 4096, 4096);
            let data = Bytes::from(vec![8; 4096]);
            let id = w.request(0, RequestKind::Write { range, data, fua: true });
            assert!(w.ok(0, id), "{what}");
            assert_eq!(w.nodes[0].data, w.nodes[1].data, "{what}");
        }
    }
}
