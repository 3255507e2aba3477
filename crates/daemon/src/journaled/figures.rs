//! What a journal has done and how full it is, for people; and its room, which can be changed while
//! it is in use.

use super::open::Sizes;
use super::worker::Worker;
use super::{JournalCallError, JournalHandle};
use holdfast_format::journal::Compression;
use std::time::Duration;

/// A journal has no fewer segments than this, however little room it is given.
const LEAST_SEGMENTS: u64 = 4;

/// What a journal has done since it was opened, and how full it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// The bytes of the segments that the disk or a follower still needs.
    pub needed_bytes: u64,
    /// Over so many bytes of segments it is cut.
    pub budget_bytes: u64,
    /// How often it was cut although a follower needed what was given up.
    pub cuts: u64,
    /// How many large writes were answered later, so that followers keep up.
    pub slowed: u64,
    /// The bytes of writes that became records, as they were submitted; zeroes do not count.
    pub payload_bytes: u64,
    /// The bytes that these take in the journal, without headers and padding.
    pub stored_bytes: u64,
    /// How often something was made durable.
    pub syncs: u64,
    /// The time that this took in all, in microseconds.
    pub sync_micros: u64,
    /// The longest time that it took once, in microseconds.
    pub longest_sync_micros: u64,
}

impl Figures {
    /// Something was made durable, and took so long.
    pub(super) fn synced(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs += 1;
        self.sync_micros = self.sync_micros.saturating_add(micros);
        self.longest_sync_micros = self.longest_sync_micros.max(micros);
    }

    /// How much of its budget is needed, in percent; more than 100 when it has to be cut.
    #[must_use]
    pub fn fill_percent(&self) -> u64 {
        self.needed_bytes.saturating_mul(100).checked_div(self.budget_bytes).unwrap_or(0)
    }
}

impl JournalHandle {
    /// All files of the journal together shall take no more than this from now on, but for at least
    /// four of its segments. What that is too much for is written back, and cut. What it is then.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn set_limit(&self, bytes: u64) -> Result<u64, JournalCallError> {
        self.ask(move |worker| {
            worker.set_limit(bytes);
            Ok(worker.sizes.limit)
        })
        .await
    }
}

impl JournalHandle {
    /// Writes are stored compressed so from now on, where that makes them shorter.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn set_compression(&self, compression: Compression) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            worker.log.journal_mut().set_compression(compression);
            worker.publish(true);
            Ok(())
        })
        .await
    }
}

impl Worker {
    fn set_limit(&mut self, bytes: u64) {
        let before = self.sizes;
        let limit = bytes.max(LEAST_SEGMENTS * before.segment);
        let sizes = Sizes::of_segment(limit, before.segment, before.disk_ops);
        if sizes.limit == before.limit {
            return;
        }
        // What was set at the opening stays: how much may wait to be written back.
        self.sizes = Sizes { dirty: before.dirty, ..sizes };
        if !self.no_room {
            self.log.journal_mut().set_budget(self.sizes.budget);
        }
        self.make_room();
        self.make_spare();
        self.publish(true);
    }

    /// The figures as they are now.
    pub(super) fn figures_now(&self) -> Figures {
        let journal = self.log.journal();
        Figures {
            needed_bytes: journal.needed_bytes(),
            budget_bytes: self.sizes.budget,
            slowed: self.throttle.count,
            ..self.figures
        }
    }
}
