//! How the data of requests get from and to the kernel.

use crate::memory::Buffers;
use crate::uapi::data_offset;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How the data of requests get from and to the kernel.
pub(crate) enum Copy {
    /// By reads and writes of `/dev/ublkcN` (Linux 6.5 and later).
    User,
    /// The kernel copies from and to a buffer of each tag.
    Kernel(Buffers),
}

impl Copy {
    /// The address that the kernel is told for the next request of this tag.
    pub(crate) fn address(&self, tag: u16) -> u64 {
        match self {
            Self::User => 0,
            Self::Kernel(buffers) => buffers.address(tag),
        }
    }

    /// Fills `data` with what a write request writes.
    pub(crate) fn read(
        &self,
        device: &File,
        queue: u16,
        tag: u16,
        data: &mut [u8],
    ) -> io::Result<()> {
        match self {
            Self::User => device.read_exact_at(data, data_offset(queue, tag)),
            Self::Kernel(buffers) => {
                buffers.read(tag, data);
                Ok(())
            }
        }
    }

    /// Gives a read request its data.
    pub(crate) fn write(&self, device: &File, queue: u16, tag: u16, data: &[u8]) -> io::Result<()> {
        match self {
            Self::User => device.write_all_at(data, data_offset(queue, tag)),
            Self::Kernel(buffers) => {
                buffers.write(tag, data);
                Ok(())
            }
        }
    }
}
