//! Archives of a resource that is written to: every moment is restored as it was.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use holdfast_archive::{
    Archive, ArchiveError, Checkpoint, DirectoryStore, FileTarget, Keep, Line, Moment, Progress,
    Source as _, Store, Writer,
};
use holdfast_units::{HybridTime, LogPosition};
use std::io;
use std::time::SystemTime;
use support::{MemoryDisk, MemoryStore, NAME, RESOURCE, Resource, Snapshot, restored};

/// Two pieces and a bit.
const BLOCKS: u64 = 2100;

fn writer<S: Store>(store: S) -> Writer<S> {
    Writer::open(store, NAME, RESOURCE).unwrap()
}

/// Finishes the base image that is being made.
fn finish<S: Store>(writer: &mut Writer<S>, resource: &mut Resource) {
    while !writer.base_step(resource).unwrap().finished {
        writer.follow(resource).unwrap();
    }
}

fn check<S: Store>(archive: &Archive<S>, snapshot: &Snapshot) {
    let by_position = restored(archive, Moment::Position(snapshot.position), None);
    assert!(by_position == snapshot.disk, "at position {}", snapshot.position);
    let by_time = restored(archive, Moment::Time(snapshot.millis), None);
    assert!(by_time == snapshot.disk, "at time {}", snapshot.millis);
}

#[test]
fn twenty_moments_are_restored_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(dir.path()).unwrap();
    let mut resource = Resource::new(1, BLOCKS);
    for _ in 0..30 {
        resource.act();
    }
    let mut archiver = writer(&store);
    assert!(archiver.follow(&mut resource).unwrap().new_line);
    let early = Archive::open(&store, NAME).unwrap();
    let refused = early.plan(Moment::Latest, None).unwrap_err().to_string();
    assert!(refused.contains("no base image is finished"), "{refused}");
    finish(&mut archiver, &mut resource);

    let mut snapshots = vec![resource.snapshot()];
    while snapshots.len() < 20 {
        for _ in 0..resource.below(20) {
            resource.act();
        }
        snapshots.push(resource.snapshot());
        match resource.below(6) {
            0 => {
                archiver.follow(&mut resource).unwrap();
            }
            1 => {
                let epoch = snapshots.len() as u64 + 10;
                resource.reopen(epoch);
                drop(archiver);
                archiver = writer(&store);
                assert!(!archiver.follow(&mut resource).unwrap().new_line, "it goes on");
            }
            2 => {
                archiver.begin_base(&mut resource).unwrap();
                finish(&mut archiver, &mut resource);
            }
            _ => {}
        }
    }
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    assert_eq!(archive.moments().len(), 1);
    for snapshot in &snapshots {
        check(&archive, snapshot);
    }
    let verified = archive.verify(&mut |_| {});
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert!(verified.objects > 5 && verified.bytes > 100_000);

    // Into a file, and over what is there.
    let plan = archive.plan(Moment::Position(snapshots[9].position), None).unwrap();
    let path = dir.path().join("copy");
    std::fs::write(&path, vec![0xff; 9 << 20]).unwrap();
    let refused = FileTarget::open(&path, plan.size, false, false).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    let mut target = FileTarget::open(&path, plan.size, true, false).unwrap();
    assert!(target.blank());
    let start = Checkpoint::default();
    archive.restore(&plan, &mut target, true, start, &mut |_| Ok(())).unwrap();
    assert!(std::fs::read(&path).unwrap() == snapshots[9].disk);
}

#[test]
fn a_moment_that_is_not_there_is_told() {
    let store = MemoryStore::default();
    let refused = Archive::open(&store, "other").unwrap_err();
    assert!(matches!(refused, ArchiveError::NoArchive { .. }));
    let mut resource = Resource::new(2, BLOCKS);
    resource.act();
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    for _ in 0..20 {
        resource.act();
    }
    resource.millis += 500;
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    let [moments] = archive.moments()[..] else { panic!("one line") };
    let said = |moment| archive.plan(moment, None).unwrap_err().to_string();
    assert!(said(Moment::Time(5)).contains("older than the oldest"));
    assert!(said(Moment::Time(resource.millis + 1)).contains("not archived yet"));
    assert!(said(Moment::Position(moments.to.after(1))).contains("is not in it"));
    assert!(archive.plan(Moment::Latest, Some(9)).unwrap_err().to_string().contains("line 9"));
    // Nothing was written in these milliseconds, and that is known.
    let idle = archive.plan(Moment::Time(resource.millis - 1), None).unwrap();
    assert_eq!(idle.position, moments.to);
    let error = Archive::open(&store, "other").unwrap_err().to_string();
    assert_eq!(error, "there is no archive of resource other (there is r0)");
    let foreign = Writer::open(&store, NAME, holdfast_units::ResourceId([8; 16])).unwrap_err();
    assert!(matches!(foreign, ArchiveError::Foreign { .. }));
}

#[test]
fn damaged_and_missing_objects_are_named() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(3, BLOCKS);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    for _ in 0..60 {
        resource.act();
    }
    archiver.follow(&mut resource).unwrap();
    let whole = store.objects.borrow().clone();
    for (name, bytes) in &whole {
        for rot in [None, Some(bytes.len() / 2), Some(bytes.len() - 1)] {
            let changed = rot.map(|at| {
                let mut bad = bytes.to_vec();
                bad[at] ^= 4;
                bad
            });
            match changed {
                Some(bad) => store.objects.borrow_mut().insert(name.clone(), bad.into()),
                None => store.objects.borrow_mut().remove(name),
            };
            let result = Archive::open(&store, NAME).and_then(|archive| {
                let verified = archive.verify(&mut |_| {});
                assert_eq!(verified.fault_count, 1, "{name}");
                assert!(verified.faults[0].what.contains(name.as_str()), "{name}");
                let plan = archive.plan(Moment::Latest, None)?;
                let mut disk = MemoryDisk(vec![0; usize::try_from(plan.size).unwrap()]);
                let start = Checkpoint::default();
                archive.restore(&plan, &mut disk, true, start, &mut |_| Ok(()))
            });
            let error = result.unwrap_err();
            let told = error.to_string();
            match (&error, rot) {
                (ArchiveError::Missing { name: told }, None) => assert_eq!(told, name),
                (ArchiveError::NoArchive { .. }, None) => assert!(name.ends_with("/manifest")),
                (ArchiveError::Damaged { name: told, .. }, Some(_)) => assert_eq!(told, name),
                _ => panic!("{name}: {told}"),
            }
            store.objects.borrow_mut().insert(name.clone(), bytes.clone());
        }
    }
}

/// What a writer does, and what the disk was meanwhile.
fn story(
    store: &MemoryStore,
    resource: &mut Resource,
    snapshots: &mut Vec<Snapshot>,
) -> Result<(), ArchiveError> {
    let mut archiver = Writer::open(store, NAME, RESOURCE)?;
    for round in 0..4_u64 {
        for _ in 0..10 {
            resource.act();
        }
        snapshots.push(resource.snapshot());
        archiver.follow(resource)?;
        if round % 2 == 0 {
            archiver.begin_base(resource)?;
            while !archiver.base_step(resource)?.finished {
                archiver.follow(resource)?;
                snapshots.push(resource.snapshot());
            }
            archiver.expire(Keep { age: None, bases: Some(1) }, HybridTime(0))?;
            archiver.sweep(SystemTime::now(), &mut || true)?;
        }
        snapshots.push(resource.snapshot());
    }
    archiver.follow(resource)?;
    Ok(())
}

/// Restores what the archive says it has; how many of the snapshots it has.
fn check_all(store: &MemoryStore, snapshots: &[Snapshot]) -> usize {
    let archive = match Archive::open(store, NAME) {
        Ok(archive) => archive,
        Err(ArchiveError::NoArchive { .. }) => return 0,
        Err(error) => panic!("{error}"),
    };
    let verified = archive.verify(&mut |_| {});
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    let moments = archive.moments();
    let has =
        |snapshot: &&Snapshot| moments.iter().any(|m| (m.from..=m.to).contains(&snapshot.position));
    let there: Vec<&Snapshot> = snapshots.iter().filter(has).collect();
    for snapshot in &there {
        let disk = restored(&archive, Moment::Position(snapshot.position), None);
        assert!(disk == snapshot.disk, "at {}", snapshot.position);
    }
    there.len()
}

#[test]
fn a_writer_can_be_interrupted_at_every_step() {
    let steps = {
        let store = MemoryStore::default();
        story(&store, &mut Resource::new(4, 1100), &mut Vec::new()).unwrap();
        store.changes.get()
    };
    assert!(steps > 30, "{steps}");
    for step in 0..steps {
        for all_the_same in [false, true] {
            let store = MemoryStore::default();
            store.fail_at.set(Some(step));
            store.done_all_the_same.set(all_the_same);
            let mut resource = Resource::new(4, 1100);
            let mut snapshots = Vec::new();
            story(&store, &mut resource, &mut snapshots).unwrap_err();
            let then = snapshots.split_off(snapshots.len().saturating_sub(4));
            check_all(&store, &then);

            // It goes on, and nothing that is not needed is left.
            store.fail_at.set(None);
            snapshots.clear();
            story(&store, &mut resource, &mut snapshots).unwrap();
            let last = snapshots.split_off(snapshots.len() - 3);
            assert_eq!(check_all(&store, &last), last.len(), "step {step}");
            writer(&store).sweep(SystemTime::now(), &mut || true).unwrap();
            let verified = Archive::open(&store, NAME).unwrap().verify(&mut |_| {});
            assert_eq!(verified.objects + 1, store.names().len() as u64, "{:?}", store.names());
        }
    }
}

#[test]
fn the_one_who_opened_it_last_writes() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(5, BLOCKS);
    let mut first = writer(&store);
    first.follow(&mut resource).unwrap();
    let mut second = writer(&store);
    assert!(matches!(first.follow(&mut resource), Err(ArchiveError::Conflict { .. })));
    second.follow(&mut resource).unwrap();
}

#[test]
fn a_journal_that_does_not_go_on_begins_a_line() {
    let store = MemoryStore::default();
    let mut archiver = writer(&store);
    let mut snapshots = Vec::new();
    let mut one = Resource::new(6, BLOCKS);
    one.act();
    archiver.follow(&mut one).unwrap();
    finish(&mut archiver, &mut one);
    for _ in 0..9 {
        one.act();
    }
    archiver.follow(&mut one).unwrap();
    snapshots.push((1, one.snapshot()));

    // Another journal of the same resource: positions are used again.
    let mut two = Resource::new(7, BLOCKS);
    two.millis = one.millis + 1000;
    for _ in 0..40 {
        two.act();
    }
    let mut archiver = writer(&store);
    assert!(archiver.follow(&mut two).unwrap().new_line);
    assert!(!archiver.follow(&mut two).unwrap().new_line);
    finish(&mut archiver, &mut two);
    two.act();
    snapshots.push((2, two.snapshot()));
    archiver.follow(&mut two).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    assert_eq!(archive.moments().iter().map(|m| m.line).collect::<Vec<_>>(), [1, 2]);
    for (line, snapshot) in &snapshots {
        let by_time = restored(&archive, Moment::Time(snapshot.millis), None);
        assert!(by_time == snapshot.disk, "line {line}");
        let position = Moment::Position(snapshot.position);
        assert!(restored(&archive, position, Some(*line)) == snapshot.disk, "line {line}");
    }
    let between = archive.plan(Moment::Time(one.millis + 500), None).unwrap_err().to_string();
    assert!(between.contains("was not archived"), "{between}");

    // The older line is given up as a whole.
    archiver.expire(Keep { age: None, bases: Some(1) }, HybridTime(0)).unwrap();
    archiver.sweep(SystemTime::now(), &mut || true).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    assert_eq!(archive.moments().len(), 1);
    assert!(!store.names().iter().any(|name| name.contains("/log/000001-")));
    assert!(restored(&archive, Moment::Latest, None) == snapshots[1].1.disk);
}

/// That the archive consists of one line, in which all of these are, and of nothing else.
fn is_one_line(store: &MemoryStore, snapshots: &[Snapshot]) {
    let archive = Archive::open(store, NAME).unwrap();
    assert_eq!(archive.moments().len(), 1);
    assert_eq!(check_all(store, snapshots), snapshots.len());
    snapshots.iter().for_each(|snapshot| check(&archive, snapshot));
    writer(store).sweep(SystemTime::now(), &mut || true).unwrap();
    let verified = Archive::open(store, NAME).unwrap().verify(&mut |_| {});
    assert_eq!(verified.objects + 1, store.names().len() as u64, "{:?}", store.names());
}

#[test]
fn a_line_goes_on_behind_segments_without_a_record() {
    for written in [false, true] {
        let store = MemoryStore::default();
        let mut resource = Resource::new(11, BLOCKS);
        if written {
            resource.act();
        }
        resource.log.begin_segment().unwrap();
        let mut archiver = writer(&store);
        archiver.follow(&mut resource).unwrap();
        resource.still = true;
        finish(&mut archiver, &mut resource);
        assert_eq!(resource.log.journal().durable_segments().pop().unwrap().1, 0);
        let mut snapshots = vec![resource.snapshot()];

        // The program dies before anything was written.
        drop(archiver);
        resource.reopen(2);
        resource.act();
        snapshots.push(resource.snapshot());
        let mut archiver = writer(&store);
        assert!(!archiver.follow(&mut resource).unwrap().new_line);
        snapshots.push(resource.snapshot());

        // Another node takes over with all of it, and begins a segment of its own behind an empty one.
        resource.log.begin_segment().unwrap();
        archiver.follow(&mut resource).unwrap();
        let files = resource.log.files().clone();
        resource.taken_over(files, 1, 3);
        for _ in 0..20 {
            resource.act();
            snapshots.push(resource.snapshot());
        }
        let mut archiver = writer(&store);
        assert!(!archiver.follow(&mut resource).unwrap().new_line);
        let segments = &archiver.manifest().lines[0].segments;
        assert!(segments.iter().any(|segment| segment.frames() == 0));
        is_one_line(&store, &snapshots);
    }
}

#[test]
fn a_line_goes_on_when_who_takes_over_has_no_empty_segment() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(12, BLOCKS);
    resource.act();
    resource.log.flush().unwrap();
    let copied = resource.log.files().copied();
    resource.log.begin_segment().unwrap();
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    resource.still = true;
    finish(&mut archiver, &mut resource);
    let mut snapshots = vec![resource.snapshot()];
    let archive = Archive::open(&store, NAME).unwrap();
    let line = &archive.manifest().lines[0];
    assert_eq!(line.segments.len(), 2);
    // What is without a record says nothing of what is archived.
    let newest = line.segments[0].objects[0].time;
    assert!(newest > 0);
    assert_eq!(Line { complete: 0, ..line.clone() }.complete_until(), HybridTime(newest));
    let plan = archive.plan(Moment::Latest, None).unwrap();
    assert_eq!(archive.segment_of(&plan).unwrap().unwrap().number, 1);
    // Nor is it enough to know what comes next.
    archiver.expire(Keep { age: None, bases: Some(1) }, HybridTime(0)).unwrap();

    resource.taken_over(copied, 1, 3);
    resource.act();
    snapshots.push(resource.snapshot());
    let mut archiver = writer(&store);
    assert!(!archiver.follow(&mut resource).unwrap().new_line);
    snapshots.push(resource.snapshot());
    is_one_line(&store, &snapshots);
}

#[test]
fn an_empty_segment_that_was_given_up_is_continued() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(15, BLOCKS);
    resource.act();
    resource.log.begin_segment().unwrap();
    resource.still = true;
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    let mut snapshots = vec![resource.snapshot()];

    // Another node appends, and has given up what was before that when it archives.
    let files = resource.log.files().clone();
    resource.taken_over(files, 1, 3);
    resource.act();
    resource.log.flush().unwrap();
    resource.given_up = 2;
    assert_eq!(resource.segments().unwrap()[0].0.number, 3);
    snapshots.push(resource.snapshot());
    let mut archiver = writer(&store);
    assert!(!archiver.follow(&mut resource).unwrap().new_line);
    snapshots.push(resource.snapshot());
    is_one_line(&store, &snapshots);
}

#[test]
fn a_line_without_a_segment_goes_on_with_the_history_that_begins_there() {
    for again in [false, true] {
        let store = MemoryStore::default();
        let mut resource = Resource::new(16, BLOCKS);
        (0..5).for_each(|_| resource.act());
        resource.begin_anew();
        resource.still = true;
        let mut archiver = writer(&store);
        archiver.follow(&mut resource).unwrap();
        finish(&mut archiver, &mut resource);
        let mut snapshots = vec![resource.snapshot()];
        if again {
            // That history has ended, too, before there was anything of it.
            resource.log.begin_segment().unwrap();
            resource.begin_anew();
        }
        resource.act();
        assert!(
            resource.log.journal().durable_segments().len() > 1,
            "the older one is still there"
        );
        snapshots.push(resource.snapshot());
        assert_eq!(archiver.follow(&mut resource).unwrap().new_line, again);
        if again {
            continue;
        }
        snapshots.push(resource.snapshot());
        is_one_line(&store, &snapshots);
    }
}

#[test]
fn what_is_first_written_while_another_image_is_begun_is_not_left_out() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(17, BLOCKS);
    resource.still = true;
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    // Behind what it follows first, before it looks from where the image has everything.
    resource.writes_at_flush = 2;
    archiver.begin_base(&mut resource).unwrap();
    assert_eq!(resource.writes_at_flush, 0);
    assert!(resource.log.journal().head() > LogPosition(0));
    resource.act();
    let snapshot = resource.snapshot();
    assert!(!archiver.follow(&mut resource).unwrap().new_line);
    is_one_line(&store, &[snapshot]);
}

#[test]
fn a_journal_that_begins_anew_begins_a_line() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(13, BLOCKS);
    for _ in 0..5 {
        resource.act();
    }
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    archiver.follow(&mut resource).unwrap();
    resource.begin_anew();
    resource.act();
    // What was before is still there.
    assert!(resource.log.journal().durable_segments().len() > 1);
    assert!(archiver.follow(&mut resource).unwrap().new_line);
    finish(&mut archiver, &mut resource);
    let snapshot = resource.snapshot();
    archiver.follow(&mut resource).unwrap();
    check(&Archive::open(&store, NAME).unwrap(), &snapshot);
}

#[test]
fn what_is_joined_while_it_is_read_is_found() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(14, BLOCKS);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    let mut snapshots = Vec::new();
    let mut opened = Vec::new();
    let mut gone = 0;
    for _ in 0..100 {
        resource.act();
        archiver.follow(&mut resource).unwrap();
        snapshots.push(resource.snapshot());
        opened.push(Archive::open(&store, NAME).unwrap());
    }
    resource.log.begin_segment().unwrap();
    archiver.follow(&mut resource).unwrap();
    let ends = |archive: &Archive<_>| {
        let segments = &archive.manifest().lines[0].segments;
        let ends = segments.iter().flat_map(|s| s.objects.iter().map(|o| (s.number, o.end)));
        ends.collect::<Vec<_>>()
    };
    let now = ends(&Archive::open(&store, NAME).unwrap());
    for (archive, snapshot) in opened.iter().zip(&snapshots) {
        check(archive, snapshot);
        assert!(archive.verify(&mut |_| {}).faults.is_empty());
        gone += ends(archive).iter().filter(|end| !now.contains(end)).count();
    }
    assert!(gone > 100, "{gone}");

    // What is gone although it is named, is missing.
    let newest = opened[99].manifest().lines[0].segments.last().unwrap();
    let name = format!("/log/000001-{:016x}-0000000000-", newest.number);
    let names = store.names();
    let name = names.iter().find(|all| all.contains(&name)).unwrap();
    let lost = store.objects.borrow_mut().remove(name).unwrap();
    assert!(opened[99].verify(&mut |_| {}).fault_count > 0);
    store.objects.borrow_mut().insert(name.clone(), lost);
    assert_eq!(opened[99].verify(&mut |_| {}).fault_count, 0);

    // What is given up is missing.
    archiver.begin_base(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    archiver.expire(Keep { age: None, bases: Some(1) }, HybridTime(0)).unwrap();
    let plan = opened[50].plan(Moment::Position(snapshots[50].position), None).unwrap();
    let mut disk = MemoryDisk(Vec::new());
    let restored =
        opened[50].restore(&plan, &mut disk, true, Checkpoint::default(), &mut |_| Ok(()));
    assert!(matches!(restored, Err(ArchiveError::Missing { .. })), "{restored:?}");
}

#[test]
fn small_objects_are_joined() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(8, BLOCKS);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    let mut snapshots = Vec::new();
    for _ in 0..300 {
        resource.act();
        archiver.follow(&mut resource).unwrap();
        if resource.below(40) == 0 {
            snapshots.push(resource.snapshot());
        }
    }
    archiver.follow(&mut resource).unwrap();
    let segments = &archiver.manifest().lines[0].segments;
    assert!(segments.len() > 5);
    let (newest, sealed) = segments.split_last().unwrap();
    assert!(sealed.iter().all(|segment| segment.objects.len() == 1));
    assert!(newest.objects.len() < 32);
    assert!(check_all(&store, &snapshots) == snapshots.len());
    let archive = Archive::open(&store, NAME).unwrap();
    snapshots.iter().for_each(|snapshot| check(&archive, snapshot));
}

#[test]
fn a_restore_is_taken_up_where_it_was() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(9, BLOCKS);
    for _ in 0..50 {
        resource.act();
    }
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    for _ in 0..50 {
        resource.act();
    }
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    let plan = archive.plan(Moment::Latest, None).unwrap();
    let mut steps = 0;
    let mut disk = MemoryDisk(vec![0; usize::try_from(plan.size).unwrap()]);
    let start = Checkpoint::default();
    let mut count = |_| {
        steps += 1;
        Ok(())
    };
    archive.restore(&plan, &mut disk, true, start, &mut count).unwrap();
    assert!(disk.0 == resource.model.0);
    for stop in (0..steps).step_by(5) {
        let mut disk = MemoryDisk(vec![0; usize::try_from(plan.size).unwrap()]);
        let (mut at, mut reached) = (0, Checkpoint::default());
        let mut interrupt = |progress| {
            if let Progress::Checkpoint(checkpoint) = progress {
                reached = checkpoint;
            }
            at += 1;
            if at > stop { Err(io::Error::other("it was to stop")) } else { Ok(()) }
        };
        archive.restore(&plan, &mut disk, true, start, &mut interrupt).unwrap_err();
        archive.restore(&plan, &mut disk, true, reached, &mut |_| Ok(())).unwrap();
        assert!(disk.0 == resource.model.0, "{stop}");
    }
}

#[test]
fn the_disk_grows() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(10, BLOCKS);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    resource.act();
    let small = resource.snapshot();
    archiver.follow(&mut resource).unwrap();
    resource.act();
    let larger = resource.model.0.len() + (3 << 20);
    resource.model.0.resize(larger, 0);
    resource.disk.0.resize(larger, 0);
    archiver.follow(&mut resource).unwrap();
    resource.act();
    let large = resource.snapshot();
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(&store, NAME).unwrap();
    check(&archive, &small);
    check(&archive, &large);
    assert_eq!(archive.moments()[0].from, LogPosition(0).max(archive.moments()[0].from));
}

#[test]
fn what_is_read_for_an_image_and_lost_with_the_power_is_in_no_image() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(91, 3 * 1024);
    (0..40).for_each(|_| resource.act());
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    archiver.begin_base(&mut resource).unwrap();
    // All is read, and the part of the index is named.
    loop {
        let lost = resource.durable();
        resource.write_unflushed(3);
        let progress = archiver.base_step(&mut resource).unwrap();
        if progress.done == progress.total {
            assert!(archiver.archived().unwrap() > lost, "what was read is archived");
            break;
        }
    }
}

#[test]
fn a_manifest_never_grows_past_what_can_be_read() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(92, 64);
    let mut archiver = writer(&store);
    archiver.limit_manifest(6000);
    let (mut given_up, mut newest) = (0, None);
    for _ in 0..60 {
        (0..20).for_each(|_| resource.act());
        archiver.follow(&mut resource).unwrap();
        let snapshot = resource.snapshot();
        archiver.begin_base(&mut resource).unwrap();
        finish(&mut archiver, &mut resource);
        given_up += archiver.given_up();
        let manifest = store.objects.borrow().get("r/manifest").cloned();
        let manifest = manifest.or_else(|| {
            let objects = store.objects.borrow();
            objects.iter().find(|(name, _)| name.ends_with("/manifest")).map(|(_, b)| b.clone())
        });
        assert!(manifest.unwrap().len() <= 6000);
        newest = Some(snapshot);
    }
    assert!(given_up > 0, "the oldest images are given up");
    // The last moments can be restored all the same.
    (0..5).for_each(|_| resource.act());
    archiver.follow(&mut resource).unwrap();
    let snapshot = resource.snapshot();
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(store.clone(), NAME).unwrap();
    check(&archive, &snapshot);
    drop(newest);
    // With nothing to give up it says so, and what is there stays what it is.
    archiver.limit_manifest(100);
    let before = store.objects.borrow().clone();
    let refused = archiver.follow(&mut resource).unwrap_err().to_string();
    assert!(refused.contains("no room"), "{refused}");
    assert_eq!(*store.objects.borrow(), before);
}

#[test]
fn a_sweep_leaves_what_somebody_may_be_about_to_name() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(93, 64);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    let (now, day) = (SystemTime::now(), std::time::Duration::from_secs(86_400));
    let prefix = store.names()[0].split('/').next().unwrap().to_owned();
    for (name, put) in [("disk/000000/young", now), ("disk/000000/old", now - 2 * day)] {
        let name = format!("{prefix}/{name}");
        store.objects.borrow_mut().insert(name.clone(), bytes::Bytes::from_static(b"x"));
        store.put.borrow_mut().insert(name, put);
    }
    assert_eq!(archiver.sweep(now - day, &mut || false).unwrap(), 0, "it is to end");
    let has = |name: &str| store.names().contains(&format!("{prefix}/{name}"));
    assert!(has("disk/000000/old"));
    archiver.sweep(now - day, &mut || true).unwrap();
    assert!(has("disk/000000/young") && !has("disk/000000/old"), "{:?}", store.names());
    // Somebody takes over after it was listed what is there.
    store.objects.borrow_mut().insert(format!("{prefix}/disk/000000/old"), bytes::Bytes::new());
    let mut calls = 0;
    let swept = archiver.sweep(now, &mut || {
        calls += 1;
        if calls == 1 {
            drop(writer(&store));
        }
        true
    });
    assert!(swept.is_err() && has("disk/000000/old"), "who was taken over removes nothing");
}

#[test]
fn what_was_added_reads_as_zeroes_on_a_target_that_held_something() {
    let store = MemoryStore::default();
    let mut resource = Resource::new(94, 64);
    let mut archiver = writer(&store);
    archiver.follow(&mut resource).unwrap();
    finish(&mut archiver, &mut resource);
    (0..20).for_each(|_| resource.act());
    archiver.follow(&mut resource).unwrap();
    // It grows, is written to, and a moment later grown by more: the first moment has the new size.
    resource.model.0.resize(96 * 4096, 0);
    resource.disk.0.resize(96 * 4096, 0);
    (0..10).for_each(|_| resource.act());
    let early = resource.snapshot();
    (0..10).for_each(|_| resource.act());
    archiver.follow(&mut resource).unwrap();
    let archive = Archive::open(store.clone(), NAME).unwrap();
    let plan = archive.plan(Moment::Position(early.position), None).unwrap();
    assert_eq!(plan.size, 96 * 4096);
    let mut disk = MemoryDisk(vec![0x77; 96 * 4096]);
    archive.restore(&plan, &mut disk, false, Checkpoint::default(), &mut |_| Ok(())).unwrap();
    assert!(disk.0 == early.disk, "nothing of what was there before");
}
