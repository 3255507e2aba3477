//! Real block devices: needs root, FUSE and the loop driver, and says so when they are missing.

// The lint looks away in test functions only, and the helpers are outside of them.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use holdfast_device::{
    Backend, DeviceError, Kind, LocalDevice, Opener, Via, choose, clean_up_stale,
};
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::*;

#[test]
fn a_completed_write_is_with_the_backend() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("r0", &memory);
    assert_eq!(device.kind(), Kind::Fuse);
    assert_eq!(choose(Via::Fuse).unwrap().kind, Kind::Fuse);
    assert_eq!(device.path(), place.options.links_dir.join("r0"));
    assert_eq!(fs::read_link(device.path()).unwrap(), device.node());

    assert_it_is_the_backend(&device, &memory);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn the_kernel_sees_a_disk_with_a_write_cache() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let device = place.attach("limits", &Memory::new(SIZE));
    let expected = [
        ("size", (SIZE / 512).to_string()),
        ("ro", "0".to_owned()),
        ("loop/dio", "1".to_owned()),
        ("loop/autoclear", "0".to_owned()),
        ("queue/logical_block_size", "512".to_owned()),
        ("queue/write_cache", "write back".to_owned()),
        ("queue/discard_granularity", "4096".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(sysfs(device.node(), name), value, "{name}");
    }
    assert_ne!(sysfs(device.node(), "queue/write_zeroes_max_bytes"), "0");
}

#[test]
fn a_filesystem_lives_on_it() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("files", &memory);
    run("mkfs.ext4", &["-q", text(device.path())]);

    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(device.path(), point.clone());
    let data = pattern(8 << 20, 9);
    fs::write(point.join("a"), &data).unwrap();
    let before = memory.flushes.load(Ordering::SeqCst);
    fs::File::open(point.join("a")).unwrap().sync_all().unwrap();
    assert!(memory.flushes.load(Ordering::SeqCst) > before, "fsync did not reach the backend");

    assert_eq!(device.open_count().unwrap(), 1);
    assert_eq!(device.openers().unwrap(), [Opener::Mount { at: point.clone() }]);
    let (device, error) = device.detach(false).unwrap_err();
    assert!(matches!(error, DeviceError::Busy { .. }), "{error}");
    assert!(error.to_string().contains(&format!("mounted at {}", point.display())), "{error}");
    assert!(error.hint().is_some());

    fs::remove_file(point.join("a")).unwrap();
    fs::write(point.join("b"), &data).unwrap();
    memory.zeroed.lock().unwrap().clear();
    run("fstrim", &[text(&point)]);
    let trimmed: u64 = memory.zeroed.lock().unwrap().iter().map(|(range, _)| range.len).sum();
    assert!(trimmed >= 8 * MIB, "fstrim gave back {trimmed} bytes");
    assert!(memory.zeroed.lock().unwrap().iter().all(|(_, may_unmap)| *may_unmap));
    mounted.unmount();

    // Another device over the same bytes has the same files.
    device.detach(false).unwrap();
    place.assert_clean();
    let device = place.attach("again", &memory);
    let mounted = Mounted::new(device.path(), point.clone());
    assert!(fs::read(point.join("b")).unwrap() == data);
    assert!(!point.join("a").exists());
    mounted.unmount();
    run("e2fsck", &["-fn", text(device.path())]);
    device.detach(false).unwrap();
}

#[test]
fn discards_and_zeroes_read_as_zeroes() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("holes", &memory);
    Direct::open(device.path()).write(&pattern(4 << 20, 1), 0).unwrap();

    let link = text(device.path());
    run("blkdiscard", &["--offset", "1048576", "--length", "1048576", link]);
    run("blkdiscard", &["--zeroout", "--offset", "3145728", "--length", "1048576", link]);
    let expected = pattern(4 << 20, 1);
    let mib = 1 << 20;
    for at in 0..4 {
        let zero = at == 1 || at == 3;
        let part = memory.bytes(at as u64 * MIB, mib);
        assert!(part == if zero { vec![0; mib] } else { expected[at * mib..][..mib].to_vec() });
    }
    let zeroed = memory.zeroed.lock().unwrap();
    assert!(zeroed.iter().any(|(range, may_unmap)| range.offset == MIB && *may_unmap));
    assert!(zeroed.iter().any(|(range, _)| range.offset == 3 * MIB));
}

#[test]
fn a_process_that_has_it_open_is_named() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let device = place.attach("held", &Memory::new(SIZE));
    assert_eq!(device.open_count().unwrap(), 0);
    let holder = Holder::open(device.path());
    let expected = Opener::Process { pid: holder.pid(), command: "sh".to_owned() };
    assert_eq!(device.openers().unwrap(), [expected]);
    let (device, error) = device.detach(false).unwrap_err();
    let process = format!("open in sh (process {})", holder.pid());
    assert!(error.to_string().contains(&process), "{error}");
    drop(holder);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn a_user_that_cannot_be_seen_is_respected() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("own", &memory);
    // This process is not among those that are looked for.
    let mut file = Direct::open(device.path());
    let (device, error) = device.detach(false).unwrap_err();
    assert!(matches!(&error, DeviceError::Busy { openers, .. } if openers == &[Opener::Unknown]));
    file.write(&pattern(4096, 5), 0).unwrap();
    assert_eq!(memory.bytes(0, 4096), pattern(4096, 5));
    drop(file);
    // The refused detach has not left a mark: the device does not go with its last user.
    assert_eq!(sysfs(device.node(), "loop/autoclear"), "0");
    assert_eq!(fs::read_link(device.path()).unwrap(), device.node());
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn errors_of_the_backend_are_errors_of_the_device() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("broken", &memory);
    let mut file = Direct::open(device.path());
    memory.broken.store(true, Ordering::SeqCst);
    let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(code(file.read(4096, 0).map(drop)), Some(libc::EIO));
    assert_eq!(code(file.write(&[1; 4096], 0)), Some(libc::EIO));
    assert_eq!(code(file.sync()), Some(libc::EIO));
    drop(file);

    let (device, error) = device.detach(false).unwrap_err();
    assert!(matches!(error, DeviceError::Flush { .. }), "{error}");
    memory.broken.store(false, Ordering::SeqCst);
    let mut file = Direct::open(device.path());
    file.write(&[1; 4096], 0).unwrap();
    file.sync().unwrap();
    drop(file);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn force_ends_a_read_that_the_backend_never_answers() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let device = place.attach("stuck", &memory);
    let node = device.node().to_owned();
    memory.stall(true);
    let mut reader = Command::new("dd")
        .args(["iflag=direct", "bs=4096", "count=1", "of=/dev/null"])
        .arg(format!("if={}", device.path().display()))
        .env("LC_ALL", "C")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("a read", || memory.waiting.load(Ordering::SeqCst) > 0);
    let start = Instant::now();
    device.detach(true).unwrap();
    // The backend would keep the read for a minute.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let status = reader.wait().unwrap();
    let mut said = String::new();
    reader.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!status.success());
    assert!(said.contains("Input/output error"), "{said}");
    memory.stall(false);
    // Once the reader is gone the kernel's device is free.
    eventually("the end of the device", || !sysfs_has_file(&node));
    place.assert_clean();
}

fn sysfs_has_file(node: &Path) -> bool {
    let name = node.file_name().unwrap().to_str().unwrap();
    Path::new(&format!("/sys/block/{name}/loop/backing_file")).exists()
}

#[test]
fn force_takes_a_mounted_device_away() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let device = place.attach("forced", &Memory::new(SIZE));
    let node = device.node().to_owned();
    run("mkfs.ext4", &["-q", text(device.path())]);
    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(device.path(), point.clone());
    device.detach(true).unwrap();
    let written = fs::write(point.join("a"), pattern(4096, 1))
        .and_then(|()| fs::File::open(point.join("a"))?.sync_all());
    assert!(written.is_err());
    mounted.unmount();
    eventually("the end of the device", || !sysfs_has_file(&node));
    place.assert_clean();
}

#[test]
fn more_devices_than_there_are_nodes_at_boot() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memories: Vec<_> = (0..10).map(|_| Memory::new(MIB)).collect();
    let devices: Vec<_> = memories
        .iter()
        .zip(0..)
        .map(|(memory, at)| place.attach(&format!("many{at}"), memory))
        .collect();
    for (device, seed) in devices.iter().zip(0..) {
        Direct::open(device.path()).write(&pattern(4096, seed), 0).unwrap();
    }
    for (memory, seed) in memories.iter().zip(0..) {
        assert_eq!(memory.bytes(0, 4096), pattern(4096, seed));
    }
    for device in devices {
        device.detach(false).unwrap();
    }
    place.assert_clean();
}

#[test]
fn what_cannot_be_attached_is_refused() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let attach = |name: &str, size| {
        LocalDevice::attach(name, Memory::new(size) as Arc<dyn Backend>, &place.options)
    };
    assert!(matches!(attach("../x", MIB).unwrap_err(), DeviceError::Name(_)));
    assert!(matches!(attach("r0", 0).unwrap_err(), DeviceError::Size { .. }));
    assert!(matches!(attach("r0", 4000).unwrap_err(), DeviceError::Size { .. }));
    let memory = Memory::with_blocks(MIB, 8192) as Arc<dyn Backend>;
    let refused = LocalDevice::attach("r0", memory, &place.options).unwrap_err();
    assert!(matches!(refused, DeviceError::BlockSize { .. }), "{refused}");

    let device = attach("r0", MIB).unwrap();
    let twice = attach("r0", MIB).unwrap_err();
    assert!(matches!(twice, DeviceError::Exists { .. }), "{twice}");
    fs::remove_file(device.path()).unwrap();
    let mounted = attach("r0", MIB).unwrap_err();
    assert!(mounted.to_string().contains("is mounted already"), "{mounted}");
    // A device of which somebody took the link goes all the same.
    device.detach(false).unwrap();

    let link = place.options.links_dir.join("r0");
    fs::write(&link, "not a link").unwrap();
    assert!(matches!(attach("r0", MIB).unwrap_err(), DeviceError::Exists { .. }));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/dev/no-such-device", &link).unwrap();
    attach("r0", MIB).unwrap().detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn a_dropped_device_is_gone() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let device = place.attach("dropped", &Memory::new(MIB));
    let node = device.node().to_owned();
    drop(device);
    eventually("the end of the device", || !sysfs_has_file(&node));
    place.assert_clean();
}

const CRASH: &str = "HOLDFAST_TEST_CRASH_IN";

/// Does nothing by itself: it is the process that [`what_a_crash_leaves_is_cleaned_up`] kills.
#[test]
fn attach_and_wait_to_be_killed() {
    let Some(directory) = std::env::var_os(CRASH) else { return };
    let options = support::options_in(Path::new(&directory));
    let attach = |name| LocalDevice::attach(name, Memory::new(SIZE) as Arc<dyn Backend>, &options);
    let devices = (attach("used").unwrap(), attach("idle").unwrap());
    wait_to_be_killed();
    drop(devices);
}

#[test]
fn partitions_are_looked_for_and_a_device_grows_under_its_users() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let memory = Memory::new(SIZE);
    let mut device = place.attach("grows", &memory);
    let kernel = device.node().file_name().unwrap().to_str().unwrap().to_owned();
    // What kinds of tables it knows is the kernel's matter.
    let partitions = fs::read_to_string(format!("/sys/block/{kernel}/loop/partscan")).unwrap();
    assert_eq!(partitions, "1\n");

    let mut user = Direct::open(device.path());
    let sectors = || fs::read_to_string(format!("/sys/block/{kernel}/size")).unwrap();
    assert!(device.resize(2 * SIZE).is_err(), "the backend is not that large");
    assert_eq!(sectors(), format!("{}\n", SIZE / 512));
    memory.grow(2 * SIZE);
    assert!(device.resize(2 * SIZE).unwrap());
    assert_eq!(sectors(), format!("{}\n", 2 * SIZE / 512));
    let data = pattern(4096, 9);
    user.write(&data, 2 * SIZE - 4096).unwrap();
    assert!(memory.bytes(2 * SIZE - 4096, 4096) == data);
    assert!(device.resize(SIZE).is_err(), "it does not shrink");
    drop(user);
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn what_a_crash_leaves_is_cleaned_up() {
    if !possible() {
        return;
    }
    let place = Place::new();
    assert_eq!(clean_up_stale(&place.options, |_| false).unwrap().names, [""; 0]);
    let daemon = start_again("attach_and_wait_to_be_killed", CRASH, place.directory.path());
    let link = place.options.links_dir.join("used");
    let node = fs::read_link(&link).unwrap();
    let idle = fs::read_link(place.options.links_dir.join("idle")).unwrap();
    run("mkfs.ext4", &["-q", text(&link)]);
    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(&link, point.clone());
    // A link that has nothing to do with this run directory.
    let foreign = place.options.links_dir.join("foreign");
    std::os::unix::fs::symlink("/dev/no-such-device", &foreign).unwrap();

    drop(daemon);
    let written = fs::write(point.join("a"), pattern(4096, 1))
        .and_then(|()| fs::File::open(point.join("a"))?.sync_all());
    assert!(written.is_err(), "a device without its daemon took a write");

    let cleaned = clean_up_stale(&place.options, |_| false).unwrap();
    assert_eq!(cleaned.names, ["idle", "used"]);
    assert!(cleaned.in_use.contains(&node), "{:?}", cleaned.in_use);
    // Another process that looks for a free device may have it open for a moment.
    eventually("the end of the idle device", || !sysfs_has_file(&idle));
    assert!(sysfs_has_file(&node));
    fs::remove_file(foreign).unwrap();
    assert!(!link.exists());

    // The name is free at once, also while the old device still has its user.
    let device = place.attach("used", &Memory::new(SIZE));
    assert_ne!(device.node(), node);
    device.detach(false).unwrap();
    mounted.unmount();
    eventually("the end of the device", || !sysfs_has_file(&node));
    assert_eq!(clean_up_stale(&place.options, |_| false).unwrap().names, [""; 0]);
    place.assert_clean();
}
