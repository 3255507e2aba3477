//! A mounted FUSE filesystem with one file, `disk`, whose bytes are those of a backend.

use crate::backend::Backend;
use crate::error::DeviceError;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session,
    SessionACL, TimeOrNow, WriteFlags,
};
use holdfast_units::{BLOCK_SIZE, ByteRange, MAX_REQUEST};
use rustix::mount::{MountFlags, UnmountFlags};
use std::cell::RefCell;
use std::ffi::{CString, OsStr};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The name of the one file.
pub(crate) const FILE_NAME: &str = "disk";
/// The filesystem type, by which mounts of an earlier run are known.
pub(crate) const FILESYSTEM: &str = "fuse.holdfast";

const FILE: INodeNo = INodeNo(2);
/// The answers about names and sizes hold for as long as the mount.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
const MAX_IO: u32 = 1 << 20;
const _: () = assert!(MAX_IO as u64 <= MAX_REQUEST);

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;

thread_local! {
    /// Where a serving thread reads into; grows to `MAX_IO` at most.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct DiskFs {
    backend: Arc<dyn Backend>,
    size: AtomicU64,
    mounted: SystemTime,
}

impl DiskFs {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o500, 0, 2),
            FILE => (FileType::RegularFile, 0o600, self.size(), 1),
            _ => return None,
        };
        let now = self.mounted;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: u32::try_from(BLOCK_SIZE).expect("a constant of 4096"),
            flags: 0,
        })
    }

    fn zero(&self, range: ByteRange, mode: i32) -> Result<(), Errno> {
        if range.offset.checked_add(range.len).is_none_or(|end| end > self.size()) {
            return Err(Errno::ENOSPC);
        }
        // The loop device punches a hole for a discard and also for "write zeroes, unmap if you
        // like", and a hole must read as zeroes: so a trim, which promises nothing, would not do.
        let may_unmap = match mode & !KEEP_SIZE {
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => true,
            ZERO_RANGE => false,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        self.backend.write_zeroes(range, may_unmap).map_err(|error| errno_of(&error))
    }
}

/// What a block device can say about an error: no space, not supported, or an I/O error. Others
/// (`EAGAIN`, `EINTR`) would have a meaning for the kernel that the backend did not intend.
fn errno_of(error: &io::Error) -> Errno {
    if error.raw_os_error() == Some(libc::ENOSPC) {
        return Errno::ENOSPC;
    }
    match error.kind() {
        io::ErrorKind::StorageFull => Errno::ENOSPC,
        io::ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

/// As [`errno_of`] for reads, writes and flushes, which nobody may take as "not supported".
fn io_errno_of(error: &io::Error) -> Errno {
    match errno_of(error) {
        Errno::EOPNOTSUPP => Errno::EIO,
        errno => errno,
    }
}

impl Filesystem for DiskFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The nearest value is taken where the kernel or the crate does not like ours.
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(64);
        for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
            let _ = config.add_capabilities(wish);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let known = parent == INodeNo::ROOT && name == FILE_NAME;
        match known.then(|| self.attributes(FILE)).flatten() {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The kernel believes the size of an answer for ever; this is how it hears of another one.
        match (inode, size) {
            (FILE, Some(size)) if size == self.backend.size() => {
                self.size.store(size, Ordering::Relaxed);
            }
            _ => return reply.error(Errno::EPERM),
        }
        match self.attributes(FILE) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        // No page cache: a completed write is the backend's. Writes need no order among
        // themselves, as on any block device.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close makes nothing durable.
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = self.size().saturating_sub(offset).min(u64::from(size.min(MAX_IO)));
        let length = usize::try_from(length).expect("at most MAX_IO");
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            match self.backend.read_at(&mut buffer[..length], offset) {
                Ok(()) => reply.data(&buffer[..length]),
                Err(error) => reply.error(io_errno_of(&error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Durable writes come as a write and an fsync.
        let end = offset.checked_add(data.len() as u64);
        match (end, u32::try_from(data.len())) {
            (Some(end), Ok(length)) if end <= self.size() => {
                match self.backend.write_at(data, offset, false) {
                    Ok(()) => reply.written(length),
                    Err(error) => reply.error(io_errno_of(&error)),
                }
            }
            _ => reply.error(Errno::ENOSPC),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.backend.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(io_errno_of(&error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.zero(ByteRange::new(offset, length), mode) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (FILE, FileType::RegularFile, FILE_NAME),
        ];
        for (next, (inode, kind, name)) in (1..).zip(entries) {
            if next > offset && reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // The loop device takes this block size as the granularity of its discards.
        let block = u32::try_from(BLOCK_SIZE).expect("a constant of 4096");
        reply.statfs(self.size() / BLOCK_SIZE, 0, 0, 1, 0, block, 255, block);
    }
}

/// The mount and the threads that serve it. Dropping it aborts what is pending and unmounts.
pub(crate) struct FuseMount {
    point: PathBuf,
    /// Reports nothing; hangs up when the last serving thread has ended. The lock is never
    /// taken: it lets a mount be looked at from several threads.
    serving: Mutex<Receiver<()>>,
    mounted: bool,
}

impl FuseMount {
    /// Mounts on the empty directory `point` and serves with `threads` threads.
    pub(crate) fn new(
        point: &Path,
        name: &str,
        backend: Arc<dyn Backend>,
        threads: usize,
    ) -> Result<Self, DeviceError> {
        let failed = |what| DeviceError::system::<io::Error>(what, point);
        let channel_fd = open_fuse().map_err(failed("opening /dev/fuse"))?;
        mount(&channel_fd, point, name).map_err(failed("mounting a FUSE filesystem"))?;
        let (ended, serving) = channel();
        let mount = Self { point: point.to_owned(), serving: Mutex::new(serving), mounted: true };

        let size = AtomicU64::new(backend.size());
        let filesystem = DiskFs { backend, size, mounted: SystemTime::now() };
        let mut config = Config::default();
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        let session = Session::from_fd(filesystem, channel_fd, SessionACL::Owner, config)
            .map_err(failed("starting a FUSE filesystem"))?;
        std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || {
                serve(session);
                drop(ended);
            })
            .map_err(failed("starting a thread"))?;
        Ok(mount)
    }

    /// Gives the file the size that the backend has now.
    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.file())?.set_len(size)
    }

    /// The one file.
    pub(crate) fn file(&self) -> PathBuf {
        self.point.join(FILE_NAME)
    }

    /// Fails everything that is pending and all that will come, and unmounts. Does not wait for
    /// the backend.
    pub(crate) fn abort(&mut self) {
        if self.mounted {
            self.mounted = false;
            if let Err(error) = force_unmount(&self.point) {
                tracing::warn!(mount = %self.point.display(), %error, "unmounting failed");
            }
        }
    }

    /// Unmounts once nobody has the file open any more; after `limit` by force. Then waits as
    /// long again for the serving threads to end: one that waits for the backend ends later.
    pub(crate) fn close(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.mounted {
            match rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW) {
                Ok(()) => self.mounted = false,
                Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(_) => self.abort(),
            }
        }
        let serving = self.serving.get_mut().unwrap_or_else(PoisonError::into_inner);
        if serving.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(mount = %self.point.display(), "a request is still with the backend");
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Serves until the filesystem is unmounted. The threads that fuser starts inherit the flag.
fn serve(session: Session<DiskFs>) {
    // Memory for serving a write must not wait for that very write to free memory.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "the serving threads have no claim on memory reserves");
    }
    if let Err(error) = session.run() {
        tracing::warn!(%error, "serving a FUSE filesystem ended early");
    }
}

/// Unmounts even when somebody uses it, and fails what is pending: requests that the other side
/// of the mount will never answer do not delay it.
pub(crate) fn force_unmount(point: &Path) -> io::Result<()> {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    Ok(rustix::mount::unmount(point, flags)?)
}

fn open_fuse() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/fuse")?.into())
}

fn mount(channel_fd: &OwnedFd, point: &Path, name: &str) -> io::Result<()> {
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},max_read={MAX_IO}",
        channel_fd.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let options = CString::new(options).expect("a text of digits and letters");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    let source = format!("holdfast:{name}");
    Ok(rustix::mount::mount(source, point, FILESYSTEM, flags, options.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_that_a_block_device_knows_pass() {
        let of = |code| errno_of(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::ENOSPC), Errno::ENOSPC);
        assert_eq!(of(libc::EOPNOTSUPP), Errno::EOPNOTSUPP);
        for other in [libc::EAGAIN, libc::EINTR, libc::EPERM, libc::ETIMEDOUT, libc::EIO] {
            assert_eq!(of(other), Errno::EIO, "{other}");
        }
        let unsupported = io::Error::from(io::ErrorKind::Unsupported);
        assert_eq!(io_errno_of(&unsupported), Errno::EIO);
        assert_eq!(errno_of(&io::Error::other("lost")), Errno::EIO);
    }
}
