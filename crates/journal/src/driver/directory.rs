//! The real directory.

use super::{Files, SyncApart};
use bytes::Bytes;
use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, Mode, OFlags, fadvise, fallocate, fdatasync, flock,
    fsync, ftruncate, openat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

const ALIGN: usize = 4096;
/// So many files are kept open.
const MAX_OPEN: usize = 8;
/// What is written at a time to a new file.
const FILL: usize = 1 << 20;
/// What the kernel takes with one write.
const MAX_SLICES: usize = 1024;

/// How the files are written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryOptions {
    /// What is to be durable at once goes around the page cache (`O_DIRECT`, `O_DSYNC`): one system
    /// call makes a batch durable. Where the filesystem cannot do it, the page cache is used.
    pub direct: bool,
}

struct Open {
    /// Through the page cache: reads, and writes that are synced.
    file: Arc<File>,
    /// Around it.
    direct: Option<OwnedFd>,
}

/// A directory of files.
pub struct Directory {
    dir: OwnedFd,
    /// Reads are `&self`, and open files, too. One thread uses it.
    open: Mutex<BTreeMap<String, Open>>,
    direct_works: bool,
    /// For what is not aligned.
    scratch: Vec<u8>,
}

impl Directory {
    /// Claims it, until this value and what was opened by it are gone.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else has it.
    pub fn claim(&self) -> io::Result<()> {
        Ok(flock(&self.dir, FlockOperation::NonBlockingLockExclusive)?)
    }

    /// Opens a directory, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, options: DirectoryOptions) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, open: Mutex::default(), direct_works: options.direct, scratch: Vec::new() })
    }

    fn open_files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Open>> {
        // The map is whole between any two statements.
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&Open) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open_files();
        if !open.contains_key(name) {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = Arc::new(File::from(openat(&self.dir, name, flags, Mode::empty())?));
            let through = flags | OFlags::DIRECT | OFlags::DSYNC;
            let direct = if self.direct_works {
                openat(&self.dir, name, through, Mode::empty()).ok()
            } else {
                None
            };
            if open.len() >= MAX_OPEN {
                // Names are in order, so the oldest segment comes before the newer ones.
                open.pop_first();
            }
            open.insert(name.to_owned(), Open { file, direct });
        }
        act(open.get(name).ok_or(ErrorKind::NotFound)?)
    }

    fn close(&self, name: &str) {
        self.open_files().remove(name);
    }

    /// Copies those parts that are not aligned, one behind the other, into the scratch memory.
    fn copy_unaligned(&mut self, parts: &[Bytes]) {
        let unaligned = || parts.iter().filter(|part| !is_aligned(part));
        let len = unaligned().map(Bytes::len).sum::<usize>() + ALIGN;
        if self.scratch.len() < len {
            self.scratch.resize(len, 0);
        }
        let mut at = self.scratch.as_ptr().align_offset(ALIGN);
        for part in unaligned() {
            self.scratch[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
}

/// Whether it can go to the disk as it is.
fn is_aligned(part: &Bytes) -> bool {
    part.as_ptr().addr().is_multiple_of(ALIGN) && part.len().is_multiple_of(ALIGN)
}

/// Writes all of the slices, one behind the other.
fn write_all(file: impl AsFd, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    while !slices.is_empty() {
        match rustix::io::pwritev(&file, &slices[..slices.len().min(MAX_SLICES)], at) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            if let Ok(name) = entry?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&mut self, name: &str, len: u64) -> io::Result<()> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?);
        let old_len = file.metadata()?.len();
        if old_len < len {
            match fallocate(&file, FallocateFlags::empty(), 0, len) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => ftruncate(&file, len)?,
                Err(error) => return Err(error.into()),
            }
            let zeroes = vec![0; FILL];
            let mut at = old_len;
            while at < len {
                let step = (len - at).min(FILL as u64);
                file.write_all_at(&zeroes[..usize::try_from(step).unwrap_or(FILL)], at)?;
                at += step;
            }
            fsync(&file)?;
            // It is written around the page cache from now on. Only advice, which may fail.
            let _ = fadvise(&file, 0, NonZeroU64::new(len), Advice::DontNeed);
        }
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.with(name, |open| write_all(&open.file, &mut slices, offset))
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        if !self.with(name, |open| Ok(open.direct.is_some()))? {
            return self.write(name, offset, parts).map(|()| false);
        }
        self.copy_unaligned(parts);
        let mut at = self.scratch.as_ptr().align_offset(ALIGN);
        let mut slices = Vec::with_capacity(parts.len());
        // Between aligned parts there are whole blocks, though of several parts.
        for run in parts.chunk_by(|a, b| !is_aligned(a) && !is_aligned(b)) {
            if is_aligned(&run[0]) {
                slices.push(IoSlice::new(&run[0]));
            } else {
                let len = run.iter().map(Bytes::len).sum::<usize>();
                slices.push(IoSlice::new(&self.scratch[at..at + len]));
                at += len;
            }
        }
        self.with(name, |open| match &open.direct {
            Some(direct) => write_all(direct, &mut slices, offset).map(|()| true),
            None => Ok(false),
        })
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(name, |open| {
            let mut done = 0;
            while done < buf.len() {
                match open.file.read_at(&mut buf[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(done)
        })
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.with(name, |open| Ok(fdatasync(&open.file)?))
    }

    fn sync_apart(&mut self, name: &str) -> io::Result<Option<SyncApart>> {
        let file = self.with(name, |open| Ok(Arc::clone(&open.file)))?;
        Ok(Some(Box::new(move || Ok(fdatasync(&file)?))))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.close(from);
        self.close(to);
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.close(name);
        Ok(rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty())?)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(fsync(&self.dir)?)
    }
}
