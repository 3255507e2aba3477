//! Records are read back, for peers that were away shortly.

use super::worker::Worker;
use super::{JournalCallError, JournalHandle, Mode};
use holdfast_core::LoggedWrite;
use holdfast_format::journal::RecordKind;
use holdfast_journal::RecordsError;
use holdfast_journal::driver::{LogError, Logged};
use holdfast_units::LogPosition;
use std::io;

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
        self.ask(move |worker| worker.writes_from(from, bytes)).await
    }
}

impl Worker {
    fn writes_from(
        &mut self,
        from: LogPosition,
        bytes: u64,
    ) -> Result<LoggedWrites, JournalCallError> {
        if self.mode != Mode::Lead {
            return Err(JournalCallError::Mode(self.mode));
        }
        if from >= self.log.journal().durable() {
            self.flush_journal()?;
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
