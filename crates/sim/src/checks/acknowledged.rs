//! A completed write is on every member; or that a member misses it is durable before (order 2).

use crate::world::World;
use holdfast_format::DiskFlags;
use holdfast_units::GenerationId;

/// The nodes whose disks show the write, whether or not it is durable there.
pub(crate) fn holders(world: &World, write: u64) -> Vec<usize> {
    let holds = |m: &usize| {
        let node = &world.nodes[*m];
        let mut blocks = world.oracle.blocks_of(write).iter();
        !node.diskless && blocks.all(|block| world.oracle.shows(write, node.data.get(*block)))
    };
    (0..world.nodes.len()).filter(holds).collect()
}

/// Checks a write that Primary `n` has just completed.
pub(crate) fn check(world: &World, n: usize, write: u64, holders: &[usize]) -> Result<(), String> {
    let lost = |node: &crate::node::Node| node.lost_cache && !node.diskless;
    if holders.is_empty() && world.nodes.iter().any(lost) {
        // The only disk that had it answered, and lost it with its power before that was heard.
        return Ok(());
    }
    if holders.is_empty() {
        return Err(format!("n{n} completed w{write}, which no disk holds"));
    }
    // The Primary itself knows who misses writes; without good data that a crash would leave it,
    // those who have them know.
    let durably = world.nodes[n]
        .meta
        .decode()
        .is_some_and(|meta| meta.superblock.flags.contains(DiskFlags::CONSISTENT));
    let good = world.nodes[n].disk_open && world.nodes[n].is_up_to_date() && durably;
    let known_to: Vec<usize> = if good && holders.contains(&n) {
        vec![n]
    } else {
        // Also one that had it, answered, and lost it with its power before that was heard: that
        // others missed it was durable there before it answered.
        let had_it = |m: &usize| holders.contains(m) || lost(&world.nodes[*m]);
        (0..world.nodes.len()).filter(had_it).collect()
    };
    for member in 0..world.nodes.len() {
        // One that lost its cache with its power may have answered before; it will find that out.
        let excused = world.nodes[member].lost_cache;
        if holders.contains(&member) || excused || !has_held_data(world, member) {
            continue;
        }
        let knows_itself = is_outdated(world, member);
        if !knows_itself && !known_to.iter().any(|k| has_open_slot(world, *k, member)) {
            return Err(format!(
                "n{n} completed w{write}, which n{member} does not have, and n{known_to:?} would \
                 not know it after a crash"
            ));
        }
    }
    Ok(())
}

/// Whether the member's disk was ever part of the resource. A disk that never was gets everything.
fn has_held_data(world: &World, member: usize) -> bool {
    let fresh = GenerationId::JUST_CREATED;
    let node = &world.nodes[member];
    !node.diskless && node.meta.decode().is_some_and(|meta| meta.superblock.current != fresh)
}

/// Whether the member durably knows that others have newer data.
fn is_outdated(world: &World, member: usize) -> bool {
    let meta = world.nodes[member].meta.decode();
    meta.is_some_and(|meta| meta.superblock.flags.contains(DiskFlags::OUTDATED))
}

fn has_open_slot(world: &World, n: usize, member: usize) -> bool {
    let meta = world.nodes[n].meta.decode();
    meta.is_some_and(|meta| !meta.superblock.peers[member].bitmap.is_none())
}
