//! The side that leads: what each follower lacks, and answers to what it asks.

use super::codec::{MAX_PAYLOAD, MAX_SEGMENTS};
use super::message::{
    Answer, Await, Block, FEATURE_LZ4, Fetch, Head, Hello, Join, Piece, RefuseCode, Report,
    Request, VERSION, Verdict, Welcome,
};
use crate::chain::{Relation, compare};
use crate::compress::compress;
use crate::ranges::RangeSet;
use bytes::Bytes;
use holdfast_format::BLOCK_LEN;
use holdfast_format::journal::{
    Compression, FollowState, FollowerNote, MAX_NOTE_LINKS, MAX_NOTE_RANGES, PeerCursor,
    PeerSwitches, SegmentHeader, SegmentLink,
};
use holdfast_units::{ByteRange, HybridTime, LogPosition, MAX_REQUEST, NodeId, ResourceId};
use std::collections::{BTreeMap, VecDeque};

/// The longest part of the disk that one answer carries, if nobody says else.
const COPY_BYTES: u64 = 256 << 10;
/// What a follower has copied is noted durably when it is so much, so that little is sent again
/// after a crash.
const NOTE_EVERY: u64 = 256 << 20;
/// How many moments are remembered to tell how old a position is.
const MOMENTS: usize = 1024;

/// Why the leader's own journal or disk could not be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LeadError(pub String);

/// Why a request is not answered as it was meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: RefuseCode,
    /// A sentence for people.
    pub text: String,
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse { code: refusal.code, text: refusal.text }
    }
}

/// The journal and the disk of a node that leads.
pub trait Source {
    /// The segments that are kept, oldest first, with the bytes of their frames that are durable.
    fn segments(&self) -> Vec<(SegmentHeader, u64)>;

    /// Everything before this is durable in the journal.
    fn durable(&self) -> LogPosition;

    /// How far a peer is.
    fn peer(&self, node: NodeId) -> PeerCursor;

    /// What the journal is kept for.
    fn set_peer(&mut self, node: NodeId, switches: PeerSwitches);

    /// A peer is so far.
    fn peer_reached(&mut self, node: NodeId, fetched: LogPosition, replayed: LogPosition);

    /// A peer needs the journal from here on and no more; durable when this returns.
    ///
    /// # Errors
    /// When it could not be made durable.
    fn peer_restarts(&mut self, node: NodeId, position: LogPosition) -> Result<(), LeadError>;

    /// Makes everything durable that was written, and begins a segment if the last one has
    /// records; its number, and where it begins.
    ///
    /// # Errors
    /// When the journal failed.
    fn begin_segment(&mut self) -> Result<(u64, LogPosition), LeadError>;

    /// Makes everything durable that was written; up to where.
    ///
    /// # Errors
    /// When the journal failed.
    fn flush(&mut self) -> Result<LogPosition, LeadError>;

    /// What the durable records from `from` to `to` (exclusively) change; `None` when they are not
    /// kept any more.
    ///
    /// # Errors
    /// When they cannot be read.
    fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Option<RangeSet>, LeadError>;

    /// Durable bytes of a segment's frames, at most `max`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn fetch(&self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, LeadError>;

    /// What a client would read now.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, range: ByteRange) -> Result<Bytes, LeadError>;
}

/// Where the notes about followers are kept.
pub trait Notes {
    /// The note about a node, if there is one that can be used.
    fn load(&self, node: NodeId) -> Option<FollowerNote>;

    /// Replaces the note about a node, durably.
    ///
    /// # Errors
    /// When it is not known to be durable: the old one may still be there.
    fn store(&mut self, note: &FollowerNote) -> Result<(), LeadError>;

    /// Takes the note about a node away, durably: it needs everything then.
    ///
    /// # Errors
    /// When it is not known to be gone.
    fn forget(&mut self, node: NodeId) -> Result<(), LeadError>;
}

/// What is to become of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// This is the answer.
    Now(Answer),
    /// There is nothing new: [`Leader::head`] is the answer when there is, or when the time is
    /// over, or when the follower says something else on this connection.
    Wait {
        /// For so long, in milliseconds.
        ms: u32,
    },
}

/// How a follower stands, as far as the leader knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// It is connected and was judged.
    pub connected: bool,
    /// What its disk holds.
    pub state: FollowState,
    /// Everything before this is durable at this node.
    pub head: LogPosition,
    /// Everything before this is durable in its journal.
    pub fetched: LogPosition,
    /// Everything before this is durable on its disk.
    pub replayed: LogPosition,
    /// How long what it has not fetched has been there, in milliseconds.
    pub fetch_lag_ms: u64,
    /// The same for what it has not replayed.
    pub replay_lag_ms: u64,
    /// It does not fetch.
    pub fetch_paused: bool,
    /// It does not replay.
    pub replay_paused: bool,
    /// The bytes that it lacks besides the journal.
    pub missing: u64,
    /// What was cut from the journal was still needed by it, and it was not begun to be filled.
    pub cut: bool,
    /// Both went on apart: the last verdict.
    pub apart: Option<Verdict>,
}

struct Served {
    fill: u64,
    from: LogPosition,
    needs: LogPosition,
    links: Vec<SegmentLink>,
    missing: RangeSet,
    /// What the follower has of the filling, but was perhaps read before it was durable here.
    unsure: RangeSet,
    /// There is a durable note: this node knows what the follower has.
    noted: bool,
    /// The durable note says that something is missing.
    stored_missing: bool,
    /// Bytes that were copied since the note was written.
    unnoted: u64,
    fill_to: Option<LogPosition>,
    bundle: Option<u64>,
    features: u64,
    /// The follower must say hello again.
    again: bool,
    /// Its last verdict lets it fetch.
    ships: bool,
    apart: Option<Verdict>,
    last: Option<Await>,
    /// What each connection was given of the filling and was not said to be durable.
    handed: BTreeMap<u64, RangeSet>,
    cursor: u64,
}

/// The side that leads.
pub struct Leader {
    resource: ResourceId,
    size: u64,
    served: BTreeMap<NodeId, Served>,
    moments: VecDeque<(LogPosition, u64)>,
    next_fill: u64,
    copy_bytes: u64,
}

impl Leader {
    /// Of a node that leads. `random` is a number drawn anew: the first filling has it.
    #[must_use]
    pub const fn new(resource: ResourceId, size: u64, random: u64) -> Self {
        let moments = VecDeque::new();
        let served = BTreeMap::new();
        Self { resource, size, served, moments, next_fill: random, copy_bytes: COPY_BYTES }
    }

    /// How long the parts are that a disk is filled with, in bytes: whole blocks, at most 1 MiB.
    pub fn set_copy_bytes(&mut self, bytes: u64) {
        self.copy_bytes = ByteRange::new(0, bytes.clamp(1, MAX_REQUEST)).aligned_out().len;
    }

    /// The resource has grown. What was added reads as zeroes everywhere.
    pub fn grown(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// A node is a follower: the journal is kept for it from now on.
    pub fn add(&mut self, node: NodeId, source: &mut impl Source, notes: &impl Notes) {
        self.served.entry(node).or_insert_with(|| Served::load(node, notes));
        let known = source.peer(node);
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
    /// `segments` are those that are kept still.
    ///
    /// # Errors
    /// When it could not be made durable: nothing may be cut.
    pub fn cut(
        &mut self,
        lost: &BTreeMap<NodeId, RangeSet>,
        up_to: LogPosition,
        segments: &[(SegmentHeader, u64)],
        needed_from: impl Fn(NodeId) -> LogPosition,
        notes: &mut impl Notes,
    ) -> Result<(), LeadError> {
        for (node, ranges) in lost {
            let (resource, size) = (self.resource, self.size);
            let served = self.served.entry(*node).or_insert_with(|| Served::load(*node, notes));
            let needs = needed_from(*node);
            if !served.noted {
                // Nothing is known of what it has: this node began to lead since it was seen.
                served.missing.insert(ByteRange::new(0, size));
                served.noted = true;
            } else if served.links.is_empty() {
                served.needs = needs;
            }
            served.missing.extend(ranges);
            served.keep_links(segments, up_to);
            if served.links.len() > MAX_NOTE_LINKS {
                served.links.clear();
                served.needs = up_to;
                served.missing.insert(ByteRange::new(0, size));
            }
            served.again = true;
            if served.store(resource, *node, notes).is_err() {
                // It does not hold the Primary up: without a note it gets everything.
                notes.forget(*node)?;
                served.noted = false;
                served.links.clear();
            }
        }
        Ok(())
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
            Request::Hello(hello) => self.hello(now, node, &hello, source, notes),
            Request::Join(join) => self.join(node, join),
            Request::Await(ask) => return self.awaits(now, node, &ask, source, notes),
            Request::Fetch(fetch) => self.fetch(node, fetch, source),
            Request::Copy { fill } => self.copy(node, conn, fill, source),
        };
        Reply::Now(answer.unwrap_or_else(Answer::from))
    }

    /// A connection is gone.
    pub fn closed(&mut self, node: NodeId, conn: u64, was_first: bool) {
        let Some(served) = self.served.get_mut(&node) else { return };
        if let Some(lost) = served.handed.remove(&conn)
            && let Some(first) = lost.iter().next()
        {
            served.cursor = served.cursor.min(first.offset);
        }
        if was_first {
            served.bundle = None;
            served.handed.clear();
            served.cursor = 0;
        }
    }

    fn hello(
        &mut self,
        now: HybridTime,
        node: NodeId,
        hello: &Hello,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Answer, Refusal> {
        if hello.version_min > VERSION || hello.version_max < VERSION {
            return Err(refuse(RefuseCode::Version, "the versions of the log protocol differ"));
        }
        if hello.resource != self.resource || hello.from != node {
            return Err(refuse(RefuseCode::Resource, "this connection is for another resource"));
        }
        if hello.size != self.size {
            return Err(refuse(RefuseCode::Member, "the sizes of the resource differ"));
        }
        if !self.served.contains_key(&node) {
            return Err(refuse(RefuseCode::Member, "that node does not follow by the log"));
        }
        let verdict = self.judge(node, &hello.report, source, notes).map_err(failed)?;
        let features = hello.features & FEATURE_LZ4;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        served.bundle = Some(hello.bundle);
        served.features = features;
        served.again = false;
        served.ships = matches!(verdict, Verdict::Ship | Verdict::Fill { .. } | Verdict::FillOn);
        served.apart = matches!(verdict, Verdict::Apart { .. }).then_some(verdict);
        served.handed.clear();
        served.cursor = 0;
        served.fill_to = None;
        let report = &hello.report;
        served.last = Some(Await {
            state: report.state,
            fill: report.fill,
            fetched: report.fetched,
            replayed: report.replayed,
            fetch_paused: false,
            replay_paused: false,
            known: LogPosition::START,
            segment: first_wanted(&verdict, report),
            wait_ms: 0,
            copied: Vec::new(),
        });
        let head = self.head(now, node, source);
        Ok(Answer::Welcome(Welcome { version: VERSION, features, verdict, head }))
    }

    fn join(&self, node: NodeId, join: Join) -> Result<Answer, Refusal> {
        let known = self.served.get(&node).and_then(|served| served.bundle);
        if join.resource == self.resource && join.from == node && known == Some(join.bundle) {
            Ok(Answer::Joined)
        } else {
            Err(gone())
        }
    }

    fn judge(
        &mut self,
        node: NodeId,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        let Some(served) = self.served.get(&node) else { return Ok(Verdict::Drain) };
        let ours = served.history(source);
        let relation = compare(&ours, &report.links);
        let ours_or_less = matches!(relation, Relation::Ahead | Relation::Equal);
        let kept = ours_or_less && report.fetched >= tail(source);
        // The note has all that was cut since: what is missing is known.
        let noted = served.noted && !served.links.is_empty();
        let known = noted && ours_or_less && report.fetched >= served.needs;
        match report.state {
            FollowState::Nothing | FollowState::Led => self.begin_fill(node, None, source, notes),
            FollowState::Filling if served.noted && served.fill == report.fill => {
                let fresh = report.links.is_empty();
                let from = served.from;
                if kept && !fresh || fresh && from >= tail(source) {
                    let at = if fresh { from } else { report.fetched };
                    self.resumes(node, at, report, source, notes)?;
                    Ok(Verdict::FillOn)
                } else if fresh && noted {
                    self.begin_fill(node, Some(from), source, notes)
                } else if known && report.fetched >= from {
                    self.fill_what_is_missing(node, report, source, notes)
                } else {
                    self.begin_fill(node, None, source, notes)
                }
            }
            FollowState::Filling => self.begin_fill(node, None, source, notes),
            FollowState::Consistent => match relation {
                Relation::Apart { common, ours, theirs, ours_since, theirs_since } => {
                    Ok(Verdict::Apart {
                        common,
                        follower: theirs,
                        leader: ours,
                        follower_since: theirs_since.unwrap_or_default(),
                        leader_since: ours_since.unwrap_or_default(),
                    })
                }
                Relation::Behind => Ok(Verdict::Apart {
                    common: Some(source.durable()),
                    follower: report.fetched.since(source.durable()),
                    leader: 0,
                    follower_since: HybridTime::default(),
                    leader_since: HybridTime::default(),
                }),
                // What it has is whole: with the journal from there on nothing is missing.
                Relation::Ahead | Relation::Equal if kept => {
                    self.resumes(node, report.fetched, report, source, notes)?;
                    Ok(Verdict::Ship)
                }
                Relation::Ahead | Relation::Equal if known => {
                    self.fill_what_is_missing(node, report, source, notes)
                }
                Relation::Unknown if wrote_alone(node, &report.links, &ours) => {
                    Ok(Verdict::Apart {
                        common: None,
                        follower: report.links.iter().map(|link| link.len).sum(),
                        leader: ours.iter().map(|link| link.len).sum(),
                        follower_since: HybridTime::default(),
                        leader_since: HybridTime::default(),
                    })
                }
                Relation::Ahead | Relation::Equal | Relation::Unknown => {
                    self.begin_fill(node, None, source, notes)
                }
            },
        }
    }

    fn fill_what_is_missing(
        &mut self,
        node: NodeId,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        if report.replayed < report.fetched {
            return Ok(Verdict::Drain);
        }
        self.begin_fill(node, Some(report.fetched), source, notes)
    }

    /// It goes on from `at`; the journal is kept from there.
    fn resumes(
        &mut self,
        node: NodeId,
        at: LogPosition,
        report: &Report,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<(), LeadError> {
        let resource = self.resource;
        let Some(served) = self.served.get_mut(&node) else { return Ok(()) };
        let whole = report.state == FollowState::Consistent;
        if whole {
            (served.missing, served.unsure) = (RangeSet::new(), RangeSet::new());
        }
        if !served.noted || !served.links.is_empty() || served.stored_missing || served.needs > at {
            // From now on this node knows what the follower has.
            served.noted = true;
            served.links.clear();
            served.needs = at;
            served.store(resource, node, notes)?;
        }
        let known = source.peer(node);
        if known.fetched > at || known.switches.cut {
            source.peer_restarts(node, at)?;
        }
        source.peer_reached(node, at, report.replayed.min(at));
        Ok(())
    }

    /// Begins to fill a disk: with everything, or, when it has all before `has`, with what is
    /// noted and what the journal has from there on.
    fn begin_fill(
        &mut self,
        node: NodeId,
        has: Option<LogPosition>,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<Verdict, LeadError> {
        let (segment, from) = source.begin_segment()?;
        let kept = has.map(|has| has.max(tail(source)));
        let changed = match kept {
            Some(kept) => source.changed_between(kept, from)?,
            None => None,
        };
        let (resource, size) = (self.resource, self.size);
        self.next_fill = self.next_fill.wrapping_add(1).max(1);
        let fill = self.next_fill;
        let Some(served) = self.served.get_mut(&node) else { return Ok(Verdict::Drain) };
        match changed {
            Some(changed) => {
                served.missing.extend(&changed);
                served.keep_links(&source.segments(), from);
            }
            None => {
                served.missing = RangeSet::new();
                served.missing.insert(ByteRange::new(0, size));
                // Whoever has anything lacks nothing besides.
                served.links.clear();
                served.needs = from;
            }
        }
        served.missing.extend(&std::mem::take(&mut served.unsure));
        (served.fill, served.from, served.noted) = (fill, from, true);
        served.store(resource, node, notes)?;
        source.peer_restarts(node, from)?;
        Ok(Verdict::Fill { fill, segment, from })
    }

    fn awaits(
        &mut self,
        now: HybridTime,
        node: NodeId,
        ask: &Await,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Reply {
        match self.progress(node, ask, source, notes) {
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
        node: NodeId,
        ask: &Await,
        source: &mut impl Source,
        notes: &mut impl Notes,
    ) -> Result<bool, Refusal> {
        let resource = self.resource;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        if served.bundle.is_none() {
            return Err(gone());
        }
        let mut news = served.again;
        if served.ships && !served.again {
            source.peer_reached(node, ask.fetched, ask.replayed.min(ask.fetched));
        }
        let fills = ask.state == FollowState::Filling && ask.fill == served.fill;
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
        let (range, features) = self.hand_out(node, conn, fill)?;
        let bytes = match range.is_empty() {
            true => Bytes::new(),
            false => source.read(range).map_err(failed)?,
        };
        Ok(Answer::Block(copy_block(fill, range, features, bytes)))
    }

    /// Gives out a part of a filling; empty when all that is missing was given out. Its features.
    ///
    /// # Errors
    /// The refusal.
    pub fn hand_out(
        &mut self,
        node: NodeId,
        conn: u64,
        fill: u64,
    ) -> Result<(ByteRange, u64), Refusal> {
        self.may_fetch(node)?;
        let served = self.served.get_mut(&node).ok_or_else(gone)?;
        if served.fill != fill {
            return Err(gone());
        }
        Ok((served.hand_out(conn, self.copy_bytes), served.features))
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
            state: last.map_or(FollowState::Nothing, |last| last.state),
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

impl Served {
    fn load(node: NodeId, notes: &impl Notes) -> Self {
        let note = notes.load(node);
        let noted = note.is_some();
        let note = note.unwrap_or(FollowerNote {
            resource: ResourceId([0; 16]),
            node,
            fill: 0,
            from: LogPosition::START,
            needs: LogPosition::START,
            links: Vec::new(),
            missing: Vec::new(),
        });
        let mut missing = RangeSet::new();
        note.missing.iter().for_each(|range| missing.insert(*range));
        Self {
            fill: note.fill,
            from: note.from,
            needs: note.needs,
            links: note.links,
            stored_missing: !missing.is_empty(),
            missing,
            unsure: RangeSet::new(),
            noted,
            unnoted: 0,
            fill_to: None,
            bundle: None,
            features: 0,
            again: false,
            ships: false,
            apart: None,
            last: None,
            handed: BTreeMap::new(),
            cursor: 0,
        }
    }

    fn store(
        &mut self,
        resource: ResourceId,
        node: NodeId,
        notes: &mut impl Notes,
    ) -> Result<(), LeadError> {
        let mut missing = self.missing.clone();
        missing.extend(&self.unsure);
        missing.coarsen(MAX_NOTE_RANGES);
        self.stored_missing = !missing.is_empty();
        notes.store(&FollowerNote {
            resource,
            node,
            fill: self.fill,
            from: self.from,
            needs: self.needs,
            links: self.links.clone(),
            missing: missing.iter().collect(),
        })?;
        self.unnoted = 0;
        Ok(())
    }

    /// The links of what was cut since the follower had everything, and of what is kept.
    fn history(&self, source: &impl Source) -> Vec<SegmentLink> {
        let kept: Vec<SegmentLink> =
            source.segments().iter().map(|(header, len)| header.link(*len)).collect();
        let first = kept.first().map_or(u64::MAX, |link| link.number);
        let gone = self.links.iter().filter(|link| link.number < first).copied();
        let mut all: Vec<SegmentLink> = gone.chain(kept.iter().copied()).collect();
        // What lies before the beginning of another history says nothing.
        let goes_on = |pair: &[SegmentLink]| pair[1].chain == pair[0].chain_after();
        let begun = all.windows(2).rposition(|pair| !goes_on(pair)).map_or(0, |at| at + 1);
        all.drain(..begun);
        all
    }

    /// Remembers whose history it is that ends at `up_to`.
    fn keep_links(&mut self, segments: &[(SegmentHeader, u64)], up_to: LogPosition) {
        let (last, needs) = (self.links.last().map(|link| link.number), self.needs);
        let links = segments.iter().map(|(header, len)| header.link(*len));
        let next = |link: &SegmentLink| last.map_or(link.end() >= needs, |n| link.number > n);
        self.links.extend(links.filter(|link| link.end() <= up_to && next(link)));
    }

    fn hand_out(&mut self, conn: u64, most: u64) -> ByteRange {
        let mut from = self.cursor;
        while let Some(found) = self.missing.next_from(from) {
            let mut range = ByteRange::new(found.offset, found.len.min(most));
            let taken = self.handed.values().filter_map(|handed| handed.next_from(range.offset));
            if let Some(taken) = taken.min_by_key(|taken| taken.offset) {
                if taken.offset <= range.offset {
                    from = taken.end();
                    continue;
                }
                range.len = range.len.min(taken.offset - range.offset);
            }
            self.handed.entry(conn).or_default().insert(range);
            self.cursor = range.end();
            return range;
        }
        ByteRange::default()
    }
}

/// The answer to a fetch: bytes of the journal, at most 1 MiB.
#[must_use]
pub fn fetch_piece(fetch: Fetch, features: u64, bytes: Bytes) -> Piece {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (compression, bytes) = pack(features, bytes);
    Piece { segment: fetch.segment, from: fetch.from, len, compression, bytes }
}

/// The answer to a request for a part of a filling: what was read of it.
#[must_use]
pub fn copy_block(fill: u64, range: ByteRange, features: u64, bytes: Bytes) -> Block {
    let none = Compression::None;
    let nothing =
        Block { fill, range, zeroes: false, compression: none, crc: 0, bytes: Bytes::new() };
    if range.is_empty() {
        return nothing;
    }
    if is_zero(&bytes) {
        return Block { zeroes: true, ..nothing };
    }
    let crc = crc32c::crc32c(&bytes);
    let (compression, bytes) = pack(features, bytes);
    Block { compression, crc, bytes, ..nothing }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
    bytes.chunks(ZEROES.len()).all(|chunk| chunk == &ZEROES[..chunk.len()])
}

fn pack(features: u64, bytes: Bytes) -> (Compression, Bytes) {
    let packed = (features & FEATURE_LZ4 != 0).then(|| compress(Compression::Lz4, &bytes));
    match packed.flatten() {
        Some(packed) => (Compression::Lz4, packed),
        None => (Compression::None, bytes),
    }
}

fn tail(source: &impl Source) -> LogPosition {
    source.segments().first().map_or_else(|| source.durable(), |(header, _)| header.base)
}

/// Whether a node wrote segments of its own that the other one does not know.
fn wrote_alone(node: NodeId, theirs: &[SegmentLink], ours: &[SegmentLink]) -> bool {
    let known = |link: &SegmentLink| {
        ours.iter().any(|our| our.number == link.number && our.epoch == link.epoch)
    };
    theirs.iter().any(|link| link.origin == node && link.len > 0 && !known(link))
}

fn first_wanted(verdict: &Verdict, report: &Report) -> u64 {
    match verdict {
        Verdict::Fill { segment, .. } => *segment,
        _ => report.links.last().map_or(0, |link| link.number),
    }
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
