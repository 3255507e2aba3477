//! What was asked for, what is under way where, what may have to be done again. No I/O and no
//! clock: it is told what happens and when.
//!
//! A request is cut into parts, each as long as the server takes. A part is *held* (an earlier
//! request overlaps), *ready*, *parked* (a write for which there is no room before a flush),
//! *under way* on a lane, or answered. A lane is the session's side of a connection.

mod answers;
mod dispatch;
mod lanes;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the numbers of the tests are small")]
mod tests;

use super::identity::Identity;
use super::negotiate::Agreed;
use super::order::Order;
use super::request::{RemoteFailure, RemoteOutcome, RemoteRequest};
use super::unflushed::{Mark, Unflushed};
use crate::NbdError;
use crate::codec::TransmissionFlags;
use crate::codec::consts::flag;
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

pub(super) use dispatch::Wire;

/// Called with what came of a request.
pub(super) type Done = Box<dyn FnOnce(RemoteOutcome)>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Requests of callers.
    pub(super) requests: usize,
    /// How long one may take; `None` for ever.
    pub(super) timeout: Option<Duration>,
    /// Bytes that are kept until a flush.
    pub(super) unflushed: u64,
    /// Requests that are kept until a flush.
    pub(super) unflushed_count: usize,
    /// Parts under way on one lane.
    pub(super) lane_parts: usize,
    /// Bytes under way on one lane; one part always may be.
    pub(super) lane_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 4096,
            timeout: Some(Duration::from_secs(60)),
            unflushed: 64 << 20,
            unflushed_count: 65_536,
            lane_parts: 64,
            lane_bytes: 16 << 20,
        }
    }
}

/// What callers were told of the disk. Does not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) size: u64,
    pub(super) block: u32,
    pub(super) read_only: bool,
}

pub(super) struct Session {
    limits: Limits,
    shape: Option<Shape>,
    /// What the server of the moment can.
    agreed: Option<Agreed>,
    order: Order,
    requests: BTreeMap<u64, Pending>,
    next_request: u64,
    next_cookie: u64,
    ready: VecDeque<Part>,
    parked: VecDeque<Part>,
    restore: Option<Restore>,
    /// How many restores there were.
    restores: u64,
    /// A flush failed: what is kept must be written again before the next.
    rewrite_first: bool,
    unflushed: Unflushed,
    /// What the writes that are under way will weigh.
    arriving_weight: u64,
    /// Parts under way that change something.
    changing: usize,
    own_flush: OwnFlush,
    /// Who waits for a flush that was not sent yet.
    flushers: Vec<Option<u64>>,
    /// Whether a flush is under way. There is never a second one: of two at a time one could be
    /// told of a failure, and the other that all is well.
    flushing: bool,
    lanes: Vec<lanes::Lane>,
    /// The lane that was chosen last.
    turn: usize,
    pub(super) identity: Identity,
    finished: Vec<(Done, RemoteOutcome)>,
    /// Lanes that have got something to send.
    woken: Vec<usize>,
    closed: bool,
    pub(super) counters: Counters,
}

/// What happened so far, for people.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counters {
    /// Parts that were sent again because their connection was lost.
    pub(super) resent: u64,
    /// Parts that were written again because the server may have lost them.
    pub(super) restored: u64,
    /// Mean time of an answer to a read, weighted towards the latest.
    pub(super) read_time: Duration,
}

/// A flush that the client needs for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OwnFlush {
    No,
    Asked,
    /// The last one failed; not again before this.
    NotBefore(Instant),
}

/// A request that is not over.
struct Pending {
    /// `None` when the caller was told already.
    done: Option<Done>,
    deadline: Option<Instant>,
    /// While it is held.
    held: Option<Part>,
    /// Parts that were not answered.
    parts: usize,
    /// What reads brought, by offset.
    data: Vec<(u64, Bytes)>,
    failure: Option<RemoteFailure>,
    /// The server knows no FUA: a flush follows.
    then_flush: bool,
}

#[derive(Debug)]
enum Owner {
    Request(u64),
    /// What was kept is written again, by the restore with this number.
    Restore(u64),
    /// A flush, and those that share it; `None` is the client itself, for room.
    Flush(Vec<Option<u64>>),
    /// For the keeper, on a lane of its choice.
    Private(oneshot::Sender<RemoteOutcome>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    Write,
    Zeroes { no_hole: bool },
    Trim,
    Flush,
}

#[derive(Debug)]
struct Part {
    owner: Owner,
    kind: Kind,
    range: ByteRange,
    /// The data of a write.
    data: Bytes,
    fua: bool,
}

/// A part under way.
#[derive(Debug)]
struct Sent {
    part: Part,
    at: Instant,
    /// Reserved of what may be kept.
    weight: u64,
    /// What a flush covers.
    mark: Mark,
    /// Whether the server was told FUA.
    durable: bool,
}

/// What is kept is written again; nothing else is sent meanwhile.
#[derive(Debug)]
struct Restore {
    /// Parts of an earlier one may still be under way.
    id: u64,
    /// `None` until all that changes something has been answered.
    queue: Option<VecDeque<Part>>,
    under_way: usize,
    /// A flush failed; otherwise the connections were lost.
    after_flush: bool,
    /// The server refused a part.
    failed: Option<NbdError>,
}

impl Restore {
    /// Nothing may be sent to this server any more.
    fn is_hopeless(&self) -> bool {
        self.failed.is_some() && !self.after_flush
    }
}

impl Session {
    pub(super) fn new(limits: Limits, lanes: usize, identity: Identity) -> Self {
        Self {
            limits,
            shape: None,
            agreed: None,
            order: Order::default(),
            requests: BTreeMap::new(),
            next_request: 0,
            next_cookie: 0,
            ready: VecDeque::new(),
            parked: VecDeque::new(),
            restore: None,
            restores: 0,
            rewrite_first: false,
            unflushed: Unflushed::default(),
            arriving_weight: 0,
            changing: 0,
            own_flush: OwnFlush::No,
            flushers: Vec::new(),
            flushing: false,
            lanes: (0..lanes).map(|_| lanes::Lane::default()).collect(),
            turn: 0,
            identity,
            finished: Vec::new(),
            woken: Vec::new(),
            closed: false,
            counters: Counters::default(),
        }
    }

    /// Takes a request in. `done` comes out of [`Session::finished`] when it is over.
    pub(super) fn submit(&mut self, request: RemoteRequest, done: Done, now: Instant) {
        if let Some(early) = self.answer_early(&request) {
            self.finished.push((done, early));
            return;
        }
        let number = self.next_request;
        self.next_request += 1;
        let (range, access) = (request.range(), request.access());
        let part = Part::of(number, request);
        let mut held = None;
        if part.kind == Kind::Flush {
            self.flushers.push(Some(number));
        } else if self.order.enter(number, range, access) {
            self.ready.push_back(part);
        } else {
            held = Some(part);
        }
        self.requests.insert(
            number,
            Pending {
                done: Some(done),
                deadline: self.limits.timeout.map(|timeout| now + timeout),
                held,
                parts: 1,
                data: Vec::new(),
                failure: None,
                then_flush: false,
            },
        );
        self.dispatch(now);
    }

    fn answer_early(&self, request: &RemoteRequest) -> Option<RemoteOutcome> {
        if self.closed {
            return Some(Err(RemoteFailure::Closed));
        }
        if self.requests.len() >= self.limits.requests {
            return Some(Err(RemoteFailure::Busy));
        }
        // Nobody can know what to ask of a disk that was never seen.
        let Some(shape) = self.shape else { return Some(Err(RemoteFailure::Closed)) };
        if let Some(fault) = request.fault(shape.size, shape.block, shape.read_only) {
            return Some(Err(fault.into()));
        }
        let empty = request.range().is_empty() && *request != RemoteRequest::Flush;
        empty.then(|| Ok(Bytes::new()))
    }

    /// Fails what is too old, and goes on with what had to pause. When the next request will be too
    /// old.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Instant> {
        let mut next = None;
        let mut old = Vec::new();
        for (number, pending) in self.requests.iter().filter(|(_, p)| p.done.is_some()) {
            match pending.deadline {
                Some(deadline) if deadline <= now => old.push(*number),
                deadline => {
                    // Those that came later have more time.
                    next = deadline;
                    break;
                }
            }
        }
        if !old.is_empty() {
            for number in &old {
                self.tell(*number, Err(RemoteFailure::TimedOut));
            }
            self.forget_unsent();
        }
        self.dispatch(now);
        next
    }

    fn tell(&mut self, number: u64, outcome: RemoteOutcome) {
        let pending = self.requests.get_mut(&number);
        if let Some(done) = pending.and_then(|pending| pending.done.take()) {
            self.finished.push((done, outcome));
        }
    }

    /// Whether nobody waits for a request any more.
    fn is_told(&self, number: u64) -> bool {
        self.requests.get(&number).is_none_or(|pending| pending.done.is_none())
    }

    /// Drops the parts that were not sent of requests whose callers were told.
    fn forget_unsent(&mut self) {
        let told = |requests: &BTreeMap<u64, Pending>, number: u64| {
            requests.get(&number).is_none_or(|pending| pending.done.is_none())
        };
        let mut dropped = Vec::new();
        for queue in [&mut self.ready, &mut self.parked] {
            queue.retain(|part| match part.owner {
                Owner::Request(number) if told(&self.requests, number) => {
                    dropped.push(number);
                    false
                }
                _ => true,
            });
        }
        for (number, pending) in &mut self.requests {
            if pending.done.is_none() && pending.held.take().is_some() {
                dropped.push(*number);
            }
        }
        self.flushers.retain(|who| match who {
            Some(number) if told(&self.requests, *number) => {
                dropped.push(*number);
                false
            }
            _ => true,
        });
        for number in dropped {
            self.part_over(number);
        }
    }

    /// Fails all requests at once. Connections must be closed before others are sent: what is
    /// under way cannot be recalled.
    pub(super) fn fail_all(&mut self, failure: RemoteFailure) {
        for (_, pending) in std::mem::take(&mut self.requests) {
            self.finished.extend(pending.done.map(|done| (done, Err(failure))));
        }
        self.order.clear();
        self.ready.clear();
        self.parked.clear();
        self.flushers.retain(Option::is_none);
    }

    /// From now on requests are refused.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.fail_all(RemoteFailure::Closed);
    }

    /// What is over, to be told without holding on to the session.
    pub(super) fn finished(&mut self) -> Vec<(Done, RemoteOutcome)> {
        std::mem::take(&mut self.finished)
    }

    /// Lanes that have got something to send since the last call.
    pub(super) fn woken(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.woken)
    }

    pub(super) const fn shape(&self) -> Option<Shape> {
        self.shape
    }

    pub(super) const fn agreed(&self) -> Option<&Agreed> {
        self.agreed.as_ref()
    }

    /// Requests that are not over.
    pub(super) fn pending(&self) -> usize {
        self.requests.len()
    }

    pub(super) const fn unflushed(&self) -> &Unflushed {
        &self.unflushed
    }

    /// Forgets what is kept: from now on somebody else sees to it.
    pub(super) fn forget_unflushed(&mut self) {
        self.unflushed.clear();
        self.rewrite_first = false;
    }

    /// Whether the server does not take back what it lost: all of its connections must be closed.
    pub(super) fn is_unusable(&self) -> bool {
        self.restore.as_ref().is_some_and(Restore::is_hopeless)
    }

    /// Whether what is kept is being written again.
    pub(super) const fn is_restoring(&self) -> bool {
        self.restore.is_some()
    }

    fn flags(&self) -> TransmissionFlags {
        self.agreed.as_ref().map(|agreed| agreed.flags).unwrap_or_default()
    }

    /// Whether anything is kept until a flush. A server without flush promises nothing.
    fn keeps(&self) -> bool {
        self.flags().has(flag::SEND_FLUSH)
    }
}

impl Part {
    fn of(number: u64, request: RemoteRequest) -> Self {
        let owner = Owner::Request(number);
        let range = request.range();
        let (kind, data, fua) = match request {
            RemoteRequest::Read { .. } => (Kind::Read, Bytes::new(), false),
            RemoteRequest::Write { data, fua, .. } => (Kind::Write, data, fua),
            RemoteRequest::WriteZeroes { may_unmap, fua, .. } => {
                (Kind::Zeroes { no_hole: !may_unmap }, Bytes::new(), fua)
            }
            RemoteRequest::Trim { .. } => (Kind::Trim, Bytes::new(), false),
            RemoteRequest::Flush => (Kind::Flush, Bytes::new(), false),
        };
        Self { owner, kind, range, data, fua }
    }

    const fn changes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Zeroes { .. } | Kind::Trim)
    }

    /// Leaves the first `len` bytes; the rest.
    fn split(&mut self, len: u64) -> Self {
        let rest = ByteRange::new(self.range.offset + len, self.range.len - len);
        self.range.len = len;
        let at = usize::try_from(len).unwrap_or(usize::MAX).min(self.data.len());
        let data = self.data.split_off(at);
        let owner = match self.owner {
            Owner::Request(number) => Owner::Request(number),
            Owner::Restore(id) => Owner::Restore(id),
            Owner::Flush(_) | Owner::Private(_) => Owner::Flush(Vec::new()),
        };
        Self { owner, kind: self.kind, range: rest, data, fua: self.fua }
    }
}
