//! What a node may do by what the others said: nothing here asks, waits or writes.

use super::others::Leads;
use crate::node::PeerMember;
use holdfast_format::journal::SegmentLink;
use holdfast_journal::{Relation, compare};
use holdfast_units::{DiskState, NodeId};

/// Whether a node that was Primary before it was stopped may be so again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// As far as those who answered know.
    Yes,
    /// This one is Primary now.
    Other(String),
    /// Not now, and why.
    Wait(String),
    /// Another one is about to be Primary that gives way to this one: it is to be asked again, while
    /// this one still says that it is about to be.
    Soon(String),
}

/// Whether a node with a core may follow whoever leads by the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MayFollow {
    /// It may have what is nowhere else: a person gives that up.
    No,
    /// Its journal says what is on its disk: whoever leads judges it by that.
    Judged,
    /// What is on its disk is also there, or nothing: it may be replaced.
    Replaced,
}

/// Judges by what a node has, and the lineage of the data of whoever leads. A node that does not use
/// its disk knows nothing of what is on that: the generation that it shows is that of its peers.
pub(super) fn may_follow(
    disk: DiskState,
    generation: u64,
    has_chain: bool,
    lineage: &[u64],
) -> MayFollow {
    if disk < DiskState::Inconsistent {
        MayFollow::No
    } else if disk == DiskState::Inconsistent || lineage.contains(&generation) {
        MayFollow::Replaced
    } else if has_chain {
        MayFollow::Judged
    } else {
        MayFollow::No
    }
}

/// Whether the journal here has all that another one says. One that says nothing of its disk is not
/// equal to another one that does not.
pub(super) fn continues(own: &[SegmentLink], said: &Leads) -> bool {
    let relation = compare(own, &said.links());
    !own.is_empty() && matches!(relation, Relation::Equal | Relation::Ahead)
}

/// Whether all that somebody else has is here.
pub(super) fn has_no_more(own: &[SegmentLink], said: &Leads) -> bool {
    said.nothing || continues(own, said)
}

/// Whether somebody else who is there has all that is here. Where nobody leads he has to show it by his
/// journal. What is `nothing` is everywhere.
pub(super) fn has_what_is_here(own: &[SegmentLink], nothing: bool, said: &Leads) -> bool {
    let relation = compare(own, &said.links());
    let continues = !own.is_empty() && matches!(relation, Relation::Equal | Relation::Behind);
    nothing || said.leads || said.is_up && !said.nothing && continues
}

/// Whether somebody who answered, whatever he is just doing, may have what is not here, as far as that
/// is known. With `must_show` he may unless he shows that he has not.
pub(super) fn may_have_more(
    own: &[SegmentLink],
    peer: &PeerMember,
    said: &Leads,
    must_show: bool,
) -> bool {
    let relation = compare(own, &said.links());
    let apart = matches!(relation, Relation::Behind | Relation::Apart { .. });
    // A log peer that leads or led, and whose journal does not say what it has, or not just now.
    let unproven = said.busy && said.chain.is_empty() || said.is_up && peer.log && !said.follows;
    (must_show || apart || unproven) && !has_no_more(own, said)
}

/// Whether this node goes first of two that were Primary before and are both about to be so again: it
/// has more than the other one, or shows the same and has the smaller number. Who does not gives up
/// at once, so of two one always gets through.
fn goes_first(own: (NodeId, &[SegmentLink]), peer: &PeerMember, said: &Leads) -> bool {
    let (slot, chain) = own;
    match compare(chain, &said.links()) {
        Relation::Ahead => true,
        Relation::Behind => false,
        _ => slot < peer.slot,
    }
}

/// Judges by the answers of the members with a disk that are not connected by the core. When there are
/// none of `missing`, who are to be connected so, a log peer that does not answer is not waited for:
/// that both wrote is found when they meet. While some are missing, everybody has to say that he does
/// not lead and has nothing that is not here. Who answers is judged by what he shows, also while one
/// of his commands is under way.
pub(super) fn may_lead_again(
    own: (NodeId, &[SegmentLink]),
    missing: &[NodeId],
    answers: &[(PeerMember, Option<Leads>)],
) -> Again {
    let (slot, chain) = own;
    let leads = |(_, said): &&(PeerMember, Option<Leads>)| said.as_ref().is_some_and(|s| s.leads);
    if let Some((peer, _)) = answers.iter().find(leads) {
        return Again::Other(peer.name.clone());
    }
    let all = !missing.is_empty();
    let mut soon = None;
    for (peer, said) in answers {
        let name = &peer.name;
        if all && !said.as_ref().is_some_and(|said| said.is_up || said.claims) {
            return Again::Wait(format!("node {name} cannot be asked who is Primary"));
        }
        let Some(said) = said else { continue };
        if said.leader.is_some_and(|leader| leader != slot.number()) {
            return Again::Wait(format!("node {name} follows another one"));
        }
        if may_have_more(chain, peer, said, all) {
            return Again::Wait(format!("node {name} may have newer data"));
        }
        if said.claims {
            let why = format!("node {name} is about to be Primary");
            if !said.again || !goes_first(own, peer, said) {
                return Again::Wait(why);
            }
            soon = Some(why);
        } else if missing.contains(&peer.slot) && !said.follows {
            return Again::Wait(format!("node {name} is not connected, and may be Primary"));
        }
    }
    soon.map_or(Again::Yes, Again::Soon)
}

#[cfg(test)]
mod tests {
    use super::super::others::told;
    use super::*;
    use holdfast_cluster::Uuid;
    use holdfast_units::{HybridTime, LogPosition};

    const OWN: u8 = 0;

    fn slot(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    /// A journal of segments of these (origin, length).
    fn journal(segments: &[(u8, u64)]) -> Vec<SegmentLink> {
        let mut links: Vec<SegmentLink> = Vec::new();
        for (number, (origin, len)) in (1..).zip(segments) {
            let (base, chain) = links
                .last()
                .map_or((LogPosition::START, [0; 16]), |last| (last.end(), last.chain_after()));
            let (time, epoch) = (HybridTime(number), u64::from(*origin) + 1);
            let (origin, len) = (slot(*origin), *len);
            links.push(SegmentLink { number, origin, epoch, base, len, time, chain });
        }
        links
    }

    fn member(number: u8, log: bool) -> PeerMember {
        PeerMember {
            uuid: Uuid::new_v4(),
            name: ["alpha", "beta", "gamma"][usize::from(number)].to_owned(),
            slot: slot(number),
            diskless: false,
            log,
            addresses: Vec::new(),
        }
    }

    fn follows(chain: &[SegmentLink]) -> Leads {
        Leads { is_up: true, follows: true, chain: told(chain), ..Leads::default() }
    }

    fn of(
        chain: &[SegmentLink],
        missing: &[u8],
        beta: Option<Leads>,
        gamma: Option<Leads>,
    ) -> Again {
        let missing: Vec<NodeId> = missing.iter().map(|number| slot(*number)).collect();
        let mut answers = vec![(member(2, true), gamma)];
        if !missing.is_empty() {
            answers.push((member(1, false), beta));
        }
        may_lead_again((slot(OWN), chain), &missing, &answers)
    }

    fn waits(again: &Again, why: &str) {
        assert!(matches!(again, Again::Wait(text) if text.contains(why)), "{again:?}");
    }

    #[test]
    fn what_is_perhaps_nowhere_else_is_not_replaced() {
        use MayFollow::{Judged, No, Replaced};
        let of = |disk, has_chain, lineage: &[u64]| may_follow(disk, 7, has_chain, lineage);
        // Its journal failed while it led, or it streams: only the lineage tells.
        assert_eq!(of(DiskState::UpToDate, false, &[]), No);
        assert_eq!(of(DiskState::Consistent, false, &[6]), No);
        assert_eq!(of(DiskState::UpToDate, false, &[8, 7]), Replaced);
        assert_eq!(of(DiskState::UpToDate, true, &[]), Judged);
        assert_eq!(of(DiskState::Inconsistent, false, &[]), Replaced);
    }

    #[test]
    fn a_disk_that_is_not_in_use_is_not_replaced() {
        use DiskState::{Attaching, Detaching, Diskless, Failed, Negotiating};
        for disk in [Diskless, Attaching, Detaching, Failed, Negotiating] {
            for has_chain in [false, true] {
                // The generation is that of its peers.
                assert_eq!(may_follow(disk, 7, has_chain, &[7]), MayFollow::No, "{disk:?}");
            }
        }
    }

    #[test]
    fn who_leaves_knows_that_another_one_has_it() {
        let own = journal(&[(0, 1000)]);
        let more = journal(&[(0, 1000), (0, 10)]);
        let has = |said: &Leads| has_what_is_here(&own, false, said);
        assert!(has(&follows(&own)) && has(&follows(&more)));
        assert!(has(&Leads { leads: true, ..Leads::default() }));
        // It is there, and has less, is being filled, is down, or does not show what it has.
        assert!(!has(&follows(&journal(&[(0, 900)]))));
        assert!(!has(&Leads { nothing: true, ..follows(&[]) }));
        assert!(!has(&Leads::default()) && !has(&follows(&[])));
        assert!(!has_what_is_here(&[], false, &follows(&[])));
        assert!(has_what_is_here(&[], true, &follows(&[])));
    }

    #[test]
    fn while_a_member_of_the_pair_follows_all_must_have_less() {
        let own = journal(&[(0, 1000), (0, 500)]);
        let less = || Some(follows(&own[..1]));
        assert_eq!(of(&own, &[1], less(), less()), Again::Yes);
        // Being filled, it has nothing.
        let nothing = Leads { nothing: true, ..follows(&[]) };
        assert_eq!(of(&own, &[1], Some(nothing), less()), Again::Yes);
        waits(&of(&own, &[1], less(), None), "gamma cannot be asked");
        waits(&of(&own, &[1], None, less()), "beta cannot be asked");
        let down = Some(Leads::default());
        waits(&of(&own, &[1], less(), down), "gamma cannot be asked");
        let core = Some(Leads { follows: false, ..follows(&own[..1]) });
        waits(&of(&own, &[1], core, less()), "beta is not connected");
        let leads = Some(Leads { leads: true, ..follows(&own) });
        assert_eq!(of(&own, &[1], less(), leads), Again::Other("gamma".to_owned()));
    }

    #[test]
    fn who_follows_somebody_else_shows_that_somebody_leads() {
        let own = journal(&[(0, 1000)]);
        let of_another = || Some(Leads { leader: Some(2), ..follows(&own) });
        waits(&of(&own, &[1], of_another(), Some(follows(&own))), "beta follows another one");
        waits(&of(&own, &[], None, of_another()), "gamma follows another one");
        // He has not noticed yet that this node was stopped.
        let of_this = Some(Leads { leader: Some(OWN), ..follows(&own) });
        assert_eq!(of(&own, &[1], of_this.clone(), of_this), Again::Yes);
    }

    #[test]
    fn what_was_written_elsewhere_meanwhile_is_waited_for() {
        let own = journal(&[(0, 1000)]);
        let more = journal(&[(0, 1000), (2, 10)]);
        let other = journal(&[(0, 500), (2, 10)]);
        let same = || Some(follows(&own));
        for missing in [&[1][..], &[]] {
            waits(&of(&own, missing, same(), Some(follows(&more))), "gamma may have newer data");
            waits(&of(&own, missing, same(), Some(follows(&other))), "gamma may have newer data");
        }
        // It led, and its journal failed.
        let failed = Leads { is_up: true, ..Leads::default() };
        waits(&of(&own, &[], None, Some(failed)), "gamma may have newer data");
        // A journal that was written past proves nothing.
        waits(&of(&[], &[1], Some(follows(&[])), same()), "may have newer data");
    }

    #[test]
    fn who_answers_is_judged_whatever_he_is_doing() {
        let own = journal(&[(0, 1000)]);
        let more = journal(&[(0, 1000), (2, 10)]);
        let busy =
            |chain: &[SegmentLink]| Leads { busy: true, chain: told(chain), ..Leads::default() };
        for missing in [&[][..], &[1]] {
            let claims = Leads { claims: true, again: true, ..busy(&more) };
            let same = || Some(follows(&own));
            waits(&of(&own, missing, same(), Some(claims)), "gamma may have newer data");
        }
        waits(&of(&own, &[], None, Some(busy(&more))), "gamma may have newer data");
        // It is stopped or started just now, and shows nothing.
        waits(&of(&own, &[], None, Some(busy(&[]))), "gamma may have newer data");
        assert_eq!(of(&own, &[], None, Some(busy(&own))), Again::Yes);
        assert_eq!(of(&own, &[], None, Some(Leads { nothing: true, ..busy(&[]) })), Again::Yes);
    }

    #[test]
    fn of_two_that_are_about_to_lead_one_waits_and_the_other_asks_again() {
        let own = journal(&[(0, 1000)]);
        let more = journal(&[(0, 1000), (2, 10)]);
        let claims = |again: bool, chain: &[SegmentLink]| {
            vec![(member(1, true), Some(Leads { claims: true, again, busy: true, ..shows(chain) }))]
        };
        fn shows(chain: &[SegmentLink]) -> Leads {
            Leads { chain: told(chain), ..Leads::default() }
        }
        let of = |number: u8, chain: &[SegmentLink], answers: &[(PeerMember, Option<Leads>)]| {
            may_lead_again((slot(number), chain), &[], answers)
        };
        // A command goes first, whoever has what.
        waits(&of(0, &own, &claims(false, &own)), "beta is about to be Primary");
        waits(&of(2, &more, &claims(false, &own)), "beta is about to be Primary");
        // With the same data the smaller number does, else who has more.
        assert!(matches!(of(0, &own, &claims(true, &own)), Again::Soon(_)));
        waits(&of(2, &own, &claims(true, &own)), "beta is about to be Primary");
        assert!(matches!(of(2, &more, &claims(true, &own)), Again::Soon(_)));
        waits(&of(0, &own, &claims(true, &more)), "beta may have newer data");
        // Nor does anybody lead by that while something else is in the way.
        let mut answers = claims(true, &own);
        answers.push((member(2, true), Some(follows(&more))));
        waits(&of(0, &own, &answers), "gamma may have newer data");
    }

    #[test]
    fn a_far_site_that_is_away_or_has_another_history_holds_no_pair_up() {
        let own = journal(&[(0, 1000)]);
        assert_eq!(of(&own, &[], None, None), Again::Yes);
        assert_eq!(of(&own, &[], None, Some(Leads::default())), Again::Yes);
        assert_eq!(of(&[], &[], None, Some(follows(&own))), Again::Yes);
        assert_eq!(of(&own, &[], None, Some(follows(&[]))), Again::Yes);
    }
}
