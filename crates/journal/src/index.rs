//! Which ranges of the disk are newer in the journal, and what is to be written back next.

use crate::ranges::RangeSet;
use holdfast_format::journal::{Compression, FrameHeader, Record, RecordKind};
use holdfast_units::{ByteRange, LogPosition};
use std::collections::{BTreeMap, VecDeque};

/// Where the payload of a record is, and how to read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// In which segment.
    pub segment: u64,
    /// Where in its file, in bytes.
    pub offset: u64,
    /// The bytes that are stored.
    pub stored_len: u32,
    /// The bytes that they stand for.
    pub plain_len: u64,
    /// How they are stored.
    pub compression: Compression,
    /// CRC-32C of the stored bytes.
    pub stored_crc: u32,
    /// CRC-32C of the payload as submitted.
    pub crc: u32,
}

/// Where the newest data of a part are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PartSource {
    /// On the disk.
    Disk,
    /// Nowhere: they are zeroes.
    Zeroes,
    /// In the journal.
    Journal {
        /// The record's payload.
        place: Place,
        /// The bytes of the payload before this part.
        skip: u64,
    },
}

/// A part of a range that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Which part.
    pub range: ByteRange,
    /// Where its data are.
    pub source: PartSource,
}

/// What a run of a write-back does on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunKind {
    /// Writes its pieces.
    Data,
    /// Writes zeroes, keeping the space.
    Zeroes,
    /// Writes zeroes, giving the space back.
    Discard,
}

/// A piece of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunPiece {
    /// Where it goes.
    pub range: ByteRange,
    /// The record's payload.
    pub place: Place,
    /// The bytes of the payload before this piece.
    pub skip: u64,
}

/// One write to the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub kind: RunKind,
    /// The data of a [`RunKind::Data`], in order and without gaps.
    pub pieces: Vec<RunPiece>,
}

/// Writes to the disk that may be made in any order and at the same time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteBack {
    /// Its number, for [`crate::Journal::written_back`].
    pub id: u64,
    /// The writes, none of which overlap; in ascending order, going round once.
    pub runs: Vec<Run>,
}

/// How much is written back at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteBackLimits {
    /// At most so many bytes of data (at least one record's).
    pub bytes: u64,
    /// At most so many runs.
    pub runs: usize,
    /// No run of data is longer, in bytes (but as long as a record's part).
    pub run_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Dirty,
    /// Being written back.
    Writing(u64),
    /// Written back, and the disk not flushed since.
    Written(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    end: u64,
    position: LogPosition,
    kind: RunKind,
    /// Of data only.
    place: Option<Place>,
    skip: u64,
    state: State,
}

struct Plan {
    ranges: Vec<ByteRange>,
    /// Counts up when a plan is done; `None` until then.
    done: Option<u64>,
}

/// The entries that a record still has.
struct Live {
    count: u32,
    /// All of them lie in it.
    range: ByteRange,
}

/// So many records at most are sorted for writing back the oldest ones.
const AGED: usize = 2048;

/// The interval map from disk range to the newest record that is not durable on the disk.
#[derive(Default)]
pub(crate) struct Index {
    entries: BTreeMap<u64, Entry>,
    live: BTreeMap<LogPosition, Live>,
    /// Records that are not durable yet, and the oldest record that each took a range from. Until
    /// it is durable, a crash can bring that one back: it still has to be in the journal. In order,
    /// of both; a record is left out when a later one took a range from one as old.
    held: VecDeque<(LogPosition, LogPosition)>,
    bytes: u64,
    plans: BTreeMap<u64, Plan>,
    /// Where writes to the disk are under way.
    busy: RangeSet,
    next_plan: u64,
    /// How many plans are done.
    done: u64,
    /// Where the elevator is.
    sweep: u64,
    /// Entries of the oldest records, in the order of the disk, that are written back next.
    aged: VecDeque<u64>,
    /// All records before this were among them, since the last flush.
    aged_to: LogPosition,
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the disk that are newer here.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest record that is not durable on the disk, or would not be after a crash.
    pub(crate) fn oldest(&self) -> Option<LogPosition> {
        let live = self.live.keys().next().copied();
        self.held.front().map(|(_, oldest)| *oldest).into_iter().chain(live).min()
    }

    /// All records before this are durable in the journal.
    pub(crate) fn synced(&mut self, durable: LogPosition) {
        while self.held.pop_front_if(|(position, _)| *position < durable).is_some() {}
    }

    /// Takes in the records of a frame whose position is at least `from`.
    pub(crate) fn add_frame(
        &mut self,
        header: &FrameHeader,
        offset: u64,
        alignment: u32,
        from: LogPosition,
    ) {
        let records = header.records.iter().zip(header.payloads(alignment)).enumerate();
        for (index, (record, payload)) in records {
            let position = header.position.after(index as u64);
            if position >= from && !record.range.is_empty() {
                let place = place_of(record, header.segment, offset + u64::from(payload.start));
                self.insert(position, record, place);
            }
        }
    }

    fn insert(&mut self, position: LogPosition, record: &Record, place: Option<Place>) {
        let kind = match record.kind {
            RecordKind::Write => RunKind::Data,
            RecordKind::Zeroes => RunKind::Zeroes,
            RecordKind::Discard => RunKind::Discard,
            RecordKind::Flush => return,
        };
        if let Some(oldest) = self.overlapping(record.range).map(|(_, entry)| entry.position).min()
        {
            while self.held.pop_back_if(|(_, older)| *older >= oldest).is_some() {}
            self.held.push_back((position, oldest));
        }
        self.carve(record.range);
        let (start, end) = (record.range.offset, record.range.end());
        self.put(start, Entry { end, position, kind, place, skip: 0, state: State::Dirty });
    }

    /// Takes the range away from what is there.
    fn carve(&mut self, range: ByteRange) {
        while let Some((&start, &entry)) = self.entries.range(..range.end()).next_back() {
            if entry.end <= range.offset {
                break;
            }
            self.take(start);
            if entry.end > range.end() {
                let skip = entry.skip + (range.end() - start);
                self.put(range.end(), Entry { skip, ..entry });
            }
            if start < range.offset {
                self.put(start, Entry { end: range.offset, ..entry });
            }
        }
    }

    fn put(&mut self, start: u64, entry: Entry) {
        self.bytes += entry.end - start;
        let range = ByteRange::new(start, entry.end - start);
        let live = self.live.entry(entry.position).or_insert(Live { count: 0, range });
        live.count += 1;
        let first = live.range.offset.min(start);
        live.range = ByteRange::new(first, live.range.end().max(entry.end) - first);
        self.entries.insert(start, entry);
    }

    fn take(&mut self, start: u64) {
        let Some(entry) = self.entries.remove(&start) else { return };
        self.bytes -= entry.end - start;
        if let Some(live) = self.live.get_mut(&entry.position) {
            live.count -= 1;
            if live.count == 0 {
                self.live.remove(&entry.position);
            }
        }
    }

    /// The entries that overlap the range: start and entry.
    fn overlapping(&self, range: ByteRange) -> impl Iterator<Item = (u64, Entry)> {
        let before = self.entries.range(..range.offset).next_back();
        let before = before.filter(|(_, entry)| entry.end > range.offset);
        let first = before.map_or(range.offset, |(start, _)| *start);
        self.entries.range(first..range.end().max(first)).map(|(start, entry)| (*start, *entry))
    }

    /// Where the newest data of a range are: parts in order, without gaps.
    pub(crate) fn lookup(&self, range: ByteRange) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.offset;
        let mut push = |start: u64, end: u64, source| {
            if start < end {
                parts.push(Part { range: ByteRange::new(start, end - start), source });
            }
        };
        for (start, entry) in self.overlapping(range) {
            if matches!(entry.state, State::Written(_)) {
                continue;
            }
            let (from, to) = (start.max(range.offset), entry.end.min(range.end()));
            push(at, from, PartSource::Disk);
            let source = entry.place.map_or(PartSource::Zeroes, |place| PartSource::Journal {
                place,
                skip: entry.skip + (from - start),
            });
            push(from, to, source);
            at = to;
        }
        push(at, range.end(), PartSource::Disk);
        parts
    }

    /// The next writes to the disk, of records before `durable`.
    pub(crate) fn plan(
        &mut self,
        limits: WriteBackLimits,
        durable: LogPosition,
    ) -> Option<WriteBack> {
        let mut next = Choice::new(limits, durable);
        let up = self.entries.range(self.sweep..).chain(self.entries.range(..self.sweep));
        for (&start, entry) in up {
            if !next.add(start, entry, &self.busy) {
                break;
            }
        }
        self.sweep = next.taken.last()?.end();
        self.begin_plan(next)
    }

    /// As [`Self::plan`], of the oldest records: a few thousand of them at a time are sorted.
    pub(crate) fn plan_oldest(
        &mut self,
        limits: WriteBackLimits,
        before: LogPosition,
    ) -> Option<WriteBack> {
        let mut next = Choice::new(limits, before);
        loop {
            if self.aged.is_empty() && !self.gather_oldest(before) {
                break;
            }
            while let Some(&start) = self.aged.front() {
                if let Some(entry) = self.entries.get(&start)
                    && !next.add(start, entry, &self.busy)
                {
                    break;
                }
                self.aged.pop_front();
            }
            if !next.taken.is_empty() {
                break;
            }
        }
        self.begin_plan(next)
    }

    /// Sorts the entries of the oldest records that were not looked at since the last flush.
    /// Whether there are any.
    fn gather_oldest(&mut self, before: LogPosition) -> bool {
        let mut starts = Vec::new();
        let from = self.aged_to.min(before);
        for (&position, live) in self.live.range(from..before).take(AGED) {
            let of_record = self.overlapping(live.range).filter(|(_, e)| e.position == position);
            starts.extend(of_record.map(|(start, _)| start));
            self.aged_to = position.after(1);
        }
        starts.sort_unstable();
        self.aged = starts.into();
        !self.aged.is_empty()
    }

    fn begin_plan(&mut self, chosen: Choice) -> Option<WriteBack> {
        let Choice { runs, taken, .. } = chosen;
        if taken.is_empty() {
            return None;
        }
        let id = self.next_plan;
        self.next_plan += 1;
        for range in &taken {
            self.busy.insert(*range);
            if let Some(entry) = self.entries.get_mut(&range.offset) {
                entry.state = State::Writing(id);
            }
        }
        self.plans.insert(id, Plan { ranges: taken, done: None });
        Some(WriteBack { id, runs })
    }

    /// All writes of a plan are done (`true`), or it is not known which (`false`).
    pub(crate) fn plan_done(&mut self, id: u64, worked: bool) {
        let Some(plan) = self.plans.get_mut(&id).filter(|plan| plan.done.is_none()) else { return };
        self.done += 1;
        plan.done = Some(self.done);
        let ranges = std::mem::take(&mut plan.ranges);
        let state = if worked { State::Written(id) } else { State::Dirty };
        for range in &ranges {
            self.busy.remove(*range);
            for start in self.of_plan(*range, State::Writing(id)) {
                if let Some(entry) = self.entries.get_mut(&start) {
                    entry.state = state;
                }
            }
        }
        if worked {
            if let Some(plan) = self.plans.get_mut(&id) {
                plan.ranges = ranges;
            }
        } else {
            self.plans.remove(&id);
            self.look_again();
        }
    }

    /// What was passed over may be written back now.
    fn look_again(&mut self) {
        self.aged.clear();
        self.aged_to = LogPosition::START;
    }

    fn of_plan(&self, range: ByteRange, state: State) -> Vec<u64> {
        let entries = self.overlapping(range).filter(|(_, entry)| entry.state == state);
        entries.map(|(start, _)| start).collect()
    }

    /// What a flush of the disk that begins now will cover.
    pub(crate) const fn flush_token(&self) -> u64 {
        self.done
    }

    /// A flush of the disk is done that began when [`Self::flush_token`] was `token`.
    pub(crate) fn flushed(&mut self, token: u64) {
        self.look_again();
        let covered = self.plans.iter().filter(|(_, plan)| plan.done.is_some_and(|n| n <= token));
        let covered: Vec<u64> = covered.map(|(id, _)| *id).collect();
        for id in covered {
            let Some(plan) = self.plans.remove(&id) else { continue };
            for range in plan.ranges {
                for start in self.of_plan(range, State::Written(id)) {
                    self.take(start);
                }
            }
        }
    }
}

/// What is chosen for a plan.
struct Choice {
    limits: WriteBackLimits,
    before: LogPosition,
    runs: Vec<Run>,
    taken: Vec<ByteRange>,
    bytes: u64,
}

impl Choice {
    const fn new(limits: WriteBackLimits, before: LogPosition) -> Self {
        Self { limits, before, runs: Vec::new(), taken: Vec::new(), bytes: 0 }
    }

    /// Takes an entry if it is to be written back now. False when it would be too much.
    fn add(&mut self, start: u64, entry: &Entry, busy: &RangeSet) -> bool {
        let range = ByteRange::new(start, entry.end - start);
        let ready = entry.state == State::Dirty && entry.position < self.before;
        if !ready || busy.overlaps(range) {
            return true;
        }
        let cost = if entry.kind == RunKind::Data { range.len } else { 0 };
        let joins = self.runs.last().is_some_and(|run| {
            run.kind == entry.kind
                && run.range.end() == start
                && (cost == 0 || run.range.len + cost <= self.limits.run_bytes)
        });
        let too_much = !self.taken.is_empty() && self.bytes + cost > self.limits.bytes;
        if too_much || (!joins && self.runs.len() >= self.limits.runs) {
            return false;
        }
        self.bytes += cost;
        self.taken.push(range);
        let piece = entry.place.map(|place| RunPiece { range, place, skip: entry.skip });
        match self.runs.last_mut().filter(|_| joins) {
            Some(run) => {
                run.range.len += range.len;
                run.pieces.extend(piece);
            }
            None => self.runs.push(Run { range, kind: entry.kind, pieces: Vec::from_iter(piece) }),
        }
        true
    }
}

pub(crate) fn place_of(record: &Record, segment: u64, offset: u64) -> Option<Place> {
    (record.kind == RecordKind::Write).then_some(Place {
        segment,
        offset,
        stored_len: record.stored_len,
        plain_len: record.range.len,
        compression: record.compression,
        stored_crc: record.stored_crc,
        crc: record.crc,
    })
}

#[cfg(test)]
mod tests;
