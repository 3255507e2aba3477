//! Bad sectors moved out of the way: a layer between [`crate::Disk`] and its engine. How it works,
//! what it writes in which order, and what an interruption leaves: `docs/design/remap.md`.

mod asked;
mod fill;
mod found;
mod layer;
mod lists;
mod locks;
mod map;
mod members;
mod opening;
mod place;
mod placing;
mod rounds;
mod set;
mod setup;
mod spare;
mod task;

use bytes::Bytes;
use holdfast_format::remap::{EntryState, Reason, SpareId};
use holdfast_units::{ByteRange, ResourceId};
use rustix::io::Errno;

use crate::Disk;
pub use found::TableWrites;
pub(crate) use layer::Remap;
pub use lists::{BadListError, read_bad_list};
pub use setup::{
    DiskIdentity, LoadedSpare, SpareAt, SpareError, SpareErrorKind, SpareFormat, check_spare_place,
    format_spare, is_leftover, load_spare, read_spare_header, retire_spare,
};
pub(crate) use task::merged;

/// Why a unit is lost of which the table says no more than that the main disk could not read it. Versions
/// that do not know that take such a unit for lost.
const UNREAD: Reason = Reason::NotReadBack;

/// What a read found that failed in part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartialRead {
    /// As many bytes as were asked for. Those of the bad ranges mean nothing.
    pub data: Bytes,
    /// What could not be read: offsets of the disk, sorted, at least one, none of them empty, each
    /// inside of what was asked for.
    pub bad: Vec<ByteRange>,
    /// Those of them that could be read and do not fit their checksums.
    pub wrong: Vec<ByteRange>,
}

/// What the layer for bad sectors can be asked for. Ranges are multiples of the unit, and have 8192
/// units at most.
#[derive(Debug)]
pub enum RemapOp {
    /// Store these bytes, so that they read back: in place if that works, otherwise in a spare.
    /// Units that were lost are not any more.
    Repair {
        /// Where they belong.
        range: ByteRange,
        /// Exactly `range.len` bytes.
        data: Bytes,
    },
    /// These units have no good copy here: reads fail until they are written.
    MarkLost {
        /// Which.
        range: ByteRange,
    },
    /// These units cannot be read: what is written there is looked at, as of those that are lost, but
    /// reads are tried. Those that are in a spare stay as they are.
    MarkUnread {
        /// Which.
        range: ByteRange,
    },
    /// Move these units into a spare. Those that cannot be read are lost, as with
    /// [`RemapOp::MarkUnread`]; where the disk does not answer at all, they fail. Those that are in a
    /// spare or lost already stay as they are.
    Move {
        /// Which.
        range: ByteRange,
        /// They are from a list of bad blocks; otherwise somebody chose them.
        imported: bool,
    },
    /// Move these units back to where they belong, if they can be written and read there. Those that
    /// cannot stay in the spare, and the operation fails.
    MoveBack {
        /// Which.
        range: ByteRange,
    },
    /// Use this spare, too. It must have been formatted for this disk, and be empty.
    AddSpare(LoadedSpare),
    /// Use a spare again that gets nothing since it could not be added, or not be removed
    /// ([`SpareInfo::leaving`]). One that is used stays as it is.
    AdmitSpare {
        /// Which.
        spare: SpareId,
    },
    /// Use this spare no more. The last one cannot be removed.
    RemoveSpare {
        /// Which.
        spare: SpareId,
        /// Move what it holds to the others first; without it, one that holds something is refused
        /// ([`RemapReport::busy`] says how much). What cannot be read of a spare that answers is lost.
        empty: bool,
    },
}

impl RemapOp {
    pub(crate) const fn range(&self) -> ByteRange {
        match self {
            Self::Repair { range, .. }
            | Self::MarkLost { range }
            | Self::MarkUnread { range }
            | Self::Move { range, .. }
            | Self::MoveBack { range } => *range,
            Self::AddSpare(_) | Self::AdmitSpare { .. } | Self::RemoveSpare { .. } => {
                ByteRange::new(0, 0)
            }
        }
    }

    /// Whether it changes which spares there are.
    pub(crate) const fn changes_members(&self) -> bool {
        matches!(self, Self::AddSpare(_) | Self::AdmitSpare { .. } | Self::RemoveSpare { .. })
    }
}

/// What an operation of [`Disk::remap`] has done, in units.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RemapReport {
    /// Stored where they were (or back on the main disk).
    pub in_place: u64,
    /// Stored in a new slot of a spare.
    pub placed: u64,
    /// Lost now.
    pub lost: u64,
    /// Failed, because no spare has a slot left.
    pub full: u64,
    /// Failed otherwise.
    pub failed: u64,
    /// Units that a spare holds that was to be removed.
    pub busy: u64,
    /// The spare was removed, and its own header could not say so: it is formatted again by force only.
    pub not_retired: bool,
    pub(crate) first_failure: Option<Errno>,
}

/// How full the spares are, all together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SpareFill {
    /// Below 80 %.
    Fine,
    /// From 80 %: more space should be added.
    Low,
    /// From 95 %: more space must be added.
    Critical,
    /// No slot is left.
    Full,
}

/// What the layer for bad sectors has and did. Counts of units and slots; those of errors and of what
/// was done begin at zero when the disk is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapStats {
    /// Bytes that are moved as one.
    pub unit: u32,
    /// Slots of all spares.
    pub slots: u64,
    /// Slots that can be taken.
    pub free: u64,
    /// Units that are in a spare.
    pub mapped: u64,
    /// Units that have no good copy here.
    pub lost: u64,
    /// Slots that failed, and are used no more.
    pub bad_slots: u64,
    /// How full the spares are.
    pub fill: SpareFill,
    /// Blocks of the spares' headers and tables of which one of the two copies cannot be written.
    pub weak_blocks: u64,
    /// Units of the main disk that could not be written.
    pub write_errors: u64,
    /// Units of the main disk that could not be read; each failed read counts.
    pub read_errors: u64,
    /// Errors of the spares.
    pub spare_errors: u64,
    /// Units that were stored in a new slot.
    pub placed: u64,
    /// Units that were stored where they were, after an error.
    pub in_place: u64,
    /// Requests that went to a spare as they are.
    pub hits: u64,
    /// Writes that were split.
    pub splits: u64,
}

/// One spare of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpareInfo {
    /// Its identity.
    pub id: SpareId,
    /// Where it was opened; `None` for memory and regions.
    pub path: Option<std::path::PathBuf>,
    /// The part of the main disk that it is.
    pub region: Option<ByteRange>,
    /// How many slots it has.
    pub slots: u64,
    /// How many can be taken.
    pub free: u64,
    /// How many hold a unit.
    pub mapped: u64,
    /// How many are kept for lost units.
    pub lost: u64,
    /// How many failed.
    pub bad_slots: u64,
    /// It is being added or removed, or that failed: it gets nothing new.
    pub leaving: bool,
    /// How often blocks of its table were written, as far as that is durable. It only grows, over all
    /// openings: one that says less is an older image of it.
    pub table_writes: u64,
}

/// What the table says of a slot that is not free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapEntry {
    /// The unit of the main disk. For a bad slot, that which it was for when it failed.
    pub range: ByteRange,
    /// `Mapped`, `Lost` or `BadSlot`.
    pub state: EntryState,
    /// Why.
    pub reason: Reason,
    /// When, in seconds since 1970.
    pub time: u32,
    /// Errors that were seen.
    pub errors: u16,
    /// The spare.
    pub spare: SpareId,
    /// Its slot.
    pub slot: u32,
}

/// What has become of a unit, when the tables of the spares say so durably.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RemapFate {
    /// It is in this slot of this spare now.
    Placed(SpareId, u32),
    /// It has no good copy here.
    Lost,
    /// It is where it belongs again.
    Returned,
    /// This slot of this spare failed, and is used no more.
    SlotFailed(SpareId, u32),
}

/// A change of what the tables of the spares say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemapChange {
    /// The unit of the main disk.
    pub range: ByteRange,
    /// What has become of it.
    pub fate: RemapFate,
    /// Why.
    pub reason: Reason,
}

/// Who is told of changes, and how often the tables were written then.
pub type RemapWatch = Box<dyn FnMut(&[RemapChange], &TableWrites) + Send>;

/// What happened since the disk was opened.
#[derive(Clone, Copy, Default, Debug)]
struct Counters {
    write_errors: u64,
    read_errors: u64,
    spare_errors: u64,
    placed: u64,
    in_place: u64,
    hits: u64,
    splits: u64,
}

/// What the layer knows of the main disk.
#[derive(Clone, Copy, Debug)]
struct Details {
    size: u64,
    block_size: u32,
    resource: ResourceId,
    disk: [u8; 16],
    /// Its errors can be those of bad sectors.
    has_medium: bool,
}

impl Disk {
    /// Has every change of the tables of the spares told, on the thread that drives the disk, when it
    /// is durable. The one who is told must not wait. Nothing happens on a disk without spares.
    pub fn watch_remap(&mut self, watch: RemapWatch) {
        if let Some(remap) = self.engine_mut().remap_mut() {
            remap.watch = Some(watch);
        }
    }

    fn layer(&self) -> Option<&Remap> {
        self.engine().remap()
    }

    /// What the layer for bad sectors has and did; `None` for a disk without spares.
    #[must_use]
    pub fn remap_stats(&self) -> Option<RemapStats> {
        let remap = self.layer()?;
        let spares = || remap.spares.iter().flatten();
        let sum = |of: fn(&spare::Spare) -> u64| spares().map(of).sum::<u64>();
        let slots = sum(|spare| u64::from(spare.layout().slots()));
        let free = sum(|spare| u64::from(spare.table.free()));
        let Counters { write_errors, read_errors, spare_errors, placed, in_place, hits, splits } =
            remap.counters;
        Some(RemapStats {
            unit: u32::try_from(remap.map.unit_len()).unwrap_or(0),
            slots,
            free,
            mapped: sum(|spare| spare.table.counts().mapped),
            lost: sum(|spare| spare.table.counts().lost),
            bad_slots: sum(|spare| spare.table.counts().bad),
            fill: match (slots - free) * 100 {
                _ if free == 0 => SpareFill::Full,
                used if used >= slots * 95 => SpareFill::Critical,
                used if used >= slots * 80 => SpareFill::Low,
                _ => SpareFill::Fine,
            },
            weak_blocks: sum(spare::Spare::weak_blocks),
            write_errors,
            read_errors,
            spare_errors,
            placed,
            in_place,
            hits,
            splits,
        })
    }

    /// The spares of the disk; none for a disk without the layer.
    #[must_use]
    pub fn spares(&self) -> Vec<SpareInfo> {
        let spares = self.layer().into_iter().flat_map(|remap| remap.spares.iter().flatten());
        let info = |spare: &spare::Spare| {
            let counts = spare.table.counts();
            let (path, region) = match &spare.backing {
                spare::Backing::Disk(disk) => (disk.info().path.clone(), None),
                spare::Backing::Region(offset) => {
                    (None, Some(ByteRange::new(*offset, spare.layout().length())))
                }
            };
            SpareInfo {
                id: spare.header.spare,
                path,
                region,
                slots: u64::from(spare.layout().slots()),
                free: u64::from(spare.table.free()),
                mapped: counts.mapped,
                lost: counts.lost,
                bad_slots: counts.bad,
                leaving: spare.leaving,
                table_writes: spare.table.durable_writes(),
            }
        };
        spares.map(info).collect()
    }

    /// All that the tables of the spares say, slot by slot.
    pub fn remap_entries(&self) -> impl Iterator<Item = RemapEntry> + '_ {
        let spares = self.layer().into_iter().flat_map(|remap| remap.spares.iter().flatten());
        spares.flat_map(|spare| {
            let unit = u64::from(spare.layout().unit());
            spare.table.entries().map(move |(slot, entry)| RemapEntry {
                range: ByteRange::new(entry.unit * unit, unit),
                state: entry.state,
                reason: entry.reason,
                time: entry.time,
                errors: entry.errors,
                spare: spare.header.spare,
                slot,
            })
        })
    }
}
