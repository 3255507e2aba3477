//! A journal that takes copies of another node's, and its replay.

use super::worker::{Flight, Worker};
use super::{JournalCallError, Mode};
use bytes::Bytes;
use holdfast_format::journal::{RecordKind, SegmentHeader};
use holdfast_journal::driver::CopyFailed;
use holdfast_journal::{Op, Ticket as Record};
use holdfast_store::DiskOp;
use holdfast_units::{GenerationId, LogPosition};
use std::collections::VecDeque;
use std::io;
use tokio::sync::oneshot;

type Answer<T> = oneshot::Sender<Result<T, JournalCallError>>;

/// Records on their way to the disk, one after the other: at every moment the disk is as the
/// Primary's was between two writes.
pub(super) struct Replay {
    records: VecDeque<(LogPosition, Op)>,
    /// Everything before this is on the disk when the records are.
    end: LogPosition,
    state: State,
    done: Answer<LogPosition>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Next,
    Writing,
    Flushing,
    Flushed,
}

impl Replay {
    pub(super) fn refuse(self, error: io::Error) {
        // Who asked may be gone.
        let _ = self.done.send(Err(error.into()));
    }
}

impl Worker {
    pub(super) fn follow(&mut self) -> Result<(), JournalCallError> {
        let may = matches!(self.mode, Mode::Direct | Mode::Follow) && self.is_quiet();
        if !may || !self.log.journal_mut().follow() {
            return Err(JournalCallError::Mode(self.mode));
        }
        self.mode = Mode::Follow;
        Ok(())
    }

    /// All that was copied must be replayed. The next mode is like one in which nothing was written
    /// past the journal: it continues what was copied.
    pub(super) fn leave_follow(&mut self, generation: GenerationId) -> bool {
        let may = self.replay.is_none() && self.log.journal_mut().lead(generation);
        if may {
            self.mode = Mode::Direct;
        }
        may
    }

    pub(super) fn clear(&mut self) -> Result<(), JournalCallError> {
        if self.mode != Mode::Follow || self.replay.is_some() {
            return Err(JournalCallError::Mode(self.mode));
        }
        self.cache.clear();
        self.through.begin_anew();
        self.log.clear()?;
        // Its records are counted anew.
        self.pushed = Record(0);
        Ok(())
    }

    pub(super) fn copy(
        &mut self,
        header: &SegmentHeader,
        frames: &Bytes,
    ) -> Result<usize, JournalCallError> {
        if self.mode != Mode::Follow {
            return Err(JournalCallError::Mode(self.mode));
        }
        let taken = self.log.copy(header, frames).map_err(|error| match error {
            CopyFailed::Copy(error) => JournalCallError::Copy(error),
            CopyFailed::Io(error) => JournalCallError::Io(error),
        })?;
        self.make_room();
        Ok(taken)
    }

    pub(super) fn replay(&mut self, to: LogPosition, max: u64, done: Answer<LogPosition>) {
        if self.mode != Mode::Follow || self.replay.is_some() || self.broken.is_some() {
            return drop(done.send(Err(JournalCallError::Mode(self.mode))));
        }
        let from = self.log.journal().written_back_to();
        let to = to.min(self.log.journal().durable());
        match self.log.records_between(from, to, max) {
            Ok((records, end)) => {
                let records = records.into();
                self.replay = Some(Replay { records, end, state: State::Next, done });
            }
            Err(error) => drop(done.send(Err(io::Error::other(error).into()))),
        }
    }

    /// Gives the disk what comes next.
    pub(super) fn go_on_replaying(&mut self) {
        while let Some(mut replay) = self.replay.take() {
            match replay.state {
                State::Writing | State::Flushing => {
                    self.replay = Some(replay);
                    return;
                }
                State::Next => {
                    let request = replay.records.pop_front().map(|(_, op)| request_of(&op));
                    let request = match request {
                        Some(None) => {
                            self.replay = Some(replay);
                            continue;
                        }
                        Some(Some(request)) => {
                            replay.state = State::Writing;
                            request
                        }
                        None => {
                            replay.state = State::Flushing;
                            DiskOp::Flush
                        }
                    };
                    self.replay = Some(replay);
                    self.fly(Flight::Replay, request);
                }
                State::Flushed => {
                    self.log.journal_mut().replayed(replay.end);
                    let stored = self.log.store_cursors();
                    self.make_room();
                    // Who asked may be gone.
                    let _ = replay.done.send(stored.map(|()| replay.end).map_err(Into::into));
                }
            }
        }
    }

    pub(super) fn replayed_one(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            return self.break_disk("a record could not be replayed", &error);
        }
        if let Some(replay) = &mut self.replay {
            replay.state = match replay.state {
                State::Flushing => State::Flushed,
                _ => State::Next,
            };
        }
    }

    pub(super) fn fill(&mut self, op: DiskOp, done: Answer<()>) {
        if self.mode != Mode::Follow || self.broken.is_some() {
            return drop(done.send(Err(JournalCallError::Mode(self.mode))));
        }
        self.unflushed_direct = true;
        self.fly(Flight::Call(done), op);
    }
}

/// What a record does on the disk; `None` for a mere mark.
fn request_of(op: &Op) -> Option<DiskOp> {
    let range = op.range();
    Some(match op.kind() {
        RecordKind::Write => DiskOp::Write { range, data: op.payload().clone(), fua: false },
        RecordKind::Zeroes => DiskOp::WriteZeroes { range, unmap: false, fua: false },
        RecordKind::Discard => DiskOp::WriteZeroes { range, unmap: true, fua: false },
        RecordKind::Flush => return None,
    })
}
