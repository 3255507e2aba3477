//! `badblocks`: the table of a disk's bad sectors, looked at and changed by hand.

use crate::node::Node;
use crate::phases::phase;
use crate::resource::Resource;
use crate::shard::ResourceHandle;
use crate::spares::{RemapFailed, SparesView};
use holdfast_api::badblocks::{
    BadBlock, BadBlocks, BadBlocksAdd, BadBlocksDone, BadBlocksRemove, Span,
};
use holdfast_api::words::{agreed, counted};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::remap::{EntryState, Reason};
use holdfast_store::{RemapEntry, RemapOp};
use holdfast_units::ByteRange;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of one answer, and ranges of one call.
const MOST: usize = 10_000;
/// Bytes of a sector as the kernel counts them.
const SECTOR: u64 = 512;
/// So much is moved by one operation.
const STEP: u64 = 4 << 20;

const ADD: &str = "badblocks add was refused";
const IMPORT: &str = "badblocks import was refused";
const REMOVE: &str = "badblocks remove was refused";

fn refuse(what: &str, name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("{what} for {name}: {why}"))
}

/// The resource with a disk that has spares and is in use.
///
/// # Errors
/// What is not so, and the way out.
pub(super) async fn with_spares(
    node: &Node,
    name: &str,
    what: &str,
) -> Result<(Arc<Resource>, ResourceHandle, SparesView), ApiError> {
    let resource = node.resource_named(name)?;
    let handle = resource.need_handle()?;
    handle.refresh().await;
    let spares = handle.snapshot().spares.clone().ok_or_else(|| {
        let local = resource.local().disk;
        match local {
            None => refuse(what, name, ErrorCode::NoDisk, "this node has no disk of it"),
            Some(disk) if disk.spares.is_empty() => {
                refuse(what, name, ErrorCode::NoDisk, "its disk has no spare on this node")
                    .hint(format!("`holdfast spare add {name} PATH` gives it one"))
            }
            Some(_) => refuse(what, name, ErrorCode::NoDisk, "its disk is not in use")
                .hint(format!("`holdfast status {name}` says why")),
        }
    })?;
    Ok((resource, handle, spares))
}

/// A part of the table.
///
/// # Errors
/// When the disk is not in use, or has no spares.
pub(crate) async fn list(node: &Arc<Node>, name: &str, from: u64) -> Result<BadBlocks, ApiError> {
    let (_, handle, _) = with_spares(node, name, "badblocks ls was refused").await?;
    let skip = usize::try_from(from).unwrap_or(usize::MAX);
    let mut entries = handle.remap_entries(skip, MOST + 1).await;
    let more = entries.len() > MOST;
    entries.truncate(MOST);
    let rows = entries.iter().map(row).collect();
    Ok(BadBlocks { rows, next: more.then(|| from + MOST as u64) })
}

fn row(entry: &RemapEntry) -> BadBlock {
    BadBlock {
        lba: entry.range.offset / SECTOR,
        offset: entry.range.offset,
        length: entry.range.len,
        state: match entry.state {
            EntryState::Free => "free",
            EntryState::Mapped => "mapped",
            EntryState::Lost => "lost",
            EntryState::BadSlot => "bad-slot",
        }
        .to_owned(),
        reason: match entry.reason {
            Reason::None => "none",
            Reason::WriteError => "write-error",
            Reason::ReadError => "read-error",
            Reason::ByHand => "by-hand",
            Reason::Imported => "imported",
            Reason::Moved => "moved",
            Reason::NotReadBack => "not-read-back",
        }
        .to_owned(),
        time_unix_seconds: entry.time.into(),
        errors: entry.errors.into(),
        spare: entry.spare.to_string(),
        slot: entry.slot.into(),
    }
}

/// All blocks of the table that are somewhere else or lost, by their place.
async fn table(handle: &ResourceHandle) -> BTreeMap<u64, (u64, EntryState)> {
    let mut found = BTreeMap::new();
    let mut skip = 0;
    loop {
        let entries = handle.remap_entries(skip, MOST).await;
        skip += entries.len();
        let last = entries.len() < MOST;
        let states = entries.into_iter().filter(|entry| entry.state != EntryState::BadSlot);
        found.extend(states.map(|entry| (entry.range.offset, (entry.range.len, entry.state))));
        if last {
            return found;
        }
    }
}

/// Whole blocks, sorted, without what is there twice, inside of the resource.
fn blocks_of(
    what: &str,
    name: &str,
    spans: &[Span],
    unit: u64,
    size: u64,
) -> Result<Vec<ByteRange>, ApiError> {
    if spans.len() > MOST {
        let why = format!("{} ranges are too many for one call: {MOST} are possible", spans.len());
        return Err(refuse(what, name, ErrorCode::InvalidRequest, &why));
    }
    let mut ranges = Vec::new();
    for span in spans {
        let end = span.offset.checked_add(span.length).filter(|end| *end <= size);
        let Some(end) = end.filter(|_| span.length > 0) else {
            let why = format!(
                "{} bytes from {} on are not inside of the resource, which has {size} bytes",
                span.length, span.offset
            );
            return Err(refuse(what, name, ErrorCode::InvalidRequest, &why));
        };
        let start = span.offset / unit * unit;
        ranges.push(ByteRange::new(start, end.next_multiple_of(unit).min(size) - start));
    }
    ranges.sort_unstable_by_key(|range| range.offset);
    let mut merged: Vec<ByteRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end() >= range.offset => {
                last.len = last.end().max(range.end()) - last.offset;
            }
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

/// What of a list lies inside of the resource; how many blocks of it do not.
fn inside(spans: &[Span], unit: u64, size: u64) -> (Vec<Span>, u64) {
    let (mut found, mut outside) = (Vec::new(), 0);
    for span in spans {
        let end = span.offset.saturating_add(span.length);
        let length = end.min(size).saturating_sub(span.offset);
        if length > 0 {
            found.push(Span { offset: span.offset, length });
        }
        if end > size {
            outside += (end - span.offset.max(size)).div_ceil(unit);
        }
    }
    (found, outside)
}

/// What is told of those that do not.
fn left_out(outside: u64) -> String {
    if outside == 0 {
        return String::new();
    }
    let (blocks, lie) = (counted(outside, "block"), agreed(outside, "lies", "lie"));
    let were = agreed(outside, "was", "were");
    format!("; {blocks} of the list {lie} behind its end and {were} left out")
}

/// Ranges in pieces that one operation takes.
fn steps(ranges: &[ByteRange]) -> impl Iterator<Item = ByteRange> + '_ {
    ranges.iter().flat_map(|range| {
        let starts = (range.offset..range.end()).step_by(usize::try_from(STEP).unwrap_or(1 << 22));
        starts.map(|start| ByteRange::new(start, STEP.min(range.end() - start)))
    })
}

/// Moves blocks into the spare.
///
/// # Errors
/// When the disk is not in use or has no spares, or a range is not inside of the resource.
pub(crate) async fn add(
    node: &Arc<Node>,
    name: &str,
    call: &BadBlocksAdd,
) -> Result<BadBlocksDone, ApiError> {
    let what = if call.imported { IMPORT } else { ADD };
    let (resource, handle, spares) = with_spares(node, name, what).await?;
    let _begun = resource.begin().await?;
    let unit = u64::from(spares.stats.unit);
    let size = handle.snapshot().snapshot.own_size;
    let (spans, outside) = match call.imported {
        true => inside(&call.ranges, unit, size),
        false => (call.ranges.clone(), 0),
    };
    if spans.is_empty() && outside > 0 && !call.part {
        let why = "all of the list lies behind the end of the resource";
        return Err(refuse(what, name, ErrorCode::InvalidRequest, why)
            .hint("is it the list of this disk, and does it count in blocks of that size?"));
    }
    let ranges = blocks_of(what, name, &spans, unit, size)?;
    let known = table(&handle).await;
    let starts = ranges.iter().flat_map(|range| {
        (range.offset..range.end()).step_by(usize::try_from(unit).unwrap_or(4096))
    });
    let wanted = starts.filter(|start| !known.contains_key(start)).count() as u64;
    let free = spares.stats.free;
    if wanted > free && !(call.part && call.dry_run) {
        let (blocks, need) = (counted(wanted, "block"), agreed(wanted, "needs", "need"));
        let why = format!("{blocks} {need} a slot, and the spares have {free}");
        return Err(refuse(what, name, ErrorCode::NoSpace, &why)
            .hint(format!("`holdfast spare add {name} PATH` makes room")));
    }
    if call.ranges.is_empty() {
        let message = "the list names no block; nothing was changed".to_owned();
        return Ok(BadBlocksDone {
            message,
            free,
            dry_run: call.dry_run,
            ..BadBlocksDone::default()
        });
    }
    if call.dry_run {
        return Ok(BadBlocksDone {
            message: format!(
                "{} of {unit} bytes of resource {name} would go into its spare, which has {}{}; \
                 nothing was changed",
                counted(wanted, "block"),
                counted(free, "free slot"),
                left_out(outside)
            ),
            moved: wanted,
            outside,
            free,
            dry_run: true,
            ..BadBlocksDone::default()
        });
    }
    phase("moving blocks into the spare");
    let mut done = BadBlocksDone { outside, free, ..BadBlocksDone::default() };
    for range in steps(&ranges) {
        let asked = handle.remap(RemapOp::Move { range, imported: call.imported }).await;
        let (report, failed) = match asked {
            Ok(report) => (report, None),
            Err(failed) => (failed.report, Some(failed)),
        };
        done.moved += report.placed;
        done.lost += report.lost;
        done.failed += report.failed + report.full;
        if let Some(failed) = failed {
            return Err(stopped(what, name, &done, failed));
        }
    }
    let already = ranges.iter().map(|range| range.len / unit).sum::<u64>() - wanted;
    let (blocks, are) = (counted(done.moved, "block"), agreed(done.moved, "is", "are"));
    done.message = format!("{blocks} of resource {name} {are} in its spare now");
    if done.lost > 0 {
        let (lost, they) = (done.lost, agreed(done.lost, "it is", "they are"));
        done.message.push_str(&format!(
            "; {lost} could not be read: {they} lost until {they} written, or can be read"
        ));
    }
    if already > 0 {
        let were = agreed(already, "was", "were");
        done.message.push_str(&format!("; {already} {were} in the table already"));
    }
    done.message.push_str(&left_out(outside));
    Ok(done)
}

/// Work that ended early.
fn stopped(what: &str, name: &str, done: &BadBlocksDone, failed: RemapFailed) -> ApiError {
    let why = match failed.error {
        Some(error) => error.to_string(),
        None => "its disk is not in use any more".to_owned(),
    };
    let so_far = done.moved + done.lost + done.returned;
    let (blocks, were) = (counted(so_far, "block"), agreed(so_far, "was", "were"));
    refuse(what, name, ErrorCode::DiskFailed, &format!("{why}; {blocks} {were} done before"))
        .hint(format!("`holdfast badblocks ls {name}` shows how things are"))
}

/// Moves blocks back to where they belong.
///
/// # Errors
/// When the disk is not in use or has no spares, or nothing of a range is in a spare.
pub(crate) async fn remove(
    node: &Arc<Node>,
    name: &str,
    call: &BadBlocksRemove,
) -> Result<BadBlocksDone, ApiError> {
    let (resource, handle, spares) = with_spares(node, name, REMOVE).await?;
    let _begun = resource.begin().await?;
    let unit = u64::from(spares.stats.unit);
    let size = handle.snapshot().snapshot.own_size;
    let wanted = match &call.ranges {
        Some(ranges) => blocks_of(REMOVE, name, ranges, unit, size)?,
        None => vec![ByteRange::new(0, size)],
    };
    let table = table(&handle).await;
    let inside = wanted.iter().flat_map(|range| table.range(range.offset..range.end()));
    let (mut runs, mut count, mut lost): (Vec<ByteRange>, u64, u64) = (Vec::new(), 0, 0);
    for (offset, (len, state)) in inside {
        if *state == EntryState::Lost {
            lost += 1;
            continue;
        }
        count += 1;
        match runs.last_mut() {
            Some(run) if run.end() == *offset => run.len += len,
            _ => runs.push(ByteRange::new(*offset, *len)),
        }
    }
    let without = if lost == 0 {
        String::new()
    } else {
        let (blocks, are) = (counted(lost, "block"), agreed(lost, "is", "are"));
        let stays = agreed(lost, "stays so until it is", "stay so until they are");
        format!("; {blocks} there {are} lost, and {stays} written")
    };
    if count == 0 {
        let why = format!("no block of it is in a spare{without}");
        return Err(refuse(REMOVE, name, ErrorCode::InvalidRequest, &why)
            .hint(format!("`holdfast badblocks ls {name}` lists them")));
    }
    if call.dry_run {
        return Ok(BadBlocksDone {
            message: format!(
                "{} of resource {name} would be written back into place; what the disk does not take \
                 would stay in the spare{without}; nothing was changed",
                counted(count, "block"),
            ),
            returned: count,
            dry_run: true,
            ..BadBlocksDone::default()
        });
    }
    phase("moving blocks back");
    let mut done = BadBlocksDone::default();
    for range in steps(&runs) {
        let (report, failed) = match handle.remap(RemapOp::MoveBack { range }).await {
            Ok(report) => (report, None),
            Err(failed) => (failed.report, Some(failed)),
        };
        done.returned += report.in_place;
        done.failed += report.failed;
        // That the disk does not take a block is an answer; anything else ends it.
        if let Some(failed) = failed.filter(|failed| failed.report.failed == 0) {
            return Err(stopped(REMOVE, name, &done, failed));
        }
    }
    let (blocks, are) = (counted(done.returned, "block"), agreed(done.returned, "is", "are"));
    done.message = format!("{blocks} of resource {name} {are} back in place{without}");
    if done.failed > 0 {
        let (stay, them) =
            (agreed(done.failed, "stays", "stay"), agreed(done.failed, "it", "them"));
        done.message.push_str(&format!(
            "; {} {stay} in the spare: the disk does not take {them}",
            done.failed
        ));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: u64, length: u64) -> Span {
        Span { offset, length }
    }

    #[test]
    fn what_of_a_list_is_behind_the_end_is_left_out() {
        let spans = [span(4096, 1024), span(1 << 20, 8192), span((1 << 20) - 512, 1536)];
        let (found, outside) = inside(&spans, 4096, 1 << 20);
        assert_eq!(found, [span(4096, 1024), span((1 << 20) - 512, 512)]);
        assert_eq!(outside, 2 + 1);
        assert_eq!(inside(&[span(u64::MAX, 2)], 4096, 1 << 20).0, []);
    }

    #[test]
    fn ranges_become_whole_blocks_once() {
        let of = |spans: &[Span]| blocks_of(ADD, "r0", spans, 4096, 1 << 20);
        let found = of(&[span(8192, 512), span(5000, 1), span(100_000, 8192), span(4096, 1)]);
        let ranges = [ByteRange::new(4096, 8192), ByteRange::new(98304, 12288)];
        assert_eq!(found.unwrap(), ranges);
        for bad in [span(1 << 20, 1), span(0, 0), span(u64::MAX, 2), span(0, (1 << 20) + 1)] {
            let error = of(&[bad]).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest);
            assert!(error.message.contains("1048576 bytes"), "{}", error.message);
        }
        let whole: Vec<ByteRange> = steps(&[ByteRange::new(4096, STEP + 4096)]).collect();
        assert_eq!(whole, [ByteRange::new(4096, STEP), ByteRange::new(4096 + STEP, 4096)]);
    }
}
