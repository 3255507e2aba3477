//! Room on the filesystems of the state, the journals and the archives.

use super::Facts;
use super::finding::{Findings, Severity};
use holdfast_units::format_size;
use std::path::Path;

/// With less than this free the next change of the state may fail.
const STATE_NEEDS: u64 = 16 << 20;
/// With less than this free it is time to do something.
const STATE_WANTS: u64 = 128 << 20;
/// An archive with so many percent free is nearly full.
const ARCHIVE_PERCENT: u64 = 5;

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let Some(info) = facts.info.as_ref().filter(|_| facts.machine.is_here()) else { return };
    state_dir(facts, Path::new(&info.state_dir), findings);
    for places in &info.resources {
        if let Some(journal) = places.journal.as_ref().filter(|path| Path::new(path).is_dir()) {
            let status = facts.status.iter().flat_map(|status| &status.resources);
            let status = status.into_iter().find(|status| status.name == places.name);
            let journal_status = status.and_then(|status| status.journal.as_ref());
            let used = journal_status.map_or_else(|| size_of(Path::new(journal)), |j| j.bytes);
            journal_dir(&places.name, journal, places.journal_bytes, used, findings);
        }
        if let Some(archive) = places.archive.as_ref().filter(|path| Path::new(path).is_dir()) {
            archive_dir(&places.name, archive, findings);
        }
    }
}

/// What a filesystem has free for this user, how large it is, and whether it takes more files.
#[derive(Clone, Copy)]
struct Room {
    free: u64,
    size: u64,
    more_files: bool,
}

fn room(path: &Path) -> Option<Room> {
    // What is not there yet is made below what is.
    let there = path.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some(Room {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        size: found.f_blocks.saturating_mul(found.f_frsize),
        // Some filesystems do not count files.
        more_files: found.f_files == 0 || found.f_ffree > 0,
    })
}

fn state_dir(facts: &Facts, dir: &Path, findings: &mut Findings) {
    const CHECK: &str = "space.state";
    let shown = dir.display();
    if let Some("tmpfs" | "ramfs") = facts.machine.filesystem_of(dir).as_deref() {
        findings.warning(
            "space.volatile",
            format!("the state directory {shown} is in memory"),
            "who this node is, its cluster and its metadata are gone when the machine restarts",
            "nothing for a trial; else --state-dir on a disk",
        );
    }
    let Some(room) = room(dir) else { return };
    let what = format!("the state directory {shown} has {} free", format_size(room.free));
    let severity = match room.free {
        _ if !room.more_files => Severity::Error,
        ..STATE_NEEDS => Severity::Error,
        STATE_NEEDS..STATE_WANTS => Severity::Warning,
        _ => return findings.ok(CHECK, what),
    };
    let what = if room.more_files { what } else { format!("{what}, and takes no more files") };
    findings.add(
        severity,
        CHECK,
        what,
        "every change of the cluster and of a resource is written there, and refused when it \
         cannot be; metadata of resources grow there, too",
        "free some room, or move it to a larger filesystem",
    );
}

fn journal_dir(name: &str, dir: &str, limit: u64, used: u64, findings: &mut Findings) {
    let Some(room) = room(Path::new(dir)) else { return };
    let may_grow = limit.saturating_sub(used);
    let free = format_size(room.free);
    if room.free >= may_grow {
        let what = format!("{name}: the journal in {dir} has room to grow, {free}");
        return findings.ok("space.journal", what);
    }
    findings.warning(
        "space.journal",
        format!(
            "{name}: the journal in {dir} may grow by {}, and {free} are free",
            format_size(may_grow)
        ),
        "it is cut earlier than it should be: followers that are away that long are copied to",
        format!("free some room, or make it smaller: `holdfast set {name} journal-size=SIZE`"),
    );
}

fn archive_dir(name: &str, dir: &str, findings: &mut Findings) {
    let Some(room) = room(Path::new(dir)) else { return };
    let what = format!("{name}: the archive {dir} has {} free", format_size(room.free));
    if room.free >= room.size / 100 * ARCHIVE_PERCENT {
        return findings.ok("space.archive", what);
    }
    findings.warning(
        "space.archive",
        what,
        "when it is full nothing is archived, and what was written since cannot be restored",
        format!("free some room, or keep less: `holdfast set {name} archive-keep=TIME`"),
    );
}

/// The bytes of the files in a directory.
fn size_of(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}
