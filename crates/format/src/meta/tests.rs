use super::*;
use crate::testing::{RESOURCE, layout, node};
use crate::{AlUpdate, LayoutError};
use holdfast_units::GenerationId;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A file with holes, some of whose blocks cannot be read.
#[derive(Clone, Default)]
struct Disk {
    len: u64,
    blocks: BTreeMap<u64, Option<Block>>,
}

impl Disk {
    fn write(&mut self, offset: u64, block: Block) {
        self.blocks.insert(offset / BLOCK_SIZE, Some(block));
    }
}

impl ReadAt for Disk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ReadFailed> {
        assert_eq!((offset % BLOCK_SIZE, buf.len()), (0, BLOCK_LEN));
        if offset + BLOCK_SIZE > self.len {
            return Err(ReadFailed("past the end".into()));
        }
        match self.blocks.get(&(offset / BLOCK_SIZE)) {
            Some(Some(block)) => buf.copy_from_slice(block),
            Some(None) => return Err(ReadFailed("bad sector".into())),
            None => buf.fill(0),
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        let block = offset / BLOCK_SIZE;
        let (found, _) = self.blocks.range(block..).next()?;
        Some((found * BLOCK_SIZE).max(offset))
    }
}

fn external() -> Placement {
    Placement::External { base: 0 }
}

/// A fresh area on a disk, as the loader will see it.
fn fresh(layout: MetaLayout) -> (Disk, Superblock) {
    let mut superblock = Superblock::new(RESOURCE, node(0), [3; 16], layout);
    let len = match layout.placement() {
        Placement::External { .. } => layout.area().end(),
        Placement::Internal { device_len } => device_len,
    };
    let mut disk = Disk { len, ..Disk::default() };
    for (offset, block) in format_blocks(&mut superblock) {
        assert!(disk.blocks.insert(offset / BLOCK_SIZE, Some(block)).is_none());
    }
    (disk, superblock)
}

fn texts(findings: &[Finding]) -> String {
    findings.iter().map(|f| format!("{f}\n")).collect()
}

#[test]
fn a_fresh_area_is_loaded_and_whole() {
    let device_len = (5 << 30) + 1536;
    let size = MetaLayout::usable_size(device_len, 8, 8).unwrap();
    let inside = Placement::Internal { device_len };
    let internal = MetaLayout::new(size, 1237, 8, 8, inside).unwrap();
    let based = Placement::External { base: 1 << 20 };
    let based = MetaLayout::new(1 << 40, 1237, 8, 32, based).unwrap();
    for layout in [layout(1, 1), layout(1_000_000, 1237), internal, based] {
        let (disk, superblock) = fresh(layout);
        let image = MetaImage::load(&disk, layout.placement()).unwrap();
        assert_eq!(image.superblock, superblock);
        assert_eq!(superblock.sequence, 2);
        assert_eq!(image.al.as_ref().unwrap().log.extents().count(), 0);
        assert_eq!(image.pages().count(), 0);
        assert_eq!(image.check(), []);
    }
}

#[test]
fn bitmaps_of_a_sparse_terabyte_are_found() {
    let layout = MetaLayout::new(1 << 40, 1237, 8, 32, external()).unwrap();
    let (mut disk, mut superblock) = fresh(layout);
    superblock.peers[31].bitmap = GenerationId(5);
    let (at, block) = superblock.advance();
    disk.write(at, block);
    let mut bitmap = SparseBitmap::new(layout.blocks());
    bitmap.set_range(0..3);
    bitmap.set_range(layout.blocks() - 1..layout.blocks());
    for page in bitmap.take_dirty_pages(10) {
        let address = PageAddress::new(RESOURCE, &layout, node(31), page);
        disk.write(address.offset(), bitmap.encode_page(&address));
    }
    let image = MetaImage::load(&disk, external()).unwrap();
    let found: Vec<_> = image.pages().map(|p| (p.address.slot(), p.address.page())).collect();
    assert_eq!(found, [(node(31), 0), (node(31), layout.pages() - 1)]);
    let bitmaps = image.bitmaps([node(1), node(31)].into_iter().collect());
    assert_eq!(bitmaps.len(), 2);
    assert_eq!((bitmaps[0].1.count(), bitmaps[0].2), (0, 0));
    assert_eq!((&bitmaps[1].1, bitmaps[1].2), (&bitmap, 0));
    assert_eq!(image.check(), []);
    assert_eq!(image.dump().peers[0].set, 4);
}

#[test]
fn damage_is_told_and_taken_for_out_of_sync() {
    let layout = layout(100_000, 1237);
    let (mut disk, superblock) = fresh(layout);
    disk.write(superblock.layout.superblock_offset(1), [9; 4096]);
    disk.blocks.insert(layout.page_offset(node(1), 0) / BLOCK_SIZE, None);
    disk.write(layout.page_offset(node(1), 3), [7; 4096]);
    disk.write(layout.al_offset(3), [7; 4096]);
    let mut newest = disk.blocks[&(layout.al_offset(7) / BLOCK_SIZE)].unwrap();
    newest[2000] ^= 1;
    disk.write(layout.al_offset(7), newest);
    let image = MetaImage::load(&disk, external()).unwrap();
    assert_eq!(image.superblock.sequence, 2);
    let text = texts(&image.check());
    for part in [
        "warning: The second copy of the superblock cannot be used: it is not Holdfast metadata.",
        "note: Block 3 of the activity log cannot be used: it is not Holdfast metadata.",
        "warning: 2 pages of the bitmap for node 1 cannot be used, the first because it could not",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let lost = BITS_PER_PAGE + 100_000 % BITS_PER_PAGE;
    let bitmaps = image.bitmaps([node(1)].into_iter().collect());
    assert_eq!((bitmaps[0].1.count(), bitmaps[0].2), (lost, 2));
    let dump = image.dump();
    assert_eq!((dump.peers[0].set, dump.peers[0].lost), (lost, 2));
    // Without the block before the newest, the activity log has a hole.
    disk.blocks.insert(layout.al_offset(6) / BLOCK_SIZE, None);
    disk.write(layout.al_offset(5), [0; 4096]);
    let image = MetaImage::load(&disk, external()).unwrap();
    assert_eq!(image.check().iter().map(|f| f.severity).max(), Some(Severity::Error));
    assert_eq!(image.dump().hot_extents, None);
}

#[test]
fn a_file_that_is_too_short_loses_the_rest() {
    let layout = layout(100_000, 1237);
    let (mut disk, _) = fresh(layout);
    disk.len = layout.page_offset(node(0), 2) + 100;
    let image = MetaImage::load(&disk, external()).unwrap();
    let bitmaps = image.bitmaps([node(3)].into_iter().collect());
    assert_eq!((bitmaps[0].1.next_set(0), bitmaps[0].2), (Some(2 * BITS_PER_PAGE), 2));
}

#[test]
fn no_superblock_is_one_clear_error() {
    let blank = Disk { len: 1 << 20, ..Disk::default() };
    let error = MetaImage::load(&blank, external()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no superblock can be used: of the first copy, at byte 0, it was never written (all its \
         bytes are zero); of the second, it was never written (all its bytes are zero)"
    );
    let empty: Vec<u8> = Vec::new();
    assert!(empty.is_empty());
    let errors = [BlockError::Unreadable; 2];
    assert_eq!(
        MetaImage::load(&empty, external()).unwrap_err(),
        MetaError::NoSuperblock { at: 0, errors }
    );
    let nothing = Placement::Internal { device_len: 4096 };
    let error = MetaImage::load(&empty, nothing).unwrap_err();
    assert!(matches!(error, MetaError::Layout(LayoutError::DeviceTooSmall { .. })));
}

#[test]
fn a_copy_of_the_metadata_in_another_place_is_refused() {
    let (disk, _) = fresh(layout(1000, 1237));
    let shift = 16 * BLOCK_SIZE;
    let blocks = disk.blocks.iter().map(|(i, block)| (i + 16, *block)).collect();
    let moved = Disk { len: disk.len + shift, blocks };
    let found = Placement::External { base: shift };
    let error = MetaImage::load(&moved, found).unwrap_err();
    assert_eq!(error, MetaError::Moved { stored: external(), found });
}

#[test]
fn the_dump_is_readable() {
    let layout = layout(100_000, 1237);
    let (mut disk, mut superblock) = fresh(layout);
    superblock.flags = DiskFlags::CONSISTENT.with(DiskFlags::WAS_UPTODATE);
    superblock.following = Some(node(2));
    superblock.history[0] = GenerationId(0xabc);
    superblock.peers[2].bitmap = GenerationId(0xdef);
    let (at, block) = superblock.advance();
    disk.write(at, block);
    let mut log = AlLog::recover(
        RESOURCE,
        &layout,
        (0..8).map(|i| (i, read_block(&disk, layout.al_offset(i)))),
    )
    .unwrap()
    .log;
    let far = AlUpdate { slot: 1, extent: Some(5000) };
    let (index, block) = log.encode_transaction(&[far]).unwrap();
    disk.write(layout.al_offset(index), block);
    let image = MetaImage::load(&disk, external()).unwrap();
    assert_eq!(
        image.dump().to_string(),
        "\
resource      7369787465656e206279746573206f6b
node          0
following     2
size          390.6 MiB (409600000 bytes)
flags         CONSISTENT,WAS_UPTODATE
sequence      3
boot          03030303030303030303030303030303
placement     external, from byte 0
area          104 KiB from byte 0
generation    0000000000000004
history       0000000000000ABC
activity log  1 of 1237 extents hot, ring of 8 blocks
bitmap slots  4
peer 2        bitmap 0000000000000DEF current 0000000000000000 flags - out of sync 0 B
warning: The activity log has 1 extents past the end of the disk.
"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_are_loaded_or_refused(
        edits in proptest::collection::vec((0_usize..26 * 4096, any::<u8>()), 0..40),
        keep in 0_usize..30 * 4096,
    ) {
        let (disk, _) = fresh(layout(100_000, 1237));
        let mut bytes = vec![0; 26 * 4096];
        for (i, block) in &disk.blocks {
            let at = usize::try_from(i * BLOCK_SIZE).unwrap();
            bytes[at..at + 4096].copy_from_slice(&block.unwrap());
        }
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(keep);
        if let Ok(image) = MetaImage::load(&bytes, external()) {
            let _ = image.check();
            let _ = image.dump().to_string();
        }
    }
}
