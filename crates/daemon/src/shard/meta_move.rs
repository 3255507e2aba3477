//! The metadata of a resource move to another place while they are used. The blocks of an area have
//! the same numbers wherever it lies: they are copied as they are, apart from the superblocks, which
//! say where everything is.

use super::meta_io::{Blocks, MetaFile};
use super::metadata::{DiskSpec, MetaPlace, MetaReader, MetadataError, check_vacant, open_meta};
use super::metadata::{sync_parent, zero};
use holdfast_format::{BLOCK_LEN, Block, MetaImage, MetaLayout, Placement, ReadAt, Superblock};
use holdfast_units::ByteRange;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much is copied at once.
const PIECE: u64 = 1 << 20;

/// Where an area was and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift {
    from: MetaLayout,
    to: MetaLayout,
}

impl Shift {
    /// What is to be written instead of blocks that were made for the place before.
    pub(super) fn apply(&self, blocks: &Blocks) -> io::Result<Blocks> {
        blocks.iter().map(|(offset, block)| self.one(*offset, block)).collect()
    }

    fn one(&self, offset: u64, block: &Block) -> io::Result<(u64, Box<Block>)> {
        let Self { from, to } = self;
        for copy in 0..2 {
            if offset == from.superblock_offset(copy) {
                let mut superblock = Superblock::decode(block, copy).map_err(io::Error::other)?;
                // Of the area itself they say what is so now: the resource may have grown since.
                let (size, extents) =
                    (superblock.layout.device_size(), superblock.layout.al_extents());
                superblock.layout = to
                    .with_device_size(size)
                    .and_then(|layout| layout.with_al_extents(extents))
                    .map_err(io::Error::other)?;
                // A new disk has none.
                superblock.spares = None;
                return Ok((to.superblock_offset(copy), Box::new(superblock.encode())));
            }
        }
        let log = from.al_start();
        let log = log..log + u64::from(from.al_blocks()) * BLOCK_LEN as u64;
        let moved = if log.contains(&offset) {
            offset - log.start + to.al_start()
        } else {
            let at = offset.checked_sub(from.bitmap_start());
            let at = at.filter(|at| self.has_bitmaps_at(*at));
            at.ok_or_else(|| io::Error::other("a block of the metadata has no place"))?
                + to.bitmap_start()
        };
        Ok((moved, Box::new(*block)))
    }

    /// Whether there are bitmaps so many bytes behind their start. They grow with the resource, where
    /// they are the last thing.
    fn has_bitmaps_at(&self, at: u64) -> bool {
        [&self.from, &self.to].into_iter().all(|layout| {
            matches!(layout.placement(), Placement::External { .. }) || at < layout.bitmap_len()
        })
    }
}

/// A disk with metadata, and how long it is.
pub(crate) type Sized<'a> = (&'a DiskSpec, u64);

fn placement((disk, len): Sized<'_>) -> Placement {
    match disk.meta {
        MetaPlace::Internal => Placement::Internal { device_len: len },
        MetaPlace::File(_) => Placement::External { base: 0 },
    }
}

/// Where everything is and would be.
fn shift(
    old: Sized<'_>,
    new: Sized<'_>,
    file: &File,
) -> Result<(Shift, Superblock), MetadataError> {
    let path = old.0.meta_path();
    let reader = MetaReader::new(file).map_err(|e| MetadataError::io(path, "read", e))?;
    let image = MetaImage::load(&reader, placement(old))
        .map_err(|error| MetadataError::Unusable { path: path.to_owned(), error })?;
    let from = image.superblock.layout;
    let (size, slots) = (from.device_size(), from.slots());
    let to = MetaLayout::new(size, from.al_extents(), from.al_blocks(), slots, placement(new))?;
    Ok((Shift { from, to }, image.superblock))
}

/// That there is room for the metadata in the new place. Blocks.
///
/// # Errors
/// Why there is none.
pub(crate) fn check_room(old: Sized<'_>, new: Sized<'_>) -> Result<(), MetadataError> {
    let path = old.0.meta_path();
    let file = File::open(path).map_err(|e| MetadataError::io(path, "opened", e))?;
    shift(old, new, &file).map(drop)
}

/// Copies the metadata, durably, while nobody writes to them. Blocks. Those in the old place stay as
/// they are.
///
/// # Errors
/// What failed; nothing is to be used of what was written then.
pub(crate) fn move_metadata(old: Sized<'_>, new: Sized<'_>) -> Result<MovedMeta, MetadataError> {
    let (from_path, path) = (old.0.meta_path(), new.0.meta_path());
    let source = File::open(from_path).map_err(|e| MetadataError::io(from_path, "opened", e))?;
    let (shift, superblock) = shift(old, new, &source)?;
    let file = open_meta(new.0, true)?;
    check_vacant(path, &file, &shift.to, superblock.resource)?;
    let fail = |error: io::Error| MetadataError::io(path, "written", error);
    let is_file = file.metadata().map_err(fail)?.is_file();
    if is_file && new.0.meta != MetaPlace::Internal {
        file.set_len(0).and_then(|()| file.set_len(shift.to.area().end())).map_err(fail)?;
    } else {
        zero(&file, ByteRange::new(shift.to.bitmap_start(), shift.to.bitmap_len()))
            .map_err(fail)?;
    }
    let length = u64::from(shift.from.al_blocks()) * BLOCK_LEN as u64;
    let log = ByteRange::new(shift.from.al_start(), length);
    let bitmaps = ByteRange::new(shift.from.bitmap_start(), shift.from.bitmap_len());
    let reader = MetaReader::new(&source).map_err(|e| MetadataError::io(from_path, "read", e))?;
    for (range, to) in [(log, shift.to.al_start()), (bitmaps, shift.to.bitmap_start())] {
        copy(&reader, &source, range, &file, to).map_err(fail)?;
    }
    file.sync_all().map_err(fail)?;
    // The last thing: before, nothing of it counts.
    for copy in 0..2 {
        let mut block: Block = [0; BLOCK_LEN];
        let at = shift.from.superblock_offset(copy);
        source.read_exact_at(&mut block, at).map_err(fail)?;
        // One of the two may be broken.
        if let Ok((at, block)) = shift.one(at, &block) {
            file.write_all_at(&block[..], at).map_err(fail)?;
        }
    }
    file.sync_all().map_err(fail)?;
    if new.0.meta != MetaPlace::Internal {
        sync_parent(path).map_err(fail)?;
    }
    let file = MetaFile::new(file).map_err(|e| MetadataError::io(path, "opened", e))?;
    Ok(MovedMeta { file: Some(file), shift })
}

/// As [`move_metadata`], for metadata that stay where they are but are those of a disk without spares
/// from then on. Nothing is written yet.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn keep_metadata(old: Sized<'_>) -> Result<MovedMeta, MetadataError> {
    let path = old.0.meta_path();
    let file = File::open(path).map_err(|e| MetadataError::io(path, "opened", e))?;
    let (shift, _) = shift(old, old, &file)?;
    Ok(MovedMeta { file: None, shift })
}

fn copy(
    reader: &MetaReader<'_>,
    source: &File,
    range: ByteRange,
    file: &File,
    to: u64,
) -> io::Result<()> {
    let mut at = range.offset;
    let mut buffer = vec![0; usize::try_from(PIECE).map_err(io::Error::other)?];
    while at < range.end() {
        // Mostly holes, where it is a file.
        let data = reader.next_data(at).unwrap_or(range.end()).min(range.end());
        at = at.max(data / BLOCK_LEN as u64 * BLOCK_LEN as u64);
        let len = PIECE.min(range.end() - at);
        let buffer = &mut buffer[..usize::try_from(len).map_err(io::Error::other)?];
        source.read_exact_at(buffer, at)?;
        for (index, block) in buffer.chunks(BLOCK_LEN).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                let place = at - range.offset + to + (index * BLOCK_LEN) as u64;
                file.write_all_at(block, place)?;
            }
        }
        at += len;
    }
    Ok(())
}

/// Metadata from now on: in a new place, if there is a file, and what becomes of blocks for them.
#[derive(Debug)]
pub(crate) struct MovedMeta {
    /// Claimed as long as it lives.
    pub(super) file: Option<MetaFile>,
    pub(super) shift: Shift,
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_units::{NodeId, ResourceId};

    const SIZE: u64 = 1 << 30;

    fn layout(placement: Placement) -> MetaLayout {
        MetaLayout::new(SIZE, 64, 4, 8, placement).unwrap()
    }

    fn superblock(layout: MetaLayout) -> Superblock {
        Superblock::new(ResourceId([7; 16]), NodeId::new(0).unwrap(), [1; 16], layout)
    }

    #[test]
    fn superblocks_written_after_a_move_have_the_size_that_the_resource_has_by_then() {
        let before = layout(Placement::External { base: 0 });
        let shift = Shift { from: before, to: before };
        let grown = before.with_device_size(3 * SIZE).unwrap();
        let mut written = superblock(grown);
        written.spares = Some([5; 16]);
        for copy in 0..2 {
            let at = before.superblock_offset(copy);
            // The copy that a block is for is told by its sequence.
            written.sequence = u64::from(copy);
            let (place, block) = shift.one(at, &written.encode()).unwrap();
            let found = Superblock::decode(&block, copy).unwrap();
            assert_eq!((place, found.layout, found.spares), (at, grown, None));
        }
        // The last page of the bitmaps that the growth added.
        let last = grown.area().end() - BLOCK_LEN as u64;
        assert!(last >= before.area().end());
        assert_eq!(shift.one(last, &[3; BLOCK_LEN]).unwrap().0, last);
    }

    #[test]
    fn blocks_of_an_area_at_the_end_of_a_disk_go_to_their_places_in_a_file() {
        let from = layout(Placement::Internal { device_len: 2 * SIZE });
        let to = layout(Placement::External { base: 0 });
        let shift = Shift { from, to };
        let block: Block = [3; BLOCK_LEN];
        let node = NodeId::new(3).unwrap();
        let moved = |offset| shift.one(offset, &block).map(|(place, _)| place);
        assert_eq!(moved(from.page_offset(node, 0)).unwrap(), to.page_offset(node, 0));
        assert_eq!(moved(from.al_offset(3)).unwrap(), to.al_offset(3));
        moved(from.bitmap_start() - BLOCK_LEN as u64).unwrap_err();
        moved(2 * SIZE).unwrap_err();
        let (_, block) = shift.one(from.superblock_offset(0), &superblock(from).encode()).unwrap();
        assert_eq!(Superblock::decode(&block, 0).unwrap().layout, to);
    }
}
