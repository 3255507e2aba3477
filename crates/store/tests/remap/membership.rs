//! Which spares a disk has: what an interrupted `AddSpare` or `RemoveSpare` leaves, and spares that die
//! while they come or go.

use holdfast_format::remap::{SpareHeader, SpareId};
use holdfast_store::{
    BadSector, Disk, DiskIdentity, DiskOp, FaultHandle, LoadedSpare, MemoryStore, OpId, Outcome,
    RemapOp, SpareAt, SpareErrorKind, TableWrites, format_spare, is_leftover, load_spare,
    read_spare_header, retire_spare,
};

use crate::bed::{BLOCK, Bed, OWNER, Rig, blocks, format};

const FIRST: SpareId = SpareId([1; 16]);
const SECOND: SpareId = SpareId([2; 16]);
const NEW: SpareId = SpareId([7; 16]);

fn header(bed: &Bed, store: &MemoryStore) -> SpareHeader {
    read_spare_header(&mut bed.plain(store), None).unwrap()
}

/// Changes the header of a spare as it is on the disk.
fn rewrite(bed: &Bed, store: &MemoryStore, change: impl FnOnce(&mut SpareHeader)) {
    let mut header = header(bed, store);
    change(&mut header);
    for copy in [0, 1] {
        store.write(header.layout.header_offset(copy), &header.encode(copy));
    }
}

/// Spares that other versions have made: none knows of another one.
fn as_made(bed: &Bed, store: &MemoryStore) {
    rewrite(bed, store, |header| (header.sequence, header.members) = (1, vec![header.spare]));
}

/// A spare that the disk does not have yet.
fn made(bed: &Bed) -> MemoryStore {
    let store = MemoryStore::new(1 << 20);
    let shape = format(NEW.0[0], 4096, 8, bed.main.size());
    format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap();
    store
}

/// A disk with one spare that was in use, and that has a block of it or not.
fn with_one(mapped: bool) -> Bed {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    if mapped {
        rig.spoil(blocks(4, 1), BadSector::Stuck);
        rig.write(blocks(4, 1), 2);
    }
    bed
}

/// The disk with these spares, in this order: the ids of those that it uses.
fn used_of(bed: &Bed, spares: &[&MemoryStore]) -> Result<(Disk, Vec<SpareId>), SpareErrorKind> {
    let spares = spares.iter().map(|store| SpareAt::Disk(Box::new(bed.plain(store)))).collect();
    let disk = bed.plain(&bed.main).with_spares(spares, &OWNER).map_err(|error| error.kind)?;
    let ids = disk.spares().iter().map(|spare| spare.id).collect();
    Ok((disk, ids))
}

fn block_4(disk: &mut Disk) -> u8 {
    let read = DiskOp::Read { range: blocks(4, 1), holes: false };
    let Ok(Outcome::Data(data)) = disk.execute(read) else { panic!("it cannot be read") };
    data[0]
}

/// A spare that was made to be added, and nobody has noted it: whatever the order in which they are listed,
/// the disk has the one that it had.
#[test]
fn a_spare_that_was_only_made_does_not_count() {
    for mapped in [true, false] {
        for new_first in [true, false] {
            let bed = with_one(mapped);
            let new = made(&bed);
            let old = &bed.spares[0];
            let listed = if new_first { [&new, old] } else { [old, &new] };
            for _ in 0..2 {
                let (mut disk, used) = used_of(&bed, &listed).unwrap();
                assert_eq!((used, disk.info().notes.len()), (vec![FIRST], 1));
                assert_eq!(block_4(&mut disk), if mapped { 2 } else { 1 });
            }
            assert_eq!(header(&bed, &new).members, [NEW], "it was left alone");
        }
    }
}

/// Versions before gave a spare that was made the sequence that the first one has for life.
#[test]
fn of_two_that_are_as_new_the_one_with_units_counts() {
    for new_first in [true, false] {
        let bed = with_one(true);
        let new = made(&bed);
        as_made(&bed, &bed.spares[0]);
        let listed = if new_first { [&new, &bed.spares[0]] } else { [&bed.spares[0], &new] };
        let (mut disk, used) = used_of(&bed, &listed).unwrap();
        assert_eq!((used, block_4(&mut disk)), (vec![FIRST], 2));
        drop(disk);
        assert!(header(&bed, &bed.spares[0]).sequence > header(&bed, &new).sequence);
    }
    // Where neither holds anything, the one that was listed first.
    let bed = with_one(false);
    let new = made(&bed);
    as_made(&bed, &bed.spares[0]);
    assert_eq!(used_of(&bed, &[&bed.spares[0], &new]).unwrap().1, [FIRST]);
}

#[test]
fn a_spare_with_units_that_the_newest_does_not_name_is_refused() {
    let bed = with_one(true);
    let new = made(&bed);
    rewrite(&bed, &new, |header| header.sequence = 9);
    let error = used_of(&bed, &[&bed.spares[0], &new]).unwrap_err();
    assert_eq!(error, SpareErrorKind::NotMember);
}

/// Whether the disk can do without any other spare than these.
fn members_of(bed: &Bed, spares: &[&MemoryStore]) -> Result<Vec<SpareId>, SpareErrorKind> {
    let mut spares: Vec<_> =
        spares.iter().map(|store| SpareAt::Disk(Box::new(bed.plain(store)))).collect();
    let members = bed.plain(&bed.main).spare_members(&mut spares, &OWNER, &TableWrites::new());
    members.map_err(|error| error.kind)
}

#[test]
fn only_a_spare_that_was_in_use_says_that_there_is_no_other_one() {
    let bed = with_one(true);
    let new = made(&bed);
    assert_eq!(members_of(&bed, &[&bed.spares[0]]), Ok(vec![FIRST]));
    assert_eq!(members_of(&bed, &[&bed.spares[0], &new]), Ok(vec![FIRST]));
    assert_eq!(members_of(&bed, &[&new]), Err(SpareErrorKind::NeverUsed));
    // The copy that is broken may have named another one.
    for copy in [0, 1] {
        let offset = header(&bed, &bed.spares[0]).layout.header_offset(copy);
        let mut whole = vec![0; 4096];
        bed.spares[0].read(offset, &mut whole);
        bed.spares[0].write(offset, &[0; 4096]);
        assert_eq!(members_of(&bed, &[&bed.spares[0]]), Err(SpareErrorKind::HalfHeader));
        bed.spares[0].write(offset, &whole);
    }
    let loaded = load_spare(bed.plain(&new), &OWNER).unwrap();
    bed.open().ask(RemapOp::AddSpare(loaded));
    assert_eq!(members_of(&bed, &[&bed.spares[0]]), Err(SpareErrorKind::Missing(NEW)));
    assert_eq!(members_of(&bed, &[&new]), Err(SpareErrorKind::Missing(FIRST)));
    bed.plain(&bed.main);
    let (_, mut used) = used_of(&bed, &[&bed.spares[0], &new]).unwrap();
    used.sort_unstable();
    assert_eq!(used, [FIRST, NEW]);
}

/// Where the header of the only other one takes no writes, a spare is named by itself alone.
#[test]
fn a_spare_that_no_other_one_names_gets_nothing() {
    let bed = with_one(true);
    let new = made(&bed);
    rewrite(&bed, &new, |header| (header.sequence, header.members) = (5, vec![FIRST, NEW]));
    let open = |stuck: &[u64]| {
        let (old, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
        stuck.iter().for_each(|at| faults.spoil(crate::bed::at(*at, BLOCK), BadSector::Stuck));
        let spares = [old, bed.plain(&new)].map(|disk| SpareAt::Disk(Box::new(disk))).into();
        let disk = bed.plain(&bed.main).with_spares(spares, &OWNER).unwrap();
        let leaving: Vec<_> = disk.spares().iter().map(|spare| spare.leaving).collect();
        (disk, leaving)
    };
    let (mut disk, leaving) = open(&[0, bed.spares[0].size() - BLOCK]);
    assert_eq!((leaving, block_4(&mut disk)), (vec![false, true], 2));
    assert!(disk.info().notes.iter().any(|note| note.contains("gets nothing")));
    drop(disk);
    let (mut disk, leaving) = open(&[]);
    assert_eq!((leaving, block_4(&mut disk)), (vec![false, false], 2));
}

/// One whose header takes no writes names the others all the same, if not the newest set.
#[test]
fn a_spare_that_an_outdated_header_names_gets_units() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    drop(bed.open());
    // A third one was removed, and only the first could note that.
    rewrite(&bed, &bed.spares[0], |header| header.sequence += 1);
    rewrite(&bed, &bed.spares[1], |header| header.members.push(NEW));
    let (second, stuck) = bed.plain(&bed.spares[1]).with_faults(&[]);
    for offset in [0, bed.spares[1].size() - BLOCK] {
        stuck.spoil(crate::bed::at(offset, BLOCK), BadSector::Stuck);
    }
    let spares = [bed.plain(&bed.spares[0]), second].map(|disk| SpareAt::Disk(Box::new(disk)));
    let disk = bed.plain(&bed.main).with_spares(spares.into(), &OWNER).unwrap();
    let leaving: Vec<_> = disk.spares().iter().map(|spare| spare.leaving).collect();
    assert_eq!(leaving, [false, false]);
}

/// Other versions gave such a one units: they count as those of any other spare.
#[test]
fn what_is_in_a_spare_that_gets_nothing_counts() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.spoil(blocks(4, 1), BadSector::Stuck);
    rig.write(blocks(4, 1), 2);
    drop(rig);
    rewrite(&bed, &bed.spares[1], |header| header.members = vec![SECOND]);
    rewrite(&bed, &bed.spares[1], |header| header.sequence -= 1);
    let (second, stuck) = bed.plain(&bed.spares[1]).with_faults(&[]);
    for offset in [0, bed.spares[1].size() - BLOCK] {
        stuck.spoil(crate::bed::at(offset, BLOCK), BadSector::Stuck);
    }
    let (first, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
    let spares = [first, second].map(|disk| SpareAt::Disk(Box::new(disk))).into();
    let mut disk = bed.plain(&bed.main).with_spares(spares, &OWNER).unwrap();
    assert!(disk.spares()[0].leaving && disk.spares()[0].mapped == 1);
    add(&faults, "flush:error=EIO");
    let data = vec![3; 4096].into();
    disk.execute(DiskOp::Write { range: blocks(4, 1), data, fua: false }).unwrap();
    assert!(disk.execute(DiskOp::Flush).is_err() && disk.is_poisoned());
}

fn add(handle: &FaultHandle, rule: &str) {
    handle.add(rule.parse().unwrap()).unwrap();
}

/// Two spares, of which the second holds nothing and does not answer any more.
fn with_a_dead_one(rules: &[&str]) -> (Bed, Rig) {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(4, 1), BadSector::Stuck);
    rig.write(blocks(4, 1), 2);
    assert_eq!(rig.disk.spares()[1].mapped, 0);
    rules.iter().for_each(|rule| add(&rig.spares[1], rule));
    (bed, rig)
}

#[test]
fn a_dead_spare_that_holds_nothing_is_removed() {
    for rules in
        [&["write:error=EIO", "flush:error=EIO"][..], &["write:error=EIO"], &["flush:error=EIO"]]
    {
        let (mut bed, mut rig) = with_a_dead_one(rules);
        let report = rig.ask(RemapOp::RemoveSpare { spare: SECOND, empty: false });
        assert!(report.not_retired, "{rules:?}");
        assert!(!rig.disk.is_poisoned() && rig.disk.spares().len() == 1);
        assert_eq!(rig.disk.execute(DiskOp::Flush), Ok(Outcome::Done));
        rig.spoil(blocks(5, 1), BadSector::Stuck);
        rig.write(blocks(5, 1), 3);
        drop(rig);
        // It can be there, or not.
        assert_eq!(bed.open().fills(blocks(3, 4)), [1, 2, 3, 1]);
        assert_eq!(members_of(&bed, &[&bed.spares[0]]), Ok(vec![FIRST]));
        bed.spares.pop();
        assert_eq!(bed.open().fills(blocks(3, 4)), [1, 2, 3, 1]);
    }
    let (_bed, mut rig) = with_a_dead_one(&[]);
    assert!(!rig.ask(RemapOp::RemoveSpare { spare: SECOND, empty: false }).not_retired);
}

/// A client's flush asks it, too, as long as it is there, and has nothing to lose with it.
#[test]
fn a_flush_beside_the_removal_of_a_dead_spare_succeeds() {
    let (_bed, mut rig) = with_a_dead_one(&["flush:count=1:hold", "flush:after=1:error=EIO"]);
    let what = RemapOp::RemoveSpare { spare: SECOND, empty: false };
    assert_eq!(rig.disk.remap(OpId(1), what), None);
    let mut done = Vec::new();
    let mut drive = |rig: &mut Rig| (0..32).for_each(|_| rig.disk.completions(&mut done));
    drive(&mut rig);
    assert_eq!(rig.spares[1].held(), 1);
    assert_eq!(rig.disk.submit(OpId(2), DiskOp::Flush), None);
    drive(&mut rig);
    rig.spares[1].release();
    drive(&mut rig);
    assert!(rig.disk.remap_report(OpId(1)).unwrap().not_retired);
    assert!(!rig.disk.is_poisoned() && rig.disk.in_flight() == 0);
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    assert_eq!(done.len(), 2);
}

/// A spare is not dropped before what was asked of it has ended.
#[test]
fn a_flush_beside_the_adding_of_a_dead_spare_is_answered() {
    let bed = with_one(true);
    let mut rig = bed.open();
    let (loaded, faults) =
        loaded_with(&bed, &made(&bed), &["write:error=EIO", "flush:after=1:hold"]);
    assert_eq!(rig.disk.remap(OpId(1), RemapOp::AddSpare(loaded)), None);
    let mut done = Vec::new();
    let mut drive = |rig: &mut Rig| (0..32).for_each(|_| rig.disk.completions(&mut done));
    drive(&mut rig);
    assert_eq!(faults.held(), 1);
    assert_eq!(rig.disk.submit(OpId(2), DiskOp::Flush), None);
    for _ in 0..2 {
        faults.release();
        drive(&mut rig);
    }
    let mut ends: Vec<_> = done.iter().map(|end| (end.op.0, end.result.is_ok())).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(1, false), (2, true)]);
    assert_eq!((rig.disk.spares().len(), rig.disk.in_flight()), (1, 0));
}

/// What is in a slot, or in the table, counts until it is elsewhere, durably.
#[test]
fn a_spare_that_dies_while_it_is_emptied_ends_the_disk() {
    let bed = Bed::new(64, 4096, &[8, 8]);
    let mut rig = bed.open();
    rig.spoil(blocks(4, 1), BadSector::Stuck);
    rig.write(blocks(4, 1), 2);
    // The table says durably in no place that the slot is free.
    add(&rig.spares[0], "flush:error=EIO");
    assert!(rig.disk.remap_now(RemapOp::RemoveSpare { spare: FIRST, empty: true }).0.is_err());
    assert!(rig.disk.is_poisoned());
    drop(rig);
    assert_eq!(bed.open().fills(blocks(3, 3)), [0, 2, 0]);
}

fn loaded_with(bed: &Bed, store: &MemoryStore, rules: &[&str]) -> (LoadedSpare, FaultHandle) {
    let (disk, faults) = bed.plain(store).with_faults(&[]);
    rules.iter().for_each(|rule| add(&faults, rule));
    (load_spare(disk, &OWNER).unwrap(), faults)
}

#[test]
fn a_spare_that_dies_when_it_is_added_is_none_of_the_disks() {
    for rules in
        [&["write:error=EIO", "flush:error=EIO"][..], &["write:error=EIO"], &["flush:error=EIO"]]
    {
        let mut bed = with_one(true);
        let new = made(&bed);
        let mut rig = bed.open();
        let (loaded, _) = loaded_with(&bed, &new, rules);
        assert!(rig.disk.remap_now(RemapOp::AddSpare(loaded)).0.is_err());
        assert!(!rig.disk.is_poisoned() && rig.disk.spares().len() == 1, "{rules:?}");
        assert_eq!(rig.disk.execute(DiskOp::Flush), Ok(Outcome::Done));
        rig.spoil(blocks(5, 1), BadSector::Stuck);
        rig.write(blocks(5, 1), 3);
        // Another one can be had.
        let third = MemoryStore::new(1 << 20);
        let shape = format(8, 4096, 8, bed.main.size());
        format_spare(&mut bed.plain(&third), None, &OWNER, &shape).unwrap();
        rig.ask(RemapOp::AddSpare(loaded_with(&bed, &third, &[]).0));
        drop(rig);
        let (_, used) = used_of(&bed, &[&bed.spares[0], &third, &new]).unwrap();
        assert_eq!(used, [FIRST, SpareId([8; 16])], "whatever the dead one says of itself");
        bed.spares.push(third);
        assert_eq!(bed.open().fills(blocks(3, 4)), [1, 2, 3, 1]);
    }
}

#[test]
fn a_spare_of_the_disk_that_holds_nothing_is_a_leftover() {
    let bed = with_one(true);
    let new = made(&bed);
    assert!(is_leftover(&mut bed.plain(&new), None, &OWNER));
    assert!(!is_leftover(&mut bed.plain(&bed.spares[0]), None, &OWNER), "that one holds something");
    let other = DiskIdentity { disk: [7; 16], ..OWNER };
    assert!(!is_leftover(&mut bed.plain(&new), None, &other));
    assert!(!is_leftover(&mut bed.plain(&MemoryStore::new(1 << 20)), None, &OWNER));
}

#[test]
fn a_retired_spare_is_not_added() {
    let bed = with_one(true);
    let new = made(&bed);
    retire_spare(&mut bed.plain(&new), None, &OWNER).unwrap();
    let error = load_spare(bed.plain(&new), &OWNER).unwrap_err();
    assert_eq!(error.kind, SpareErrorKind::Retired);
}

fn image(store: &MemoryStore) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut bytes);
    bytes
}

/// An older image of a spare that was put back, known by how often its table was written.
#[test]
fn an_older_image_of_a_spare_is_refused() {
    let bed = with_one(true);
    let older = image(&bed.spares[0]);
    let mut rig = bed.open();
    let writes = |rig: &Rig| -> TableWrites {
        rig.disk.spares().iter().map(|spare| (spare.id, spare.table_writes)).collect()
    };
    let at_first = writes(&rig);
    rig.spoil(blocks(5, 1), BadSector::Stuck);
    rig.write(blocks(5, 1), 3);
    let newest = writes(&rig);
    assert!(newest[&FIRST] > at_first[&FIRST]);
    drop(rig);
    let open = |noted: &TableWrites| {
        let spare = SpareAt::Disk(Box::new(bed.plain(&bed.spares[0])));
        let disk = bed.plain(&bed.main).with_noted_spares(vec![spare], &OWNER, noted);
        disk.map(|disk| disk.spares()[0].table_writes).map_err(|error| error.kind)
    };
    assert_eq!(open(&newest), Ok(newest[&FIRST]));
    let newer = image(&bed.spares[0]);
    bed.spares[0].write(0, &older);
    let (found, noted) = (at_first[&FIRST], newest[&FIRST]);
    assert_eq!(open(&newest), Err(SpareErrorKind::Older { found, noted, halves: 0 }));
    assert_eq!(image(&bed.spares[0]), older, "it is as it was");
    // Nobody noted anything, or only what it was then.
    assert_eq!(open(&TableWrites::new()), Ok(found));
    assert_eq!(open(&at_first), Ok(found));
    bed.spares[0].write(0, &newer);
    assert_eq!(open(&newest), Ok(noted));
}

/// The making of a spare that was cut off before its header was there: whoever comes next makes it anew.
#[test]
fn a_spare_that_was_never_finished_is_made_again() {
    let bed = Bed::new(64, 4096, &[8]);
    let size = 4 << 20;
    let shape = |id| holdfast_store::SpareFormat { slots: None, ..format(id, 4096, 1, size) };
    let store = MemoryStore::new(size);
    let made = format_spare(&mut bed.plain(&store), None, &OWNER, &shape(7)).unwrap();
    let whole = image(&store);
    let place = |copy, number| usize::try_from(made.layout.table_offset(copy, number)).unwrap();
    let unfinished = |blocks: u32| {
        let mut bytes = vec![0; whole.len()];
        for n in 0..blocks {
            let at = place(
                n as usize / made.layout.table_blocks() as usize,
                n % made.layout.table_blocks(),
            );
            bytes[at..at + 4096].copy_from_slice(&whole[at..at + 4096]);
        }
        bytes
    };
    let format_again = |bytes: &[u8], id| {
        let store = MemoryStore::new(size);
        store.write(0, bytes);
        let other = holdfast_store::DiskIdentity { disk: *b"of somebody else", ..OWNER };
        let made = format_spare(&mut bed.plain(&store), None, &other, &shape(id));
        made.map(|_| image(&store)).map_err(|error| error.kind)
    };
    assert!(made.layout.table_blocks() > 2);
    for blocks in 0..=2 * made.layout.table_blocks() {
        assert!(format_again(&unfinished(blocks), 9).is_ok(), "{blocks} blocks were written");
    }
    // One that is finished, one whose header is lost and that was used, and data.
    assert!(matches!(format_again(&whole, 9), Err(SpareErrorKind::NotEmpty(_))));
    for at in [place(0, 1) + 40, place(1, 2) + 4095, place(0, 0) - 1, place(1, 0) - 1] {
        let mut bytes = unfinished(2 * made.layout.table_blocks());
        bytes[at] += 1;
        assert!(matches!(format_again(&bytes, 9), Err(SpareErrorKind::NotEmpty(_))), "at {at}");
    }
    // One that is retired says so until the new one is there.
    retire_spare(&mut bed.plain(&store), None, &OWNER).unwrap();
    let retired = image(&store);
    let anew = format_again(&retired, 9).unwrap();
    for cut in (4096..anew.len() - 4096).step_by(4096) {
        let bytes = [&retired[..4096], &anew[4096..cut], &retired[cut..]].concat();
        assert!(format_again(&bytes, 11).is_ok(), "cut at {cut}");
    }
}
