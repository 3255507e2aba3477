//! NBD requests of a resource: permits, splitting, partial blocks.
//!
//! A request of whole blocks that the core takes in one piece goes straight to it. All others
//! become a [`Job`].

use super::Limits;
use super::jobs::{Job, JobKind, LONGEST_ZEROES, PieceResult};
use super::stages::{Spreads, StageOp};
use bytes::Bytes;
use holdfast_core::{Event, IoFailure, RequestId};
use holdfast_nbd::{Changes, NbdError, Reply, ReplyData, Request, RequestKind};
use holdfast_store::BufferPool;
use holdfast_units::{ByteRange, MAX_REQUEST};
use slab::Slab;
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::oneshot;

/// Requests since the start.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Stats {
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) flushes: u64,
}

/// When a request came, and what it does.
#[derive(Clone, Copy)]
struct Came {
    at: Instant,
    op: StageOp,
}

/// What the core has been asked for.
enum Asked {
    /// A request of a client, whole.
    Whole { reply: Reply, range: ByteRange, writes: bool, cost: u64, came: Came },
    /// A piece of a job, from this offset on.
    Piece { job: usize, offset: u64 },
    /// A read of this node itself. Those are few, and take no permit.
    Own(oneshot::Sender<Result<Bytes, IoFailure>>),
}

/// The requests of one resource.
pub(super) struct Frontend {
    limits: Limits,
    pool: BufferPool,
    asked: Slab<Asked>,
    jobs: Slab<(Job, Came)>,
    /// Jobs that change partial blocks and run.
    partial: Vec<usize>,
    /// Jobs that wait for writes of the same blocks, in order.
    blocked: VecDeque<usize>,
    in_flight: usize,
    in_flight_bytes: u64,
    /// Requests that wait for permits. Bounded by what connections may have under way.
    waiting: VecDeque<(Request, Reply, Instant)>,
    stats: Stats,
    /// How long requests took.
    spreads: Box<Spreads>,
    /// What clients have changed since the node became Primary.
    changes: Option<Changes>,
}

impl Frontend {
    pub(super) fn new(limits: Limits, pool: BufferPool) -> Self {
        Self {
            limits,
            pool,
            asked: Slab::new(),
            jobs: Slab::new(),
            partial: Vec::new(),
            blocked: VecDeque::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            waiting: VecDeque::new(),
            stats: Stats::default(),
            spreads: Box::default(),
            changes: None,
        }
    }

    pub(super) const fn stats(&self) -> Stats {
        self.stats
    }

    /// How long requests took, from [`Self::submit`] to their answer.
    pub(super) fn spreads(&self) -> Spreads {
        *self.spreads
    }

    /// Requests that are not answered yet.
    pub(super) fn under_way(&self) -> usize {
        self.in_flight + self.waiting.len()
    }

    /// When the oldest of them came, and what it does.
    pub(super) fn oldest(&self) -> Option<(Instant, StageOp)> {
        let asked = self.asked.iter().filter_map(|(_, asked)| match asked {
            Asked::Whole { came, .. } => Some(*came),
            Asked::Piece { .. } | Asked::Own(_) => None,
        });
        let jobs = self.jobs.iter().map(|(_, (_, came))| *came);
        let waiting = self.waiting.front();
        let waiting = waiting.map(|(request, _, at)| Came { at: *at, op: op_of(request.kind) });
        let oldest = asked.chain(jobs).chain(waiting).min_by_key(|came| came.at)?;
        Some((oldest.at, oldest.op))
    }

    fn took(&mut self, came: Came, now: Instant) {
        if let Some(spread) = self.spreads.get_mut(came.op.index()) {
            spread.note(now.saturating_duration_since(came.at));
        }
    }

    /// From now on it is remembered what clients change; what was remembered is forgotten.
    pub(super) fn track_changes(&mut self, size: u64) {
        self.changes = Some(Changes::new(size));
    }

    /// Clients may use so many bytes from now on.
    pub(super) fn grown_to(&mut self, size: u64) {
        if let Some(changes) = &mut self.changes {
            changes.grow(size);
        }
    }

    /// What clients have changed since [`Self::track_changes`].
    pub(super) const fn changes(&self) -> Option<&Changes> {
        self.changes.as_ref()
    }

    /// Takes a request of a client that reads, writes or flushes.
    pub(super) fn submit(
        &mut self,
        request: Request,
        reply: Reply,
        now: Instant,
        events: &mut VecDeque<Event>,
    ) {
        match request.kind {
            RequestKind::Cache => reply.complete(Ok(ReplyData::Done)),
            RequestKind::Resize | RequestKind::BlockStatus => {
                reply.complete(Err(NbdError::NotSupported));
            }
            RequestKind::WriteZeroes if request.fast_zero && !is_fast(&request) => {
                reply.complete(Err(NbdError::NotSupported));
            }
            _ if !self.waiting.is_empty() || !self.has_room(cost(&request)) => {
                self.waiting.push_back((request, reply, now));
            }
            _ => self.begin(request, reply, (now, now), events),
        }
    }

    /// Reads whole blocks, at most [`MAX_REQUEST`], for this node itself.
    pub(super) fn read(
        &mut self,
        range: ByteRange,
        done: oneshot::Sender<Result<Bytes, IoFailure>>,
        events: &mut VecDeque<Event>,
    ) {
        let id = self.asked.insert(Asked::Own(done));
        let read = holdfast_core::RequestKind::Read(range);
        events.push_back(Event::Request(RequestId(id as u64), read));
    }

    fn has_room(&self, cost: u64) -> bool {
        self.in_flight == 0
            || (self.in_flight < self.limits.in_flight_requests
                && self.in_flight_bytes.saturating_add(cost) <= self.limits.in_flight_bytes)
    }

    /// Begins a request that came at the first of two times; the second is now.
    fn begin(
        &mut self,
        request: Request,
        reply: Reply,
        (at, now): (Instant, Instant),
        events: &mut VecDeque<Event>,
    ) {
        let cost = cost(&request);
        self.in_flight += 1;
        self.in_flight_bytes += cost;
        self.count(&request);
        let came = Came { at, op: op_of(request.kind) };
        let range = request.range;
        let writes = !matches!(request.kind, RequestKind::Read | RequestKind::Flush);
        if writes && let Some(changes) = &mut self.changes {
            changes.note(range);
        }
        if writes && self.is_contended(range) {
            self.begin_job((request, reply, came), now, events);
            return;
        }
        match whole(request) {
            Ok(kind) => {
                let id = self.asked.insert(Asked::Whole { reply, range, writes, cost, came });
                events.push_back(Event::Request(RequestId(id as u64), kind));
            }
            Err(request) => self.begin_job((request, reply, came), now, events),
        }
    }

    fn count(&mut self, request: &Request) {
        let stats = &mut self.stats;
        match request.kind {
            RequestKind::Read => {
                stats.reads += 1;
                stats.read_bytes += request.range.len;
            }
            RequestKind::Write | RequestKind::Trim | RequestKind::WriteZeroes => {
                stats.writes += 1;
                stats.written_bytes += request.range.len;
            }
            RequestKind::Flush => stats.flushes += 1,
            RequestKind::Cache | RequestKind::BlockStatus | RequestKind::Resize => {}
        }
    }

    fn begin_job(
        &mut self,
        (request, reply, came): (Request, Reply, Came),
        now: Instant,
        events: &mut VecDeque<Event>,
    ) {
        let cost = cost(&request);
        let Some(job) = Job::new(request, reply, cost) else {
            // A trim of less than a block.
            self.took(came, now);
            self.release(cost, now, events);
            return;
        };
        let key = self.jobs.insert((job, came));
        if self.must_wait(key, self.blocked.len()) {
            self.blocked.push_back(key);
        } else {
            self.run_job(key, now, events);
        }
    }

    /// Whether a write of this range could meet a job that changes partial blocks.
    fn is_contended(&self, range: ByteRange) -> bool {
        if self.partial.is_empty() && self.blocked.is_empty() {
            return false;
        }
        let meets = |key: &usize| self.jobs[*key].0.outer().overlaps(range);
        self.partial.iter().any(meets) || self.blocked.iter().any(meets)
    }

    /// Whether a job must wait: for those that wait already before it (the first `ahead`), for jobs
    /// that change partial blocks, and, when it does so itself, for every write.
    fn must_wait(&self, key: usize, ahead: usize) -> bool {
        let (job, _) = &self.jobs[key];
        if !job.writes() {
            return false;
        }
        let outer = job.outer();
        let meets = |other: &usize| self.jobs[*other].0.outer().overlaps(outer);
        if self.blocked.iter().take(ahead).any(meets) || self.partial.iter().any(meets) {
            return true;
        }
        job.is_partial()
            && (self.asked.iter().any(|(_, asked)| match asked {
                Asked::Whole { range, writes, .. } => *writes && range.overlaps(outer),
                Asked::Piece { .. } | Asked::Own(_) => false,
            }) || self.jobs.iter().any(|(other, (running, _))| {
                other != key
                    && running.is_running()
                    && running.writes()
                    && running.outer().overlaps(outer)
            }))
    }

    fn run_job(&mut self, key: usize, now: Instant, events: &mut VecDeque<Event>) {
        let (job, _) = &mut self.jobs[key];
        if job.start() == JobKind::Partial {
            self.partial.push(key);
        }
        self.pump(key, now, events);
    }

    /// Asks the core for as many pieces of a job as may be under way; ends it after the last one.
    fn pump(&mut self, key: usize, now: Instant, events: &mut VecDeque<Event>) {
        let (job, _) = &mut self.jobs[key];
        while let Some((offset, kind)) = job.next_piece(&self.pool) {
            let id = self.asked.insert(Asked::Piece { job: key, offset });
            events.push_back(Event::Request(RequestId(id as u64), kind));
        }
        if !job.is_done() {
            return;
        }
        let (job, came) = self.jobs.remove(key);
        self.partial.retain(|partial| *partial != key);
        let cost = job.cost();
        job.answer();
        self.took(came, now);
        self.release(cost, now, events);
        self.unblock(now, events);
    }

    /// The core has answered.
    pub(super) fn complete(
        &mut self,
        id: RequestId,
        result: Result<Option<Bytes>, IoFailure>,
        now: Instant,
        events: &mut VecDeque<Event>,
    ) {
        let asked = usize::try_from(id.0).ok().and_then(|key| self.asked.try_remove(key));
        match asked {
            Some(Asked::Whole { reply, cost, writes, came, .. }) => {
                let answer = match result {
                    Ok(Some(data)) => Ok(ReplyData::Read(data)),
                    Ok(None) => Ok(ReplyData::Done),
                    Err(failure) => Err(error_of(failure)),
                };
                reply.complete(answer);
                self.took(came, now);
                self.release(cost, now, events);
                if writes {
                    self.unblock(now, events);
                }
            }
            Some(Asked::Piece { job, offset }) => {
                self.jobs[job].0.piece_done(PieceResult { offset, result });
                self.pump(job, now, events);
            }
            Some(Asked::Own(done)) => {
                // Who asked may be gone.
                let _ = done.send(result.map(Option::unwrap_or_default));
            }
            None => debug_assert!(false, "the core answered {id:?}, which was not asked"),
        }
    }

    /// Gives permits back, and lets those in who wait for them.
    fn release(&mut self, cost: u64, now: Instant, events: &mut VecDeque<Event>) {
        self.in_flight -= 1;
        self.in_flight_bytes -= cost;
        while let Some((request, _, _)) = self.waiting.front()
            && self.has_room(self::cost(request))
            && let Some((request, reply, came)) = self.waiting.pop_front()
        {
            self.begin(request, reply, (came, now), events);
        }
    }

    /// A write has ended: who waited for it may go on.
    fn unblock(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        let mut at = 0;
        while let Some(&key) = self.blocked.get(at) {
            if self.must_wait(key, at) {
                at += 1;
            } else {
                self.blocked.remove(at);
                self.run_job(key, now, events);
            }
        }
    }
}

/// Whether zeroing takes less than writing zeroes: no zeroes travel to the peers, and nothing is
/// read to make blocks whole.
const fn is_fast(request: &Request) -> bool {
    request.range.is_aligned() && !request.no_hole
}

/// As what a request is timed.
const fn op_of(kind: RequestKind) -> StageOp {
    match kind {
        RequestKind::Write => StageOp::Write,
        RequestKind::Trim | RequestKind::WriteZeroes => StageOp::Discard,
        RequestKind::Flush => StageOp::Flush,
        RequestKind::Read | RequestKind::Cache | RequestKind::BlockStatus | RequestKind::Resize => {
            StageOp::Read
        }
    }
}

/// The bytes that a request holds.
fn cost(request: &Request) -> u64 {
    match request.kind {
        RequestKind::Read | RequestKind::Write => request.range.len,
        _ => 0,
    }
}

/// The request as the core takes it, when it takes it in one piece.
fn whole(request: Request) -> Result<holdfast_core::RequestKind, Request> {
    use holdfast_core::RequestKind as Core;
    let Request { kind, range, fua, .. } = request;
    match kind {
        RequestKind::Flush => return Ok(Core::Flush),
        _ if !range.is_aligned() => {}
        RequestKind::Read if range.len <= MAX_REQUEST => return Ok(Core::Read(range)),
        RequestKind::Write if range.len <= MAX_REQUEST => {
            return Ok(Core::Write { range, data: request.payload, fua });
        }
        RequestKind::Trim if range.len <= LONGEST_ZEROES => {
            return Ok(Core::Zeroes { range, fua });
        }
        RequestKind::WriteZeroes if range.len <= LONGEST_ZEROES && !request.no_hole => {
            return Ok(Core::Zeroes { range, fua });
        }
        _ => {}
    }
    Err(request)
}

/// What a client is told of a failure.
pub(super) fn error_of(failure: IoFailure) -> NbdError {
    match failure {
        IoFailure::NotPrimary | IoFailure::Stopping => NbdError::Shutdown,
        IoFailure::NoData | IoFailure::Disk => NbdError::Io,
        IoFailure::Range => NbdError::Invalid,
    }
}
