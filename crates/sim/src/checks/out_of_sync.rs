//! What a Primary notes for a peer that is away covers all that really differs.

use crate::node::node_id;
use crate::world::World;
use holdfast_format::DiskFlags;
use holdfast_units::{BLOCK_SIZE, EXTENT_SIZE};

/// Checks every Primary with good data against the members that it is not connected to, as long as
/// the members did nothing apart from it.
pub(crate) fn check(world: &World) -> Result<(), String> {
    for n in world.primaries() {
        for m in (0..world.nodes.len()).filter(|m| *m != n) {
            if is_behind(world, n, m) {
                compare(world, n, m)?;
            }
        }
    }
    Ok(())
}

fn is_behind(world: &World, n: usize, m: usize) -> bool {
    let (node, member) = (&world.nodes[n], &world.nodes[m]);
    let quiet = node.is_up_to_date() && node.disk_open && !member.diskless && !member.is_primary();
    let apart = !node.is_connected_to(m) && !member.is_connected_to(n);
    let like = world.oracle.counts(m) && world.oracle.lacks(n, m).is_none();
    quiet && apart && like && !member.lost_cache && !member.failed && !node.lost_cache
}

/// What either notes counts: the member may have got newer data from another one meanwhile. A Primary
/// that crashed knows itself which extents it may have written alone.
fn compare(world: &World, n: usize, m: usize) -> Result<(), String> {
    let mut blocks = world.nodes[n].data.differences(&world.nodes[m].data);
    let meta = world.nodes[m].meta.decode();
    if let Some(meta) = meta.filter(|meta| meta.superblock.flags.contains(DiskFlags::PRIMARY)) {
        let extent = |block: u64| u32::try_from(block * BLOCK_SIZE / EXTENT_SIZE);
        blocks.retain(|block| !extent(*block).is_ok_and(|extent| meta.hot.contains(&extent)));
    }
    let notes = |a: usize, b: usize| world.nodes[a].peer(b).map_or(0, |peer| peer.out_of_sync);
    let noted = (notes(n, m) + notes(m, n)) / BLOCK_SIZE;
    if noted < blocks.len() as u64 && !world.nodes[m].is_up() {
        // One that stopped in order has turned what it may have written alone into bits.
        let theirs = world.nodes[m].meta.bitmap(node_id(n));
        blocks.retain(|block| !theirs.as_ref().is_some_and(|bits| bits.get(*block)));
    }
    let differ = blocks.len() as u64;
    if noted < differ {
        return Err(format!("n{n} notes {noted} blocks for n{m}, but {differ} differ"));
    }
    Ok(())
}
