//! Opening a file or block device: claiming it, and finding out how it is best driven.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, OFlags, SeekFrom, fadvise, fallocate, fcntl_getfl,
    fcntl_setfl, flock, fstatfs, ioctl_blksszget, major, minor, seek,
};
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::blocking::Blocking;
use crate::engine::cached::Cached;
use crate::engine::inline::Inline;
use crate::engine::uring::Uring;
use crate::file::BackingFile;
use crate::mapped::Mapping;
use crate::wake::Wake;
use crate::{BackingKind, BufferPool, Disk, DiskInfo, EngineKind, OpenError, OpenErrorKind};

/// The smallest disk, and the unit of its size.
const BLOCK: u64 = holdfast_units::BLOCK_SIZE;
/// Threads of the blocking engine.
const THREADS: usize = 4;
/// Time between two attempts at a claim.
const CLAIM_RETRY: Duration = Duration::from_millis(10);
/// Magic numbers of filesystems that are only memory: tmpfs and ramfs.
const MEMORY_FILESYSTEMS: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Whether to bypass the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DirectMode {
    /// If it can be done and makes sense (not for files that live in memory).
    Auto,
    /// Refuse to open when it cannot be done.
    Always,
    /// Use the page cache.
    Never,
}

/// Which engine to use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EngineChoice {
    /// Inline for files that live in memory, else io_uring, else threads.
    Auto,
    /// System calls on the calling thread, which they block.
    Inline,
    /// io_uring, or refuse to open.
    Uring,
    /// Threads that block.
    Blocking,
}

/// How to open a disk. Start from `default()`.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Open for reading only.
    pub read_only: bool,
    /// Whether to bypass the page cache.
    pub direct: DirectMode,
    /// Which engine to use.
    pub engine: EngineChoice,
    /// How many requests the kernel gets at a time, 1 to 4096; more wait in user space.
    pub queue_depth: u32,
    /// How many operations may be in flight; more are refused with `Busy`.
    pub max_in_flight: usize,
    /// Claim it, so that no other process that asks can have it: `O_EXCL` for block devices
    /// (which mounted ones refuse, too), an exclusive `flock` for files.
    pub exclusive: bool,
    /// Use all bytes of the backing, not only its whole blocks of 4096.
    pub exact_size: bool,
    /// Have another thread make writes of at least so many bytes to a file that lives in memory: more
    /// of them in the same time, each a little later.
    pub hand_off: Option<usize>,
    /// How long to wait while somebody else has the claim. A process that was killed may hold it
    /// for a moment longer, until the kernel has ended its last requests.
    pub claim_wait: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            direct: DirectMode::Auto,
            engine: EngineChoice::Auto,
            queue_depth: 128,
            max_in_flight: 4096,
            exclusive: true,
            exact_size: false,
            hand_off: None,
            claim_wait: Duration::from_secs(2),
        }
    }
}

impl Disk {
    /// Opens the file or block device at `path`. Payload that it reads comes from `pool`. Blocks
    /// for a few system calls, and for `claim_wait` when the disk is in use.
    ///
    /// # Errors
    /// [`OpenError`] says in one sentence why it cannot be used. Nothing is claimed then.
    pub fn open(path: &Path, options: &OpenOptions, pool: &BufferPool) -> Result<Self, OpenError> {
        let fail = |error: io::Error| OpenError::from_io(path, &error);
        let (file, kind) = claim_patiently(path, options)?;
        let bytes = seek(&file, SeekFrom::End(0)).map_err(|errno| fail(errno.into()))?;
        let unit = if options.exact_size { 1 } else { BLOCK };
        if bytes < unit {
            return Err(OpenError::new(path, OpenErrorKind::TooSmall(bytes)));
        }
        let in_memory = kind == BackingKind::File && is_in_memory(&file);
        let mut notes = Vec::new();
        let direct = choose_direct(path, &file, kind, in_memory, options, pool, &mut notes)?;
        let direct = if options.exact_size {
            exact_direct(path, &file, direct, bytes, options, &mut notes)?
        } else {
            direct
        };
        if direct.is_none() && !in_memory {
            // The cache in small pages: overwriting a part of a large one is 20 times slower on
            // ext4. Advice; nothing depends on it.
            let _ = fadvise(&file, 0, None, Advice::Random);
        }
        let queue = Queue::of(&file, kind);
        if queue.read_only && !options.read_only {
            return Err(OpenError::new(path, OpenErrorKind::ReadOnly));
        }
        let zeroes_fast = queue.zeroes || (kind == BackingKind::File && can_punch(&file, bytes));
        let locked = options.exclusive && kind == BackingKind::File;
        let mappable = in_memory && !options.read_only;
        let mapping = mappable.then(|| Mapping::of(&file, bytes)).flatten();
        let file = Arc::new(BackingFile::new(file, kind, locked, mapping));
        let wake = Arc::new(Wake::new().map_err(fail)?);
        let (engine, engine_kind) = choose_engine(
            path,
            &file,
            (in_memory, direct.is_some()),
            options,
            pool,
            &wake,
            &mut notes,
        )?;
        let info = DiskInfo {
            path: Some(path.to_owned()),
            kind,
            engine: engine_kind,
            size: bytes / unit * unit,
            read_only: options.read_only,
            direct: direct.is_some(),
            block_size: direct.unwrap_or(1),
            discard: kind == BackingKind::File || queue.discard,
            discard_zeroes: kind == BackingKind::File,
            fast_zeroes: !options.read_only && zeroes_fast,
            rotational: if in_memory { Some(false) } else { queue.rotational },
            volatile_cache: if in_memory { Some(false) } else { queue.volatile_cache },
            notes,
        };
        Ok(Self::new(engine, info, pool.clone(), wake, options.max_in_flight))
    }
}

/// Creates a sparse file of `size` bytes at `path`.
///
/// # Errors
/// [`OpenError`] when something is there already, `size` is below 4096, or the filesystem refuses.
pub fn create_file(path: &Path, size: u64) -> Result<(), OpenError> {
    if size < BLOCK {
        return Err(OpenError::new(path, OpenErrorKind::TooSmall(size)).creating());
    }
    let fail = |error: io::Error| OpenError::from_io(path, &error).creating();
    let file = File::options().write(true).create_new(true).open(path).map_err(fail)?;
    file.set_len(size).map_err(|error| {
        // Nothing was there before; best effort to leave nothing behind.
        let _ = fs::remove_file(path);
        fail(error)
    })
}

fn claim_patiently(path: &Path, options: &OpenOptions) -> Result<(File, BackingKind), OpenError> {
    let deadline = Instant::now() + options.claim_wait;
    loop {
        match claim(path, options) {
            Err(error) if error.kind == OpenErrorKind::InUse && Instant::now() < deadline => {
                // Nobody tells when a claim ends, so it has to be asked for again.
                thread::sleep(CLAIM_RETRY);
            }
            result => return result,
        }
    }
}

/// Opens it, and takes the exclusive claim if that was asked for.
fn claim(path: &Path, options: &OpenOptions) -> Result<(File, BackingKind), OpenError> {
    let fail = |error: io::Error| OpenError::from_io(path, &error);
    // Asked before opening: to open a FIFO would block.
    let kind = kind_of(path, &fs::metadata(path).map_err(fail)?)?;
    let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if options.exclusive && kind == BackingKind::BlockDevice {
        flags |= libc::O_EXCL;
    }
    let file = File::options()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(fail)?;
    if kind_of(path, &file.metadata().map_err(fail)?)? != kind {
        return Err(OpenError::new(path, OpenErrorKind::InUse));
    }
    let flags = fcntl_getfl(&file).map_err(|errno| fail(errno.into()))?;
    fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|errno| fail(errno.into()))?;
    if options.exclusive && kind == BackingKind::File {
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| fail(errno.into()))?;
    }
    Ok((file, kind))
}

fn kind_of(path: &Path, metadata: &fs::Metadata) -> Result<BackingKind, OpenError> {
    let kind = metadata.file_type();
    let other = if kind.is_file() {
        return Ok(BackingKind::File);
    } else if kind.is_block_device() {
        return Ok(BackingKind::BlockDevice);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a socket"
    };
    Err(OpenError::new(path, OpenErrorKind::NotADisk(other)))
}

pub(crate) fn is_in_memory(file: &File) -> bool {
    let magic = fstatfs(file).map(|stat| stat.f_type);
    // The type of the number differs between machines; the magic numbers are 32 bits.
    magic.is_ok_and(|magic| {
        u64::try_from(magic).is_ok_and(|magic| MEMORY_FILESYSTEMS.contains(&(magic & 0xffff_ffff)))
    })
}

/// Switches `O_DIRECT` on where it is wanted and works. The block size then; `None` without it.
fn choose_direct(
    path: &Path,
    file: &File,
    kind: BackingKind,
    in_memory: bool,
    options: &OpenOptions,
    pool: &BufferPool,
    notes: &mut Vec<String>,
) -> Result<Option<u32>, OpenError> {
    let wanted = match options.direct {
        DirectMode::Never => false,
        DirectMode::Always => true,
        DirectMode::Auto => !in_memory && options.engine != EngineChoice::Inline,
    };
    if !wanted {
        return Ok(None);
    }
    match try_direct(file, kind, pool) {
        Ok(block_size) => Ok(Some(block_size)),
        Err(errno) => {
            set_direct(file, false)
                .map_err(|errno| OpenError::from_io(path, &io::Error::from(errno)))?;
            let why = format!("its filesystem or device refuses it ({errno})");
            if options.direct == DirectMode::Always {
                return Err(OpenError::new(path, OpenErrorKind::NoDirect(why)));
            }
            notes.push(format!("page-cached instead of direct I/O: {why}"));
            Ok(None)
        }
    }
}

/// Without the page cache, a last block that is not whole could not be used.
fn exact_direct(
    path: &Path,
    file: &File,
    direct: Option<u32>,
    bytes: u64,
    options: &OpenOptions,
    notes: &mut Vec<String>,
) -> Result<Option<u32>, OpenError> {
    let Some(block_size) = direct.filter(|block| !bytes.is_multiple_of(u64::from(*block))) else {
        return Ok(direct);
    };
    let why = format!("its size is not a multiple of {block_size} bytes");
    if options.direct == DirectMode::Always {
        return Err(OpenError::new(path, OpenErrorKind::NoDirect(why)));
    }
    set_direct(file, false).map_err(|errno| OpenError::from_io(path, &io::Error::from(errno)))?;
    notes.push(format!("page-cached instead of direct I/O: {why}"));
    Ok(None)
}

/// Whether the filesystem can make holes; asked behind the end, where nothing is.
fn can_punch(file: &File, bytes: u64) -> bool {
    let behind = bytes.next_multiple_of(BLOCK);
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, behind, BLOCK).is_ok()
}

fn set_direct(file: &File, on: bool) -> Result<(), Errno> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    fcntl_setfl(file, flags)
}

/// Some filesystems take the flag and refuse the read, so both are tried.
fn try_direct(file: &File, kind: BackingKind, pool: &BufferPool) -> Result<u32, Errno> {
    set_direct(file, true)?;
    let mut buffer = pool.get(4096);
    let mut read = |len: usize| match file.read_exact_at(&mut buffer[..len], 0) {
        // A bad first sector is no reason against direct I/O.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Errno::INVAL),
        _ => Ok(()),
    };
    read(4096)?;
    if kind == BackingKind::BlockDevice {
        let block_size = ioctl_blksszget(file)?;
        return if (1..=4096).contains(&block_size) { Ok(block_size) } else { Err(Errno::INVAL) };
    }
    Ok(if read(512).is_ok() { 512 } else { 4096 })
}

fn choose_engine(
    path: &Path,
    file: &Arc<BackingFile>,
    (in_memory, direct): (bool, bool),
    options: &OpenOptions,
    pool: &BufferPool,
    wake: &Arc<Wake>,
    notes: &mut Vec<String>,
) -> Result<(Engine, EngineKind), OpenError> {
    let fail = |error: io::Error| OpenError::from_io(path, &error);
    let inline = || -> Result<_, OpenError> {
        let mut inline = Inline::new(file, pool);
        if let Some(from) = options.hand_off {
            inline = inline.hand_off(from, wake).map_err(fail)?;
        }
        Ok((Engine::Inline(inline), EngineKind::Inline))
    };
    let uring = || Uring::start(file, pool, wake, options.queue_depth);
    match options.engine {
        EngineChoice::Inline => return inline(),
        EngineChoice::Auto if in_memory => return inline(),
        EngineChoice::Auto => match uring() {
            Ok(ring) if !direct => {
                let cached = Cached::new(file, pool, ring);
                return Ok((Engine::Cached(Box::new(cached)), EngineKind::Cached));
            }
            Ok(ring) => return Ok((Engine::Uring(Box::new(ring)), EngineKind::Uring)),
            Err(error) => notes.push(format!("threads instead of io_uring: {error}")),
        },
        EngineChoice::Uring => {
            let no = |error| OpenErrorKind::NoEngine(format!("io_uring cannot be used ({error})"));
            let uring = uring().map_err(|error: io::Error| OpenError::new(path, no(error)))?;
            return Ok((Engine::Uring(Box::new(uring)), EngineKind::Uring));
        }
        EngineChoice::Blocking => {}
    }
    let blocking = Blocking::start(file, pool, wake, THREADS).map_err(fail)?;
    Ok((Engine::Blocking(blocking), EngineKind::Blocking))
}

/// What sysfs says of the device below.
#[derive(Default)]
struct Queue {
    /// Some devices can be opened for writing and refuse each write.
    read_only: bool,
    rotational: Option<bool>,
    volatile_cache: Option<bool>,
    discard: bool,
    /// A block device that zeroes without being sent zeroes.
    zeroes: bool,
}

impl Queue {
    fn of(file: &File, kind: BackingKind) -> Self {
        let Ok(metadata) = file.metadata() else { return Self::default() };
        let device = match kind {
            BackingKind::BlockDevice => metadata.rdev(),
            _ => metadata.dev(),
        };
        let base = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        // A partition has no queue of its own; the disk above it in sysfs has.
        let read = |name: &str| {
            ["queue", "../queue"].iter().find_map(|queue| {
                let text = fs::read_to_string(format!("{base}/{queue}/{name}")).ok()?;
                Some(text.trim().to_owned())
            })
        };
        let ro = fs::read_to_string(format!("{base}/ro"));
        let block_device = kind == BackingKind::BlockDevice;
        Self {
            read_only: block_device && ro.is_ok_and(|text| text.trim() == "1"),
            rotational: read("rotational").map(|text| text != "0"),
            volatile_cache: read("write_cache").map(|text| text == "write back"),
            discard: read("discard_max_bytes").is_some_and(|text| text != "0"),
            zeroes: block_device && read("write_zeroes_max_bytes").is_some_and(|text| text != "0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_in_memory;
    use std::fs::File;

    #[test]
    fn files_in_memory_are_told_from_files_on_disk() {
        let here = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert!(!is_in_memory(&here));
        assert!(!is_in_memory(&File::open("/proc/self/status").unwrap()));
    }
}
