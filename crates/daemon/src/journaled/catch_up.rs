//! Records are read back, for peers that were away shortly.

use super::worker::Worker;
use super::{JournalCallError, JournalHandle, Mode};
use holdfast_core::LoggedWrite;
use holdfast_format::journal::RecordKind;
use holdfast_journal::RecordsError;
use holdfast_journal::driver::{LogError, Logged};
use holdfast_units::LogPosition;
use std::io;
use tokio::sync::oneshot;

/// Writes of the journal in order, and the position behind them.
pub(crate) type LoggedWrites = (Vec<LoggedWrite>, LogPosition);

impl JournalHandle {
    /// The writes from a position on, about so many bytes of them at most, and the position behind
    /// them. What is written and not durable is made so when there is nothing else.
    ///
    /// # Errors
    /// When this node does not lead, and when they are not kept any more, or cannot be read.
    pub(crate) async fn writes_from(
        &self,
        from: LogPosition,
        bytes: u64,
    ) -> Result<LoggedWrites, JournalCallError> {
        self.look_for(move |worker, done| {
            worker.catching.push(Catching { from, bytes, done });
            worker.answer_catching();
        })
        .await
    }
}

/// Somebody who reads records, perhaps some that are not durable yet.
pub(super) struct Catching {
    from: LogPosition,
    bytes: u64,
    done: oneshot::Sender<Result<LoggedWrites, JournalCallError>>,
}

impl Worker {
    /// Answers those who read what is durable, and those who cannot be helped. The others wait for
    /// the next sync: [`Self::is_sync_wanted`] knows of them.
    pub(super) fn answer_catching(&mut self) {
        for waiting in std::mem::take(&mut self.catching) {
            let journal = self.log.journal();
            let comes = waiting.from >= journal.durable() && waiting.from < journal.head();
            if comes && self.mode == Mode::Lead && self.broken.is_none() {
                self.catching.push(waiting);
                continue;
            }
            let Catching { from, bytes, done } = waiting;
            // Who asked may be gone.
            let _ = done.send(self.writes_from(from, bytes));
        }
    }

    fn writes_from(&self, from: LogPosition, bytes: u64) -> Result<LoggedWrites, JournalCallError> {
        if self.broken.is_some() {
            return Err(self.broken_error().into());
        }
        if self.mode != Mode::Lead {
            return Err(JournalCallError::Mode(self.mode));
        }
        let found = self.log.records_from(from, bytes).map_err(|error| match error {
            LogError::Records(RecordsError::Gone { .. }) => io::ErrorKind::NotFound.into(),
            other => io::Error::other(other),
        })?;
        let next = found.last().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.next;
        Ok((found.into_iter().filter_map(write_of).collect(), next))
    }
}

fn write_of(logged: Logged) -> Option<LoggedWrite> {
    let Logged { position, next, barrier, op } = logged;
    let data = match op.kind() {
        RecordKind::Write => Some(op.payload().clone()),
        RecordKind::Zeroes | RecordKind::Discard => None,
        RecordKind::Flush => return None,
    };
    Some(LoggedWrite { position, next, barrier, range: op.range(), data })
}
