//! Slow disks: a read of a client that the local disk does not answer in time is asked of a peer as
//! well, and the first good answer is the client's. A disk that answers nothing for too long is given
//! up, where that is wanted.
//!
//! A peer's answer is never older than the local one could be. It is asked only while it has, as far as
//! is known here, all that was ever completed in the range, and while no write of the range is under
//! way: of such a write this disk may have shown something to another reader already that the peer does
//! not have yet.

use crate::engine::{Core, DiskJob};
use crate::event::{DiskOpId, IoFailure};
use bytes::Bytes;
use holdfast_units::{ByteRange, DiskState, Millis, NodeId, PeerSet};
use holdfast_wire::PeerResult;
use std::collections::{BTreeMap, VecDeque};

/// So many questions of this kind may be unanswered.
const MOST_ASKED: usize = 32;
/// When the disk owes so many answers that nobody waits for any more, peers are asked first.
const MOST_OWED: usize = 64;
/// A read is late after so many times what 99 of 100 take, ...
const FACTOR: u64 = 4;
/// ... but not later than after so many times the shortest wait.
const LONGEST: u64 = 10;
/// So many reads are counted before they say what is usual.
const ENOUGH: u32 = 100;
/// What is usual is worked out anew after so many reads; older ones count half after so many.
const FRESH: u32 = 128;
const MANY: u32 = 8192;
/// A disk that does not answer is looked for so often within the time that it has.
const LOOKS: u64 = 8;
/// Questions have this bit in their number.
const HEDGE_ID: u64 = 1 << 61;

/// A read of a client that the local disk works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalRead {
    op: DiskOpId,
    since: Millis,
    serial: u64,
    /// The question to a peer that is not answered yet, and who was asked so far.
    question: Option<u64>,
    asked: PeerSet,
}

/// How long reads of the local disk take, in milliseconds.
#[derive(Debug)]
struct Usual {
    counts: [u32; Self::STEPS],
    count: u32,
    fresh: u32,
    p99: u64,
}

impl Usual {
    const STEPS: usize = 48;

    const fn new() -> Self {
        Self { counts: [0; Self::STEPS], count: 0, fresh: 0, p99: 0 }
    }

    /// Single milliseconds up to 8, then four steps to each doubling.
    fn step(millis: u64) -> usize {
        if millis < 8 {
            return usize::try_from(millis).unwrap_or(0);
        }
        let log = u64::from(millis.ilog2());
        let step = 8 + (log - 3) * 4 + ((millis >> (log - 2)) & 3);
        usize::try_from(step).unwrap_or(usize::MAX).min(Self::STEPS - 1)
    }

    /// The longest time of a step.
    fn end(step: usize) -> u64 {
        let step = step as u64;
        if step < 8 { step } else { ((5 + (step - 8) % 4) << (1 + (step - 8) / 4)) - 1 }
    }

    fn note(&mut self, millis: u64) {
        self.counts[Self::step(millis)] += 1;
        self.count += 1;
        self.fresh += 1;
        if self.fresh < FRESH {
            return;
        }
        self.fresh = 0;
        let (mut longer, bound) = (0, self.count / 100);
        let steps = self.counts.iter().enumerate().rev();
        let p99 = steps.map_while(|(step, count)| {
            longer += count;
            (longer <= bound).then_some(step)
        });
        let step = p99.last().map_or(Self::STEPS - 1, |step| step.saturating_sub(1));
        self.p99 = Self::end(step);
        if self.count >= MANY {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.count = self.counts.iter().sum();
        }
    }

    /// After how long a read is late, when the shortest wait is `floor`.
    fn bound(&self, floor: u64) -> u64 {
        if self.count < ENOUGH {
            return floor;
        }
        (self.p99 * FACTOR).clamp(floor, floor.saturating_mul(LONGEST))
    }
}

/// All that belongs to slow disks.
#[derive(Debug)]
pub(crate) struct Hedging {
    /// Reads of the local disk, by the time from which on they wait, and those that are over by now.
    waiting: VecDeque<(Millis, usize, u64)>,
    /// Questions that are not answered: of which read, and whom.
    questions: BTreeMap<u64, (usize, NodeId)>,
    /// Reads that the disk has not answered, and that nobody waits for.
    owed: usize,
    serial: u64,
    usual: Usual,
    /// When the disk is looked at next.
    look_at: Option<Millis>,
    /// Reads that peers were asked for because of a slow disk since the start, and how many of them were
    /// answered by the peer.
    pub(crate) asked: u64,
    pub(crate) won: u64,
}

impl Hedging {
    pub(crate) const fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            questions: BTreeMap::new(),
            owed: 0,
            serial: 0,
            usual: Usual::new(),
            look_at: None,
            asked: 0,
            won: 0,
        }
    }
}

impl Core {
    pub(crate) const fn is_hedge(id: u64) -> bool {
        id & HEDGE_ID != 0 && id >> 62 == 0
    }

    fn hedges(&self) -> bool {
        self.options.read_hedge_ms > 0
            && self.disk == DiskState::UpToDate
            && self.stopping.is_none()
            && !self.peers.is_empty()
    }

    /// All of a read was given to the local disk.
    pub(crate) fn reads_here(&mut self, key: usize, op: DiskOpId) {
        if !self.hedges() {
            return;
        }
        self.hedging.serial += 1;
        let (since, serial) = (self.now, self.hedging.serial);
        let asked = PeerSet::EMPTY;
        self.reads[key].here = Some(LocalRead { op, since, serial, question: None, asked });
        self.hedging.waiting.push_back((since, key, serial));
    }

    /// The local disk has answered a read before anybody else. What was asked of a peer meanwhile is
    /// of no use any more.
    pub(crate) fn was_read_here(&mut self, here: Option<LocalRead>, well: bool) {
        if let Some(here) = here.filter(|_| well) {
            self.hedging.usual.note(self.now.since(here.since));
        }
    }

    /// What a read of the disk gave comes when nobody waits for it any more.
    pub(crate) fn owed_read_done(&mut self) {
        self.hedging.owed = self.hedging.owed.saturating_sub(1);
    }

    /// Whether a write of this range is under way.
    fn is_being_written(&self, range: ByteRange) -> bool {
        self.writes.iter().any(|(_, write)| write.is_running() && write.range().overlaps(range))
    }

    /// Who can be asked for a range in place of the local disk.
    fn stand_in(&self, range: ByteRange, tried: PeerSet) -> Option<NodeId> {
        let may = |p: &&crate::peer::Peer| !tried.contains(p.node) && self.may_give(p, range);
        let able = self.peers.values().filter(may);
        let best = able.min_by_key(|p| p.pending)?.node;
        (!self.is_being_written(range)).then_some(best)
    }

    /// Who is asked for a read before the local disk is, because that is far behind.
    pub(crate) fn asked_first(&mut self, range: ByteRange, tried: PeerSet) -> Option<NodeId> {
        if self.hedging.owed < MOST_OWED || !self.hedges() {
            return None;
        }
        let peer = self.stand_in(range, tried)?;
        self.hedging.asked += 1;
        self.hedging.won += 1;
        Some(peer)
    }

    /// When the next read is late, or the disk may be.
    pub(crate) fn hedge_deadline(&self) -> Option<Millis> {
        let front = self.hedging.waiting.front();
        let late = front
            .filter(|_| self.hedges())
            .map(|(since, ..)| since.after(self.hedging.usual.bound(self.options.read_hedge_ms)));
        [late, self.hedging.look_at].into_iter().flatten().min()
    }

    /// Whether nobody else in reach has the data: a disk that may answer yet is better than none.
    fn is_only_copy(&self) -> bool {
        self.disk == DiskState::UpToDate && self.good_peers().next().is_none()
    }

    pub(crate) fn tick_hedges(&mut self) {
        self.look_at_disk();
        if self.hedging.waiting.is_empty() {
            return;
        }
        let bound = self.hedging.usual.bound(self.options.read_hedge_ms);
        let hedges = self.hedges();
        while let Some(&(since, key, serial)) = self.hedging.waiting.front() {
            let read = self.reads.get(key).and_then(|read| read.here);
            let waits = read.is_some_and(|here| here.serial == serial && here.question.is_none());
            if waits && hedges && self.now.since(since) < bound {
                break;
            }
            self.hedging.waiting.pop_front();
            if waits && hedges && !self.ask_as_well(key) {
                // Perhaps later.
                self.hedging.waiting.push_back((self.now, key, serial));
            }
        }
    }

    /// Asks a peer for what the disk has not given yet, if one can be asked now.
    fn ask_as_well(&mut self, key: usize) -> bool {
        let Some((range, here)) = self.reads.get(key).map(|read| (read.range(), read.here)) else {
            return true;
        };
        let Some(mut here) = here else { return true };
        if self.hedging.questions.len() >= MOST_ASKED {
            return false;
        }
        let Some(peer) = self.stand_in(range, here.asked) else { return false };
        self.hedging.serial += 1;
        let id = HEDGE_ID | self.hedging.serial;
        here.question = Some(id);
        here.asked.insert(peer);
        self.reads[key].here = Some(here);
        self.hedging.questions.insert(id, (key, peer));
        self.hedging.asked += 1;
        self.asked(peer);
        self.send(peer, holdfast_wire::Message::Read { id, range });
        true
    }

    /// The read that a question is of, if it waits for it still; it does not any more.
    fn asks(&mut self, key: usize, id: u64) -> Option<LocalRead> {
        let here = self.reads.get_mut(key)?.here.as_mut().filter(|h| h.question == Some(id))?;
        here.question = None;
        Some(*here)
    }

    /// A peer answered what the local disk had not answered in time.
    pub(crate) fn hedge_answered(
        &mut self,
        peer: NodeId,
        id: u64,
        result: PeerResult,
        data: Bytes,
    ) {
        let Some((key, _)) = self.hedging.questions.get(&id).copied().filter(|(_, at)| *at == peer)
        else {
            return;
        };
        self.hedging.questions.remove(&id);
        self.answered(peer);
        let Some(here) = self.asks(key, id) else { return };
        let range = self.reads[key].range();
        // Who was asked may be worth nothing by now.
        // And of a write that has begun since, the next reader may not see what the peer shows of it.
        let able = self.peers.get(&peer).is_some_and(Self::gives) && !self.is_being_written(range);
        if able && result == PeerResult::Ok && data.len() as u64 == range.len {
            self.hedging.won += 1;
            self.hedging.owed += 1;
            self.forget_reader(here.op);
            self.lost_in(range).into_iter().for_each(|lost| self.heal(lost));
            self.read_is_there(key, data);
        } else {
            self.hedging.waiting.push_back((self.now, key, here.serial));
        }
    }

    /// A peer is gone: others may be asked.
    pub(crate) fn hedges_lost_peer(&mut self, peer: NodeId) {
        let of_peer = |_: &u64, (_, at): &mut (usize, NodeId)| *at == peer;
        let lost: Vec<(u64, (usize, NodeId))> =
            self.hedging.questions.extract_if(.., of_peer).collect();
        for (id, (key, _)) in lost {
            self.answered(peer);
            if let Some(here) = self.asks(key, id) {
                self.hedging.waiting.push_back((self.now, key, here.serial));
            }
        }
    }

    /// Gives the disk up when it owes an answer for longer than it may, and another one has the data.
    fn look_at_disk(&mut self) {
        let most = self.options.disk_timeout_ms;
        if most == 0 || !self.has_disk() || !self.is_disk_busy() {
            self.hedging.look_at = None;
            return;
        }
        if self.hedging.look_at.is_some_and(|at| at > self.now) {
            return;
        }
        let late = self.oldest_disk_op().is_some_and(|since| self.now.since(since) >= most);
        if late && !self.is_only_copy() {
            self.hedging.look_at = None;
            self.disk_is_hung();
            return;
        }
        self.hedging.look_at = Some(self.now.after((most / LOOKS).max(1)));
    }

    /// The disk is not waited for any more: it has failed, with all that it was asked. What it does
    /// about that later nobody hears of; it is not used again before it has answered everything.
    fn disk_is_hung(&mut self) {
        self.act(crate::event::Action::DiskHung);
        self.disk_failed();
        for (job, range) in self.abandon_disk_ops() {
            self.io_errors += 1;
            if !matches!(job, DiskJob::Owed) {
                self.job_done(job, range, Err(IoFailure::Disk));
            }
        }
        self.hedging.owed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Usual;

    #[test]
    fn a_read_is_late_after_four_times_the_usual_within_bounds() {
        let mut usual = Usual::new();
        assert_eq!(usual.bound(50), 50, "nothing is known yet");
        (0..1280).for_each(|at| usual.note(if at % 200 == 0 { 900 } else { 20 }));
        assert!((80..=96).contains(&usual.bound(50)), "{}", usual.bound(50));
        assert_eq!((usual.bound(200), usual.bound(5)), (200, 50));
        // A slower disk is known after a while, and a faster one.
        (0..20_000).for_each(|_| usual.note(100));
        assert!((400..=450).contains(&usual.bound(50)), "{}", usual.bound(50));
        (0..200_000).for_each(|_| usual.note(0));
        assert_eq!(usual.bound(50), 50);
    }

    #[test]
    fn steps_are_in_order_and_have_their_ends() {
        let mut last = 0;
        for millis in 0..100_000 {
            let step = Usual::step(millis);
            assert!(step == last || step == last + 1, "{millis}");
            last = step;
            let end = Usual::end(step);
            assert!(end >= millis || step == Usual::STEPS - 1, "{millis}: {step} {end}");
            assert!(end <= millis + millis / 4 + 1 || step == Usual::STEPS - 1, "{millis} {end}");
        }
    }
}
