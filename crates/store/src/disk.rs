//! What holds for every engine: bounds, alignment, merging of flushes, poison.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange};

use crate::engine::external::{External, ExternalDisk};
use crate::engine::fault::Fault;
use crate::engine::uring::Uring;
use crate::engine::{Done, Engine, Job, Mark, More, Tag};
use crate::file::BackingFile;
use crate::open::is_in_memory;
use crate::replace::{Link, LinkEnd, Replace};
use crate::wake::Wake;
use crate::{
    BufferPool, Completion, DiskError, DiskErrorKind, DiskOp, FaultHandle, FaultRule, MAX_TRANSFER,
    MemoryStore, OpId, OpKind, Outcome, PartialRead, RemapOp, RemapReport, ReplaceHandle,
};

/// What a disk is on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BackingKind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
    /// Nothing but memory.
    Memory,
    /// Another machine.
    Remote,
}

/// How a disk gets its work done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EngineKind {
    /// System calls on the calling thread.
    Inline,
    /// The page cache, and io_uring for what it does not have.
    Cached,
    /// io_uring.
    Uring,
    /// Threads that block.
    Blocking,
    /// A [`MemoryStore`].
    Memory,
    /// An [`ExternalDisk`].
    External,
}

impl EngineKind {
    /// One word for it: `inline`, `cached`, `uring`, `blocking`, `memory`, `external`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inline => "inline",
            Self::Cached => "cached",
            Self::Uring => "uring",
            Self::Blocking => "blocking",
            Self::Memory => "memory",
            Self::External => "external",
        }
    }
}

/// What is known of a disk, for those who drive it and for people.
#[derive(Clone, Debug)]
pub struct DiskInfo {
    /// Where it was opened; `None` for memory.
    pub path: Option<PathBuf>,
    /// What it is on.
    pub kind: BackingKind,
    /// How it works.
    pub engine: EngineKind,
    /// Usable bytes: the backing's size, rounded down to a multiple of 4096 unless
    /// [`crate::OpenOptions::exact_size`] asked for all of it.
    pub size: u64,
    /// Opened for reading only.
    pub read_only: bool,
    /// Whether the page cache is bypassed (`O_DIRECT`).
    pub direct: bool,
    /// Ranges must be multiples of this: the logical block size with `direct`, otherwise 1.
    pub block_size: u32,
    /// Whether a discard is likely to give space back.
    pub discard: bool,
    /// Whether a discarded range reads as zeros.
    pub discard_zeroes: bool,
    /// Whether zeroing that may give space back is done without writing zeros.
    pub fast_zeroes: bool,
    /// Whether the device below seeks; `None` when that could not be found out.
    pub rotational: Option<bool>,
    /// Whether the device below has a volatile write cache, so that flushes matter.
    pub volatile_cache: Option<bool>,
    /// Why it does not work as it was asked to, a sentence each: no `O_DIRECT`, no io_uring.
    pub notes: Vec<String>,
}

/// The backing device of one resource. See the crate's documentation for what it guarantees.
///
/// It may be opened on one thread and moved to another, but once it is driven it must stay on that
/// thread, which must outlive what is in flight: when a thread ends, the kernel cancels its
/// requests.
///
/// Dropping it waits (10 seconds at most) for what the kernel works on. Whether operations that
/// were not completed have been done is then unknown.
pub struct Disk {
    engine: Engine,
    info: DiskInfo,
    pool: BufferPool,
    wake: Arc<Wake>,
    flusher: Flusher,
    poisoned: bool,
    in_flight: usize,
    max_in_flight: usize,
    /// Completed, and not yet handed to the caller.
    ready: Vec<Completion>,
    collected: Vec<Done>,
    /// What is to be said of operations that were completed lately.
    details: VecDeque<(OpId, More)>,
    /// To those who may have the backing replaced.
    replace: Option<LinkEnd>,
}

/// Of so many operations that ended lately more can be told than their completion says.
const MAX_DETAILS: usize = 1024;

/// At most one flush is with the engine. It begins with the next kick, for all that wait for one
/// by then; those that come later share the next one.
///
/// Besides being cheaper, this is what makes a failed flush safe: the kernel reports a failed
/// write-back once per open file, so of two flushes at the same time one could get the error and
/// the other be told that all is well.
#[derive(Default)]
struct Flusher {
    active: bool,
    running: Vec<Waiter>,
    waiting: Vec<Waiter>,
}

#[derive(Clone, Copy)]
struct Waiter {
    op: OpId,
    kind: OpKind,
    range: ByteRange,
}

/// A part of a disk that lives in memory, as it is when it is sent.
#[derive(Clone)]
pub struct Lent {
    file: Arc<BackingFile>,
    range: ByteRange,
}

impl Lent {
    /// Sends to a socket what is behind the first `skip` bytes of the part, without waiting; how many
    /// bytes it took.
    ///
    /// # Errors
    /// What the socket says; another error when somebody has cut the file meanwhile.
    pub fn send(&self, socket: BorrowedFd<'_>, skip: u64) -> io::Result<usize> {
        let skip = skip.min(self.range.len);
        self.file.send(socket, ByteRange::new(self.range.offset + skip, self.range.len - skip))
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").field("range", &self.range).finish_non_exhaustive()
    }
}

/// The eventfd of a disk, for other disks that are to signal it.
#[derive(Clone)]
pub struct Bell(Arc<Wake>);

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn new(
        engine: Engine,
        info: DiskInfo,
        pool: BufferPool,
        wake: Arc<Wake>,
        max_in_flight: usize,
    ) -> Self {
        Self {
            engine,
            info,
            pool,
            wake,
            flusher: Flusher::default(),
            poisoned: false,
            in_flight: 0,
            max_in_flight,
            ready: Vec::new(),
            collected: Vec::new(),
            details: VecDeque::new(),
            replace: None,
        }
    }

    /// A disk whose content is `store`.
    ///
    /// # Errors
    /// When the process can open no more files (for [`Self::event_fd`]).
    pub fn memory(store: &MemoryStore, pool: &BufferPool) -> io::Result<Self> {
        let info = DiskInfo {
            path: None,
            kind: BackingKind::Memory,
            engine: EngineKind::Memory,
            size: store.size(),
            read_only: false,
            direct: false,
            block_size: 1,
            discard: true,
            discard_zeroes: true,
            fast_zeroes: true,
            rotational: Some(false),
            volatile_cache: Some(false),
            notes: Vec::new(),
        };
        let engine = Engine::Memory(store.clone(), pool.clone());
        Ok(Self::new(engine, info, pool.clone(), Arc::new(Wake::new()?), 4096))
    }

    /// A disk that `disk` drives, which `info` describes: its size is rounded down to a multiple of
    /// 4096, and at most `max_in_flight` operations are with it at a time.
    ///
    /// # Errors
    /// When the process can open no more files (for [`Self::event_fd`]).
    pub fn external(
        disk: Box<dyn ExternalDisk>,
        info: DiskInfo,
        max_in_flight: usize,
        pool: &BufferPool,
    ) -> io::Result<Self> {
        let size = info.size / BLOCK_SIZE * BLOCK_SIZE;
        let info = DiskInfo { size, engine: EngineKind::External, direct: false, ..info };
        let wake = Arc::new(Wake::new()?);
        let engine = Engine::External(External::new(disk, &wake));
        Ok(Self::new(engine, info, pool.clone(), wake, max_in_flight))
    }

    /// A file that is open for `O_DIRECT`, as a disk of `size` bytes over io_uring. What completes
    /// signals the eventfd that `bell` belongs to, and comes out of [`Self::gather`].
    ///
    /// # Errors
    /// When it lives in memory, or the kernel has no io_uring for this process.
    pub fn of_direct_file(
        file: File,
        size: u64,
        max_in_flight: u32,
        pool: &BufferPool,
        bell: &Bell,
    ) -> io::Result<Self> {
        if is_in_memory(&file) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let info = DiskInfo {
            path: None,
            kind: BackingKind::File,
            engine: EngineKind::Uring,
            size,
            read_only: false,
            direct: true,
            block_size: 4096,
            discard: false,
            discard_zeroes: false,
            fast_zeroes: false,
            rotational: None,
            volatile_cache: None,
            notes: Vec::new(),
        };
        let file = Arc::new(BackingFile::new(file, BackingKind::File, false, None));
        let engine = Uring::start(&file, pool, &bell.0, max_in_flight)?;
        let engine = Engine::Uring(Box::new(engine));
        let most = usize::try_from(max_in_flight).unwrap_or(1);
        Ok(Self::new(engine, info, pool.clone(), Arc::clone(&bell.0), most))
    }

    /// What other disks may signal, so that whoever waits for this one learns of them, too.
    #[must_use]
    pub fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.wake))
    }

    /// The same disk, failing as `rules` say; the handle changes that while it is in use.
    #[must_use]
    pub fn with_faults(mut self, rules: &[FaultRule]) -> (Self, FaultHandle) {
        let block_size = u64::from(self.info.block_size);
        let (fault, handle) = Fault::new(self.engine, Arc::clone(&self.wake), block_size, rules);
        self.engine = Engine::Fault(Box::new(fault));
        (self, handle)
    }

    /// Usable size in bytes, as [`DiskInfo::size`].
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.info.size
    }

    /// The backing has grown, and all of it up to `size` bytes may be used from now on. A size
    /// that is not larger changes nothing. What the backing does not have fails when it is used.
    pub fn grown_to(&mut self, size: u64) {
        self.info.size = self.info.size.max(size);
        self.engine.grown_to(size);
    }

    /// Whether another operation would not be refused with `Busy`.
    pub(crate) const fn has_room(&self) -> bool {
        self.in_flight < self.max_in_flight
    }

    /// Has the page cache forget a range that was flushed, so that the next read of it asks the device.
    pub fn uncache(&self, range: ByteRange) {
        self.engine.uncache(range);
    }

    /// Has the filesystem below keep room for a range, where it is a file of which that can be had.
    pub(crate) fn reserve(&self, range: ByteRange) -> Result<(), rustix::io::Errno> {
        self.engine.reserve(range)
    }

    /// Signals another eventfd from now on. Nothing may be in flight.
    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        self.engine.rewire(wake)?;
        self.wake = Arc::clone(wake);
        Ok(())
    }

    /// Has another disk signal this one's eventfd.
    pub(crate) fn share_wake(&self, other: &mut Self) -> io::Result<()> {
        other.rewire(&self.wake)
    }

    /// Puts a layer around the engine.
    pub(crate) fn wrapped(
        mut self,
        wrap: impl FnOnce(Engine, &BufferPool, &Arc<Wake>) -> Engine,
        block_size: u32,
        notes: Vec<String>,
    ) -> Self {
        self.engine = wrap(self.engine, &self.pool, &self.wake);
        self.info.block_size = block_size;
        self.info.notes.extend(notes);
        self
    }

    /// To have the backing, and the spares that it has, replaced by another one while the disk is
    /// used. To be called before anything is submitted, and before [`Self::with_checksums`].
    #[must_use]
    pub fn replace_handle(&mut self) -> ReplaceHandle {
        if let Some(LinkEnd(link)) = &self.replace {
            return ReplaceHandle::new(link);
        }
        let link = Link::new(&self.wake);
        let nothing = Engine::Memory(MemoryStore::new(0), self.pool.clone());
        let engine = std::mem::replace(&mut self.engine, nothing);
        let usable = if self.info.read_only { 0 } else { self.size() };
        let replace = Replace::new(engine, usable, &link, &self.wake);
        self.engine = Engine::Replace(Box::new(replace));
        let handle = ReplaceHandle::new(&link);
        self.replace = Some(LinkEnd(link));
        handle
    }

    fn is_called(&self) -> bool {
        self.replace.as_ref().is_some_and(|LinkEnd(link)| link.is_called())
    }

    pub(crate) const fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) const fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Waits for a signal of the eventfd, at most so long.
    pub(crate) fn doze(&self, most: Duration) {
        self.wake.wait(most);
    }

    /// Whether every operation is over when it was submitted.
    pub(crate) fn is_inline(&self) -> bool {
        self.engine.is_inline()
    }

    /// Asks the layer for bad sectors for something. `Some` when it is over already; otherwise its
    /// completion comes out of [`Self::completions`]. What was done, [`Self::remap_report`] says.
    /// Refused with `Invalid` on a disk without spares.
    #[must_use]
    pub fn remap(&mut self, op: OpId, what: RemapOp) -> Option<Completion> {
        let range = what.range();
        let refusal = if self.poisoned {
            Some(DiskErrorKind::Poisoned)
        } else if self.is_outside(range) {
            Some(DiskErrorKind::OutOfRange)
        } else if self.info.read_only {
            Some(DiskErrorKind::ReadOnly)
        } else if !self.has_room() {
            Some(DiskErrorKind::Busy)
        } else {
            match self.engine.remap() {
                Some(remap) if !remap.refuses(&what) => None,
                _ => Some(DiskErrorKind::Invalid),
            }
        };
        if let Some(kind) = refusal {
            let result = Err(DiskError::refused(kind, OpKind::Write, range));
            return Some(Completion { op, result });
        }
        self.in_flight += 1;
        let before = self.ready.len();
        let what = match what {
            RemapOp::Repair { range, data } => RemapOp::Repair { range, data: self.aligned(data) },
            what => what,
        };
        let done = self.engine.ask(op, what)?;
        self.settle(done);
        self.over(op, before)
    }

    /// What a range holds that could not be read, from wherever an [`ExternalDisk`] has it besides; as
    /// [`ExternalDisk::salvage`] says. Other disks have no such place: `Invalid`.
    #[must_use]
    pub fn salvage(&mut self, op: OpId, range: ByteRange) -> Option<Completion> {
        self.rescue(op, DiskOp::Read { range, holes: false })
    }

    /// Stores again what [`Self::salvage`] gave, as [`ExternalDisk::restore`] says.
    #[must_use]
    pub fn restore(&mut self, op: OpId, range: ByteRange, data: Bytes) -> Option<Completion> {
        self.rescue(op, DiskOp::Write { range, data, fua: true })
    }

    fn rescue(&mut self, op: OpId, request: DiskOp) -> Option<Completion> {
        let (kind, range) = (request.kind(), request.range());
        let early = self.answer_early(&request);
        let Engine::External(external) = &mut self.engine else {
            let result = Err(DiskError::refused(DiskErrorKind::Invalid, kind, range));
            return Some(Completion { op, result });
        };
        if let Some(result) = early {
            let result = result.map_err(|why| DiskError::refused(why, kind, range));
            return Some(Completion { op, result });
        }
        self.in_flight += 1;
        external.rescue(Job { op, tag: Tag::Plain, mark: Mark::default(), request });
        None
    }

    /// As [`Self::execute`], for [`Self::remap`].
    ///
    /// # Errors
    /// What it ended with; [`DiskErrorKind::Busy`] when operations are in flight.
    pub fn remap_now(&mut self, what: RemapOp) -> (Result<(), DiskError>, RemapReport) {
        if self.in_flight > 0 {
            let error = DiskError::refused(DiskErrorKind::Busy, OpKind::Write, what.range());
            return (Err(error), RemapReport::default());
        }
        let mut done = Vec::from_iter(self.remap(OpId(0), what));
        while done.is_empty() {
            self.wait(&mut done, Duration::from_secs(1));
        }
        let result = done.pop().map_or(Ok(()), |completion| completion.result.map(|_| ()));
        (result, self.remap_report(OpId(0)).unwrap_or_default())
    }

    /// What could be read by an operation that ended with [`DiskErrorKind::Unreadable`]. It is told
    /// once, and kept for the last 64 such operations.
    #[must_use]
    pub fn partial(&mut self, op: OpId) -> Option<PartialRead> {
        let is_it = |(of, more): &(OpId, More)| *of == op && matches!(more, More::Partial(_));
        let at = self.details.iter().rposition(is_it)?;
        match self.details.remove(at) {
            Some((_, More::Partial(partial))) => Some(partial),
            _ => None,
        }
    }

    /// What an operation of [`Self::remap`] has done that has ended. It is told once, and kept for
    /// the last 64 of them.
    #[must_use]
    pub fn remap_report(&mut self, op: OpId) -> Option<RemapReport> {
        let is_it = |(of, more): &(OpId, More)| *of == op && matches!(more, More::Report(_));
        let at = self.details.iter().rposition(is_it)?;
        match self.details.remove(at) {
            Some((_, More::Report(report))) => Some(report),
            _ => None,
        }
    }

    /// Whether a flush may hold up the calling thread where that is the fastest way, for as long as
    /// the device takes. Not at first. For those who have nothing else to do meanwhile.
    pub fn wait_for_flushes(&mut self, wait: bool) {
        self.engine.flush_here(wait);
    }

    /// What is known of the disk.
    #[must_use]
    pub const fn info(&self) -> &DiskInfo {
        &self.info
    }

    /// How many operations were submitted and not yet handed back as completed.
    #[must_use]
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether a flush has failed, so that every further operation is refused.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Readable when [`Self::completions`] may have something, and until it is called.
    #[must_use]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Starts an operation. `Some` when it is over already; otherwise its completion comes out of
    /// [`Self::completions`], once [`Self::kick`] or `completions` has been called.
    #[must_use]
    pub fn submit(&mut self, op: OpId, request: DiskOp) -> Option<Completion> {
        let (kind, range) = (request.kind(), request.range());
        if let Some(result) = self.answer_early(&request) {
            let result = result.map_err(|why| DiskError::refused(why, kind, range));
            return Some(Completion { op, result });
        }
        self.in_flight += 1;
        let before = self.ready.len();
        if kind == OpKind::Flush && self.engine.merges_flushes() {
            let done = self.engine.submit(Job {
                op,
                tag: Tag::OwnFlush,
                mark: Mark::default(),
                request,
            })?;
            self.settle(done);
        } else if kind == OpKind::Flush {
            self.flush(Waiter { op, kind, range });
        } else {
            let tag = self.tag(&request);
            let request = match request {
                DiskOp::Write { range, data, fua } => {
                    DiskOp::Write { range, data: self.aligned(data), fua }
                }
                request => request,
            };
            let done = self.engine.submit(Job { op, tag, mark: Mark::default(), request })?;
            self.settle(done);
        }
        self.over(op, before)
    }

    /// The completion of an operation that ended while it was submitted.
    fn over(&mut self, op: OpId, before: usize) -> Option<Completion> {
        if self.ready.len() == before + 1 && self.ready.last().is_some_and(|c| c.op == op) {
            self.in_flight -= 1;
            return self.ready.pop();
        }
        if !self.ready.is_empty() {
            self.wake.signal();
        }
        None
    }

    /// The range to be sent without a copy, when the disk is a file that lives in memory and has all
    /// of it. Not when a read would fail.
    #[must_use]
    pub fn lend(&self, range: ByteRange) -> Option<Lent> {
        if self.answer_early(&DiskOp::Read { range, holes: false }).is_some() {
            return None;
        }
        self.engine.in_memory(range).map(|file| Lent { file: Arc::clone(file), range })
    }

    /// Hands everything that was submitted to the kernel. To be called when the caller has no more
    /// to submit for the moment: one call for many operations costs less than one for each.
    pub fn kick(&mut self) {
        self.start_flush();
        self.engine.kick();
        if !self.ready.is_empty() {
            self.wake.signal();
        }
    }

    /// Appends what has completed since the last call to `out`, without waiting. Kicks, too.
    pub fn completions(&mut self, out: &mut Vec<Completion>) {
        if self.engine.is_inline() && self.ready.is_empty() && !self.is_called() {
            return;
        }
        // Cleared first: what completes after this line makes it readable again.
        self.wake.clear();
        self.gather(out);
    }

    /// As [`Self::completions`], for a disk whose eventfd another one clears.
    pub fn gather(&mut self, out: &mut Vec<Completion>) {
        self.start_flush();
        let mut collected = std::mem::take(&mut self.collected);
        self.engine.collect(&mut collected);
        self.settle_all(&mut collected);
        self.collected = collected;
        self.start_flush();
        self.engine.kick();
        self.in_flight -= self.ready.len();
        out.append(&mut self.ready);
    }

    /// Like [`Self::completions`], but waits until there is something, at most `timeout`. For
    /// callers without an event loop.
    pub fn wait(&mut self, out: &mut Vec<Completion>, timeout: Duration) {
        let (before, deadline) = (out.len(), Instant::now() + timeout);
        loop {
            self.completions(out);
            let left = deadline.saturating_duration_since(Instant::now());
            if out.len() > before || self.in_flight == 0 || left.is_zero() {
                return;
            }
            self.wake.wait(left);
        }
    }

    /// Does one operation and waits for it, however long that takes. For set-up and tools.
    ///
    /// # Errors
    /// What the operation ended with; [`DiskErrorKind::Busy`] when others are in flight.
    pub fn execute(&mut self, request: DiskOp) -> Result<Outcome, DiskError> {
        let (kind, range) = (request.kind(), request.range());
        if self.in_flight > 0 {
            return Err(DiskError::refused(DiskErrorKind::Busy, kind, range));
        }
        let mut done = Vec::from_iter(self.submit(OpId(0), request));
        loop {
            if let Some(completion) = done.pop() {
                return completion.result;
            }
            self.wait(&mut done, Duration::from_secs(1));
        }
    }

    /// The answer to a request that needs no engine: a refusal, or nothing to do.
    fn answer_early(&self, request: &DiskOp) -> Option<Result<Outcome, DiskErrorKind>> {
        let range = request.range();
        let kind = request.kind();
        let changes = !matches!(kind, OpKind::Read | OpKind::Flush);
        let transfers = matches!(kind, OpKind::Read | OpKind::Write);
        let block = u64::from(self.info.block_size);
        let right_length = match request {
            DiskOp::Write { range, data, .. } => data.len() as u64 == range.len,
            _ => true,
        };
        let refusal = if self.poisoned {
            DiskErrorKind::Poisoned
        } else if self.is_outside(range) {
            DiskErrorKind::OutOfRange
        } else if !right_length
            || !range.offset.is_multiple_of(block)
            || !range.len.is_multiple_of(block)
            || (transfers && range.len > MAX_TRANSFER)
        {
            DiskErrorKind::Invalid
        } else if changes && self.info.read_only {
            DiskErrorKind::ReadOnly
        } else if self.in_flight >= self.max_in_flight {
            DiskErrorKind::Busy
        } else if kind == OpKind::Flush && self.info.read_only {
            return Some(Ok(Outcome::Done));
        } else if kind != OpKind::Flush && range.is_empty() {
            return Some(Ok(match kind {
                OpKind::Read => Outcome::Data(Bytes::new()),
                _ => Outcome::Done,
            }));
        } else {
            return None;
        };
        Some(Err(refusal))
    }

    /// Whether a part of a range is not for those who use the disk: behind its end, or a spare.
    fn is_outside(&self, range: ByteRange) -> bool {
        let size = self.size();
        range.offset > size || range.len > size - range.offset || self.engine.is_reserved(range)
    }

    fn tag(&self, request: &DiskOp) -> Tag {
        match request {
            // It does by itself what it takes.
            _ if self.info.engine == EngineKind::External => Tag::Plain,
            // Only the ring has such writes, and only past the page cache they are worth it.
            DiskOp::Write { fua: true, .. }
                if self.info.direct && self.info.engine == EngineKind::Uring =>
            {
                Tag::Durable
            }
            DiskOp::Write { fua: true, .. } | DiskOp::WriteZeroes { fua: true, .. } => {
                Tag::FlushAfter
            }
            _ => Tag::Plain,
        }
    }

    /// With `O_DIRECT`, memory must be aligned like the disk's blocks.
    fn aligned(&self, data: Bytes) -> Bytes {
        let fits = data.as_ptr().addr().is_multiple_of(self.info.block_size as usize);
        if fits || !self.info.direct { data } else { self.pool.copy_of(&data).freeze() }
    }

    /// Puts a flush behind the one that is running. Where nothing is ever under way it is done
    /// at once.
    fn flush(&mut self, waiter: Waiter) {
        self.flusher.waiting.push(waiter);
        if self.engine.is_inline() {
            self.start_flush();
        }
    }

    /// Starts the flush that is waited for, until none is waited for or one is under way.
    fn start_flush(&mut self) {
        while !self.flusher.active
            && let Some(first) = self.flusher.waiting.first()
        {
            let (op, mark) = (first.op, Mark::default());
            let job = Job { op, tag: Tag::Flush, mark, request: DiskOp::Flush };
            std::mem::swap(&mut self.flusher.running, &mut self.flusher.waiting);
            self.flusher.active = true;
            if let Some(done) = self.engine.submit(job) {
                self.settle(done);
            }
        }
    }

    fn settle_all(&mut self, batch: &mut Vec<Done>) {
        // Looked for first, so that nothing of the same batch is reported as durable.
        if batch.iter().any(is_failed_flush) {
            self.poison();
        }
        for done in batch.drain(..) {
            self.settle(done);
        }
    }

    /// Turns the end of a job into completions, or into the flush that must follow.
    fn settle(&mut self, done: Done) {
        let failed_flush = is_failed_flush(&done);
        if failed_flush {
            self.poison();
        }
        let Done { op, tag, mark: _, kind, range, result, more } = done;
        let result = result.map_err(|errno| {
            let mut error = DiskError::from_errno(errno, kind, range);
            match more.as_deref() {
                _ if failed_flush => error.kind = DiskErrorKind::FlushFailed,
                Some(More::Partial(_)) => error.kind = DiskErrorKind::Unreadable,
                Some(More::SpareFull) => error.kind = DiskErrorKind::SpareFull,
                Some(More::Report(report)) if report.full > 0 => {
                    error.kind = DiskErrorKind::SpareFull;
                }
                _ => {}
            }
            error
        });
        if let Some(more) = more {
            self.detail(op, *more);
        }
        let poisoned = Err(DiskError::refused(DiskErrorKind::Poisoned, kind, range));
        let result = match (tag, result) {
            (Tag::Flush, result) => return self.flushed(&result),
            (Tag::Durable | Tag::FlushAfter | Tag::OwnFlush, Ok(_)) if self.poisoned => poisoned,
            (Tag::FlushAfter, Ok(_)) => return self.flush(Waiter { op, kind, range }),
            (_, result) => result,
        };
        self.ready.push(Completion { op, result });
    }

    /// Keeps what is to be said of an operation, for who asks.
    fn detail(&mut self, op: OpId, more: More) {
        if matches!(more, More::Request(_) | More::SpareFull) {
            return;
        }
        if self.details.len() == MAX_DETAILS {
            self.details.pop_front();
        }
        self.details.push_back((op, more));
    }

    /// Answers those whose flush is over, and starts the next one if somebody waits for it.
    fn flushed(&mut self, result: &Result<Outcome, DiskError>) {
        self.flusher.active = false;
        for Waiter { op, kind, range } in self.flusher.running.drain(..) {
            let result = match result {
                Ok(_) if self.poisoned => {
                    Err(DiskError::refused(DiskErrorKind::Poisoned, kind, range))
                }
                Ok(_) => Ok(Outcome::Done),
                Err(error) => Err(DiskError { op: kind, range, ..*error }),
            };
            self.ready.push(Completion { op, result });
        }
        if self.poisoned {
            for Waiter { op, kind, range } in self.flusher.waiting.drain(..) {
                let result = Err(DiskError::refused(DiskErrorKind::Poisoned, kind, range));
                self.ready.push(Completion { op, result });
            }
        }
    }

    fn poison(&mut self) {
        if !self.poisoned {
            tracing::error!(path = ?self.info.path, "a flush failed; the disk is not used any more");
        }
        self.poisoned = true;
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("info", &self.info)
            .field("in_flight", &self.in_flight)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

fn is_failed_flush(done: &Done) -> bool {
    matches!(done.tag, Tag::Flush | Tag::OwnFlush | Tag::DurableFailed) && done.result.is_err()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_format::remap::SpareId;
    use holdfast_units::{ByteRange, ResourceId};
    use rustix::io::Errno;

    use super::{Disk, Waiter};
    use crate::engine::{Done, Mark, Tag};
    use crate::{
        BufferPool, DiskErrorKind, DiskIdentity, DiskOp, ExternalDisk, MemoryStore, OpId, OpKind,
        Outcome, RemapOp, SpareAt, SpareFormat, Ticket, format_spare,
    };

    /// What a device does with `O_DIRECT`.
    struct Particular(MemoryStore, BufferPool);

    impl ExternalDisk for Particular {
        fn submit(&mut self, request: DiskOp, ticket: Ticket) {
            let result = match &request {
                DiskOp::Write { data, .. } if !data.as_ptr().addr().is_multiple_of(512) => {
                    Err(Errno::INVAL)
                }
                request => self.0.run(request, &self.1),
            };
            ticket.complete(result.map_err(std::io::Error::from));
        }
    }

    #[test]
    fn work_on_bad_blocks_gives_a_direct_disk_aligned_memory_and_keeps_off_its_spares() {
        let (store, pool) = (MemoryStore::new(1 << 20), BufferPool::new(0));
        let info = Disk::memory(&store, &pool).unwrap().info;
        let driver = Box::new(Particular(store.clone(), pool.clone()));
        let mut disk = Disk::external(driver, info, 64, &pool).unwrap();
        (disk.info.direct, disk.info.block_size) = (true, 512);
        let region = ByteRange::new(768 << 10, 256 << 10);
        let owner = DiskIdentity { resource: ResourceId([1; 16]), disk: [2; 16] };
        let (id, unit, slots) = (SpareId([3; 16]), 4096, Some(16));
        let format = SpareFormat { id, unit, slots, force: false, disk_size: 1 << 20, created: 1 };
        format_spare(&mut disk, Some(region), &owner, &format).unwrap();
        let mut disk = disk.with_spares(vec![SpareAt::Region(region)], &owner).unwrap();
        let mut ask = |what| {
            let (result, report) = disk.remap_now(what);
            (result.map_err(|error| error.kind), (report.in_place, report.placed))
        };
        let data = Bytes::from(vec![7; 8193]).slice(1..);
        let range = ByteRange::new(4096, 8192);
        assert_eq!(ask(RemapOp::Repair { range, data: data.clone() }), (Ok(()), (2, 0)));
        // Where they are in slots, too.
        assert_eq!(ask(RemapOp::Move { range, imported: false }), (Ok(()), (0, 2)));
        assert_eq!(ask(RemapOp::Repair { range, data: data.clone() }), (Ok(()), (2, 0)));
        // The region is nobody's block.
        let refused = (Err(DiskErrorKind::OutOfRange), (0, 0));
        let range = ByteRange::new(region.offset, 8192);
        assert_eq!(ask(RemapOp::Repair { range, data }), refused);
        assert_eq!(ask(RemapOp::MoveBack { range }), refused);
        let stats = disk.remap_stats().unwrap();
        assert_eq!((stats.mapped, stats.bad_slots), (2, 0));
    }

    #[test]
    fn a_failed_flush_counts_for_all_that_was_reaped_with_it() {
        let mut disk = Disk::memory(&MemoryStore::new(8192), &BufferPool::new(0)).unwrap();
        let range = ByteRange::new(0, 4096);
        disk.flusher.active = true;
        disk.flusher.running =
            vec![Waiter { op: OpId(2), kind: OpKind::Flush, range: ByteRange::default() }];
        let done = |op, tag, result| Done {
            op: OpId(op),
            tag,
            mark: Mark::default(),
            kind: OpKind::Write,
            range,
            result,
            more: None,
        };
        disk.settle_all(&mut vec![
            done(0, Tag::Durable, Ok(Outcome::Done)),
            done(1, Tag::Plain, Ok(Outcome::Done)),
            done(2, Tag::Flush, Err(Errno::IO)),
        ]);
        let results: Vec<_> =
            disk.ready.drain(..).map(|c| (c.op.0, c.result.map_err(|error| error.kind))).collect();
        assert_eq!(
            results,
            [
                (0, Err(DiskErrorKind::Poisoned)),
                (1, Ok(Outcome::Done)),
                (2, Err(DiskErrorKind::FlushFailed)),
            ]
        );
    }
}
