//! Reads return the last completed write, or an error; never older data, never data of another
//! block.

use crate::content::{self, Block};
use crate::node::Pending;
use crate::world::World;
use holdfast_units::ByteRange;

/// Checks what Primary `n` gave to a read.
pub(crate) fn check(
    world: &mut World,
    n: usize,
    range: ByteRange,
    data: &[u8],
    pending: &Pending,
) -> Result<(), String> {
    let blocks = content::parse(range, data)?;
    let own = world.nodes[n].is_up_to_date() && world.oracle.counts(n);
    // Without good data of its own, the node asks those that have them.
    let mut sources = vec![n];
    if !(own && pending.was_up_to_date) {
        let others = (0..world.nodes.len()).filter(|m| *m != n && world.oracle.counts(*m));
        sources.extend(others);
        sources.retain(|m| world.oracle.counts(*m));
    }
    for (block, found) in range.blocks().zip(blocks) {
        if !world.tracked.contains(&block) {
            if found != Block::ZERO {
                return Err(format!("block {block} was never written, and holds {found}"));
            }
            continue;
        }
        let results: Vec<Result<(), String>> = sources
            .iter()
            .map(|source| world.oracle.check(*source, block, found, pending.since))
            .collect();
        if !results.is_empty() && results.iter().all(Result::is_err) {
            return results.into_iter().next().unwrap_or(Ok(()));
        }
        if own && pending.was_up_to_date {
            world.oracle.learn(n, block, found, pending.since);
        }
    }
    Ok(())
}
