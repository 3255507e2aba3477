//! A span: blocks of which copies seem to differ are compared again while nobody writes to them, and
//! brought in line if that was asked for.
//!
//! Only who leads does that: the Primary, which holds the range lock, so that all it sent of the range
//! is answered; or any node when no Primary is in sight and none is about to be. What a node sees of
//! Primaries has a number, its epoch. A reply tells the replier's, a repair quotes it, and is refused
//! when it is over: so no repair comes over what a Primary wrote that its sender does not see.

use super::digest::{Digests, UNREAD, digest_of, is_part};
use crate::engine::{Core, DiskJob};
use crate::event::{DiskOutcome, IoFailure, LinkId};
use crate::locks::Owner;
use crate::peer::Peer;
use crate::planted::PlantedBug;
use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange, DiskState, NodeId, PeerSet, Role};
use holdfast_wire::{Differing, Digest, MAX_DIFFERING, Message, PeerResult, RepairMode};
use std::collections::{BTreeMap, VecDeque};

/// So many spans one peer may have under way here.
const MOST_OF_PEER: usize = 64;
/// Marks the number of a read whose answer is for a span.
const READ: u64 = 1 << 62;

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A look of this node.
    Look(u64),
    /// A look of a peer.
    Peer(NodeId, LinkId, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The Primary does it.
    Delegated(NodeId),
    Locking,
    Comparing,
    Repairing,
    Rechecking,
}

/// Blocks that are to be replaced.
#[derive(Debug)]
struct Task {
    range: ByteRange,
    from: NodeId,
    to: PeerSet,
    /// Nothing but these is written.
    digests: Vec<Digest>,
    begun: bool,
    waiting: PeerSet,
}

/// One block of one copy that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Odd {
    node: NodeId,
    block: u64,
    majority: bool,
    repaired: bool,
    /// What it should be.
    right: Digest,
    /// This node's own copy is the one that it differs from.
    from_here: bool,
}

/// A span.
pub(crate) struct Span {
    asker: Asker,
    range: ByteRange,
    repair: RepairMode,
    stage: Stage,
    epoch: u64,
    reading: bool,
    waiting: PeerSet,
    copies: BTreeMap<NodeId, Digests>,
    epochs: BTreeMap<NodeId, u64>,
    /// Somebody did not answer.
    cut: bool,
    locked: bool,
    tasks: VecDeque<Task>,
    odd: Vec<Odd>,
}

impl Span {
    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }

    /// Whether blocks are being replaced.
    pub(crate) fn is_repairing(&self) -> bool {
        self.stage == Stage::Repairing
    }
}

impl Core {
    /// Finds out about a difference that a look of this node has found.
    pub(super) fn span_for_look(&mut self, look: u64, range: ByteRange, repair: RepairMode) {
        let Some(primary) = self.primary_elsewhere() else {
            self.begin_span(Asker::Look(look), range, repair);
            return;
        };
        let id = self.new_span(Asker::Look(look), range, repair, Stage::Delegated(primary));
        self.asked(primary);
        self.send(primary, Message::VerifySpan { id, range, repair });
    }

    /// A peer has found a difference, and takes this node for Primary.
    pub(crate) fn span_wanted(
        &mut self,
        node: NodeId,
        link: LinkId,
        id: u64,
        range: ByteRange,
        repair: RepairMode,
    ) {
        if !self.in_device(range) {
            self.protocol_error(node, "it compares blocks outside the device");
            return;
        }
        let of_peer = |span: &&Span| matches!(span.asker, Asker::Peer(asker, ..) if asker == node);
        if self.surveys.spans.values().filter(of_peer).count() >= MOST_OF_PEER {
            self.protocol_error(node, "it compares more at once than the protocol allows");
            return;
        }
        if self.role == Role::Primary {
            self.begin_span(Asker::Peer(node, link, id), range, repair);
        } else {
            self.send(node, Message::VerifySpanReply { id, valid: false, found: Vec::new() });
        }
    }

    fn new_span(
        &mut self,
        asker: Asker,
        range: ByteRange,
        repair: RepairMode,
        stage: Stage,
    ) -> u64 {
        let id = self.surveys.next_id();
        let span = Span {
            asker,
            range,
            repair,
            stage,
            epoch: self.surveys.epoch,
            reading: false,
            waiting: PeerSet::EMPTY,
            copies: BTreeMap::new(),
            epochs: BTreeMap::new(),
            cut: false,
            locked: false,
            tasks: VecDeque::new(),
            odd: Vec::new(),
        };
        self.surveys.spans.insert(id, span);
        id
    }

    fn begin_span(&mut self, asker: Asker, range: ByteRange, repair: RepairMode) {
        let id = self.new_span(asker, range, repair, Stage::Locking);
        if self.has_bug(PlantedBug::VerifyUnlocked) {
            self.start_span(id);
            return;
        }
        if self.locks.acquire(range, Owner::Span(id)) {
            self.span_locked(id);
        }
    }

    /// No write of this node to the range is under way, and none begins.
    pub(crate) fn span_locked(&mut self, id: u64) {
        let Some(span) = self.surveys.spans.get_mut(&id) else { return };
        span.locked = true;
        self.start_span(id);
    }

    fn start_span(&mut self, id: u64) {
        if let Some(span) = self.surveys.spans.get_mut(&id) {
            span.stage = Stage::Comparing;
        }
        self.compare_span(id);
    }

    /// Whether what this node finds out about a span still counts.
    fn span_counts(&self, span: &Span) -> bool {
        let bug = self.has_bug(PlantedBug::VerifyUnlocked);
        bug || (span.epoch == self.surveys.epoch && self.leads())
    }

    /// Asks for all copies.
    fn compare_span(&mut self, id: u64) {
        let Some(span) = self.surveys.spans.get(&id) else { return };
        let range = span.range;
        let counts = self.span_counts(span);
        let there = |p: &&Peer| self.is_comparable(p, range.end());
        let members: PeerSet = self.peers.values().filter(there).map(|p| p.node).collect();
        let here = self.disk == DiskState::UpToDate;
        // What is said of copies without the asker's own is no answer.
        let has_asker = match span.asker {
            Asker::Look(_) => here,
            Asker::Peer(node, ..) => members.contains(node),
        };
        if !counts || !has_asker || members.iter().count() + usize::from(here) < 2 {
            self.end_span(id, false);
            return;
        }
        let Some(span) = self.surveys.spans.get_mut(&id) else { return };
        span.copies.clear();
        span.epochs.clear();
        span.waiting = members;
        span.reading = here;
        for node in members.iter() {
            self.asked(node);
            self.send(node, Message::VerifyRequest { id, range, locked: true });
        }
        if here {
            self.disk_read(DiskJob::VerifySpan { id, whole: false }, range, true);
        }
    }

    pub(crate) fn span_read(
        &mut self,
        id: u64,
        whole: bool,
        result: &Result<DiskOutcome, IoFailure>,
    ) {
        let (me, usable) = (self.node, self.has_disk());
        let Some(span) = self.surveys.spans.get_mut(&id) else { return };
        if span.stage == Stage::Repairing {
            self.span_fetched(id, me, result);
            return;
        }
        if usable && !whole && is_part(span.range, result) {
            let range = span.range;
            self.disk_read(DiskJob::VerifySpan { id, whole: true }, range, false);
            return;
        }
        span.reading = false;
        match Digests::of(span.range, result) {
            Some(copy) => {
                span.copies.insert(me, copy);
            }
            None => span.cut = true,
        }
        self.span_progress(id);
    }

    pub(crate) fn span_answered(
        &mut self,
        node: NodeId,
        id: u64,
        epoch: u64,
        copy: Option<Digests>,
    ) {
        let Some(span) = self.surveys.spans.get_mut(&id) else { return };
        if !span.waiting.remove(node) {
            return;
        }
        span.epochs.insert(node, epoch);
        match copy {
            Some(copy) => {
                span.copies.insert(node, copy);
            }
            None => span.cut = true,
        }
        self.span_progress(id);
    }

    /// All copies are known.
    fn span_progress(&mut self, id: u64) {
        let Some(span) = self.surveys.spans.get(&id) else { return };
        if span.reading || !span.waiting.is_empty() {
            return;
        }
        if span.cut || !self.span_counts(span) {
            self.end_span(id, false);
            return;
        }
        match span.stage {
            Stage::Comparing => {
                let prefer = self.preferred(span);
                let Some(span) = self.surveys.spans.get_mut(&id) else { return };
                span.judge(prefer, self.node);
                if span.tasks.is_empty() {
                    self.end_span(id, true);
                } else {
                    span.stage = Stage::Repairing;
                    self.next_task(id);
                }
            }
            Stage::Rechecking => {
                if let Some(span) = self.surveys.spans.get_mut(&id) {
                    span.recheck();
                }
                self.end_span(id, true);
            }
            _ => {}
        }
    }

    /// Whose copy counts where there is no majority.
    fn preferred(&self, span: &Span) -> Option<NodeId> {
        let asker = match span.asker {
            Asker::Look(_) => self.node,
            Asker::Peer(node, ..) => node,
        };
        let choice = [self.node, asker];
        choice.into_iter().find(|node| span.copies.contains_key(node))
    }

    /// Begins to replace the next blocks.
    fn next_task(&mut self, id: u64) {
        let Some(span) = self.surveys.spans.get(&id) else { return };
        if !self.span_counts(span) {
            self.end_span(id, false);
            return;
        }
        let Some(span) = self.surveys.spans.get_mut(&id) else { return };
        let Some(task) = span.tasks.front() else {
            span.stage = Stage::Rechecking;
            self.compare_span(id);
            return;
        };
        let (from, range) = (task.from, task.range);
        if from == self.node && !self.has_disk() {
            self.task_done(id);
        } else if from == self.node {
            self.disk_read(DiskJob::VerifySpan { id, whole: true }, range, false);
        } else {
            self.asked(from);
            self.send(from, Message::Read { id: id | READ, range });
        }
    }

    /// Whether the answer to a read is for a span.
    pub(crate) fn is_span_read(id: u64) -> bool {
        id & READ != 0 && !Self::is_heal(id)
    }

    /// A peer answered with the data that are to replace others.
    pub(crate) fn span_read_answered(
        &mut self,
        node: NodeId,
        id: u64,
        result: PeerResult,
        data: Bytes,
    ) {
        let id = id & !READ;
        let expected = self.surveys.spans.get(&id).and_then(|span| span.tasks.front());
        if expected.is_none_or(|task| task.begun || task.from != node) {
            return;
        }
        self.answered(node);
        let result = match result {
            PeerResult::Ok => Ok(DiskOutcome::Data(data)),
            _ => Err(IoFailure::NoData),
        };
        self.span_fetched(id, node, &result);
    }

    fn span_fetched(&mut self, id: u64, from: NodeId, result: &Result<DiskOutcome, IoFailure>) {
        let Some(span) = self.surveys.spans.get(&id) else { return };
        let Some(task) = span.tasks.front().filter(|t| t.from == from && !t.begun) else { return };
        let data = match result {
            Ok(DiskOutcome::Data(data)) if task.fits(data) => data.clone(),
            // Whatever that is, it is not what most have: nothing is written.
            _ => {
                self.task_done(id);
                return;
            }
        };
        if !self.span_counts(span) {
            self.end_span(id, false);
            return;
        }
        let (range, to) = (task.range, task.to);
        let zeroes = data.iter().all(|byte| *byte == 0);
        let payload = if zeroes { Bytes::new() } else { data };
        let epochs = span.epochs.clone();
        if let Some(task) = self.surveys.spans.get_mut(&id).and_then(|span| span.tasks.front_mut())
        {
            task.begun = true;
            task.waiting = to;
        }
        let me = self.node;
        self.repairs_elsewhere(range);
        for node in to.iter().filter(|node| *node != me) {
            let epoch = epochs.get(&node).copied().unwrap_or(0);
            self.asked(node);
            let payload = payload.clone();
            self.send(node, Message::VerifyRepair { id, epoch, range, zeroes, payload });
        }
        if to.contains(self.node) {
            self.repair_here(id, range, (!zeroes).then_some(payload));
        }
    }

    /// Blocks were replaced at a node, or could not be.
    pub(crate) fn span_repaired(&mut self, node: NodeId, id: u64) {
        let task = self.surveys.spans.get_mut(&id).and_then(|span| span.tasks.front_mut());
        let Some(task) = task.filter(|task| task.begun) else { return };
        if !task.waiting.remove(node) {
            return;
        }
        let done = task.waiting.is_empty();
        if node != self.node {
            self.answered(node);
        }
        if done {
            self.task_done(id);
        }
    }

    fn task_done(&mut self, id: u64) {
        if let Some(span) = self.surveys.spans.get_mut(&id) {
            span.tasks.pop_front();
            self.next_task(id);
        }
    }

    /// The Primary has found out about a span.
    pub(crate) fn span_resolved(
        &mut self,
        node: NodeId,
        id: u64,
        valid: bool,
        found: Vec<Differing>,
    ) {
        let Some(span) = self.surveys.spans.get(&id) else { return };
        if span.stage != Stage::Delegated(node) {
            return;
        }
        let asker = span.asker;
        self.answered(node);
        self.surveys.spans.remove(&id);
        if let Asker::Look(look) = asker {
            self.look_resolved(look, valid.then_some(found));
        }
    }

    fn end_span(&mut self, id: u64, valid: bool) {
        let Some(span) = self.surveys.spans.remove(&id) else { return };
        if valid {
            self.note_odd(&span.odd);
        }
        let found = if valid { runs_of(&span.odd) } else { Vec::new() };
        if span.locked {
            self.unlock(span.range);
        }
        match span.asker {
            Asker::Look(look) => self.look_resolved(look, valid.then_some(found)),
            Asker::Peer(node, link, id) => {
                if self.link_of(node) == Some(link) {
                    self.send(node, Message::VerifySpanReply { id, valid, found });
                }
            }
        }
    }

    /// What differs from this node's copy is out of sync from now on, and what was repaired is not any
    /// more. Where this node's copy is the wrong one it must not be given to others.
    fn note_odd(&mut self, odd: &[Odd]) {
        let blocks = self.blocks();
        let mut news = false;
        for one in odd {
            let Some(peer) = self.peers.get_mut(&one.node) else { continue };
            let range = one.block..one.block + 1;
            if one.repaired {
                let known = peer.differing.as_mut().map_or(0, |d| d.clear_range(range.clone()));
                if known > 0 {
                    peer.bitmap.clear_range(range);
                    news = true;
                }
            } else if one.from_here && !peer.diskless {
                let known = peer.differing.get_or_insert_with(|| Self::new_bitmap(blocks));
                known.set_range(range.clone());
                peer.bitmap.set_range(range);
                news = true;
            }
        }
        if news {
            self.write_dirty_pages();
            self.changed();
        }
    }

    /// Spans that wait for nobody any more, because their peers are gone.
    pub(super) fn spans_lost_peer(&mut self, lost: NodeId) {
        let ids: Vec<u64> = self.surveys.spans.keys().copied().collect();
        for id in ids {
            let Some(span) = self.surveys.spans.get_mut(&id) else { continue };
            if span.stage == Stage::Delegated(lost) {
                let asker = span.asker;
                self.surveys.spans.remove(&id);
                if let Asker::Look(look) = asker {
                    self.look_resolved(look, None);
                }
                continue;
            }
            if span.waiting.remove(lost) {
                span.cut = true;
                self.span_progress(id);
                continue;
            }
            let stage = span.stage;
            let Some(task) = span.tasks.front_mut() else { continue };
            let fetched_there = !task.begun && task.from == lost;
            let stored_there = task.begun && task.waiting.remove(lost) && task.waiting.is_empty();
            if stage == Stage::Repairing && (fetched_there || stored_there) {
                self.task_done(id);
            }
        }
    }

    /// Whether blocks are being replaced, here or elsewhere, on this node's word.
    pub(crate) fn is_repairing(&self) -> bool {
        self.surveys.spans.values().any(Span::is_repairing) || !self.surveys.repairs.is_empty()
    }
}

impl Task {
    fn fits(&self, data: &[u8]) -> bool {
        data.len() as u64 == self.range.len
            && data.chunks(4096).map(digest_of).eq(self.digests.iter().copied())
    }
}

impl Span {
    /// Finds which copies of which blocks are odd, and what is to be written where.
    fn judge(&mut self, prefer: Option<NodeId>, me: NodeId) {
        self.odd.clear();
        self.tasks.clear();
        let first = self.range.blocks().start;
        for block in self.range.blocks() {
            let at = usize::try_from(block - first).unwrap_or(usize::MAX);
            let mut groups: BTreeMap<Digest, PeerSet> = BTreeMap::new();
            let mut everybody = PeerSet::EMPTY;
            for (node, copy) in &self.copies {
                let digest = copy.get(at);
                // A copy that cannot be read has no say, and is healed by its node.
                if digest != UNREAD {
                    groups.entry(digest).or_insert(PeerSet::EMPTY).insert(*node);
                    everybody.insert(*node);
                }
            }
            if groups.len() < 2 {
                continue;
            }
            let count = |set: &PeerSet| set.iter().count();
            let all = count(&everybody);
            let most = groups.iter().find(|(_, set)| all > 2 && count(set) * 2 > all);
            let majority = most.is_some();
            let preferred = || groups.iter().find(|(_, s)| prefer.is_some_and(|p| s.contains(p)));
            let counts = most.or_else(preferred);
            // Where the copy that counts cannot be read nobody knows, but they differ.
            let Some((digest, right)) = counts.or(groups.iter().next()) else { continue };
            let wrong = everybody.difference(*right);
            for node in wrong.iter() {
                let from_here = right.contains(me);
                let (repaired, right) = (false, *digest);
                self.odd.push(Odd { node, block, majority, repaired, right, from_here });
            }
            let repairs = match self.repair {
                RepairMode::Never => false,
                RepairMode::Majority => majority,
                RepairMode::Always => majority || (all == 2 && counts.is_some()),
            };
            // The own copy is the nearest.
            let from = if right.contains(me) { Some(me) } else { right.iter().next() };
            let Some(from) = from.filter(|_| repairs) else { continue };
            match self.tasks.back_mut() {
                Some(last)
                    if last.range.end() == block * BLOCK_SIZE
                        && (last.from, last.to) == (from, wrong) =>
                {
                    last.range.len += BLOCK_SIZE;
                    last.digests.push(*digest);
                }
                _ => self.tasks.push_back(Task {
                    range: ByteRange::of_blocks(block..block + 1),
                    from,
                    to: wrong,
                    digests: vec![*digest],
                    begun: false,
                    waiting: PeerSet::EMPTY,
                }),
            }
        }
    }

    /// Finds which of the odd copies are right by now. One that is not compared any more is not known to
    /// be: its node was lost while it was repaired.
    fn recheck(&mut self) {
        let first = self.range.blocks().start;
        for odd in &mut self.odd {
            let at = usize::try_from(odd.block - first).unwrap_or(usize::MAX);
            odd.repaired = self.copies.get(&odd.node).is_some_and(|c| c.get(at) == odd.right);
        }
    }
}

/// The same, by runs of blocks.
fn runs_of(odd: &[Odd]) -> Vec<Differing> {
    let mut sorted = odd.to_vec();
    sorted.sort_by_key(|one| (one.node, one.block));
    let mut runs: Vec<Differing> = Vec::new();
    for one in sorted {
        let room = runs.len() < MAX_DIFFERING;
        match runs.last_mut() {
            Some(last)
                if last.node == one.node
                    && last.first + last.blocks == one.block
                    && (last.repaired, last.majority) == (one.repaired, one.majority) =>
            {
                last.blocks += 1;
            }
            _ if room => runs.push(Differing {
                node: one.node,
                first: one.block,
                blocks: 1,
                repaired: one.repaired,
                majority: one.majority,
            }),
            _ => {}
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::{Asker, Span, Stage};
    use crate::verify::digest::{Digests, UNREAD};
    use holdfast_units::{ByteRange, NodeId, PeerSet};
    use holdfast_wire::RepairMode;
    use std::collections::{BTreeMap, VecDeque};

    fn n(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    /// What is judged of one block of which node 0, 1, .. have these copies: odd nodes, and who gets the
    /// block from whom.
    fn judged(copies: &[u8], repair: RepairMode, prefer: u8) -> (Vec<u8>, Vec<(u8, Vec<u8>)>) {
        let digest = |value: &u8| if *value == 0 { UNREAD } else { [*value; 32] };
        let copies = (0u8..).zip(copies);
        let mut span = Span {
            asker: Asker::Look(0),
            range: ByteRange::new(0, 4096),
            repair,
            stage: Stage::Comparing,
            epoch: 0,
            reading: false,
            waiting: PeerSet::EMPTY,
            copies: copies.map(|(i, c)| (n(i), Digests::Blocks(vec![digest(c)]))).collect(),
            epochs: BTreeMap::new(),
            cut: false,
            locked: false,
            tasks: VecDeque::new(),
            odd: Vec::new(),
        };
        span.judge(Some(n(prefer)), n(0));
        let odd = span.odd.iter().map(|odd| odd.node.number()).collect();
        let to = |to: &PeerSet| to.iter().map(NodeId::number).collect();
        (odd, span.tasks.iter().map(|task| (task.from.number(), to(&task.to))).collect())
    }

    #[test]
    fn most_of_those_that_can_be_read_are_right() {
        let judge = |copies: &[u8]| judged(copies, RepairMode::Majority, 0);
        assert_eq!(judge(&[5, 5, 5]), (vec![], vec![]));
        assert_eq!(judge(&[5, 6, 5]), (vec![1], vec![(0, vec![1])]));
        assert_eq!(judge(&[6, 5, 5]), (vec![0], vec![(1, vec![0])]));
        assert_eq!(judge(&[0, 6, 5, 5]), (vec![1], vec![(2, vec![1])]));
        // Nobody knows.
        assert_eq!(judge(&[5, 6]), (vec![1], vec![]));
        assert_eq!(judge(&[5, 6, 7]), (vec![1, 2], vec![]));
        assert_eq!(judge(&[5, 5, 6, 6]), (vec![2, 3], vec![]));
        assert_eq!(judge(&[0, 5, 6]), (vec![2], vec![]));
        assert_eq!(judge(&[0, 5]), (vec![], vec![]), "that one is healed");
    }

    #[test]
    fn of_two_the_preferred_one_counts_if_it_can_be_read() {
        let judge = |copies: &[u8], prefer| judged(copies, RepairMode::Always, prefer);
        assert_eq!(judge(&[5, 6], 1), (vec![0], vec![(1, vec![0])]));
        assert_eq!(judge(&[5, 6], 0), (vec![1], vec![(0, vec![1])]));
        assert_eq!(judge(&[0, 5, 6], 1), (vec![2], vec![(1, vec![2])]));
        assert_eq!(judge(&[0, 5, 6], 0), (vec![2], vec![]));
        assert_eq!(judge(&[5, 6, 7], 0), (vec![1, 2], vec![]));
        assert_eq!(judged(&[5, 6], RepairMode::Never, 0), (vec![1], vec![]));
    }
}
