//! Two nodes that wrote apart find it out at the first contact, and nobody's data are overwritten
//! before a person says whose.

use crate::world::World;
use holdfast_units::{DiskState, ReplicationState, Role};

/// Checks two nodes whose handshake ended well.
pub(super) fn contact(world: &World, n: usize, m: usize) -> Result<(), String> {
    let excused = [n, m].iter().any(|node| world.nodes[*node].may_give_up);
    let in_use = [n, m].iter().all(|node| world.nodes[*node].disk_open);
    let never_had =
        |other: usize, node: usize| absent(world, other, world.oracle.never_had(other, node));
    let (Some(mine), Some(theirs)) = (never_had(m, n), never_had(n, m)) else { return Ok(()) };
    // The verdict of one alone may be on a report that the other one has replaced.
    let both = world.nodes[m].peer(n).is_some_and(|peer| peer.replication != ReplicationState::Off);
    if excused || !in_use || !both {
        return Ok(());
    }
    Err(format!("n{n} has w{mine}, n{m} has w{theirs}, and they are connected all the same"))
}

/// Checks node `n`, whose data, worth `disk` until now, are about to be overwritten by those of
/// `source`.
pub(super) fn overwritten(
    world: &World,
    n: usize,
    disk: DiskState,
    source: usize,
) -> Result<(), String> {
    if world.nodes[n].may_give_up {
        return Ok(());
    }
    // What the source lost with its power may be overwritten when the source is of a newer
    // generation, or has clients that work on what it has, or this node knows that it lacks newer
    // data; of two that are otherwise the same, the one that has everything must be the source.
    let generation = |node: usize| world.nodes[node].snap.as_ref().map(|snap| snap.generation);
    let in_use = world.nodes[n].peer(source).is_some_and(|peer| peer.role == Role::Primary);
    // What it lost since it reported, nobody could know: that resync does not begin.
    let reported = world.net.joint_link(n, source).is_some();
    let alike =
        generation(n) == generation(source) && disk != DiskState::Outdated && !in_use && reported;
    let writes =
        if alike { world.oracle.all_lacking(source, n) } else { world.oracle.never_had(source, n) };
    match absent(world, source, writes) {
        Some(write) => {
            Err(format!("n{n} gives its data up for those of n{source}, which lacks w{write}"))
        }
        None => Ok(()),
    }
}

/// One of these writes that the node's disk does not show. It may hold one all the same that it
/// answered just before its connection ended, or that no client has flushed and its resync has.
pub(super) fn absent(world: &World, node: usize, writes: Vec<u64>) -> Option<u64> {
    let shown = |write: u64| {
        let mut blocks = world.oracle.blocks_of(write).iter();
        blocks.all(|block| {
            let data = &world.nodes[node].data;
            data.is_lost(*block) || world.oracle.shows(write, data.get(*block))
        })
    };
    writes.into_iter().find(|write| !shown(*write))
}
