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
use std::collections::{BTreeMap, BTreeSet};

/// So many bytes of frames are gone through in one step.
const STEP: u64 = 1 << 20;

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

    /// Begins to look for what these blocks of the disk hold.
    #[must_use]
    pub fn salvage(&self, blocks: impl IntoIterator<Item = u64>) -> Salvage {
        let mut salvage = Salvage { left: self.history(), ..Salvage::default() };
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
                    salvage.wanted.insert(block);
                }
            }
        }
        salvage
    }
}

/// A search for blocks among the records that are kept, the newest segment first. It is about the
/// moment at which it was begun: what is written meanwhile it does not see.
#[derive(Debug, Default)]
pub struct Salvage {
    wanted: BTreeSet<u64>,
    found: BTreeMap<u64, Held>,
    /// The segments that were not looked at, the newest at the end.
    left: Vec<(SegmentHeader, u64)>,
    scan: Option<Scan>,
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
        if self.scan.is_none() && !self.wanted.is_empty() {
            self.scan = self.left.pop().map(|(header, len)| Scan {
                header,
                at: header.base,
                end: header.base.after(len),
                newest: BTreeMap::new(),
            });
        }
        let Some(mut scan) = self.scan.take() else { return false };
        if !scan.go_on(reader, &self.wanted) {
            // Of what cannot be read nobody knows which blocks it changes: older records prove nothing.
            self.left.clear();
            return false;
        }
        if scan.at < scan.end {
            self.scan = Some(scan);
            return true;
        }
        self.wanted.retain(|block| !scan.newest.contains_key(block));
        self.found.append(&mut scan.newest);
        !self.wanted.is_empty() && !self.left.is_empty()
    }

    /// What was found. Of other blocks it is not known what they hold.
    #[must_use]
    pub const fn found(&self) -> &BTreeMap<u64, Held> {
        &self.found
    }
}

impl Scan {
    /// False when the segment cannot be read.
    fn go_on<R: ReadSegments>(&mut self, reader: &R, wanted: &BTreeSet<u64>) -> bool {
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
                if found.record.kind == RecordKind::Flush {
                    continue;
                }
                let range = found.record.range;
                for block in wanted.range(range.blocks()) {
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
