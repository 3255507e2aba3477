//! What is kept of a peer for later, and how much of it.
//!
//! A peer that keeps to the protocol stays far below every limit here. One that does not loses its
//! connection, and with it all that was kept.

use crate::peer::Peer;
use holdfast_format::SparseBitmap;
use holdfast_units::ByteRange;
use holdfast_wire::{Message, StateReport};
use std::collections::VecDeque;
use std::ops::Range;

/// How many messages of one peer are kept.
const MESSAGES: usize = 100_000;
/// How many bytes they take. A sender's link is given up when as much waits to be sent, so no bitmap
/// that can be sent is too long to be kept.
const BYTES: usize = 256 << 20;
/// So many unsettled writes are remembered one by one.
const UNSETTLED: usize = 100_000;

impl Peer {
    /// Keeps a message until all that was asked of the superblock is durable. False when that is too
    /// much.
    pub(crate) fn keep_held(&mut self, message: Message) -> bool {
        let room = self.make_room(&message);
        if room {
            self.held.push_back(message);
        }
        room
    }

    /// Keeps a message until the verdict that will stand. False when that is too much.
    pub(crate) fn keep_early(&mut self, message: Message) -> bool {
        let room = self.make_room(&message);
        if room {
            self.early.push_back(message);
        }
        room
    }

    fn make_room(&mut self, message: &Message) -> bool {
        let bytes = self.kept_bytes + weight(message);
        let room = self.held.len() + self.early.len() < MESSAGES && bytes <= BYTES;
        if room {
            self.kept_bytes = bytes;
        }
        room
    }

    /// The first message that was held.
    pub(crate) fn take_held(&mut self) -> Option<Message> {
        let message = self.held.pop_front()?;
        self.kept_bytes -= weight(&message);
        Some(message)
    }

    /// Nothing is kept any more.
    pub(crate) fn forget_kept(&mut self) {
        self.held.clear();
        self.early.clear();
        self.kept_bytes = 0;
    }
}

/// How many bytes a message takes in memory, about.
fn weight(message: &Message) -> usize {
    let apart = match message {
        Message::State(_) | Message::Verdict { .. } | Message::ResyncGenerations { .. } => {
            size_of::<StateReport>()
        }
        Message::Bitmap { runs, .. } => size_of_val(runs.as_slice()),
        Message::Refuse { text, .. } => text.len(),
        _ => message.payload().map_or(0, bytes::Bytes::len),
    };
    size_of::<Message>() + apart
}

/// Writes of a Primary that may not be everywhere.
#[derive(Default)]
pub(crate) struct Unsettled {
    recent: VecDeque<(u64, ByteRange)>,
    /// When one write takes long, very many that came after it wait with it: the oldest of them, as
    /// blocks, with the number of the last one.
    before: Option<(u64, SparseBitmap)>,
}

impl Unsettled {
    /// A write came, on a device of so many blocks.
    pub(crate) fn push(&mut self, seq: u64, range: ByteRange, blocks: u64) {
        if self.recent.len() >= UNSETTLED {
            let (last, marks) = self.before.get_or_insert_with(|| (0, SparseBitmap::new(blocks)));
            for (seq, range) in self.recent.drain(..) {
                *last = seq.max(*last);
                marks.set_range(range.blocks());
            }
        }
        self.recent.push_back((seq, range));
    }

    /// All up to this one are everywhere.
    pub(crate) fn settle(&mut self, seq: u64) {
        if self.before.as_ref().is_some_and(|(last, _)| *last <= seq) {
            self.before = None;
        }
        while self.recent.front().is_some_and(|(s, _)| *s <= seq) {
            self.recent.pop_front();
        }
    }

    /// The device has so many blocks now.
    pub(crate) fn grow(&mut self, blocks: u64) {
        self.before.iter_mut().for_each(|(_, marks)| marks.resize(blocks, false));
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.before.is_none()
    }

    /// The blocks of all of them.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let before = self.before.iter().flat_map(|(_, marks)| marks.runs());
        before.chain(self.recent.iter().map(|(_, range)| range.blocks()))
    }
}

#[cfg(test)]
mod tests {
    use super::{UNSETTLED, Unsettled};
    use holdfast_units::ByteRange;

    #[test]
    fn many_unsettled_writes_take_bounded_room_and_are_not_forgotten() {
        let blocks = 1 << 20;
        let many = 5 * UNSETTLED as u64 / 2;
        let mut unsettled = Unsettled::default();
        for seq in 1..=many {
            unsettled.push(seq, ByteRange::new(seq * 4096, 4096), blocks);
            assert!(unsettled.recent.len() <= UNSETTLED);
        }
        let covered =
            |unsettled: &Unsettled| unsettled.runs().map(|r| r.end - r.start).sum::<u64>();
        assert_eq!(covered(&unsettled), many);
        unsettled.settle(1000);
        assert_eq!(covered(&unsettled), many, "not before the last of them is everywhere");
        unsettled.settle(2 * UNSETTLED as u64 + 7);
        assert_eq!(covered(&unsettled), many - 2 * UNSETTLED as u64 - 7);
        unsettled.settle(many);
        assert!(unsettled.is_empty());
    }
}
