//! A checksum for each block of the disk: a layer between [`crate::Disk`] and its engine, above the one
//! for bad sectors. How it works and what an interruption leaves: `docs/design/integrity.md`.

mod busy;
mod file;
mod handle;
mod layer;
mod requests;
mod rounds;
mod table;

pub use file::{ChecksumError, ChecksumFile, remove_checksums};
pub use handle::{ChecksumHandle, ChecksumMode, ChecksumStats};
pub(crate) use layer::Integrity;

use std::time::{Duration, Instant};

use holdfast_units::{BLOCK_SIZE, ByteRange};

use crate::Disk;
use crate::engine::Engine;

impl Disk {
    /// The same disk with a layer that can keep a checksum for each of the first `covered` bytes' blocks;
    /// it does while it has a file for them: this one, or what the handle gives it. Requests have to
    /// be whole blocks of 4096 bytes from then on. Nothing may be in flight.
    #[must_use]
    pub fn with_checksums(
        self,
        covered: u64,
        file: Option<ChecksumFile>,
    ) -> (Self, ChecksumHandle) {
        let blocks = covered.min(self.size()) / BLOCK_SIZE;
        let mut handle = None;
        let wrap = |engine: Engine, pool: &_, wake: &std::sync::Arc<_>| {
            let made = ChecksumHandle::new(wake);
            let layer = Integrity::new(engine, blocks, file, made.clone(), pool, wake);
            handle = Some(made);
            Engine::Integrity(Box::new(layer))
        };
        let block_size = u32::try_from(BLOCK_SIZE).unwrap_or(4096);
        let disk = self.wrapped(wrap, block_size, Vec::new());
        (disk, handle.expect("the engine was wrapped"))
    }

    /// Whether what is read is compared with checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        matches!(self.engine(), Engine::Integrity(layer) if layer.compares())
    }

    /// Has the layer for checksums, if there is one, bring its file in line with the disk, so that after
    /// the next start all sums are believed. It goes on until [`Self::checksums_are_settled`].
    pub fn settle_checksums(&mut self) {
        if let Engine::Integrity(layer) = self.engine_mut() {
            layer.settle();
        }
    }

    /// The same, and waits for it, at most so long. For callers without an event loop that have
    /// nothing in flight.
    pub fn settle_checksums_now(&mut self, most: Duration) {
        self.settle_checksums();
        let deadline = Instant::now() + most;
        while !self.checksums_are_settled() && Instant::now() < deadline {
            self.doze(deadline.saturating_duration_since(Instant::now()));
            self.completions(&mut Vec::new());
        }
    }

    /// Whether [`Self::settle_checksums`] has nothing left to do.
    #[must_use]
    pub fn checksums_are_settled(&self) -> bool {
        match self.engine() {
            Engine::Integrity(layer) => layer.is_settled(),
            _ => true,
        }
    }
}

/// The blocks of a range that have sums when so many blocks do.
fn covered(range: ByteRange, blocks: u64) -> std::ops::Range<u64> {
    let all = range.blocks();
    all.start.min(blocks)..all.end.min(blocks)
}
