//! Memory for payloads that the connections of a thread share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

/// A bound for the payloads of many connections together. Clones are the same memory.
///
/// A connection reserves what a request holds before any of it is read or allocated. Who finds no
/// room waits in line; a client that holds memory without making use of it while others wait loses
/// its connection ([`crate::ServerOptions::patience`]).
#[derive(Clone, Debug)]
pub struct SharedMemory(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    used: Cell<u64>,
    /// Connections that wait for room, first come first served.
    line: RefCell<VecDeque<(u64, Waker)>>,
    next_place: Cell<u64>,
}

/// The default for all connections of a thread.
const DEFAULT_LIMIT: u64 = 256 << 20;

thread_local! {
    static OF_THREAD: SharedMemory = SharedMemory::new(DEFAULT_LIMIT);
}

impl SharedMemory {
    /// Memory of `limit` bytes. One request is let in whatever its size while nothing is used.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Rc::new(Inner {
            limit,
            used: Cell::new(0),
            line: RefCell::default(),
            next_place: Cell::new(0),
        }))
    }

    /// The memory of 256 MiB that connections of this thread share when nobody says otherwise.
    #[must_use]
    pub fn of_thread() -> Self {
        OF_THREAD.with(Clone::clone)
    }

    /// How many bytes are reserved.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.get()
    }

    /// A connection's own place in it.
    pub(super) fn share(&self) -> Share {
        let place = self.0.next_place.get();
        self.0.next_place.set(place + 1);
        Share { memory: self.clone(), place, held: Cell::new(0), in_line: Cell::new(false) }
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.0.line.borrow().front() {
            waker.wake_by_ref();
        }
    }
}

/// What one connection has of the shared memory. Dropping it gives everything back.
pub(super) struct Share {
    memory: SharedMemory,
    place: u64,
    held: Cell<u64>,
    in_line: Cell<bool>,
}

impl Share {
    /// Whether as much as makes `total` bytes could be held now. Never while others wait longer.
    pub(super) fn has_room(&self, total: u64) -> bool {
        let more = total.saturating_sub(self.held.get());
        if more == 0 {
            return true;
        }
        let inner = &self.memory.0;
        let line = inner.line.borrow();
        let used = inner.used.get();
        line.front().is_none_or(|(first, _)| *first == self.place)
            && (used == 0 || used.saturating_add(more) <= inner.limit)
    }

    /// Holds `total` bytes from now on.
    pub(super) fn hold(&self, total: u64) {
        let before = self.held.replace(total);
        if before == total {
            return;
        }
        let used = &self.memory.0.used;
        used.set(used.get() - before + total);
        if total < before {
            self.memory.wake_first();
        }
    }

    /// Gets in line, or stays there.
    pub(super) fn wait(&self, waker: &Waker) {
        let mut line = self.memory.0.line.borrow_mut();
        match line.iter_mut().find(|(place, _)| *place == self.place) {
            Some((_, old)) => old.clone_from(waker),
            None => line.push_back((self.place, waker.clone())),
        }
        self.in_line.set(true);
    }

    /// Leaves the line, if it is in it.
    pub(super) fn leave_line(&self) {
        if self.in_line.replace(false) {
            self.memory.0.line.borrow_mut().retain(|(place, _)| *place != self.place);
            self.memory.wake_first();
        }
    }

    /// Whether it holds memory that another connection waits for.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.held.get() > 0
            && self.memory.0.line.borrow().iter().any(|(place, _)| *place != self.place)
    }

    pub(super) fn holds_any(&self) -> bool {
        self.held.get() > 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.hold(0);
        self.leave_line();
    }
}

#[cfg(test)]
mod tests {
    use super::SharedMemory;
    use std::task::Waker;

    #[test]
    fn first_come_first_served() {
        let memory = SharedMemory::new(100);
        let [a, b, c] = [memory.share(), memory.share(), memory.share()];
        assert!(a.has_room(1000), "one may always hold something");
        a.hold(80);
        assert!(a.has_room(100) && !a.has_room(101));
        assert!(b.has_room(20) && !b.has_room(21));
        b.wait(Waker::noop());
        assert!(a.is_in_the_way() && !b.is_in_the_way());
        assert!(!c.has_room(1), "another waits longer");
        assert!(c.has_room(0));
        c.wait(Waker::noop());
        a.hold(0);
        assert!(b.has_room(60) && !c.has_room(1));
        b.hold(60);
        b.leave_line();
        assert!(c.has_room(40) && !c.has_room(41));
        drop(b);
        assert_eq!(memory.used(), 0);
        assert!(c.has_room(100));
        drop(c);
        assert!(a.has_room(100));
    }
}
