//! A disk that is only memory, for tests and simulated nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_units::ByteRange;
use rustix::io::Errno;

use crate::{BufferPool, DiskOp, Outcome};

const BLOCK: usize = 4096;

/// The content of a memory disk: sparse, so an untouched store of any size costs nothing.
///
/// Clones are the same store: it outlives the [`crate::Disk`]s made of it, like a platter outlives
/// a daemon, and tests can look at it from outside.
#[derive(Clone)]
pub struct MemoryStore {
    size: u64,
    blocks: Arc<Mutex<HashMap<u64, Box<[u8; BLOCK]>>>>,
}

impl MemoryStore {
    /// An empty store of `size` bytes, rounded down to a multiple of 4096.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size: size / BLOCK as u64 * BLOCK as u64, blocks: Arc::default() }
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many bytes of memory its data takes, in whole blocks.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.blocks().len() as u64 * BLOCK as u64
    }

    /// Copies what is at `offset` into `out`. What is not written, or past the end, is zero.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let blocks = self.blocks();
        for (number, within, part) in pieces(offset, out.len()) {
            match blocks.get(&number) {
                Some(block) => out[part].copy_from_slice(&block[within]),
                None => out[part].fill(0),
            }
        }
    }

    /// Copies `data` to `offset`. What would lie past the end is left out.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let room = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        let mut blocks = self.blocks();
        for (number, within, part) in pieces(offset, data.len()) {
            let block = blocks.entry(number).or_insert_with(|| Box::new([0; BLOCK]));
            block[within].copy_from_slice(&data[part]);
        }
    }

    fn zero(&self, range: ByteRange) {
        let mut blocks = self.blocks();
        let whole = range.offset.div_ceil(BLOCK as u64)..range.end() / BLOCK as u64;
        if whole.end.saturating_sub(whole.start) < blocks.len() as u64 {
            for number in whole {
                blocks.remove(&number);
            }
        } else {
            blocks.retain(|number, _| !whole.contains(number));
        }
        let ends = [range.offset / BLOCK as u64, range.end() / BLOCK as u64];
        for number in ends {
            let start = number * BLOCK as u64;
            let Some(block) = blocks.get_mut(&number) else { continue };
            for (byte, at) in block.iter_mut().zip(start..) {
                if range.offset <= at && at < range.end() {
                    *byte = 0;
                }
            }
        }
    }

    fn is_hole(&self, range: ByteRange) -> bool {
        let blocks = self.blocks();
        range.blocks().all(|number| !blocks.contains_key(&number))
    }

    pub(crate) fn run(&self, request: &DiskOp, pool: &BufferPool) -> Result<Outcome, Errno> {
        match request {
            DiskOp::Read { range, holes } => {
                if *holes && self.is_hole(*range) {
                    return Ok(Outcome::Zeroes);
                }
                let mut buffer = pool.get(usize::try_from(range.len).map_err(|_| Errno::INVAL)?);
                self.read(range.offset, &mut buffer);
                Ok(Outcome::Data(buffer.freeze()))
            }
            DiskOp::Write { range, data, .. } => {
                self.write(range.offset, data);
                Ok(Outcome::Done)
            }
            DiskOp::Discard { range } | DiskOp::WriteZeroes { range, .. } => {
                self.zero(*range);
                Ok(Outcome::Done)
            }
            DiskOp::Flush => Ok(Outcome::Done),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, HashMap<u64, Box<[u8; BLOCK]>>> {
        // A panic elsewhere leaves at worst a half-written block, as a real disk might.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryStore({} bytes)", self.size)
    }
}

/// Cuts `len` bytes at `offset` at block boundaries: number of the block, where in it, and which
/// part of the `len` bytes.
fn pieces(
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = usize::try_from(at % BLOCK as u64).expect("it is below 4096");
        let count = (BLOCK - within).min(len - done);
        let piece = (at / BLOCK as u64, within..within + count, done..done + count);
        done += count;
        Some(piece)
    })
}
