//! The side that leads: what each follower lacks, and answers to what it asks.

mod judge;
mod parts;
mod served;
mod types;

pub(super) use parts::{digest, may_unpack};
pub use parts::{fetch_piece, filling, healed};
pub use types::{FollowerStatus, Found, Handed, LeadError, Notes, Refusal, Reply, Source};

use super::codec::{MAX_HEALED, MAX_PAYLOAD, MAX_SEGMENTS};
use super::message::{Answer, Await, FEATURE_HEAL, Fetch, Head, Join, RefuseCode, Request};
use crate::ranges::RangeSet;
use bytes::Bytes;
use holdfast_format::journal::{
    FollowState, MAX_NOTE_LINKS, PeerCursor, PeerSwitches, SegmentHeader,
};
use holdfast_units::{
    ByteRange, GenerationId, HybridTime, LogPosition, MAX_REQUEST, NodeId, ResourceId,
};
use served::Served;
use std::collections::{BTreeMap, VecDeque};

/// The longest part of the disk that one answer carries, if nobody says else.
const COPY_BYTES: u64 = 256 << 10;
/// What a follower has copied is noted durably when it is so much, so that little is sent again
/// after a crash.
const NOTE_EVERY: u64 = 256 << 20;
/// How many moments are remembered to tell how old a position is.
const MOMENTS: usize = 1024;

/// The side that leads.
pub struct Leader {
    resource: ResourceId,
    served: BTreeMap<NodeId, Served>,
    moments: VecDeque<(LogPosition, u64)>,
    next_fill: u64,
    copy_bytes: u64,
    /// The generations of the data here, the present one and those before it.
    lineage: Vec<GenerationId>,
}

impl Leader {
    /// Of a node that leads. `random` is a number drawn anew: the first filling has it.
    #[must_use]
    pub const fn new(resource: ResourceId, random: u64) -> Self {
        let moments = VecDeque::new();
        let served = BTreeMap::new();
        Self {
            resource,
            served,
            moments,
            next_fill: random,
            copy_bytes: COPY_BYTES,
            lineage: Vec::new(),
        }
    }

    /// How long the parts are that a disk is filled with, in bytes: whole blocks, at most 1 MiB.
    pub fn set_copy_bytes(&mut self, bytes: u64) {
        self.copy_bytes = ByteRange::new(0, bytes.clamp(1, MAX_REQUEST)).aligned_out().len;
    }

    /// The generations of the data here, the present one and those before it. What another node
    /// wrote in one of them is an earlier state of these data, though its journal is another one.
    pub fn set_lineage(&mut self, lineage: impl IntoIterator<Item = GenerationId>) {
        self.lineage.clear();
        self.lineage.extend(lineage.into_iter().filter(|one| !one.is_none()));
    }

    /// A node is a follower: the journal is kept for it from now on.
    pub fn add(&mut self, node: NodeId, source: &mut impl Source, notes: &impl Notes) {
        let known = source.peer(node);
        self.served.entry(node).or_insert_with(|| Served::load(node, &known, notes));
        if !known.switches.counts {
            let switches = PeerSwitches { counts: true, keeps_journal: true, cut: false };
            source.set_peer(node, switches);
        }
    }

    /// A node is no follower any more.
    pub fn remove(&mut self, node: NodeId, source: &mut impl Source) {
        self.served.remove(&node);
        source.set_peer(node, PeerSwitches::default());
    }

    /// How old is what lies at a position, in milliseconds by this clock; to be called now and
    /// then, so that the answers are exact.
    pub fn moment(&mut self, now_ms: u64, durable: LogPosition) {
        let newest = self.moments.back().copied();
        if newest.is_some_and(|(position, _)| position >= durable) {
            return;
        }
        if self.moments.len() >= MOMENTS {
            // Every other one of the older half goes: the past is remembered coarsely.
            let half = MOMENTS / 2;
            let kept = self.moments.iter().enumerate();
            let kept = kept.filter(|(i, _)| *i >= half || i % 2 == 1).map(|(_, moment)| *moment);
            self.moments = kept.collect();
        }
        self.moments.push_back((durable, now_ms));
    }

    /// For how long there has been something behind `position`, in milliseconds.
    fn age(&self, position: LogPosition, now_ms: u64, source: &impl Source) -> u64 {
        if position >= source.durable() {
            return 0;
        }
        let index = self.moments.partition_point(|(durable, _)| *durable <= position);
        let begun = match self.moments.get(index) {
            // What was there before the first moment is as old as its segment.
            Some((_, at)) if index > 0 => *at,
            found => {
                let segments = source.segments();
                let of = segments.iter().rev().find(|(header, _)| header.base <= position);
                let by_segment = of.map(|(header, _)| header.time.unix_millis());
                by_segment.or(found.map(|(_, at)| *at)).unwrap_or(now_ms)
            }
        };
        now_ms.saturating_sub(begun)
    }

    /// What the journal is about to give up, for each loser of a cut; durable when this returns.
    /// `segments` are those that are kept still. Ranges behind the end of the resource, which has
    /// `size` bytes, do not count. Where it could not be made durable, and why: these followers get
    /// everything, and the journal is cut all the same.
    pub fn cut(
        &mut self,
        lost: &BTreeMap<NodeId, RangeSet>,
        up_to: LogPosition,
        segments: &[(SegmentHeader, u64)],
        size: u64,
        cursor: impl Fn(NodeId) -> PeerCursor,
        notes: &mut impl Notes,
    ) -> Vec<LeadError> {
        let mut failed = Vec::new();
        for (node, ranges) in lost {
            let resource = self.resource;
            let cursor = cursor(*node);
            let served =
                self.served.entry(*node).or_insert_with(|| Served::load(*node, &cursor, notes));
            let needs = cursor.fetched;
            if !served.noted {
                // Nothing is known of what it has: this node began to lead since it was seen.
                served.missing.insert(ByteRange::new(0, size));
                served.noted = true;
            } else if served.links.is_empty() {
                served.needs = needs;
            }
            served.missing.extend(ranges);
            served.missing.remove(ByteRange::new(size, u64::MAX - size));
            served.keep_links(segments, up_to);
            if served.links.len() > MAX_NOTE_LINKS {
                served.links.clear();
                served.needs = up_to;
                served.missing.insert(ByteRange::new(0, size));
            }
            served.again = true;
            if let Err(error) = served.store(resource, *node, notes) {
                // It does not hold the Primary up: without a note it gets everything. One that
                // cannot even be taken away ends before where is cut, and does not count any more.
                failed.extend([Some(error), notes.forget(*node).err()].into_iter().flatten());
                served.noted = false;
                served.links.clear();
            }
        }
        failed
    }

    /// A request came on a connection; numbers of connections are never used twice.
    pub fn request(
        &mut self,
        now: HybridTime,
        node: NodeId,
        conn: u64,
        request: Request,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Reply {
        let answer = match request {
            Request::Hello(hello) => self.hello(now, (node, conn), &hello, source, notes),
            Request::Join(join) => self.join(node, join),
            Request::Await(ask) => return self.awaits(now, (node, conn), &ask, source, notes),
            Request::Fetch(fetch) => self.fetch(node, fetch, source),
            Request::Copy { fill } => self.copy(node, conn, fill, source),
            Request::Take { fill, range } => self.take(node, conn, fill, range, source),
            Request::Heal(range) => self.heal(node, range, source),
        };
        Reply::Now(answer.unwrap_or_else(Answer::from))
    }

    /// A connection is gone. That may be known late, when the follower has said hello on another one.
    pub fn closed(&mut self, node: NodeId, conn: u64) {
        let Some(served) = self.served.get_mut(&node) else { return };
        if let Some(lost) = served.handed.remove(&conn)
            && let Some(first) = lost.iter().next()
        {
            served.cursor = served.cursor.min(first.offset);
        }
        if served.bundle.is_some_and(|bundle| bundle.reports == conn) {
            served.bundle = None;
            served.handed.clear();
            served.cursor = 0;
        }
    }

    fn join(&self, node: NodeId, join: Join) -> Result<Answer, Refusal> {
        let known = self.served.get(&node).and_then(|served| served.bundle);
        let known = known.is_some_and(|bundle| bundle.number == join.bundle);
        if join.resource == self.resource && join.from == node && known {
            Ok(Answer::Joined)
        } else {
            Err(gone())
        }
    }

    fn awaits(
        &mut self,
        now: HybridTime,
        (node, conn): (NodeId, u64),
        ask: &Await,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Reply {
        let features = self.served.get(&node).map_or(0, |served| served.features);
        if let Err(refusal) = may_unpack(features, || source.segments()) {
            return Reply::Now(refusal.into());
        }
        match self.progress((node, conn), ask, source, notes) {
            Err(refusal) => return Reply::Now(refusal.into()),
            Ok(true) => return Reply::Now(Answer::Head(self.head(now, node, source))),
            Ok(false) => {}
        }
        let news = source.durable() > ask.known || ask.wait_ms == 0;
        if news {
            Reply::Now(Answer::Head(self.head(now, node, source)))
        } else {
            Reply::Wait { ms: ask.wait_ms }
        }
    }

    /// Takes what a follower says of itself; whether there is something to tell it.
    fn progress(
        &mut self,
        (node, conn): (NodeId, u64),
        ask: &Await,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<bool, Refusal> {
        let resource = self.resource;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        // What is said on a connection from before the last hello is old.
        if served.bundle.is_none_or(|bundle| bundle.reports != conn) {
            return Err(gone());
        }
        let mut news = served.again;
        if served.ships && !served.again {
            source.peer_reached(node, ask.fetched, ask.replayed.min(ask.fetched));
        }
        let fills = ask.state == FollowState::Filling && ask.fill == served.fill;
        served.to_fill &= !fills;
        if fills && served.ships && !served.again {
            if !served.links.is_empty() && ask.fetched >= served.from {
                // It has begun: what it has of before does not matter any more.
                served.links.clear();
                served.needs = served.from;
                served.store(resource, node, notes).map_err(failed)?;
            }
            for range in &ask.copied {
                served.missing.remove(*range);
                served.unsure.insert(*range);
                served.unnoted = served.unnoted.saturating_add(range.len);
                served.handed.values_mut().for_each(|handed| handed.remove(*range));
            }
            if served.missing.is_empty() && served.fill_to.is_none() {
                // What was read may not have been durable yet: only from there on the disk has
                // nothing that this node could lose.
                let to = source.flush().map_err(failed)?;
                served.unsure = RangeSet::new();
                served.store(resource, node, notes).map_err(failed)?;
                served.fill_to = Some(to);
                news = true;
            } else if served.unnoted >= NOTE_EVERY {
                source.flush().map_err(failed)?;
                served.unsure = RangeSet::new();
                served.store(resource, node, notes).map_err(failed)?;
            }
        }
        served.last = Some(Await { copied: Vec::new(), ..ask.clone() });
        Ok(news)
    }

    /// How this node stands, for a follower.
    pub fn head(&self, now: HybridTime, node: NodeId, source: &impl Source) -> Head {
        let now_ms = now.unix_millis();
        let durable = source.durable();
        let served = self.served.get(&node);
        let last = served.and_then(|served| served.last.as_ref());
        let (fetched, replayed) =
            last.map_or((durable, durable), |last| (last.fetched, last.replayed));
        let wanted = last.map_or(u64::MAX, |last| last.segment);
        let mut segments = source.segments();
        segments.retain(|(header, _)| header.number >= wanted);
        segments.truncate(MAX_SEGMENTS);
        let filling = served.filter(|served| {
            let state = last.map(|last| (last.state, last.fill));
            state == Some((FollowState::Filling, served.fill))
        });
        Head {
            durable,
            now,
            fetch_lag_ms: self.age(fetched, now_ms, source),
            replay_lag_ms: self.age(replayed, now_ms, source),
            again: served.is_none_or(|served| served.again),
            fill: filling.map_or(0, |served| served.fill),
            fill_left: filling.map_or(0, |served| served.missing.bytes()),
            fill_to: filling.and_then(|served| served.fill_to),
            segments,
        }
    }

    fn fetch(&self, node: NodeId, fetch: Fetch, source: &impl Source) -> Result<Answer, Refusal> {
        let features = self.may_fetch(node)?;
        let max = usize::try_from(fetch.len).unwrap_or(MAX_PAYLOAD).min(MAX_PAYLOAD);
        let bytes = source.fetch(fetch.segment, fetch.from, max).map_err(|_| gone())?;
        Ok(Answer::Piece(fetch_piece(fetch, features, bytes)))
    }

    /// Whether a follower may fetch; its features.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_fetch(&self, node: NodeId) -> Result<u64, Refusal> {
        let served = self.served.get(&node).ok_or_else(gone)?;
        let may = served.ships && !served.again && served.bundle.is_some();
        if may { Ok(served.features) } else { Err(gone()) }
    }

    fn copy(
        &mut self,
        node: NodeId,
        conn: u64,
        fill: u64,
        source: &impl Source,
    ) -> Result<Answer, Refusal> {
        let handed = self.hand_out(node, conn, fill)?;
        if handed.range.is_empty() {
            return Ok(filling(fill, handed, Found::Good(Bytes::new())));
        }
        let found = source.read(handed.range).map_err(failed)?;
        Ok(filling(fill, self.found(node, conn, handed, &found), found))
    }

    /// What was found of a part that a follower is to get: that much is answered, the rest is given out
    /// again.
    #[must_use]
    pub fn found(&mut self, node: NodeId, conn: u64, handed: Handed, found: &Found) -> Handed {
        let all = handed.range;
        let len = found.len().min(all.len);
        let rest = ByteRange::new(all.offset + len, all.len - len);
        if let Some(served) = self.served.get_mut(&node) {
            served.give_back(conn, rest);
        }
        Handed { range: ByteRange::new(all.offset, len), ..handed }
    }

    /// Gives out a part of a filling.
    ///
    /// # Errors
    /// The refusal.
    pub fn hand_out(&mut self, node: NodeId, conn: u64, fill: u64) -> Result<Handed, Refusal> {
        self.may_fetch(node)?;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        if served.fill != fill {
            return Err(gone());
        }
        let (range, offer) = served.hand_out(conn, self.copy_bytes);
        Ok(Handed { range, features: served.features, offer })
    }

    fn take(
        &mut self,
        node: NodeId,
        conn: u64,
        fill: u64,
        range: ByteRange,
        source: &impl Source,
    ) -> Result<Answer, Refusal> {
        let features = self.may_take(node, fill, range, source.size())?;
        let found = source.read(range).map_err(failed)?;
        let handed = Handed { range, features, offer: None };
        Ok(filling(fill, self.found(node, conn, handed, &found), found))
    }

    /// Whether a follower may have a part that it was offered, of a resource of `size` bytes; its
    /// features.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_take(
        &mut self,
        node: NodeId,
        fill: u64,
        range: ByteRange,
        size: u64,
    ) -> Result<u64, Refusal> {
        let features = self.may_fetch(node)?;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        if served.fill != fill || range.end() > size || range.len > MAX_REQUEST {
            return Err(gone());
        }
        served.offers.taken(range.len);
        Ok(features)
    }

    fn heal(
        &self,
        node: NodeId,
        range: ByteRange,
        source: &mut impl Source,
    ) -> Result<Answer, Refusal> {
        let features = self.may_heal(node, range)?;
        let inside = range.end() <= source.size();
        let found = if inside { source.read(range).ok() } else { None };
        let bytes = found.and_then(|found| found.all_of(range));
        // Behind what was read.
        let position = source.flush().map_err(failed)?;
        Ok(healed(range, features, bytes, position))
    }

    /// Whether a follower may have a part of which it has no good copy; its features. Then the part is
    /// read, if it is inside of the resource, and what was written by then is made durable: the position
    /// of that goes with it.
    ///
    /// # Errors
    /// The refusal.
    pub fn may_heal(&self, node: NodeId, range: ByteRange) -> Result<u64, Refusal> {
        let features = self.may_fetch(node)?;
        if (1..=MAX_HEALED).contains(&range.len) && features & FEATURE_HEAL != 0 {
            Ok(features)
        } else {
            Err(gone())
        }
    }

    /// How a follower stands.
    #[must_use]
    pub fn status(
        &self,
        node: NodeId,
        now: HybridTime,
        source: &impl Source,
    ) -> Option<FollowerStatus> {
        let served = self.served.get(&node)?;
        let cursor = source.peer(node);
        let last = served.last.as_ref();
        let fetched = last.map_or(cursor.fetched, |last| last.fetched);
        let replayed = last.map_or(cursor.replayed, |last| last.replayed);
        Some(FollowerStatus {
            connected: served.bundle.is_some(),
            state: match last {
                _ if served.to_fill => FollowState::Filling,
                last => last.map_or(FollowState::Nothing, |last| last.state),
            },
            head: source.durable(),
            fetched,
            replayed,
            fetch_lag_ms: self.age(fetched, now.unix_millis(), source),
            replay_lag_ms: self.age(replayed, now.unix_millis(), source),
            fetch_paused: last.is_some_and(|last| last.fetch_paused),
            replay_paused: last.is_some_and(|last| last.replay_paused),
            missing: served.missing.bytes(),
            cut: cursor.switches.cut,
            apart: served.apart,
        })
    }
}

fn tail(source: &impl Source) -> LogPosition {
    source.segments().first().map_or_else(|| source.durable(), |(header, _)| header.base)
}

fn refuse(code: RefuseCode, text: &str) -> Refusal {
    Refusal { code, text: text.to_owned() }
}

fn gone() -> Refusal {
    refuse(RefuseCode::Gone, "what was asked for is not there any more")
}

fn failed(error: LeadError) -> Refusal {
    Refusal { code: RefuseCode::Failed, text: error.0 }
}
