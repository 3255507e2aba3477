//! Giving a leg what it lacks.

use super::Mirror;
use crate::client::order::Access;
use crate::client::request::RemoteRequest;
use crate::client::status::LegState;
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

    /// Compares samples of a leg that was not there when the mirror was opened with those of a leg in
    /// sync, where it lacks nothing. If they differ it is another disk, or somebody has written to it,
    /// and it lacks everything. False when something could not be read.
    async fn prove(self: &Rc<Self>, leg: usize) -> bool {
        if !self.state.borrow().legs[leg].unproved {
            return true;
        }
        let places = self.legs[leg].session.borrow().identity.places();
        for place in places {
            let range = self.chunk(place.blocks());
            if self.state.borrow().legs[leg].missing.touches(range) {
                continue;
            }
            let mut turn = self.enter(self.number(), range, Access::Read);
            turn.comes().await;
            let Ok(due) = self.read(range).await else { return false };
            match self.legs[leg].ask(RemoteRequest::Read { range }).await {
                Ok(found) if found == due => {}
                Ok(_) => {
                    let mut state = self.state.borrow_mut();
                    let it = &mut state.legs[leg];
                    it.missing.set(ByteRange::new(0, self.shape.size));
                    if let Some(book) = &self.book {
                        book.add_missing(leg, &it.missing);
                    }
                    break;
                }
                Err(_) => {
                    self.demote(leg);
                    return false;
                }
            }
        }
        self.state.borrow_mut().legs[leg].unproved = false;
        true
    }

    /// The next number in the order of requests.
    fn number(&self) -> u64 {
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
        let request = if data.iter().all(|byte| *byte == 0) {
            RemoteRequest::WriteZeroes { range, may_unmap: true, fua: false }
        } else {
            RemoteRequest::Write { offset: range.offset, data, fua: false }
        };
        if self.legs[leg].ask(request).await.is_err() {
            self.demote(leg);
            return true;
        }
        let mut state = self.state.borrow_mut();
        let it = &mut state.legs[leg];
        if it.is == LegState::Syncing {
            it.missing.clear(range, self.shape.size);
            it.copied += range.len;
        }
        true
    }
}
