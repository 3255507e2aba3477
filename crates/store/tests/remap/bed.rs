//! A disk and its spares in memory, which outlive the disk and can be spoilt.
#![allow(unreachable_pub)]

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BadSector, BufferPool, Disk, DiskError, DiskIdentity, DiskOp, FaultHandle, MemoryStore, OpId,
    Outcome, PartialRead, RemapOp, RemapReport, RemapStats, SpareAt, SpareError, SpareFormat,
    format_spare,
};
use holdfast_units::{ByteRange, ResourceId};

pub const OWNER: DiskIdentity =
    DiskIdentity { resource: ResourceId(*b"resource's id is"), disk: *b"and the disk is " };

pub const BLOCK: u64 = 4096;

pub fn at(offset: u64, len: u64) -> ByteRange {
    ByteRange::new(offset, len)
}

/// Bytes of blocks of 4096.
pub fn blocks(first: u64, count: u64) -> ByteRange {
    at(first * BLOCK, count * BLOCK)
}

pub struct Bed {
    pub main: MemoryStore,
    pub spares: Vec<MemoryStore>,
    pool: BufferPool,
}

pub struct Rig {
    pub disk: Disk,
    pub main: FaultHandle,
    pub spares: Vec<FaultHandle>,
}

pub fn format(id: u8, unit: u32, slots: u32, disk_size: u64) -> SpareFormat {
    let (force, created) = (false, 1);
    SpareFormat { id: SpareId([id; 16]), unit, slots: Some(slots), force, disk_size, created }
}

impl Bed {
    /// A disk of so many blocks of 4096, and spares with so many slots each.
    pub fn new(main_blocks: u64, unit: u32, slots: &[u32]) -> Self {
        let main = MemoryStore::new(main_blocks * BLOCK);
        let pool = BufferPool::new(16 << 20);
        let mut bed = Self { main, spares: Vec::new(), pool };
        for (id, slots) in (1..).zip(slots) {
            let store = MemoryStore::new(u64::from(*slots) * u64::from(unit) + (128 << 10));
            let format = format(id, unit, *slots, bed.main.size());
            format_spare(&mut bed.plain(&store), None, &OWNER, &format).unwrap();
            bed.spares.push(store);
        }
        // Spares with several members know of each other.
        if slots.len() > 1 {
            bed.introduce();
        }
        bed
    }

    pub fn plain(&self, store: &MemoryStore) -> Disk {
        Disk::memory(store, &self.pool).unwrap()
    }

    fn introduce(&self) {
        let spare = |i: usize| SpareAt::Disk(Box::new(self.plain(&self.spares[i])));
        let mut disk = self.plain(&self.main).with_spares(vec![spare(0)], &OWNER).unwrap();
        for i in 1..self.spares.len() {
            let loaded = holdfast_store::load_spare(self.plain(&self.spares[i]), &OWNER).unwrap();
            disk.remap_now(RemapOp::AddSpare(loaded)).0.unwrap();
        }
    }

    /// The disk with all its spares, all with faults that can be set.
    pub fn open(&self) -> Rig {
        self.try_open(OWNER).unwrap()
    }

    pub fn try_open(&self, owner: DiskIdentity) -> Result<Rig, SpareError> {
        let (main, main_faults) = self.plain(&self.main).with_faults(&[]);
        let mut handles = Vec::new();
        let mut spares = Vec::new();
        for store in &self.spares {
            let (disk, handle) = self.plain(store).with_faults(&[]);
            handles.push(handle);
            spares.push(SpareAt::Disk(Box::new(disk)));
        }
        let disk = main.with_spares(spares, &owner)?;
        Ok(Rig { disk, main: main_faults, spares: handles })
    }
}

impl Rig {
    pub fn try_write(&mut self, range: ByteRange, fill: u8) -> Result<Outcome, DiskError> {
        let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
        self.disk.execute(DiskOp::Write { range, data, fua: false })
    }

    pub fn write(&mut self, range: ByteRange, fill: u8) {
        assert_eq!(self.try_write(range, fill), Ok(Outcome::Done), "write of {range}");
    }

    pub fn try_read(&mut self, range: ByteRange) -> Result<Bytes, DiskError> {
        match self.disk.execute(DiskOp::Read { range, holes: false })? {
            Outcome::Data(data) => Ok(data),
            other => panic!("{other:?}"),
        }
    }

    /// Reads blocks each of which is filled with one byte: those bytes.
    pub fn fills(&mut self, range: ByteRange) -> Vec<u8> {
        let data = self.try_read(range).unwrap();
        let fill = |block: &[u8]| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a block is mixed");
            block[0]
        };
        data.chunks(4096).map(fill).collect()
    }

    /// A read that must fail in part: what it found, and where it is bad.
    pub fn partial(&mut self, range: ByteRange) -> PartialRead {
        let error = self.try_read(range).unwrap_err();
        assert_eq!(error.kind, holdfast_store::DiskErrorKind::Unreadable, "{error}");
        self.disk.partial(OpId(0)).unwrap()
    }

    pub fn ask(&mut self, what: RemapOp) -> RemapReport {
        let (result, report) = self.disk.remap_now(what);
        result.unwrap();
        report
    }

    pub fn stats(&self) -> RemapStats {
        self.disk.remap_stats().unwrap()
    }

    /// Spoils blocks of the main disk.
    pub fn spoil(&self, blocks: ByteRange, bad: BadSector) {
        self.main.spoil(blocks, bad);
    }
}

/// Where slots of the first spare begin, for one whose table has so many blocks.
pub fn slot_offset(table_blocks: u64, unit: u64, slot: u64) -> u64 {
    (1 + table_blocks) * BLOCK + slot * unit
}
