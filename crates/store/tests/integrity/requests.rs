use bytes::Bytes;
use holdfast_format::checksums::{file_length, page_offset};
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BufferPool, ChecksumFile, ChecksumMode, Disk, DiskErrorKind, DiskIdentity, DiskOp, FaultRule,
    MemoryStore, OpenOptions, Outcome, RemapOp, SpareAt, SpareFormat, create_file, format_spare,
};

use crate::scratch::{OWNER, PAGE, Scratch, blocks, build, read, settle, write};

#[test]
fn a_block_that_changed_behind_our_back_is_unreadable_alone_until_it_is_written() {
    let scratch = Scratch::built(3 * PAGE);
    let (mut disk, handle) = scratch.open();
    write(&mut disk, 10, 20, 7);
    scratch.flip(12);
    scratch.flip(1500);
    let (data, bad) = read(&mut disk, 8, 10).unwrap_err();
    assert_eq!(bad, [blocks(12, 1)]);
    assert!(data[..8192].iter().all(|byte| *byte == 0), "the others are there");
    assert!(data[8192..16384].iter().all(|byte| *byte == 7));
    assert_eq!(handle.stats().checksum_errors, 1);
    assert_eq!(read(&mut disk, 1499, 3).unwrap_err().1, [blocks(1500, 1)], "known since long");
    write(&mut disk, 12, 1, 8);
    assert_eq!(read(&mut disk, 12, 1).unwrap()[..], [8; 4096]);
    assert_eq!(handle.stats().checksum_errors, 2);
}

#[test]
fn swapped_blocks_and_lost_writes_are_found_also_after_a_restart() {
    let scratch = Scratch::built(PAGE);
    let mut old = vec![0; 4096];
    scratch.main.read(30 * 4096, &mut old);
    {
        let (mut disk, _) = scratch.open();
        (20..32).for_each(|block| write(&mut disk, block, 1, u8::try_from(block).unwrap()));
        settle(&mut disk);
    }
    let (mut a, mut b) = (vec![0; 4096], vec![0; 4096]);
    scratch.main.read(20 * 4096, &mut a);
    scratch.main.read(25 * 4096, &mut b);
    scratch.main.write(20 * 4096, &b);
    scratch.main.write(25 * 4096, &a);
    scratch.main.write(30 * 4096, &old);
    let (mut disk, handle) = scratch.open();
    assert_eq!(handle.stats().complete, 1, "settled");
    let bad = read(&mut disk, 16, 20).unwrap_err().1;
    assert_eq!(bad, [blocks(20, 1), blocks(25, 1), blocks(30, 1)]);
}

#[test]
fn what_was_not_settled_before_a_crash_is_computed_anew_and_nothing_else() {
    let scratch = Scratch::built(4 * PAGE);
    {
        let (mut disk, handle) = scratch.open();
        write(&mut disk, PAGE + 5, 1, 1);
        assert_eq!(handle.stats().unsettled, 1);
    }
    // The data arrived, the sums did not.
    let (mut disk, handle) = scratch.open();
    assert_eq!((handle.stats().mode, handle.stats().complete), (ChecksumMode::Building, 3));
    assert_eq!(read(&mut disk, PAGE + 5, 1).unwrap()[..], [1; 4096]);
    scratch.flip(PAGE - 1);
    assert_eq!(read(&mut disk, PAGE - 1, 2).unwrap_err().1, [blocks(PAGE - 1, 1)]);
    build(&mut disk, &handle);
    scratch.flip(PAGE + 900);
    assert_eq!(read(&mut disk, PAGE + 900, 1).unwrap_err().1, [blocks(PAGE + 900, 1)]);
}

#[test]
fn what_is_at_rest_is_settled_by_itself() {
    let scratch = Scratch::built(2 * PAGE);
    let (mut disk, handle) = scratch.open();
    write(&mut disk, 0, 1, 1);
    for _ in 0..120 {
        handle.tick(0);
        disk.completions(&mut Vec::new());
    }
    assert_eq!(handle.stats().unsettled, 0);
    drop(disk);
    assert_eq!(scratch.open().1.stats().complete, 2);
}

#[test]
fn checksums_come_and_go_while_the_disk_is_in_use() {
    let scratch = Scratch::new(2 * PAGE + 10);
    let (mut disk, handle) = scratch.main_disk().with_checksums(scratch.main.size(), None);
    write(&mut disk, 3, 4, 5);
    scratch.flip(3);
    assert!(read(&mut disk, 3, 1).is_ok(), "nobody can know");
    assert_eq!(handle.stats().mode, ChecksumMode::Off);
    handle.turn_on(scratch.load());
    disk.completions(&mut Vec::new());
    assert_eq!((handle.stats().mode, handle.stats().percent()), (ChecksumMode::Building, 0));
    write(&mut disk, 4, 1, 6);
    scratch.flip(4);
    assert_eq!(read(&mut disk, 4, 1).unwrap_err().1, [blocks(4, 1)], "written since");
    write(&mut disk, 4, 1, 6);
    build(&mut disk, &handle);
    assert_eq!(handle.stats().percent(), 100);
    scratch.flip(5);
    assert!(read(&mut disk, 5, 1).is_err());
    handle.turn_off();
    disk.completions(&mut Vec::new());
    assert_eq!(handle.stats().mode, ChecksumMode::Off);
    assert!(read(&mut disk, 5, 1).is_ok());
}

#[test]
fn a_disk_filled_in_order_needs_no_computing() {
    let scratch = Scratch::new(2 * PAGE);
    let (mut disk, handle) = scratch.open();
    for block in (0..2 * PAGE).step_by(48) {
        write(&mut disk, block, 48, 3);
    }
    assert_eq!(handle.stats().mode, ChecksumMode::On);
    scratch.flip(1700);
    assert_eq!(read(&mut disk, 1690, 20).unwrap_err().1, [blocks(1700, 1)]);
}

#[test]
fn a_broken_page_of_sums_is_no_reason_to_refuse_data() {
    let scratch = Scratch::built(2 * PAGE);
    scratch.file.write(page_offset(1) + 100, &[0xff; 40]);
    let (mut disk, handle) = scratch.open();
    assert_eq!(read(&mut disk, PAGE, 8).unwrap()[..], [0; 8 * 4096]);
    assert_eq!((handle.stats().broken_pages, handle.stats().complete), (1, 1));
    build(&mut disk, &handle);
    scratch.flip(PAGE + 2);
    assert!(read(&mut disk, PAGE, 8).is_err());
}

#[test]
fn zeroes_have_sums_and_what_was_discarded_has_none() {
    let scratch = Scratch::built(100 * PAGE);
    let (mut disk, handle) = scratch.open();
    write(&mut disk, 0, 50, 1);
    let zero = |range| DiskOp::WriteZeroes { range, unmap: true, fua: true };
    disk.execute(zero(blocks(10, 5))).unwrap();
    assert!(read(&mut disk, 0, 50).is_ok());
    let holes = DiskOp::Read { range: blocks(10, 5), holes: true };
    assert_eq!(disk.execute(holes.clone()), Ok(Outcome::Zeroes));
    scratch.flip(11);
    assert_eq!(read(&mut disk, 0, 50).unwrap_err().1, [blocks(11, 1)]);
    // A block that became a hole.
    disk.execute(DiskOp::Write { range: blocks(10, 5), data: vec![9; 20480].into(), fua: false })
        .unwrap();
    let mut behind = scratch.main_disk();
    behind.execute(zero(blocks(10, 5))).unwrap();
    assert_eq!(disk.execute(holes).unwrap_err().kind, DiskErrorKind::Unreadable);

    disk.execute(DiskOp::Discard { range: blocks(20, 5) }).unwrap();
    scratch.flip(22);
    assert!(read(&mut disk, 20, 5).is_ok(), "nobody said what it is");
    disk.execute(zero(blocks(5, 99 * PAGE))).unwrap();
    assert_eq!(handle.stats().complete, 0, "too much to be noted page by page");
    scratch.flip(4);
    assert!(read(&mut disk, 60, 100).is_ok());
    write(&mut disk, 4, 1, 9);
    build(&mut disk, &handle);
    settle(&mut disk);
    drop(disk);
    assert_eq!(scratch.open().1.stats().mode, ChecksumMode::On);
}

#[test]
fn open_pages_are_bounded_and_each_is_settled_in_turn() {
    let pages = 5000;
    let scratch = Scratch::new(pages * PAGE);
    let (mut disk, handle) = scratch.open();
    build(&mut disk, &handle);
    settle(&mut disk);
    for page in 0..pages {
        write(&mut disk, page * PAGE + page % PAGE, 1, 1);
        assert!(handle.stats().unsettled <= 2048);
    }
    let open = handle.stats().unsettled;
    assert!((500..=2048).contains(&open), "{open}");
    drop(disk);
    let (mut disk, handle) = scratch.open();
    assert_eq!(handle.stats().complete, pages - open);
    for page in 0..pages {
        assert!(read(&mut disk, page * PAGE + page % PAGE, 1).is_ok());
    }
}

#[test]
fn what_grew_gets_sums_too() {
    let scratch = Scratch::built(PAGE + 8);
    let larger = Scratch {
        main: MemoryStore::new(3 * PAGE * 4096),
        file: MemoryStore::new(file_length(3 * PAGE * 4096)),
        pool: BufferPool::new(1 << 20),
    };
    let mut bytes = vec![0; usize::try_from(scratch.file.size()).unwrap()];
    scratch.file.read(0, &mut bytes);
    larger.file.write(0, &bytes);
    let file = ChecksumFile::load(larger.file_disk(), OWNER, (PAGE + 8) * 4096).unwrap();
    let (mut disk, handle) = larger.main_disk().with_checksums((PAGE + 8) * 4096, Some(file));
    assert_eq!(handle.stats().mode, ChecksumMode::On);
    write(&mut disk, 2 * PAGE, 1, 1);
    larger.flip(2 * PAGE);
    assert!(read(&mut disk, 2 * PAGE, 1).is_ok(), "behind what is covered");
    disk.grown_to(3 * PAGE * 4096);
    write(&mut disk, 2 * PAGE, 1, 1);
    build(&mut disk, &handle);
    assert_eq!(handle.stats().pages, 3);
    for block in [3, PAGE + 7, PAGE + 8, 2 * PAGE] {
        larger.flip(block);
        assert_eq!(read(&mut disk, block, 1).unwrap_err().1, [blocks(block, 1)]);
    }
}

#[test]
fn a_file_that_fails_ends_the_checksums_and_nothing_else() {
    for what in ["write", "flush", "read"] {
        let scratch = Scratch::built(2 * PAGE);
        let (file, faults) = scratch.file_disk().with_faults(&[]);
        let file = ChecksumFile::load(file, OWNER, scratch.main.size()).unwrap();
        let (mut disk, handle) =
            scratch.main_disk().with_checksums(scratch.main.size(), Some(file));
        let _ = faults.add(format!("{what}:error=EIO").parse::<FaultRule>().unwrap());
        write(&mut disk, 7, 1, 1);
        assert_eq!(read(&mut disk, 7, 1).unwrap()[..], [1; 4096]);
        let stats = handle.stats();
        if what == "read" {
            assert_eq!((stats.mode, stats.broken_pages), (ChecksumMode::Building, 1));
        } else {
            assert_eq!(stats.mode, ChecksumMode::Failed);
            assert!(stats.problem.unwrap().contains("not kept any more"));
            scratch.flip(9);
            assert!(read(&mut disk, 9, 1).is_ok(), "nothing is verified any more");
        }
        assert_eq!(disk.execute(DiskOp::Flush), Ok(Outcome::Done));
    }
}

#[test]
fn a_file_on_disk_is_made_opened_given_up_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (main, sums) = (dir.path().join("disk"), dir.path().join("disk.checksums"));
    let size = 2 * PAGE * 4096;
    create_file(&main, size).unwrap();
    let pool = BufferPool::new(1 << 20);
    let open = || Disk::open(&main, &OpenOptions::default(), &pool).unwrap();
    let finish = |disk: &mut Disk| {
        disk.settle_checksums_now(std::time::Duration::from_secs(10));
        assert!(disk.checksums_are_settled());
    };
    {
        let file = ChecksumFile::create(&sums, OWNER, size, &pool).unwrap();
        assert_eq!(std::fs::metadata(&sums).unwrap().len(), file_length(size));
        let (mut disk, handle) = open().with_checksums(size, Some(file));
        for block in (0..2 * PAGE).step_by(24) {
            write(&mut disk, block, 24, 1);
        }
        assert_eq!(handle.stats().mode, ChecksumMode::On);
        finish(&mut disk);
    }
    {
        let file = ChecksumFile::open(&sums, OWNER, size, &pool).unwrap();
        let (mut disk, handle) = open().with_checksums(size, Some(file));
        assert_eq!(handle.stats().mode, ChecksumMode::On);
        assert!(read(&mut disk, 0, 100).is_ok());
        write(&mut disk, 5, 1, 2);
        handle.turn_off();
        // As soon as what is under way to the file has ended.
        let begun = std::time::Instant::now();
        while handle.stats().mode != ChecksumMode::Off {
            assert!(begun.elapsed().as_secs() < 20, "{:?}", handle.stats().mode);
            disk.wait(&mut Vec::new(), std::time::Duration::from_millis(1));
            disk.completions(&mut Vec::new());
        }
    }
    assert!(ChecksumFile::open(&sums, holdfast_units::ResourceId([1; 16]), size, &pool).is_err());
    holdfast_store::remove_checksums(&sums).unwrap();
    holdfast_store::remove_checksums(&sums).unwrap();
    assert!(!sums.exists());
}

#[test]
fn bad_sectors_below_and_repairs_go_together_with_sums() {
    let scratch = Scratch::built(PAGE);
    let spare = MemoryStore::new(1 << 20);
    let owner = DiskIdentity { resource: OWNER, disk: [3; 16] };
    let mut bed = Disk::memory(&spare, &scratch.pool).unwrap();
    let format = SpareFormat {
        id: SpareId([4; 16]),
        unit: 4096,
        slots: None,
        force: false,
        disk_size: scratch.main.size(),
        created: 0,
    };
    format_spare(&mut bed, None, &owner, &format).unwrap();
    let (main, faults) = scratch.main_disk().with_faults(&[]);
    let main = main.with_spares(vec![SpareAt::Disk(Box::new(bed))], &owner).unwrap();
    let (mut disk, handle) = main.with_checksums(scratch.main.size(), Some(scratch.load()));
    write(&mut disk, 0, 30, 6);
    faults.spoil(blocks(4, 1), holdfast_store::BadSector::Forever);
    scratch.flip(7);
    assert_eq!(read(&mut disk, 0, 20).unwrap_err().1, [blocks(4, 1), blocks(7, 1)]);
    assert_eq!(handle.stats().checksum_errors, 1, "the other one is the disk's");
    for block in [4, 7] {
        let data = Bytes::from(vec![6; 4096]);
        let (result, _) = disk.remap_now(RemapOp::Repair { range: blocks(block, 1), data });
        result.unwrap();
    }
    assert_eq!(read(&mut disk, 0, 30).unwrap()[..], [6; 30 * 4096]);
    // With other bytes than before: the sum follows.
    let data = Bytes::from(vec![8; 4096]);
    disk.remap_now(RemapOp::Repair { range: blocks(9, 1), data }).0.unwrap();
    assert_eq!(read(&mut disk, 9, 1).unwrap()[..], [8; 4096]);
    scratch.flip(9);
    assert!(read(&mut disk, 9, 1).is_err());
    disk.remap_now(RemapOp::MarkLost { range: blocks(11, 1) }).0.unwrap();
    assert!(read(&mut disk, 11, 1).is_err());
}

#[test]
fn blocks_that_cannot_be_read_do_not_keep_others_from_getting_sums() {
    let scratch = Scratch::new(2 * PAGE);
    let (main, faults) = scratch.main_disk().with_faults(&[]);
    faults.spoil(blocks(40, 1), holdfast_store::BadSector::Forever);
    let (mut disk, handle) = main.with_checksums(scratch.main.size(), Some(scratch.load()));
    for _ in 0..5 {
        handle.tick(16);
        disk.completions(&mut Vec::new());
    }
    assert_eq!(handle.stats().complete, 1);
    scratch.flip(39);
    assert_eq!(read(&mut disk, 39, 1).unwrap_err().1, [blocks(39, 1)]);
    faults.mend(blocks(40, 1));
    write(&mut disk, 40, 1, 2);
    assert_eq!(handle.stats().mode, ChecksumMode::On);
}
