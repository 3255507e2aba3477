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
        other => other,
    };
    if verdict == Verdict::SplitBrain || verdict == Verdict::Unrelated {
        return verdict;
    }
    if both_primary(mine, theirs) {
        return Verdict::TwoPrimaries;
    }
    guard(verdict, mine, theirs)
}

/// The same verdict, seen from the other side.
pub(crate) fn mirror(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::SourceBitmap => Verdict::TargetBitmap,
        Verdict::TargetBitmap => Verdict::SourceBitmap,
        Verdict::SourceFull => Verdict::TargetFull,
        Verdict::TargetFull => Verdict::SourceFull,
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
    if covers(m, t.current) {
        return Verdict::SourceBitmap;
    }
    if covers(t, m.current) {
        return Verdict::TargetBitmap;
    }
    if m.history.contains(&t.current) {
        return Verdict::SourceFull;
    }
    if t.history.contains(&m.current) {
        return Verdict::TargetFull;
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
        all.push(g.base);
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
/// answer, and what it answered is in the page cache.
pub(crate) fn doubts(a: &StateReport, b_node: NodeId, b: &StateReport) -> bool {
    let known_by_primary = !a.crashed_primary
        && !a.boot_changed
        && a.following == Some(b_node)
        && b.role == Role::Primary;
    a.doubtful && !known_by_primary
}

fn i_am_better(me: NodeId, mine: &StateReport, peer: NodeId, theirs: &StateReport) -> bool {
    let rank = |r: &StateReport| {
        (r.role == Role::Primary, r.crashed_primary && r.doubtful, r.near_primary)
    };
    let (a, b) = (rank(mine), rank(theirs));
    if a != b {
        return a > b;
    }
    if mine.epoch == theirs.epoch && mine.last_write != theirs.last_write {
        return mine.last_write > theirs.last_write;
    }
    me < peer
}

/// Split brain, unless a person said whose changes are to be thrown away.
fn resolve(mine: &StateReport, theirs: &StateReport) -> Verdict {
    let victim = |r: &StateReport| r.discard_my_data && r.role != Role::Primary;
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

/// A source must have consistent data; a Primary with good data must not lose it under its users.
fn guard(verdict: Verdict, mine: &StateReport, theirs: &StateReport) -> Verdict {
    let (source, target) = match verdict {
        Verdict::SourceBitmap | Verdict::SourceFull => (mine, theirs),
        Verdict::TargetBitmap | Verdict::TargetFull => (theirs, mine),
        other => return other,
    };
    if source.disk == DiskState::Inconsistent {
        return Verdict::NoGoodData;
    }
    if target.role == Role::Primary && target.disk != DiskState::Inconsistent {
        return Verdict::PrimaryMustNotBeTarget;
    }
    verdict
}
