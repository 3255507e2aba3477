//! What the thread of a journaled disk is told: operations and calls, in order.

use super::worker::Worker;
use holdfast_store::{DiskOp, Ticket};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is longer is copied and summed up by the thread, so that the shard has time for others.
pub(super) const SMALL: u64 = 128 << 10;

/// A call, with what it needs.
pub(super) type Work = Box<dyn FnOnce(&mut Worker) + Send>;

/// One thing for the thread to do.
pub(super) enum Order {
    /// An operation of the disk's client.
    Op(DiskOp, Ticket),
    /// What looks at the journal and changes nothing for operations: these may go first.
    Look(Work),
    /// Anything else.
    Call(Work),
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
    /// Frames are on their way to the device: when they end, somebody has to look.
    frames: AtomicBool,
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
            frames: AtomicBool::new(false),
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

    /// Whether frames are on their way.
    pub(super) fn frames_fly(&self, fly: bool) {
        self.frames.store(fly, Ordering::SeqCst);
    }

    pub(super) fn do_frames_fly(&self) -> bool {
        self.frames.load(Ordering::SeqCst)
    }

    /// Takes all that is there.
    pub(super) fn take(&self, into: &mut Vec<Order>) {
        std::mem::swap(&mut self.orders().list, into);
    }

    /// Takes operations up to the first one that is longer than `longest`, or the first call that
    /// they may not overtake. Whether that was all. Operations keep their order: what a peer lacks
    /// is told by the positions at which they get into the journal.
    pub(super) fn take_short(&self, longest: u64, into: &mut Vec<Order>) -> bool {
        let mut orders = self.orders();
        let short = |order: &Order| match order {
            Order::Op(request, _) => request.range().len <= longest,
            Order::Look(_) | Order::Call(_) => false,
        };
        if orders.list.iter().all(short) {
            std::mem::swap(&mut orders.list, into);
            return true;
        }
        let mut left = Vec::with_capacity(orders.list.len());
        let mut list = orders.list.drain(..);
        for order in list.by_ref() {
            match order {
                Order::Look(_) => left.push(order),
                _ if short(&order) => into.push(order),
                _ => {
                    left.push(order);
                    break;
                }
            }
        }
        left.extend(list);
        orders.list = left;
        false
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

#[cfg(test)]
mod tests {
    use super::{Inbox, Order, SMALL};
    use holdfast_store::{
        BufferPool, Disk, DiskInfo, DiskOp, ExternalDisk, MemoryStore, OpId, Ticket,
    };
    use holdfast_units::ByteRange;
    use std::sync::Arc;

    /// Puts whatever it gets into a list.
    struct Into(Arc<Inbox>);

    impl ExternalDisk for Into {
        fn submit(&mut self, request: DiskOp, ticket: Ticket) {
            self.0.put(Order::Op(request, ticket));
        }

        fn kick(&mut self) {}
    }

    fn read(offset: u64, len: u64) -> DiskOp {
        DiskOp::Read { range: ByteRange::new(offset, len), holes: false }
    }

    fn offsets(orders: &[Order]) -> Vec<u64> {
        let offset = |order: &Order| match order {
            Order::Op(request, _) => Some(request.range().offset / 4096),
            Order::Look(_) | Order::Call(_) => None,
        };
        orders.iter().filter_map(offset).collect()
    }

    #[test]
    fn operations_overtake_looks_and_neither_each_other_nor_calls() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let pool = BufferPool::new(1 << 20);
        let info: DiskInfo =
            Disk::memory(&MemoryStore::new(1 << 30), &pool).unwrap().info().clone();
        let outer = Box::new(Into(Arc::clone(&inbox)));
        let mut disk = Disk::external(outer, info, 64, &pool).unwrap();
        let mut put = |block: u64, len: u64| {
            assert!(disk.submit(OpId(block), read(block * 4096, len)).is_none());
            disk.kick();
        };
        put(1, 4096);
        inbox.put(Order::Look(Box::new(|_| {})));
        put(2, 4096);
        put(3, SMALL + 4096);
        put(4, 4096);
        inbox.put(Order::Call(Box::new(|_| {})));
        put(5, 4096);
        let take = |longest: u64| {
            let mut taken = Vec::new();
            let all = inbox.take_short(longest, &mut taken);
            let found = offsets(&taken);
            assert_eq!(found.len(), taken.len(), "no call was taken");
            (found, all)
        };
        assert_eq!(take(SMALL), (vec![1, 2], false));
        assert_eq!(take(SMALL), (vec![], false), "the long one is first");
        assert_eq!(take(u64::MAX), (vec![3, 4], false));
        assert_eq!(take(u64::MAX), (vec![], false), "the call is first");
        let mut rest = Vec::new();
        inbox.take(&mut rest);
        assert_eq!(
            (rest.len(), offsets(&rest)),
            (3, vec![5]),
            "the look, the call, what came behind"
        );
        put(6, 4096);
        assert_eq!(take(SMALL), (vec![6], true));
    }
}
