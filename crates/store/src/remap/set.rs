//! Which spares a disk has, as their headers say.

use holdfast_format::remap::SpareId;

use super::SpareAt;
use super::found::Found;
use super::setup::{SpareError, SpareErrorKind};

/// The sequence of the header of a spare that was made and not taken into use yet. That of one in use is
/// higher.
pub(super) const MADE: u64 = 1;

/// The members of the set: what the newest header says. All of them must be there; others may be, if
/// they hold nothing.
pub(super) fn check_members(
    found: &[Found],
    notes: &mut Vec<String>,
) -> Result<Vec<SpareId>, SpareError> {
    let Some(newest) = newest(found)? else { return Ok(Vec::new()) };
    let members = newest.header.members.clone();
    for member in &members {
        if !found.iter().any(|spare| spare.header.spare == *member && !spare.header.retired) {
            return Err(newest.fail(SpareErrorKind::Missing(*member)));
        }
    }
    for spare in found.iter().filter(|spare| !members.contains(&spare.header.spare)) {
        if spare.holds_units() {
            return Err(spare.fail(SpareErrorKind::NotMember));
        }
        notes.push(format!(
            "the spare {} is left out: it is none of the disk's and holds nothing",
            spare.name
        ));
    }
    Ok(members)
}

/// The same of spares that may not be all that somebody has listed: the newest of them must have been in
/// use, since one that was only made names itself alone, and both copies of its header must say the same.
pub(super) fn proven_members(found: &[Found]) -> Result<Vec<SpareId>, SpareError> {
    let members = check_members(found, &mut Vec::new())?;
    match newest(found)? {
        Some(newest) if newest.header.sequence <= MADE => {
            Err(newest.fail(SpareErrorKind::NeverUsed))
        }
        // The copy that is broken or old may have been the newer one.
        Some(newest) if newest.stale_headers != [false; 2] => {
            Err(newest.fail(SpareErrorKind::HalfHeader))
        }
        _ => Ok(members),
    }
}

/// The spare whose header counts. Where several are as new and do not say the same, one that leaves out
/// nobody who holds units, then the first: versions that gave each new spare the sequence of the first
/// one left two alike when adding one was cut off.
fn newest(found: &[Found]) -> Result<Option<&Found>, SpareError> {
    let Some(any) = found.first() else { return Ok(None) };
    for (i, spare) in found.iter().enumerate() {
        if found[..i].iter().any(|other| other.header.spare == spare.header.spare) {
            return Err(spare.fail(SpareErrorKind::Twice));
        }
    }
    let in_use = || found.iter().filter(|spare| !spare.header.retired);
    let Some(sequence) = in_use().map(|spare| spare.header.sequence).max() else {
        return Err(any.fail(SpareErrorKind::Retired));
    };
    let leaves_units_out = |spare: &&Found| {
        let members = &spare.header.members;
        found.iter().any(|other| other.holds_units() && !members.contains(&other.header.spare))
    };
    let as_new = in_use().filter(|spare| spare.header.sequence == sequence);
    Ok(as_new.min_by_key(leaves_units_out))
}

/// Which of the spares no other one names, since none could note it: they get nothing, so that what the
/// others say remains right without them.
pub(super) fn note_unnamed(used: &[(SpareAt, Found)], notes: &mut Vec<String>) -> Vec<bool> {
    let names = |other: &Found, id: SpareId| {
        let up_to_date = !(other.outdated && other.weak_header);
        up_to_date || other.named.contains(&id)
    };
    let mut is_unnamed = |at: usize| {
        let id = used[at].1.header.spare;
        let mut others = used.iter().enumerate().filter(|(other, _)| *other != at);
        let unnamed = used.len() > 1 && !others.any(|(_, (_, other))| names(other, id));
        if unnamed {
            notes.push(format!(
                "the spare {} gets nothing, since no other one can note that it is there",
                used[at].1.name
            ));
        }
        unnamed
    };
    (0..used.len()).map(&mut is_unnamed).collect()
}
