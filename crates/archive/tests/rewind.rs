//! Copies of a disk at other records of its journal.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use holdfast_archive::{JournalCopy, Moment, RewindError};
use holdfast_format::ReadFailed;
use holdfast_journal::ReadSegments;
use holdfast_journal::driver::{Files, segment_name};
use holdfast_units::LogPosition;
use support::{MemoryDisk, MemoryFiles, Resource, Snapshot};

struct Reader(MemoryFiles);

impl ReadSegments for Reader {
    fn read_segment(&self, number: u64, offset: u64, buf: &mut [u8]) -> Result<usize, ReadFailed> {
        self.0.read(&segment_name(number), offset, buf).map_err(|e| ReadFailed(e.to_string()))
    }
}

fn copied(
    copy: &JournalCopy<'_, Reader>,
    disk: &[u8],
    moment: Moment,
) -> Result<Vec<u8>, RewindError> {
    let plan = copy.plan(moment)?;
    let (mut disk, size) = (MemoryDisk(disk.to_vec()), disk.len());
    for blank in [true, false] {
        let mut target = MemoryDisk(vec![if blank { 0 } else { 0xee }; size]);
        copy.copy(&plan, &mut disk, size as u64, &mut target, blank, &mut |_| {})?;
        if !blank {
            return Ok(target.0);
        }
    }
    unreachable!("the second one returns")
}

/// A resource of few blocks, so that most are overwritten often.
fn story(blocks: u64) -> (Resource, Vec<Snapshot>) {
    let mut resource = Resource::new(11, blocks);
    let mut snapshots = vec![resource.snapshot()];
    for _ in 0..300 {
        resource.act();
        if resource.below(10) == 0 {
            snapshots.push(resource.snapshot());
        }
    }
    resource.log.flush().unwrap();
    (resource, snapshots)
}

#[test]
fn a_disk_that_is_behind_is_taken_to_any_later_record() {
    let (resource, snapshots) = story(40);
    let reader = Reader(resource.log.files().clone());
    let segments = resource.log.journal().durable_segments();
    for at in [0, snapshots.len() / 2] {
        let has = snapshots[at].position;
        let copy = JournalCopy { reader: &reader, segments: segments.clone(), has, may_have: has };
        for later in &snapshots[at..] {
            let disk = &snapshots[at].disk;
            let by_position = copied(&copy, disk, Moment::Position(later.position)).unwrap();
            assert!(by_position == later.disk, "{} to {}", has, later.position);
            // Before the first record the journal knows of no time.
            if later.position > LogPosition::START {
                let by_time = copied(&copy, disk, Moment::Time(later.millis)).unwrap();
                assert!(by_time == later.disk, "{} to {}", has, later.position);
            }
        }
    }
}

#[test]
fn an_earlier_record_is_reached_when_what_was_overwritten_is_in_the_journal() {
    let (mut resource, snapshots) = story(40);
    // Not all of it is written back, and that in no order.
    let reader = Reader(resource.log.files().clone());
    let segments = resource.log.journal().durable_segments();
    let has = resource.log.journal().written_back_to();
    let may_have = resource.log.journal().durable();
    assert!(has < may_have, "the last write-back was a while ago");
    let copy = JournalCopy { reader: &reader, segments: segments.clone(), has, may_have };
    let (mut reached, mut refused) = (0, 0);
    for snapshot in &snapshots {
        match copied(&copy, &resource.disk.0, Moment::Position(snapshot.position)) {
            Ok(disk) => {
                assert!(disk == snapshot.disk, "{}", snapshot.position);
                reached += 1;
            }
            Err(RewindError::Overwritten { bytes }) => {
                assert!(bytes > 0);
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Soon after the beginning everything was written once.
    assert!(reached > 15 && refused > 0, "{reached} {refused}");
    let latest = copied(&copy, &resource.disk.0, Moment::Latest).unwrap();
    assert!(latest == resource.model.0);

    let end = resource.log.journal().durable();
    assert!(matches!(
        copied(&copy, &resource.disk.0, Moment::Position(end.after(1))),
        Err(RewindError::Ahead { .. })
    ));
    let older = JournalCopy { reader: &reader, segments: segments[1..].to_vec(), has, may_have };
    for moment in [Moment::Position(LogPosition(0)), Moment::Time(1)] {
        let gone = copied(&older, &resource.disk.0, moment);
        assert!(matches!(gone, Err(RewindError::Gone { .. })));
    }
    resource.act();
}
