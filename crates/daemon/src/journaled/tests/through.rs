//! Frames that go around the page cache, several at a time.

use super::{Faults, MIN_SIZE, Mode, PATIENCE, Rig};
use bytes::Bytes;
use holdfast_store::{Completion, DiskOp, OpId, Outcome};
use holdfast_units::{ByteRange, LogPosition};
use std::time::Duration;

impl Rig {
    fn through(faults: Faults) -> Self {
        let rig = Self::new();
        rig.set_faults(faults);
        rig.lead();
        rig
    }

    /// Submits writes of `len` blocks, all at once; their ends, in the order of the blocks.
    fn write_all(&mut self, fill: u8, count: u64, len: u64, fua: bool) -> Vec<Completion> {
        let disk = self.disk.as_mut().unwrap();
        let mut done = Vec::new();
        for at in 0..count {
            let range = ByteRange::new(at * len * 4096, len * 4096);
            let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
            done.extend(disk.submit(OpId(at), DiskOp::Write { range, data, fua }));
            // What was submitted before is on its way; this is another frame.
            disk.kick();
        }
        while done.len() < usize::try_from(count).unwrap() {
            let before = done.len();
            disk.wait(&mut done, PATIENCE);
            assert!(done.len() > before, "nothing ends any more");
        }
        done
    }

    fn frames_otherwise(&self) -> u32 {
        std::mem::take(&mut self.faults.lock().unwrap().frames)
    }
}

fn through() -> Faults {
    Faults { through: true, ..Faults::default() }
}

#[test]
fn durable_writes_of_many_are_durable_and_answered_in_order() {
    let mut rig = Rig::through(through());
    // The first one begins the segment.
    rig.try_write(0, 1, true).unwrap();
    rig.frames_otherwise();
    let done = rig.write_all(2, 200, 1, true);
    let at = |done: &Completion| match done.result {
        Ok(Outcome::Logged(at)) => at,
        ref other => panic!("{other:?}"),
    };
    assert!(done.is_sorted_by_key(at), "a write is answered before one of before it");
    assert_eq!(rig.frames_otherwise(), 0);
    let view = rig.status();
    assert!(view.durable == view.head && view.head > LogPosition::START, "{view:?}");
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..200), [2; 200]);
}

#[test]
fn segments_change_under_them() {
    let mut rig = Rig::through(through());
    for round in 1..4 {
        // Three quarters of all that the journal may take.
        let (count, len) = (MIN_SIZE / 4 * 3 / (256 << 10), 64);
        let done = rig.write_all(round, count.min(200), len, true);
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!(rig.read(0..64), [round; 64]);
    }
    rig.settle();
    assert_eq!(rig.below(0..64), [3; 64]);
}

#[test]
fn one_who_flushes_after_each_write_waits_once() {
    let mut rig = Rig::through(through());
    for block in 0..128 {
        rig.write(block, 1);
        rig.flush();
    }
    rig.frames_otherwise();
    for block in 0..128 {
        rig.write(block, 2);
        let view = rig.status();
        assert_eq!(view.durable, view.head, "it is durable when it is answered");
        rig.flush();
    }
    assert_eq!(rig.frames_otherwise(), 0);
    // Who does not flush any more does not wait for the device any more.
    for _ in 0..3 {
        (0..64).for_each(|block| rig.write(block, 3));
    }
    assert!(rig.frames_otherwise() > 0);
    rig.reopen(Duration::ZERO);
    assert_eq!((rig.read(0..64), rig.read(64..128)), (vec![3; 64], vec![2; 64]));
}

#[test]
fn a_frame_that_fails_ends_the_journal_and_loses_nothing() {
    let mut rig = Rig::through(Faults { through_fails: true, ..Faults::default() });
    (0..20).for_each(|block| rig.write(block, 1));
    rig.flush();
    let done = rig.write_all(2, 40, 1, true);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    rig.wait("it goes on without", |view| view.mode == Mode::Without);
    assert_eq!(rig.read(0..40), [2; 40]);
    assert_eq!(rig.below(0..40), [2; 40]);
    rig.reopen(Duration::ZERO);
    assert_eq!(rig.read(0..40), [2; 40]);
}

#[test]
fn a_disk_that_is_given_up_waits_for_its_frames() {
    let mut rig = Rig::through(through());
    rig.try_write(0, 1, true).unwrap();
    let disk = rig.disk.as_mut().unwrap();
    for block in 0..32 {
        let range = ByteRange::new(block * 4096, 4096);
        let request = DiskOp::Write { range, data: Bytes::from(vec![7; 4096]), fua: true };
        assert!(disk.submit(OpId(block), request).is_none());
    }
    disk.kick();
    rig.disk = None;
    rig.runtime.block_on(rig.handle.stop(PATIENCE));
    assert_eq!(rig.below(0..32), [7; 32]);
}
