//! What follows from a change of state: checks, and what the oracle has to know.

use super::{promoted, resync_target, split_brain, two_primaries};
use crate::world::{World, note};
use holdfast_core::Snapshot;
use holdfast_units::{DiskState, ReplicationState, Role};

/// Takes the new snapshot of node `n`.
pub(crate) fn changed(world: &mut World, n: usize, new: &Snapshot) {
    let old = world.nodes[n].snap.replace(new.clone());
    let Some(old) = old else { return };
    world.nodes[n].snap_before = Some(old.clone());
    if world.trace.on && old != *new {
        note!(world, "n{n} is {}", line(new));
    }
    new_contacts(world, n, &old, new);
    world.nodes[n].journal.leads(new.role == Role::Primary);
    follow_disk(world, n, &old, new);
    follow_journal(world, n, &old, new);
    if world.trace.on && old.disk != new.disk {
        note!(world, "copies: {}", world.oracle.differences());
    }
    if old.role != Role::Primary && new.role == Role::Primary {
        world.stats.promotions += 1;
        if new.disk == DiskState::UpToDate && !world.oracle.counts(n) {
            world.oracle.decree(n);
        }
        let checked = promoted::check(world, n, new.disk);
        world.check("a promoted node has every completed write", checked);
    }
    let checked = two_primaries::check(world, n);
    world.check("connected nodes are never both Primary", checked);
}

fn line(snap: &Snapshot) -> String {
    let peers = snap.peers.iter().map(|p| {
        format!(
            "{:?} {} {} {} {} oos {}",
            p.node,
            p.connection,
            p.role,
            p.disk,
            p.replication,
            p.out_of_sync / 4096
        )
    });
    let peers: Vec<String> = peers.collect();
    format!("{} {} {} [{}]", snap.role, snap.disk, snap.generation, peers.join(" | "))
}

fn new_contacts(world: &mut World, n: usize, old: &Snapshot, new: &Snapshot) {
    for peer in &new.peers {
        let before = old.peers.iter().find(|p| p.node == peer.node);
        let was_off = before.is_none_or(|p| p.replication == ReplicationState::Off);
        if was_off && peer.replication != ReplicationState::Off {
            let checked = split_brain::contact(world, n, peer.node.index());
            world.check("two that wrote apart find it out", checked);
        }
    }
}

fn follow_disk(world: &mut World, n: usize, old: &Snapshot, new: &Snapshot) {
    let usable = |disk: DiskState| disk > DiskState::Inconsistent && disk != DiskState::DUnknown;
    if new.disk == DiskState::Inconsistent && old.disk != DiskState::Inconsistent {
        if usable(old.disk)
            && let Some(source) = source(new)
        {
            let checked = split_brain::overwritten(world, n, old.disk, source);
            world.check("nobody's data are overwritten unasked", checked);
        }
        world.oracle.forget(n);
    }
    if old.disk == DiskState::Inconsistent && usable(new.disk) {
        if world.oracle.adopt(n) {
            let checked = resync_target::before_use(world, n);
            world.check("a resync target is UpToDate only after a flush", checked);
        } else if world.is_being_forced(n) {
            world.oracle.decree(n);
        } else {
            world.fail("a resync ends with its source's word", format!("n{n} is {}", new.disk));
        }
        world.nodes[n].may_give_up = false;
        world.nodes[n].lost_cache = false;
    }
    let caught_up = world.nodes[n].caught_up_by.is_some()
        && old.disk == DiskState::Outdated
        && new.disk == DiskState::UpToDate
        && source(old).is_some();
    if caught_up {
        world.stats.caught_up += 1;
        if !world.oracle.adopt(n) {
            world.fail("a resync ends with its source's word", format!("n{n} is {}", new.disk));
        }
    }
    if new.disk <= DiskState::Failed && old.disk > DiskState::Failed && world.nodes[n].failed {
        world.oracle.forget(n);
    }
    if usable(new.disk) && !world.oracle.counts(n) {
        found_equal(world, n, new);
    }
}

/// A copy that is being caught up from the journal of a Primary, or was.
fn follow_journal(world: &mut World, n: usize, old: &Snapshot, new: &Snapshot) {
    let source = |snap: &Snapshot| {
        let gives = |p: &&holdfast_core::PeerSnapshot| {
            p.behind && p.replication == ReplicationState::SyncTarget
        };
        snap.peers.iter().find(gives).map(|p| p.node.index())
    };
    let begins = source(new).filter(|_| source(old).is_none());
    if let Some(source) = begins {
        world.stats.catch_ups += 1;
        let checked = split_brain::overwritten(world, n, old.disk, source);
        world.check("nobody's data are overwritten unasked", checked);
        world.nodes[n].caught_up_by = Some((source, world.nodes[source].journal.term));
    }
    if new.role == Role::Primary || new.disk != DiskState::Outdated {
        world.nodes[n].caught_up_by = None;
    }
}

/// The node from which this one gets, or is to get, its data.
fn source(new: &Snapshot) -> Option<usize> {
    let gives = |replication| {
        matches!(
            replication,
            ReplicationState::SyncTarget
                | ReplicationState::WFBitMapT
                | ReplicationState::StartingSyncT
        )
    };
    new.peers.iter().find(|p| gives(p.replication)).map(|p| p.node.index())
}

/// A copy of which nothing was known any more was found to be equal to another one.
fn found_equal(world: &mut World, n: usize, new: &Snapshot) {
    let same = new.peers.iter().find(|p| {
        p.replication == ReplicationState::Established
            && p.disk == DiskState::UpToDate
            && world.oracle.counts(p.node.index())
    });
    if let Some(peer) = same {
        world.oracle.equal(n, peer.node.index());
    }
}
