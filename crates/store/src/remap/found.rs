//! A spare as it is found: which copies of its blocks count, and what is broken of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_format::remap::{Entry, SpareHeader, SpareId, TableBlock, newest};
use holdfast_format::{BLOCK_LEN, Block, BlockError};

use super::setup::{BLOCK, Bed, CHUNK, DiskIdentity, SpareError, SpareErrorKind};
use super::spare::Table;
use crate::DiskError;

/// A spare as it was found; nothing was written yet.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) header: SpareHeader,
    pub(super) table: Table,
    /// Copies of the header that must be written again.
    pub(super) stale_headers: [bool; 2],
    /// One of them could not be.
    pub(super) weak_header: bool,
    /// Both copies of its header are good, but do not say all that that of another spare says: whose counts
    /// more counts at the next start, too.
    pub(super) outdated: bool,
    /// The members that its header named when it was read.
    pub(super) named: Vec<SpareId>,
    /// Copies of blocks of the table that must be.
    stale_blocks: Vec<Stale>,
    /// Of how many blocks of the table a copy is broken or cannot be read.
    halves: u32,
}

/// A copy of a block of the table that must be written again.
struct Stale {
    copy: usize,
    number: u32,
    bytes: Box<Block>,
    /// It is whole, and one write behind: where it cannot be written, the other copy must get ahead.
    is_near: bool,
    /// By how much its sequence is lower, where it may have the same entries.
    may_equal: u64,
}

/// How often the tables of spares were written, as somebody noted when that was durable: see
/// [`SpareInfo::table_writes`](crate::SpareInfo::table_writes).
pub type TableWrites = BTreeMap<SpareId, u64>;

pub(super) fn read(bed: &mut Bed<'_>, owner: &DiskIdentity) -> Result<Found, SpareError> {
    let (header, stale_headers) = bed.header().map_err(|kind| bed.fail(kind))?;
    let found = DiskIdentity { resource: header.resource, disk: header.disk };
    if found != *owner {
        return Err(bed.fail(SpareErrorKind::Foreign { found, expected: *owner }));
    }
    let mut table = Table::new(&header.layout);
    let (mut stale_blocks, mut halves) = (Vec::new(), 0);
    let blocks = header.layout.table_blocks();
    let per_chunk = u32::try_from(CHUNK / BLOCK).unwrap_or(1);
    let mut first = 0;
    while first < blocks && !header.retired {
        let end = (first + per_chunk).min(blocks);
        let chunks = [0, 1].map(|copy| {
            let at = header.layout.table_offset(copy, first);
            bed.read(at, u64::from(end - first) * BLOCK).ok()
        });
        for number in first..end {
            let [a, b] = [0, 1].map(|copy| {
                let at = (number - first) as usize * BLOCK_LEN;
                let block = match &chunks[copy] {
                    Some(data) => data[at..].first_chunk().copied().ok_or(BlockError::Unreadable),
                    None => bed.block(header.layout.table_offset(copy, number)),
                };
                decode(block, number, &header)
            });
            let torn = [&a, &b].map(|copy| copy.as_ref().err().and_then(|(_, torn)| *torn));
            let sequences = [&a, &b].map(|copy| copy.as_ref().ok().map(|block| block.sequence));
            let [a, b] = [a, b].map(|copy| copy.map_err(|(why, _)| why));
            let equal = matches!((&a, &b), (Ok(a), Ok(b)) if a.entries == b.entries);
            let whys = [&a, &b].map(|copy| copy.as_ref().err().copied().unwrap_or(BlockError::Old));
            let broken = |why| bed.fail(SpareErrorKind::Table { block: number, why });
            let (block, _) = newest(a, b, |block| block.sequence).map_err(broken)?;
            if torn.iter().flatten().any(|torn| *torn >= block.sequence + 2) {
                return Err(broken(whys));
            }
            halves += u32::from(sequences.contains(&None));
            for copy in [0, 1] {
                if sequences[copy] != Some(block.sequence) {
                    let bytes = block.encode(number, header.resource, header.spare);
                    let behind = sequences[copy].map(|old| block.sequence - old);
                    let is_near = behind == Some(1);
                    let may_equal = behind.filter(|_| is_near || equal).unwrap_or(0);
                    let bytes = Box::new(bytes);
                    stale_blocks.push(Stale { copy, number, bytes, is_near, may_equal });
                }
            }
            table.load(number, block);
        }
        first = end;
    }
    let (name, weak_header, outdated) = (bed.name(), false, false);
    let named = header.members.clone();
    Ok(Found {
        name,
        header,
        table,
        stale_headers,
        weak_header,
        outdated,
        named,
        stale_blocks,
        halves,
    })
}

/// A copy of a block of the table; of one that is no good, why, and which sequence it begins with.
fn decode(
    block: Result<Block, BlockError>,
    number: u32,
    header: &SpareHeader,
) -> Result<TableBlock, (BlockError, Option<u64>)> {
    let block = block.map_err(|why| (why, None))?;
    let (resource, spare) = (header.resource, header.spare);
    TableBlock::decode(&block, number, resource, spare, header.layout.slots())
        .map_err(|why| (why, TableBlock::torn_sequence(&block, number, resource, spare)))
}

impl Found {
    pub(super) fn fail(&self, kind: SpareErrorKind) -> SpareError {
        SpareError { kind, name: self.name.clone() }
    }

    /// That it is not an earlier state of itself.
    pub(super) fn check_age(&self, noted: &TableWrites) -> Result<(), SpareError> {
        let found = self.table.writes();
        match noted.get(&self.header.spare) {
            Some(noted) if *noted > found && !self.header.retired => {
                let halves = self.halves;
                Err(self.fail(SpareErrorKind::Older { found, noted: *noted, halves }))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn holds_units(&self) -> bool {
        self.table.counts().mapped + self.table.counts().lost > 0
    }

    /// Makes durable what was read, and writes again what is broken or old. What cannot be written is
    /// weak: its other copy is good.
    pub(super) fn repair(&mut self, bed: &mut Bed<'_>) -> Result<(), SpareError> {
        // Also where both copies are alike: a process that was killed may have left the second one in
        // the cache of the disk, and the next round writes the first one.
        bed.flush().map_err(|error| bed.disk_failed(error))?;
        if self.stale_blocks.is_empty() && self.stale_headers == [false; 2] {
            self.table.settled();
            return Ok(());
        }
        let mut behind = [BTreeSet::new(), BTreeSet::new()];
        for Stale { copy, number, bytes, is_near, may_equal } in self.stale_blocks.drain(..) {
            let at = self.header.layout.table_offset(copy, number);
            if bed.write(at, bytes.to_vec().into()).is_err() {
                self.table.make_weak(number);
                self.table.stays_behind(number, may_equal);
                if is_near {
                    behind[copy].insert(number);
                }
            }
        }
        bed.flush().map_err(|error| bed.disk_failed(error))?;
        // Before those get ahead that may not: what is told must be found in the copies that stay behind.
        self.table.settled();
        if self.table.begin_getting_ahead(&self.header, behind, Bytes::copy_from_slice) {
            // A spare that takes no writes at all can be read all the same, and its blocks are weak.
            let _not_ahead = self.write_round(bed).map_err(|error| bed.disk_failed(error))?;
        }
        let written = bed.write_headers(&self.header, self.stale_headers);
        self.weak_header = match written {
            Err(_) if self.outdated => true,
            written => written.map_err(|error| bed.disk_failed(error))?,
        };
        Ok(())
    }

    /// Frees slots, durably in both copies, or in one where the other cannot be written.
    pub(super) fn free(&mut self, bed: &mut Bed<'_>, slots: &[u32]) -> Result<(), DiskError> {
        let free = slots.iter().map(|slot| (*slot, Entry::default()));
        self.table.queue(free, 0);
        self.table.begin_round(&self.header, Bytes::copy_from_slice);
        if let Some(error) = self.write_round(bed)? {
            return Err(error);
        }
        slots.iter().for_each(|slot| self.table.give_back(*slot));
        Ok(())
    }

    /// Does all of the round that was begun, durably; why a block of it is in neither copy.
    ///
    /// # Errors
    /// When it cannot be flushed.
    fn write_round(&mut self, bed: &mut Bed<'_>) -> Result<Option<DiskError>, DiskError> {
        let mut why = None;
        while let Some(round) = &mut self.table.round {
            for (number, data) in &round.blocks {
                let copy = round.copy_of(*number);
                let at = self.header.layout.table_offset(copy, *number);
                if let Err(error) = bed.write(at, data.clone()) {
                    round.failed[copy].insert(*number);
                    why = Some(error);
                }
            }
            bed.flush()?;
            if !self.table.next_pass(&self.header, Bytes::copy_from_slice) {
                break;
            }
        }
        let (_, whole) = self.table.end_round();
        if whole {
            self.table.settled();
        }
        Ok(why.filter(|_| !whole))
    }
}
