//! The verdict of a handshake: who has the newer data (DRBD's generation identifiers).

use holdfast_units::{DiskState, GenerationId, NodeId, Role};
use holdfast_wire::{Generations, StateReport, Verdict};

/// What `mine` and `theirs` mean for the two disks, seen from `mine`.
///
/// Both nodes would find the same: `decide(a, b) == mirror(decide(b, a))`.
pub(crate) fn decide(
    me: NodeId,
    mine: &StateReport,
    peer: NodeId,
    theirs: &StateReport,
) -> Verdict {
    if mine.disk <= DiskState::Failed || theirs.disk <= DiskState::Failed {
        return if both_primary(mine, theirs) { Verdict::TwoPrimaries } else { Verdict::InSync };
    }
    let verdict = by_generation(me, mine, peer, theirs);
    let verdict = match verdict {
        Verdict::SplitBrain => resolve(mine, theirs),
        Verdict::Unrelated => resolve_unrelated(mine, theirs),
        other => other,
    };
    if verdict == Verdict::SplitBrain || verdict == Verdict::Unrelated {
        return verdict;
    }
    if both_primary(mine, theirs) {
        return Verdict::TwoPrimaries;
    }
    match leave_to_primary(guard(verdict, mine, theirs), mine, theirs) {
        Verdict::SourceBitmap if has_in_journal(me, mine, peer, theirs) => Verdict::SourceReplay,
        Verdict::TargetBitmap if has_in_journal(peer, theirs, me, mine) => Verdict::TargetReplay,
        other => other,
    }
}

/// Whether what the target misses is in the source's journal: it is what it was when the source lost
/// it, but for what the source did to it since.
fn has_in_journal(source: NodeId, s: &StateReport, target: NodeId, t: &StateReport) -> bool {
    let offered = !s.replays.is_none()
        && s.replays == t.generations.current
        && (t.untouched || s.replays_restarted);
    let good = s.role == Role::Primary && s.disk == DiskState::UpToDate && !s.lost_cache;
    let consistent =
        matches!(t.disk, DiskState::Outdated | DiskState::Consistent | DiskState::UpToDate);
    let as_it_was = t.role != Role::Primary
        && t.bits == 0
        && t.filled_from.is_none()
        && !t.lost_cache
        && !t.crashed_primary
        && !s.saw_failure;
    let doubt = doubts(s, target, t) || doubts(t, source, s);
    offered && good && consistent && as_it_was && !doubt
}

/// The same verdict, seen from the other side.
pub(crate) fn mirror(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::SourceBitmap => Verdict::TargetBitmap,
        Verdict::TargetBitmap => Verdict::SourceBitmap,
        Verdict::SourceFull => Verdict::TargetFull,
        Verdict::TargetFull => Verdict::SourceFull,
        Verdict::PausedSource => Verdict::PausedTarget,
        Verdict::PausedTarget => Verdict::PausedSource,
        Verdict::SourceReplay => Verdict::TargetReplay,
        Verdict::TargetReplay => Verdict::SourceReplay,
        same => same,
    }
}

fn both_primary(mine: &StateReport, theirs: &StateReport) -> bool {
    mine.role == Role::Primary && theirs.role == Role::Primary
}

fn by_generation(me: NodeId, mine: &StateReport, peer: NodeId, theirs: &StateReport) -> Verdict {
    let (m, t) = (&mine.generations, &theirs.generations);
    let fresh = GenerationId::JUST_CREATED;
    if m.current == fresh && t.current == fresh {
        return Verdict::NoGoodData;
    }
    // A copy that was being filled for the first time goes on where it stopped.
    if t.current == fresh {
        return if m.base == fresh { Verdict::SourceBitmap } else { Verdict::SourceFull };
    }
    if m.current == fresh {
        return if t.base == fresh { Verdict::TargetBitmap } else { Verdict::TargetFull };
    }
    if m.current == t.current {
        return same_generation(me, mine, peer, theirs);
    }
    match (covers(m, t.current), covers(t, m.current)) {
        (true, false) => return Verdict::SourceBitmap,
        (false, true) => return Verdict::TargetBitmap,
        // Each took the other for older: that is for a person to look at.
        (true, true) => return Verdict::SplitBrain,
        (false, false) => {}
    }
    match (m.history.contains(&t.current), t.history.contains(&m.current)) {
        (true, false) => return Verdict::SourceFull,
        (false, true) => return Verdict::TargetFull,
        (true, true) => return Verdict::SplitBrain,
        (false, false) => {}
    }
    if have_common_past(m, t) { Verdict::SplitBrain } else { Verdict::Unrelated }
}

/// Whether `g` has noted all that a disk of the generation `theirs` misses.
fn covers(g: &Generations, theirs: GenerationId) -> bool {
    if g.base.is_none() {
        return false;
    }
    if g.base == theirs {
        return true;
    }
    let Some(at) = g.history.iter().position(|h| *h == theirs) else { return false };
    // Newest first: what is noted since `base` covers every generation that is not older.
    g.history.iter().position(|h| *h == g.base).is_none_or(|base| at <= base)
}

fn have_common_past(a: &Generations, b: &Generations) -> bool {
    let past = |g: &Generations| {
        let mut all: Vec<GenerationId> = g.history.iter().chain(&g.slots).copied().collect();
        all.extend([g.current, g.base]);
        all.retain(|id| !id.is_none() && *id != GenerationId::JUST_CREATED);
        all
    };
    let of_b = past(b);
    past(a).iter().any(|id| of_b.contains(id))
}

/// Equal generations: equal data but for what a crash left in doubt and what is noted.
fn same_generation(me: NodeId, mine: &StateReport, peer: NodeId, theirs: &StateReport) -> Verdict {
    let mine_bad = mine.disk == DiskState::Inconsistent;
    let theirs_bad = theirs.disk == DiskState::Inconsistent;
    let doubt = doubts(mine, peer, theirs) || doubts(theirs, me, mine);
    let equal = !doubt && mine.bits == 0 && theirs.bits == 0;
    match (mine_bad, theirs_bad) {
        (true, true) => Verdict::NoGoodData,
        (true, false) => Verdict::TargetBitmap,
        (false, true) => Verdict::SourceBitmap,
        (false, false) if equal => Verdict::InSync,
        _ if i_am_better(me, mine, peer, theirs) => Verdict::SourceBitmap,
        _ => Verdict::TargetBitmap,
    }
}

/// Whether `a` has extents that may differ from `b`'s. A Secondary whose daemon was killed under a
/// Primary that is still there has nothing to doubt: the Primary knows every write that it did not
/// answer, and what it answered is in the page cache, unless its disk failed.
pub(crate) fn doubts(a: &StateReport, b_node: NodeId, b: &StateReport) -> bool {
    let known_by_primary = !a.crashed_primary
        && !a.lost_cache
        && !b.saw_failure
        && a.following == Some(b_node)
        && b.role == Role::Primary;
    a.doubtful && !known_by_primary
}

/// Of two disks of one generation, which both have every write that was completed and flushed:
/// a node that was only killed still has in its page cache what another one lost with its power.
fn i_am_better(me: NodeId, mine: &StateReport, peer: NodeId, theirs: &StateReport) -> bool {
    let rank = |r: &StateReport, by: &StateReport| {
        let current = r.disk != DiskState::Outdated;
        // Clients have worked with what it had left, or a peer was filled with that, and it runs since.
        let lost_earlier = r.lost_cache && r.disk == DiskState::UpToDate;
        // One that is in doubt may have lost it again since, and be UpToDate only because it met somebody
        // else first.
        let has_all = (!r.lost_cache, lost_earlier, lost_earlier && !r.doubtful);
        (
            r.role == Role::Primary,
            has_all,
            // It may have been made whole since, and who saw it not have heard of that.
            !by.saw_failure,
            current,
            r.crashed_primary && r.doubtful,
            // Who alone knows of something that the other one lacks: were it told by number, a third one
            // between two that are not connected could be filled by both of them in turns for ever.
            r.bits > 0 && by.bits == 0,
        )
    };
    let (a, b) = (rank(mine, theirs), rank(theirs, mine));
    if a == b { me < peer } else { a > b }
}

/// A Primary with good data fills everybody itself, in line with its writes; two Secondaries copy
/// from each other only where there is none that either could wait for.
fn leave_to_primary(verdict: Verdict, mine: &StateReport, theirs: &StateReport) -> Verdict {
    let one_is_primary = mine.role == Role::Primary || theirs.role == Role::Primary;
    let same = mine.primary == theirs.primary;
    let good = mine.primary_good || theirs.primary_good;
    if one_is_primary || (same && (mine.primary.is_none() || !good)) {
        return verdict;
    }
    match verdict {
        Verdict::SourceBitmap | Verdict::SourceFull => Verdict::PausedSource,
        Verdict::TargetBitmap | Verdict::TargetFull => Verdict::PausedTarget,
        // Who does not see the Primary may be left behind at any time.
        Verdict::InSync if mine.primary.is_none() => Verdict::PausedTarget,
        Verdict::InSync if theirs.primary.is_none() => Verdict::PausedSource,
        Verdict::InSync if !same => Verdict::NoGoodData,
        other => other,
    }
}

/// Whether a person said that this node's changes are to be thrown away.
fn victim(r: &StateReport) -> bool {
    r.discard_my_data && r.role != Role::Primary
}

/// Unrelated data, unless a person said whose are to be thrown away: then all is copied.
fn resolve_unrelated(mine: &StateReport, theirs: &StateReport) -> Verdict {
    match (victim(mine), victim(theirs)) {
        (true, false) => Verdict::TargetFull,
        (false, true) => Verdict::SourceFull,
        _ => Verdict::Unrelated,
    }
}

/// Split brain, unless a person said whose changes are to be thrown away.
fn resolve(mine: &StateReport, theirs: &StateReport) -> Verdict {
    // Both noted what changed since the same generation: only that has to be copied.
    let (m, t) = (&mine.generations, &theirs.generations);
    let noted = !m.base.is_none() && m.base == t.base;
    match (victim(mine), victim(theirs)) {
        (true, false) if noted => Verdict::TargetBitmap,
        (true, false) => Verdict::TargetFull,
        (false, true) if noted => Verdict::SourceBitmap,
        (false, true) => Verdict::SourceFull,
        _ => Verdict::SplitBrain,
    }
}

/// Whether a half-filled disk was to get newer data than this source has: others hold those, and until a
/// person promotes this source all the same, they are waited for.
pub(crate) fn knows_newer(target: &StateReport, source: &StateReport) -> bool {
    let goal = target.filled_to;
    target.disk == DiskState::Inconsistent
        && !goal.is_none()
        && goal != source.generations.current
        && !source.generations.history.contains(&goal)
}

/// What becomes of an Inconsistent disk that would be the source: its newer data are lost, or with
/// others. A Primary with good data has decided which ones count, and so has a person who gave these up.
fn fill_all_the_same(verdict: Verdict, source: &StateReport, target: &StateReport) -> Verdict {
    let primary = source.role != Role::Primary && target.role == Role::Primary;
    let given_up = victim(source) && !victim(target);
    let good =
        target.disk == DiskState::UpToDate || (given_up && target.disk > DiskState::Inconsistent);
    if !good || !(primary || given_up) {
        return Verdict::NoGoodData;
    }
    // Nobody noted since a common generation what the two do not share.
    match verdict {
        Verdict::SourceBitmap | Verdict::SourceFull => Verdict::TargetFull,
        _ => Verdict::SourceFull,
    }
}

/// A source must have consistent data; a Primary with good data must not lose it under its users.
fn guard(verdict: Verdict, mine: &StateReport, theirs: &StateReport) -> Verdict {
    let (source, target) = match verdict {
        Verdict::SourceBitmap | Verdict::SourceFull => (mine, theirs),
        Verdict::TargetBitmap | Verdict::TargetFull => (theirs, mine),
        other => return other,
    };
    if source.disk == DiskState::Inconsistent {
        return fill_all_the_same(verdict, source, target);
    }
    if target.role == Role::Primary && target.disk != DiskState::Inconsistent {
        return match resolve(mine, theirs) {
            Verdict::SplitBrain => Verdict::PrimaryMustNotBeTarget,
            resolved => resolved,
        };
    }
    if source.role != Role::Primary && target.role != Role::Primary && knows_newer(target, source) {
        return Verdict::NoGoodData;
    }
    if !target.serves.is_none() && source.generations.current != target.serves {
        // Its clients work on other data than these.
        return Verdict::NoGoodData;
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::{decide, mirror};
    use holdfast_units::{DiskState, GenerationId, NodeId, Role};
    use holdfast_wire::{Generations, StateReport, Verdict};
    use proptest::prelude::*;

    fn node(number: u8) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn report(current: u64, base: u64, history: &[u64]) -> StateReport {
        let mut past = [GenerationId::NONE; 32];
        for (slot, id) in past.iter_mut().zip(history) {
            *slot = GenerationId(*id);
        }
        StateReport {
            serial: 1,
            generations: Generations {
                current: GenerationId(current),
                base: GenerationId(base),
                history: past,
                slots: [GenerationId::NONE; 32],
            },
            role: Role::Secondary,
            disk: DiskState::Consistent,
            doubtful: false,
            crashed_primary: false,
            lost_cache: false,
            filled_from: None,
            filled_to: GenerationId::NONE,
            following: None,
            discard_my_data: false,
            primary: None,
            primary_good: false,
            serves: GenerationId::NONE,
            saw_failure: false,
            bits: 0,
            replays: GenerationId::NONE,
            replays_restarted: false,
            untouched: false,
        }
    }

    fn verdict(mine: &StateReport, theirs: &StateReport) -> Verdict {
        let verdict = decide(node(0), mine, node(1), theirs);
        assert_eq!(verdict, mirror(decide(node(1), theirs, node(0), mine)), "both find the same");
        verdict
    }

    #[test]
    fn chains_of_generations() {
        let fresh = GenerationId::JUST_CREATED.0;
        let (old, base) = (report(100, 0, &[]), 100);
        assert_eq!(verdict(&old, &old.clone()), Verdict::InSync);
        assert_eq!(verdict(&report(200, base, &[100]), &old), Verdict::SourceBitmap);
        assert_eq!(verdict(&old, &report(200, base, &[100])), Verdict::TargetBitmap);
        // What is noted since 100 covers a disk that has got as far as 150.
        assert_eq!(
            verdict(&report(200, base, &[150, 100]), &report(150, 0, &[100])),
            Verdict::SourceBitmap
        );
        // What is noted since 150 does not cover a disk of 100.
        assert_eq!(verdict(&report(200, 150, &[150, 100]), &old), Verdict::SourceFull);
        assert_eq!(verdict(&report(200, 0, &[150, 100]), &old), Verdict::SourceFull);
        assert_eq!(verdict(&report(200, 0, &[]), &report(fresh, 0, &[])), Verdict::SourceFull);
        assert_eq!(
            verdict(&report(200, fresh, &[]), &report(fresh, 0, &[])),
            Verdict::SourceBitmap
        );
        assert_eq!(verdict(&report(fresh, 0, &[]), &report(fresh, 0, &[])), Verdict::NoGoodData);
        assert_eq!(
            verdict(&report(200, base, &[100]), &report(300, base, &[100])),
            Verdict::SplitBrain
        );
        assert_eq!(verdict(&report(200, 0, &[]), &report(300, 0, &[])), Verdict::Unrelated);
    }

    #[test]
    fn only_a_peer_that_is_what_it_was_is_caught_up_from_the_journal() {
        let primary = StateReport {
            role: Role::Primary,
            disk: DiskState::UpToDate,
            primary: Some(node(0)),
            primary_good: true,
            bits: 1,
            replays: GenerationId(100),
            ..report(200, 100, &[100])
        };
        let away = StateReport { untouched: true, ..report(100, 0, &[]) };
        assert_eq!(verdict(&primary, &away), Verdict::SourceReplay);
        let killed = StateReport { doubtful: true, following: Some(node(0)), ..away.clone() };
        assert_eq!(verdict(&primary, &killed), Verdict::SourceReplay);
        let restarted = StateReport { untouched: false, ..away.clone() };
        assert_eq!(verdict(&primary, &restarted), Verdict::SourceBitmap);
        let two = StateReport { replays_restarted: true, ..primary.clone() };
        assert_eq!(verdict(&two, &restarted), Verdict::SourceReplay);
        for other in [
            StateReport { bits: 1, ..away.clone() },
            StateReport { lost_cache: true, ..away.clone() },
            StateReport { doubtful: true, crashed_primary: true, ..away.clone() },
            StateReport { disk: DiskState::Inconsistent, ..away.clone() },
            StateReport { filled_from: Some(node(2)), ..away.clone() },
            StateReport { generations: report(150, 0, &[100]).generations, ..away.clone() },
        ] {
            assert_ne!(verdict(&two, &other), Verdict::SourceReplay, "{other:?}");
        }
        for other in [
            StateReport { replays: GenerationId::NONE, ..two.clone() },
            StateReport { saw_failure: true, ..two.clone() },
            StateReport { disk: DiskState::Outdated, ..two.clone() },
            StateReport { role: Role::Secondary, ..two },
        ] {
            assert_ne!(verdict(&other, &away), Verdict::SourceReplay, "{other:?}");
        }
    }

    #[test]
    fn a_victim_gives_its_data_up() {
        let mine = report(200, 100, &[100]);
        let victim = StateReport { discard_my_data: true, ..report(300, 100, &[100]) };
        assert_eq!(verdict(&mine, &victim), Verdict::SourceBitmap);
        let primary = StateReport { role: Role::Primary, ..victim.clone() };
        assert_eq!(verdict(&mine, &primary), Verdict::SplitBrain, "a Primary is no victim");
        let both = StateReport { discard_my_data: true, ..mine };
        assert_eq!(verdict(&both, &victim), Verdict::SplitBrain, "two victims are none");
    }

    #[test]
    fn a_killed_secondary_doubts_nothing_under_its_primary() {
        let primary = StateReport { role: Role::Primary, ..report(100, 0, &[]) };
        let killed =
            StateReport { doubtful: true, following: Some(node(0)), ..report(100, 0, &[]) };
        assert_eq!(verdict(&primary, &killed), Verdict::InSync);
        let power = StateReport { lost_cache: true, ..killed.clone() };
        assert_eq!(verdict(&primary, &power), Verdict::SourceBitmap);
        let demoted = report(100, 0, &[]);
        assert_eq!(verdict(&demoted, &killed), Verdict::SourceBitmap);
    }

    #[test]
    fn a_crashed_primary_is_source_unless_another_one_runs() {
        let crashed = StateReport { doubtful: true, crashed_primary: true, ..report(100, 0, &[]) };
        assert_eq!(verdict(&crashed, &report(100, 0, &[])), Verdict::SourceBitmap);
        let running = StateReport { role: Role::Primary, ..report(100, 0, &[]) };
        assert_eq!(verdict(&crashed, &running), Verdict::TargetBitmap);
    }

    #[test]
    fn inconsistent_data_are_never_a_source() {
        let bad = StateReport { disk: DiskState::Inconsistent, ..report(200, 100, &[100]) };
        let older = report(100, 0, &[]);
        assert_eq!(verdict(&bad, &older), Verdict::NoGoodData);
        let primary = StateReport {
            role: Role::Primary,
            disk: DiskState::UpToDate,
            primary: Some(node(1)),
            primary_good: true,
            ..older.clone()
        };
        assert_eq!(
            verdict(&bad, &primary),
            Verdict::TargetFull,
            "a Primary with good data decides"
        );
        let outdated = StateReport { disk: DiskState::Outdated, ..primary };
        assert_eq!(verdict(&bad, &outdated), Verdict::NoGoodData);
        let given_up = StateReport { discard_my_data: true, ..bad };
        assert_eq!(verdict(&given_up, &older), Verdict::TargetFull, "a person does");
        let both = StateReport { discard_my_data: true, ..older };
        assert_eq!(verdict(&given_up, &both), Verdict::NoGoodData);
    }

    #[test]
    fn a_primary_with_good_data_fills_both() {
        let near = |good| StateReport {
            primary: Some(node(5)),
            primary_good: good,
            ..report(200, 100, &[100])
        };
        let old = report(100, 0, &[]);
        let old_near = StateReport { primary: Some(node(5)), ..old.clone() };
        assert_eq!(verdict(&near(true), &old), Verdict::PausedSource);
        assert_eq!(verdict(&near(false), &old), Verdict::PausedSource, "it may see it yet");
        assert_eq!(verdict(&near(true), &old_near), Verdict::PausedSource);
        assert_eq!(verdict(&near(false), &old_near), Verdict::SourceBitmap, "nobody else can");
        assert_eq!(verdict(&near(true), &near(true)), Verdict::InSync);
        let apart = report(200, 100, &[100]);
        assert_eq!(verdict(&near(true), &apart), Verdict::PausedSource);
        let primary = StateReport { role: Role::Primary, ..near(true) };
        assert_eq!(verdict(&primary, &old), Verdict::SourceBitmap);
    }

    #[test]
    fn who_kept_its_cache_fills_who_lost_it() {
        let kept = StateReport { disk: DiskState::Outdated, bits: 1, ..report(100, 0, &[]) };
        let lost = StateReport { doubtful: true, lost_cache: true, ..report(100, 0, &[]) };
        assert_eq!(verdict(&lost, &kept), Verdict::TargetBitmap);
    }

    #[test]
    fn who_lost_its_cache_earlier_fills_who_lost_it_now() {
        let now = StateReport { doubtful: true, lost_cache: true, ..report(100, 0, &[]) };
        let earlier = StateReport { disk: DiskState::UpToDate, ..now.clone() };
        assert_eq!(verdict(&now, &earlier), Verdict::TargetBitmap);
        let primary_then = StateReport { crashed_primary: true, ..now };
        assert_eq!(verdict(&primary_then, &earlier), Verdict::TargetBitmap);
        // It met somebody first whom it fills.
        let source_by_now = StateReport { disk: DiskState::UpToDate, ..primary_then.clone() };
        let settled = StateReport { doubtful: false, ..earlier.clone() };
        assert_eq!(verdict(&source_by_now, &settled), Verdict::TargetBitmap);
        let kept = StateReport { lost_cache: false, ..primary_then };
        assert_eq!(verdict(&kept, &earlier), Verdict::SourceBitmap, "who kept it is better yet");
    }

    fn any_report() -> impl Strategy<Value = StateReport> {
        let id = prop_oneof![Just(0u64), Just(4u64), 100u64..105];
        (
            (prop_oneof![Just(4u64), 100u64..105], id.clone(), prop::collection::vec(id, 0..4)),
            (0u8..6, any::<[bool; 6]>(), 0u64..2, prop::option::of(0u8..3)),
            (prop_oneof![Just(0u64), 100u64..105], any::<[bool; 2]>()),
        )
            .prop_map(
                |((current, base, history), (disk, flags, bits, primary), replay)| StateReport {
                    role: if flags[0] { Role::Primary } else { Role::Secondary },
                    disk: DiskState::ALL[usize::from(disk) + 4],
                    doubtful: flags[1],
                    crashed_primary: flags[2],
                    lost_cache: flags[3],
                    discard_my_data: flags[4],
                    primary: primary.map(node),
                    primary_good: flags[5],
                    bits,
                    replays: GenerationId(replay.0),
                    replays_restarted: replay.1[0],
                    untouched: replay.1[1],
                    ..report(current, base, &history)
                },
            )
    }

    proptest! {
        #[test]
        fn both_sides_find_the_same(a in any_report(), b in any_report()) {
            verdict(&a, &b);
        }
    }
}
