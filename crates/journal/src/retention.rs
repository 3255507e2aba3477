//! What must be kept, for whom, and what is cut when there is no room for it.

use crate::journal::Journal;
use crate::ranges::RangeSet;
use crate::records::{Records, RecordsError};
use crate::scan::ReadSegments;
use holdfast_format::Block;
use holdfast_format::journal::{Cursors, PeerCursor, PeerSwitches, SegmentHeader, Switches};
use holdfast_units::{LogPosition, NodeId};
use std::collections::BTreeMap;

/// What is to be cut so that the journal fits its budget.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutPlan {
    /// Everything before this is given up.
    pub up_to: LogPosition,
    /// Who still needed it, and from where on: the ranges of the records from there to `up_to`
    /// must be durable in that peer's bitmap before [`Journal::cut`].
    pub losers: Vec<(NodeId, LogPosition)>,
}

impl Journal {
    /// The cursors as they are now.
    #[must_use]
    pub fn cursors(&self) -> Cursors {
        let mut cursors = self.cursors.clone();
        cursors.written_back = self.written_back_to();
        cursors.durable = self.durable().max(cursors.written_back);
        cursors
    }

    /// The block to write next for the cursors, and to which copy. It must be durable before the
    /// one after it is written; tell [`Self::cursors_not_stored`] if it may not be.
    pub fn advance_cursors(&mut self) -> (u8, Block) {
        self.cursors = self.cursors();
        self.cursors.sequence += 1;
        (self.cursors.copy(), self.cursors.encode())
    }

    /// What [`Self::advance_cursors`] gave is not durable: the next ones go to the same copy.
    pub const fn cursors_not_stored(&mut self) {
        self.cursors.sequence = self.cursors.sequence.saturating_sub(1);
    }

    /// The switches of this node.
    #[must_use]
    pub const fn switches(&self) -> Switches {
        self.cursors.switches
    }

    /// Turns the switches of this node; persistent with the next cursors.
    pub const fn set_switches(&mut self, switches: Switches) {
        self.cursors.switches = switches;
    }

    /// How far a peer is.
    #[must_use]
    pub fn peer(&self, node: NodeId) -> PeerCursor {
        self.cursors.peers[usize::from(node.number())]
    }

    /// Says whether the journal is kept for a peer, and whether it has one of its own.
    pub fn set_peer(&mut self, node: NodeId, switches: PeerSwitches) {
        self.cursors.peers[usize::from(node.number())].switches = switches;
    }

    /// A peer says how far it is. Cursors only go forward, and never past what is durable here.
    pub fn peer_reached(&mut self, node: NodeId, fetched: LogPosition, replayed: LogPosition) {
        let durable = self.durable();
        let peer = &mut self.cursors.peers[usize::from(node.number())];
        peer.fetched = peer.fetched.max(fetched.min(durable));
        peer.replayed = peer.replayed.max(replayed.min(durable));
    }

    /// A peer follows again from this position on, for what was cut it got by its bitmap.
    pub fn peer_restarts(&mut self, node: NodeId, position: LogPosition) {
        let peer = &mut self.cursors.peers[usize::from(node.number())];
        peer.fetched = position;
        peer.replayed = position;
        peer.switches.cut = false;
    }

    /// The peers that the journal is kept for, and from where on each needs it. Of one that lost a
    /// part by a cut, the rest is still kept: a later cut tells what it loses then.
    fn needs(&self) -> impl Iterator<Item = (NodeId, LogPosition)> {
        let peers = (0..).zip(&self.cursors.peers);
        peers.filter_map(|(number, peer)| {
            let PeerSwitches { counts, keeps_journal, .. } = peer.switches;
            let needs = if keeps_journal { peer.fetched } else { peer.replayed };
            counts.then(|| Some((NodeId::new(number)?, needs)))?
        })
    }

    /// The oldest position that somebody needs: the local disk, or a peer that counts.
    #[must_use]
    pub fn needed_from(&self) -> LogPosition {
        let peers = self.needs().map(|(_, position)| position);
        peers.fold(self.written_back_to(), LogPosition::min)
    }

    /// The bytes of the files of the segments that somebody needs.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        let from = self.needed_from();
        let newest_first = self.segments.iter().rev();
        let needed = newest_first.take_while(|(header, len)| header.base.after(*len) > from);
        needed.map(|(header, _)| header.capacity).sum()
    }

    /// The oldest segment, if nobody needs it and it is not kept for going back. The last one is
    /// always needed. When its file is taken away or made a spare, tell [`Self::recycled`].
    #[must_use]
    pub fn recyclable(&self) -> Option<u64> {
        let ((header, len), next) = (self.segments.front()?, self.segments.get(1));
        next?;
        let end = header.base.after(*len);
        let kept = LogPosition(self.durable().0.saturating_sub(self.settings.keep_bytes));
        let old = end <= kept.max(self.floor);
        (old && end <= self.needed_from()).then_some(header.number)
    }

    /// The file of the oldest segment is gone, or is about to be used again.
    pub fn recycled(&mut self, number: u64) {
        self.segments.pop_front_if(|(header, _)| header.number == number);
    }

    /// The files of segments shall not take more bytes from now on.
    pub fn set_budget(&mut self, bytes: u64) {
        self.settings.budget_bytes = bytes;
    }

    /// Segments that are begun from now on have files of so many bytes.
    pub fn set_segment_bytes(&mut self, bytes: u64) {
        self.settings.segment_bytes = bytes;
    }

    /// The bytes that the segments are over their budget.
    fn over_budget(&self) -> u64 {
        self.status().bytes.saturating_sub(self.settings.budget_bytes)
    }

    /// What to cut to come back to the budget; `None` when it is kept, or when there is nothing
    /// that can be cut: see [`Self::write_back_wanted`].
    #[must_use]
    pub fn plan_cut(&self) -> Option<CutPlan> {
        let written_back = self.written_back_to();
        let up_to = self.ends_over_budget().take_while(|end| *end <= written_back).last()?;
        let losers = self.needs().filter(|(_, needs)| *needs < up_to).collect();
        (up_to > self.floor).then_some(CutPlan { up_to, losers })
    }

    /// Up to where the disk must be written back so that the budget can be kept; `None` when it
    /// is far enough.
    #[must_use]
    pub fn write_back_wanted(&self) -> Option<LogPosition> {
        let written_back = self.written_back_to();
        self.ends_over_budget().last().filter(|end| *end > written_back)
    }

    /// The ends of the segments that are too many, without the last one.
    fn ends_over_budget(&self) -> impl Iterator<Item = LogPosition> {
        let mut over = self.over_budget();
        let all_but_last = self.segments.len().saturating_sub(1);
        let segments = self.segments.iter().take(all_but_last);
        segments.map_while(move |(header, len)| {
            let cut = over > 0;
            over = over.saturating_sub(header.capacity);
            cut.then(|| header.base.after(*len))
        })
    }

    /// What a plan said is durable in the bitmaps: its segments are given up. The losers get that
    /// by their bitmaps; what comes behind is kept for them.
    pub fn cut(&mut self, plan: &CutPlan) {
        for (node, _) in &plan.losers {
            let peer = &mut self.cursors.peers[usize::from(node.number())];
            peer.switches.cut = true;
            peer.fetched = peer.fetched.max(plan.up_to);
            peer.replayed = peer.replayed.max(plan.up_to);
        }
        self.floor = self.floor.max(plan.up_to);
    }

    /// Keeps nothing for going back: what nobody needs is given up, but for the last segment.
    pub fn trim(&mut self) {
        self.floor = self.floor.max(self.needed_from());
    }

    /// Nobody gets anything of what is here.
    pub(crate) fn cut_everything(&mut self) {
        let durable = self.durable();
        for peer in self.cursors.peers.iter_mut().filter(|peer| peer.switches.counts) {
            peer.switches.cut = true;
            // Else it would be kept for who is away, without a plan that could cut it.
            peer.fetched = peer.fetched.max(durable);
            peer.replayed = peer.replayed.max(durable);
        }
        self.floor = durable;
    }

    /// Goes through the durable records from `from` on.
    ///
    /// # Errors
    /// [`RecordsError::Gone`] when `from` is not kept any more.
    pub fn records<'a, R: ReadSegments>(
        &self,
        reader: &'a R,
        from: LogPosition,
    ) -> Result<Records<'a, R>, RecordsError> {
        Records::new(reader, self.durable_segments(), from)
    }
}

/// For each loser of a plan, the ranges of the records that it does not get: from where it needs
/// them up to where is cut.
///
/// # Errors
/// [`RecordsError`] when they cannot be read: then these peers need everything.
pub fn cut_ranges<R: ReadSegments>(
    reader: &R,
    segments: &[(SegmentHeader, u64)],
    plan: &CutPlan,
) -> Result<BTreeMap<NodeId, RangeSet>, RecordsError> {
    let mut lost: BTreeMap<NodeId, RangeSet> =
        plan.losers.iter().map(|(node, _)| (*node, RangeSet::new())).collect();
    let Some(from) = plan.losers.iter().map(|(_, needs)| *needs).min() else { return Ok(lost) };
    let first = segments.first().map_or(from, |(header, _)| header.base);
    let mut records = Records::new(reader, segments.to_vec(), from.max(first))?;
    while let Some(found) = records.next()? {
        if found.position >= plan.up_to {
            break;
        }
        for (node, needs) in &plan.losers {
            if found.position >= *needs
                && let Some(ranges) = lost.get_mut(node)
            {
                ranges.insert(found.record.range);
            }
        }
    }
    Ok(lost)
}
