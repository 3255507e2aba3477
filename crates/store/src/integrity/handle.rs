//! What others may know and want of the layer, from whatever thread.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ChecksumFile;
use crate::wake::Wake;

/// How the checksums of a disk stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumMode {
    /// There are none.
    Off,
    /// They are kept; some are not computed yet.
    Building,
    /// Every block has one.
    On,
    /// Their file failed: what is read is not verified any more.
    Failed,
}

/// What the layer for checksums has and did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChecksumStats {
    /// How they stand.
    pub mode: ChecksumMode,
    /// Pages of sums, for 1008 blocks each.
    pub pages: u64,
    /// Pages in which each block has a sum.
    pub complete: u64,
    /// Pages that would be computed anew after a crash now, because they were written to.
    pub unsettled: u64,
    /// Blocks that were read and did not fit their sum, since the disk was opened; each failed read
    /// counts.
    pub checksum_errors: u64,
    /// Pages of sums that were broken themselves, and were computed anew.
    pub broken_pages: u64,
    /// Why they are not kept any more.
    pub problem: Option<String>,
}

impl ChecksumStats {
    /// How much of the disk has checksums, in percent, rounded down.
    #[must_use]
    pub const fn percent(&self) -> u8 {
        match (self.mode, self.pages) {
            (ChecksumMode::Off | ChecksumMode::Failed, _) => 0,
            (_, 0) => 100,
            // At most 100.
            (_, pages) => (self.complete as u128 * 100 / pages as u128) as u8,
        }
    }
}

/// What is wanted of the layer.
#[derive(Default)]
pub(super) struct Wishes {
    /// Another file, or none.
    pub(super) change: Option<Option<ChecksumFile>>,
    /// Ticks since the last look, and pages that may be computed.
    pub(super) ticks: u32,
    pub(super) pages: u32,
}

#[derive(Default)]
pub(super) struct Figures {
    mode: AtomicU8,
    pub(super) covered: AtomicU64,
    pages: AtomicU64,
    complete: AtomicU64,
    unsettled: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) broken: AtomicU64,
    pub(super) problem: Mutex<Option<String>>,
}

#[derive(Default)]
struct Shared {
    asked: AtomicBool,
    wishes: Mutex<Wishes>,
    figures: Figures,
}

/// The layer for checksums of a disk, for those who do not drive the disk. Clones are of the same.
#[derive(Clone)]
pub struct ChecksumHandle {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
}

impl std::fmt::Debug for ChecksumHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChecksumHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Wishes are plain values; those of a thread that panicked are as good as others.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChecksumHandle {
    pub(super) fn new(wake: &Arc<Wake>) -> Self {
        Self { shared: Arc::default(), wake: Arc::clone(wake) }
    }

    /// How it stands, as of a moment ago.
    #[must_use]
    pub fn stats(&self) -> ChecksumStats {
        let figures = &self.shared.figures;
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        ChecksumStats {
            mode: match figures.mode.load(Ordering::Relaxed) {
                0 => ChecksumMode::Off,
                1 => ChecksumMode::Building,
                2 => ChecksumMode::On,
                _ => ChecksumMode::Failed,
            },
            pages: get(&figures.pages),
            complete: get(&figures.complete),
            unsettled: get(&figures.unsettled),
            checksum_errors: get(&figures.errors),
            broken_pages: get(&figures.broken),
            problem: lock(&figures.problem).clone(),
        }
    }

    /// How many bytes of the disk have checksums, when there are any.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.shared.figures.covered.load(Ordering::Relaxed)
    }

    /// Says why there are none although there should be.
    pub fn report(&self, problem: String) {
        self.shared.figures.say(Some(problem));
    }

    /// Keeps checksums in this file from now on, as soon as what is under way has ended.
    pub fn turn_on(&self, file: ChecksumFile) {
        self.wish(|wishes| wishes.change = Some(Some(file)));
    }

    /// Keeps none any more. The file is closed when [`Self::stats`] says `Off`, and of no use then.
    pub fn turn_off(&self) {
        self.wish(|wishes| wishes.change = Some(None));
    }

    /// To be called five times a second: at most `pages` pages (of 3.9 MiB each) that lack sums are
    /// computed until the next time, and what was not written to for ten seconds is settled.
    pub fn tick(&self, pages: u32) {
        self.wish(|wishes| {
            wishes.ticks = wishes.ticks.saturating_add(1);
            wishes.pages = pages;
        });
    }

    fn wish(&self, wish: impl FnOnce(&mut Wishes)) {
        let mut wishes = lock(&self.shared.wishes);
        wish(&mut wishes);
        self.shared.asked.store(true, Ordering::Release);
        // With the lock: who finds the wish can be sure that the signal was given.
        self.wake.signal();
    }

    pub(super) fn is_asked(&self) -> bool {
        self.shared.asked.load(Ordering::Acquire)
    }

    /// What is wanted, if anything is. The signal for it is taken back; whoever calls this must look
    /// for everything else that may have signalled.
    pub(super) fn take(&self) -> Option<Wishes> {
        if !self.is_asked() {
            return None;
        }
        let mut wishes = lock(&self.shared.wishes);
        self.shared.asked.store(false, Ordering::Release);
        self.wake.clear();
        Some(std::mem::take(&mut *wishes))
    }

    pub(super) fn figures(&self) -> &Figures {
        &self.shared.figures
    }
}

impl Figures {
    pub(super) fn tell(&self, mode: ChecksumMode, pages: u64, complete: u64, unsettled: u64) {
        let number = match mode {
            ChecksumMode::Off => 0,
            ChecksumMode::Building => 1,
            ChecksumMode::On => 2,
            ChecksumMode::Failed => 3,
        };
        self.pages.store(pages, Ordering::Relaxed);
        self.complete.store(complete, Ordering::Relaxed);
        self.unsettled.store(unsettled, Ordering::Relaxed);
        self.mode.store(number, Ordering::Relaxed);
    }

    pub(super) fn say(&self, problem: Option<String>) {
        *lock(&self.problem) = problem;
    }
}
