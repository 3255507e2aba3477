//! A copy of a block of the table that cannot be written, but read: it gets old, and is never believed
//! when the other one breaks.

use holdfast_format::BlockError;
use holdfast_store::{BadSector, Disk, MemoryStore, RemapOp, SpareAt, SpareErrorKind};

use crate::bed::{BLOCK, Bed, OWNER, at, blocks};

/// Where the two copies of the only block of the table lie.
fn copies(bed: &Bed) -> [u64; 2] {
    [BLOCK, bed.spares[0].size() - 2 * BLOCK]
}

/// The disk, with a spare on which this block cannot be written.
fn open_stuck(bed: &Bed, offset: u64) -> Disk {
    let (spare, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
    faults.spoil(at(offset, BLOCK), BadSector::Stuck);
    let spares = vec![SpareAt::Disk(Box::new(spare))];
    bed.plain(&bed.main).with_spares(spares, &OWNER).unwrap()
}

fn take(disk: &mut Disk, block: u64) {
    let (result, report) =
        disk.remap_now(RemapOp::Move { range: blocks(block, 1), imported: false });
    assert_eq!((result, report.placed), (Ok(()), 1));
}

fn bytes(store: &MemoryStore, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    store.read(offset, &mut bytes);
    bytes
}

fn block(store: &MemoryStore, offset: u64) -> Vec<u8> {
    bytes(store, offset, BLOCK)
}

/// With the good copy broken behind its first sector the spare is refused; with it whole, all is there.
fn check(bed: &Bed, good: usize, mapped: u64) {
    let offset = copies(bed)[good];
    let whole = block(&bed.spares[0], offset);
    bed.spares[0].write(offset + 4000, &[1]);
    let error = bed.try_open(OWNER).map(|_| ()).unwrap_err();
    let SpareErrorKind::Table { block: 0, why } = &error.kind else { panic!("{error}") };
    assert_eq!(why[1 - good], BlockError::Old, "{error}");
    bed.spares[0].write(offset, &whole);
    assert_eq!(bed.open().stats().mapped, mapped);
}

#[test]
fn an_old_copy_is_not_believed_when_the_good_one_is_torn() {
    for good in [0, 1] {
        let bed = Bed::new(64, 4096, &[16]);
        let stuck = copies(&bed)[1 - good];
        let mut disk = open_stuck(&bed, stuck);
        take(&mut disk, 3);
        assert_eq!(disk.remap_stats().unwrap().weak_blocks, 1);
        let one = block(&bed.spares[0], copies(&bed)[good]);
        take(&mut disk, 4);
        drop(disk);
        let (two, old) =
            (bytes(&bed.spares[0], 0, bed.spares[0].size()), block(&bed.spares[0], stuck));
        check(&bed, good, 2);
        // The same after one change, where the old copy is the least behind.
        bed.spares[0].write(0, &two);
        bed.spares[0].write(copies(&bed)[good], &one);
        assert_eq!(block(&bed.spares[0], stuck), old);
        check(&bed, good, 1);
    }
}

#[test]
fn one_that_a_process_left_one_write_behind_is_not_believed_either() {
    for good in [0, 1] {
        let bed = Bed::new(64, 4096, &[16]);
        let stuck = copies(&bed)[1 - good];
        let old = block(&bed.spares[0], stuck);
        take(&mut bed.open().disk, 3);
        bed.spares[0].write(stuck, &old);
        let disk = open_stuck(&bed, stuck);
        assert_eq!(disk.remap_stats().unwrap().weak_blocks, 1);
        drop(disk);
        check(&bed, good, 1);
    }
}

/// The power failed between the two copies, and since then the spare only reads.
#[test]
fn a_spare_that_takes_no_writes_any_more_is_used_as_it_is() {
    let bed = Bed::new(64, 4096, &[16]);
    drop(bed.open());
    let second = copies(&bed)[1];
    let old = block(&bed.spares[0], second);
    take(&mut bed.open().disk, 3);
    bed.spares[0].write(second, &old);
    let (spare, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
    faults.spoil(at(0, bed.spares[0].size()), BadSector::Stuck);
    let spares = vec![SpareAt::Disk(Box::new(spare))];
    let disk = bed.plain(&bed.main).with_spares(spares, &OWNER).unwrap();
    let stats = disk.remap_stats().unwrap();
    assert_eq!((stats.mapped, stats.weak_blocks), (1, 1));
}
