//! Two journals of one resource: does one continue the other, or did both go on apart?

use holdfast_format::journal::SegmentLink;
use holdfast_units::{HybridTime, LogPosition};
use std::cmp::Ordering;

/// How this journal stands to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// Both hold the same.
    Equal,
    /// The other one continues this one, from its end on.
    Behind,
    /// This one continues the other one, from its end on.
    Ahead,
    /// Both went on apart: split brain.
    Apart {
        /// Up to here both are the same; `None` when they were apart before what is still kept.
        common: Option<LogPosition>,
        /// The bytes that only this one has.
        ours: u64,
        /// The bytes that only the other one has.
        theirs: u64,
        /// Since when this one was written apart: when the first segment was begun that only it
        /// has. `None`: within a segment; its records behind `common` say when.
        ours_since: Option<HybridTime>,
        /// The same for the other one.
        theirs_since: Option<HybridTime>,
    },
    /// What is still kept of them does not meet: nothing can be said.
    Unknown,
}

/// The chain before the first segment of a history: no other history has it, as the epoch is random
/// and nobody begins twice at a place.
#[must_use]
pub(crate) fn first_chain(epoch: u64, base: LogPosition) -> [u8; 16] {
    let mut chain = [0; 16];
    chain[..8].copy_from_slice(&epoch.to_le_bytes());
    chain[8..].copy_from_slice(&base.0.to_le_bytes());
    chain
}

/// Whether a history begins with this segment.
#[must_use]
pub(crate) fn begins_history(link: &SegmentLink) -> bool {
    link.chain == first_chain(link.epoch, link.base)
}

/// How `ours` stands to `theirs`; both are the links of all segments that are kept, oldest first.
///
/// Links that contradict themselves (not contiguous) are taken as [`Relation::Unknown`].
#[must_use]
pub fn compare(ours: &[SegmentLink], theirs: &[SegmentLink]) -> Relation {
    if !contiguous(ours) || !contiguous(theirs) {
        return Relation::Unknown;
    }
    let (Some(our_first), Some(their_first)) = (ours.first(), theirs.first()) else {
        // A journal that was never written to says nothing of what its disk holds.
        let both = ours.is_empty() && theirs.is_empty();
        return if both { Relation::Equal } else { Relation::Unknown };
    };
    let start = our_first.number.max(their_first.number);
    let (a, b) = (from(ours, start), from(theirs, start));
    match (a.first(), b.first()) {
        (Some(x), Some(y)) if x.chain == y.chain && x.base == y.base => walk(a, b),
        // Of a history that begins here the other one has nothing.
        (Some(x), Some(y)) if begins_history(x) || begins_history(y) => Relation::Unknown,
        (Some(_), Some(_)) => apart(None, ours, theirs, start - 1),
        (None, Some(y)) => adjoining(ours, y, Relation::Behind),
        (Some(x), None) => adjoining(theirs, x, Relation::Ahead),
        (None, None) => Relation::Unknown,
    }
}

/// Whether two histories that do not meet share nothing: one of them begins where the other one has
/// something, or all of ours is here and ends before, or begins behind, what is kept of theirs.
#[must_use]
pub(crate) fn share_nothing(ours: &[SegmentLink], theirs: &[SegmentLink]) -> bool {
    let (Some(our_first), Some(their_first)) = (ours.first(), theirs.first()) else { return false };
    let start = our_first.number.max(their_first.number);
    match (from(ours, start).first(), from(theirs, start).first()) {
        (Some(x), Some(y)) => x.chain != y.chain && (begins_history(x) || begins_history(y)),
        _ => begins_history(our_first),
    }
}

fn contiguous(links: &[SegmentLink]) -> bool {
    links.windows(2).all(|pair| {
        pair[1].number == pair[0].number + 1
            && pair[1].base == pair[0].end()
            && pair[1].chain == pair[0].chain_after()
    })
}

fn from(links: &[SegmentLink], number: u64) -> &[SegmentLink] {
    let at = links.iter().position(|link| link.number >= number).unwrap_or(links.len());
    &links[at..]
}

/// One ends before the other begins: do they meet?
fn adjoining(earlier: &[SegmentLink], later: &SegmentLink, relation: Relation) -> Relation {
    match earlier.last() {
        Some(last) if last.number + 1 == later.number && last.chain_after() == later.chain => {
            relation
        }
        _ => Relation::Unknown,
    }
}

/// Both are the same before their first segments, which have the same number.
fn walk(ours: &[SegmentLink], theirs: &[SegmentLink]) -> Relation {
    for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
        let same = a.origin == b.origin && a.epoch == b.epoch;
        let (a_last, b_last) = (index + 1 == ours.len(), index + 1 == theirs.len());
        if !same {
            // A segment without a record is nothing that anybody wrote.
            let (a_empty, b_empty) = (a.len == 0 && a_last, b.len == 0 && b_last);
            return match (a_empty, b_empty) {
                (true, true) => Relation::Equal,
                (true, false) => Relation::Behind,
                (false, true) => Relation::Ahead,
                (false, false) => apart(Some(a.base), ours, theirs, a.number - 1),
            };
        }
        match a.len.cmp(&b.len) {
            Ordering::Equal => {}
            Ordering::Less if a_last => return Relation::Behind,
            Ordering::Greater if b_last => return Relation::Ahead,
            Ordering::Less | Ordering::Greater => {
                let common = a.base.after(a.len.min(b.len));
                return apart(Some(common), ours, theirs, a.number);
            }
        }
    }
    ours.len().cmp(&theirs.len()).into()
}

impl From<Ordering> for Relation {
    fn from(ordering: Ordering) -> Self {
        match ordering {
            Ordering::Less => Self::Behind,
            Ordering::Equal => Self::Equal,
            Ordering::Greater => Self::Ahead,
        }
    }
}

/// Both are the same up to `common`; of segments after `shared` nothing is shared.
fn apart(
    common: Option<LogPosition>,
    ours: &[SegmentLink],
    theirs: &[SegmentLink],
    shared: u64,
) -> Relation {
    let side = |links: &[SegmentLink]| {
        let end = links.last().map_or(LogPosition::START, SegmentLink::end);
        let start = common.or_else(|| links.first().map(|link| link.base)).unwrap_or_default();
        let within = links.iter().any(|link| link.number == shared && Some(link.end()) > common);
        let first = links.iter().find(|link| link.number > shared).map(|link| link.time);
        (end.since(start), if within && common.is_some() { None } else { first })
    };
    let ((ours, ours_since), (theirs, theirs_since)) = (side(ours), side(theirs));
    Relation::Apart { common, ours, theirs, ours_since, theirs_since }
}

#[cfg(test)]
mod tests {
    use super::{Relation, compare, first_chain, share_nothing};
    use holdfast_format::journal::SegmentLink;
    use holdfast_units::{HybridTime, LogPosition, NodeId};
    use proptest::prelude::*;

    /// A journal of segments of these (origin, epoch, length).
    fn journal(segments: &[(u8, u64, u64)]) -> Vec<SegmentLink> {
        let mut links: Vec<SegmentLink> = Vec::new();
        for (number, (origin, epoch, len)) in (1..).zip(segments) {
            let (base, chain) = links
                .last()
                .map_or((LogPosition::START, [0; 16]), |last| (last.end(), last.chain_after()));
            let time = HybridTime(number * 100 + u64::from(*origin));
            let origin = NodeId::new(*origin).unwrap();
            links.push(SegmentLink { number, origin, epoch: *epoch, base, len: *len, time, chain });
        }
        links
    }

    #[test]
    fn histories_of_which_one_is_here_as_a_whole_share_nothing() {
        let whole = |number, len| {
            let (base, epoch) = (LogPosition::START, 5);
            let (origin, time) = (NodeId::new(1).unwrap(), HybridTime(1));
            let chain = first_chain(epoch, base);
            vec![SegmentLink { number, origin, epoch, base, len, time, chain }]
        };
        let theirs = journal(&[(0, 1, 1000), (0, 1, 800), (0, 1, 300)]);
        // Whatever is kept of theirs: it begins before, with, or behind what is here.
        for kept in 0..3 {
            for number in 1..5 {
                assert_eq!(compare(&whole(number, 700), &theirs[kept..]), Relation::Unknown);
                assert!(share_nothing(&whole(number, 700), &theirs[kept..]), "{number} {kept}");
            }
        }
        // What was cut since they met says nothing.
        assert!(!share_nothing(&theirs[2..], &theirs[..1]));
        assert!(!share_nothing(&theirs[..1], &theirs[2..]));
        assert!(!share_nothing(&[], &theirs));
    }

    #[test]
    fn one_continues_the_other() {
        let short = journal(&[(0, 1, 1000), (0, 1, 500)]);
        let longer = journal(&[(0, 1, 1000), (0, 1, 800)]);
        let next = journal(&[(0, 1, 1000), (0, 1, 500), (1, 7, 100)]);
        for (a, b) in [(&short, &longer), (&short, &next)] {
            assert_eq!(compare(a, b), Relation::Behind);
            assert_eq!(compare(b, a), Relation::Ahead);
            assert_eq!(compare(a, a), Relation::Equal);
            assert_eq!(compare(&[], b), Relation::Unknown);
            assert_eq!(compare(b, &[]), Relation::Unknown);
        }
        // What is not kept any more is vouched for by the chain.
        assert_eq!(compare(&short[1..], &next), Relation::Behind);
        assert_eq!(compare(&short, &next[2..]), Relation::Behind, "they only meet");
        assert_eq!(compare(&next[2..], &short), Relation::Ahead);
        assert_eq!(compare(&longer, &next[2..]), Relation::Unknown, "they do not meet");
        assert_eq!(compare(&[], &next[1..]), Relation::Unknown);
        assert_eq!(compare(&short, &[next[0], next[2]]), Relation::Unknown);
    }

    #[test]
    fn both_went_on_apart() {
        let apart = |common, ours, theirs, ours_since, theirs_since| Relation::Apart {
            common: Some(LogPosition(common)),
            ours,
            theirs,
            ours_since,
            theirs_since,
        };
        // The second node was promoted with a part of the first one's last segment.
        let first = journal(&[(0, 1, 1000), (0, 1, 800)]);
        let second = journal(&[(0, 1, 1000), (0, 1, 500), (1, 7, 100)]);
        let since = Some(HybridTime(301));
        assert_eq!(compare(&first, &second), apart(1500, 300, 100, None, since));
        assert_eq!(compare(&second, &first), apart(1500, 100, 300, since, None));
        // Both began a segment of their own.
        let third = journal(&[(0, 1, 1000), (0, 1, 500), (2, 8, 50), (2, 8, 60)]);
        let others = (Some(HybridTime(301)), Some(HybridTime(302)));
        assert_eq!(compare(&second, &third), apart(1500, 100, 110, others.0, others.1));
        assert_eq!(compare(&second[2..], &third[2..]), apart(1500, 100, 110, others.0, others.1));
        // One came back as an older copy of itself and wrote the segment again.
        let again = journal(&[(0, 1, 1000), (0, 9, 500)]);
        let since = Some(HybridTime(200));
        assert_eq!(compare(&first, &again), apart(1000, 800, 500, since, since));
        // An empty segment is no history.
        let empty = journal(&[(0, 1, 1000), (1, 7, 0)]);
        assert_eq!(compare(&empty, &first), Relation::Behind);
        // Each is a history of its own: nothing that one of them has is of the other one.
        let mut own = journal(&[(1, 7, 50), (1, 7, 90)]);
        own[0].chain = first_chain(7, own[0].base);
        own[1].chain = own[0].chain_after();
        let mut alien = journal(&[(2, 9, 40)]);
        alien[0].chain = first_chain(9, alien[0].base);
        assert_eq!(compare(&own, &alien), Relation::Unknown);
        assert_eq!(compare(&alien, &own[..1]), Relation::Unknown);
        assert_eq!(compare(&own, &first), Relation::Unknown);
        // They were apart before what is kept.
        let long = journal(&[(0, 1, 1000), (0, 1, 500), (2, 8, 50), (2, 8, 60)]);
        let other = journal(&[(0, 1, 1000), (0, 1, 500), (1, 7, 50), (1, 7, 90)]);
        assert!(matches!(
            compare(&long[3..], &other[3..]),
            Relation::Apart { common: None, ours: 60, theirs: 90, .. }
        ));
    }

    proptest! {
        /// Two journals that share a beginning and then go on, compared with what was done.
        #[test]
        fn equals_what_was_done(
            shared in prop::collection::vec((0u8..2, 1u64..3, 1u64..20), 1..5),
            a in prop::collection::vec(1u64..20, 0..3),
            b in prop::collection::vec(1u64..20, 0..3),
            extra in (0u64..10, 0u64..10),
            kept in (0usize..4, 0usize..4),
        ) {
            let side = |node: u8, own: &[u64], extra: u64| {
                let mut segments = shared.clone();
                segments.last_mut().unwrap().2 += extra;
                segments.extend(own.iter().map(|len| (node, u64::from(node) * 100, *len)));
                journal(&segments)
            };
            let (ours, theirs) = (side(10, &a, extra.0), side(11, &b, extra.1));
            let base = shared.iter().map(|s| s.2).sum::<u64>();
            let both = base + extra.0.min(extra.1);
            // Of bytes in the shared segment the origin wrote them once: more of it is no other
            // history unless somebody began a segment of his own behind less of it.
            let ours_only: u64 = extra.0 - extra.0.min(extra.1) + a.iter().sum::<u64>();
            let theirs_only: u64 = extra.1 - extra.0.min(extra.1) + b.iter().sum::<u64>();
            let expected = match (ours_only, theirs_only) {
                (0, 0) => Relation::Equal,
                (0, _) => Relation::Behind,
                (_, 0) => Relation::Ahead,
                _ => Relation::Unknown,
            };
            let keep = |links: &[SegmentLink], n: usize| links[n.min(shared.len() - 1)..].to_vec();
            let found = compare(&keep(&ours, kept.0), &keep(&theirs, kept.1));
            if expected == Relation::Unknown {
                let Relation::Apart { common, ours, theirs, .. } = found else {
                    panic!("{found:?}");
                };
                prop_assert_eq!(common, Some(LogPosition(both)));
                prop_assert_eq!((ours, theirs), (ours_only, theirs_only));
            } else {
                prop_assert_eq!(found, expected);
            }
        }
    }
}
