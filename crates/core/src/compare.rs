//! Comparing before copying: where a person gave up data that are equal for the most part, the target
//! of the resync asks for digests of the source's blocks first, and pulls what is different.
//!
//! It goes ahead of the pulls, chunk by chunk. The source reads as it does for a pull, under the lock
//! of the range, and answers at once: a digest stands for the data that it is of. What is written at the
//! target meanwhile makes an answer void.

use crate::engine::{Core, DiskJob};
use crate::event::{DiskOutcome, IoFailure};
use crate::locks::Owner;
use crate::peer::Peer;
use crate::sync::{Content, ResyncRead, ResyncWrite};
use crate::verify::{Digests, UNREAD, is_part};
use holdfast_units::{BLOCK_SIZE, ByteRange, NodeId, ReplicationState};
use holdfast_wire::{Digest, FEATURE_VERIFY, Message, PeerResult};
use std::collections::BTreeMap;

/// So much is compared at a time.
const CHUNK: u64 = 1 << 20;
/// So many chunks are under way.
const LOOKS: usize = 8;
/// After so much that was compared it is decided whether to go on with it.
const SAMPLE: u64 = 32 << 20;
/// So much is pulled without being compared when half of the last blocks were different.
const DIRECTLY: u64 = 128 << 20;

/// What numbers of questions have that belong to a resync.
const OF_RESYNC: u64 = 1 << 63;

/// Whether a question for digests, or its answer, belongs to a resync.
pub(crate) const fn is_of_resync(id: u64) -> bool {
    id & OF_RESYNC != 0
}

fn blocks_of(range: ByteRange) -> usize {
    usize::try_from(range.len / BLOCK_SIZE).unwrap_or(0)
}

/// How far it is, of one resync.
#[derive(Debug, Default)]
pub(crate) struct Compare {
    /// The next block to compare.
    next: u64,
    looks: BTreeMap<u64, Look>,
    /// Bytes that were compared lately, and those of them that were different.
    sampled: u64,
    different: u64,
}

/// A chunk that is being compared.
#[derive(Debug)]
struct Look {
    range: ByteRange,
    mine: Option<Digests>,
    theirs: Option<Digests>,
    /// Something was written there meanwhile.
    void: bool,
}

impl Compare {
    /// What lies before this block may be pulled.
    pub(crate) fn passed(&self) -> u64 {
        let open = self.looks.values().map(|look| look.range.blocks().start);
        open.fold(self.next, u64::min)
    }

    /// Bytes that were written just now are not what was read.
    pub(crate) fn written(&mut self, range: ByteRange) {
        let looks = self.looks.values_mut().filter(|look| look.range.overlaps(range));
        looks.for_each(|look| look.void = true);
    }

    fn sample(&mut self, len: u64, different: u64) {
        self.sampled += len;
        self.different += different;
        if self.sampled >= SAMPLE {
            if self.different >= self.sampled / 2 {
                self.next = self.next.saturating_add(DIRECTLY / BLOCK_SIZE);
            }
            (self.sampled, self.different) = (0, 0);
        }
    }
}

impl Peer {
    fn compare(&mut self) -> Option<&mut Compare> {
        self.resync.as_mut().and_then(|resync| resync.compare.as_mut())
    }

    /// A resync from it begins: whether it is worth while to compare.
    pub(crate) fn begin_compare(&self) -> Option<Compare> {
        let can = self.compares && self.features & FEATURE_VERIFY != 0;
        can.then(Compare::default)
    }
}

impl Core {
    /// Looks at more of what is to be pulled from a source.
    pub(crate) fn pump_compare(&mut self, node: NodeId) {
        loop {
            if self.peers.get(&node).is_none_or(|p| self.stands_as_target(p)) {
                return;
            }
            let id = self.surveys.next_id() | OF_RESYNC;
            let (limited, window) = (self.options.resync_rate > 0, self.options.resync_window);
            let Some(peer) = self.peers.get_mut(&node) else { return };
            let Some(resync) = &mut peer.resync else { return };
            let may = !resync.is_completing() && (!limited || resync.allowance >= CHUNK);
            let Some(compare) = resync.compare.as_mut().filter(|_| may) else { return };
            // They count among what is asked for at a time.
            let under_way = (compare.looks.len() as u64 + 1) * CHUNK + resync.in_flight;
            let full = compare.looks.len() >= LOOKS || under_way > window.max(CHUNK);
            if full || compare.next == u64::MAX {
                return;
            }
            let Some(run) = peer.bitmap.next_run(compare.next, CHUNK / BLOCK_SIZE) else {
                compare.next = u64::MAX;
                return;
            };
            let range = ByteRange::of_blocks(run);
            compare.next = range.blocks().end;
            compare.looks.insert(id, Look { range, mine: None, theirs: None, void: false });
            if limited {
                resync.allowance = resync.allowance.saturating_sub(range.len);
            }
            self.send(node, Message::VerifyRequest { id, range, locked: false });
            let job = DiskJob::CompareRead { peer: node, id, whole: false };
            self.disk_read(job, range, true);
        }
    }

    /// Whether this node fills a peer.
    pub(crate) fn feeds(&self, node: NodeId) -> bool {
        let feeds = |p: &Peer| p.replication == ReplicationState::SyncSource;
        self.peers.get(&node).is_some_and(feeds)
    }

    /// A copy was read of which a target wants the digests.
    pub(crate) fn compare_served(
        &mut self,
        read: &ResyncRead,
        id: u64,
        result: &Result<DiskOutcome, IoFailure>,
    ) {
        let (node, range) = (read.peer, read.asked);
        if !self.is_round(node, read.round) {
            return;
        }
        let Some(copy) = Digests::of(range, result) else {
            self.refuse_verify(node, id);
            return;
        };
        let mut digests = copy.into_wire();
        if !self.lost_in(range).is_empty() {
            // What it has of the others is asked for like those.
            digests = vec![UNREAD; blocks_of(range)];
        }
        let (epoch, result) = (self.surveys.epoch, PeerResult::Ok);
        self.send(node, Message::VerifyReply { id, epoch, result, digests });
    }

    pub(crate) fn compare_read(
        &mut self,
        node: NodeId,
        id: u64,
        whole: bool,
        result: &Result<DiskOutcome, IoFailure>,
    ) {
        let Some(look) = self.compare_look(node, id) else { return };
        let range = look.range;
        if !whole && is_part(range, result) {
            let job = DiskJob::CompareRead { peer: node, id, whole: true };
            self.disk_read(job, range, false);
            return;
        }
        match Digests::of(range, result) {
            Some(mine) => look.mine = Some(mine),
            None => drop(self.end_look(node, id)),
        }
        self.compare_known(node, id);
    }

    pub(crate) fn compare_answered(
        &mut self,
        node: NodeId,
        id: u64,
        result: PeerResult,
        digests: Vec<Digest>,
    ) {
        // It may be of an earlier resync.
        let Some(look) = self.compare_look(node, id) else { return };
        if result == PeerResult::Ok {
            look.theirs = Digests::told(digests, blocks_of(look.range));
            if look.theirs.is_none() {
                self.protocol_error(node, "it told digests of other blocks than it was asked for");
                return;
            }
        } else {
            // It is one that compares nothing at present.
            let resync = self.peers.get_mut(&node).and_then(|p| p.resync.as_mut());
            resync.into_iter().for_each(|resync| resync.compare = None);
        }
        self.compare_known(node, id);
    }

    fn compare_look(&mut self, node: NodeId, id: u64) -> Option<&mut Look> {
        self.peers.get_mut(&node)?.compare()?.looks.get_mut(&id)
    }

    /// What is not found to be the same is pulled.
    fn end_look(&mut self, node: NodeId, id: u64) -> Option<Look> {
        self.peers.get_mut(&node)?.compare()?.looks.remove(&id)
    }

    /// Both copies of a chunk are known: what is the same has been got.
    fn compare_known(&mut self, node: NodeId, id: u64) {
        let known = |look: &mut Look| look.mine.is_some() && look.theirs.is_some();
        if !self.compare_look(node, id).is_some_and(known) {
            return;
        }
        let Some(Look { range, mine: Some(mine), theirs: Some(theirs), void }) =
            self.end_look(node, id)
        else {
            return;
        };
        if void {
            return;
        }
        let lost = self.lost_in(range);
        let first = range.blocks().start;
        let same = |block: u64| {
            let at = usize::try_from(block - first).unwrap_or(usize::MAX);
            let digest = mine.get(at);
            digest != UNREAD
                && digest == theirs.get(at)
                && !lost.iter().any(|lost| lost.blocks().contains(&block))
        };
        let mut equal = 0;
        let mut at = first;
        while at < range.blocks().end {
            let is_same = same(at);
            let end = (at..range.blocks().end).find(|block| same(*block) != is_same);
            let end = end.unwrap_or(range.blocks().end);
            if is_same {
                let stretch = ByteRange::of_blocks(at..end);
                equal += stretch.len;
                self.has_already(node, stretch);
            }
            at = end;
        }
        if let Some(compare) = self.peers.get_mut(&node).and_then(Peer::compare) {
            compare.sample(range.len, range.len - equal);
        }
    }

    /// These blocks are the same here already. It counts when nothing that was begun before changes
    /// them any more.
    fn has_already(&mut self, node: NodeId, range: ByteRange) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let round = peer.round;
        let Some(resync) = &mut peer.resync else { return };
        resync.writing += 1;
        self.resync_writes_begun += 1;
        let write = ResyncWrite::new(node, round, range, Content::Same);
        let key = self.resync_writes.insert(write);
        if self.locks.acquire(range, Owner::ResyncWrite(key)) {
            self.start_resync_write(key);
        }
    }
}
