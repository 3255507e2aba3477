//! Healing: blocks that the local disk cannot read are fetched from a peer that has them, and stored
//! again. What nobody has is noted durably in the node's own bitmap: as lost where what the disk holds may
//! be old, until it is written; else as unread, which each read tries again, until one finds it.
//!
//! Nothing is locked while a block is fetched. The peer reads in order with the writes of the block, and
//! behind all that the Primary had sent it by then; a write that ends here meanwhile strikes the block
//! out; what is left is stored under the lock of its range. So nothing older comes over anything newer.

use crate::engine::{Core, DiskJob};
use crate::event::{Action, DiskOutcome, IoFailure, LinkId, MetaOpId, Notice};
use crate::locks::Owner;
use crate::peer::Peer;
use crate::persist::After;
use crate::planted::PlantedBug;
use crate::sync::Barrier;
use bytes::{Bytes, BytesMut};
use holdfast_format::{LostBlocks, SparseBitmap};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, MAX_REQUEST, Millis, NodeId, PeerSet, ReplicationState,
};
use holdfast_wire::{FEATURE_HEAL, Message, PeerResult};
use slab::Slab;

/// So many stretches are healed at a time, before some of them are split.
const AT_ONCE: usize = 16;
/// The longest stretch, in blocks.
const LONGEST: u64 = 64;
/// So many blocks are healed in a second.
const RATE: u64 = 2048;
/// So many reads of peers that heal may be under way here.
const MOST_SERVED: usize = 1024;
/// People are told of healed blocks so often.
const TELL_MS: u64 = 1000;
/// What is lost is tried again so often at most, while no peer has come that could have it.
const RETRY_MS: u64 = 1000;
/// So many lost blocks are tried again in one step.
const RETRY_STEP: u64 = 4096;
/// What the disk did not take although its content would not have changed is left alone so long.
const STUBBORN_MS: u64 = 10_000;
/// Answers to [`Message::HealRead`] have this bit in their number.
const HEAL_ID: u64 = 1 << 63;

/// How far the healing of a stretch is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// A peer was asked.
    Fetch,
    /// The range is to be locked; its extents are to be hot.
    Lock,
    Extents,
    /// The disk works on it.
    Store,
}

/// A stretch of blocks that is healed.
#[derive(Debug)]
struct Heal {
    range: ByteRange,
    serial: u64,
    stage: Stage,
    tried: PeerSet,
    at: Option<NodeId>,
    /// [`Healing::epoch`] when the peer was asked.
    epoch: u64,
    /// What is stored; `None`: nobody has it, and what cannot be read here under the lock is lost.
    data: Option<Bytes>,
    /// What was not written meanwhile.
    left: SparseRange,
    has_extents: bool,
    /// Operations of the disk under way.
    running: usize,
    /// Blocks that wait to be stored alone, the last one first.
    alone: Vec<ByteRange>,
}

/// Some blocks of a short range.
#[derive(Clone, Debug)]
struct SparseRange(Vec<ByteRange>);

impl SparseRange {
    fn strike(&mut self, range: ByteRange) {
        let cut = |part: &ByteRange| {
            let before = part.offset..range.offset.clamp(part.offset, part.end());
            let after = range.end().clamp(part.offset, part.end())..part.end();
            [before, after].map(|rest| ByteRange::new(rest.start, rest.end - rest.start))
        };
        if self.0.iter().any(|part| part.overlaps(range)) {
            self.0 = self.0.iter().flat_map(cut).filter(|rest| !rest.is_empty()).collect();
        }
    }
}

/// What a part of a stretch gave that was read again.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// As long as the part; what bad blocks hold means nothing.
    pub(crate) data: Bytes,
    pub(crate) bad: Vec<ByteRange>,
    pub(crate) salvaged: Vec<ByteRange>,
    /// Bad blocks that can be read, and hold something else than what was written.
    pub(crate) wrong: Vec<ByteRange>,
}

/// A read for a peer that heals.
#[derive(Debug)]
pub(crate) struct HealRead {
    peer: NodeId,
    link: LinkId,
    id: u64,
    range: ByteRange,
    epoch: u64,
    barrier: Option<Barrier>,
    /// Its range is locked, or waits for that.
    begun: bool,
}

/// Blocks of a resync that wait until it is known whether they can be healed.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) peer: NodeId,
    pub(crate) round: u64,
    pub(crate) asked: ByteRange,
}

/// All that belongs to healing.
#[derive(Debug)]
pub(crate) struct Healing {
    /// Blocks of which there is no good copy here, durably in the own slot of the bitmaps: `old` is what
    /// this module calls lost.
    pub(crate) list: LostBlocks,
    /// Blocks that the driver has, and that the disk did not take; since when it is left alone.
    stubborn: SparseBitmap,
    stubborn_since: Millis,
    /// How far what could not be read is tried again, since the disk is there.
    reread_from: Option<u64>,
    /// Whether there are any of both kinds in the list, as the superblock is to say.
    flags: (bool, bool),
    /// Blocks to be healed.
    wanted: SparseBitmap,
    heals: Slab<Heal>,
    reads: Slab<HealRead>,
    pub(crate) parked: Vec<Parked>,
    /// Writes that wait until it is durable that their blocks are not lost any more.
    clearing: Vec<(MetaOpId, DiskJob, DiskOutcome)>,
    serial: u64,
    /// Goes up whenever a peer changes.
    epoch: u64,
    /// [`Self::epoch`] when what is lost was last tried again, the time, and how far that is.
    retried: u64,
    retried_at: Option<Millis>,
    retry_from: Option<u64>,
    /// Who could have something then, and how many blocks it lacks.
    givers: Vec<(NodeId, u64)>,
    /// How many blocks may be begun with now, and when that was counted.
    allowance: u64,
    counted: Millis,
    /// Blocks healed since the start.
    pub(crate) healed: u64,
    /// Healed and lost since people were last told, and when that was.
    untold: u64,
    untold_lost: Option<(ByteRange, u64)>,
    told: Option<Millis>,
}

impl Healing {
    pub(crate) fn new(blocks: u64) -> Self {
        Self {
            list: LostBlocks::new(blocks),
            stubborn: SparseBitmap::new(blocks),
            stubborn_since: Millis(0),
            reread_from: None,
            flags: (false, false),
            wanted: SparseBitmap::new(blocks),
            heals: Slab::new(),
            reads: Slab::new(),
            parked: Vec::new(),
            clearing: Vec::new(),
            serial: 0,
            epoch: 1,
            retried: 0,
            retried_at: None,
            retry_from: None,
            givers: Vec::new(),
            allowance: RATE,
            counted: Millis(0),
            healed: 0,
            untold: 0,
            untold_lost: None,
            told: None,
        }
    }

    pub(crate) fn grow(&mut self, blocks: u64) {
        self.list.old.resize(blocks, false);
        self.list.unread.resize(blocks, false);
        self.stubborn.resize(blocks, false);
        self.wanted.resize(blocks, false);
    }

    /// A peer is worth something else now.
    pub(crate) fn peers_changed(&mut self) {
        self.epoch += 1;
    }

    /// How many blocks are being healed, or wait for it.
    pub(crate) fn pending(&self) -> u64 {
        let running: u64 = self.heals.iter().map(|(_, heal)| heal.range.len / BLOCK_SIZE).sum();
        self.wanted.count() + running
    }

    pub(crate) fn is_lost(&self, range: ByteRange) -> bool {
        let old = &self.list.old;
        old.count() > 0 && old.count_range(range.blocks()) > 0
    }

    fn is_unread(&self, range: ByteRange) -> bool {
        let unread = &self.list.unread;
        unread.count() > 0 && unread.count_range(range.blocks()) > 0
    }

    /// The disk is there, with this list: what could not be read is tried again.
    pub(crate) fn attach(&mut self, list: LostBlocks) {
        self.reread_from = (list.unread.count() > 0).then_some(0);
        self.flags = (list.old.count() > 0, list.unread.count() > 0);
        self.list = list;
    }

    /// Where the first blocks are of which there is no good copy here.
    pub(crate) fn first_listed(&self, most: usize) -> Vec<ByteRange> {
        let first = |bits: &SparseBitmap| -> Vec<ByteRange> {
            let any = bits.count() > 0;
            if any {
                bits.runs().take(most).map(ByteRange::of_blocks).collect()
            } else {
                Vec::new()
            }
        };
        let mut all = union([first(&self.list.old), first(&self.list.unread)].concat());
        all.truncate(most);
        all
    }

    /// The lost blocks of a range.
    fn lost_in(&self, range: ByteRange) -> Vec<ByteRange> {
        set_in(&self.list.old, range)
    }

    /// Whether it is not known yet what becomes of a block.
    fn is_pending(&self, block: u64) -> bool {
        self.wanted.get(block)
            || self.heals.iter().any(|(_, heal)| heal.range.blocks().contains(&block))
    }

    /// Whether it is no use to store a block now that the driver has.
    fn is_stubborn(&mut self, block: u64, now: Millis) -> bool {
        if self.stubborn.count() > 0 && now.since(self.stubborn_since) >= STUBBORN_MS {
            self.stubborn.clear_all();
        }
        self.stubborn.count() > 0 && self.stubborn.get(block)
    }

    fn has_news(&self) -> bool {
        self.untold > 0 || self.untold_lost.is_some()
    }

    /// Whether there is nothing to begin with and nothing to tell.
    fn is_idle(&self) -> bool {
        self.wanted.count() == 0
            && self.reads.is_empty()
            && self.parked.is_empty()
            && !self.has_news()
            && !self.wants_retry()
    }

    fn wants_retry(&self) -> bool {
        let asks = self.retried != self.epoch || self.retry_from.is_some();
        self.reread_from.is_some() || self.list.count() > 0 && asks
    }

    /// Whether the disk works on something that was healed.
    pub(crate) fn is_storing(&self) -> bool {
        self.heals.iter().any(|(_, heal)| heal.stage != Stage::Fetch) || !self.clearing.is_empty()
    }
}

/// Two lists of ranges as one, in order and without overlaps.
fn union(mut all: Vec<ByteRange>) -> Vec<ByteRange> {
    all.sort_unstable_by_key(|range| range.offset);
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in all {
        match joined.last_mut() {
            Some(last) if range.offset <= last.end() => {
                let end = last.end().max(range.end());
                *last = ByteRange::new(last.offset, end - last.offset);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// The part of the data of a range.
pub(crate) fn slice(range: ByteRange, data: &Bytes, part: ByteRange) -> Bytes {
    let from = usize::try_from(part.offset - range.offset).unwrap_or(usize::MAX);
    let len = usize::try_from(part.len).unwrap_or(usize::MAX);
    data.slice(from..from + len)
}

/// The blocks of a range of which a bit is set.
fn set_in(bits: &SparseBitmap, range: ByteRange) -> Vec<ByteRange> {
    let (mut found, mut at) = (Vec::new(), range.blocks().start);
    let end = range.blocks().end;
    if bits.count() == 0 {
        return found;
    }
    while at < end
        && let Some(run) = bits.next_run(at, end - at).filter(|run| run.start < end)
    {
        at = run.end;
        found.push(ByteRange::of_blocks(run.start..run.end.min(end)));
    }
    found
}

fn is_in(ranges: &[ByteRange], block: u64) -> bool {
    ranges.iter().any(|range| range.blocks().contains(&block))
}

impl Core {
    /// What a read of a range gave, without what is lost: `lost` was so when the read began. Blocks
    /// that the disk could not read are healed, and those that it could not read before and gives now.
    pub(crate) fn without_lost(
        &mut self,
        range: ByteRange,
        lost: Vec<ByteRange>,
        outcome: DiskOutcome,
    ) -> DiskOutcome {
        let (data, mut bad, salvaged, wrong) = match outcome {
            DiskOutcome::Partial { data, bad, wrong } => (data, bad, Vec::new(), wrong),
            DiskOutcome::Salvaged { data, bad, salvaged, wrong } => (data, bad, salvaged, wrong),
            DiskOutcome::Data(data) => (data, Vec::new(), Vec::new(), Vec::new()),
            // What the disk has in place of a lost block may be a hole.
            DiskOutcome::Zeroes if !lost.is_empty() || self.healing.is_lost(range) => {
                let len = usize::try_from(range.len).unwrap_or(usize::MAX);
                (BytesMut::zeroed(len).freeze(), Vec::new(), Vec::new(), Vec::new())
            }
            other => return other,
        };
        let unread = bad.iter().chain(&salvaged);
        self.io_errors += unread.map(|range| range.len / BLOCK_SIZE).sum::<u64>();
        let mut lost_before = lost;
        lost_before.extend(self.lost_in(range));
        bad.extend_from_slice(&lost_before);
        // What was lost before is tried again when a peer changes, or one gives it to a reader. What was
        // salvaged can be read, unless a source of a resync had lost it: then it is old.
        let lost = union(lost_before);
        let bad = union(bad);
        // A longer range may have been read in part only.
        let got = ByteRange::new(range.offset, data.len() as u64);
        let unread = set_in(&self.healing.list.unread, got);
        let news = bad.iter().chain(&salvaged).flat_map(|range| range.blocks());
        for block in news.filter(|block| !is_in(&lost, *block) && !is_in(&unread, *block)) {
            self.heal(ByteRange::of_blocks(block..block + 1));
        }
        let found = unread.iter().flat_map(|range| range.blocks());
        for block in found.filter(|block| !is_in(&bad, *block)).collect::<Vec<_>>() {
            self.reread(ByteRange::of_blocks(block..block + 1));
        }
        match bad.is_empty() {
            true => DiskOutcome::Data(data),
            false => DiskOutcome::Partial { data, bad, wrong },
        }
    }

    fn want(&mut self, block: u64) {
        if !self.healing.is_pending(block) {
            self.healing.wanted.set_range(block..block + 1);
        }
    }

    /// Has blocks read again under their lock that could not be read before.
    fn reread(&mut self, range: ByteRange) {
        if self.disk == DiskState::UpToDate && self.stopping.is_none() {
            range.blocks().for_each(|block| self.want(block));
        }
    }

    /// The lost blocks of a range of which a read begins.
    pub(crate) fn lost_in(&self, range: ByteRange) -> Vec<ByteRange> {
        self.healing.lost_in(range)
    }

    /// The blocks of a range of which there is no good copy here, as far as is known.
    pub(crate) fn listed_in(&self, range: ByteRange) -> Vec<ByteRange> {
        let unread = set_in(&self.healing.list.unread, range);
        union([self.lost_in(range), unread].concat())
    }

    /// Has these blocks of the local disk, which are no good, fetched from a peer and stored again;
    /// those of which nobody has a good copy are lost from then on. Nothing is done while the local
    /// data are not UpToDate, or the node stops.
    pub(crate) fn heal(&mut self, bad: ByteRange) {
        if self.disk != DiskState::UpToDate || self.stopping.is_some() || !self.in_device(bad) {
            return;
        }
        for block in bad.blocks() {
            if !self.is_hopeless(block) {
                self.want(block);
            }
        }
    }

    /// Whether a block is known not to be had here, or not to be taken by the disk, and nobody is there
    /// who could have it.
    fn is_hopeless(&mut self, block: u64) -> bool {
        let range = ByteRange::of_blocks(block..block + 1);
        let listed = self.healing.is_lost(range) || self.healing.is_unread(range);
        (listed || self.healing.is_stubborn(block, self.now))
            && !self.peers.values().any(|p| self.may_give(p, range))
    }

    /// Whether this peer has good data of a range, by all that is known here.
    pub(crate) fn may_give(&self, peer: &Peer, range: ByteRange) -> bool {
        // It may have yet to grow.
        let within = peer.size.is_some_and(|size| range.end() <= size);
        Self::gives(peer) && within && peer.bitmap.count_range(range.blocks()) == 0
    }

    /// Whether this peer has good data of anything.
    pub(crate) fn gives(peer: &Peer) -> bool {
        peer.receives()
            && peer.disk == DiskState::UpToDate
            && peer.replication == ReplicationState::Established
            && peer.features & FEATURE_HEAL != 0
    }

    /// Begins to heal what is wanted, as much as may be begun with now.
    pub(crate) fn pump_heals(&mut self) {
        if self.healing.is_idle() {
            return;
        }
        self.serve_heal_reads();
        self.tell_healed();
        if self.disk != DiskState::UpToDate || self.stopping.is_some() {
            if self.healing.wanted.count() > 0 {
                self.healing.wanted.clear_all();
            }
            self.unpark_all();
            return;
        }
        self.retry_lost();
        self.earn();
        while self.healing.heals.len() < AT_ONCE
            && self.healing.allowance > 0
            && let Some(run) = self.healing.wanted.next_run(0, LONGEST.min(self.healing.allowance))
        {
            self.healing.wanted.clear_range(run.clone());
            self.healing.allowance -= run.end - run.start;
            self.begin_heal(ByteRange::of_blocks(run));
        }
    }

    /// A peer has changed: perhaps one of them has what was lost. All of it is tried again at once when
    /// one gives more than before, and else now and then: peers change often.
    fn retry_lost(&mut self) {
        if !self.healing.wants_retry() {
            return;
        }
        if self.healing.retried != self.healing.epoch {
            let peers = self.peers.values().filter(|p| Self::gives(p));
            let givers: Vec<_> = peers.map(|p| (p.node, p.bitmap.count())).collect();
            let healing = &mut self.healing;
            let news = givers.iter().any(|giver| !healing.givers.contains(giver));
            healing.givers = givers;
            if news || healing.retried_at.is_none_or(|at| self.now.since(at) >= RETRY_MS) {
                healing.retried = healing.epoch;
                healing.retried_at = Some(self.now);
                healing.retry_from = Some(0);
            }
        }
        let mut left = RETRY_STEP;
        while left > 0
            && let Some(from) = self.healing.reread_from
        {
            let run = self.healing.list.unread.next_run(from, left);
            self.healing.reread_from = run.as_ref().map(|run| run.end);
            if let Some(run) = run {
                left -= run.end - run.start;
                self.reread(ByteRange::of_blocks(run));
            }
        }
        while left > 0
            && let Some(from) = self.healing.retry_from
        {
            let list = &self.healing.list;
            let runs = [&list.old, &list.unread].map(|bits| bits.next_run(from, left));
            let run = runs.into_iter().flatten().min_by_key(|run| run.start);
            self.healing.retry_from = run.as_ref().map(|run| run.end);
            if let Some(run) = run {
                left -= run.end - run.start;
                self.heal(ByteRange::of_blocks(run));
            }
        }
    }

    fn earn(&mut self) {
        let healing = &mut self.healing;
        let earned = RATE * self.now.since(healing.counted) / 1000;
        if earned > 0 {
            healing.counted = self.now;
            healing.allowance = (healing.allowance + earned).min(RATE);
        }
    }

    /// When healing wants to go on, or to tell.
    pub(crate) fn heal_deadline(&self) -> Option<Millis> {
        let healing = &self.healing;
        let waits = healing.wanted.count() > 0 && healing.allowance == 0;
        let more = waits.then(|| healing.counted.after(20));
        let told =
            (healing.untold > 0).then(|| healing.told.map_or(self.now, |at| at.after(TELL_MS)));
        let works = self.disk == DiskState::UpToDate && self.stopping.is_none();
        let again = (works && healing.wants_retry()).then(|| match healing.retry_from {
            Some(_) => self.now.after(20),
            None if healing.reread_from.is_some() => self.now.after(20),
            None => healing.retried_at.map_or(self.now, |at| at.after(RETRY_MS)).max(self.now),
        });
        [more, told, again].into_iter().flatten().min()
    }

    fn tell_healed(&mut self) {
        let due = self.healing.told.is_none_or(|at| self.now.since(at) >= TELL_MS);
        if !self.healing.has_news() || !due {
            return;
        }
        self.healing.told = Some(self.now);
        let healed = std::mem::take(&mut self.healing.untold);
        if healed > 0 {
            self.notice(Notice::Healed(healed));
        }
        if let Some((first, blocks)) = self.healing.untold_lost.take() {
            self.notice(Notice::Unreadable { first, blocks });
        }
    }

    fn begin_heal(&mut self, range: ByteRange) {
        self.healing.serial = (self.healing.serial + 1) & 0x7FFF_FFFF;
        let key = self.healing.heals.insert(Heal {
            range,
            serial: self.healing.serial,
            stage: Stage::Fetch,
            tried: PeerSet::EMPTY,
            at: None,
            epoch: 0,
            data: None,
            left: SparseRange(vec![range]),
            has_extents: false,
            running: 0,
            alone: Vec::new(),
        });
        self.fetch(key);
    }

    /// Asks the next peer that may have the blocks. When there is none, each block is tried for itself,
    /// and what nobody has is lost.
    fn fetch(&mut self, key: usize) {
        let Some(heal) = self.healing.heals.get(key) else { return };
        let (range, tried) = (heal.range, heal.tried);
        let id = HEAL_ID | heal.serial << 32 | key as u64;
        // The Primary first: it knows best.
        let primary = self.stand().primary;
        let able = |p: &&Peer| !tried.contains(p.node) && self.may_give(p, range);
        let next = self.peers.values().filter(able).min_by_key(|p| Some(p.node) != primary);
        let next = next.map(|p| p.node);
        let epoch = self.healing.epoch;
        let heal = &mut self.healing.heals[key];
        heal.at = next;
        heal.epoch = epoch;
        if let Some(peer) = next {
            self.asked(peer);
            self.send(peer, Message::HealRead { id, range });
        } else if range.len > BLOCK_SIZE && !tried.is_empty() {
            let half = range.len / 2 / BLOCK_SIZE * BLOCK_SIZE;
            self.healing.heals.remove(key);
            self.begin_heal(ByteRange::new(range.offset, half));
            self.begin_heal(ByteRange::new(range.offset + half, range.len - half));
        } else {
            self.lock_heal(key);
        }
    }

    pub(crate) const fn is_heal(id: u64) -> bool {
        id & HEAL_ID != 0
    }

    /// A peer answered a read for healing.
    pub(crate) fn heal_answered(&mut self, peer: NodeId, id: u64, result: PeerResult, data: Bytes) {
        let key = usize::try_from(id & 0xFFFF_FFFF).unwrap_or(usize::MAX);
        let serial = (id & !HEAL_ID) >> 32;
        let Some(heal) = self.healing.heals.get(key) else { return };
        if heal.serial != serial || heal.at != Some(peer) || heal.stage != Stage::Fetch {
            return;
        }
        let (range, same) = (heal.range, heal.epoch == self.healing.epoch);
        self.answered(peer);
        let able = self.peers.get(&peer).is_some_and(|p| self.may_give(p, range));
        let heal = &mut self.healing.heals[key];
        heal.at = None;
        if self.disk != DiskState::UpToDate {
            self.end_heal(key);
        } else if !same {
            // Who was asked may have followed another Primary then.
            heal.tried = PeerSet::EMPTY;
            self.fetch(key);
        } else if able && result == PeerResult::Ok && data.len() as u64 == range.len {
            heal.data = Some(data);
            self.lock_heal(key);
        } else {
            heal.tried.insert(peer);
            self.fetch(key);
        }
    }

    /// A peer is gone: others are asked what it was asked.
    pub(crate) fn heals_lost_peer(&mut self, peer: NodeId) {
        let at = |(key, heal): (usize, &Heal)| (heal.at == Some(peer)).then_some(key);
        let keys: Vec<usize> = self.healing.heals.iter().filter_map(at).collect();
        for key in keys {
            self.answered(peer);
            self.fetch(key);
        }
    }

    fn lock_heal(&mut self, key: usize) {
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        heal.stage = Stage::Lock;
        let range = heal.range;
        if self.locks.acquire(range, Owner::Heal(key)) {
            self.advance_heal(key);
        }
    }

    pub(crate) fn advance_heal(&mut self, key: usize) {
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        let range = heal.range;
        match heal.stage {
            Stage::Lock => {
                heal.stage = Stage::Extents;
                heal.has_extents = self.al.is_some();
                if self.al_begin(Owner::Heal(key), range) {
                    self.advance_heal(key);
                }
            }
            Stage::Extents => self.store_heal(key),
            Stage::Fetch | Stage::Store => {}
        }
    }

    /// Stores what was fetched, of the blocks that nobody has written since. When nobody has them, they
    /// are read once more: a write may have ended while the read was under way that found them bad.
    fn store_heal(&mut self, key: usize) {
        let overwrites = self.has_bug(PlantedBug::HealOverNewer);
        let good = self.disk == DiskState::UpToDate && self.stopping.is_none();
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        heal.stage = Stage::Store;
        let range = heal.range;
        let left = if overwrites { vec![range] } else { heal.left.0.clone() };
        if !good || left.is_empty() {
            self.end_heal(key);
            return;
        }
        let Some(data) = heal.data.clone() else {
            self.check_heal(key, left);
            return;
        };
        heal.running = left.len();
        for part in left {
            let data = slice(range, &data, part);
            let op = self.disk_op(DiskJob::Heal(key), part);
            self.act(Action::DiskRepair { op, range: part, data, salvaged: false });
        }
    }

    /// Reads blocks again that nobody else has, under their lock. What is lost already is not: whatever
    /// the disk gives by now may be old.
    fn check_heal(&mut self, key: usize, left: Vec<ByteRange>) {
        let mut parts = SparseRange(left);
        for part in parts.0.clone() {
            self.lost_in(part).into_iter().for_each(|lost| parts.strike(lost));
        }
        if parts.0.is_empty() {
            self.end_heal(key);
            return;
        }
        self.healing.heals[key].running = parts.0.len();
        if self.has_bug(PlantedBug::LoseUnseen) {
            for part in parts.0 {
                let bad = Checked { bad: vec![part], wrong: vec![part], ..Checked::default() };
                self.heal_checked(key, part, bad);
            }
            return;
        }
        for part in parts.0 {
            self.disk_read(DiskJob::HealCheck(key), part, false);
        }
    }

    /// What a part gave that was read again. Blocks that could not be read are noted; what could be had
    /// that the disk could not read, now or before, is stored.
    pub(crate) fn heal_checked(&mut self, key: usize, part: ByteRange, checked: Checked) {
        let Checked { data, bad, salvaged, wrong } = checked;
        let up_to_date = self.disk == DiskState::UpToDate;
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        heal.running -= 1;
        // What the disk gives again, which it could not read before.
        let mut again = SparseRange(set_in(&self.healing.list.unread, part));
        bad.iter().chain(&salvaged).for_each(|range| again.strike(*range));
        let is_all = bad.is_empty() && salvaged.is_empty() && again.0.is_empty();
        if up_to_date && !is_all && (bad == [part] || data.len() as u64 == part.len) {
            let gives_up = self.has_bug(PlantedBug::UnreadIsLost);
            let mut unread = SparseRange(bad);
            let wrong = if gives_up { std::mem::take(&mut unread.0) } else { wrong };
            wrong.iter().for_each(|range| unread.strike(*range));
            self.lose(&wrong);
            self.note_unread(&unread.0);
            let heal = &mut self.healing.heals[key];
            heal.running += wrong.len() + unread.0.len() + salvaged.len() + again.0.len();
            for (range, may_be_read) in [(wrong, false), (unread.0, true)]
                .into_iter()
                .flat_map(|(ranges, may)| ranges.into_iter().map(move |range| (range, may)))
            {
                let op = self.disk_op(DiskJob::Heal(key), range);
                self.act(Action::DiskMarkLost { op, range, unread: may_be_read });
            }
            for (range, job) in salvaged
                .into_iter()
                .map(|range| (range, DiskJob::HealSalvaged(key)))
                .chain(again.0.into_iter().map(|range| (range, DiskJob::HealReread(key))))
            {
                let data = slice(part, &data, range);
                let op = self.disk_op(job, range);
                self.act(Action::DiskRepair { op, range, data, salvaged: true });
            }
        } else if heal.running == 0 {
            self.end_heal(key);
        }
    }

    /// What the disk could read again is stored in its place, or could not be: in either case it is not
    /// unread any more.
    pub(crate) fn heal_reread(&mut self, key: usize, part: ByteRange) {
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        heal.running -= 1;
        let running = heal.running;
        self.found_again(part);
        if running == 0 {
            self.end_heal(key);
        }
    }

    /// What the driver has is stored in its place, or could not be: then it has it still.
    pub(crate) fn heal_salvaged(&mut self, key: usize, part: ByteRange, ok: bool) {
        if ok || self.has_bug(PlantedBug::SalvagedIsLost) {
            self.heal_stored(key, part, ok);
            return;
        }
        let healing = &mut self.healing;
        if healing.stubborn.count() == 0 {
            healing.stubborn_since = self.now;
        }
        healing.stubborn.set_range(part.blocks());
        self.heal_reread(key, part);
    }

    /// The disk has stored a part of what a peer had, or has taken note that it is lost.
    pub(crate) fn heal_part_done(&mut self, key: usize, part: ByteRange, ok: bool) {
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        if heal.data.is_some() {
            self.heal_stored(key, part, ok);
            return;
        }
        heal.running -= 1;
        if heal.running == 0 {
            self.end_heal(key);
        }
    }

    /// The disk has stored a part of what was healed, or could not.
    pub(crate) fn heal_stored(&mut self, key: usize, part: ByteRange, ok: bool) {
        let Some(heal) = self.healing.heals.get_mut(key) else { return };
        heal.running -= 1;
        let running = heal.running;
        if ok {
            self.healing.healed += part.len / BLOCK_SIZE;
            self.healing.untold += part.len / BLOCK_SIZE;
            self.found_again(part);
        } else if !self.store_alone(key, part) {
            // What it holds now nobody knows.
            self.lose(&[part]);
        }
        if !self.store_next(key) && running == 0 {
            self.end_heal(key);
        }
    }

    /// The disk did not take several blocks at once, perhaps because of one of them: what a peer had is
    /// stored block by block, so that only those are lost that are not taken alone. Whether it will be;
    /// not when something of it was given up meanwhile.
    fn store_alone(&mut self, key: usize, part: ByteRange) -> bool {
        let good = self.disk == DiskState::UpToDate && self.stopping.is_none();
        let Some(heal) = self.healing.heals.get_mut(key) else { return false };
        let still = good && part.len > BLOCK_SIZE && heal.left.0.contains(&part);
        if !still || heal.data.is_none() {
            return false;
        }
        heal.alone.extend(part.blocks().rev().map(|block| ByteRange::of_blocks(block..block + 1)));
        true
    }

    /// Stores the next block that waits to be stored alone, one behind the other: a disk has room for few
    /// repairs beside what clients ask of it. Whether there was one.
    fn store_next(&mut self, key: usize) -> bool {
        let good = self.disk == DiskState::UpToDate && self.stopping.is_none();
        let Some(heal) = self.healing.heals.get_mut(key) else { return false };
        if !good {
            let alone = std::mem::take(&mut heal.alone);
            self.lose(&alone);
            return false;
        }
        let (Some(block), Some(data)) = (heal.alone.pop(), &heal.data) else { return false };
        heal.running += 1;
        let data = slice(heal.range, data, block);
        let op = self.disk_op(DiskJob::Heal(key), block);
        self.act(Action::DiskRepair { op, range: block, data, salvaged: false });
        true
    }

    fn end_heal(&mut self, key: usize) {
        let Some(heal) = self.healing.heals.try_remove(key) else { return };
        if heal.has_extents {
            self.al_end(heal.range);
        }
        if heal.stage != Stage::Fetch {
            self.unlock(heal.range);
        }
        self.unpark(heal.range);
    }

    /// Of these blocks there is no good copy here from now on, until they are written: what the disk has
    /// may be old. The lock of their range is held.
    pub(crate) fn lose(&mut self, ranges: &[ByteRange]) {
        let mut news = false;
        for range in ranges {
            let list = &mut self.healing.list;
            let known = list.unread.clear_range(range.blocks());
            let lost = list.old.set_range(range.blocks());
            if lost > known {
                self.healing.untold_lost.get_or_insert((*range, 0)).1 += lost - known;
            }
            news |= lost > 0;
        }
        if news {
            self.list_changed();
        }
    }

    /// These blocks cannot be read, and nobody has them at present. What the disk holds is as good as
    /// everywhere: who can read them later has it. What is lost already stays so.
    pub(crate) fn note_unread(&mut self, ranges: &[ByteRange]) {
        let mut news = false;
        for range in ranges {
            for block in range.blocks() {
                let place = ByteRange::of_blocks(block..block + 1);
                let list = &mut self.healing.list;
                if !list.old.get(block) && list.unread.set_range(block..block + 1) > 0 {
                    self.healing.untold_lost.get_or_insert((place, 0)).1 += 1;
                    news = true;
                }
            }
        }
        if news {
            self.list_changed();
        }
    }

    fn list_changed(&mut self) -> Option<MetaOpId> {
        let list = &self.healing.list;
        let flags = (list.old.count() > 0, list.unread.count() > 0);
        if std::mem::replace(&mut self.healing.flags, flags) != flags {
            self.request_superblock(After::Nothing);
        }
        let written = self.write_lost_pages();
        self.changed();
        written
    }

    /// What a peer has is being repaired: what it gave before that is not stored here any more. Who finds
    /// the blocks bad again fetches them anew.
    pub(crate) fn repairs_elsewhere(&mut self, range: ByteRange) {
        for (_, heal) in &mut self.healing.heals {
            heal.left.strike(range);
        }
    }

    /// A write is on the disk. Blocks that were to be healed are not any more. Whether it can be
    /// answered: if some were lost, that they are not any more must be durable first.
    pub(crate) fn written(
        &mut self,
        job: DiskJob,
        range: ByteRange,
        outcome: &DiskOutcome,
    ) -> bool {
        self.no_longer_same(range);
        let healing = &mut self.healing;
        for (_, heal) in &mut healing.heals {
            heal.left.strike(range);
        }
        if healing.stubborn.count() > 0 {
            healing.stubborn.clear_range(range.blocks());
        }
        if healing.wanted.count() > 0 && healing.wanted.clear_range(range.blocks()) > 0 {
            // Whoever waits for what becomes of them can read them.
            self.unpark(range);
        }
        let Some(op) = self.found_again(range) else { return true };
        self.healing.clearing.push((op, job, outcome.clone()));
        false
    }

    /// Blocks are not lost any more, nor unread. The write that makes durable that they are not lost: what
    /// could not be read needs none.
    fn found_again(&mut self, range: ByteRange) -> Option<MetaOpId> {
        let list = &self.healing.list;
        let of = |bits: &SparseBitmap| bits.count() > 0 && bits.count_range(range.blocks()) > 0;
        let (lost, unread) = (of(&list.old), of(&list.unread));
        if !lost && !unread {
            return None;
        }
        let list = &mut self.healing.list;
        list.old.clear_range(range.blocks());
        list.unread.clear_range(range.blocks());
        let written = self.list_changed();
        if lost { written } else { None }
    }

    /// Metadata are durable: writes that waited for them go on.
    pub(crate) fn lost_pages_durable(&mut self, op: MetaOpId) {
        let is_due = |(of, ..): &mut (MetaOpId, DiskJob, DiskOutcome)| *of == op;
        let due: Vec<_> = self.healing.clearing.extract_if(.., is_due).collect();
        for (_, job, outcome) in due {
            self.job_done(job, ByteRange::default(), Ok(outcome));
        }
    }

    /// The disk is not used any more.
    pub(crate) fn heals_lost_disk(&mut self) {
        self.healing.wanted.clear_all();
        for (_, job, _) in std::mem::take(&mut self.healing.clearing) {
            self.job_done(job, ByteRange::default(), Err(IoFailure::Disk));
        }
        self.unpark_all();
    }

    /// A peer wants to heal: what it asks for is read in order with the writes of these blocks, when all
    /// is here that the Primary has sent until now.
    pub(crate) fn heal_requested(&mut self, node: NodeId, link: LinkId, id: u64, range: ByteRange) {
        if !self.in_device(range) || range.len > MAX_REQUEST {
            self.protocol_error(node, "it read outside the device");
            return;
        }
        let able = self.disk == DiskState::UpToDate
            && self.healing.reads.len() < MOST_SERVED
            && self.peers.get(&node).is_some_and(|p| self.may_give(p, range));
        if !able {
            self.refuse_heal_read(node, id);
            return;
        }
        if !self.peer_asks(node) {
            return;
        }
        self.queue_heal_read(node, link, id, range);
        self.serve_heal_reads();
    }

    fn queue_heal_read(&mut self, peer: NodeId, link: LinkId, id: u64, range: ByteRange) {
        let other = self.stand().primary.filter(|p| *p != self.node && *p != peer);
        let barrier = other.map(|primary| self.barrier(&[primary]));
        let (epoch, begun) = (self.healing.epoch, false);
        self.healing.reads.insert(HealRead { peer, link, id, range, epoch, barrier, begun });
    }

    fn refuse_heal_read(&mut self, node: NodeId, id: u64) {
        let (result, payload) = (PeerResult::NoData, Bytes::new());
        self.send(node, Message::ReadReply { id, result, payload });
    }

    /// Takes the locks for reads whose barrier is passed.
    fn serve_heal_reads(&mut self) {
        if self.healing.reads.is_empty() {
            return;
        }
        let passed = |(key, read): (usize, &HealRead)| {
            read.barrier.as_ref().is_none_or(|b| self.has_passed(b)).then_some(key)
        };
        let waiting = self.healing.reads.iter().filter(|(_, read)| !read.begun);
        let keys: Vec<usize> = waiting.filter_map(passed).collect();
        for key in keys {
            let read = &mut self.healing.reads[key];
            read.begun = true;
            let range = read.range;
            if self.locks.acquire(range, Owner::HealRead(key)) {
                self.start_heal_read(key);
            }
        }
    }

    pub(crate) fn start_heal_read(&mut self, key: usize) {
        let Some(read) = self.healing.reads.get(key) else { return };
        let range = read.range;
        if self.disk == DiskState::UpToDate {
            self.disk_read(DiskJob::HealRead(key), range, false);
        } else {
            self.heal_read_done(key, Err(IoFailure::NoData));
        }
    }

    pub(crate) fn heal_read_done(&mut self, key: usize, result: Result<DiskOutcome, IoFailure>) {
        let Some(read) = self.healing.reads.try_remove(key) else { return };
        let HealRead { peer, link, id, range, epoch, .. } = read;
        if self.link_of(peer) == Some(link) {
            // What it misses may have become known only now.
            let able = self.peers.get(&peer).is_some_and(|p| self.may_give(p, range));
            let same = epoch == self.healing.epoch;
            match result {
                Ok(DiskOutcome::Data(payload)) if able && same => {
                    self.peer_is_answered(peer);
                    self.send(peer, Message::ReadReply { id, result: PeerResult::Ok, payload });
                }
                // A Primary may have come or gone: it is read again, behind what that one sent.
                Ok(DiskOutcome::Data(_)) if able => self.queue_heal_read(peer, link, id, range),
                _ => {
                    self.peer_is_answered(peer);
                    self.refuse_heal_read(peer, id);
                }
            }
        } else {
            self.peer_is_answered(peer);
        }
        self.unlock(range);
    }

    /// Whether it is not known yet what becomes of the first block of a range.
    pub(crate) fn is_healing(&self, range: ByteRange) -> bool {
        self.healing.is_pending(range.blocks().start)
    }

    /// A source cannot read the first block that a target asked for: that is healed first.
    pub(crate) fn park(&mut self, peer: NodeId, round: u64, asked: ByteRange) {
        self.healing.parked.push(Parked { peer, round, asked });
        let first = asked.blocks().start;
        if !self.is_healing(asked) {
            self.unpark(ByteRange::of_blocks(first..first + 1));
        }
    }

    fn unpark_all(&mut self) {
        if !self.healing.parked.is_empty() {
            let all = ByteRange::new(0, self.config.size);
            self.unpark(all);
        }
    }

    /// It is known what becomes of blocks: they are read again for the target, or it is told that they
    /// are lost.
    fn unpark(&mut self, healed: ByteRange) {
        let first = |parked: &Parked| parked.asked.blocks().start;
        let due = |parked: &mut Parked| healed.blocks().contains(&first(parked));
        let due: Vec<Parked> = self.healing.parked.extract_if(.., due).collect();
        for Parked { peer, round, asked } in due {
            if self.is_round(peer, round) && self.has_disk() {
                self.answer_parked(peer, asked);
            }
        }
    }

    fn answer_parked(&mut self, node: NodeId, asked: ByteRange) {
        let lost = self.listed_in(asked).first().copied();
        let Some(range) = lost.filter(|range| range.offset == asked.offset) else {
            self.read_for_target(node, asked);
            return;
        };
        let knows = self.peers.get(&node).is_some_and(|p| p.features & FEATURE_HEAL != 0);
        if knows {
            self.send(node, Message::ResyncLost { asked, range });
        } else {
            // It could not be told, and must not take anything else for the data.
            self.disk_failed();
        }
    }
}
