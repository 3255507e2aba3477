//! Files in memory when there is no room, or when somebody cuts them: what cannot be kept fails with an
//! error, also through a mapping, where the kernel says it with a signal or not at all.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BufferPool, DirectMode, Disk, DiskErrorKind, DiskIdentity, DiskOp, EngineKind, OpenOptions,
    Outcome, SpareErrorKind, SpareFormat, create_file, format_spare,
};
use holdfast_units::{ByteRange, ResourceId};
use rustix::fs::{FallocateFlags, fallocate};

const MIB: u64 = 1 << 20;
/// How much the filesystem holds, and how long the disk on it is.
const ROOM: u64 = 8 * MIB;
const SIZE: u64 = 16 * MIB;

/// A small filesystem of its own, unmounted with the value.
struct SmallTmpfs(tempfile::TempDir);

impl SmallTmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={ROOM}");
        let mut mount = Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir.path()).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => {
                eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(why) => {
                eprintln!("skipped: mount cannot be run: {why}");
                None
            }
        }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn disk(&self) -> Disk {
        let path = self.join("disk");
        create_file(&path, SIZE).unwrap();
        let disk = Disk::open(&path, &OpenOptions::default(), &BufferPool::new(4 << 20)).unwrap();
        assert_eq!(disk.info().engine, EngineKind::Inline);
        disk
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.join("filler");
        let file = File::create(&path).unwrap();
        let mut at = 0;
        while file.write_all_at(&[1; 4096], at).is_ok() {
            at += 4096;
        }
        path
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "it stays mounted");
    }
}

fn piece(mib: u64) -> ByteRange {
    ByteRange::new(mib * MIB, MIB)
}

fn write(disk: &mut Disk, range: ByteRange, value: u8) -> Result<Outcome, DiskErrorKind> {
    let data = Bytes::from(vec![value; usize::try_from(range.len).unwrap()]);
    disk.execute(DiskOp::Write { range, data, fua: false }).map_err(|error| error.kind)
}

#[track_caller]
fn assert_holds(disk: &mut Disk, range: ByteRange, value: u8) {
    let Outcome::Data(data) = disk.execute(DiskOp::Read { range, holes: false }).unwrap() else {
        panic!("a read gives data");
    };
    assert!(data.iter().all(|byte| *byte == value), "{range} holds {}", data[0]);
}

#[test]
fn a_full_filesystem_fails_the_write_that_does_not_fit() {
    let Some(tmpfs) = SmallTmpfs::mount() else { return };
    let mut disk = tmpfs.disk();
    let mut values: Vec<u8> = Vec::new();
    let failed = loop {
        let mib = values.len() as u64;
        let value = u8::try_from(mib + 1).unwrap();
        match write(&mut disk, piece(mib), value) {
            Ok(_) => values.push(value),
            Err(kind) => break kind,
        }
    };
    assert_eq!(failed, DiskErrorKind::NoSpace);
    let missing = values.len() as u64;
    assert!((6..=8).contains(&missing), "{missing} MiB had room");
    assert!(!disk.is_poisoned());
    assert_eq!(write(&mut disk, ByteRange::new(SIZE - 4096, 4096), 9), Err(DiskErrorKind::NoSpace));
    disk.execute(DiskOp::Flush).unwrap();
    for (mib, value) in (0..).zip(&values) {
        assert_holds(&mut disk, piece(mib), *value);
    }
    // What is there can be written anew, and what becomes free can be used.
    write(&mut disk, piece(2), 200).unwrap();
    assert_holds(&mut disk, piece(2), 200);
    disk.execute(DiskOp::WriteZeroes { range: piece(0), unmap: true, fua: false }).unwrap();
    write(&mut disk, piece(missing), 201).unwrap();
    assert_holds(&mut disk, piece(0), 0);
    assert_holds(&mut disk, piece(missing), 201);
    assert_eq!(write(&mut disk, piece(0), 202), Err(DiskErrorKind::NoSpace));
}

#[test]
fn a_page_that_others_took_away_fails_the_write_when_there_is_none_left() {
    let Some(tmpfs) = SmallTmpfs::mount() else { return };
    let mut disk = tmpfs.disk();
    for mib in 0..4 {
        write(&mut disk, piece(mib), 1).unwrap();
        write(&mut disk, piece(mib), 2).unwrap();
    }
    // Half of a piece that the disk takes to be there.
    let file = File::options().write(true).open(tmpfs.join("disk")).unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, MIB + MIB / 2, MIB / 2).unwrap();
    let filler = tmpfs.fill();
    assert_eq!(write(&mut disk, piece(1), 3), Err(DiskErrorKind::NoSpace));
    for mib in [0, 2, 3] {
        assert_holds(&mut disk, piece(mib), 2);
    }
    // Whatever there is of the failed write, it is not more than that.
    assert_holds(&mut disk, ByteRange::new(2 * MIB - 4096, 4096), 0);
    write(&mut disk, piece(2), 4).unwrap();
    assert_holds(&mut disk, piece(2), 4);
    std::fs::remove_file(filler).unwrap();
    write(&mut disk, piece(1), 5).unwrap();
    assert_holds(&mut disk, piece(1), 5);
}

#[test]
fn what_is_written_behind_the_end_of_a_file_that_was_cut_is_not_called_durable() {
    let Ok(scratch) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = scratch.path().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let pool = BufferPool::new(4 << 20);
    let mut disk = Disk::open(&path, &OpenOptions::default(), &pool).unwrap();
    disk.execute(DiskOp::Flush).unwrap();
    // In the middle of a page: no store into that page fails. A short write would make the file whole.
    File::options().write(true).open(&path).unwrap().set_len(MIB - 1000).unwrap();
    write(&mut disk, ByteRange::new(MIB / 2, MIB / 2), 9).unwrap();
    assert_eq!(disk.execute(DiskOp::Flush).unwrap_err().kind, DiskErrorKind::FlushFailed);
}

#[test]
fn what_a_file_that_was_cut_does_not_have_is_no_hole() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for place in [Path::new("/dev/shm"), scratch.path()] {
        let Ok(scratch) = tempfile::tempdir_in(place) else { continue };
        let path = scratch.path().join("disk");
        create_file(&path, 2 * MIB).unwrap();
        let pool = BufferPool::new(4 << 20);
        let options = OpenOptions { direct: DirectMode::Never, ..OpenOptions::default() };
        let mut disk = Disk::open(&path, &options, &pool).unwrap();
        let mut read = |mib| disk.execute(DiskOp::Read { range: piece(mib), holes: true });
        assert_eq!(read(1), Ok(Outcome::Zeroes));
        File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap();
        assert_eq!(read(0), Ok(Outcome::Zeroes), "{place:?}");
        assert!(read(1).is_err(), "{place:?}");
    }
}

/// Room that somebody else could take before a bad block comes is none.
#[test]
fn a_spare_has_its_room_from_the_beginning_or_is_refused() {
    let Some(small) = SmallTmpfs::mount() else { return };
    let format = |name: &str, size: u64| {
        let path = small.join(name);
        create_file(&path, size).unwrap();
        let pool = BufferPool::new(4 << 20);
        let mut disk = Disk::open(&path, &OpenOptions::default(), &pool).unwrap();
        let shape = SpareFormat {
            id: SpareId([1; 16]),
            unit: 4096,
            slots: None,
            force: false,
            disk_size: SIZE,
            created: 0,
        };
        let owner = DiskIdentity { resource: ResourceId([1; 16]), disk: [2; 16] };
        let made = format_spare(&mut disk, None, &owner, &shape).map(drop);
        (made, path.metadata().unwrap().blocks() * 512)
    };
    let (made, taken) = format("fits", 2 * MIB);
    assert_eq!((made, taken), (Ok(()), 2 * MIB));
    let (made, taken) = format("does not", 7 * MIB);
    let error = made.unwrap_err();
    assert_eq!(error.kind, SpareErrorKind::NoRoom(7 * MIB));
    assert!(error.to_string().contains("no room for all of its 7 MiB"), "{error}");
    assert_eq!(taken, 0, "it is as it was");
}
