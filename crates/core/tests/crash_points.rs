//! A node dies at every single metadata write of a scenario, with every way that write can be torn,
//! and comes back: nothing that was completed is lost, and all copies are equal in the end.

mod common;

use common::{Torn, World};
use holdfast_core::Command;
use holdfast_units::{ConnectionState, DiskState, Role};
use std::collections::BTreeMap;

const TORN: [Torn; 5] =
    [Torn::Nothing, Torn::FirstBlocks, Torn::LastBlocks, Torn::Sectors, Torn::All];

/// What clients know: the value of a block after its last completed write, and values of writes
/// that never completed, which may or may not be there.
#[derive(Default)]
struct Oracle {
    done: BTreeMap<u64, u8>,
    maybe: BTreeMap<u64, Vec<u8>>,
}

impl Oracle {
    fn write(&mut self, w: &mut World, node: u8, block: u64, value: u8) {
        if w.nodes[usize::from(node)].core.is_none() {
            return;
        }
        let id = w.write(node, block, value);
        if w.ok(node, id) {
            self.done.insert(block, value);
            self.maybe.remove(&block);
        } else {
            self.maybe.entry(block).or_default().push(value);
        }
    }

    fn check(&self, data: &BTreeMap<u64, u8>, what: &str) {
        for (block, value) in &self.done {
            let found = data.get(block).copied().unwrap_or(0);
            let allowed = found == *value
                || self.maybe.get(block).is_some_and(|values| values.contains(&found));
            assert!(allowed, "{what}: block {block} is {found}, {value} was completed");
        }
    }
}

fn running(w: &World, i: u8) -> bool {
    w.nodes[usize::from(i)].core.is_some()
}

/// Failover, a missing peer, catching up, and more hot extents than the log has room for.
fn scenario(w: &mut World, oracle: &mut Oracle) {
    if running(w, 0) {
        w.command(0, Command::Promote { force: false });
    }
    for extent in 0..6 {
        oracle.write(w, 0, extent * 1024 + 1, 1);
    }
    if running(w, 0) && running(w, 1) {
        w.kill(1);
    }
    for extent in 0..70 {
        oracle.write(w, 0, extent * 1024 + 2, 2);
    }
    if running(w, 0) && !w.nodes[1].crashed {
        w.start(1);
        oracle.write(w, 0, 3, 3);
        let _ = running(w, 0) && w.command(0, Command::Demote { force: false }).is_some();
    }
    if running(w, 0) && running(w, 1) {
        w.command(1, Command::Promote { force: false });
        oracle.write(w, 1, 4, 4);
        if running(w, 0) {
            w.kill(0);
        }
        oracle.write(w, 1, 5, 5);
        if running(w, 1) {
            w.start(0);
        }
        oracle.write(w, 1, 6, 6);
    }
}

fn build() -> World {
    // 72 extents and room for 67 in the log.
    World::with(2, 72 * (4 << 20), 67)
}

/// Everybody comes back, and a Primary is found without force when there is none.
fn recover(w: &mut World, what: &str) {
    for i in [0u8, 1] {
        w.nodes[usize::from(i)].crash_at = None;
        if !running(w, i) {
            w.start(i);
        }
    }
    w.run();
    for i in [0u8, 1] {
        let peer = w.peer(i, 1 - i);
        assert_eq!(peer.connection, ConnectionState::Connected, "{what}");
        assert_eq!(w.snapshot(i).disk, DiskState::UpToDate, "{what}: {:?}", w.snapshot(i));
        assert_eq!(peer.out_of_sync, 0, "{what}");
    }
}

fn sweep(victim: u8) -> u64 {
    let mut whole = build();
    let mut oracle = Oracle::default();
    scenario(&mut whole, &mut oracle);
    let steps = whole.nodes[usize::from(victim)].meta_writes;
    assert!(steps > 10, "the scenario writes metadata");
    for step in 0..steps {
        for torn in TORN {
            let what = format!("node {victim} dies at metadata write {step}, {torn:?}");
            let mut w = build();
            let already = w.nodes[usize::from(victim)].meta_writes;
            if step < already {
                break;
            }
            w.nodes[usize::from(victim)].crash_at = Some((step, torn));
            let mut oracle = Oracle::default();
            scenario(&mut w, &mut oracle);
            assert!(w.nodes[usize::from(victim)].crash_at.is_none(), "{what}: it did not");
            recover(&mut w, &what);
            assert_eq!(w.nodes[0].data, w.nodes[1].data, "{what}");
            let primaries = [0u8, 1].iter().filter(|i| w.snapshot(**i).role == Role::Primary);
            assert!(primaries.count() <= 1, "{what}");
            oracle.check(&w.nodes[0].data, &what);
        }
    }
    steps
}

#[test]
fn the_first_primary_dies_at_every_metadata_write() {
    println!("{} metadata writes", sweep(0));
}

#[test]
fn the_peer_dies_at_every_metadata_write() {
    println!("{} metadata writes", sweep(1));
}
