//! A member that is broken or hostile takes no more than a bounded share, and is told off.

mod common;

use common::{World, n};
use holdfast_core::{Command, Event, LinkId, Notice, RequestKind};
use holdfast_units::{ByteRange, ReplicationState};
use holdfast_wire::{Hello, Message, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};

const MIB: u64 = 1 << 20;

/// A piece of a bitmap that is as long as one can be.
fn long_piece() -> Message {
    let runs = (0..4096).map(|block| (block, 1)).collect();
    Message::Bitmap { about: n(1), round: 0, runs, last: false }
}

/// What node 1 says about breaches of the protocol by node 0.
fn said(w: &World, node: usize) -> Vec<&str> {
    let texts = w.nodes[node].notices.iter().filter_map(|notice| match notice {
        Notice::ProtocolError(_, text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn what_waits_for_the_superblock_takes_bounded_memory() {
    let mut w = World::new(2);
    w.promote(0);
    w.cut(0, 1);
    w.write(0, 1, 1);
    w.nodes[1].hold_meta = true;
    w.heal();
    assert_eq!(w.peer(1, 0).replication, ReplicationState::WFBitMapT);
    // 64 KiB each.
    let kept = (0..4500).take_while(|_| w.forge(0, 1, long_piece())).count();
    assert!((2000..4200).contains(&kept), "{kept} were kept");
    assert_eq!(said(&w, 1), ["it sent more at once than the protocol allows"]);
}

#[test]
fn what_waits_for_a_verdict_takes_bounded_memory() {
    let mut w = World::new(2);
    w.kill(0);
    let link = LinkId(1000);
    w.event(1, Event::PeerUp(n(0), link));
    let hello = Message::Hello(Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION,
        features: 0,
        resource: holdfast_units::ResourceId([7; 16]),
        from: n(0),
        to: n(1),
        size: w.size,
    });
    w.event(1, Event::PeerMessage(n(0), link, hello));
    let mut kept = 0;
    while said(&w, 1).is_empty() && kept < 4500 {
        w.event(1, Event::PeerMessage(n(0), link, long_piece()));
        kept += 1;
    }
    assert!((2000..4200).contains(&kept), "{kept} were kept");
    assert_eq!(said(&w, 1), ["it sent more at once than the protocol allows"]);
}

#[test]
fn small_messages_are_counted_too() {
    let mut w = World::new(2);
    w.promote(0);
    w.cut(0, 1);
    w.write(0, 1, 1);
    w.nodes[1].hold_meta = true;
    w.heal();
    let kept = (0..110_000).take_while(|_| w.forge(0, 1, Message::Settled { seq: 0 })).count();
    assert!((90_000..=100_000).contains(&kept), "{kept} were kept");
}

/// Node 1 is being filled by node 0, whose disk answers nothing.
fn being_filled() -> World {
    let mut w = World::with(2, 256 * MIB, 67);
    w.promote(0);
    w.nodes[1].hold_disk = true;
    assert_eq!(w.command(0, Command::Invalidate { peer: Some(n(1)) }), Some(Ok(())));
    w.nodes[0].hold_disk = true;
    w.nodes[1].hold_disk = false;
    w.run();
    assert_eq!(w.peer(0, 1).replication, ReplicationState::SyncSource);
    w
}

#[test]
fn a_target_that_asks_for_everything_at_once_is_served_bit_by_bit() {
    let mut w = being_filled();
    let reading = |w: &World| w.nodes[0].held.len() as u64;
    let ask = |mib: u64| Message::ResyncRequest { range: ByteRange::new(mib * MIB, MIB) };
    for mib in 16..256 {
        assert!(w.forge(1, 0, ask(mib)), "what it may ask for");
    }
    assert_eq!(reading(&w), 32, "MiB at a time");
    for mib in (0..256).cycle().take(100_000) {
        if !w.forge(1, 0, ask(mib)) {
            break;
        }
    }
    assert_eq!(reading(&w), 32);
    assert_eq!(said(&w, 0), ["it asked for more blocks at once than the protocol allows"]);
    // It may come again, and what waited of the old connection is forgotten.
    w.nodes[0].hold_disk = false;
    w.run();
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    let id = w.request(0, RequestKind::Flush);
    assert!(w.ok(0, id));
}

#[test]
fn all_that_a_target_asks_for_is_answered() {
    let mut w = being_filled();
    w.log.clear();
    for mib in 16..256 {
        w.forge(1, 0, Message::ResyncRequest { range: ByteRange::new(mib * MIB, MIB) });
    }
    w.nodes[0].hold_disk = false;
    w.run();
    let answers = w.log.iter().filter(|(from, _, m)| {
        *from == 0 && matches!(m, Message::ResyncData { asked, .. } if asked.offset >= 16 * MIB)
    });
    assert!(answers.count() >= 240);
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
}

#[test]
fn requests_of_a_peer_on_the_disk_are_counted() {
    let read = |id| Message::Read { id, range: ByteRange::new(0, 4096) };
    let mut w = World::new(2);
    w.promote(0);
    w.nodes[1].hold_disk = true;
    let asked = (0..110_000).take_while(|id| w.forge(0, 1, read(*id))).count();
    assert_eq!(asked, 100_000);
    assert_eq!(said(&w, 1), ["it asked for more at once than the protocol allows"]);
}

#[test]
fn answered_requests_do_not_count() {
    let mut w = World::new(2);
    w.promote(0);
    let flush = |id| Message::Flush { id: u64::MAX - id };
    for round in 0..110 {
        assert!((0..1000).all(|id| w.forge(0, 1, flush(round * 1000 + id))));
        w.run();
    }
}
