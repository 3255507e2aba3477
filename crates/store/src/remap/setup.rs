//! A spare is formatted, looked at and retired; and why one cannot be used.

use std::path::PathBuf;

use bytes::Bytes;
use holdfast_format::remap::{
    SpareHeader, SpareId, SpareLayout, SpareLayoutError, TableBlock, newest,
};
use holdfast_format::{BLOCK_LEN, Block, BlockError, looks_used};
use holdfast_units::{ByteRange, ResourceId, format_size};

use super::found::{Found, read};
use super::layer::is_full;
use super::set::MADE;
use super::spare::{Backing, Spare, Table};
use crate::{Disk, DiskError, DiskOp, OpKind, Outcome};

pub(super) const BLOCK: u64 = BLOCK_LEN as u64;
/// So much of both ends of a spare must be empty for it to be formatted without force.
const LOOKED_AT: u64 = 1 << 20;
/// How much is read or written at a time.
pub(super) const CHUNK: u64 = 1 << 20;

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
    /// The filesystem that it is on has no room for so many bytes of it.
    NoRoom(u64),
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
    /// Another spare of the disk does not name it, and yet it holds units of the disk.
    NotMember,
    /// It was made and never taken into use: it does not say which spares the disk has.
    NeverUsed,
    /// One copy of its header is broken or old: it does not prove which spares the disk has.
    HalfHeader,
    /// It is an earlier state of itself: its table was written more often than it says.
    Older {
        /// How often, as it says.
        found: u64,
        /// How often it was at least.
        noted: u64,
        /// Of how many blocks of its table a copy is broken or cannot be read: it may have been the newest.
        halves: u32,
    },
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
            Self::NoRoom(size) => format!(
                "its filesystem has no room for all of its {}, and where there is none no bad block \
                 can be stored; make room there, or make the spare smaller",
                format_size(*size)
            ),
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
            Self::NotMember => "it holds units of this disk, and is none of the spares that the \
                                disk's newest one names, so nobody knows whether they are old; \
                                keep it as it is, and fill the disk from a peer"
                .into(),
            Self::NeverUsed => "it was made and never taken into use, so it does not say which \
                                spares the disk has; bring the others back"
                .into(),
            Self::HalfHeader => {
                "one of the two copies of its header is broken or old, so it does not \
                                 prove which spares the disk has; bring the others back"
                    .into()
            }
            Self::Older { found, noted, halves: 0 } => format!(
                "an older image of it was put back: its table was written {noted} times, and this one \
                 knows of {found}, so what was moved into it since would be read old; put the newest \
                 one back"
            ),
            Self::Older { found, noted, halves } => format!(
                "its table was written {noted} times, and what can be read knows of {found}, so what was \
                 moved into it since would be read old: a copy of a block of its table that is broken (of \
                 {halves} in all) was the newest, or an older image was put back; bring the newest back"
            ),
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
    pub(super) id: SpareId,
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
pub(super) struct Bed<'a> {
    disk: &'a mut Disk,
    range: ByteRange,
}

impl Bed<'_> {
    pub(super) fn name(&self) -> String {
        let path = self.disk.info().path.as_ref();
        let name = path.map_or("in memory".into(), |path: &PathBuf| path.display().to_string());
        if self.range.len == self.disk.size() && self.range.offset == 0 {
            name
        } else {
            format!("{name} (region {})", self.range)
        }
    }

    pub(super) fn fail(&self, kind: SpareErrorKind) -> SpareError {
        SpareError { kind, name: self.name() }
    }

    pub(super) fn disk_failed(&self, error: DiskError) -> SpareError {
        self.fail(SpareErrorKind::Disk(error))
    }

    pub(super) fn read(&mut self, at: u64, len: u64) -> Result<Bytes, DiskError> {
        let range = ByteRange::new(self.range.offset + at, len);
        match self.disk.execute(DiskOp::Read { range, holes: false })? {
            Outcome::Data(data) => Ok(data),
            Outcome::Done | Outcome::Zeroes | Outcome::Logged(_) => Ok(Bytes::new()),
        }
    }

    pub(super) fn block(&mut self, at: u64) -> Result<Block, BlockError> {
        if at + BLOCK > self.range.len {
            return Err(BlockError::Unreadable);
        }
        let data = self.read(at, BLOCK).map_err(|_| BlockError::Unreadable)?;
        data[..].try_into().map_err(|_| BlockError::Unreadable)
    }

    pub(super) fn write(&mut self, at: u64, data: Bytes) -> Result<(), DiskError> {
        let range = ByteRange::new(self.range.offset + at, data.len() as u64);
        self.disk.execute(DiskOp::Write { range, data, fua: false }).map(|_| ())
    }

    /// Writes these copies of a header, one after the other; what is to stay is good. Whether one of
    /// them could not be written.
    ///
    /// # Errors
    /// When none is good then, or the disk cannot be flushed.
    pub(super) fn write_headers(
        &mut self,
        header: &SpareHeader,
        copies: [bool; 2],
    ) -> Result<bool, DiskError> {
        let mut good = copies.map(|stale| !stale);
        let mut failed = None;
        for copy in (0..2).filter(|copy| copies[*copy]) {
            let block = header.encode(copy).to_vec().into();
            match self.write(header.layout.header_offset(copy), block) {
                Ok(()) => {
                    self.flush()?;
                    good[copy] = true;
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if good == [false; 2] => Err(error),
            failed => Ok(failed.is_some()),
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), DiskError> {
        self.disk.execute(DiskOp::Flush).map(|_| ())
    }

    /// Has room kept for it before it is needed: a bad block cannot wait for somebody to make some.
    fn reserve(&self, length: u64) -> Result<(), SpareError> {
        let reserved = self.disk.reserve(ByteRange::new(self.range.offset, length));
        reserved.map_err(|errno| match errno {
            errno if is_full(errno) => self.fail(SpareErrorKind::NoRoom(length)),
            errno => self.disk_failed(DiskError::from_errno(errno, OpKind::Write, self.range)),
        })
    }

    /// What is on it, when it is not empty. The beginnings of a spare that was never finished, as a spare of
    /// this shape, are nothing.
    fn content(&mut self, layout: &SpareLayout) -> Result<Option<&'static str>, DiskError> {
        let len = self.range.len;
        let end = len.saturating_sub(LOOKED_AT) / BLOCK * BLOCK;
        let ends = [(0, len.min(LOOKED_AT)), (end, len - end)];
        for (at, len) in ends {
            let data = self.read(at, len)?;
            let places = (at..).step_by(BLOCK_LEN);
            let blocks = places.zip(data.chunks_exact(BLOCK_LEN).filter_map(<[u8]>::first_chunk));
            let mut used = blocks.filter(|(at, block)| {
                let is_fresh = |number| TableBlock::is_fresh(block, number);
                block.iter().any(|byte| *byte != 0)
                    && !table_block(layout, *at).is_some_and(is_fresh)
            });
            if let Some((_, first)) = used.next() {
                let what =
                    looks_used(first).or_else(|| used.find_map(|(_, block)| looks_used(block)));
                return Ok(Some(what.unwrap_or("data (not all of it is zero)")));
            }
            if data.chunks_exact(BLOCK_LEN).remainder().iter().any(|byte| *byte != 0) {
                return Ok(Some("data (not all of it is zero)"));
            }
        }
        Ok(None)
    }

    /// Both copies of the header, the newest first in `Ok`, and which copies must be written again.
    pub(super) fn header(&mut self) -> Result<(SpareHeader, [bool; 2]), SpareErrorKind> {
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

pub(super) fn bed(disk: &mut Disk, region: Option<ByteRange>) -> Result<Bed<'_>, SpareError> {
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

/// That a spare can be made of all of a disk or of a region of it. Takes the room for it; what is there
/// stays. Blocks.
///
/// # Errors
/// [`SpareError`]: it is too small, not empty (unless forced), or the filesystem has no room for all of it.
pub fn check_spare_place(
    disk: &mut Disk,
    region: Option<ByteRange>,
    unit: u32,
    force: bool,
) -> Result<(), SpareError> {
    place_for(&mut bed(disk, region)?, unit, None, force).map(drop)
}

/// Which block of the table belongs to this place.
fn table_block(layout: &SpareLayout, at: u64) -> Option<u32> {
    [0, 1].into_iter().find_map(|copy| {
        let number = at.checked_sub(layout.table_offset(copy, 0))? / BLOCK;
        u32::try_from(number).ok().filter(|number| *number < layout.table_blocks())
    })
}

/// The layout, and whether what is there is a spare that is not used any more.
fn place_for(
    bed: &mut Bed<'_>,
    unit: u32,
    slots: Option<u32>,
    force: bool,
) -> Result<(SpareLayout, bool), SpareError> {
    let layout = match slots {
        Some(slots) => SpareLayout::new(bed.range.len, unit, slots),
        None => SpareLayout::largest(bed.range.len, unit),
    }
    .map_err(|error| bed.fail(SpareErrorKind::Layout(error)))?;
    let retired = matches!(bed.header(), Ok((SpareHeader { retired: true, .. }, _)));
    if !force && !retired {
        let content = bed.content(&layout).map_err(|error| bed.disk_failed(error))?;
        if let Some(what) = content {
            return Err(bed.fail(SpareErrorKind::NotEmpty(what)));
        }
    }
    bed.reserve(layout.length())?;
    Ok((layout, retired))
}

/// Makes an empty spare, of all of a disk or of a region of it. Blocks.
///
/// # Errors
/// [`SpareError`]: it is too small, not empty (unless forced), the filesystem has no room for all of it,
/// or it cannot be written.
pub fn format_spare(
    disk: &mut Disk,
    region: Option<ByteRange>,
    owner: &DiskIdentity,
    format: &SpareFormat,
) -> Result<SpareHeader, SpareError> {
    let mut bed = bed(disk, region)?;
    let (layout, retired) = place_for(&mut bed, format.unit, format.slots, format.force)?;
    let header = SpareHeader {
        sequence: MADE,
        resource: owner.resource,
        spare: format.id,
        disk: owner.disk,
        disk_size: format.disk_size,
        layout,
        retired: false,
        created: format.created,
        members: vec![format.id],
    };
    write_fresh(&mut bed, &header, retired).map_err(|error| bed.disk_failed(error))?;
    Ok(header)
}

fn write_fresh(bed: &mut Bed<'_>, header: &SpareHeader, retired: bool) -> Result<(), DiskError> {
    let layout = &header.layout;
    // What was there before must not be half there when this is interrupted. That it may be written over
    // stays there, where its header says so.
    for copy in [0, 1].into_iter().filter(|_| !retired) {
        bed.write(layout.header_offset(copy), Bytes::from(vec![0; BLOCK_LEN]))?;
    }
    bed.flush()?;
    let per_chunk = u32::try_from(CHUNK / BLOCK).unwrap_or(1);
    for copy in [0, 1] {
        let mut first = 0;
        while first < layout.table_blocks() {
            let end = (first + per_chunk).min(layout.table_blocks());
            let mut data = Vec::new();
            for number in first..end {
                data.extend_from_slice(&TableBlock::fresh(number, header.resource, header.spare));
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

/// Whether this is a spare of this disk that holds none of its units: what is left when adding or
/// removing one was cut off, unless it is in use. Nothing is written. Blocks.
#[must_use]
pub fn is_leftover(disk: &mut Disk, region: Option<ByteRange>, owner: &DiskIdentity) -> bool {
    bed(disk, region)
        .and_then(|mut bed| read(&mut bed, owner))
        .is_ok_and(|found| !found.holds_units())
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
    bed.write_headers(&header, [true; 2]).map(drop).map_err(|error| bed.disk_failed(error))
}

/// Reads and checks a spare that was formatted for this disk, for [`RemapOp::AddSpare`]. Blocks; any
/// thread will do.
///
/// # Errors
/// [`SpareError`]: it is broken, was given up, or is another disk's.
pub fn load_spare(mut disk: Disk, owner: &DiskIdentity) -> Result<LoadedSpare, SpareError> {
    let found = read(&mut bed(&mut disk, None)?, owner)?;
    if found.header.retired {
        return Err(found.fail(SpareErrorKind::Retired));
    }
    let Found { header, table, .. } = found;
    let (id, backing) = (header.spare, Backing::Disk(Box::new(disk)));
    Ok(LoadedSpare { id, spare: Some(Box::new(in_use(header, table, backing))) })
}

pub(super) fn in_use(header: SpareHeader, table: Table, backing: Backing) -> Spare {
    let backlog = std::collections::VecDeque::new();
    Spare {
        header,
        backing,
        table,
        dirty: false,
        flushing: 0,
        leaving: false,
        weak_header: false,
        backlog,
    }
}
