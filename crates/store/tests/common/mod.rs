//! The engines under test, each on a scratch backing of its own.
#![allow(dead_code, unreachable_pub)] // a module of several programs, each of which uses a part

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use holdfast_format::remap::SpareId;
use holdfast_store::{
    BufferPool, Completion, DirectMode, Disk, DiskIdentity, DiskOp, EngineChoice, EngineKind,
    MemoryStore, OpenOptions, Outcome, RemapOp, SpareAt, SpareFormat, create_file, format_spare,
};
use holdfast_units::{ByteRange, ResourceId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub struct Bed {
    pub name: &'static str,
    pub path: Option<PathBuf>,
    pub pool: BufferPool,
    pub knows_holes: bool,
    pub is_inline: bool,
    pub engine: EngineKind,
    direct: DirectMode,
    hand_off: Option<usize>,
    memory: Option<MemoryStore>,
    faults: bool,
    spares: Option<Spares>,
    // Dropped in this order: the device must be gone before the file under it.
    device: Option<LoopDevice>,
    scratch: Option<tempfile::TempDir>,
}

impl Bed {
    pub fn open(&self) -> Disk {
        self.open_with(&OpenOptions::default())
    }

    pub fn open_with(&self, options: &OpenOptions) -> Disk {
        if let Some(store) = &self.memory {
            return self.with_faults(Disk::memory(store, &self.pool).unwrap());
        }
        let engine = match self.engine {
            EngineKind::Inline => EngineChoice::Inline,
            EngineKind::Uring => EngineChoice::Uring,
            EngineKind::Cached => EngineChoice::Auto,
            _ => EngineChoice::Blocking,
        };
        // A small ring, so that the backlog is used.
        let (direct, hand_off) = (self.direct, self.hand_off);
        let options = OpenOptions { engine, direct, hand_off, queue_depth: 8, ..*options };
        let disk = Disk::open(self.path.as_ref().unwrap(), &options, &self.pool).unwrap();
        assert_eq!(disk.info().engine, self.engine);
        assert_eq!(disk.info().direct, self.direct == DirectMode::Always);
        self.with_faults(disk)
    }

    fn with_faults(&self, disk: Disk) -> Disk {
        let disk = if self.faults { disk.with_faults(&[]).0 } else { disk };
        match &self.spares {
            Some(spares) if !disk.info().read_only => spares.around(disk, self),
            _ => disk,
        }
    }

    /// The same with a spare, and with some blocks in it.
    fn spared(mut self, name: &'static str) -> Self {
        let store = MemoryStore::new(1 << 20);
        let mut file = None;
        if let Some(scratch) = &self.scratch {
            let path = scratch.path().join("spare");
            create_file(&path, 1 << 20).unwrap();
            file = Some(path);
        }
        let spares = Spares { store, file };
        let format = SpareFormat {
            id: SpareId([1; 16]),
            unit: 4096,
            slots: None,
            force: false,
            disk_size: 0,
            created: 0,
        };
        format_spare(&mut spares.open(&self), None, &OWNER, &format).unwrap();
        (self.name, self.spares, self.knows_holes) = (name, Some(spares), false);
        self
    }
}

const OWNER: DiskIdentity = DiskIdentity { resource: ResourceId([1; 16]), disk: [2; 16] };

/// A spare for a bed.
struct Spares {
    store: MemoryStore,
    file: Option<PathBuf>,
}

impl Spares {
    fn open(&self, bed: &Bed) -> Disk {
        match &self.file {
            Some(path) => Disk::open(path, &OpenOptions::default(), &bed.pool).unwrap(),
            None => Disk::memory(&self.store, &bed.pool).unwrap(),
        }
    }

    fn around(&self, disk: Disk, bed: &Bed) -> Disk {
        let spares = vec![SpareAt::Disk(Box::new(self.open(bed)))];
        let mut disk = disk.with_spares(spares, &OWNER).unwrap();
        for first in [0, 2, 3, 12, 256, 1023] {
            let range = ByteRange::of_blocks(first..first + 1);
            if range.end() <= disk.size() {
                disk.remap_now(RemapOp::Move { range, imported: false }).0.unwrap();
            }
        }
        disk
    }
}

pub fn has_uring() -> bool {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("probe");
    create_file(&path, 4096).unwrap();
    let options = OpenOptions { engine: EngineChoice::Uring, ..OpenOptions::default() };
    Disk::open(&path, &options, &BufferPool::new(0)).is_ok()
}

/// A directory on a disk; not /tmp, which may be memory.
pub fn disk_scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn beds(size: u64) -> Vec<Bed> {
    let on_disk = |name, engine, direct| {
        let scratch = disk_scratch();
        Bed::new(name, engine, direct, scratch, size)
    };
    let mut beds = vec![
        on_disk("threads, page cache", EngineKind::Blocking, DirectMode::Never),
        on_disk("inline, on a disk", EngineKind::Inline, DirectMode::Never),
        Bed::memory("memory", size, false),
        Bed::memory("memory, with a fault layer", size, true),
        Bed::memory("memory, with a spare", size, false).spared("memory, with a spare"),
        on_disk("threads", EngineKind::Blocking, DirectMode::Never).spared("threads, with a spare"),
    ];
    if let Ok(scratch) = tempfile::tempdir_in("/dev/shm") {
        let name = "inline, in memory";
        beds.push(Bed::new(name, EngineKind::Inline, DirectMode::Never, scratch, size));
    }
    if let Ok(scratch) = tempfile::tempdir_in("/dev/shm") {
        let name = "inline, in memory, with a helper";
        let mut bed = Bed::new(name, EngineKind::Inline, DirectMode::Never, scratch, size);
        (bed.hand_off, bed.is_inline) = (Some(8192), false);
        beds.push(bed);
    }
    let direct = has_direct();
    if direct {
        beds.push(on_disk("threads, direct", EngineKind::Blocking, DirectMode::Always));
    }
    if has_uring() {
        beds.push(on_disk("io_uring, page cache", EngineKind::Uring, DirectMode::Never));
        beds.push(on_disk("page cache, io_uring beside", EngineKind::Cached, DirectMode::Never));
        if direct {
            beds.push(on_disk("io_uring, direct", EngineKind::Uring, DirectMode::Always));
            let bed = on_disk("io_uring", EngineKind::Uring, DirectMode::Always);
            beds.push(bed.spared("io_uring, direct, with a spare"));
            let mut faulty =
                on_disk("io_uring with a fault layer", EngineKind::Uring, DirectMode::Always);
            faulty.faults = true;
            beds.push(faulty);
        }
        beds.extend(Bed::block_device(size));
    }
    beds
}

fn has_direct() -> bool {
    let scratch = disk_scratch();
    let path = scratch.path().join("probe");
    create_file(&path, 4096).unwrap();
    let options = OpenOptions { direct: DirectMode::Always, ..OpenOptions::default() };
    let opened = Disk::open(&path, &options, &BufferPool::new(0));
    if let Err(error) = &opened {
        eprintln!("skipped: direct I/O: {error}");
    }
    opened.is_ok()
}

impl Bed {
    fn new(
        name: &'static str,
        engine: EngineKind,
        direct: DirectMode,
        scratch: tempfile::TempDir,
        size: u64,
    ) -> Self {
        let path = scratch.path().join("disk");
        create_file(&path, size).unwrap();
        Self {
            name,
            path: Some(path),
            pool: BufferPool::new(64 << 20),
            knows_holes: true,
            is_inline: engine == EngineKind::Inline,
            engine,
            direct,
            hand_off: None,
            memory: None,
            faults: false,
            spares: None,
            device: None,
            scratch: Some(scratch),
        }
    }

    fn memory(name: &'static str, size: u64, faults: bool) -> Self {
        Self {
            name,
            path: None,
            pool: BufferPool::new(64 << 20),
            knows_holes: true,
            is_inline: true,
            engine: EngineKind::Memory,
            direct: DirectMode::Never,
            hand_off: None,
            memory: Some(MemoryStore::new(size)),
            faults,
            spares: None,
            device: None,
            scratch: None,
        }
    }

    /// A loop device, where the test may make one.
    fn block_device(size: u64) -> Option<Self> {
        let mut bed =
            Self::new("block device", EngineKind::Uring, DirectMode::Always, disk_scratch(), size);
        let Some(device) = LoopDevice::attach(bed.path.as_ref()?) else {
            eprintln!("skipped: block device: no loop device can be made here");
            return None;
        };
        bed.path = Some(device.0.clone());
        bed.device = Some(device);
        bed.knows_holes = false;
        Some(bed)
    }
}

/// A loop device for as long as it lives.
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    fn attach(file: &Path) -> Option<Self> {
        Self::attach_with(&["--find", "--show"], file)
    }

    /// One that cannot be written, where the test may make one.
    pub fn read_only(file: &Path) -> Option<Self> {
        Self::attach_with(&["--read-only", "--find", "--show"], file)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn attach_with(arguments: &[&str], file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(arguments).arg(file).output().ok()?;
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        output.status.success().then(|| Self(device.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

pub fn write(disk: &mut Disk, offset: u64, data: &[u8]) {
    let range = ByteRange::new(offset, data.len() as u64);
    let data = Bytes::copy_from_slice(data);
    assert_eq!(disk.execute(DiskOp::Write { range, data, fua: false }), Ok(Outcome::Done));
}

pub fn read(disk: &mut Disk, offset: u64, len: usize) -> Bytes {
    let range = ByteRange::new(offset, len as u64);
    match disk.execute(DiskOp::Read { range, holes: false }) {
        Ok(Outcome::Data(data)) => data,
        other => panic!("{other:?}"),
    }
}

/// Waits for everything that is in flight.
pub fn drain(disk: &mut Disk, done: &mut Vec<Completion>) {
    while disk.in_flight() > 0 {
        let before = done.len();
        disk.wait(done, Duration::from_secs(10));
        assert!(done.len() > before, "nothing completed for 10 seconds");
    }
}

pub fn readable(disk: &Disk, timeout: Duration) -> bool {
    let fd = disk.event_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(timeout).unwrap())).unwrap() == 1
}
