//! The real directory.

use super::around::{LAST_WRITES, lock_within, read_at, write_around, write_parts};
use super::{Files, SyncApart};
use bytes::Bytes;
use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, Mode, OFlags, fadvise, fallocate, fdatasync, flock,
    fsync, ftruncate, openat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// So many files are kept open.
const MAX_OPEN: usize = 8;
/// How long somebody else may have it before it is said to be in use.
const ANOTHERS: Duration = Duration::from_secs(2);
/// What is written at a time to a new file.
const FILL: usize = 1 << 20;

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
    /// Claims it, until this value and what was opened by it are gone. Frames of a process that was
    /// killed may still be on their way to the device, and would land on newer ones: the claim waits
    /// for their end, for a few seconds.
    ///
    /// # Errors
    /// `WouldBlock` when somebody else has it, or a frame is still on its way.
    pub fn claim(&self) -> io::Result<()> {
        self.claim_within(LAST_WRITES)
    }

    fn claim_within(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        // A program that was just started by whoever had it still holds it, for a moment.
        lock_within(&self.dir, patience.min(ANOTHERS))?;
        for name in self.list()?.iter().filter(|name| name.starts_with("segment-")) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat(&self.dir, name.as_str(), flags, Mode::empty())?;
            lock_within(&file, deadline.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// Opens a directory, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, options: DirectoryOptions) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self::of(dir, options.direct))
    }

    fn of(dir: OwnedFd, direct_works: bool) -> Self {
        Self { dir, open: Mutex::default(), direct_works, scratch: Vec::new() }
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
}

/// Whether somebody waits for a file that is being made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    Waiting,
    /// Nobody yet. The disk has other things to do: a durable write waits for all that it was given
    /// before, so it gets little at a time.
    Ahead,
}

impl Directory {
    /// As [`Files::create`].
    fn make(&self, name: &str, len: u64, haste: Haste) -> io::Result<()> {
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
                if haste == Haste::Ahead {
                    file.sync_data()?;
                }
            }
            fsync(&file)?;
            // It is written around the page cache from now on. Only advice, which may fail.
            let _ = fadvise(&file, 0, NonZeroU64::new(len), Advice::DontNeed);
        }
        Ok(())
    }
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
        self.make(name, len, Haste::Waiting)
    }

    fn create_apart(&mut self, name: &str, len: u64) -> io::Result<Option<SyncApart>> {
        // Who makes it may go on when this is closed, so it holds nothing of the claim.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, ".", flags, Mode::empty())?;
        let mut apart = Self::of(dir, false);
        let name = name.to_owned();
        let make = move || apart.make(&name, len, Haste::Ahead).and_then(|()| apart.sync(&name));
        Ok(Some(Box::new(make)))
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        self.with(name, |open| write_parts(&open.file, offset, parts))
    }

    fn write_through(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<bool> {
        if !self.with(name, |open| Ok(open.direct.is_some()))? {
            return self.write(name, offset, parts).map(|()| false);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let written = self.with(name, |open| match &open.direct {
            Some(direct) => write_around(direct, offset, parts, &mut scratch).map(|()| true),
            None => Ok(false),
        });
        self.scratch = scratch;
        written
    }

    fn expect(&self, name: &str, offset: u64, len: u64) {
        // Only advice, which may fail.
        let _ = self.with(name, |open| {
            Ok(fadvise(&open.file, offset, NonZeroU64::new(len), Advice::WillNeed)?)
        });
    }

    fn direct_file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        self.with(name, |open| match &open.direct {
            Some(direct) => {
                // It holds as long as the kernel works on what was written to it, also when the
                // process is gone: see `claim`.
                flock(direct, FlockOperation::NonBlockingLockExclusive)?;
                Ok(Some((File::from(direct.try_clone()?), 0)))
            }
            None => Ok(None),
        })
    }

    fn read(&self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(name, |open| read_at(&open.file, offset, buf))
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

#[cfg(test)]
mod tests {
    use super::{Directory, DirectoryOptions, Files};
    use std::io::ErrorKind;
    use std::time::Duration;

    #[test]
    fn a_claim_waits_for_what_is_still_written_for_a_process_that_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || Directory::open(scratch.path(), DirectoryOptions { direct: true }).unwrap();
        let mut first = open();
        first.claim().unwrap();
        first.create("segment-0000000000000001", 1 << 20).unwrap();
        let Some((file, _)) = first.direct_file("segment-0000000000000001").unwrap() else {
            // This filesystem has no writes around the page cache.
            return;
        };
        drop(first);
        let next = open();
        let refused = next.claim_within(Duration::ZERO).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        drop(file);
        next.claim_within(Duration::ZERO).unwrap();
    }
}
