//! A spare: where the units of a disk live that the disk itself cannot hold. Its header and its
//! table. The bytes are drawn in `docs/design/remap.md`.

mod header;
mod table;

pub use header::{MAX_SPARES, SpareHeader, SpareId, SpareLayout, SpareLayoutError};
pub use table::{ENTRIES_PER_BLOCK, Entry, EntryState, MAX_ORDER, MAX_UNIT, Reason, TableBlock};

use crate::BlockError;

/// The copy that counts, of two that were read: the valid one with the higher sequence, and which of
/// them it is. Equal ones are the same; the first is taken.
///
/// # Errors
/// What is wrong with both. When one is whole but not for this program, that is the error of both:
/// an older copy must not be used behind the back of a newer program.
pub fn newest<T>(
    first: Result<T, BlockError>,
    second: Result<T, BlockError>,
    sequence: impl Fn(&T) -> u64,
) -> Result<(T, usize), [BlockError; 2]> {
    for copy in [&first, &second] {
        if let Err(e @ (BlockError::Version { .. } | BlockError::Features { .. })) = copy {
            return Err([*e, *e]);
        }
    }
    match (first, second) {
        (Ok(a), Ok(b)) if sequence(&b) > sequence(&a) => Ok((b, 1)),
        (Ok(a), _) => Ok((a, 0)),
        (Err(_), Ok(b)) => Ok((b, 1)),
        (Err(a), Err(b)) => Err([a, b]),
    }
}

#[cfg(test)]
mod tests;
