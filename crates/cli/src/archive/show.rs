//! `archive ls` and `archive verify`.

use super::{AnyStore, Place, open, open_archive};
use crate::events::time;
use crate::output::{Style, Ui, width};
use crate::table::{Table, cell, plain};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_archive::{Archive, Store, Verified};
use holdfast_units::format_size;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

fn archives(place: &Place) -> Result<Vec<Archive<AnyStore>>, ApiError> {
    let names = match &place.name {
        Some(name) => vec![name.clone()],
        None => open(&place.archive)?.archives().map_err(|why| {
            let message = format!("the archive {} was not listed: {why}", place.archive);
            ApiError::new(ErrorCode::ArchiveUnusable, message).plain()
        })?,
    };
    let mut found = Vec::new();
    for name in names {
        match open_archive(&place.archive, &name) {
            // Somebody else's directory among them.
            Err(error) if error.code == ErrorCode::NoSuchArchive && place.name.is_none() => {}
            other => found.push(other?),
        }
    }
    Ok(found)
}

pub(super) fn list(ui: &Ui, place: &Place) -> Result<(), ApiError> {
    let archives = archives(place)?;
    if ui.json {
        ui.json(&json!({"archives": archives.iter().map(as_json).collect::<Vec<_>>()}));
        return Ok(());
    }
    if archives.is_empty() && !ui.quiet {
        ui.line(&format!("there are no archives in {}", place.archive));
    }
    for archive in &archives {
        ui.text(&render(archive, width(), ui.color));
    }
    Ok(())
}

fn as_json(archive: &Archive<AnyStore>) -> Value {
    let manifest = archive.manifest();
    let moments = archive.moments();
    let lines = manifest.lines.iter().map(|line| {
        let moments = moments.iter().find(|moments| moments.line == line.number);
        let bases = line.bases.iter().map(|base| {
            json!({
                "from": base.from, "ready": base.ready, "unix_ms": base.time >> 16,
                "size_bytes": base.bytes, "stored_bytes": base.stored,
            })
        });
        json!({
            "line": line.number,
            "restorable": moments.map(|moments| json!({
                "from": moments.from.0, "to": moments.to.0,
                "from_unix_ms": moments.from_time.unix_millis(),
                "to_unix_ms": moments.to_time.unix_millis(),
            })),
            "journal_bytes": journal_bytes(line),
            "segments": line.segments.len(),
            "bases": bases.collect::<Vec<_>>(),
            "base_under_way": line.pending.is_some(),
        })
    });
    json!({
        "name": archive.name(),
        "resource": manifest.resource().to_string(),
        "lines": lines.collect::<Vec<_>>(),
    })
}

fn journal_bytes(line: &holdfast_archive::Line) -> u64 {
    line.segments.iter().filter_map(|segment| segment.objects.last()).map(|last| last.end).sum()
}

fn render(archive: &Archive<AnyStore>, width: Option<usize>, color: bool) -> String {
    let mut table = Table::new(2, &["LINE", "FROM", "TO", "POSITIONS", "BASES", "JOURNAL", "DISK"]);
    let moments = archive.moments();
    for line in &archive.manifest().lines {
        let number = cell(line.number.to_string(), Style::Bold);
        let journal = plain(format_size(journal_bytes(line)));
        let Some(found) = moments.iter().find(|moments| moments.line == line.number) else {
            let nothing = cell("nothing yet: its first base image is not finished", Style::Busy);
            table.row(vec![number, nothing]);
            continue;
        };
        let size = line.bases.last().map_or(0, |base| base.bytes);
        table.row(vec![
            number,
            plain(time(found.from_time.unix_millis())),
            plain(time(found.to_time.unix_millis())),
            plain(format!("{}-{}", found.from, found.to)),
            plain(line.bases.len().to_string()),
            journal,
            plain(format_size(size)),
        ]);
    }
    let mut text = format!("{}\n", Style::Bold.paint(archive.name(), color));
    for line in table.render(width, color) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

pub(super) fn verify(ui: &Ui, place: &Place) -> Result<(), ApiError> {
    let mut faults = 0;
    let mut found = Vec::new();
    for archive in archives(place)? {
        let bar =
            if ui.json || ui.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        // The template is a constant that is right.
        let style = ProgressStyle::with_template("{spinner} {msg}  {bytes}  {bytes_per_sec}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(archive.name().to_owned());
        let verified = archive.verify(&mut |bytes| bar.set_position(bytes));
        bar.finish_and_clear();
        faults += verified.fault_count;
        if !ui.json {
            say(ui, &archive, &verified);
        }
        found.push(json!({
            "name": archive.name(),
            "objects": verified.objects,
            "bytes": verified.bytes,
            "damaged": verified.fault_count,
            "faults": verified.faults.iter().map(|fault| &*fault.what).collect::<Vec<_>>(),
        }));
    }
    if ui.json {
        ui.json(&json!({"archives": found}));
    }
    if faults == 0 {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::ArchiveUnusable,
        format!("the archive {} is damaged: {faults} objects are missing or broken", place.archive),
    )
    .hint("moments that do not need these objects can still be restored"))
}

fn say(ui: &Ui, archive: &Archive<AnyStore>, verified: &Verified) {
    for fault in &verified.faults {
        ui.line(&fault.what);
    }
    if !ui.quiet && verified.fault_count == 0 {
        ui.line(&format!(
            "the archive of resource {} is whole: {} objects, {}",
            archive.name(),
            verified.objects,
            format_size(verified.bytes)
        ));
    }
}
