//! The thread: its loop, what is in flight on the backing disk, and what operations do by mode.

use super::append::is_durable;
use super::cache::Cache;
use super::catch_up::Catching;
use super::follow::Replay;
use super::inbox::{Inbox, Order, SMALL};
use super::modes::Wishes;
use super::open::Sizes;
use super::reads::{Gather, Reader};
use super::salvage::Salvaging;
use super::throttle::Throttle;
use super::through::Through;
use super::writeback::Back;
use super::{Figures, JournalCallError, JournalView, Mode};
use crate::spares::{RemapAnswer, RemapFailed, SparesView};
use holdfast_format::journal::Compression;
use holdfast_journal::Ticket as Record;
use holdfast_journal::driver::{Files, Log};
use holdfast_store::{
    BufferPool, Completion, Disk, DiskError, DiskOp, OpId, OpKind, Outcome, RemapOp, Ticket,
};
use holdfast_units::{HybridTime, MAX_REQUEST};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{oneshot, watch};

/// Figures in the view are at most so old, apart from what is durable.
const VIEW_AGE: Duration = Duration::from_millis(100);
/// And that one so old. Telling it wakes other threads, which takes more than a small write.
const DURABLE_AGE: Duration = Duration::from_millis(1);

/// What is under way on the backing disk.
pub(super) enum Flight {
    /// An operation of the client, as it is.
    Client(Ticket),
    /// A read that one read of the disk answers.
    Read(Reader),
    /// A part of a read.
    Part { gather: u64, at: u64 },
    /// A run of a write-back.
    Run { plan: u64 },
    /// The flush behind write-backs; what it covers.
    Flush { token: u64 },
    /// The flush before records are taken: for writes that went past the journal.
    FlushFirst,
    /// A record that is replayed.
    Replay,
    /// Work on the spares of the disk.
    Remap { op: u64, done: oneshot::Sender<Result<RemapAnswer, JournalCallError>> },
    /// A block is stored again.
    Restore { id: u64 },
    /// An operation of a call.
    Call(oneshot::Sender<Result<(), JournalCallError>>),
}

/// A record that is not written yet.
pub(super) struct Appending {
    pub(super) record: Record,
    pub(super) request: DiskOp,
    pub(super) ticket: Ticket,
}

/// The thread's state. See the module for what it owns.
pub(super) struct Worker {
    pub(super) log: Log<Box<dyn Files + Send>>,
    pub(super) disk: Disk,
    inbox: Arc<Inbox>,
    pub(super) view: watch::Sender<JournalView>,
    pub(super) pool: BufferPool,
    pub(super) cache: Cache,
    pub(super) sizes: Sizes,
    /// Where spares are made beforehand, by a thread of their own; `None`: when they are needed.
    pub(super) spare_in_making: bool,
    pub(super) mode: Mode,
    pub(super) wishes: Wishes,
    /// Operations that wait: for room in the journal, or for another mode.
    pub(super) held: VecDeque<(DiskOp, Ticket)>,
    pub(super) appending: VecDeque<Appending>,
    /// What waits until all records before this one are durable.
    pub(super) syncing: VecDeque<(Record, Ticket, Outcome)>,
    /// The record behind the last one that was pushed.
    pub(super) pushed: Record,
    /// How many flushes in a row came when nobody else waited for one.
    pub(super) lone_flushes: u32,
    pub(super) writes_since_flush: u32,
    pub(super) through: Through,
    /// When something was last to be made durable for somebody.
    pub(super) wanted_durable: Option<Instant>,
    /// There is no room for another segment's file.
    pub(super) no_room: bool,
    /// The journal takes no more until something is written back.
    pub(super) pressed: bool,
    pub(super) cut_wanted: bool,
    /// The disk was written to past the journal, and not flushed since.
    pub(super) unflushed_direct: bool,
    pub(super) back: Back,
    pub(super) replay: Option<Replay>,
    pub(super) salvaging: Salvaging,
    pub(super) gathers: HashMap<u64, Gather>,
    flights: HashMap<u64, Flight>,
    backlog: VecDeque<(Flight, DiskOp)>,
    next_id: u64,
    pub(super) last_write: Instant,
    /// Why nothing works any more: the disk failed.
    pub(super) broken: Option<i32>,
    pub(super) problem: Option<Arc<str>>,
    pub(super) figures: Figures,
    pub(super) throttle: Throttle,
    /// When the sync that is under way was begun.
    pub(super) sync_began: Instant,
    /// One is under way that the thread waits for without the worker.
    pub(super) is_syncing: bool,
    /// Who reads records that are not durable yet.
    pub(super) catching: Vec<Catching>,
    end: Option<Instant>,
    published: Instant,
    /// Something has changed since.
    stale: bool,
    /// More has become durable since.
    durable_news: bool,
    /// Something was done that something else may follow from.
    pub(super) moved: bool,
    completed: Vec<Completion>,
    /// Reads that the shard left to the thread: something has to be waited for.
    deferred: Vec<(DiskOp, Ticket)>,
    visiting: Vec<Order>,
    /// When the thread looks again by itself.
    wakes: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        log: Log<Box<dyn Files + Send>>,
        disk: Disk,
        inbox: Arc<Inbox>,
        view: watch::Sender<JournalView>,
        sizes: Sizes,
    ) -> Self {
        let clean = log.journal().status().dirty_bytes == 0;
        let now = Instant::now();
        let mut worker = Self {
            log,
            disk,
            inbox,
            view,
            pool: BufferPool::new(sizes.pool_bytes),
            cache: Cache::new(sizes.cache_bytes),
            sizes,
            spare_in_making: false,
            mode: if clean { Mode::Direct } else { Mode::Draining },
            wishes: Wishes::default(),
            held: VecDeque::new(),
            appending: VecDeque::new(),
            syncing: VecDeque::new(),
            pushed: Record(0),
            lone_flushes: 0,
            writes_since_flush: 0,
            through: Through::default(),
            wanted_durable: None,
            no_room: false,
            pressed: false,
            cut_wanted: false,
            // What was written before the daemon was killed was perhaps not flushed.
            unflushed_direct: true,
            back: Back::default(),
            replay: None,
            salvaging: Salvaging::default(),
            gathers: HashMap::new(),
            flights: HashMap::new(),
            backlog: VecDeque::new(),
            next_id: 0,
            last_write: now,
            broken: None,
            problem: None,
            figures: Figures::default(),
            throttle: Throttle::default(),
            sync_began: now,
            is_syncing: false,
            catching: Vec::new(),
            end: None,
            published: now,
            stale: false,
            durable_news: false,
            moved: true,
            completed: Vec::new(),
            deferred: Vec::new(),
            visiting: Vec::new(),
            wakes: None,
        };
        worker.publish(true);
        worker
    }

    /// Does all that can be done now.
    pub(super) fn turn(&mut self, orders: &mut Vec<Order>) {
        self.moved = false;
        for (request, ticket) in std::mem::take(&mut self.deferred) {
            self.moved = true;
            self.op(request, ticket);
        }
        self.inbox.take(orders);
        for order in orders.drain(..) {
            self.moved = true;
            match order {
                Order::Op(request, ticket) => self.op(request, ticket),
                Order::Look(call) | Order::Call(call) => call(self),
            }
        }
        self.land();
        self.land_through();
        self.moved |= self.throttle.answer(self.end.is_some());
        self.change_mode();
        self.append();
        if self.mode != Mode::Lead {
            // Nobody else may be there any more to see them end.
            self.wait_through();
        }
        self.answer_catching();
        self.write_back();
        self.go_on_replaying();
        self.go_on_salvaging();
        self.disk.kick();
        self.stale |= self.moved;
        self.publish(false);
    }

    /// On the shard's thread: appends what was submitted, and answers what memory can. Nothing that
    /// waits for a device, and nothing with the backing disk, which belongs to the thread. Whether
    /// nothing is left for the thread.
    pub(super) fn visit(&mut self) -> bool {
        if self.mode != Mode::Lead || self.broken.is_some() {
            return false;
        }
        self.throttle.answer(false);
        self.land_through();
        let mut orders = std::mem::take(&mut self.visiting);
        // The thread would take what is long, but not while it waits for a sync.
        // To pack a long one takes too long for the shard.
        let packs = self.log.journal().packing() != Compression::None;
        let longest = if self.is_syncing && !packs { MAX_REQUEST } else { SMALL };
        let all = self.inbox.take_short(longest, &mut orders);
        for order in orders.drain(..) {
            match order {
                Order::Op(DiskOp::Read { range, holes }, ticket) => {
                    match self.read_from_memory(range, holes) {
                        Some(outcome) => ticket.complete(Ok(outcome)),
                        None => self.deferred.push((DiskOp::Read { range, holes }, ticket)),
                    }
                }
                Order::Op(request, ticket) => self.op(request, ticket),
                Order::Look(_) | Order::Call(_) => {}
            }
        }
        self.visiting = orders;
        self.append_cached();
        self.stale = true;
        let soon = Instant::now() + VIEW_AGE;
        all && self.deferred.is_empty()
            && ((self.held.is_empty() && self.appending.is_empty()) || !self.through.is_idle())
            && self.throttle.next().is_none()
            && !self.is_sync_wanted()
            && self.mode == Mode::Lead
            && self.wakes.is_some_and(|at| at <= soon)
    }

    /// The thread is about to sleep, until this time at the latest.
    pub(super) fn sleeps(&mut self) -> Option<Instant> {
        self.wakes = self.next_time();
        self.wakes
    }

    /// Takes what has completed on the disk, and gives it what waited.
    fn land(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        self.disk.completions(&mut completed);
        for completion in completed.drain(..) {
            if let Some(flight) = self.flights.remove(&completion.op.0) {
                self.landed(flight, completion.result);
            }
        }
        self.completed = completed;
        while self.has_room()
            && let Some((flight, request)) = self.backlog.pop_front()
        {
            self.submit(flight, request);
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.disk.in_flight() < self.sizes.disk_ops
    }

    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Starts an operation on the backing disk.
    pub(super) fn fly(&mut self, flight: Flight, request: DiskOp) {
        if self.backlog.is_empty() && self.has_room() {
            self.submit(flight, request);
        } else {
            self.backlog.push_back((flight, request));
        }
    }

    fn submit(&mut self, flight: Flight, request: DiskOp) {
        let id = self.next_id();
        match self.disk.submit(OpId(id), request) {
            Some(completion) => self.landed(flight, completion.result),
            None => drop(self.flights.insert(id, flight)),
        }
    }

    /// Has the layer for bad sectors store a block again. There must be room.
    pub(super) fn repair(&mut self, id: u64, what: RemapOp) {
        match self.disk.remap(OpId(id), what) {
            Some(completion) => self.restored(id, completion.result),
            None => drop(self.flights.insert(id, Flight::Restore { id })),
        }
    }

    /// Whether nothing is under way on the disk.
    pub(super) fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.backlog.is_empty()
    }

    /// Whether something is under way on the disk that went past the journal.
    pub(super) fn is_passing(&self) -> bool {
        let mut flights =
            self.flights.values().chain(self.backlog.iter().map(|(flight, _)| flight));
        flights.any(|flight| matches!(flight, Flight::Client(_) | Flight::Call(_)))
    }

    /// Has the layer for bad sectors do something.
    pub(super) fn remap(
        &mut self,
        what: RemapOp,
        done: oneshot::Sender<Result<RemapAnswer, JournalCallError>>,
    ) {
        let op = self.next_id();
        let flight = Flight::Remap { op, done };
        match self.disk.remap(OpId(op), what) {
            Some(completion) => self.landed(flight, completion.result),
            None => drop(self.flights.insert(op, flight)),
        }
    }

    fn landed(&mut self, flight: Flight, result: Result<Outcome, DiskError>) {
        self.moved = true;
        if let Flight::Remap { op, done } = flight {
            let report = self.disk.remap_report(OpId(op)).unwrap_or_default();
            let failed = |error| RemapFailed { error: Some(error), report };
            // Who asked sees it in the view.
            self.publish(true);
            // Who asked may be gone.
            let _ = done.send(Ok(result.map(|_| report).map_err(failed)));
            return;
        }
        if let Flight::Restore { id } = flight {
            return self.restored(id, result);
        }
        let result = result.map_err(|error| io_error(&error));
        match flight {
            Flight::Client(ticket) => ticket.complete(result),
            Flight::Read(reader) => reader.answer(result),
            Flight::Part { gather, at } => self.part_read(gather, at, result),
            Flight::Run { plan } => self.run_done(plan, result.map(drop)),
            Flight::Flush { token } => self.disk_flushed(token, result.map(drop)),
            Flight::FlushFirst => self.flushed_first(result.map(drop)),
            Flight::Replay => self.replayed_one(result.map(drop)),
            // Answered above.
            Flight::Remap { .. } | Flight::Restore { .. } => {}
            Flight::Call(done) => {
                // Who asked may be gone.
                let _ = done.send(result.map(drop).map_err(Into::into));
            }
        }
    }

    /// An operation of the client.
    fn op(&mut self, request: DiskOp, ticket: Ticket) {
        if let Some(errno) = self.broken {
            return ticket.complete(Err(io::Error::from_raw_os_error(errno)));
        }
        match (self.mode, request) {
            (_, DiskOp::Read { range, holes }) => self.read(range, holes, Reader::Client(ticket)),
            (Mode::Lead, DiskOp::Flush) => self.flush_op(ticket),
            (Mode::Lead, request) => {
                self.last_write = Instant::now();
                if is_durable(&request) {
                    self.wanted_durable = Some(self.last_write);
                }
                self.writes_since_flush = self.writes_since_flush.saturating_add(1);
                self.through.saw_write();
                self.held.push_back((request, ticket));
            }
            (Mode::Draining | Mode::Rescuing, request) => self.held.push_back((request, ticket)),
            // They become records: while others go past the journal, it is never their turn.
            (Mode::Direct, request) if self.wishes.is_leading() => {
                self.held.push_back((request, ticket));
            }
            // Behind those that wait.
            (_, request) if !self.held.is_empty() => self.held.push_back((request, ticket)),
            (Mode::Direct | Mode::Follow | Mode::Without, request) => self.pass(request, ticket),
        }
    }

    /// Gives an operation to the disk past the journal.
    pub(super) fn pass(&mut self, request: DiskOp, ticket: Ticket) {
        if request.kind() != OpKind::Flush {
            self.unflushed_direct = true;
            if self.mode == Mode::Direct && !self.note_bypass() {
                let errno = self.broken.unwrap_or(Errno::IO.raw_os_error());
                return ticket.complete(Err(io::Error::from_raw_os_error(errno)));
            }
        }
        self.fly(Flight::Client(ticket), request);
    }

    pub(super) fn grown_to(&mut self, size: u64) {
        self.disk.grown_to(size);
    }

    /// The disk does not work any more: what is completed and not on it is in the journal.
    pub(super) fn break_disk(&mut self, what: &str, error: &io::Error) {
        if self.broken.is_some() {
            return;
        }
        tracing::error!("a disk with a journal is not used any more: {what}: {error}");
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        self.broken = Some(errno);
        self.problem = Some(format!("{what}: {error}").into());
        let failed = || io::Error::from_raw_os_error(errno);
        let held = self.held.drain(..).map(|(_, ticket)| ticket);
        let appending = self.appending.drain(..).map(|appending| appending.ticket);
        let syncing = self.syncing.drain(..).map(|(_, ticket, _)| ticket);
        for ticket in held.chain(appending).chain(syncing).collect::<Vec<_>>() {
            ticket.complete(Err(failed()));
        }
        self.wishes.refuse(&failed);
        if let Some(replay) = self.replay.take() {
            replay.refuse(failed());
        }
        self.moved = true;
    }

    /// To end at this time at the latest.
    pub(super) fn end_at(&mut self, deadline: Instant) {
        self.end = Some(self.end.map_or(deadline, |end| end.min(deadline)));
        self.disk.settle_checksums();
    }

    pub(super) const fn is_ending(&self) -> bool {
        self.end.is_some()
    }

    pub(super) fn is_over(&mut self) -> bool {
        let Some(end) = self.end else { return false };
        let rests = matches!(self.mode, Mode::Direct | Mode::Follow | Mode::Without);
        let done = self.is_quiet() && (self.broken.is_some() || (rests && self.held.is_empty()));
        let settled = self.disk.checksums_are_settled();
        if done && !settled {
            // What was written since the end began keeps them from it.
            self.disk.settle_checksums();
        }
        (done && settled) || Instant::now() >= end
    }

    /// The last thing: what is written is durable, the cursors are stored.
    pub(super) fn close(mut self) {
        self.wait_through();
        self.inbox.close();
        self.throttle.answer(true);
        let journal = self.log.journal().status();
        if !journal.failed {
            let stored = self.log.sync().and_then(|()| self.log.store_cursors());
            if let Err(error) = stored {
                tracing::warn!("the journal was not closed in good order: {error}");
            }
            let left = self.log.journal().status().dirty_bytes;
            if left > 0 {
                tracing::warn!(
                    "{left} bytes are in the journal and not on the disk yet: there was no time"
                );
            }
        }
        self.publish(true);
        // Before whoever waits for the end is told, so that the claims are given up by then.
        let Self { log, disk, view, .. } = self;
        drop((log, disk));
        drop(view);
    }

    fn next_time(&self) -> Option<Instant> {
        let age =
            if self.durable_news { Some(DURABLE_AGE) } else { self.stale.then_some(VIEW_AGE) };
        let view = age.map(|age| self.published + age);
        [self.end, self.next_write_back(), view, self.throttle.next()].into_iter().flatten().min()
    }

    pub(super) fn publish(&mut self, always: bool) {
        let seen = self.view.borrow();
        let journal = self.log.journal();
        let passed = self.published.elapsed();
        self.durable_news = seen.durable != journal.durable();
        let news = (self.durable_news && passed >= DURABLE_AGE)
            || seen.mode != self.mode
            || seen.cut_wanted != self.cut_wanted;
        drop(seen);
        let due = self.stale && passed >= VIEW_AGE;
        if !(always || news || due) {
            return;
        }
        self.published = Instant::now();
        self.stale = false;
        self.durable_news = false;
        let view = self.view_now();
        self.view.send_if_modified(|seen| {
            let differs = *seen != view;
            *seen = view;
            differs
        });
    }

    fn view_now(&self) -> JournalView {
        let journal = self.log.journal();
        let status = journal.status();
        let cursors = journal.cursors();
        let lost =
            |peer: &holdfast_format::journal::PeerCursor| peer.switches.counts && peer.switches.cut;
        JournalView {
            mode: self.mode,
            tail: status.tail,
            head: status.head,
            durable: status.durable,
            written_back: status.written_back,
            spares: SparesView::of(&self.disk),
            bytes: status.bytes,
            dirty_bytes: status.dirty_bytes,
            limit_bytes: self.sizes.limit,
            time: status.time,
            cut_wanted: self.cut_wanted,
            emergency: cursors.peers.iter().any(lost),
            compression: journal.settings().compression,
            figures: self.figures_now(),
            problem: self.problem.clone(),
        }
    }
}

/// The wall clock, as records have it.
pub(super) fn now() -> HybridTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    HybridTime::from_unix_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn io_error(error: &DiskError) -> io::Error {
    error.errno.map_or_else(|| Errno::IO.into(), io::Error::from_raw_os_error)
}
