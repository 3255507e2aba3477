//! Requests of clients on the Primary.
//!
//! A write goes: lock its range, make its extents hot, wait for a new generation if a member was
//! lost, then one disk write and one message per peer in one step, all sharing the payload. It
//! completes when the local disk and every peer that got it have answered, and whoever did not get
//! it is durably known to miss it.

use crate::engine::{Core, DiskJob};
use crate::event::{DiskOutcome, IoFailure, RequestId, RequestKind};
use crate::hedge::LocalRead;
use crate::locks::Owner;
use crate::planted::PlantedBug;
use bytes::{Bytes, BytesMut};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, EXTENT_SIZE, LogPosition, MAX_REQUEST, NodeId, PeerSet, Role,
};
use holdfast_wire::{Message, PeerResult, WriteKind};

/// How far the local part of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// There is no local disk for it.
    None,
    /// Under way.
    Pending,
    /// Done.
    Ok,
    /// The disk failed.
    Failed,
}

/// What a write waits for before it starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Lock,
    Extents,
    Generation,
    Running,
}

/// A client's write.
#[derive(Debug)]
pub(crate) struct WriteRequest {
    id: RequestId,
    range: ByteRange,
    data: Option<Bytes>,
    fua: bool,
    pub(crate) seq: u64,
    /// Where it is in the journal.
    pub(crate) position: Option<LogPosition>,
    stage: Stage,
    has_extents: bool,
    local: Local,
    waiting: PeerSet,
    /// Someone with UpToDate data has it.
    good: bool,
    /// Members that do not have it for sure.
    pub(crate) missed: PeerSet,
}

impl WriteRequest {
    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }

    /// Whether it was started.
    pub(crate) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Whether the local part of it is so far.
    pub(crate) fn is_local(&self, local: Local) -> bool {
        self.stage == Stage::Running && self.local == local
    }

    /// Whether it is under way, and this peer, which has everything else, was sent it.
    pub(crate) fn was_sent_to(&self, peer: NodeId) -> bool {
        self.stage == Stage::Running && (self.waiting.contains(peer) || !self.missed.contains(peer))
    }
}

/// A client's read.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    id: RequestId,
    range: ByteRange,
    /// The part that is asked for now; all of it, unless somebody could not give all.
    part: ByteRange,
    /// Who could not give this part, or is being asked.
    tried: PeerSet,
    pub(crate) at: Option<NodeId>,
    /// What was got by parts, and the parts that are still to come, with who could not give them.
    got: Option<BytesMut>,
    rest: Vec<(ByteRange, PeerSet)>,
    /// The local disk works on all of it.
    pub(crate) here: Option<LocalRead>,
}

impl ReadRequest {
    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }
}

/// Whether there are writes that no completed flush has covered: who is lost meanwhile may lack them
/// durably, whatever it has answered.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    /// Counts writes; and promotions, since what the Primary before has left may not be flushed.
    pub(crate) writes: u64,
    /// All up to this one are covered by a flush that has completed.
    flushed: u64,
}

/// A client's flush.
#[derive(Debug)]
pub(crate) struct FlushRequest {
    id: RequestId,
    local: Local,
    waiting: PeerSet,
    good: bool,
    /// A disk failed on it.
    failed: bool,
    /// The number of the last write before it.
    covers: u64,
}

impl Core {
    pub(crate) fn request(&mut self, id: RequestId, kind: RequestKind) {
        self.surveys.requests += 1;
        let refusal = self.request_refusal(&kind);
        if let Some(failure) = refusal {
            self.complete(id, Err(failure));
            return;
        }
        match kind {
            RequestKind::Read(range) => self.read(id, range),
            RequestKind::Write { range, data, fua } => self.write(id, range, Some(data), fua),
            RequestKind::Zeroes { range, fua } => self.write(id, range, None, fua),
            RequestKind::Flush => self.flush(id),
        }
    }

    fn request_refusal(&self, kind: &RequestKind) -> Option<IoFailure> {
        if self.stopping.is_some() {
            return Some(IoFailure::Stopping);
        }
        // A promotion that is not durable yet is not told to anyone, and may not be remembered.
        let between = self.demotion.is_some() || self.promotion.is_some();
        if self.role != Role::Primary || between {
            return Some(IoFailure::NotPrimary);
        }
        let fits = match kind {
            RequestKind::Read(range) => self.is_for_clients(*range) && range.len <= MAX_REQUEST,
            RequestKind::Write { range, data, .. } => {
                let fits = range.len <= MAX_REQUEST && range.len == data.len() as u64;
                fits && self.is_for_clients(*range)
            }
            RequestKind::Zeroes { range, .. } => {
                self.is_for_clients(*range) && range.len <= EXTENT_SIZE
            }
            RequestKind::Flush => true,
        };
        if !fits {
            return Some(IoFailure::Range);
        }
        if self.has_good_data() { None } else { Some(IoFailure::NoData) }
    }

    fn write(&mut self, id: RequestId, range: ByteRange, data: Option<Bytes>, fua: bool) {
        self.unflushed.writes += 1;
        let key = self.writes.insert(WriteRequest {
            id,
            range,
            data,
            fua,
            seq: 0,
            position: None,
            stage: Stage::Lock,
            has_extents: false,
            local: Local::None,
            waiting: PeerSet::EMPTY,
            good: false,
            missed: PeerSet::EMPTY,
        });
        if self.locks.acquire(range, Owner::Write(key)) {
            self.advance_write(key);
        }
    }

    /// What the write waited for is there; goes on as far as possible.
    pub(crate) fn advance_write(&mut self, key: usize) {
        let generation_due = self.bump.is_some() || self.needs_bump() || self.holds_writes();
        let Some(write) = self.writes.get_mut(key) else { return };
        let range = write.range;
        match write.stage {
            Stage::Lock => {
                write.stage = Stage::Extents;
                write.has_extents = self.al.is_some();
                if self.al_begin(Owner::Write(key), range) {
                    self.advance_write(key);
                }
            }
            Stage::Extents => {
                write.stage = Stage::Generation;
                self.advance_write(key);
            }
            Stage::Generation if generation_due => {
                self.want_generation.push_back(key);
            }
            Stage::Generation => self.start_write(key),
            Stage::Running => {}
        }
    }

    fn start_write(&mut self, key: usize) {
        if !self.has_good_data() || self.role != Role::Primary {
            self.finish_write(key, Err(IoFailure::NoData));
            return;
        }
        let settled = self.settled();
        self.last_write += 1;
        let seq = self.last_write;
        let (receivers, missing, has_disk) = (self.receivers, self.missing, self.has_disk());
        self.by_seq.insert(seq, key);
        let write = &mut self.writes[key];
        write.stage = Stage::Running;
        write.seq = seq;
        write.waiting = receivers;
        write.missed = missing;
        write.local = if has_disk { Local::Pending } else { Local::None };
        let (range, fua, data) = (write.range, write.fua, write.data.take());
        let dropped = self.has_bug(PlantedBug::DropBitmapBit) && range.offset / 4096 % 5 == 3;
        for peer in missing.iter().filter(|_| !dropped) {
            self.mark(peer, range);
        }
        if receivers.is_empty() {
            // No clone of the payload on the way of a lone node.
        } else {
            self.last_settled_sent = settled;
            for peer in receivers.iter() {
                let message = Message::Write {
                    seq,
                    range,
                    kind: if data.is_some() { WriteKind::Data } else { WriteKind::Zeroes },
                    fua,
                    missing,
                    settled,
                    payload: data.clone().unwrap_or_default(),
                };
                self.send_counted(peer, message, data.as_ref().map_or(0, |d| d.len() as u64));
            }
        }
        if has_disk {
            self.disk_write(DiskJob::Write(key), range, data, fua);
        } else {
            self.write_progress(key);
        }
    }

    pub(crate) fn write_local_done(&mut self, key: usize, ok: bool) {
        let (me, up_to_date) = (self.node, self.disk == DiskState::UpToDate);
        let Some(write) = self.writes.get_mut(key) else { return };
        if ok {
            write.local = Local::Ok;
            write.good |= up_to_date;
            let (range, missed) = (write.range, write.missed);
            if !up_to_date {
                self.newer_than_resync(range, missed);
            }
            self.write_progress(key);
        } else {
            write.local = Local::Failed;
            self.write_missed(key, me);
        }
    }

    /// A peer answered a write.
    pub(crate) fn write_acked(&mut self, peer: NodeId, seq: u64, result: PeerResult) {
        let Some(&key) = self.by_seq.get(&seq) else { return };
        let up_to_date = self.peers.get(&peer).is_some_and(|p| p.disk == DiskState::UpToDate);
        let write = &mut self.writes[key];
        if !write.waiting.remove(peer) {
            return;
        }
        let range = write.range;
        self.answered(peer);
        if result == PeerResult::Ok {
            let write = &mut self.writes[key];
            write.good |= up_to_date;
            self.peers.get_mut(&peer).into_iter().for_each(|p| {
                p.stored(range.blocks());
            });
            self.write_progress(key);
        } else {
            self.write_missed(key, peer);
        }
    }

    /// A write did not reach a peer for sure.
    fn write_missed(&mut self, key: usize, peer: NodeId) {
        let write = &mut self.writes[key];
        write.missed.insert(peer);
        let range = write.range;
        self.mark(peer, range);
        let mut peers = PeerSet::EMPTY;
        peers.insert(peer);
        let mut others = self.receivers;
        others.remove(peer);
        for other in others.iter() {
            self.send(other, Message::Missed { peers, range });
        }
        self.write_progress(key);
    }

    /// A peer does not get writes any more: what is not complete is missed, even if it has answered,
    /// since another one that missed it may fill it before it is; what was asked of it is asked
    /// elsewhere.
    pub(crate) fn requests_lost_peer(&mut self, peer: NodeId) {
        let has_disk = self.peers.get(&peer).is_some_and(|p| !p.diskless);
        let missed = |w: &WriteRequest| {
            let sent = w.stage == Stage::Running && has_disk && !w.missed.contains(peer);
            w.waiting.contains(peer) || sent
        };
        let lost: Vec<usize> =
            self.writes.iter().filter(|(_, w)| missed(w)).map(|(k, _)| k).collect();
        for key in lost {
            if self.writes[key].waiting.remove(peer) {
                self.answered(peer);
            }
            self.write_missed(key, peer);
        }
        let failed = self.peers.get(&peer).is_some_and(|p| p.disk == DiskState::Failed);
        let flushes: Vec<usize> = self.flushes.iter().map(|(k, _)| k).collect();
        for key in flushes {
            if self.flushes[key].waiting.remove(peer) {
                self.flushes[key].failed |= failed;
                self.answered(peer);
                self.flush_progress(key);
            }
        }
        let reads: Vec<usize> =
            self.reads.iter().filter(|(_, r)| r.at == Some(peer)).map(|(k, _)| k).collect();
        for key in reads {
            self.answered(peer);
            self.route_read(key);
        }
    }

    /// Completes a write when all that it waits for is there.
    pub(crate) fn write_progress(&mut self, key: usize) {
        let Some(write) = self.writes.get(key) else { return };
        if write.stage != Stage::Running
            || write.local == Local::Pending
            || !(write.waiting.is_empty() || self.has_bug(PlantedBug::EarlyAck))
        {
            return;
        }
        // Whoever missed it must durably be known to.
        let lost_since = !write.missed.intersection(self.bump_for).is_empty();
        if (lost_since && self.needs_bump()) || (self.bump.is_some() && !write.missed.is_empty()) {
            self.writes_held = true;
            return;
        }
        // Who had it may be gone since: then nobody is left that knows who misses it.
        let good = write.good && self.has_good_data();
        let result = if good { Ok(None) } else { Err(IoFailure::NoData) };
        self.finish_write(key, result);
    }

    fn finish_write(&mut self, key: usize, result: Result<Option<Bytes>, IoFailure>) {
        let write = self.writes.remove(key);
        self.by_seq.remove(&write.seq);
        if write.has_extents {
            self.al_end(write.range);
        }
        self.complete(write.id, result);
        self.unlock(write.range);
    }

    /// All writes up to this one are done everywhere or known to be missing.
    pub(crate) fn settled(&self) -> u64 {
        self.by_seq.first_key_value().map_or(self.last_write, |(seq, _)| seq - 1)
    }

    fn read(&mut self, id: RequestId, range: ByteRange) {
        let (tried, at, got) = (PeerSet::EMPTY, None, None);
        let (rest, here) = (Vec::new(), None);
        let read = ReadRequest { id, range, part: range, tried, at, got, rest, here };
        let key = self.reads.insert(read);
        self.route_read(key);
    }

    /// Sends a read to where the data are good: here, or at a peer that was not asked yet.
    fn route_read(&mut self, key: usize) {
        let Some(read) = self.reads.get(key) else { return };
        let (part, tried, is_all) = (read.part, read.tried, read.part == read.range);
        let here = !tried.contains(self.node) && self.is_good_here(part);
        let first = if here && is_all { self.asked_first(part, tried) } else { None };
        if here && first.is_none() {
            let read = &mut self.reads[key];
            read.tried.insert(self.node);
            read.at = None;
            let op = self.disk_read(DiskJob::Read(key), part, false);
            if is_all {
                self.reads_here(key, op);
            }
            return;
        }
        // Whoever differs here is not asked for what this disk should have.
        let here = tried.contains(self.node);
        let equal = |p: &NodeId| !here || self.peers[p].bitmap.count_range(part.blocks()) == 0;
        let next = self.good_peers().find(|p| !tried.contains(*p) && equal(p));
        let Some(peer) = first.or(next) else {
            self.split_read(key);
            return;
        };
        let read = &mut self.reads[key];
        read.tried.insert(peer);
        read.at = Some(peer);
        self.asked(peer);
        self.send(peer, Message::Read { id: key as u64, range: part });
    }

    /// Nobody has all of the part: where several were asked, each may have another half of it.
    fn split_read(&mut self, key: usize) {
        let Some(read) = self.reads.get(key) else { return };
        let (part, tried) = (read.part, read.tried);
        let somebody = self.good_peers().any(|peer| tried.contains(peer));
        if part.len <= BLOCK_SIZE || !somebody {
            let read = self.reads.remove(key);
            self.complete(read.id, Err(IoFailure::NoData));
            return;
        }
        let half = part.len / 2 / BLOCK_SIZE * BLOCK_SIZE;
        let mut again = PeerSet::EMPTY;
        if tried.contains(self.node) && self.disk == DiskState::UpToDate {
            again.insert(self.node);
        }
        let read = &mut self.reads[key];
        let behind = ByteRange::new(part.offset + half, part.len - half);
        read.rest.push((behind, again));
        (read.part, read.tried) = (ByteRange::new(part.offset, half), again);
        self.route_read(key);
    }

    /// All of a read is there.
    pub(crate) fn read_is_there(&mut self, key: usize, data: Bytes) {
        let read = self.reads.remove(key);
        self.complete(read.id, Ok(Some(data)));
    }

    /// A part of a read is there. The rest is asked for; behind the last one the client is answered.
    fn read_got(&mut self, key: usize, data: Bytes) {
        let Some(read) = self.reads.get_mut(key) else { return };
        if read.part == read.range {
            self.read_is_there(key, data);
            return;
        }
        let (all, part) = (read.range, read.part);
        let len = usize::try_from(all.len).unwrap_or(usize::MAX);
        let at = usize::try_from(part.offset - all.offset).unwrap_or(usize::MAX);
        let got = read.got.get_or_insert_with(|| BytesMut::zeroed(len));
        got[at..at + data.len()].copy_from_slice(&data);
        if let Some((part, tried)) = read.rest.pop() {
            (read.part, read.tried) = (part, tried);
            self.route_read(key);
            return;
        }
        let read = self.reads.remove(key);
        self.complete(read.id, Ok(read.got.map(BytesMut::freeze)));
    }

    /// Whether the local disk has the current data of a range.
    pub(crate) fn is_good_here(&self, range: ByteRange) -> bool {
        match self.disk {
            DiskState::UpToDate => true,
            DiskState::Inconsistent => self
                .peers
                .values()
                .find(|p| p.is_syncing_target())
                .is_some_and(|p| p.bitmap.count_range(range.blocks()) == 0),
            _ => false,
        }
    }

    pub(crate) fn read_local_done(&mut self, key: usize, result: Result<DiskOutcome, IoFailure>) {
        let takes_all = self.has_bug(PlantedBug::LostIsRead);
        let here = self.reads.get_mut(key).and_then(|read| read.here.take());
        self.was_read_here(here, result.is_ok());
        let Some(read) = self.reads.get_mut(key) else { return };
        match result {
            Ok(DiskOutcome::Data(data)) if data.len() as u64 == read.part.len => {
                self.read_got(key, data);
            }
            Ok(DiskOutcome::Partial { data, .. }) if takes_all => self.read_got(key, data),
            // What is good is kept; the rest is asked of peers, part by part.
            Ok(DiskOutcome::Partial { data, bad, .. }) if data.len() as u64 == read.part.len => {
                let (all, part) = (read.range, read.part);
                let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                let at = bytes(part.offset - all.offset);
                let got = read.got.get_or_insert_with(|| BytesMut::zeroed(bytes(all.len)));
                got[at..at + data.len()].copy_from_slice(&data);
                let tried = read.tried;
                read.rest.extend(bad.into_iter().map(|bad| (bad, tried)));
                if let Some((part, tried)) = read.rest.pop() {
                    (read.part, read.tried) = (part, tried);
                }
                self.route_read(key);
            }
            _ => self.route_read(key),
        }
    }

    /// A peer answered a read.
    pub(crate) fn read_answered(&mut self, peer: NodeId, id: u64, result: PeerResult, data: Bytes) {
        let key = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(read) = self.reads.get(key) else { return };
        if read.at != Some(peer) {
            return;
        }
        self.answered(peer);
        let part = self.reads[key].part;
        if result == PeerResult::Ok && data.len() as u64 == part.len {
            self.listed_in(part).into_iter().for_each(|listed| self.heal(listed));
            self.read_got(key, data);
        } else {
            self.route_read(key);
        }
    }

    fn flush(&mut self, id: RequestId) {
        let here_only = self.has_bug(PlantedBug::FlushNotForwarded);
        // Who gets no writes at the time may have got some before.
        let left_out = self.peers.values().filter(|p| p.up && p.left_out).map(|p| p.node);
        let all = self.receivers.union(left_out.collect());
        let receivers = if here_only { PeerSet::EMPTY } else { all };
        let has_disk = self.has_disk();
        let local = if has_disk { Local::Pending } else { Local::None };
        let key = self.flushes.insert(FlushRequest {
            id,
            local,
            waiting: receivers,
            good: false,
            failed: false,
            covers: self.unflushed.writes,
        });
        for peer in receivers.iter() {
            self.asked(peer);
            self.send(peer, Message::Flush { id: key as u64 });
        }
        if has_disk {
            self.disk_flush(DiskJob::Flush(key));
        } else {
            self.flush_progress(key);
        }
    }

    /// A flush that completes when these are connected again covers what they answered before.
    pub(crate) fn flush_returned(&mut self, returned: PeerSet) {
        let keys: Vec<usize> = self.flushes.iter().map(|(key, _)| key).collect();
        for (key, peer) in keys.iter().flat_map(|key| returned.iter().map(|peer| (*key, peer))) {
            let flush = &mut self.flushes[key];
            if !flush.waiting.contains(peer) {
                flush.waiting.insert(peer);
                self.asked(peer);
                self.send(peer, Message::Flush { id: key as u64 });
            }
        }
    }

    pub(crate) fn flush_local_done(&mut self, key: usize, ok: bool) {
        let up_to_date = self.disk == DiskState::UpToDate;
        let Some(flush) = self.flushes.get_mut(key) else { return };
        flush.local = if ok { Local::Ok } else { Local::Failed };
        flush.good |= ok && up_to_date;
        flush.failed |= !ok;
        self.flush_progress(key);
    }

    /// A peer answered a flush.
    pub(crate) fn flush_acked(&mut self, peer: NodeId, id: u64, result: PeerResult) {
        let up_to_date = self.peers.get(&peer).is_some_and(|p| p.disk == DiskState::UpToDate);
        let key = usize::try_from(id).unwrap_or(usize::MAX);
        let Some(flush) = self.flushes.get_mut(key) else { return };
        if !flush.waiting.remove(peer) {
            return;
        }
        flush.good |= result == PeerResult::Ok && up_to_date;
        flush.failed |= result == PeerResult::DiskFailed;
        self.answered(peer);
        self.flush_progress(key);
    }

    /// Goes on with flushes that waited for a new generation.
    pub(crate) fn go_on_with_flushes(&mut self) {
        if std::mem::take(&mut self.flushes_wait) {
            let keys: Vec<usize> = self.flushes.iter().map(|(key, _)| key).collect();
            keys.into_iter().for_each(|key| self.flush_progress(key));
        }
    }

    /// Completes a flush when everyone has answered, or is durably known to miss what it covers.
    pub(crate) fn flush_progress(&mut self, key: usize) {
        let Some(flush) = self.flushes.get(key) else { return };
        if flush.local == Local::Pending || !flush.waiting.is_empty() {
            return;
        }
        // A disk on which it failed may come back and look as if it had everything; and so may one
        // that lost its power with what it had answered.
        let may_lack = flush.failed || flush.covers > self.unflushed.flushed;
        if flush.good && may_lack && (self.bump.is_some() || self.needs_bump()) {
            self.flushes_wait = true;
            return;
        }
        if flush.good {
            self.unflushed.flushed = self.unflushed.flushed.max(flush.covers);
        }
        let result = if flush.good { Ok(None) } else { Err(IoFailure::NoData) };
        let flush = self.flushes.remove(key);
        self.complete(flush.id, result);
    }
}
