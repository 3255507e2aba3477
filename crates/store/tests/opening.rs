//! What can be opened, what is refused, and in which words.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::disk_scratch;
use holdfast_store::{
    BackingKind, BufferPool, DirectMode, Disk, DiskErrorKind, DiskOp, EngineChoice, EngineKind,
    OpenError, OpenErrorKind, OpenOptions, Outcome, create_file,
};
use holdfast_units::ByteRange;

fn open(path: &Path) -> Result<Disk, OpenError> {
    Disk::open(path, &OpenOptions::default(), &BufferPool::new(0))
}

fn at_once() -> OpenOptions {
    OpenOptions { claim_wait: Duration::ZERO, ..OpenOptions::default() }
}

fn refusal(path: &Path, options: &OpenOptions) -> (OpenErrorKind, String) {
    let error = Disk::open(path, options, &BufferPool::new(0)).unwrap_err();
    (error.kind.clone(), error.to_string())
}

#[test]
fn what_is_no_disk_is_refused_in_one_sentence() {
    let scratch = disk_scratch();
    let options = OpenOptions::default();
    let check = |name: &str, kind: OpenErrorKind, words: &str| {
        let path = scratch.path().join(name);
        let (found, text) = refusal(&path, &options);
        assert_eq!(found, kind, "{text}");
        assert!(text.contains(&*path.to_string_lossy()) && text.contains(words), "{text}");
    };
    check("missing", OpenErrorKind::NotFound, "does not exist");
    fs::create_dir(scratch.path().join("directory")).unwrap();
    check("directory", OpenErrorKind::NotADisk("a directory"), "it is a directory");
    File::create(scratch.path().join("small")).unwrap().set_len(4095).unwrap();
    check("small", OpenErrorKind::TooSmall(4095), "3.9 KiB");
    File::create(scratch.path().join("below")).unwrap();
    check("below/disk", OpenErrorKind::NotFound, "does not exist");
    assert!(Command::new("mkfifo").arg(scratch.path().join("pipe")).status().unwrap().success());
    check("pipe", OpenErrorKind::NotADisk("a pipe"), "it is a pipe");
    let (kind, _) = refusal(Path::new("/dev/null"), &options);
    assert_eq!(kind, OpenErrorKind::NotADisk("a character device"));
}

#[test]
fn permissions_are_told() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 8192).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: root may open everything");
        return;
    }
    let (kind, text) = refusal(&path, &OpenOptions::default());
    assert_eq!(kind, OpenErrorKind::PermissionDenied);
    assert!(text.contains("permission is denied"), "{text}");
}

#[test]
fn a_disk_is_claimed_until_it_is_dropped() {
    for bed in common::beds(1 << 20).into_iter().filter(|bed| bed.path.is_some()) {
        let path = bed.path.clone().unwrap();
        let disk = bed.open();
        let (kind, text) = refusal(&path, &at_once());
        assert_eq!(kind, OpenErrorKind::InUse, "{}: {text}", bed.name);
        assert!(text.contains("in use by another process"), "{text}");
        let shared = OpenOptions { exclusive: false, read_only: true, ..OpenOptions::default() };
        assert!(Disk::open(&path, &shared, &bed.pool).is_ok(), "who does not ask is not refused");
        drop(disk);
        drop(open(&path).unwrap());
    }
}

#[test]
fn a_claim_of_another_process_is_seen() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 8192).unwrap();
    let mut other = Command::new("flock")
        .arg(&path)
        .args(["-c", "echo locked; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(other.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "locked\n");
    assert_eq!(refusal(&path, &at_once()).0, OpenErrorKind::InUse);
    // While this one waits for the claim, the other gives it up.
    let patient = OpenOptions { claim_wait: Duration::from_secs(60), ..OpenOptions::default() };
    let waiting = std::thread::spawn({
        let path = path.clone();
        move || Disk::open(&path, &patient, &BufferPool::new(0)).map(drop)
    });
    drop(other.stdin.take());
    other.wait().unwrap();
    assert_eq!(waiting.join().unwrap(), Ok(()));
}

#[test]
fn files_in_memory_are_driven_inline() {
    let Ok(scratch) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    let path = scratch.path().join("disk");
    create_file(&path, 10_000).unwrap();
    let disk = open(&path).unwrap();
    let info = disk.info();
    assert_eq!((info.engine, info.direct), (EngineKind::Inline, false));
    assert_eq!((info.size, info.kind), (8192, BackingKind::File));
    assert_eq!(info.volatile_cache, Some(false));
    assert!(info.notes.is_empty());
}

#[test]
fn files_on_disk_are_driven_asynchronously() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 1 << 20).unwrap();
    let disk = open(&path).unwrap();
    let info = disk.info();
    let asynchronous = [EngineKind::Uring, EngineKind::Cached, EngineKind::Blocking];
    assert!(asynchronous.contains(&info.engine));
    assert_eq!(info.direct, info.block_size > 1);
    assert!(info.discard && info.discard_zeroes);
    if !common::has_uring() || !info.direct {
        assert!(!info.notes.is_empty(), "a fallback says why");
    }
}

#[test]
fn what_is_asked_for_is_given_or_refused() {
    let options = OpenOptions { direct: DirectMode::Always, ..OpenOptions::default() };
    let proc = Path::new("/proc/self/status");
    assert!(matches!(refusal(proc, &options).0, OpenErrorKind::TooSmall(0) | OpenErrorKind::Io));
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 1 << 20).unwrap();
    let options = OpenOptions {
        direct: DirectMode::Never,
        engine: EngineChoice::Blocking,
        ..OpenOptions::default()
    };
    let disk = Disk::open(&path, &options, &BufferPool::new(0)).unwrap();
    assert_eq!((disk.info().engine, disk.info().direct), (EngineKind::Blocking, false));
}

#[test]
fn a_file_is_created_once_and_sparse() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 1 << 40).unwrap();
    assert_eq!(open(&path).unwrap().size(), 1 << 40);
    let error = create_file(&path, 1 << 20).unwrap_err();
    assert_eq!(error.kind, OpenErrorKind::Exists);
    assert!(error.to_string().contains("cannot be created: something is there already"));
    let small = create_file(&scratch.path().join("small"), 17).unwrap_err();
    assert_eq!(small.kind, OpenErrorKind::TooSmall(17));
    assert!(!scratch.path().join("small").exists());
}

#[test]
fn a_disk_can_be_opened_on_one_thread_and_driven_on_another() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 1 << 20).unwrap();
    let mut disk = std::thread::spawn(move || open(&path).unwrap()).join().unwrap();
    common::write(&mut disk, 4096, &[3; 4096]);
    assert_eq!(common::read(&mut disk, 4096, 4096)[..], [3; 4096]);
}

#[test]
fn a_device_that_is_read_only_is_opened_for_reading_only() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 1 << 20).unwrap();
    let Some(device) = common::LoopDevice::read_only(&path) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    let (kind, text) = refusal(device.path(), &OpenOptions::default());
    assert_eq!(kind, OpenErrorKind::ReadOnly);
    assert!(text.contains("it can only be read"), "{text}");
    let reading = OpenOptions { read_only: true, ..OpenOptions::default() };
    assert!(Disk::open(device.path(), &reading, &BufferPool::new(0)).is_ok());
}

#[test]
fn all_bytes_can_be_had_where_that_is_asked_for() {
    let scratch = disk_scratch();
    let path = scratch.path().join("odd");
    let content: Vec<u8> = (0..10_001_u32).map(|i| i as u8).collect();
    fs::write(&path, &content).unwrap();
    assert_eq!(open(&path).unwrap().size(), 8192);
    let options = OpenOptions { exact_size: true, ..at_once() };
    let mut disk = Disk::open(&path, &options, &BufferPool::new(0)).unwrap();
    assert_eq!((disk.size(), disk.info().block_size, disk.info().direct), (10_001, 1, false));
    let tail = ByteRange::new(9_999, 2);
    let read = DiskOp::Read { range: tail, holes: false };
    let Ok(Outcome::Data(data)) = disk.execute(read) else { panic!("it can be read") };
    assert_eq!(data[..], content[9_999..]);
    let write = |at: u64| DiskOp::Write {
        range: ByteRange::new(at, 2),
        data: bytes::Bytes::from_static(b"zz"),
        fua: false,
    };
    disk.execute(write(9_999)).unwrap();
    assert_eq!(fs::read(&path).unwrap()[9_998..], [content[9_998], b'z', b'z']);
    let kind = disk.execute(write(10_000)).unwrap_err().kind;
    assert_eq!(kind, DiskErrorKind::OutOfRange);
    File::options().write(true).open(&path).unwrap().set_len(20_000).unwrap();
    disk.grown_to(20_000);
    disk.grown_to(1);
    assert_eq!(disk.size(), 20_000);
    disk.execute(write(19_998)).unwrap();
    assert!(fs::read(&path).unwrap().ends_with(b"\0zz"));
    drop(disk);
    let direct = OpenOptions { direct: DirectMode::Always, ..options };
    assert!(matches!(refusal(&path, &direct).0, OpenErrorKind::NoDirect(_)));
    File::create(&path).unwrap();
    let (kind, text) = refusal(&path, &options);
    assert_eq!(kind, OpenErrorKind::TooSmall(0));
    assert!(text.contains("it is empty"), "{text}");
}

#[test]
fn filesystems_with_holes_zero_fast() {
    let scratch = disk_scratch();
    let path = scratch.path().join("disk");
    create_file(&path, 8192).unwrap();
    assert!(open(&path).unwrap().info().fast_zeroes);
    assert_eq!(fs::metadata(&path).unwrap().len(), 8192);
    let reading = OpenOptions { read_only: true, ..at_once() };
    assert!(!Disk::open(&path, &reading, &BufferPool::new(0)).unwrap().info().fast_zeroes);
}
