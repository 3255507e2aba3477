//! Spares that are nearly full, told in time.

use super::SparesView;
use crate::resource::State;
use holdfast_api::words::{agreed, counted};
use holdfast_store::SpareFill;

/// How the spares of a resource's disk are, when they are in use.
fn view_of(state: &State) -> Option<SparesView> {
    match (&state.running, &state.following) {
        (Some(running), _) => running.handle.snapshot().spares.clone(),
        (None, Some(following)) => following.view().spares,
        (None, None) => None,
    }
}

fn percent(view: &SparesView) -> u64 {
    (view.stats.slots - view.stats.free) * 100 / view.stats.slots.max(1)
}

/// What a person should do about the spares of a disk.
pub(crate) fn problems(state: &State) -> Vec<String> {
    let Some(view) = view_of(state) else { return Vec::new() };
    let (name, stats) = (&state.local.name, view.stats);
    let more = format!("`holdfast spare add {name} PATH` makes room");
    let mut found = Vec::new();
    match stats.fill {
        SpareFill::Fine => {}
        SpareFill::Low | SpareFill::Critical => found.push(format!(
            "resource {name}: the spares of its disk are {} % full, {} slots are free; the disk is \
             failing, and {more}",
            percent(&view),
            stats.free
        )),
        SpareFill::Full => found.push(format!(
            "resource {name}: the spares of its disk are full: the next bad block that is written \
             fails the disk; {more}"
        )),
    }
    if stats.lost > 0 {
        found.push(format!(
            "resource {name}: {} of its disk {} no good copy here, reads of {them} fail until {} \
             written; `holdfast badblocks ls {name}` lists {them}",
            counted(stats.lost, "block"),
            agreed(stats.lost, "has", "have"),
            agreed(stats.lost, "it is", "they are"),
            them = agreed(stats.lost, "it", "them"),
        ));
    }
    if stats.weak_blocks > 0 {
        found.push(format!(
            "resource {name}: {} of the metadata of its spares can be written in one place only; \
             add another spare and remove the failing one",
            counted(stats.weak_blocks, "block")
        ));
    }
    found
}

/// What is said when the spares have come to another level, or nothing; the level is remembered.
pub(crate) fn news(state: &mut State) -> Option<String> {
    let view = view_of(state)?;
    let before = state.spare_fill.replace(view.stats.fill);
    let now = view.stats.fill;
    if now <= before.unwrap_or(SpareFill::Fine) {
        return None;
    }
    let (percent, free) = (percent(&view), view.stats.free);
    Some(match now {
        SpareFill::Fine => return None,
        SpareFill::Low => {
            format!("the spares of the disk are {percent} % full, {free} slots are free")
        }
        SpareFill::Critical => {
            format!("the spares of the disk are {percent} % full: only {free} slots are free")
        }
        SpareFill::Full => "the spares of the disk are full".to_owned(),
    })
}
