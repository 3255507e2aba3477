//! From ready parts to requests on lanes.

use super::{Kind, OwnFlush, Owner, Part, Restore, Sent, Session};
use crate::client::unflushed::{Kept, weight};
use crate::codec::Command;
use crate::codec::consts::{command_flag, flag};
use bytes::Bytes;
use holdfast_units::ByteRange;
use std::collections::VecDeque;
use std::time::Instant;

/// Zeroes and trims go in parts of this length, so that each is answered in reasonable time.
const LONG_STEP: u64 = 32 << 20;

static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// A request as it goes over the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::client) struct Wire {
    pub(in crate::client) cookie: u64,
    pub(in crate::client) command: Command,
    pub(in crate::client) flags: u16,
    pub(in crate::client) offset: u64,
    pub(in crate::client) len: u64,
    /// The data of a write.
    pub(in crate::client) payload: Bytes,
}

impl Session {
    /// Gives ready parts to lanes, as far as there is room.
    pub(super) fn dispatch(&mut self, now: Instant) {
        if !self.parked.is_empty() {
            self.ask_for_flush(now);
        }
        while let Some(lane) = self.lane_with_most_room() {
            let Some(part) = self.next_part(now) else { return };
            self.turn = lane;
            self.assign(lane, part, now);
        }
    }

    /// The live lane with the least under way; in turn among equals.
    fn lane_with_most_room(&self) -> Option<usize> {
        let count = self.lanes.len();
        let in_turn = (1..=count).map(|step| (self.turn + step) % count);
        in_turn
            .filter(|lane| self.lanes[*lane].has_room(&self.limits))
            .min_by_key(|lane| self.lanes[*lane].load())
    }

    fn next_part(&mut self, now: Instant) -> Option<Part> {
        if self.restore.is_some() {
            let part = self.next_to_restore(now);
            if part.is_some() || self.restore.is_some() {
                return part;
            }
        }
        if !self.flushing && !self.flushers.is_empty() {
            if !self.keeps() {
                self.end_flushers(None, now);
            } else if self.rewrite_first {
                self.begin_restore(true);
                return self.next_part(now);
            } else {
                self.flushing = true;
                return Some(Part::flush(std::mem::take(&mut self.flushers)));
            }
        }
        if let Some(part) = self.next_parked() {
            return Some(part);
        }
        while let Some(mut part) = self.ready.pop_front() {
            if self.is_nothing(&part) {
                self.over_without_server(&part);
                continue;
            }
            if let Some(rest) = self.cut_to_size(&mut part) {
                self.ready.push_front(rest);
            }
            if part.changes() && (!self.parked.is_empty() || !self.may_keep(&part)) {
                self.parked.push_back(part);
                self.ask_for_flush(now);
                if !self.flushers.is_empty() && !self.flushing {
                    return self.next_part(now);
                }
                continue;
            }
            return Some(part);
        }
        None
    }

    /// The first of the parked writes, when there is room for it now.
    fn next_parked(&mut self) -> Option<Part> {
        while self.may_keep(self.parked.front()?) {
            let mut part = self.parked.pop_front()?;
            if self.is_nothing(&part) {
                self.over_without_server(&part);
                continue;
            }
            if let Some(rest) = self.cut_to_size(&mut part) {
                self.parked.push_front(rest);
            }
            return Some(part);
        }
        None
    }

    /// What is kept will be written again before anything else is sent.
    pub(super) fn begin_restore(&mut self, after_flush: bool) {
        self.restores += 1;
        let id = self.restores;
        self.restore = Some(Restore { id, queue: None, under_way: 0, after_flush, failed: None });
    }

    /// The next part of what is written again. It begins when nothing else changes anything.
    fn next_to_restore(&mut self, now: Instant) -> Option<Part> {
        let restore = self.restore.as_mut()?;
        if restore.queue.is_none() && self.changing == 0 {
            let id = restore.id;
            let pieces = self.unflushed.pieces();
            let queue: VecDeque<_> =
                pieces.map(|(range, kept)| restored(id, range, kept)).collect();
            self.counters.restored += queue.len() as u64;
            restore.queue = Some(queue);
        }
        while let Some(mut part) = self.restore.as_mut()?.queue.as_mut()?.pop_front() {
            if self.is_nothing(&part) {
                continue;
            }
            let rest = self.cut_to_size(&mut part);
            let restore = self.restore.as_mut()?;
            restore.queue.as_mut()?.extend(rest);
            restore.under_way += 1;
            return Some(part);
        }
        self.is_restored(now);
        None
    }

    /// Whether the server has nothing to do for it.
    fn is_nothing(&self, part: &Part) -> bool {
        match part.kind {
            Kind::Trim => !self.flags().has(flag::SEND_TRIM),
            Kind::Read | Kind::Write | Kind::Zeroes { .. } | Kind::Flush => false,
        }
    }

    fn over_without_server(&mut self, part: &Part) {
        if let Owner::Request(number) = part.owner {
            self.part_over(number);
        }
    }

    /// Cuts a part down to what the server takes; the rest.
    fn cut_to_size(&mut self, part: &mut Part) -> Option<Part> {
        let most = match part.kind {
            Kind::Read | Kind::Write => self.max_payload(),
            Kind::Zeroes { .. } if !self.flags().has(flag::SEND_WRITE_ZEROES) => {
                self.max_payload().min(ZEROES.len() as u64)
            }
            Kind::Zeroes { .. } | Kind::Trim => LONG_STEP,
            Kind::Flush => return None,
        };
        if part.range.len <= most {
            return None;
        }
        if let Owner::Request(number) = part.owner
            && let Some(pending) = self.requests.get_mut(&number)
        {
            pending.parts += 1;
        }
        Some(part.split(most))
    }

    fn max_payload(&self) -> u64 {
        self.agreed.as_ref().map_or(1 << 20, |agreed| agreed.max_payload() as u64)
    }

    /// Whether there is room for it in what is kept until a flush.
    fn may_keep(&self, part: &Part) -> bool {
        let (held, count) =
            (self.unflushed.weight() + self.arriving_weight, self.unflushed.count());
        !self.keeps()
            || held == 0
            || (held + weight(part.data.len() as u64) <= self.limits.unflushed
                && count + self.changing < self.limits.unflushed_count)
    }

    /// Asks for a flush when much is kept.
    pub(super) fn flush_in_time(&mut self, now: Instant) {
        if self.unflushed.weight() >= self.limits.unflushed / 2
            || self.unflushed.count() >= self.limits.unflushed_count / 2
        {
            self.ask_for_flush(now);
        }
    }

    fn ask_for_flush(&mut self, now: Instant) {
        let may = match self.own_flush {
            OwnFlush::No => true,
            OwnFlush::Asked => false,
            OwnFlush::NotBefore(at) => at <= now,
        };
        // With nothing completed there is nothing to flush yet: an answer will ask again.
        if may && self.keeps() && self.unflushed.count() > 0 {
            self.own_flush = OwnFlush::Asked;
            self.flushers.push(None);
        }
    }

    /// Puts a part on a lane.
    pub(super) fn assign(&mut self, lane: usize, part: Part, now: Instant) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let has = self.flags();
        let mut flags = 0;
        let mut payload = part.data.clone();
        let command = match part.kind {
            Kind::Read => Command::Read,
            Kind::Write => Command::Write,
            Kind::Trim => Command::Trim,
            Kind::Flush => Command::Flush,
            Kind::Zeroes { no_hole } if has.has(flag::SEND_WRITE_ZEROES) => {
                flags |= if no_hole { command_flag::NO_HOLE } else { 0 };
                Command::WriteZeroes
            }
            Kind::Zeroes { .. } => {
                let len = usize::try_from(part.range.len).unwrap_or(usize::MAX);
                payload = Bytes::from_static(&ZEROES[..len.min(ZEROES.len())]);
                Command::Write
            }
        };
        let durable = part.fua && has.has(flag::SEND_FUA);
        if durable {
            flags |= command_flag::FUA;
        }
        let mut kept = 0;
        if part.changes() {
            self.identity.touch(part.range);
            self.changing += 1;
            if self.keeps() && !matches!(part.owner, Owner::Restore(_)) {
                kept = weight(part.data.len() as u64);
                self.arriving_weight += kept;
            }
        }
        let wire = Wire {
            cookie,
            command,
            flags,
            offset: part.range.offset,
            len: part.range.len,
            payload,
        };
        let sent = Sent { part, at: now, weight: kept, mark: self.unflushed.mark(), durable };
        self.lanes[lane].put(wire, sent);
        self.woken.push(lane);
    }
}

impl Part {
    fn flush(who: Vec<Option<u64>>) -> Self {
        let (owner, range) = (Owner::Flush(who), ByteRange::new(0, 0));
        Self { owner, kind: Kind::Flush, range, data: Bytes::new(), fua: false }
    }
}

fn restored(id: u64, range: ByteRange, kept: &Kept) -> Part {
    let (kind, data) = match kept {
        Kept::Data(data) => (Kind::Write, data.clone()),
        Kept::Zeroes { no_hole } => (Kind::Zeroes { no_hole: *no_hole }, Bytes::new()),
        Kept::Trim => (Kind::Trim, Bytes::new()),
    };
    Part { owner: Owner::Restore(id), kind, range, data, fua: false }
}
