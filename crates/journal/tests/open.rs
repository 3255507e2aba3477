//! What it takes to open a long journal: memory for what is not on the disk, and, of a node that
//! follows, only the last segment is read.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use bytes::Bytes;
use holdfast_journal::driver::{Directory, DirectoryOptions, Files, Log, Open};
use holdfast_journal::{Op, Settings};
use holdfast_units::{ByteRange, GenerationId, HybridTime, NodeId, ResourceId};
use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;

const SEGMENT: u64 = 8 << 20;
/// So many frames of 512 bytes.
const FRAMES: u64 = 60_000;

/// A directory that counts what is read.
struct Counted(Directory, Rc<Cell<u64>>);

impl Files for Counted {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.0.create(name, len)
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.0.write(name, offset, parts)
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(name, offset, buf)?;
        self.1.set(self.1.get() + read as u64);
        Ok(read)
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        self.0.write_through(name, offset, parts)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.0.sync(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.0.sync_dir()
    }
}

/// Opens the journal; how many bytes of it were read for that.
fn open(dir: &Path, leads: bool) -> (Log<Counted>, u64) {
    let read = Rc::new(Cell::new(0));
    let files = Directory::open(dir, DirectoryOptions { direct: false }).unwrap();
    let node = NodeId::new(0).unwrap();
    let settings = Settings {
        segment_bytes: SEGMENT,
        alignment: 512,
        ..Settings::new(ResourceId([9; 16]), node, 7)
    };
    let (generation, time) = (GenerationId(4), HybridTime(0));
    let open = Open { settings, leads, generation, time, cut: None, spares: 0 };
    let log = Log::open(Counted(files, Rc::clone(&read)), &open).unwrap().0;
    (log, read.get())
}

/// A figure of this process, in bytes.
fn memory(of: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(of)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_long_journal_is_opened_with_little_memory_and_by_who_follows_without_reading_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), true);
    // The same block again and again: only the last one is still to be written back.
    for _ in 0..FRAMES {
        let op = Op::zeroes(ByteRange::new(8192, 4096), HybridTime(1), false, false).unwrap();
        log.push(op).unwrap();
        log.pump().unwrap();
    }
    log.flush().unwrap();
    let durable = log.journal().durable();
    assert!(log.journal().durable_segments().len() > 3);
    drop(log);

    // The most that was ever used is forgotten.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let (log, read) = open(dir.path(), true);
    let used = memory("VmHWM").saturating_sub(before);
    assert!(used < 8 << 20, "{used} bytes of memory");
    assert!(read > FRAMES * 512, "it reads what is not on the disk");
    let status = log.journal().status();
    assert_eq!((status.durable, status.dirty_bytes), (durable, 4096));
    assert_eq!(status.written_back.0, durable.0 - 512, "the last record is still needed");
    drop(log);

    let (log, read) = open(dir.path(), false);
    assert_eq!(log.journal().durable(), durable);
    assert!(read < SEGMENT + (2 << 20), "{read} bytes were read");
}
