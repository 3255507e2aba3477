//! A disk in memory with a file of checksums in memory.
#![allow(unreachable_pub)]

use bytes::Bytes;
use holdfast_format::checksums::file_length;
use holdfast_store::{
    BufferPool, ChecksumFile, ChecksumHandle, ChecksumMode, Disk, DiskErrorKind, DiskOp,
    MemoryStore, OpId, Outcome, PartialRead,
};
use holdfast_units::{ByteRange, ResourceId};

pub const OWNER: ResourceId = ResourceId([9; 16]);
pub const PAGE: u64 = 1008;

pub struct Scratch {
    pub main: MemoryStore,
    pub file: MemoryStore,
    pub pool: BufferPool,
}

pub fn blocks(first: u64, count: u64) -> ByteRange {
    ByteRange::of_blocks(first..first + count)
}

impl Scratch {
    /// So many blocks, all zeros; the file is formatted.
    pub fn new(count: u64) -> Self {
        let scratch = Self {
            main: MemoryStore::new(count * 4096),
            file: MemoryStore::new(file_length(count * 4096)),
            pool: BufferPool::new(8 << 20),
        };
        ChecksumFile::format(scratch.file_disk(), OWNER, count * 4096).unwrap();
        scratch
    }

    /// The same, and every block has a sum that is settled.
    pub fn built(count: u64) -> Self {
        let scratch = Self::new(count);
        let (mut disk, handle) = scratch.open();
        build(&mut disk, &handle);
        settle(&mut disk);
        scratch
    }

    pub fn file_disk(&self) -> Disk {
        Disk::memory(&self.file, &self.pool).unwrap()
    }

    pub fn main_disk(&self) -> Disk {
        Disk::memory(&self.main, &self.pool).unwrap()
    }

    pub fn load(&self) -> ChecksumFile {
        ChecksumFile::load(self.file_disk(), OWNER, self.main.size()).unwrap()
    }

    /// As after a crash, if nothing was settled.
    pub fn open(&self) -> (Disk, ChecksumHandle) {
        self.main_disk().with_checksums(self.main.size(), Some(self.load()))
    }

    /// Changes a byte of a block behind everybody's back.
    pub fn flip(&self, block: u64) {
        let mut byte = [0];
        self.main.read(block * 4096 + 77, &mut byte);
        self.main.write(block * 4096 + 77, &[byte[0] ^ 4]);
    }
}

pub fn build(disk: &mut Disk, handle: &ChecksumHandle) {
    for _ in 0..10_000 {
        if handle.stats().mode == ChecksumMode::On {
            return;
        }
        handle.tick(16);
        disk.completions(&mut Vec::new());
    }
    panic!("{:?}", handle.stats());
}

pub fn settle(disk: &mut Disk) {
    disk.settle_checksums();
    assert!(disk.checksums_are_settled());
}

pub fn write(disk: &mut Disk, first: u64, count: u64, fill: u8) {
    let range = blocks(first, count);
    let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
    assert_eq!(disk.execute(DiskOp::Write { range, data, fua: false }), Ok(Outcome::Done));
}

/// What a read gives, or which blocks of it are bad.
pub fn read(disk: &mut Disk, first: u64, count: u64) -> Result<Bytes, (Bytes, Vec<ByteRange>)> {
    match disk.execute(DiskOp::Read { range: blocks(first, count), holes: false }) {
        Ok(Outcome::Data(data)) => Ok(data),
        Err(error) => {
            assert_eq!(error.kind, DiskErrorKind::Unreadable);
            let PartialRead { data, bad, .. } = disk.partial(OpId(0)).unwrap();
            Err((data, bad))
        }
        other => panic!("{other:?}"),
    }
}
