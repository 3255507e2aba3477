//! Order 6: after a failed flush a disk is not used as if nothing had happened.

use crate::world::World;

/// Checks an operation that is about to be issued.
pub(super) fn check(world: &World, n: usize) -> Result<(), String> {
    if world.nodes[n].data.flush_failed() {
        return Err(format!("n{n} uses its disk after a failed flush"));
    }
    if !world.nodes[n].disk_open {
        return Err(format!("n{n} uses its disk after it gave it up"));
    }
    Ok(())
}
