use super::*;
use crate::shard::{CreateMetadata, InitialContent, create_metadata};
use holdfast_format::{MetaImage, Placement};
use holdfast_units::{GenerationId, PeerSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const RESOURCE: ResourceId = ResourceId([9; 16]);
const SMALL: u64 = 4 << 20;
/// More than one page of a bitmap.
const LARGE: u64 = 300 << 20;

struct Place {
    dir: tempfile::TempDir,
    disk: LocalDisk,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, meta) = (dir.path().join("disk"), dir.path().join("meta"));
        holdfast_store::create_file(&path, SMALL).unwrap();
        let place = Self { dir, disk: LocalDisk::new(path, Some(meta)) };
        create_metadata(&CreateMetadata {
            disk: place.disk.spec(),
            size: None,
            resource: RESOURCE,
            node: NodeId::new(0).unwrap(),
            al_extents: 61,
            slots: Some(32),
            spares: None,
            content: InitialContent::Current(GenerationId(7)),
        })
        .unwrap();
        place
    }

    fn grow_file(&self, size: u64) -> File {
        let file = File::options().read(true).write(true).open(&self.disk.path).unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn meta(&self) -> PathBuf {
        self.dir.path().join("meta")
    }

    fn prepare(&self, size: u64) -> Result<(), ApiError> {
        prepare(&self.disk, RESOURCE, &[NodeId::new(1).unwrap()], None, size)
    }
}

#[test]
fn what_is_new_reads_as_zeroes_and_what_was_there_stays() {
    let place = Place::new();
    let file = place.grow_file(LARGE + 5000);
    for at in [0, SMALL - 4096, SMALL, 100 << 20, LARGE - 4096, LARGE] {
        file.write_all_at(&[7; 4096], at).unwrap();
    }
    assert_eq!(room(&place.disk), Ok(LARGE + 4096), "whole blocks");
    let before = std::fs::read(place.meta()).unwrap();
    for _ in 0..2 {
        place.prepare(LARGE).unwrap();
        let mut block = [0; 4096];
        for (at, value) in
            [(0, 7), (SMALL - 4096, 7), (SMALL, 0), (100 << 20, 0), (LARGE - 4096, 0), (LARGE, 7)]
        {
            file.read_exact_at(&mut block, at).unwrap();
            assert_eq!(block, [value; 4096], "at {at}");
        }
    }
    let after = std::fs::read(place.meta()).unwrap();
    assert_eq!(after[..before.len()], before, "nothing of it is in use yet");
    // The metadata of the larger resource are whole, with no bit set, and their pages have room.
    let image = MetaImage::load(&after, Placement::External { base: 0 }).unwrap();
    let mut superblock = image.superblock.clone();
    superblock.layout = superblock.layout.with_device_size(LARGE).unwrap();
    assert_eq!(after.len() as u64, superblock.layout.area().end());
    let (offset, block) = superblock.advance();
    let mut grown = after.clone();
    let at = usize::try_from(offset).unwrap();
    grown[at..at + 4096].copy_from_slice(&block);
    let image = MetaImage::load(&grown, Placement::External { base: 0 }).unwrap();
    assert_eq!(image.layout().device_size(), LARGE);
    let members: PeerSet = NodeId::new(1).into_iter().collect();
    assert_eq!(image.bitmaps(members)[0].1.count(), 0);
    assert!(image.check().is_empty(), "{:?}", image.check());
}

#[test]
fn space_that_was_allocated_stays_allocated() {
    let place = Place::new();
    let file = place.grow_file(SMALL);
    let mebi = 1 << 20;
    if fallocate(&file, FallocateFlags::empty(), SMALL, mebi).is_err() {
        return;
    }
    let before = file.metadata().unwrap().blocks();
    place.prepare(SMALL + mebi).unwrap();
    let after = file.metadata().unwrap().blocks();
    // A filesystem that shows what is allocated as data has it punched out.
    let shown = seek(&file, SeekFrom::Data(SMALL)).is_ok();
    assert!(shown || after >= before, "{before} {after}");
}

#[test]
fn a_disk_that_is_too_small_or_somebody_elses_is_left_alone() {
    let place = Place::new();
    place.grow_file(2 * SMALL).write_all_at(&[7; 4096], SMALL).unwrap();
    let error = place.prepare(LARGE).unwrap_err();
    assert_eq!(error.code, ErrorCode::DiskTooSmall);
    let other = ResourceId([1; 16]);
    let error = prepare(&place.disk, other, &[], None, 2 * SMALL).unwrap_err();
    assert!(error.message.contains("another resource"), "{}", error.message);
    let file = place.grow_file(2 * SMALL);
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, SMALL).unwrap();
    assert_eq!(block, [7; 4096], "nothing was touched");
    assert_eq!(place.prepare(SMALL), Ok(()), "it has that");
    assert_eq!(place.prepare(4096), Ok(()), "nobody shrinks");
    let inside = LocalDisk { meta: None, ..place.disk.clone() };
    assert_eq!(room(&inside).unwrap_err().code, ErrorCode::NotSupportedYet);
    let remote = LocalDisk { path: "nbd://host/x".into(), ..place.disk.clone() };
    assert_eq!(room(&remote).unwrap_err().code, ErrorCode::NotSupportedYet);
}
