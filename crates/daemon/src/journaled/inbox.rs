//! What the thread of a journaled disk is told: operations and calls, in order.

use super::worker::Worker;
use holdfast_store::{DiskOp, Ticket};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is longer is copied and summed up by the thread, so that the shard has time for others.
const SMALL: u64 = 128 << 10;

/// One thing for the thread to do.
pub(super) enum Order {
    /// An operation of the disk's client.
    Op(DiskOp, Ticket),
    /// Anything else.
    Call(Box<dyn FnOnce(&mut Worker) + Send>),
}

/// The list of what is to be done. Bounded by those who put in: a disk by the operations that it
/// may have in flight, handles by permits.
pub(super) struct Inbox {
    orders: Mutex<Orders>,
    bell: OwnedFd,
    /// The thread is to look, whatever it does now.
    called: AtomicBool,
    /// The thread sleeps, or is about to: the bell must be rung.
    asleep: AtomicBool,
}

#[derive(Default)]
struct Orders {
    list: Vec<Order>,
    /// The thread has ended: what is put in is dropped, which tells whoever waits.
    closed: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            orders: Mutex::default(),
            bell,
            called: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
        })
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        // The list is whole between any two statements, so a panic elsewhere spoils nothing.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts it in, and tells the thread.
    pub(super) fn push(&self, order: Order) {
        self.put(order);
        self.ring();
    }

    /// Puts it in. Somebody has to look soon.
    pub(super) fn put(&self, order: Order) {
        {
            let mut orders = self.orders();
            if orders.closed {
                drop(orders);
                // Outside of the lock: a ticket that is dropped tells its disk.
                return drop(order);
            }
            orders.list.push(order);
        }
    }

    /// The thread is to look.
    pub(super) fn ring(&self) {
        self.called.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // A full counter is readable already, so an error has nothing to tell.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Takes all that is there.
    pub(super) fn take(&self, into: &mut Vec<Order>) {
        std::mem::swap(&mut self.orders().list, into);
    }

    /// Takes operations up to the first one that is long, or the first call. Whether that was all.
    pub(super) fn take_small(&self, into: &mut Vec<Order>) -> bool {
        let mut orders = self.orders();
        let small = |order: &Order| match order {
            Order::Op(request, _) => request.range().len <= SMALL,
            Order::Call(_) => false,
        };
        let end = orders.list.iter().position(|order| !small(order));
        match end {
            None => std::mem::swap(&mut orders.list, into),
            Some(end) => into.extend(orders.list.drain(..end)),
        }
        end.is_none()
    }

    /// Nothing is taken any more; what is there is dropped.
    pub(super) fn close(&self) {
        let left = {
            let mut orders = self.orders();
            orders.closed = true;
            std::mem::take(&mut orders.list)
        };
        drop(left);
    }

    /// The thread begins to look at everything.
    pub(super) fn looks(&self) {
        self.called.store(false, Ordering::SeqCst);
    }

    /// Whether it is to look again.
    pub(super) fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }

    /// The thread is about to sleep. False when there is something to do, and it must not.
    pub(super) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        let may = !self.is_called();
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
        }
        may
    }

    /// It has slept.
    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        let mut counter = [0; 8];
        // It may not have been rung, so an error has nothing to tell.
        let _ = rustix::io::read(&self.bell, &mut counter);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
