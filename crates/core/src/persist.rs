//! Metadata: what is written when, and what goes on when it is durable.

use crate::actlog::{ActivityLog, extents};
use crate::engine::{Core, DiskJob};
use crate::event::{Action, Attachment, CommandId, LinkId, MetaOpId, Notice};
use crate::generation::Gens;
use crate::locks::Owner;
use crate::peer::Peer;
use crate::planted::PlantedBug;
use holdfast_format::{
    AlLog, DiskFlags, MetaLayout, PageAddress, PeerFlags, PeerRecord, SparseBitmap, Superblock,
};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, DiskState, EXTENT_SIZE, GenerationId, Millis, NodeId, PeerSet,
    ReplicationState, Role,
};
use holdfast_wire::Message;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// The boot in the superblock of a node that has lost its cache and was not made whole since.
const LOST_CACHE: [u8; 16] = [0; 16];

/// How many bitmap pages go into one metadata write, so that memory stays bounded.
const PAGES_PER_WRITE: usize = 256;

/// What goes on when a superblock is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// Nothing waits for it.
    Nothing,
    /// The new generation of this Primary.
    Bump,
    /// The new generation that a Primary told.
    GenerationAdopted { peer: NodeId, link: LinkId, current: GenerationId },
    /// The bitmaps of a resync in which this node is target.
    TargetReady { peer: NodeId, round: u64 },
    /// This node has everything, and the source's generations.
    Adopted { peer: NodeId, round: u64 },
    /// This node is Primary.
    Promoted,
    /// This node is Secondary.
    Demoted(CommandId),
    /// A command ends with it.
    Command(CommandId),
    /// This node is Outdated; the connections of the command may be closed.
    Outdated(CommandId, Option<NodeId>),
    /// This node's disk is durably said to be behind, and may be given up.
    Detaching(CommandId),
    /// Nobody is said any more to lack only what it knows itself; the activity log goes on.
    FillsUnsaid,
    /// The device has this size.
    Grown { command: CommandId, size: u64 },
    /// The last thing.
    Stopped,
}

#[derive(Clone, Copy, Debug)]
enum MetaJob {
    Superblock(u64),
    ActivityLog,
    Pages,
}

/// The metadata area and what is under way to it.
pub(crate) struct Meta {
    superblock: Superblock,
    /// Counts wishes to write the superblock; the first is 1.
    wanted: u64,
    writing: Option<u64>,
    durable: u64,
    after: VecDeque<(u64, After)>,
    /// What is under way, and since when.
    jobs: BTreeMap<MetaOpId, (MetaJob, Millis)>,
    next_op: u64,
    clean: bool,
}

impl Meta {
    /// How often the superblock was asked for.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Up to which of these it is durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Where everything lies.
    pub(crate) fn layout(&self) -> &MetaLayout {
        &self.superblock.layout
    }

    /// From the next superblock on everything lies so.
    pub(crate) fn set_layout(&mut self, layout: MetaLayout) {
        self.superblock.layout = layout;
    }

    fn new(superblock: Superblock) -> Self {
        Self {
            superblock,
            wanted: 0,
            writing: None,
            durable: 0,
            after: VecDeque::new(),
            jobs: BTreeMap::new(),
            next_op: 0,
            clean: false,
        }
    }
}

impl Core {
    /// The disk is there: takes its metadata over.
    pub(crate) fn attach(&mut self, found: Attachment) {
        if self.meta.is_some() {
            return;
        }
        let superblock = found.superblock;
        let clean = superblock.flags.contains(DiskFlags::CLEAN);
        self.crashed_primary = !clean && superblock.flags.contains(DiskFlags::PRIMARY);
        self.following = superblock.following;
        self.outdated = superblock.flags.contains(DiskFlags::OUTDATED);
        self.diskful = true;
        let hot = found.log.as_ref().map_or(true, |log| log.slots().iter().any(Option::is_some));
        let power_lost = superblock.boot != self.config.boot && !clean && hot;
        self.lost_cache = power_lost || superblock.boot == LOST_CACHE;
        self.load_generations(&superblock);
        for (node, bitmap) in found.bitmaps {
            if let Some(peer) = self.peers.get_mut(&node).filter(|p| !p.diskless) {
                peer.bitmap = bitmap;
            }
        }
        self.healing.attach(found.unreadable);
        for message in found.damage {
            self.notice(Notice::MetaDamaged(message));
        }
        if found.log.is_err() && !clean {
            self.notice(Notice::MetaDamaged("the activity log was damaged".to_owned()));
            self.peers.values_mut().filter(|p| !p.diskless).for_each(|p| {
                p.bitmap.set_all();
                p.noted_since_start.iter_mut().for_each(|noted| {
                    noted.set_all();
                });
            });
        }
        let was_consistent = superblock.flags.contains(DiskFlags::CONSISTENT);
        let layout = superblock.layout;
        self.meta = Some(Meta::new(superblock));
        self.disk = self.attached_state(was_consistent);
        if let Some((index, block)) = found.log_again {
            self.write_blocks(vec![(layout.al_offset(index), block)], MetaJob::Pages);
        }
        // What was marked because of damage must be durable before the log starts anew.
        self.write_dirty_pages();
        let (log, suspect) = match found.log {
            Ok(log) if !clean => (log, self.other_nodes().collect()),
            Ok(log) => (self.format_log(log.next_sequence(), &layout), PeerSet::EMPTY),
            Err(sequence) => (self.format_log(sequence, &layout), PeerSet::EMPTY),
        };
        self.al = Some(ActivityLog::new(log, suspect));
        self.request_superblock(After::Nothing);
        self.refresh_sets();
        self.changed();
    }

    /// An empty activity log, written anew.
    fn format_log(&mut self, sequence: u64, layout: &MetaLayout) -> AlLog {
        let mut log = AlLog::new(self.config.resource, layout, sequence);
        let ring =
            log.format().into_iter().map(|(i, b)| (layout.al_offset(i), Box::new(b))).collect();
        self.write_blocks(ring, MetaJob::Pages);
        log
    }

    fn attached_state(&self, was_consistent: bool) -> DiskState {
        let has_peers = self.peers.values().any(|p| !p.diskless);
        if !was_consistent {
            DiskState::Inconsistent
        } else if self.outdated {
            DiskState::Outdated
        } else if has_peers {
            DiskState::Consistent
        } else {
            DiskState::UpToDate
        }
    }

    fn load_generations(&mut self, superblock: &Superblock) {
        let blocks = self.blocks();
        self.gens = Gens { current: superblock.current, ..Gens::default() };
        self.gens.history = superblock.history;
        for (i, record) in superblock.peers.iter().enumerate() {
            self.gens.slots[i] = record.bitmap;
            self.gens.known[i] = record.current;
        }
        for peer in self.peers.values_mut() {
            peer.known = false;
            let flags = superblock.peers[peer.node.index()].flags;
            peer.seen |= flags.contains(PeerFlags::SEEN);
            peer.failed |= flags.contains(PeerFlags::FAILED);
            peer.filled_from = flags.contains(PeerFlags::FILLED_FROM);
            let filling = flags.contains(PeerFlags::FILLING) && !peer.diskless;
            peer.noted_since_start = filling.then(|| Self::new_bitmap(blocks));
        }
    }

    /// Asks for the superblock to be written as things are now or later; `after` happens when it
    /// is durable. Without a disk there is nothing to wait for.
    pub(crate) fn request_superblock(&mut self, after: After) {
        match &mut self.meta {
            Some(meta) => {
                meta.wanted += 1;
                meta.after.push_back((meta.wanted, after));
            }
            None => self.after(after),
        }
    }

    /// Writes the superblock when that is wanted and none is under way.
    pub(crate) fn flush_superblock(&mut self) {
        let Some(meta) = &mut self.meta else { return };
        if meta.writing.is_some() || meta.wanted == meta.durable {
            return;
        }
        let wanted = meta.wanted;
        meta.writing = Some(wanted);
        let boot = if self.lost_cache { LOST_CACHE } else { self.config.boot };
        self.write_superblock(boot, wanted);
    }

    /// The disk has failed, and the kernel drops what it could not write: a last superblock says so,
    /// where the metadata can still be written, for whoever looks at this disk next without having
    /// heard of it. It becomes durable behind all that is under way.
    fn write_last_superblock(&mut self) {
        if let Some(wanted) = self.meta.as_ref().map(Meta::wanted) {
            self.write_superblock(LOST_CACHE, wanted);
        }
    }

    /// Starts to write the superblock as things are.
    fn write_superblock(&mut self, boot: [u8; 16], wanted: u64) {
        let Some(meta) = &self.meta else { return };
        let mut superblock = meta.superblock.clone();
        superblock.current = self.gens.current;
        superblock.history = self.gens.history;
        for i in 0..superblock.peers.len() {
            superblock.peers[i] = self.peer_record(i);
        }
        superblock.following = self.following;
        superblock.boot = boot;
        let flags = &mut superblock.flags;
        flags.set(DiskFlags::CONSISTENT, self.disk > DiskState::Inconsistent);
        let behind = self.disk == DiskState::Outdated || self.detaching || self.leaving > 0;
        flags.set(DiskFlags::WAS_UPTODATE, self.disk == DiskState::UpToDate && !behind);
        flags.set(DiskFlags::OUTDATED, behind);
        flags.set(DiskFlags::PRIMARY, self.role == Role::Primary || self.crashed_primary);
        flags.set(DiskFlags::CLEAN, meta.clean);
        flags.set(DiskFlags::FAILED, false);
        flags.set(DiskFlags::LOST, self.healing.list.old.count() > 0);
        flags.set(DiskFlags::UNREAD, self.healing.list.unread.count() > 0);
        let (offset, block) = superblock.advance();
        if let Some(meta) = &mut self.meta {
            meta.superblock = superblock;
        }
        self.write_blocks(vec![(offset, Box::new(block))], MetaJob::Superblock(wanted));
    }

    /// What the superblock says of a member.
    fn peer_record(&self, i: usize) -> PeerRecord {
        let node = NodeId::new(u8::try_from(i).unwrap_or(u8::MAX));
        let peer = node.and_then(|n| self.peers.get(&n));
        let mut flags = PeerFlags::EMPTY;
        flags.set(PeerFlags::MEMBER, peer.is_some());
        flags.set(PeerFlags::SEEN, peer.is_some_and(|p| p.seen));
        flags.set(PeerFlags::FAILED, peer.is_some_and(|p| p.failed));
        flags.set(PeerFlags::FILLED_FROM, peer.is_some_and(|p| p.filled_from));
        let begun = |p: &Peer| p.left_to_fill.is_some() || p.noted_since_start.is_some();
        let filling = peer.is_some_and(|p| begun(p) && !p.missed_in_fill);
        flags.set(PeerFlags::FILLING, filling);
        PeerRecord { bitmap: self.gens.slots[i], current: self.gens.known[i], flags }
    }

    /// From now on the superblock says that the node stopped in good order.
    pub(crate) fn mark_clean(&mut self) {
        if let Some(meta) = &mut self.meta {
            meta.clean = true;
        }
    }

    /// Starts a write; its name, unless there is no disk.
    fn write_blocks(
        &mut self,
        blocks: Vec<(u64, Box<[u8; 4096]>)>,
        job: MetaJob,
    ) -> Option<MetaOpId> {
        let meta = self.meta.as_mut()?;
        meta.next_op += 1;
        let op = MetaOpId(meta.next_op);
        meta.jobs.insert(op, (job, self.now));
        self.act(Action::MetaWrite { op, blocks });
        Some(op)
    }

    /// Writes what changed of the list of lost blocks. The name of the last write, which is durable
    /// behind all others.
    pub(crate) fn write_lost_pages(&mut self) -> Option<MetaOpId> {
        let mut last = None;
        loop {
            let pages = self.healing.list.take_dirty_pages(PAGES_PER_WRITE);
            let layout = self.meta.as_ref().map(|meta| meta.superblock.layout)?;
            if pages.is_empty() || !layout.has_slot(self.node) {
                return last;
            }
            let (resource, node) = (self.config.resource, self.node);
            let encode = |page: &u32| {
                let address = PageAddress::new(resource, &layout, node, *page);
                (address.offset(), Box::new(self.healing.list.encode_page(&address)))
            };
            let blocks = pages.iter().map(encode).collect();
            last = self.write_blocks(blocks, MetaJob::Pages);
        }
    }

    /// Since when the oldest write of metadata is under way.
    pub(crate) fn oldest_meta_write(&self) -> Option<Millis> {
        self.meta.as_ref()?.jobs.first_key_value().map(|(_, (_, since))| *since)
    }

    pub(crate) fn meta_written(&mut self, op: MetaOpId, ok: bool) {
        let found = self.meta.as_mut().and_then(|m| m.jobs.remove(&op));
        let Some((job, _)) = found else { return };
        if !ok {
            return;
        }
        match job {
            MetaJob::Superblock(version) => self.superblock_durable(version),
            MetaJob::ActivityLog => self.activity_log_durable(),
            MetaJob::Pages => self.lost_pages_durable(op),
        }
    }

    fn superblock_durable(&mut self, version: u64) {
        let Some(meta) = &mut self.meta else { return };
        meta.writing = None;
        meta.durable = version;
        let mut due = Vec::new();
        while meta.after.front().is_some_and(|(v, _)| *v <= version) {
            due.extend(meta.after.pop_front().map(|(_, after)| after));
        }
        for after in due {
            self.after(after);
        }
    }

    fn after(&mut self, after: After) {
        match after {
            After::Nothing => {}
            After::Bump => self.bump_done(),
            After::GenerationAdopted { peer, link, current } => {
                if self.link_of(peer) == Some(link) {
                    self.send(peer, Message::GenerationAck { current });
                }
                self.announce();
            }
            After::TargetReady { peer, round } => self.target_ready(peer, round),
            After::Adopted { peer, round } => self.adopted(peer, round),
            After::Promoted => self.promoted(),
            After::Demoted(id) => self.demoted(id),
            After::Command(id) => self.act(Action::CommandDone(id, Ok(()))),
            After::Outdated(id, peer) => self.disconnect_outdated(id, peer),
            After::Detaching(id) => self.detach_now(id),
            After::FillsUnsaid => self.write_activity_log(),
            After::Grown { command, size } => self.grown(command, size),
            After::Stopped => self.stopped(),
        }
    }

    /// Writes every bitmap page that differs from what is on disk. Superblocks that are asked for
    /// afterwards become durable after them.
    pub(crate) fn write_dirty_pages(&mut self) {
        self.forget_settled();
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let mut batches = Vec::new();
            while let Some(peer) = self.peers.get_mut(&node) {
                let pages = peer.bitmap.take_dirty_pages(PAGES_PER_WRITE);
                if pages.is_empty() {
                    break;
                }
                batches.push(pages);
            }
            self.write_pages(node, &batches);
            self.peers.get_mut(&node).into_iter().for_each(Peer::write_volatile_again);
        }
    }

    fn write_pages(&mut self, node: NodeId, batches: &[Vec<u32>]) {
        let (Some(meta), Some(peer)) = (&self.meta, self.peers.get(&node)) else { return };
        let layout = &meta.superblock.layout;
        if !layout.has_slot(node) || batches.is_empty() {
            return;
        }
        let bitmap = peer.bitmap_on_disk();
        let encode = |page: &u32| {
            let address = PageAddress::new(self.config.resource, layout, node, *page);
            (address.offset(), Box::new(bitmap.encode_page(&address)))
        };
        let writes: Vec<Vec<_>> =
            batches.iter().map(|pages| pages.iter().map(encode).collect()).collect();
        for blocks in writes {
            self.write_blocks(blocks, MetaJob::Pages);
        }
    }

    /// Chooses the next transaction of the activity log and does what must come before it.
    pub(crate) fn plan_activity_log(&mut self) {
        let flushed = self.flush_done;
        let Some(plan) = self.al.as_mut().and_then(|al| al.plan(flushed)) else { return };
        for (extent, suspect) in &plan.victims {
            for peer in suspect.iter() {
                self.mark_extent(*extent, peer);
            }
            self.note_unsettled(*extent);
        }
        self.al_evicts = !plan.victims.is_empty();
        // Bits that a resync cleared may go to disk only behind the data that they stand for.
        let is_target = self.peers.values().any(Peer::is_target);
        if plan.flush || (is_target && !plan.victims.is_empty()) {
            self.disk_flush(DiskJob::ActivityLogFlush);
        } else {
            self.write_activity_log();
        }
    }

    /// What a Primary wrote to an extent that is given up may not be everywhere yet. Should this node
    /// and the Primary both crash, nothing else would say so.
    fn note_unsettled(&mut self, extent: u32) {
        let blocks = ByteRange::new(u64::from(extent) * EXTENT_SIZE, EXTENT_SIZE).blocks();
        let within = |run: Range<u64>| run.start.max(blocks.start)..run.end.min(blocks.end);
        let unsettled: Vec<(NodeId, Range<u64>)> = self
            .peers
            .values()
            .flat_map(|p| p.unsettled.runs().map(|run| (p.node, within(run))))
            .filter(|(_, run)| run.start < run.end)
            .collect();
        let size = self.blocks();
        for peer in self.peers.values_mut().filter(|p| !p.diskless) {
            // A Primary that was lost, and what it may lack itself.
            let runs: Vec<Range<u64>> =
                peer.lost_unsettled.iter().flat_map(SparseBitmap::runs).map(within).collect();
            for run in runs.into_iter().filter(|run| run.start < run.end) {
                peer.may_lack(run, size);
            }
        }
        for (writer, run) in unsettled {
            for peer in self.peers.values_mut().filter(|p| p.node != writer && !p.diskless) {
                peer.may_lack(run.clone(), size);
            }
        }
    }

    /// What is settled meanwhile, or is marked because its writer was lost, need not be on disk as
    /// lacking any more.
    fn forget_settled(&mut self) {
        if self.peers.values().all(|p| p.unsettled_given_up.is_none()) {
            return;
        }
        let mut unsettled = Self::new_bitmap(self.blocks());
        for run in self.peers.values().flat_map(|p| p.unsettled.runs()) {
            unsettled.set_range(run);
        }
        for peer in self.peers.values_mut() {
            let lost = peer.lost_unsettled.as_ref();
            let settled = |run: Range<u64>| {
                unsettled.count_range(run.clone()) == 0
                    && lost.is_none_or(|lost| lost.count_range(run) == 0)
            };
            peer.unsettled_given_up.take_if(|blocks| blocks.runs().all(settled));
        }
    }

    /// The data of the extents that are given up are durable; now their bits, then the log.
    pub(crate) fn write_activity_log(&mut self) {
        if self.al_evicts && self.says_too_much_of_fills() {
            self.request_superblock(After::FillsUnsaid);
            return;
        }
        if self.al_evicts {
            // All dirty pages rather than the victims' alone: they are few, and other extents of
            // the same page will be given up soon.
            self.write_dirty_pages();
        }
        let Some(al) = &mut self.al else { return };
        match al.write() {
            Some((index, block)) => {
                let Some(meta) = &self.meta else { return };
                let offset = meta.superblock.layout.al_offset(index);
                self.write_blocks(vec![(offset, block)], MetaJob::ActivityLog);
                if self.has_bug(PlantedBug::SwapActivityLogOrder) {
                    self.activity_log_durable();
                }
            }
            None => self.activity_log_durable(),
        }
    }

    /// Whether the disk says of a peer that its own account is all that it lacks, and it missed more:
    /// a bit on disk would not count then, and only the hot extent stands for it.
    fn says_too_much_of_fills(&self) -> bool {
        let Some(meta) = &self.meta else { return false };
        let said = |p: &Peer| meta.superblock.peers[p.node.index()].flags;
        self.peers.values().any(|p| p.missed_in_fill && said(p).contains(PeerFlags::FILLING))
    }

    fn activity_log_durable(&mut self) {
        if let Some(al) = &mut self.al {
            self.runnable.extend(al.written());
        }
    }

    /// Takes hot extents for the range, or queues; without a disk there is nothing to do.
    pub(crate) fn al_begin(&mut self, owner: Owner, range: ByteRange) -> bool {
        self.al.as_mut().is_none_or(|al| al.begin(owner, range))
    }

    pub(crate) fn al_end(&mut self, range: ByteRange) {
        let flush = self.flush_issued + 1;
        if let Some(al) = &mut self.al {
            al.end(range, flush);
        }
    }

    /// Marks a whole extent as different from a peer's.
    pub(crate) fn mark_extent(&mut self, extent: u32, peer: NodeId) {
        let range = ByteRange::new(u64::from(extent) * EXTENT_SIZE, EXTENT_SIZE);
        debug_assert!(extents(range).eq(extent..extent + 1));
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.set_bits(range.blocks());
        }
    }

    /// A peer misses a write of this range.
    pub(crate) fn mark(&mut self, node: NodeId, range: ByteRange) {
        let blocks = self.blocks();
        let filled = self.peers.values().any(Peer::is_target);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if filled {
            let meanwhile = peer.missed_meanwhile.get_or_insert_with(|| Self::new_bitmap(blocks));
            meanwhile.set_range(range.blocks());
        }
        // What this node pulls from a source that is behind must not be pulled over newer data.
        if !peer.is_target() {
            peer.set_bits(range.blocks());
        }
        if peer.is_fed() {
            let again = peer.missed_again.get_or_insert_with(|| Self::new_bitmap(blocks));
            again.set_range(range.blocks());
        }
        peer.overtaken |= peer.is_fed();
        peer.vouched = false;
        if peer.replication == ReplicationState::Established && self.role != Role::Primary {
            // The Primary has lost it; the connection here may be as dead.
            peer.replication = ReplicationState::PausedSyncS;
            peer.left_to_primary = true;
            self.changed();
        }
    }

    /// What a crash left in doubt between this node and a peer becomes bits.
    pub(crate) fn merge_suspects(&mut self, peer: NodeId) {
        let found = self.al.as_mut().map(|al| al.take_suspects(peer)).unwrap_or_default();
        for extent in found {
            self.mark_extent(extent, peer);
        }
    }

    /// An empty bitmap for a new member.
    pub(crate) fn new_bitmap(blocks: u64) -> SparseBitmap {
        SparseBitmap::new(blocks)
    }

    /// The local disk reported an error: it is not used any more (promise 6).
    pub(crate) fn disk_failed(&mut self) {
        if !self.has_disk() {
            return;
        }
        self.notice(Notice::DiskFailed);
        self.give_disk_up(DiskState::Failed);
    }

    /// Ends the use of the local disk. Requests go on with the peers' disks where they can.
    pub(crate) fn give_disk_up(&mut self, state: DiskState) {
        if self.disk == DiskState::UpToDate {
            self.served = self.gens.current;
        }
        if state == DiskState::Failed {
            self.write_last_superblock();
        }
        self.disk = state;
        self.end_surveys();
        self.forget_trails();
        if let Some(al) = self.al.take().as_mut() {
            self.runnable.extend(al.abandon());
        }
        let waiting = self.meta.take().map(|m| m.after).unwrap_or_default();
        self.act(Action::CloseDisk);
        for peer in self.peers.values_mut().filter(|p| p.up) {
            peer.end_resync();
            peer.replication = ReplicationState::Established;
        }
        self.refresh_sets();
        // This node is a member that misses writes from now on.
        if self.role == Role::Primary && self.missing.contains(self.node) {
            self.bump_for.insert(self.node);
        }
        // Before any answer that waited for the disk: nobody must count on it.
        self.announce();
        for (_, after) in waiting {
            self.after(after);
        }
        self.heals_lost_disk();
        self.changed();
    }
}

/// Blocks of a range in bytes, for progress.
pub(crate) fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK_SIZE
}
