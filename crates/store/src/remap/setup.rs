//! Formatting a spare, and taking the spares of a disk into use.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use holdfast_format::remap::{
    EntryState, SpareHeader, SpareId, SpareLayout, SpareLayoutError, TableBlock, newest,
};
use holdfast_format::{BLOCK_LEN, Block, BlockError, looks_used};
use holdfast_units::{ByteRange, ResourceId};

use super::layer::Remap;
use super::map::{Map, Place, SlotRef};
use super::spare::{Backing, Spare, Table};
use super::{Details, UNREAD};
use crate::engine::Engine;
use crate::{BackingKind, Disk, DiskError, DiskOp, Outcome};

const BLOCK: u64 = BLOCK_LEN as u64;
/// So much of both ends of a spare must be empty for it to be formatted without force.
const LOOKED_AT: u64 = 1 << 20;
/// How much is read or written at a time.
const CHUNK: u64 = 1 << 20;

/// Whose bad sectors a spare takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIdentity {
    /// The resource.
    pub resource: ResourceId,
    /// The disk: a random number that its owner keeps, or anything else that is never another disk's.
    pub disk: [u8; 16],
}

impl std::fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "disk {} of resource {}", SpareId(self.disk), self.resource)
    }
}

/// Where a spare is.
#[derive(Debug)]
pub enum SpareAt {
    /// On a disk of its own.
    Disk(Box<Disk>),
    /// In this part of the main disk, which nobody can use for something else then.
    Region(ByteRange),
}

/// How a spare is to be made.
#[derive(Clone, Copy, Debug)]
pub struct SpareFormat {
    /// Its identity: a random number.
    pub id: SpareId,
    /// How many bytes are moved as one: 4096, or 512. The same for all spares of a disk.
    pub unit: u32,
    /// How many slots; as many as fit without it.
    pub slots: Option<u32>,
    /// Overwrite whatever is there.
    pub force: bool,
    /// The size of the main disk in bytes.
    pub disk_size: u64,
    /// Now, in seconds since 1970.
    pub created: u64,
}

/// Why a spare cannot be used, as far as a caller acts on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SpareErrorKind {
    /// Its size or shape is impossible.
    Layout(SpareLayoutError),
    /// It is not empty; what is on it, as far as that is known.
    NotEmpty(&'static str),
    /// It is not a spare at all, or broken: what is wrong with both copies of its header.
    NoHeader([BlockError; 2]),
    /// It belongs to another disk.
    Foreign {
        /// The disk that it belongs to.
        found: DiskIdentity,
        /// The disk that it was given to.
        expected: DiskIdentity,
    },
    /// Both copies of a block of its table are broken.
    Table {
        /// Which block.
        block: u32,
        /// What is wrong with the two.
        why: [BlockError; 2],
    },
    /// A spare of the disk is not there.
    Missing(SpareId),
    /// It was removed from the disk, and yet it holds units of it.
    NotMember,
    /// It was given twice.
    Twice,
    /// Another spare of the disk has units of another size.
    OtherUnit,
    /// It names units behind the end of the disk, which has so many bytes.
    DiskTooSmall(u64),
    /// The size of the disk is not a multiple of the unit, or operations are in flight.
    Unfit(&'static str),
    /// It is not used any more, and no other spare was given.
    Retired,
    /// It does not lie in the disk, or is in use, or is open for reading only.
    Unusable(&'static str),
    /// The disk below reported an error.
    Disk(DiskError),
}

/// Why spares cannot be used: one sentence with the way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the spare {name} cannot be used: {}", .kind.why())]
pub struct SpareError {
    /// What kind of failure.
    pub kind: SpareErrorKind,
    /// Which spare: its path, or what else it is.
    pub name: String,
}

impl SpareErrorKind {
    fn why(&self) -> String {
        match self {
            Self::Layout(error) => format!("{error}; give it another size"),
            Self::NotEmpty(what) => {
                format!("it is not empty, it holds {what}; choose another, or force it")
            }
            Self::NoHeader([first, second]) if first == second => {
                format!("it has no header: {first}; check the path, or format it")
            }
            Self::NoHeader([first, second]) => format!(
                "both copies of its header are broken (the first: {first}; the second: {second}); \
                 restore it from a copy, or give up what it holds by formatting it by force"
            ),
            Self::Foreign { found, expected } => {
                format!("it belongs to {found}, not to {expected}; give the spare of this disk")
            }
            Self::Table { block, why: [first, second] } => format!(
                "both copies of block {block} of its table are broken (the first: {first}; the \
                 second: {second}); restore it from a copy, or give up what it holds by formatting \
                 it by force and fill the disk from a peer"
            ),
            Self::Missing(id) => format!(
                "the disk has another spare, {id}, which was not given; without it old data would \
                 be read"
            ),
            Self::NotMember => "it was removed from this disk, but still holds units of it; leave \
                                it out, or add it after formatting it by force"
                .into(),
            Self::Twice => "it was given twice; give each spare once".into(),
            Self::OtherUnit => "its units have another size than those of the disk's other \
                                spares; format it alike"
                .into(),
            Self::DiskTooSmall(size) => format!(
                "it holds units behind the end of the disk, which has {size} bytes; it is not the \
                 disk that it was made for, or was cut"
            ),
            Self::Unfit(why) | Self::Unusable(why) => (*why).into(),
            Self::Retired => "it was removed from its disk and holds nothing; format it to use it \
                              again"
                .into(),
            Self::Disk(error) => error.to_string(),
        }
    }
}

/// A spare that was read and checked, to be added to a disk.
pub struct LoadedSpare {
    /// Gone when it was taken into use.
    pub(super) spare: Option<Box<Spare>>,
}

impl std::fmt::Debug for LoadedSpare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let header = self.spare.as_ref().map(|spare| &spare.header);
        f.debug_struct("LoadedSpare").field("header", &header).finish_non_exhaustive()
    }
}

/// The bytes of a spare, wherever it is.
struct Bed<'a> {
    disk: &'a mut Disk,
    range: ByteRange,
}

impl Bed<'_> {
    fn name(&self) -> String {
        let path = self.disk.info().path.as_ref();
        let name = path.map_or("in memory".into(), |path: &PathBuf| path.display().to_string());
        if self.range.len == self.disk.size() && self.range.offset == 0 {
            name
        } else {
            format!("{name} (region {})", self.range)
        }
    }

    fn fail(&self, kind: SpareErrorKind) -> SpareError {
        SpareError { kind, name: self.name() }
    }

    fn disk_failed(&self, error: DiskError) -> SpareError {
        self.fail(SpareErrorKind::Disk(error))
    }

    fn read(&mut self, at: u64, len: u64) -> Result<Bytes, DiskError> {
        let range = ByteRange::new(self.range.offset + at, len);
        match self.disk.execute(DiskOp::Read { range, holes: false })? {
            Outcome::Data(data) => Ok(data),
            Outcome::Done | Outcome::Zeroes | Outcome::Logged(_) => Ok(Bytes::new()),
        }
    }

    fn block(&mut self, at: u64) -> Result<Block, BlockError> {
        if at + BLOCK > self.range.len {
            return Err(BlockError::Unreadable);
        }
        let data = self.read(at, BLOCK).map_err(|_| BlockError::Unreadable)?;
        data[..].try_into().map_err(|_| BlockError::Unreadable)
    }

    fn write(&mut self, at: u64, data: Bytes) -> Result<(), DiskError> {
        let range = ByteRange::new(self.range.offset + at, data.len() as u64);
        self.disk.execute(DiskOp::Write { range, data, fua: false }).map(|_| ())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.disk.execute(DiskOp::Flush).map(|_| ())
    }

    /// What is on it, when it is not empty.
    fn content(&mut self) -> Result<Option<&'static str>, DiskError> {
        let len = self.range.len;
        let ends = [(0, len.min(LOOKED_AT)), (len.saturating_sub(LOOKED_AT), len.min(LOOKED_AT))];
        for (at, len) in ends {
            let data = self.read(at, len)?;
            let mut blocks = data.chunks_exact(BLOCK_LEN).filter_map(<[u8]>::first_chunk);
            if let Some(what) = blocks.find_map(looks_used) {
                return Ok(Some(what));
            }
            if data.iter().any(|byte| *byte != 0) {
                return Ok(Some("data (not all of it is zero)"));
            }
        }
        Ok(None)
    }

    /// Both copies of the header, the newest first in `Ok`, and which copies must be written again.
    fn header(&mut self) -> Result<(SpareHeader, [bool; 2]), SpareErrorKind> {
        let decode = |block: Result<Block, BlockError>, copy| {
            block.and_then(|block| SpareHeader::decode(&block, copy))
        };
        let first = decode(self.block(0), 0);
        let length = first.as_ref().map_or(self.range.len / BLOCK * BLOCK, |h| h.layout.length());
        let second = decode(self.block(length.saturating_sub(BLOCK)), 1);
        let (a, b) = (first.clone().ok(), second.clone().ok());
        let (header, _) =
            newest(first, second, |h| h.sequence).map_err(SpareErrorKind::NoHeader)?;
        if header.layout.length() > self.range.len {
            let (needed, given) = (header.layout.length(), self.range.len);
            return Err(SpareErrorKind::Layout(SpareLayoutError::TooSmall { needed, given }));
        }
        let stale = [a, b].map(|copy| copy.as_ref() != Some(&header));
        Ok((header, stale))
    }
}

fn bed(disk: &mut Disk, region: Option<ByteRange>) -> Result<Bed<'_>, SpareError> {
    let size = disk.size();
    let range = region.unwrap_or(ByteRange::new(0, size));
    let inside = range.is_aligned() && range.offset <= size && range.len <= size - range.offset;
    let why = if !inside {
        "it does not lie in the disk, or not on borders of 4096 bytes; give another region"
    } else if disk.in_flight() > 0 {
        "operations are in flight; wait for them first"
    } else {
        return Ok(Bed { disk, range });
    };
    Err(Bed { disk, range }.fail(SpareErrorKind::Unusable(why)))
}

/// Makes an empty spare, of all of a disk or of a region of it. Blocks.
///
/// # Errors
/// [`SpareError`]: it is too small, not empty (unless forced), or cannot be written.
pub fn format_spare(
    disk: &mut Disk,
    region: Option<ByteRange>,
    owner: &DiskIdentity,
    format: &SpareFormat,
) -> Result<SpareHeader, SpareError> {
    let mut bed = bed(disk, region)?;
    let layout = match format.slots {
        Some(slots) => SpareLayout::new(bed.range.len, format.unit, slots),
        None => SpareLayout::largest(bed.range.len, format.unit),
    }
    .map_err(|error| bed.fail(SpareErrorKind::Layout(error)))?;
    let retired = matches!(bed.header(), Ok((SpareHeader { retired: true, .. }, _)));
    if !format.force && !retired {
        let content = bed.content().map_err(|error| bed.disk_failed(error))?;
        if let Some(what) = content {
            return Err(bed.fail(SpareErrorKind::NotEmpty(what)));
        }
    }
    let header = SpareHeader {
        sequence: 1,
        resource: owner.resource,
        spare: format.id,
        disk: owner.disk,
        disk_size: format.disk_size,
        layout,
        retired: false,
        created: format.created,
        members: vec![format.id],
    };
    write_fresh(&mut bed, &header).map_err(|error| bed.disk_failed(error))?;
    Ok(header)
}

fn write_fresh(bed: &mut Bed<'_>, header: &SpareHeader) -> Result<(), DiskError> {
    let layout = &header.layout;
    // What was there before must not be half there when this is interrupted.
    for copy in [0, 1] {
        bed.write(layout.header_offset(copy), Bytes::from(vec![0; BLOCK_LEN]))?;
    }
    bed.flush()?;
    let empty = TableBlock { sequence: 1, ..TableBlock::default() };
    let per_chunk = u32::try_from(CHUNK / BLOCK).unwrap_or(1);
    for copy in [0, 1] {
        let mut first = 0;
        while first < layout.table_blocks() {
            let end = (first + per_chunk).min(layout.table_blocks());
            let mut data = Vec::new();
            for number in first..end {
                data.extend_from_slice(&empty.encode(number, header.resource, header.spare));
            }
            bed.write(layout.table_offset(copy, first), data.into())?;
            first = end;
        }
    }
    bed.flush()?;
    for copy in [0, 1] {
        bed.write(layout.header_offset(copy), header.encode(copy).to_vec().into())?;
    }
    bed.flush()
}

/// Reads the header of a spare, and nothing else; nothing is written. Blocks.
///
/// # Errors
/// [`SpareError`] when there is none.
pub fn read_spare_header(
    disk: &mut Disk,
    region: Option<ByteRange>,
) -> Result<SpareHeader, SpareError> {
    let mut bed = bed(disk, region)?;
    match bed.header() {
        Ok((header, _)) => Ok(header),
        Err(kind) => Err(bed.fail(kind)),
    }
}

/// Says durably that a spare is not used any more, whatever it holds: it can be formatted again
/// without force. One that is so already stays as it is. Blocks.
///
/// # Errors
/// [`SpareError`]: it is none, another disk's, or cannot be written.
pub fn retire_spare(
    disk: &mut Disk,
    region: Option<ByteRange>,
    owner: &DiskIdentity,
) -> Result<(), SpareError> {
    let mut bed = bed(disk, region)?;
    let (mut header, _) = bed.header().map_err(|kind| bed.fail(kind))?;
    let found = DiskIdentity { resource: header.resource, disk: header.disk };
    if found != *owner {
        return Err(bed.fail(SpareErrorKind::Foreign { found, expected: *owner }));
    }
    header.sequence += 1;
    (header.retired, header.members) = (true, vec![header.spare]);
    for copy in [0, 1] {
        let block = header.encode(copy).to_vec().into();
        let written = bed.write(header.layout.header_offset(copy), block);
        written.and_then(|()| bed.flush()).map_err(|error| bed.disk_failed(error))?;
    }
    Ok(())
}

/// Reads and checks a spare that was formatted for this disk, for [`RemapOp::AddSpare`]. Blocks; any
/// thread will do.
///
/// # Errors
/// [`SpareError`]: it is broken, or another disk's.
pub fn load_spare(mut disk: Disk, owner: &DiskIdentity) -> Result<LoadedSpare, SpareError> {
    let found = read(&mut bed(&mut disk, None)?, owner)?;
    let Found { header, table, .. } = found;
    let backing = Backing::Disk(Box::new(disk));
    Ok(LoadedSpare { spare: Some(Box::new(in_use(header, table, backing))) })
}

fn in_use(header: SpareHeader, table: Table, backing: Backing) -> Spare {
    let backlog = std::collections::VecDeque::new();
    Spare { header, backing, table, dirty: false, leaving: false, backlog }
}

/// A spare as it was found; nothing was written yet.
struct Found {
    name: String,
    header: SpareHeader,
    table: Table,
    /// Copies of the header that must be written again.
    stale_headers: [bool; 2],
    /// Copies of blocks of the table that must be: copy, number, bytes.
    stale_blocks: Vec<(usize, u32, Box<Block>)>,
}

fn read(bed: &mut Bed<'_>, owner: &DiskIdentity) -> Result<Found, SpareError> {
    let (header, stale_headers) = bed.header().map_err(|kind| bed.fail(kind))?;
    let found = DiskIdentity { resource: header.resource, disk: header.disk };
    if found != *owner {
        return Err(bed.fail(SpareErrorKind::Foreign { found, expected: *owner }));
    }
    let mut table = Table::new(&header.layout);
    let mut stale_blocks = Vec::new();
    let blocks = header.layout.table_blocks();
    let per_chunk = u32::try_from(CHUNK / BLOCK).unwrap_or(1);
    let mut first = 0;
    while first < blocks && !header.retired {
        let end = (first + per_chunk).min(blocks);
        let chunks = [0, 1].map(|copy| {
            let at = header.layout.table_offset(copy, first);
            bed.read(at, u64::from(end - first) * BLOCK).ok()
        });
        for number in first..end {
            let [a, b] = [0, 1].map(|copy| {
                let at = (number - first) as usize * BLOCK_LEN;
                let block = match &chunks[copy] {
                    Some(data) => data[at..].first_chunk().copied().ok_or(BlockError::Unreadable),
                    None => bed.block(header.layout.table_offset(copy, number)),
                };
                let (resource, spare) = (header.resource, header.spare);
                block.and_then(|block| {
                    TableBlock::decode(&block, number, resource, spare, header.layout.slots())
                })
            });
            let sequences = [&a, &b].map(|copy| copy.as_ref().ok().map(|block| block.sequence));
            let (block, _) = newest(a, b, |block| block.sequence)
                .map_err(|why| bed.fail(SpareErrorKind::Table { block: number, why }))?;
            for copy in [0, 1] {
                if sequences[copy] != Some(block.sequence) {
                    let bytes = block.encode(number, header.resource, header.spare);
                    stale_blocks.push((copy, number, Box::new(bytes)));
                }
            }
            table.load(number, block);
        }
        first = end;
    }
    Ok(Found { name: bed.name(), header, table, stale_headers, stale_blocks })
}

impl Found {
    fn fail(&self, kind: SpareErrorKind) -> SpareError {
        SpareError { kind, name: self.name.clone() }
    }

    fn holds_units(&self) -> bool {
        self.table.counts().mapped + self.table.counts().lost > 0
    }

    /// Writes again what is broken or old, when the newest copies are durable.
    fn repair(&mut self, bed: &mut Bed<'_>) -> Result<(), SpareError> {
        if self.stale_blocks.is_empty() && self.stale_headers == [false; 2] {
            return Ok(());
        }
        bed.flush().map_err(|error| bed.disk_failed(error))?;
        for (copy, number, block) in self.stale_blocks.drain(..) {
            let at = self.header.layout.table_offset(copy, number);
            if bed.write(at, block.to_vec().into()).is_err() {
                self.table.make_weak(number);
            }
        }
        bed.flush().map_err(|error| bed.disk_failed(error))?;
        for copy in [0, 1] {
            if self.stale_headers[copy] {
                let at = self.header.layout.header_offset(copy);
                bed.write(at, self.header.encode(copy).to_vec().into())
                    .map_err(|error| bed.disk_failed(error))?;
                bed.flush().map_err(|error| bed.disk_failed(error))?;
            }
        }
        Ok(())
    }

    /// Frees slots, durably in both copies.
    fn free(&mut self, bed: &mut Bed<'_>, slots: &[u32]) -> Result<(), DiskError> {
        let free = slots.iter().map(|slot| (*slot, holdfast_format::remap::Entry::default()));
        self.table.queue(free, 0);
        self.table.begin_round(&self.header, Bytes::copy_from_slice);
        let Some(round) = &self.table.round else { return Ok(()) };
        let blocks = round.blocks.clone();
        for copy in [0, 1] {
            for (number, data) in &blocks {
                bed.write(self.header.layout.table_offset(copy, *number), data.clone())?;
            }
            bed.flush()?;
        }
        self.table.end_round();
        slots.iter().for_each(|slot| self.table.give_back(*slot));
        Ok(())
    }
}

impl Disk {
    /// The same disk, whose bad sectors go to these spares. All spares that the disk has must be
    /// given. Blocks: it reads the tables and repairs what is broken of them. Nothing is written
    /// when it fails because of what is on a spare.
    ///
    /// # Errors
    /// [`SpareError`] says why in one sentence.
    pub fn with_spares(
        mut self,
        spares: Vec<SpareAt>,
        owner: &DiskIdentity,
    ) -> Result<Self, SpareError> {
        let mut spares = spares;
        let mut found = Vec::new();
        for spare in &mut spares {
            found.push(read(&mut self.bed_of(spare)?, owner)?);
        }
        let mut notes = Vec::new();
        let members = check_members(&found, &mut notes)?;
        let sequence = found.iter().map(|f| f.header.sequence).max().unwrap_or(0);
        let mut used = Vec::new();
        for (at, mut spare) in spares.into_iter().zip(found) {
            if !members.contains(&spare.header.spare) {
                continue;
            }
            if spare.header.sequence != sequence || spare.header.members != members {
                (spare.header.sequence, spare.stale_headers) = (sequence, [true; 2]);
                spare.header.members.clone_from(&members);
            }
            used.push((at, spare));
        }
        self.check_fit(&used)?;
        let unit = used.first().map_or(4096, |(_, f)| f.header.layout.unit());
        let mut map = Map::new(unit);
        let (order, losers) = merge(&used, &mut map);
        if !self.info().read_only {
            for ((at, spare), losers) in used.iter_mut().zip(&losers) {
                let mut bed = self.bed_of(at)?;
                spare.repair(&mut bed)?;
                if !losers.is_empty() {
                    spare.free(&mut bed, losers).map_err(|error| bed.disk_failed(error))?;
                }
            }
        }
        let mut block_size = self.info().block_size;
        let mut in_layer = Vec::new();
        for (at, spare) in used {
            let backing = match at {
                SpareAt::Region(range) => Backing::Region(range.offset),
                SpareAt::Disk(mut disk) => {
                    block_size = block_size.max(disk.info().block_size);
                    if self.share_wake(&mut disk).is_err() {
                        let why = "it cannot be used together with another disk; use a file or a \
                                   block device";
                        return Err(spare.fail(SpareErrorKind::Unusable(why)));
                    }
                    Backing::Disk(disk)
                }
            };
            in_layer.push(in_use(spare.header, spare.table, backing));
        }
        let details = Details {
            size: self.size(),
            block_size,
            resource: owner.resource,
            disk: owner.disk,
            has_medium: self.info().kind != BackingKind::Remote,
        };
        let wrap = |main, pool: &_, wake: &_| {
            let remap = Remap::new(main, in_layer, map, order + 1, details, pool, wake);
            Engine::Remap(Box::new(remap))
        };
        Ok(self.wrapped(wrap, block_size, notes))
    }

    fn bed_of<'a>(&'a mut self, at: &'a mut SpareAt) -> Result<Bed<'a>, SpareError> {
        match at {
            SpareAt::Region(range) => bed(self, Some(*range)),
            SpareAt::Disk(disk) => bed(disk, None),
        }
    }

    /// Whether the spares and the disk fit together.
    fn check_fit(&self, used: &[(SpareAt, Found)]) -> Result<(), SpareError> {
        let Some((_, first)) = used.first() else { return Ok(()) };
        let unit = first.header.layout.unit();
        if self.in_flight() > 0 || !self.size().is_multiple_of(u64::from(unit)) {
            let why = "the disk's size is not a multiple of the unit, or operations are in flight";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        if matches!(self.engine(), Engine::Remap(_) | Engine::Replace(_)) {
            let why = "the disk has spares already; add it to them";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        if self.info().block_size > unit {
            let why = "the disk's blocks are larger than its units; format it with units of 4096";
            return Err(first.fail(SpareErrorKind::Unfit(why)));
        }
        for (at, spare) in used {
            if spare.header.layout.unit() != unit {
                return Err(spare.fail(SpareErrorKind::OtherUnit));
            }
            let units = self.size() / u64::from(unit);
            let behind = |entry: &holdfast_format::remap::Entry| {
                entry.state != EntryState::BadSlot && entry.unit >= units
            };
            if spare.table.entries().any(|(_, entry)| behind(&entry)) {
                return Err(spare.fail(SpareErrorKind::DiskTooSmall(self.size())));
            }
            if let SpareAt::Disk(disk) = at {
                let read_only = disk.info().read_only && !self.info().read_only;
                if read_only || disk.info().block_size > unit {
                    let why =
                        "it is open for reading only, or its blocks are larger than its units";
                    return Err(spare.fail(SpareErrorKind::Unusable(why)));
                }
            }
        }
        Ok(())
    }
}

/// The members of the set: what the newest header says.
fn check_members(found: &[Found], notes: &mut Vec<String>) -> Result<Vec<SpareId>, SpareError> {
    let Some(any) = found.first() else { return Ok(Vec::new()) };
    for (i, spare) in found.iter().enumerate() {
        if found[..i].iter().any(|other| other.header.spare == spare.header.spare) {
            return Err(spare.fail(SpareErrorKind::Twice));
        }
    }
    let in_use = found.iter().filter(|spare| !spare.header.retired);
    let Some(newest) = in_use.max_by_key(|spare| spare.header.sequence) else {
        return Err(any.fail(SpareErrorKind::Retired));
    };
    let members = newest.header.members.clone();
    for member in &members {
        if !found.iter().any(|spare| spare.header.spare == *member && !spare.header.retired) {
            return Err(newest.fail(SpareErrorKind::Missing(*member)));
        }
    }
    for spare in found.iter().filter(|spare| !members.contains(&spare.header.spare)) {
        if spare.holds_units() {
            return Err(spare.fail(SpareErrorKind::NotMember));
        }
        notes.push(format!(
            "the spare {} is left out: it was removed from the disk and holds nothing",
            spare.name
        ));
    }
    Ok(members)
}

/// Fills the map. The highest order, and the slots of each spare that another one replaces.
fn merge(used: &[(SpareAt, Found)], map: &mut Map) -> (u64, Vec<Vec<u32>>) {
    let mut winners: HashMap<u64, (u64, Place)> = HashMap::new();
    let mut losers = vec![Vec::new(); used.len()];
    let mut highest = 0;
    for (number, (_, spare)) in used.iter().enumerate() {
        for (slot, entry) in spare.table.entries() {
            highest = highest.max(entry.order);
            if entry.state == EntryState::BadSlot {
                continue;
            }
            let lost = entry.state == EntryState::Lost;
            let unread = lost && entry.reason == UNREAD;
            let this = (entry.order, Place { slot: SlotRef { spare: number, slot }, lost, unread });
            let loser = match winners.get(&entry.unit) {
                None => None,
                Some(other) if other.0 > entry.order => {
                    losers[number].push(slot);
                    continue;
                }
                Some(other) => Some(other.1.slot),
            };
            if let Some(SlotRef { spare, slot }) = loser {
                losers[spare].push(slot);
            }
            winners.insert(entry.unit, this);
        }
    }
    for (unit, (_, place)) in winners {
        map.insert(unit, place);
    }
    (highest, losers)
}
