//! A peer that was away shortly is caught up from the Primary's journal, and stays consistent.
//!
//! When a Primary loses a peer that had everything, it remembers what that one did not answer and
//! where its journal stood: the peer's *trail*. When it is back and nobody else has changed its disk,
//! it gets exactly these writes and then all that came behind, in order, a flush before everything
//! that came behind a flush. So its disk is at every moment what a crash of the Primary could have
//! left. Until it has all, live writes do not go to it and set its bits: whenever something is in the
//! way, the bitmap is what counts, and a trail that is known goes on where the answers stopped.

use crate::engine::Core;
use crate::event::{Action, IoFailure, JournalReadId, LinkId, LoggedWrite, Notice, ResyncProgress};
use crate::peer::Peer;
use crate::peer_io::Incoming;
use crate::persist::After;
use crate::planted::PlantedBug;
use crate::requests::Local;
use crate::sync::Resync;
use holdfast_units::{
    DiskState, GenerationId, LogPosition, MAX_REQUEST, Millis, NodeId, PeerSet, ReplicationState,
    Role,
};
use holdfast_wire::{FEATURE_REPLAY, Message, PeerResult, StateReport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// So many bytes are read from the journal at a time.
const READ_BYTES: u64 = 1 << 20;
/// So many records may be sent and not answered.
const MOST_IN_FLIGHT: usize = 1024;
/// When no more than this is left, new writes wait until it is through.
const HOLD_BELOW: u64 = 1 << 20;
/// New writes wait no longer.
const HOLD_MS: u64 = 500;
/// After a wait in vain the next one comes not before this time, doubled each time.
const HOLD_AGAIN_MS: u64 = 1_000;
/// At most so long.
const HOLD_AGAIN_MOST_MS: u64 = 60_000;
/// Flushes for a peer that is caught up are told from those of clients by this bit of their number.
const FLUSH_BIT: u64 = 1 << 63;
/// How often a limited one may go on.
const RATE_STEP_MS: u64 = 20;

/// What a peer that was lost needs from the journal.
#[derive(Debug)]
pub(crate) struct Trail {
    /// The generation of its data.
    generation: GenerationId,
    /// Writes that were under way, by number, of which it is not known yet where they are.
    unresolved: BTreeSet<u64>,
    /// What was sent to it and not answered, by position, with its length.
    unanswered: BTreeMap<LogPosition, u64>,
    /// It was sent nothing from here on.
    next: LogPosition,
    /// What lies before is durable there.
    flushed: LogPosition,
}

impl Trail {
    /// The first position that it needs.
    fn begin(&self) -> LogPosition {
        let first = self.unanswered.first_key_value().map(|(at, _)| *at);
        first.map_or(self.next, |first| first.min(self.next))
    }
}

/// A peer is being caught up from here.
#[derive(Debug)]
pub(crate) struct Feed {
    round: u32,
    /// It is known where it begins.
    begun: bool,
    begin: LogPosition,
    /// What lies before was sent on an earlier connection: only what was not answered is sent again.
    again_before: LogPosition,
    read_at: LogPosition,
    reading: Option<JournalReadId>,
    queue: VecDeque<LoggedWrite>,
    queued: u64,
    in_flight: u64,
    /// The flush that is under way, and the position before which it makes all durable.
    flushing: Option<(u64, LogPosition)>,
    hold_after: Millis,
    hold_again: u64,
    started: Millis,
    carried: u64,
    /// Bytes that may be sent now when the rate is limited, and when that was counted.
    allowance: u64,
    counted: Millis,
}

/// This node is being caught up by a peer.
#[derive(Debug)]
pub(crate) struct CaughtUp {
    round: u32,
    done: u64,
    left: u64,
    carried: u64,
    started: Millis,
}

/// A write of the journal, as it came.
pub(crate) struct Replayed {
    pub(crate) round: u32,
    pub(crate) id: u64,
    pub(crate) left: u64,
    pub(crate) write: Incoming,
}

/// What a record counts in flight: zeroes are short on the way and on the disk.
fn weight(record: &LoggedWrite) -> u64 {
    record.range.len.min(MAX_REQUEST)
}

impl Core {
    /// Whether this Primary's own disk has everything, and its writes are in the journal.
    fn leads_by_log(&self) -> Option<LogPosition> {
        let leads = self.role == Role::Primary && self.disk == DiskState::UpToDate;
        self.logged.filter(|_| leads && self.demotion.is_none())
    }

    /// A write is in the journal at this position.
    pub(crate) fn write_logged(&mut self, key: usize, position: LogPosition) {
        let Some(write) = self.writes.get_mut(key) else { return };
        write.position = Some(position);
        let (seq, len) = (write.seq, write.range().len);
        self.logged = self.logged.max(Some(position));
        for trail in self.peers.values_mut().filter_map(|p| p.trail.as_mut()) {
            if trail.unresolved.remove(&seq) {
                trail.unanswered.insert(position, len);
                trail.next = trail.next.max(position.after(1));
            }
        }
    }

    /// Writes do not go to the journal, or this node has no say in what peers miss: they go by their
    /// bitmaps.
    pub(crate) fn forget_trails(&mut self) {
        self.logged = None;
        let nodes: Vec<NodeId> =
            self.peers.values().filter(|p| p.trail.is_some()).map(|p| p.node).collect();
        for node in nodes {
            self.forget_trail(node);
        }
    }

    fn forget_trail(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.trail = None;
        peer.replace_report();
        let fed = peer.feed.take().is_some();
        // Otherwise it is decided anew anyway.
        if fed && self.role == Role::Primary && self.has_disk() {
            self.renegotiate(node);
        }
    }

    /// A peer is being lost: when it had all but what is under way, that and the journal are what it
    /// needs. One that was being caught up needs what it needed.
    pub(crate) fn leave_trail(&mut self, node: NodeId) {
        let (logged, current) = (self.leads_by_log(), self.gens.current);
        let Some(peer) = self.peers.get(&node).filter(|p| p.up && !p.diskless) else { return };
        // One that leaves on purpose is Outdated before.
        let level = peer.replication == ReplicationState::Established
            && matches!(peer.disk, DiskState::UpToDate | DiskState::Outdated)
            && peer.current == current
            && peer.bitmap.count() == 0;
        let Some(logged) = logged.filter(|_| level) else { return };
        let (mut unresolved, mut unanswered) = (BTreeSet::new(), BTreeMap::new());
        let mut next = logged.after(1);
        // What it has answered of these may be undone by another member that has not.
        for write in self.writes.iter().map(|(_, write)| write).filter(|w| w.was_sent_to(node)) {
            match write.position {
                Some(at) => drop(unanswered.insert(at, write.range().len)),
                None => drop(unresolved.insert(write.seq)),
            }
        }
        if let Some(last) = unanswered.last_key_value() {
            next = next.max(last.0.after(1));
        }
        let flushed = LogPosition::START;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.trail = Some(Trail { generation: current, unresolved, unanswered, next, flushed });
        }
    }

    /// What a report says about catching up.
    pub(crate) fn report_replay(&self, peer: &Peer, report: &mut StateReport) {
        if peer.features & FEATURE_REPLAY == 0 {
            return;
        }
        report.untouched = self.role != Role::Primary && self.untouched.contains(peer.node);
        if let Some(trail) = peer.trail.as_ref().filter(|_| self.leads_by_log().is_some()) {
            report.replays = trail.generation;
            // Nobody else could have filled it while it was away.
            report.replays_restarted = self.peers.values().filter(|p| !p.diskless).count() == 1;
        }
    }

    /// The local disk is changed by this node, and by nobody else that counts on knowing it.
    pub(crate) fn touched_by(&mut self, by: Option<NodeId>) {
        let kept: PeerSet = by.into_iter().filter(|by| self.untouched.contains(*by)).collect();
        if kept != self.untouched {
            self.untouched = kept;
            self.report_again();
        }
    }

    /// When this node has the same as a Primary, it knows from now on who changes that.
    pub(crate) fn note_level(&mut self, node: NodeId) {
        let primary = self.peers.get(&node).is_some_and(|p| p.role == Role::Primary);
        if primary && self.disk == DiskState::UpToDate && self.is_level(node) {
            self.untouched.insert(node);
        }
    }

    /// Source: begins to send what the peer misses.
    pub(crate) fn begin_feed(&mut self, node: NodeId, theirs: &StateReport) {
        let (now, clears) = (self.now, self.has_bug(PlantedBug::ReplayClearsEarly));
        let Some(logged) = self.leads_by_log() else { return self.reset(node) };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(trail) = &peer.trail else { return self.reset(node) };
        let begin = trail.begin();
        peer.feed = Some(Feed {
            round: peer.verdict_serial,
            begin,
            begun: false,
            again_before: trail.next,
            read_at: begin,
            reading: None,
            queue: VecDeque::new(),
            queued: 0,
            in_flight: 0,
            flushing: None,
            hold_after: now,
            hold_again: HOLD_AGAIN_MS,
            started: now,
            carried: 0,
            allowance: 0,
            counted: now,
        });
        peer.left_to_fill = None;
        peer.noted_since_start = None;
        // It comes to the same conclusion.
        peer.disk = DiskState::Outdated;
        if clears {
            peer.clear_bits();
        }
        self.gens.slots[node.index()] = theirs.generations.current;
        self.request_superblock(After::Nothing);
        self.notice(Notice::ResyncStarted(node, false, logged.after(1).since(begin)));
    }

    /// Target: is consistent, and behind, until it has everything.
    pub(crate) fn begin_to_be_caught_up(&mut self, node: NodeId) {
        let started = self.now;
        self.stop_being_source(node);
        self.touched_by(Some(node));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let round = peer.verdict_serial;
        peer.caught = Some(CaughtUp { round, done: 0, left: 0, carried: 0, started });
        if self.disk > DiskState::Outdated {
            self.set_disk(DiskState::Outdated);
        }
        self.request_superblock(After::Nothing);
        self.hold(node);
    }

    /// Goes on with all that are being caught up.
    pub(crate) fn pump_feeds(&mut self) {
        if self.switching.is_some_and(|(node, _)| !self.is_feeding(node)) {
            self.switching = None;
        }
        let stands = |node| self.peers.get(&node).is_some_and(|p| self.stands_as_source(p));
        if self.switching.is_some_and(|(node, _)| stands(node)) {
            // Nobody waits for it.
            self.switching = None;
        }
        let fed = |p: &&Peer| p.feed.is_some() && !self.stands_as_source(p);
        let nodes: Vec<NodeId> = self.peers.values().filter(fed).map(|p| p.node).collect();
        for node in nodes {
            self.read_for(node);
            self.send_replays(node);
            self.end_feed(node);
        }
    }

    fn is_feeding(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|p| p.feed.is_some())
    }

    /// Whether new writes wait until a peer has the rest.
    pub(crate) fn holds_writes(&self) -> bool {
        self.switching.is_some_and(|(node, _)| self.is_feeding(node))
    }

    /// Asks for more of the journal, when something is in it.
    fn read_for(&mut self, node: NodeId) {
        let back = if self.has_bug(PlantedBug::ReplayAgain) { 128 << 10 } else { 0 };
        let Some(logged) = self.logged else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Some(feed), Some(trail)) = (&mut peer.feed, &peer.trail) else { return };
        if !feed.begun && trail.unresolved.is_empty() {
            feed.begun = true;
            feed.begin = LogPosition(trail.begin().0.saturating_sub(back));
            feed.read_at = feed.begin;
            feed.again_before = trail.next;
        }
        let wanted = feed.begun
            && feed.reading.is_none()
            && feed.queued < READ_BYTES
            && feed.read_at <= logged;
        if !wanted {
            return;
        }
        self.journal_reads += 1;
        let id = JournalReadId(self.journal_reads);
        feed.reading = Some(id);
        let from = feed.read_at;
        self.act(Action::ReadJournal { id, from, bytes: READ_BYTES });
    }

    /// What was asked of the journal is here, up to `next`.
    pub(crate) fn journal_read(
        &mut self,
        id: JournalReadId,
        found: Result<(Vec<LoggedWrite>, LogPosition), IoFailure>,
    ) {
        let again = self.has_bug(PlantedBug::ReplayAgain);
        let reads = |p: &&mut Peer| p.feed.as_ref().is_some_and(|f| f.reading == Some(id));
        let Some(peer) = self.peers.values_mut().find(reads) else { return };
        let node = peer.node;
        let (Some(feed), Some(trail)) = (&mut peer.feed, &peer.trail) else { return };
        feed.reading = None;
        let Some((records, next)) = found.ok().filter(|(_, next)| *next > feed.read_at) else {
            // It is not kept any more.
            self.forget_trail(node);
            return;
        };
        feed.read_at = next;
        for record in records {
            let answered = record.position < feed.again_before
                && !trail.unanswered.contains_key(&record.position);
            if !answered || again {
                feed.queued += weight(&record);
                feed.queue.push_back(record);
            }
        }
    }

    fn refill_feed(&mut self, node: NodeId) {
        let (now, rate) = (self.now, self.options.resync_rate);
        let Some(feed) = self.peers.get_mut(&node).and_then(|p| p.feed.as_mut()) else { return };
        let earned = rate.saturating_mul(now.since(feed.counted)) / 1000;
        if earned > 0 {
            feed.counted = now;
            feed.allowance = (feed.allowance + earned).min(rate.max(MAX_REQUEST));
        }
    }

    fn send_replays(&mut self, node: NodeId) {
        self.refill_feed(node);
        while self.send_replay(node) {}
    }

    /// Sends the next record, or the flush that must come before it. Whether it did.
    fn send_replay(&mut self, node: NodeId) -> bool {
        let unlimited = self.options.resync_rate == 0 || self.holds_writes();
        let (window, logged) = (self.options.resync_window.max(MAX_REQUEST), self.logged);
        let flushes = !self.has_bug(PlantedBug::ReplayUnflushed);
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let (Some(feed), Some(trail)) = (&mut peer.feed, &mut peer.trail) else { return false };
        let Some(record) = feed.queue.front() else { return false };
        let (len, position) = (weight(record), record.position);
        let new = position >= feed.again_before;
        if new && record.barrier > trail.flushed && flushes {
            // All that comes before it was sent.
            return self.flush_for(node, position);
        }
        let full = feed.in_flight + len > window && feed.in_flight > 0;
        let late = !unlimited && feed.allowance < len.min(self.options.resync_rate);
        if full || late || trail.unanswered.len() >= MOST_IN_FLIGHT && new {
            return false;
        }
        let Some(record) = feed.queue.pop_front() else { return false };
        feed.allowance = feed.allowance.saturating_sub(len);
        feed.queued -= len;
        feed.in_flight += len;
        trail.unanswered.insert(position, record.range.len);
        trail.next = trail.next.max(record.next);
        let carried = record.data.as_ref().map_or(0, |data| data.len() as u64);
        feed.carried += carried;
        peer.resync_sent += carried;
        let message = Message::Replay {
            round: feed.round,
            id: position.0,
            left: logged.map_or(0, |logged| logged.after(1).since(record.next)),
            range: record.range,
            zeroes: record.data.is_none(),
            payload: record.data.unwrap_or_default(),
        };
        self.asked(node);
        self.send(node, message);
        true
    }

    /// Asks for a flush as soon as all that was sent is answered. Whether it did.
    fn flush_for(&mut self, node: NodeId, covers: LogPosition) -> bool {
        let id = FLUSH_BIT | (self.journal_reads + 1);
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let (Some(feed), Some(trail)) = (&mut peer.feed, &peer.trail) else { return false };
        if !trail.unanswered.is_empty() || feed.flushing.is_some() {
            return false;
        }
        feed.flushing = Some((id, covers));
        self.journal_reads += 1;
        self.asked(node);
        self.send(node, Message::Flush { id });
        true
    }

    /// Whether the answer to a flush is for one of these.
    pub(crate) fn is_replay_flush(id: u64) -> bool {
        id & FLUSH_BIT != 0
    }

    pub(crate) fn replay_flushed(&mut self, node: NodeId, id: u64, result: PeerResult) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Some(feed), Some(trail)) = (&mut peer.feed, &mut peer.trail) else { return };
        let Some((_, covers)) = feed.flushing.take_if(|(asked, _)| *asked == id) else { return };
        if result == PeerResult::Ok {
            trail.flushed = trail.flushed.max(covers);
        }
        self.answered(node);
    }

    pub(crate) fn replay_acked(&mut self, node: NodeId, round: u32, id: u64, result: PeerResult) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (Some(feed), Some(trail)) = (&mut peer.feed, &mut peer.trail) else { return };
        // A disk that failed is told of, too.
        if feed.round != round || result != PeerResult::Ok {
            return;
        }
        if let Some(len) = trail.unanswered.remove(&LogPosition(id)) {
            feed.in_flight = feed.in_flight.saturating_sub(len.min(MAX_REQUEST));
            self.answered(node);
        }
    }

    /// When little is left, new writes wait until the peer has it; then they go to it, too.
    fn end_feed(&mut self, node: NodeId) {
        let now = self.now;
        let Some(logged) = self.logged else { return };
        let Some(peer) = self.peers.get(&node) else { return };
        let (Some(feed), Some(trail)) = (&peer.feed, &peer.trail) else { return };
        let left = logged.after(1).since(feed.read_at) + feed.queued;
        if !feed.begun {
            return;
        }
        match self.switching {
            None if left < HOLD_BELOW && feed.hold_after <= now => {
                self.switching = Some((node, now));
            }
            Some((other, _)) if other == node => {}
            _ => return,
        }
        let written = self.writes.iter().all(|(_, write)| !write.is_local(Local::Pending));
        let all = feed.read_at > logged && feed.reading.is_none() && feed.queue.is_empty();
        if !(written && all && trail.unanswered.is_empty()) {
            return;
        }
        let next = trail.next;
        if trail.flushed < next {
            self.flush_for(node, next);
        } else if self.bump.is_none() {
            self.switch_to_live(node);
        }
    }

    /// The peer has everything, durably, and gets the writes from here on: what is left is the end of
    /// a resync.
    fn switch_to_live(&mut self, node: NodeId) {
        let (now, blocks) = (self.now, self.blocks());
        self.switching = None;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(feed) = peer.feed.take() else { return };
        peer.trail = None;
        peer.left_to_fill = Some(Self::new_bitmap(blocks));
        // What it knows to lack is not all that it lacks until it has the generations.
        peer.missed_in_fill = true;
        peer.missed_again = None;
        peer.overtaken = false;
        peer.bitmap_seen = true;
        peer.replication = ReplicationState::SyncSource;
        peer.resync = Some(Resync::new(now, 0));
        // Should it be lost before they are done everywhere, it misses them like any that was sent to it.
        for (_, write) in self.writes.iter_mut().filter(|(_, write)| write.is_running()) {
            write.missed.remove(node);
        }
        self.send(node, Message::ReplayDone { round: feed.round });
        self.refresh_sets();
        self.changed();
    }

    /// New writes have waited long enough.
    pub(crate) fn tick_feeds(&mut self) {
        let now = self.now;
        let Some((node, _)) = self.switching.filter(|(_, at)| at.after(HOLD_MS) <= now) else {
            return;
        };
        self.switching = None;
        if let Some(feed) = self.peers.get_mut(&node).and_then(|p| p.feed.as_mut()) {
            feed.hold_after = now.after(feed.hold_again);
            feed.hold_again = (2 * feed.hold_again).min(HOLD_AGAIN_MOST_MS);
        }
    }

    pub(crate) fn feed_deadline(&self) -> Option<Millis> {
        let hold = self.switching.map(|(_, since)| since.after(HOLD_MS));
        let feeds = || self.peers.values().filter_map(|p| p.feed.as_ref());
        let again = feeds().map(|f| f.hold_after).filter(|at| *at > self.now).min();
        let limited = self.options.resync_rate > 0 && feeds().any(|f| !f.queue.is_empty());
        let limited = limited.then(|| self.now.after(RATE_STEP_MS));
        [hold, again, limited].into_iter().flatten().min()
    }

    /// Target: a write of the Primary's journal.
    pub(crate) fn replay(&mut self, node: NodeId, link: LinkId, replayed: Replayed) {
        let Replayed { round, id, left, write } = replayed;
        if !self.in_device(write.range) {
            self.protocol_error(node, "it sent a record outside the device");
            return;
        }
        let others: PeerSet =
            self.peers.values().filter(|p| p.node != node && !p.diskless).map(|p| p.node).collect();
        let has_disk = self.has_disk();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        // It belongs to an earlier one when the rounds differ.
        let Some(caught) = peer.caught.as_mut().filter(|c| c.round == round && has_disk) else {
            return;
        };
        let first = caught.done == 0;
        caught.done += write.range.len;
        caught.left = left;
        caught.carried += write.payload.len() as u64;
        peer.resync_received += write.payload.len() as u64;
        if first {
            self.notice(Notice::ResyncStarted(node, true, left + write.range.len));
        }
        self.take_replay(node, link, (round, id), Incoming { missing: others, ..write });
    }

    /// Target: it has everything, and gets the writes from here on.
    pub(crate) fn replay_done(&mut self, node: NodeId, round: u32) {
        let now = self.now;
        let has_disk = self.has_disk();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.caught.take_if(|caught| caught.round == round && has_disk).is_none() {
            return;
        }
        if peer.bitmap.count() > 0 {
            // Something else made it differ meanwhile.
            self.reset(node);
            return;
        }
        peer.fill_goal = peer.current;
        peer.replication = ReplicationState::SyncTarget;
        peer.resync = Some(Resync::new(now, 0));
        for peer in self.peers.values_mut() {
            peer.missed_meanwhile = None;
            peer.account = None;
        }
        self.refresh_sets();
        self.changed();
    }

    /// What a person sees of catching up: as of a resync.
    pub(crate) fn replay_progress(&self, peer: &Peer) -> Option<ResyncProgress> {
        if let Some(feed) = &peer.feed {
            let end = self.logged.map_or(feed.begin, |logged| logged.after(1));
            let total = end.since(feed.begin);
            let left = end.since(feed.read_at) + feed.queued + feed.in_flight;
            let done = total.saturating_sub(left);
            let (carried, started) = (feed.carried, feed.started);
            return Some(ResyncProgress { done, total, carried, started });
        }
        let CaughtUp { done, left, carried, started, .. } = peer.caught.as_ref()?;
        let (done, carried, started) = (*done, *carried, *started);
        Some(ResyncProgress { done, total: done + left, carried, started })
    }
}

impl Peer {
    /// What goes on between the disks, as it is shown.
    pub(crate) fn shown_replication(&self) -> ReplicationState {
        if self.feed.is_some() {
            ReplicationState::SyncSource
        } else if self.caught.is_some() {
            ReplicationState::SyncTarget
        } else {
            self.replication
        }
    }
}
