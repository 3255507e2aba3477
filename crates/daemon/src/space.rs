//! The room of the journals of this node: how large each may be, and warnings before it is gone.

use crate::journaled::open::{follow_budget, room_on_device};
use crate::local::LocalJournal;
use crate::node::Node;
use crate::resource::Resource;
use crate::shard::JournalHandle;
use holdfast_api::options::Settings;
use holdfast_format::journal::{Compression, PeerCursor, PeerSwitches};
use holdfast_journal::ship::{FollowStatus, Trouble};
use holdfast_units::{LogPosition, format_size};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked at.
const TICK: Duration = Duration::from_secs(1);
/// From so many percent on there is a warning, and the next one.
const LEVELS: [u64; 2] = [80, 90];
/// A warning ends when it is so many percent less: else it would come and go.
const HYSTERESIS: u64 = 5;
/// Rooms are multiples of this.
const STEP: u64 = 1 << 20;

/// What there is to warn of about the journal of a resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    /// The level that was reached, in percent; 0 for none.
    level: u64,
    /// The node follows: it is full of what is not replayed.
    follows: bool,
    /// The filesystem of the journal has no room for it to grow.
    short: bool,
    /// The same in words.
    pub(crate) warnings: Vec<String>,
}

/// What there is to warn of about all journals of the node together: the level in percent.
#[derive(Debug, Default)]
pub(crate) struct NodeSpace(AtomicU64);

/// The level for a percentage, after another one.
fn level(before: u64, percent: u64) -> u64 {
    let reached = |level: &&u64| percent >= **level;
    let kept = |level: &&u64| **level <= before && percent + HYSTERESIS > **level;
    LEVELS.iter().rev().find(|level| reached(level) || kept(level)).copied().unwrap_or(0)
}

/// What each of the journals may take so that all together keep the budget of the node: the same
/// part of what it was made with.
fn shares(sizes: &[u64], budget: Option<u64>) -> Vec<u64> {
    let all: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    let Some(budget) = budget.filter(|budget| u128::from(*budget) < all) else {
        return sizes.to_vec();
    };
    let share = |size: &u64| {
        let part = u128::from(*size) * u128::from(budget) / all;
        u64::try_from(part).unwrap_or(*size) / STEP * STEP
    };
    sizes.iter().map(share).collect()
}

/// Looks after the room until the daemon stops.
pub(crate) async fn run(node: Arc<Node>) {
    loop {
        look(&node).await;
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = node.stopped() => return,
        }
    }
}

async fn look(node: &Arc<Node>) {
    let mut found: Vec<(Arc<Resource>, LocalJournal)> = Vec::new();
    for resource in node.resources() {
        follow_option(node, &resource).await;
        if let Some(journal) = resource.local().journal {
            found.push((resource, journal));
        }
    }
    let sizes: Vec<u64> = found.iter().map(|(_, journal)| journal.size).collect();
    let budget = node.settings.journal_budget;
    let mut needed = 0_u64;
    for ((resource, journal), share) in found.iter().zip(shares(&sizes, budget)) {
        needed = needed.saturating_add(look_at(node, resource, journal, share).await);
    }
    let Some(budget) = budget else { return };
    let percent = needed.saturating_mul(100).checked_div(budget).unwrap_or(0);
    let before = node.space.0.load(Ordering::Relaxed);
    let now = level(before, percent);
    node.space.0.store(now, Ordering::Relaxed);
    if now > before {
        tracing::warn!("{}", of_node(now));
    }
    if now != before {
        node.cluster_changed();
    }
}

fn of_node(level: u64) -> String {
    format!(
        "the journals of this node need more than {level} % of its journal-budget; when it is \
         used up they are cut, and followers that are away are copied to when they return"
    )
}

/// The option `journal-size`, if it was set, becomes the size that this node keeps: as much of it as a
/// device has.
async fn follow_option(node: &Arc<Node>, resource: &Arc<Resource>) {
    let Some(record) = node.view().records.resource(resource.id) else { return };
    let wanted = Settings::resolve(&record.options, None).journal_size;
    let Some(journal) = resource.local().journal.filter(|_| wanted != 0) else { return };
    if journal.size == wanted {
        return;
    }
    let dir = journal.dir.clone();
    let room = tokio::task::spawn_blocking(move || room_on_device(&dir)).await.ok().flatten();
    let wanted = room.map_or(wanted, |room| wanted.min(room));
    if journal.size == wanted {
        return;
    }
    let change = resource.change_local(node, |local| {
        if let Some(journal) = &mut local.journal {
            journal.size = wanted;
        }
    });
    if let Err(error) = change.await {
        tracing::warn!("{}", error.message);
    }
}

/// How full a journal is.
struct Used {
    /// What it may take.
    limit: u64,
    /// What it takes.
    bytes: u64,
    /// What of it is needed.
    needed: u64,
    /// The same, of what its segments may take.
    percent: u64,
    /// It is of a node that follows.
    follows: bool,
}

impl Used {
    /// Of a node that follows: what is not replayed. Without room for the next segment it is full,
    /// however much that is.
    fn of_follower(limit: u64, status: &FollowStatus) -> Self {
        let needed = status.fetched.since(status.replayed);
        let percent = needed.saturating_mul(100).checked_div(follow_budget(limit)).unwrap_or(0);
        let full = status.trouble == Some(Trouble::NoRoom);
        let percent = if full { percent.max(100) } else { percent };
        Self { limit, bytes: status.bytes, needed, percent, follows: true }
    }
}

/// Gives one journal its room, and looks how full it is; nothing while it is not open.
async fn use_of(node: &Arc<Node>, resource: &Arc<Resource>, share: u64) -> Option<Used> {
    if let Some(following) = resource.following() {
        if following.view().limit != share {
            following.set_limit(share).await;
        }
        let view = following.view();
        return view.status.map(|status| Used::of_follower(view.limit, &status));
    }
    let handle = resource.handle().and_then(|handle| handle.journal().cloned())?;
    if handle.view().limit_bytes != share {
        // A closed one is looked at again when it is open.
        let _ = handle.set_limit(share).await;
    }
    throttle(node, resource, &handle).await;
    pack(node, resource, &handle).await;
    let view = handle.view();
    let (percent, needed) = (view.figures.fill_percent(), view.figures.needed_bytes);
    Some(Used { limit: view.limit_bytes, bytes: view.bytes, needed, percent, follows: false })
}

/// Gives one journal its room, and warns when it is full; what of it is needed.
async fn look_at(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    journal: &LocalJournal,
    share: u64,
) -> u64 {
    let Some(used) = use_of(node, resource, share).await else {
        resource.state().space = Space::default();
        return 0;
    };
    let before = resource.state().space.clone();
    let dir = journal.dir.clone();
    let free = tokio::task::spawn_blocking(move || free_bytes(&dir)).await.ok().flatten();
    let may_grow = used.limit.saturating_sub(used.bytes);
    let now = Space {
        level: level(before.level, used.percent),
        follows: used.follows,
        short: free.is_some_and(|free| is_short(before.short, free, may_grow)),
        warnings: Vec::new(),
    };
    let name = resource.name();
    let worse = now.level > before.level || (now.short && !before.short);
    let differs = (now.level, now.short, now.follows && now.level > 0)
        != (before.level, before.short, before.follows && before.level > 0);
    let free = free.unwrap_or(0);
    let warnings = now.in_words(&name, &journal.dir, free, may_grow);
    if worse && let Some(warning) = warnings.last() {
        tracing::warn!(resource = name, "{warning}");
        node.hub.notice(&name, None, warning);
    }
    if differs && now.level == 0 && !now.short {
        node.hub.notice(&name, None, "the journal has room again");
    }
    let kept = before.warnings.clone();
    // The figures in the words change with every look: they are those of the moment it got worse.
    let warnings = if differs { warnings } else { kept };
    resource.state().space = Space { warnings, ..now };
    if differs {
        node.cluster_changed();
    }
    used.needed
}

/// Tells the journal how to store what is written.
async fn pack(node: &Arc<Node>, resource: &Arc<Resource>, handle: &JournalHandle) {
    let Some(record) = node.view().records.resource(resource.id) else { return };
    let wanted = Settings::resolve(&record.options, None).journal_compression;
    let wanted = Compression::named(&wanted).unwrap_or_default();
    if handle.view().compression != wanted {
        // A closed one is looked at again when it is open.
        let _ = handle.set_compression(wanted).await;
    }
}

/// Tells the journal from when on it slows writes down, and to what.
async fn throttle(node: &Arc<Node>, resource: &Arc<Resource>, handle: &JournalHandle) {
    let Some(record) = node.view().records.resource(resource.id) else { return };
    let percent = Settings::resolve(&record.options, None).journal_throttle;
    let before = resource.state().fetched.take();
    if percent == 0 {
        if before.is_some() {
            // A closed one slows nothing down.
            let _ = handle.set_throttle(0, 0).await;
        }
        return;
    }
    let Ok(cursors) = handle.cursors().await else { return };
    let now = Instant::now();
    let view = handle.view();
    let least = u128::from(view.figures.budget_bytes) * u128::from(percent) / 100;
    let late = late(&cursors.peers, view.durable, u64::try_from(least).unwrap_or(u64::MAX));
    let rate = before.as_ref().map_or(0, |(at, before)| slowest(before, &late, now - *at));
    let percent = if late.is_empty() { 0 } else { percent };
    let _ = handle.set_throttle(percent, rate).await;
    let fetched = (0_u8..).zip(cursors.peers.iter().map(|peer| peer.fetched.0)).collect();
    resource.state().fetched = Some((now, fetched));
}

/// The followers that may lose their place in the journal, as they have to fetch so many bytes at least,
/// and what they have fetched. Who has lost it is copied to when it returns, however slowly is written.
fn late(peers: &[PeerCursor], durable: LogPosition, least: u64) -> BTreeMap<u8, u64> {
    let is_late = |peer: &PeerCursor| {
        let PeerSwitches { counts, cut, .. } = peer.switches;
        counts && !cut && durable.since(peer.fetched) >= least
    };
    let late = (0_u8..).zip(peers).filter(|(_, peer)| is_late(peer));
    late.map(|(number, peer)| (number, peer.fetched.0)).collect()
}

/// How many bytes a second the slowest of the followers has fetched.
fn slowest(before: &BTreeMap<u8, u64>, now: &BTreeMap<u8, u64>, took: Duration) -> u64 {
    let millis = took.as_millis().max(1);
    let rate = |(number, fetched): (&u8, &u64)| {
        let came = fetched.saturating_sub(before.get(number).copied().unwrap_or(*fetched));
        u64::try_from(u128::from(came) * 1000 / millis).unwrap_or(u64::MAX)
    };
    now.iter().map(rate).min().unwrap_or(0)
}

impl Space {
    fn in_words(&self, name: &str, dir: &Path, free: u64, may_grow: u64) -> Vec<String> {
        let mut words = Vec::new();
        if self.level > 0 && self.follows {
            words.push(format!(
                "resource {name}: more than {} % of the journal of this log peer is not replayed; \
                 when it is full nothing more is fetched; `holdfast set {name} journal-size=SIZE` \
                 makes it larger",
                self.level
            ));
        } else if self.level > 0 {
            words.push(format!(
                "resource {name}: more than {} % of its journal is needed; when it is full it is \
                 cut, and followers that are away are copied to when they return; `holdfast set \
                 {name} journal-size=SIZE` makes it larger",
                self.level
            ));
        }
        if self.short {
            words.push(format!(
                "resource {name}: the filesystem of its journal {} has {} free, and the journal \
                 may grow by {}: it will be cut earlier",
                dir.display(),
                format_size(free),
                format_size(may_grow)
            ));
        }
        words
    }

    /// The level of the warning, in percent; 0 without one.
    pub(crate) const fn level(&self) -> u64 {
        self.level
    }
}

/// What there is to warn of on this node.
pub(crate) fn problems(node: &Node) -> Vec<String> {
    let of_all = match node.space.0.load(Ordering::Relaxed) {
        0 => None,
        level => Some(of_node(level)),
    };
    let of_each = node.resources().into_iter().flat_map(|r| r.state().space.warnings.clone());
    of_all.into_iter().chain(of_each).collect()
}

/// Whether there is too little free for what a journal may still take; once so, it is so until
/// there is a tenth more.
fn is_short(before: bool, free: u64, may_grow: u64) -> bool {
    let due = if before { may_grow.saturating_add(may_grow / 10) } else { may_grow };
    free < due
}

/// What a filesystem has free for the files of a journal; nothing for a device, which is theirs.
fn free_bytes(dir: &Path) -> Option<u64> {
    if !dir.is_dir() {
        return None;
    }
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::{is_short, late, level, shares, slowest};
    use holdfast_format::journal::{PeerCursor, PeerSwitches};
    use holdfast_units::LogPosition;
    use std::time::Duration;

    #[test]
    fn warnings_come_in_steps_and_go_later_than_they_came() {
        let mut now = 0;
        let mut seen = Vec::new();
        for percent in [10, 79, 80, 89, 90, 120, 86, 85, 76, 75, 80, 0] {
            now = level(now, percent);
            seen.push(now);
        }
        assert_eq!(seen, [0, 0, 80, 80, 90, 90, 90, 80, 80, 0, 80, 0]);
        assert!(!is_short(false, 100, 100) && is_short(false, 99, 100));
        assert!(is_short(true, 109, 100) && !is_short(true, 110, 100));
    }

    #[test]
    fn the_slowest_follower_counts() {
        let before = [(1, 1000), (2, 5000)].into();
        let rate =
            |now: [(u8, u64); 2], ms| slowest(&before, &now.into(), Duration::from_millis(ms));
        assert_eq!(rate([(1, 3000), (2, 6000)], 1000), 1000);
        assert_eq!(rate([(1, 3000), (2, 6000)], 500), 2000);
        assert_eq!(rate([(1, 3000), (2, 5000)], 500), 0);
        assert_eq!(slowest(&before, &[].into(), Duration::ZERO), 0);
    }

    #[test]
    fn writes_are_slowed_down_for_those_that_may_still_lose_their_place() {
        let peer = |fetched, counts, cut| PeerCursor {
            fetched: LogPosition(fetched),
            switches: PeerSwitches { counts, cut, ..PeerSwitches::default() },
            ..PeerCursor::default()
        };
        let peers = [
            peer(100, true, false),
            peer(100, false, false),
            peer(100, true, true),
            peer(950, true, false),
            peer(400, true, false),
        ];
        let of = |least| late(&peers, LogPosition(1000), least).into_keys().collect::<Vec<_>>();
        assert_eq!((of(500), of(600), of(50)), (vec![0, 4], vec![0, 4], vec![0, 3, 4]));
        assert_eq!((of(601), of(901)), (vec![0], Vec::new()));
    }

    #[test]
    fn the_budget_of_the_node_is_shared_out_as_the_journals_were_made() {
        const M: u64 = 1 << 20;
        assert_eq!(shares(&[64 * M, 128 * M], None), [64 * M, 128 * M]);
        assert_eq!(shares(&[64 * M, 128 * M], Some(192 * M)), [64 * M, 128 * M]);
        assert_eq!(shares(&[64 * M, 128 * M], Some(96 * M)), [32 * M, 64 * M]);
        assert_eq!(shares(&[100 * M, 100 * M, 100 * M], Some(100 * M)), [33 * M; 3]);
        assert_eq!(shares(&[], Some(1)), [0; 0]);
        assert_eq!(shares(&[u64::MAX, u64::MAX], Some(4 * M)), [2 * M, 2 * M]);
    }
}
