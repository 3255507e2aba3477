//! Two nodes that wrote apart find it out at the first contact, and nobody's data are overwritten
//! before a person says whose.

use crate::world::World;
use holdfast_units::DiskState;

/// Checks two nodes whose handshake ended well.
pub(super) fn contact(world: &World, n: usize, m: usize) -> Result<(), String> {
    let excused = [n, m].iter().any(|node| world.nodes[*node].may_give_up);
    let in_use = [n, m].iter().all(|node| world.nodes[*node].disk_open);
    let apart = (world.oracle.never_had(m, n), world.oracle.never_had(n, m));
    let (Some(mine), Some(theirs)) = apart else { return Ok(()) };
    if excused || !in_use {
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
    // generation, or this node knows that it lacks newer data; of two that are otherwise the same,
    // the one that has everything must be the source.
    let generation = |node: usize| world.nodes[node].snap.as_ref().map(|snap| snap.generation);
    let alike = generation(n) == generation(source) && disk != DiskState::Outdated;
    let write =
        if alike { world.oracle.lacks(source, n) } else { world.oracle.never_had(source, n) };
    match write {
        Some(write) => {
            Err(format!("n{n} gives its data up for those of n{source}, which lacks w{write}"))
        }
        None => Ok(()),
    }
}
