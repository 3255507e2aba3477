//! What comes from the leader: connections, verdicts, pieces, parts of a filling.

use super::super::codec::{MAX_PAYLOAD, MAX_SEGMENTS};
use super::super::lead::digest;
use super::super::message::{
    Answer, Block, FEATURE_HEAL, FEATURE_LENT, Fetch, Head, Join, Offer, Piece, RefuseCode,
    Request, Verdict, Welcome,
};
use super::rewind::BACKWARDS;
use super::state::journal;
use super::types::{ConnId, FollowError, Send, Trouble};
use super::{Asked, Conn, Follower};
use crate::compress::decompress;
use crate::driver::{Backing, Files};
use holdfast_format::journal::{FollowState, Following, SegmentHeader};
use holdfast_units::{ByteRange, LogPosition, NodeId};
use std::collections::VecDeque;
use std::io;

impl<O, F, D> Follower<O, F, D>
where
    O: FnMut() -> io::Result<F>,
    F: Files,
    D: Backing,
{
    /// Begins to follow a node, by connections to come. `bundle` is a random number.
    pub fn meet(&mut self, leader: NodeId, bundle: u64) {
        self.part();
        (self.leader, self.bundle) = (leader, bundle);
    }

    /// All connections are gone.
    pub fn part(&mut self) {
        self.conns.clear();
        self.out.clear();
        self.first = None;
        self.verdict = None;
        self.head = None;
        self.reported = None;
        self.fetcher.forget();
        self.round += 1;
        self.must_greet = true;
        // The leader may have lost with its power what it had read: only what it was told of
        // while it lives counts.
        self.unflushed |= !self.copied_unflushed.is_empty();
        self.copied_unflushed.clear();
        self.copied.clear();
        self.copies_given_out = false;
        self.takes.clear();
        self.healing.leader_changes();
        self.healing.leader_gives = false;
        // Another leader may write something else there.
        self.delay.forget_from(self.durable());
    }

    /// A connection to the leader stands. The first one carries the reports; when it is gone, call
    /// [`Self::part`] and close the others.
    pub fn opened(&mut self, conn: ConnId) {
        self.conns.insert(conn, Conn { asked: VecDeque::new(), ready: false });
        if self.first.is_none() {
            self.first = Some(conn);
            self.must_greet = true;
        } else if self.verdict.is_some() {
            self.join(conn);
        }
    }

    fn join(&mut self, conn: ConnId) {
        let (resource, from, to) = (self.options.settings.resource, self.node, self.leader);
        let join = Join { resource, from, to, bundle: self.bundle };
        self.send(conn, Request::Join(join), Asked::Join);
    }

    /// A connection is gone that is not the first one.
    pub fn closed(&mut self, now_ms: u64, conn: ConnId) {
        let Some(gone) = self.conns.remove(&conn) else { return };
        if self.takes.iter().any(|(of, _)| *of == conn) {
            self.takes.retain(|(of, _)| *of != conn);
            self.copies_given_out = false;
        }
        for asked in gone.asked {
            match asked {
                Asked::Fetch(fetch, round) if round == self.round => self.fetcher.lost(fetch),
                Asked::Copy(_) => self.copies_given_out = false,
                Asked::Heal(_) => self.healing.not_given(now_ms),
                _ => {}
            }
        }
    }

    pub(super) fn send(&mut self, conn: ConnId, request: Request, asked: Asked) {
        if let Some(to) = self.conns.get_mut(&conn) {
            to.asked.push_back(asked);
            self.out.push(Send { conn, request });
        }
    }

    /// What is to be sent, in this order.
    pub fn outgoing(&mut self) -> Vec<Send> {
        std::mem::take(&mut self.out)
    }

    pub(super) fn follows(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Ship | Verdict::Fill { .. } | Verdict::FillOn))
    }

    pub(super) fn copies(&self) -> bool {
        self.state.state == FollowState::Filling && self.state.fill_to.is_none() && self.follows()
    }

    /// An answer came. Whether the connection may go on: if not, close it.
    ///
    /// # Errors
    /// [`FollowError`].
    pub fn answer(
        &mut self,
        now_ms: u64,
        conn: ConnId,
        answer: Answer,
    ) -> Result<bool, FollowError> {
        let Some(asked) = self.conns.get_mut(&conn).and_then(|conn| conn.asked.pop_front()) else {
            return Ok(false);
        };
        match (asked, answer) {
            (Asked::Hello, Answer::Welcome(welcome)) => self.welcome(now_ms, conn, welcome)?,
            (Asked::Join, Answer::Joined) => {
                if let Some(conn) = self.conns.get_mut(&conn) {
                    conn.ready = true;
                }
            }
            (Asked::Await(_), Answer::Head(head)) => self.learn(now_ms, head)?,
            (Asked::Fetch(fetch, round), Answer::Piece(piece)) => {
                return Ok(self.piece(fetch, round, &piece));
            }
            (Asked::Copy(fill), Answer::Block(block)) => return self.block(fill, &block),
            (Asked::Copy(fill), Answer::Offer(offer)) => {
                return self.offered(conn, fill, &offer);
            }
            (Asked::Copy(fill), Answer::Lost { fill: of, range }) => {
                return Ok(fill != of || self.lost_there(fill, range));
            }
            (Asked::Heal(round), Answer::Healed { position, block }) => {
                return Ok(self.given(now_ms, round, position, &block));
            }
            (asked, Answer::Refuse { code, text }) => {
                match asked {
                    Asked::Fetch(fetch, round) if round == self.round => self.fetcher.lost(fetch),
                    Asked::Copy(_) => self.copies_given_out = false,
                    Asked::Heal(_) => self.healing.not_given(now_ms),
                    _ => {}
                }
                if code == RefuseCode::Gone && Some(conn) != self.first {
                    self.must_greet = true;
                    return Ok(true);
                }
                // Another one is looked for.
                if code != RefuseCode::NotLeading {
                    self.trouble = Some(Trouble::Refused(code, text));
                }
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn welcome(&mut self, now_ms: u64, conn: ConnId, welcome: Welcome) -> Result<(), FollowError> {
        self.trouble = None;
        self.round += 1;
        self.fetcher.forget();
        self.copies_given_out = false;
        self.reported = None;
        self.verdict = Some(welcome.verdict);
        self.healing.leader_changes();
        self.healing.leader_gives = welcome.features & FEATURE_HEAL != 0;
        let lent = welcome.features & FEATURE_LENT != 0;
        self.lent = lent;
        match welcome.verdict {
            // Who lends does not judge: what a leader said about a fork stays.
            verdict if lent => {
                if verdict != Verdict::Ship || self.state.limit.is_some() {
                    self.verdict = None;
                }
            }
            Verdict::Ship | Verdict::FillOn => {
                if self.state.limit.take().is_some() {
                    self.store()?;
                }
            }
            Verdict::Fill { .. } | Verdict::Drain if self.is_held() => {
                // Whoever paused it wants this state: it is not given up without being asked.
                self.trouble = Some(Trouble::Held);
                self.verdict = None;
            }
            Verdict::Fill { fill, segment, from } => self.begin_fill(fill, segment, from)?,
            Verdict::Drain => {}
            Verdict::Apart { common, .. } => {
                let limit = common.unwrap_or(self.applied);
                if self.state.limit != Some(limit) {
                    // What was said beforehand of what may be written would, after a crash, have to be
                    // replayed past that.
                    self.flush_disk(now_ms)?;
                    if self.state.state == FollowState::Consistent {
                        self.state.applying = self.may_have();
                    }
                    self.state.limit = Some(limit);
                    self.store()?;
                }
            }
        }
        let at = self.log()?.journal().head();
        self.fetcher.restart(at.max(self.start()));
        self.learn(now_ms, welcome.head)?;
        self.drop_empty_segment()?;
        if let Some(first) = self.conns.get_mut(&conn) {
            first.ready = true;
        }
        let others: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| !conn.ready && conn.asked.is_empty())
            .map(|(id, _)| *id)
            .collect();
        others.into_iter().for_each(|other| self.join(other));
        Ok(())
    }

    /// Where an empty journal begins.
    pub(super) fn start(&self) -> LogPosition {
        if self.state.state == FollowState::Filling {
            self.state.fill_from
        } else {
            LogPosition::START
        }
    }

    fn begin_fill(
        &mut self,
        fill: u64,
        segment: u64,
        from: LogPosition,
    ) -> Result<(), FollowError> {
        self.copied_unflushed.clear();
        self.copied.clear();
        self.copied_bytes = 0;
        self.takes.clear();
        self.unflushed = false;
        // Before the first byte of it: the disk is nothing that anybody may use.
        self.state = Following {
            state: FollowState::Filling,
            wipe: true,
            replayed: from,
            applying: from,
            shortened: false,
            fill,
            fill_from: from,
            fill_segment: segment,
            fill_to: None,
            limit: None,
            ..self.state
        };
        self.store()?;
        self.wipe()?;
        self.applied = from;
        self.recover_to = from;
        self.healing.begin_again();
        self.must_greet = false;
        Ok(())
    }

    /// Forgets the journal, but not what is known of the disk.
    pub(super) fn wipe(&mut self) -> Result<(), FollowError> {
        self.delay.forget();
        self.log_mut()?.clear().map_err(journal)?;
        self.state.wipe = false;
        self.store()
    }

    fn learn(&mut self, now_ms: u64, head: Head) -> Result<(), FollowError> {
        if !self.lent {
            self.delay.clock_says(now_ms, head.now, true);
        }
        let resource = self.options.settings.resource;
        let mut segments = head.segments.clone();
        segments.iter_mut().for_each(|(header, _)| header.resource = resource);
        self.fetcher.learn(&segments);
        let of_this = head.fill == self.state.fill && self.copies();
        if of_this
            && let Some(to) = head.fill_to
            && self.copied_unflushed.is_empty()
        {
            self.state.fill_to = Some(to);
            self.store()?;
        } else if of_this && head.fill_left > 0 && self.settled() {
            self.copies_given_out = false;
        }
        self.end_recovery(&segments)?;
        self.must_greet |= head.again;
        self.head = Some(head);
        Ok(())
    }

    /// The journal here was cut for damage: up to where the disk has something is not known any
    /// more. It cannot be more than the leader has, when the node that wrote the last segment here
    /// wrote all the rest, too.
    fn end_recovery(&mut self, theirs: &[(SegmentHeader, u64)]) -> Result<(), FollowError> {
        let whole = self.state.state == FollowState::Consistent;
        // Who lends may have less than this node had.
        if !self.state.shortened || !whole || !self.follows() || self.lent {
            return Ok(());
        }
        let ours = self.log()?.journal().durable_segments().last().map(|(header, _)| *header);
        let Some(ours) = ours else { return Ok(()) };
        let Some((last, len)) = theirs.last() else { return Ok(()) };
        if !theirs.iter().any(|(header, _)| header.number == ours.number) {
            return Ok(());
        }
        if theirs.iter().any(|(header, _)| header.origin != ours.origin) {
            // What was lost here may be of a history that nobody has any more.
            return self.discard();
        }
        let end = last.base.after(*len);
        let back = self.state.fill == BACKWARDS;
        if end < self.recover_to && theirs.len() < MAX_SEGMENTS && !back {
            self.recover_to = end.max(self.applied);
            self.state.applying = self.recover_to;
            self.store()?;
        }
        Ok(())
    }

    /// A segment that is empty here is of no history: the leader's is taken instead.
    fn drop_empty_segment(&mut self) -> Result<(), FollowError> {
        let last = self.log()?.journal().durable_segments().last().copied();
        let Some((ours, 0)) = last.filter(|_| self.follows()) else { return Ok(()) };
        let Some((theirs, _)) = self.fetcher.segment(ours.number) else { return Ok(()) };
        if (theirs.origin, theirs.epoch) != (ours.origin, ours.epoch)
            && self.log_mut()?.drop_empty().map_err(journal)?
        {
            self.begin_segment(Some(ours.number - 1))?;
        }
        Ok(())
    }

    /// Everything of a filling that was given out has come, is durable and was told.
    fn settled(&self) -> bool {
        let told = |asked: &Asked| matches!(asked, Asked::Copy(_) | Asked::Await(true));
        let flies = |conn: &Conn| conn.asked.iter().any(told);
        self.copied.is_empty()
            && self.takes.is_empty()
            && self.copied_unflushed.is_empty()
            && !self.conns.values().any(flies)
    }

    pub(super) fn piece(&mut self, fetch: Fetch, round: u64, piece: &Piece) -> bool {
        if round != self.round {
            return true;
        }
        let len = usize::try_from(piece.len).unwrap_or(usize::MAX);
        let right = piece.segment == fetch.segment
            && piece.from == fetch.from
            && piece.len <= fetch.len
            && len <= MAX_PAYLOAD;
        let bytes = decompress(piece.compression, &piece.bytes, len).ok().filter(|_| right);
        let Some(bytes) = bytes else {
            self.fetcher.lost(fetch);
            self.trouble = Some(Trouble::Damaged(fetch.from));
            return false;
        };
        self.received += bytes.len() as u64;
        self.transferred += piece.bytes.len() as u64;
        self.fetcher.came(fetch, bytes);
        true
    }

    /// Writes a part of a filling to the disk.
    fn block(&mut self, fill: u64, block: &Block) -> Result<bool, FollowError> {
        if !self.copies() || fill != self.state.fill || block.fill != fill {
            return Ok(true);
        }
        if block.range.is_empty() {
            self.copies_given_out = true;
            return Ok(true);
        }
        let len = usize::try_from(block.range.len).unwrap_or(usize::MAX);
        let within = block.range.end() <= self.options.size;
        if block.zeroes && within {
            self.disk.zeroes(block.range, true).map_err(FollowError::Disk)?;
        } else {
            let bytes = decompress(block.compression, &block.bytes, len.min(MAX_PAYLOAD)).ok();
            let bytes = bytes.filter(|bytes| within && crc32c::crc32c(bytes) == block.crc);
            let Some(bytes) = bytes else {
                // Closing gives it back to the leader, who gives it out again.
                self.trouble = Some(Trouble::Damaged(self.state.fill_from));
                self.copies_given_out = false;
                return Ok(false);
            };
            self.disk.write(block.range.offset, &bytes).map_err(FollowError::Disk)?;
        }
        self.healing.stored(block.range);
        self.copied_bytes += block.range.len;
        self.received += block.range.len;
        self.transferred += block.bytes.len() as u64;
        self.copied_unflushed.push(block.range);
        Ok(true)
    }

    /// The leader has no good copy of a part of a filling. What the disk has there is never taken for one:
    /// the part counts as copied when it is on the list that is kept.
    fn lost_there(&mut self, fill: u64, range: ByteRange) -> bool {
        if !self.copies() || fill != self.state.fill {
            return true;
        }
        if range.end() > self.options.size {
            return false;
        }
        self.healing.lost_there(range);
        self.copied_bytes += range.len;
        self.received += range.len;
        self.copied_unflushed.push(range);
        true
    }

    /// Compares a part of a filling with what is on the disk: what is equal is there already, the
    /// rest is asked for.
    fn offered(&mut self, conn: ConnId, fill: u64, offer: &Offer) -> Result<bool, FollowError> {
        if !self.copies() || fill != self.state.fill || offer.fill != fill {
            return Ok(true);
        }
        if offer.range.end() > self.options.size {
            return Ok(false);
        }
        // What cannot be read here is not equal: it is written.
        let here = self.disk.read(offer.range).ok();
        let part = usize::try_from(offer.part).unwrap_or(usize::MAX).max(1);
        let mut at = offer.range.offset;
        let (mut equal, mut different) = (Vec::new(), Vec::new());
        match &here {
            Some(here) => {
                for (bytes, theirs) in here.chunks(part).zip(&offer.digests) {
                    let to = if digest(bytes) == *theirs { &mut equal } else { &mut different };
                    push_behind(to, ByteRange::new(at, bytes.len() as u64));
                    at += bytes.len() as u64;
                }
            }
            None => different.push(offer.range),
        }
        self.transferred += 16 * offer.digests.len() as u64;
        for range in equal {
            self.healing.stored(range);
            self.copied_bytes += range.len;
            self.received += range.len;
            self.copied_unflushed.push(range);
        }
        self.takes.extend(different.into_iter().map(|range| (conn, range)));
        Ok(true)
    }
}

/// Adds a range, as a part of the last one when it goes on there.
fn push_behind(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if last.end() == range.offset => last.len += range.len,
        _ => ranges.push(range),
    }
}
