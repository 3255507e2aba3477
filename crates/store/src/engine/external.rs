//! A disk that somebody else drives, on threads of its own.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::{Done, Job, Mark, Tag};
use crate::wake::Wake;
use crate::{DiskOp, OpId, Outcome};

/// What drives a disk that is neither a file nor a block device. See [`crate::Disk::external`].
pub trait ExternalDisk: Send {
    /// Starts an operation, without blocking; the ticket is told when it is over, on any thread,
    /// perhaps at once. A write with `fua` is over when it is durable. The range lies in the disk,
    /// and no flush is asked for while another is under way, unless it [merges](Self::merges_flushes)
    /// them.
    fn submit(&mut self, request: DiskOp, ticket: Ticket);

    /// Tells what a range holds that a read could not give, from some other place, if it has one that
    /// is never older: the ticket is that of a read. Fails when it has not.
    fn salvage(&mut self, _range: ByteRange, ticket: Ticket) {
        ticket.complete(Err(Errno::IO.into()));
    }

    /// Stores again what [`Self::salvage`] gave, in its place, durably and so that it can be read: the
    /// ticket is that of a write. Nothing was submitted since that changes the range.
    fn restore(&mut self, _range: ByteRange, _data: Bytes, ticket: Ticket) {
        ticket.complete(Err(Errno::IO.into()));
    }

    /// All is submitted that there is for the moment. What is over in this call needs nobody woken.
    fn kick(&mut self) {}

    /// Whether it takes a flush while others are under way. Each covers what was over when it came;
    /// after one that failed, all of them fail.
    fn merges_flushes(&self) -> bool {
        false
    }
}

/// Whom to tell that an operation is over. One that is dropped tells of an I/O error.
#[derive(Debug)]
pub struct Ticket {
    op: OpId,
    tag: Tag,
    mark: Mark,
    request: DiskOp,
    finished: Arc<Finished>,
    told: bool,
}

impl Ticket {
    /// The operation is over.
    pub fn complete(mut self, result: io::Result<Outcome>) {
        self.tell(result.map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            errno.or_else(|| Errno::from_io_error(&error)).unwrap_or(match error.kind() {
                io::ErrorKind::StorageFull => Errno::NOSPC,
                io::ErrorKind::TimedOut => Errno::TIMEDOUT,
                _ => Errno::IO,
            })
        }));
    }

    fn tell(&mut self, result: Result<Outcome, Errno>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let Self { op, tag, mark, .. } = *self;
        let request = std::mem::replace(&mut self.request, DiskOp::Flush);
        let done = Job { op, tag, mark, request }.done(result);
        let mut list = lock(&self.finished.list);
        // Whoever looks at the list has been told already, or is about to look.
        let told = list.attended || !list.done.is_empty();
        list.done.push(done);
        drop(list);
        if !told {
            lock(&self.finished.wake).signal();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tell(Err(Errno::IO));
    }
}

struct Finished {
    list: Mutex<List>,
    wake: Mutex<Arc<Wake>>,
}

#[derive(Default)]
struct List {
    /// Bounded by what the disk lets be in flight.
    done: Vec<Done>,
    /// The one who takes it will do so in a moment, without being told.
    attended: bool,
}

impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finished").finish_non_exhaustive()
    }
}

pub(crate) struct External {
    disk: Box<dyn ExternalDisk>,
    finished: Arc<Finished>,
}

impl External {
    pub(crate) fn new(disk: Box<dyn ExternalDisk>, wake: &Arc<Wake>) -> Self {
        let finished =
            Arc::new(Finished { list: Mutex::default(), wake: Mutex::new(Arc::clone(wake)) });
        Self { disk, finished }
    }

    pub(crate) fn submit(&mut self, job: Job) {
        let request = job.request.clone();
        let ticket = self.ticket(job);
        self.disk.submit(request, ticket);
    }

    fn ticket(&self, job: Job) -> Ticket {
        let Job { op, tag, mark, request } = job;
        Ticket { op, tag, mark, request, finished: Arc::clone(&self.finished), told: false }
    }

    /// [`ExternalDisk::salvage`] for a read, and [`ExternalDisk::restore`] for a write.
    pub(crate) fn rescue(&mut self, job: Job) {
        let request = job.request.clone();
        let ticket = self.ticket(job);
        match request {
            DiskOp::Write { range, data, .. } => self.disk.restore(range, data, ticket),
            other => self.disk.salvage(other.range(), ticket),
        }
    }

    pub(crate) fn rewire(&self, wake: &Arc<Wake>) {
        *lock(&self.finished.wake) = Arc::clone(wake);
    }

    pub(crate) fn merges_flushes(&self) -> bool {
        self.disk.merges_flushes()
    }

    pub(crate) fn kick(&mut self) {
        self.disk.kick();
    }

    /// Kicks first. What is signalled must have been cleared before.
    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        lock(&self.finished.list).attended = true;
        self.disk.kick();
        let mut list = lock(&self.finished.list);
        list.attended = false;
        out.append(&mut list.done);
    }
}

/// What is locked here is whole between any two statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
