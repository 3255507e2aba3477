//! An export made of files and devices: takes requests apart for its parts, and puts the answers
//! together. Everything happens on one thread.

mod fill;
mod grow;
mod mirror;
mod status;
#[cfg(test)]
mod tests;

use super::layout::{Layout, Piece};
use super::order::Order;
use super::part::{Part, State};
use holdfast_nbd::{Changes, NbdError, ReadChunk, Reply, ReplyData, Request, RequestKind};
use holdfast_store::{Completion, DiskError, DiskErrorKind, DiskOp, OpId, Outcome};
use holdfast_units::ByteRange;
pub(super) use mirror::Marks;
use slab::Slab;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

/// Requests that are under way at a time; more wait.
const MAX_JOBS: usize = 2048;
/// Reads from this length on are answered without data when nothing is there.
const LONG_READ: u64 = 64 << 10;
/// Reads from this length on are sent from where they are in memory, without a copy of ours.
const LENT_READ: u64 = 64 << 10;

/// Something about the parts that people should know.
#[derive(Clone, Debug)]
pub(super) enum Notice {
    /// A part of a mirror is not used any more.
    Lost { part: String, why: String, left: usize },
    /// An operation failed, and clients were told.
    Failed { part: String, why: String },
    /// A part of a mirror is being filled from another.
    Filling { part: String, from: String },
    /// A part of a mirror has been filled.
    Filled { part: String },
    /// What is remembered of a mirror could not be written.
    Forgetful { part: String, why: String },
}

/// Who hears of them.
pub(super) type Tell = Rc<dyn Fn(Notice)>;

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) zeroed_bytes: u64,
    pub(super) flushes: u64,
    pub(super) errors: u64,
}

/// An export. No task keeps it borrowed while it waits.
pub(super) struct Volume(RefCell<Inner>);

struct Inner {
    layout: Layout,
    parts: Vec<Part>,
    read_only: bool,
    /// What is with the parts.
    ops: Slab<Op>,
    jobs: Slab<Job>,
    /// For mirrors: overlapping writes one after the other.
    order: Order<Turn>,
    /// Requests that wait until there is room for them. Bounded by what connections may have
    /// under way.
    backlog: VecDeque<(Request, Reply)>,
    ended: VecDeque<Completion>,
    /// Used again and again.
    pieces: Vec<Piece>,
    changes: Option<Changes>,
    marks: Option<Marks>,
    counters: Counters,
    tell: Tell,
}

/// A request under way.
struct Job {
    request: Request,
    reply: Reply,
    /// How many operations have not ended.
    left: usize,
    data: Vec<(u64, ReadChunk)>,
    error: Option<NbdError>,
}

/// Who waits for its turn to write.
enum Turn {
    Job(usize),
    Fill(oneshot::Sender<()>),
}

struct Op {
    owner: Owner,
    part: usize,
    piece: Piece,
}

enum Owner {
    Job(usize),
    /// Somebody waits for the result as it is.
    Alone(oneshot::Sender<Result<Outcome, DiskError>>),
}

impl Volume {
    /// Puts open parts together. `marks`: what a mirror writes down about its parts.
    pub(super) fn new(
        layout: Layout,
        parts: Vec<Part>,
        track_changes: bool,
        marks: Option<Marks>,
        tell: Tell,
    ) -> Rc<Self> {
        let changes = track_changes.then(|| Changes::new(layout.size()));
        Rc::new(Self(RefCell::new(Inner {
            read_only: parts.iter().any(|part| part.info().read_only),
            layout,
            parts,
            ops: Slab::new(),
            jobs: Slab::new(),
            order: Order::default(),
            backlog: VecDeque::new(),
            ended: VecDeque::new(),
            pieces: Vec::new(),
            changes,
            marks,
            counters: Counters::default(),
            tell,
        })))
    }

    /// Starts the tasks that wait for the parts, and those that fill parts of a mirror.
    pub(super) fn start(self: &Rc<Self>) -> io::Result<()> {
        let count = self.0.borrow().parts.len();
        for part in 0..count {
            let ready = readable(self.0.borrow().parts[part].event_fd()?)?;
            let volume = Rc::clone(self);
            spawn_local(async move {
                while let Ok(mut guard) = ready.readable().await {
                    guard.clear_ready();
                    volume.collect(part);
                }
            });
        }
        for part in 0..count {
            if self.0.borrow().parts[part].state == State::Filling {
                spawn_local(Rc::clone(self).fill(part));
            }
        }
        Ok(())
    }

    pub(super) fn size(&self) -> u64 {
        self.0.borrow().layout.size()
    }

    pub(super) fn counters(&self) -> Counters {
        self.0.borrow().counters
    }

    pub(super) fn tracks_changes(&self) -> bool {
        self.0.borrow().changes.is_some()
    }

    /// Whether a flush may hold up the thread: with several parts it never may.
    pub(super) fn wait_for_flushes(&self, wait: bool) {
        if let [part] = &mut self.0.borrow_mut().parts[..] {
            part.wait_for_flushes(wait);
        }
    }

    /// Shows the parts.
    pub(super) fn with_parts<R>(&self, show: impl FnOnce(&[Part]) -> R) -> R {
        show(&self.0.borrow().parts)
    }

    /// Takes a request of a client.
    pub(super) fn submit(&self, request: Request, reply: Reply) {
        self.0.borrow_mut().take(request, reply);
    }

    /// Tells the kernel of all that was submitted.
    pub(super) fn kick(&self) {
        self.0.borrow_mut().kick();
    }

    fn collect(&self, part: usize) {
        let mut inner = self.0.borrow_mut();
        let inner = &mut *inner;
        inner.parts[part].collect(&mut inner.ended);
        inner.settle();
        inner.kick();
    }

    /// Does one operation on one part.
    async fn alone(&self, part: usize, operation: DiskOp) -> Result<Outcome, DiskError> {
        let (sender, result) = oneshot::channel();
        let range = operation.range();
        let kind = operation.kind();
        {
            let mut inner = self.0.borrow_mut();
            let piece = Piece { part, at: range.offset, offset: range.offset, len: range.len };
            inner.issue(Owner::Alone(sender), part, piece, operation);
            inner.settle();
            inner.kick();
        }
        let gone = DiskError { kind: DiskErrorKind::Io, op: kind, range, errno: None };
        result.await.unwrap_or(Err(gone))
    }
}

impl Inner {
    fn take(&mut self, request: Request, reply: Reply) {
        match request.kind {
            RequestKind::BlockStatus => {
                let status = self.status(&request);
                reply.complete(Ok(ReplyData::Status(status)));
            }
            RequestKind::Cache => {
                self.read_ahead(request.range);
                reply.complete(Ok(ReplyData::Done));
            }
            RequestKind::Resize => {
                let result = self.resize(request.range.offset);
                self.counters.errors += u64::from(result.is_err());
                reply.complete(result.map(|()| ReplyData::Done));
            }
            _ if self.jobs.len() >= MAX_JOBS || !self.backlog.is_empty() => {
                self.backlog.push_back((request, reply));
            }
            _ => {
                self.begin(request, reply);
                self.settle();
            }
        }
    }

    fn begin(&mut self, request: Request, reply: Reply) {
        if request.fast_zero && !self.zeroes_fast(&request) {
            return reply.complete(Err(NbdError::NotSupported));
        }
        let range = request.range;
        let changes = changes_data(request.kind);
        if changes && let Some(tracked) = &mut self.changes {
            tracked.note(range);
        }
        let job = Job { request, reply, left: 0, data: Vec::new(), error: None };
        let key = self.jobs.insert(job);
        if !changes || !self.layout.is_mirror() {
            self.run(key);
        } else if let Some(turn) = self.order.begin(range, Turn::Job(key)) {
            self.take_turn(turn);
        }
    }

    fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Job(key) => self.run(key),
            // Who asked may be gone; nothing is done then, and the lock ends with the volume.
            Turn::Fill(sender) => drop(sender.send(())),
        }
    }

    /// Starts the operations of a request.
    fn run(&mut self, key: usize) {
        let Request { kind, range, fua, no_hole, ref payload, .. } = self.jobs[key].request;
        let payload = payload.clone();
        match kind {
            RequestKind::Read => self.run_read(key, range),
            RequestKind::Write => {
                let mut pieces = std::mem::take(&mut self.pieces);
                pieces.extend(self.layout.pieces(range));
                for piece in pieces.drain(..) {
                    let from = to_usize(piece.offset - range.offset);
                    let data = payload.slice(from..from + to_usize(piece.len));
                    let write = DiskOp::Write { range: piece.range(), data, fua };
                    self.issue_to_all(key, piece, &write);
                }
                self.pieces = pieces;
            }
            RequestKind::Trim | RequestKind::WriteZeroes => {
                // The parts of a mirror must stay equal, and only zeroing says what is there then.
                let discard = kind == RequestKind::Trim && !fua && !self.layout.is_mirror();
                let unmap = kind == RequestKind::Trim || !no_hole;
                for (part, range) in self.layout.spans(range) {
                    let piece = Piece { part, at: range.offset, offset: 0, len: range.len };
                    let operation = if discard {
                        DiskOp::Discard { range }
                    } else {
                        DiskOp::WriteZeroes { range, unmap, fua }
                    };
                    self.issue_to_all(key, piece, &operation);
                }
            }
            _ => {
                for part in 0..self.parts.len() {
                    if self.parts[part].state != State::Failed {
                        let piece = Piece { part, at: 0, offset: 0, len: 0 };
                        self.issue(Owner::Job(key), part, piece, DiskOp::Flush);
                    }
                }
            }
        }
        if self.jobs[key].left == 0 {
            self.complete(key);
        }
    }

    fn run_read(&mut self, key: usize, range: ByteRange) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.extend(self.layout.pieces(range));
        for piece in pieces.drain(..) {
            self.issue_read(key, piece);
        }
        self.pieces = pieces;
    }

    fn issue_read(&mut self, key: usize, piece: Piece) {
        let part = if self.layout.is_mirror() { self.source() } else { piece.part };
        // A part of a mirror that fails must not break a connection: others have the data.
        if piece.len >= LENT_READ
            && !self.layout.is_mirror()
            && self.jobs[key].reply.takes_lent()
            && let Some(lent) = self.parts[part].lend(piece.range())
        {
            return self.jobs[key].data.push((piece.offset, ReadChunk::Lent(lent)));
        }
        let read = DiskOp::Read { range: piece.range(), holes: piece.len >= LONG_READ };
        self.issue(Owner::Job(key), part, piece, read);
    }

    /// Starts a change on the part of a piece, or on all parts of a mirror.
    fn issue_to_all(&mut self, key: usize, piece: Piece, operation: &DiskOp) {
        if !self.layout.is_mirror() {
            return self.issue(Owner::Job(key), piece.part, piece, operation.clone());
        }
        for part in 0..self.parts.len() {
            if self.parts[part].state != State::Failed {
                self.issue(Owner::Job(key), part, piece, operation.clone());
            }
        }
    }

    fn issue(&mut self, owner: Owner, part: usize, piece: Piece, operation: DiskOp) {
        if let Owner::Job(key) = owner {
            self.jobs[key].left += 1;
        }
        let id = OpId(self.ops.insert(Op { owner, part, piece }) as u64);
        self.ended.extend(self.parts[part].submit(id, operation));
    }

    /// Takes the ends of operations, until nothing follows from them at once.
    fn settle(&mut self) {
        while let Some(Completion { op, result }) = self.ended.pop_front() {
            let op = usize::try_from(op.0).ok().and_then(|key| self.ops.try_remove(key));
            let Some(Op { owner, part, piece }) = op else {
                debug_assert!(false, "a disk ended what was not asked of it");
                continue;
            };
            match owner {
                // Who asked may be gone.
                Owner::Alone(sender) => drop(sender.send(result)),
                Owner::Job(key) => self.op_ended(key, part, piece, result),
            }
        }
    }

    fn op_ended(
        &mut self,
        key: usize,
        part: usize,
        piece: Piece,
        result: Result<Outcome, DiskError>,
    ) {
        self.jobs[key].left -= 1;
        match result {
            Ok(Outcome::Done | Outcome::Logged(_)) => {}
            Ok(Outcome::Data(data)) => {
                self.jobs[key].data.push((piece.offset, ReadChunk::Data(data)));
            }
            Ok(Outcome::Zeroes) => {
                self.jobs[key].data.push((piece.offset, ReadChunk::Zeroes(piece.len)));
            }
            Err(error) if self.goes_on_without(part, &error) => {
                if self.jobs[key].request.kind == RequestKind::Read {
                    self.issue_read(key, piece);
                }
            }
            Err(error) => {
                self.jobs[key].error.get_or_insert(error_of(&error));
            }
        }
        if self.jobs[key].left == 0 {
            self.complete(key);
        }
    }

    /// Answers a request, and lets those in that waited for it.
    fn complete(&mut self, key: usize) {
        let Job { request, reply, mut data, error, .. } = self.jobs.remove(key);
        self.count(&request, error);
        reply.complete(match (error, request.kind) {
            (Some(error), _) => Err(error),
            (None, RequestKind::Read) => {
                data.sort_unstable_by_key(|(offset, _)| *offset);
                Ok(ReplyData::ReadChunks(data.into_iter().map(|(_, chunk)| chunk).collect()))
            }
            (None, _) => Ok(ReplyData::Done),
        });
        if self.layout.is_mirror() && changes_data(request.kind) {
            for turn in self.order.end(request.range) {
                self.take_turn(turn);
            }
        }
        // One that is refused at once makes room for the next.
        while self.jobs.len() < MAX_JOBS
            && let Some((request, reply)) = self.backlog.pop_front()
        {
            self.begin(request, reply);
        }
    }

    fn count(&mut self, request: &Request, error: Option<NbdError>) {
        let counters = &mut self.counters;
        counters.errors += u64::from(error.is_some());
        let bytes = request.range.len;
        match request.kind {
            RequestKind::Read => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            RequestKind::Write => {
                counters.writes += 1;
                counters.written_bytes += bytes;
            }
            RequestKind::Trim | RequestKind::WriteZeroes => counters.zeroed_bytes += bytes,
            RequestKind::Flush => counters.flushes += 1,
            RequestKind::Cache | RequestKind::BlockStatus | RequestKind::Resize => {}
        }
    }

    fn kick(&mut self) {
        self.parts.iter_mut().for_each(Part::kick);
    }

    /// Whether zeroing is done without writing zeroes.
    fn zeroes_fast(&self, request: &Request) -> bool {
        let mut used = self.parts.iter().filter(|part| part.state != State::Failed);
        !request.no_hole && used.all(|part| part.info().fast_zeroes)
    }
}

/// Registers a descriptor with the runtime.
#[allow(unsafe_code)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps one and the same descriptor open until it is dropped, which the
    // `AsyncFd` does after it has taken it out of the event queue.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

const fn changes_data(kind: RequestKind) -> bool {
    matches!(kind, RequestKind::Write | RequestKind::Trim | RequestKind::WriteZeroes)
}

/// What a client is told of a failure.
const fn error_of(error: &DiskError) -> NbdError {
    match error.kind {
        DiskErrorKind::NoSpace => NbdError::NoSpace,
        DiskErrorKind::ReadOnly => NbdError::NotPermitted,
        DiskErrorKind::OutOfRange | DiskErrorKind::Invalid => NbdError::Invalid,
        DiskErrorKind::Io
        | DiskErrorKind::Busy
        | DiskErrorKind::FlushFailed
        | DiskErrorKind::Unreadable
        | DiskErrorKind::SpareFull
        | DiskErrorKind::Poisoned => NbdError::Io,
    }
}

/// Lengths here are those of payloads in memory.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a payload fits the address space")
}
