//! Requests of peers on this node's disk: the Secondary's side of the way of a write.

use crate::engine::{Core, DiskJob};
use crate::event::{DiskOutcome, IoFailure, LinkId};
use crate::locks::Owner;
use bytes::Bytes;
use holdfast_units::{ByteRange, DiskState, Millis, NodeId, PeerSet, Role};
use holdfast_wire::{Message, PeerResult, Verdict, WriteKind};

/// So many requests of a peer may be under way here. A Primary that keeps to its own limits stays below.
const MOST_REQUESTS: u32 = 100_000;

/// An idle Primary tells after so long which writes are done everywhere.
const SETTLE_AFTER_MS: u64 = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Lock,
    Extents,
    Running,
}

/// What a write of a peer is answered as.
#[derive(Clone, Copy, Debug)]
enum Answers {
    /// A write, by its number.
    Write(u64),
    /// A record of the journal, by round and position.
    Replay(u32, u64),
}

/// A write that a peer sent.
#[derive(Debug)]
pub(crate) struct PeerWrite {
    peer: NodeId,
    link: LinkId,
    answers: Answers,
    range: ByteRange,
    data: Option<Bytes>,
    fua: bool,
    missing: PeerSet,
    stage: Stage,
    has_extents: bool,
}

/// A write as it came.
pub(crate) struct Incoming {
    pub(crate) seq: u64,
    pub(crate) range: ByteRange,
    pub(crate) kind: WriteKind,
    pub(crate) fua: bool,
    pub(crate) missing: PeerSet,
    pub(crate) settled: u64,
    pub(crate) payload: Bytes,
}

impl Core {
    /// Counts a request of a peer. False when there are more than the protocol allows.
    pub(crate) fn peer_asks(&mut self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        if peer.requests_here >= MOST_REQUESTS {
            self.protocol_error(node, "it asked for more at once than the protocol allows");
            return false;
        }
        peer.requests_here += 1;
        true
    }

    pub(crate) fn peer_is_answered(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.requests_here = peer.requests_here.saturating_sub(1);
        }
    }

    pub(crate) fn peer_write(&mut self, peer: NodeId, link: LinkId, write: Incoming) {
        if !self.in_device(write.range) {
            self.protocol_error(peer, "it wrote outside the device");
            return;
        }
        let (others, blocks) = (self.peers.len() > 1, self.blocks());
        let Some(p) = self.peers.get_mut(&peer) else { return };
        p.received += write.payload.len() as u64;
        if p.role != Role::Primary {
            self.protocol_error(peer, "it wrote without being Primary");
            return;
        }
        p.unsettled.settle(write.settled);
        if others {
            p.unsettled.push(write.seq, write.range, blocks);
        }
        if !self.has_disk() {
            self.send(peer, Message::WriteAck { seq: write.seq, result: PeerResult::DiskFailed });
            return;
        }
        self.surveys.requests += 1;
        self.touched_by(Some(peer));
        self.take_peer_write(peer, link, Answers::Write(write.seq), write);
    }

    /// A write of the Primary's journal, which only this node gets now.
    pub(crate) fn take_replay(
        &mut self,
        peer: NodeId,
        link: LinkId,
        (round, id): (u32, u64),
        write: Incoming,
    ) {
        self.take_peer_write(peer, link, Answers::Replay(round, id), write);
    }

    fn take_peer_write(&mut self, peer: NodeId, link: LinkId, answers: Answers, write: Incoming) {
        if !self.peer_asks(peer) {
            return;
        }
        self.note_missed(write.missing, write.range);
        let data = (write.kind == WriteKind::Data).then_some(write.payload);
        let key = self.peer_writes.insert(PeerWrite {
            peer,
            link,
            answers,
            range: write.range,
            data,
            fua: write.fua,
            missing: write.missing,
            stage: Stage::Lock,
            has_extents: false,
        });
        if self.locks.acquire(write.range, Owner::PeerWrite(key)) {
            self.advance_peer_write(key);
        }
    }

    /// Members that do not get a write that this node gets are marked.
    pub(crate) fn note_missed(&mut self, missing: PeerSet, range: ByteRange) {
        let mut members = missing;
        members.remove(self.node);
        for member in members.iter() {
            self.mark(member, range);
        }
    }

    /// Members did not get a write after all. Where it is under way here, its end must not clear what
    /// that marks.
    pub(crate) fn missed_after_all(&mut self, missed: PeerSet, range: ByteRange) {
        self.note_missed(missed, range);
        let same = |write: &&mut PeerWrite| write.range.overlaps(range);
        for write in self.peer_writes.iter_mut().map(|(_, write)| write).filter(same) {
            write.missing = write.missing.union(missed);
        }
    }

    pub(crate) fn advance_peer_write(&mut self, key: usize) {
        let Some(write) = self.peer_writes.get_mut(key) else { return };
        let range = write.range;
        match write.stage {
            Stage::Lock => {
                write.stage = Stage::Extents;
                write.has_extents = self.al.is_some();
                if self.al_begin(Owner::PeerWrite(key), range) {
                    self.advance_peer_write(key);
                }
            }
            Stage::Extents => {
                write.stage = Stage::Running;
                let (data, fua) = (write.data.take(), write.fua);
                if self.has_disk() {
                    self.disk_write(DiskJob::PeerWrite(key), range, data, fua);
                } else {
                    self.peer_write_done(key, false);
                }
            }
            Stage::Running => {}
        }
    }

    pub(crate) fn peer_write_done(&mut self, key: usize, ok: bool) {
        let Some(write) = self.peer_writes.try_remove(key) else { return };
        self.peer_is_answered(write.peer);
        if write.has_extents {
            self.al_end(write.range);
        }
        let standing = self.link_of(write.peer) == Some(write.link);
        // A write of a lost connection may be older than what a resync is about.
        if ok && standing && matches!(write.answers, Answers::Write(_)) {
            self.newer_than_resync(write.range, write.missing);
        }
        let result = if ok { PeerResult::Ok } else { PeerResult::DiskFailed };
        if standing {
            let answer = match write.answers {
                Answers::Write(seq) => Message::WriteAck { seq, result },
                Answers::Replay(round, id) => Message::ReplayAck { round, id, result },
            };
            self.send(write.peer, answer);
        }
        self.unlock(write.range);
    }

    pub(crate) fn peer_flush(&mut self, peer: NodeId, link: LinkId, id: u64) {
        if self.has_disk() {
            if self.peer_asks(peer) {
                self.disk_flush(DiskJob::PeerFlush { peer, link, id });
            }
        } else {
            self.send(peer, Message::FlushAck { id, result: PeerResult::DiskFailed });
        }
    }

    pub(crate) fn peer_flush_done(&mut self, peer: NodeId, link: LinkId, id: u64, ok: bool) {
        self.peer_is_answered(peer);
        if self.link_of(peer) == Some(link) {
            let result = if ok { PeerResult::Ok } else { PeerResult::DiskFailed };
            self.send(peer, Message::FlushAck { id, result });
        }
    }

    pub(crate) fn peer_read(&mut self, peer: NodeId, link: LinkId, id: u64, range: ByteRange) {
        if !self.in_device(range) || range.len > holdfast_units::MAX_REQUEST {
            self.protocol_error(peer, "it read outside the device");
        } else if self.disk == DiskState::UpToDate {
            if self.peer_asks(peer) {
                self.disk_read(DiskJob::PeerRead { peer, link, id }, range, false);
            }
        } else {
            let (result, payload) = (PeerResult::NoData, Bytes::new());
            self.send(peer, Message::ReadReply { id, result, payload });
        }
    }

    pub(crate) fn peer_read_done(
        &mut self,
        peer: NodeId,
        link: LinkId,
        id: u64,
        result: Result<DiskOutcome, IoFailure>,
    ) {
        self.peer_is_answered(peer);
        if self.link_of(peer) != Some(link) {
            return;
        }
        let (result, payload) = match result {
            Ok(DiskOutcome::Data(data)) => (PeerResult::Ok, data),
            _ => (PeerResult::NoData, Bytes::new()),
        };
        self.send(peer, Message::ReadReply { id, result, payload });
    }

    pub(crate) fn link_of(&self, peer: NodeId) -> Option<LinkId> {
        self.peers.get(&peer).and_then(|p| p.link)
    }

    /// What the Primary had not said to be settled when it was lost may be missing anywhere.
    pub(crate) fn unsettled_of_lost(&mut self, lost: NodeId) {
        let unsettled =
            self.peers.get_mut(&lost).map(|p| std::mem::take(&mut p.unsettled)).unwrap_or_default();
        if unsettled.is_empty() || !self.has_disk() {
            return;
        }
        let blocks = self.blocks();
        if let Some(peer) = self.peers.get_mut(&lost) {
            let kept = peer.lost_unsettled.get_or_insert_with(|| Self::new_bitmap(blocks));
            for run in unsettled.runs() {
                kept.set_range(run);
            }
        }
        let others: Vec<NodeId> =
            self.peers.values().filter(|p| p.node != lost && !p.diskless).map(|p| p.node).collect();
        for other in others {
            for run in unsettled.runs() {
                self.mark(other, ByteRange::of_blocks(run));
            }
        }
    }

    /// A Primary that was lost is there again. It may have died and been filled by somebody who did not
    /// have its last writes, and then no generation tells the difference; one that catches this node up
    /// from its journal still knows them. True when that marked something.
    pub(crate) fn mark_lost_unsettled(&mut self, node: NodeId, verdict: Verdict) -> bool {
        if verdict == Verdict::TargetReplay {
            self.forget_lost_unsettled(node);
        }
        self.note_lost_unsettled(node)
    }

    /// Notes that a Primary that was lost may lack what it had not said to be everywhere: whoever is
    /// told what that one lacks must hear of it. True when that marked something.
    pub(crate) fn note_lost_unsettled(&mut self, node: NodeId) -> bool {
        let kept = self.peers.get_mut(&node).and_then(|p| p.lost_unsettled.take());
        let Some(kept) = kept.filter(|_| self.has_disk()) else { return false };
        for run in kept.runs() {
            self.mark(node, ByteRange::of_blocks(run));
        }
        true
    }

    pub(crate) fn forget_lost_unsettled(&mut self, node: NodeId) {
        self.peers.get_mut(&node).into_iter().for_each(|p| p.lost_unsettled = None);
    }

    /// When an idle Primary should tell that everything is settled.
    pub(crate) fn settle_deadline(&self) -> Option<Millis> {
        (self.owes_settled()).then(|| self.settle_since().after(SETTLE_AFTER_MS))
    }

    fn owes_settled(&self) -> bool {
        self.role == Role::Primary
            && self.receivers.len() > 1
            && self.last_settled_sent < self.settled()
    }

    fn settle_since(&self) -> Millis {
        self.peers
            .values()
            .filter(|p| self.receivers.contains(p.node))
            .map(|p| p.last_sent_write)
            .max()
            .unwrap_or(self.now)
    }

    pub(crate) fn tick_settle(&mut self) {
        if self.owes_settled() && self.now.since(self.settle_since()) >= SETTLE_AFTER_MS {
            self.send_settled();
        }
    }

    pub(crate) fn send_settled(&mut self) {
        let seq = self.settled();
        self.last_settled_sent = seq;
        for peer in self.receivers.iter() {
            self.send(peer, Message::Settled { seq });
        }
    }
}
