//! `verify` and `scrub`: all that is on the disk is read and compared with the peers' copies.
//!
//! A run looks at one chunk after the other, several at a time: it reads the chunk here, gets the
//! digests of the peers' copies, and compares. Nobody is held up by that, so a difference may be a
//! write that is under way. Where there is one, a *span* is compared again while nobody writes to it
//! (`span.rs`): by the Primary, if there is one, under the range lock of its writes. Only what a span
//! finds counts.

mod digest;
mod order;
mod serve;
mod span;

use crate::engine::{Core, DiskJob};
use crate::event::{Action, CommandId, DiskOutcome, IoFailure, Notice, Refusal};
use crate::pause::paused;
use crate::peer::Peer;
pub(crate) use digest::{Digests, UNREAD, is_part};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, ConnectionState, DiskState, Millis, NodeId, PeerSet, ReplicationState,
    Role,
};
use holdfast_wire::{Differing, FEATURE_VERIFY, Message, RepairMode};
use order::CHUNK;
pub use order::Order;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) use serve::PeerRepair;
pub(crate) use span::Span;

/// So many chunks of a run are looked at at a time.
const LOOKS: usize = 8;
/// How often a limited run may go on.
const STEP_MS: u64 = 20;
/// When a chunk could not be compared, the run goes on after so long.
const RETRY_MS: u64 = 100;
/// So often that is tried.
const MOST_TRIES: u32 = 100;
/// So long a `verify` waits for a peer that is gone.
const WAIT_MS: u64 = 600_000;
/// How often peers are told how far a `verify` is.
const TELL_MS: u64 = 1_000;
/// A scrub that was disturbed by clients goes at a lower rate for so long.
const QUIET_MS: u64 = 100;
/// A scrub without a limit counts as one of this rate, so that it can give way to clients.
const SCRUB_FAST: u64 = 2 << 30;
/// The share of its rate that a scrub has at most, and when clients are busy at least.
const FULL_SHARE: u64 = 16;
/// So many places are remembered.
pub const MAX_FOUND: usize = 200;
/// So many chunks may be looked at out of order, and so many may wait for that.
const MOST_AHEAD: usize = 65_536;
const MOST_URGENT: usize = 1_024;

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SurveyKind {
    /// `verify`: the copies of connected members are compared. It waits for members that are lost.
    Verify,
    /// `scrub`: the local disk is read, and compared with whoever is there.
    Scrub,
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyOrder {
    /// What for.
    pub kind: SurveyKind,
    /// Where; whole blocks. All of the device for `None`.
    pub range: Option<ByteRange>,
    /// With whom; `None` is everybody that is there.
    pub peer: Option<NodeId>,
    /// What is done about differences.
    pub repair: RepairMode,
    /// So many chunks, in the order of this kind, were looked at before ([`SurveyProgress::next`]).
    pub from: u64,
}

/// What a person does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurveyAction {
    /// It stops for a while.
    Pause,
    /// It goes on.
    Resume,
    /// It ends.
    Stop,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurveyEnd {
    /// All was looked at.
    Done,
    /// A person stopped it.
    Stopped,
    /// This peer was gone for too long, or for good.
    PeerLost(NodeId),
    /// The local disk is not used any more.
    DiskLost,
}

/// How a run goes, or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyProgress {
    /// What for.
    pub kind: SurveyKind,
    /// Whether differences are repaired.
    pub repair: RepairMode,
    /// When it began.
    pub started: Millis,
    /// A person has paused it.
    pub paused: bool,
    /// It waits for this peer.
    pub waiting: Option<NodeId>,
    /// The size of the device in bytes when it began: on a larger one the numbers of a scrub's chunks
    /// stand for others.
    pub size: u64,
    /// Chunks that are done, counted in the order of this kind without a gap: where to go on.
    pub next: u64,
    /// Bytes to look at, without those before [`SurveyOrder::from`].
    pub total: u64,
    /// Bytes that were looked at.
    pub done: u64,
    /// Bytes that were compared with at least one other copy.
    pub compared: u64,
    /// Blocks that differed, counted for each node whose copy it was.
    pub differing: u64,
    /// Those of them that were written anew.
    pub repaired: u64,
    /// Blocks of this node that could not be read.
    pub unreadable: u64,
    /// Bytes that could not be compared, because members came and went all the time.
    pub skipped: u64,
    /// The peers that it was compared with.
    pub peers: PeerSet,
    /// The first [`MAX_FOUND`] places that differed.
    pub found: Vec<Differing>,
}

/// A run.
pub(crate) struct Survey {
    order: SurveyOrder,
    chunks: Order,
    /// With whom a `verify` compares.
    members: PeerSet,
    progress: SurveyProgress,
    /// The next number in order.
    next: u64,
    /// To be looked at before that: chunks that could not be compared, and neighbours of errors.
    again: BTreeSet<u64>,
    /// How often it could not be compared.
    tries: BTreeMap<u64, u32>,
    urgent: VecDeque<u64>,
    /// Numbers from `next` on that were looked at.
    ahead: BTreeSet<u64>,
    looks: BTreeMap<u64, Look>,
    waits_since: Option<Millis>,
    not_before: Millis,
    /// Bytes that may be read now; what was read too much is made up for.
    allowance: i64,
    counted: Millis,
    /// Sixteenths of the rate.
    share: u64,
    shared: Millis,
    /// The client requests that had come when `share` was last looked at.
    requests_seen: u64,
    told: Millis,
}

/// A chunk that is being looked at.
pub(crate) struct Look {
    number: u64,
    range: ByteRange,
    /// The local read is under way.
    reading: bool,
    waiting: PeerSet,
    mine: Option<Digests>,
    theirs: BTreeMap<NodeId, Digests>,
    /// Blocks that could not be read here.
    bad: u64,
    /// A peer was lost meanwhile.
    cut: bool,
    /// A span finds out about the difference.
    in_span: bool,
}

/// All runs of a node, and what they have under way.
#[derive(Default)]
pub(crate) struct Surveys {
    runs: BTreeMap<SurveyKind, Survey>,
    pub(crate) spans: BTreeMap<u64, Span>,
    pub(crate) repairs: slab::Slab<PeerRepair>,
    last_id: u64,
    /// Counts the changes of what is known of Primaries.
    pub(crate) epoch: u64,
    /// Requests of clients and writes of a Primary that have come.
    pub(crate) requests: u64,
}

impl Surveys {
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn run_of(&mut self, look: u64) -> Option<&mut Survey> {
        self.runs.values_mut().find(|run| run.looks.contains_key(&look))
    }

    /// The state of each run.
    pub(crate) fn progress(&self) -> Vec<SurveyProgress> {
        self.runs.values().map(|run| run.progress.clone()).collect()
    }
}

impl Survey {
    /// The number to look at next, with its range.
    fn pick(&mut self) -> Option<(u64, ByteRange)> {
        loop {
            let urgent = self.urgent.pop_front();
            if let Some(number) = urgent {
                let done = number < self.next || self.ahead.contains(&number);
                if !done && self.ahead.len() < MOST_AHEAD {
                    self.ahead.insert(number);
                    if let Some(range) = self.chunks.chunk(number) {
                        return Some((number, range));
                    }
                }
                continue;
            }
            if let Some(number) = self.again.pop_first() {
                return self.chunks.chunk(number).map(|range| (number, range));
            }
            if self.next >= self.chunks.count() {
                return None;
            }
            let number = self.next;
            self.next += 1;
            if self.ahead.remove(&number) {
                continue;
            }
            if let Some(range) = self.chunks.chunk(number) {
                return Some((number, range));
            }
        }
    }

    /// What was found is counted, and its neighbourhood is looked at at once.
    fn hit(&mut self, range: ByteRange) {
        if self.order.kind == SurveyKind::Scrub {
            for number in self.chunks.around(range) {
                let known = number < self.next
                    || self.ahead.contains(&number)
                    || self.urgent.contains(&number);
                if !known && self.urgent.len() < MOST_URGENT {
                    self.urgent.push_back(number);
                }
            }
        }
    }

    fn is_through(&self) -> bool {
        self.looks.is_empty()
            && self.again.is_empty()
            && self.urgent.is_empty()
            && self.next >= self.chunks.count()
    }

    /// Where another run would go on.
    fn cursor(&self) -> u64 {
        let open = self.looks.values().map(|look| look.number);
        open.chain(self.again.first().copied()).fold(self.next, u64::min)
    }

    /// How fast it may go now, in bytes per second; 0 is without a limit.
    fn rate(&self, limit: u64) -> u64 {
        match self.order.kind {
            SurveyKind::Verify => limit,
            SurveyKind::Scrub => {
                let full = if limit == 0 { SCRUB_FAST } else { limit };
                (full / FULL_SHARE * self.share).max(CHUNK.min(full))
            }
        }
    }
}

impl Core {
    pub(crate) fn survey(&mut self, id: CommandId, order: SurveyOrder) {
        let result = self.begin_survey(order);
        self.act(Action::CommandDone(id, result));
        self.changed();
    }

    fn begin_survey(&mut self, order: SurveyOrder) -> Result<(), Refusal> {
        if self.surveys.runs.contains_key(&order.kind) {
            return Err(Refusal::SurveyRunning);
        }
        if !self.has_disk() {
            return Err(Refusal::Diskless);
        }
        let device = ByteRange::new(0, self.config.size);
        let range = order.range.unwrap_or(device);
        if !self.in_device(range) {
            return Err(Refusal::BadRange);
        }
        if order.peer.is_some_and(|peer| !self.peers.contains_key(&peer)) {
            return Err(Refusal::NoSuchPeer);
        }
        let wanted = |p: &&Peer| order.peer.is_none_or(|peer| peer == p.node);
        let members: PeerSet = self
            .peers
            .values()
            .filter(|p| wanted(p) && self.is_comparable(p, range.end()))
            .map(|p| p.node)
            .collect();
        if order.kind == SurveyKind::Verify {
            if self.disk != DiskState::UpToDate {
                return Err(Refusal::NoUpToDateData);
            }
            let busy = |p: &Peer| p.up && (p.is_busy() || p.resync.is_some());
            if members.is_empty() {
                let busy = self.peers.values().filter(wanted).any(busy);
                return Err(if busy { Refusal::ResyncRunning } else { Refusal::NotConnected });
            }
            if self.primary_elsewhere().is_some_and(|p| !self.can_lead(p)) {
                return Err(Refusal::NotConnected);
            }
        }
        let chunks = Order::new(order.kind, range);
        let now = self.now;
        let progress = chunks.begin(order.from, device.len, order.repair, now);
        let (kind, next) = (order.kind, order.from);
        let run = Survey {
            order,
            chunks,
            members,
            progress,
            next,
            again: BTreeSet::new(),
            tries: BTreeMap::new(),
            urgent: VecDeque::new(),
            ahead: BTreeSet::new(),
            looks: BTreeMap::new(),
            waits_since: None,
            not_before: now,
            allowance: 0,
            counted: now,
            share: FULL_SHARE,
            shared: now,
            requests_seen: self.surveys.requests,
            told: now,
        };
        self.surveys.runs.insert(kind, run);
        self.tell_progress(kind, true);
        Ok(())
    }

    pub(crate) fn survey_action(&mut self, id: CommandId, kind: SurveyKind, action: SurveyAction) {
        let result = match (self.surveys.runs.get_mut(&kind), action) {
            (None, _) => Err(Refusal::NoSurvey),
            (Some(run), SurveyAction::Pause) => {
                run.progress.paused = true;
                Ok(())
            }
            (Some(run), SurveyAction::Resume) => {
                run.progress.paused = false;
                run.waits_since = None;
                run.counted = self.now;
                Ok(())
            }
            (Some(_), SurveyAction::Stop) => {
                self.end_survey(kind, SurveyEnd::Stopped);
                Ok(())
            }
        };
        self.act(Action::CommandDone(id, result));
        self.changed();
    }

    pub(crate) fn end_survey(&mut self, kind: SurveyKind, end: SurveyEnd) {
        self.tell_progress(kind, false);
        let Some(mut run) = self.surveys.runs.remove(&kind) else { return };
        run.progress.next = run.cursor();
        run.progress.waiting = None;
        self.notice(Notice::SurveyEnded(end, Box::new(run.progress)));
        self.changed();
    }

    /// The disk is not used any more.
    pub(crate) fn end_surveys(&mut self) {
        for kind in [SurveyKind::Verify, SurveyKind::Scrub] {
            self.end_survey(kind, SurveyEnd::DiskLost);
        }
    }

    /// The Primary, when it is another node.
    pub(crate) fn primary_elsewhere(&self) -> Option<NodeId> {
        self.stand().primary.filter(|p| *p != self.node)
    }

    /// Whether a Primary can find out about differences anywhere on this node's device.
    fn can_lead(&self, primary: NodeId) -> bool {
        let size = self.config.size;
        let can = |p: &Peer| {
            p.features & FEATURE_VERIFY != 0 && p.size.is_some_and(|theirs| theirs >= size)
        };
        self.peers.get(&primary).is_some_and(can)
    }

    /// Whether a peer's copy should be the same as what is current here, but for what is on its way
    /// and what an earlier run has found; up to this byte.
    pub(crate) fn is_comparable(&self, p: &Peer, end: u64) -> bool {
        let known = p.differing.as_ref().map_or(0, holdfast_format::SparseBitmap::count);
        p.up && p.link.is_some()
            && p.features & FEATURE_VERIFY != 0
            && !p.diskless
            && p.replication == ReplicationState::Established
            && p.disk == DiskState::UpToDate
            && p.current == self.gens.current
            && p.size.is_some_and(|size| size >= end)
            && p.bitmap.count() == known
    }

    /// Who can be compared with this node's own copy now.
    fn comparable(&self) -> PeerSet {
        let silent = self.primary_elsewhere().is_some_and(|p| !self.can_lead(p));
        if self.disk != DiskState::UpToDate || silent {
            return PeerSet::EMPTY;
        }
        let end = self.config.size;
        self.peers.values().filter(|p| self.is_comparable(p, end)).map(|p| p.node).collect()
    }

    /// Goes on with all runs as far as they may.
    pub(crate) fn pump_surveys(&mut self) {
        for kind in [SurveyKind::Verify, SurveyKind::Scrub] {
            if self.surveys.runs.contains_key(&kind) {
                self.pump_survey(kind);
            }
        }
    }

    fn pump_survey(&mut self, kind: SurveyKind) {
        let comparable = self.comparable();
        if kind == SurveyKind::Verify && !self.wait_for_members(comparable) {
            return;
        }
        let yields = kind == SurveyKind::Scrub && self.surveys.runs.len() > 1;
        let (now, requests) = (self.now, self.surveys.requests);
        let limit = match kind {
            SurveyKind::Verify => self.options.verify_rate,
            SurveyKind::Scrub => self.options.scrub_rate,
        };
        let Some(run) = self.surveys.runs.get_mut(&kind) else { return };
        run.give_way(now, requests);
        run.refill(now, limit);
        let mut begun = Vec::new();
        while !run.progress.paused
            && !yields
            && now >= run.not_before
            && run.looks.len() + begun.len() < LOOKS
            && (run.rate(limit) == 0 || run.allowance > 0)
            && let Some((number, range)) = run.pick()
        {
            run.allowance = run.allowance.saturating_sub_unsigned(range.len);
            begun.push((number, range));
        }
        let with = match (kind, run.order.peer) {
            (SurveyKind::Verify, _) => run.members,
            (SurveyKind::Scrub, None) => comparable,
            (SurveyKind::Scrub, Some(peer)) => {
                comparable.iter().filter(|node| *node == peer).collect()
            }
        };
        for (number, range) in begun {
            self.look(kind, number, range, with);
        }
        let Some(run) = self.surveys.runs.get_mut(&kind) else { return };
        if run.is_through() {
            self.end_survey(kind, SurveyEnd::Done);
        } else if kind == SurveyKind::Verify && now.since(run.told) >= TELL_MS {
            self.tell_progress(kind, true);
        }
    }

    /// Whether all are there with whom `verify` compares.
    fn wait_for_members(&mut self, comparable: PeerSet) -> bool {
        let now = self.now;
        let Some(run) = self.surveys.runs.get_mut(&SurveyKind::Verify) else { return false };
        let missing = run.members.iter().find(|node| !comparable.contains(*node));
        let missing = missing.or((self.disk != DiskState::UpToDate).then_some(self.node));
        if missing != run.progress.waiting {
            run.progress.waiting = missing;
            run.waits_since = missing.map(|_| now);
            self.changed();
        }
        let Some(node) = missing else { return true };
        let Some(run) = self.surveys.runs.get(&SurveyKind::Verify) else { return false };
        let too_long = run.waits_since.is_some_and(|since| now.since(since) >= WAIT_MS);
        let gone = self.peers.get(&node).is_none_or(|p| {
            p.connection == ConnectionState::StandAlone || p.has_lost_disk() || p.diskless
        });
        if too_long || (gone && node != self.node) {
            self.end_survey(SurveyKind::Verify, SurveyEnd::PeerLost(node));
        }
        false
    }

    /// Tells the peers how far a `verify` is.
    fn tell_progress(&mut self, kind: SurveyKind, running: bool) {
        let now = self.now;
        let Some(run) = self.surveys.runs.get_mut(&kind) else { return };
        run.told = now;
        if kind == SurveyKind::Verify {
            let (members, done, total) = (run.members, run.progress.done, run.progress.total);
            let up: PeerSet = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
            for node in members.intersection(up).iter() {
                self.send(node, Message::VerifyProgress { running, done, total });
            }
        }
    }

    /// Reads a chunk here and asks for the digests of the others' copies.
    fn look(&mut self, kind: SurveyKind, number: u64, range: ByteRange, with: PeerSet) {
        let id = self.surveys.next_id();
        let look = Look {
            number,
            range,
            reading: true,
            waiting: with,
            mine: None,
            theirs: BTreeMap::new(),
            bad: 0,
            cut: false,
            in_span: false,
        };
        let Some(run) = self.surveys.runs.get_mut(&kind) else { return };
        run.looks.insert(id, look);
        for node in with.iter() {
            self.asked(node);
            self.send(node, Message::VerifyRequest { id, range, locked: false });
        }
        self.disk_read(DiskJob::VerifyLook { id, whole: false }, range, true);
    }

    pub(crate) fn look_read(
        &mut self,
        id: u64,
        whole: bool,
        result: &Result<DiskOutcome, IoFailure>,
    ) {
        let Some(look) = self.surveys.run_of(id).and_then(|run| run.looks.get_mut(&id)) else {
            return;
        };
        if !whole && digest::is_part(look.range, result) {
            let range = look.range;
            self.disk_read(DiskJob::VerifyLook { id, whole: true }, range, false);
            return;
        }
        look.reading = false;
        look.bad = digest::unreadable(result);
        look.mine = Digests::of(look.range, result);
        self.look_progress(id);
    }

    /// Whether it was an answer to a look.
    pub(crate) fn look_answered(&mut self, node: NodeId, id: u64, copy: Option<Digests>) -> bool {
        let Some(look) = self.surveys.run_of(id).and_then(|run| run.looks.get_mut(&id)) else {
            return false;
        };
        if look.waiting.remove(node) {
            match copy {
                Some(copy) => {
                    look.theirs.insert(node, copy);
                }
                None => look.cut = true,
            }
            self.look_progress(id);
        }
        true
    }

    /// The blocks that this many digests are of.
    pub(crate) fn asked_blocks(&self, id: u64) -> usize {
        let of_look = self.surveys.runs.values().find_map(|run| run.looks.get(&id));
        let range = of_look.map(|look| look.range);
        let range = range.or_else(|| self.surveys.spans.get(&id).map(Span::range));
        range.map_or(0, |range| usize::try_from(range.len / BLOCK_SIZE).unwrap_or(0))
    }

    /// A chunk is compared when all copies are known.
    fn look_progress(&mut self, id: u64) {
        let Some(run) = self.surveys.run_of(id) else { return };
        let kind = run.order.kind;
        let Some(look) = run.looks.get(&id) else { return };
        if look.reading || look.in_span || !look.waiting.is_empty() {
            return;
        }
        if look.mine.is_none() {
            self.look_again(id);
            return;
        }
        if look.cut && kind == SurveyKind::Verify {
            self.look_again(id);
            return;
        }
        match look.differs() {
            None => self.look_done(kind, id, &[]),
            Some(span) => {
                let repair = run.order.repair;
                if let Some(look) = run.looks.get_mut(&id) {
                    look.in_span = true;
                }
                self.span_for_look(id, span, repair);
            }
        }
    }

    /// What a span found out about a chunk; `None` when it could not.
    pub(crate) fn look_resolved(&mut self, id: u64, found: Option<Vec<Differing>>) {
        let Some(run) = self.surveys.run_of(id) else { return };
        let kind = run.order.kind;
        match found {
            Some(found) => self.look_done(kind, id, &found),
            None => self.look_again(id),
        }
    }

    /// It could not be compared, and will be later.
    fn look_again(&mut self, id: u64) {
        let later = self.now.after(RETRY_MS);
        let Some(run) = self.surveys.run_of(id) else { return };
        let Some(look) = run.looks.remove(&id) else { return };
        let tries = run.tries.entry(look.number).or_insert(0);
        *tries += 1;
        if *tries >= MOST_TRIES {
            run.tries.remove(&look.number);
            run.progress.done += look.range.len;
            run.progress.skipped += look.range.len;
            run.progress.next = run.cursor();
        } else {
            run.again.insert(look.number);
            run.not_before = later;
        }
    }

    fn look_done(&mut self, kind: SurveyKind, id: u64, found: &[Differing]) {
        let Some(run) = self.surveys.runs.get_mut(&kind) else { return };
        let Some(look) = run.looks.remove(&id) else { return };
        run.tries.remove(&look.number);
        if look.bad > 0 {
            // They are being healed by now, where anybody has them.
            run.progress.unreadable += look.bad;
            run.hit(look.range);
        }
        run.progress.done += look.range.len;
        if look.mine.is_some() && !look.theirs.is_empty() {
            let compared = look.range.len.saturating_sub(look.bad * BLOCK_SIZE);
            run.progress.compared += compared;
        }
        run.progress.peers = run.progress.peers.union(look.theirs.keys().copied().collect());
        if look.is_hole() {
            // It cost next to nothing.
            run.allowance = run.allowance.saturating_add_unsigned(look.range.len);
        }
        for one in found {
            run.progress.differing += one.blocks;
            run.progress.repaired += if one.repaired { one.blocks } else { 0 };
            run.hit(ByteRange::of_blocks(one.first..one.first + one.blocks));
            if run.progress.found.len() < MAX_FOUND {
                run.progress.found.push(*one);
            }
        }
        run.progress.next = run.cursor();
        if !found.is_empty() {
            self.changed();
        }
    }

    /// A connection is lost, or what is between the two disks has changed.
    pub(crate) fn surveys_lost_peer(&mut self, node: NodeId) {
        let mut ready = Vec::new();
        for run in self.surveys.runs.values_mut() {
            for (id, look) in run.looks.iter_mut().filter(|(_, l)| l.waiting.contains(node)) {
                look.waiting.remove(node);
                look.cut = true;
                ready.push(*id);
            }
        }
        ready.into_iter().for_each(|id| self.look_progress(id));
        self.spans_lost_peer(node);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.verified = None;
        }
    }

    /// When a run may go on that waits for the time.
    pub(crate) fn survey_deadline(&self) -> Option<Millis> {
        let limited = |run: &Survey| match run.order.kind {
            SurveyKind::Verify => self.options.verify_rate > 0,
            SurveyKind::Scrub => true,
        };
        let due = |run: &Survey| {
            let more = run.looks.len() < LOOKS && !run.progress.paused;
            let waits = run.progress.waiting.is_some() || run.not_before > self.now;
            if waits {
                Some(self.now.after(RETRY_MS))
            } else {
                (more && limited(run)).then(|| self.now.after(STEP_MS))
            }
        };
        self.surveys.runs.values().filter_map(due).min()
    }

    /// What goes on between the disks of this node and a peer, as it is shown.
    pub(crate) fn replication_shown(&self, p: &Peer) -> ReplicationState {
        let shown = p.shown_replication();
        if self.stands_still(p).is_some() {
            return paused(shown);
        }
        if shown != ReplicationState::Established {
            return shown;
        }
        let run = self.surveys.runs.get(&SurveyKind::Verify);
        if run.is_some_and(|run| run.members.contains(p.node)) {
            ReplicationState::VerifyS
        } else if p.verified.is_some() {
            ReplicationState::VerifyT
        } else {
            shown
        }
    }

    /// How far a `verify` with a peer is: bytes done, and all, and since when.
    pub(crate) fn verify_of(&self, p: &Peer) -> Option<(u64, u64, Millis)> {
        let run = self.surveys.runs.get(&SurveyKind::Verify);
        let run = run.filter(|run| run.members.contains(p.node));
        run.map(|run| (run.progress.done, run.progress.total, run.progress.started)).or(p.verified)
    }

    pub(crate) fn verify_progress(&mut self, node: NodeId, running: bool, done: u64, total: u64) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let since = peer.verified.map_or(now, |(_, _, since)| since);
        let news = peer.verified.is_some() != running;
        peer.verified = running.then_some((done.min(total), total, since));
        if news {
            self.changed();
        }
    }

    /// Whether this node is Primary, or nobody is and nobody is about to be: then nothing but what
    /// this node does itself changes the copies that it compares.
    pub(crate) fn leads(&self) -> bool {
        self.role == Role::Primary || (!self.is_near_primary() && self.promise.is_none())
    }
}

impl Survey {
    /// A scrub gives way to clients: its share is halved as long as there are requests, and grows
    /// again when there are none.
    fn give_way(&mut self, now: Millis, requests: u64) {
        if now.since(self.shared) < QUIET_MS {
            return;
        }
        self.shared = now;
        let busy = requests != std::mem::replace(&mut self.requests_seen, requests);
        self.share = if busy { (self.share / 2).max(1) } else { (self.share * 2).min(FULL_SHARE) };
    }

    fn refill(&mut self, now: Millis, limit: u64) {
        let rate = self.rate(limit);
        if rate == 0 {
            return;
        }
        let earned = rate.saturating_mul(now.since(self.counted)) / 1000;
        if earned > 0 {
            self.counted = now;
            // At most a tenth of a second's worth is saved up, or one chunk.
            let most = i64::try_from((rate / 10).max(1)).unwrap_or(i64::MAX);
            self.allowance = self.allowance.saturating_add_unsigned(earned).min(most);
        }
    }
}

impl Look {
    /// From the first to the last block that is not the same everywhere.
    fn differs(&self) -> Option<ByteRange> {
        let mine = self.mine.as_ref()?;
        let blocks = self.range.blocks();
        let start = blocks.start;
        let differs = |block: &u64| {
            let at = usize::try_from(block - start).unwrap_or(usize::MAX);
            let all = self.theirs.values().chain(std::iter::once(mine));
            let mut known = all.map(|copy| copy.get(at)).filter(|digest| *digest != UNREAD);
            let first = known.next();
            known.any(|other| Some(other) != first)
        };
        let all_zero = |copy: &Digests| *copy == Digests::Zeroes;
        if all_zero(mine) && self.theirs.values().all(all_zero) {
            return None;
        }
        let first = blocks.clone().find(&differs)?;
        let last = blocks.rev().find(&differs)?;
        Some(ByteRange::of_blocks(first..last + 1))
    }

    fn is_hole(&self) -> bool {
        self.mine == Some(Digests::Zeroes)
            && self.theirs.values().all(|copy| *copy == Digests::Zeroes)
    }
}
