//! The list of lost blocks in the metadata of a disk that is not in use: taken over by who follows,
//! and given back to who leads.

use super::metadata::{DiskSpec, MetaPlace, MetaReader, MetadataError, open_meta};
use holdfast_format::journal::LossList;
use holdfast_format::{DiskFlags, LostBlocks, MetaImage, PageAddress, Placement};
use holdfast_units::{BLOCK_SIZE, ByteRange, ResourceId};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

fn placement(disk: &DiskSpec, disk_len: u64) -> Placement {
    match disk.meta {
        MetaPlace::Internal => {
            Placement::Internal { device_len: disk_len / BLOCK_SIZE * BLOCK_SIZE }
        }
        MetaPlace::File(_) => Placement::External { base: 0 },
    }
}

fn with_image<T>(
    disk: &DiskSpec,
    disk_len: u64,
    file: &File,
    work: impl FnOnce(&MetaImage<'_>) -> T,
) -> Result<T, MetadataError> {
    let path = disk.meta_path();
    let reader = MetaReader::new(file).map_err(|e| MetadataError::io(path, "read", e))?;
    let image = MetaImage::load(&reader, placement(disk, disk_len))
        .map_err(|error| MetadataError::Unusable { path: path.to_owned(), error })?;
    Ok(work(&image))
}

/// The blocks of which there is no good copy on a disk of so many bytes, as its metadata say. Blocks.
///
/// # Errors
/// When the metadata cannot be read.
pub(crate) fn read_lost(
    disk: &DiskSpec,
    disk_len: u64,
    resource: ResourceId,
) -> Result<LossList, MetadataError> {
    let file = open_meta(disk, false)?;
    with_image(disk, disk_len, &file, |image| {
        let (list, _) = image.lost_blocks();
        let ranges = |bits: &holdfast_format::SparseBitmap| {
            bits.runs().map(ByteRange::of_blocks).collect::<Vec<_>>()
        };
        LossList { resource, old: ranges(&list.old), unread: ranges(&list.unread) }
    })
}

/// Has the metadata of a disk of so many bytes say of which blocks there is no good copy, durably.
/// Blocks.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn write_lost(
    disk: &DiskSpec,
    disk_len: u64,
    losses: &LossList,
) -> Result<(), MetadataError> {
    let file = open_meta(disk, false)?;
    let mut superblock = with_image(disk, disk_len, &file, |image| image.superblock.clone())?;
    let layout = superblock.layout;
    let mut list = LostBlocks::new(layout.blocks());
    for (ranges, bits) in [(&losses.old, &mut list.old), (&losses.unread, &mut list.unread)] {
        for blocks in ranges.iter().map(|range| range.blocks()) {
            let blocks = blocks.start..blocks.end.min(layout.blocks());
            if !blocks.is_empty() {
                bits.set_range(blocks);
            }
        }
    }
    let write = || -> io::Result<()> {
        for page in list.clone().take_dirty_pages(usize::MAX) {
            let address = PageAddress::new(superblock.resource, &layout, superblock.node, page);
            file.write_all_at(&list.encode_page(&address), address.offset())?;
        }
        // The pages first: what the superblock does not speak of is not looked at.
        file.sync_all()?;
        superblock.flags.set(DiskFlags::LOST, list.old.count() > 0);
        superblock.flags.set(DiskFlags::UNREAD, list.unread.count() > 0);
        for _ in 0..2 {
            let (offset, block) = superblock.advance();
            file.write_all_at(&block, offset)?;
            file.sync_all()?;
        }
        Ok(())
    };
    let mut write = write;
    write().map_err(|error| MetadataError::io(disk.meta_path(), "written", error))
}
