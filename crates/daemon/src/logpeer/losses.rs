//! The blocks of which the disk of a node that follows has no good copy: a file of the state directory.
//! While the node leads, its metadata have the list.

use crate::disk::length_of;
use crate::local::LocalDisk;
use crate::refuse;
use crate::shard::{MetadataError, read_lost, write_lost};
use crate::statefile;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::journal::LossList;
use holdfast_format::{BlockError, MetaError};
use holdfast_journal::driver::{Losses, Seen};
use holdfast_units::{BLOCK_SIZE, ByteRange, ResourceId};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the list of a resource's disk is.
pub(crate) fn path(state_dir: &Path, resource: ResourceId) -> PathBuf {
    state_dir.join("meta").join(format!("{resource}.losses"))
}

/// The list as it is kept, of a disk of so many bytes. One that cannot be used could have had any block:
/// it counts as one that has them all.
pub(super) fn load(path: &Path, resource: ResourceId, size: u64) -> Losses {
    read(path, resource).unwrap_or_else(
        |why| {
            let otherwise = "; when no other node has the data, `holdfast down NAME`, remove that file, \
                             `holdfast up NAME`: then the disk counts as it is";
            all_of(size, &format!("{} cannot be used: {why}", path.display()), otherwise)
        },
    )
}

/// The list as it is kept, or why it cannot be used.
fn read(path: &Path, resource: ResourceId) -> Result<Losses, String> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Losses::default()),
        Err(error) => Err(error.to_string()),
        Ok(bytes) => {
            let list = LossList::decode(&bytes, resource).map_err(|why| why.to_string())?;
            Ok(Losses::from(&list))
        }
    }
}

/// It is not known which blocks have no good copy.
fn all_of(size: u64, why: &str, otherwise: &str) -> Losses {
    tracing::error!(
        "{why}; it says which blocks of the disk have no good copy, so all of them count as lost now, \
         and come again from the journal here and from the Primary, one by one; `holdfast invalidate \
         NAME` has the whole disk compared with the Primary's, which is faster{otherwise}"
    );
    let mut losses = Losses::default();
    losses.lose(ByteRange::new(0, size / BLOCK_SIZE * BLOCK_SIZE), Seen::Old);
    losses
}

/// Keeps a list, durably.
///
/// # Errors
/// What the system says; the list before is there then.
pub(super) fn store(path: &Path, resource: ResourceId, losses: &Losses) -> io::Result<()> {
    // All metadata may be elsewhere.
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    statefile::replace(path, &losses.list(resource).encode())
}

/// The bytes of the disk, where its metadata need them: when they are at its end.
fn length_for_metadata(disk: &LocalDisk) -> Result<u64, ApiError> {
    if disk.meta.is_some() {
        return Ok(0);
    }
    let message = format!("the length of the disk {} is not known", disk.path.display());
    length_of(&disk.path).map_err(|error| refuse::internal(&message, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> ApiError {
    refuse::internal(&format!("{} could not be written", path.display()), error)
}

/// Takes the list over from the metadata, when the node has led since there was one here. Blocks.
///
/// # Errors
/// When it cannot be kept, or the metadata cannot be read now.
pub(super) fn take_over(
    path: &Path,
    disk: &LocalDisk,
    resource: ResourceId,
    size: u64,
) -> Result<(), ApiError> {
    if path.try_exists().map_err(|error| unwritable(path, &error))? {
        return Ok(());
    }
    let losses = match read_lost(&disk.spec(), length_for_metadata(disk)?, resource) {
        Ok(list) => Losses::from(&list),
        Err(why) if is_damaged(&why) => all_of(size, &why.to_string(), ""),
        // It may be so for a moment only, and all of the disk would be lost for good.
        Err(why) => return Err(refuse::metadata(&why)),
    };
    store(path, resource, &losses).map_err(|error| unwritable(path, &error))
}

/// The list of a disk that is not in use, wherever it is. Blocks.
///
/// # Errors
/// When it cannot be read, or used.
pub(crate) fn kept(
    path: &Path,
    disk: &LocalDisk,
    resource: ResourceId,
) -> Result<LossList, ApiError> {
    if path.try_exists().map_err(|error| unreadable(path, &error.to_string()))? {
        let losses = read(path, resource).map_err(|why| unreadable(path, &why))?;
        return Ok(losses.list(resource));
    }
    read_lost(&disk.spec(), length_for_metadata(disk)?, resource)
        .map_err(|why| refuse::metadata(&why))
}

fn unreadable(path: &Path, why: &str) -> ApiError {
    let path = path.display();
    let message =
        format!("{path} cannot be used: {why}; it says which blocks of the disk have no good copy");
    ApiError::new(ErrorCode::Internal, message).hint(
        "when it cannot be read, see why; when it is damaged and no other node has the data, remove \
         it: then the disk counts as it is",
    )
}

/// Whether metadata could be read, and are none.
fn is_damaged(why: &MetadataError) -> bool {
    let MetadataError::Unusable { error: MetaError::NoSuperblock { errors, .. }, .. } = why else {
        return false;
    };
    !errors.contains(&BlockError::Unreadable)
}

/// Gives the list, if there is one, to the metadata of a disk, durably; from then on they have it. They
/// may have one, too: when this node was to follow, and did not. Blocks.
///
/// # Errors
/// When they cannot be written, or the list cannot be used: in the metadata nobody could tell any more
/// that it was damaged.
pub(super) fn give_to_metadata(
    path: &Path,
    disk: &LocalDisk,
    resource: ResourceId,
) -> Result<(), ApiError> {
    if !path.try_exists().map_err(|error| unwritable(path, &error))? {
        return Ok(());
    }
    let mut losses = read(path, resource).map_err(|why| unreadable(path, &why))?;
    if !losses.is_empty() {
        let (spec, len) = (disk.spec(), length_for_metadata(disk)?);
        let known = read_lost(&spec, len, resource).map_err(|why| refuse::metadata(&why))?;
        losses.extend(&Losses::from(&known));
        write_lost(&spec, len, &losses.list(resource)).map_err(|why| refuse::metadata(&why))?;
    }
    forget(path).map_err(|error| refuse::internal("a list of lost blocks was not removed", &error))
}

/// Removes the list, durably.
///
/// # Errors
/// What the system says.
pub(crate) fn forget(path: &Path) -> io::Result<()> {
    statefile::remove(path)
}
