//! What takes more than one step: requests that are split, flushes, and work on units.

use std::collections::VecDeque;

use bytes::Bytes;
use holdfast_format::remap::Reason;
use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::layer::{Fail, Io, IoResult, Remap, Target, is_full, is_of_medium};
use super::map::SlotRef;
use super::place::Stage;
use super::placing::{Placing, Wish};
use super::spare::Spare;
use super::{PartialRead, RemapOp, RemapReport};
use crate::engine::{Job, More};
use crate::{AlignedBuf, DiskOp, OpId, OpKind, Outcome};

/// How many pieces of one task are under way at a time.
pub(super) const WINDOW: usize = 16;
/// So many units of one request are placed at most: all of the longest write.
const MAX_PLACED: usize = 8192;

/// What a task is for.
pub(super) enum Work {
    Request(Job),
    Flush(Job),
    Asked { op: OpId, what: RemapOp },
}

/// What a task does next, when nothing is under way for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Start,
    /// It has its lock, and splits its request.
    Split,
    Pieces,
    Place(Stage),
    /// It empties a spare that is to be removed.
    Evacuate,
    /// It writes headers of spares; or has just written one.
    Header,
    HeaderWritten,
    End,
}

/// A part of a request: on the main disk, or in slots that are neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    range: ByteRange,
    slot: Option<SlotRef>,
}

/// I/O of a task. The numbers are those of its units.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Piece(Piece),
    /// Reads something of a disk, to see whether it answers.
    Probe(Target, ByteRange),
    /// Reads what is in a unit's place.
    Fill(usize),
    /// Writes a unit into the place that is tried first, and reads it back.
    First(usize),
    FirstCheck(usize),
    /// Writes a unit into its new slot, and reads it back.
    Slot(usize),
    SlotCheck(usize),
    /// Writes a copy of the header of a spare.
    Header {
        spare: usize,
        copy: usize,
    },
}

/// See the module.
pub(super) struct Task {
    pub(super) work: Work,
    pub(super) phase: Phase,
    /// The units that it is about, in bytes.
    pub(super) hull: ByteRange,
    pub(super) lock: Option<u64>,
    /// What must come before it can go on: a lock, a flush, a round of the table.
    pub(super) waits: usize,
    /// It is in the queue of those that can go on.
    pub(super) queued: bool,
    /// Its units are out of the fast way.
    pub(super) begun: bool,
    /// I/O under way, and I/O to come.
    pub(super) running: usize,
    pub(super) steps: VecDeque<Step>,
    /// What is to be placed.
    pub(super) units: Vec<Placing>,
    /// Slots that were taken, with their units, and failed.
    pub(super) spoiled: Vec<(SlotRef, u64)>,
    /// Slots that were taken and committed, with their units, but whose table is weak.
    pub(super) given_up: Vec<(SlotRef, u64)>,
    /// The disks that answered when they were asked because something had failed.
    pub(super) answered: Vec<Target>,
    /// How often its units have been read.
    pub(super) reads: u8,
    /// Headers to write: spare and copy.
    pub(super) headers: VecDeque<(usize, usize)>,
    /// The spare whose header is being written, and those of which one copy could not be.
    pub(super) header_of: usize,
    pub(super) weak_headers: Vec<usize>,
    pub(super) report: RemapReport,
    pub(super) failure: Option<Errno>,
    buffer: Option<AlignedBuf>,
    bad: Vec<ByteRange>,
}

impl Task {
    pub(super) fn new(work: Work, hull: ByteRange) -> Self {
        Self {
            work,
            phase: Phase::Start,
            hull,
            lock: None,
            waits: 0,
            queued: false,
            begun: false,
            running: 0,
            steps: VecDeque::new(),
            units: Vec::new(),
            spoiled: Vec::new(),
            given_up: Vec::new(),
            answered: Vec::new(),
            reads: 0,
            headers: VecDeque::new(),
            header_of: 0,
            weak_headers: Vec::new(),
            report: RemapReport::default(),
            failure: None,
            buffer: None,
            bad: Vec::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waits == 0 && self.running == 0 && self.steps.is_empty()
    }

    /// The request, when it has one.
    fn request(&self) -> Option<&DiskOp> {
        match &self.work {
            Work::Request(job) | Work::Flush(job) => Some(&job.request),
            Work::Asked { .. } => None,
        }
    }

    /// Gives up what was not begun.
    fn fail(&mut self, errno: Errno) {
        self.failure.get_or_insert(errno);
        self.steps.clear();
    }
}

impl Remap {
    /// Goes on with a task for which nothing is under way.
    pub(super) fn run(&mut self, id: usize) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.queued = false;
        if !task.is_idle() {
            return;
        }
        if self.poisoned && task.phase != Phase::End && !matches!(task.work, Work::Flush(_)) {
            return self.end(id);
        }
        match (task.phase, &task.work) {
            (Phase::Start, Work::Flush(_)) => self.start_flush_task(id),
            (Phase::Start, Work::Request(_)) => {
                let hull = task.hull;
                self.go(id, Phase::Split);
                self.lock(id, hull, false);
            }
            (Phase::Start, Work::Asked { .. }) => self.start_asked(id),
            (Phase::Split, _) => self.split(id),
            (Phase::Pieces, _) => self.pieces_done(id),
            (Phase::Place(stage), _) => self.place(id, stage),
            (Phase::Evacuate, _) => self.evacuate(id),
            (Phase::Header, _) => self.next_header(id),
            (Phase::HeaderWritten, _) => self.header_written(id),
            (Phase::End, _) => self.end(id),
        }
    }

    pub(super) fn go(&mut self, id: usize, phase: Phase) {
        self.tasks[id].phase = phase;
    }

    /// Starts what the window has room for; a task that has nothing to do is run again.
    pub(super) fn launch(&mut self, id: usize) {
        if self.poisoned
            && let Some(task) = self.tasks.get_mut(id)
        {
            task.steps.clear();
        }
        while let Some(task) = self.tasks.get_mut(id)
            && task.running < WINDOW
            && let Some(step) = task.steps.pop_front()
        {
            task.running += 1;
            match self.io_of(id, step) {
                Some((target, request)) => self.send(target, request, Io::Step { task: id, step }),
                // Its place is gone; that is told like a failed read.
                None => {
                    let fail = Fail { errno: Errno::IO, fatal: false };
                    self.step_done(id, step, Err(fail));
                }
            }
        }
        self.wake_task(id);
    }

    fn io_of(&mut self, id: usize, step: Step) -> Option<(Target, DiskOp)> {
        match step {
            Step::Piece(piece) => self.io_of_piece(id, piece),
            Step::Header { spare, copy } => {
                let found = self.spares[spare].as_ref()?;
                let range = ByteRange::new(found.layout().header_offset(copy), 4096);
                let data = self.pool.copy_of(&found.header.encode(copy)).freeze();
                Some((Target::Spare(spare), DiskOp::Write { range, data, fua: false }))
            }
            step => self.io_of_unit(id, step),
        }
    }

    fn io_of_piece(&self, id: usize, piece: Piece) -> Option<(Target, DiskOp)> {
        let request = self.tasks[id].request()?;
        let (target, range) = match piece.slot {
            None => (Target::Main, piece.range),
            Some(slot) => (Target::Spare(slot.spare), self.slot_range(slot, piece.range)),
        };
        let request = match request {
            DiskOp::Read { .. } => DiskOp::Read { range, holes: false },
            DiskOp::Write { range: whole, data, .. } => {
                let start = usize::try_from(piece.range.offset - whole.offset).ok()?;
                let len = usize::try_from(range.len).ok()?;
                DiskOp::Write { range, data: data.slice(start..start + len), fua: false }
            }
            DiskOp::Discard { .. } if piece.slot.is_none() => DiskOp::Discard { range },
            DiskOp::WriteZeroes { unmap, .. } if piece.slot.is_none() => {
                DiskOp::WriteZeroes { range, unmap: *unmap, fua: false }
            }
            DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {
                let data = self.zeros(usize::try_from(range.len).ok()?);
                DiskOp::Write { range, data, fua: false }
            }
            DiskOp::Flush => return None,
        };
        Some((target, request))
    }

    pub(super) fn zeros(&self, len: usize) -> Bytes {
        let mut buffer = self.pool.get(len);
        buffer.fill(0);
        buffer.freeze()
    }

    fn start_flush_task(&mut self, id: usize) {
        self.go(id, Phase::End);
        let spares = self.spares.iter().enumerate();
        let dirty = spares.filter(|(_, spare)| spare.as_ref().is_some_and(Spare::needs_flush));
        let targets: Vec<_> = dirty.map(|(number, _)| Target::Spare(number)).collect();
        self.flush_for(id, targets.into_iter().chain([Target::Main]));
    }

    /// Cuts a request into runs: of the main disk, and of slots that are neighbours.
    fn split(&mut self, id: usize) {
        self.go(id, Phase::Pieces);
        let Some(request) = self.tasks[id].request() else { return };
        let (range, kind) = (request.range(), request.kind());
        if kind == OpKind::Read {
            let len = usize::try_from(range.len).unwrap_or(0);
            self.tasks[id].buffer = Some(self.pool.get(len));
        } else {
            self.counters.splits += 1;
        }
        let units = self.map.units(range);
        let (mut at, mut steps, mut lost) = (units.start, VecDeque::new(), Vec::new());
        let cut = |units: std::ops::Range<u64>| {
            let bytes = self.map.bytes(&units);
            let start = bytes.offset.max(range.offset);
            ByteRange::new(start, bytes.end().min(range.end()) - start)
        };
        while at < units.end {
            let special = self.map.next_special(at, units.end).unwrap_or(units.end);
            if special > at {
                steps.push_back(Step::Piece(Piece { range: cut(at..special), slot: None }));
            }
            at = special;
            if at == units.end {
                break;
            }
            let Some(place) = self.map.get(at) else {
                // Only work that has just begun elsewhere makes a unit special without a place.
                steps.push_back(Step::Piece(Piece { range: cut(at..at + 1), slot: None }));
                at += 1;
                continue;
            };
            if place.unread && kind == OpKind::Read {
                steps.push_back(Step::Piece(Piece { range: cut(at..at + 1), slot: None }));
                at += 1;
                continue;
            }
            if place.lost {
                lost.push(at);
                at += 1;
                continue;
            }
            let first = at;
            while at < units.end
                && (at - first) < 256
                && let Ok(step) = u32::try_from(at - first)
                && self.map.get(at).is_some_and(|found| {
                    let slot = SlotRef { slot: place.slot.slot + step, ..place.slot };
                    !found.lost && found.slot == slot
                })
            {
                at += 1;
            }
            let slot = Some(place.slot);
            steps.push_back(Step::Piece(Piece { range: cut(first..at), slot }));
        }
        self.tasks[id].steps = steps;
        for unit in lost {
            self.met_lost(id, unit);
        }
        self.launch(id);
    }

    /// A request touches a unit that is lost.
    fn met_lost(&mut self, id: usize, unit: u64) {
        let Some(request) = self.tasks[id].request() else { return };
        let (range, bytes) = (request.range(), self.map.bytes(&(unit..unit + 1)));
        if request.kind() == OpKind::Read {
            let start = bytes.offset.max(range.offset);
            let bad = ByteRange::new(start, bytes.end().min(range.end()) - start);
            self.tasks[id].bad.push(bad);
        } else {
            self.add_placing(id, unit, Reason::WriteError, None);
        }
    }

    /// A unit of a write has to find a place.
    fn add_placing(&mut self, id: usize, unit: u64, reason: Reason, failed: Option<SlotRef>) {
        let unit_len = self.map.unit_len();
        let bytes = self.map.bytes(&(unit..unit + 1));
        let Some(request) = self.tasks[id].request() else { return };
        let range = request.range();
        let start = bytes.offset.max(range.offset);
        let len = bytes.end().min(range.end()).saturating_sub(start);
        let (Ok(skip), Ok(len)) = (usize::try_from(start - range.offset), usize::try_from(len))
        else {
            return;
        };
        let data = match request {
            DiskOp::Write { data, .. } => data.slice(skip..skip + len),
            _ => self.zeros(len),
        };
        let mut placing = Placing::new(unit, Wish::Write, reason);
        placing.failed_slot = failed;
        if len as u64 == unit_len {
            placing.data = Some(data);
        } else {
            let at = usize::try_from(start - bytes.offset).unwrap_or(0);
            placing.patch = Some((at, data));
        }
        let task = &mut self.tasks[id];
        if task.units.len() == MAX_PLACED {
            task.fail(Errno::IO);
        } else {
            task.units.push(placing);
        }
    }

    /// The end of one step.
    pub(super) fn step_done(&mut self, id: usize, step: Step, result: IoResult) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        task.running -= 1;
        match step {
            Step::Piece(piece) => match result {
                Ok(Outcome::Data(data)) => {
                    let whole = task.request().map_or(0, |request| request.range().offset);
                    let start = usize::try_from(piece.range.offset - whole).unwrap_or(0);
                    if let Some(buffer) = &mut task.buffer {
                        buffer[start..start + data.len()].copy_from_slice(&data);
                    }
                }
                Ok(Outcome::Done | Outcome::Zeroes | Outcome::Logged(_)) => {}
                Err(fail) => self.piece_failed(id, piece, fail),
            },
            Step::Header { spare, .. } => {
                // One copy of the two is enough.
                match result {
                    Err(fail) if task.weak_headers.contains(&spare) => task.fail(fail.errno),
                    Err(_) => task.weak_headers.push(spare),
                    Ok(_) => {}
                }
            }
            step => self.unit_step_done(id, step, result),
        }
        self.launch(id);
    }

    fn piece_failed(&mut self, id: usize, piece: Piece, fail: Fail) {
        let Some(request) = self.tasks[id].request() else { return };
        let kind = request.kind();
        let curable = match piece.slot {
            // A slot of another spare may do, whatever is wrong with this one.
            Some(_) => true,
            None => self.is_medium(fail.errno) && kind != OpKind::Discard,
        };
        if fail.fatal || !curable {
            return self.tasks[id].fail(fail.errno);
        }
        let units = self.map.units(piece.range);
        if units.end - units.start > 1 {
            for half in self.halves(piece).into_iter().rev() {
                self.tasks[id].steps.push_front(Step::Piece(half));
            }
            return;
        }
        let counter = match (piece.slot, kind) {
            (Some(_), _) => &mut self.counters.spare_errors,
            (None, OpKind::Read) => &mut self.counters.read_errors,
            (None, _) => &mut self.counters.write_errors,
        };
        if !is_full(fail.errno) {
            *counter += 1;
        }
        if kind == OpKind::Read {
            self.tasks[id].bad.push(piece.range);
        } else {
            let failed = piece.slot.filter(|_| is_of_medium(fail.errno));
            self.add_placing(id, units.start, Reason::WriteError, failed);
        }
    }

    /// Cuts a piece at the border of units that is nearest to its middle.
    fn halves(&self, piece: Piece) -> [Piece; 2] {
        let unit = self.map.unit_len();
        let Piece { range, slot } = piece;
        let next = (range.offset / unit + 1) * unit;
        let middle = ((range.offset + range.len / 2) / unit * unit).max(next);
        let first = ByteRange::new(range.offset, middle - range.offset);
        let second = ByteRange::new(middle, range.end() - middle);
        let skipped = u32::try_from(middle / unit - range.offset / unit).unwrap_or(0);
        let behind = slot.map(|at| SlotRef { slot: at.slot + skipped, ..at });
        [Piece { range: first, slot }, Piece { range: second, slot: behind }]
    }

    fn pieces_done(&mut self, id: usize) {
        let task = &mut self.tasks[id];
        let lock = task.lock.take();
        if task.failure.is_some() || task.units.is_empty() {
            task.lock = lock;
            return self.end(id);
        }
        // Others may come between; they have as much right to be first as this request.
        if let Some(lock) = lock {
            self.unlock(lock);
        }
        self.begin_placing(id);
    }

    /// Takes the units of a task out of the fast way, when nobody else works on them.
    pub(super) fn begin_placing(&mut self, id: usize) {
        let task = &mut self.tasks[id];
        // In this order, so that neighbours get slots that are neighbours.
        task.units.sort_unstable_by_key(|placing| placing.unit);
        let first = task.units.iter().map(|placing| placing.unit).min().unwrap_or(0);
        let last = task.units.iter().map(|placing| placing.unit).max().unwrap_or(0);
        let range = self.map.bytes(&(first..last + 1));
        self.go(id, Phase::Place(Stage::Locked));
        self.lock(id, range, true);
    }

    /// The task is over: its lock is given up, and who asked for it is answered.
    pub(super) fn end(&mut self, id: usize) {
        let mut task = self.tasks.remove(id);
        if task.begun {
            for placing in &task.units {
                self.map.end(placing.unit);
            }
        }
        if let Some(lock) = task.lock {
            self.unlock(lock);
        }
        self.look_again();
        let failure = if self.poisoned { Some(Errno::IO) } else { task.failure };
        match task.work {
            Work::Asked { op, what } => self.answer_asked(op, &what, task.report, failure),
            Work::Flush(job) => {
                self.done(&job, failure.map_or(Ok(Outcome::Done), Err), None);
            }
            Work::Request(job) => {
                let (result, more) = match (failure, job.request.kind()) {
                    (Some(errno), _) => (Err(errno), None),
                    (None, OpKind::Read) if !task.bad.is_empty() => {
                        let bad = merged(std::mem::take(&mut task.bad));
                        let data = task.buffer.take().map(AlignedBuf::freeze).unwrap_or_default();
                        (
                            Err(Errno::IO),
                            Some(More::Partial(PartialRead { data, bad, wrong: Vec::new() })),
                        )
                    }
                    (None, OpKind::Read) => {
                        let data = task.buffer.take().map(AlignedBuf::freeze).unwrap_or_default();
                        (Ok(Outcome::Data(data)), None)
                    }
                    (None, _) => match task.report.first_failure {
                        Some(errno) if task.report.full > 0 => (Err(errno), Some(More::SpareFull)),
                        Some(errno) => (Err(errno), None),
                        None => (Ok(Outcome::Done), None),
                    },
                };
                self.done(&job, result, more);
            }
        }
    }
}

/// Sorted, neighbours made one.
pub(crate) fn merged(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable();
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end() >= range.offset => {
                last.len = last.end().max(range.end()) - last.offset;
            }
            _ => merged.push(range),
        }
    }
    merged
}
