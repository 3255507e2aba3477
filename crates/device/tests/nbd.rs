//! The NBD backend against a real server, by itself and under a block device.

// The lint looks away in test functions only, and the helpers are outside of them.
#![allow(clippy::unwrap_used)]
// Each test binary uses its part of the helpers.
#![allow(dead_code)]

#[path = "support/server.rs"]
mod server;
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use holdfast_device::{Backend, LocalDevice, NbdBackend, NbdOptions};
use holdfast_nbd::{Export, ExportInfo, MemoryExport};
use holdfast_units::ByteRange;
use server::Server;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::*;

fn connect(server: &Server, timeout: Duration) -> NbdBackend {
    let options = NbdOptions { timeout, ..NbdOptions::new(&server.socket, "r0") };
    NbdBackend::connect(options).unwrap()
}

const PATIENT: Duration = Duration::from_secs(30);
/// Longer than a busy machine keeps the server from answering.
const IMPATIENT: Duration = Duration::from_secs(3);
/// Long before anybody who waited for ever would have ended.
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn every_request_reaches_the_export() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(directory.path(), SIZE);
    let backend = connect(&server, PATIENT);
    assert_eq!((backend.size(), backend.block_size()), (SIZE, 512));

    let data = pattern(1 << 20, 4);
    backend.write_at(&data, MIB, false).unwrap();
    backend.write_at(&data[..512], SIZE - 512, true).unwrap();
    let mut read = vec![0; 1 << 20];
    backend.read_at(&mut read, MIB).unwrap();
    assert!(read == data);
    let flushes = server.watch.flushes.load(Ordering::SeqCst);
    backend.flush().unwrap();
    assert_eq!(server.watch.flushes.load(Ordering::SeqCst), flushes + 1);
    backend.trim(ByteRange::new(MIB, 4096)).unwrap();
    backend.write_zeroes(ByteRange::new(0, SIZE - 512), true).unwrap();
    assert_eq!(server.watch.zeroed_bytes.load(Ordering::SeqCst), SIZE - 512);
    backend.read_at(&mut read, MIB).unwrap();
    assert!(read == vec![0; 1 << 20]);
    backend.read_at(&mut read[..512], SIZE - 512).unwrap();
    assert_eq!(read[..512], data[..512]);
    // An answer, not a broken connection: it comes at once.
    backend.read_at(&mut read[..512], SIZE).unwrap_err();
}

#[test]
fn a_restart_of_the_server_only_delays() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(directory.path(), SIZE);
    let backend = connect(&server, PATIENT);
    backend.write_at(&[1; 4096], 0, false).unwrap();
    server.stop();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| backend.write_at(&[2; 4096], 4096, false));
        server.start();
        writing.join().unwrap().unwrap();
    });
    let mut read = [0; 8192];
    backend.read_at(&mut read, 0).unwrap();
    assert_eq!((read[0], read[4096]), (1, 2));
}

#[test]
fn an_outage_ends_in_errors_and_then_it_works_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(directory.path(), SIZE);
    let backend = connect(&server, IMPATIENT);
    server.stop();
    let start = Instant::now();
    backend.flush().unwrap_err();
    assert!(start.elapsed() < BOUND);
    server.start();
    eventually("a flush in time", || backend.flush().is_ok());
}

#[test]
fn a_request_without_an_answer_is_not_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::new(directory.path(), SIZE);
    let backend = connect(&server, IMPATIENT);
    server.watch.silent.store(true, Ordering::SeqCst);
    let requests = server.watch.requests.load(Ordering::SeqCst);
    let error = backend.write_at(&[1; 4096], 0, false).unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error}");
    assert_eq!(server.watch.requests.load(Ordering::SeqCst), requests + 1);
    server.watch.silent.store(false, Ordering::SeqCst);
    eventually("a write in time", || backend.write_at(&[1; 4096], 0, false).is_ok());
}

#[test]
fn exports_that_will_not_do_are_refused() {
    let refusal = |change: fn(&mut ExportInfo)| {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::with(directory.path(), move || {
            let mut info = MemoryExport::new("r0", MIB).info();
            change(&mut info);
            MemoryExport::with_info(info)
        });
        let options = NbdOptions::new(&server.socket, "r0");
        NbdBackend::connect(options).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refusal(|_| {}), "");
    assert!(refusal(|info| info.read_only = true).contains("read-only"));
    assert!(refusal(|info| info.can_multi_conn = false).contains("flush"));
    assert!(refusal(|info| info.name = "other".to_owned()).contains("r0"));
    assert_eq!(refusal(|info| info.min_block = 4096), "");

    let nobody = NbdOptions::new("/nonexistent/nbd.sock", "r0");
    assert!(NbdBackend::connect(nobody).is_err());
}

#[test]
fn a_filesystem_outlives_a_restart_of_the_server() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let server = Server::new(place.directory.path(), SIZE);
    let backend = Arc::new(connect(&server, PATIENT));
    let device = LocalDevice::attach("r0", backend, &place.options).unwrap();
    run("mkfs.ext4", &["-q", device.path().to_str().unwrap()]);
    let point = place.directory.path().join("mnt");
    let mounted = Mounted::new(device.path(), point.clone());
    let data = pattern(4 << 20, 6);

    server.stop();
    let (target, content) = (point.join("a"), data.clone());
    let writing = std::thread::spawn(move || {
        fs::write(&target, content).and_then(|()| fs::File::open(&target)?.sync_all())
    });
    server.start();
    writing.join().unwrap().unwrap();
    assert!(server.watch.flushes.load(Ordering::SeqCst) > 0);
    mounted.unmount();
    run("e2fsck", &["-fn", device.path().to_str().unwrap()]);

    let mounted = Mounted::new(device.path(), point.clone());
    assert!(fs::read(point.join("a")).unwrap() == data);
    mounted.unmount();
    device.detach(false).unwrap();
    place.assert_clean();
}

#[test]
fn a_device_over_large_blocks_has_large_blocks() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let server = Server::with(place.directory.path(), || {
        let mut info = MemoryExport::new("r0", SIZE).info();
        info.min_block = 4096;
        MemoryExport::with_info(info)
    });
    let backend = Arc::new(connect(&server, PATIENT));
    let device = LocalDevice::attach("r0", backend, &place.options).unwrap();
    assert_eq!(sysfs(device.node(), "queue/logical_block_size"), "4096");
    assert_eq!(sysfs(device.node(), "loop/dio"), "1");
    let mut file = Direct::open(device.path());
    file.write(&pattern(8192, 1), 4096).unwrap();
    assert_eq!(file.read(8192, 4096).unwrap(), pattern(8192, 1));
    assert!(file.write(&[1; 512], 512).is_err());
    drop(file);
    device.detach(false).unwrap();
}

#[test]
fn a_device_without_its_server_fails_in_bounded_time() {
    if !possible() {
        return;
    }
    let place = Place::new();
    let server = Server::new(place.directory.path(), SIZE);
    let backend = Arc::new(connect(&server, IMPATIENT));
    let device = LocalDevice::attach("r0", backend, &place.options).unwrap();
    let mut file = Direct::open(device.path());
    server.stop();
    let start = Instant::now();
    assert_eq!(file.read(4096, 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(file.write(&[1; 4096], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(start.elapsed() < BOUND);
    server.start();
    eventually("a write in time", || file.write(&[1; 4096], 0).is_ok());
    drop(file);
    device.detach(false).unwrap();
}
