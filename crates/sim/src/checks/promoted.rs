//! A node that is promoted without force has every completed write that it should have, and no
//! connected peer has more.

use super::split_brain::absent;
use crate::world::World;
use holdfast_units::DiskState;

/// Checks node `n`, which has just become Primary.
pub(super) fn check(world: &World, n: usize, disk: DiskState) -> Result<(), String> {
    if disk != DiskState::UpToDate {
        return Ok(());
    }
    for block in world.oracle.touched() {
        if world.nodes[n].data.is_lost(block) {
            continue;
        }
        let found = world.nodes[n].data.get(block);
        world.oracle.check(n, block, found, world.oracle.now())?;
    }
    for m in (0..world.nodes.len()).filter(|m| *m != n) {
        let joined = world.net.joint_link(n, m).is_some()
            && world.nodes[n].is_connected_to(m)
            && world.nodes[m].is_connected_to(n);
        if joined
            && world.nodes[m].is_up_to_date()
            && let Some(write) = absent(world, n, world.oracle.all_lacking(n, m))
        {
            return Err(format!("n{n} became Primary without w{write}, which connected n{m} has"));
        }
    }
    Ok(())
}
