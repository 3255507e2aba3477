//! The disk of a node that follows, used by one operation after the other.

use super::losses;
use crate::checksums;
use crate::shard::{self, DiskSpec};
use crate::spares::{self, MapChanges, SparesView, watch_map};
use bytes::Bytes;
use holdfast_journal::driver::{Backing, Losses, Seen};
use holdfast_store::{
    BufferPool, ChecksumHandle, Disk, DiskError, DiskErrorKind, DiskOp, OpId, OpenOptions, Outcome,
    PartialRead, RemapOp,
};
use holdfast_units::{BLOCK_SIZE, ByteRange, ResourceId};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
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
    resource: ResourceId,
    /// The bytes of the resource that it was opened for.
    size: u64,
    /// Where it is kept which blocks have no good copy.
    losses: PathBuf,
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
        losses: &Path,
    ) -> Result<(Self, OwnView), shard::OpenError> {
        const POOL: usize = 8 << 20;
        let pool = BufferPool::new(POOL);
        let options = OpenOptions { max_in_flight: DEPTH, ..OpenOptions::default() };
        let disk = shard::open_backing(&spec.path, &options, &pool)?;
        let mut disk = spares::open_with(disk, spec, resource, &pool)?;
        let changes = watch_map(&mut disk);
        let (spares, seen) = watch::channel(SparesView::of(&disk));
        let (disk, checksums) = checksums::with_layer(disk, sums, resource, size, &pool);
        let losses = losses.to_owned();
        Ok((
            Self { disk, spares, resource, size, losses },
            OwnView { changes, spares: seen, checksums },
        ))
    }

    fn do_it(&mut self, op: DiskOp) -> io::Result<Outcome> {
        // What the layer for checksums has to do, it does when somebody looks.
        self.disk.completions(&mut Vec::new());
        self.disk.execute(op).map_err(|error| io_error(&error))
    }

    /// Reads from the device, and not from memory.
    fn read_anew(&mut self, range: ByteRange) -> Result<Outcome, DiskError> {
        self.disk.completions(&mut Vec::new());
        self.disk.uncache(range);
        self.disk.execute(DiskOp::Read { range, holes: false })
    }

    /// Whether the disk answers at all: a block cannot be read then because of itself.
    fn answers(&mut self) -> bool {
        let last = self.disk.size().saturating_sub(BLOCK_SIZE) / BLOCK_SIZE * BLOCK_SIZE;
        let middle = last / 2 / BLOCK_SIZE * BLOCK_SIZE;
        let probes = [0, middle, last].map(|offset| ByteRange::new(offset, BLOCK_SIZE));
        probes.into_iter().any(|probe| self.read_anew(probe).is_ok())
    }

    /// Stores what a block is to hold, so that it reads back.
    fn store_again(&mut self, range: ByteRange, data: Bytes) -> Result<bool, DiskError> {
        if self.disk.remap_stats().is_some() {
            self.disk.completions(&mut Vec::new());
            return self.disk.remap_now(RemapOp::Repair { range, data }).0.map(|()| true);
        }
        self.disk.execute(DiskOp::Write { range, data: data.clone(), fua: false })?;
        self.disk.execute(DiskOp::Flush)?;
        Ok(matches!(self.read_anew(range)?, Outcome::Data(found) if found == data))
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

    fn look(&mut self, range: ByteRange) -> io::Result<Vec<(ByteRange, Seen)>> {
        let error = match self.read_anew(range) {
            Ok(_) => return Ok(Vec::new()),
            Err(error) => error,
        };
        if !shard::is_of_blocks(&error) {
            return Err(io_error(&error));
        }
        let partial = (error.kind == DiskErrorKind::Unreadable).then(|| self.disk.partial(OpId(0)));
        let parts = match partial.flatten() {
            Some(PartialRead { bad, wrong, .. }) => parts(&bad, &wrong),
            None => vec![(range, Seen::Unread)],
        };
        // A disk that went away has no bad blocks.
        let unread = parts.iter().any(|(_, seen)| *seen == Seen::Unread);
        if unread && !self.answers() { Err(io_error(&error)) } else { Ok(parts) }
    }

    fn repair(&mut self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let range = ByteRange::new(offset, data.len() as u64);
        let stored = self.store_again(range, Bytes::copy_from_slice(data));
        self.spares.send_replace(SparesView::of(&self.disk));
        match stored {
            Ok(stored) => Ok(stored),
            Err(error) if error.kind == DiskErrorKind::SpareFull || shard::is_of_blocks(&error) => {
                tracing::debug!("{range} could not be stored again: {error}");
                Ok(false)
            }
            Err(error) => Err(io_error(&error)),
        }
    }

    fn losses(&mut self) -> Losses {
        losses::load(&self.losses, self.resource, self.size)
    }

    fn keep_losses(&mut self, losses: &Losses) -> io::Result<()> {
        losses::store(&self.losses, self.resource, losses).map_err(|error| {
            let path = self.losses.display();
            io::Error::new(error.kind(), format!("{path} could not be written: {error}"))
        })
    }

    fn grown(&mut self, size: u64) {
        self.disk.grown_to(size);
    }
}

/// The bad ranges of a read by whole blocks: those that are wrong, and the others.
fn parts(bad: &[ByteRange], wrong: &[ByteRange]) -> Vec<(ByteRange, Seen)> {
    let mut blocks: BTreeMap<u64, Seen> = BTreeMap::new();
    let whole = |range: &ByteRange| range.offset / BLOCK_SIZE..range.end().div_ceil(BLOCK_SIZE);
    blocks.extend(wrong.iter().flat_map(whole).map(|block| (block, Seen::Old)));
    for block in bad.iter().flat_map(whole) {
        blocks.entry(block).or_insert(Seen::Unread);
    }
    blocks.into_iter().map(|(b, seen)| (ByteRange::of_blocks(b..b + 1), seen)).collect()
}

fn io_error(error: &DiskError) -> io::Error {
    error.errno.map_or_else(
        || io::Error::new(Errno::IO.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}
