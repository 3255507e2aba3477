//! The journal of a node that leads, and the notes about its followers, for the shipping logic.

use super::given;
use crate::resource::Resource;
use crate::shard::{JournalCallError, JournalHandle};
use bytes::Bytes;
use holdfast_format::journal::{FollowerNote, PeerCursor, PeerSwitches, SegmentHeader};
use holdfast_journal::RangeSet;
use holdfast_journal::ship::{Found, LeadError, Notes, Source};
use holdfast_units::{ByteRange, LogPosition, NodeId, ResourceId};
use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;

/// Calls the journal's thread and waits. Only to be used on threads that may block.
pub(super) struct Led {
    pub(super) resource: Weak<Resource>,
    pub(super) journal: JournalHandle,
    pub(super) runtime: Handle,
    /// The bytes of the resource: raised before the core grows.
    pub(super) size: Arc<AtomicU64>,
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(super) fn failed(error: JournalCallError) -> LeadError {
    LeadError(error.to_string())
}

impl Led {
    fn call<T>(
        &self,
        call: impl Future<Output = Result<T, JournalCallError>>,
    ) -> Result<T, LeadError> {
        self.runtime.block_on(call).map_err(failed)
    }

    /// A call whose failure shows in the journal's view.
    fn tell(&self, call: impl Future<Output = Result<(), JournalCallError>>) {
        if let Err(error) = self.call(call) {
            tracing::debug!("{error}");
        }
    }
}

impl Source for Led {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn segments(&self) -> Vec<(SegmentHeader, u64)> {
        self.call(self.journal.segments()).unwrap_or_default()
    }

    fn durable(&self) -> LogPosition {
        self.journal.view().durable
    }

    fn peer(&self, node: NodeId) -> PeerCursor {
        let cursors = self.call(self.journal.cursors());
        cursors.map(|cursors| cursors.peers[usize::from(node.number())]).unwrap_or_default()
    }

    fn set_peer(&mut self, node: NodeId, switches: PeerSwitches) {
        self.tell(self.journal.set_peer(node, switches));
    }

    fn peer_reached(&mut self, node: NodeId, fetched: LogPosition, replayed: LogPosition) {
        self.tell(self.journal.peer_reached(node, fetched, replayed));
    }

    fn peer_restarts(&mut self, node: NodeId, position: LogPosition) -> Result<(), LeadError> {
        self.call(self.journal.peer_restarts(node, position))
    }

    fn begin_segment(&mut self) -> Result<(u64, LogPosition), LeadError> {
        self.call(self.journal.begin_segment())
    }

    fn flush(&mut self) -> Result<LogPosition, LeadError> {
        self.call(self.journal.flush())
    }

    fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Option<RangeSet>, LeadError> {
        self.call(self.journal.changed_between(from, to))
    }

    fn fetch(&self, segment: u64, from: LogPosition, max: usize) -> Result<Bytes, LeadError> {
        self.call(self.journal.fetch(segment, from, max))
    }

    fn read(&self, range: ByteRange) -> Result<Found, LeadError> {
        self.runtime.block_on(given::read(&self.resource, &self.journal, range))
    }
}

/// A directory with a file for each follower.
pub(super) struct NoteFiles {
    dir: PathBuf,
    resource: ResourceId,
}

impl NoteFiles {
    /// The notes in a directory; it need not be there.
    pub(super) const fn new(dir: PathBuf, resource: ResourceId) -> Self {
        Self { dir, resource }
    }

    fn path(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("{node}.note"))
    }

    /// Takes all notes away, durably.
    ///
    /// # Errors
    /// When they are not known to be gone.
    pub(super) fn forget_all(&mut self) -> Result<(), LeadError> {
        let removed = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed.and_then(|mut files| {
                files.try_for_each(|file| std::fs::remove_file(file?.path()))?;
                File::open(&self.dir)?.sync_all()
            }),
        };
        removed.map_err(|error| LeadError(format!("{}: {error}", self.dir.display())))
    }

    fn write(&self, note: &FollowerNote) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.path(note.node);
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&note.encode())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()
    }
}

impl Notes for NoteFiles {
    fn load(&self, node: NodeId) -> Option<FollowerNote> {
        let bytes = std::fs::read(self.path(node)).ok()?;
        match FollowerNote::decode(&bytes, self.resource, node) {
            Ok(note) => Some(note),
            Err(why) => {
                // Without it the follower gets everything: nothing is lost but time.
                tracing::warn!("{} cannot be used: {why}", self.path(node).display());
                None
            }
        }
    }

    fn forget(&mut self, node: NodeId) -> Result<(), LeadError> {
        let path = self.path(node);
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| File::open(&self.dir)?.sync_all()),
        };
        removed.map_err(|error| LeadError(format!("{}: {error}", path.display())))
    }

    fn store(&mut self, note: &FollowerNote) -> Result<(), LeadError> {
        self.write(note).map_err(|error| {
            let path = self.path(note.node);
            LeadError(format!("{} could not be written: {error}", path.display()))
        })
    }
}
