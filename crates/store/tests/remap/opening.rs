//! Formatting and opening: broken copies, foreign spares, sizes.

use holdfast_store::{
    BadSector, DiskIdentity, MemoryStore, SpareErrorKind, SpareFormat, format_spare,
    read_spare_header,
};

use crate::bed::{BLOCK, Bed, OWNER, at, blocks, format};

/// All bytes of a store.
fn image(store: &MemoryStore) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(store.size()).unwrap()];
    store.read(0, &mut bytes);
    bytes
}

/// A bed with three blocks in the spare, which has two blocks of table.
fn used() -> Bed {
    let bed = Bed::new(64, 4096, &[300]);
    let mut rig = bed.open();
    rig.spoil(blocks(10, 3), BadSector::Forever);
    rig.write(blocks(0, 64), 3);
    bed
}

/// Where the metadata blocks of `used` lie: header, table A, table B, header.
fn metadata(bed: &Bed) -> [u64; 6] {
    let end = bed.spares[0].size();
    [0, BLOCK, 2 * BLOCK, end - 3 * BLOCK, end - 2 * BLOCK, end - BLOCK]
}

#[test]
fn each_broken_copy_is_repaired_from_the_other() {
    let bed = used();
    let good = image(&bed.spares[0]);
    for offset in metadata(&bed) {
        for damage in [vec![0; 4096], vec![0xff; 4096], vec![1; 7]] {
            bed.spares[0].write(offset, &damage);
            let mut rig = bed.open();
            assert_eq!(rig.fills(blocks(0, 64)), vec![3; 64]);
            assert!(image(&bed.spares[0]) == good, "the copy at {offset} is whole again");
        }
    }
}

#[test]
fn an_unreadable_copy_is_repaired_too() {
    let bed = used();
    for offset in metadata(&bed) {
        let (disk, faults) = bed.plain(&bed.spares[0]).with_faults(&[]);
        faults.spoil(at(offset, BLOCK), BadSector::UntilWritten);
        let spare = holdfast_store::SpareAt::Disk(Box::new(disk));
        let disk = bed.plain(&bed.main).with_spares(vec![spare], &OWNER).unwrap();
        assert_eq!(disk.remap_stats().unwrap().mapped, 3);
        assert_eq!(faults.bad_sectors(), [], "written again");
    }
}

#[test]
fn two_broken_copies_are_refused_and_nothing_is_written() {
    let bed = used();
    let good = image(&bed.spares[0]);
    let [h0, a0, a1, b0, b1, h1] = metadata(&bed);
    for (pair, what) in [([h0, h1], "header"), ([a0, b0], "block 0"), ([a1, b1], "block 1")] {
        pair.iter().for_each(|offset| bed.spares[0].write(*offset, &[7; 100]));
        let broken = image(&bed.spares[0]);
        let error = bed.try_open(OWNER).err().unwrap().to_string();
        assert!(error.contains(what) && error.contains("format"), "{error}");
        assert!(image(&bed.spares[0]) == broken, "not a byte was written");
        bed.spares[0].write(0, &good);
    }
    assert_eq!(bed.open().stats().mapped, 3);
}

#[test]
fn an_old_copy_is_not_believed() {
    let bed = used();
    let before = image(&bed.spares[0]);
    let mut rig = bed.open();
    rig.spoil(blocks(20, 1), BadSector::Forever);
    rig.write(blocks(20, 1), 9);
    drop(rig);
    let after = image(&bed.spares[0]);
    for offset in metadata(&bed) {
        let start = usize::try_from(offset).unwrap();
        bed.spares[0].write(offset, &before[start..start + 4096]);
        assert_eq!(bed.open().fills(blocks(19, 3)), [3, 9, 3]);
        assert!(image(&bed.spares[0]) == after);
    }
}

#[test]
fn a_foreign_spare_is_refused_with_both_identities_and_stays_as_it_is() {
    let bed = used();
    let before = image(&bed.spares[0]);
    let other = DiskIdentity { disk: [0xab; 16], ..OWNER };
    let error = bed.try_open(other).err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("abababababababab") && text.contains("616e6420746865206469736b"),
        "{text}"
    );
    assert!(matches!(error.kind, SpareErrorKind::Foreign { .. }));
    assert!(image(&bed.spares[0]) == before);
}

#[test]
fn what_is_not_a_spare_is_refused() {
    let bed = Bed::new(64, 4096, &[]);
    let store = MemoryStore::new(1 << 20);
    let error = read_spare_header(&mut bed.plain(&store), None).unwrap_err().to_string();
    assert!(error.contains("no header") && error.contains("never written"), "{error}");
    let other = used();
    let smaller = Bed::new(12, 4096, &[]);
    let spare = holdfast_store::SpareAt::Disk(Box::new(bed.plain(&other.spares[0])));
    let error = bed.plain(&smaller.main).with_spares(vec![spare], &OWNER).unwrap_err();
    assert_eq!(error.kind, SpareErrorKind::DiskTooSmall(12 * BLOCK));
    let twice = |_| holdfast_store::SpareAt::Disk(Box::new(bed.plain(&other.spares[0])));
    let both = [0, 1].map(twice).into();
    let error = bed.plain(&other.main).with_spares(both, &OWNER).unwrap_err();
    assert_eq!(error.kind, SpareErrorKind::Twice);
}

#[test]
fn formatting_spares_what_is_there() {
    let bed = Bed::new(64, 4096, &[]);
    let shape = format(1, 4096, 8, bed.main.size());
    let forced = SpareFormat { force: true, ..shape };
    let store = MemoryStore::new(4 << 20);
    for (offset, what) in
        [(1080, "not all of it is zero"), ((4 << 20) - 1, "not all of it is zero")]
    {
        store.write(offset, &[1]);
        let before = image(&store);
        let error = format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(image(&store) == before);
        store.write(offset, &[0]);
    }
    store.write(2 << 20, &[1]);
    format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap();
    let again = format_spare(&mut bed.plain(&store), None, &OWNER, &shape).unwrap_err();
    assert!(again.to_string().contains("bad sectors of a disk"), "{again}");
    format_spare(&mut bed.plain(&store), None, &OWNER, &forced).unwrap();
}

#[test]
fn too_small_a_spare_is_told_what_it_needs() {
    let bed = Bed::new(64, 4096, &[]);
    let needed = (2 + 2 + 100) * BLOCK;
    let shape = format(1, 4096, 100, bed.main.size());
    let exact = MemoryStore::new(needed);
    format_spare(&mut bed.plain(&exact), None, &OWNER, &shape).unwrap();
    let small = MemoryStore::new(needed - BLOCK);
    let error = format_spare(&mut bed.plain(&small), None, &OWNER, &shape).unwrap_err();
    let wanted = format!("it has {} bytes, and {needed} are needed", needed - BLOCK);
    assert!(error.to_string().contains(&wanted), "{error}");
    // A spare that was cut later.
    let cut = MemoryStore::new(needed - BLOCK);
    let bytes = image(&exact);
    cut.write(0, &bytes);
    let spare = holdfast_store::SpareAt::Disk(Box::new(bed.plain(&cut)));
    let error = bed.plain(&bed.main).with_spares(vec![spare], &OWNER).unwrap_err();
    assert!(error.to_string().contains(&wanted), "{error}");
}

#[test]
fn a_full_map_does_not_touch_the_metadata() {
    let bed = Bed::new(512, 4096, &[400]);
    let mut rig = bed.open();
    rig.spoil(blocks(0, 512), BadSector::Stuck);
    rig.main.mend(blocks(511, 1));
    rig.write(blocks(0, 400), 0xee);
    assert_eq!(rig.stats().free, 0);
    drop(rig);
    // All slots are full of 0xee, and nothing else is.
    let bytes = image(&bed.spares[0]);
    let full = bytes.chunks(4096).filter(|block| block.iter().all(|byte| *byte == 0xee)).count();
    assert_eq!(full, 400);
    let mut rig = bed.open();
    assert_eq!(rig.fills(blocks(0, 401)), [vec![0xee; 400], vec![0]].concat());
}

/// Makes so many entries, and reads them back.
fn entries_are_read_back(count: u64, batches: u64) {
    let main = MemoryStore::new(2 << 40);
    let bed = Bed::new(1, 4096, &[]);
    let spare = MemoryStore::new(8 << 30);
    let shape = format(1, 4096, u32::try_from(count).unwrap(), main.size());
    format_spare(&mut bed.plain(&spare), None, &OWNER, &shape).unwrap();
    let open = || {
        let at = holdfast_store::SpareAt::Disk(Box::new(bed.plain(&spare)));
        bed.plain(&main).with_spares(vec![at], &OWNER).unwrap()
    };
    let mut disk = open();
    for batch in 0..batches {
        let range = blocks(batch * 4_000_000, count / batches);
        disk.remap_now(holdfast_store::RemapOp::MarkLost { range }).0.unwrap();
    }
    drop(disk);
    let disk = open();
    assert_eq!(disk.remap_stats().unwrap().lost, count);
    assert_eq!(disk.remap_entries().count() as u64, count);
    let last = blocks((batches - 1) * 4_000_000 + count / batches - 1, 1);
    assert_eq!(disk.remap_entries().last().unwrap().range, last);
}

#[test]
fn very_many_entries_are_read_back() {
    entries_are_read_back(160_000, 20);
}

/// Row 39.
#[test]
fn a_million_entries_are_read_back() {
    entries_are_read_back(1_000_000, 125);
}
