use super::{Bad, BadDisk};
use crate::{Scratch, devices_unavailable};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

fn open(disk: &BadDisk) -> File {
    OpenOptions::new().read(true).write(true).open(disk.path()).unwrap()
}

fn is_eio(result: io::Result<()>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
}

fn read(file: &File, block: u64) -> io::Result<()> {
    file.read_exact_at(&mut [0; 4096], block * 4096)
}

#[test]
fn blocks_fail_as_they_are_told_to() {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return;
    }
    let scratch = Scratch::new();
    let disk = BadDisk::new(scratch.path(), "a", 1 << 20);
    let file = open(&disk);
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    file.write_all_at(&[7; 1 << 16], 0).unwrap();
    disk.set_bad(Bad::Unreadable, [2]);
    disk.set_bad(Bad::Stuck, [4]);
    disk.set_bad(Bad::Unwritable, [6]);
    disk.set_bad(Bad::Dead, [8]);
    let failing = |file: &File| (0..10).filter(|block| is_eio(read(file, *block))).collect();
    let bad: Vec<u64> = failing(&file);
    assert_eq!(bad, [2, 4, 8]);
    assert!(is_eio(file.read_exact_at(&mut [0; 65536], 0)), "one bad block fails the whole read");
    assert!(is_eio(file.write_all_at(&[1; 512], 2 * 4096)), "a part does not heal");
    for block in [2, 4] {
        file.write_all_at(&[1; 4096], block * 4096).unwrap();
    }
    for block in [6, 8] {
        assert!(is_eio(file.write_all_at(&[1; 4096], block * 4096)));
    }
    assert_eq!(failing(&file), vec![4, 8], "written and healed");
    assert_eq!(disk.bad_blocks(), [4, 6, 8]);
    assert!(is_eio(file.write_all_at(&[2; 3 * 4096], 5 * 4096)));
    assert_eq!(disk.peek(5 * 4096, 4096), [2; 4096], "what is before the bad one is written");
    assert_eq!(disk.peek(6 * 4096, 8192), [7; 8192]);
    disk.heal([4, 6, 8]);
    assert!(failing(&file).is_empty());
    file.sync_all().unwrap();
    disk.fail_flushes(true);
    assert!(is_eio(file.sync_all()));
    disk.fail_all(true);
    assert!(is_eio(read(&file, 0)));
    disk.heal_all();
    read(&file, 0).unwrap();
    let counts = disk.counts();
    assert_eq!((counts.flushes, counts.write_errors), (2, 4), "{counts:?}");
}

#[test]
fn it_changes_silently_and_takes_its_time() {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return;
    }
    let scratch = Scratch::new();
    let disk = BadDisk::with_blocks(scratch.path(), "a", 1 << 20, 512);
    let file = open(&disk);
    file.write_all_at(&[7; 4096], 0).unwrap();
    disk.corrupt(3);
    let mut data = [0; 512];
    file.read_exact_at(&mut data, 3 * 512).unwrap();
    assert_eq!(data.iter().filter(|byte| **byte != 7).count(), 8);
    disk.delay(Duration::from_millis(50), Duration::ZERO);
    let began = Instant::now();
    read(&file, 0).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(50));
    disk.set_bad(Bad::Unreadable, [5]);
    assert!(is_eio(read(&file, 0)));
    file.read_exact_at(&mut [0; 512], 4 * 512).unwrap();
    std::thread::scope(|scope| {
        disk.stall(true);
        let stalled = scope.spawn(|| read(&file, 1));
        assert!(!stalled.is_finished());
        disk.stall(false);
        stalled.join().unwrap().unwrap();
    });
}

#[test]
fn it_is_a_block_device_and_ends_while_it_is_open() {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return;
    }
    let scratch = Scratch::new();
    let disk = BadDisk::new(scratch.path(), "a", 1 << 20);
    let device = disk.loop_device();
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&device).unwrap();
    disk.set_bad(Bad::Dead, [3]);
    #[repr(align(4096))]
    struct Aligned([u8; 4096]);
    let mut page = Box::new(Aligned([0; 4096]));
    let mut at = |block: u64| direct.read_exact_at(&mut page.0, block * 4096);
    at(2).unwrap();
    assert!(is_eio(at(3)));
    at(4).unwrap();
    let (file, point) = (open(&disk), disk.path());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _disk = disk;
        panic!("as a test that fails");
    }));
    assert!(panicked.is_err());
    assert!(!point.exists());
    assert!(read(&file, 0).is_err());
}
