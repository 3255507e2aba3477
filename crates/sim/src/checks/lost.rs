//! A node gives up no block of its own that its disk could give.

use crate::world::World;
use holdfast_units::{ByteRange, DiskState};

/// Checks what node `n` takes note of as lost. What the source of a resync has lost, a target loses
/// too, whatever it holds.
pub(crate) fn check(world: &World, n: usize, range: ByteRange) -> Result<(), String> {
    let node = &world.nodes[n];
    let copies = node.core.as_ref().is_some_and(|c| c.snapshot().disk != DiskState::UpToDate);
    let good = |block: &u64| !node.data.has_bad(*block..*block + 1) && !node.data.is_lost(*block);
    match range.blocks().find(good).filter(|_| !copies) {
        Some(block) => Err(format!("n{n} says that block {block} is lost, which it can read")),
        None => Ok(()),
    }
}
