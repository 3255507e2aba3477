//! The control plane's end of a resource.

use super::link::{LinkOrigin, LinkStream};
use super::open::NewPlace;
use super::resource::{FirstLost, ToResource};
use super::stages::StageTimes;
use super::view::ResourceView;
use super::vitals::{InCall, VitalsReport};
use crate::journaled::JournalHandle;
use crate::spares::{MapChanges, RemapAnswer, RemapFailed};
use bytes::Bytes;
use holdfast_core::{Command, IoFailure, Notice, Refusal};
use holdfast_store::{ChecksumHandle, RemapEntry, RemapOp, RemapReport, ReplaceHandle};
use holdfast_units::{ByteRange, NodeId, PeerSet};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// A command that has not ended after so long is reported as timed out. It may still happen.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Who looks at a resource waits no longer than that for its newest figures.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// Stopping in good order, closing links and disk together take no longer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a resource could not be closed in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// The disk still works on something. It stays claimed until that has ended.
    #[error("the disk did not finish what was under way in time")]
    DiskBusy,
    /// It took longer than 30 seconds.
    #[error("it did not end in time")]
    TimedOut,
    /// It is closed already.
    #[error("it is closed already")]
    Closed,
}

/// Why a resource did not get another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenameRefused {
    /// A client has its export open.
    #[error("a client has its export open")]
    Open,
    /// Another one has the name.
    #[error("another resource of this node has the name")]
    Taken,
    /// It is closed.
    #[error("it is being stopped")]
    Closed,
}

/// A resource that is open on a shard. Clones are the same resource; it may be used from any
/// thread that runs tokio. When the last clone is dropped, the resource is closed.
#[derive(Clone)]
pub struct ResourceHandle {
    pub(super) commands: mpsc::Sender<ToResource>,
    pub(super) view: watch::Receiver<Arc<ResourceView>>,
    pub(super) wanted: watch::Receiver<PeerSet>,
    pub(super) notices: broadcast::Sender<Notice>,
    pub(super) journal: Option<JournalHandle>,
    pub(super) replace: Option<ReplaceHandle>,
    pub(super) in_call: Option<InCall>,
    pub(super) map_changes: Arc<MapChanges>,
    pub(super) checksums: Option<ChecksumHandle>,
}

impl ResourceHandle {
    /// The resource's name, which is that of its export.
    #[must_use]
    pub fn name(&self) -> String {
        self.view.borrow().name.clone()
    }

    /// Gives it another name. Nothing of it stops meanwhile.
    ///
    /// # Errors
    /// [`RenameRefused`]; it has its name as before then.
    pub async fn rename(&self, name: &str) -> Result<(), RenameRefused> {
        let (done, end) = oneshot::channel();
        let sent = self.commands.send(ToResource::Rename(name.to_owned(), done)).await;
        sent.map_err(|_| RenameRefused::Closed)?;
        end.await.unwrap_or(Err(RenameRefused::Closed))
    }

    /// Gives the core a command and waits for its end, at most 30 seconds.
    ///
    /// # Errors
    /// The core's refusal; [`Refusal::TimedOut`] when it took longer; [`Refusal::Busy`] when the
    /// resource is closed. [`Command::Stop`] is refused as busy: use [`Self::close`].
    pub async fn command(&self, command: Command) -> Result<(), Refusal> {
        if command == Command::Stop {
            return Err(Refusal::Busy);
        }
        let run = async {
            let (done, end) = oneshot::channel();
            let sent = self.commands.send(ToResource::Command(command, done)).await;
            sent.map_err(|_| Refusal::Busy)?;
            end.await.unwrap_or(Err(Refusal::Busy))
        };
        tokio::time::timeout(COMMAND_TIMEOUT, run).await.unwrap_or(Err(Refusal::TimedOut))
    }

    /// The journal before its disk, if it has one.
    #[must_use]
    pub const fn journal(&self) -> Option<&JournalHandle> {
        self.journal.as_ref()
    }

    /// To have its disk replaced, if it has one: that behind the journal.
    pub(crate) fn replace(&self) -> Option<&ReplaceHandle> {
        self.replace.as_ref()
    }

    /// The backing disk is about to be replaced: from the end of this call on nobody looks for its
    /// holes.
    pub(crate) async fn forget_holes(&self) {
        let (done, end) = oneshot::channel();
        // A closed resource looks for nothing.
        if self.commands.send(ToResource::ForgetHoles(done)).await.is_ok() {
            let _ = end.await;
        }
    }

    /// Writes of metadata wait from the end of this call on, until [`Self::disk_replaced`]. Whether
    /// it came to that.
    pub(crate) async fn hold_metadata(&self) -> bool {
        let (quiet, end) = oneshot::channel();
        let sent = self.commands.send(ToResource::HoldMetadata(quiet)).await.is_ok();
        sent && tokio::time::timeout(COMMAND_TIMEOUT, end).await.is_ok_and(|end| end.is_ok())
    }

    /// The backing disk was replaced, or it was not, and this is what it is.
    pub(crate) async fn disk_replaced(&self, place: NewPlace) {
        let (done, end) = oneshot::channel();
        let told = ToResource::DiskReplaced(Box::new(place), done);
        // A closed resource has no disk.
        if self.commands.send(told).await.is_ok() {
            let _ = end.await;
        }
    }

    /// Has the layer for bad sectors of its disk do something, however long that takes.
    pub(crate) async fn remap(&self, what: RemapOp) -> RemapAnswer {
        let gone = RemapFailed { error: None, report: RemapReport::default() };
        if let Some(journal) = &self.journal {
            return journal.remap(what).await.unwrap_or(Err(gone));
        }
        let (done, end) = oneshot::channel();
        let sent = self.commands.send(ToResource::Remap(what, done)).await;
        sent.map_err(|_| gone)?;
        end.await.unwrap_or(Err(gone))
    }

    /// What the tables of the spares of its disk say: at most `most` entries, from the number `skip`
    /// on. None when it has no disk, or none with spares.
    pub(crate) async fn remap_entries(&self, skip: usize, most: usize) -> Vec<RemapEntry> {
        if let Some(journal) = &self.journal {
            return journal.remap_entries(skip, most).await.unwrap_or_default();
        }
        let (done, end) = oneshot::channel();
        match self.commands.send(ToResource::RemapEntries { skip, most, done }).await {
            Ok(()) => end.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// The changes of the tables of the spares of its disk.
    pub(crate) fn map_changes(&self) -> &MapChanges {
        &self.map_changes
    }

    /// The layer for checksums of its disk, which may keep none.
    #[must_use]
    pub const fn checksums(&self) -> Option<&ChecksumHandle> {
        self.checksums.as_ref()
    }

    /// How the resource is. States are current; counters are at most 100 ms old: see
    /// [`Self::refresh`].
    #[must_use]
    pub fn snapshot(&self) -> Arc<ResourceView> {
        Arc::clone(&self.view.borrow())
    }

    /// Makes [`Self::snapshot`] current to the last request that was answered. Waits at most a
    /// second; a resource that is busier than that, or closed, keeps what it told last. Whether it
    /// is current.
    pub async fn refresh(&self) -> bool {
        let ask = async {
            let (done, end) = oneshot::channel();
            self.commands.send(ToResource::Refresh(done)).await.is_ok() && end.await.is_ok()
        };
        tokio::time::timeout(REFRESH_TIMEOUT, ask).await.unwrap_or(false)
    }

    /// Reads whole blocks, at most 1 MiB, as a client would: what the disk has no good copy of comes from
    /// wherever there is one, and is stored again.
    ///
    /// # Errors
    /// What a client would be told.
    pub(crate) async fn read(&self, range: ByteRange) -> Result<Bytes, IoFailure> {
        let (done, end) = oneshot::channel();
        let sent = self.commands.send(ToResource::Read(range, done)).await;
        sent.map_err(|_| IoFailure::Stopping)?;
        end.await.unwrap_or(Err(IoFailure::Stopping))
    }

    /// What is known of a range of the disk.
    ///
    /// # Errors
    /// [`IoFailure::Stopping`] when it is closed.
    pub(crate) async fn first_lost(&self, range: ByteRange) -> Result<FirstLost, IoFailure> {
        let (done, end) = oneshot::channel();
        let sent = self.commands.send(ToResource::FirstLost(range, done)).await;
        sent.map_err(|_| IoFailure::Stopping)?;
        end.await.map_err(|_| IoFailure::Stopping)
    }

    /// What its disk has gone through since this was last asked: each error is told once. `None` when
    /// there was no disk, or it is not told within a second.
    pub async fn take_vitals(&self) -> Option<VitalsReport> {
        let ask = async {
            let (done, end) = oneshot::channel();
            self.commands.send(ToResource::Vitals(done)).await.ok()?;
            end.await.ok()
        };
        tokio::time::timeout(REFRESH_TIMEOUT, ask).await.ok().flatten()
    }

    /// For how long the thread of the disk is in a call of the disk that has not returned. While it is,
    /// it answers nothing.
    pub(crate) fn in_call(&self) -> Duration {
        self.in_call.as_ref().map_or(Duration::ZERO, |call| call.elapsed(Instant::now()))
    }

    /// How long the stages of requests took since it was started. `None` when it is not told within a
    /// second.
    pub async fn stage_times(&self) -> Option<StageTimes> {
        let ask = async {
            let (done, end) = oneshot::channel();
            self.commands.send(ToResource::StageTimes(done)).await.ok()?;
            end.await.ok()
        };
        tokio::time::timeout(REFRESH_TIMEOUT, ask).await.ok().flatten()
    }

    /// Tells of every change of [`Self::snapshot`]. Ends when the resource is closed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<ResourceView>> {
        self.view.clone()
    }

    /// What the core has to say to people, from now on. Who reads too slowly misses old ones.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// The peers to which a link is wanted and none stands. The control plane keeps dialling those
    /// in the set, with pauses, and hands in what it gets by [`Self::add_link`]. A peer whose link
    /// is lost comes back into the set.
    #[must_use]
    pub fn wanted_links(&self) -> watch::Receiver<PeerSet> {
        self.wanted.clone()
    }

    /// Says what the peers are called: the export has a metadata context for each that has a disk.
    /// Waits for a place in the queue.
    pub async fn name_peers(&self, names: BTreeMap<NodeId, String>) {
        // A closed resource has no exports.
        let _ = self.commands.send(ToResource::PeerNames(names)).await;
    }

    /// Hands in a link: an authenticated stream to `peer` that is about this resource, with nothing
    /// of the link's own protocol read or written yet.
    ///
    /// When both sides dial at once, both keep the link that the node with the lower number
    /// dialled. A link that is not needed is closed, and so is every link to a closed resource.
    pub fn add_link(&self, peer: NodeId, origin: LinkOrigin, stream: Box<dyn LinkStream>) {
        // Full only when somebody floods us with links; the stream is dropped and dialled again.
        let _ = self.commands.try_send(ToResource::Link(peer, origin, stream));
    }

    /// Ends all NBD connections to the resource: requests under way are answered, new ones are
    /// refused. Does not wait for their end. A demotion does it by itself when it is done.
    pub async fn end_connections(&self) {
        // A closed resource has no connections.
        let _ = self.commands.send(ToResource::EndConnections).await;
    }

    /// Stops the resource in good order and closes its disk, at most 30 seconds.
    ///
    /// # Errors
    /// [`CloseError`] when not all of that could be done. The resource is gone for other callers
    /// in any case.
    pub async fn close(self) -> Result<(), CloseError> {
        let run = async {
            let (done, end) = oneshot::channel();
            let sent = self.commands.send(ToResource::Close(done)).await;
            sent.map_err(|_| CloseError::Closed)?;
            end.await.unwrap_or(Err(CloseError::Closed))
        };
        tokio::time::timeout(CLOSE_TIMEOUT, run).await.unwrap_or(Err(CloseError::TimedOut))
    }
}

impl std::fmt::Debug for ResourceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceHandle").field("name", &self.name()).finish_non_exhaustive()
    }
}
