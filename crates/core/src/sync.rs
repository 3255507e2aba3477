//! Resync: one node gets from another exactly the blocks that it missed.
//!
//! Both send each other their bitmap and work on what is set in either. The target is durably
//! Inconsistent before anything is written (promise 3), pulls range after range, and writes only
//! blocks whose bit is still set: a newer write of the Primary clears the bit, so nothing older can
//! come over it. When nothing is left it flushes, takes the source's generations over, durably, and
//! is worth what the source is.

use crate::compare::Compare;
use crate::engine::{Core, DiskJob};
use crate::event::{Action, DiskOutcome, IoFailure, Notice, ResyncProgress};
use crate::locks::Owner;
use crate::peer::Peer;
use crate::persist::{After, bytes};
use crate::verify::is_part;
use crate::zeroes::{LEAST_ZEROES, first_stretch};
use bytes::Bytes;
use holdfast_format::SparseBitmap;
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, GenerationId, MAX_REQUEST, Millis, NodeId, PeerSet,
    ReplicationState, Role,
};
use holdfast_wire::{Message, StateReport};
use std::collections::BTreeMap;

/// The longest range that is asked for when the last ones were holes.
const LONGEST_ASK: u64 = 128 << 20;
/// The shortest limit of what is asked for at a time: long enough for zeroes to be worth an answer.
const SHORTEST_ASK: u64 = 2 * LEAST_ZEROES as u64;
/// Runs in one piece of a bitmap.
const RUNS_PER_PIECE: usize = 4096;
/// So much is read at a time for one target; what it asks for beyond that waits.
const READ_AT_ONCE: u64 = 32 << 20;
/// So many ranges may wait: more than `resync-in-flight` can be made of.
const MOST_WANTED: usize = 100_000;
/// How often a limited resync may go on.
const RATE_STEP_MS: u64 = 20;

/// So many answers of these peers must have come.
#[derive(Clone, Debug)]
pub(crate) struct Barrier(Vec<(NodeId, u64)>);

/// A resync with one peer.
#[derive(Debug)]
pub(crate) struct Resync {
    started: Millis,
    total: u64,
    carried: u64,
    /// Target: the ranges that were asked for and have not come, by offset, with their lengths.
    pub(crate) pulls: BTreeMap<u64, u64>,
    pub(crate) in_flight: u64,
    cursor: u64,
    ask: u64,
    /// Target: writes of received blocks under way.
    pub(crate) writing: usize,
    /// Blocks cleared since the bitmap was last written.
    since_checkpoint: u64,
    pub(crate) completing: bool,
    /// Target: the source's generations are being taken over.
    pub(crate) adopting: bool,
    /// Target: what is the same already is found out first.
    pub(crate) compare: Option<Compare>,
    /// Bytes that may be asked for now, when the rate is limited, and when that was counted.
    pub(crate) allowance: u64,
    counted: Millis,
}

/// A read for a target.
#[derive(Debug)]
pub(crate) struct ResyncRead {
    pub(crate) peer: NodeId,
    pub(crate) round: u64,
    pub(crate) asked: ByteRange,
    /// Only its digests are wanted, by this number.
    pub(crate) digests: Option<u64>,
}

/// What a source gives.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Data(Bytes),
    Zeroes,
    /// It has no good copy.
    Lost,
    /// What the target has already.
    Same,
}

impl Content {
    fn len(&self) -> u64 {
        if let Self::Data(data) = self { data.len() as u64 } else { 0 }
    }
}

/// Blocks that came from a source.
#[derive(Debug)]
pub(crate) struct ResyncWrite {
    peer: NodeId,
    round: u64,
    range: ByteRange,
    content: Content,
    runs: usize,
    failed: bool,
    /// Something else was written there since it was found to be the same.
    void: bool,
}

impl ResyncWrite {
    pub(crate) fn new(peer: NodeId, round: u64, range: ByteRange, content: Content) -> Self {
        Self { peer, round, range, content, runs: 0, failed: false, void: false }
    }
}

impl Peer {
    /// Whatever resync there was with this peer is over, and what is under way for it is void.
    pub(crate) fn end_resync(&mut self) {
        self.round += 1;
        if let Some(missed) = self.missed_meanwhile.take() {
            self.add_bits(&missed);
        }
        self.barrier = None;
        if let Some(missed) = self.missed_again.take()
            && let Some(left) = &mut self.left_to_fill
        {
            left.or_assign(&missed);
        }
        self.told_all = false;
        self.left_to_primary = false;
        self.overtaken = false;
        self.bitmap_seen = false;
        self.generations_sent = false;
        self.differing = None;
        self.resync = None;
        self.feed = None;
        self.caught = None;
        self.wanted.clear();
        self.fresher = None;
        self.replication = ReplicationState::Off;
    }
}

impl Core {
    fn round_of(&self, node: NodeId) -> u64 {
        self.peers.get(&node).map_or(0, |p| p.round)
    }
}

impl Resync {
    pub(crate) fn new(now: Millis, total: u64) -> Self {
        Self {
            started: now,
            total,
            carried: 0,
            pulls: BTreeMap::new(),
            in_flight: 0,
            cursor: 0,
            ask: MAX_REQUEST,
            writing: 0,
            since_checkpoint: 0,
            completing: false,
            adopting: false,
            compare: None,
            allowance: 0,
            counted: now,
        }
    }

    /// Whether everything has come.
    pub(crate) fn is_completing(&self) -> bool {
        self.completing
    }

    /// The first part of a range that nothing was asked of yet; when its start was, the end of that.
    fn not_asked(&self, range: ByteRange) -> Result<ByteRange, u64> {
        let before = self.pulls.range(..=range.offset).next_back();
        if let Some(asked_to) = before.map(|(at, len)| at + len).filter(|to| *to > range.offset) {
            return Err(asked_to);
        }
        let next = self.pulls.range(range.offset..range.end()).next();
        let end = next.map_or(range.end(), |(at, _)| *at);
        Ok(ByteRange::new(range.offset, end - range.offset))
    }

    /// What is asked for next is about as long as the last answer: one that is short ended where data
    /// or zeroes did, and the source has read the rest in vain. Very long ranges are holes; data never
    /// come in longer ones than one message.
    fn adapt(&mut self, asked: ByteRange, answered: ByteRange, zeroes: bool) {
        let most = if zeroes { LONGEST_ASK } else { MAX_REQUEST };
        let wanted = if answered.len < asked.len {
            answered.len.next_power_of_two().min(MAX_REQUEST)
        } else {
            self.ask.saturating_mul(2)
        };
        self.ask = wanted.clamp(SHORTEST_ASK, most);
        // What was not answered is asked for again, and must not count twice.
        let again = asked.len.min(MAX_REQUEST).saturating_sub(answered.len);
        self.allowance = self.allowance.saturating_add(again);
    }

    /// Progress becomes durable so often, in blocks.
    fn checkpoint_blocks(&self) -> u64 {
        (self.total / 32).clamp((1 << 20) / BLOCK_SIZE, (64 << 20) / BLOCK_SIZE)
    }
}

impl Core {
    pub(crate) fn resync_progress(&self, p: &Peer) -> Option<ResyncProgress> {
        let Some(resync) = &p.resync else { return self.replay_progress(p) };
        let left = p.left().count().min(resync.total);
        Some(ResyncProgress {
            done: bytes(resync.total - left),
            total: bytes(resync.total),
            carried: resync.carried,
            started: resync.started,
        })
    }

    pub(crate) fn become_source(&mut self, node: NodeId, full: bool, theirs: &StateReport) {
        if self.disk == DiskState::Consistent {
            self.set_disk(DiskState::UpToDate);
        }
        self.feed(node, full, theirs.generations.current);
    }

    /// Where the last resync from here stopped, if nobody else has filled the peer since and it has
    /// missed no write: then it lacks what it knows to lack, and what is in doubt.
    pub(crate) fn resume_fill(&mut self, node: NodeId, theirs: &StateReport) {
        let goes_on = theirs.filled_from == Some(self.node);
        let missed_none = theirs.filled_to == self.gens.current;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !goes_on {
            peer.left_to_fill = None;
        } else if missed_none && peer.left_to_fill.is_none() {
            peer.left_to_fill = peer.noted_since_start.clone();
        }
    }

    /// Begins to be source for a peer whose data are of the generation `theirs`.
    pub(crate) fn feed(&mut self, node: NodeId, full: bool, theirs: GenerationId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if full {
            peer.bitmap.set_all();
            peer.left_to_fill = None;
        }
        if peer.left_to_fill.is_none() {
            peer.left_to_fill = Some(peer.bitmap.clone());
            peer.missed_in_fill = true;
        }
        peer.disk = DiskState::Inconsistent;
        peer.replication = ReplicationState::WFBitMapS;
        peer.overtaken = false;
        self.gens.slots[node.index()] = theirs;
        if full {
            self.write_dirty_pages();
        }
        self.request_superblock(After::Nothing);
        if !self.follows_primary() {
            self.send_bitmap(node, node);
        }
    }

    /// Whether another node writes: then the target may get writes before this source gets them.
    pub(crate) fn follows_primary(&self) -> bool {
        self.role != Role::Primary && self.is_near_primary()
    }

    pub(crate) fn become_target(&mut self, node: NodeId, full: bool, theirs: GenerationId) {
        let from_primary = self.peers.get(&node).is_some_and(|p| p.role == Role::Primary);
        if from_primary {
            self.give_way_to_primary(node);
        }
        self.touched_by(None);
        let busy = self.peers.values().any(|p| p.node != node && p.is_target());
        if !busy {
            for peer in self.peers.values_mut() {
                peer.missed_meanwhile = None;
                peer.account = None;
            }
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if full {
            peer.bitmap.set_all();
        }
        peer.fill_goal = theirs;
        let goes_on = peer.filled_from;
        peer.filled_from |= !busy;
        peer.left_to_fill = None;
        peer.replication =
            if busy { ReplicationState::PausedSyncT } else { ReplicationState::WFBitMapT };
        if !busy && (full || !goes_on) {
            self.gens.fill_to(self.node, GenerationId::NONE);
        }
        self.set_disk(DiskState::Inconsistent);
        self.stop_being_source(node);
        self.request_superblock(After::Nothing);
        self.hold(node);
        if !busy {
            self.send_bitmap(node, node);
        }
        if let Some(primary) = self.stand().primary.filter(|p| *p != node && *p != self.node) {
            // It must count this node among those that get its writes before this one has everything.
            self.begin_barrier(node, &[primary]);
        }
    }

    /// What this node was getting from another one it gets from the Primary.
    fn give_way_to_primary(&mut self, primary: NodeId) {
        for peer in self.peers.values_mut().filter(|p| p.node != primary && p.is_target()) {
            peer.end_resync();
            peer.replication = ReplicationState::PausedSyncT;
        }
    }

    /// The only one that has filled this node since it was consistent.
    pub(crate) fn filled_from(&self) -> Option<NodeId> {
        let mut from = self.peers.values().filter(|p| p.filled_from).map(|p| p.node);
        let first = from.next();
        first.filter(|_| from.next().is_none())
    }

    /// This node's data are no use to others until its own resync is done.
    pub(crate) fn stop_being_source(&mut self, target_of: NodeId) {
        let fed = |p: &&mut Peer| p.node != target_of && p.is_fed();
        let mut ended = Vec::new();
        for peer in self.peers.values_mut().filter(fed) {
            peer.end_resync();
            ended.push(peer.node);
        }
        for node in ended {
            self.renegotiate(node);
        }
    }

    /// Sends the bitmap about a member to a peer.
    pub(crate) fn send_bitmap(&mut self, to: NodeId, about: NodeId) {
        let round = self.peers.get(&to).map_or(0, |p| p.verdict_serial);
        // A target gets what it lacks; as an account of what it misses, that could be undone.
        let whole = to != about;
        let mut cursor = 0;
        loop {
            let mut runs = Vec::new();
            while runs.len() < RUNS_PER_PIECE
                && let Some(run) = self.peers.get(&about).and_then(|p| {
                    let bits = if whole { &p.bitmap } else { p.left() };
                    bits.next_run(cursor, u64::MAX)
                })
            {
                cursor = run.end;
                runs.push((run.start, run.end - run.start));
            }
            let last = runs.len() < RUNS_PER_PIECE;
            self.send(to, Message::Bitmap { about, round, runs, last });
            if last {
                break;
            }
        }
        if !whole && let Some(peer) = self.peers.get_mut(&to) {
            peer.told_all = true;
        }
    }

    pub(crate) fn bitmap_piece(
        &mut self,
        node: NodeId,
        about: NodeId,
        round: u32,
        runs: &[(u64, u64)],
        last: bool,
    ) {
        let blocks = self.blocks();
        if runs.iter().any(|(start, len)| start.checked_add(*len).is_none_or(|end| end > blocks)) {
            self.protocol_error(node, "its bitmap is longer than the device");
            return;
        }
        // A bitmap about this node is what this peer and this node do not share.
        let with = if about == self.node { node } else { about };
        if self.peers.get(&node).is_none_or(|p| p.verdict_serial != round) {
            // It was sent before the verdict that counts now.
            return;
        }
        let Some(peer) = self.peers.get_mut(&with) else { return };
        let waits =
            matches!(peer.replication, ReplicationState::WFBitMapS | ReplicationState::WFBitMapT);
        if with == node && (!waits || peer.bitmap_seen) {
            return;
        }
        if with != node {
            if !self.peers.get(&node).is_some_and(Peer::is_completing) {
                return;
            }
            let Some(peer) = self.peers.get_mut(&with) else { return };
            // The source's account of what others miss, to be taken over with its generations.
            let account = peer.account.get_or_insert_with(|| Self::new_bitmap(blocks));
            for (start, len) in runs {
                account.set_range(*start..start + len);
            }
            return;
        }
        for (start, len) in runs {
            peer.set_own_bits(*start..start + len);
        }
        if !last {
            return;
        }
        // The source may not have these yet: its bit, and its block, are older.
        for run in peer.fresher.take().iter().flat_map(SparseBitmap::runs) {
            peer.got(run);
        }
        peer.bitmap_seen = true;
        let round = peer.round;
        match peer.replication {
            ReplicationState::WFBitMapS => self.target_is_known(node),
            ReplicationState::WFBitMapT => {
                self.differ_from_others(node);
                // Bits that an earlier resync cleared may be written only behind their data.
                self.disk_flush(DiskJob::TargetFlush { peer: node, round });
            }
            _ => {}
        }
        self.changed();
    }

    /// Source: the target's bitmap is here. Where another node is Primary, this node must first have
    /// all that the Primary sent until now: the target may have answered it before its resync began.
    fn target_is_known(&mut self, node: NodeId) {
        let primary = self.stand().primary.filter(|p| *p != self.node);
        let Some(primary) = primary else {
            self.start_as_source(node);
            return;
        };
        self.begin_barrier(node, &[primary]);
    }

    /// What goes on with `node` waits until all has come that the others sent until now.
    pub(crate) fn begin_barrier(&mut self, node: NodeId, others: &[NodeId]) {
        let barrier = self.barrier(others);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.barrier = Some(barrier);
        }
    }

    /// Passed when all has come that the others sent until now.
    pub(crate) fn barrier(&mut self, others: &[NodeId]) -> Barrier {
        let mut waits = Vec::new();
        for other in others {
            self.ping(*other);
            waits.extend(self.peers.get(other).map(|p| (*other, p.pings)));
        }
        Barrier(waits)
    }

    pub(crate) fn has_passed(&self, barrier: &Barrier) -> bool {
        let answered = |p: &Peer, pongs: u64| !p.up || p.pongs >= pongs;
        barrier.0.iter().all(|(other, n)| self.peers.get(other).is_none_or(|p| answered(p, *n)))
    }

    /// Goes on with targets whose barrier is passed.
    fn pass_barriers(&mut self) {
        let passed = |p: &&Peer| p.barrier.as_ref().is_some_and(|b| self.has_passed(b));
        let ready = |p: &&Peer| p.is_fed() && passed(p);
        let nodes: Vec<NodeId> = self.peers.values().filter(ready).map(|p| p.node).collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let asked = peer.barrier.take().map(|b| b.0).unwrap_or_default();
            if peer.replication == ReplicationState::SyncSource {
                let asked: Vec<NodeId> = asked.iter().map(|(other, _)| *other).collect();
                self.send_generations(node, &asked);
            } else {
                self.send_bitmap(node, node);
                self.start_as_source(node);
            }
        }
    }

    fn start_as_source(&mut self, node: NodeId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let total = peer.left().count();
        peer.replication = ReplicationState::SyncSource;
        peer.resync = Some(Resync::new(now, total));
        self.write_dirty_pages();
        self.notice(Notice::ResyncStarted(node, false, bytes(total)));
    }

    /// What this node gets from its source may differ from what others have, until it has all.
    fn differ_from_others(&mut self, source: NodeId) {
        let Some(pulled) = self.peers.get(&source).map(|p| p.bitmap.clone()) else { return };
        for peer in self.peers.values_mut().filter(|p| p.node != source && !p.diskless) {
            peer.add_bits(&pulled);
            peer.left_to_fill = None;
        }
    }

    pub(crate) fn target_flushed(&mut self, node: NodeId, round: u64) {
        if let Some(peer) = self.peers.get(&node).filter(|p| p.round == round) {
            // From here on this node's own account says what it lacks.
            self.gens.fill_to(self.node, peer.fill_goal);
            self.write_dirty_pages();
            self.request_superblock(After::TargetReady { peer: node, round });
        }
    }

    pub(crate) fn target_ready(&mut self, node: NodeId, round: u64) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.round != round || peer.replication != ReplicationState::WFBitMapT {
            return;
        }
        let total = peer.bitmap.count();
        peer.replication = ReplicationState::SyncTarget;
        let compare = peer.begin_compare();
        peer.resync = Some(Resync { compare, ..Resync::new(now, total) });
        self.notice(Notice::ResyncStarted(node, true, bytes(total)));
        self.changed();
    }

    /// Asks for more where this node is target.
    pub(crate) fn pump_resyncs(&mut self) {
        self.pass_barriers();
        self.serve_targets();
        self.pump_feeds();
        let target = self.peers.values().find(|p| p.is_syncing_target()).map(|p| p.node);
        let Some(node) = target else { return };
        if self.has_disk() && !self.is_decreeing() {
            self.refill(node);
            self.pump_compare(node);
            while self.pull_next(node) {}
            self.complete_if_done(node);
        }
    }

    fn refill(&mut self, node: NodeId) {
        let (now, rate) = (self.now, self.options.resync_rate);
        let Some(resync) = self.peers.get_mut(&node).and_then(|p| p.resync.as_mut()) else {
            return;
        };
        if rate == 0 {
            resync.allowance = u64::MAX;
        } else if resync.allowance == u64::MAX {
            resync.allowance = 0;
            resync.counted = now;
        } else {
            let earned = rate.saturating_mul(now.since(resync.counted)) / 1000;
            if earned > 0 {
                resync.counted = now;
                // At most a second's worth is saved up.
                resync.allowance =
                    resync.allowance.saturating_add(earned).min(rate.max(MAX_REQUEST));
            }
        }
    }

    /// Asks for one more range; whether it did.
    fn pull_next(&mut self, node: NodeId) -> bool {
        let (window, rate) = (self.options.resync_window, self.options.resync_rate);
        if self.peers.get(&node).is_none_or(|p| self.stands_as_target(p)) {
            return false;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let Some(resync) = &mut peer.resync else { return false };
        let smallest = if rate == 0 { BLOCK_SIZE } else { MAX_REQUEST.min(rate).max(BLOCK_SIZE) };
        if resync.completing || resync.in_flight >= window || resync.allowance < smallest {
            return false;
        }
        let limit = if rate == 0 { resync.ask } else { resync.ask.min(smallest) };
        let passed = resync.compare.as_ref().map_or(u64::MAX, Compare::passed);
        let Some(mut run) = peer.bitmap.next_run(resync.cursor, limit / BLOCK_SIZE) else {
            // Around again, once everything that was asked for has come.
            if resync.cursor > 0 && resync.pulls.is_empty() && resync.writing == 0 {
                resync.cursor = 0;
                return peer.bitmap.count() > 0;
            }
            return false;
        };
        run.end = run.end.min(passed);
        if run.is_empty() {
            return false;
        }
        let range = match resync.not_asked(ByteRange::of_blocks(run)) {
            Ok(range) => range,
            Err(asked_to) => {
                resync.cursor = asked_to / BLOCK_SIZE;
                return true;
            }
        };
        resync.cursor = range.end() / BLOCK_SIZE;
        resync.pulls.insert(range.offset, range.len);
        // Long ranges are holes, which cost next to nothing.
        resync.in_flight += range.len.min(MAX_REQUEST);
        if rate > 0 {
            resync.allowance -= range.len.min(resync.allowance);
        }
        self.send(node, Message::ResyncRequest { range });
        true
    }

    /// When a limited resync may go on.
    pub(crate) fn resync_deadline(&self) -> Option<Millis> {
        let limited = self.options.resync_rate > 0
            && self.peers.values().any(|p| {
                p.is_syncing_target() && p.bitmap.count() > 0 && !self.stands_as_target(p)
            });
        limited.then(|| self.now.after(RATE_STEP_MS))
    }

    /// A target wants blocks, or, with a number for the answer, their digests.
    pub(crate) fn resync_requested(
        &mut self,
        node: NodeId,
        range: ByteRange,
        digests: Option<u64>,
    ) {
        if !self.in_device(range) || range.len > LONGEST_ASK {
            self.protocol_error(node, "it asked for blocks outside the device");
            return;
        }
        if !self.feeds(node) {
            return;
        }
        self.target_asks(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.wanted.len() >= MOST_WANTED {
            self.protocol_error(node, "it asked for more blocks at once than the protocol allows");
            return;
        }
        peer.wanted.push_back((range, digests));
    }

    /// A target whose own account durably has all that it lacks, or it would not ask.
    pub(crate) fn target_asks(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if std::mem::take(&mut peer.told_all) && std::mem::take(&mut peer.missed_in_fill) {
            self.request_superblock(After::Nothing);
        }
    }

    /// Reads for targets, as much at a time as memory is meant for.
    fn serve_targets(&mut self) {
        let served = |p: &&Peer| !p.wanted.is_empty() && !self.stands_as_source(p);
        let nodes: Vec<NodeId> = self.peers.values().filter(served).map(|p| p.node).collect();
        for node in nodes {
            while let Some(peer) = self.peers.get_mut(&node)
                && peer.reading < READ_AT_ONCE
                && let Some((asked, digests)) = peer.wanted.pop_front()
            {
                let round = peer.round;
                peer.reading += asked.len.min(MAX_REQUEST);
                let read = ResyncRead { peer: node, round, asked, digests };
                let key = self.resync_reads.insert(read);
                if self.locks.acquire(asked, Owner::ResyncRead(key)) {
                    self.start_resync_read(key);
                }
            }
        }
    }

    /// Whether this is still the resync of that peer.
    pub(crate) fn is_round(&self, node: NodeId, round: u64) -> bool {
        self.round_of(node) == round
    }

    /// Reads for a target what could not be read before.
    pub(crate) fn read_for_target(&mut self, node: NodeId, asked: ByteRange) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.wanted.push_front((asked, None));
        }
    }

    /// A read for a target is over.
    fn end_resync_read(&mut self, read: &ResyncRead) {
        if let Some(peer) = self.peers.get_mut(&read.peer) {
            peer.reading = peer.reading.saturating_sub(read.asked.len.min(MAX_REQUEST));
        }
        self.unlock(read.asked);
    }

    pub(crate) fn start_resync_read(&mut self, key: usize) {
        let Some(read) = self.resync_reads.get(key) else { return };
        let asked = read.asked;
        let goes = self.has_disk() && self.round_of(read.peer) == read.round;
        if goes && read.digests.is_some() {
            self.disk_read(DiskJob::ResyncRead(key), asked, true);
        } else if goes {
            let lost = self.lost_in(asked).first().map_or(asked.end(), |lost| lost.offset);
            if lost > asked.offset {
                let range = ByteRange::new(asked.offset, lost - asked.offset);
                self.disk_read(DiskJob::ResyncRead(key), range, true);
            } else {
                let read = self.resync_reads.remove(key);
                self.heal(ByteRange::new(asked.offset, BLOCK_SIZE));
                self.end_resync_read(&read);
                self.park(read.peer, read.round, asked);
            }
        } else {
            let read = self.resync_reads.remove(key);
            self.end_resync_read(&read);
        }
    }

    pub(crate) fn resync_read_done(&mut self, key: usize, result: Result<DiskOutcome, IoFailure>) {
        let Some(read) = self.resync_reads.get(key) else { return };
        if read.digests.is_some() && is_part(read.asked, &result) && self.has_disk() {
            // The digests are of all of it.
            self.disk_read(DiskJob::ResyncRead(key), read.asked, false);
            return;
        }
        let Some(read) = self.resync_reads.try_remove(key) else { return };
        if let Some(id) = read.digests {
            self.compare_served(&read, id, &result);
            self.end_resync_read(&read);
            return;
        }
        let (node, asked) = (read.peer, read.asked);
        // What was read for an earlier round may be older than what the new bitmap stands for.
        if self.round_of(node) == read.round {
            let result = match result {
                // What cannot be read ends the answer; at its start it is healed before there is one.
                Ok(DiskOutcome::Partial { data, bad, wrong }) => {
                    let first = bad.first().map_or(asked.end(), |bad| bad.offset);
                    let good = usize::try_from(first - asked.offset).unwrap_or(usize::MAX);
                    if good == 0 {
                        let block = ByteRange::new(asked.offset, BLOCK_SIZE);
                        self.heal(block);
                        if !self.is_healing(asked) {
                            match wrong.iter().any(|wrong| wrong.overlaps(block)) {
                                true => self.lose(&[block]),
                                false => self.note_unread(&[block]),
                            }
                        }
                        self.end_resync_read(&read);
                        self.park(node, read.round, asked);
                        return;
                    }
                    Ok(DiskOutcome::Data(data.slice(..good.min(data.len()))))
                }
                result => result,
            };
            let (range, zeroes, payload) = match result {
                Ok(DiskOutcome::Zeroes) => {
                    let lost = self.lost_in(asked).first().map_or(asked.end(), |lost| lost.offset);
                    (ByteRange::new(asked.offset, lost - asked.offset), true, Bytes::new())
                }
                Ok(DiskOutcome::Data(data)) if !data.is_empty() => {
                    let (len, zeroes) = first_stretch(&data);
                    let range = ByteRange::new(asked.offset, len as u64);
                    (range, zeroes, if zeroes { Bytes::new() } else { data.slice(..len) })
                }
                _ => {
                    self.end_resync_read(&read);
                    return;
                }
            };
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.resync_sent += payload.len() as u64;
                if let Some(resync) = &mut peer.resync {
                    resync.carried += payload.len() as u64;
                }
            }
            self.send(node, Message::ResyncData { asked, range, zeroes, payload });
        }
        self.end_resync_read(&read);
    }

    pub(crate) fn resync_data(
        &mut self,
        node: NodeId,
        asked: ByteRange,
        range: ByteRange,
        content: Content,
    ) {
        let fits = asked.contains(range) && asked.offset == range.offset && !range.is_empty();
        let zeroes = matches!(content, Content::Zeroes);
        let payload = content.len();
        let payload_fits = !matches!(content, Content::Data(_)) || payload == range.len;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(resync) = &mut peer.resync else { return };
        let pull = resync.pulls.remove(&asked.offset);
        if pull != Some(asked.len) {
            // It belongs to an earlier round.
            return;
        }
        if !fits || !payload_fits {
            self.protocol_error(node, "it sent other blocks than it was asked for");
            return;
        }
        resync.in_flight -= asked.len.min(MAX_REQUEST);
        resync.carried += payload;
        peer.resync_received += payload;
        resync.adapt(asked, range, zeroes);
        if range.len < asked.len {
            resync.cursor = resync.cursor.min(range.end() / BLOCK_SIZE);
        }
        resync.writing += 1;
        let round = peer.round;
        self.resync_writes_begun += 1;
        let key = self.resync_writes.insert(ResyncWrite::new(node, round, range, content));
        if self.locks.acquire(range, Owner::ResyncWrite(key)) {
            self.start_resync_write(key);
        }
    }

    /// Writes the blocks whose bits are still set; the others were written anew meanwhile.
    pub(crate) fn start_resync_write(&mut self, key: usize) {
        let Some(write) = self.resync_writes.get(key) else { return };
        let (node, range, content) = (write.peer, write.range, write.content.clone());
        let still = self.round_of(node) == write.round && self.has_disk();
        let mut runs = Vec::new();
        if matches!(content, Content::Same) {
            self.finish_resync_write(key);
            return;
        }
        if still && let Some(peer) = self.peers.get(&node) {
            let (mut at, end) = (range.blocks().start, range.blocks().end);
            while let Some(run) = peer.bitmap.next_run(at, end.saturating_sub(at)) {
                if run.start >= end {
                    break;
                }
                at = run.end;
                runs.push(ByteRange::of_blocks(run.start..run.end.min(end)));
                if at >= end {
                    break;
                }
            }
        }
        self.resync_writes[key].runs = runs.len();
        if runs.is_empty() {
            self.finish_resync_write(key);
            return;
        }
        if matches!(content, Content::Lost) {
            self.lose(&runs);
        }
        for run in runs {
            let from = usize::try_from(run.offset - range.offset).unwrap_or(usize::MAX);
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let data = match &content {
                Content::Data(data) => Some(data.slice(from..from + len)),
                Content::Zeroes | Content::Same => None,
                Content::Lost => {
                    let op = self.disk_op(DiskJob::ResyncLost(key), run);
                    self.act(Action::DiskMarkLost { op, range: run, unread: false });
                    continue;
                }
            };
            self.disk_write(DiskJob::ResyncWrite(key), run, data, false);
        }
    }

    pub(crate) fn resync_write_done(&mut self, key: usize, ok: bool) {
        let Some(write) = self.resync_writes.get_mut(key) else { return };
        write.runs = write.runs.saturating_sub(1);
        write.failed |= !ok;
        if write.runs == 0 {
            self.finish_resync_write(key);
        }
    }

    fn finish_resync_write(&mut self, key: usize) {
        let write = self.resync_writes.remove(key);
        let (node, range) = (write.peer, write.range);
        if self.round_of(node) == write.round && !write.failed && self.has_disk() {
            let mut checkpoint = false;
            let peer = self.peers.get_mut(&node).filter(|_| !write.void);
            let got = peer.map_or(0, |p| p.got(range.blocks()));
            if let Some(peer) = self.peers.get_mut(&node)
                && let Some(resync) = &mut peer.resync
            {
                resync.writing -= 1;
                resync.since_checkpoint += got;
                checkpoint =
                    !self.checkpointing && resync.since_checkpoint >= resync.checkpoint_blocks();
                if checkpoint {
                    resync.since_checkpoint = 0;
                }
            }
            if !write.void {
                self.send(node, Message::ResyncAck { range });
            }
            if checkpoint {
                self.checkpointing = true;
                self.disk_flush(DiskJob::CheckpointFlush);
            }
        }
        self.unlock(range);
    }

    /// The target has stored blocks.
    pub(crate) fn resync_acked(&mut self, node: NodeId, range: ByteRange) {
        if !self.in_device(range) {
            self.protocol_error(node, "it acknowledged blocks outside the device");
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.replication == ReplicationState::SyncSource {
            peer.stored(range.blocks());
        }
    }

    /// A write of the Primary is on the local disk: older blocks of a resync must not follow it.
    /// What the source misses itself is marked by now when its resync was begun anew meanwhile, and
    /// stays so.
    pub(crate) fn newer_than_resync(&mut self, range: ByteRange, missing: PeerSet) {
        let blocks = self.blocks();
        let fresh = |p: &&mut Peer| {
            let marked = |missed: &SparseBitmap| missed.count_range(range.blocks()) > 0;
            p.is_target()
                && (!missing.contains(p.node) || p.missed_meanwhile.as_ref().is_some_and(marked))
        };
        for peer in self.peers.values_mut().filter(fresh) {
            peer.got(range.blocks());
            if peer.replication == ReplicationState::WFBitMapT {
                let fresher = peer.fresher.get_or_insert_with(|| Self::new_bitmap(blocks));
                fresher.set_range(range.blocks());
            }
        }
    }

    /// Something was written here, by whomever and however long ago that was asked for: what was
    /// compared there does not count any more.
    pub(crate) fn no_longer_same(&mut self, range: ByteRange) {
        let resyncs = self.peers.values_mut().filter_map(|p| p.resync.as_mut());
        resyncs.filter_map(|r| r.compare.as_mut()).for_each(|compare| compare.written(range));
        let same = |w: &&mut ResyncWrite| matches!(w.content, Content::Same);
        let writes = self.resync_writes.iter_mut().map(|(_, write)| write).filter(same);
        writes.filter(|w| w.range.overlaps(range)).for_each(|w| w.void = true);
    }

    /// Connections that waited for another resync find out anew where they stand.
    pub(crate) fn next_source(&mut self) {
        if !self.has_disk() || self.peers.values().any(Peer::is_target) {
            return;
        }
        let waits =
            |p: &&Peer| p.replication == ReplicationState::PausedSyncT && !p.left_to_primary;
        let waiting: Vec<NodeId> = self.peers.values().filter(waits).map(|p| p.node).collect();
        for node in waiting {
            self.renegotiate(node);
        }
    }
}
