//! This node's disks: errors, checksums, spares, and the move to another disk.

use super::resource::of;
use super::{Families, Kind, Row, n, ratio, with, yes};
use holdfast_api::status::{DiskReplacing, DiskStatus, NodeStatus};

const OF_DISK: [Row<DiskStatus>; 8] = [
    (
        "holdfast_disk_io_errors_total",
        Kind::Counter,
        "Disk errors since the disk is in use.",
        |disk| n(disk.io_errors),
    ),
    (
        "holdfast_disk_healed_blocks_total",
        Kind::Counter,
        "Blocks that could not be read and were repaired from a peer since the start.",
        |disk| n(disk.healed_blocks),
    ),
    (
        "holdfast_disk_hedged_reads_total",
        Kind::Counter,
        "Reads that a peer was asked for because the disk was slow, since the start.",
        |disk| n(disk.hedged_reads),
    ),
    (
        "holdfast_disk_hedged_reads_won_total",
        Kind::Counter,
        "Reads of a slow disk that the peer answered first, since the start.",
        |disk| n(disk.hedged_reads_won),
    ),
    (
        "holdfast_disk_unreadable_blocks",
        Kind::Gauge,
        "Blocks of which there is no good copy on the disk.",
        |disk| n(disk.unreadable_blocks),
    ),
    (
        "holdfast_disk_checksum_errors_total",
        Kind::Counter,
        "Blocks that were read and did not fit their checksum, since the disk was opened.",
        |disk| n(disk.checksum_errors),
    ),
    (
        "holdfast_disk_checksums_ratio",
        Kind::Gauge,
        "The part of the disk that has checksums.",
        |disk| ratio(f64::from(disk.checksums_percent)),
    ),
    (
        "holdfast_disk_problem",
        Kind::Gauge,
        "Whether the disk is not in use although it should be.",
        |disk| yes(disk.problem.is_some()),
    ),
];

/// Of disks with spares for bad sectors, in blocks of 4096 bytes.
const OF_SPARES: [Row<DiskStatus>; 6] = [
    (
        "holdfast_remapped_sectors",
        Kind::Gauge,
        "Blocks of the disk that live in a spare.",
        |disk| n(disk.remapped_sectors),
    ),
    (
        "holdfast_lost_sectors",
        Kind::Gauge,
        "Blocks of the disk that have no good copy here.",
        |disk| n(disk.lost_sectors),
    ),
    ("holdfast_spare_sectors", Kind::Gauge, "Blocks for which the spares were made.", |disk| {
        n(disk.spare_sectors)
    }),
    ("holdfast_spare_sectors_free", Kind::Gauge, "Blocks for which they have room.", |disk| {
        n(disk.spare_sectors_free)
    }),
    ("holdfast_spare_sectors_bad", Kind::Gauge, "Slots of the spares that failed.", |disk| {
        n(disk.spares.iter().map(|spare| spare.bad).sum())
    }),
    ("holdfast_spares_leaving", Kind::Gauge, "Spares that are being removed.", |disk| {
        n(disk.spares.iter().filter(|spare| spare.leaving).count() as u64)
    }),
];

const OF_REPLACING: [Row<DiskReplacing>; 6] = [
    ("holdfast_replacing_bytes", Kind::Gauge, "What a new disk gets before it is used.", |new| {
        n(new.bytes_total)
    }),
    ("holdfast_replacing_done_bytes", Kind::Gauge, "How much of it was copied.", |new| {
        n(new.bytes_done)
    }),
    ("holdfast_replacing_rate_bytes_per_second", Kind::Gauge, "How fast that goes.", |new| {
        n(new.rate_bytes_per_second)
    }),
    (
        "holdfast_replacing_eta_seconds",
        Kind::Gauge,
        "How long it takes from now on; 0 when that is not known.",
        |new| n(new.eta_seconds),
    ),
    (
        "holdfast_replacing_unreadable_blocks",
        Kind::Gauge,
        "Blocks the old disk cannot read.",
        |new| n(new.unreadable_blocks),
    ),
    ("holdfast_replacing_failed", Kind::Gauge, "Whether a new disk could not be used.", |new| {
        yes(new.state == "failed")
    }),
];

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let disks = status.resources.iter().map(|r| (of(r), &r.disk));
    all.table(&OF_DISK, disks.clone());
    all.info(
        "holdfast_disk_state",
        "This node's disk, 1 for the state that it is in.",
        disks.clone().map(|(labels, disk)| with(&labels, "state", &disk.state)),
    );
    all.info(
        "holdfast_disk_checksums_state",
        "Whether a checksum is kept for each block, 1 for the state.",
        disks
            .clone()
            .filter(|(_, disk)| !disk.checksums.is_empty())
            .map(|(labels, disk)| with(&labels, "state", &disk.checksums)),
    );
    all.table(&OF_SPARES, disks.clone().filter(|(_, disk)| disk.spare_fill.is_some()));
    all.info(
        "holdfast_spare_fill_state",
        "How full the spares of the disk are, 1 for the state.",
        disks
            .clone()
            .filter_map(|(labels, disk)| Some(with(&labels, "state", disk.spare_fill.as_ref()?))),
    );
    let moves = disks.filter_map(|(labels, disk)| Some((labels, disk.replacing.as_ref()?)));
    all.table(&OF_REPLACING, moves.clone());
    all.info(
        "holdfast_replacing_state",
        "How the move to a new disk is, 1 for its state.",
        moves.map(|(labels, new)| with(&labels, "state", &new.state)),
    );
}
