//! The disks of the resources, and who else has them.

use super::Facts;
use super::finding::Findings;
use super::machine::Machine;
use holdfast_api::daemon::ResourcePlaces;
use holdfast_api::health::{CRITICAL_BELOW, DiskHealth, WARNING_BELOW};
use holdfast_api::status::ResourceStatus;
use holdfast_nbd::NbdUri;
use holdfast_units::format_size;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

pub(super) fn look(facts: &Facts, findings: &mut Findings) {
    let Some(info) = &facts.info else { return };
    for places in &info.resources {
        let status = facts.status.iter().flat_map(|status| &status.resources);
        let status = status.into_iter().find(|status| status.name == places.name);
        of_resource(&facts.machine, places, status, findings);
    }
    for problem in &info.damaged {
        findings.error(
            "disks.state",
            problem,
            "what it describes is left out when the daemon starts",
            "restore it from a backup, or leave the resource and join again",
        );
    }
}

fn of_resource(
    machine: &Machine,
    places: &ResourcePlaces,
    status: Option<&ResourceStatus>,
    findings: &mut Findings,
) {
    let name = &places.name;
    if let Some(disk) = &places.disk {
        if NbdUri::is_scheme_of(disk) {
            findings.ok("disks.disk", format!("{name}: the disk is an export of another machine"));
        } else {
            let primary = status.is_some_and(|status| status.role == "Primary");
            disk_of(machine, name, disk, places, primary, findings);
        }
    } else {
        findings.ok("disks.disk", format!("{name}: no disk here; the data are on the peers"));
    }
    let others = places.meta.iter().map(|path| ("metadata", path));
    let others = others.chain(places.spares.iter().map(|path| ("spare", path)));
    let others = others.chain(places.journal.iter().map(|path| ("journal", path)));
    for (what, path) in others.filter(|_| machine.is_here()) {
        if let Err(error) = fs::metadata(path) {
            findings.error(
                "disks.parts",
                format!("{name}: the {what} {path} cannot be used: {}", super::plain(&error)),
                "without it the disk is not used",
                "bring it back (a mount that is missing?), then `holdfast attach-disk`",
            );
        }
    }
    if let Some(status) = status {
        state(status, findings);
    }
}

fn disk_of(
    machine: &Machine,
    name: &str,
    disk: &str,
    places: &ResourcePlaces,
    primary: bool,
    findings: &mut Findings,
) {
    let path = Path::new(disk);
    let device = device_name(machine, path);
    if machine.is_here() {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) => {
                return findings.error(
                    "disks.disk",
                    format!("{name}: the disk {disk} cannot be used: {}", super::plain(&error)),
                    "this node has no copy of the resource",
                    missing_disk(name, primary),
                );
            }
        };
        if meta.is_file() {
            of_file(machine, name, path, meta.len(), places, findings);
        } else if !meta.file_type().is_block_device() {
            findings.error(
                "disks.disk",
                format!("{name}: {disk} is neither a file nor a block device"),
                "it cannot be a disk",
                "look what was put in its place",
            );
        }
    }
    if let Some(device) = device {
        of_device(machine, name, disk, &device, places, findings);
    }
}

fn of_file(
    machine: &Machine,
    name: &str,
    path: &Path,
    len: u64,
    places: &ResourcePlaces,
    findings: &mut Findings,
) {
    if is_short(name, path, len, places, findings) {
        return;
    }
    let shown = path.display();
    match machine.filesystem_of(path).as_deref() {
        Some("tmpfs" | "ramfs") => findings.warning(
            "disks.volatile",
            format!("{name}: the disk {shown} is a file in memory"),
            "it is gone when the machine restarts, and with it this node's copy",
            "nothing for a trial; else use a file or device on a disk",
        ),
        kind => {
            let on = kind.map(|kind| format!(" on {kind}")).unwrap_or_default();
            findings
                .ok("disks.disk", format!("{name}: {shown}, a file of {}{on}", format_size(len)));
        }
    }
}

fn is_short(
    name: &str,
    path: &Path,
    len: u64,
    places: &ResourcePlaces,
    findings: &mut Findings,
) -> bool {
    let short = len < places.size_bytes;
    if short {
        findings.error(
            "disks.size",
            format!(
                "{name}: the disk {} has {}, and the resource has {}",
                path.display(),
                format_size(len),
                format_size(places.size_bytes)
            ),
            "the end of the resource has no place on it",
            "look whether it was made smaller, or is another disk than before",
        );
    }
    short
}

/// The kernel's name of a block device; `None` for what is none.
fn device_name(machine: &Machine, path: &Path) -> Option<String> {
    let real = if machine.is_here() { path.canonicalize().ok()? } else { path.to_owned() };
    let name = real.strip_prefix("/dev").ok()?.to_str()?.replace('/', "!");
    machine.has(&format!("sys/class/block/{name}")).then_some(name)
}

fn of_device(
    machine: &Machine,
    name: &str,
    disk: &str,
    device: &str,
    places: &ResourcePlaces,
    findings: &mut Findings,
) {
    let dir = format!("sys/class/block/{device}");
    let bytes =
        machine.number(&format!("{dir}/size")).map_or(0, |sectors| sectors.saturating_mul(512));
    if is_short(name, Path::new(disk), bytes, places, findings) {
        return;
    }
    let mut bad = false;
    if machine.number(&format!("{dir}/ro")) == Some(1) {
        bad = true;
        findings.error(
            "disks.read_only",
            format!("{name}: the disk {disk} is read-only"),
            "nothing can be written to it",
            "look in the log of the kernel why (a disk that fails often becomes so); blockdev \
             --setrw",
        );
    }
    for who in claims(machine, device) {
        bad = true;
        findings.error(
            "disks.claimed",
            format!("{name}: the disk {disk} is also {who}"),
            "what that writes goes past Holdfast: it is not replicated, and may destroy the \
             resource",
            "take it away from there; use the device of the resource, /dev/holdfast/NAME, instead",
        );
    }
    if bad {
        return;
    }
    // A partition has the queue of its disk.
    let queue = |key: &str| {
        let own = machine.text(&format!("{dir}/queue/{key}"));
        own.or_else(|| {
            let above = machine.path(&dir).canonicalize().ok()?.parent()?.join("queue").join(key);
            fs::read_to_string(above).ok().map(|text| text.trim().to_owned())
        })
    };
    let kind =
        if queue("rotational").as_deref() == Some("1") { "rotating" } else { "no moving parts" };
    let cache = match queue("write_cache").as_deref() {
        Some("write back") => "a write cache that is flushed",
        _ => "no volatile write cache",
    };
    let discard = match queue("discard_max_bytes").as_deref() {
        None | Some("0") => "no discard",
        Some(_) => "discard",
    };
    findings.ok(
        "disks.disk",
        format!("{name}: {disk}, {}, {kind}, {cache}, {discard}", format_size(bytes)),
    );
}

/// Who else has a block device, each as the end of a sentence.
fn claims(machine: &Machine, device: &str) -> Vec<String> {
    let dir = format!("sys/class/block/{device}");
    let parts = machine.names(&dir);
    let parts = parts.into_iter().filter(|part| machine.has(&format!("{dir}/{part}/partition")));
    let dirs: Vec<String> =
        std::iter::once(dir.clone()).chain(parts.map(|part| format!("{dir}/{part}"))).collect();
    let mut found = Vec::new();
    for dir in &dirs {
        for holder in machine.names(&format!("{dir}/holders")) {
            found.push(holder_in_words(machine, &holder));
        }
    }
    let numbers: Vec<String> =
        dirs.iter().filter_map(|dir| machine.text(&format!("{dir}/dev"))).collect();
    let mounts = machine.text("proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(2);
        if let (Some(number), Some(point)) = (words.next(), words.nth(1))
            && numbers.iter().any(|own| own == number)
        {
            found.push(format!("mounted at {point}"));
        }
    }
    let swaps = machine.text("proc/swaps").unwrap_or_default();
    let node = format!("/dev/{}", device.replace('!', "/"));
    if swaps.lines().any(|line| line.split_whitespace().next() == Some(&*node)) {
        found.push("used as swap space".to_owned());
    }
    found.sort();
    found.dedup();
    found
}

fn holder_in_words(machine: &Machine, holder: &str) -> String {
    let dm = |key: &str| machine.text(&format!("sys/class/block/{holder}/dm/{key}"));
    match holder {
        _ if holder.starts_with("drbd") => format!("the disk of the DRBD device {holder}"),
        _ if holder.starts_with("md") => format!("a member of the RAID {holder}"),
        _ if holder.starts_with("bcache") => format!("a part of {holder}"),
        _ if holder.starts_with("dm-") => {
            let name = dm("name").unwrap_or_else(|| holder.to_owned());
            let uuid = dm("uuid").unwrap_or_default();
            let what = match uuid.split('-').next() {
                Some("LVM") => "the LVM volume",
                Some("CRYPT") => "the encrypted volume",
                Some("mpath") => "the multipath device",
                _ => "the device-mapper device",
            };
            format!("below {what} {name}")
        }
        _ => format!("below the device {holder}"),
    }
}

/// What to do about a disk that is not there. A Primary goes on reading from its peers, and does
/// not take another disk.
fn missing_disk(name: &str, primary: bool) -> String {
    let attach = format!("`holdfast attach-disk {name} --disk PATH`");
    if primary {
        return format!(
            "bring it back; or make another node Primary, `holdfast secondary {name}` here, and \
             give it another disk: {attach}"
        );
    }
    format!("bring it back, or give it another one: {attach}")
}

/// What the daemon says of the disk.
fn state(status: &ResourceStatus, findings: &mut Findings) {
    let (name, disk) = (&status.name, &status.disk);
    if disk.state == "Failed" {
        findings.error(
            "disks.failed",
            format!("{name}: the disk has failed and is not used any more"),
            "this node's copy gets older with every write",
            format!(
                "`holdfast replace-disk {name} --disk PATH`, or `holdfast attach-disk {name}` \
                     when it was only away"
            ),
        );
    }
    if let Some(health) = &disk.health {
        health_of(name, health, findings);
    }
    if disk.unreadable_blocks > 0 {
        findings.warning(
            "disks.unreadable",
            format!("{name}: {} blocks have no good copy on this disk", disk.unreadable_blocks),
            "who reads them gets them from a peer, or an error",
            format!("`holdfast scrub {name}` tries them again, and has peers asked for them"),
        );
    }
    if let Some(journal) = &status.journal
        && journal.emergency
    {
        findings.warning(
            "disks.journal",
            format!("{name}: the journal was full and was cut"),
            "followers that were away are copied to when they return",
            format!("a larger one: `holdfast set {name} journal-size=SIZE`"),
        );
    }
}

fn health_of(name: &str, health: &DiskHealth, findings: &mut Findings) {
    let score = health.score;
    let reasons: Vec<&str> = health.reasons.iter().map(|reason| &*reason.text).collect();
    if score >= WARNING_BELOW {
        return findings.ok("disks.health", format!("{name}: the health of the disk is {score}"));
    }
    let what = format!("{name}: the health of the disk is {score}: {}", reasons.join("; "));
    let why = "a disk with errors has more of them soon";
    if score < CRITICAL_BELOW {
        let advice =
            format!("replace it while it works: `holdfast replace-disk {name} --disk PATH`");
        findings.error("disks.health", what, why, advice);
    } else {
        let advice = format!("have a new disk ready; `holdfast health {name}` has the details");
        findings.warning("disks.health", what, why, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use holdfast_api::health::HealthReason;
    use holdfast_api::status::DiskStatus;

    #[test]
    fn a_primary_is_not_told_to_attach_what_it_would_refuse() {
        assert!(missing_disk("r0", true).contains("`holdfast secondary r0` here, and give it"));
        let other = missing_disk("r0", false);
        assert!(other.contains("attach-disk r0 --disk PATH") && !other.contains("secondary"));
    }

    /// A machine with the disk sdb of 1 GiB.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let basic = [
            ("sys/class/block/sdb/size", "2097152\n"),
            ("sys/class/block/sdb/ro", "0\n"),
            ("sys/class/block/sdb/dev", "8:16\n"),
            ("sys/class/block/sdb/sdb1/partition", "1\n"),
            ("sys/class/block/sdb/sdb1/dev", "8:17\n"),
            ("sys/class/block/sdb/queue/rotational", "1\n"),
            ("sys/class/block/sdb/queue/write_cache", "write back\n"),
            ("sys/class/block/sdb/queue/discard_max_bytes", "0\n"),
        ];
        for (path, content) in basic.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn found(size_bytes: u64, files: &[(&str, &str)]) -> Vec<(Severity, String)> {
        let root = machine(files);
        let places = ResourcePlaces {
            name: "db".into(),
            size_bytes,
            disk: Some("/dev/sdb".into()),
            ..ResourcePlaces::default()
        };
        let mut findings = Findings::default();
        of_resource(&Machine::below(root.path()), &places, None, &mut findings);
        findings.0.into_iter().map(|one| (one.severity, one.what)).collect()
    }

    #[test]
    fn a_disk_of_its_own_is_described() {
        let due = "db: /dev/sdb, 1 GiB, rotating, a write cache that is flushed, no discard";
        assert_eq!(found(1 << 30, &[]), [(Severity::Ok, due.to_owned())]);
    }

    #[test]
    fn a_disk_that_others_have_is_an_error() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("sys/class/block/sdb/holders/drbd0", "")], "the DRBD device drbd0"),
            (&[("sys/class/block/sdb/sdb1/holders/md127", "")], "a member of the RAID md127"),
            (
                &[
                    ("sys/class/block/sdb/holders/dm-3", ""),
                    ("sys/class/block/dm-3/dm/name", "vg0-root\n"),
                    ("sys/class/block/dm-3/dm/uuid", "LVM-abc\n"),
                ],
                "below the LVM volume vg0-root",
            ),
            (
                &[("proc/self/mountinfo", "30 1 8:17 / /mnt/old rw - ext4 /dev/sdb1 rw\n")],
                "mounted at /mnt/old",
            ),
            (&[("proc/swaps", "Filename\n/dev/sdb partition 1 0 -2\n")], "swap space"),
            (&[("sys/class/block/sdb/ro", "1\n")], "is read-only"),
        ];
        for (files, words) in cases {
            let found = found(1 << 30, files);
            let fits = |(severity, what): &(Severity, String)| {
                *severity == Severity::Error && what.contains(words)
            };
            assert!(found.len() == 1 && fits(&found[0]), "{words}: {found:?}");
        }
        let short = found(2 << 30, &[]);
        assert!(matches!(&short[..], [(Severity::Error, what)] if what.contains("1 GiB")));
    }

    #[test]
    fn the_score_of_the_disk_decides() {
        let of = |score| {
            let reasons = vec![HealthReason { deduction: 1, text: "16 errors".into() }];
            let health = DiskHealth { score, reasons, ..DiskHealth::default() };
            let disk = DiskStatus { health: Some(health), ..DiskStatus::default() };
            let mut findings = Findings::default();
            state(&ResourceStatus { disk, ..ResourceStatus::default() }, &mut findings);
            findings.0[0].severity
        };
        assert_eq!([100, 84, 60].map(of), [Severity::Ok, Severity::Warning, Severity::Error]);
    }
}
