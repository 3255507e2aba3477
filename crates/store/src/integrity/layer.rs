//! The layer itself: what is under way, and what becomes of it.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_units::{BLOCK_SIZE, ByteRange};
use rustix::io::Errno;
use slab::Slab;

use super::busy::Busy;
use super::rounds::{FileIo, Rounds};
use super::table::{Effect, Table};
use super::{ChecksumFile, ChecksumHandle, ChecksumMode, covered};
use crate::engine::{Done, Engine, Job, Mark, Tag};
use crate::wake::Wake;
use crate::{BufferPool, Completion, DiskError, DiskOp, OpId, Outcome, RemapOp};

/// The flush of the disk that the layer shares with everybody.
const FLUSH: OpId = OpId(u64::MAX);

/// What is to be done below.
pub(super) enum Ask {
    Io(Job),
    Remap(OpId, RemapOp),
}

impl Ask {
    fn range(&self) -> ByteRange {
        match self {
            Self::Io(job) => job.request.range(),
            Self::Remap(_, what) => what.range(),
        }
    }
}

/// What an operation means for the sums.
pub(super) enum What {
    /// Nothing.
    Pass,
    /// It is compared with them. `alone`: for the second time, while nobody writes there.
    Read { alone: bool },
    /// It changes them.
    Write(Effect),
    /// Blocks without sums get them.
    Build,
}

/// An operation that is under way.
pub(super) struct Op {
    pub(super) op: OpId,
    /// The blocks that it touches and that have sums.
    pub(super) blocks: Range<u64>,
    pub(super) what: What,
    /// It has not begun.
    pub(super) ask: Option<Ask>,
    /// It is over, apart from what is compared with sums that are not there yet.
    pub(super) parked: Option<Done>,
}

/// One flush at a time, as in [`crate::Disk`]; those that come meanwhile share the next.
#[derive(Default)]
struct MainFlush {
    active: bool,
    running: Vec<Flusher>,
    waiting: Vec<Flusher>,
}

enum Flusher {
    /// A flush that was asked for.
    Asked(Job),
    /// What settles.
    Settle,
}

pub(crate) struct Integrity {
    pub(crate) below: Engine,
    pub(super) handle: ChecksumHandle,
    pub(super) pool: BufferPool,
    wake: Arc<Wake>,
    /// How many blocks have sums, when there are sums.
    pub(super) covered: u64,
    pub(super) sums: Option<Kept>,
    pub(super) ops: Slab<Op>,
    /// What is changed just now.
    pub(super) busy: Busy,
    /// Operations that wait for their turn or for a page, in order.
    pub(super) waiting: VecDeque<usize>,
    pub(super) retry: bool,
    /// There is to be another file, or none, when nothing is under way. Until then all wait.
    change: Option<Option<ChecksumFile>>,
    held: VecDeque<Ask>,
    /// A flush failed, or the sums failed and may be believed again one day: nothing works any more.
    pub(super) dead: bool,
    flush: MainFlush,
    pub(super) ready: Vec<Done>,
    collected: Vec<Done>,
    completed: Vec<Completion>,
}

/// The sums, and their file.
pub(super) struct Kept {
    pub(super) table: Table,
    pub(super) file: ChecksumFile,
    /// The file failed; nothing is kept any more.
    pub(super) failed: bool,
    pub(super) ios: Slab<FileIo>,
    pub(super) backlog: VecDeque<(usize, DiskOp)>,
    pub(super) landed: VecDeque<(usize, Result<Outcome, DiskError>)>,
    /// Pages that are read, and who waits for each.
    pub(super) loads: HashMap<u64, Vec<usize>>,
    pub(super) rounds: Rounds,
}

impl Integrity {
    pub(super) fn new(
        below: Engine,
        blocks: u64,
        file: Option<ChecksumFile>,
        handle: ChecksumHandle,
        pool: &BufferPool,
        wake: &Arc<Wake>,
    ) -> Self {
        let mut layer = Self {
            below,
            handle,
            pool: pool.clone(),
            wake: Arc::clone(wake),
            covered: blocks,
            sums: None,
            ops: Slab::new(),
            busy: Busy::default(),
            waiting: VecDeque::new(),
            retry: false,
            change: file.map(Some),
            held: VecDeque::new(),
            dead: false,
            flush: MainFlush::default(),
            ready: Vec::new(),
            collected: Vec::new(),
            completed: Vec::new(),
        };
        layer.apply_change();
        layer.tell();
        layer
    }

    /// The sums, when they are kept.
    pub(super) fn kept(&mut self) -> Option<&mut Kept> {
        self.sums.as_mut().filter(|kept| !kept.failed)
    }

    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        self.take_in(Ask::Io(job));
        self.pump();
        self.hand_over()
    }

    pub(crate) fn ask(&mut self, op: OpId, what: RemapOp) -> Option<Done> {
        self.take_in(Ask::Remap(op, what));
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

    fn take_in(&mut self, ask: Ask) {
        if self.change.is_some() {
            return self.held.push_back(ask);
        }
        let ask = match ask {
            Ask::Io(job) if self.dead => {
                let done = job.done(Err(Errno::IO));
                return self.ready.push(done);
            }
            Ask::Io(job) if job.tag == Tag::Flush => {
                self.flush.waiting.push(Flusher::Asked(job));
                return self.start_flush();
            }
            ask => ask,
        };
        let op = match &ask {
            Ask::Io(job) => job.op,
            Ask::Remap(op, _) => *op,
        };
        let limit = if self.kept().is_some() { self.covered } else { 0 };
        let blocks = covered(ask.range(), limit);
        let what = self.meaning(&ask, &blocks);
        let writes = matches!(what, What::Write(_));
        let key = self.ops.insert(Op { op, blocks, what, ask: Some(ask), parked: None });
        if !writes {
            return self.start(key);
        }
        if let Some(kept) = self.kept() {
            kept.rounds.written_to();
        }
        self.enqueue(key);
    }

    /// Begins an operation below.
    pub(super) fn start(&mut self, key: usize) {
        let id = OpId(key as u64);
        let done = match self.ops[key].ask.take() {
            Some(Ask::Io(job)) => {
                let mark = Mark::default();
                self.below.submit(Job { op: id, mark, tag: job.tag, request: job.request })
            }
            Some(Ask::Remap(_, what)) => self.below.ask(id, what),
            None => None,
        };
        if let Some(done) = done {
            self.landed(done);
        }
    }

    /// Something ended below.
    fn landed(&mut self, done: Done) {
        if done.op == FLUSH {
            return self.flushed(&done);
        }
        let Ok(key) = usize::try_from(done.op.0) else { return };
        match self.ops.get(key).map(|op| &op.what) {
            None => {}
            Some(What::Pass) => self.over(key, done),
            Some(What::Read { .. }) => self.was_read(key, done),
            Some(What::Write(_)) => self.was_written(key, done),
            Some(What::Build) => self.was_built(key, &done),
        }
    }

    /// An operation is over; who asked for it is told.
    pub(super) fn over(&mut self, key: usize, mut done: Done) {
        done.op = self.ops.remove(key).op;
        self.ready.push(done);
    }

    /// Makes what was written durable, for the layer itself.
    pub(super) fn flush_for_settling(&mut self) {
        self.flush.waiting.push(Flusher::Settle);
        self.start_flush();
    }

    fn start_flush(&mut self) {
        while !self.flush.active && !self.flush.waiting.is_empty() {
            std::mem::swap(&mut self.flush.running, &mut self.flush.waiting);
            self.flush.active = true;
            let (tag, request) = match self.below.merges_flushes() {
                true => (Tag::OwnFlush, DiskOp::Flush),
                false => (Tag::Flush, DiskOp::Flush),
            };
            let job = Job { op: FLUSH, tag, mark: Mark::default(), request };
            if let Some(done) = self.below.submit(job) {
                self.flushed(&done);
            }
        }
    }

    fn flushed(&mut self, done: &Done) {
        self.flush.active = false;
        let failure = done.result.as_ref().err().copied();
        self.dead |= failure.is_some();
        for flusher in std::mem::take(&mut self.flush.running) {
            match flusher {
                Flusher::Asked(job) => {
                    let done = job.done(failure.map_or(Ok(Outcome::Done), Err));
                    self.ready.push(done);
                }
                Flusher::Settle => self.disk_is_flushed(failure.is_none()),
            }
        }
        self.start_flush();
    }

    pub(crate) fn kick(&mut self) {
        self.below.kick();
        if let Some(kept) = &mut self.sums {
            kept.file.disk.kick();
        }
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        self.heed();
        let mut collected = std::mem::take(&mut self.collected);
        self.below.collect(&mut collected);
        for done in collected.drain(..) {
            self.landed(done);
        }
        self.collected = collected;
        if let Some(kept) = &mut self.sums {
            kept.collect(&mut self.completed);
        }
        self.pump();
        out.append(&mut self.ready);
    }

    /// Does what others want.
    fn heed(&mut self) {
        let Some(wishes) = self.handle.take() else { return };
        if wishes.change.is_some() {
            self.change = wishes.change;
        }
        self.tick(wishes.ticks, wishes.pages);
    }

    /// Works until nothing is left that can be done without waiting.
    pub(super) fn pump(&mut self) {
        loop {
            let landed = self.sums.as_mut().and_then(|kept| kept.landed.pop_front());
            if let Some((key, result)) = landed {
                self.file_landed(key, &result);
            } else if std::mem::take(&mut self.retry) {
                self.retry_waiting();
            } else if !self.apply_change() && !self.go_on() {
                break;
            }
        }
        self.tell();
    }

    /// Whether there is to be another file, or none.
    pub(super) const fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Changes the file when nothing is under way. Whether it was changed.
    fn apply_change(&mut self) -> bool {
        let idle = |kept: &Kept| kept.ios.is_empty() && kept.rounds.are_idle();
        if self.change.is_none()
            || !self.ops.is_empty()
            || self.flush.active
            || !self.sums.as_ref().is_none_or(idle)
        {
            return false;
        }
        self.sums = None;
        self.handle.figures().say(None);
        if let Some(file) = self.change.take().flatten() {
            self.sums = self.take_into_use(file);
        }
        for ask in std::mem::take(&mut self.held) {
            self.take_in(ask);
        }
        self.tell();
        true
    }

    fn take_into_use(&mut self, mut file: ChecksumFile) -> Option<Kept> {
        let made = file.disk.rewire(&self.wake).and_then(|()| file.grow(self.covered * BLOCK_SIZE));
        if let Err(error) = made {
            self.handle.figures().say(Some(format!("the checksums cannot be used: {error}")));
            return None;
        }
        let table = Table::new(self.covered, std::mem::take(&mut file.states));
        Some(Kept {
            table,
            file,
            failed: false,
            ios: Slab::new(),
            backlog: VecDeque::new(),
            landed: VecDeque::new(),
            loads: HashMap::new(),
            rounds: Rounds::default(),
        })
    }

    fn tell(&self) {
        let figures = self.handle.figures();
        figures.covered.store(self.covered * BLOCK_SIZE, Ordering::Relaxed);
        match &self.sums {
            None => figures.tell(ChecksumMode::Off, 0, 0, 0),
            Some(kept) => {
                let (pages, complete) = (kept.table.page_count(), kept.table.complete_count());
                let mode = match kept.failed {
                    true => ChecksumMode::Failed,
                    false if complete == pages => ChecksumMode::On,
                    false => ChecksumMode::Building,
                };
                figures.tell(mode, pages, complete, kept.table.open.len() as u64);
            }
        }
    }

    pub(crate) fn grown_to(&mut self, size: u64) {
        self.below.grown_to(size);
        self.covered = self.covered.max(size / BLOCK_SIZE);
        let blocks = self.covered;
        let Some(kept) = self.kept() else { return };
        match kept.file.grow(blocks * BLOCK_SIZE) {
            Ok(()) => {
                if let Some(page) = kept.table.grow(blocks) {
                    kept.rounds.unmark(page);
                }
            }
            Err(error) => self.give_up(&format!("their file could not be made longer: {error}")),
        }
        self.tell();
    }

    /// Whether every job is done when `submit` returns.
    pub(crate) fn is_inline(&self) -> bool {
        self.below.is_inline()
            && !self.handle.is_asked()
            && self.ops.is_empty()
            && self.ready.is_empty()
            && self.change.is_none()
            && self.sums.as_ref().is_none_or(|kept| {
                kept.ios.is_empty() && kept.rounds.are_idle() && kept.file.disk.is_inline()
            })
    }

    /// The file below, where reads need not be compared.
    pub(crate) fn in_memory(&self, range: ByteRange) -> Option<&Arc<crate::file::BackingFile>> {
        if self.compares() { None } else { self.below.in_memory(range) }
    }

    /// Whether what is read is compared, or will be in a moment.
    pub(crate) fn compares(&self) -> bool {
        self.sums.as_ref().is_some_and(|kept| !kept.failed) || self.change.is_some()
    }

    /// Whether this is a request whose end nobody has to compare with anything.
    fn meaning(&self, ask: &Ask, blocks: &Range<u64>) -> What {
        if blocks.is_empty() {
            return What::Pass;
        }
        match ask {
            Ask::Io(job) => match &job.request {
                DiskOp::Read { .. } => What::Read { alone: false },
                DiskOp::Write { range, data, .. } => What::Write(effect_of(*range, data, blocks)),
                DiskOp::WriteZeroes { .. } => What::Write(Effect::Zeroes),
                DiskOp::Discard { .. } => What::Write(Effect::Unknown),
                DiskOp::Flush => What::Pass,
            },
            Ask::Remap(_, RemapOp::Repair { range, data }) if range.is_aligned() => {
                What::Write(effect_of(*range, data, blocks))
            }
            Ask::Remap(_, RemapOp::Repair { .. }) => What::Write(Effect::Unknown),
            Ask::Remap(..) => What::Pass,
        }
    }
}

/// The sums of what is written.
fn effect_of(range: ByteRange, data: &[u8], blocks: &Range<u64>) -> Effect {
    use holdfast_format::checksums::block_sum;
    debug_assert_eq!(range.blocks().start, blocks.start);
    let mut sums = blocks.clone().zip(data.chunks_exact(4096)).map(|(n, data)| block_sum(n, data));
    match (blocks.end - blocks.start, sums.next()) {
        (1, Some(sum)) => Effect::One(sum),
        (_, first) => Effect::Many(first.into_iter().chain(sums).collect()),
    }
}
