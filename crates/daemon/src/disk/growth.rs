//! A disk and its metadata, made ready for a larger resource. All of it is done again from the start
//! after an interruption; nothing of it is in use before the core's superblock says so.

use crate::local::LocalDisk;
use crate::remote;
use crate::shard::zero;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::{BLOCK_LEN, Block, BlockError, MetaLayout, Superblock};
use holdfast_units::{BLOCK_SIZE, ByteRange, NodeId, ResourceId, format_size};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// So much is zeroed at a time.
const PIECE: u64 = 1 << 30;

/// How large a resource the disk has room for now, in bytes.
///
/// # Errors
/// When it cannot grow at all, or cannot be looked at.
pub(crate) fn room(disk: &LocalDisk) -> Result<u64, ApiError> {
    let shown = disk.path.display();
    if disk.meta.is_none() {
        let message = format!(
            "the disk {shown} cannot be used up to its new end: its metadata are at its end, and \
             moving them is not supported by this version"
        );
        return Err(ApiError::new(ErrorCode::NotSupportedYet, message).hint(
            "leave the resource with this node and join again with its metadata elsewhere: leave \
             --meta away",
        ));
    }
    if disk.has_region() {
        let message = format!(
            "the disk {shown} cannot be used up to its new end: its spare for bad sectors is at its \
             old one, and moving it is not supported by this version"
        );
        return Err(ApiError::new(ErrorCode::NotSupportedYet, message).hint(
            "leave the resource with this node and join again with a spare on its own: --spare PATH",
        ));
    }
    if remote::uri_of(&disk.path).is_some() {
        let message = format!(
            "the disk {shown} cannot grow: growing a disk on another machine is not supported by \
             this version"
        );
        return Err(ApiError::new(ErrorCode::NotSupportedYet, message));
    }
    super::length_of(&disk.path).map_err(|error| failed(&disk.path, "looked at", &error))
}

/// Makes disk and metadata of a resource ready for `size` bytes, durably: the metadata have room
/// for the bitmaps, with no bit set there, and all of the disk past the present end reads as zeroes.
/// That is where the metadata say, or, when this node follows by the log or did so, `known`, whichever
/// is later. Blocks while it works. The caller makes sure that nobody does the same, and that the resource
/// does not grow meanwhile.
///
/// # Errors
/// What is in the way.
pub(crate) fn prepare(
    disk: &LocalDisk,
    resource: ResourceId,
    members: &[NodeId],
    known: Option<u64>,
    size: u64,
) -> Result<(), ApiError> {
    let room = room(disk)?;
    let path = disk.meta.as_ref().unwrap_or(&disk.path);
    let meta = File::options().read(true).write(true).open(path);
    let meta = meta.map_err(|error| failed(path, "opened", &error))?;
    let before = present(&meta, resource).map_err(|error| failed(path, "read", &error))?;
    let begin = before.device_size().max(known.unwrap_or(0));
    if before.device_size() >= size {
        return Ok(());
    }
    if size > room {
        let message = format!(
            "the disk {} is too small: it has room for {} ({room} bytes), the resource needs {} \
             ({size} bytes)",
            disk.path.display(),
            format_size(room),
            format_size(size)
        );
        return Err(ApiError::new(ErrorCode::DiskTooSmall, message)
            .hint("make the disk larger; the resource then grows by itself"));
    }
    let after = before.with_device_size(size).map_err(|error| {
        ApiError::new(ErrorCode::InvalidSize, format!("the resource cannot grow: {error}"))
    })?;
    extend(&meta, path, &before, &after, members)?;
    let fail = |error: io::Error| failed(&disk.path, "made to read as zeroes", &error);
    let data = File::options().read(true).write(true).open(&disk.path).map_err(fail)?;
    let added = ByteRange::new(begin, size.saturating_sub(begin));
    clear(&data, added).and_then(|()| data.sync_all()).map_err(fail)
}

/// How large the resource is by the metadata of the disk; `None` when they do not say.
pub(crate) fn present_size(disk: &LocalDisk, resource: ResourceId) -> Option<u64> {
    // Internal ones do not grow.
    let meta = File::open(disk.meta.as_ref()?).ok()?;
    present(&meta, resource).ok().map(|layout| layout.device_size())
}

/// The layout that counts. The superblock may be written meanwhile, but not its size.
fn present(meta: &File, resource: ResourceId) -> io::Result<MetaLayout> {
    let read = |copy: u8| {
        let mut block: Block = [0; BLOCK_LEN];
        let at = u64::from(copy) * BLOCK_SIZE;
        meta.read_exact_at(&mut block, at).map_err(|_| BlockError::Unreadable)?;
        Superblock::decode(&block, copy)
    };
    let superblock = Superblock::choose(read(0), read(1))
        .map_err(|[first, _]| io::Error::other(first.to_string()))?;
    if superblock.resource != resource {
        return Err(io::Error::other("they are those of another resource"));
    }
    Ok(superblock.layout)
}

/// Gives the metadata the pages that they lack, all zeroes.
fn extend(
    meta: &File,
    path: &Path,
    before: &MetaLayout,
    after: &MetaLayout,
    members: &[NodeId],
) -> Result<(), ApiError> {
    let fail = |error: io::Error| failed(path, "extended", &error);
    let (old_end, end) = (before.area().end(), after.area().end());
    let length = seek(meta, SeekFrom::End(0)).map_err(|errno| fail(errno.into()))?;
    if meta.metadata().map_err(fail)?.is_file() {
        if length < end {
            meta.set_len(end).map_err(fail)?;
        }
        reserve(meta, path, before, after, members)?;
    } else if length < end {
        let message = format!(
            "the metadata device {} is too small: the bitmaps of the larger resource need {} \
             ({end} bytes), it has {length} bytes",
            path.display(),
            format_size(end)
        );
        return Err(ApiError::new(ErrorCode::DiskTooSmall, message)
            .hint("make it larger, or choose a smaller --size"));
    }
    clear(meta, ByteRange::new(old_end, end - old_end)).map_err(fail)?;
    meta.sync_all().map_err(fail)
}

/// Takes the room for the new pages of these members, where the filesystem can do that beforehand.
fn reserve(
    meta: &File,
    path: &Path,
    before: &MetaLayout,
    after: &MetaLayout,
    members: &[NodeId],
) -> Result<(), ApiError> {
    for member in members.iter().filter(|member| after.has_slot(**member)) {
        for page in before.pages()..after.pages() {
            let at = after.page_offset(*member, page);
            match fallocate(meta, FallocateFlags::KEEP_SIZE, at, BLOCK_SIZE) {
                Ok(()) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    let message = format!(
                        "there is no room for larger bitmaps: no space is left on the filesystem \
                         of the metadata, {}",
                        path.display()
                    );
                    return Err(ApiError::new(ErrorCode::NoSpace, message)
                        .hint("make room there, then try again"));
                }
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

/// Makes a range read as zeroes. In a file, what is a hole or was only allocated stays as it is.
fn clear(file: &File, range: ByteRange) -> io::Result<()> {
    let is_file = file.metadata()?.is_file();
    let mut at = range.offset;
    while at < range.end() {
        let mut end = range.end().min(at + PIECE);
        if is_file {
            at = match seek(file, SeekFrom::Data(at)) {
                Ok(data) if data < range.end() => data,
                Ok(_) | Err(Errno::NXIO) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            end = seek(file, SeekFrom::Hole(at))?.min(range.end());
        }
        zero(file, ByteRange::new(at, end - at))?;
        at = end;
    }
    Ok(())
}

fn failed(path: &Path, verb: &str, error: &io::Error) -> ApiError {
    let message = format!("{} could not be {verb}: {error}", path.display());
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
        _ => ErrorCode::DiskFailed,
    };
    ApiError::new(code, message)
}

#[cfg(test)]
mod tests;
