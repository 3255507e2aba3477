//! What is known of one follower.

use super::super::message::{Await, Verdict};
use super::types::{LeadError, Notes, Source};
use crate::ranges::RangeSet;
use holdfast_format::journal::{
    FollowerNote, MAX_NOTE_RANGES, PeerCursor, SegmentHeader, SegmentLink,
};
use holdfast_units::{BLOCK_SIZE, ByteRange, LogPosition, MAX_REQUEST, NodeId, ResourceId};
use std::collections::BTreeMap;

pub(super) struct Served {
    pub(super) fill: u64,
    pub(super) from: LogPosition,
    pub(super) needs: LogPosition,
    pub(super) links: Vec<SegmentLink>,
    pub(super) missing: RangeSet,
    /// What the follower has of the filling, but was perhaps read before it was durable here.
    pub(super) unsure: RangeSet,
    /// There is a durable note: this node knows what the follower has.
    pub(super) noted: bool,
    /// The durable note says that something is missing.
    pub(super) stored_missing: bool,
    /// Bytes that were copied since the note was written.
    pub(super) unnoted: u64,
    pub(super) fill_to: Option<LogPosition>,
    pub(super) bundle: Option<Bundle>,
    pub(super) features: u64,
    /// The follower must say hello again.
    pub(super) again: bool,
    /// Its last verdict lets it fetch.
    pub(super) ships: bool,
    /// It was told to begin a filling, and has not said yet that it does: what it says of itself is old.
    pub(super) to_fill: bool,
    pub(super) apart: Option<Verdict>,
    pub(super) last: Option<Await>,
    /// What each connection was given of the filling and was not said to be durable.
    pub(super) handed: BTreeMap<u64, RangeSet>,
    pub(super) cursor: u64,
    /// What is missing is offered before it is sent.
    pub(super) offers: Offers,
}

/// Connections that belong together.
#[derive(Clone, Copy)]
pub(super) struct Bundle {
    /// As the follower calls them.
    pub(super) number: u64,
    /// The connection on which it said hello, and says how it stands.
    pub(super) reports: u64,
}

/// Whether a note was stored for the last cut of what the follower needed. When it could neither be
/// stored nor taken away, an older one is still there.
fn has_all_cuts(note: &FollowerNote, cursor: &PeerCursor) -> bool {
    let ends = note.links.last().map_or(note.needs, SegmentLink::end);
    !cursor.switches.cut || ends >= cursor.fetched
}

/// Whether it is worth while to compare before sending.
#[derive(Default)]
pub(super) struct Offers {
    pub(super) on: bool,
    /// Bytes that were offered lately, and what was taken of them.
    offered: u64,
    taken: u64,
    /// So many bytes are sent without being offered, as little was equal.
    direct: u64,
}

impl Offers {
    pub(super) fn begin(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    /// Whether the next part is to be offered.
    const fn next(&self) -> bool {
        self.on && self.direct == 0
    }

    fn given_out(&mut self, len: u64) {
        if !self.on {
            return;
        }
        if self.direct > 0 {
            self.direct = self.direct.saturating_sub(len);
            return;
        }
        self.offered += len;
        if self.offered >= OFFER_SAMPLE {
            if self.taken >= self.offered / 2 {
                self.direct = SEND_DIRECTLY;
            }
            (self.offered, self.taken) = (0, 0);
        }
    }

    pub(super) const fn taken(&mut self, len: u64) {
        self.taken = self.taken.saturating_add(len);
    }
}

/// After so many bytes that were offered it is decided whether to go on with it.
const OFFER_SAMPLE: u64 = 32 << 20;
/// So much is sent without being offered when half of what was offered was different.
const SEND_DIRECTLY: u64 = 128 << 20;
/// An offer is of so many parts as long as those that are sent, and has so many digests for each.
const OFFERED_PARTS: u64 = 4;
const DIGESTS: u64 = 4;

impl Served {
    pub(super) fn load(node: NodeId, cursor: &PeerCursor, notes: &impl Notes) -> Self {
        let note = notes.load(node).filter(|note| has_all_cuts(note, cursor));
        let noted = note.is_some();
        let note = note.unwrap_or(FollowerNote {
            resource: ResourceId([0; 16]),
            node,
            fill: 0,
            from: LogPosition::START,
            needs: LogPosition::START,
            links: Vec::new(),
            missing: Vec::new(),
        });
        let mut missing = RangeSet::new();
        note.missing.iter().for_each(|range| missing.insert(*range));
        Self {
            fill: note.fill,
            from: note.from,
            needs: note.needs,
            links: note.links,
            stored_missing: !missing.is_empty(),
            missing,
            unsure: RangeSet::new(),
            noted,
            unnoted: 0,
            fill_to: None,
            bundle: None,
            features: 0,
            again: false,
            ships: false,
            to_fill: false,
            apart: None,
            last: None,
            handed: BTreeMap::new(),
            cursor: 0,
            offers: Offers::default(),
        }
    }

    pub(super) fn store(
        &mut self,
        resource: ResourceId,
        node: NodeId,
        notes: &mut impl Notes,
    ) -> Result<(), LeadError> {
        let mut missing = self.missing.clone();
        missing.extend(&self.unsure);
        missing.coarsen(MAX_NOTE_RANGES);
        self.stored_missing = !missing.is_empty();
        notes.store(&FollowerNote {
            resource,
            node,
            fill: self.fill,
            from: self.from,
            needs: self.needs,
            links: self.links.clone(),
            missing: missing.iter().collect(),
        })?;
        self.unnoted = 0;
        Ok(())
    }

    /// The links of what was cut since the follower had everything, and of what is kept.
    pub(super) fn history(&self, source: &impl Source) -> Vec<SegmentLink> {
        let mut all = self.all_links(source);
        // What lies before the beginning of another history says nothing.
        let goes_on = |pair: &[SegmentLink]| pair[1].chain == pair[0].chain_after();
        let begun = all.windows(2).rposition(|pair| !goes_on(pair)).map_or(0, |at| at + 1);
        all.drain(..begun);
        all
    }

    /// The same, with what lies before the beginning of another history.
    pub(super) fn all_links(&self, source: &impl Source) -> Vec<SegmentLink> {
        let kept: Vec<SegmentLink> =
            source.segments().iter().map(|(header, len)| header.link(*len)).collect();
        let first = kept.first().map_or(u64::MAX, |link| link.number);
        let gone = self.links.iter().filter(|link| link.number < first).copied();
        gone.chain(kept.iter().copied()).collect()
    }

    /// Remembers whose history it is that ends at `up_to`.
    pub(super) fn keep_links(&mut self, segments: &[(SegmentHeader, u64)], up_to: LogPosition) {
        let (last, needs) = (self.links.last().map(|link| link.number), self.needs);
        let links = segments.iter().map(|(header, len)| header.link(*len));
        let next = |link: &SegmentLink| last.map_or(link.end() >= needs, |n| link.number > n);
        self.links.extend(links.filter(|link| link.end() <= up_to && next(link)));
    }

    /// The next part that is missing and was not given out, and the bytes of a digest when it is to
    /// be offered.
    pub(super) fn hand_out(&mut self, conn: u64, most: u64) -> (ByteRange, Option<u32>) {
        let offers = self.offers.next();
        let longest = if offers { (most * OFFERED_PARTS).min(MAX_REQUEST) } else { most };
        let range = self.next_part(conn, longest);
        self.offers.given_out(range.len);
        let part = ByteRange::new(0, most / DIGESTS).aligned_out().len.max(BLOCK_SIZE);
        (range, offers.then(|| u32::try_from(part).unwrap_or(u32::MAX)))
    }

    /// Only the beginning of a part that was given out is answered: the rest is given out again.
    pub(super) fn give_back(&mut self, conn: u64, rest: ByteRange) {
        if let Some(handed) = self.handed.get_mut(&conn).filter(|_| !rest.is_empty()) {
            handed.remove(rest);
            self.cursor = self.cursor.min(rest.offset);
        }
    }

    fn next_part(&mut self, conn: u64, most: u64) -> ByteRange {
        let mut from = self.cursor;
        while let Some(found) = self.missing.next_from(from) {
            let mut range = ByteRange::new(found.offset, found.len.min(most));
            let taken = self.handed.values().filter_map(|handed| handed.next_from(range.offset));
            if let Some(taken) = taken.min_by_key(|taken| taken.offset) {
                if taken.offset <= range.offset {
                    from = taken.end();
                    continue;
                }
                range.len = range.len.min(taken.offset - range.offset);
            }
            self.handed.entry(conn).or_default().insert(range);
            self.cursor = range.end();
            return range;
        }
        ByteRange::default()
    }
}
