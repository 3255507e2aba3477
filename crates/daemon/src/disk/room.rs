//! Room in the metadata for the bitmaps of other members: taken before a member counts, so that
//! a full filesystem stands in the way of the member and not of the disk.

use crate::local::LocalDisk;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::{BLOCK_LEN, Block, BlockError, MetaLayout, Superblock};
use holdfast_units::{BLOCK_SIZE, NodeId, ResourceId, format_size};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// The filesystem of the metadata is full.
#[derive(Debug)]
pub(crate) struct NoRoom {
    /// Where the metadata are.
    path: PathBuf,
    /// How much the bitmap of one more member takes, in bytes.
    needs: u64,
}

impl NoRoom {
    /// Towards another node: what the node with this name has no room for.
    pub(crate) fn refusal(&self, node: &str) -> ApiError {
        let path = self.path.display();
        let message = format!("node {node} has no room for its bitmap: {}", self.why());
        ApiError::new(ErrorCode::NoSpace, message)
            .hint(format!("make room on the filesystem of {path} on node {node}, then try again"))
    }

    /// Towards who works on this node.
    pub(crate) fn here(&self) -> ApiError {
        let path = self.path.display();
        let message = format!("there is no room for the bitmap of another member: {}", self.why());
        ApiError::new(ErrorCode::NoSpace, message)
            .hint(format!("make room on the filesystem of {path}, then try again"))
    }

    fn why(&self) -> String {
        format!(
            "the metadata in {} take {} more, and no space is left on their filesystem",
            self.path.display(),
            format_size(self.needs)
        )
    }
}

/// Takes the room for the bitmaps of these members where it is not taken yet. Says nothing about
/// metadata that cannot be read, and nothing where the filesystem cannot take room beforehand:
/// the writes themselves tell then. Blocks while it works.
///
/// # Errors
/// When the filesystem is full. Some pages may have room then: see [`give_back`].
pub(crate) fn reserve(
    disk: &LocalDisk,
    resource: ResourceId,
    members: &[NodeId],
) -> Result<(), NoRoom> {
    let Some((path, file, layout)) = open(disk, resource) else { return Ok(()) };
    for member in members.iter().filter(|member| layout.has_slot(**member)) {
        for page in 0..layout.pages() {
            let at = layout.page_offset(*member, page);
            match fallocate(&file, FallocateFlags::KEEP_SIZE, at, BLOCK_SIZE) {
                Ok(()) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    return Err(NoRoom { path, needs: u64::from(layout.pages()) * BLOCK_SIZE });
                }
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Gives the room back that nothing was written into. The core must not know the member.
pub(crate) fn give_back(disk: &LocalDisk, resource: ResourceId, member: NodeId) {
    let Some((_, file, layout)) = open(disk, resource) else { return };
    if !layout.has_slot(member) {
        return;
    }
    let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    for page in 0..layout.pages() {
        let at = layout.page_offset(member, page);
        let empty = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data >= at + BLOCK_SIZE,
            Err(errno) => errno == Errno::NXIO,
        };
        // What cannot be given back stays for the next attempt.
        if empty && fallocate(&file, flags, at, BLOCK_SIZE).is_err() {
            return;
        }
    }
}

/// The metadata of a resource in a file; `None` when they are on a device or cannot be read.
fn open(disk: &LocalDisk, resource: ResourceId) -> Option<(PathBuf, File, MetaLayout)> {
    let path = disk.meta.as_ref().unwrap_or(&disk.path);
    let file = File::options().read(true).write(true).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let placement = super::placement(disk).ok()?;
    // The older copy may be from before the resource has grown.
    let read = |copy| {
        let mut block: Block = [0; BLOCK_LEN];
        let at = placement.superblock_offset(copy).map_err(|_| BlockError::Unreadable)?;
        file.read_exact_at(&mut block, at).map_err(|_| BlockError::Unreadable)?;
        Superblock::decode(&block, copy)
    };
    let found = Superblock::choose(read(0), read(1)).ok()?;
    let layout = (found.resource == resource).then_some(found.layout)?;
    Some((path.clone(), file, layout))
}
