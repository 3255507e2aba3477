//! The FUSE filesystem of a [`super::BadDisk`]: one file.

use super::{Bad, Shared, State};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// The name of the one file.
pub(super) const FILE_NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(365 * 86_400);
const MAX_IO: u32 = 1 << 20;
const THREADS: usize = 4;

/// The filesystem of a disk.
pub(super) struct Served(Arc<Shared>);

impl Served {
    /// Mounts it and serves it, until it is unmounted.
    #[track_caller]
    pub(super) fn mount(shared: &Arc<Shared>, point: &Path) {
        let channel = File::options().read(true).write(true).open("/dev/fuse");
        let channel: OwnedFd = channel.expect("/dev/fuse can be opened").into();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={MAX_IO}",
            channel.as_raw_fd()
        );
        let options = CString::new(options).expect("it has no zero");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount("baddisk", point, "fuse.baddisk", flags, options.as_c_str())
            .expect("it can be mounted");
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let filesystem = Self(Arc::clone(shared));
        let session = Session::from_fd(filesystem, channel, SessionACL::All, config)
            .expect("the filesystem can be served");
        // It ends with the mount.
        std::thread::spawn(move || session.run());
    }

    /// Waits as long as the disk is to take, and says whether everything fails.
    fn begin(&self, delay: impl Fn(&State) -> Duration) -> Result<(), Errno> {
        let shared = &self.0;
        let mut state = shared.state();
        let delay = delay(&state);
        if !delay.is_zero() {
            drop(state);
            std::thread::sleep(delay); // bounded poll: this is the delay that the test asked for
            state = shared.state();
        }
        while state.stalled {
            state = shared.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.all_fails { Err(Errno::EIO) } else { Ok(()) }
    }

    fn read_at(&self, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
        self.0.state().counts.reads += 1;
        let read = self.begin(|state| state.read_delay).and_then(|()| {
            let (shared, end) = (&self.0, offset + len);
            let state = shared.state();
            let blocks = offset / shared.block..end.div_ceil(shared.block);
            let unreadable = |bad: &Bad| *bad != Bad::Unwritable;
            if state.bad.range(blocks).any(|(_, bad)| unreadable(bad)) {
                return Err(Errno::EIO);
            }
            drop(state);
            let mut data = vec![0; usize::try_from(len).map_err(|_| Errno::EINVAL)?];
            shared.store.read_exact_at(&mut data, offset).map_err(|_| Errno::EIO)?;
            Ok(data)
        });
        self.0.state().counts.read_errors += u64::from(read.is_err());
        read
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.state().counts.writes += 1;
        let written = self.begin(|state| state.write_delay).and_then(|()| self.store(offset, data));
        self.0.state().counts.write_errors += u64::from(written.is_err());
        written
    }

    /// As a drive: what is before the first bad block is written when a write fails.
    fn store(&self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let (shared, end) = (&self.0, offset + data.len() as u64);
        let block = shared.block;
        // Held until it is written: what the test says after this holds for what comes after this.
        let mut state = shared.state();
        let touched = offset / block..end.div_ceil(block);
        let whole = |number: u64| number * block >= offset && (number + 1) * block <= end;
        let refuses = |number: u64, bad: Bad| match bad {
            Bad::Unwritable | Bad::Dead => true,
            Bad::Unreadable | Bad::Stuck => !whole(number),
        };
        let first = state.bad.range(touched.clone()).find(|(number, bad)| refuses(**number, **bad));
        let good = first.map_or(end, |(number, _)| (number * block).max(offset));
        let failed = first.is_some();
        let len = usize::try_from(good - offset).map_err(|_| Errno::EINVAL)?;
        shared.store.write_all_at(&data[..len], offset).map_err(|_| Errno::EIO)?;
        state.bad.retain(|number, bad| {
            let written = (number + 1) * block <= good && touched.contains(number);
            !(written && *bad == Bad::Unreadable)
        });
        if failed { Err(Errno::EIO) } else { Ok(()) }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o755, 0, 2),
            FILE => (FileType::RegularFile, 0o600, self.0.size, 1),
            _ => return None,
        };
        let when = UNIX_EPOCH;
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: when,
            mtime: when,
            ctime: when,
            crtime: when,
            kind,
            perm,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn zero(&self, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        if mode & keep == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        match mode & !keep {
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {}
            // The room is there.
            0 => return Ok(()),
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let end = offset.saturating_add(len).min(self.0.size);
        let zeroes = vec![0; 1 << 20];
        let mut at = offset;
        while at < end {
            let part = usize::try_from(end - at).map_or(zeroes.len(), |n| n.min(zeroes.len()));
            self.write_at(at, &zeroes[..part])?;
            at += part as u64;
        }
        Ok(())
    }
}

/// Ends the mount, whoever uses it.
pub(super) fn unmount(point: &Path) {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    let _ = rustix::mount::unmount(point, flags);
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_IO);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
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

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
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
        let len = self.0.size.saturating_sub(offset).min(u64::from(size.min(MAX_IO)));
        match self.read_at(offset, len) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
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
        let end = offset.checked_add(data.len() as u64);
        let (Some(_), Ok(len)) = (end.filter(|end| *end <= self.0.size), data.len().try_into())
        else {
            return reply.error(Errno::ENOSPC);
        };
        match self.write_at(offset, data) {
            Ok(()) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.state().counts.flushes += 1;
        match self.begin(|_| Duration::ZERO) {
            Ok(()) if !self.0.state().flushes_fail => reply.ok(),
            _ => reply.error(Errno::EIO),
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
        match self.zero(offset, length, mode) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}
