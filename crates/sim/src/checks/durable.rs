//! A completed flush, and a completed write with FUA, are durable here and on every connected peer.

use crate::content::Block;
use crate::world::World;

/// The nodes on which it must be durable: the Primary if it uses a disk, and the peers that were
/// reached from the beginning to the end. A disk that failed meanwhile is not used any more.
fn bound(world: &World, n: usize, still: &[usize]) -> Vec<usize> {
    let mut bound: Vec<usize> = still.to_vec();
    bound.retain(|m| world.nodes[*m].disk_open && !world.nodes[*m].failed);
    if world.nodes[n].disk_open {
        bound.push(n);
    }
    bound
}

fn first_volatile(world: &World, m: usize, blocks: &[(u64, Block)]) -> Option<(u64, Block)> {
    let data = &world.nodes[m].data;
    blocks.iter().find(|(block, content)| data.is_volatile(*block, *content)).copied()
}

/// Checks a flush that began at `since`.
pub(crate) fn flushed(
    world: &mut World,
    n: usize,
    since: u64,
    still: &[usize],
) -> Result<(), String> {
    for m in bound(world, n, still) {
        let covered = world.oracle.flushed(m, since);
        if let Some((block, content)) = first_volatile(world, m, &covered) {
            return Err(format!(
                "n{n} completed a flush, but {content} in block {block} is not durable on n{m}"
            ));
        }
    }
    Ok(())
}

/// Checks a write with FUA.
pub(crate) fn forced(
    world: &mut World,
    n: usize,
    write: u64,
    still: &[usize],
    holders: &[usize],
) -> Result<(), String> {
    for m in bound(world, n, still).into_iter().filter(|m| holders.contains(m)) {
        world.oracle.forced(m, write);
        let content = world.oracle.content_of(write);
        let blocks = world.oracle.blocks_of(write).iter().map(|block| (*block, content));
        if let Some((block, _)) = first_volatile(world, m, &blocks.collect::<Vec<_>>()) {
            return Err(format!(
                "n{n} completed w{write} with FUA, but block {block} is not durable on n{m}"
            ));
        }
    }
    Ok(())
}
