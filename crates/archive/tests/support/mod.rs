//! A resource with a journal in memory, and a store that fails when it is told to.
#![allow(dead_code)] // a module of several programs, each of which uses a part

use bytes::Bytes;
use holdfast_archive::{Archive, Checkpoint, Moment, Source, SourceError, Store, Version};
use holdfast_format::journal::{Compression, SegmentHeader};
use holdfast_journal::driver::{Backing, Files, Log, Open};
use holdfast_journal::{Op, Settings, WriteBackLimits};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId, ResourceId};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::SystemTime;

pub(crate) const RESOURCE: ResourceId = ResourceId([7; 16]);
pub(crate) const NAME: &str = "r0";
const LIMITS: WriteBackLimits = WriteBackLimits { bytes: 1 << 20, runs: 100, run_bytes: 1 << 20 };

/// Files in memory. Clones are the same files.
#[derive(Clone, Default)]
pub(crate) struct MemoryFiles(Rc<RefCell<BTreeMap<String, Vec<u8>>>>);

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl MemoryFiles {
    /// Other files, with the same in them.
    pub(crate) fn copied(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

impl Files for MemoryFiles {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().keys().cloned().collect())
    }
    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.entry(name.into()).or_default();
        file.resize(file.len().max(at(len)), 0);
        Ok(())
    }
    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let data = parts.concat();
        let mut files = self.0.borrow_mut();
        let file = files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file[at(offset)..at(offset) + data.len()].copy_from_slice(&data);
        Ok(())
    }
    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let files = self.0.borrow();
        let file = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let from = at(offset).min(file.len());
        let len = buf.len().min(file.len() - from);
        buf[..len].copy_from_slice(&file[from..from + len]);
        Ok(len)
    }
    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name);
        Ok(())
    }
    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        self.write(name, offset, parts)?;
        Ok(false)
    }
}

/// A disk in memory; grows when it is written to behind its end.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct MemoryDisk(pub(crate) Vec<u8>);

impl Backing for MemoryDisk {
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.0[at(range.offset)..at(range.end())]))
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = at(offset) + data.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[at(offset)..end].copy_from_slice(data);
        Ok(())
    }
    fn zeroes(&mut self, range: ByteRange, _: bool) -> io::Result<()> {
        self.write(range.offset, &vec![0; at(range.len)])
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A state of the disk that a restore is held against.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) position: LogPosition,
    pub(crate) millis: u64,
    pub(crate) disk: Vec<u8>,
}

/// A resource that is written to by chance.
pub(crate) struct Resource {
    pub(crate) log: Log<MemoryFiles>,
    pub(crate) disk: MemoryDisk,
    pub(crate) model: MemoryDisk,
    pub(crate) millis: u64,
    /// Nobody writes while the disk is read.
    pub(crate) still: bool,
    /// The journal does not have the segments up to this one any more.
    pub(crate) given_up: u64,
    /// So many flushes from now on somebody writes just before, for the first time, and what comes then
    /// begins a segment.
    pub(crate) writes_at_flush: u32,
    dice: Xoshiro256PlusPlus,
    stamp: u64,
}

pub(crate) fn open_log(
    files: MemoryFiles,
    node: u8,
    epoch: u64,
    segment_bytes: u64,
) -> Log<MemoryFiles> {
    let node = NodeId::new(node).unwrap();
    let settings = Settings {
        segment_bytes,
        budget_bytes: u64::MAX,
        keep_bytes: 1 << 40,
        ..Settings::new(RESOURCE, node, epoch)
    };
    let open = Open {
        settings,
        leads: true,
        generation: GenerationId(4),
        time: HybridTime(0),
        cut: None,
        spares: 0,
    };
    Log::open(files, &open).unwrap().0
}

impl Resource {
    pub(crate) fn new(seed: u64, blocks: u64) -> Self {
        let mut disk = MemoryDisk(vec![0; at(blocks * 4096)]);
        // What was there before the journal.
        disk.0[4096 * 3..4096 * 5].fill(0xaa);
        Self {
            log: open_log(MemoryFiles::default(), 0, 1, 32 * 4096),
            model: disk.clone(),
            disk,
            millis: 1_000_000,
            still: false,
            given_up: 0,
            writes_at_flush: 0,
            dice: Xoshiro256PlusPlus::seed_from_u64(seed),
            stamp: 0,
        }
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.dice.next_u64() % n
    }

    /// Writes numbered blocks, zeroes, discards, or a flush, somewhere; then perhaps writes back.
    pub(crate) fn act(&mut self) {
        self.millis += self.below(3);
        let time = HybridTime::from_unix_millis(self.millis);
        let blocks = self.model.0.len() as u64 / 4096;
        let len = 1 + self.below(4).min(blocks - 1);
        let range = ByteRange::new(self.below(blocks - len + 1) * 4096, len * 4096);
        let op = match self.below(10) {
            0 => {
                self.model.zeroes(range, false).unwrap();
                Op::zeroes(range, time, false, false).unwrap()
            }
            1 => {
                self.model.zeroes(range, true).unwrap();
                Op::zeroes(range, time, true, false).unwrap()
            }
            2 => Op::flush(time),
            _ => {
                self.stamp += 1;
                let unit = [self.stamp.to_le_bytes(), (!self.stamp).to_le_bytes()].concat();
                let data: Bytes = unit.repeat(at(range.len) / 16).into();
                self.model.write(range.offset, &data).unwrap();
                let packing = [Compression::None, Compression::Lz4, Compression::Zstd];
                let packing = packing[at(self.stamp / 50 % 3)];
                Op::write_packed(range.offset, data, time, false, packing).unwrap()
            }
        };
        self.log.push(op).unwrap();
        self.log.pump().unwrap();
        if self.below(3) == 0 {
            self.log.flush().unwrap();
            self.log.write_back(&mut self.disk, LIMITS, true).unwrap();
        }
    }

    /// The state now. No later write is of the same millisecond.
    pub(crate) fn snapshot(&mut self) -> Snapshot {
        let position = self.log.journal().head();
        let snapshot = Snapshot { position, millis: self.millis, disk: self.model.0.clone() };
        self.millis += 1;
        snapshot
    }

    /// What is durable in its journal.
    pub(crate) fn durable(&self) -> LogPosition {
        self.log.journal().durable()
    }

    /// Writes a block that no client has flushed.
    pub(crate) fn write_unflushed(&mut self, block: u64) {
        let data: Bytes = vec![0x3c; 4096].into();
        self.model.write(block * 4096, &data).unwrap();
        let time = HybridTime::from_unix_millis(self.millis);
        self.log.push(Op::write(block * 4096, data, time, false).unwrap()).unwrap();
        self.log.pump().unwrap();
    }

    /// A crash of the program: what was completed is there, opened by another epoch.
    pub(crate) fn reopen(&mut self, epoch: u64) {
        let files = self.log.files().clone();
        self.log = open_log(files, 0, epoch, 32 * 4096);
    }

    /// The disk is written to past the journal.
    pub(crate) fn begin_anew(&mut self) {
        self.log.flush().unwrap();
        while self.log.write_back(&mut self.disk, LIMITS, true).unwrap() {}
        self.log.store_cursors().unwrap();
        assert!(self.log.journal_mut().begin_anew());
        self.disk.write(0, &[0x77; 4096]).unwrap();
        self.model.write(0, &[0x77; 4096]).unwrap();
    }

    /// Another node takes over with this copy of the journal.
    pub(crate) fn taken_over(&mut self, files: MemoryFiles, node: u8, epoch: u64) {
        self.log = open_log(files, node, epoch, 32 * 4096);
    }
}

fn source(error: impl std::fmt::Display) -> SourceError {
    SourceError(error.to_string())
}

impl Source for Resource {
    fn segments(&mut self) -> Result<Vec<(SegmentHeader, u64)>, SourceError> {
        let journal = self.log.journal();
        if journal.begins_anew() {
            return Ok(Vec::new());
        }
        let segments = journal.durable_segments().into_iter();
        Ok(segments.filter(|(header, _)| header.number > self.given_up).collect())
    }
    fn fetch(&mut self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, SourceError> {
        // Little at a time, so that frames come in parts.
        self.log.fetch(segment, from, max.min(10_000)).map_err(source)
    }
    fn flush(&mut self) -> Result<LogPosition, SourceError> {
        if self.writes_at_flush == 1 {
            self.act();
            self.log.begin_segment().map_err(source)?;
        }
        self.writes_at_flush = self.writes_at_flush.saturating_sub(1);
        self.log.flush().map_err(source)?;
        Ok(self.log.journal().durable())
    }
    fn read(&mut self, range: ByteRange) -> Result<Bytes, SourceError> {
        // Somebody writes meanwhile.
        if !self.still && self.below(2) == 0 {
            self.act();
        }
        self.log.read(range, &mut self.disk).map_err(source)
    }
    fn size(&mut self) -> Result<u64, SourceError> {
        Ok(self.model.0.len() as u64)
    }
    fn now(&mut self) -> HybridTime {
        HybridTime::from_unix_millis(self.millis)
    }
}

/// Objects in memory. Clones are the same store.
#[derive(Clone, Default, Debug)]
pub(crate) struct MemoryStore {
    pub(crate) objects: Rc<RefCell<BTreeMap<String, Bytes>>>,
    /// Changes so far.
    pub(crate) changes: Rc<Cell<u64>>,
    /// This change and all later ones fail.
    pub(crate) fail_at: Rc<Cell<Option<u64>>>,
    /// Whether the first one that fails is done all the same.
    pub(crate) done_all_the_same: Rc<Cell<bool>>,
    /// When each object was put; long ago if it is not here.
    pub(crate) put: Rc<RefCell<BTreeMap<String, SystemTime>>>,
}

impl MemoryStore {
    fn change(&self, act: impl FnOnce(&mut BTreeMap<String, Bytes>)) -> io::Result<()> {
        let number = self.changes.get();
        self.changes.set(number + 1);
        let failing = self.fail_at.get().filter(|at| number >= *at);
        if failing.is_none_or(|at| at == number && self.done_all_the_same.get()) {
            act(&mut self.objects.borrow_mut());
        }
        if failing.is_some() { Err(io::Error::other("it was to fail")) } else { Ok(()) }
    }

    fn version(bytes: &Bytes) -> Version {
        Version(format!("{:?}", holdfast_archive::Digest::of(bytes)))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.borrow().keys().cloned().collect()
    }
}

impl Store for MemoryStore {
    fn get(&self, name: &str, max: u64) -> io::Result<Option<Bytes>> {
        let found = self.objects.borrow().get(name).cloned();
        assert!(found.as_ref().is_none_or(|bytes| bytes.len() as u64 <= max));
        Ok(found)
    }
    fn len_of(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.objects.borrow().get(name).map(|bytes| bytes.len() as u64))
    }
    fn put(&self, name: &str, bytes: &Bytes) -> io::Result<()> {
        self.change(|objects| {
            objects.insert(name.into(), bytes.clone());
        })
    }
    fn get_versioned(&self, name: &str, max: u64) -> io::Result<Option<(Bytes, Version)>> {
        Ok(self.get(name, max)?.map(|bytes| (bytes.clone(), Self::version(&bytes))))
    }
    fn replace(
        &self,
        name: &str,
        bytes: &Bytes,
        expected: Option<&Version>,
    ) -> io::Result<Option<Version>> {
        let now = self.objects.borrow().get(name).map(Self::version);
        if now.as_ref() != expected {
            return Ok(None);
        }
        self.put(name, bytes)?;
        Ok(Some(Self::version(bytes)))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|objects| {
            objects.remove(name);
        })
    }
    fn put_at(&self, name: &str) -> io::Result<Option<SystemTime>> {
        let put = self.put.borrow().get(name).copied().unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(self.objects.borrow().get(name).map(|_| put))
    }
    fn list(
        &self,
        prefix: &str,
        visit: &mut dyn FnMut(&str, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        for (name, bytes) in self.objects.borrow().iter() {
            if name.starts_with(prefix) {
                visit(name, bytes.len() as u64)?;
            }
        }
        Ok(())
    }
    fn archives(&self) -> io::Result<Vec<String>> {
        let names = self.names();
        let mut names: Vec<String> =
            names.iter().filter_map(|name| Some(name.split('/').next()?.to_owned())).collect();
        names.dedup();
        Ok(names)
    }
}

/// The state of a moment as the archive gives it.
pub(crate) fn restored<S: Store>(
    archive: &Archive<S>,
    moment: Moment,
    line: Option<u32>,
) -> Vec<u8> {
    let plan = archive.plan(moment, line).unwrap();
    let mut disk = MemoryDisk(vec![0; at(plan.size)]);
    archive.restore(&plan, &mut disk, true, Checkpoint::default(), &mut |_| Ok(())).unwrap();
    disk.0
}
