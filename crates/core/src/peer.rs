//! What is known of a peer, and what a connection to it is at.

use crate::engine::Core;
use crate::event::{LinkId, Options, PeerConfig};
use crate::kept::Unsettled;
use crate::replay::{CaughtUp, Feed, Trail};
use crate::sync::{Barrier, Resync};
use holdfast_format::SparseBitmap;
use holdfast_units::{
    ByteRange, ConnectionState, DiskState, GenerationId, Millis, NodeId, ReplicationState, Role,
};
use holdfast_wire::{Message, StateReport, SyncPause};
use std::borrow::Cow;
use std::collections::VecDeque;

/// A handshake that has not ended after so long is begun anew.
const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;

/// A peer and the connection to it.
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) diskless: bool,
    pub(crate) connection: ConnectionState,
    pub(crate) link: Option<LinkId>,
    /// The driver was asked to connect.
    pub(crate) asked_to_connect: bool,
    pub(crate) hello: bool,
    /// What it can do, as its Hello said.
    pub(crate) features: u64,
    /// Its size, as it said last.
    pub(crate) size: Option<u64>,
    /// It was told that this is another size than the one here.
    pub(crate) size_told: bool,
    /// The first verdict of this connection was applied.
    pub(crate) up: bool,
    /// The serial of our report that waits for a verdict.
    pub(crate) awaiting: Option<u32>,
    pub(crate) serial: u32,
    pub(crate) handshake_since: Millis,
    /// A report of the peer that waits for a verdict.
    pub(crate) reported: Option<Box<StateReport>>,
    /// A report is to be sent to it.
    pub(crate) report_wanted: bool,
    /// Source: what must have come from the Primary before the target may pull.
    pub(crate) barrier: Option<Barrier>,
    /// Pings sent on this connection, and their answers, in line with all else that it sends.
    pub(crate) pings: u64,
    pub(crate) pongs: u64,
    pub(crate) discard_my_data: bool,
    pub(crate) role: Role,
    pub(crate) disk: DiskState,
    pub(crate) replication: ReplicationState,
    pub(crate) current: GenerationId,
    pub(crate) seen: bool,
    /// This node has been Primary and connected to it since it has its disk: it knows which of its writes
    /// that one has not answered.
    pub(crate) known: bool,
    /// Its disk failed, and it has not had the same data since.
    pub(crate) failed: bool,
    pub(crate) bitmap: SparseBitmap,
    /// Source: what of `bitmap` the target has not stored yet. `bitmap` stays as it is until the
    /// target has everything, because another source may undo what was stored.
    pub(crate) left_to_fill: Option<SparseBitmap>,
    /// What was set in `bitmap` since this node started, if it was filling this peer when it died:
    /// what the peer knows to lack and this are then all that is left to fill.
    pub(crate) noted_since_start: Option<SparseBitmap>,
    /// What it says to lack may not be all that it lacks: it has not taken the bitmap of this fill over,
    /// or missed something since.
    pub(crate) missed_in_fill: bool,
    /// Source: the bitmap was sent to it in this round, and it missed nothing since.
    pub(crate) told_all: bool,
    /// Target: blocks that were stored since the last flush began, and since those before it, with the
    /// number of the flush that makes them durable. On disk their bits are still set.
    pub(crate) stored_now: Option<SparseBitmap>,
    pub(crate) stored_before: VecDeque<(u64, SparseBitmap)>,
    /// How many of its requests are under way on this node's disk.
    pub(crate) requests_here: u32,
    /// Blocks that another Primary wrote, which may not be everywhere, in extents that are no longer hot.
    pub(crate) unsettled_given_up: Option<SparseBitmap>,
    /// Target: the generation of the source.
    pub(crate) fill_goal: GenerationId,
    /// This node has stored blocks of a resync from it that did not end.
    pub(crate) filled_from: bool,
    /// What of `bitmap` was set because its copy was found to differ.
    pub(crate) differing: Option<SparseBitmap>,
    /// It compares its copy with this node's: bytes done, and all, and since when.
    pub(crate) verified: Option<(u64, u64, Millis)>,
    pub(crate) resync: Option<Resync>,
    /// This node gets from it what it most likely has already: that is compared first.
    pub(crate) compares: bool,
    /// What it needs from the journal of this Primary, if that is known and enough.
    pub(crate) trail: Option<Trail>,
    /// It is being caught up from the journal. It gets no writes until that is done.
    pub(crate) feed: Option<Feed>,
    /// This node is being caught up from its journal.
    pub(crate) caught: Option<CaughtUp>,
    /// Source: what the target has asked for and is not being read yet, and how many bytes are.
    pub(crate) wanted: VecDeque<(ByteRange, Option<u64>)>,
    pub(crate) reading: u64,
    /// Counts verdicts and whatever else begins a new resync with this peer: work for an earlier
    /// one that ends late does not count for it.
    pub(crate) round: u64,
    /// The serial of the report that the last verdict answered, which both sides know.
    pub(crate) verdict_serial: u32,
    /// The source's bitmap, or the target's, has come whole in this round.
    pub(crate) bitmap_seen: bool,
    /// The source's generations were sent to the target, which has not taken them over yet.
    pub(crate) generations_sent: bool,
    /// What the source of a resync says that this peer misses.
    pub(crate) account: Option<SparseBitmap>,
    /// Blocks that the Primary wrote here before this source's bitmap had come.
    pub(crate) fresher: Option<SparseBitmap>,
    /// What the peer sends is kept until the superblock of this version is durable here.
    pub(crate) held_until: u64,
    pub(crate) held: VecDeque<Message>,
    /// What came before the verdict that will stand.
    pub(crate) early: VecDeque<Message>,
    /// How much memory both take.
    pub(crate) kept_bytes: usize,
    /// Writes of a Primary that may not be everywhere.
    pub(crate) unsettled: Unsettled,
    /// Blocks of writes that it had not said to be everywhere when it was lost as Primary, and that are
    /// on this disk: with its power it may have lost them itself.
    pub(crate) lost_unsettled: Option<SparseBitmap>,
    /// What it missed while this node was being resynced.
    pub(crate) missed_meanwhile: Option<SparseBitmap>,
    /// The Primary said that it has everything, and no write missed it since.
    pub(crate) vouched: bool,
    /// This node is a Primary without a disk, and the peer lacks what its clients work on and is not being
    /// filled: more of it would only make a mixture of its data.
    pub(crate) left_out: bool,
    /// The resync with it is left to a Primary.
    pub(crate) left_to_primary: bool,
    /// Source: what the target missed since its resync began, or since the generations were sent to it.
    /// It stays to be filled whatever the target acknowledges.
    pub(crate) missed_again: Option<SparseBitmap>,
    /// Source: since its resync began the target missed a write, or another Primary may have come or
    /// gone: it must not end before a new verdict.
    pub(crate) overtaken: bool,
    /// Where it has its resyncs with this node stand still, as it said on this connection.
    pub(crate) pause: SyncPause,
    pub(crate) last_heard: Millis,
    pub(crate) pinged: Option<Millis>,
    pub(crate) pending: u64,
    pub(crate) progress: Millis,
    pub(crate) last_sent_write: Millis,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) resync_sent: u64,
    pub(crate) resync_received: u64,
}

impl Peer {
    pub(crate) fn new(config: &PeerConfig, blocks: u64) -> Self {
        Self {
            node: config.node,
            diskless: config.diskless,
            connection: if config.standalone {
                ConnectionState::StandAlone
            } else {
                ConnectionState::Connecting
            },
            link: None,
            asked_to_connect: false,
            hello: false,
            features: 0,
            size: None,
            size_told: false,
            up: false,
            awaiting: None,
            serial: 0,
            handshake_since: Millis(0),
            reported: None,
            report_wanted: false,
            barrier: None,
            pings: 0,
            pongs: 0,
            discard_my_data: false,
            role: Role::Unknown,
            disk: DiskState::DUnknown,
            replication: ReplicationState::Off,
            current: GenerationId::NONE,
            seen: false,
            bitmap: Core::new_bitmap(blocks),
            left_to_fill: None,
            noted_since_start: None,
            missed_in_fill: false,
            told_all: false,
            requests_here: 0,
            failed: false,
            known: false,
            unsettled_given_up: None,
            stored_now: None,
            stored_before: VecDeque::new(),
            fill_goal: GenerationId::NONE,
            filled_from: false,
            differing: None,
            verified: None,
            resync: None,
            compares: false,
            trail: None,
            feed: None,
            caught: None,
            wanted: VecDeque::new(),
            reading: 0,
            round: 0,
            verdict_serial: 0,
            bitmap_seen: false,
            generations_sent: false,
            account: None,
            fresher: None,
            held_until: 0,
            held: VecDeque::new(),
            early: VecDeque::new(),
            kept_bytes: 0,
            unsettled: Unsettled::default(),
            lost_unsettled: None,
            missed_meanwhile: None,
            vouched: false,
            left_out: false,
            left_to_primary: false,
            missed_again: None,
            overtaken: false,
            pause: SyncPause::No,
            last_heard: Millis(0),
            pinged: None,
            pending: 0,
            progress: Millis(0),
            last_sent_write: Millis(0),
            sent: 0,
            received: 0,
            resync_sent: 0,
            resync_received: 0,
        }
    }

    /// Whether the Primary's writes go to it.
    pub(crate) fn receives(&self) -> bool {
        self.up
            && self.link.is_some()
            && self.disk > DiskState::Failed
            && self.disk != DiskState::DUnknown
            && self.replication != ReplicationState::Off
            && !self.left_out
    }

    /// Whether this node is, or is becoming, target of a resync from it.
    pub(crate) fn is_target(&self) -> bool {
        matches!(self.replication, ReplicationState::WFBitMapT | ReplicationState::SyncTarget)
    }

    /// What it lacks, as far as is known here.
    pub(crate) fn left(&self) -> &SparseBitmap {
        self.left_to_fill.as_ref().unwrap_or(&self.bitmap)
    }

    /// It misses blocks. A member without a disk misses nothing.
    pub(crate) fn set_bits(&mut self, blocks: std::ops::Range<u64>) {
        if self.diskless {
            return;
        }
        for part in [&mut self.left_to_fill, &mut self.noted_since_start].into_iter().flatten() {
            part.set_range(blocks.clone());
            self.missed_in_fill = true;
        }
        self.told_all = false;
        self.bitmap.set_range(blocks);
    }

    /// Target or source of a resync: it says itself that it lacks these blocks of it.
    pub(crate) fn set_own_bits(&mut self, blocks: std::ops::Range<u64>) {
        let (missed, told) = (self.missed_in_fill, self.told_all);
        self.set_bits(blocks);
        (self.missed_in_fill, self.told_all) = (missed, told);
    }

    /// It may miss these blocks too.
    pub(crate) fn add_bits(&mut self, blocks: &SparseBitmap) {
        if self.diskless {
            return;
        }
        for part in [&mut self.left_to_fill, &mut self.noted_since_start].into_iter().flatten() {
            part.or_assign(blocks);
            self.missed_in_fill = true;
        }
        self.told_all = false;
        self.bitmap.or_assign(blocks);
    }

    /// It has stored blocks of its resync from here. How many are new.
    pub(crate) fn stored(&mut self, blocks: std::ops::Range<u64>) -> u64 {
        self.left_to_fill.as_mut().map_or(0, |left| left.clear_range(blocks))
    }

    /// Target: these blocks of it are stored here. How many bits that clears.
    pub(crate) fn got(&mut self, blocks: std::ops::Range<u64>) -> u64 {
        let size = self.bitmap.len();
        let now = self.stored_now.get_or_insert_with(|| SparseBitmap::new(size));
        now.set_range(blocks.clone());
        self.bitmap.clear_range(blocks)
    }

    /// A flush begins: when it is done, all that was stored until now is durable.
    pub(crate) fn flush_begins(&mut self, number: u64) {
        self.stored_before.extend(self.stored_now.take().map(|now| (number, now)));
    }

    /// A flush is done.
    pub(crate) fn flush_ends(&mut self, number: u64) {
        // Flushes may end in any order; each covers what was stored before it began.
        self.stored_before.retain(|(needed, _)| *needed > number);
    }

    /// Should all crash, nothing but the bitmap would say that it may not have these blocks of another
    /// Primary, on a device of so many.
    pub(crate) fn may_lack(&mut self, blocks: std::ops::Range<u64>, size: u64) {
        for page in self.bitmap.page_of(blocks.start)..=self.bitmap.page_of(blocks.end - 1) {
            self.bitmap.mark_dirty(page);
        }
        let given_up = self.unsettled_given_up.get_or_insert_with(|| SparseBitmap::new(size));
        given_up.set_range(blocks);
        self.missed_in_fill |= self.left_to_fill.is_some() || self.noted_since_start.is_some();
        self.told_all = false;
    }

    /// Blocks that count as lacking on disk: they are stored here and not durable yet, or not settled.
    fn volatile(&self) -> impl Iterator<Item = &SparseBitmap> {
        let stored = self.stored_before.iter().map(|(_, blocks)| blocks);
        stored.chain(self.stored_now.as_ref()).chain(self.unsettled_given_up.as_ref())
    }

    /// The bitmap as it may be written: what is not durable yet counts as lacking.
    pub(crate) fn bitmap_on_disk(&self) -> Cow<'_, SparseBitmap> {
        if self.volatile().next().is_none() {
            return Cow::Borrowed(&self.bitmap);
        }
        let mut durable = self.bitmap.clone();
        for blocks in self.volatile() {
            durable.or_assign(blocks);
        }
        Cow::Owned(durable)
    }

    /// The pages that say that a block is lacking only because it is not durable yet are written again.
    pub(crate) fn write_volatile_again(&mut self) {
        let runs: Vec<_> = self.volatile().flat_map(SparseBitmap::runs).collect();
        for run in runs {
            for page in self.bitmap.page_of(run.start)..=self.bitmap.page_of(run.end - 1) {
                self.bitmap.mark_dirty(page);
            }
        }
    }

    /// It has everything. Whether that is news.
    pub(crate) fn clear_bits(&mut self) -> bool {
        self.left_to_fill = None;
        self.stored_now = None;
        self.stored_before.clear();
        self.noted_since_start = None;
        self.differing = None;
        self.bitmap.clear_all() > 0
    }

    /// Whether blocks are copied, or are about to be.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_target() || self.is_fed() || self.feed.is_some() || self.caught.is_some()
    }

    /// Whether it is there, had a disk once, and has none that works.
    pub(crate) fn has_lost_disk(&self) -> bool {
        self.up && !self.diskless && self.seen && self.disk <= DiskState::Failed
    }

    /// Whether this node knows exactly which blocks it lacks from it.
    pub(crate) fn is_syncing_target(&self) -> bool {
        self.replication == ReplicationState::SyncTarget
    }

    /// Whether this node is target and has everything.
    pub(crate) fn is_completing(&self) -> bool {
        self.is_syncing_target() && self.resync.as_ref().is_some_and(Resync::is_completing)
    }

    /// Whether it gets, or is about to get, what it misses from this node.
    pub(crate) fn is_fed(&self) -> bool {
        matches!(self.replication, ReplicationState::WFBitMapS | ReplicationState::SyncSource)
    }

    /// A verdict that is waited for would be on facts that are over.
    pub(crate) fn replace_report(&mut self) {
        if self.awaiting.take().is_some() {
            self.report_wanted = true;
        }
    }

    /// When a sign of life is to be asked for.
    pub(crate) fn ping_at(&self, options: &Options) -> Option<Millis> {
        let idle = self.link.is_some() && self.pinged.is_none();
        idle.then(|| self.last_heard.after(options.ping_interval_ms))
    }

    /// When the connection counts as dead.
    pub(crate) fn dead_at(&self, options: &Options) -> Option<Millis> {
        self.link?;
        let silent = self.pinged.map(|at| at.after(options.ping_timeout_ms));
        let shaking = (!self.up || self.awaiting.is_some() || self.report_wanted)
            .then(|| self.handshake_since.after(HANDSHAKE_TIMEOUT_MS));
        let stuck = (self.pending > 0 && options.ko_count > 0)
            .then(|| self.progress.after(options.request_timeout_ms * options.ko_count));
        [silent, shaking, stuck].into_iter().flatten().min()
    }

    pub(crate) fn deadline(&self, options: &Options) -> Option<Millis> {
        [self.ping_at(options), self.dead_at(options)].into_iter().flatten().min()
    }
}
