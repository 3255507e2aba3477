//! One queue of a device: a thread and a ring that fetch requests and give the answers back.
//!
//! Each tag is either with the kernel (a fetch is pending) or with us (a request is being worked
//! on). The thread alone talks to the kernel; answers come to it from any thread through a list and
//! an eventfd.
#![allow(unsafe_code)]

use crate::copy::Copy;
use crate::memory::Descriptors;
use crate::request::{Op, Request, Target};
use crate::uapi::{IoAnswer, IoCommand};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Marks the completion of the wait for answers; all others are tags.
const WAKE: u64 = u64::MAX;

/// What the threads of a device are to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Serve = 0,
    /// Fail every request, also those that are being worked on.
    Abort = 1,
    /// Stop without answering.
    Leave = 2,
}

/// One queue, as its thread and those who answer requests share it.
pub(crate) struct Queue {
    id: u16,
    device: File,
    copy: Copy,
    encoded: bool,
    tags: Box<[Mutex<Tag>]>,
    answers: Mutex<Vec<Answer>>,
    wake: OwnedFd,
    mode: AtomicU8,
}

/// The request that has a tag.
#[derive(Default)]
struct Tag {
    /// Counts the requests that had it.
    turn: u64,
    /// It is with us.
    live: bool,
}

struct Answer {
    tag: u16,
    turn: u64,
    result: i32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// `device` is `/dev/ublkcN`.
    pub(crate) fn new(
        id: u16,
        depth: u16,
        device: File,
        copy: Copy,
        encoded: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            id,
            device,
            copy,
            encoded,
            tags: (0..depth).map(|_| Mutex::default()).collect(),
            answers: Mutex::new(Vec::with_capacity(usize::from(depth))),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            mode: AtomicU8::new(Mode::Serve as u8),
        })
    }

    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
        self.signal();
    }

    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::SeqCst) == mode as u8
    }

    /// Does something with the data of a request that is still waited for. Until it is done the
    /// tag cannot become another request's.
    pub(crate) fn with_live(
        &self,
        tag: u16,
        turn: u64,
        work: impl FnOnce(&Copy, &File) -> io::Result<()>,
    ) -> io::Result<()> {
        let state = lock(&self.tags[usize::from(tag)]);
        if !state.live || state.turn != turn {
            return Err(io::Error::other("the request is not waited for any more"));
        }
        work(&self.copy, &self.device)
    }

    /// Answers a request, unless that was done already.
    pub(crate) fn answer(&self, tag: u16, turn: u64, result: i32) {
        let mut answers = lock(&self.answers);
        answers.push(Answer { tag, turn, result });
        let first = answers.len() == 1;
        drop(answers);
        // Otherwise who came first has woken the thread.
        if first {
            self.signal();
        }
    }

    fn signal(&self) {
        // It only fails when the count is full: the thread is awake then.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Notes that a request came with this tag.
    fn begin(&self, tag: u16) -> u64 {
        let mut state = lock(&self.tags[usize::from(tag)]);
        state.turn += 1;
        state.live = true;
        state.turn
    }

    /// Notes that the request of this tag is answered; `false` when it was already.
    fn end(&self, tag: u16, turn: u64) -> bool {
        let mut state = lock(&self.tags[usize::from(tag)]);
        let ends = state.live && state.turn == turn;
        if ends {
            state.live = false;
        }
        ends
    }

    /// The tags of all requests that are with us; they are answered from now on.
    fn end_all(&self) -> Vec<u16> {
        let mut ended = Vec::new();
        for (tag, state) in (0..).zip(&self.tags) {
            let mut state = lock(state);
            if std::mem::take(&mut state.live) {
                ended.push(tag);
            }
        }
        ended
    }
}

/// The ring of a queue. It belongs to the thread that made it.
pub(crate) struct QueueRing(IoUring);

impl QueueRing {
    /// A ring with room for every tag.
    pub(crate) fn new(depth: u16) -> io::Result<Self> {
        let entries = (u32::from(depth) + 1).next_power_of_two();
        let ring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries)?;
        Ok(Self(ring))
    }

    /// Serves the queue until the device is stopped, left, or the ring fails.
    ///
    /// # Errors
    /// When io_uring fails. The kernel takes the requests back when the ring is dropped.
    pub(crate) fn serve(
        self,
        queue: &Arc<Queue>,
        descriptors: &Descriptors,
        target: &dyn Target,
    ) -> io::Result<()> {
        let depth = queue.tags.len();
        let mut server = Server { ring: self.0, queue, descriptors, target, pending: depth };
        for tag in 0..u16::try_from(depth).expect("it was made from one") {
            server.push_fetch(IoCommand::Fetch, tag, 0)?;
        }
        server.push_wake()?;
        server.run()
    }
}

struct Server<'a> {
    ring: IoUring,
    queue: &'a Arc<Queue>,
    descriptors: &'a Descriptors,
    target: &'a dyn Target,
    /// How many tags the kernel has not taken back.
    pending: usize,
}

impl Server<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut aborted = false;
        let mut answers = Vec::with_capacity(self.queue.tags.len());
        while self.pending > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The completion queue is full: it is emptied below.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                submitted => drop(submitted?),
            }
            if self.queue.is(Mode::Leave) {
                return Ok(());
            }
            loop {
                let Some(entry) = self.ring.completion().next() else { break };
                match u16::try_from(entry.user_data()) {
                    Ok(tag) => self.fetched(tag, entry.result())?,
                    Err(_) => self.push_wake()?,
                }
            }
            if self.queue.is(Mode::Abort) && !std::mem::replace(&mut aborted, true) {
                for tag in self.queue.end_all() {
                    self.push_fetch(IoCommand::CommitAndFetch, tag, -libc::EIO)?;
                }
            }
            std::mem::swap(&mut *lock(&self.queue.answers), &mut answers);
            for Answer { tag, turn, result } in answers.drain(..) {
                if self.queue.end(tag, turn) {
                    self.push_fetch(IoCommand::CommitAndFetch, tag, result)?;
                }
            }
        }
        Ok(())
    }

    /// A fetch has ended: with a request, or because there will be none any more.
    fn fetched(&mut self, tag: u16, result: i32) -> io::Result<()> {
        if result != 0 {
            if result != -libc::ENODEV {
                let error = io::Error::from_raw_os_error(-result);
                tracing::error!(queue = self.queue.id, tag, %error, "the kernel takes no fetch");
            }
            self.pending -= 1;
            return Ok(());
        }
        let op = Op::from_kernel(&self.descriptors.get(tag));
        let turn = self.queue.begin(tag);
        let refused = match op {
            _ if self.queue.is(Mode::Abort) => -libc::EIO,
            None => -libc::EOPNOTSUPP,
            Some(op) => {
                self.target.submit(Request::new(Arc::clone(self.queue), tag, turn, op));
                return Ok(());
            }
        };
        self.queue.end(tag, turn);
        self.push_fetch(IoCommand::CommitAndFetch, tag, refused)
    }

    fn push_fetch(&mut self, command: IoCommand, tag: u16, result: i32) -> io::Result<()> {
        let queue = self.queue;
        let answer = IoAnswer { queue: queue.id, tag, result, address: queue.copy.address(tag) };
        let entry =
            opcode::UringCmd16::new(Fd(queue.device.as_raw_fd()), command.code(queue.encoded))
                .cmd(answer.bytes())
                .build()
                .user_data(u64::from(tag));
        self.push(&entry)
    }

    /// Waits for answers. Those that come while nobody waits are seen by the next wait.
    fn push_wake(&mut self) -> io::Result<()> {
        let mut count = [0; 8];
        // There is nothing to read the first time.
        let _ = rustix::io::read(&self.queue.wake, &mut count);
        let events = u32::try_from(libc::POLLIN).expect("a small number");
        let entry =
            opcode::PollAdd::new(Fd(self.queue.wake.as_raw_fd()), events).build().user_data(WAKE);
        self.push(&entry)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the entry names descriptors that the queue keeps open for longer than the ring,
        // and the address of a buffer that the queue owns as long.
        if unsafe { self.ring.submission().push(entry) }.is_ok() {
            return Ok(());
        }
        self.ring.submit()?;
        // SAFETY: as above.
        unsafe { self.ring.submission().push(entry) }.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        Queue::new(1, 4, null, Copy::User, true).unwrap()
    }

    fn nothing(_: &Copy, _: &File) -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn a_request_is_answered_once() {
        let queue = queue();
        let turn = queue.begin(2);
        queue.with_live(2, turn, nothing).unwrap();
        assert!(queue.end(2, turn));
        assert!(!queue.end(2, turn));
        queue.with_live(2, turn, nothing).unwrap_err();
    }

    #[test]
    fn a_late_answer_is_not_the_next_requests() {
        let queue = queue();
        let before = queue.begin(0);
        assert_eq!(queue.end_all(), [0]);
        let next = queue.begin(0);
        assert!(!queue.end(0, before));
        queue.with_live(0, before, nothing).unwrap_err();
        queue.with_live(0, next, nothing).unwrap();
        assert!(queue.end(0, next));
    }

    #[test]
    fn an_answer_wakes_the_thread_and_a_dropped_request_fails() {
        let queue = Arc::new(queue());
        let turn = queue.begin(3);
        drop(Request::new(Arc::clone(&queue), 3, turn, Op::Flush));
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&queue.wake, &mut count), Ok(8));
        let answers = lock(&queue.answers);
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].tag, answers[0].turn, answers[0].result), (3, turn, -libc::EIO));
    }
}
