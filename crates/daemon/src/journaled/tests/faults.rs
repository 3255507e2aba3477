//! Files and disks that fail, or take their time, in the middle of something.

use super::super::open::{Sizes, open_log, start};
use super::super::{JournalCallError, JournalSpec, MIN_SIZE, Mode};
use super::{Faults, Faulty, PATIENCE, RESOURCE, Rig, SIZE, wait_held};
use bytes::Bytes;
use holdfast_format::journal::PeerSwitches;
use holdfast_journal::driver::{Directory, DirectoryOptions, MAKING, RESCUED, segment_name};
use holdfast_journal::{Relation, compare};
use holdfast_store::{BufferPool, Completion, Disk, DiskOp, OpId};
use holdfast_units::{ByteRange, GenerationId, LogPosition, NodeId};
use rustix::io::Errno;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

type Asked = JoinHandle<Result<(), JournalCallError>>;

impl Rig {
    fn add(&self, rule: &str) {
        assert!(self.below.add(rule.parse().unwrap()).is_some(), "{rule}");
    }

    /// Opens everything again with other sizes.
    pub(super) fn reopen_with(&mut self, change: impl Fn(&mut Sizes)) {
        self.runtime.block_on(self.handle.stop(PATIENCE));
        self.disk = None;
        let pool = BufferPool::new(1 << 20);
        let files = Directory::open(self.dir.path(), DirectoryOptions { direct: true }).unwrap();
        let path = self.dir.path().to_owned();
        let files = Faulty { files, path, faults: Arc::clone(&self.faults) };
        let spec = JournalSpec { dir: self.dir.path().to_owned(), size: MIN_SIZE };
        let mut sizes = Sizes::of(spec.size, 256);
        change(&mut sizes);
        let node = NodeId::new(self.node).unwrap();
        let log = open_log(&spec, files, &sizes, RESOURCE, node).unwrap();
        let (disk, below) = Disk::memory(&self.store, &pool).unwrap().with_faults(&[]);
        let (disk, handle) = start(log, disk, sizes, 256, &pool).unwrap();
        (self.disk, self.handle, self.below) = (Some(disk), handle, below);
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

    fn begin_trimming(&self) -> JoinHandle<Result<u64, JournalCallError>> {
        let handle = self.handle.clone();
        let asked = self.runtime.spawn(async move { handle.trim().await });
        self.looked();
        asked
    }

    fn end<T>(
        &self,
        asked: JoinHandle<Result<T, JournalCallError>>,
    ) -> Result<T, JournalCallError> {
        let ended = async { tokio::time::timeout(PATIENCE, asked).await };
        self.runtime.block_on(ended).unwrap().unwrap()
    }

    /// The thread has done what can be done about everything that it was given before.
    fn looked(&self) {
        // What was spawned has asked by then.
        self.runtime.block_on(tokio::task::yield_now());
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
    wait_held(&rig.below, 1);
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
    wait_held(&rig.below, 1);
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
    wait_held(&rig.below, 1);
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
    rig.add("write:hold");
    (0..100).for_each(|block| rig.write(block, 1));
    rig.flush();
    let settling = rig.begin_settling();
    wait_held(&rig.below, 2);
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

#[test]
fn a_rescue_that_is_cut_off_ends_the_history() {
    // The cursors say so, or where they cannot be written another file.
    for write in [None, Some(("cursors", Errno::IO))] {
        let mut rig = Rig::leading();
        rig.write(0, 1);
        rig.flush();
        let links = |rig: &Rig| rig.runtime.block_on(rig.handle.links()).unwrap();
        let first = links(&rig);
        rig.add("write:hold");
        rig.set_faults(Faults { write, sync: Some(("segment", Errno::IO)), ..Faults::default() });
        rig.write(1, 2);
        rig.begin(1, DiskOp::Flush);
        rig.wait("it is rescued", |view| view.mode == Mode::Rescuing);
        rig.looked();
        rig.reopen(Duration::ZERO);
        let cursors = rig.runtime.block_on(rig.handle.cursors()).unwrap();
        assert!(cursors.switches.bypassed, "the disk may be ahead of it");
        rig.lead();
        rig.write(0, 3);
        rig.flush();
        let newest = links(&rig).pop().unwrap();
        assert!(!matches!(compare(&first, &[newest]), Relation::Behind));
        assert!(!rig.dir.path().join(RESCUED).exists());
    }
}

#[test]
fn a_secondary_whose_cursors_cannot_be_stored_goes_on_without_a_journal() {
    let mut rig = Rig::leading();
    rig.write(0, 1);
    rig.settle();
    rig.set_faults(Faults { write: Some(("cursors", Errno::IO)), ..Faults::default() });
    rig.write(0, 2);
    rig.flush();
    rig.write(1, 3);
    let view = rig.status();
    assert_eq!((view.mode, rig.below(0..2)), (Mode::Without, vec![2, 3]), "{view:?}");
    rig.reopen(PATIENCE);
    assert_eq!(rig.read(0..2), [2, 3]);
}

#[test]
fn a_file_that_is_still_being_made_is_no_spare() {
    let mut rig = Rig::leading();
    rig.write(0, 1);
    rig.runtime.block_on(rig.handle.stop(PATIENCE));
    // A thread of the journal that was closed still writes zeroes to it.
    let path = rig.dir.path().join(format!("{MAKING}{:016x}", 7));
    let made = std::fs::File::create_new(&path).unwrap();
    made.set_len(MIN_SIZE / 4).unwrap();
    rig.reopen(PATIENCE);
    rig.lead();
    assert!(!path.exists());
    // Through all files that there may be.
    for round in 2..5 {
        (0..1500).for_each(|block| rig.write(block, round));
        made.write_all_at(&[0; 1 << 20], 4096).unwrap();
    }
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..1500), [4; 1500]);
}

#[test]
fn a_segment_that_cannot_be_read_is_given_up_all_the_same() {
    let mut rig = Rig::leading();
    let peer = NodeId::new(3).unwrap();
    let counts = PeerSwitches { counts: true, ..PeerSwitches::default() };
    rig.runtime.block_on(rig.handle.set_peer(peer, counts)).unwrap();
    (0..1300).for_each(|block| rig.write(block, 1));
    rig.wait("a cut is wanted", |view| view.cut_wanted);
    let path = rig.dir.path().join(segment_name(1));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&[7; 4096], 100 * 4096).unwrap();
    let (plan, ranges) = rig.runtime.block_on(rig.handle.plan_cut()).unwrap().unwrap();
    assert_eq!(ranges[&peer].bytes(), SIZE, "whatever it was");
    rig.runtime.block_on(rig.handle.cut(plan)).unwrap();
    (0..1300).for_each(|block| {
        rig.write(block, 2);
        if rig.status().cut_wanted {
            let (plan, _) = rig.runtime.block_on(rig.handle.plan_cut()).unwrap().unwrap();
            rig.runtime.block_on(rig.handle.cut(plan)).unwrap();
        }
    });
    assert_eq!(rig.read(0..1300), [2; 1300]);
}

#[test]
fn a_trim_waits_only_for_what_was_there() {
    let mut rig = Rig::leading();
    rig.add("flush:hold");
    rig.write(0, 1);
    let trimming = rig.begin_trimming();
    wait_held(&rig.below, 1);
    // Somebody writes on and on.
    rig.write(1, 1);
    rig.looked();
    rig.below.release();
    rig.end(trimming).unwrap();
    assert!(rig.status().dirty_bytes > 0);
}

#[test]
fn a_trim_ends_with_leading() {
    let mut rig = Rig::leading();
    rig.add("write:hold");
    rig.write(0, 1);
    let trimming = rig.begin_trimming();
    let settling = rig.begin_settling();
    rig.below.clear();
    rig.below.release();
    rig.end(settling).unwrap();
    rig.end(trimming).unwrap();
}

#[test]
fn without_room_for_a_segment_it_settles_all_the_same() {
    // With an old segment to use again, and with none.
    for (before, mode) in [(600, Mode::Direct), (1, Mode::Without)] {
        let mut rig = Rig::leading();
        rig.add("write:hold");
        (0..before).for_each(|block| rig.write(block, 1));
        rig.set_faults(Faults { create: Some(("spare", Errno::NOSPC)), ..Faults::default() });
        let mut block = before;
        loop {
            rig.begin_write(block, block, 2);
            if rig.completed(Duration::ZERO).is_empty() {
                break;
            }
            block += 1;
            assert!(block < 1024, "it finds room");
        }
        let settling = rig.begin_settling();
        rig.below.clear();
        rig.below.release();
        rig.end(settling).unwrap();
        assert_eq!(rig.status().mode, mode);
        assert!(rig.completed(PATIENCE)[0].result.is_ok());
        assert_eq!(rig.below(block - 50..block + 1), [2; 51]);
    }
}

#[test]
fn behind_a_copied_segment_that_is_longer_than_all_its_room_it_can_append() {
    let mut leader = Rig::new();
    leader.reopen_with(|sizes| {
        (sizes.limit, sizes.segment, sizes.budget) = (64 << 20, 12 << 20, 40 << 20);
    });
    leader.lead();
    leader.write(0, 1);
    leader.flush();
    let (header, len) = leader.runtime.block_on(leader.handle.segments()).unwrap()[0];
    let bytes = leader.handle.fetch(header.number, header.base, usize::try_from(len).unwrap());
    let bytes = leader.runtime.block_on(bytes).unwrap();
    let mut follower = Rig::of_node(1);
    let (runtime, handle) = (&follower.runtime, &follower.handle);
    runtime.block_on(handle.follow()).unwrap();
    runtime.block_on(handle.copy(header, bytes)).unwrap();
    let end = runtime.block_on(handle.flush()).unwrap();
    assert_eq!(runtime.block_on(handle.replay(end, u64::MAX)).unwrap(), end);
    follower.lead();
    follower.begin_write(1, 0, 2);
    assert!(follower.completed(PATIENCE)[0].result.is_ok());
    assert!(follower.status().head > end);
}
