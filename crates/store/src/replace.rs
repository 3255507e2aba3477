//! The backing of a disk is replaced while it is used: a layer between [`crate::Disk`] and its
//! engine. What it promises, and what an interruption leaves: `docs/design/replace-disk.md`.

mod copier;
mod layer;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_units::ByteRange;

use crate::Disk;
use crate::engine::Engine;
use crate::wake::Wake;
pub(crate) use layer::{Replace, Work};

/// So many blocks of 4 KiB can be left over. A disk with more of them does not have bad sectors: it
/// is gone.
pub const MAX_LEFT_OVER: usize = 65_536;
/// So many ranges of them are told.
const SHOWN: usize = 32;

/// How far the replacement of a disk is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ReplaceState {
    /// None was begun, or it was ended by [`ReplaceHandle::stop`].
    #[default]
    None,
    /// The new disk is being filled; it has not everything yet.
    Copying,
    /// Both have the same, and get the same.
    InStep,
    /// Both have the same, the new one durably, and requests wait.
    Held,
    /// The new one is the disk.
    Switched,
    /// It has ended, and the old one is the disk: a sentence that says why.
    Failed(String),
    /// The disk was closed.
    Closed,
}

/// What is known of the replacement of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplaceStatus {
    /// How far it is.
    pub state: ReplaceState,
    /// Bytes that are to be copied.
    pub total: u64,
    /// Bytes, from the start on, that were looked at and copied as far as they could be read.
    pub done: u64,
    /// How many of those were holes.
    pub holes: u64,
    /// How many blocks of 4 KiB could not be read, and were not written since.
    pub left_over: u64,
    /// Where the first of them are.
    pub left_over_at: Vec<ByteRange>,
}

/// A disk that was replaced, on its way to be closed: what that takes, dropping it takes.
pub struct RetiredDisk {
    _engine: Engine,
}

impl std::fmt::Debug for RetiredDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetiredDisk").finish_non_exhaustive()
    }
}

/// What is to be done, on the thread of the disk.
pub(crate) enum Order {
    Begin { new: Box<Disk>, size: u64, rate: u64 },
    Stop,
    Hold,
    Release,
    Switch,
    Fail(String),
    Again,
}

/// What the layer and those who have the handle share.
pub(crate) struct Link {
    orders: Mutex<VecDeque<Order>>,
    /// There are orders, or the time is to be looked at.
    called: AtomicBool,
    /// The copier pauses, or waits for an answer that may not come.
    waits: AtomicBool,
    wake: Mutex<Arc<Wake>>,
    status: Mutex<ReplaceStatus>,
    /// It cannot be ended any more. Changed only with the lock on the status.
    committed: AtomicBool,
    retired: Mutex<Option<RetiredDisk>>,
    /// What could not be read, for whoever can have it stored again. More than can be left over is not
    /// kept.
    unreadable: Mutex<Vec<ByteRange>>,
}

impl Link {
    pub(crate) fn new(wake: &Arc<Wake>) -> Arc<Self> {
        Arc::new(Self {
            orders: Mutex::default(),
            called: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            wake: Mutex::new(Arc::clone(wake)),
            status: Mutex::default(),
            committed: AtomicBool::new(false),
            retired: Mutex::default(),
            unreadable: Mutex::default(),
        })
    }

    pub(crate) fn rewire(&self, wake: &Arc<Wake>) {
        *lock(&self.wake) = Arc::clone(wake);
    }

    /// Whether the disk is to look; not any more then.
    pub(crate) fn take_call(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::AcqRel)
    }

    /// Whether the disk is to look.
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire)
    }

    pub(crate) fn next_order(&self) -> Option<Order> {
        lock(&self.orders).pop_front()
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut ReplaceStatus)) {
        change(&mut lock(&self.status));
    }

    /// It ends so, unless [`ReplaceHandle::commit`] came before. Whether it does.
    pub(crate) fn end(&self, state: ReplaceState) -> bool {
        let mut status = lock(&self.status);
        let ends = !self.committed.load(Ordering::Relaxed);
        if ends {
            status.state = state;
        }
        ends
    }

    /// What was committed is decided, or not to be done.
    pub(crate) fn decided(&self) {
        let _status = lock(&self.status);
        self.committed.store(false, Ordering::Relaxed);
    }

    pub(crate) fn unreadable(&self, ranges: Vec<ByteRange>) {
        if !ranges.is_empty() {
            let mut known = lock(&self.unreadable);
            let room = MAX_LEFT_OVER.saturating_sub(known.len());
            known.extend(ranges.into_iter().take(room));
        }
    }

    pub(crate) fn retire(&self, engine: Engine) {
        *lock(&self.retired) = Some(RetiredDisk { _engine: engine });
    }

    pub(crate) fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Release);
    }

    fn order(&self, order: Order) {
        lock(&self.orders).push_back(order);
        self.call();
    }

    fn call(&self) {
        self.called.store(true, Ordering::Release);
        lock(&self.wake).signal();
    }
}

/// Tells those who have the handle when the disk is gone.
pub(crate) struct LinkEnd(pub(crate) Arc<Link>);

impl Drop for LinkEnd {
    fn drop(&mut self) {
        lock(&self.0.orders).clear();
        self.0.tell(|status| status.state = ReplaceState::Closed);
    }
}

/// Has the backing of a disk replaced, from any thread. Orders are carried out by the thread that
/// drives the disk, soon; [`Self::status`] tells when they were.
#[derive(Clone)]
pub struct ReplaceHandle(Arc<Link>);

impl ReplaceHandle {
    pub(crate) fn new(link: &Arc<Link>) -> Self {
        Self(Arc::clone(link))
    }

    /// Begins to copy the first `size` bytes to `new`, which must have as many, at most `rate` bytes
    /// a second (0: as fast as it goes). Nothing may have been submitted to `new`. When it cannot
    /// be, or a replacement is under way, the state becomes `Failed`.
    pub fn begin(&self, new: Disk, size: u64, rate: u64) {
        lock(&self.0.unreadable).clear();
        self.0.tell(|status| {
            *status = ReplaceStatus {
                state: ReplaceState::Copying,
                total: size,
                ..ReplaceStatus::default()
            };
        });
        self.0.order(Order::Begin { new: Box::new(new), size, rate });
    }

    /// Ends it: the old disk stays. Nothing happens when none is under way.
    pub fn stop(&self) {
        self.0.order(Order::Stop);
    }

    /// As soon as both disks are in step: lets requests wait, ends those under way, makes everything
    /// durable on the new disk. The state becomes `Held`.
    pub fn hold(&self) {
        self.0.order(Order::Hold);
    }

    /// In `Held`: nothing ends it from now on but [`Self::release`], [`Self::switch`],
    /// [`Self::fail`] and the end of the disk. Gives whether it is so; `false` when it is not held any
    /// more. To be called before it is said anywhere that the new disk is the disk.
    #[must_use]
    pub fn commit(&self) -> bool {
        let status = lock(&self.0.status);
        let held = status.state == ReplaceState::Held;
        if held {
            self.0.committed.store(true, Ordering::Relaxed);
        }
        held
    }

    /// From `Held`, or on the way there: requests go on, to both disks.
    pub fn release(&self) {
        self.0.order(Order::Release);
    }

    /// From `Held`: the new disk takes the place of the old one, and requests go on.
    pub fn switch(&self) {
        self.0.order(Order::Switch);
    }

    /// From `Held`: neither disk is used any more, because it is not known which of them will be taken
    /// for the disk by the next start. All requests fail; the state becomes `Failed` with this sentence.
    pub fn fail(&self, why: String) {
        self.0.order(Order::Fail(why));
    }

    /// Blocks of the old disk that could not be read, each time that this was tried; told once. Whoever has
    /// them stored again has them copied, too.
    #[must_use]
    pub fn take_unreadable(&self) -> Vec<ByteRange> {
        std::mem::take(&mut *lock(&self.0.unreadable))
    }

    /// Tries again to read what could not be read.
    pub fn try_again(&self) {
        self.0.order(Order::Again);
    }

    /// Time has passed. To be called every few milliseconds while a replacement is under way: the
    /// layer has no clock that wakes it.
    pub fn tick(&self) {
        if self.0.waits.load(Ordering::Acquire) {
            self.0.call();
        }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> ReplaceStatus {
        lock(&self.0.status).clone()
    }

    /// The disk that was replaced, once, after the state became `Switched`. Dropping it closes it,
    /// which can take as long as the device below takes.
    #[must_use]
    pub fn take_retired(&self) -> Option<RetiredDisk> {
        lock(&self.0.retired).take()
    }
}

impl std::fmt::Debug for ReplaceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplaceHandle").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// What is locked here is whole between any two statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
