//! Who is caught up from the journal of a Primary is Outdated before anything is written, and holds at
//! every moment what a crash of that Primary could have left, also when it is interrupted.

use crate::world::World;
use holdfast_format::DiskFlags;

/// Checks node `n`, whose disk was changed, or which died.
pub(crate) fn state(world: &World, n: usize) -> Result<(), String> {
    let Some((source, term)) = world.nodes[n].caught_up_by else { return Ok(()) };
    let journal = &world.nodes[source].journal;
    if journal.term != term {
        return Ok(());
    }
    let found = |block| world.nodes[n].data.get(block);
    // Of a lost block nobody says what it holds.
    let tracked = world.tracked.iter().copied().filter(|b| !world.nodes[n].data.is_lost(*b));
    let checked = journal.explains(tracked, found);
    checked.map_err(|what| format!("n{n}, caught up by n{source}: {what}"))
}

/// Checks a write of a journal that is about to be issued.
pub(super) fn before_write(world: &World, n: usize) -> Result<(), String> {
    let Some(meta) = world.nodes[n].meta.decode() else { return Ok(()) };
    let flags = meta.superblock.flags;
    if flags.contains(DiskFlags::CONSISTENT) && !flags.contains(DiskFlags::OUTDATED) {
        return Err(format!("n{n} stores writes of a journal and counts as current on disk"));
    }
    Ok(())
}
