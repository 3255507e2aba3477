//! What the server answered.

use super::{Kind, OwnFlush, Owner, Part, Restore, Sent, Session};
use crate::NbdError;
use crate::client::request::RemoteFailure;
use crate::client::unflushed::Kept;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The pause after a flush of our own that failed.
const FLUSH_PAUSE: Duration = Duration::from_secs(1);

impl Session {
    /// A reply came in on a lane. False when the connection must not be used any more.
    #[must_use]
    pub(in crate::client) fn answered(
        &mut self,
        lane: usize,
        cookie: u64,
        answer: Result<Bytes, NbdError>,
        now: Instant,
    ) -> bool {
        let Some(sent) = self.lanes[lane].take(cookie, &answer) else { return true };
        self.release(&sent);
        if answer == Err(NbdError::Shutdown) {
            self.give_back(sent.part);
            return false;
        }
        let keep = match &sent.part.owner {
            Owner::Request(number) => {
                let number = *number;
                self.request_answered(number, &sent, answer, now);
                true
            }
            Owner::Restore(id) => self.restore_answered(*id, answer.err(), now),
            Owner::Flush(_) => {
                self.flush_answered(sent, answer.err(), now);
                true
            }
            Owner::Private(_) => {
                if let Owner::Private(waiting) = sent.part.owner {
                    // Nobody may wait any more.
                    let _ = waiting.send(answer.map_err(RemoteFailure::Server));
                }
                true
            }
        };
        self.dispatch(now);
        keep
    }

    /// A part is not under way any more.
    pub(super) fn release(&mut self, sent: &Sent) {
        self.arriving_weight -= sent.weight;
        self.changing -= usize::from(sent.part.changes());
    }

    fn request_answered(
        &mut self,
        number: u64,
        sent: &Sent,
        answer: Result<Bytes, NbdError>,
        now: Instant,
    ) {
        // After an abort nobody is interested.
        let Some(pending) = self.requests.get_mut(&number) else { return };
        let part = &sent.part;
        match (answer, part.kind) {
            (Err(error), _) => {
                pending.failure.get_or_insert(error.into());
                // The server may have been told that it lost something, and forget about it.
                self.rewrite_first |= sent.durable;
            }
            (Ok(data), Kind::Read) => {
                pending.data.push((part.range.offset, data));
                let taken = now.saturating_duration_since(sent.at);
                self.counters.read_time = (self.counters.read_time * 7 + taken) / 8;
            }
            (Ok(_), Kind::Flush) => {}
            (Ok(_), Kind::Write | Kind::Zeroes { .. } | Kind::Trim) => {
                pending.then_flush |= part.fua && !sent.durable;
                if sent.durable {
                    self.unflushed.cut(part.range);
                    if part.kind == Kind::Write {
                        self.identity.remember(&[part.range]);
                        self.learn_written(part.range, &part.data);
                    }
                } else if self.keeps() {
                    self.unflushed.add(part.range, kept(part));
                    self.flush_in_time(now);
                }
            }
        }
        self.part_over(number);
    }

    fn flush_answered(&mut self, sent: Sent, error: Option<NbdError>, now: Instant) {
        self.flushing = false;
        let Owner::Flush(who) = sent.part.owner else { return };
        if error.is_some() {
            self.rewrite_first = true;
        } else if self.rewrite_first {
            // A durable write has failed meanwhile: perhaps this flush was not told of it.
            self.flushers.extend(who);
            return;
        } else {
            self.identity.remember(&self.unflushed.newest_before(sent.mark, 4));
            let newest = self.unflushed.newest_data_before(sent.mark);
            self.unflushed.flushed(sent.mark);
            if let Some((range, data)) = newest {
                self.learn_written(range, &data);
            }
        }
        self.tell_flushers(who, error, now);
    }

    fn tell_flushers(&mut self, who: Vec<Option<u64>>, error: Option<NbdError>, now: Instant) {
        for who in who {
            let Some(number) = who else {
                self.own_flush = match error {
                    None => OwnFlush::No,
                    Some(_) => OwnFlush::NotBefore(now + FLUSH_PAUSE),
                };
                if let Some(error) = error {
                    self.fail_parked(error.into());
                }
                continue;
            };
            if let (Some(error), Some(pending)) = (error, self.requests.get_mut(&number)) {
                pending.failure.get_or_insert(error.into());
            }
            self.part_over(number);
        }
    }

    /// Ends all that wait for a flush, without one.
    pub(super) fn end_flushers(&mut self, error: Option<NbdError>, now: Instant) {
        let who = std::mem::take(&mut self.flushers);
        self.tell_flushers(who, error, now);
    }

    /// Writes that wait for room fail, because the flush that would have made room did.
    fn fail_parked(&mut self, failure: RemoteFailure) {
        for part in std::mem::take(&mut self.parked) {
            if let Owner::Request(number) = part.owner {
                if let Some(pending) = self.requests.get_mut(&number) {
                    pending.failure.get_or_insert(failure);
                }
                self.part_over(number);
            }
        }
    }

    fn restore_answered(&mut self, id: u64, error: Option<NbdError>, now: Instant) -> bool {
        let Some(restore) = self.restore.as_mut().filter(|restore| restore.id == id) else {
            return true;
        };
        restore.under_way -= 1;
        if let Some(error) = error {
            restore.failed.get_or_insert(error);
            restore.queue = Some(VecDeque::new());
        }
        let hopeless = restore.is_hopeless();
        self.is_restored(now);
        !hopeless
    }

    /// Whether all that was kept has been written again; then requests go on.
    pub(super) fn is_restored(&mut self, now: Instant) -> bool {
        let over = |restore: &mut Restore| {
            restore.under_way == 0
                && restore.queue.as_ref().is_some_and(VecDeque::is_empty)
                && !restore.is_hopeless()
        };
        let Some(restore) = self.restore.take_if(over) else { return false };
        match restore.failed {
            None => self.rewrite_first = false,
            // What is kept could not be written again, so no flush can succeed.
            Some(error) => self.end_flushers(Some(error), now),
        }
        true
    }

    /// One part of a request is answered, or was given up.
    pub(super) fn part_over(&mut self, number: u64) {
        let Some(pending) = self.requests.get_mut(&number) else { return };
        pending.parts -= 1;
        if pending.parts > 0 {
            return;
        }
        if pending.then_flush && pending.failure.is_none() && pending.done.is_some() {
            pending.then_flush = false;
            pending.parts = 1;
            self.flushers.push(Some(number));
            return;
        }
        let Some(pending) = self.requests.remove(&number) else { return };
        let mut free = Vec::new();
        self.order.leave(number, |later| free.push(later));
        for later in free {
            let held = self.requests.get_mut(&later).and_then(|pending| pending.held.take());
            self.ready.extend(held);
        }
        if let Some(done) = pending.done {
            let outcome = match pending.failure {
                Some(failure) => Err(failure),
                None => Ok(joined(pending.data)),
            };
            self.finished.push((done, outcome));
        }
    }
}

fn kept(part: &Part) -> Kept {
    match part.kind {
        Kind::Zeroes { no_hole } => Kept::Zeroes { no_hole },
        Kind::Trim => Kept::Trim,
        _ => Kept::Data(part.data.clone()),
    }
}

/// The data of a read whose parts may have come in any order.
fn joined(mut parts: Vec<(u64, Bytes)>) -> Bytes {
    if parts.len() <= 1 {
        return parts.pop().map(|(_, data)| data).unwrap_or_default();
    }
    parts.sort_unstable_by_key(|(offset, _)| *offset);
    let mut all = BytesMut::with_capacity(parts.iter().map(|(_, data)| data.len()).sum());
    for (_, data) in parts {
        all.extend_from_slice(&data);
    }
    all.freeze()
}
