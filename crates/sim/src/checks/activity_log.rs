//! Order 1: an activity-log extent is durable before the first write into it starts.

use crate::world::World;
use holdfast_format::DiskFlags;
use holdfast_units::{ByteRange, EXTENT_SIZE};

/// Checks a write that is about to be issued. An Inconsistent disk is outside of this: until its
/// resync is through, all that may differ is noted in the bitmaps.
pub(super) fn check(world: &World, n: usize, range: ByteRange) -> Result<(), String> {
    let Some(meta) = world.nodes[n].meta.decode() else { return Ok(()) };
    if !meta.superblock.flags.contains(DiskFlags::CONSISTENT) {
        return Ok(());
    }
    let extents = range.offset / EXTENT_SIZE..range.end().div_ceil(EXTENT_SIZE);
    let is_hot = |extent: &u64| u32::try_from(*extent).is_ok_and(|e| meta.hot.contains(&e));
    match extents.clone().find(|extent| !is_hot(extent)) {
        Some(cold) => Err(format!("n{n} writes {range}, but extent {cold} is not durably hot")),
        None => Ok(()),
    }
}
