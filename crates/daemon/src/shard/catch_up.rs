//! The journal is read for peers that the core catches up.

use super::resource::Resource;
use crate::journaled::JournalHandle;
use holdfast_core::{Event, IoFailure, JournalReadId};
use holdfast_units::LogPosition;
use std::rc::Rc;
use tokio::sync::mpsc::UnboundedReceiver;

/// What is to be read: one read at a time for each peer.
pub(super) struct JournalRead {
    pub(super) id: JournalReadId,
    pub(super) from: LogPosition,
    pub(super) bytes: u64,
}

/// Reads what the core asks for, until the resource is closed.
pub(super) async fn read_journal(
    resource: Rc<Resource>,
    journal: JournalHandle,
    mut reads: UnboundedReceiver<JournalRead>,
) {
    while let Some(JournalRead { id, from, bytes }) = reads.recv().await {
        let found = journal.writes_from(from, bytes).await.map_err(|error| {
            tracing::debug!("a peer goes by its bitmap: {error}");
            IoFailure::NoData
        });
        resource.feed(Event::JournalRead(id, found));
        resource.finish();
    }
}
