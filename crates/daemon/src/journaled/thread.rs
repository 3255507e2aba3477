//! Who works on a journal: its own thread, and for what needs no waiting the thread of the shard.
//!
//! Waking another thread takes longer than to append a small write, so the shard does that itself.
//! Whoever works holds the worker, and nobody waits for it on the shard: when the thread has it,
//! what there is to do is left in the inbox. The thread gives it away while it waits for a sync.

use super::inbox::Inbox;
use super::worker::Worker;
use holdfast_nbd::Spinner;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The shard has the worker for a few microseconds; sleeping until it gives it back takes longer.
const MOMENT: Duration = Duration::from_micros(30);

/// The worker, for the one who works; nothing any more when it has ended.
pub(super) struct Baton(Mutex<Option<Box<Worker>>>);

impl Baton {
    pub(super) fn new(worker: Worker) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(worker)))))
    }

    fn take(&self) -> MutexGuard<'_, Option<Box<Worker>>> {
        let begin = Instant::now();
        while begin.elapsed() < MOMENT {
            if let Some(held) = self.try_take() {
                return held;
            }
            std::thread::yield_now();
        }
        // A thread that panics with it ends the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self) -> Option<MutexGuard<'_, Option<Box<Worker>>>> {
        match self.0.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// On the shard's thread: does what was submitted as far as nothing has to be waited for, and
    /// leaves the rest to the journal's thread.
    pub(super) fn visit(&self, inbox: &Inbox) {
        match self.try_visit() {
            Some(true) => {}
            Some(false) => inbox.ring(),
            None => {
                inbox.ring();
                // It may have been given away before it was called, for as long as a sync takes.
                self.try_visit();
            }
        }
    }

    /// Whether nothing is left for the thread; nothing when it has the worker.
    fn try_visit(&self) -> Option<bool> {
        self.try_take()?.as_mut().map(|worker| worker.visit())
    }
}

/// The journal's thread: works until the worker ends. `disk` is readable when the backing disk has
/// completed something.
pub(super) fn run(baton: &Baton, inbox: &Inbox, disk: &OwnedFd) {
    let _guard = EndWithThread;
    let mut orders = Vec::new();
    let spin = Spinner::usual_time();
    loop {
        inbox.looks();
        let mut held = baton.take();
        let Some(worker) = held.as_mut() else { return };
        worker.turn(&mut orders);
        if worker.is_over() {
            let worker = held.take();
            drop(held);
            return worker.into_iter().for_each(|worker| worker.close());
        }
        if let Some(mut sync) = worker.begin_sync() {
            drop(held);
            // What came while the thread had the worker does not wait for the sync.
            while inbox.is_called() {
                inbox.looks();
                baton.take().as_mut().map(|worker| worker.visit());
            }
            let result = sync.wait();
            if let Some(worker) = baton.take().as_mut() {
                worker.end_sync(&sync, result);
            }
            continue;
        }
        if worker.moved {
            continue;
        }
        let spin = if worker.is_worth_polling() { spin } else { Duration::ZERO };
        let wake = worker.sleeps();
        drop(held);
        sleep(inbox, disk, wake, spin);
    }
}

/// Waits for something to do: at first awake, because to be woken takes longer.
fn sleep(inbox: &Inbox, disk: &OwnedFd, wake: Option<Instant>, spin: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < spin {
        if inbox.is_called() {
            return;
        }
        // Somebody else may want this CPU, and be the one who calls.
        std::thread::yield_now();
    }
    if !inbox.may_sleep() {
        return;
    }
    let timeout = wake.map(|at| {
        // Not a moment too early: it would look, and sleep again.
        let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
    });
    let mut fds = [PollFd::new(inbox, PollFlags::IN), PollFd::new(disk, PollFlags::IN)];
    // An interruption is the end of the wait.
    let _ = poll(&mut fds, timeout.as_ref());
    inbox.awake();
}

/// Ends the process when its thread panics: nobody would answer any more. After a restart everything
/// is as after a crash, which is safe.
struct EndWithThread;

impl Drop for EndWithThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the thread of a journal panicked; the daemon ends");
            std::process::abort();
        }
    }
}
