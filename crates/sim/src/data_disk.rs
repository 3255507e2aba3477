//! A virtual data disk with a volatile cache.
//!
//! Each block has a durable content and a list of versions that were written but not yet flushed.
//! Reads see the newest. An operation takes effect at one moment and is reported at a later one; a
//! flush makes durable what was *reported* before it was issued, and promises nothing else.

use crate::content::{self, Block};
use crate::rng::Rng;
use bytes::Bytes;
use holdfast_core::{DiskOpId, DiskOutcome, IoFailure};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::collections::{BTreeMap, BTreeSet};

/// An operation on the disk.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Read {
        range: ByteRange,
        holes: bool,
    },
    Write {
        range: ByteRange,
        data: Bytes,
        fua: bool,
    },
    Zeroes {
        range: ByteRange,
        fua: bool,
    },
    Flush,
    /// Blocks that could not be read are stored again.
    Repair {
        range: ByteRange,
        data: Bytes,
        /// They are what the disk holds.
        salvaged: bool,
    },
    /// There is no good copy of these blocks.
    MarkLost {
        range: ByteRange,
        /// They only could not be read.
        unread: bool,
    },
}

impl Work {
    /// Which part of the disk it changes.
    pub(crate) fn changes(&self) -> Option<ByteRange> {
        match self {
            Self::Write { range, .. } | Self::Zeroes { range, .. } | Self::Repair { range, .. } => {
                Some(*range)
            }
            Self::Read { .. } | Self::Flush | Self::MarkLost { .. } => None,
        }
    }
}

struct Version {
    content: Block,
    op: DiskOpId,
    /// After how many reports it was reported.
    reported: Option<u64>,
}

struct InFlight {
    work: Work,
    fails: bool,
    /// It stores what a resync source sent.
    resync: bool,
    /// How many reports there had been when it was issued.
    issued_at: u64,
    outcome: Option<Result<DiskOutcome, IoFailure>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct DataDisk {
    now: BTreeMap<u64, Block>,
    durable: BTreeMap<u64, Block>,
    pending: BTreeMap<u64, Vec<Version>>,
    in_flight: BTreeMap<DiskOpId, InFlight>,
    reports: u64,
    time: u64,
    /// After how many reports the last write of a resync was reported, and until which all are
    /// flushed.
    resynced_at: u64,
    flushed_until: u64,
    /// A flush failed since the disk was opened.
    flush_failed: bool,
    /// Blocks that cannot be read until they are written. What they hold is remembered here all the same.
    bad: BTreeSet<u64>,
    /// Bad ones that the driver has all the same, as from a journal.
    kept: BTreeSet<u64>,
    /// When blocks that were bad were last written.
    healed: BTreeMap<u64, u64>,
    /// Bad ones that hold something else by their checksums.
    rotten: BTreeSet<u64>,
    /// Blocks of which the core has said that what they hold may be old, those in which a repair failed,
    /// and which were not written since.
    lost: BTreeSet<u64>,
}

/// What a reader finds in a block that cannot be read, if it looks.
const GARBAGE: u64 = 1 << 40;

/// A longer stretch with data in it is answered in part when the reader allows holes.
const LONGEST_PART: u64 = 64 * BLOCK_SIZE;

fn put(map: &mut BTreeMap<u64, Block>, block: u64, content: Block) {
    if content == Block::ZERO {
        map.remove(&block);
    } else {
        map.insert(block, content);
    }
}

impl DataDisk {
    /// What a read of this block would give.
    pub(crate) fn get(&self, block: u64) -> Block {
        self.now.get(&block).copied().unwrap_or(Block::ZERO)
    }

    /// The medium changes a block that is durable by itself. False when it is not durable.
    pub(crate) fn corrupt(&mut self, block: u64, content: Block) -> bool {
        let settled = !self.pending.contains_key(&block);
        if settled {
            put(&mut self.now, block, content);
            put(&mut self.durable, block, content);
        }
        settled
    }

    fn get_durable(&self, block: u64) -> Block {
        self.durable.get(&block).copied().unwrap_or(Block::ZERO)
    }

    /// The blocks in which the two disks differ.
    pub(crate) fn differences(&self, other: &Self) -> Vec<u64> {
        let mut blocks: Vec<u64> = self.now.keys().chain(other.now.keys()).copied().collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|block| self.get(*block) != other.get(*block));
        // Of a lost block nobody says what it holds.
        blocks.retain(|block| !self.is_lost(*block) && !other.is_lost(*block));
        blocks
    }

    /// The block cannot be read from now on. With `kept`, the driver has what it holds.
    pub(crate) fn spoil(&mut self, block: u64, kept: bool) {
        if self.bad.insert(block) && kept {
            self.kept.insert(block);
        }
    }

    /// The bad block is one that holds something else.
    pub(crate) fn rot(&mut self, block: u64) {
        if self.bad.contains(&block) && !self.kept.contains(&block) {
            self.rotten.insert(block);
        }
    }

    /// Whether all these blocks hold something else than what was written.
    pub(crate) fn are_rotten(&self, mut blocks: std::ops::Range<u64>) -> bool {
        blocks.all(|block| self.rotten.contains(&block))
    }

    /// Bad blocks that could be read again, those that hold something else left out.
    pub(crate) fn passing(&self, blocks: std::ops::Range<u64>) -> Vec<u64> {
        let bad = self.bad.range(blocks).copied();
        bad.filter(|block| !self.rotten.contains(block)).collect()
    }

    /// A bad block can be read again.
    pub(crate) fn pass(&mut self, block: u64, now: u64) {
        self.kept.remove(&block);
        if self.bad.remove(&block) {
            self.healed.insert(block, now);
        }
    }

    /// Whether the content of the block is not to be looked at.
    pub(crate) fn is_lost(&self, block: u64) -> bool {
        self.lost.contains(&block)
    }

    /// Whether one of these blocks cannot be had.
    pub(crate) fn has_bad(&self, blocks: std::ops::Range<u64>) -> bool {
        self.bad.range(blocks).any(|block| !self.kept.contains(block))
    }

    /// Whether the block could not be had at some time since then.
    pub(crate) fn was_bad(&self, block: u64, since: u64) -> bool {
        self.has_bad(block..block + 1)
            || self.lost.contains(&block)
            || self.healed.get(&block).is_some_and(|at| *at >= since)
    }

    /// Notes that blocks were written at this time.
    fn restore(&mut self, block: u64, now: u64) {
        let (bad, lost) = (self.bad.remove(&block), self.lost.remove(&block));
        self.kept.remove(&block);
        self.rotten.remove(&block);
        if bad || lost {
            self.healed.insert(block, now);
        }
    }

    /// Whether a power failure now could lose this content of the block, once it was written.
    pub(crate) fn is_volatile(&self, block: u64, content: Block) -> bool {
        let durable = self.get_durable(block);
        if self.get(block) == content {
            return durable != content;
        }
        let versions = self.pending.get(&block).map_or(&[][..], Vec::as_slice);
        versions.iter().any(|version| version.content == content) && durable != content
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The operations in flight.
    pub(crate) fn names(&self) -> Vec<DiskOpId> {
        self.in_flight.keys().copied().collect()
    }

    /// A process opens the disk.
    pub(crate) fn open(&mut self) {
        self.flush_failed = false;
        self.resynced_at = 0;
    }

    /// Whether a flush has failed since the process started.
    pub(crate) fn flush_failed(&self) -> bool {
        self.flush_failed
    }

    /// Whether all writes of a resync are done and a flush came after them.
    pub(crate) fn resync_is_flushed(&self) -> bool {
        self.resynced_at <= self.flushed_until && !self.in_flight.values().any(|op| op.resync)
    }

    /// Takes an operation. The caller sees to it that [`Self::apply`] and [`Self::report`] follow.
    ///
    /// # Errors
    /// When the driver or the core broke the contract.
    pub(crate) fn start(
        &mut self,
        op: DiskOpId,
        work: Work,
        fails: bool,
        resync: bool,
    ) -> Result<(), String> {
        if let Work::Write { range, data, .. } | Work::Repair { range, data, .. } = &work {
            content::parse(*range, data)?;
        }
        if let Some(range) = work.changes() {
            let clash = self.in_flight.iter().find(|(_, other)| {
                other.outcome.is_none()
                    && other.work.changes().is_some_and(|other| other.overlaps(range))
            });
            if let Some((other, _)) = clash {
                return Err(format!("{op:?} on {range} overlaps {other:?}, which is in flight"));
            }
        }
        let issued_at = self.reports;
        match self.in_flight.insert(op, InFlight { work, fails, resync, issued_at, outcome: None })
        {
            Some(_) => Err(format!("{op:?} was issued twice")),
            None => Ok(()),
        }
    }

    /// The operation takes effect.
    pub(crate) fn apply(&mut self, op: DiskOpId, now: u64, rng: &mut Rng) {
        self.time = now;
        let Some(flight) = self.in_flight.get(&op) else { return };
        let (work, fails, issued_at) = (flight.work.clone(), flight.fails, flight.issued_at);
        let outcome = if fails {
            match work {
                Work::Flush => self.lose_cache(rng),
                Work::Write { .. } | Work::Zeroes { .. } => self.store_part(op, &work, rng),
                Work::Repair { range, salvaged: false, .. } => self.lost.extend(range.blocks()),
                Work::Read { .. } | Work::Repair { .. } | Work::MarkLost { .. } => {}
            }
            Err(IoFailure::Disk)
        } else {
            Ok(match work {
                Work::Read { range, holes } => self.read(range, holes),
                Work::MarkLost { unread: true, .. } => DiskOutcome::Done,
                Work::MarkLost { range, unread: false } => {
                    self.lost.extend(range.blocks());
                    self.kept.retain(|block| !range.blocks().contains(block));
                    DiskOutcome::Done
                }
                Work::Write { .. } | Work::Zeroes { .. } | Work::Repair { .. } => {
                    for (block, content) in self.contents(&work) {
                        self.store(op, block, content, false);
                    }
                    DiskOutcome::Done
                }
                Work::Flush => {
                    self.flush(issued_at);
                    DiskOutcome::Done
                }
            })
        };
        if let Some(flight) = self.in_flight.get_mut(&op) {
            flight.outcome = Some(outcome);
        }
    }

    /// Whether an operation took effect that could not read all.
    pub(crate) fn gave_part(&self, op: DiskOpId) -> bool {
        let outcome = self.in_flight.get(&op).and_then(|flight| flight.outcome.as_ref());
        matches!(outcome, Some(Ok(DiskOutcome::Partial { .. } | DiskOutcome::Salvaged { .. })))
    }

    /// Whether an operation stores again what could not be read.
    pub(crate) fn is_repair(&self, op: DiskOpId) -> bool {
        self.in_flight.get(&op).is_some_and(|flight| matches!(flight.work, Work::Repair { .. }))
    }

    /// Whether an operation is to be durable when it is done.
    pub(crate) fn is_forced(&self, op: DiskOpId) -> bool {
        let work = self.in_flight.get(&op).map(|flight| &flight.work);
        matches!(
            work,
            Some(
                Work::Write { fua: true, .. }
                    | Work::Zeroes { fua: true, .. }
                    | Work::Repair { .. }
            )
        )
    }

    /// The end of an operation that took effect.
    pub(crate) fn report(&mut self, op: DiskOpId) -> Option<Result<DiskOutcome, IoFailure>> {
        let flight = self.in_flight.remove(&op)?;
        self.reports += 1;
        let reports = self.reports;
        let failed = matches!(flight.outcome, Some(Err(_)));
        if matches!(flight.work, Work::Flush) {
            self.flush_failed |= failed;
            if !failed {
                self.flushed_until = self.flushed_until.max(flight.issued_at);
            }
        }
        if flight.resync {
            self.resynced_at = reports;
        }
        if let Some(range) = flight.work.changes() {
            for versions in self.pending.range_mut(range.blocks()).map(|(_, versions)| versions) {
                // A daemon that starts again counts its operations anew.
                let mine = |version: &&mut Version| version.op == op && version.reported.is_none();
                for version in versions.iter_mut().filter(mine) {
                    version.reported = Some(reports);
                }
            }
            let fua = match flight.work {
                Work::Write { fua, .. } | Work::Zeroes { fua, .. } => fua,
                Work::Repair { .. } => true,
                Work::Read { .. } | Work::Flush | Work::MarkLost { .. } => false,
            };
            if fua && !failed {
                self.flush_range(range, reports);
            }
        }
        flight.outcome
    }

    /// The process was killed: the page cache stays, what was in flight is done in part.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        self.end_in_flight(rng);
        let reports = self.reports;
        for version in self.pending.values_mut().flatten() {
            version.reported = Some(reports);
        }
    }

    /// The power failed: each unflushed block is kept, lost or torn, each for itself.
    pub(crate) fn power_fail(&mut self, rng: &mut Rng) {
        self.end_in_flight(rng);
        self.lose_cache(rng);
        self.now = self.durable.clone();
    }

    fn end_in_flight(&mut self, rng: &mut Rng) {
        for (op, flight) in std::mem::take(&mut self.in_flight) {
            if flight.outcome.is_none() && flight.work.changes().is_some() {
                self.store_part(op, &flight.work, rng);
            }
        }
    }

    /// Settles what of the cache reached the medium. The cached view stays as it is.
    fn lose_cache(&mut self, rng: &mut Rng) {
        for (block, versions) in std::mem::take(&mut self.pending) {
            let old = self.get_durable(block);
            let any = |rng: &mut Rng| match rng.index(versions.len() + 1) {
                0 => old,
                n => versions[n - 1].content,
            };
            let content = match rng.below(4) {
                0 => old,
                1 => versions[versions.len() - 1].content,
                2 => any(rng),
                _ => {
                    let mut torn = old;
                    for sector in 0..content::SECTORS {
                        torn.0[sector] = any(rng).0[sector];
                    }
                    torn
                }
            };
            put(&mut self.durable, block, content);
        }
    }

    fn read(&self, range: ByteRange, holes: bool) -> DiskOutcome {
        let is_bad = |range: ByteRange| self.bad.range(range.blocks()).next().is_some();
        if holes && self.now.range(range.blocks()).next().is_none() && !is_bad(range) {
            return DiskOutcome::Zeroes;
        }
        let len = if holes { range.len.min(LONGEST_PART) } else { range.len };
        let range = ByteRange::new(range.offset, len);
        if is_bad(range) {
            let hidden = |block: &u64| self.bad.contains(block) && !self.kept.contains(block);
            let found =
                |block| if hidden(&block) { Block::whole(GARBAGE) } else { self.get(block) };
            let data = content::render(range, found);
            let bad = self.bad.range(range.blocks()).copied();
            let (bad, kept): (Vec<u64>, Vec<u64>) = bad.partition(hidden);
            let ranges = |blocks: Vec<u64>| -> Vec<ByteRange> {
                blocks.into_iter().map(|block| ByteRange::of_blocks(block..block + 1)).collect()
            };
            let wrong = bad.iter().copied().filter(|block| self.rotten.contains(block));
            let wrong = ranges(wrong.collect());
            let (bad, salvaged) = (ranges(bad), ranges(kept));
            return match salvaged.is_empty() {
                true => DiskOutcome::Partial { data, bad, wrong },
                false => DiskOutcome::Salvaged { data, bad, salvaged, wrong },
            };
        }
        DiskOutcome::Data(content::render(range, |block| self.get(block)))
    }

    /// What each block of a write gets. Of zeroes, only blocks that are not zero everywhere.
    fn contents(&self, work: &Work) -> Vec<(u64, Block)> {
        match work {
            Work::Write { range, data, .. } | Work::Repair { range, data, .. } => {
                let blocks = content::parse(*range, data).expect("was checked when it was issued");
                range.blocks().zip(blocks).collect()
            }
            Work::Zeroes { range, .. } => {
                let touched = self.now.range(range.blocks()).map(|(block, _)| *block);
                let bad = self.bad.range(range.blocks()).copied();
                let lost = self.lost.range(range.blocks()).copied();
                let cached = self.pending.range(range.blocks()).map(|(block, _)| *block);
                let stored = self.durable.range(range.blocks()).map(|(block, _)| *block);
                let mut blocks: Vec<u64> =
                    touched.chain(cached).chain(stored).chain(bad).chain(lost).collect();
                blocks.sort_unstable();
                blocks.dedup();
                blocks.into_iter().map(|block| (block, Block::ZERO)).collect()
            }
            Work::Read { .. } | Work::Flush | Work::MarkLost { .. } => Vec::new(),
        }
    }

    fn store(&mut self, op: DiskOpId, block: u64, content: Block, reported: bool) {
        self.restore(block, self.time);
        put(&mut self.now, block, content);
        let reported = reported.then_some(self.reports);
        self.pending.entry(block).or_default().push(Version { content, op, reported });
    }

    /// Some blocks of a write, none, or all.
    fn store_part(&mut self, op: DiskOpId, work: &Work, rng: &mut Rng) {
        let contents = self.contents(work);
        match rng.below(3) {
            0 => {}
            1 => contents.into_iter().for_each(|(block, new)| self.store(op, block, new, true)),
            _ => {
                for (block, new) in contents {
                    if rng.coin() {
                        self.store(op, block, new, true);
                    }
                }
            }
        }
    }

    fn flush(&mut self, reported_before: u64) {
        let blocks: Vec<u64> = self.pending.keys().copied().collect();
        for block in blocks {
            self.flush_block(block, reported_before);
        }
    }

    fn flush_range(&mut self, range: ByteRange, reported_before: u64) {
        let blocks: Vec<u64> =
            self.pending.range(range.blocks()).map(|(block, _)| *block).collect();
        for block in blocks {
            self.flush_block(block, reported_before);
        }
    }

    fn flush_block(&mut self, block: u64, reported_before: u64) {
        let Some(versions) = self.pending.get_mut(&block) else { return };
        let covered = |version: &Version| version.reported.is_some_and(|at| at <= reported_before);
        let Some(last) = versions.iter().rposition(covered) else { return };
        let content = versions[last].content;
        versions.drain(..=last);
        if versions.is_empty() {
            self.pending.remove(&block);
        }
        put(&mut self.durable, block, content);
    }
}

#[cfg(test)]
mod tests {
    use super::{DataDisk, Work};
    use crate::content::{Block, payload};
    use crate::rng::Rng;
    use holdfast_core::DiskOpId;
    use holdfast_units::ByteRange;

    fn write(disk: &mut DataDisk, rng: &mut Rng, op: u64, block: u64, stamp: u64, fua: bool) {
        let range = ByteRange::of_blocks(block..block + 1);
        let work = Work::Write { range, data: payload(range, stamp), fua };
        run(disk, rng, op, work);
    }

    fn run(disk: &mut DataDisk, rng: &mut Rng, op: u64, work: Work) {
        disk.start(DiskOpId(op), work, false, false).unwrap();
        disk.apply(DiskOpId(op), 0, rng);
        disk.report(DiskOpId(op)).unwrap().unwrap();
    }

    #[test]
    fn only_flushed_blocks_are_sure_to_survive_a_power_failure() {
        let mut lost = 0;
        for seed in 0..100 {
            let (mut disk, mut rng) = (DataDisk::default(), Rng::new(seed));
            write(&mut disk, &mut rng, 1, 1, 11, false);
            run(&mut disk, &mut rng, 2, Work::Flush);
            write(&mut disk, &mut rng, 3, 2, 12, false);
            write(&mut disk, &mut rng, 4, 3, 13, true);
            assert!(disk.is_volatile(2, Block::whole(12)));
            disk.power_fail(&mut rng);
            assert_eq!(disk.get(1), Block::whole(11));
            assert_eq!(disk.get(3), Block::whole(13));
            lost += usize::from(disk.get(2) != Block::whole(12));
        }
        assert!((20..80).contains(&lost), "{lost}");
    }

    #[test]
    fn a_flush_does_not_cover_a_write_that_was_reported_after_it_was_issued() {
        let (mut disk, mut rng) = (DataDisk::default(), Rng::new(1));
        let range = ByteRange::of_blocks(0..1);
        let work = Work::Write { range, data: payload(range, 5), fua: false };
        disk.start(DiskOpId(1), work, false, false).unwrap();
        disk.apply(DiskOpId(1), 0, &mut rng);
        disk.start(DiskOpId(2), Work::Flush, false, false).unwrap();
        disk.apply(DiskOpId(2), 0, &mut rng);
        assert!(disk.is_volatile(0, Block::whole(5)));
    }

    #[test]
    fn a_killed_process_loses_no_reported_write() {
        for seed in 0..50 {
            let (mut disk, mut rng) = (DataDisk::default(), Rng::new(seed));
            write(&mut disk, &mut rng, 1, 1, 11, false);
            let range = ByteRange::of_blocks(1..3);
            disk.start(DiskOpId(2), Work::Zeroes { range, fua: false }, false, false).unwrap();
            disk.kill(&mut rng);
            assert!([Block::whole(11), Block::ZERO].contains(&disk.get(1)));
            assert!(disk.is_idle());
        }
    }
}
