//! A read fails only where no good copy was in reach.

use crate::node::Pending;
use crate::world::World;
use holdfast_core::IoFailure;
use holdfast_units::ByteRange;

/// A write of a lost block is durable for so long before that it is not lost any more, in microseconds.
const SHORTLY: u64 = 1_000_000;

/// Checks a read that node `n` has failed.
pub(crate) fn check(
    world: &World,
    n: usize,
    range: ByteRange,
    failure: IoFailure,
    pending: &Pending,
) -> Result<(), String> {
    // Who is no Primary any more, or stops, need not have looked.
    if failure != IoFailure::NoData || !world.nodes[n].is_primary() || !pending.was_primary {
        return Ok(());
    }
    // Who was there from the beginning to the end.
    let now = world.good_peers(n);
    let mut sources: Vec<usize> =
        pending.good.iter().filter(|peer| now.contains(peer)).map(|(m, _)| *m).collect();
    if pending.was_up_to_date && world.nodes[n].is_up_to_date() {
        sources.push(n);
    }
    let none_has = |block: u64| {
        sources.iter().all(|m| {
            let node = &world.nodes[*m];
            // What its core says is so, or was a moment ago.
            let says = node.says_lost(block) || pending.lost.contains(&(*m, block));
            let long = if says { SHORTLY } else { 0 };
            node.failed || node.data.was_bad(block, pending.at.saturating_sub(long))
        })
    };
    if range.blocks().any(none_has) {
        return Ok(());
    }
    Err(format!("n{n} failed a read of {range}, of which n{sources:?} have every block"))
}
