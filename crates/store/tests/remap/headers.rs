//! Spares of whose metadata one copy takes no writes: they are used, and can be replaced.

use holdfast_format::remap::SpareId;
use holdfast_store::{
    BadSector, DiskError, FaultHandle, LoadedSpare, MemoryStore, RemapOp, SpareAt, SpareErrorKind,
    format_spare, load_spare, read_spare_header, retire_spare,
};

use crate::bed::{BLOCK, Bed, OWNER, Rig, at, blocks, format, slot_offset};

const FIRST: SpareId = SpareId([1; 16]);
const NEW: SpareId = SpareId([7; 16]);

/// Both copies of the header of the first spare.
fn headers(bed: &Bed) -> [u64; 2] {
    [0, bed.spares[0].size() - BLOCK]
}

/// Another spare, which the disk does not have yet.
fn another(bed: &Bed) -> (MemoryStore, LoadedSpare) {
    let store = MemoryStore::new(1 << 20);
    let shape = format(NEW.0[0], 4096, 8, bed.main.size());
    format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap();
    let loaded = load_spare(bed.plain(&store), &OWNER).unwrap();
    (store, loaded)
}

/// Opens the first spare with these blocks bad.
fn open_with(bed: &Bed, bad: &[u64], how: BadSector) -> Result<Rig, SpareErrorKind> {
    let (spare, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
    bad.iter().for_each(|offset| faults.spoil(at(*offset, BLOCK), how));
    let (main, main_faults) = bed.plain(&bed.main).with_faults(&[]);
    let disk = main.with_spares(vec![SpareAt::Disk(Box::new(spare))], &OWNER);
    let disk = disk.map_err(|error| error.kind)?;
    Ok(Rig { disk, main: main_faults, spares: vec![faults] })
}

/// A disk with a block in its only spare.
fn used() -> (Bed, Rig) {
    let bed = Bed::new(64, 4096, &[8]);
    let mut rig = bed.open();
    rig.write(blocks(0, 64), 1);
    rig.spoil(blocks(4, 1), BadSector::Stuck);
    rig.write(blocks(4, 1), 2);
    (bed, rig)
}

fn stuck(handle: &FaultHandle, offset: u64) {
    handle.spoil(at(offset, BLOCK), BadSector::Stuck);
}

#[test]
fn a_copy_that_can_be_neither_read_nor_written_keeps_no_disk_away() {
    let (bed, rig) = used();
    drop(rig);
    let end = bed.spares[0].size();
    for offset in [0, BLOCK, end - 2 * BLOCK, end - BLOCK] {
        let mut rig = open_with(&bed, &[offset], BadSector::Forever).unwrap();
        assert_eq!(rig.fills(blocks(3, 3)), [1, 2, 1]);
        assert_eq!(rig.stats().weak_blocks, 1, "the copy at {offset} is missed");
        let is_header = offset == 0 || offset == end - BLOCK;
        assert_eq!(rig.disk.info().notes.len(), usize::from(is_header), "and told");
    }
    let error = open_with(&bed, &headers(&bed), BadSector::Forever).err().unwrap();
    assert!(matches!(error, SpareErrorKind::NoHeader(_)), "{error:?}");
    assert_eq!(bed.open().stats().weak_blocks, 0);
}

#[test]
fn a_leftover_is_freed_where_one_copy_of_the_table_takes_it() {
    let bed = Bed::new(64, 4096, &[1, 8]);
    let mut rig = bed.open();
    rig.spoil(blocks(3, 1), BadSector::Forever);
    rig.write(blocks(3, 1), 1);
    let size = usize::try_from(bed.spares[0].size()).unwrap();
    let mut before = vec![0; size];
    bed.spares[0].read(0, &mut before);
    rig.spares[0].spoil(at(slot_offset(1, BLOCK, 0), BLOCK), BadSector::Stuck);
    rig.write(blocks(3, 1), 2);
    drop(rig);
    // As if the last round of the first spare had been cut off.
    for bad in [vec![BLOCK], vec![bed.spares[0].size() - 2 * BLOCK]] {
        bed.spares[0].write(0, &before);
        let (spare, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
        bad.iter().for_each(|offset| stuck(&faults, *offset));
        let second = SpareAt::Disk(Box::new(bed.plain(&bed.spares[1])));
        let spares = vec![SpareAt::Disk(Box::new(spare)), second];
        let disk = bed.plain(&bed.main).with_spares(spares, &OWNER).unwrap();
        let (main, spares) = (bed.plain(&bed.main).with_faults(&[]).1, vec![faults]);
        let mut rig = Rig { disk, main, spares };
        assert_eq!((rig.fills(blocks(3, 1)), rig.stats().weak_blocks), (vec![2], 1));
        assert_eq!((rig.stats().mapped, rig.stats().free), (1, 8));
        drop(rig);
        assert_eq!(bed.open().fills(blocks(3, 1)), [2]);
    }
}

#[test]
fn a_spare_with_one_copy_of_its_header_is_replaced_while_the_disk_is_used() {
    for copy in [0, 1] {
        let (mut bed, mut rig) = used();
        let (store, loaded) = another(&bed);
        stuck(&rig.spares[0], headers(&bed)[copy]);
        rig.ask(RemapOp::AddSpare(loaded));
        assert!(rig.disk.spares().iter().all(|spare| !spare.leaving));
        assert_eq!(rig.stats().weak_blocks, 1);
        let report = rig.ask(RemapOp::RemoveSpare { spare: FIRST, empty: true });
        assert_eq!((report.placed, rig.stats().weak_blocks), (1, 0));
        drop(rig);
        assert!(read_spare_header(&mut bed.plain(&bed.spares[0]), None).unwrap().retired);
        bed.spares = vec![store];
        assert_eq!(bed.open().fills(blocks(3, 3)), [1, 2, 1]);
    }
}

#[test]
fn a_spare_that_could_not_be_added_is_added_by_a_second_attempt() {
    let (mut bed, mut rig) = used();
    let (store, loaded) = another(&bed);
    let admit = |rig: &mut Rig, spare| -> Result<(), DiskError> {
        rig.disk.remap_now(RemapOp::AdmitSpare { spare }).0
    };
    assert!(admit(&mut rig, NEW).is_err(), "there is none");
    headers(&bed).iter().for_each(|offset| stuck(&rig.spares[0], *offset));
    assert!(rig.disk.remap_now(RemapOp::AddSpare(loaded)).0.is_err());
    assert_eq!(rig.disk.spares().iter().map(|s| s.leaving).collect::<Vec<_>>(), [false, true]);
    assert!(admit(&mut rig, NEW).is_err(), "still");
    rig.spoil(blocks(20, 10), BadSector::Stuck);
    assert!(rig.try_write(blocks(20, 10), 3).is_err(), "the new one gets nothing");
    assert_eq!(rig.disk.spares()[1].mapped, 0);
    rig.spares[0].mend(at(0, bed.spares[0].size()));
    admit(&mut rig, NEW).unwrap();
    admit(&mut rig, NEW).unwrap();
    assert!(rig.disk.spares().iter().all(|spare| !spare.leaving));
    rig.write(blocks(20, 10), 3);
    let error = bed.try_open(OWNER).err().unwrap();
    assert_eq!(error.kind, SpareErrorKind::Missing(NEW));
    drop(rig);
    bed.spares.push(store);
    assert_eq!(bed.open().fills(blocks(19, 12)), [&[1][..], &[3; 10], &[1]].concat());
}

#[test]
fn a_spare_is_given_up_where_one_copy_of_its_header_takes_it() {
    for copy in [0, 1] {
        let (bed, rig) = used();
        drop(rig);
        let (mut spare, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
        stuck(&faults, headers(&bed)[copy]);
        retire_spare(&mut spare, None, &OWNER).unwrap();
        assert_eq!(bed.try_open(OWNER).err().unwrap().kind, SpareErrorKind::Retired);
        stuck(&faults, headers(&bed)[1 - copy]);
        assert!(retire_spare(&mut spare, None, &OWNER).is_err());
    }
}
