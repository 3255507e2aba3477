//! Frames that go around the page cache, several at a time, durable when they end: for those who
//! want everything durable at once. One trip to the device for each, no other thread is woken, and
//! the device may work on several of them.
//!
//! They are answered in order. As long as one is under way, all frames go this way: what is in the
//! page cache would need a sync of its own.

use super::worker::Worker;
use holdfast_journal::Batch;
use holdfast_store::{Bell, BufferPool, Completion, Disk, DiskError, DiskOp, OpId};
use holdfast_units::ByteRange;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io;
use std::time::Instant;

/// So many frames are under way at a time. What comes meanwhile becomes one frame.
pub(super) const MOST: usize = 8;
/// How often it is asked how much is flushed, in writes.
const ASKED: u32 = 64;
/// From so many flushes of that number on, each write is durable before it is answered: the flush
/// that will follow has nothing to wait for.
const OFTEN: u32 = ASKED / 3;
/// Whoever waits for a frame without an event loop looks so often at least.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

struct Flying {
    batch: Batch,
    began: Instant,
    result: Option<Result<(), DiskError>>,
}

struct Segment {
    number: u64,
    begin: u64,
    disk: Disk,
}

/// Frames on their way.
#[derive(Default)]
pub(super) struct Through {
    bell: Option<Bell>,
    segment: Option<Segment>,
    /// There is none for this segment, and will not be.
    without: Option<u64>,
    flying: VecDeque<Flying>,
    next: u64,
    writes: u32,
    flushes: u32,
    often: bool,
    landed: Vec<Completion>,
}

impl Through {
    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.flying.is_empty()
    }

    pub(super) fn saw_flush(&mut self) {
        self.flushes = self.flushes.saturating_add(1);
    }

    pub(super) fn saw_write(&mut self) {
        self.writes += 1;
        if self.writes >= ASKED {
            self.often = self.flushes >= OFTEN;
            (self.writes, self.flushes) = (0, 0);
        }
    }

    /// The journal is another one.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { bell: self.bell.take(), ..Self::default() };
    }

    /// The journal has failed: how frames end does not count any more.
    pub(super) fn forget(&mut self) {
        self.flying.clear();
    }

    fn start(&mut self, batch: Batch, pool: &BufferPool) {
        let Some(segment) = &mut self.segment else { return };
        let len = batch.parts.iter().map(bytes::Bytes::len).sum::<usize>();
        let mut frame = pool.get(len);
        let mut at = 0;
        for part in &batch.parts {
            frame[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let range = ByteRange::new(segment.begin + batch.offset, len as u64);
        let write = DiskOp::Write { range, data: frame.freeze(), fua: true };
        let op = OpId(self.next);
        self.next += 1;
        self.flying.push_back(Flying { batch, began: Instant::now(), result: None });
        if let Some(completion) = segment.disk.submit(op, write) {
            self.landed.push(completion);
        }
    }

    /// Notes what has ended.
    fn gather(&mut self) {
        let Some(segment) = &mut self.segment else { return };
        segment.disk.gather(&mut self.landed);
        let first = self.next - self.flying.len() as u64;
        for Completion { op, result } in self.landed.drain(..) {
            let at = usize::try_from(op.0.wrapping_sub(first)).unwrap_or(usize::MAX);
            if let Some(flying) = self.flying.get_mut(at) {
                flying.result = Some(result.map(drop));
            }
        }
    }

    fn pop_ended(&mut self) -> Option<(Batch, Instant, Result<(), DiskError>)> {
        let ended = self.flying.pop_front_if(|flying| flying.result.is_some())?;
        ended.result.map(|result| (ended.batch, ended.began, result))
    }
}

impl Worker {
    /// On whose eventfd the ends of frames are told.
    pub(super) fn tell_of_frames(&mut self, bell: Bell) {
        self.through.bell = Some(bell);
        self.through.without = None;
    }

    /// Opens the way for the last segment. On the thread: it waits for the filesystem.
    pub(super) fn open_through(&mut self) {
        let last = self.log.journal().last_segment();
        let has = self.through.segment.as_ref().map(|segment| segment.number);
        if !self.through.is_idle() || last.is_none() || has == last || self.through.without == last
        {
            return;
        }
        self.through.segment = None;
        let opened = self.segment_disk();
        self.through.segment = opened.unwrap_or_else(|error| {
            tracing::debug!("frames of the journal go through the page cache: {error}");
            None
        });
        if self.through.segment.is_none() {
            self.through.without = last;
        }
    }

    fn segment_disk(&self) -> io::Result<Option<Segment>> {
        let Some(bell) = &self.through.bell else { return Ok(None) };
        let Some((number, len, file, begin)) = self.log.last_direct()? else { return Ok(None) };
        let depth = u32::try_from(MOST).unwrap_or(1);
        let disk = Disk::of_direct_file(file, begin + len, depth, &self.pool, bell)?;
        Ok(Some(Segment { number, begin, disk }))
    }

    /// Whether the next frame goes around the page cache.
    pub(super) fn goes_through(&self) -> bool {
        if !self.through.is_idle() {
            return true;
        }
        let journal = self.log.journal();
        let has = self.through.segment.as_ref().map(|segment| segment.number);
        has.is_some()
            && has == journal.last_segment()
            && journal.sync_target().is_none()
            && (self.through.often || self.is_durable_wanted())
    }

    /// Starts the next frame. Whether there was one that could be.
    pub(super) fn start_through(&mut self) -> bool {
        let Some(batch) = self.log.next_through() else { return false };
        self.through.start(batch, &self.pool);
        true
    }

    /// Hands to the kernel what was started.
    pub(super) fn kick_through(&mut self) {
        // Before they can end: whoever is woken by that looks at it.
        self.inbox().frames_fly(!self.through.is_idle());
        if let Some(segment) = &mut self.through.segment
            && !self.through.flying.is_empty()
        {
            segment.disk.kick();
        }
    }

    /// Answers those whose frames have ended.
    pub(super) fn land_through(&mut self) {
        if self.through.is_idle() {
            return;
        }
        self.through.gather();
        while let Some((batch, began, result)) = self.through.pop_ended() {
            self.moved = true;
            match result {
                Ok(()) => {
                    self.log.wrote_through(&batch);
                    self.figures.synced(began.elapsed());
                    self.wrote(batch);
                }
                Err(error) => {
                    let error = super::worker::io_error(&error);
                    self.journal_failed("it could not be written", &error);
                }
            }
        }
        self.inbox().frames_fly(!self.through.is_idle());
    }

    /// Waits until no frame is under way, for those who need the journal as it is then.
    pub(super) fn wait_through(&mut self) {
        loop {
            self.kick_through();
            self.land_through();
            let Some(bell) = self.through.bell.clone().filter(|_| !self.through.is_idle()) else {
                return;
            };
            // Somebody else clears it, so it may have been readable for a moment only.
            let _ = poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&LOOK));
        }
    }
}
