//! The end of a resync: the target has everything, and takes the source's generations over.

use crate::engine::{Core, DiskJob};
use crate::event::Notice;
use crate::persist::After;
use holdfast_units::{DiskState, GenerationId, NodeId, ReplicationState, Role};
use holdfast_wire::{Generations, Message};

impl Core {
    pub(crate) fn complete_if_done(&mut self, node: NodeId) {
        let barrier = self.peers.get(&node).and_then(|p| p.barrier.as_ref());
        if barrier.is_some_and(|b| !self.has_passed(b)) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(resync) = &mut peer.resync else { return };
        let done = peer.bitmap.count() == 0
            && resync.pulls.is_empty()
            && resync.writing == 0
            && !resync.completing;
        if !done {
            return;
        }
        resync.completing = true;
        let round = peer.round;
        self.disk_flush(DiskJob::CompleteFlush { peer: node, round });
    }

    pub(crate) fn resync_flushed(&mut self, node: NodeId, round: u64) {
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.round == round && peer.is_completing() {
            self.send(node, Message::ResyncComplete);
        }
    }

    /// The target has everything. Of those who have the same it is to be told only when they are still
    /// there: one that died since may come back with less.
    pub(crate) fn resync_complete(&mut self, node: NodeId) {
        let replication = self.peers.get(&node).map(|p| p.replication);
        if replication != Some(ReplicationState::SyncSource) {
            return;
        }
        let others = self.peers.keys().copied().filter(|n| *n != node && self.is_same(*n));
        self.begin_barrier(node, &others.collect::<Vec<_>>());
    }

    /// The target gets the generations, and what others miss; `there` are those who have answered.
    pub(crate) fn send_generations(&mut self, node: NodeId, there: &[NodeId]) {
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.replication != ReplicationState::SyncSource || self.disk < DiskState::Outdated {
            return;
        }
        if peer.overtaken {
            // It may miss what the Primary writes: not everything is what was missing.
            self.renegotiate(node);
            return;
        }
        // Every block that a Primary noted was fetched or written by itself: both were answered.
        if self.role == Role::Primary && peer.left().count() > 0 {
            let left = peer.left().count();
            self.protocol_error(node, &format!("it ended a resync with {left} blocks to go"));
            return;
        }
        let mut others: Vec<NodeId> = self.peers.keys().copied().filter(|n| *n != node).collect();
        for other in &others {
            // The target has the same data, and so the same doubts.
            self.merge_suspects(*other);
            self.note_lost_unsettled(*other);
        }
        // Of who has all that is here the account is complete, though empty.
        others.retain(|n| {
            self.peers[n].bitmap.count() > 0 || (there.contains(n) && self.is_same(*n))
        });
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.generations_sent = true;
            peer.missed_again = None;
        }
        for other in others {
            self.send_bitmap(node, other);
        }
        let generations = Box::new(self.gens.report(node));
        let lost_cache = self.lost_cache;
        self.send(node, Message::ResyncGenerations { generations, lost_cache });
    }

    /// This node has everything: it takes the source's generations over.
    pub(crate) fn take_over(&mut self, node: NodeId, generations: &Generations, lost_cache: bool) {
        let Some(peer) = self.peers.get(&node) else { return };
        if !peer.is_completing() {
            // It belongs to a resync that is over, and the source need not wait.
            self.send(node, Message::ResyncAdopted { current: GenerationId::NONE });
            return;
        }
        let round = peer.round;
        self.outdated = peer.disk == DiskState::Outdated;
        let resync = self.peers.get_mut(&node).and_then(|p| p.resync.as_mut());
        resync.into_iter().for_each(|resync| resync.adopting = true);
        self.disk = if self.outdated { DiskState::Outdated } else { DiskState::UpToDate };
        self.gens.current = generations.current;
        self.gens.history = generations.history;
        self.gens.fill_to(self.node, GenerationId::NONE);
        for other in self.other_nodes().collect::<Vec<_>>() {
            self.merge_suspects(other);
            self.forget_lost_unsettled(other);
            self.take_over_account(node, other, generations);
        }
        // The past that a decree broke with, which is in the source's own slot, is this node's too.
        self.gens.slots[self.node.index()] = generations.slots[node.index()];
        if let Some(new) = self.coming.take()
            && new.previous == self.gens.current
        {
            self.gens.open(new.opened);
            self.gens.push(new.current);
        }
        self.crashed_primary = false;
        // What a crash left in doubt here is settled: the data are the source's, whose own doubts are
        // in its account.
        self.lost_cache = lost_cache;
        if let Some(al) = &mut self.al {
            al.forget_suspects();
        }
        self.write_dirty_pages();
        self.request_superblock(After::Adopted { peer: node, round });
        self.hold(node);
        self.report_again();
    }

    /// What `other` misses is what the source says, what came since, and what was marked here: what
    /// `other` noted about the source is not in the source's account. Only where the source knows it
    /// to be equal does that account replace the marks.
    fn take_over_account(&mut self, source: NodeId, other: NodeId, generations: &Generations) {
        let i = other.index();
        self.gens.slots[i] = generations.slots[i];
        if other == source {
            self.gens.slots[i] = GenerationId::NONE;
        }
        let Some(peer) = self.peers.get_mut(&other) else { return };
        if self.gens.slots[i].is_none() {
            // It misses nothing of this generation.
            self.gens.known[i] = generations.current;
        }
        peer.failed &= other != source;
        let complete = peer.account.as_ref().is_some_and(|account| account.count() == 0);
        if other == source || complete {
            peer.clear_bits();
        }
        peer.left_to_fill = None;
        peer.filled_from = false;
        // What a person gave up is gone by now: these are other data.
        peer.discard_my_data = false;
        for noted in [peer.account.take(), peer.missed_meanwhile.take()].into_iter().flatten() {
            peer.add_bits(&noted);
        }
    }

    /// Whether generations are being taken over, so that no verdict must be found meanwhile.
    pub(crate) fn is_adopting(&self) -> bool {
        self.peers.values().any(|p| p.resync.as_ref().is_some_and(|resync| resync.adopting))
    }

    pub(crate) fn adopted(&mut self, node: NodeId, round: u64) {
        if !self.has_disk() {
            return;
        }
        if self.peers.get(&node).is_some_and(|p| p.round == round) {
            let current = self.gens.current;
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.end_resync();
                peer.compares = false;
                peer.replication = ReplicationState::Established;
            }
            self.note_level(node);
            self.send(node, Message::ResyncAdopted { current });
            self.notice(Notice::ResyncFinished(node, true));
        }
        self.take_words();
        self.settle_with_all();
        self.clear_crash_marks();
        self.refresh_sets();
        self.announce();
        self.next_source();
        // What the source's account says of those that are connected here.
        let others: Vec<NodeId> = self.peers.keys().copied().filter(|n| *n != node).collect();
        for other in others {
            self.compare_again(other);
        }
        self.changed();
    }

    /// The target took the generations over: both hold the same. With none, it did not.
    pub(crate) fn target_adopted(&mut self, node: NodeId, current: GenerationId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if current.is_none() {
            peer.generations_sent = false;
            return;
        }
        if peer.replication != ReplicationState::SyncSource || !peer.generations_sent {
            return;
        }
        peer.generations_sent = false;
        let missed_again = peer.missed_again.take();
        peer.end_resync();
        peer.replication = ReplicationState::Established;
        peer.failed = false;
        peer.clear_bits();
        let missed = missed_again.is_some();
        if let Some(missed) = missed_again {
            peer.add_bits(&missed);
        }
        peer.current = current;
        peer.disk = self.disk;
        // A generation that began since does not have what it missed from then on. Nor may a Primary
        // count it among those that get its writes yet: that one says when it does.
        let all = current == self.gens.current && !missed && !self.follows_primary();
        self.gens.slots[node.index()] = if all { GenerationId::NONE } else { current };
        self.gens.known[node.index()] = current;
        self.refresh_sets();
        if all {
            self.tell_synced(node);
        }
        self.take_words();
        self.settle_with_all();
        self.clear_crash_marks();
        self.write_dirty_pages();
        self.request_superblock(After::Nothing);
        self.notice(Notice::ResyncFinished(node, false));
        self.changed();
    }
}
