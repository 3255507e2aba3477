//! Resyncs that stand still because a node was told so.

mod common;

use common::{World, n};
use holdfast_core::{Command, StandsStill};
use holdfast_units::{DiskState, ReplicationState};
use holdfast_wire::{Message, SyncPause};

fn pause(w: &mut World, i: u8, pause: SyncPause) {
    assert_eq!(w.command(i, Command::PauseSync(pause)), Some(Ok(())));
}

#[track_caller]
fn assert_level(w: &World) {
    assert_eq!(w.peer(0, 1).replication, ReplicationState::Established);
    assert_eq!(w.snapshot(1).disk, DiskState::UpToDate);
    assert_eq!((w.peer(0, 1).out_of_sync, w.peer(1, 0).out_of_sync), (0, 0));
    assert_eq!(w.nodes[0].data, w.nodes[1].data);
}

#[track_caller]
fn assert_still(w: &World, holder: u8) {
    assert_eq!(w.peer(0, 1).replication, ReplicationState::PausedSyncS);
    assert_eq!(w.peer(1, 0).replication, ReplicationState::PausedSyncT);
    for (node, peer) in [(0, 1), (1, 0)] {
        let due = StandsStill { here: holder == node, there: holder == peer };
        assert_eq!(w.peer(node, peer).stands_still, Some(due), "{}", n(node));
    }
}

#[test]
fn a_held_resync_stands_still_and_goes_on() {
    for (holder, how) in [(0, SyncPause::Always), (1, SyncPause::Always), (1, SyncPause::AsTarget)]
    {
        let mut w = World::new(2);
        w.promote(0);
        w.cut(0, 1);
        for block in 0..20 {
            w.write(0, block, 7);
        }
        pause(&mut w, holder, how);
        w.log.clear();
        w.heal();
        w.pass(100);
        assert_still(&w, holder);
        assert_eq!(w.snapshot(1).disk, DiskState::Inconsistent);
        // Writes go to it, and what they overwrite is not lacking any more.
        let id = w.write(0, 3, 9);
        assert!(w.ok(0, id));
        assert_eq!(w.nodes[1].data.get(&3), Some(&9));
        assert_eq!(w.peer(1, 0).out_of_sync, 19 * 4096);
        // So it is on another connection.
        w.cut(0, 1);
        w.heal();
        w.pass(100);
        assert_still(&w, holder);
        assert_eq!(w.resynced(), 0);
        pause(&mut w, holder, SyncPause::No);
        assert_level(&w);
        assert!(w.peer(0, 1).stands_still.is_none());
    }
}

#[test]
fn who_is_held_as_a_target_alone_fills_others() {
    let mut w = World::new(2);
    w.promote(0);
    w.cut(0, 1);
    w.write(0, 1, 7);
    pause(&mut w, 0, SyncPause::AsTarget);
    w.heal();
    assert_level(&w);
}

#[test]
fn what_is_held_by_both_goes_on_when_both_let_it() {
    let mut w = World::new(2);
    w.promote(0);
    w.cut(0, 1);
    w.write(0, 1, 7);
    pause(&mut w, 0, SyncPause::Always);
    pause(&mut w, 1, SyncPause::Always);
    w.heal();
    let both = Some(StandsStill { here: true, there: true });
    assert_eq!((w.peer(0, 1).stands_still, w.peer(1, 0).stands_still), (both, both));
    pause(&mut w, 0, SyncPause::No);
    assert_still(&w, 1);
    pause(&mut w, 1, SyncPause::No);
    assert_level(&w);
}

#[test]
fn catching_up_from_the_journal_is_held_by_either_side() {
    for holder in [0, 1] {
        let mut w = World::new(2);
        w.promote(0);
        w.nodes[0].journal = Some(Vec::new());
        w.write(0, 0, 1);
        w.cut(0, 1);
        w.write(0, 5, 2);
        pause(&mut w, holder, SyncPause::Always);
        w.log.clear();
        w.heal();
        w.pass(1_000);
        assert_still(&w, holder);
        if holder == 1 {
            // What the source had sent before it heard of it has come.
            w.log.clear();
        }
        // Nobody waits for it.
        let id = w.write(0, 6, 3);
        assert!(w.ok(0, id));
        let told = |m: &Message| matches!(m, Message::Replay { .. });
        assert!(!w.log.iter().any(|(_, _, message)| told(message)));
        pause(&mut w, holder, SyncPause::No);
        assert_level(&w);
        let bad = |m: &Message| matches!(m, Message::Changed { disk: DiskState::Inconsistent, .. });
        assert!(
            !w.log.iter().any(|(_, _, message)| bad(message)),
            "it was consistent all the time"
        );
    }
}
