//! What a Primary notes for a peer that is away covers all that really differs.

use crate::world::World;
use holdfast_units::BLOCK_SIZE;

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

fn compare(world: &World, n: usize, m: usize) -> Result<(), String> {
    let differ = world.nodes[n].data.differences(&world.nodes[m].data).len() as u64;
    let noted = world.nodes[n].peer(m).map_or(0, |peer| peer.out_of_sync) / BLOCK_SIZE;
    if noted < differ {
        return Err(format!("n{n} notes {noted} blocks for n{m}, but {differ} differ"));
    }
    Ok(())
}
