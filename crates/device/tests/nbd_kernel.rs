//! Real devices of the kernel's NBD client: needs root and the module, and says so when they are
//! missing.

// The lint looks away in test functions only, and the helpers are outside of them.
#![allow(clippy::unwrap_used)]
// Each test binary uses its part of the helpers.
#![allow(dead_code)]

#[path = "support/server.rs"]
mod server;
mod support;

use holdfast_device::{
    Backend, DeviceError, DeviceOptions, Kind, LocalDevice, NbdBackend, NbdOptions, Via,
    clean_up_stale,
};
use server::Server;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::*;

/// Directories for one test; `None`, with the reason printed, where there is no NBD client.
fn place() -> Option<Place> {
    possible_by(Via::Nbd).then(|| Place::by(Via::Nbd))
}

#[test]
fn a_completed_write_is_with_the_backend() {
    let Some(place) = place() else { return };
    let memory = Memory::new(SIZE);
    let device = place.attach("r0", &memory);
    assert_eq!((device.kind(), device.reason()), (Kind::Nbd, "nbd, as asked for"));
    assert!(device.survives());
    assert_it_is_the_backend(&device, &memory);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn the_kernel_is_told_what_the_backend_can() {
    let Some(place) = place() else { return };
    let memory = Memory::with_blocks(SIZE, 4096);
    // A table with one entry: Linux, from block 256 on, 512 blocks long.
    let mut table = vec![0; 512];
    table[446..462].copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    memory.write_at(&table, 0, false).unwrap();
    let device = place.attach("limits", &memory);
    let queue = |name: &str| sysfs(device.node(), &format!("queue/{name}"));
    assert_eq!(queue("write_cache"), "write back");
    assert_eq!(queue("fua"), "1");
    assert_eq!(queue("logical_block_size"), "4096");
    assert_ne!(queue("discard_max_bytes"), "0");
    println!("write zeroes: {}", queue("write_zeroes_max_bytes"));
    // Whoever opens it has the kernel look for partitions; udev does.
    drop(Holder::open(device.path()));
    let name = device.node().file_name().unwrap().to_str().unwrap();
    assert_eq!(sysfs(device.node(), &format!("{name}p1/size")), "4096");

    memory.write_at(&[7; 8192], MIB, false).unwrap();
    run("blkdiscard", &["-z", "-o", "1048576", "-l", "4096", device.path().to_str().unwrap()]);
    assert_eq!(memory.bytes(MIB, 8192), [[0; 4096], [7; 4096]].concat());
    run("blkdiscard", &["-f", "-o", "2097152", "-l", "4096", device.path().to_str().unwrap()]);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn it_grows_under_its_users() {
    let Some(place) = place() else { return };
    let memory = Memory::new(SIZE);
    let mut device = place.attach("grows", &memory);
    let mut user = Direct::open(device.path());
    memory.grow(2 * SIZE);
    assert!(device.resize(2 * SIZE).unwrap());
    assert_eq!(sysfs(device.node(), "size"), (2 * SIZE / 512).to_string());
    let data = pattern(4096, 9);
    user.write(&data, 2 * SIZE - 4096).unwrap();
    assert!(memory.bytes(2 * SIZE - 4096, 4096) == data);
    assert!(device.resize(SIZE).is_err(), "it does not shrink");
    drop(user);
    // The next process finds the size that it has now.
    device.leave();
    let backend = Arc::clone(&memory) as Arc<dyn Backend>;
    let device = LocalDevice::recover("grows", backend, &place.options).unwrap().unwrap();
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn it_is_refused_while_it_is_open_and_force_ends_what_hangs() {
    let Some(place) = place() else { return };
    let memory = Memory::new(SIZE);
    let device = place.attach("busy", &memory);
    let holder = Holder::open(device.path());
    let (device, error) = device.detach(false).unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    drop(holder);

    memory.stall(true);
    let mut reader = Direct::open(device.path());
    let reading = std::thread::spawn(move || reader.read(4096, 0));
    eventually("the read", || memory.waiting.load(Ordering::SeqCst) > 0);
    device.detach(true).unwrap();
    reading.join().unwrap().unwrap_err();
    memory.stall(false);
    place.assert_clean();
}

#[test]
fn there_are_more_devices_than_the_module_made() {
    let Some(place) = place() else { return };
    let devices: Vec<_> =
        (0..20).map(|at| place.attach(&format!("r{at}"), &Memory::new(MIB))).collect();
    let mut nodes: Vec<_> = devices.iter().map(|device| device.node().to_owned()).collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 20);
    Direct::open(devices[19].path()).write(&pattern(4096, 1), 0).unwrap();
    for device in devices {
        device.detach(false).unwrap();
    }
    place.assert_clean();
}

const CRASH: &str = "HOLDFAST_TEST_NBD_CRASH";

/// Does nothing by itself: it is the process that [`it_waits_for_the_next_process`] kills.
#[test]
fn attach_and_wait_to_be_killed() {
    let Some(directory) = std::env::var_os(CRASH) else { return };
    let options = DeviceOptions { via: Via::Nbd, ..support::options_in(Path::new(&directory)) };
    let memory = Memory::new(SIZE);
    let device = LocalDevice::attach("r0", memory as Arc<dyn Backend>, &options).unwrap();
    wait_to_be_killed();
    drop(device);
}

#[test]
fn it_waits_for_the_next_process() {
    let Some(place) = place() else { return };
    let process = start_again("attach_and_wait_to_be_killed", CRASH, place.directory.path());
    let link = place.options.links_dir.join("r0");
    let mut user = Direct::open(&link);
    let before = user.read(4096, 0).unwrap();
    assert_eq!(before, [0; 4096]);
    drop(process);
    assert!(LocalDevice::is_left("r0", &place.options).unwrap());
    assert_eq!(clean_up_stale(&place.options, |name| name == "r0").unwrap().names, [""; 0]);
    let memory = Memory::new(SIZE);
    let refused =
        LocalDevice::attach("r0", Arc::clone(&memory) as Arc<dyn Backend>, &place.options);
    assert!(matches!(refused.unwrap_err(), DeviceError::Exists { .. }));
    let other = LocalDevice::recover("r0", Memory::new(2 * SIZE), &place.options);
    assert!(matches!(other.unwrap_err(), DeviceError::Changed { .. }));

    let data = pattern(4096, 5);
    let writing = {
        let data = data.clone();
        std::thread::spawn(move || user.write(&data, MIB).map(|()| user))
    };
    let backend = Arc::clone(&memory) as Arc<dyn Backend>;
    let device = LocalDevice::recover("r0", backend, &place.options).unwrap().unwrap();
    let mut user = writing.join().unwrap().unwrap();
    assert!(memory.bytes(MIB, 4096) == data);

    // Once more, without a crash.
    device.leave();
    let writing = std::thread::spawn(move || user.write(&data, 2 * MIB).map(|()| user));
    let backend = Arc::clone(&memory) as Arc<dyn Backend>;
    let device = LocalDevice::recover("r0", backend, &place.options).unwrap().unwrap();
    drop(writing.join().unwrap().unwrap());
    assert!(memory.bytes(2 * MIB, 4096) == memory.bytes(MIB, 4096));
    device.detach(false).unwrap();
    assert!(!LocalDevice::is_left("r0", &place.options).unwrap());
    assert!(LocalDevice::recover("r0", memory, &place.options).unwrap().is_none());
    place.assert_clean();
}

#[test]
fn what_nobody_wants_of_an_earlier_process_is_removed() {
    let Some(place) = place() else { return };
    let process = start_again("attach_and_wait_to_be_killed", CRASH, place.directory.path());
    let link = place.options.links_dir.join("r0");
    let mut user = Direct::open(&link);
    drop(process);
    let reading = std::thread::spawn(move || user.read(4096, 0));
    assert_eq!(clean_up_stale(&place.options, |_| false).unwrap().names, ["r0"]);
    reading.join().unwrap().unwrap_err();
    place.assert_clean();
}

#[test]
fn the_kernel_speaks_to_the_backends_own_server_and_outlives_its_restart() {
    let Some(place) = place() else { return };
    let server = Server::new(place.directory.path(), SIZE);
    let connect = || {
        let timeout = Duration::from_secs(30);
        let options = NbdOptions { timeout, ..NbdOptions::new(&server.socket, "r0") };
        Arc::new(NbdBackend::connect(options).unwrap()) as Arc<dyn Backend>
    };
    let device = LocalDevice::attach("r0", connect(), &place.options).unwrap();
    let mut user = Direct::open(device.path());
    let data = pattern(1 << 20, 5);
    user.write(&data, MIB).unwrap();
    for round in 0..5 {
        server.stop();
        let at = (2 + round) * MIB;
        let owned = data.clone();
        let writing = std::thread::spawn(move || user.write(&owned, at).map(|()| user));
        server.start();
        user = writing.join().unwrap().unwrap();
        assert!(user.read(data.len(), at).unwrap() == data);
    }
    drop(user);
    device.detach(false).unwrap();
}
