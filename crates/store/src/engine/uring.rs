//! Reads, writes and flushes through io_uring. Everything else goes to one helper thread: the
//! kernel would hand those calls to a worker thread of its own anyway.
//!
//! Memory that the kernel may touch is owned by a slot of the table from before its request is
//! pushed until its completion has been seen. At most `depth` requests are with the kernel, so
//! neither of the ring's queues can overflow; what is above waits in the backlog.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use slab::Slab;

use super::blocking::Blocking;
use super::{Done, Job, Tag};
use crate::file::BackingFile;
use crate::wake::Wake;
use crate::{AlignedBuf, BufferPool, DiskOp, Outcome};

/// How long dropping the engine waits for what the kernel still works on.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a request is started again after EINTR or EAGAIN, and how often in a row the ring may
/// refuse to take requests before it is given up.
const MAX_RETRIES: u32 = 1000;

pub(crate) struct Uring {
    ring: IoUring,
    file: Arc<BackingFile>,
    pool: BufferPool,
    wake: Arc<Wake>,
    helper: Option<Blocking>,
    slots: Slab<Slot>,
    /// Slots whose request waits for room in the ring.
    backlog: VecDeque<usize>,
    depth: usize,
    /// Requests pushed whose completion has not been seen.
    in_kernel: usize,
    /// How many of them the kernel has not been told of.
    unsubmitted: usize,
    /// Refusals in a row by the kernel to take requests.
    refusals: u32,
    /// The ring has been given up; every job fails.
    broken: bool,
    reaped: Vec<(u64, i32)>,
    /// Jobs that ended otherwise than by a completion.
    ended: Vec<Done>,
}

struct Slot {
    job: Job,
    /// Where a read goes.
    buffer: Option<AlignedBuf>,
    /// Bytes that are done: the kernel may do less than it was asked for.
    done: usize,
    retries: u32,
    /// Why a write that was to be durable failed; it is being repeated without that, to learn
    /// whether the write or the flush was at fault.
    durable_error: Option<Errno>,
}

enum Next {
    Finish(Result<Outcome, Errno>),
    Restart,
}

impl Uring {
    /// A ring for `depth` requests at a time (1 to 4096).
    pub(crate) fn start(
        file: &Arc<BackingFile>,
        pool: &BufferPool,
        wake: &Arc<Wake>,
        depth: u32,
    ) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        // Without COOP_TASKRUN every completion interrupts the thread. Kernels before 5.19 do not
        // know it.
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .build(depth)
            .or_else(|_| IoUring::new(depth))?;
        ring.submitter().register_eventfd(wake.as_fd().as_raw_fd())?;
        Ok(Self {
            ring,
            file: Arc::clone(file),
            pool: pool.clone(),
            wake: Arc::clone(wake),
            helper: None,
            slots: Slab::with_capacity(depth as usize),
            backlog: VecDeque::new(),
            depth: depth as usize,
            in_kernel: 0,
            unsubmitted: 0,
            refusals: 0,
            broken: false,
            reaped: Vec::with_capacity(depth as usize),
            ended: Vec::new(),
        })
    }

    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        if self.broken {
            return Some(job.done(Err(Errno::IO)));
        }
        let buffer = match &job.request {
            DiskOp::Read { range, holes } => {
                // Asked here and not on the helper: the filesystem nearly always knows from
                // memory, in 1 µs, and the way to another thread takes 20.
                if *holes && self.file.is_hole(*range) {
                    return Some(job.done(Ok(Outcome::Zeroes)));
                }
                match usize::try_from(range.len) {
                    Ok(len) => Some(self.pool.get(len)),
                    Err(_) => return Some(job.done(Err(Errno::INVAL))),
                }
            }
            DiskOp::Write { .. } | DiskOp::Flush => None,
            DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => return self.submit_helped(job),
        };
        let slot = Slot { job, buffer, done: 0, retries: 0, durable_error: None };
        let key = self.slots.insert(slot);
        self.push(key);
        None
    }

    pub(crate) const fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        submitter.unregister_eventfd()?;
        submitter.register_eventfd(wake.as_fd().as_raw_fd())?;
        self.wake = Arc::clone(wake);
        if let Some(helper) = &self.helper {
            helper.rewire(wake);
        }
        Ok(())
    }

    /// Whether the ring has nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.ended.is_empty()
    }

    fn submit_helped(&mut self, job: Job) -> Option<Done> {
        if self.helper.is_none() {
            match Blocking::start(&self.file, &self.pool, &self.wake, 1) {
                Ok(helper) => self.helper = Some(helper),
                Err(error) => {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                    return Some(job.done(Err(errno)));
                }
            }
        }
        self.helper.as_ref().and_then(|helper| helper.submit(job))
    }

    /// Pushes the slot's request, or puts it on the backlog.
    fn push(&mut self, key: usize) {
        if self.in_kernel >= self.depth {
            self.backlog.push_back(key);
            return;
        }
        let entry = self.slots[key].entry(&self.file).user_data(key as u64);
        // SAFETY: the memory and the descriptor that the entry names belong to the slot and to
        // `self.file`. The slot is removed only when its completion was seen; where that cannot
        // be waited for, `give_up` and `drop` leak it. The kernel itself holds the file from
        // submission on, and `self.file` lives until then.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.backlog.push_back(key);
            return;
        }
        self.in_kernel += 1;
        self.unsubmitted += 1;
    }

    /// Tells the kernel of everything that was pushed.
    pub(crate) fn kick(&mut self) {
        if self.unsubmitted == 0 {
            return;
        }
        match self.ring.submit() {
            Ok(count) => {
                self.unsubmitted -= count.min(self.unsubmitted);
                self.refusals = 0;
            }
            Err(error) => {
                self.refusals += 1;
                if self.refusals > MAX_RETRIES {
                    tracing::error!(%error, "io_uring takes no requests any more");
                    self.give_up();
                }
            }
        }
        if self.unsubmitted > 0 {
            self.wake.signal();
        }
    }

    /// Fails every job. The kernel may still own memory of them, so that is never freed.
    fn give_up(&mut self) {
        self.broken = true;
        self.unsubmitted = 0;
        self.backlog.clear();
        for (_, slot) in std::mem::take(&mut self.slots) {
            self.ended.push(slot.job.done(Err(Errno::IO)));
            std::mem::forget(slot);
        }
        self.wake.signal();
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        if let Some(helper) = &self.helper {
            helper.collect(out);
        }
        self.reap(out);
        while self.in_kernel < self.depth
            && let Some(key) = self.backlog.pop_front()
        {
            self.push(key);
        }
        self.kick();
        out.append(&mut self.ended);
    }

    fn reap(&mut self, out: &mut Vec<Done>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(
            self.ring.completion().map(|entry: cqueue::Entry| (entry.user_data(), entry.result())),
        );
        for (user_data, result) in reaped.drain(..) {
            let key = usize::try_from(user_data).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get_mut(key) else { continue };
            self.in_kernel -= 1;
            match slot.advance(result) {
                Next::Restart => self.push(key),
                Next::Finish(result) => {
                    let slot = self.slots.remove(key);
                    out.push(slot.job.done(result));
                }
            }
        }
        self.reaped = reaped;
    }
}

impl Slot {
    /// What the kernel is asked for next.
    fn entry(&mut self, file: &BackingFile) -> squeue::Entry {
        let fd = types::Fd(file.as_fd().as_raw_fd());
        match &self.job.request {
            DiskOp::Read { range, .. } => {
                let rest = match &mut self.buffer {
                    Some(buffer) => &mut buffer[self.done..],
                    None => &mut [],
                };
                opcode::Read::new(fd, rest.as_mut_ptr(), length(rest))
                    .offset(range.offset + self.done as u64)
                    .build()
            }
            DiskOp::Write { range, data, .. } => {
                let rest = &data[self.done..];
                let durable = self.job.tag == Tag::Durable && self.durable_error.is_none();
                opcode::Write::new(fd, rest.as_ptr(), length(rest))
                    .offset(range.offset + self.done as u64)
                    .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
        }
    }

    /// Takes the kernel's answer: negative errno or the number of bytes done.
    fn advance(&mut self, result: i32) -> Next {
        let count = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) => return self.failed(Errno::from_raw_os_error(result.saturating_neg())),
        };
        let wanted = match &self.job.request {
            DiskOp::Read { range, .. } | DiskOp::Write { range, .. } => range.len,
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => 0,
        };
        self.done += count;
        if (self.done as u64) < wanted {
            // Nothing at all means that the file was cut while it was open.
            return if count == 0 { self.failed(Errno::IO) } else { Next::Restart };
        }
        if let Some(error) = self.durable_error {
            self.job.tag = Tag::DurableFailed;
            return Next::Finish(Err(error));
        }
        let data = self.buffer.take().map(AlignedBuf::freeze);
        Next::Finish(Ok(data.map_or(Outcome::Done, Outcome::Data)))
    }

    fn failed(&mut self, error: Errno) -> Next {
        if matches!(error, Errno::INTR | Errno::AGAIN) && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Next::Restart;
        }
        if self.job.tag == Tag::Durable && self.durable_error.is_none() {
            // A bad sector can be remapped, a failed flush ends the disk: which one was it? The
            // same data once more, without the flush, answers that and harms nothing.
            self.durable_error = Some(error);
            self.done = 0;
            return Next::Restart;
        }
        Next::Finish(Err(error))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What the kernel was never told of is not owned by it.
        for key in std::mem::take(&mut self.backlog) {
            self.slots.remove(key);
        }
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut ended = Vec::new();
        while self.in_kernel > 0 && !self.broken {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wake.clear();
            self.kick();
            self.reap(&mut ended);
            ended.clear();
            if self.in_kernel > 0 {
                self.wake.wait(left.min(Duration::from_millis(100)));
            }
        }
        if self.in_kernel > 0 {
            tracing::warn!(
                requests = self.in_kernel,
                "a disk is closed while the kernel still works on it; its buffers are leaked"
            );
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// A length as the kernel takes it. Transfers are far below 4 GiB; a longer one would be cut
/// short here and continued.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(1 << 30)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use holdfast_units::ByteRange;
    use rustix::io::Errno;

    use super::{MAX_RETRIES, Next, Slot, Uring};
    use crate::engine::{Job, Mark, Tag};
    use crate::file::BackingFile;
    use crate::wake::Wake;
    use crate::{BackingKind, BufferPool, DiskOp, OpId, Outcome};

    fn write(tag: Tag) -> Slot {
        let range = ByteRange::new(4096, 8192);
        let data = Bytes::from(vec![1; 8192]);
        let request = DiskOp::Write { range, data, fua: tag == Tag::Durable };
        let job = Job { op: OpId(1), tag, mark: Mark::default(), request };
        Slot { job, buffer: None, done: 0, retries: 0, durable_error: None }
    }

    fn end(next: Next) -> Option<Result<Outcome, Errno>> {
        match next {
            Next::Finish(result) => Some(result),
            Next::Restart => None,
        }
    }

    #[test]
    fn a_short_transfer_goes_on_with_the_rest() {
        let mut slot = write(Tag::Plain);
        assert_eq!(end(slot.advance(4096)), None);
        assert_eq!(slot.done, 4096);
        assert_eq!(end(slot.advance(4096)), Some(Ok(Outcome::Done)));

        let mut slot = write(Tag::Plain);
        assert_eq!(end(slot.advance(0)), Some(Err(Errno::IO)), "the file was cut");
    }

    #[test]
    fn an_interrupted_request_is_repeated_but_not_for_ever() {
        let mut slot = write(Tag::Plain);
        for _ in 0..MAX_RETRIES {
            assert_eq!(end(slot.advance(-libc::EINTR)), None);
        }
        assert_eq!(end(slot.advance(-libc::EINTR)), Some(Err(Errno::INTR)));
    }

    #[test]
    fn a_failed_durable_write_finds_out_which_half_failed() {
        let mut slot = write(Tag::Durable);
        assert_eq!(end(slot.advance(4096)), None);
        assert_eq!(end(slot.advance(-libc::EIO)), None);
        assert_eq!(slot.done, 0, "all of it is written again");
        assert_eq!(end(slot.advance(8192)), Some(Err(Errno::IO)));
        assert_eq!(slot.job.tag, Tag::DurableFailed, "the write was good, so the flush failed");

        let mut slot = write(Tag::Durable);
        assert_eq!(end(slot.advance(-libc::EIO)), None);
        assert_eq!(end(slot.advance(-libc::ENOSPC)), Some(Err(Errno::NOSPC)));
        assert_eq!(slot.job.tag, Tag::Durable, "the write itself failed");
    }

    #[test]
    fn a_ring_that_was_given_up_fails_every_job() {
        let file = Arc::new(BackingFile::new(
            tempfile::tempfile().unwrap(),
            BackingKind::File,
            false,
            None,
        ));
        let wake = Arc::new(Wake::new().unwrap());
        let Ok(mut ring) = Uring::start(&file, &BufferPool::new(0), &wake, 1) else {
            eprintln!("skipped: io_uring cannot be used here");
            return;
        };
        for _ in 0..3 {
            assert!(ring.submit(write(Tag::Plain).job).is_none());
        }
        ring.give_up();
        let mut out = Vec::new();
        ring.collect(&mut out);
        assert_eq!(out.len(), 3);
        assert!(out.iter().all(|done| done.result == Err(Errno::IO)));
        assert!(ring.submit(write(Tag::Plain).job).is_some(), "refused at once");
    }
}
