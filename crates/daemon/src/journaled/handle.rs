//! The journal of a resource, for those who work with it beside the disk's clients: the shard that
//! switches its mode, the log engine that ships it, and the commands that look at it.

use super::inbox::{Inbox, Order, Work};
use super::worker::Worker;
use super::{JournalView, Mode};
use crate::spares::RemapAnswer;
use bytes::Bytes;
use holdfast_format::journal::{Cursors, PeerSwitches, SegmentHeader, SegmentLink, Switches};
use holdfast_journal::driver::LogError;
use holdfast_journal::{CopyError, CutPlan, RangeSet, RecordsError};
use holdfast_store::{DiskOp, RemapEntry, RemapOp};
use holdfast_units::{ByteRange, GenerationId, HybridTime, LogPosition, NodeId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot, watch};

/// Calls that wait for the thread at a time; more wait for a place.
pub(super) const CALLS: usize = 64;

/// Why a call on a journal was not done.
#[derive(Debug, thiserror::Error)]
pub enum JournalCallError {
    /// The disk of the resource is closed.
    #[error("the journal is closed")]
    Closed,
    /// Files of the journal, or the disk, or what is asked for is not there.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came of another node's journal does not fit here.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The journal is in a mode in which that cannot be done.
    #[error("the journal is {}, which does not allow it", .0.as_str())]
    Mode(Mode),
}

/// The handle of the thread that owns journal and disk. Clones are the same journal. All calls go
/// through one bounded queue and are carried out in order, between those of the disk's clients.
#[derive(Clone)]
pub struct JournalHandle {
    pub(super) inbox: Arc<Inbox>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) view: watch::Receiver<JournalView>,
}

/// The ranges that each peer does not get when the journal is cut.
pub type LostRanges = BTreeMap<NodeId, RangeSet>;

type Answer<T> = oneshot::Sender<Result<T, JournalCallError>>;

impl JournalHandle {
    /// How it stands, as of a moment ago.
    #[must_use]
    pub fn view(&self) -> JournalView {
        self.view.borrow().clone()
    }

    /// How it stands now.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn status(&self) -> Result<JournalView, JournalCallError> {
        self.look(|worker| {
            worker.publish(true);
            Ok(worker.view.borrow().clone())
        })
        .await
    }

    /// Tells whenever [`Self::view`] changes: among others, whenever more is durable. It ends when
    /// the disk is closed.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<JournalView> {
        self.view.clone()
    }

    /// The chain of what is durable here, oldest segment first: what peers are told.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn links(&self) -> Result<Vec<SegmentLink>, JournalCallError> {
        self.look(|worker| Ok(worker.log.journal().links())).await
    }

    /// The segments, oldest first, with the bytes of their frames that are durable.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn segments(&self) -> Result<Vec<(SegmentHeader, u64)>, JournalCallError> {
        self.look(|worker| Ok(worker.log.journal().durable_segments())).await
    }

    /// The chain of what is durable; `None` when the disk was written to past the journal, so that it
    /// does not say what is on it.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn chain(&self) -> Result<Option<Vec<SegmentLink>>, JournalCallError> {
        self.look(|worker| {
            let journal = worker.log.journal();
            let whole = matches!(worker.mode, Mode::Lead | Mode::Direct | Mode::Draining);
            let says = whole && !journal.switches().bypassed && !journal.begins_anew();
            Ok(says.then(|| journal.links()).filter(|links| !links.is_empty()))
        })
        .await
    }

    /// As [`Self::segments`], of the history that this node appends to: none when that begins with
    /// the next write.
    ///
    /// # Errors
    /// [`JournalCallError::Mode`] when this node does not append.
    pub async fn led_segments(&self) -> Result<Vec<(SegmentHeader, u64)>, JournalCallError> {
        self.look(|worker| match worker.mode {
            Mode::Lead if worker.log.journal().begins_anew() => Ok(Vec::new()),
            Mode::Lead => Ok(worker.log.journal().durable_segments()),
            mode => Err(JournalCallError::Mode(mode)),
        })
        .await
    }

    /// Bytes of a segment's frames from a position on, at most `max`: only what is durable. Empty
    /// at the end of what is durable.
    ///
    /// # Errors
    /// [`JournalCallError::Io`] with `NotFound` when the segment is not kept any more.
    pub async fn fetch(
        &self,
        segment: u64,
        from: LogPosition,
        max: usize,
    ) -> Result<Bytes, JournalCallError> {
        self.look(move |worker| Ok(worker.log.fetch(segment, from, max)?)).await
    }

    /// The position to replay to, exclusively, for the state of a time, looking from `from` on.
    ///
    /// # Errors
    /// When the records cannot be read, or are not kept any more.
    pub async fn position_after(
        &self,
        from: LogPosition,
        time: HybridTime,
    ) -> Result<LogPosition, JournalCallError> {
        self.look(move |worker| {
            worker.log.position_after(from, time).map_err(|e| io::Error::other(e).into())
        })
        .await
    }

    /// The cursors as they are now: how far everybody is, and the switches.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn cursors(&self) -> Result<Cursors, JournalCallError> {
        self.look(|worker| Ok(worker.log.journal().cursors())).await
    }

    /// Turns the switches of this node, durably.
    ///
    /// # Errors
    /// When they could not be stored.
    pub async fn set_switches(
        &self,
        fetch_paused: bool,
        replay_paused: bool,
    ) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            let bypassed = worker.log.journal().switches().bypassed;
            let switches = Switches { fetch_paused, replay_paused, bypassed };
            worker.log.journal_mut().set_switches(switches);
            Ok(worker.log.store_cursors()?)
        })
        .await
    }

    /// Says, durably, whether the journal is kept for a peer, and whether that has one of its own.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn set_peer(
        &self,
        peer: NodeId,
        switches: PeerSwitches,
    ) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            worker.log.journal_mut().set_peer(peer, switches);
            Ok(worker.log.store_cursors()?)
        })
        .await
    }

    /// The journal is not kept for a peer any more, durably.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn forget_peer(&self, peer: NodeId) -> Result<(), JournalCallError> {
        self.set_peer(peer, PeerSwitches::default()).await
    }

    /// A peer says how far it is. Cursors only go forward, and never past what is durable here;
    /// they become durable with the next cursors that are stored.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn peer_reached(
        &self,
        peer: NodeId,
        fetched: LogPosition,
        replayed: LogPosition,
    ) -> Result<(), JournalCallError> {
        self.look(move |worker| {
            worker.log.journal_mut().peer_reached(peer, fetched, replayed);
            worker.make_room();
            Ok(())
        })
        .await
    }

    /// A peer follows again from this position on, durably: the journal is kept for it from there.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn peer_restarts(
        &self,
        peer: NodeId,
        position: LogPosition,
    ) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            worker.log.journal_mut().peer_restarts(peer, position);
            Ok(worker.log.store_cursors()?)
        })
        .await
    }

    /// What is to be cut so that the journal fits its budget, and the ranges that each loser does
    /// not get: these must be durable in its bitmap before [`Self::cut`]. `None` when nothing is to
    /// be cut. [`JournalView::cut_wanted`] says when to ask. Where records cannot be read, the losers
    /// do not get anything of the whole disk, which may be longer than the resource.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub async fn plan_cut(&self) -> Result<Option<(CutPlan, LostRanges)>, JournalCallError> {
        self.look(Worker::plan_cut).await
    }

    /// Cuts as planned, after the ranges were made durable.
    ///
    /// # Errors
    /// When the segments could not be given up.
    pub async fn cut(&self, plan: CutPlan) -> Result<(), JournalCallError> {
        self.ask(move |worker| {
            worker.log.journal_mut().cut(&plan);
            worker.figures.cuts += u64::from(!plan.losers.is_empty());
            worker.recycle();
            Ok(())
        })
        .await
    }

    /// Reads a range as a client would: what is newer in the journal from there, the rest from the
    /// disk. The range is whole blocks, at most 1 MiB.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, range: ByteRange) -> Result<Bytes, JournalCallError> {
        self.look_for(move |worker, done| worker.read_for(range, done)).await
    }

    /// Makes everything durable that was completed; the position behind it.
    ///
    /// # Errors
    /// When the journal has failed.
    pub async fn flush(&self) -> Result<LogPosition, JournalCallError> {
        self.ask(Worker::flush_journal).await
    }

    /// That every write to this range that was submitted before is a record, or done: none waits for room.
    ///
    /// # Errors
    /// [`JournalCallError::Io`] with `WouldBlock` when some wait.
    pub async fn need_none_waiting(&self, range: ByteRange) -> Result<(), JournalCallError> {
        self.ask(move |worker| worker.need_none_waiting(range)).await
    }

    /// From now on this node is Primary: writes become records, with this generation in the headers
    /// of new segments. Waits until what another mode left is done with. When the journal has
    /// failed the disk works without.
    ///
    /// # Errors
    /// When the disk or the journal cannot be used.
    pub async fn lead(&self, generation: GenerationId) -> Result<(), JournalCallError> {
        self.start(move |worker, done| worker.lead(generation, false, done)).await
    }

    /// As [`Self::lead`], for a disk that misses something which others wrote: what the journal holds
    /// is not what comes before its next record, so that begins another history. Nothing changes for
    /// a node that leads already.
    ///
    /// # Errors
    /// As [`Self::lead`].
    pub async fn lead_anew(&self, generation: GenerationId) -> Result<(), JournalCallError> {
        self.start(move |worker, done| worker.lead(generation, true, done)).await
    }

    /// From now on writes go to the disk as they are. Answers when everything is written back, the
    /// disk flushed, and the cursors are stored; writes wait until then.
    ///
    /// # Errors
    /// When the disk or the journal failed before that.
    pub async fn settle(&self) -> Result<(), JournalCallError> {
        self.start(Worker::settle).await
    }

    /// From now on the journal takes copies of another node's, and the disk is written to by
    /// [`Self::replay`] and [`Self::fill`]. Settles first.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub async fn follow(&self) -> Result<(), JournalCallError> {
        self.settle().await?;
        self.ask(Worker::follow).await
    }

    /// Gives up everything that the journal holds, so that the copy of another node's can begin
    /// anywhere. Only while it follows.
    ///
    /// # Errors
    /// When the files cannot be removed.
    pub async fn clear(&self) -> Result<(), JournalCallError> {
        self.ask(Worker::clear).await
    }

    /// Takes a segment of another node, and bytes of its frames; how many bytes were taken. What
    /// was taken is durable after [`Self::flush`].
    ///
    /// # Errors
    /// [`JournalCallError::Copy`] when they are not what continues this journal.
    pub async fn copy(
        &self,
        header: SegmentHeader,
        frames: Bytes,
    ) -> Result<usize, JournalCallError> {
        self.ask(move |worker| worker.copy(&header, &frames)).await
    }

    /// Replays durable records onto the disk, in order and one after the other, from where replay
    /// has come to up to `to` (exclusively), and about `max` bytes at most; then flushes the disk.
    /// The position that it has come to, durably on the disk. Only while it follows.
    ///
    /// # Errors
    /// When records cannot be read, or the disk fails.
    pub async fn replay(&self, to: LogPosition, max: u64) -> Result<LogPosition, JournalCallError> {
        self.start(move |worker, done| worker.replay(to, max, done)).await
    }

    /// Does one operation on the disk past the journal, while it follows: what filling writes.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn fill(&self, op: DiskOp) -> Result<(), JournalCallError> {
        self.start(move |worker, done| worker.fill(op, done)).await
    }

    /// Begins a new segment with the next record.
    ///
    /// # Errors
    /// When this node does not lead.
    pub async fn rotate(&self) -> Result<(), JournalCallError> {
        self.ask(Worker::rotate).await
    }

    /// What is written behind this call is of another generation of the data: where records are appended,
    /// they go into segments of their own.
    pub fn begin_generation(&self, generation: GenerationId) {
        // As rare as generations are, which are written to the metadata: no permit bounds them.
        self.inbox.push(Order::Call(Box::new(move |worker| worker.begin_generation(generation))));
    }

    /// Makes everything durable that was completed, and begins a segment if the last one has
    /// records; its number, and where it begins.
    ///
    /// # Errors
    /// When this node does not lead, or the journal has failed or no room.
    pub async fn begin_segment(&self) -> Result<(u64, LogPosition), JournalCallError> {
        self.ask(Worker::begin_segment).await
    }

    /// What the durable records from `from` to `to` (exclusively) change; `None` when they are not
    /// kept any more.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn changed_between(
        &self,
        from: LogPosition,
        to: LogPosition,
    ) -> Result<Option<RangeSet>, JournalCallError> {
        self.look(move |worker| match worker.log.changed_between(from, to) {
            Ok(changed) => Ok(Some(changed)),
            Err(LogError::Records(RecordsError::Gone { .. })) => Ok(None),
            Err(error) => Err(io::Error::other(error).into()),
        })
        .await
    }

    /// Gives up all segments that nobody needs any more; how many bytes of files that were.
    ///
    /// # Errors
    /// When they could not be given up.
    pub async fn trim(&self) -> Result<u64, JournalCallError> {
        self.start(Worker::trim).await
    }

    /// Has the layer for bad sectors of the disk do something, however long that takes.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub(crate) async fn remap(&self, what: RemapOp) -> Result<RemapAnswer, JournalCallError> {
        self.start(move |worker, done| worker.remap(what, done)).await
    }

    /// What the tables of the spares of the disk say.
    ///
    /// # Errors
    /// [`JournalCallError::Closed`].
    pub(crate) async fn remap_entries(
        &self,
        skip: usize,
        most: usize,
    ) -> Result<Vec<RemapEntry>, JournalCallError> {
        self.ask(move |worker| Ok(worker.disk.remap_entries().skip(skip).take(most).collect()))
            .await
    }

    /// The disk has grown. Does not wait: it is done before what is given to the disk later.
    pub(crate) fn grown_to(&self, size: u64) {
        self.inbox.push(Order::Call(Box::new(move |worker| worker.grown_to(size))));
    }

    /// Ends the thread: everything is written back, flushed and stored as far as that can be done
    /// in this time. What is not is found in the journal when it is opened. When it has been ended
    /// already, that is waited for.
    pub(crate) async fn stop(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.inbox.push(Order::Call(Box::new(move |worker| worker.end_at(deadline))));
        let mut view = self.view.clone();
        while view.changed().await.is_ok() {}
    }

    pub(super) async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Worker) -> Result<T, JournalCallError> + Send + 'static,
    ) -> Result<T, JournalCallError> {
        self.start(|worker, done| {
            // Who asked may be gone.
            let _ = done.send(call(worker));
        })
        .await
    }

    /// As [`Self::ask`], for what operations may overtake.
    async fn look<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Worker) -> Result<T, JournalCallError> + Send + 'static,
    ) -> Result<T, JournalCallError> {
        self.look_for(|worker, done| {
            // Who asked may be gone.
            let _ = done.send(call(worker));
        })
        .await
    }

    /// As [`Self::look`], answered later.
    pub(super) async fn look_for<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Worker, Answer<T>) + Send + 'static,
    ) -> Result<T, JournalCallError> {
        self.put(Order::Look, call).await
    }

    async fn start<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Worker, Answer<T>) + Send + 'static,
    ) -> Result<T, JournalCallError> {
        self.put(Order::Call, call).await
    }

    async fn put<T: Send + 'static>(
        &self,
        order: fn(Work) -> Order,
        call: impl FnOnce(&mut Worker, Answer<T>) + Send + 'static,
    ) -> Result<T, JournalCallError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| JournalCallError::Closed)?;
        let (done, end) = oneshot::channel();
        self.inbox.push(order(Box::new(move |worker| {
            drop(permit);
            call(worker, done);
        })));
        end.await.unwrap_or(Err(JournalCallError::Closed))
    }
}

impl std::fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalHandle").field("view", &*self.view.borrow()).finish_non_exhaustive()
    }
}
