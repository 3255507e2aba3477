//! The core's state and its one entry: handle the event, put the invariants back, assert.

use crate::actlog::ActivityLog;
use crate::event::{
    Action, Command, CommandId, Config, DiskOpId, DiskOutcome, Event, IoFailure, LinkId, MetaOpId,
    Notice, Options, PeerConfig, PeerSnapshot, RequestId, ResyncProgress, Snapshot,
};
use crate::generation::{Bump, Gens, NewGeneration};
use crate::handshake::Stand;
use crate::heal::{Checked, Healing};
use crate::hedge::Hedging;
use crate::locks::{Locks, Owner};
use crate::peer::Peer;
use crate::peer_io::PeerWrite;
use crate::persist::Meta;
use crate::requests::{FlushRequest, ReadRequest, Unflushed, WriteRequest};
use crate::roles::{Promise, Promotion, Stopping};
use crate::sync::{ResyncRead, ResyncWrite};
use crate::verify::Surveys;
use bytes::Bytes;
use holdfast_format::{LostBlocks, SparseBitmap};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, GenerationId, LogPosition, MAX_NODES, Millis, NodeId,
    PeerSet, Role,
};
use holdfast_wire::{Message, SyncPause};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};

/// So many stretches of unreadable blocks are listed in a snapshot.
const MOST_SHOWN: usize = 64;

/// What a disk operation was for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DiskJob {
    /// The local part of a client's write.
    Write(usize),
    /// A client's read.
    Read(usize),
    /// A client's read that a peer has answered meanwhile.
    Owed,
    /// The local part of a client's flush.
    Flush(usize),
    /// A peer's write.
    PeerWrite(usize),
    /// A peer's read.
    PeerRead { peer: NodeId, link: LinkId, id: u64 },
    /// A peer's flush.
    PeerFlush { peer: NodeId, link: LinkId, id: u64 },
    /// Read for a resync target.
    ResyncRead(usize),
    /// One run of what a resync source sent.
    ResyncWrite(usize),
    /// Blocks of a resync of which the source has no good copy.
    ResyncLost(usize),
    /// A part of what was healed.
    Heal(usize),
    /// What nobody else has is read again, before it is said to be lost.
    HealCheck(usize),
    /// A part of that, of which the driver had the data.
    HealSalvaged(usize),
    /// A part of that, which the disk gave again.
    HealReread(usize),
    /// A read for a peer that heals.
    HealRead(usize),
    /// Before extents are given up.
    ActivityLogFlush,
    /// Before the progress of a resync is made durable.
    CheckpointFlush,
    /// Before this node says that it has everything.
    CompleteFlush { peer: NodeId, round: u64 },
    /// Before the bitmaps of a new resync are written.
    TargetFlush { peer: NodeId, round: u64 },
    /// Before half copied data are said to be good.
    DecreeFlush,
    /// Before the resource stops.
    StopFlush,
    /// A chunk that a target compares before it is copied.
    CompareRead { peer: NodeId, id: u64, whole: bool },
    /// A chunk of a run that compares.
    VerifyLook { id: u64, whole: bool },
    /// This node's copy of a span, or what is to replace others.
    VerifySpan { id: u64, whole: bool },
    /// This node's copy, for a peer.
    VerifyServe { peer: NodeId, link: LinkId, id: u64, range: ByteRange, locked: bool, whole: bool },
    /// Blocks of this node are replaced.
    VerifyRepair(usize),
}

/// A disk operation under way.
struct DiskOp {
    name: DiskOpId,
    job: DiskJob,
    since: Millis,
    range: ByteRange,
    /// What of it was lost when it began, if it is a read.
    lost: Vec<ByteRange>,
}

/// The replication engine of one resource on one node. See the crate's documentation.
pub struct Core {
    pub(crate) node: NodeId,
    pub(crate) config: Config,
    pub(crate) options: Options,
    pub(crate) now: Millis,
    pub(crate) out: Vec<Action>,
    random: u64,

    pub(crate) role: Role,
    pub(crate) disk: DiskState,
    /// A disk is configured, whether or not it works now.
    pub(crate) diskful: bool,
    pub(crate) gens: Gens,
    /// The machine lost its page cache, and with it writes that were answered and never flushed;
    /// a member that kept them may still fill this node.
    pub(crate) lost_cache: bool,
    pub(crate) crashed_primary: bool,
    pub(crate) following: Option<NodeId>,
    /// The Primary that this node saw when it last settled who copies from whom.
    pub(crate) stood: Stand,
    /// See [`Core::serves`].
    pub(crate) served: GenerationId,
    /// A generation that a Primary began while this node was being filled.
    pub(crate) coming: Option<NewGeneration>,
    pub(crate) outdated: bool,
    /// The disk is being given up, and the superblock is to say that it is behind.
    pub(crate) detaching: bool,
    /// So many commands have this node leave its Primary, and wait until the superblock says that it is
    /// behind, whatever verdicts say until then.
    pub(crate) leaving: u32,
    pub(crate) last_write: u64,
    pub(crate) last_settled_sent: u64,

    pub(crate) meta: Option<Meta>,
    pub(crate) al: Option<ActivityLog>,
    /// The planned transaction of the activity log gives extents up.
    pub(crate) al_evicts: bool,
    pub(crate) locks: Locks,
    pub(crate) runnable: VecDeque<Owner>,
    pub(crate) granted: Vec<Owner>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Peers to which writes are sent.
    pub(crate) receivers: PeerSet,
    /// Members with a disk (this node among them) that writes do not reach.
    pub(crate) missing: PeerSet,

    pub(crate) writes: Slab<WriteRequest>,
    pub(crate) by_seq: BTreeMap<u64, usize>,
    pub(crate) reads: Slab<ReadRequest>,
    pub(crate) flushes: Slab<FlushRequest>,
    pub(crate) peer_writes: Slab<PeerWrite>,
    pub(crate) resync_reads: Slab<ResyncRead>,
    pub(crate) resync_writes: Slab<ResyncWrite>,
    /// How often blocks of a resync have come.
    pub(crate) resync_writes_begun: u64,
    pub(crate) healing: Healing,
    pub(crate) hedging: Hedging,
    disk_ops: Slab<DiskOp>,
    /// A flush before the progress of a resync is made durable is under way: one at a time.
    pub(crate) checkpointing: bool,
    /// Numbers of flushes of the local disk: issued, and done up to.
    pub(crate) flush_issued: u64,
    pub(crate) flush_done: u64,
    flush_numbers: BTreeMap<DiskOpId, u64>,
    /// Flushes that have ended before earlier ones did.
    flushes_early: Vec<DiskOpId>,
    disk_serial: u64,

    /// Members whose loss asks for a new generation before the next write completes.
    pub(crate) bump_for: PeerSet,
    /// A write that is done everywhere waited for a new generation when it was last looked at.
    pub(crate) writes_held: bool,
    /// Flushes wait for a new generation.
    pub(crate) flushes_wait: bool,
    pub(crate) unflushed: Unflushed,
    pub(crate) bump: Option<Bump>,
    /// A generation that this Primary without good data gave up, because nobody with good data had it: who
    /// is being filled may have it yet.
    pub(crate) void_bump: GenerationId,
    /// Writes that wait for a new generation before they start.
    pub(crate) want_generation: VecDeque<usize>,
    pub(crate) promotion: Option<Promotion>,
    pub(crate) promise: Option<Promise>,
    /// Peers that want to be promoted and have no answer yet.
    pub(crate) prepares: Vec<(NodeId, u64)>,
    pub(crate) demotion: Option<CommandId>,
    pub(crate) stopping: Option<Stopping>,
    pub(crate) io_errors: u64,
    /// The position of the last write of this Primary in the journal.
    pub(crate) logged: Option<LogPosition>,
    pub(crate) journal_reads: u64,
    /// The peer for whom new writes wait, so that it gets the rest of the journal, and since when.
    pub(crate) switching: Option<(NodeId, Millis)>,
    /// Primaries that know how this node's disk has changed since both had the same.
    pub(crate) untouched: PeerSet,
    /// See [`Snapshot::size`].
    pub(crate) client_size: u64,
    pub(crate) surveys: Surveys,
    /// Where resyncs of this node stand still.
    pub(crate) pause: SyncPause,
    #[cfg(feature = "planted-bugs")]
    pub(crate) planted: Option<crate::PlantedBug>,
}

/// Names of disk operations leave the two highest bits to the driver, for operations of its own.
const DISK_SERIALS: u64 = 0x3FFF_FFFF;

impl Core {
    /// A node that is Secondary, not connected, and Diskless until [`Event::Attach`] comes. Links
    /// are asked for by the first [`Event::Tick`] or [`Event::Attach`].
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut core = Self {
            node: config.node,
            options: config.options.clone(),
            now: Millis(0),
            out: Vec::new(),
            random: config.seed,
            role: Role::Secondary,
            disk: DiskState::Diskless,
            diskful: false,
            gens: Gens::default(),
            lost_cache: false,
            crashed_primary: false,
            following: None,
            stood: Stand::default(),
            served: GenerationId::NONE,
            coming: None,
            outdated: false,
            detaching: false,
            leaving: 0,
            last_write: 0,
            last_settled_sent: 0,
            meta: None,
            al: None,
            al_evicts: false,
            locks: Locks::default(),
            runnable: VecDeque::new(),
            granted: Vec::new(),
            peers: BTreeMap::new(),
            receivers: PeerSet::EMPTY,
            missing: PeerSet::EMPTY,
            writes: Slab::new(),
            by_seq: BTreeMap::new(),
            reads: Slab::new(),
            flushes: Slab::new(),
            peer_writes: Slab::new(),
            resync_reads: Slab::new(),
            resync_writes: Slab::new(),
            resync_writes_begun: 0,
            healing: Healing::new(config.size / BLOCK_SIZE),
            hedging: Hedging::new(),
            disk_ops: Slab::new(),
            checkpointing: false,
            flush_issued: 0,
            flush_done: 0,
            flush_numbers: BTreeMap::new(),
            flushes_early: Vec::new(),
            disk_serial: 0,
            bump_for: PeerSet::EMPTY,
            writes_held: false,
            flushes_wait: false,
            unflushed: Unflushed::default(),
            bump: None,
            void_bump: GenerationId::NONE,
            want_generation: VecDeque::new(),
            promotion: None,
            promise: None,
            prepares: Vec::new(),
            demotion: None,
            stopping: None,
            io_errors: 0,
            logged: None,
            journal_reads: 0,
            switching: None,
            untouched: PeerSet::EMPTY,
            client_size: config.size,
            surveys: Surveys::default(),
            pause: config.sync_pause,
            #[cfg(feature = "planted-bugs")]
            planted: None,
            config,
        };
        for peer in core.config.peers.clone() {
            core.insert_peer(&peer);
        }
        core
    }

    pub(crate) fn insert_peer(&mut self, peer: &PeerConfig) {
        if peer.node != self.node {
            self.peers.insert(peer.node, Peer::new(peer, self.blocks()));
        }
    }

    /// Takes one event at the time `now` and appends what has to be done.
    ///
    /// # Panics
    /// When an invariant of the core itself is broken: a bug, never the fault of a peer or client.
    pub fn on(&mut self, now: Millis, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        std::mem::swap(&mut self.out, out);
        self.handle(event);
        self.restore();
        self.check();
        std::mem::swap(&mut self.out, out);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Attach(image) => self.attach(*image),
            Event::Request(id, kind) => self.request(id, kind),
            Event::DiskDone(op, result) => self.disk_done(op, result),
            Event::MetaDone(op, result) => self.meta_done(op, result),
            Event::PeerUp(peer, link) => self.peer_up(peer, link),
            Event::PeerMessage(peer, link, message) => self.peer_message(peer, link, message),
            Event::PeerDown(peer, link) => self.peer_down(peer, link),
            Event::Command(id, command) => self.command(id, command),
            Event::JournalRead(id, found) => self.journal_read(id, found),
            Event::Tick => {}
        }
    }

    /// Puts back what must always hold. Each step may make another one necessary; every round
    /// starts something that only a later event can end, so the loop ends.
    fn restore(&mut self) {
        self.connect_wanted();
        self.tick();
        loop {
            let before = self.out.len();
            self.run_granted();
            self.start_bump_if_needed();
            self.follow_stand();
            self.follow_sizes();
            self.send_reports();
            self.answer_states();
            self.deliver_held();
            self.pump_heals();
            self.pump_resyncs();
            self.pump_surveys();
            self.finish_role_changes();
            // Behind everything that can want an extent: nothing may wait for the next event.
            self.plan_activity_log();
            self.flush_superblock();
            if self.runnable.is_empty() && self.out.len() == before {
                break;
            }
        }
    }

    fn run_granted(&mut self) {
        while let Some(owner) = self.runnable.pop_front() {
            match owner {
                Owner::Write(key) => self.advance_write(key),
                Owner::PeerWrite(key) => self.advance_peer_write(key),
                Owner::ResyncWrite(key) => self.start_resync_write(key),
                Owner::ResyncRead(key) => self.start_resync_read(key),
                Owner::Heal(key) => self.advance_heal(key),
                Owner::HealRead(key) => self.start_heal_read(key),
                Owner::Span(id) => self.span_locked(id),
                Owner::Repair(key) => self.advance_repair(key),
            }
        }
    }

    fn check(&self) {
        debug_assert!(!self.receivers.contains(self.node), "a node does not send to itself");
        debug_assert!(
            self.disk != DiskState::UpToDate || self.meta.is_some(),
            "UpToDate without metadata"
        );
    }

    /// The latest time at which the core wants an [`Event::Tick`] if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        let links = self.peers.values().filter_map(|p| p.deadline(&self.options));
        let roles = self.role_deadline();
        let settle = self.settle_deadline();
        let rates = self.resync_deadline();
        let feeds = self.feed_deadline();
        let heals = self.heal_deadline();
        let surveys = self.survey_deadline();
        let hedges = self.hedge_deadline();
        let all = links.chain(roles).chain(settle).chain(rates).chain(feeds);
        all.chain(heals).chain(surveys).chain(hedges).min()
    }

    /// The generation of the data here.
    #[must_use]
    pub const fn generation(&self) -> GenerationId {
        self.gens.current
    }

    /// All there is to see.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            role: self.role,
            disk: self.disk,
            size: self.client_size,
            own_size: self.config.size,
            generation: self.gens.current,
            history: self.gens.history,
            promotable: self.promote_refusal(false).is_none(),
            peers: self.peers.values().map(|p| self.peer_snapshot(p)).collect(),
            hot_extents: self.al.as_ref().map_or(0, ActivityLog::len),
            al_writes: self.al.as_ref().map_or(0, |al| al.transactions),
            in_flight: self.in_flight(),
            missing: self.missing,
            io_errors: self.io_errors,
            healed_blocks: self.healing.healed,
            unreadable_blocks: self.healing.list.count(),
            unreadable: self.healing.first_listed(MOST_SHOWN),
            healing_blocks: self.healing.pending(),
            hedged_reads: self.hedging.asked,
            hedged_reads_won: self.hedging.won,
            surveys: self.surveys.progress(),
        }
    }

    /// The blocks that a peer lacks, as far as is known here. `None` for nodes that are no peers,
    /// and for those without a disk.
    #[must_use]
    pub fn out_of_sync(&self, peer: NodeId) -> Option<&SparseBitmap> {
        self.peers.get(&peer).filter(|peer| !peer.diskless).map(Peer::left)
    }

    /// The blocks of which there is no good copy on the local disk: whoever reads them gets them from a
    /// peer, or an error, or what the disk gives of those that it could not read before. They are healed
    /// when a peer comes that has them, or written.
    #[must_use]
    pub fn unreadable(&self) -> &LostBlocks {
        &self.healing.list
    }

    fn peer_snapshot(&self, p: &Peer) -> PeerSnapshot {
        PeerSnapshot {
            node: p.node,
            connection: p.connection,
            role: p.role,
            disk: p.disk,
            replication: self.replication_shown(p),
            behind: p.feed.is_some() || p.caught.is_some(),
            out_of_sync: p.left().count() * BLOCK_SIZE,
            pending: p.pending,
            sent: p.sent,
            received: p.received,
            resync_sent: p.resync_sent,
            resync_received: p.resync_received,
            resync: self.resync_progress(p),
            stands_still: self.stands_still(p),
            is_source: Self::is_resync_target(p),
            verify: self.verify_of(p).map(|(done, total, started)| ResyncProgress {
                done,
                total,
                carried: 0,
                started,
            }),
            diskless: p.diskless,
            size: p.size,
        }
    }

    pub(crate) fn in_flight(&self) -> u64 {
        (self.writes.len() + self.reads.len() + self.flushes.len()) as u64
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.config.size / BLOCK_SIZE
    }

    pub(crate) fn in_device(&self, range: ByteRange) -> bool {
        range.is_aligned() && !range.is_empty() && range.end() <= self.config.size
    }

    /// Whether clients may use the range.
    pub(crate) fn is_for_clients(&self, range: ByteRange) -> bool {
        self.in_device(range) && range.end() <= self.client_size
    }

    /// A number that is unique in the world, never 0 and never a reserved generation.
    pub(crate) fn unique(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let number = z ^ (z >> 31);
        if number <= GenerationId::JUST_CREATED.0 { self.unique() } else { number }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.out.push(action);
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.out.push(Action::Notice(notice));
    }

    pub(crate) fn changed(&mut self) {
        self.out.push(Action::StateChanged);
    }

    pub(crate) fn complete(&mut self, id: RequestId, result: Result<Option<Bytes>, IoFailure>) {
        self.out.push(Action::Complete(id, result));
    }

    /// Sends to a peer if it is connected.
    pub(crate) fn send(&mut self, peer: NodeId, message: Message) {
        if let Some(link) = self.peers.get(&peer).and_then(|p| p.link) {
            self.out.push(Action::Send(peer, link, message));
        }
    }

    pub(crate) fn has_disk(&self) -> bool {
        self.disk > DiskState::Failed
    }

    pub(crate) fn disk_op(&mut self, job: DiskJob, range: ByteRange) -> DiskOpId {
        let lost = match job {
            DiskJob::Read(_)
            | DiskJob::PeerRead { .. }
            | DiskJob::VerifyLook { .. }
            | DiskJob::VerifySpan { .. }
            | DiskJob::VerifyServe { .. } => self.lost_in(range),
            _ => Vec::new(),
        };
        self.disk_serial = (self.disk_serial + 1) & DISK_SERIALS;
        // The serial makes a stale completion harmless.
        let name = DiskOpId(self.disk_serial << 32 | self.disk_ops.vacant_key() as u64);
        self.disk_ops.insert(DiskOp { name, job, since: self.now, range, lost });
        name
    }

    /// What the disk still has to do.
    fn disk_op_named(&mut self, op: DiskOpId) -> Option<(usize, &mut DiskOp)> {
        let key = usize::try_from(op.0 & 0xFFFF_FFFF).unwrap_or(usize::MAX);
        self.disk_ops.get_mut(key).filter(|found| found.name == op).map(|found| (key, found))
    }

    /// Nobody waits for what a read of the disk gives.
    pub(crate) fn forget_reader(&mut self, op: DiskOpId) {
        if let Some((_, found)) = self.disk_op_named(op) {
            found.job = DiskJob::Owed;
        }
    }

    /// Whether the disk, or its metadata, owe an answer.
    pub(crate) fn is_disk_busy(&self) -> bool {
        !self.disk_ops.is_empty() || self.oldest_meta_write().is_some()
    }

    /// Since when the oldest operation of the disk or its metadata is under way.
    pub(crate) fn oldest_disk_op(&self) -> Option<Millis> {
        let ops = self.disk_ops.iter().map(|(_, found)| found.since);
        ops.chain(self.oldest_meta_write()).min()
    }

    /// No operation of the disk is waited for any more; what they were for, in their order.
    pub(crate) fn abandon_disk_ops(&mut self) -> Vec<(DiskJob, ByteRange)> {
        let mut ops: Vec<DiskOp> = self.disk_ops.drain().collect();
        ops.sort_unstable_by_key(|found| (found.since, found.name));
        self.flush_numbers.clear();
        self.flushes_early.clear();
        ops.into_iter().map(|found| (found.job, found.range)).collect()
    }

    pub(crate) fn disk_read(&mut self, job: DiskJob, range: ByteRange, holes: bool) -> DiskOpId {
        let op = self.disk_op(job, range);
        self.act(Action::DiskRead { op, range, holes });
        op
    }

    pub(crate) fn disk_write(
        &mut self,
        job: DiskJob,
        range: ByteRange,
        data: Option<Bytes>,
        fua: bool,
    ) {
        // That blocks are not lost any more is made durable when it is done: so the data must be.
        let fua = fua || self.healing.is_lost(range);
        let op = self.disk_op(job, range);
        self.act(match data {
            Some(data) => Action::DiskWrite { op, range, data, fua },
            None => Action::DiskZeroes { op, range, fua },
        });
    }

    pub(crate) fn disk_flush(&mut self, job: DiskJob) {
        let op = self.disk_op(job, ByteRange::default());
        self.flush_issued += 1;
        self.flush_numbers.insert(op, self.flush_issued);
        let number = self.flush_issued;
        self.peers.values_mut().for_each(|p| p.flush_begins(number));
        self.act(Action::DiskFlush { op });
    }

    /// An operation of the disk has ended. A flush counts when all earlier ones have ended well: the
    /// kernel tells of data that it could not write once only, and drops them, so one that comes behind
    /// that finds nothing left to write.
    fn disk_done(&mut self, op: DiskOpId, result: Result<DiskOutcome, IoFailure>) {
        let Some(number) = self.flush_numbers.get(&op).copied() else {
            return self.disk_op_done(op, result);
        };
        let is_first = self.flush_numbers.values().all(|other| number <= *other);
        if result.is_ok() && !is_first {
            self.flushes_early.push(op);
            return;
        }
        let ended = result.clone();
        self.disk_op_done(op, result);
        while let Some(next) = self.next_early(ended.is_err()) {
            self.disk_op_done(next, ended.clone());
        }
    }

    /// The next flush that has ended and was held; all of them, when the disk has failed.
    fn next_early(&mut self, failed: bool) -> Option<DiskOpId> {
        let first = *self.flush_numbers.values().min()?;
        let counts = |op: &DiskOpId| failed || self.flush_numbers.get(op) == Some(&first);
        let at = self.flushes_early.iter().position(counts)?;
        Some(self.flushes_early.remove(at))
    }

    fn disk_op_done(&mut self, op: DiskOpId, result: Result<DiskOutcome, IoFailure>) {
        let Some((key, _)) = self.disk_op_named(op) else { return };
        let DiskOp { job, range, lost, .. } = self.disk_ops.remove(key);
        let number = self.flush_numbers.remove(&op);
        if let (Some(number), Ok(_)) = (number, &result) {
            self.flush_done = self.flush_done.max(number);
            self.peers.values_mut().for_each(|p| p.flush_ends(number));
        }
        let result = match (job, result) {
            // What cannot be stored again is lost, and nothing else.
            (
                DiskJob::Heal(_)
                | DiskJob::HealSalvaged(_)
                | DiskJob::HealReread(_)
                | DiskJob::ResyncLost(_),
                Err(failure),
            ) => {
                self.io_errors += 1;
                Err(failure)
            }
            (_, Err(failure)) => {
                self.io_errors += 1;
                self.disk_failed();
                Err(failure)
            }
            // It looks itself where the first lost block is: the range may be a very long hole.
            (DiskJob::ResyncRead(_), Ok(DiskOutcome::Zeroes)) => Ok(DiskOutcome::Zeroes),
            (
                DiskJob::Read(_)
                | DiskJob::Owed
                | DiskJob::PeerRead { .. }
                | DiskJob::HealRead(_)
                | DiskJob::ResyncRead(_)
                | DiskJob::VerifyLook { .. }
                | DiskJob::VerifySpan { .. }
                | DiskJob::VerifyServe { .. },
                Ok(outcome),
            ) => {
                let outcome = self.without_lost(range, lost, outcome);
                if matches!(job, DiskJob::VerifyLook { .. }) {
                    // Readers do not ask peers for what is listed already each time.
                    self.listed_in(range).into_iter().for_each(|listed| self.heal(listed));
                }
                Ok(outcome)
            }
            (
                DiskJob::Write(_)
                | DiskJob::PeerWrite(_)
                | DiskJob::ResyncWrite(_)
                | DiskJob::VerifyRepair(_),
                Ok(outcome),
            ) => {
                if !self.written(job, range, &outcome) {
                    return;
                }
                Ok(outcome)
            }
            (_, result) => result,
        };
        self.job_done(job, range, result);
    }

    /// A disk operation ended, and all that it means for the disk itself was done.
    pub(crate) fn job_done(
        &mut self,
        job: DiskJob,
        range: ByteRange,
        result: Result<DiskOutcome, IoFailure>,
    ) {
        let ok = result.is_ok();
        match (job, &result) {
            (DiskJob::Write(key), Ok(DiskOutcome::Logged(at))) => self.write_logged(key, *at),
            (DiskJob::Write(_), _) if self.logged.is_some() => self.forget_trails(),
            _ => {}
        }
        match job {
            DiskJob::Write(key) => self.write_local_done(key, ok),
            DiskJob::Read(key) => self.read_local_done(key, result),
            DiskJob::Owed => self.owed_read_done(),
            DiskJob::Flush(key) => self.flush_local_done(key, ok),
            DiskJob::PeerWrite(key) => self.peer_write_done(key, ok),
            DiskJob::PeerRead { peer, link, id } => self.peer_read_done(peer, link, id, result),
            DiskJob::PeerFlush { peer, link, id } => self.peer_flush_done(peer, link, id, ok),
            DiskJob::ResyncRead(key) => self.resync_read_done(key, result),
            DiskJob::ResyncWrite(key) => self.resync_write_done(key, ok),
            DiskJob::ResyncLost(key) => self.resync_write_done(key, true),
            DiskJob::Heal(key) => self.heal_part_done(key, range, ok),
            DiskJob::HealCheck(key) => {
                let checked = match result {
                    Ok(DiskOutcome::Data(data)) => Checked { data, ..Checked::default() },
                    Ok(DiskOutcome::Partial { data, bad, wrong }) => {
                        Checked { data, bad, wrong, salvaged: Vec::new() }
                    }
                    Ok(DiskOutcome::Salvaged { data, bad, salvaged, wrong }) => {
                        Checked { data, bad, salvaged, wrong }
                    }
                    _ => Checked::default(),
                };
                self.heal_checked(key, range, checked);
            }
            DiskJob::HealSalvaged(key) => self.heal_salvaged(key, range, ok),
            DiskJob::HealReread(key) => self.heal_reread(key, range),
            DiskJob::HealRead(key) => self.heal_read_done(key, result),
            DiskJob::ActivityLogFlush if ok => self.write_activity_log(),
            DiskJob::CheckpointFlush if ok => {
                self.checkpointing = false;
                self.write_dirty_pages();
            }
            DiskJob::CompleteFlush { peer, round } if ok => self.resync_flushed(peer, round),
            DiskJob::TargetFlush { peer, round } if ok => self.target_flushed(peer, round),
            DiskJob::StopFlush => self.stop_flushed(),
            DiskJob::CompareRead { peer, id, whole } => {
                self.compare_read(peer, id, whole, &result);
            }
            DiskJob::VerifyLook { id, whole } => self.look_read(id, whole, &result),
            DiskJob::VerifySpan { id, whole } => self.span_read(id, whole, &result),
            DiskJob::VerifyServe { peer, link, id, range, locked, whole } => {
                self.verify_served((peer, link, id), (range, locked, whole), &result);
            }
            DiskJob::VerifyRepair(key) => self.repair_done(key, ok),
            _ => {}
        }
    }

    /// Gives the lock of `range` back and lets those go on who waited for it.
    pub(crate) fn unlock(&mut self, range: ByteRange) {
        self.locks.release(range, &mut self.granted);
        self.runnable.extend(self.granted.drain(..));
    }

    /// The peers and sets that requests are steered by, after a peer or the disk changed.
    pub(crate) fn refresh_sets(&mut self) {
        self.healing.peers_changed();
        let before = self.receivers;
        let without = self.role == Role::Primary && !self.has_disk();
        for peer in self.peers.values_mut() {
            peer.left_out =
                without && matches!(peer.disk, DiskState::Outdated | DiskState::Consistent);
        }
        self.receivers = self.peers.values().filter(|p| p.receives()).map(|p| p.node).collect();
        let mut members: PeerSet =
            self.peers.values().filter(|p| !p.diskless).map(|p| p.node).collect();
        if self.diskful {
            members.insert(self.node);
        }
        let mut reached = self.receivers;
        if self.has_disk() {
            reached.insert(self.node);
        }
        self.missing = members.difference(reached);
        if self.role == Role::Primary {
            self.bump_for = self.bump_for.union(before.difference(self.receivers));
            self.flush_returned(self.receivers.difference(before));
        }
        // Who came back needs none, unless a write that it missed waits to be completed.
        let owed = self.writes.iter().fold(PeerSet::EMPTY, |all, (_, w)| all.union(w.missed));
        self.bump_for = self.bump_for.intersection(self.missing.union(owed));
    }

    /// Peers that can be asked for good data.
    pub(crate) fn good_peers(&self) -> impl Iterator<Item = NodeId> {
        self.peers
            .values()
            .filter(|p| p.receives() && p.disk == DiskState::UpToDate)
            .map(|p| p.node)
    }

    /// Whether clients can be served: good data here or at a connected peer.
    pub(crate) fn has_good_data(&self) -> bool {
        self.disk == DiskState::UpToDate || self.good_peers().next().is_some()
    }

    /// Does what the core does at the time itself: timeouts of peers, commands and rates.
    fn tick(&mut self) {
        self.tick_links();
        self.tick_roles();
        self.tick_settle();
        self.tick_feeds();
        self.tick_hedges();
    }

    fn command(&mut self, id: CommandId, command: Command) {
        if self.stopping.is_some() {
            self.act(Action::CommandDone(id, Err(crate::Refusal::Busy)));
            return;
        }
        match command {
            Command::Promote { force } => self.promote(id, force),
            Command::Demote { force } => self.demote(id, force),
            Command::Connect { peer, discard_my_data } => self.connect(id, peer, discard_my_data),
            Command::Disconnect { peer } => self.disconnect(id, peer),
            Command::Invalidate { peer } => self.invalidate(id, peer),
            Command::Detach => self.detach(id),
            Command::AddPeer(peer) => self.add_peer(id, &peer),
            Command::RemovePeer { peer } => self.remove_peer(id, peer),
            Command::Configure(options) => {
                self.options = options;
                self.act(Action::CommandDone(id, Ok(())));
            }
            Command::PauseSync(pause) => self.pause_sync(id, pause),
            Command::Grow { size, disk_ready } => self.grow(id, size, disk_ready),
            Command::Heal(ranges) => {
                ranges.into_iter().for_each(|range| self.heal(range));
                self.act(Action::CommandDone(id, Ok(())));
            }
            Command::Survey(order) => self.survey(id, order),
            Command::SurveyControl(kind, action) => self.survey_action(id, kind, action),
            Command::Stop => self.stop(id),
        }
    }

    /// Nodes whose number does not fit are refused where they come in; this is for tables.
    pub(crate) fn other_nodes(&self) -> impl Iterator<Item = NodeId> {
        let me = self.node;
        (0..MAX_NODES).filter_map(NodeId::new).filter(move |n| *n != me)
    }

    pub(crate) fn meta_done(&mut self, op: MetaOpId, result: Result<(), IoFailure>) {
        if result.is_err() {
            self.io_errors += 1;
            self.disk_failed();
        }
        self.meta_written(op, result.is_ok());
    }
}
