//! Spares for the bad sectors of a disk: made, opened with the disk each time, and looked at. The
//! layer itself is `holdfast-store`'s (`docs/design/remap.md`).

mod age;
mod diary;
mod low;
mod make;
mod open;

pub(crate) use age::forget_writes;
pub(crate) use diary::{MapChanges, tell_map, watch_map};
pub(crate) use low::{news, problems};
pub(crate) use make::{
    Planned, add_offline, another, check_places, end, first, is_member, make, mark, new_disk_id,
    retire_all, retire_of_old, retire_unused, with_another,
};
pub use open::SparesError;
pub(crate) use open::{disk_id, file_is_whole, identity, open_with, unmark};

use holdfast_store::{DiskError, RemapReport, RemapStats, SpareInfo};
use holdfast_units::ByteRange;
use std::path::PathBuf;

/// Where a spare of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpareSpec {
    /// A file or a block device of its own.
    Path(PathBuf),
    /// A part of the disk itself.
    Region(ByteRange),
}

impl SpareSpec {
    /// The place in words.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Region(range) => {
                format!("the part of the disk from {} to {}", range.offset, range.end())
            }
        }
    }
}

/// What became of work on the spares that was asked for.
pub(crate) type RemapAnswer = Result<RemapReport, RemapFailed>;

/// Work on the spares that did not do all that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RemapFailed {
    /// Why; `None` when there is no disk.
    pub(crate) error: Option<DiskError>,
    /// What was done all the same.
    pub(crate) report: RemapReport,
}

/// How the spares of a disk are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparesView {
    /// All together.
    pub stats: RemapStats,
    /// One by one.
    pub spares: Vec<SpareInfo>,
}

impl SparesView {
    /// How the spares of this disk are; `None` when it has none.
    pub(crate) fn of(disk: &holdfast_store::Disk) -> Option<Self> {
        Some(Self { stats: disk.remap_stats()?, spares: disk.spares() })
    }
}
