//! The file of the sums: making it, opening it, removing it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use holdfast_format::checksums::{
    ChecksumHeader, ChecksumState, file_length, group_count, header_offset, state_offset,
};
use holdfast_format::{BLOCK_LEN, Block, BlockError};
use holdfast_units::{ByteRange, ResourceId};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::{BufferPool, Disk, DiskError, DiskOp, OpenError, OpenOptions, Outcome};

/// Why a file of checksums cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChecksumError {
    /// It cannot be opened.
    #[error("the checksums cannot be used: {0}")]
    Open(#[from] OpenError),
    /// It cannot be read or written.
    #[error("the checksums in {path} cannot be used: {error}")]
    Io {
        /// Where they are.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not one of checksums, or broken: what is wrong with its second header.
    #[error("the checksums in {path} cannot be used: {why}; they are computed anew")]
    Broken {
        /// Where they are.
        path: PathBuf,
        /// What is wrong.
        why: BlockError,
    },
}

/// The checksums of a disk, in a file that is open.
pub struct ChecksumFile {
    pub(super) disk: Disk,
    pub(super) resource: ResourceId,
    pub(super) states: Vec<ChecksumState>,
    /// Where it is; `None` for memory.
    pub(super) path: Option<PathBuf>,
    /// The same file, for making it longer.
    handle: Option<File>,
}

impl std::fmt::Debug for ChecksumFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChecksumFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ChecksumFile {
    /// Makes an empty file for a disk of `size` bytes, with room for all sums; what is at `path` is
    /// removed first. It is durable then.
    ///
    /// # Errors
    /// What the filesystem says, among others that it is full; nothing is left there then.
    pub fn create(
        path: &Path,
        resource: ResourceId,
        size: u64,
        pool: &BufferPool,
    ) -> Result<Self, ChecksumError> {
        let fail = |error: io::Error| ChecksumError::Io { path: path.to_owned(), error };
        remove_checksums(path).map_err(fail)?;
        let make = || {
            let file = File::options().read(true).write(true).create_new(true).open(path)?;
            file.set_len(file_length(size))?;
            match fallocate(&file, FallocateFlags::empty(), 0, file_length(size)) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        };
        let made = make().map_err(fail).and_then(|()| {
            let disk = Disk::open(path, &OpenOptions::default(), pool)?;
            let mut file =
                Self::format(disk, resource, size).map_err(|e| fail(io::Error::other(e)))?;
            file.handle = Some(File::options().write(true).open(path).map_err(fail)?);
            file.path = Some(path.to_owned());
            sync_parent(path).map_err(fail)?;
            Ok(file)
        });
        if made.is_err() {
            // Best effort to leave nothing behind; a later start makes it anew.
            let _ = remove_checksums(path);
        }
        made
    }

    /// Opens the file of a disk of `size` bytes. One that was made for a smaller disk is made longer.
    ///
    /// # Errors
    /// [`ChecksumError::Broken`] when it is not what it should be, and must be created anew.
    pub fn open(
        path: &Path,
        resource: ResourceId,
        size: u64,
        pool: &BufferPool,
    ) -> Result<Self, ChecksumError> {
        let fail = |error: io::Error| ChecksumError::Io { path: path.to_owned(), error };
        let broken = |why| ChecksumError::Broken { path: path.to_owned(), why };
        let found = File::options().write(true).open(path);
        let handle = found.map_err(|error| OpenError::from_io(path, &error))?;
        let length = handle.metadata().map_err(fail)?.len();
        if length < file_length(0) {
            return Err(broken(BlockError::Blank));
        }
        if length < file_length(size) {
            handle.set_len(file_length(size)).map_err(fail)?;
        }
        let disk = Disk::open(path, &OpenOptions::default(), pool)?;
        let mut file = Self::load(disk, resource, size).map_err(broken)?;
        (file.path, file.handle) = (Some(path.to_owned()), Some(handle));
        Ok(file)
    }

    /// Makes `disk`, which holds nothing, one for the sums of a disk of `size` bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub fn format(mut disk: Disk, resource: ResourceId, size: u64) -> Result<Self, DiskError> {
        let header = ChecksumHeader { resource, size };
        for copy in 0..2 {
            write(&mut disk, header_offset(copy), &header.encode(copy))?;
        }
        let empty: Block = [0; BLOCK_LEN];
        for group in 0..group_count(size) {
            for copy in 0..2 {
                write(&mut disk, state_offset(group, copy), &empty)?;
            }
        }
        disk.execute(DiskOp::Flush)?;
        let states = (0..group_count(size)).map(|_| ChecksumState::blank()).collect();
        Ok(Self { disk, resource, states, path: None, handle: None })
    }

    /// Reads what `disk` holds of the sums of a disk of `size` bytes.
    ///
    /// # Errors
    /// What is wrong with its headers.
    pub fn load(mut disk: Disk, resource: ResourceId, size: u64) -> Result<Self, BlockError> {
        let mut found = Err(BlockError::Blank);
        for copy in 0..2 {
            if found.is_err() {
                found = read(&mut disk, header_offset(copy))
                    .and_then(|block| ChecksumHeader::decode(&block, copy));
            }
        }
        let found = found?.resource;
        if found != resource {
            return Err(BlockError::Resource { found, expected: resource });
        }
        let mut states = Vec::new();
        for group in 0..group_count(size) {
            let copies = [0, 1].map(|copy| {
                read(&mut disk, state_offset(group, copy))
                    .and_then(|block| ChecksumState::decode(&block, resource, group, copy))
            });
            let last = copies.iter().flatten().map(|state| state.sequence).max().unwrap_or(0);
            let [first, second] = copies;
            states.push(ChecksumState::newest(first, second).unwrap_or_else(|error| {
                tracing::warn!(
                    group,
                    "checksums are computed anew, their state is broken: {error}"
                );
                ChecksumState { sequence: last, ..ChecksumState::blank() }
            }));
        }
        Ok(Self { disk, resource, states, path: None, handle: None })
    }

    /// Makes it long enough for a disk of `size` bytes.
    pub(super) fn grow(&mut self, size: u64) -> io::Result<()> {
        let length = file_length(size);
        if let Some(handle) = &self.handle
            && handle.metadata()?.len() < length
        {
            handle.set_len(length)?;
        }
        self.disk.grown_to(length);
        Ok(())
    }

    /// It is of no use any more, and must never be believed again.
    pub(super) fn revoke(&self) -> io::Result<()> {
        self.path.as_deref().map_or(Ok(()), remove_checksums)
    }
}

/// Removes a file of checksums, durably. None there is fine.
///
/// # Errors
/// What the filesystem says.
pub fn remove_checksums(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn read(disk: &mut Disk, offset: u64) -> Result<Block, BlockError> {
    let range = ByteRange::new(offset, BLOCK_LEN as u64);
    match disk.execute(DiskOp::Read { range, holes: false }) {
        Ok(Outcome::Data(data)) => {
            <&Block>::try_from(&data[..]).copied().map_err(|_| BlockError::Unreadable)
        }
        _ => Err(BlockError::Unreadable),
    }
}

fn write(disk: &mut Disk, offset: u64, block: &Block) -> Result<(), DiskError> {
    let range = ByteRange::new(offset, BLOCK_LEN as u64);
    let data = Bytes::copy_from_slice(block);
    disk.execute(DiskOp::Write { range, data, fua: false }).map(drop)
}
