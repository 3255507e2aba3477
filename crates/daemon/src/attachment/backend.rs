//! A remote disk as what stands behind a block device.

use holdfast_device::Backend;
use holdfast_nbd::RemoteDisk;
use holdfast_units::ByteRange;
use std::io;

/// Blocks of a device have at least as many bytes.
const SMALLEST_BLOCK: u32 = 512;

pub(super) struct RemoteBackend {
    disk: RemoteDisk,
}

impl RemoteBackend {
    pub(super) fn new(disk: RemoteDisk) -> Self {
        Self { disk }
    }
}

impl Backend for RemoteBackend {
    fn size(&self) -> u64 {
        self.disk.info().size
    }

    fn block_size(&self) -> u32 {
        self.disk.info().block_size.max(SMALLEST_BLOCK)
    }

    fn is_read_only(&self) -> bool {
        self.disk.info().read_only
    }

    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(data, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        self.disk.write_at(data, offset, fua)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn trim(&self, range: ByteRange) -> io::Result<()> {
        self.disk.trim(range)
    }

    fn write_zeroes(&self, range: ByteRange, may_unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(range, may_unmap)
    }
}
