//! The ways to get an operation done. An engine moves bytes; what holds for every engine (bounds,
//! flush merging, poison) is in [`crate::Disk`].

pub(crate) mod blocking;
pub(crate) mod cached;
pub(crate) mod external;
pub(crate) mod fault;
pub(crate) mod inline;
pub(crate) mod memory;
pub(crate) mod nested;
pub(crate) mod spots;
pub(crate) mod uring;

use std::io;
use std::sync::Arc;

use holdfast_units::ByteRange;
use rustix::io::Errno;

use crate::file::BackingFile;
use crate::integrity::Integrity;
use crate::remap::{PartialRead, Remap, RemapOp, RemapReport};
use crate::replace::{Replace, Work};
use crate::wake::Wake;
use crate::{BufferPool, DiskOp, OpId, OpKind, Outcome};

/// What [`crate::Disk`] has to do when a job is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    /// Pass the result on.
    Plain,
    /// The engine makes this write durable by itself. Pass the result on, unless poisoned.
    Durable,
    /// The write of a `Durable` job went well, but making it durable did not.
    DurableFailed,
    /// Flush, then pass the result on.
    FlushAfter,
    /// This was a flush on behalf of those that wait for one.
    Flush,
    /// A flush that the engine merges with others by itself. Pass the result on.
    OwnFlush,
}

/// What a layer writes on a job to know it again. Engines hand it back as it is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Mark(pub(crate) usize);

/// An operation inside an engine.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) op: OpId,
    pub(crate) tag: Tag,
    pub(crate) mark: Mark,
    pub(crate) request: DiskOp,
}

impl Job {
    pub(crate) fn done(&self, result: Result<Outcome, Errno>) -> Done {
        let (kind, range) = (self.request.kind(), self.request.range());
        // A failed request goes back whole: who can do something about it needs its data.
        let more = result.is_err().then(|| Box::new(More::Request(self.request.clone())));
        Done { op: self.op, tag: self.tag, mark: self.mark, kind, range, result, more }
    }
}

/// What else is to be said of a job that has ended.
#[derive(Debug)]
pub(crate) enum More {
    /// It failed; this is what was asked for.
    Request(DiskOp),
    /// A read failed in part.
    Partial(PartialRead),
    /// What could not be written had to go to a spare, and none has a slot left.
    SpareFull,
    /// What was done about bad sectors.
    Report(RemapReport),
}

/// The end of a job.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) op: OpId,
    pub(crate) tag: Tag,
    pub(crate) mark: Mark,
    pub(crate) kind: OpKind,
    pub(crate) range: ByteRange,
    pub(crate) result: Result<Outcome, Errno>,
    pub(crate) more: Option<Box<More>>,
}

pub(crate) enum Engine {
    Inline(inline::Inline),
    Cached(Box<cached::Cached>),
    Uring(Box<uring::Uring>),
    Blocking(blocking::Blocking),
    Memory(memory::MemoryStore, BufferPool),
    External(external::External),
    Fault(Box<fault::Fault>),
    Remap(Box<Remap>),
    Replace(Box<Replace>),
    Nested(Box<nested::Nested>),
    Integrity(Box<Integrity>),
}

impl Engine {
    /// Starts a job; hands it back when it is done already.
    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        match self {
            Self::Inline(inline) => inline.submit(job),
            Self::Cached(cached) => cached.submit(job),
            Self::Uring(uring) => uring.submit(job),
            Self::Blocking(blocking) => blocking.submit(job),
            Self::Memory(store, pool) => Some(job.done(store.run(&job.request, pool))),
            Self::External(external) => {
                external.submit(job);
                None
            }
            Self::Fault(fault) => fault.submit(job),
            Self::Remap(remap) => remap.submit(job),
            Self::Replace(replace) => replace.submit(Work::Job(job)),
            Self::Nested(nested) => nested.submit(job),
            Self::Integrity(layer) => layer.submit(job),
        }
    }

    /// Hands to the kernel what is still held back.
    pub(crate) fn kick(&mut self) {
        match self {
            Self::Cached(cached) => cached.kick(),
            Self::Uring(uring) => uring.kick(),
            Self::External(external) => external.kick(),
            Self::Fault(fault) => fault.kick(),
            Self::Remap(remap) => remap.kick(),
            Self::Replace(replace) => replace.kick(),
            Self::Nested(nested) => nested.kick(),
            Self::Integrity(layer) => layer.kick(),
            Self::Inline(_) | Self::Memory(..) | Self::Blocking(_) => {}
        }
    }

    /// Whether a flush may hold up the calling thread, where that is a choice.
    pub(crate) fn flush_here(&mut self, here: bool) {
        match self {
            Self::Cached(cached) => cached.flush_here(here),
            Self::Remap(remap) => remap.flush_here(here),
            Self::Integrity(layer) => layer.below.flush_here(here),
            Self::Replace(replace) => replace.current_mut().flush_here(here),
            _ => {}
        }
    }

    /// Whether flushes are given to it as they come, also several at a time.
    pub(crate) fn merges_flushes(&self) -> bool {
        match self {
            Self::External(external) => external.merges_flushes(),
            Self::Integrity(layer) => layer.below.merges_flushes(),
            Self::Replace(replace) => replace.current().merges_flushes(),
            _ => false,
        }
    }

    /// The file, when it lives in memory and has all of this range.
    pub(crate) fn in_memory(&self, range: ByteRange) -> Option<&Arc<BackingFile>> {
        match self {
            Self::Inline(inline) => inline.in_memory(range),
            Self::Remap(remap) => remap.in_memory(range),
            Self::Replace(replace) => replace.current().in_memory(range),
            Self::Nested(nested) => nested.engine().in_memory(range),
            Self::Integrity(layer) => layer.in_memory(range),
            _ => None,
        }
    }

    /// Forgets what the page cache has of this range, so that the next read asks the device. As far
    /// as that can be done.
    pub(crate) fn uncache(&self, range: ByteRange) {
        match self {
            Self::Inline(inline) => inline.file().uncache(range),
            Self::Cached(cached) => cached.file().uncache(range),
            Self::Uring(uring) => uring.file().uncache(range),
            Self::Blocking(blocking) => blocking.uncache(range),
            Self::Fault(fault) => fault.uncache(range),
            Self::Nested(nested) => nested.engine().uncache(range),
            Self::Replace(replace) => replace.current().uncache(range),
            Self::Remap(remap) => remap.uncache_main(range),
            Self::Integrity(layer) => layer.below.uncache(range),
            Self::Memory(..) | Self::External(_) => {}
        }
    }

    /// Has the filesystem below keep room for a range, where it is a file of which that can be had.
    pub(crate) fn reserve(&self, range: ByteRange) -> Result<(), Errno> {
        match self {
            Self::Inline(inline) => inline.file().reserve(range),
            Self::Cached(cached) => cached.file().reserve(range),
            Self::Uring(uring) => uring.file().reserve(range),
            Self::Blocking(blocking) => blocking.reserve(range),
            Self::Fault(fault) => fault.reserve(range),
            _ => Ok(()),
        }
    }

    /// Whether a part of the range is not for those who use the disk.
    pub(crate) fn is_reserved(&self, range: ByteRange) -> bool {
        match self {
            Self::Remap(remap) => remap.is_reserved(range),
            Self::Replace(replace) => replace.current().is_reserved(range),
            Self::Integrity(layer) => layer.below.is_reserved(range),
            _ => false,
        }
    }

    /// Signals another eventfd from now on. Nothing may be in flight.
    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        match self {
            Self::Inline(inline) => inline.rewire(wake),
            Self::Cached(cached) => return cached.rewire(wake),
            Self::Uring(uring) => return uring.rewire(wake),
            Self::Blocking(blocking) => blocking.rewire(wake),
            Self::External(external) => external.rewire(wake),
            Self::Fault(fault) => return fault.rewire(wake),
            Self::Memory(..) => {}
            Self::Replace(replace) => return replace.rewire(wake),
            Self::Remap(_) | Self::Integrity(_) | Self::Nested(_) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        Ok(())
    }

    /// Appends what is done, without waiting.
    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        match self {
            Self::Cached(cached) => cached.collect(out),
            Self::Uring(uring) => uring.collect(out),
            Self::Blocking(blocking) => blocking.collect(out),
            Self::External(external) => external.collect(out),
            Self::Fault(fault) => fault.collect(out),
            Self::Remap(remap) => remap.collect(out),
            Self::Replace(replace) => replace.collect(out),
            Self::Nested(nested) => nested.collect(out),
            Self::Integrity(layer) => layer.collect(out),
            Self::Inline(inline) => inline.collect(out),
            Self::Memory(..) => {}
        }
    }

    /// Whether every job is done when `submit` returns.
    pub(crate) fn is_inline(&self) -> bool {
        match self {
            Self::Inline(inline) => inline.is_alone(),
            Self::Memory(..) => true,
            Self::Remap(remap) => remap.is_inline(),
            Self::Integrity(layer) => layer.is_inline(),
            Self::Replace(replace) => replace.is_inline(),
            Self::Nested(nested) => nested.is_inline(),
            _ => false,
        }
    }

    /// The layer for bad sectors, when there is one.
    pub(crate) fn remap(&self) -> Option<&Remap> {
        match self {
            Self::Remap(remap) => Some(remap),
            Self::Integrity(layer) => layer.below.remap(),
            Self::Replace(replace) => replace.current().remap(),
            _ => None,
        }
    }

    pub(crate) fn remap_mut(&mut self) -> Option<&mut Remap> {
        match self {
            Self::Remap(remap) => Some(remap),
            Self::Integrity(layer) => layer.below.remap_mut(),
            Self::Replace(replace) => replace.current_mut().remap_mut(),
            _ => None,
        }
    }

    /// Asks the layer for bad sectors, which must be there, for something.
    pub(crate) fn ask(&mut self, op: OpId, what: RemapOp) -> Option<Done> {
        match self {
            Self::Remap(remap) => remap.ask(op, what),
            Self::Integrity(layer) => layer.ask(op, what),
            Self::Replace(replace) => replace.submit(Work::Ask(op, what)),
            _ => None,
        }
    }

    /// The disk has become larger.
    pub(crate) fn grown_to(&mut self, size: u64) {
        match self {
            Self::Remap(remap) => remap.grown_to(size),
            Self::Integrity(layer) => layer.grown_to(size),
            Self::Replace(replace) => replace.grown_to(size),
            Self::Nested(nested) => nested.grown_to(size),
            _ => {}
        }
    }
}
