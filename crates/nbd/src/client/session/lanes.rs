//! The session's side of the connections.

use super::{Kind, Limits, Owner, Part, Sent, Session, Shape, Wire};
use crate::NbdError;
use crate::client::identity::Look;
use crate::client::negotiate::Agreed;
use crate::client::request::{RemoteFailure, RemoteOutcome};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;
use tokio::sync::oneshot;

#[derive(Default)]
pub(super) struct Lane {
    /// Whether it takes requests of callers.
    pub(super) live: bool,
    /// By cookie.
    under_way: BTreeMap<u64, Sent>,
    /// What the connection has not taken yet.
    queue: VecDeque<Wire>,
    bytes: u64,
    counters: LaneCounters,
}

/// What went over one connection, or those before it in its place.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::client) struct LaneCounters {
    pub(in crate::client) requests: u64,
    pub(in crate::client) bytes_read: u64,
    pub(in crate::client) bytes_written: u64,
    pub(in crate::client) errors: u64,
}

/// What a part costs besides its bytes.
const COST: u64 = 16 << 10;

impl Lane {
    pub(super) fn has_room(&self, limits: &Limits) -> bool {
        self.live
            && self.under_way.len() < limits.lane_parts
            && (self.under_way.is_empty() || self.bytes < limits.lane_bytes)
    }

    /// How busy it is.
    pub(super) fn load(&self) -> u64 {
        self.bytes + COST * self.under_way.len() as u64
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(super) fn put(&mut self, wire: Wire, sent: Sent) {
        self.bytes += moved(&sent.part);
        self.under_way.insert(wire.cookie, sent);
        self.queue.push_back(wire);
    }

    /// The part with this cookie is answered.
    pub(super) fn take(&mut self, cookie: u64, answer: &Result<Bytes, NbdError>) -> Option<Sent> {
        let sent = self.under_way.remove(&cookie)?;
        let moved = moved(&sent.part);
        self.bytes -= moved;
        self.counters.requests += 1;
        match (answer, sent.part.kind) {
            (Err(_), _) => self.counters.errors += 1,
            (Ok(_), Kind::Read) => self.counters.bytes_read += moved,
            (Ok(_), _) => self.counters.bytes_written += moved,
        }
        Some(sent)
    }
}

fn moved(part: &Part) -> u64 {
    match part.kind {
        Kind::Read | Kind::Write => part.range.len,
        Kind::Zeroes { .. } | Kind::Trim | Kind::Flush => 0,
    }
}

impl Session {
    /// What the server of a new connection can. The first one decides what the disk is like.
    pub(in crate::client) fn set_agreed(&mut self, agreed: &Agreed, shape: Shape) {
        self.shape.get_or_insert(shape);
        self.agreed = Some(agreed.clone());
    }

    /// Whether any lane takes requests.
    pub(in crate::client) fn is_online(&self) -> bool {
        self.lanes.iter().any(|lane| lane.live)
    }

    /// A lane that takes requests, other than `not`.
    pub(in crate::client) fn live_lane(&self, not: usize) -> Option<usize> {
        (0..self.lanes.len()).find(|lane| *lane != not && self.lanes[*lane].live)
    }

    pub(in crate::client) fn is_live(&self, lane: usize) -> bool {
        self.lanes[lane].live
    }

    pub(in crate::client) fn lane_counters(&self, lane: usize) -> (LaneCounters, usize) {
        (self.lanes[lane].counters, self.lanes[lane].under_way())
    }

    /// From now on a lane takes requests. If it is the only one, what is kept comes first.
    pub(in crate::client) fn admit(&mut self, lane: usize, now: Instant) {
        if !self.is_online() {
            self.begin_restore(false);
        }
        self.lanes[lane].live = true;
        self.dispatch(now);
    }

    /// The next request for a lane's connection.
    pub(in crate::client) fn next_wire(&mut self, lane: usize) -> Option<Wire> {
        self.lanes[lane].queue.pop_front()
    }

    /// Reads something over one lane, which need not be live, out of any order.
    pub(in crate::client) fn read_privately(
        &mut self,
        lane: usize,
        range: ByteRange,
        now: Instant,
    ) -> oneshot::Receiver<RemoteOutcome> {
        let (sender, receiver) = oneshot::channel();
        let owner = Owner::Private(sender);
        let part = Part { owner, kind: Kind::Read, range, data: Bytes::new(), fua: false };
        self.assign(lane, part, now);
        receiver
    }

    /// Samples that could be read now to know them: nothing about them is under way or may be lost.
    pub(in crate::client) fn looks_to_learn(&self) -> Vec<Look> {
        self.that_can_be_learnt(self.identity.unknown())
    }

    /// What was written there has become durable: samples of it need not be read.
    pub(super) fn learn_written(&mut self, range: ByteRange, data: &[u8]) {
        let mut looks = self.identity.unknown();
        looks.retain(|look| range.contains(look.range));
        for look in self.that_can_be_learnt(looks) {
            let at = |offset: u64| usize::try_from(offset - range.offset).unwrap_or(usize::MAX);
            if let Some(data) = data.get(at(look.range.offset)..at(look.range.end())) {
                self.identity.learn(look, data);
            }
        }
    }

    fn that_can_be_learnt(&self, mut looks: Vec<Look>) -> Vec<Look> {
        let changing = |range: ByteRange| {
            let all = self.lanes.iter().flat_map(|lane| lane.under_way.values());
            all.into_iter().any(|sent| sent.part.changes() && sent.part.range.overlaps(range))
        };
        looks.retain(|look| !self.unflushed.overlaps(look.range) && !changing(look.range));
        looks
    }

    /// A lane takes no more requests; what it has stays with it until [`Session::lost`].
    pub(in crate::client) fn retire(&mut self, lane: usize) {
        let was_online = self.is_online();
        self.lanes[lane].live = false;
        if was_online && !self.is_online() {
            // The next server begins from what is kept.
            self.restore = None;
        }
    }

    /// Whether a retired lane has unanswered requests that change something.
    pub(in crate::client) fn has_changes(&self, lane: usize) -> bool {
        self.lanes[lane].under_way.values().any(|sent| sent.part.changes())
    }

    /// The connection of a retired lane is gone: its requests go to others.
    pub(in crate::client) fn lost(&mut self, lane: usize, now: Instant) {
        let lane = &mut self.lanes[lane];
        debug_assert!(!lane.live, "a lane is retired before it is lost");
        lane.queue.clear();
        lane.bytes = 0;
        for (_, sent) in std::mem::take(&mut lane.under_way).into_iter().rev() {
            self.release(&sent);
            self.give_back(sent.part);
        }
        self.dispatch(now);
    }

    /// A part was not answered and will have to be sent again, if anybody still wants it.
    pub(super) fn give_back(&mut self, part: Part) {
        match part.owner {
            Owner::Request(number) if self.is_told(number) => self.part_over(number),
            Owner::Request(_) => {
                self.counters.resent += 1;
                self.ready.push_front(part);
            }
            Owner::Restore(id) => {
                let restore = self.restore.as_mut().filter(|restore| restore.id == id);
                if let Some(restore) = restore {
                    restore.under_way -= 1;
                    restore.queue.get_or_insert_default().push_front(part);
                }
            }
            Owner::Flush(who) => {
                self.flushing = false;
                for who in who {
                    match who.filter(|number| self.is_told(*number)) {
                        Some(number) => self.part_over(number),
                        None => self.flushers.push(who),
                    }
                }
            }
            Owner::Private(waiting) => {
                // Nobody may wait any more.
                let _ = waiting.send(Err(RemoteFailure::Aborted));
            }
        }
    }
}
