//! What a range holds, and what was changed.

use super::Inner;
use holdfast_nbd::{ContextSet, ContextStatus, Extent, Request};
use holdfast_units::ByteRange;

/// The most extents in one answer about allocation.
const MAX_EXTENTS: usize = 4096;
/// The index of the context for what was changed: the first after `base:allocation`.
const CHANGED: usize = 1;

impl Inner {
    /// A range will be read soon.
    pub(super) fn read_ahead(&self, range: ByteRange) {
        for (part, range) in self.layout.spans(range) {
            let part = if self.layout.is_mirror() { self.source() } else { part };
            self.parts[part].read_ahead(range);
        }
    }

    /// What each context that was asked for says.
    pub(super) fn status(&self, request: &Request) -> Vec<ContextStatus> {
        let tell = |context| {
            let extents = match (context, &self.changes) {
                (ContextSet::ALLOCATION, _) => self.allocation(request.range),
                (CHANGED, Some(changes)) => changes.extents(request.range),
                _ => Vec::new(),
            };
            ContextStatus { context, extents }
        };
        request.contexts.iter().map(tell).collect()
    }

    /// What a range holds, as far as one answer goes.
    fn allocation(&self, range: ByteRange) -> Vec<Extent> {
        let mut extents = Vec::new();
        for piece in self.layout.pieces(range) {
            let part = if self.layout.is_mirror() { self.source() } else { piece.part };
            let room = MAX_EXTENTS - extents.len();
            extents.extend(self.parts[part].allocation(piece.range(), room));
            if extents.len() >= MAX_EXTENTS {
                break;
            }
        }
        extents
    }
}
