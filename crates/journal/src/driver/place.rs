//! Where a journal is: in a directory, or on a device of its own.

use super::{Device, Directory, DirectoryOptions, Files, RawMedia};
use rustix::fs::{FileType, stat};
use std::io;
use std::path::Path;

/// What is at a path, for a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A directory, for files.
    Directory,
    /// A block device, or a regular file of a fixed size: see [`Device`].
    Device,
    /// Something that holds no journal, as a character device.
    Other,
}

impl Place {
    /// Looks at a path.
    ///
    /// # Errors
    /// `NotFound` when nothing is there; what the system says.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(match FileType::from_raw_mode(stat(path)?.st_mode) {
            FileType::Directory => Self::Directory,
            FileType::BlockDevice | FileType::RegularFile => Self::Device,
            _ => Self::Other,
        })
    }
}

/// The files of a journal, claimed until they are dropped.
///
/// # Errors
/// `WouldBlock` when somebody else has them, `NotFound` when there is no such place or nothing was ever
/// written to the device, `InvalidData` when the device holds something else.
pub fn open_claimed(path: &Path) -> io::Result<Box<dyn Files + Send>> {
    open(path, true)
}

pub(super) fn open(path: &Path, claim: bool) -> io::Result<Box<dyn Files + Send>> {
    match Place::at(path)? {
        Place::Directory => {
            let files = Directory::open(path, DirectoryOptions { direct: true })?;
            if claim {
                files.claim()?;
            }
            Ok(Box::new(files))
        }
        Place::Device => Ok(Box::new(Device::open(RawMedia::open(path, claim)?)?)),
        Place::Other => {
            let why = "it is neither a directory nor a block device nor a regular file";
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
    }
}
