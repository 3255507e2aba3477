//! A block device of the kernel, by its name and number.

use crate::sysinfo::{self, DeviceNumber};
use rustix::fs::{CWD, FileType, Mode};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A block device of the kernel. Dropping it does not touch the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BlockDevice {
    /// The kernel's name, such as `loop3`.
    pub(crate) name: String,
    /// The node in `/dev`.
    pub(crate) node: PathBuf,
    pub(crate) number: DeviceNumber,
}

impl BlockDevice {
    /// The device that the kernel has under this name.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn named(name: String) -> io::Result<Self> {
        let number = sysinfo::device_number(&name)?;
        Ok(Self { node: PathBuf::from(format!("/dev/{name}")), name, number })
    }

    /// Opens the device beside those who use it.
    pub(crate) fn open(&self) -> io::Result<File> {
        File::options().read(true).open(&self.node)
    }

    /// Opens the node for reading and writing; makes it first where no devtmpfs has made it.
    pub(crate) fn open_node(&self) -> io::Result<File> {
        self.make_node()?;
        self.checked(File::options().read(true).write(true).open(&self.node)?)
    }

    /// Makes the node where no devtmpfs has made it.
    pub(crate) fn make_node(&self) -> io::Result<()> {
        make_node(&self.node, FileType::BlockDevice, self.number)
    }

    fn checked(&self, file: File) -> io::Result<File> {
        let found = file.metadata()?;
        let device = rustix::fs::makedev(self.number.major, self.number.minor);
        if !found.file_type().is_block_device() || found.rdev() != device {
            return Err(io::Error::other("the node belongs to another device"));
        }
        Ok(file)
    }
}

/// Makes a device node unless there is something in its place.
pub(crate) fn make_node(node: &Path, kind: FileType, number: DeviceNumber) -> io::Result<()> {
    if fs::symlink_metadata(node).is_ok() {
        return Ok(());
    }
    let device = rustix::fs::makedev(number.major, number.minor);
    match rustix::fs::mknodat(CWD, node, kind, Mode::from_raw_mode(0o600), device) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
