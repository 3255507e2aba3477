//! A node gives up no block of its own that its disk could give.

use crate::world::World;
use holdfast_units::{ByteRange, DiskState};

/// Between the read that failed and the note of it, in microseconds.
const JUST_NOW: u64 = 1_000_000;

/// Checks what node `n` takes note of as lost, or as `unread`. What the source of a resync has lost, a
/// target loses too, whatever it holds. Others give up only what holds something else.
pub(crate) fn check(world: &World, n: usize, range: ByteRange, unread: bool) -> Result<(), String> {
    let node = &world.nodes[n];
    let copies = node.core.as_ref().is_some_and(|c| c.snapshot().disk != DiskState::UpToDate);
    let since = world.now.saturating_sub(JUST_NOW);
    let good = |block: &u64| !node.data.was_bad(*block, since);
    if copies {
        Ok(())
    } else if let Some(block) = range.blocks().find(good) {
        Err(format!("n{n} says that block {block} is lost, which it can read"))
    } else if !unread && !node.data.are_rotten(range.blocks()) {
        Err(format!("n{n} gives up {range}, which it only cannot read at the moment"))
    } else {
        Ok(())
    }
}
