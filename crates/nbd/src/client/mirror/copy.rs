//! Giving a leg what it lacks.

use super::Mirror;
use crate::client::order::Access;
use crate::client::request::{RemoteFailure, RemoteRequest};
use crate::client::status::LegState;
use bytes::Bytes;
use holdfast_units::{BLOCK_SIZE, ByteRange};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How many chunks are copied at a time, and how long each is at most, in blocks.
const CHUNKS: usize = 4;
const CHUNK: u64 = (1 << 20) / BLOCK_SIZE;
/// The pause when something could not be read.
const PAUSE: Duration = Duration::from_secs(1);

impl Mirror {
    /// Copies until the leg is in sync, or given up.
    pub(super) async fn copy_to(self: &Rc<Self>, leg: usize) {
        while self.is_syncing(leg) {
            if !self.prove(leg).await || !self.copy_all(leg).await {
                tokio::time::sleep(PAUSE).await;
            } else if self.is_syncing(leg) {
                match self.legs[leg].ask(RemoteRequest::Flush).await {
                    Ok(_) if self.promote(leg).await => return,
                    // There was a write meanwhile that it missed.
                    Ok(_) => {}
                    Err(_) => {
                        self.demote(leg);
                    }
                }
            }
        }
    }

    /// The next number in the order of requests.
    pub(super) fn number(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        state.next - 1
    }

    /// Goes once through all that is missing; false when something could not be read.
    async fn copy_all(self: &Rc<Self>, leg: usize) -> bool {
        let mut chunks = JoinSet::new();
        let (mut from, mut all_read) = (0, true);
        loop {
            let next = self.state.borrow().legs[leg].missing.next_run(from, CHUNK);
            match next.filter(|_| self.is_syncing(leg)) {
                Some(blocks) if chunks.len() < CHUNKS => {
                    from = blocks.end;
                    let (mirror, range) = (Rc::clone(self), self.chunk(blocks));
                    chunks.spawn_local(async move { mirror.copy_chunk(leg, range).await });
                }
                _ => match chunks.join_next().await {
                    Some(read) => all_read &= read.unwrap_or(false),
                    None => return all_read,
                },
            }
        }
    }

    fn is_syncing(&self, leg: usize) -> bool {
        let state = self.state.borrow();
        !state.closed && state.legs[leg].is == LegState::Syncing
    }

    /// The range of these blocks, as far as the disk goes, in whole blocks of the servers.
    fn chunk(&self, blocks: Range<u64>) -> ByteRange {
        let unit = u64::from(self.shape.block).max(1);
        let range = ByteRange::of_blocks(blocks);
        let start = range.offset / unit * unit;
        let end = range.end().next_multiple_of(unit).min(self.shape.size);
        ByteRange::new(start, end - start)
    }

    /// Copies one range from a leg in sync; false when it could not be read. Changes of the range
    /// wait meanwhile.
    async fn copy_chunk(self: &Rc<Self>, leg: usize, range: ByteRange) -> bool {
        let mut turn = self.enter(self.number(), range, Access::Write);
        turn.comes().await;
        if !self.is_syncing(leg) {
            return true;
        }
        let Ok(data) = self.read(range).await else { return false };
        let doubtful = self.state.borrow().legs[leg].doubtful;
        let copied = if doubtful {
            self.write_difference(leg, range, data).await
        } else {
            self.write_to(leg, range, data).await
        };
        let Ok(copied) = copied else {
            self.demote(leg);
            return true;
        };
        let mut state = self.state.borrow_mut();
        let it = &mut state.legs[leg];
        if it.is == LegState::Syncing {
            it.missing.clear(range, self.shape.size);
            it.copied += copied;
        }
        true
    }

    /// Writes only what a leg does not have; how many bytes.
    async fn write_difference(
        &self,
        leg: usize,
        range: ByteRange,
        due: Bytes,
    ) -> Result<u64, RemoteFailure> {
        // Where it cannot be read it may take a write.
        let found = match self.legs[leg].ask(RemoteRequest::Read { range }).await {
            Ok(found) => found,
            Err(RemoteFailure::Server(_)) => return self.write_to(leg, range, due).await,
            Err(failure) => return Err(failure),
        };
        let Some(within) = difference(&found, &due, self.unit()) else { return Ok(0) };
        let range = ByteRange::new(range.offset + within.start as u64, within.len() as u64);
        self.write_to(leg, range, due.slice(within)).await
    }

    async fn write_to(
        &self,
        leg: usize,
        range: ByteRange,
        data: Bytes,
    ) -> Result<u64, RemoteFailure> {
        let request = if data.iter().all(|byte| *byte == 0) {
            RemoteRequest::WriteZeroes { range, may_unmap: true, fua: false }
        } else {
            RemoteRequest::Write { offset: range.offset, data, fua: false }
        };
        self.legs[leg].ask(request).await.map(|_| range.len)
    }

    fn unit(&self) -> usize {
        usize::try_from(BLOCK_SIZE.max(self.shape.block.into())).unwrap_or(usize::MAX)
    }
}

/// From the first to the last block that differs.
fn difference(one: &[u8], other: &[u8], unit: usize) -> Option<Range<usize>> {
    let mut blocks = one.chunks(unit).zip(other.chunks(unit));
    let first = blocks.position(|(one, other)| one != other)?;
    let equal = blocks.rev().take_while(|(one, other)| one == other).count();
    let last = one.len().div_ceil(unit) - equal;
    Some(first * unit..(last * unit).min(one.len()))
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn only_what_differs_is_written() {
        let same = [7; 40];
        assert_eq!(difference(&same, &same, 8), None);
        for (at, due) in [(0, 0..8), (17, 16..24), (39, 32..40)] {
            let mut other = same;
            other[at] = 1;
            assert_eq!(difference(&same, &other, 8), Some(due));
        }
        let mut other = same;
        (other[9], other[30]) = (1, 1);
        assert_eq!(difference(&same, &other, 8), Some(8..32));
        assert_eq!(difference(&same[..12], &other[..12], 8), Some(8..12));
    }
}
