//! The disk of a node that follows, used by one operation after the other.

use crate::checksums;
use crate::shard::{self, DiskSpec};
use crate::spares::{self, MapChanges, SparesView, watch_map};
use bytes::Bytes;
use holdfast_journal::driver::Backing;
use holdfast_store::{BufferPool, ChecksumHandle, Disk, DiskError, DiskOp, OpenOptions, Outcome};
use holdfast_units::{ByteRange, ResourceId};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// How many operations are given to it at a time.
const DEPTH: usize = 8;

/// How long the checksums of a disk that is closed may take to be brought in line; what they do not
/// manage is computed anew.
const SETTLE: Duration = Duration::from_secs(5);

/// A disk that one thread owns.
pub(super) struct OwnDisk {
    disk: Disk,
    /// How its spares are, as of the last flush.
    spares: watch::Sender<Option<SparesView>>,
}

/// What is to be seen of it from outside.
pub(super) struct OwnView {
    pub(super) changes: MapChanges,
    pub(super) spares: watch::Receiver<Option<SparesView>>,
    pub(super) checksums: ChecksumHandle,
}

impl OwnDisk {
    /// Opens and claims it.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn open(
        spec: &DiskSpec,
        sums: Option<&Path>,
        resource: ResourceId,
        size: u64,
    ) -> Result<(Self, OwnView), shard::OpenError> {
        const POOL: usize = 8 << 20;
        let pool = BufferPool::new(POOL);
        let options = OpenOptions { max_in_flight: DEPTH, ..OpenOptions::default() };
        let disk = shard::open_backing(&spec.path, &options, &pool)?;
        let mut disk = spares::open_with(disk, spec, resource, &pool)?;
        let changes = watch_map(&mut disk);
        let (spares, seen) = watch::channel(SparesView::of(&disk));
        let (disk, checksums) = checksums::with_layer(disk, sums, resource, size, &pool);
        Ok((Self { disk, spares }, OwnView { changes, spares: seen, checksums }))
    }

    fn do_it(&mut self, op: DiskOp) -> io::Result<Outcome> {
        // What the layer for checksums has to do, it does when somebody looks.
        self.disk.completions(&mut Vec::new());
        self.disk.execute(op).map_err(|error| io_error(&error))
    }
}

impl Drop for OwnDisk {
    fn drop(&mut self) {
        self.disk.settle_checksums_now(SETTLE);
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
        let flushed = self.do_it(DiskOp::Flush).map(drop);
        self.spares.send_replace(SparesView::of(&self.disk));
        flushed
    }

    fn grown(&mut self, size: u64) {
        self.disk.grown_to(size);
    }
}

fn io_error(error: &DiskError) -> io::Error {
    error.errno.map_or_else(
        || io::Error::new(Errno::IO.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}
