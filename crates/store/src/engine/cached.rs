//! A file on a disk, through the page cache.
//!
//! What the cache has is read on the calling thread, and writes go there, too: 1 µs each, where the
//! ring would hand a write to a worker thread and wait to be woken (30 µs). What the cache does not
//! have is read through the ring, and so is everything that waits for the device. The owner can
//! allow one exception: a flush that nothing else is under way with. To wake a worker and to be
//! woken by it would take as long as a fast disk does. Where flushes turn out slow, they leave the
//! thread alone for a while.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::uring::Uring;
use super::{Done, Job};
use crate::file::BackingFile;
use crate::wake::Wake;
use crate::{BufferPool, DiskOp, Outcome};

/// A flush that takes longer is slow.
const SLOW: Duration = Duration::from_millis(2);
/// After a slow flush none is done on the calling thread for so many times as long.
const PAUSE: u32 = 50;

pub(crate) struct Cached {
    file: Arc<BackingFile>,
    pool: BufferPool,
    ring: Uring,
    /// Whether a flush may hold up the calling thread.
    flushes_here: bool,
    pace: Pace,
}

impl Cached {
    pub(crate) fn new(file: &Arc<BackingFile>, pool: &BufferPool, ring: Uring) -> Self {
        Self {
            file: Arc::clone(file),
            pool: pool.clone(),
            ring,
            flushes_here: false,
            pace: Pace::default(),
        }
    }

    pub(crate) fn flush_here(&mut self, here: bool) {
        self.flushes_here = here;
    }

    fn may_flush_here(&self) -> bool {
        self.flushes_here && self.ring.is_idle() && self.pace.allows(Instant::now())
    }

    pub(crate) fn submit(&mut self, job: Job) -> Option<Done> {
        match &job.request {
            DiskOp::Read { range, holes } => {
                if !(*holes && self.file.is_hole(*range))
                    && let Ok(len) = usize::try_from(range.len)
                {
                    let mut buffer = self.pool.get(len);
                    if self.file.read_cached(range.offset, &mut buffer) {
                        return Some(job.done(Ok(Outcome::Data(buffer.freeze()))));
                    }
                }
                self.ring.submit(job)
            }
            DiskOp::Write { .. } => Some(job.done(self.file.run(&job.request, &self.pool))),
            DiskOp::Flush if self.may_flush_here() => {
                let start = Instant::now();
                let result = self.file.run(&job.request, &self.pool);
                self.pace.took(start, start.elapsed());
                Some(job.done(result))
            }
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => {
                self.ring.submit(job)
            }
        }
    }

    pub(crate) const fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    pub(crate) fn rewire(&mut self, wake: &Arc<Wake>) -> io::Result<()> {
        self.ring.rewire(wake)
    }

    pub(crate) fn kick(&mut self) {
        self.ring.kick();
    }

    pub(crate) fn collect(&mut self, out: &mut Vec<Done>) {
        self.ring.collect(out);
    }
}

/// Whether flushes are fast enough to be waited for.
#[derive(Default)]
struct Pace {
    /// Not before.
    paused: Option<Instant>,
}

impl Pace {
    fn allows(&self, now: Instant) -> bool {
        self.paused.is_none_or(|until| now >= until)
    }

    /// A flush that began at `start` has taken so long.
    fn took(&mut self, start: Instant, time: Duration) {
        self.paused = (time > SLOW).then(|| start + time + time.saturating_mul(PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::{PAUSE, Pace, SLOW};
    use std::time::{Duration, Instant};

    #[test]
    fn after_a_slow_flush_the_thread_is_left_alone_for_a_while() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.took(start, SLOW);
        assert!(pace.allows(start));
        pace.took(start, SLOW * 2);
        let over = start + SLOW * 2 * (1 + PAUSE);
        assert!(!pace.allows(over - Duration::from_millis(1)));
        assert!(pace.allows(over));
        pace.took(over, Duration::ZERO);
        assert!(pace.allows(over));
    }
}
