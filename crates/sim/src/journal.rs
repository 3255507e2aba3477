//! The journal of a Primary: the writes of its clients in order, and what of them depends on what.
//!
//! It does not outlive the time as Primary: nobody knows afterwards where in it a peer stood. What the
//! checks need of it stays until the node leads again.

use crate::content::{self, Block, Stamp};
use crate::data_disk::Work;
use crate::rng::Rng;
use holdfast_core::{DiskOpId, LoggedWrite};
use holdfast_units::{ByteRange, LogPosition};
use std::collections::BTreeMap;

/// A write, and when what happened to it, by the journal's own clock.
struct Record {
    /// What stores it; after a restart the names mean others.
    op: Option<DiskOpId>,
    written: bool,
    write: LoggedWrite,
    stamp: Stamp,
    created: u64,
    completed: Option<u64>,
    /// Whatever was submitted from then on may rely on it: a flush covered it, or it was forced.
    relied_on: Option<u64>,
}

/// See the module.
pub(crate) struct Journal {
    pub(crate) present: bool,
    /// Counts the times as Primary.
    pub(crate) term: u64,
    leads: bool,
    clock: u64,
    next: LogPosition,
    first_kept: LogPosition,
    durable: LogPosition,
    records: Vec<Record>,
    /// By flush of the disk: where the journal stood when it was issued.
    flushes: BTreeMap<DiskOpId, LogPosition>,
}

impl Journal {
    pub(crate) fn new(present: bool) -> Self {
        Self {
            present,
            term: 0,
            leads: false,
            clock: 0,
            next: LogPosition::START,
            first_kept: LogPosition::START,
            durable: LogPosition::START,
            records: Vec::new(),
            flushes: BTreeMap::new(),
        }
    }

    /// The node is Primary, or is not.
    pub(crate) fn leads(&mut self, leads: bool) {
        if leads && !self.leads && self.present {
            let next = self.next.after(1);
            let (term, clock) = (self.term + 1, self.clock);
            *self = Self { term, clock, next, first_kept: next, ..Self::new(true) };
            self.durable = next;
        }
        self.leads = leads && self.present;
        if !leads {
            self.flushes.clear();
            self.records.iter_mut().for_each(|record| record.op = None);
        }
    }

    /// The time, for what begins now.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The disk is given an operation.
    pub(crate) fn issued(&mut self, op: DiskOpId, work: &Work) {
        if !self.leads {
            return;
        }
        let (range, data) = match work {
            Work::Write { range, data, .. } => (*range, Some(data.clone())),
            Work::Zeroes { range, .. } => (*range, None),
            Work::Flush => {
                self.flushes.insert(op, self.next);
                return;
            }
            Work::Read { .. } | Work::Repair { .. } | Work::MarkLost { .. } => return,
        };
        let position = self.next;
        self.next = position.after(1 + data.as_ref().map_or(0, |data| data.len() as u64));
        let parsed = data.as_ref().map(|data| content::parse(range, data));
        let first = parsed.and_then(Result::ok).and_then(|blocks| blocks.first().copied());
        let stamp = first.map_or(0, |block| block.0[0]);
        let write = LoggedWrite { position, next: self.next, barrier: self.durable, range, data };
        let created = self.tick();
        let (written, completed, relied_on) = (false, None, None);
        let op = Some(op);
        let record = Record { op, written, write, stamp, created, completed, relied_on };
        self.records.push(record);
    }

    /// An operation is done. The position of its record, if it has one.
    pub(crate) fn done(&mut self, op: DiskOpId, fua: bool) -> Option<LogPosition> {
        if let Some(covers) = self.flushes.remove(&op) {
            self.durable = self.durable.max(covers);
        }
        let record =
            self.records.iter_mut().rfind(|record| record.op == Some(op) && !record.written)?;
        record.written = true;
        if fua {
            self.durable = self.durable.max(record.write.next);
        }
        Some(record.write.position)
    }

    /// A client's write was completed.
    pub(crate) fn completed(&mut self, stamp: Stamp, range: ByteRange, fua: bool) {
        let now = self.tick();
        let mine =
            |r: &&mut Record| r.completed.is_none() && r.stamp == stamp && r.write.range == range;
        if let Some(record) = self.records.iter_mut().find(mine) {
            record.completed = Some(now);
            record.relied_on = fua.then_some(now);
        }
    }

    /// A client's flush that was asked for at `since` was completed.
    pub(crate) fn flushed(&mut self, since: u64) {
        let now = self.tick();
        for record in &mut self.records {
            if record.relied_on.is_none() && record.completed.is_some_and(|at| at < since) {
                record.relied_on = Some(now);
            }
        }
    }

    /// What a read gives: some records from there on that are written, and the position behind them.
    pub(crate) fn read(
        &mut self,
        from: LogPosition,
        cuts: u64,
        rng: &mut Rng,
    ) -> Option<(Vec<LoggedWrite>, LogPosition)> {
        if rng.chance(cuts) {
            self.first_kept = self.next;
        }
        if from < self.first_kept {
            return None;
        }
        let most = rng.index(16) + 1;
        let behind = self.records.iter().filter(|record| record.write.position >= from);
        let found = behind.take_while(|record| record.written).take(most);
        let found: Vec<LoggedWrite> = found.map(|record| record.write.clone()).collect();
        let next = found.last()?.next;
        Some((found, next))
    }

    /// Whether a disk that holds this could be what a crash of this Primary left: it has all that what
    /// it has relied on.
    ///
    /// # Errors
    /// Says which write is missing.
    pub(crate) fn explains(
        &self,
        blocks: impl Iterator<Item = u64>,
        found: impl Fn(u64) -> Block,
    ) -> Result<(), String> {
        let mut latest = 0;
        let mut shown = Vec::new();
        for block in blocks {
            let within = |record: &&Record| record.write.range.blocks().contains(&block);
            let writers: Vec<&Record> = self.records.iter().filter(within).collect();
            if writers.is_empty() {
                continue;
            }
            for stamp in found(block).0 {
                let matching = || writers.iter().filter(|record| record.stamp == stamp);
                // Zeroes may be those of before, or any later ones.
                if stamp != 0 {
                    latest = matching().map(|r| r.created).min().unwrap_or(0).max(latest);
                }
                let at = matching().map(|record| record.write.position).max();
                shown.push((block, stamp, at, writers.clone()));
            }
        }
        for (block, stamp, at, writers) in shown {
            let relied_on = |record: &&&Record| record.relied_on.is_some_and(|when| when <= latest);
            let needed =
                writers.iter().filter(relied_on).map(|r| (r.write.position, r.stamp)).max();
            if let Some((position, needs)) = needed
                && at.is_none_or(|at| at < position)
            {
                return Err(format!(
                    "block {block} holds w{stamp} and not w{needs}, on which something else that \
                     is there relied"
                ));
            }
        }
        Ok(())
    }
}
