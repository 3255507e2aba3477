//! The thread against disks and files that fail.

mod catch_up;
mod faults;
mod packed;
mod salvage;
mod through;
mod waiting;

use super::open::{Sizes, open_log, start};
use super::{JournalCallError, JournalHandle, JournalSpec, MIN_SIZE, Mode};
use bytes::Bytes;
use holdfast_format::journal::{PeerSwitches, SegmentLink};
use holdfast_journal::driver::{Directory, DirectoryOptions, Files, GIVEN_UP, SyncApart};
use holdfast_journal::{Relation, compare};
use holdfast_store::{
    BufferPool, Disk, DiskError, DiskOp, FaultHandle, FaultRule, MemoryStore, OpId, Outcome,
};
use holdfast_units::{ByteRange, GenerationId, LogPosition, NodeId, ResourceId};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const RESOURCE: ResourceId = ResourceId([5; 16]);
const SIZE: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Which calls of [`Faulty`] fail, by the beginning of the file's name.
#[derive(Clone, Copy, Default)]
struct Faults {
    write: Option<(&'static str, Errno)>,
    sync: Option<(&'static str, Errno)>,
    create: Option<(&'static str, Errno)>,
    rename: Option<(&'static str, Errno)>,
    /// Syncs that are waited for apart do not end.
    hold_syncs: bool,
    /// How many wait for that.
    holding: usize,
    /// Frames may go around the page cache, several at a time.
    through: bool,
    /// They may, and fail.
    through_fails: bool,
    /// How many frames went otherwise.
    frames: u32,
}

/// A real directory whose calls fail when they are told to.
struct Faulty {
    files: Directory,
    path: PathBuf,
    faults: Arc<Mutex<Faults>>,
}

impl Faulty {
    fn check(
        &self,
        name: &str,
        of: fn(&Faults) -> Option<(&'static str, Errno)>,
    ) -> io::Result<()> {
        match of(&self.faults.lock().unwrap()) {
            Some((prefix, errno)) if name.starts_with(prefix) => Err(errno.into()),
            _ => Ok(()),
        }
    }
}

impl Files for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        // A file that is there needs no room.
        if !self.files.list()?.iter().any(|there| there == name) {
            self.check(name, |faults| faults.create)?;
        }
        self.files.create(name, len)
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.check(name, |faults| faults.write)?;
        self.faults.lock().unwrap().frames += u32::from(name.starts_with("segment"));
        self.files.write(name, offset, parts)
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        self.check(name, |faults| faults.write)?;
        self.faults.lock().unwrap().frames += u32::from(name.starts_with("segment"));
        self.files.write_through(name, offset, parts)
    }

    fn direct_file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let Faults { through, through_fails, .. } = *self.faults.lock().unwrap();
        match self.files.direct_file(name)? {
            // Writes to it fail.
            Some((_, begin)) if through_fails => {
                Ok(Some((File::open(self.path.join(name))?, begin)))
            }
            file => Ok(file.filter(|_| through)),
        }
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.files.read(name, offset, buf)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.check(name, |faults| faults.sync)?;
        self.files.sync(name)
    }

    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        let (rest, faults, name) =
            (self.files.sync_apart(name)?, Arc::clone(&self.faults), name.to_owned());
        Ok(Some(Box::new(move || {
            faults.lock().unwrap().holding += 1;
            while faults.lock().unwrap().hold_syncs {
                std::thread::yield_now();
            }
            match faults.lock().unwrap().sync {
                Some((prefix, errno)) if name.starts_with(prefix) => Err(errno.into()),
                _ => rest.map_or(Ok(()), |rest| rest()),
            }
        })))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.check(to, |faults| faults.rename)?;
        self.files.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.files.sync_dir()
    }
}

/// A disk with a journal, and what is below it.
struct Rig {
    runtime: Runtime,
    dir: TempDir,
    store: MemoryStore,
    disk: Option<Disk>,
    handle: JournalHandle,
    faults: Arc<Mutex<Faults>>,
    below: FaultHandle,
    node: u8,
}

impl Rig {
    fn new() -> Self {
        Self::of_node(0)
    }

    fn of_node(node: u8) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (dir, store) = (tempfile::tempdir().unwrap(), MemoryStore::new(SIZE));
        let faults = Arc::default();
        let (disk, handle, below) = opened(dir.path(), &store, &faults, node);
        Self { runtime, dir, store, disk: Some(disk), handle, faults, below, node }
    }

    fn leading() -> Self {
        let rig = Self::new();
        rig.lead();
        rig
    }

    fn lead(&self) {
        self.runtime.block_on(self.handle.lead(GenerationId(7))).unwrap();
    }

    fn settle(&self) {
        self.runtime.block_on(self.handle.settle()).unwrap();
    }

    /// Ends the thread within `patience`, and opens everything again without faults.
    fn reopen(&mut self, patience: Duration) {
        self.runtime.block_on(self.handle.stop(patience));
        self.disk = None;
        *self.faults.lock().unwrap() = Faults::default();
        let (disk, handle, below) = opened(self.dir.path(), &self.store, &self.faults, self.node);
        (self.disk, self.handle, self.below) = (Some(disk), handle, below);
    }

    fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap() = faults;
    }

    fn run(&mut self, op: DiskOp) -> Result<Outcome, DiskError> {
        self.disk.as_mut().unwrap().execute(op)
    }

    fn try_write(&mut self, block: u64, fill: u8, fua: bool) -> Result<Outcome, DiskError> {
        let range = ByteRange::new(block * 4096, 4096);
        self.run(DiskOp::Write { range, data: Bytes::from(vec![fill; 4096]), fua })
    }

    fn write(&mut self, block: u64, fill: u8) {
        self.try_write(block, fill, false).unwrap();
    }

    fn flush(&mut self) {
        self.run(DiskOp::Flush).unwrap();
    }

    /// What each of these blocks is full of.
    fn read(&mut self, blocks: std::ops::Range<u64>) -> Vec<u8> {
        let range = ByteRange::new(blocks.start * 4096, (blocks.end - blocks.start) * 4096);
        match self.run(DiskOp::Read { range, holes: false }).unwrap() {
            Outcome::Data(data) => fills(&data),
            other => panic!("{other:?}"),
        }
    }

    /// The same of the disk below.
    fn below(&self, blocks: std::ops::Range<u64>) -> Vec<u8> {
        let len = usize::try_from((blocks.end - blocks.start) * 4096).unwrap();
        let mut data = vec![0; len];
        self.store.read(blocks.start * 4096, &mut data);
        fills(&data)
    }

    fn status(&self) -> super::JournalView {
        self.runtime.block_on(self.handle.status()).unwrap()
    }

    fn wait(&self, what: &str, met: impl Fn(&super::JournalView) -> bool) {
        let mut watch = self.handle.watch();
        let waited = self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, watch.wait_for(|view| met(view))).await.is_ok()
        });
        assert!(waited, "{what}: {:?}", self.handle.view());
    }
}

fn fills(data: &[u8]) -> Vec<u8> {
    let blocks = data.chunks(4096);
    blocks
        .map(|block| {
            assert!(block.iter().all(|byte| *byte == block[0]), "a block of two writes");
            block[0]
        })
        .collect()
}

fn opened(
    dir: &Path,
    store: &MemoryStore,
    faults: &Arc<Mutex<Faults>>,
    node: u8,
) -> (Disk, JournalHandle, FaultHandle) {
    opened_with(dir, store, faults, node, true, &[])
}

/// The same around the page cache or not, on a disk with faults.
fn opened_with(
    dir: &Path,
    store: &MemoryStore,
    faults: &Arc<Mutex<Faults>>,
    node: u8,
    direct: bool,
    rules: &[FaultRule],
) -> (Disk, JournalHandle, FaultHandle) {
    let pool = BufferPool::new(1 << 20);
    let files = Directory::open(dir, DirectoryOptions { direct }).unwrap();
    let files = Faulty { files, path: dir.to_owned(), faults: Arc::clone(faults) };
    let spec = JournalSpec { dir: dir.to_owned(), size: MIN_SIZE };
    let sizes = Sizes::of(spec.size, 256);
    let node = NodeId::new(node).unwrap();
    let log = open_log(&spec, files, &sizes, RESOURCE, node).unwrap();
    let (disk, below) = Disk::memory(store, &pool).unwrap().with_faults(rules);
    let (disk, handle) = start(log, disk, sizes, 256, &pool).unwrap();
    (disk, handle, below)
}

/// Waits until so many operations of the disk below are held.
fn wait_held(below: &FaultHandle, count: usize) {
    let begun = Instant::now();
    while below.held() < count {
        assert!(begun.elapsed() < PATIENCE, "{} are held", below.held());
        std::thread::yield_now();
    }
}

#[test]
fn what_is_written_in_a_new_generation_is_in_segments_of_their_own() {
    let mut rig = Rig::leading();
    // As whoever leads does at once: it has no record yet.
    rig.runtime.block_on(rig.handle.begin_segment()).unwrap();
    rig.handle.begin_generation(GenerationId(70));
    (0..5).for_each(|block| rig.write(block, 1));
    // It waits for nothing, and everything behind it is behind it.
    rig.handle.begin_generation(GenerationId(8));
    (5..10).for_each(|block| rig.write(block, 2));
    rig.flush();
    let segments = rig.runtime.block_on(rig.handle.segments()).unwrap();
    assert!(segments.iter().all(|(_, len)| *len > 0));
    // What was begun first, and holds no data, may be given up by now.
    let found: Vec<_> = segments.iter().map(|(header, _)| header.generation).collect();
    assert!(found.ends_with(&[70, 8].map(GenerationId)), "{found:?}");
}

#[test]
fn reads_are_made_of_journal_disk_and_zeroes() {
    let mut rig = Rig::new();
    for block in 0..8 {
        rig.write(block, 1);
    }
    rig.lead();
    rig.write(2, 2);
    rig.write(3, 3);
    rig.write(3, 4);
    let zeroes = ByteRange::new(5 * 4096, 4096);
    rig.run(DiskOp::WriteZeroes { range: zeroes, unmap: false, fua: false }).unwrap();
    rig.run(DiskOp::Discard { range: ByteRange::new(6 * 4096, 4096) }).unwrap();
    assert_eq!(rig.read(0..8), [1, 1, 2, 4, 1, 0, 0, 1]);
    assert_eq!(rig.read(3..4), [4]);
    let hole = rig.run(DiskOp::Read { range: zeroes, holes: true }).unwrap();
    assert_eq!(hole, Outcome::Zeroes);
    let through = rig.runtime.block_on(rig.handle.read(ByteRange::new(4096, 3 * 4096))).unwrap();
    assert_eq!(fills(&through), [1, 2, 4]);
    rig.settle();
    assert_eq!(rig.below(0..8), [1, 1, 2, 4, 1, 0, 0, 1]);
}

#[test]
fn what_the_thread_had_no_time_for_is_found_in_the_journal() {
    let mut rig = Rig::leading();
    (0..100).for_each(|block| rig.write(block, 9));
    rig.reopen(Duration::ZERO);
    assert!(rig.status().dirty_bytes > 0 || rig.below(0..100) == [9; 100]);
    assert_eq!(rig.read(0..100), [9; 100]);
    // A Secondary's writes wait until all that is on the disk, and are newer.
    rig.write(50, 10);
    assert_eq!(rig.below(0..50), [9; 50]);
    assert_eq!((rig.below(50..51), rig.read(50..52)), (vec![10], vec![10, 9]));
}

#[test]
fn a_write_waits_until_older_ones_are_written_back() {
    let mut rig = Rig::leading();
    rig.write(0, 1);
    rig.runtime.block_on(rig.handle.stop(Duration::ZERO));
    rig.disk = None;
    // What is written back stays under way until it is released.
    let rules = ["write:count=1:hold".parse().unwrap()];
    let (dir, node) = (rig.dir.path().to_owned(), rig.node);
    let (mut disk, handle, below) = opened_with(&dir, &rig.store, &rig.faults, node, true, &rules);
    wait_held(&below, 1);
    let range = ByteRange::new(0, 4096);
    let request = DiskOp::Write { range, data: Bytes::from(vec![2; 4096]), fua: false };
    assert!(disk.submit(OpId(1), request).is_none());
    // A call goes through the same list: the write has been looked at before it.
    let view = rig.runtime.block_on(handle.status()).unwrap();
    assert_eq!(view.mode, Mode::Draining);
    assert_ne!(rig.below(0..1), [2]);
    below.release();
    let mut done = Vec::new();
    disk.wait(&mut done, PATIENCE);
    assert!(done[0].result.is_ok());
    assert_eq!(rig.below(0..1), [2]);
}

#[test]
fn a_durable_write_is_answered_when_it_is_durable() {
    for direct in [true, false] {
        let mut rig = Rig::new();
        rig.runtime.block_on(rig.handle.stop(PATIENCE));
        rig.disk = None;
        let dir = rig.dir.path().to_owned();
        let (disk, handle, below) = opened_with(&dir, &rig.store, &rig.faults, 0, direct, &[]);
        (rig.disk, rig.handle, rig.below) = (Some(disk), handle, below);
        rig.lead();
        rig.write(0, 1);
        rig.try_write(1, 2, true).unwrap();
        let view = rig.status();
        assert!(view.durable == view.head && view.head > LogPosition::START, "{view:?}");
        rig.write(2, 3);
        rig.flush();
        let view = rig.status();
        assert_eq!(view.durable, view.head);
    }
}

#[test]
fn nobody_waits_for_a_sync_but_who_asked_for_it() {
    for fails in [false, true] {
        let mut rig = Rig::leading();
        rig.set_faults(Faults { hold_syncs: true, ..Faults::default() });
        rig.write(0, 1);
        let disk = rig.disk.as_mut().unwrap();
        assert!(disk.submit(OpId(100), DiskOp::Flush).is_none());
        disk.kick();
        let mut done = Vec::new();
        for block in 1..40 {
            let range = ByteRange::new(block * 4096, 4096);
            let request = DiskOp::Write { range, data: Bytes::from(vec![2; 4096]), fua: false };
            assert!(disk.submit(OpId(block), request).is_none());
            let read = DiskOp::Read { range: ByteRange::new(0, 4096), holes: false };
            assert!(disk.submit(OpId(200 + block), read).is_none());
            while done.len() < 2 {
                disk.wait(&mut done, PATIENCE);
            }
            let mut ended: Vec<u64> = done.drain(..).map(|done| done.op.0).collect();
            ended.sort_unstable();
            assert_eq!(ended, [block, 200 + block], "neither waits for the sync");
        }
        assert_eq!(rig.handle.view().durable, LogPosition::START);
        let sync = fails.then_some(("segment", Errno::IO));
        rig.set_faults(Faults { sync, ..Faults::default() });
        rig.disk.as_mut().unwrap().wait(&mut done, PATIENCE);
        assert!(done[0].op == OpId(100) && done[0].result.is_ok());
        if fails {
            assert_eq!(rig.status().mode, Mode::Without);
            assert_eq!(rig.below(0..1), [1], "the flush was of that");
        }
        assert_eq!(rig.read(1..40), [2; 39]);
    }
}

#[test]
fn zeroes_take_no_room() {
    let mut rig = Rig::leading();
    rig.write(7, 7);
    let before = rig.status().head;
    let range = ByteRange::new(0, 1 << 20);
    let data = Bytes::from(vec![0; 1 << 20]);
    rig.run(DiskOp::Write { range, data, fua: true }).unwrap();
    assert!(rig.status().head.since(before) <= 4096, "a megabyte of zeroes is one record");
    assert_eq!(rig.read(0..256), [0; 256]);
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..256), [0; 256]);
}

#[test]
fn what_is_written_again_and_again_hardly_reaches_the_disk() {
    let mut rig = Rig::leading();
    let count = rig.below.add("write:after=1000000:drop".parse().unwrap()).unwrap();
    let writes: u64 = 8000;
    for n in 0..writes {
        // No two of them are neighbours. Several times what the journal may hold.
        rig.write(n % 64 * 2, u8::try_from(n % 250).unwrap());
    }
    let status = rig.status();
    assert!(status.written_back > LogPosition::START, "the journal was made shorter: {status:?}");
    let reached = rig.below.hits(count).selected;
    assert!(reached < writes / 4, "{reached} of {writes}");
    rig.settle();
    for block in 0..64 {
        let last = u8::try_from((writes - 64 + block) % 250).unwrap();
        assert_eq!(rig.below(block * 2..block * 2 + 1), [last]);
    }
}

#[test]
fn idle_moments_are_used_and_overwrites_cost_the_disk_nothing() {
    let mut rig = Rig::leading();
    let written = |rig: &Rig| rig.status().written_back;
    for fill in 1..=200 {
        rig.write(3, fill);
        rig.write(4, fill);
    }
    let head = rig.status().head;
    rig.wait("it is written back", |view| view.dirty_bytes == 0 && view.written_back >= head);
    assert_eq!(rig.below(3..5), [200, 200]);
    assert_eq!(written(&rig), head);
}

#[test]
fn a_journal_that_cannot_be_written_is_rescued_and_the_disk_goes_on() {
    for through in [false, true] {
        let mut rig = Rig::leading();
        (0..50).for_each(|block| rig.write(block, 1));
        rig.set_faults(Faults { write: Some(("segment", Errno::IO)), ..Faults::default() });
        for block in 40..60 {
            rig.try_write(block, 2, through).unwrap();
        }
        rig.flush();
        assert_eq!(rig.status().mode, Mode::Without);
        assert!(rig.status().problem.is_some());
        let due: Vec<u8> = [1; 40].into_iter().chain([2; 20]).collect();
        assert_eq!((rig.read(0..60), rig.below(0..60)), (due.clone(), due));
        // What the journal held must never come back over what is newer.
        rig.write(7, 3);
        rig.reopen(PATIENCE);
        assert_eq!(rig.read(6..9), [1, 3, 1]);
        assert_eq!(rig.status().head, LogPosition::START, "it begins with an empty journal");
        rig.lead();
        rig.write(8, 4);
        assert_eq!(rig.read(6..9), [1, 3, 4]);
    }
}

#[test]
fn a_failed_sync_loses_nothing_that_was_completed() {
    let mut rig = Rig::leading();
    (0..1000).for_each(|block| rig.write(block, 1));
    rig.set_faults(Faults { sync: Some(("segment", Errno::IO)), ..Faults::default() });
    rig.flush();
    assert_eq!(rig.status().mode, Mode::Without);
    assert_eq!(rig.below(0..1000), [1; 1000]);
}

#[test]
fn without_the_mark_that_the_journal_is_void_the_disk_is_not_used() {
    let mut rig = Rig::leading();
    rig.write(0, 1);
    rig.set_faults(Faults {
        write: Some(("segment", Errno::IO)),
        rename: Some((GIVEN_UP, Errno::IO)),
        ..Faults::default()
    });
    assert!(rig.try_write(1, 2, true).is_err());
    assert!(rig.try_write(2, 2, false).is_err());
    let range = ByteRange::new(0, 4096);
    assert!(rig.run(DiskOp::Read { range, holes: false }).is_err());
    rig.reopen(PATIENCE);
    assert_eq!(rig.read(0..1), [1]);
}

#[test]
fn without_room_for_segments_the_old_ones_are_used_again() {
    let mut rig = Rig::leading();
    // Three segments' worth; the journal has two then.
    (0..2000).for_each(|block| rig.write(block, 1));
    rig.set_faults(Faults { create: Some(("spare", Errno::NOSPC)), ..Faults::default() });
    for round in 2..6 {
        for block in 0..1500 {
            rig.try_write(block, round, block % 64 == 0).unwrap();
        }
    }
    let view = rig.status();
    assert!(view.mode == Mode::Lead && view.problem.is_none(), "{view:?}");
    assert_eq!(rig.read(0..1500), [5; 1500]);
    rig.settle();
    assert_eq!(rig.below(0..1500), [5; 1500]);
}

#[test]
fn without_room_for_any_segment_it_goes_on_without_a_journal() {
    let mut rig = Rig::new();
    rig.set_faults(Faults { create: Some(("spare", Errno::NOSPC)), ..Faults::default() });
    rig.lead();
    (0..10).for_each(|block| rig.write(block, 1));
    rig.flush();
    assert_eq!((rig.status().mode, rig.below(0..10)), (Mode::Without, vec![1; 10]));
}

#[test]
fn a_disk_that_fails_is_not_used_and_what_it_lacks_is_in_the_journal() {
    let mut rig = Rig::leading();
    (0..20).for_each(|block| rig.write(block, 1));
    rig.flush();
    assert!(rig.below.add("write:error=EIO".parse().unwrap()).is_some());
    assert!(rig.runtime.block_on(rig.handle.settle()).is_err());
    assert!(rig.try_write(0, 2, false).is_err());
    assert!(rig.status().problem.is_some_and(|why| why.contains("written back")));
    rig.reopen(PATIENCE);
    assert_eq!(rig.read(0..20), [1; 20]);
    rig.settle();
    assert_eq!(rig.below(0..20), [1; 20]);
}

#[test]
fn what_went_past_the_journal_is_flushed_before_records_are_taken() {
    let mut rig = Rig::leading();
    rig.settle();
    rig.write(0, 1);
    assert!(rig.below.add("flush:error=EIO".parse().unwrap()).is_some());
    // A flush of the journal would not cover that write.
    assert!(rig.runtime.block_on(rig.handle.lead(GenerationId(7))).is_err());
    assert!(rig.run(DiskOp::Flush).is_err());
}

#[test]
fn writes_past_the_journal_begin_another_history() {
    let mut rig = Rig::leading();
    rig.write(0, 1);
    rig.flush();
    let links = |rig: &Rig| rig.runtime.block_on(rig.handle.links()).unwrap();
    let first = links(&rig);
    // Without a write in between it is the same one that goes on, also over an opening.
    rig.settle();
    rig.reopen(PATIENCE);
    rig.lead();
    rig.write(0, 2);
    rig.flush();
    let second = links(&rig);
    assert_eq!(compare(&first, &second), Relation::Behind);
    rig.settle();
    rig.write(0, 3);
    rig.reopen(PATIENCE);
    rig.lead();
    rig.write(0, 4);
    rig.flush();
    let third = links(&rig);
    let newest = third.last().unwrap();
    assert!(!matches!(compare(&second, &third[third.len() - 1..]), Relation::Behind));
    assert_eq!(newest.base, second.last().unwrap().end(), "positions only go up");
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..1), [4]);
}

/// What is appended next continues nothing that was there.
#[track_caller]
fn assert_begun_anew(before: &[SegmentLink], after: &[SegmentLink]) {
    let newest = after.last().unwrap();
    assert_ne!(newest.chain, before.last().unwrap().chain_after());
    assert_eq!(newest.base, before.last().unwrap().end(), "positions only go up");
}

#[test]
fn a_disk_that_missed_what_others_wrote_begins_another_history() {
    let mut rig = Rig::leading();
    let links = |rig: &Rig| rig.runtime.block_on(rig.handle.links()).unwrap();
    let anew = |rig: &Rig| rig.runtime.block_on(rig.handle.lead_anew(GenerationId(7))).unwrap();
    rig.write(0, 1);
    rig.flush();
    let first = links(&rig);
    // Nothing went past the journal here.
    rig.settle();
    anew(&rig);
    assert!(rig.runtime.block_on(rig.handle.led_segments()).unwrap().is_empty());
    rig.write(0, 2);
    rig.flush();
    let second = links(&rig);
    assert_begun_anew(&first, &second);
    // It is the one that goes on, whatever is said to who leads by it, and over an opening.
    anew(&rig);
    rig.write(0, 3);
    rig.settle();
    rig.reopen(PATIENCE);
    rig.lead();
    rig.write(0, 4);
    rig.flush();
    assert_eq!(compare(&second, &links(&rig)), Relation::Behind);

    // What the journal still has for the disk gets there first.
    let third = links(&rig);
    rig.runtime.block_on(rig.handle.stop(Duration::ZERO));
    rig.disk = None;
    let rules = ["write:count=1:hold".parse().unwrap()];
    let (dir, node) = (rig.dir.path().to_owned(), rig.node);
    let (disk, handle, below) = opened_with(&dir, &rig.store, &rig.faults, node, true, &rules);
    (rig.disk, rig.handle, rig.below) = (Some(disk), handle, below);
    let handle = rig.handle.clone();
    let asked = rig.runtime.spawn(async move { handle.lead_anew(GenerationId(7)).await });
    wait_held(&rig.below, 1);
    assert_eq!(rig.status().mode, Mode::Draining);
    rig.below.release();
    rig.runtime.block_on(asked).unwrap().unwrap();
    assert_eq!(rig.below(0..1), [4]);
    rig.write(0, 5);
    rig.flush();
    assert_begun_anew(&third, &links(&rig));
}

#[test]
fn a_peer_that_needs_the_journal_keeps_it_until_its_bits_are_noted() {
    let mut rig = Rig::leading();
    let peer = NodeId::new(3).unwrap();
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    rig.runtime.block_on(rig.handle.set_peer(peer, counts)).unwrap();
    // More than the budget, less than the limit.
    (0..1300).for_each(|block| rig.write(block, 1));
    rig.wait("a cut is wanted", |view| view.cut_wanted);
    let (plan, ranges) = rig.runtime.block_on(rig.handle.plan_cut()).unwrap().unwrap();
    assert_eq!(plan.losers, [(peer, LogPosition::START)]);
    assert!(ranges[&peer].overlaps(ByteRange::new(0, 4096)));
    assert!(!rig.status().emergency);
    rig.runtime.block_on(rig.handle.cut(plan.clone())).unwrap();
    // It is kept on for that peer behind the cut, and cut again.
    let mut cuts = 0;
    for block in 0..3000 {
        rig.write(block, 2);
        if block % 50 == 0 && rig.status().cut_wanted {
            let (next, ranges) = rig.runtime.block_on(rig.handle.plan_cut()).unwrap().unwrap();
            assert!(next.losers[0].1 >= plan.up_to && !ranges[&peer].is_empty());
            rig.runtime.block_on(rig.handle.cut(next)).unwrap();
            cuts += 1;
        }
    }
    let view = rig.status();
    assert!(view.emergency && view.tail > plan.up_to && view.bytes <= view.limit_bytes);
    assert!(cuts > 0);
    assert_eq!(rig.read(0..100), [2; 100]);
}

#[test]
fn a_follower_is_at_every_step_a_state_of_the_leader() {
    let mut leader = Rig::leading();
    for step in 0..600_u64 {
        leader.write(step % 7, u8::try_from(step % 251).unwrap());
    }
    leader.flush();
    let mut follower = Rig::of_node(1);
    let (ours, theirs) = (&follower.runtime, &leader.runtime);
    ours.block_on(follower.handle.follow()).unwrap();
    let segments = theirs.block_on(leader.handle.segments()).unwrap();
    for (header, len) in segments {
        let mut at = header.base;
        while at < header.base.after(len) {
            let bytes = theirs.block_on(leader.handle.fetch(header.number, at, 100_000)).unwrap();
            let taken = ours.block_on(follower.handle.copy(header, bytes)).unwrap();
            at = at.after(taken as u64);
        }
    }
    let end = ours.block_on(follower.handle.flush()).unwrap();
    let mut at = LogPosition::START;
    while at < end {
        at = ours.block_on(follower.handle.replay(end, 5 * 4096)).unwrap();
        let view = ours.block_on(follower.handle.status()).unwrap();
        assert_eq!(view.written_back, at);
        let found = follower.below(0..7);
        // The newest step that is there, and the six before it.
        let newest = (0..600_u64).rev().find(|step| {
            let fill = |step: u64| u8::try_from(step % 251).unwrap();
            (0..7).all(|back| {
                step.checked_sub(back)
                    .is_none_or(|step| found[usize::try_from(step % 7).unwrap()] == fill(step))
            })
        });
        assert!(newest.is_some(), "{found:?} was never the leader's state");
    }
    assert_eq!(follower.below(0..7), leader.read(0..7));
    // It takes over: its own records continue what it copied.
    follower.lead();
    follower.write(0, 77);
    follower.flush();
    let ours = follower.runtime.block_on(follower.handle.links()).unwrap();
    let theirs = leader.runtime.block_on(leader.handle.links()).unwrap();
    assert_eq!(compare(&theirs, &ours), Relation::Behind);
}

#[test]
fn calls_in_the_wrong_mode_are_refused() {
    let rig = Rig::leading();
    let run = &rig.runtime;
    let mode = |result: Result<(), JournalCallError>| match result {
        Err(JournalCallError::Mode(mode)) => mode,
        other => panic!("{other:?}"),
    };
    assert_eq!(mode(run.block_on(rig.handle.clear())), Mode::Lead);
    assert_eq!(mode(run.block_on(rig.handle.replay(LogPosition(1), 1)).map(drop)), Mode::Lead);
    rig.settle();
    assert_eq!(mode(run.block_on(rig.handle.rotate())), Mode::Direct);
    run.block_on(rig.handle.stop(PATIENCE));
    assert!(matches!(run.block_on(rig.handle.links()), Err(JournalCallError::Closed)));
}
