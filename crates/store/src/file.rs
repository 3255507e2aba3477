//! A file or block device, driven by plain system calls.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use holdfast_units::ByteRange;
use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, SeekFrom, fadvise, fallocate, flock, fstatfs, seek,
};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::mapped::Mapping;
use crate::{BackingKind, BufferPool, DiskOp, Outcome};

/// `BLKDISCARD` of linux/fs.h: its argument is two u64, offset and length.
const BLKDISCARD: libc::Ioctl = 0x1277;

const ZEROES_LEN: usize = 256 << 10;

#[repr(align(4096))]
struct Zeroes([u8; ZEROES_LEN]);

static ZEROES: Zeroes = Zeroes([0; ZEROES_LEN]);

/// The open file of a disk. Shared by the engine's threads; each call blocks its thread.
pub(crate) struct BackingFile {
    file: File,
    kind: BackingKind,
    /// Whether an flock is held, to be given up on drop even if the kernel still uses the file.
    locked: bool,
    /// The way of reads and writes, for files that live in memory.
    mapping: Option<Mapping>,
}

impl BackingFile {
    pub(crate) const fn new(
        file: File,
        kind: BackingKind,
        locked: bool,
        mapping: Option<Mapping>,
    ) -> Self {
        Self { file, kind, locked, mapping }
    }

    /// Does one operation, whole. `fua` is not looked at: whoever asks flushes afterwards.
    pub(crate) fn run(&self, request: &DiskOp, pool: &BufferPool) -> Result<Outcome, Errno> {
        match request {
            DiskOp::Read { range, holes } => {
                if *holes && self.is_hole(*range) {
                    return Ok(Outcome::Zeroes);
                }
                let len = usize::try_from(range.len).map_err(|_| Errno::INVAL)?;
                let mut buffer = pool.get(len);
                self.read(range.offset, &mut buffer)?;
                Ok(Outcome::Data(buffer.freeze()))
            }
            DiskOp::Write { range, data, .. } => self.write(*range, data).map(|()| Outcome::Done),
            DiskOp::Flush => self.flush().map(|()| Outcome::Done),
            DiskOp::Discard { range } => self.discard(*range).map(|()| Outcome::Done),
            DiskOp::WriteZeroes { range, unmap, .. } => {
                self.zero(*range, *unmap).map(|()| Outcome::Done)
            }
        }
    }

    /// Whether the file lives in memory and has all of this range.
    pub(crate) fn has_in_memory(&self, range: ByteRange) -> bool {
        self.mapping.as_ref().is_some_and(|mapping| {
            mapping.has(range)
                && self.file.metadata().is_ok_and(|found| mapping.is_whole(found.len()))
        })
    }

    /// Sends a part of a file that lives in memory; see [`Mapping::send`].
    pub(crate) fn send(&self, socket: BorrowedFd<'_>, range: ByteRange) -> std::io::Result<usize> {
        match &self.mapping {
            Some(mapping) => mapping.send(socket, range),
            None => Err(std::io::ErrorKind::Unsupported.into()),
        }
    }

    /// Has the next read of this range ask the device, as far as the kernel does that. Advice.
    pub(crate) fn uncache(&self, range: ByteRange) {
        if self.mapping.is_none() {
            let _ = fadvise(&self.file, range.offset, NonZeroU64::new(range.len), Advice::DontNeed);
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        if let Some(mapping) = &self.mapping {
            let len = self.file.metadata().map_err(errno)?.len();
            if !mapping.is_whole(len) {
                tracing::error!("a file in memory was cut short; writes behind its end are lost");
                return Err(Errno::IO);
            }
        }
        self.file.sync_data().map_err(errno)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        if self.mapping.as_ref().is_some_and(|mapping| mapping.read(offset, buffer)) {
            return Ok(());
        }
        self.file.read_exact_at(buffer, offset).map_err(errno)
    }

    /// Fills the buffer if that takes no waiting for the device; whether it is filled.
    pub(crate) fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let len = buffer.len();
        let slices = &mut [IoSliceMut::new(buffer)];
        // Not everywhere can it be asked for; then it is never done.
        preadv2(&self.file, slices, offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == len)
    }

    fn write(&self, range: ByteRange, data: &[u8]) -> Result<(), Errno> {
        if self.mapping.as_ref().is_some_and(|mapping| mapping.write(range.offset, data)) {
            return Ok(());
        }
        self.file.write_all_at(data, range.offset).map_err(errno)?;
        if let Some(mapping) = &self.mapping {
            mapping.written(range);
        }
        Ok(())
    }

    /// Whether the range is known to hold no data. `false` also when that cannot be known.
    pub(crate) fn is_hole(&self, range: ByteRange) -> bool {
        if self.kind != BackingKind::File {
            return false;
        }
        match seek(&self.file, SeekFrom::Data(range.offset)) {
            Ok(data) => data >= range.end(),
            // Nothing from there to the end of the file, which may come before that of the range.
            Err(Errno::NXIO) => self.file.metadata().is_ok_and(|found| found.len() >= range.end()),
            Err(_) => false,
        }
    }

    fn discard(&self, range: ByteRange) -> Result<(), Errno> {
        let result = if self.kind == BackingKind::File {
            self.fallocate(FallocateFlags::PUNCH_HOLE, range)
        } else {
            self.discard_device(range)
        };
        // A discard is advice: a device that cannot take it keeps the data, which is allowed.
        result.or_else(|error| if unsupported(error) { Ok(()) } else { Err(error) })
    }

    fn discard_device(&self, range: ByteRange) -> Result<(), Errno> {
        let argument = [range.offset, range.len];
        // SAFETY: BLKDISCARD reads two u64 at the pointer, which points to exactly that for the
        // length of the call; the descriptor is open as long as `self.file` lives.
        let result = unsafe {
            libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, std::ptr::from_ref(&argument))
        };
        if result == 0 { Ok(()) } else { Err(errno(std::io::Error::last_os_error())) }
    }

    /// Block devices take the same two calls: punching is unmapping that reads as zeros.
    fn zero(&self, range: ByteRange, unmap: bool) -> Result<(), Errno> {
        let ways = [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE];
        for way in ways.into_iter().skip(usize::from(!unmap)) {
            match self.fallocate(way, range) {
                Err(error) if unsupported(error) => {}
                result => return result,
            }
        }
        self.write_zeroes(range)
    }

    /// Has the filesystem keep room for all of the range, where it can do that beforehand. When it has
    /// too little, nothing has changed.
    pub(crate) fn reserve(&self, range: ByteRange) -> Result<(), Errno> {
        if self.kind != BackingKind::File {
            return Ok(());
        }
        let (found, system) = (self.file.metadata().map_err(errno)?, fstatfs(&self.file)?);
        let free = system.f_bfree.saturating_mul(u64::try_from(system.f_bsize).unwrap_or(0));
        // Some of what it has may lie elsewhere; then the kernel says whether that is enough. Some
        // filesystems count nothing.
        let counts = system.f_blocks > 0;
        if counts && range.len.saturating_sub(found.blocks() * 512) > free {
            return Err(Errno::NOSPC);
        }
        let take = || fallocate(&self.file, FallocateFlags::KEEP_SIZE, range.offset, range.len);
        match rustix::io::retry_on_intr(take) {
            Err(error) if unsupported(error) => Ok(()),
            result => result,
        }
    }

    fn fallocate(&self, way: FallocateFlags, range: ByteRange) -> Result<(), Errno> {
        if let Some(mapping) = &self.mapping {
            mapping.dropped(range);
        }
        let flags = way | FallocateFlags::KEEP_SIZE;
        rustix::io::retry_on_intr(|| fallocate(&self.file, flags, range.offset, range.len))
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), Errno> {
        let mut at = range.offset;
        while at < range.end() {
            let len = usize::try_from(range.end() - at).map_or(ZEROES_LEN, |n| n.min(ZEROES_LEN));
            self.file.write_all_at(&ZEROES.0[..len], at).map_err(errno)?;
            at += len as u64;
        }
        Ok(())
    }
}

impl AsFd for BackingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        if self.locked {
            // Closing the file unlocks it too, so an error changes nothing.
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

/// The error that this kernel, filesystem or device gives for what it cannot do at all.
fn unsupported(error: Errno) -> bool {
    // OPNOTSUPP and NOTSUP are one number on Linux.
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV)
}

/// An error without a number is a file that ended early: it was cut while it was open.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
