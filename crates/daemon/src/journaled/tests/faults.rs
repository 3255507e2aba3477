//! Files and disks that fail, or take their time, in the middle of something.

use super::super::open::{Sizes, open_log, start};
use super::super::{JournalCallError, JournalSpec, MIN_SIZE};
use super::{Faults, Faulty, PATIENCE, RESOURCE, Rig};
use bytes::Bytes;
use holdfast_journal::driver::{Directory, DirectoryOptions};
use holdfast_store::{BufferPool, Completion, Disk, DiskOp, OpId};
use holdfast_units::{ByteRange, GenerationId, LogPosition, NodeId};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

type Asked = JoinHandle<Result<(), JournalCallError>>;

impl Rig {
    fn add(&self, rule: &str) {
        assert!(self.below.add(rule.parse().unwrap()).is_some(), "{rule}");
    }

    /// Opens everything again with other sizes.
    fn reopen_with(&mut self, change: impl Fn(&mut Sizes)) {
        self.runtime.block_on(self.handle.stop(PATIENCE));
        self.disk = None;
        let pool = BufferPool::new(1 << 20);
        let files = Directory::open(self.dir.path(), DirectoryOptions { direct: true }).unwrap();
        let files = Faulty { files, faults: Arc::clone(&self.faults) };
        let spec = JournalSpec { dir: self.dir.path().to_owned(), size: MIN_SIZE };
        let mut sizes = Sizes::of(spec.size, 256);
        change(&mut sizes);
        let node = NodeId::new(self.node).unwrap();
        let log = open_log(&spec, files, &sizes, RESOURCE, node).unwrap();
        let (disk, below) = Disk::memory(&self.store, &pool).unwrap().with_faults(&[]);
        let (disk, handle) = start(log, disk, sizes, None, 256, &pool).unwrap();
        (self.disk, self.handle, self.below) = (Some(disk), handle, below);
    }

    /// Waits until so many operations of the disk below are held.
    fn wait_held(&self, count: usize) {
        let begun = Instant::now();
        while self.below.held() < count {
            assert!(begun.elapsed() < PATIENCE, "{} are held", self.below.held());
            self.status();
        }
    }

    /// Asks to lead, and does not wait for it.
    fn begin_leading(&self) -> Asked {
        let handle = self.handle.clone();
        let asked = self.runtime.spawn(async move { handle.lead(GenerationId(7)).await });
        self.looked();
        asked
    }

    fn begin_settling(&self) -> Asked {
        let handle = self.handle.clone();
        let asked = self.runtime.spawn(async move { handle.settle().await });
        self.looked();
        asked
    }

    fn end(&self, asked: Asked) -> Result<(), JournalCallError> {
        let ended = async { tokio::time::timeout(PATIENCE, asked).await };
        self.runtime.block_on(ended).unwrap().unwrap()
    }

    /// The thread has done what can be done about everything that it was given before.
    fn looked(&self) {
        for _ in 0..3 {
            self.status();
        }
    }

    /// Submits an operation, and does not wait for it.
    fn begin(&mut self, op: u64, request: DiskOp) {
        let disk = self.disk.as_mut().unwrap();
        assert!(disk.submit(OpId(op), request).is_none());
        disk.kick();
        self.looked();
    }

    fn begin_write(&mut self, op: u64, block: u64, fill: u8) {
        let range = ByteRange::new(block * 4096, 4096);
        let data = Bytes::from(vec![fill; 4096]);
        self.begin(op, DiskOp::Write { range, data, fua: false });
    }

    /// What has completed, within this time.
    fn completed(&mut self, within: Duration) -> Vec<Completion> {
        let mut done = Vec::new();
        self.disk.as_mut().unwrap().wait(&mut done, within);
        done
    }
}

#[test]
fn what_comes_while_the_flush_before_records_is_under_way_is_a_record() {
    let mut rig = Rig::leading();
    rig.settle();
    rig.write(0, 1);
    rig.add("flush:count=1:hold");
    let leading = rig.begin_leading();
    rig.wait_held(1);
    rig.begin_write(1, 1, 2);
    assert_eq!(rig.below(1..2), [0], "it went past the journal, behind the flush");
    rig.below.release();
    rig.end(leading).unwrap();
    assert!(rig.completed(PATIENCE)[0].result.is_ok());
    assert!(rig.status().head > LogPosition::START);
    assert_eq!(rig.read(0..2), [1, 2]);
}

#[test]
fn a_flush_does_not_cover_what_came_while_it_was_under_way() {
    let mut rig = Rig::leading();
    rig.settle();
    rig.write(0, 1);
    rig.add("flush:count=1:hold");
    let given_up = rig.begin_leading();
    rig.wait_held(1);
    // Nobody wants to lead any more, so this goes to the disk.
    rig.settle();
    assert!(rig.end(given_up).is_err());
    rig.begin_write(1, 1, 2);
    assert!(rig.completed(PATIENCE)[0].result.is_ok());
    assert_eq!(rig.below(1..2), [2]);
    rig.add("flush:error=EIO");
    let leading = rig.begin_leading();
    rig.below.release();
    assert!(rig.end(leading).is_err(), "that write was not flushed");
}

#[test]
fn reads_do_not_keep_it_from_leading() {
    let mut rig = Rig::leading();
    rig.settle();
    rig.write(0, 1);
    rig.add("read:count=1:hold");
    let range = ByteRange::new(0, 4096);
    rig.begin(1, DiskOp::Read { range, holes: false });
    rig.wait_held(1);
    let leading = rig.begin_leading();
    rig.end(leading).unwrap();
    assert_eq!(rig.below.held(), 1);
    rig.below.release();
    assert!(rig.completed(PATIENCE)[0].result.is_ok());
}

#[test]
fn a_flush_that_waited_for_another_mode_is_answered_when_all_is_durable() {
    let mut rig = Rig::new();
    // More waits than is written back at a time, so that what comes then is not synced for it.
    rig.reopen_with(|sizes| sizes.round = 64 << 10);
    rig.lead();
    (0..100).for_each(|block| rig.write(block, 1));
    rig.flush();
    rig.add("write:hold");
    let settling = rig.begin_settling();
    rig.wait_held(2);
    let leading = rig.begin_leading();
    assert!(rig.end(settling).is_err());
    rig.end(leading).unwrap();
    rig.write(0, 2);
    let settling = rig.begin_settling();
    rig.begin(1, DiskOp::Flush);
    rig.set_faults(Faults { sync: Some(("segment", Errno::IO)), ..Faults::default() });
    let leading = rig.begin_leading();
    assert!(rig.end(settling).is_err());
    assert_eq!(rig.completed(Duration::ZERO), [], "a sync that fails is no flush");
    rig.below.clear();
    rig.below.release();
    rig.end(leading).unwrap();
    assert!(rig.completed(PATIENCE)[0].result.is_ok());
    assert_eq!(rig.below(0..2), [2, 1]);
}
