//! What the disk holds where it cannot be read any more, from the records that are still kept.
//!
//! A record that was written back and is kept says what its blocks hold, as long as nothing has changed
//! them since. That is so when every change of the disk from that record on is a record, too, and none
//! of those that come behind it has the block. `docs/design/journal.md` has the reasoning.

use crate::index::{Part, PartSource, Place};
use crate::journal::Journal;
use crate::records::records_of;
use crate::scan::{ReadSegments, Scanner};
use holdfast_format::journal::{RecordKind, SegmentHeader};
use holdfast_units::{BLOCK_SIZE, ByteRange, LogPosition};
use std::collections::BTreeMap;

/// So many bytes of frames are gone through in one step: writers wait for it.
const STEP: u64 = 256 << 10;

/// What a block of the disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Zeroes.
    Zeroes,
    /// A part of the payload of a record.
    Data {
        /// The record's payload.
        place: Place,
        /// The bytes of the payload before the block.
        skip: u64,
    },
}

impl Journal {
    /// The segments that hold every change of the disk since the first of them was begun, with the bytes
    /// of their frames that are durable; oldest first. None when the disk was, or may have been,
    /// written to past the journal since.
    #[must_use]
    pub fn history(&self) -> Vec<(SegmentHeader, u64)> {
        let mut history: Vec<(SegmentHeader, u64)> = Vec::new();
        let bypassed = self.switches().bypassed || self.begins_anew();
        if bypassed || !self.leads() || self.status().failed {
            return history;
        }
        for (header, len) in self.durable_segments().into_iter().rev() {
            let gap = history.last().is_some_and(|(newer, _)| !newer.continues(&header.link(len)));
            // What a node does to its disk while it follows another one is not all in the journal.
            if gap || header.origin != self.settings().node || header.base < self.proven_from() {
                break;
            }
            history.push((header, len));
        }
        history.reverse();
        history
    }

    /// Begins to look for the newest records from `from` to `to` (exclusively) that have these blocks. Of
    /// a journal that is replayed that is what a disk holds which is the state at `to`, as far as
    /// the records go back; from the disk's own position on, what is still to come over it.
    #[must_use]
    pub fn search_between(
        &self,
        blocks: impl IntoIterator<Item = u64>,
        from: LogPosition,
        to: LogPosition,
    ) -> Salvage {
        let mut left: Vec<(SegmentHeader, u64)> = Vec::new();
        for (header, len) in self.durable_segments().into_iter().rev() {
            // What does not lead up to the newer ones is of another history.
            if left.last().is_some_and(|(newer, _)| !newer.continues(&header.link(len))) {
                break;
            }
            left.push((header, len));
        }
        let end = left.first().map(|(header, len)| header.base.after(*len));
        let begins = left.last().is_some_and(|(header, _)| header.base <= from);
        // After a journal was cut for damage the disk may be ahead of it: the newest record is not there.
        let ends = end.is_some_and(|end| end >= to);
        left.retain(|(header, len)| ends && header.base < to && header.base.after(*len) > from);
        left.reverse();
        let broken = from < to && !(begins && ends);
        let wanted = blocks.into_iter().map(|block| (block, from)).collect();
        Salvage { wanted, left, within: Some((from, to)), broken, ..Salvage::default() }
    }

    /// Begins to look for what these blocks of the disk hold.
    #[must_use]
    pub fn salvage(&self, blocks: impl IntoIterator<Item = u64>) -> Salvage {
        self.salvage_again(blocks, &BTreeMap::new())
    }

    /// As [`Self::salvage`], but of the records that an earlier search has seen only what that said is
    /// looked at: see [`Salvage::learned`].
    #[must_use]
    pub fn salvage_again(
        &self,
        blocks: impl IntoIterator<Item = u64>,
        learned: &BTreeMap<u64, Learned>,
    ) -> Salvage {
        let history = self.history();
        let from = history.first().map(|(header, _)| header.base);
        let until = history.last().map(|(header, len)| header.base.after(*len));
        let span = from.zip(until);
        let mut salvage = Salvage { span, ..Salvage::default() };
        for block in blocks {
            // What is newer than the disk is known without a search.
            match self.lookup(ByteRange::of_blocks(block..block + 1))[..] {
                [Part { source: PartSource::Journal { place, skip }, .. }] => {
                    salvage.found.insert(block, Held::Data { place, skip });
                }
                [Part { source: PartSource::Zeroes, .. }] => {
                    salvage.found.insert(block, Held::Zeroes);
                }
                _ => {
                    let Some((from, until)) = span else { continue };
                    // All that counts now was looked at then, or came later.
                    let usable = |known: &&Learned| known.from <= from && known.until <= until;
                    let known = learned.get(&block).filter(usable);
                    salvage.wanted.insert(block, known.map_or(from, |known| known.until.max(from)));
                    let is_there =
                        |segment: u64| history.iter().any(|(header, _)| header.number == segment);
                    if let Some(held) = known.and_then(|known| known.held)
                        && is_there(held.0)
                    {
                        salvage.before.insert(block, held);
                    }
                }
            }
        }
        salvage.left = history;
        salvage
    }
}

/// What a search that came to its end has found out about a block.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    /// All records that counted from here on,
    from: LogPosition,
    /// until here, were looked at.
    until: LogPosition,
    /// The newest of them that has the block, and its segment.
    held: Option<(u64, Held)>,
}

/// A search for blocks among the records that are kept, the newest segment first. It is about the
/// moment at which it was begun: what is written meanwhile it does not see.
#[derive(Debug, Default)]
pub struct Salvage {
    /// From where on its records are to be looked at.
    wanted: BTreeMap<u64, LogPosition>,
    found: BTreeMap<u64, Held>,
    /// What was known before, with the segment.
    before: BTreeMap<u64, (u64, Held)>,
    learned: BTreeMap<u64, Learned>,
    /// What was there when it was begun.
    span: Option<(LogPosition, LogPosition)>,
    /// The segments that were not looked at, the newest at the end.
    left: Vec<(SegmentHeader, u64)>,
    scan: Option<Scan>,
    /// Only records from here to there count.
    within: Option<(LogPosition, LogPosition)>,
    /// It ended at something that cannot be read, or not all that was to be looked at is kept.
    broken: bool,
}

/// A segment that is being looked at, from its beginning on.
#[derive(Debug)]
struct Scan {
    header: SegmentHeader,
    at: LogPosition,
    end: LogPosition,
    newest: BTreeMap<u64, Held>,
}

impl Salvage {
    /// Goes on by a megabyte of frames. Whether that was not all.
    pub fn step<R: ReadSegments>(&mut self, reader: &R) -> bool {
        if self.scan.is_none()
            && let Some(first) = self.wanted.values().min()
        {
            let last = self.left.pop().filter(|(header, len)| header.base.after(*len) > *first);
            self.scan = last.map(|(header, len)| Scan {
                header,
                at: frame_at(&header, *first),
                end: header.base.after(len),
                newest: BTreeMap::new(),
            });
        }
        let Some(mut scan) = self.scan.take() else {
            self.end();
            return false;
        };
        if !scan.go_on(reader, &self.wanted, self.within) {
            // Of what cannot be read nobody knows which blocks it changes: older records prove nothing, and
            // nothing is known of other blocks.
            self.left.clear();
            self.wanted.clear();
            self.broken = true;
            return false;
        }
        if scan.at < scan.end {
            self.scan = Some(scan);
            return true;
        }
        for (block, held) in scan.newest {
            self.wanted.remove(&block);
            self.found.insert(block, held);
            self.learn(block, Some((scan.header.number, held)));
        }
        if self.wanted.is_empty() || self.left.is_empty() {
            self.end();
            return false;
        }
        true
    }

    fn learn(&mut self, block: u64, held: Option<(u64, Held)>) {
        if let Some((from, until)) = self.span {
            self.learned.insert(block, Learned { from, until, held });
        }
    }

    /// All was looked at: of the other blocks nothing has changed since before.
    fn end(&mut self) {
        for block in std::mem::take(&mut self.wanted).into_keys() {
            let held = self.before.get(&block).copied();
            self.learn(block, held);
            self.found.extend(held.map(|(_, held)| (block, held)));
        }
    }

    /// What a later search need not look for again. Of what ended at something that cannot be read,
    /// that is only what was found.
    #[must_use]
    pub fn learned(self) -> BTreeMap<u64, Learned> {
        self.learned
    }

    /// Whether it ended at something that cannot be read, or that is not kept any more: of blocks that were not found nothing is known
    /// then.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// What was found. Of other blocks it is not known what they hold.
    #[must_use]
    pub const fn found(&self) -> &BTreeMap<u64, Held> {
        &self.found
    }
}

impl Scan {
    /// False when the segment cannot be read.
    fn go_on<R: ReadSegments>(
        &mut self,
        reader: &R,
        wanted: &BTreeMap<u64, LogPosition>,
        within: Option<(LogPosition, LogPosition)>,
    ) -> bool {
        let mut scanner = Scanner::new(reader, self.header);
        if self.at > self.header.base {
            scanner.trust(self.at);
        }
        let until = self.at.after(STEP).min(self.end);
        while scanner.position() < until {
            let Ok((frame, offset)) = scanner.next(false) else { return false };
            if frame.end() > self.end {
                return false;
            }
            for found in records_of(&frame, &self.header, offset) {
                let counts = within.is_none_or(|(from, to)| (from..to).contains(&found.position));
                if found.record.kind == RecordKind::Flush || !counts {
                    continue;
                }
                let range = found.record.range;
                for (block, _) in wanted.range(range.blocks()) {
                    let skip = block * BLOCK_SIZE - range.offset;
                    let held = found.place.map_or(Held::Zeroes, |place| Held::Data { place, skip });
                    self.newest.insert(*block, held);
                }
            }
        }
        self.at = scanner.position();
        true
    }
}

/// Where the frame begins that has a position, or the segment.
fn frame_at(header: &SegmentHeader, position: LogPosition) -> LogPosition {
    // A position within a frame is less than the alignment behind its beginning.
    let alignment = u64::from(header.alignment);
    header.base.after(position.since(header.base) / alignment * alignment)
}
