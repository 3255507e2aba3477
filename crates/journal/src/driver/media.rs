//! The bytes of a real device.

use super::SyncApart;
use super::around::{LAST_WRITES, lock_within, read_at, write_around, write_parts};
use super::device::Media;
use bytes::Bytes;
use holdfast_units::ByteRange;
use rustix::fs::{FileType, Mode, OFlags, fdatasync, fstat};
use std::fs::File;
use std::io::{self, ErrorKind, Seek as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is zeroed at a time.
const STEP: usize = 1 << 20;

/// A block device, or a regular file.
pub struct RawMedia {
    path: PathBuf,
    /// Through the page cache.
    cached: Arc<Cached>,
    /// Around it.
    direct: Option<OwnedFd>,
    /// For what is not aligned.
    scratch: Vec<u8>,
    /// It was closed. Who zeroes a part of it holds this while a write is under way.
    closed: Arc<Mutex<bool>>,
}

/// The kernel tells of a write that failed once only, to whoever syncs next, whatever that is for; so
/// after one failure no sync of this file is believed.
struct Cached {
    file: File,
    failed: Mutex<bool>,
}

impl Cached {
    fn sync(&self) -> io::Result<()> {
        let mut failed = lock(&self.failed);
        if *failed {
            return Err(io::Error::other("an earlier sync of it has failed"));
        }
        let result = fdatasync(&self.file);
        *failed = result.is_err();
        Ok(result?)
    }
}

fn lock(flag: &Mutex<bool>) -> MutexGuard<'_, bool> {
    // It is whole between any two statements.
    flag.lock().unwrap_or_else(PoisonError::into_inner)
}

const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);
const AROUND: OFlags = FLAGS.union(OFlags::DIRECT).union(OFlags::DSYNC);

/// Opens the same file once more.
fn again(file: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    let (old, new) = (fstat(file)?, fstat(&opened)?);
    let same = (old.st_dev, old.st_ino, old.st_rdev) == (new.st_dev, new.st_ino, new.st_rdev);
    if same { Ok(opened) } else { Err(io::Error::other("another file is at its path now")) }
}

impl RawMedia {
    /// Opens it; with `claim` nobody else does, until this is gone.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else has it; what the system says.
    pub fn open(path: &Path, claim: bool) -> io::Result<Self> {
        let plain = rustix::fs::open(path, FLAGS, Mode::empty())?;
        let block = FileType::from_raw_mode(fstat(&plain)?.st_mode) == FileType::BlockDevice;
        let file = match claim && block {
            // A filesystem that is mounted from it has it, too.
            true => match again(&plain, path, FLAGS | OFlags::EXCL) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    return Err(ErrorKind::WouldBlock.into());
                }
                file => file?,
            },
            false => plain,
        };
        let direct = again(&file, path, AROUND).ok();
        if claim {
            // The kernel holds this one as long as it writes for a process that was killed.
            lock_within(direct.as_ref().unwrap_or(&file), LAST_WRITES)?;
        }
        let cached = Arc::new(Cached { file: File::from(file), failed: Mutex::new(false) });
        let (scratch, closed) = (Vec::new(), Arc::default());
        Ok(Self { path: path.to_owned(), cached, direct, scratch, closed })
    }
}

impl Drop for RawMedia {
    fn drop(&mut self) {
        // Behind this nobody writes to it: it may be somebody else's soon.
        *lock(&self.closed) = true;
    }
}

impl Media for RawMedia {
    fn size(&self) -> io::Result<u64> {
        (&self.cached.file).seek(io::SeekFrom::End(0))
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_at(&self.cached.file, offset, buf)
    }

    fn write(&mut self, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        write_parts(&self.cached.file, offset, parts)
    }

    fn write_through(&mut self, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        match &self.direct {
            Some(direct) => write_around(direct, offset, parts, &mut self.scratch).map(|()| true),
            None => self.write(offset, parts).map(|()| false),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.cached.sync()
    }

    fn sync_apart(&mut self) -> io::Result<Option<SyncApart>> {
        let cached = Arc::clone(&self.cached);
        Ok(Some(Box::new(move || cached.sync())))
    }

    fn zero_apart(&mut self, range: ByteRange) -> io::Result<Option<SyncApart>> {
        // Its own, which neither holds the claim nor hears of errors that are not its own to hear. Around
        // the page cache, so that nobody's sync waits for zeroes.
        let flags = if self.direct.is_some() { AROUND } else { FLAGS };
        let file = again(&self.cached.file, &self.path, flags)?;
        let closed = Arc::clone(&self.closed);
        Ok(Some(Box::new(move || {
            let (zeroes, mut scratch) = (Bytes::from_static(&[0; STEP]), Vec::new());
            let mut at = range.offset;
            while at < range.end() {
                let closed = lock(&closed);
                if *closed {
                    return Err(ErrorKind::Interrupted.into());
                }
                let step = usize::try_from(range.end() - at).unwrap_or(STEP).min(STEP);
                write_around(&file, at, &[zeroes.slice(..step)], &mut scratch)?;
                at += step as u64;
            }
            Ok(fdatasync(&file)?)
        })))
    }

    fn direct_file(&self) -> io::Result<Option<File>> {
        self.direct.as_ref().map(|direct| Ok(File::from(direct.try_clone()?))).transpose()
    }
}
