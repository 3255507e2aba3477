//! `badblocks` and `spare`.

use crate::events::time;
use crate::output::{Style, width};
use crate::parse::{absolute_path, name, size};
use crate::session::Session;
use crate::table::{Table, cell, plain};
use clap::{Args, Subcommand};
use holdfast_api::badblocks::{
    BadBlock, BadBlocks, BadBlocksAdd, BadBlocksDone, BadBlocksRemove, Span, SpareAdd, SpareRemove,
};
use holdfast_api::status::{ResourceStatus, SpareStatus};
use holdfast_api::words::{agreed, counted};
use holdfast_api::{ApiError, ErrorCode, routes};
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;

/// Ranges of one call.
const MOST: usize = 10_000;
/// Bytes of a sector as the kernel counts them.
const SECTOR: u64 = 512;
/// The longest list that is read, in bytes.
const LONGEST_LIST: u64 = 64 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum BadBlocksCommand {
    /// List the table: what lives in a spare, what is lost, which slots failed
    Ls(Ls),
    /// Move blocks into the spare; those that cannot be read are lost until they are written
    Add(Change),
    /// Move blocks back to where they belong, if the disk takes them
    Remove(Remove),
    /// Move all blocks of a list into the spare: what badblocks(8) prints, or a map file of ddrescue
    Import(Import),
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// Comma-separated values, with one header line
    #[arg(long)]
    csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Change {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// Sectors of 512 bytes as the kernel's log names them, LBA or LBA-LBA; or @OFFSET or
    /// @OFFSET+LENGTH in bytes. Every block of 4096 bytes that is touched is moved
    #[arg(required = true, value_parser = span)]
    range: Vec<Span>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// LBA, LBA-LBA, @OFFSET or @OFFSET+LENGTH, as for add
    #[arg(required_unless_present = "all", value_parser = span)]
    range: Vec<Span>,
    /// All that is in a spare
    #[arg(long, conflicts_with = "range")]
    all: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// The list; - reads it from standard input
    file: PathBuf,
    /// The blocks of a list of badblocks(8): its option -b
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1024")]
    block_size: u64,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SpareCommand {
    /// List the spares of this node's disks
    Ls(SpareLs),
    /// Give this node's disk another spare, while it is used; the first one on a Secondary
    Add(AddSpare),
    /// Take a spare away, while the disk is used
    Remove(RemoveSpare),
}

#[derive(Debug, Args)]
pub(crate) struct SpareLs {
    /// The name of the resource [default: all]
    #[arg(value_parser = name)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AddSpare {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// A file or block device
    #[arg(value_parser = absolute_path)]
    path: String,
    /// Overwrite what is on it
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveSpare {
    /// The name of the resource
    #[arg(value_parser = name)]
    name: String,
    /// Its path, or its id as `spare ls` shows it
    spare: String,
    /// Move what it holds to the other spares first
    #[arg(long)]
    empty: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// LBA, LBA-LBA, @OFFSET or @OFFSET+LENGTH.
fn span(text: &str) -> Result<Span, String> {
    let wrong = || format!("{text:?} is none of LBA, LBA-LBA, @OFFSET and @OFFSET+LENGTH");
    if let Some(bytes) = text.strip_prefix('@') {
        let (offset, length) = match bytes.split_once('+') {
            Some((offset, length)) => (size(offset)?, size(length)?),
            None => (size(bytes)?, 1),
        };
        let ends = length > 0 && offset.checked_add(length).is_some();
        return ends.then_some(Span { offset, length }).ok_or_else(wrong);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    let at = |sector: u64| sector.checked_mul(SECTOR).ok_or_else(wrong);
    let (offset, end) = (at(first)?, at(last.saturating_add(1))?);
    match end.checked_sub(offset) {
        None | Some(0) => Err(wrong()),
        Some(length) => Ok(Span { offset, length }),
    }
}

pub(crate) async fn run(session: &Session, command: BadBlocksCommand) -> Result<(), ApiError> {
    match command {
        BadBlocksCommand::Ls(args) => list(session, &args).await,
        BadBlocksCommand::Add(args) => {
            add(session, &args.name, &args.range, false, args.dry_run).await
        }
        BadBlocksCommand::Remove(args) => {
            let path = routes::of(routes::RESOURCE_BADBLOCKS_REMOVE, &args.name);
            let ranges = (!args.all).then_some(args.range);
            let body = BadBlocksRemove { ranges, dry_run: args.dry_run };
            let done: BadBlocksDone = session.post(&path, &body).await?;
            tell(session, &done);
            Ok(())
        }
        BadBlocksCommand::Import(args) => import(session, args).await,
    }
}

fn tell(session: &Session, done: &BadBlocksDone) {
    session.result(done, &done.message);
}

async fn add(
    session: &Session,
    name: &str,
    ranges: &[Span],
    imported: bool,
    dry_run: bool,
) -> Result<(), ApiError> {
    if ranges.len() > MOST {
        // Before anything is changed it is known whether there is room for all of it.
        let would = add_parts(session, name, ranges, imported, true).await?;
        if would.moved > would.free {
            let need = agreed(would.moved, "needs", "need");
            let what = if imported { "import" } else { "add" };
            let message = format!(
                "badblocks {what} was refused for {name}: {} {need} a slot, and the spares have {}",
                counted(would.moved, "block"),
                would.free
            );
            return Err(ApiError::new(ErrorCode::NoSpace, message)
                .hint(format!("`holdfast spare add {name} PATH` makes room")));
        }
        if dry_run {
            tell(session, &would);
            return Ok(());
        }
    }
    let done = add_parts(session, name, ranges, imported, dry_run).await?;
    tell(session, &done);
    Ok(())
}

/// By as many calls as it takes.
async fn add_parts(
    session: &Session,
    name: &str,
    ranges: &[Span],
    imported: bool,
    dry_run: bool,
) -> Result<BadBlocksDone, ApiError> {
    let path = routes::of(routes::RESOURCE_BADBLOCKS_ADD, name);
    let mut sum = BadBlocksDone { dry_run, ..BadBlocksDone::default() };
    let part = ranges.len() > MOST;
    // Also of an empty list there is something to say.
    let rest = ranges.get(MOST..).unwrap_or_default().chunks(MOST);
    let parts = std::iter::once(&ranges[..ranges.len().min(MOST)]).chain(rest);
    for (number, ranges) in parts.enumerate() {
        let body = BadBlocksAdd { ranges: ranges.to_vec(), imported, part, dry_run };
        let done: BadBlocksDone = session.post(&path, &body).await.map_err(|error| {
            if dry_run || number == 0 {
                return error;
            }
            let so_far = sum.moved + sum.lost;
            let (blocks, were) = (counted(so_far, "block"), agreed(so_far, "was", "were"));
            let message = format!("{}; {blocks} {were} moved by the calls before", error.message);
            ApiError { message, ..error }
        })?;
        if number == 0 {
            sum.free = done.free;
        }
        sum.moved += done.moved;
        sum.lost += done.lost;
        sum.failed += done.failed;
        sum.outside += done.outside;
        sum.message = done.message;
    }
    if part {
        let would = if dry_run { "would go" } else { "went" };
        let (blocks, are) = (counted(sum.moved, "block"), agreed(sum.lost, "is", "are"));
        sum.message = format!("{blocks} {would} into a spare, {} {are} lost", sum.lost);
        if sum.outside > 0 {
            let lie = agreed(sum.outside, "lies", "lie");
            let text = format!("; {} {lie} behind the end of the resource", sum.outside);
            sum.message.push_str(&text);
        }
    }
    Ok(sum)
}

/// The blocks of 4096 bytes that a list in order touches, so that none of them is in two ranges.
fn whole_blocks(list: &[ByteRange]) -> Vec<Span> {
    let mut whole: Vec<Span> = Vec::new();
    for range in list {
        let offset = range.offset / BLOCK_SIZE * BLOCK_SIZE;
        let end = range.end().next_multiple_of(BLOCK_SIZE);
        match whole.last_mut() {
            Some(last) if offset <= last.offset + last.length => {
                last.length = last.length.max(end - last.offset);
            }
            _ => whole.push(Span { offset, length: end - offset }),
        }
    }
    whole
}

async fn import(session: &Session, args: Import) -> Result<(), ApiError> {
    let shown = args.file.display().to_string();
    let fail = |why: String| {
        let message = format!("the list {shown} was not imported: {why}");
        ApiError::new(ErrorCode::InvalidRequest, message)
    };
    if args.block_size == 0 {
        return Err(fail("--block-size 0 is no size of a block".to_owned())
            .hint("give what badblocks was given with -b; without that it is 1024"));
    }
    let mut text = String::new();
    let read = match shown.as_str() {
        "-" => std::io::stdin().take(LONGEST_LIST + 1).read_to_string(&mut text),
        _ => std::fs::File::open(&args.file)
            .and_then(|file| file.take(LONGEST_LIST + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| fail(error.to_string()))?;
    if text.len() as u64 > LONGEST_LIST {
        return Err(fail(format!("it is longer than {LONGEST_LIST} bytes")));
    }
    let list = holdfast_store::read_bad_list(&text, args.block_size);
    let list = list.map_err(|error| fail(error.to_string()))?;
    add(session, &args.name, &whole_blocks(&list), true, args.dry_run).await
}

async fn list(session: &Session, args: &Ls) -> Result<(), ApiError> {
    let path = routes::of(routes::RESOURCE_BADBLOCKS, &args.name);
    let mut rows = Vec::new();
    let mut from = 0;
    loop {
        let part: BadBlocks = session.get(&format!("{path}?from={from}")).await?;
        rows.extend(part.rows);
        match part.next {
            Some(next) => from = next,
            None => break,
        }
    }
    rows.sort_by_key(|row| row.offset);
    if session.ui.json {
        session.ui.json(&BadBlocks { rows, next: None });
    } else if args.csv {
        session.ui.text(&csv(&rows));
    } else if rows.is_empty() {
        session.ui.line(&format!("no block of resource {} is in a spare or lost", args.name));
    } else {
        session.ui.text(&render(&rows, width(), session.ui.color));
    }
    Ok(())
}

fn csv(rows: &[BadBlock]) -> String {
    let mut text =
        String::from("lba,offset,length,state,reason,time_unix_seconds,errors,spare,slot\n");
    for row in rows {
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{},{},{}",
            row.lba,
            row.offset,
            row.length,
            row.state,
            row.reason,
            row.time_unix_seconds,
            row.errors,
            row.spare,
            row.slot
        );
    }
    text
}

fn render(rows: &[BadBlock], width: Option<usize>, color: bool) -> String {
    let heading = ["LBA", "OFFSET", "STATE", "REASON", "SINCE", "ERRORS", "SPARE", "SLOT"];
    let mut table = Table::new(0, &heading);
    for row in rows {
        let style = match row.state.as_str() {
            "mapped" => Style::Plain,
            "lost" => Style::Bad,
            _ => Style::Busy,
        };
        table.row(vec![
            cell(row.lba.to_string(), Style::Bold),
            plain(row.offset.to_string()),
            cell(&*row.state, style),
            plain(&*row.reason),
            plain(time(row.time_unix_seconds.saturating_mul(1000))),
            plain(row.errors.to_string()),
            plain(&*row.spare),
            plain(row.slot.to_string()),
        ]);
    }
    lines(&table, width, color)
}

fn lines(table: &Table, width: Option<usize>, color: bool) -> String {
    let mut text = String::new();
    for line in table.render(width, color) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

pub(crate) async fn spare(session: &Session, command: SpareCommand) -> Result<(), ApiError> {
    match command {
        SpareCommand::Ls(args) => list_spares(session, args.name.as_deref()).await,
        SpareCommand::Add(args) => {
            let body = SpareAdd { path: args.path, force: args.force };
            session.act(&routes::of(routes::RESOURCE_SPARE_ADD, &args.name), &body).await
        }
        SpareCommand::Remove(args) => {
            let RemoveSpare { name, spare, empty, dry_run } = args;
            let body = SpareRemove { spare, empty, dry_run };
            session.act(&routes::of(routes::RESOURCE_SPARE_REMOVE, &name), &body).await
        }
    }
}

async fn list_spares(session: &Session, name: Option<&str>) -> Result<(), ApiError> {
    let resources: Vec<ResourceStatus> = match name {
        Some(name) => vec![session.get(&routes::of(routes::RESOURCE, name)).await?],
        None => {
            let status: holdfast_api::status::NodeStatus = session.get(routes::STATUS).await?;
            status.resources
        }
    };
    let of = |resource: &ResourceStatus| (resource.name.clone(), resource.disk.spares.clone());
    let all: Vec<(String, Vec<SpareStatus>)> = resources.iter().map(of).collect();
    if session.ui.json {
        session.ui.json(&all.iter().cloned().collect::<std::collections::BTreeMap<_, _>>());
    } else if all.iter().all(|(_, spares)| spares.is_empty()) {
        session.ui.line("no disk has a spare here");
    } else {
        session.ui.text(&render_spares(&all, width(), session.ui.color));
    }
    Ok(())
}

fn render_spares(all: &[(String, Vec<SpareStatus>)], width: Option<usize>, color: bool) -> String {
    let heading = ["RESOURCE", "SPARE", "SLOTS", "FREE", "REMAPPED", "LOST", "BAD", "ID"];
    let mut table = Table::new(0, &heading);
    for (name, spares) in all {
        for spare in spares {
            let place = match (&spare.path, spare.offset) {
                (Some(path), _) => path.clone(),
                (None, Some(offset)) => format!("the disk from {offset} on"),
                (None, None) => String::new(),
            };
            let id = match spare.id.as_str() {
                "" => cell("not in use", Style::Busy),
                id if spare.leaving => cell(format!("{id} (leaving)"), Style::Busy),
                id => plain(id),
            };
            let counts = [spare.sectors, spare.free, spare.remapped, spare.lost, spare.bad];
            let counts = counts.iter().map(|count| plain(count.to_string()));
            let front = [cell(&**name, Style::Bold), plain(place)];
            table.row(front.into_iter().chain(counts).chain([id]).collect());
        }
    }
    lines(&table, width, color)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_sectors_or_bytes() {
        let of = |text| span(text).map(|span| (span.offset, span.length));
        assert_eq!(of("2048"), Ok((1 << 20, 512)));
        assert_eq!(of("2048-2055"), Ok((1 << 20, 4096)));
        assert_eq!(of("@1M"), Ok((1 << 20, 1)));
        assert_eq!(of("@4096+64K"), Ok((4096, 65536)));
        const EVERY: &str = "0-18446744073709551615";
        const PAST_ALL: &str = "@18446744073709551615+2";
        for wrong in ["", "9-8", "x", "@", "@5+0", "1M", "-1", "36028797018963968", EVERY, PAST_ALL]
        {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_block_of_which_a_list_names_several_sectors_is_named_once() {
        let list = [(512, 512), (2048, 512), (7 * 512, 1024), (65536, 512)];
        let list: Vec<ByteRange> = list.iter().map(|(at, len)| ByteRange::new(*at, *len)).collect();
        let of = |(offset, length)| Span { offset, length };
        assert_eq!(whole_blocks(&list), [of((0, 8192)), of((65536, 4096))]);
    }

    #[test]
    fn every_row_is_a_line_with_one_header() {
        let row = BadBlock {
            lba: 8,
            offset: 4096,
            length: 4096,
            state: "lost".into(),
            reason: "read-error".into(),
            time_unix_seconds: 7,
            errors: 2,
            spare: "ab".into(),
            slot: 3,
        };
        let text = csv(&[row.clone(), row.clone()]);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.lines().last(), Some("8,4096,4096,lost,read-error,7,2,ab,3"));
        let shown = render(&[row], None, false);
        assert!(shown.lines().nth(1).is_some_and(|line| line.starts_with("8    4096    lost")));
        let spare = SpareStatus { offset: Some(9), sectors: 5, ..SpareStatus::default() };
        let shown = render_spares(&[("r0".into(), vec![spare])], None, false);
        assert!(shown.contains("the disk from 9 on") && shown.contains("not in use"), "{shown}");
    }
}
