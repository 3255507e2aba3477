//! The layer itself: which way a request goes, and what becomes of the I/O below.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_units::ByteRange;
use rustix::io::Errno;
use slab::Slab;

use super::locks::Locks;
use super::map::{Map, SlotRef};
use super::spare::{Backing, Spare};
use super::task::{Step, Task, Work};
use super::{Counters, Details, RemapWatch};
use crate::engine::{Done, Engine, Job, Mark, More, Tag};
use crate::file::BackingFile;
use crate::wake::Wake;
use crate::{BufferPool, Completion, DiskError, DiskErrorKind, DiskOp, OpId, OpKind, Outcome};

/// Marks on what goes to the main engine: requests that pass, by epoch; its flush; the rest is ours.
const FLUSH: usize = 2;
const OURS: usize = 3;

/// Why I/O below failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fail {
    pub(super) errno: Errno,
    /// Nobody knows what is durable: nothing can be done here any more.
    pub(super) fatal: bool,
}

pub(super) type IoResult = Result<Outcome, Fail>;

/// Where I/O goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Main,
    Spare(usize),
}

/// Whose I/O it is.
pub(super) enum Io {
    /// A request that went to a spare as it is.
    Hit { job: Job, lock: u64 },
    /// A step of a task.
    Step { task: usize, step: Step },
    /// A flush for a task.
    Flush { task: usize },
    /// A block of the round of this spare.
    Table { spare: usize, index: usize },
    /// The flush of the round of this spare.
    TableFlush { spare: usize },
}

struct Pending {
    io: Io,
    target: Target,
    kind: OpKind,
}

/// One flush of the main disk at a time, as in [`crate::Disk`]; those that come meanwhile share the next.
#[derive(Default)]
struct MainFlush {
    active: bool,
    running: Vec<usize>,
    waiting: Vec<usize>,
}

/// Requests that went past the layer to the main disk: how many of each epoch are under way, and who
/// waits for those of an epoch that has ended.
#[derive(Default)]
struct Past {
    count: [usize; 2],
    epoch: usize,
    active: Vec<usize>,
    pending: Vec<usize>,
}

pub(crate) struct Remap {
    pub(super) main: Engine,
    /// By number; a spare that was removed leaves its place empty.
    pub(super) spares: Vec<Option<Spare>>,
    pub(super) map: Map,
    pub(super) locks: Locks,
    pub(super) tasks: Slab<Task>,
    pub(super) runnable: VecDeque<usize>,
    pub(super) next_order: u64,
    pub(super) counters: Counters,
    pub(super) pool: BufferPool,
    pub(super) wake: Arc<Wake>,
    /// What is known of the main disk: its size, whether its errors are those of a medium.
    pub(super) details: Details,
    pub(super) poisoned: bool,
    /// The task that waits until a spare can leave.
    pub(super) to_leave: Option<usize>,
    /// Who is told of changes of the map.
    pub(super) watch: Option<RemapWatch>,
    ios: Slab<Pending>,
    finished: VecDeque<(usize, IoResult)>,
    past: Past,
    flush: MainFlush,
    ready: Vec<Done>,
    collected: Vec<Done>,
    completed: Vec<Completion>,
}

impl Remap {
    pub(super) fn new(
        main: Engine,
        spares: Vec<Spare>,
        map: Map,
        next_order: u64,
        details: Details,
        pool: &BufferPool,
        wake: &Arc<Wake>,
    ) -> Self {
        Self {
            main,
            spares: spares.into_iter().map(Some).collect(),
            map,
            locks: Locks::default(),
            tasks: Slab::new(),
            runnable: VecDeque::new(),
            next_order,
            counters: Counters::default(),
            pool: pool.clone(),
            wake: Arc::clone(wake),
            details,
            poisoned: false,
            to_leave: None,
            watch: None,
            ios: Slab::new(),
            finished: VecDeque::new(),
            past: Past::default(),
            flush: MainFlush::default(),
            ready: Vec::new(),
            collected: Vec::new(),
            completed: Vec::new(),
        }
    }

    /// Starts a request. Nearly all go past: to the main disk as they are.
    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        let range = job.request.range();
        if job.tag == Tag::Flush {
            let task = Task::new(Work::Flush(job), ByteRange::new(0, 0));
            self.start(task);
        } else if !self.map.touches(range) {
            let mark = Mark(self.past.epoch);
            let Some(done) = self.main.submit(Job { mark, ..job }) else {
                self.past.count[self.past.epoch] += 1;
                return None;
            };
            let done = self.screen(done);
            if done.is_some() {
                return done;
            }
        } else {
            self.submit_special(job);
        }
        self.pump();
        self.hand_over()
    }

    /// One that is over can be handed over at once; the others wait to be collected.
    fn hand_over(&mut self) -> Option<Done> {
        let done = self.ready.pop();
        if !self.ready.is_empty() {
            self.wake.signal();
        }
        done
    }

    fn submit_special(&mut self, job: Job) {
        let range = job.request.range();
        if let Some(at) = self.neighbours(&job.request)
            && let Some(lock) = self.locks.try_shared(range)
        {
            self.counters.hits += 1;
            self.send_slots(at, range, job, lock);
        } else {
            self.request(job);
        }
    }

    /// A request that needs more than to be passed on.
    fn request(&mut self, job: Job) {
        let hull = self.map.bytes(&self.map.units(job.request.range()));
        self.start(Task::new(Work::Request(job), hull));
    }

    /// Where a read or write lies when all its units are in slots that are neighbours.
    fn neighbours(&self, request: &DiskOp) -> Option<SlotRef> {
        if !matches!(request.kind(), OpKind::Read | OpKind::Write) {
            return None;
        }
        let units = self.map.units(request.range());
        let first = self.map.get(units.start).filter(|place| !place.lost)?.slot;
        let in_row = units.skip(1).zip(first.slot + 1..).all(|(unit, slot)| {
            let wanted = SlotRef { slot, ..first };
            self.map.get(unit).is_some_and(|place| !place.lost && place.slot == wanted)
        });
        in_row.then_some(first)
    }

    fn send_slots(&mut self, at: SlotRef, range: ByteRange, job: Job, lock: u64) {
        let range = self.slot_range(at, range);
        let request = match &job.request {
            DiskOp::Read { .. } => DiskOp::Read { range, holes: false },
            DiskOp::Write { data, .. } => DiskOp::Write { range, data: data.clone(), fua: false },
            // Nothing else has neighbours.
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => DiskOp::Flush,
        };
        self.send(Target::Spare(at.spare), request, Io::Hit { job, lock });
    }

    /// Where on its spare a range of the main disk lies whose first unit is in this slot.
    pub(super) fn slot_range(&self, at: SlotRef, range: ByteRange) -> ByteRange {
        let start = self.spares[at.spare].as_ref().map_or(0, |s| s.layout().slot_offset(at.slot));
        ByteRange::new(start + range.offset % self.map.unit_len(), range.len)
    }

    /// Whether an error says that blocks of the disk are bad.
    pub(super) fn is_medium(&self, errno: Errno) -> bool {
        self.details.has_medium && is_of_medium(errno)
    }

    /// Looks at the end of a request that went past: where blocks are bad, it is not the end.
    fn screen(&mut self, mut done: Done) -> Option<Done> {
        let Err(errno) = done.result else { return Some(done) };
        let curable = matches!(done.kind, OpKind::Read | OpKind::Write | OpKind::WriteZeroes);
        if !curable || done.tag == Tag::DurableFailed || !self.is_medium(errno) {
            return Some(done);
        }
        let Some(More::Request(request)) = done.more.take().map(|more| *more) else {
            return Some(done);
        };
        self.request(Job { op: done.op, tag: done.tag, mark: Mark::default(), request });
        None
    }

    pub(crate) fn kick(&mut self) {
        self.main.kick();
        for spare in self.spares.iter_mut().flatten() {
            if let Backing::Disk(disk) = &mut spare.backing {
                disk.kick();
            }
        }
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        let mut collected = std::mem::take(&mut self.collected);
        self.main.collect(&mut collected);
        for done in collected.drain(..) {
            match done.mark.0 {
                epoch @ 0..FLUSH => {
                    self.past.count[epoch] -= 1;
                    if let Some(done) = self.screen(done) {
                        out.push(done);
                    }
                }
                FLUSH => self.main_flushed(&done),
                ours => self.finished.push_back((ours - OURS, result_of(done))),
            }
        }
        self.collected = collected;
        if self.past.count[1 - self.past.epoch] == 0 && !self.past.active.is_empty() {
            self.drained();
        }
        self.collect_spares();
        self.pump();
        out.append(&mut self.ready);
    }

    fn collect_spares(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        for spare in self.spares.iter_mut().flatten() {
            let Backing::Disk(disk) = &mut spare.backing else { continue };
            disk.gather(&mut completed);
            while !spare.backlog.is_empty()
                && disk.has_room()
                && let Some((key, request)) = spare.backlog.pop_front()
            {
                completed.extend(disk.submit(OpId(key as u64), request));
            }
        }
        for Completion { op, result } in completed.drain(..) {
            let key = usize::try_from(op.0).unwrap_or(usize::MAX);
            self.finished.push_back((key, result.map_err(|error| fail_of(&error))));
        }
        self.completed = completed;
    }

    /// Whether every job is done when `submit` returns.
    pub(crate) fn is_inline(&self) -> bool {
        self.main.is_inline()
            && self.tasks.is_empty()
            && self.ios.is_empty()
            && self.ready.is_empty()
    }

    pub(crate) fn flush_here(&mut self, here: bool) {
        self.main.flush_here(here);
    }

    /// The next read of this range asks the device, where it is one of the main disk.
    pub(crate) fn uncache_main(&self, range: ByteRange) {
        self.main.uncache(range);
    }

    pub(crate) fn in_memory(&self, range: ByteRange) -> Option<&Arc<BackingFile>> {
        if self.map.touches(range) { None } else { self.main.in_memory(range) }
    }

    /// Whether a part of the range is a spare.
    pub(crate) fn is_reserved(&self, range: ByteRange) -> bool {
        self.spares.iter().flatten().any(|spare| match spare.backing {
            Backing::Region(offset) => {
                ByteRange::new(offset, spare.layout().length()).overlaps(range)
            }
            Backing::Disk(_) => false,
        })
    }

    /// Sends I/O; its end comes to `finish`, later or in the same call of `pump`.
    pub(super) fn send(&mut self, target: Target, request: DiskOp, io: Io) {
        let kind = request.kind();
        let key = self.ios.insert(Pending { io, target, kind });
        if let (Target::Spare(number), OpKind::Flush) = (target, kind)
            && let Some(spare) = &mut self.spares[number]
        {
            spare.dirty = false;
            spare.flushing += 1;
        }
        let offset = match target {
            Target::Main => 0,
            Target::Spare(number) => match self.spares[number].as_mut() {
                None => {
                    self.finished.push_back((key, Err(Fail { errno: Errno::IO, fatal: false })));
                    return;
                }
                Some(Spare { backing: Backing::Region(offset), .. }) => *offset,
                Some(Spare { backing: Backing::Disk(disk), backlog, .. }) => {
                    if !disk.has_room() {
                        backlog.push_back((key, request));
                    } else if let Some(done) = disk.submit(OpId(key as u64), request) {
                        let result = done.result.map_err(|error| fail_of(&error));
                        self.finished.push_back((key, result));
                    }
                    return;
                }
            },
        };
        if request.kind() == OpKind::Flush {
            self.flush.waiting.push(key);
            self.start_main_flush();
            return;
        }
        let (op, mark) = (OpId(0), Mark(key + OURS));
        let job = Job { op, tag: Tag::Plain, mark, request: shifted(request, offset) };
        if let Some(done) = self.main.submit(job) {
            self.finished.push_back((key, result_of(done)));
        }
    }

    /// Whether I/O of a spare is under way.
    pub(super) fn has_io(&self, number: usize) -> bool {
        self.ios.iter().any(|(_, pending)| pending.target == Target::Spare(number))
    }

    fn start_main_flush(&mut self) {
        while !self.flush.active && !self.flush.waiting.is_empty() {
            std::mem::swap(&mut self.flush.running, &mut self.flush.waiting);
            self.flush.active = true;
            let (op, mark) = (OpId(0), Mark(FLUSH));
            let job = Job { op, tag: Tag::Flush, mark, request: DiskOp::Flush };
            if let Some(done) = self.main.submit(job) {
                self.main_flushed(&done);
            }
        }
    }

    fn main_flushed(&mut self, done: &Done) {
        self.flush.active = false;
        for key in self.flush.running.drain(..) {
            let result = match &done.result {
                Ok(_) => Ok(Outcome::Done),
                Err(errno) => Err(Fail { errno: *errno, fatal: true }),
            };
            self.finished.push_back((key, result));
        }
        if done.result.is_err() {
            self.poisoned = true;
        }
        if !self.flush.waiting.is_empty() {
            self.start_main_flush();
        }
    }

    /// Works until nothing is left that can be done without waiting.
    pub(super) fn pump(&mut self) {
        loop {
            if let Some((key, result)) = self.finished.pop_front() {
                self.finish(key, result);
            } else if let Some(task) = self.runnable.pop_front() {
                self.run(task);
            } else {
                return;
            }
        }
    }

    fn finish(&mut self, key: usize, result: IoResult) {
        let Some(Pending { io, target, kind }) = self.ios.try_remove(key) else { return };
        if let Target::Spare(number) = target
            && let Some(spare) = &mut self.spares[number]
        {
            match kind {
                OpKind::Read => {}
                OpKind::Flush => spare.flushing = spare.flushing.saturating_sub(1),
                OpKind::Write | OpKind::Discard | OpKind::WriteZeroes => spare.dirty = true,
            }
            if spare.leaving {
                self.look_again();
            }
        }
        // Also that of a spare which is not there: what was to be durable is not.
        let is_fatal = result.is_err_and_fatal() || (kind == OpKind::Flush && result.is_err());
        if is_fatal && !self.bears_nothing(target) {
            self.poison();
        }
        match io {
            Io::Hit { job, lock } => self.hit_done(job, lock, result),
            Io::Step { task, step } => self.step_done(task, step, result),
            Io::Flush { task } => {
                if let Err(fail) = result {
                    self.header_not_flushed(task, fail.errno);
                }
                self.arrived(task);
            }
            Io::Table { spare, index } => self.table_written(spare, index, result.is_ok()),
            Io::TableFlush { spare } => self.table_flushed(spare),
        }
    }

    fn hit_done(&mut self, job: Job, lock: u64, result: IoResult) {
        self.unlock(lock);
        match result {
            Ok(outcome) => {
                self.done(&job, Ok(outcome), None);
            }
            // Once more, with all that can be done about it.
            Err(_) => self.request(job),
        }
    }

    /// Hands back the end of a request.
    pub(super) fn complete(&mut self, done: Done) {
        self.ready.push(done);
    }

    /// Nothing that comes later can be believed. Who waits for the table waits in vain.
    pub(super) fn poison(&mut self) {
        if !self.poisoned {
            tracing::error!(
                "a spare or its disk could not be flushed; the disk is not used any more"
            );
        }
        self.poisoned = true;
    }

    pub(super) fn start(&mut self, task: Task) {
        let id = self.tasks.insert(task);
        self.wake_task(id);
    }

    /// Puts a task into the queue when nothing is under way for it.
    pub(super) fn wake_task(&mut self, id: usize) {
        if let Some(task) = self.tasks.get_mut(id)
            && task.is_idle()
            && !std::mem::replace(&mut task.queued, true)
        {
            self.runnable.push_back(id);
        }
    }

    /// One of the things that a task waits for has come.
    pub(super) fn arrived(&mut self, task: usize) {
        if let Some(found) = self.tasks.get_mut(task) {
            found.waits = found.waits.saturating_sub(1);
            self.wake_task(task);
        }
    }

    /// Asks for a lock for a task, which goes on when it has it.
    pub(super) fn lock(&mut self, task: usize, range: ByteRange, exclusive: bool) {
        let (id, granted) = self.locks.acquire(range, exclusive, task);
        self.tasks[task].lock = Some(id);
        self.tasks[task].waits += 1;
        if granted {
            self.arrived(task);
        }
    }

    pub(super) fn unlock(&mut self, id: u64) {
        let mut granted = Vec::new();
        self.locks.release(id, &mut granted);
        for task in granted {
            self.arrived(task);
        }
    }

    /// Has a task go on when every request has ended that is with the main disk now, past us.
    pub(super) fn drain(&mut self, task: usize) {
        self.tasks[task].waits += 1;
        self.past.pending.push(task);
        if self.past.active.is_empty() {
            self.next_epoch();
        }
    }

    fn next_epoch(&mut self) {
        // Nobody waits for the other epoch, so none of its requests is under way.
        self.past.active = std::mem::take(&mut self.past.pending);
        self.past.epoch = 1 - self.past.epoch;
        if self.past.count[1 - self.past.epoch] == 0 {
            self.drained();
        }
    }

    fn drained(&mut self) {
        for task in std::mem::take(&mut self.past.active) {
            self.arrived(task);
        }
        if !self.past.pending.is_empty() {
            self.next_epoch();
        }
    }

    /// Has a task go on when the disks are flushed.
    pub(super) fn flush_for(&mut self, task: usize, targets: impl IntoIterator<Item = Target>) {
        for target in targets {
            self.tasks[task].waits += 1;
            self.send(target, DiskOp::Flush, Io::Flush { task });
        }
    }

    /// Has the next read of a range ask the device.
    pub(super) fn uncache(&self, target: Target, range: ByteRange) {
        match target {
            Target::Main => self.main.uncache(range),
            Target::Spare(number) => match self.spares[number].as_ref().map(|s| &s.backing) {
                Some(Backing::Disk(disk)) => disk.uncache(range),
                Some(Backing::Region(at)) => {
                    self.main.uncache(ByteRange::new(range.offset + at, range.len));
                }
                None => {}
            },
        }
    }

    /// The end of a request: of a part that was split, or after work on bad sectors.
    pub(super) fn done(&mut self, job: &Job, result: Result<Outcome, Errno>, more: Option<More>) {
        let (kind, range) = (job.request.kind(), job.request.range());
        let tag = match (job.tag, &result) {
            // What went elsewhere or in pieces was written without it.
            (_, Ok(_)) if is_durable(&job.request) => Tag::FlushAfter,
            (_, Err(_)) if self.poisoned && kind != OpKind::Flush => Tag::DurableFailed,
            (tag, _) => tag,
        };
        let more = more.map(Box::new);
        self.complete(Done { op: job.op, tag, mark: Mark::default(), kind, range, result, more });
    }

    /// Has a spare wake whom this disk wakes; whether it can be had.
    pub(super) fn fits(&self, spare: &mut Spare) -> bool {
        match &mut spare.backing {
            Backing::Region(_) => true,
            Backing::Disk(disk) => {
                disk.info().block_size <= self.details.block_size
                    && !disk.info().read_only
                    && disk.rewire(&self.wake).is_ok()
            }
        }
    }

    pub(super) fn take_ready(&mut self) -> Option<Done> {
        self.ready.pop()
    }

    pub(super) const fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The main disk has grown.
    pub(crate) fn grown_to(&mut self, size: u64) {
        self.details.size = self.details.size.max(size);
    }

    /// The seconds since 1970, as the table has them.
    pub(super) fn now() -> u32 {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }
}

trait Fatal {
    fn is_err_and_fatal(&self) -> bool;
}

impl Fatal for IoResult {
    fn is_err_and_fatal(&self) -> bool {
        matches!(self, Err(Fail { fatal: true, .. }))
    }
}

fn result_of(done: Done) -> IoResult {
    let fatal = done.tag == Tag::DurableFailed;
    done.result.map_err(|errno| Fail { errno, fatal })
}

fn fail_of(error: &DiskError) -> Fail {
    let fatal = matches!(error.kind, DiskErrorKind::FlushFailed | DiskErrorKind::Poisoned);
    let errno = match error.kind {
        DiskErrorKind::NoSpace => Errno::NOSPC,
        _ => error.errno.map_or(Errno::IO, Errno::from_raw_os_error),
    };
    Fail { errno, fatal }
}

/// Whether an error is one that bad blocks make, of a disk that has a medium.
pub(super) fn is_of_medium(errno: Errno) -> bool {
    matches!(errno, Errno::IO | Errno::REMOTEIO | Errno::NODATA | Errno::ILSEQ | Errno::BADMSG)
}

/// Whether an error says that a filesystem has no room.
pub(super) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::NOSPC | Errno::DQUOT)
}

const fn is_durable(request: &DiskOp) -> bool {
    matches!(request, DiskOp::Write { fua: true, .. } | DiskOp::WriteZeroes { fua: true, .. })
}

fn shifted(request: DiskOp, offset: u64) -> DiskOp {
    let shift = |range: ByteRange| ByteRange::new(range.offset + offset, range.len);
    match request {
        DiskOp::Read { range, holes } => DiskOp::Read { range: shift(range), holes },
        DiskOp::Write { range, data, fua } => DiskOp::Write { range: shift(range), data, fua },
        DiskOp::Discard { range } => DiskOp::Discard { range: shift(range) },
        DiskOp::WriteZeroes { range, unmap, fua } => {
            DiskOp::WriteZeroes { range: shift(range), unmap, fua }
        }
        DiskOp::Flush => DiskOp::Flush,
    }
}
