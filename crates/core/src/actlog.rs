//! Which extents are hot: those that may differ between nodes after a crash.
//!
//! An extent is made durably hot before the first write into it starts, and stays hot until another
//! one needs its slot. It is given up only when no write into it is in flight, what was written is
//! durable on the local disk, and its bits in the bitmaps are durable (promise 1).

use crate::locks::Owner;
use holdfast_format::{AL_MAX_UPDATES, AlLog, AlUpdate};
use holdfast_units::{ByteRange, EXTENT_SIZE, PeerSet};
use std::collections::{BTreeMap, VecDeque};

/// One hot extent.
#[derive(Debug)]
struct Hot {
    slot: u16,
    /// Requests in flight in it.
    refs: u32,
    /// Its place in the order of use while `refs` is 0.
    idle_since: u64,
    /// The flush that makes its last write durable.
    needs_flush: u64,
    /// Peers with which this extent may differ because this node crashed.
    suspect: PeerSet,
}

/// What a transaction is waiting for.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Stage {
    /// Nothing is going on.
    Idle,
    /// Victims were chosen; the core makes their data and bitmap pages durable.
    Preparing,
    /// The transaction is being written.
    Writing,
}

/// A step that the core must take for the log.
pub(crate) struct Plan {
    /// Extents that are given up, with the peers they are suspect for.
    pub(crate) victims: Vec<(u32, PeerSet)>,
    /// Whether the local disk must be flushed first.
    pub(crate) flush: bool,
}

/// The activity log in memory.
pub(crate) struct ActivityLog {
    log: AlLog,
    hot: BTreeMap<u32, Hot>,
    idle: BTreeMap<u64, u32>,
    free: Vec<u16>,
    clock: u64,
    stage: Stage,
    updates: Vec<AlUpdate>,
    coming: Vec<u32>,
    planned: Vec<Owner>,
    waiting: VecDeque<(Owner, ByteRange)>,
    /// The first in the queue found no slot: nobody overtakes it any more.
    starving: bool,
    /// Transactions written.
    pub(crate) transactions: u64,
}

/// The extents that a range touches.
pub(crate) fn extents(range: ByteRange) -> std::ops::Range<u32> {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    number(range.offset / EXTENT_SIZE)..number(range.end().div_ceil(EXTENT_SIZE))
}

impl ActivityLog {
    /// Takes over what was read from disk; what is hot is suspect for `suspect`.
    pub(crate) fn new(log: AlLog, suspect: PeerSet) -> Self {
        let mut new = Self {
            hot: BTreeMap::new(),
            idle: BTreeMap::new(),
            free: Vec::new(),
            clock: 0,
            stage: Stage::Idle,
            updates: Vec::new(),
            coming: Vec::new(),
            planned: Vec::new(),
            waiting: VecDeque::new(),
            starving: false,
            transactions: 0,
            log,
        };
        for (slot, extent) in (0u16..).zip(new.log.slots().to_vec()) {
            match extent {
                // The same extent in two slots cannot be written; the second is as good as free.
                Some(extent) if !new.hot.contains_key(&extent) => {
                    new.clock += 1;
                    new.idle.insert(new.clock, extent);
                    let idle_since = new.clock;
                    // What a killed daemon wrote may be in the page cache only: the first flush counts.
                    let needs_flush = 1;
                    new.hot.insert(extent, Hot { slot, refs: 0, idle_since, needs_flush, suspect });
                }
                _ => new.free.push(slot),
            }
        }
        new.free.reverse();
        new
    }

    /// How many extents are hot.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.hot.len()).unwrap_or(u32::MAX)
    }

    /// Takes a reference on the extents of `range`, or queues for them. Whether they are hot now.
    pub(crate) fn begin(&mut self, owner: Owner, range: ByteRange) -> bool {
        let ready = !self.starving && extents(range).all(|e| self.is_hot(e));
        if ready {
            extents(range).for_each(|e| self.take(e));
        } else {
            self.waiting.push_back((owner, range));
        }
        ready
    }

    /// Gives the references back. `needs_flush` is the number of the flush that makes what was
    /// written durable.
    pub(crate) fn end(&mut self, range: ByteRange, needs_flush: u64) {
        for extent in extents(range) {
            let Some(hot) = self.hot.get_mut(&extent) else { continue };
            debug_assert!(hot.refs > 0, "given back once too often");
            hot.refs = hot.refs.saturating_sub(1);
            hot.needs_flush = hot.needs_flush.max(needs_flush);
            if hot.refs == 0 {
                self.clock += 1;
                hot.idle_since = self.clock;
                self.idle.insert(self.clock, extent);
            }
        }
    }

    /// The extents that are suspect for this peer; they are not any more.
    pub(crate) fn take_suspects(&mut self, peer: holdfast_units::NodeId) -> Vec<u32> {
        let mut found = Vec::new();
        for (extent, hot) in &mut self.hot {
            if hot.suspect.remove(peer) {
                found.push(*extent);
            }
        }
        found
    }

    /// Nothing is suspect any more.
    pub(crate) fn forget_suspects(&mut self) {
        self.hot.values_mut().for_each(|hot| hot.suspect = PeerSet::EMPTY);
    }

    /// Whether an extent is suspect for this peer.
    pub(crate) fn has_suspects(&self, peer: holdfast_units::NodeId) -> bool {
        self.hot.values().any(|h| h.suspect.contains(peer))
    }

    /// Chooses the next transaction, when one is needed and none is under way. `flushed` is the
    /// number of the last flush that is done.
    pub(crate) fn plan(&mut self, flushed: u64) -> Option<Plan> {
        if self.stage != Stage::Idle || self.waiting.is_empty() {
            return None;
        }
        let mut plan = Plan { victims: Vec::new(), flush: false };
        while let Some(&(owner, range)) = self.waiting.front() {
            let cold: Vec<u32> = extents(range)
                .filter(|e| !self.hot.contains_key(e) && !self.coming.contains(e))
                .collect();
            // What this request needs of idle extents must not be taken as a victim.
            let pinned =
                extents(range).filter(|e| self.hot.get(e).is_some_and(|h| h.refs == 0)).count();
            let room = self.free.len() + self.idle.len() - pinned;
            if cold.len() > room || self.updates.len() + cold.len() > AL_MAX_UPDATES {
                break;
            }
            for extent in extents(range).filter(|e| self.hot.contains_key(e)).collect::<Vec<_>>() {
                self.take(extent);
            }
            for extent in cold {
                let slot = self.slot_for(flushed, &mut plan);
                self.updates.push(AlUpdate { slot, extent: Some(extent) });
                self.coming.push(extent);
                self.hot.insert(
                    extent,
                    Hot { slot, refs: 0, idle_since: 0, needs_flush: 0, suspect: PeerSet::EMPTY },
                );
            }
            // References on those that are coming; `hot` has an entry for them already.
            for extent in extents(range).filter(|e| self.coming.contains(e)).collect::<Vec<_>>() {
                if let Some(hot) = self.hot.get_mut(&extent) {
                    hot.refs += 1;
                }
            }
            self.planned.push(owner);
            self.waiting.pop_front();
        }
        self.starving = self.planned.is_empty();
        if self.starving {
            return None;
        }
        self.stage = Stage::Preparing;
        Some(plan)
    }

    /// The block of the planned transaction and its index in the ring; `None` when only
    /// references were needed and nothing has to be written.
    pub(crate) fn write(&mut self) -> Option<(u32, Box<[u8; 4096]>)> {
        self.stage = Stage::Writing;
        if self.updates.is_empty() {
            return None;
        }
        let (index, block) =
            self.log.encode_transaction(&self.updates).expect("updates are counted and in range");
        self.transactions += 1;
        Some((index, Box::new(block)))
    }

    /// The transaction is durable: who may go on.
    pub(crate) fn written(&mut self) -> Vec<Owner> {
        self.stage = Stage::Idle;
        self.updates.clear();
        self.coming.clear();
        std::mem::take(&mut self.planned)
    }

    /// Everyone who waits, in order; the log is given up.
    pub(crate) fn abandon(&mut self) -> Vec<Owner> {
        let mut all = self.written();
        all.extend(self.waiting.drain(..).map(|(owner, _)| owner));
        all
    }

    fn is_hot(&self, extent: u32) -> bool {
        self.hot.contains_key(&extent) && !self.coming.contains(&extent)
    }

    fn take(&mut self, extent: u32) {
        if self.coming.contains(&extent) {
            return;
        }
        if let Some(hot) = self.hot.get_mut(&extent) {
            if hot.refs == 0 {
                self.idle.remove(&hot.idle_since);
            }
            hot.refs += 1;
        }
    }

    fn slot_for(&mut self, flushed: u64, plan: &mut Plan) -> u16 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        let (_, extent) = self.idle.pop_first().expect("room was counted");
        let hot = self.hot.remove(&extent).expect("an idle extent is hot");
        plan.flush |= hot.needs_flush > flushed;
        plan.victims.push((extent, hot.suspect));
        hot.slot
    }
}
