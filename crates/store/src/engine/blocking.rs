//! A few threads that block in the place of the caller.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use holdfast_units::ByteRange;
use rustix::io::Errno;

use super::{Done, Job};
use crate::BufferPool;
use crate::file::BackingFile;
use crate::wake::Wake;

/// How long dropping the engine waits for calls that are under way. A thread that is stuck in the
/// kernel for longer keeps its file and its buffers, and ends when the kernel lets it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Blocking {
    /// `None` only during `drop`. Unbounded by type; the disk bounds what is in flight.
    jobs: Option<Sender<Job>>,
    finished: Arc<Finished>,
    file: Weak<BackingFile>,
    /// Disconnected when the last thread has given up its file.
    alive: Receiver<()>,
}

struct Finished {
    list: Mutex<Vec<Done>>,
    wake: Mutex<Arc<Wake>>,
}

impl Blocking {
    pub(crate) fn start(
        file: &Arc<BackingFile>,
        pool: &BufferPool,
        wake: &Arc<Wake>,
        threads: usize,
    ) -> io::Result<Self> {
        let (jobs, queue) = channel();
        let (token, alive) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let finished =
            Arc::new(Finished { list: Mutex::default(), wake: Mutex::new(Arc::clone(wake)) });
        for _ in 0..threads {
            let worker = Worker {
                queue: Arc::clone(&queue),
                finished: Arc::clone(&finished),
                pool: pool.clone(),
                file: Arc::clone(file),
                _alive: token.clone(),
            };
            thread::Builder::new().name("holdfast-disk".into()).spawn(move || worker.run())?;
        }
        Ok(Self { jobs: Some(jobs), finished, file: Arc::downgrade(file), alive })
    }

    pub(crate) fn uncache(&self, range: ByteRange) {
        if let Some(file) = self.file.upgrade() {
            file.uncache(range);
        }
    }

    pub(crate) fn reserve(&self, range: ByteRange) -> Result<(), Errno> {
        self.file.upgrade().map_or(Ok(()), |file| file.reserve(range))
    }

    pub(crate) fn rewire(&self, wake: &Arc<Wake>) {
        *lock(&self.finished.wake) = Arc::clone(wake);
    }

    pub(crate) fn submit(&self, job: Job) -> Option<Done> {
        let Some(jobs) = &self.jobs else { return Some(job.done(Err(Errno::IO))) };
        jobs.send(job).err().map(|unsent| unsent.0.done(Err(Errno::IO)))
    }

    pub(crate) fn collect(&self, out: &mut Vec<Done>) {
        out.append(&mut lock(&self.finished.list));
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.jobs = None;
        if self.alive.recv_timeout(DRAIN_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a disk is closed while the kernel still works on it");
        }
    }
}

struct Worker {
    queue: Arc<Mutex<Receiver<Job>>>,
    finished: Arc<Finished>,
    pool: BufferPool,
    // Fields are dropped in this order: the file must be given up before `_alive` says so.
    file: Arc<BackingFile>,
    _alive: Sender<()>,
}

impl Worker {
    fn run(self) {
        loop {
            // Its own statement, so that the lock is free while the job runs.
            let job = lock(&self.queue).recv();
            let Ok(job) = job else { return };
            let done = job.done(self.file.run(&job.request, &self.pool));
            drop(job);
            lock(&self.finished.list).push(done);
            lock(&self.finished.wake).signal();
        }
    }
}

/// What is locked here is whole between any two statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
