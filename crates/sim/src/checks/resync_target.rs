//! Order 3: a resync target is durably Inconsistent before the first resync write, and UpToDate only
//! after a flush.

use crate::world::World;
use holdfast_format::DiskFlags;

/// Checks a write of a resync that is about to be issued.
pub(super) fn before_write(world: &World, n: usize) -> Result<(), String> {
    let Some(meta) = world.nodes[n].meta.decode() else { return Ok(()) };
    if meta.superblock.flags.contains(DiskFlags::CONSISTENT) {
        return Err(format!("n{n} stores blocks of a resync and counts as consistent on disk"));
    }
    Ok(())
}

/// Checks a target that says that it has everything.
pub(super) fn before_use(world: &World, n: usize) -> Result<(), String> {
    if world.nodes[n].data.resync_is_flushed() {
        return Ok(());
    }
    Err(format!("n{n} counts as consistent before the blocks of its resync are flushed"))
}
