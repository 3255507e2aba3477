//! What the journal says of blocks that the disk below cannot read, and how they are stored again.

use super::super::Mode;
use super::{PATIENCE, Rig};
use bytes::Bytes;
use holdfast_store::{DiskError, DiskOp, OpId, Outcome};
use holdfast_units::{ByteRange, LogPosition};

impl Rig {
    /// What a block is full of, by the journal.
    fn salvage(&mut self, block: u64) -> Option<u8> {
        let disk = self.disk.as_mut().unwrap();
        let mut done =
            Vec::from_iter(disk.salvage(OpId(1), ByteRange::of_blocks(block..block + 1)));
        if done.is_empty() {
            disk.wait(&mut done, PATIENCE);
        }
        match done.pop().unwrap().result.ok()? {
            Outcome::Data(data) => Some(super::fills(&data)[0]),
            other => panic!("{other:?}"),
        }
    }

    fn restore(&mut self, block: u64, fill: u8) -> Result<Outcome, DiskError> {
        let range = ByteRange::of_blocks(block..block + 1);
        let disk = self.disk.as_mut().unwrap();
        let data = Bytes::from(vec![fill; 4096]);
        let mut done = Vec::from_iter(disk.restore(OpId(1), range, data));
        if done.is_empty() {
            disk.wait(&mut done, PATIENCE);
        }
        done.pop().unwrap().result
    }

    fn written_back(&self) {
        // The view that is looked at first may be older than the writes.
        let head = self.head();
        self.wait("all is written back", |view| view.dirty_bytes == 0 && view.written_back >= head);
    }

    fn head(&self) -> LogPosition {
        self.status().head
    }
}

#[test]
fn what_is_written_back_is_known_until_something_goes_past_the_journal() {
    let mut rig = Rig::leading();
    (0..20).for_each(|block| rig.write(block, 1));
    rig.write(3, 2);
    assert_eq!(rig.salvage(3), Some(2), "from what is not written back");
    rig.written_back();
    assert_eq!((rig.salvage(3), rig.salvage(4), rig.salvage(20)), (Some(2), Some(1), None));
    rig.settle();
    assert_eq!(rig.status().mode, Mode::Direct);
    assert_eq!(rig.salvage(3), Some(2), "nothing was written since");
    rig.reopen(PATIENCE);
    assert_eq!(rig.salvage(3), Some(2), "a Secondary that was restarted knows it, too");
    rig.write(4, 3);
    assert_eq!((rig.salvage(3), rig.salvage(4)), (None, None), "nor of the others");
    rig.lead();
    assert_eq!(rig.salvage(3), None, "another history begins");
    rig.write(5, 4);
    rig.written_back();
    assert_eq!((rig.salvage(3), rig.salvage(4), rig.salvage(5)), (None, None, Some(4)));
}

#[test]
fn storing_it_again_is_neither_a_record_nor_a_write_past_the_journal() {
    let mut rig = Rig::leading();
    (0..8).for_each(|block| rig.write(block, 1));
    rig.written_back();
    let head = rig.head();
    rig.store.write(3 * 4096, &[0xEE; 4096]);
    rig.restore(3, 1).unwrap();
    assert_eq!((rig.below(3..4), rig.head()), (vec![1], head));
    rig.settle();
    rig.store.write(4 * 4096, &[0xEE; 4096]);
    rig.restore(4, 1).unwrap();
    assert_eq!(rig.below(4..5), [1]);
    assert_eq!(rig.salvage(5), Some(1), "the others are known as before");
    rig.lead();
    rig.write(5, 2);
    assert_eq!(rig.salvage(6), Some(1), "it is the same history");
}

#[test]
fn what_was_zeroed_is_known_to_be_zeroes() {
    let mut rig = Rig::leading();
    (0..4).for_each(|block| rig.write(block, 1));
    let range = ByteRange::of_blocks(1..2);
    rig.run(DiskOp::WriteZeroes { range, unmap: false, fua: false }).unwrap();
    rig.run(DiskOp::Discard { range: ByteRange::of_blocks(2..3) }).unwrap();
    rig.written_back();
    assert_eq!([1, 2, 3].map(|block| rig.salvage(block)), [Some(0), Some(0), Some(1)]);
}

#[test]
fn it_is_asked_for_by_single_blocks() {
    let mut rig = Rig::leading();
    (0..4).for_each(|block| rig.write(block, 1));
    for range in [ByteRange::of_blocks(1..3), ByteRange::new(4096 + 512, 4096)] {
        let disk = rig.disk.as_mut().unwrap();
        let mut done = Vec::from_iter(disk.salvage(OpId(1), range));
        if done.is_empty() {
            disk.wait(&mut done, PATIENCE);
        }
        assert!(done.pop().unwrap().result.is_err(), "{range}");
    }
}

#[test]
fn who_asks_during_a_search_waits_for_the_next_one() {
    let mut rig = Rig::leading();
    rig.write(9000, 7);
    // So much that a search takes many steps.
    for megabyte in 0..3 {
        let data = Bytes::from(vec![1; 1 << 20]);
        let range = ByteRange::new(megabyte << 20, 1 << 20);
        rig.run(DiskOp::Write { range, data, fua: false }).unwrap();
    }
    rig.written_back();
    let mut done = Vec::new();
    for (op, block) in [(1, 9000), (2, 0)] {
        let disk = rig.disk.as_mut().unwrap();
        assert!(disk.salvage(OpId(op), ByteRange::of_blocks(block..block + 1)).is_none());
        // A call comes behind it: the search has begun.
        rig.status();
    }
    while done.len() < 2 {
        let before = done.len();
        rig.disk.as_mut().unwrap().wait(&mut done, PATIENCE);
        assert!(done.len() > before, "only {before} were answered");
    }
    done.sort_by_key(|completion| completion.op.0);
    let found = done.into_iter().map(|completion| match completion.result {
        Ok(Outcome::Data(data)) => super::fills(&data)[0],
        other => panic!("{other:?}"),
    });
    assert_eq!(found.collect::<Vec<_>>(), [7, 1]);
}

#[test]
fn a_disk_that_failed_is_not_written_to_and_nothing_is_said_of_it() {
    let mut rig = Rig::leading();
    rig.write(3, 1);
    rig.written_back();
    assert!(rig.below.add("write:count=1:error=EIO".parse().unwrap()).is_some());
    rig.write(4, 1);
    assert!(rig.runtime.block_on(rig.handle.settle()).is_err());
    assert_eq!(rig.salvage(3), None);
    rig.store.write(3 * 4096, &[0xEE; 4096]);
    assert!(rig.restore(3, 1).is_err());
    assert_eq!(rig.below(3..4), [0xEE]);
}

#[test]
fn while_it_follows_nothing_is_stored_past_what_is_replayed() {
    let mut rig = Rig::leading();
    rig.write(3, 1);
    rig.written_back();
    rig.runtime.block_on(rig.handle.follow()).unwrap();
    rig.store.write(3 * 4096, &[0xEE; 4096]);
    assert!(rig.restore(3, 1).is_err());
    assert_eq!(rig.below(3..4), [0xEE]);
}

#[test]
fn a_disk_that_does_not_take_it_says_so() {
    for (rule, takes) in [
        ("write:error=EIO", false),
        // It says that it did.
        ("write:drop", false),
        ("flush:error=EIO", false),
        ("read:error=EIO", false),
        ("read:delay=1", true),
    ] {
        let mut rig = Rig::leading();
        rig.write(3, 1);
        rig.written_back();
        rig.store.write(3 * 4096, &[0xEE; 4096]);
        assert!(rig.below.add(rule.parse().unwrap()).is_some(), "{rule}");
        assert_eq!(rig.restore(3, 1).is_ok(), takes, "{rule}");
    }
}

#[test]
fn a_journal_that_is_not_used_any_more_says_nothing() {
    let mut rig = Rig::leading();
    rig.write(3, 1);
    rig.written_back();
    rig.set_faults(super::Faults {
        write: Some(("segment", rustix::io::Errno::IO)),
        ..super::Faults::default()
    });
    rig.write(4, 1);
    rig.wait("it has failed", |view| view.mode == Mode::Without);
    assert_eq!(rig.salvage(3), None);
    rig.restore(3, 1).unwrap();
}

#[test]
fn many_ask_at_a_time_while_others_write() {
    let mut rig = Rig::leading();
    (0..200).for_each(|block| rig.write(block, u8::try_from(block % 250).unwrap() + 1));
    rig.written_back();
    let disk = rig.disk.as_mut().unwrap();
    let mut done = Vec::new();
    for block in 0..200 {
        let range = ByteRange::of_blocks(block..block + 1);
        assert!(disk.salvage(OpId(block), range).is_none());
        let range = ByteRange::of_blocks(1000 + block..1001 + block);
        let data = Bytes::from(vec![7; 4096]);
        let write = DiskOp::Write { range, data, fua: false };
        done.extend(disk.submit(OpId(1000 + block), write));
        // A disk refuses what is too much at a time.
        while 2 * (block as usize + 1) > done.len() + 64 {
            disk.wait(&mut done, PATIENCE);
        }
    }
    while done.len() < 400 {
        let before = done.len();
        disk.wait(&mut done, PATIENCE);
        assert!(done.len() > before, "only {before} were answered");
    }
    for completion in done.into_iter().filter(|completion| completion.op.0 < 1000) {
        let Ok(Outcome::Data(data)) = completion.result else { panic!("{completion:?}") };
        assert_eq!(super::fills(&data), [u8::try_from(completion.op.0 % 250).unwrap() + 1]);
    }
}
