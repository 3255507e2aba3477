//! A disk with the spares that it has: it is never used without them. Everything here blocks.

use super::{SpareSpec, age};
use crate::shard::{DiskSpec, MetaPlace};
use holdfast_format::{BLOCK_LEN, Block, BlockError, Placement, Superblock};
use holdfast_store::{
    BufferPool, Disk, DiskIdentity, OpenError, OpenOptions, SpareAt, SpareError, SpareErrorKind,
    read_spare_header,
};
use holdfast_units::ResourceId;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Why a disk cannot be used with its spares. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SparesError {
    /// A spare is not what it has to be.
    #[error(transparent)]
    Spare(#[from] SpareError),
    /// A spare is an older image of itself.
    #[error("{error} ({} has the number)", noted.display())]
    Older {
        /// Which, and how one knows.
        error: Box<SpareError>,
        /// The file that says how often its table was written.
        noted: PathBuf,
    },
    /// A spare cannot be opened.
    #[error("the spare {} cannot be used: {error}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        error: OpenError,
    },
    /// The disk has spares, and nobody knows where.
    #[error(
        "the disk {} has spares for its bad sectors, and this node does not know where they are: \
         without them old data would be read",
        .0.display()
    )]
    Unknown(PathBuf),
    /// The spares hold something of a disk that does not know of them.
    #[error(
        "the disk {} does not know of the spare {spare}, which holds parts of a disk: it is not \
         the disk that the spare was used with, or its metadata were made anew",
        path.display()
    )]
    NotMarked {
        /// The disk.
        path: PathBuf,
        /// The spare.
        spare: String,
    },
    /// The metadata cannot be written.
    #[error("the metadata in {} cannot be written: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl SparesError {
    /// Why the spares of this disk cannot be used.
    pub(super) fn of(error: SpareError, spec: &DiskSpec) -> Self {
        match (&error.kind, &spec.spare_writes) {
            (SpareErrorKind::Older { .. }, Some(path)) => {
                Self::Older { noted: path.clone(), error: Box::new(error) }
            }
            _ => error.into(),
        }
    }
}

/// How a spare is opened.
pub(super) fn open_path(path: &std::path::Path, pool: &BufferPool) -> Result<Disk, SparesError> {
    Disk::open(path, &OpenOptions::default(), pool)
        .map_err(|error| SparesError::Open { path: path.to_owned(), error })
}

/// The superblock of a disk that counts; `None` when it cannot be read, or is another resource's.
fn superblock(spec: &DiskSpec, disk_size: u64, resource: ResourceId) -> Option<(File, Superblock)> {
    let placement = match spec.meta {
        MetaPlace::Internal => Placement::Internal { device_len: disk_size },
        MetaPlace::File(_) => Placement::External { base: 0 },
    };
    let file = File::options().read(true).write(true).open(spec.meta_path()).ok()?;
    let read = |copy| {
        let mut block: Block = [0; BLOCK_LEN];
        let at = placement.superblock_offset(copy).map_err(|_| BlockError::Unreadable)?;
        file.read_exact_at(&mut block, at).map_err(|_| BlockError::Unreadable)?;
        Superblock::decode(&block, copy)
    };
    let found = Superblock::choose(read(0), read(1)).ok()?;
    (found.resource == resource).then_some((file, found))
}

/// The identity of a disk with spares, as its metadata say; `None` when it has none.
pub(crate) fn disk_id(spec: &DiskSpec, disk_size: u64, resource: ResourceId) -> Option<[u8; 16]> {
    superblock(spec, disk_size, resource).and_then(|(_, found)| found.spares)
}

/// Whose the spares of a disk are.
pub(crate) const fn identity(resource: ResourceId, disk: [u8; 16]) -> DiskIdentity {
    DiskIdentity { resource, disk }
}

/// Has the metadata of a disk that is not in use say that it has spares, or that it has none, durably.
///
/// # Errors
/// When they cannot be written.
pub(super) fn write_mark(
    spec: &DiskSpec,
    disk_size: u64,
    resource: ResourceId,
    id: Option<[u8; 16]>,
) -> Result<(), SparesError> {
    let path = spec.meta_path();
    let fail = |error| SparesError::Io { path: path.to_owned(), error };
    let (file, mut found) = superblock(spec, disk_size, resource)
        .ok_or_else(|| fail(io::Error::other("they cannot be read")))?;
    found.spares = id;
    let (offset, block) = found.advance();
    file.write_all_at(&block, offset).and_then(|()| file.sync_all()).map_err(fail)
}

/// Has the metadata of a disk that took the place of one with spares say that it has none, durably.
/// They may be in use, as long as nobody writes to them.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn unmark(
    spec: &DiskSpec,
    disk_size: u64,
    resource: ResourceId,
) -> Result<(), SparesError> {
    let Some((file, newest)) = superblock(spec, disk_size, resource) else { return Ok(()) };
    if newest.spares.is_some() {
        write_mark(spec, disk_size, resource, None)?;
    }
    // The next superblock may be torn, and then the older one counts.
    let placement = match spec.meta {
        MetaPlace::Internal => Placement::Internal { device_len: disk_size },
        MetaPlace::File(_) => Placement::External { base: 0 },
    };
    let rewrite = |copy| {
        let mut block: Block = [0; BLOCK_LEN];
        let at = placement.superblock_offset(copy).map_err(io::Error::other)?;
        file.read_exact_at(&mut block, at)?;
        match Superblock::decode(&block, copy) {
            Ok(mut found) if found.spares.is_some() => {
                found.spares = None;
                file.write_all_at(&found.encode(), at)?;
                file.sync_all()
            }
            _ => Ok(()),
        }
    };
    let fail = |error| SparesError::Io { path: spec.meta_path().to_owned(), error };
    rewrite(0).and_then(|()| rewrite(1)).map_err(fail)
}

/// The same disk with the spares that it has. A disk that has none, and is to have none, comes back
/// as it is.
///
/// # Errors
/// [`SparesError`]; nothing was written then because of what is on a spare.
pub(crate) fn open_with(
    disk: Disk,
    spec: &DiskSpec,
    resource: ResourceId,
    pool: &BufferPool,
) -> Result<Disk, SparesError> {
    let size = disk.size();
    // What is wrong with metadata that cannot be read, their own reader says.
    let Some((_, found)) = superblock(spec, size, resource) else {
        return match spec.spares.is_empty() {
            true => Ok(disk),
            false => attach(disk, spec, None, resource, pool).map(|(disk, _)| disk),
        };
    };
    match (found.spares, spec.spares.is_empty()) {
        (None, true) => Ok(disk),
        (Some(_), true) => Err(SparesError::Unknown(spec.path.clone())),
        (Some(id), false) => attach(disk, spec, Some(id), resource, pool).map(|(disk, _)| disk),
        (None, false) => {
            // Somebody was interrupted who was giving the disk its first spare.
            let (disk, id) = attach(disk, spec, None, resource, pool)?;
            write_mark(spec, size, resource, Some(id))?;
            Ok(disk)
        }
    }
}

/// Takes the spares into use. Without an identity they name it themselves, and must be empty.
fn attach(
    mut disk: Disk,
    spec: &DiskSpec,
    id: Option<[u8; 16]>,
    resource: ResourceId,
    pool: &BufferPool,
) -> Result<(Disk, [u8; 16]), SparesError> {
    let mut opened = Vec::new();
    for spare in &spec.spares {
        opened.push(match spare {
            SpareSpec::Path(path) => SpareAt::Disk(Box::new(open_path(path, pool)?)),
            SpareSpec::Region(range) => SpareAt::Region(*range),
        });
    }
    let owner = match (id, opened.first_mut()) {
        (Some(id), _) => id,
        (None, Some(SpareAt::Disk(spare))) => read_spare_header(spare, None)?.disk,
        (None, Some(SpareAt::Region(range))) => read_spare_header(&mut disk, Some(*range))?.disk,
        (None, None) => return Ok((disk, [0; 16])),
    };
    let noted = spec.spare_writes.as_deref().map(age::read).unwrap_or_default();
    let disk = disk.with_noted_spares(opened, &identity(resource, owner), &noted);
    let disk = disk.map_err(|error| SparesError::of(error, spec))?;
    let holds = disk.remap_stats().is_some_and(|stats| stats.mapped + stats.lost > 0);
    if id.is_none() && holds {
        let spare = spec.spares.first().map(SpareSpec::shown).unwrap_or_default();
        return Err(SparesError::NotMarked { path: spec.path.clone(), spare });
    }
    Ok((disk, owner))
}

/// Whether the file of a disk alone says what it holds: with spares it does not.
pub(crate) fn file_is_whole(disk: &Disk) -> bool {
    disk.remap_stats().is_none()
}
