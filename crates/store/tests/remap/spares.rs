//! What can be asked for: healing, moving by hand, adding and removing spares.

use bytes::Bytes;
use holdfast_format::remap::{EntryState, Reason, SpareId};
use holdfast_store::{
    BadSector, DiskErrorKind, DiskIdentity, DiskOp, MemoryStore, RemapChange, RemapFate, RemapOp,
    SpareAt, SpareErrorKind, TableWrites, format_spare, load_spare, retire_spare,
};
use std::sync::{Arc, Mutex};

use crate::bed::{BLOCK, Bed, OWNER, at, blocks, format, slot_offset};

fn repair(first: u64, count: u64, fill: u8) -> RemapOp {
    let range = blocks(first, count);
    let data = Bytes::from(vec![fill; usize::try_from(range.len).unwrap()]);
    RemapOp::Repair { range, data }
}

#[test]
fn a_block_is_healed_in_place_first() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(3, 1), BadSector::UntilWritten);
    rig.spoil(blocks(4, 1), BadSector::Forever);
    assert_eq!(rig.partial(blocks(0, 8)).bad, [blocks(3, 2)]);
    let report = rig.ask(repair(3, 2, 9));
    assert_eq!((report.in_place, report.placed), (1, 1));
    assert_eq!(rig.fills(blocks(2, 4)), [1, 9, 9, 1]);
    assert_eq!((rig.stats().mapped, rig.main.bad_sectors().len()), (1, 8));
    // A drive that says it wrote and did not.
    rig.main.add(format!("write:range={}+{BLOCK}:drop", 7 * BLOCK).parse().unwrap()).unwrap();
    let report = rig.ask(repair(7, 1, 5));
    assert_eq!((report.in_place, report.placed), (0, 1));
    assert_eq!(rig.fills(blocks(7, 1)), [5]);
    // Again, in its slot.
    let report = rig.ask(repair(7, 1, 6));
    assert_eq!((report.in_place, report.placed), (1, 0));
    drop(rig);
    assert_eq!(bed.open().fills(blocks(2, 6)), [1, 9, 9, 1, 1, 6]);
}

#[test]
fn a_slot_that_cannot_be_read_is_unreadable_until_it_is_repaired() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.write(blocks(0, 8), 1);
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 0), BLOCK), BadSector::Forever);
    assert_eq!(rig.partial(blocks(2, 3)).bad, [blocks(3, 1)]);
    assert_eq!(rig.partial(blocks(3, 1)).bad, [blocks(3, 1)]);
    let report = rig.ask(repair(3, 1, 2));
    assert_eq!((report.in_place, report.placed), (0, 1));
    assert_eq!(rig.fills(blocks(2, 3)), [1, 2, 1]);
    assert_eq!(rig.stats().bad_slots, 1);
}

#[test]
fn blocks_are_moved_by_hand_and_back() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    (0..16).for_each(|block| rig.write(blocks(block, 1), u8::try_from(block).unwrap()));
    let report = rig.ask(RemapOp::Move { range: blocks(4, 3), imported: false });
    assert_eq!(report.placed, 3);
    assert_eq!(rig.fills(blocks(2, 6)), [2, 3, 4, 5, 6, 7]);
    rig.spoil(blocks(4, 2), BadSector::Forever);
    rig.write(blocks(5, 1), 55);
    let (result, report) = rig.disk.remap_now(RemapOp::MoveBack { range: blocks(0, 16) });
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::Io);
    assert_eq!((report.in_place, report.failed), (1, 2), "6 is back, 4 and 5 cannot");
    assert_eq!(rig.fills(blocks(2, 6)), [2, 3, 4, 55, 6, 7]);
    rig.main.mend(blocks(4, 2));
    assert_eq!(rig.ask(RemapOp::MoveBack { range: blocks(0, 16) }).in_place, 2);
    assert_eq!((rig.stats().mapped, rig.stats().free), (0, 8));
    assert_eq!(rig.fills(blocks(2, 6)), [2, 3, 4, 55, 6, 7]);
    let mut found = [0; 4096];
    bed.main.read(5 * BLOCK, &mut found);
    assert_eq!(found, [55; 4096]);
    drop(rig);
    assert_eq!(bed.open().fills(blocks(2, 6)), [2, 3, 4, 55, 6, 7]);
}

#[test]
fn a_list_of_bad_blocks_is_moved_or_lost() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(10, 2), BadSector::UntilWritten);
    let report = rig.ask(RemapOp::Move { range: blocks(9, 4), imported: true });
    assert_eq!((report.placed, report.lost), (2, 2));
    assert_eq!(rig.partial(blocks(8, 6)).bad, [blocks(10, 2)]);
    let mut entries: Vec<_> =
        rig.disk.remap_entries().map(|e| (e.range.offset / BLOCK, e.state, e.reason)).collect();
    entries.sort_unstable_by_key(|entry| entry.0);
    let (mapped, lost) = (EntryState::Mapped, EntryState::Lost);
    let states: Vec<_> = entries.iter().map(|entry| (entry.0, entry.1)).collect();
    assert_eq!(states, [(9, mapped), (10, lost), (11, lost), (12, mapped)]);
    let reason = |state| if state == mapped { Reason::Imported } else { Reason::NotReadBack };
    assert!(entries.iter().all(|entry| entry.2 == reason(entry.1)), "{entries:?}");
    assert_eq!(rig.ask(RemapOp::Move { range: blocks(9, 4), imported: true }).placed, 0);
}

#[test]
fn every_change_of_the_tables_is_told() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    rig.disk.watch_remap(Box::new(move |changes: &[RemapChange], _: &TableWrites| {
        log.lock().unwrap().extend_from_slice(changes);
    }));
    let news = || {
        let changes = std::mem::take(&mut *told.lock().unwrap());
        let of = |c: RemapChange| (c.range.offset / BLOCK, c.fate, c.reason);
        changes.into_iter().map(of).collect::<Vec<_>>()
    };
    rig.write(blocks(0, 64), 1);
    assert_eq!(news(), []);
    rig.spoil(blocks(3, 2), BadSector::Forever);
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 0), BLOCK), BadSector::Forever);
    rig.write(blocks(0, 8), 2);
    let spare = rig.disk.spares()[0].id;
    let mut found = news();
    found.sort_by_key(|(unit, fate, _)| (*unit, matches!(fate, RemapFate::Placed(..))));
    let placed = found.iter().filter(|c| matches!(c.1, RemapFate::Placed(id, _) if id == spare));
    assert_eq!(
        placed.map(|c| (c.0, c.2)).collect::<Vec<_>>(),
        [3, 4].map(|n| (n, Reason::WriteError))
    );
    let failed = found.iter().filter(|c| c.1 == RemapFate::SlotFailed(spare, 0));
    assert_eq!(failed.count(), 1, "{found:?}");
    rig.ask(RemapOp::MarkLost { range: blocks(9, 1) });
    assert_eq!(news(), [(9, RemapFate::Lost, Reason::ReadError)]);
    rig.main.mend(blocks(3, 2));
    rig.ask(RemapOp::MoveBack { range: blocks(0, 8) });
    let mut back = news();
    back.sort_by_key(|change| change.0);
    assert_eq!(
        back.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>(),
        [(3, RemapFate::Returned), (4, RemapFate::Returned)]
    );
    rig.ask(repair(20, 1, 7));
    assert_eq!(news(), [], "rewritten in place: no table has changed");
}

#[test]
fn a_spare_that_was_given_up_is_refused_and_can_be_formatted_again() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.ask(RemapOp::Move { range: blocks(9, 1), imported: false });
    drop(rig);
    let mut spare = bed.plain(&bed.spares[0]);
    let other = DiskIdentity { disk: [7; 16], ..OWNER };
    let refused = retire_spare(&mut spare, None, &other).unwrap_err();
    assert!(matches!(refused.kind, SpareErrorKind::Foreign { .. }));
    retire_spare(&mut spare, None, &OWNER).unwrap();
    retire_spare(&mut spare, None, &OWNER).unwrap();
    assert_eq!(bed.try_open(OWNER).err().unwrap().kind, SpareErrorKind::Retired);
    format_spare(&mut spare, None, &OWNER, &format(3, 4096, 8, bed.main.size())).unwrap();
    assert_eq!(bed.open().stats().free, 8);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    let kind = |(result, _): (Result<(), holdfast_store::DiskError>, _)| result.unwrap_err().kind;
    let lost = |range| RemapOp::MarkLost { range };
    assert_eq!(kind(rig.disk.remap_now(lost(at(0, 512)))), DiskErrorKind::Invalid);
    assert_eq!(kind(rig.disk.remap_now(lost(blocks(64, 1)))), DiskErrorKind::OutOfRange);
    let short = RemapOp::Repair { range: blocks(0, 2), data: Bytes::from(vec![0; 4096]) };
    assert_eq!(kind(rig.disk.remap_now(short)), DiskErrorKind::Invalid);
    let mut plain = bed.plain(&bed.main);
    assert_eq!(kind(plain.remap_now(lost(blocks(0, 1)))), DiskErrorKind::Invalid);
    assert!(rig.disk.remap_now(lost(blocks(0, 0))).0.is_ok(), "nothing to do");
    let last = RemapOp::RemoveSpare { spare: SpareId([1; 16]), empty: true };
    assert!(rig.disk.remap_now(last).0.is_err(), "the last one stays");
    let unknown = RemapOp::RemoveSpare { spare: SpareId([9; 16]), empty: true };
    assert!(rig.disk.remap_now(unknown).0.is_err());
    assert_eq!(rig.ask(lost(blocks(0, 8))).lost, 8);
    let (result, report) = rig.disk.remap_now(lost(blocks(8, 1)));
    assert_eq!((result.unwrap_err().kind, report.full), (DiskErrorKind::SpareFull, 1));
}

#[test]
fn a_spare_is_added_while_the_disk_is_used() {
    let mut bed = Bed::new(64, 4096, &[2]);
    let mut rig = bed.open();
    rig.spoil(blocks(0, 5), BadSector::Forever);
    rig.write(blocks(0, 2), 1);
    assert_eq!(rig.try_write(blocks(2, 1), 2).unwrap_err().kind, DiskErrorKind::SpareFull);
    let store = MemoryStore::new(1 << 20);
    let shape = format(2, 4096, 4, bed.main.size());
    format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap();
    let loaded = load_spare(bed.plain(&store), &OWNER).unwrap();
    rig.ask(RemapOp::AddSpare(loaded));
    rig.write(blocks(0, 5), 3);
    assert_eq!((rig.stats().mapped, rig.stats().free, rig.stats().slots), (5, 1, 6));
    assert_eq!(rig.disk.spares().len(), 2);
    drop(rig);
    let error = bed.try_open(OWNER).err().unwrap().to_string();
    assert!(error.contains("another spare, 02020202") && error.contains("old data"), "{error}");
    bed.spares.push(store);
    assert_eq!(bed.open().fills(blocks(0, 6)), [3, 3, 3, 3, 3, 0]);
    // It is not taken a second time, nor one of another kind.
    let mut rig = bed.open();
    let again = load_spare(bed.plain(&bed.spares[1]), &OWNER).unwrap();
    assert!(rig.disk.remap_now(RemapOp::AddSpare(again)).0.is_err());
    let store = MemoryStore::new(1 << 20);
    let shape = format(3, 512, 4, bed.main.size());
    format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap();
    let other = load_spare(bed.plain(&store), &OWNER).unwrap();
    assert!(rig.disk.remap_now(RemapOp::AddSpare(other)).0.is_err());
    assert_eq!(rig.disk.spares().len(), 2);
}

#[test]
fn a_spare_is_emptied_and_removed_while_the_disk_is_used() {
    let mut bed = Bed::new(1024, 4096, &[600, 700]);
    let mut rig = bed.open();
    for block in 0..600 {
        rig.spoil(blocks(block, 1), BadSector::Forever);
        rig.write(blocks(block, 1), u8::try_from(block % 250).unwrap());
    }
    rig.ask(RemapOp::MarkLost { range: blocks(800, 2) });
    let first = SpareId([1; 16]);
    let (result, report) = rig.disk.remap_now(RemapOp::RemoveSpare { spare: first, empty: false });
    assert!(result.is_err());
    assert_eq!(report.busy, 600);
    // One slot cannot be read any more: that block is lost, and none of the others.
    let offset = slot_offset(4, BLOCK, 17);
    rig.spares[0].spoil(at(offset, BLOCK), BadSector::UntilWritten);
    let report = rig.ask(RemapOp::RemoveSpare { spare: first, empty: true });
    assert_eq!((report.placed, report.lost), (599, 1));
    assert_eq!((rig.stats().mapped, rig.stats().lost, rig.disk.spares().len()), (599, 3, 1));
    let check = |rig: &mut crate::bed::Rig| {
        assert_eq!(rig.partial(blocks(0, 600)).bad, [blocks(17, 1)]);
        for block in (0..600).filter(|block| *block != 17) {
            let fill = u8::try_from(block % 250).unwrap();
            assert_eq!(rig.fills(blocks(block, 1)), [fill]);
        }
        assert_eq!(rig.partial(blocks(800, 2)).bad, [blocks(800, 2)]);
    };
    check(&mut rig);
    drop(rig);
    // Given by mistake it is left out, and may be formatted again without force.
    let rig = bed.open();
    assert_eq!(rig.disk.info().notes.len(), 1, "{:?}", rig.disk.info().notes);
    drop(rig);
    let gone = bed.spares.remove(0);
    check(&mut bed.open());
    let shape = format(7, 4096, 8, bed.main.size());
    format_spare(&mut bed.plain(&gone), None, &OWNER, &shape).unwrap();
}

#[test]
fn a_spare_that_the_others_have_no_room_for_stays() {
    let bed = Bed::new(64, 4096, &[8, 4]);
    let mut rig = bed.open();
    rig.spoil(blocks(0, 6), BadSector::Forever);
    rig.write(blocks(0, 6), 4);
    let spare = SpareId([1; 16]);
    let (result, report) = rig.disk.remap_now(RemapOp::RemoveSpare { spare, empty: true });
    assert_eq!(result.unwrap_err().kind, DiskErrorKind::SpareFull);
    assert_eq!((report.placed, report.full), (4, 2));
    assert_eq!(rig.fills(blocks(0, 7)), [4, 4, 4, 4, 4, 4, 0]);
    rig.spoil(blocks(10, 2), BadSector::Forever);
    rig.write(blocks(10, 2), 5);
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(0, 7)), [4, 4, 4, 4, 4, 4, 0]);
    assert_eq!(rig.fills(blocks(10, 2)), [5, 5]);
}

#[test]
fn a_weak_table_block_is_avoided_where_that_can_be() {
    // Two blocks of the table: 168 slots each.
    let bed = Bed::new(64, 4096, &[300]);
    let mut rig = bed.open();
    let copy_b = bed.spares[0].size() - 3 * BLOCK;
    rig.spares[0].spoil(at(copy_b, BLOCK), BadSector::Forever);
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.write(blocks(3, 1), 1);
    let slots: Vec<_> = rig.disk.remap_entries().map(|entry| entry.slot).collect();
    assert_eq!(slots, [168], "durable twice");
    assert_eq!(rig.stats().weak_blocks, 1);
    rig.spares[0].spoil(at(copy_b, 2 * BLOCK), BadSector::Forever);
    rig.spoil(blocks(4, 1), BadSector::Forever);
    rig.write(blocks(4, 1), 2);
    assert_eq!(rig.stats().weak_blocks, 2, "told");
    drop(rig);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(2, 4)), [0, 1, 2, 0]);
    // No copy can be written any more: nobody knows what counts.
    rig.spares[0].spoil(at(BLOCK, 2 * BLOCK), BadSector::Stuck);
    rig.spares[0].spoil(at(copy_b, 2 * BLOCK), BadSector::Stuck);
    rig.spoil(blocks(5, 1), BadSector::Forever);
    assert!(rig.try_write(blocks(5, 1), 2).is_err());
    assert!(rig.disk.is_poisoned());
}

#[test]
fn a_spare_can_be_a_region_of_the_disk() {
    let store = MemoryStore::new(64 * BLOCK);
    let bed = Bed::new(1, 4096, &[]);
    let region = blocks(40, 16);
    let mut disk = bed.plain(&store);
    let shape = format(1, 4096, 8, disk.size());
    format_spare(&mut disk, Some(region), &OWNER, &shape).unwrap();
    let (disk, faults) = disk.with_faults(&[]);
    let disk = disk.with_spares(vec![SpareAt::Region(region)], &OWNER).unwrap();
    let mut rig = crate::bed::Rig { disk, main: faults, spares: Vec::new() };
    rig.spoil(blocks(3, 2), BadSector::Forever);
    rig.write(blocks(0, 40), 6);
    rig.write(blocks(56, 8), 7);
    assert_eq!(rig.fills(blocks(0, 40)), vec![6; 40]);
    assert_eq!(rig.try_write(blocks(39, 2), 1).unwrap_err().kind, DiskErrorKind::OutOfRange);
    assert_eq!(rig.try_read(blocks(55, 2)).unwrap_err().kind, DiskErrorKind::OutOfRange);
    assert_eq!(rig.disk.execute(DiskOp::Flush), Ok(holdfast_store::Outcome::Done));
    drop(rig);
    let disk = bed.plain(&store).with_spares(vec![SpareAt::Region(region)], &OWNER).unwrap();
    let (main, spares) = (bed.plain(&bed.main).with_faults(&[]).1, Vec::new());
    let mut rig = crate::bed::Rig { disk, main, spares };
    assert_eq!(rig.fills(blocks(0, 40)), vec![6; 40]);
    assert_eq!(rig.stats().mapped, 2);
}
