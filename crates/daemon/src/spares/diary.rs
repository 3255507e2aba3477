//! What is told of changes of the map of a disk: who has to know what became of which block, when,
//! and why. Many changes make few sentences.

use super::age;
use crate::node::Node;
use holdfast_format::remap::Reason;
use holdfast_store::{Disk, RemapChange, RemapFate, TableWrites};
use holdfast_units::{ByteRange, ResourceId};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Batches of changes that a slow reader can lag behind.
const QUEUE: usize = 256;
/// So many sentences a second are told one by one.
const SENTENCES: u32 = 16;
const A_SECOND: Duration = Duration::from_secs(1);
/// Bytes of a sector as the kernel counts them.
const SECTOR: u64 = 512;

/// Changes of the tables of the spares of a disk, from when it was opened; there are none of a disk
/// without spares.
#[derive(Debug)]
pub(crate) struct MapChanges(Option<(TableWrites, broadcast::Receiver<Batch>)>);

/// Changes that became durable together, and how often the tables were written then.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    changes: Arc<[RemapChange]>,
    writes: Arc<TableWrites>,
}

/// The changes that one reader is told of.
#[derive(Debug)]
pub(crate) struct MapNews {
    /// How often the tables were written when the disk was opened.
    at_first: TableWrites,
    batches: broadcast::Receiver<Batch>,
}

impl MapChanges {
    /// Of a disk that has no spares, or that is not there.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// From now on. It ends when the disk is closed.
    pub(crate) fn subscribe(&self) -> Option<MapNews> {
        let (at_first, batches) = self.0.as_ref()?;
        Some(MapNews { at_first: at_first.clone(), batches: batches.resubscribe() })
    }
}

/// Has the changes of a disk told.
pub(crate) fn watch_map(disk: &mut Disk) -> MapChanges {
    if disk.remap_stats().is_none() {
        return MapChanges::none();
    }
    let (sender, receiver) = broadcast::channel(QUEUE);
    disk.watch_remap(Box::new(move |changes, writes| {
        // That nobody listens is no error.
        let _ = sender.send(Batch { changes: changes.into(), writes: Arc::new(writes.clone()) });
    }));
    let writes = disk.spares().iter().map(|spare| (spare.id, spare.table_writes)).collect();
    MapChanges(Some((writes, receiver)))
}

/// Makes sentences of changes: a run of neighbours that share their fate is one, and when there are
/// too many in a second, the rest is counted.
#[derive(Debug)]
struct Diary {
    began: Instant,
    told: u32,
    /// Blocks of which nothing was told one by one: moved, lost, returned, slots that failed.
    rest: [u64; 4],
}

impl Diary {
    fn new(now: Instant) -> Self {
        Self { began: now, told: 0, rest: [0; 4] }
    }

    /// The sentences for these changes.
    fn note(&mut self, now: Instant, changes: &[RemapChange]) -> Vec<String> {
        let mut lines = Vec::from_iter(self.rest(now));
        for run in runs(changes) {
            if self.told < SENTENCES {
                self.told += 1;
                lines.push(sentence(&run));
            } else {
                self.rest[kind(run.fate)] += run.count;
            }
        }
        lines
    }

    /// One that some changes were missed.
    fn missed(batches: u64) -> String {
        format!(
            "{batches} batches of changes of the map are not listed: there were too many at once"
        )
    }

    /// What was only counted, when its second is over.
    fn rest(&mut self, now: Instant) -> Option<String> {
        if now.duration_since(self.began) < A_SECOND {
            return None;
        }
        (self.began, self.told) = (now, 0);
        let rest = std::mem::take(&mut self.rest);
        let words = ["moved into a spare", "lost", "back in place", "slots that failed"];
        let mut text = String::new();
        for (count, word) in rest.iter().zip(words).filter(|(count, _)| **count > 0) {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing into a String cannot fail.
            let _ = write!(text, "{comma}{count} {word}");
        }
        (!text.is_empty()).then(|| format!("more blocks of the map have changed: {text}"))
    }
}

/// Notes how often the tables were written: at once, then once a second at most.
struct Notes {
    node: Arc<Node>,
    resource: ResourceId,
    /// What is not noted yet.
    pending: Option<TableWrites>,
    tried: Instant,
    /// It was noted once: from then on nobody's is forgotten.
    begun: bool,
    /// It could not be, and that was told.
    failed: bool,
}

impl Notes {
    async fn note(&mut self, now: Instant) {
        if now.duration_since(self.tried) < A_SECOND {
            return;
        }
        let Some(writes) = self.pending.clone() else { return };
        self.tried = now;
        let (store, id, all) = (self.node.store.clone(), self.resource, !self.begun);
        let path = store.spare_writes_path(id);
        let own = path.clone();
        let write = move || age::write(&own, &store.path(id), &writes, all);
        let written = tokio::task::spawn_blocking(write);
        match written.await {
            Ok(Ok(())) => (self.pending, self.begun, self.failed) = (None, true, false),
            // It is tried again.
            Ok(Err(error)) if !self.failed => {
                tracing::warn!("{} could not be written: {error}", path.display());
                self.failed = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Tells what becomes of bad sectors, and notes how often the tables of the spares were written, until the
/// disk is closed.
pub(crate) async fn tell_map(node: Arc<Node>, resource: ResourceId, news: MapNews) {
    let MapNews { at_first, mut batches } = news;
    let now = Instant::now();
    let mut notes = Notes {
        node: Arc::clone(&node),
        resource,
        pending: Some(at_first),
        tried: now.checked_sub(A_SECOND).unwrap_or(now),
        begun: false,
        failed: false,
    };
    notes.note(now).await;
    // It may get another name meanwhile.
    let name = || node.resource(resource).map_or_else(|| resource.to_string(), |one| one.name());
    let mut diary = Diary::new(Instant::now());
    loop {
        let next = tokio::time::timeout(A_SECOND, batches.recv()).await;
        let lines = match next {
            Ok(Ok(Batch { changes, writes })) => {
                notes.pending = Some(Arc::unwrap_or_clone(writes));
                diary.note(Instant::now(), &changes)
            }
            Ok(Err(RecvError::Lagged(batches))) => vec![Diary::missed(batches)],
            Ok(Err(RecvError::Closed)) => break,
            Err(_) => Vec::from_iter(diary.rest(Instant::now())),
        };
        notes.note(Instant::now()).await;
        for line in lines {
            let name = name();
            tracing::warn!(resource = name, "{line}");
            node.hub.notice(&name, None, &line);
        }
    }
    notes.note(Instant::now() + A_SECOND).await;
    if let Some(line) = diary.rest(Instant::now() + A_SECOND) {
        node.hub.notice(&name(), None, &line);
    }
}

/// Neighbours with one fate.
struct Run {
    range: ByteRange,
    count: u64,
    fate: RemapFate,
    reason: Reason,
}

const fn kind(fate: RemapFate) -> usize {
    match fate {
        RemapFate::Placed(..) => 0,
        RemapFate::Lost => 1,
        RemapFate::Returned => 2,
        RemapFate::SlotFailed(..) => 3,
    }
}

/// Whether both are told in one sentence: of slots only the first one is named.
fn alike(a: RemapFate, b: RemapFate) -> bool {
    match (a, b) {
        (RemapFate::Placed(one, _), RemapFate::Placed(other, _)) => one == other,
        (RemapFate::SlotFailed(..), _) | (_, RemapFate::SlotFailed(..)) => false,
        (a, b) => a == b,
    }
}

fn runs(changes: &[RemapChange]) -> Vec<Run> {
    let mut sorted = changes.to_vec();
    sorted.sort_by_key(|change| (kind(change.fate), change.range.offset));
    let mut runs: Vec<Run> = Vec::new();
    for RemapChange { range, fate, reason } in sorted {
        match runs.last_mut() {
            Some(run)
                if run.range.end() == range.offset
                    && run.reason == reason
                    && alike(run.fate, fate) =>
            {
                run.range.len += range.len;
                run.count += 1;
            }
            _ => runs.push(Run { range, count: 1, fate, reason }),
        }
    }
    runs
}

/// Where bad sectors are, in the words of the kernel's log and in bytes.
fn place(range: ByteRange) -> String {
    let (first, last) = (range.offset / SECTOR, range.end() / SECTOR - 1);
    format!("LBA {first}-{last} (at byte {}, {} bytes)", range.offset, range.len)
}

/// Why, as the end of a sentence.
const fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::None => "for no reason that is known",
        Reason::WriteError => "a write failed",
        Reason::ReadError => "it could not be read, and no good copy was found",
        Reason::ByHand => "somebody asked for it",
        Reason::Imported => "it is on a list of bad blocks",
        Reason::Moved => "the place before was given up",
        Reason::NotReadBack => "what was written did not read back",
    }
}

fn sentence(run: &Run) -> String {
    let place = place(run.range);
    let why = why(run.reason);
    match run.fate {
        RemapFate::Placed(spare, slot) if run.count == 1 => {
            format!("{place} is in slot {slot} of the spare {spare} now: {why}")
        }
        RemapFate::Placed(spare, _) => format!("{place} is in the spare {spare} now: {why}"),
        RemapFate::Lost => format!("{place} is lost until it is written: {why}"),
        RemapFate::Returned => format!("{place} is back where it belongs, and out of the spare"),
        RemapFate::SlotFailed(spare, slot) => {
            format!("slot {slot} of the spare {spare} failed while it was to take {place}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::remap::SpareId;

    fn placed(block: u64, slot: u32) -> RemapChange {
        RemapChange {
            range: ByteRange::new(block * 4096, 4096),
            fate: RemapFate::Placed(SpareId([1; 16]), slot),
            reason: Reason::WriteError,
        }
    }

    #[test]
    fn neighbours_are_one_sentence_and_a_flood_is_counted() {
        let began = Instant::now();
        let mut diary = Diary::new(began);
        let lines = diary.note(began, &[placed(9, 3), placed(7, 1), placed(8, 2), placed(20, 4)]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("LBA 56-79 (at byte 28672, 12288 bytes) is in the spare 0101")
        );
        assert!(lines[1].contains("slot 4 of the spare") && lines[1].ends_with("a write failed"));
        let flood: Vec<RemapChange> = (0..100).map(|n| placed(n * 2, 1)).collect();
        assert_eq!(diary.note(began, &flood).len(), 14);
        assert_eq!(diary.rest(began), None);
        let later = began + Duration::from_secs(1);
        let rest = diary.rest(later).unwrap();
        assert_eq!(rest, "more blocks of the map have changed: 86 moved into a spare");
        assert_eq!(diary.rest(later + Duration::from_secs(1)), None);
    }
}
