//! The blocks of which the disk of a node that follows has no good copy: a file of the state directory.
//! While the node leads, its metadata have the list.

use crate::disk::length_of;
use crate::local::LocalDisk;
use crate::refuse;
use crate::shard::{read_lost, write_lost};
use crate::statefile;
use holdfast_api::ApiError;
use holdfast_format::journal::LossList;
use holdfast_journal::driver::Losses;
use holdfast_units::ResourceId;
use std::io;
use std::path::{Path, PathBuf};

/// Where the list of a resource's disk is.
pub(crate) fn path(state_dir: &Path, resource: ResourceId) -> PathBuf {
    state_dir.join("meta").join(format!("{resource}.losses"))
}

/// The list as it is kept; `None` when none is.
pub(super) fn load(path: &Path, resource: ResourceId) -> Option<Losses> {
    let bytes = std::fs::read(path).ok()?;
    match LossList::decode(&bytes, resource) {
        Ok(list) => Some(Losses::from(&list)),
        Err(why) => {
            tracing::error!(
                "{} cannot be used: {why}; `holdfast scrub` finds what has no good copy",
                path.display()
            );
            Some(Losses::default())
        }
    }
}

/// Keeps a list, durably.
///
/// # Errors
/// What the system says; the list before is there then.
pub(super) fn store(path: &Path, resource: ResourceId, losses: &Losses) -> io::Result<()> {
    statefile::replace(path, &losses.list(resource).encode())
}

/// Takes the list over from the metadata, when the node has led since there was one here. Blocks.
///
/// # Errors
/// When it cannot be kept.
pub(super) fn take_over(path: &Path, disk: &LocalDisk, resource: ResourceId) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let read = length_of(&disk.path).map(|len| read_lost(&disk.spec(), len, resource));
    let losses = match read {
        Ok(Ok(list)) => Losses::from(&list),
        Ok(Err(why)) => {
            tracing::warn!(
                "what the metadata say of blocks without a good copy is not known: {why}"
            );
            Losses::default()
        }
        Err(why) => return Err(why),
    };
    store(path, resource, &losses)
}

/// Gives the list to metadata that were made anew, durably; from then on they have it. Blocks.
///
/// # Errors
/// When they cannot be written.
pub(super) fn give_to_metadata(
    path: &Path,
    disk: &LocalDisk,
    resource: ResourceId,
) -> Result<(), ApiError> {
    let losses = load(path, resource).unwrap_or_default();
    if !losses.is_empty() {
        let len = length_of(&disk.path).map_err(|error| refuse::internal("the disk", &error))?;
        write_lost(&disk.spec(), len, &losses.list(resource))
            .map_err(|error| refuse::metadata(&error))?;
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
