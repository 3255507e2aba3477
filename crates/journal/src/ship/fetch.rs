//! Which bytes of the leader's journal are asked for next, and in which order they are used.

use super::message::Fetch;
use bytes::{Bytes, BytesMut};
use holdfast_format::journal::SegmentHeader;
use holdfast_units::LogPosition;
use std::collections::{BTreeMap, VecDeque};

/// Plans what is fetched. Pieces may come in any order; they are used in that of the journal.
#[derive(Default)]
pub(crate) struct Fetcher {
    /// What the leader has, from the segment on that is copied now, numbers without gaps.
    segments: VecDeque<(SegmentHeader, u64)>,
    /// Where to ask next.
    next: LogPosition,
    /// Asked for: where, and how many bytes.
    flying: BTreeMap<LogPosition, u32>,
    /// To be asked for again.
    again: BTreeMap<LogPosition, u32>,
    /// Came before what is in front of it.
    arrived: BTreeMap<LogPosition, (u64, Bytes)>,
    /// Bytes that are on their way or wait.
    held: u64,
    /// In front of everything that arrived: the beginning of a frame that is not whole, perhaps.
    front: BytesMut,
}

impl Fetcher {
    /// Begins anew at a position: nothing was asked for.
    pub(crate) fn restart(&mut self, at: LogPosition) {
        *self = Self { segments: std::mem::take(&mut self.segments), next: at, ..Self::default() };
    }

    /// Takes what the leader says of its segments.
    pub(crate) fn learn(&mut self, segments: &[(SegmentHeader, u64)]) {
        for (header, len) in segments {
            let next = self.segments.back().map(|(last, _)| last.number + 1);
            if let Some(known) = self.segments.iter_mut().find(|(h, _)| h.number == header.number) {
                known.1 = known.1.max(*len);
            } else if next.is_none_or(|next| next == header.number) {
                self.segments.push_back((*header, *len));
            }
        }
    }

    /// Forgets what is known of the leader.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The leader's segment of this number.
    pub(crate) fn segment(&self, number: u64) -> Option<(SegmentHeader, u64)> {
        self.segments.iter().find(|(header, _)| header.number == number).copied()
    }

    /// The segments before this one are not needed.
    pub(crate) fn passed(&mut self, number: u64) {
        while self.segments.front().is_some_and(|(header, _)| header.number < number) {
            self.segments.pop_front();
        }
    }

    /// The position behind all that is known of.
    pub(crate) fn known(&self) -> LogPosition {
        self.segments.back().map_or(LogPosition::START, |(header, len)| header.base.after(*len))
    }

    /// The next piece to ask for, at most `piece` bytes, if no more than `window` are held then.
    pub(crate) fn ask(&mut self, piece: u32, window: u64) -> Option<Fetch> {
        if let Some((from, len)) = self.again.pop_first() {
            let (segment, _) = self.at(from)?;
            self.flying.insert(from, len);
            return Some(Fetch { segment, from, len });
        }
        let (segment, end) = self.at(self.next)?;
        let room = window.saturating_sub(self.held).min(u64::from(piece));
        let len = u32::try_from(end.since(self.next).min(room)).ok().filter(|len| *len > 0)?;
        // Small pieces of what is there cost a round trip each.
        if u64::from(len) < end.since(self.next).min(u64::from(piece)) {
            return None;
        }
        let fetch = Fetch { segment, from: self.next, len };
        self.flying.insert(self.next, len);
        self.held += u64::from(len);
        self.next = self.next.after(u64::from(len));
        Some(fetch)
    }

    /// The segment whose bytes begin or go on at a position, and where they end.
    fn at(&self, position: LogPosition) -> Option<(u64, LogPosition)> {
        let ends = self.segments.iter().map(|(h, len)| (h.number, h.base, h.base.after(*len)));
        let mut found = ends.filter(|(_, base, end)| *base <= position && position < *end);
        found.next().map(|(number, _, end)| (number, end))
    }

    /// What was asked for does not come by that connection.
    pub(crate) fn lost(&mut self, fetch: Fetch) {
        if self.flying.remove(&fetch.from).is_some() {
            self.again.insert(fetch.from, fetch.len);
        }
    }

    /// A piece came; it may be shorter than what was asked for.
    pub(crate) fn came(&mut self, fetch: Fetch, bytes: Bytes) {
        if self.flying.remove(&fetch.from).is_none() {
            return;
        }
        let got = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if got < fetch.len {
            let rest = fetch.from.after(u64::from(got));
            self.again.insert(rest, fetch.len - got);
        }
        if got > 0 && got <= fetch.len {
            self.arrived.insert(fetch.from, (fetch.segment, bytes));
        }
    }

    /// The bytes that go to the end of the journal here, `at`, in its last segment. Give back what
    /// was not used.
    pub(crate) fn front(&mut self, at: LogPosition, segment: u64) -> Bytes {
        loop {
            let end = at.after(self.front.len() as u64);
            match self.arrived.remove(&end) {
                Some((of, bytes)) if of == segment => self.front.extend_from_slice(&bytes),
                Some(other) => {
                    self.arrived.insert(end, other);
                    break;
                }
                None => break,
            }
        }
        std::mem::take(&mut self.front).freeze()
    }

    /// So many of these bytes are in the journal here; the rest waits for more.
    pub(crate) fn used(&mut self, bytes: &Bytes, used: usize) {
        self.front = BytesMut::from(&bytes[used..]);
        self.held = self.held.saturating_sub(used as u64);
    }

    /// Whether the leader has more of a segment behind `at`.
    pub(crate) fn goes_on(&self, at: LogPosition, segment: u64) -> bool {
        self.segment(segment).is_none_or(|(header, len)| at < header.base.after(len))
    }

    /// Whether something of the segment that ends at `at` came that was not looked at.
    pub(crate) fn has_more(&self, at: LogPosition, segment: u64) -> bool {
        let next = self.arrived.get(&at.after(self.front.len() as u64));
        next.is_some_and(|(of, _)| *of == segment)
    }
}

#[cfg(test)]
mod tests {
    use super::Fetcher;
    use bytes::Bytes;
    use holdfast_format::journal::SegmentHeader;
    use holdfast_units::{GenerationId, HybridTime, LogPosition, NodeId, ResourceId};

    fn segment(number: u64, base: u64, len: u64) -> (SegmentHeader, u64) {
        let header = SegmentHeader {
            resource: ResourceId([0; 16]),
            number,
            origin: NodeId::new(0).unwrap(),
            epoch: 1,
            base: LogPosition(base),
            capacity: 1 << 20,
            alignment: 512,
            time: HybridTime(0),
            chain: [0; 16],
            predecessor: None,
            generation: GenerationId(0),
            packed: false,
        };
        (header, len)
    }

    #[test]
    fn pieces_are_used_in_order_whatever_comes_first() {
        let mut fetcher = Fetcher::default();
        fetcher.learn(&[segment(3, 1000, 250), segment(4, 1250, 50)]);
        fetcher.restart(LogPosition(1000));
        let asked: Vec<_> = std::iter::from_fn(|| fetcher.ask(100, 1000)).collect();
        let places: Vec<_> = asked.iter().map(|f| (f.segment, f.from.0, f.len)).collect();
        assert_eq!(places, [(3, 1000, 100), (3, 1100, 100), (3, 1200, 50), (4, 1250, 50)]);
        let give = |from: u64, len: usize| Bytes::from(vec![u8::try_from(from / 50).unwrap(); len]);
        fetcher.came(asked[1], give(1100, 100));
        fetcher.came(asked[3], give(1250, 50));
        assert!(fetcher.front(LogPosition(1000), 3).is_empty());
        // A short piece is asked for again from where it ends; a lost one as a whole.
        fetcher.came(asked[0], give(1000, 60));
        fetcher.lost(asked[2]);
        let front = fetcher.front(LogPosition(1000), 3);
        assert_eq!(front.len(), 60);
        fetcher.used(&front, 0);
        let again: Vec<_> = std::iter::from_fn(|| fetcher.ask(100, 1000)).collect();
        let places: Vec<_> = again.iter().map(|f| (f.from.0, f.len)).collect();
        assert_eq!(places, [(1060, 40), (1200, 50)]);
        fetcher.came(again[0], give(1060, 40));
        fetcher.came(again[1], give(1200, 50));
        let front = fetcher.front(LogPosition(1000), 3);
        assert_eq!(front.len(), 250, "and none of segment 4");
        fetcher.used(&front, 200);
        let front = fetcher.front(LogPosition(1200), 3);
        assert_eq!(front.len(), 50);
        fetcher.used(&front, 50);
        assert!(fetcher.has_more(LogPosition(1250), 4));
        let front = fetcher.front(LogPosition(1250), 4);
        assert_eq!(front.len(), 50);
        fetcher.used(&front, 50);
        assert_eq!(fetcher.held, 0);
    }

    #[test]
    fn no_more_is_held_than_the_window() {
        let mut fetcher = Fetcher::default();
        fetcher.learn(&[segment(1, 0, 1000)]);
        fetcher.restart(LogPosition(0));
        let asked: Vec<_> = std::iter::from_fn(|| fetcher.ask(100, 250)).collect();
        assert_eq!(asked.len(), 2);
        fetcher.came(asked[1], Bytes::from(vec![1; 100]));
        assert!(fetcher.ask(100, 250).is_none(), "what waits counts");
        fetcher.came(asked[0], Bytes::from(vec![1; 100]));
        let front = fetcher.front(LogPosition(0), 1);
        fetcher.used(&front, 200);
        assert!(fetcher.ask(100, 250).is_some());
        // What comes late, after a new beginning, is not used.
        let late = fetcher.ask(100, 250).unwrap();
        fetcher.restart(LogPosition(500));
        fetcher.came(late, Bytes::from(vec![1; 100]));
        assert!(fetcher.front(LogPosition(200), 1).is_empty());
    }
}
