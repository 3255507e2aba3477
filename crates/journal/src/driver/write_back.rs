//! What the journal has goes to the disk.

use super::{Files, Log, LogError, Losses, Seen};
use crate::index::{RunKind, WriteBackLimits};
use bytes::{Bytes, BytesMut};
use holdfast_units::ByteRange;
use std::io;

/// The disk under a journal.
pub trait Backing {
    /// Reads a range.
    ///
    /// # Errors
    /// When not all of it could be read.
    fn read(&mut self, range: ByteRange) -> io::Result<Bytes>;

    /// Writes.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes zeroes, with `discard` giving the space back.
    ///
    /// # Errors
    /// When not all of it could be written.
    fn zeroes(&mut self, range: ByteRange, discard: bool) -> io::Result<()>;

    /// Makes durable all that was written.
    ///
    /// # Errors
    /// When that is not known to have worked.
    fn flush(&mut self) -> io::Result<()>;

    /// Reads a range only to see whether that can be done, and gives what was written. The parts of
    /// which there is no good copy, in whole blocks; the whole range when it is not known which
    /// of its blocks that are.
    ///
    /// # Errors
    /// When the disk itself fails, and not only blocks of it.
    fn look(&mut self, range: ByteRange) -> io::Result<Vec<(ByteRange, Seen)>> {
        self.read(range).map(|_| Vec::new())
    }

    /// Stores again what blocks hold that it has no good copy of. Whether it has a good one then,
    /// durably.
    ///
    /// # Errors
    /// When the disk itself fails, and not only blocks of it.
    fn repair(&mut self, offset: u64, data: &[u8]) -> io::Result<bool> {
        self.write(offset, data)?;
        self.flush().map(|()| true)
    }

    /// The blocks of which it has no good copy, as [`Self::keep_losses`] was told last.
    fn losses(&mut self) -> Losses {
        Losses::default()
    }

    /// Keeps a list of such blocks, durably.
    ///
    /// # Errors
    /// When that is not known to have worked; the list before is there then.
    fn keep_losses(&mut self, losses: &Losses) -> io::Result<()> {
        let _ = losses;
        Ok(())
    }

    /// What it is made over has grown, and may be used up to `size` bytes from now on.
    fn grown(&mut self, size: u64) {
        let _ = size;
    }
}

impl<F: Files> Log<F> {
    /// Writes back what is durable, in one round; whether there was something. With `flush`, the
    /// disk is flushed behind it, so that the journal does not need it any more.
    ///
    /// # Errors
    /// When the disk or the journal failed; it stays to be written back.
    pub fn write_back(
        &mut self,
        disk: &mut dyn Backing,
        limits: WriteBackLimits,
        flush: bool,
    ) -> Result<bool, LogError> {
        let planned = self.journal.write_back(limits);
        if let Some(plan) = &planned {
            let result = self.write_runs(disk, &plan.runs);
            self.journal.written_back(plan.id, result.is_ok());
            result?;
        }
        if flush {
            let token = self.journal.disk_flush_token();
            disk.flush()?;
            self.journal.disk_flushed(token);
        }
        Ok(planned.is_some())
    }

    fn write_runs(&self, disk: &mut dyn Backing, runs: &[crate::Run]) -> Result<(), LogError> {
        for run in runs {
            match run.kind {
                RunKind::Data => {
                    let mut data = BytesMut::with_capacity(len_of(run.range)?);
                    for piece in &run.pieces {
                        data.extend_from_slice(&self.piece(piece)?);
                    }
                    disk.write(run.range.offset, &data)?;
                }
                RunKind::Zeroes => disk.zeroes(run.range, false)?,
                RunKind::Discard => disk.zeroes(run.range, true)?,
            }
        }
        Ok(())
    }
}

pub(super) fn len_of(range: ByteRange) -> io::Result<usize> {
    usize::try_from(range.len).map_err(io::Error::other)
}
