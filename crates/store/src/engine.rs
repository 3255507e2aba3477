//! The ways to get an operation done. An engine moves bytes; what holds for every engine (bounds,
//! flush merging, poison) is in [`crate::Disk`].

pub(crate) mod blocking;
pub(crate) mod cached;
pub(crate) mod external;
pub(crate) mod fault;
pub(crate) mod inline;
pub(crate) mod memory;
pub(crate) mod uring;

use std::sync::Arc;

use holdfast_units::ByteRange;
use rustix::io::Errno;

use crate::file::BackingFile;
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
    /// Only a part was written, by order of a fault rule: report an error.
    Torn,
}

/// An operation inside an engine.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) op: OpId,
    pub(crate) tag: Tag,
    pub(crate) request: DiskOp,
}

impl Job {
    pub(crate) const fn done(&self, result: Result<Outcome, Errno>) -> Done {
        let (kind, range) = (self.request.kind(), self.request.range());
        Done { op: self.op, tag: self.tag, kind, range, result }
    }
}

/// The end of a job.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) op: OpId,
    pub(crate) tag: Tag,
    pub(crate) kind: OpKind,
    pub(crate) range: ByteRange,
    pub(crate) result: Result<Outcome, Errno>,
}

pub(crate) enum Engine {
    Inline(inline::Inline),
    Cached(Box<cached::Cached>),
    Uring(Box<uring::Uring>),
    Blocking(blocking::Blocking),
    Memory(memory::MemoryStore, BufferPool),
    External(external::External),
    Fault(Box<fault::Fault>),
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
        }
    }

    /// Hands to the kernel what is still held back.
    pub(crate) fn kick(&mut self) {
        match self {
            Self::Cached(cached) => cached.kick(),
            Self::Uring(uring) => uring.kick(),
            Self::External(external) => external.kick(),
            Self::Fault(fault) => fault.kick(),
            Self::Inline(_) | Self::Memory(..) | Self::Blocking(_) => {}
        }
    }

    /// Whether a flush may hold up the calling thread, where that is a choice.
    pub(crate) fn flush_here(&mut self, here: bool) {
        if let Self::Cached(cached) = self {
            cached.flush_here(here);
        }
    }

    /// Whether flushes are given to it as they come, also several at a time.
    pub(crate) fn merges_flushes(&self) -> bool {
        match self {
            Self::External(external) => external.merges_flushes(),
            _ => false,
        }
    }

    /// The file, when it lives in memory and has all of this range.
    pub(crate) fn in_memory(&self, range: ByteRange) -> Option<&Arc<BackingFile>> {
        match self {
            Self::Inline(inline) => inline.in_memory(range),
            _ => None,
        }
    }

    /// Appends what is done, without waiting.
    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        match self {
            Self::Cached(cached) => cached.collect(out),
            Self::Uring(uring) => uring.collect(out),
            Self::Blocking(blocking) => blocking.collect(out),
            Self::External(external) => external.collect(out),
            Self::Fault(fault) => fault.collect(out),
            Self::Inline(inline) => inline.collect(out),
            Self::Memory(..) => {}
        }
    }

    /// Whether every job is done when `submit` returns.
    pub(crate) const fn is_inline(&self) -> bool {
        match self {
            Self::Inline(inline) => inline.is_alone(),
            Self::Memory(..) => true,
            _ => false,
        }
    }
}
