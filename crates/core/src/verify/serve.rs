//! What a peer that compares is answered, and repairs of this node's disk.

use super::digest::{Digests, is_part};
use crate::compare::is_of_resync;
use crate::engine::{Core, DiskJob};
use crate::event::{DiskOutcome, IoFailure, LinkId};
use crate::locks::Owner;
use bytes::Bytes;
use holdfast_units::{ByteRange, DiskState, MAX_REQUEST, NodeId, ReplicationState};
use holdfast_wire::{Message, PeerResult};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Lock,
    Extents,
    Running,
}

/// Who wants blocks of this node's disk replaced.
#[derive(Clone, Copy, Debug)]
enum Origin {
    /// A span of this node, which holds the lock.
    Span,
    /// A peer's span.
    Peer(NodeId, LinkId),
}

/// Blocks of this node that were found to be wrong are being replaced.
#[derive(Debug)]
pub(crate) struct PeerRepair {
    origin: Origin,
    /// The number of the span.
    id: u64,
    epoch: u64,
    range: ByteRange,
    data: Option<Bytes>,
    stage: Stage,
    has_extents: bool,
}

impl Core {
    /// Whether this node's copy is to be compared with a peer's; `locked`: and the peer may be the one
    /// to say which is right.
    fn serves_verify(&self, node: NodeId, locked: bool) -> bool {
        let established =
            |p: &crate::peer::Peer| p.up && p.replication == ReplicationState::Established;
        let follows = self.stand().primary.is_none_or(|primary| primary == node);
        self.disk == DiskState::UpToDate
            && self.peers.get(&node).is_some_and(established)
            && (!locked || follows)
    }

    pub(crate) fn verify_requested(
        &mut self,
        node: NodeId,
        link: LinkId,
        id: u64,
        range: ByteRange,
        locked: bool,
    ) {
        if !self.in_device(range) || range.len > MAX_REQUEST {
            self.protocol_error(node, "it compares blocks outside the device");
        } else if is_of_resync(id) {
            self.resync_requested(node, range, Some(id));
        } else if self.serves_verify(node, locked) {
            if self.peer_asks(node) {
                let job =
                    DiskJob::VerifyServe { peer: node, link, id, range, locked, whole: false };
                self.disk_read(job, range, true);
            }
        } else {
            self.refuse_verify(node, id);
        }
    }

    pub(crate) fn refuse_verify(&mut self, node: NodeId, id: u64) {
        let (epoch, result) = (self.surveys.epoch, PeerResult::NoData);
        self.send(node, Message::VerifyReply { id, epoch, result, digests: Vec::new() });
    }

    pub(crate) fn verify_served(
        &mut self,
        (node, link, id): (NodeId, LinkId, u64),
        (range, locked, whole): (ByteRange, bool, bool),
        result: &Result<DiskOutcome, IoFailure>,
    ) {
        if self.has_disk() && !whole && is_part(range, result) {
            let job = DiskJob::VerifyServe { peer: node, link, id, range, locked, whole: true };
            self.disk_read(job, range, false);
            return;
        }
        self.peer_is_answered(node);
        if self.link_of(node) != Some(link) {
            return;
        }
        // A write of somebody else may have come meanwhile.
        let copy = Digests::of(range, result).filter(|_| self.serves_verify(node, locked));
        let Some(copy) = copy else {
            self.refuse_verify(node, id);
            return;
        };
        let (epoch, result, digests) = (self.surveys.epoch, PeerResult::Ok, copy.into_wire());
        self.send(node, Message::VerifyReply { id, epoch, result, digests });
    }

    pub(crate) fn verify_answered(
        &mut self,
        node: NodeId,
        id: u64,
        epoch: u64,
        result: PeerResult,
        digests: Vec<holdfast_wire::Digest>,
    ) {
        if is_of_resync(id) {
            self.compare_answered(node, id, result, digests);
            return;
        }
        let blocks = self.asked_blocks(id);
        if blocks == 0 {
            // What it was for is over; the answer is not.
            self.answered(node);
            return;
        }
        let copy = match result {
            PeerResult::Ok => Digests::told(digests, blocks),
            _ => None,
        };
        if copy.is_none() && result == PeerResult::Ok {
            self.protocol_error(node, "it told digests of other blocks than it was asked for");
            return;
        }
        self.answered(node);
        if !self.look_answered(node, id, copy.clone()) {
            self.span_answered(node, id, epoch, copy);
        }
    }

    /// A peer's span replaces blocks of this node.
    pub(crate) fn repair_wanted(
        &mut self,
        node: NodeId,
        link: LinkId,
        (id, epoch): (u64, u64),
        range: ByteRange,
        data: Option<Bytes>,
    ) {
        if !self.in_device(range) || range.len > MAX_REQUEST {
            self.protocol_error(node, "it repairs blocks outside the device");
            return;
        }
        // Without a Primary the peer may wait for this node's span as this node waits for the peer's.
        let in_span = self.locks.has_span(range);
        if in_span || epoch != self.surveys.epoch || !self.serves_verify(node, true) {
            self.send(node, Message::VerifyRepaired { id, result: PeerResult::NoData });
            return;
        }
        if !self.peer_asks(node) {
            return;
        }
        self.touched_by(Some(node));
        let key = self.surveys.repairs.insert(PeerRepair {
            origin: Origin::Peer(node, link),
            id,
            epoch,
            range,
            data,
            stage: Stage::Lock,
            has_extents: false,
        });
        if self.locks.acquire(range, Owner::Repair(key)) {
            self.advance_repair(key);
        }
    }

    /// A span of this node, which holds the lock, replaces blocks here.
    pub(super) fn repair_here(&mut self, id: u64, range: ByteRange, data: Option<Bytes>) {
        self.touched_by(None);
        let key = self.surveys.repairs.insert(PeerRepair {
            origin: Origin::Span,
            id,
            epoch: self.surveys.epoch,
            range,
            data,
            stage: Stage::Lock,
            has_extents: false,
        });
        self.advance_repair(key);
    }

    pub(crate) fn advance_repair(&mut self, key: usize) {
        let epoch = self.surveys.epoch;
        let Some(repair) = self.surveys.repairs.get_mut(key) else { return };
        let range = repair.range;
        match repair.stage {
            Stage::Lock => {
                repair.stage = Stage::Extents;
                repair.has_extents = self.al.is_some();
                if self.al_begin(Owner::Repair(key), range) {
                    self.advance_repair(key);
                }
            }
            Stage::Extents => {
                repair.stage = Stage::Running;
                let current = repair.epoch == epoch;
                let data = repair.data.take();
                if current && self.has_disk() {
                    self.disk_write(DiskJob::VerifyRepair(key), range, data, true);
                } else {
                    self.repair_done(key, false);
                }
            }
            Stage::Running => {}
        }
    }

    pub(crate) fn repair_done(&mut self, key: usize, ok: bool) {
        let Some(repair) = self.surveys.repairs.try_remove(key) else { return };
        if repair.has_extents {
            self.al_end(repair.range);
        }
        match repair.origin {
            Origin::Span => self.span_repaired(self.node, repair.id),
            Origin::Peer(node, link) => {
                self.peer_is_answered(node);
                if self.link_of(node) == Some(link) {
                    let result = if ok { PeerResult::Ok } else { PeerResult::NoData };
                    self.send(node, Message::VerifyRepaired { id: repair.id, result });
                }
                self.unlock(repair.range);
            }
        }
    }
}
