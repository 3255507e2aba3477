//! The real directory.

use super::Files;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fdatasync, fsync, ftruncate, openat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

const ALIGN: usize = 4096;
/// So many files are kept open.
const MAX_OPEN: usize = 8;
/// What is written at a time to a new file.
const FILL: usize = 1 << 20;

/// How the files are written.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DirectoryOptions {
    /// Around the page cache, and durable when a write is done (`O_DIRECT`, `O_DSYNC`): one system
    /// call makes a batch durable. Where the filesystem cannot do it, the page cache is used.
    pub direct: bool,
}

struct Open {
    /// Through the page cache: reads, and writes that are synced.
    file: File,
    /// Around it.
    direct: Option<OwnedFd>,
}

/// A directory of files.
pub struct Directory {
    dir: OwnedFd,
    options: DirectoryOptions,
    /// Reads are `&self`, and open files, too. One thread uses it.
    open: Mutex<BTreeMap<String, Open>>,
    direct_works: bool,
    scratch: Vec<u8>,
}

impl Directory {
    /// Opens a directory, which must be there.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, options: DirectoryOptions) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            dir,
            options,
            open: Mutex::default(),
            direct_works: options.direct,
            scratch: Vec::new(),
        })
    }

    fn open_files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Open>> {
        // The map is whole between any two statements.
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&Open) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open_files();
        if !open.contains_key(name) {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = File::from(openat(&self.dir, name, flags, Mode::empty())?);
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

    /// The parts as one piece of aligned memory: where it begins in the scratch memory, its length.
    fn gather(&mut self, parts: &[Bytes]) -> (usize, usize) {
        let len = parts.iter().map(Bytes::len).sum::<usize>();
        if self.scratch.len() < len + ALIGN {
            self.scratch.resize(len + ALIGN, 0);
        }
        let start = self.scratch.as_ptr().align_offset(ALIGN);
        let mut at = start;
        for part in parts {
            self.scratch[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        (start, len)
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
        }
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, parts: &[Bytes]) -> io::Result<()> {
        let (start, len) = self.gather(parts);
        let data = &self.scratch[start..start + len];
        self.with(name, |open| {
            let Some(direct) = &open.direct else { return open.file.write_all_at(data, offset) };
            let (mut done, mut at) = (0, offset);
            while done < len {
                match rustix::io::pwrite(direct, &data[done..], at) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        done += n;
                        at += n as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
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

    fn writes_through(&self, name: &str) -> bool {
        self.options.direct && self.with(name, |open| Ok(open.direct.is_some())).unwrap_or(false)
    }
}
