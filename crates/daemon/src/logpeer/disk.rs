//! The disk of a node that follows, used by one operation after the other.

use bytes::Bytes;
use holdfast_journal::driver::Backing;
use holdfast_store::{BufferPool, Disk, DiskError, DiskOp, OpenError, OpenOptions, Outcome};
use holdfast_units::ByteRange;
use rustix::io::Errno;
use std::io;
use std::path::Path;

/// How many operations are given to it at a time.
const DEPTH: usize = 8;

/// A disk that one thread owns.
pub(super) struct OwnDisk(Disk);

impl OwnDisk {
    /// Opens and claims it.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        const POOL: usize = 8 << 20;
        let pool = BufferPool::new(POOL);
        let options = OpenOptions { max_in_flight: DEPTH, ..OpenOptions::default() };
        crate::shard::open_backing(path, &options, &pool).map(Self)
    }

    fn do_it(&mut self, op: DiskOp) -> io::Result<Outcome> {
        self.0.execute(op).map_err(|error| io_error(&error))
    }
}

impl Backing for OwnDisk {
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes> {
        match self.do_it(DiskOp::Read { range, holes: false })? {
            Outcome::Data(data) => Ok(data),
            Outcome::Done | Outcome::Zeroes | Outcome::Logged(_) => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = ByteRange::new(offset, data.len() as u64);
        let data = Bytes::copy_from_slice(data);
        self.do_it(DiskOp::Write { range, data, fua: false }).map(drop)
    }

    fn zeroes(&mut self, range: ByteRange, discard: bool) -> io::Result<()> {
        self.do_it(DiskOp::WriteZeroes { range, unmap: discard, fua: false }).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.do_it(DiskOp::Flush).map(drop)
    }
}

fn io_error(error: &DiskError) -> io::Error {
    error.errno.map_or_else(
        || io::Error::new(Errno::IO.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}
