//! Devices by the ublk driver: needs root and the driver, and says so when they are missing.

// The lint looks away in test functions only, and the helpers are outside of them.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use holdfast_device::{Backend, DeviceError, Kind, LocalDevice, Opener, Via, clean_up_stale};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::*;

fn possible() -> bool {
    possible_by(Via::Ublk)
}

fn recover(place: &Place, name: &str, memory: &Arc<Memory>) -> Option<LocalDevice> {
    let backend = Arc::clone(memory) as Arc<dyn Backend>;
    LocalDevice::recover(name, backend, &place.options).unwrap()
}

#[test]
fn a_completed_write_is_with_the_backend() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    let device = place.attach("r0", &memory);
    assert_eq!(device.kind(), Kind::Ublk);
    assert_eq!(fs::read_link(device.path()).unwrap(), device.node());
    let expected = [
        ("size", (SIZE / 512).to_string()),
        ("ro", "0".to_owned()),
        ("queue/logical_block_size", "512".to_owned()),
        ("queue/physical_block_size", "4096".to_owned()),
        ("queue/write_cache", "write back".to_owned()),
        ("queue/fua", "1".to_owned()),
        ("queue/max_hw_sectors_kb", "1024".to_owned()),
        ("queue/discard_granularity", "4096".to_owned()),
        ("queue/scheduler", "[none] mq-deadline".to_owned()),
        ("queue/nr_requests", "127".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(sysfs(device.node(), name), value, "{name}");
    }

    assert_it_is_the_backend(&device, &memory);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn a_filesystem_trims_and_writes_durably() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    let device = place.attach("files", &memory);
    run("mkfs.ext4", &["-q", text(device.path())]);
    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(device.path(), point.clone());
    fs::write(point.join("a"), pattern(8 << 20, 9)).unwrap();
    fs::File::open(point.join("a")).unwrap().sync_all().unwrap();
    assert!(memory.durable_writes.load(Ordering::SeqCst) > 0, "a journal commits with FUA");

    assert_eq!(device.openers().unwrap(), [Opener::Mount { at: point.clone() }]);
    let (device, error) = device.detach(false).unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    mounted.unmount();

    let link = text(device.path());
    let trimmed = || memory.trimmed.load(Ordering::SeqCst);
    let before = trimmed();
    run("blkdiscard", &["--force", "--offset", "1048576", "--length", "1048576", link]);
    assert_eq!(trimmed() - before, MIB);
    let zeroed = || memory.zeroed.lock().unwrap().iter().map(|(range, _)| range.len).sum::<u64>();
    let before = zeroed();
    run(
        "blkdiscard",
        &["--force", "--zeroout", "--offset", "3145728", "--length", "1048576", link],
    );
    assert_eq!(zeroed() - before, MIB);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn another_server_takes_a_device_over_under_a_waiting_write() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    let device = place.attach("left", &memory);
    assert!(device.survives());
    let node = device.node().to_owned();
    memory.stall(true);
    let path = device.path().to_owned();
    let writer = std::thread::spawn(move || Direct::open(&path).write(&pattern(1 << 20, 5), MIB));
    eventually("a write", || memory.waiting.load(Ordering::SeqCst) > 0);
    device.leave();
    assert!(!writer.is_finished());
    assert!(LocalDevice::is_left("left", &place.options).unwrap());
    let refused = LocalDevice::attach("left", Memory::new(SIZE), &place.options).unwrap_err();
    assert!(matches!(refused, DeviceError::Exists { .. }), "{refused}");
    // The threads of the server before hold the character device until they are through.
    memory.stall(false);
    assert!(!writer.is_finished(), "its answer was not wanted any more");

    let other = Memory::new(2 * SIZE);
    let backend = Arc::clone(&other) as Arc<dyn Backend>;
    let error = LocalDevice::recover("left", backend, &place.options).unwrap_err();
    assert!(matches!(error, DeviceError::Changed { .. }), "{error}");

    let next = Memory::new(SIZE);
    let device = recover(&place, "left", &next).unwrap();
    assert_eq!(device.node(), node);
    writer.join().unwrap().unwrap();
    assert!(next.bytes(MIB, 1 << 20) == pattern(1 << 20, 5));
    device.detach(false).unwrap();
    place.assert_clean();
    assert!(recover(&place, "left", &next).is_none());
}

#[test]
fn a_device_that_nobody_wants_is_removed_at_the_start() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    place.attach("kept", &memory).leave();
    place.attach("unwanted", &memory).leave();
    let cleaned = clean_up_stale(&place.options, |name| name == "kept").unwrap();
    assert_eq!(cleaned.names, ["unwanted"]);
    assert!(!LocalDevice::is_left("unwanted", &place.options).unwrap());
    let device = recover(&place, "kept", &memory).unwrap();
    device.leave();
    assert!(LocalDevice::remove_left("kept", &place.options).unwrap());
    assert!(!LocalDevice::remove_left("kept", &place.options).unwrap());
    place.assert_clean();
}

#[test]
fn force_fails_what_is_pending() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    let device = place.attach("stuck", &memory);
    memory.stall(true);
    let path = device.path().to_owned();
    let writer = std::thread::spawn(move || Direct::open(&path).write(&pattern(4096, 1), 0));
    eventually("a write", || memory.waiting.load(Ordering::SeqCst) > 0);
    let start = Instant::now();
    device.detach(true).unwrap();
    // The backend would keep the write for a minute.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    writer.join().unwrap().unwrap_err();
    memory.stall(false);
    place.assert_clean();
}

#[test]
fn errors_of_the_backend_are_errors_of_the_device() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::with_blocks(SIZE, 4096);
    let device = place.attach("broken", &memory);
    assert_eq!(sysfs(device.node(), "queue/logical_block_size"), "4096");
    let mut file = Direct::open(device.path());
    memory.broken.store(true, Ordering::SeqCst);
    let error = file.write(&pattern(4096, 1), 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.read(4096, 0).unwrap_err();
    memory.broken.store(false, Ordering::SeqCst);
    file.write(&pattern(4096, 1), 0).unwrap();
    drop(file);
    device.detach(false).unwrap();
}

#[test]
fn a_device_grows_where_the_kernel_can_do_that() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    let mut device = place.attach("growing", &memory);
    memory.grow(2 * SIZE);
    let resized = device.resize(2 * SIZE).unwrap();
    println!("UPDATE_SIZE: {resized}");
    let expected = if resized { 2 * SIZE } else { SIZE };
    assert_eq!(sysfs(device.node(), "size"), (expected / 512).to_string());
    if resized {
        Direct::open(device.path()).write(&pattern(4096, 7), 2 * SIZE - 4096).unwrap();
        assert!(memory.bytes(2 * SIZE - 4096, 4096) == pattern(4096, 7));
        device.leave();
        device = recover(&place, "growing", &memory).unwrap();
    }
    device.detach(false).unwrap();
}

#[test]
fn partitions_are_seen_and_their_users_count() {
    if !possible() {
        return;
    }
    let place = Place::by(Via::Ublk);
    let memory = Memory::new(SIZE);
    // A partition table with one partition, of MBR kind: 1 MiB to 33 MiB.
    let mut table = vec![0; 512];
    table[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    memory.write_at(&table, 0, false).unwrap();
    let device = place.attach("parts", &memory);
    let part = format!("{}p1", text(device.node()));
    eventually("a partition", || Path::new(&part).exists());
    run("mkfs.ext4", &["-q", &part]);
    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(Path::new(&part), point.clone());
    assert_eq!(device.openers().unwrap(), [Opener::Mount { at: point }]);
    mounted.unmount();
    assert_eq!(device.openers().unwrap(), []);
    device.detach(false).unwrap();
}

#[test]
fn a_full_queue_is_taken_over_at_once() {
    const TEST: &str = "a_full_queue_is_taken_over_at_once";
    const VARIABLE: &str = "HOLDFAST_TEST_UBLK_PLACE";
    if !possible() {
        return;
    }
    if let Some(directory) = std::env::var_os(VARIABLE) {
        let memory = Memory::new(SIZE);
        let mut options = options_in(Path::new(&directory));
        options.via = Via::Ublk;
        let backend = Arc::clone(&memory) as Arc<dyn Backend>;
        let device = LocalDevice::attach("full", backend, &options).unwrap();
        // The search for partitions may come later; who opens the device waits for its end.
        eventually("the search for partitions", || memory.reads.load(Ordering::SeqCst) > 0);
        drop(fs::File::open(device.node()).unwrap());
        memory.stall(true);
        wait_to_be_killed();
        device.leave();
        return;
    }
    let place = Place::by(Via::Ublk);
    let server = start_again(TEST, VARIABLE, place.directory.path());
    // More writes at a time than the queues of the device take.
    let path = place.options.links_dir.join("full");
    let writers: Vec<_> = (0..600_u64)
        .map(|at| {
            let path = path.clone();
            std::thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || Direct::small(&path).write(&[7; 4096], at * 4096))
                .unwrap()
        })
        .collect();
    let node = fs::read_link(&path).unwrap();
    eventually("a full queue", || {
        let inflight = sysfs(&node, "inflight");
        inflight.split_whitespace().any(|count| count.parse::<u32>().unwrap() >= 127)
    });
    drop(server);
    let next = Memory::new(SIZE);
    let start = Instant::now();
    let device = recover(&place, "full", &next).unwrap();
    let took = start.elapsed();
    println!("taken over in {took:?}");
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    assert!(next.bytes(0, 600 * 4096).iter().all(|byte| *byte == 7));
    assert!(took < Duration::from_secs(10), "{took:?}");
    device.detach(false).unwrap();
}
