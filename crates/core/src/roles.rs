//! Who is Primary, and how the resource stops.
//!
//! A promotion asks every connected member first, and holds them to their answer until it commits,
//! aborts, or its connection is lost; of two at once the lower number wins. Who is Primary by what is
//! known here is asked before the others: that it stepped back may be on its way.

use crate::engine::{Core, DiskJob};
use crate::event::{Action, CommandId, Refusal};
use crate::peer::Peer;
use crate::persist::{After, Meta};
use holdfast_units::{DiskState, GenerationId, Millis, NodeId, PeerSet, Role};
use holdfast_wire::{Message, PromoteAnswer, PromoteStep};

/// Members must have answered within this time.
const PROMOTE_TIMEOUT_MS: u64 = 5_000;
/// A promise that is neither kept nor broken ends after this time.
const PROMISE_MS: u64 = 15_000;
/// Requests in flight may take so long before the resource stops without them, and so may what makes
/// the disk clean behind them.
const STOP_TIMEOUT_MS: u64 = 10_000;

/// A promotion of this node that is under way.
#[derive(Debug)]
pub(crate) struct Promotion {
    command: CommandId,
    id: u64,
    force: bool,
    /// Who was asked so far, and who of them owes an answer.
    asked: PeerSet,
    waiting: PeerSet,
    /// Who of the members is Primary, by what they said last.
    primaries: PeerSet,
    deadline: Millis,
    /// Before data that were half copied are said to be good: the flush that covers what had come, and
    /// how much that was.
    flush: Option<(u64, u64)>,
    /// Everyone agreed; it is being made durable.
    committed: bool,
}

/// What this node said yes to.
#[derive(Debug)]
pub(crate) struct Promise {
    peer: NodeId,
    until: Millis,
}

/// The resource is being stopped.
#[derive(Debug)]
pub(crate) struct Stopping {
    command: CommandId,
    deadline: Millis,
    /// That this node is behind must be durable before it leaves a Primary: with this superblock.
    behind: u64,
    flushing: bool,
}

impl Core {
    /// Why this node could not become Primary as things are here.
    pub(crate) fn promote_refusal(&self, force: bool) -> Option<Refusal> {
        let primary = self.primary_peers().iter().next().map(Refusal::PeerIsPrimary);
        primary.or_else(|| self.data_refusal(force))
    }

    /// The connected members that are Primary, by what they said last.
    fn primary_peers(&self) -> PeerSet {
        let primaries = self.peers.values().filter(|p| p.up && p.role == Role::Primary);
        primaries.map(|p| p.node).collect()
    }

    /// Why the data here are none to be Primary with.
    fn data_refusal(&self, force: bool) -> Option<Refusal> {
        if self.has_good_data() || (force && self.has_disk()) {
            return None;
        }
        match self.disk {
            // One that is there and cannot use its disk may have had newer data on it.
            DiskState::Consistent if self.peers.values().any(Peer::has_lost_disk) => {
                Some(Refusal::NoUpToDateData)
            }
            DiskState::Consistent => None,
            DiskState::Outdated => Some(Refusal::Outdated),
            DiskState::Inconsistent => Some(Refusal::Inconsistent),
            _ => Some(Refusal::NoUpToDateData),
        }
    }

    pub(crate) fn promote(&mut self, command: CommandId, force: bool) {
        let done = |core: &mut Self, result| core.act(Action::CommandDone(command, result));
        if self.promotion.is_some() || self.demotion.is_some() {
            return done(self, Err(Refusal::Busy));
        }
        if self.role == Role::Primary {
            return done(self, Ok(()));
        }
        if let Some(promise) = &self.promise {
            let peer = promise.peer;
            return done(self, Err(Refusal::PeerBusy(peer)));
        }
        if let Some(refusal) = self.data_refusal(force) {
            return done(self, Err(self.promote_refusal(force).unwrap_or(refusal)));
        }
        let deadline = self.now.after(PROMOTE_TIMEOUT_MS);
        self.promotion = Some(Promotion {
            command,
            id: self.unique(),
            force,
            asked: PeerSet::EMPTY,
            waiting: PeerSet::EMPTY,
            primaries: self.primary_peers(),
            deadline,
            flush: None,
            committed: false,
        });
        self.ask_for_promotion();
    }

    /// Asks those members that come next, if there are any; whether everyone was asked before.
    fn ask_for_promotion(&mut self) -> bool {
        let up: PeerSet = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        let Some(promotion) = &mut self.promotion else { return true };
        let first = if promotion.asked.is_empty() { promotion.primaries } else { PeerSet::EMPTY };
        let next = if first.is_empty() { up.difference(promotion.asked) } else { first };
        for node in next.iter() {
            promotion.asked.insert(node);
            promotion.waiting.insert(node);
        }
        let id = promotion.id;
        for peer in next.iter() {
            self.send(peer, Message::Promote { id, step: PromoteStep::Prepare });
        }
        next.is_empty()
    }

    /// A peer whose handshake ended while a promotion is under way has a say too.
    pub(crate) fn connected_during_promotion(&mut self, node: NodeId) {
        let role = self.peers.get(&node).map(|p| p.role);
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.committed {
            return;
        }
        if role == Some(Role::Primary) {
            self.end_promotion(Err(Refusal::PeerIsPrimary(node)));
            return;
        }
        promotion.asked.insert(node);
        promotion.waiting.insert(node);
        let id = promotion.id;
        self.send(node, Message::Promote { id, step: PromoteStep::Prepare });
    }

    /// A member says what it is: one that is not Primary does not count against a promotion any more,
    /// whatever becomes of it.
    pub(crate) fn promotion_hears(&mut self, node: NodeId, role: Role) {
        let Some(promotion) = &mut self.promotion else { return };
        if role == Role::Primary {
            promotion.primaries.insert(node);
        } else {
            promotion.primaries.remove(node);
        }
    }

    fn end_promotion(&mut self, result: Result<(), Refusal>) {
        let Some(promotion) = self.promotion.take() else { return };
        if result.is_err() {
            let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
            let id = promotion.id;
            for peer in up {
                self.send(peer, Message::Promote { id, step: PromoteStep::Abort });
            }
        }
        self.act(Action::CommandDone(promotion.command, result));
    }

    pub(crate) fn peer_promotes(&mut self, node: NodeId, id: u64, step: PromoteStep) {
        match step {
            PromoteStep::Prepare => {
                self.prepares.retain(|(asker, _)| *asker != node);
                self.prepares.push((node, id));
            }
            PromoteStep::Commit => {
                self.end_promise(node);
                self.peers.get_mut(&node).into_iter().for_each(|p| p.unsettled.clear());
            }
            PromoteStep::Abort => {
                self.prepares.retain(|(asker, _)| *asker != node);
                self.end_promise(node);
            }
        }
    }

    /// Answers those that want to be promoted, once what the last Primary wrote here is on the disk:
    /// nothing of it may come behind what clients of the next one read.
    fn answer_prepares(&mut self) {
        if !self.peer_writes.is_empty() && !self.is_near_primary() {
            return;
        }
        if self.is_repairing() {
            // What it writes elsewhere must not come behind what the next Primary writes.
            return;
        }
        for (node, id) in std::mem::take(&mut self.prepares) {
            let answer = self.promise_to(node);
            self.send(node, Message::PromoteReply { id, answer });
        }
    }

    fn promise_to(&mut self, node: NodeId) -> PromoteAnswer {
        if self.is_near_primary() {
            return PromoteAnswer::IAmPrimary;
        }
        let mine_first = self.promotion.as_ref().is_some_and(|p| p.committed || self.node < node);
        let promised = self.promise.as_ref().is_some_and(|p| p.peer != node);
        if mine_first || promised {
            return PromoteAnswer::Busy;
        }
        let Some(peer) = self.peers.get(&node) else { return PromoteAnswer::Busy };
        let behind = self.disk == DiskState::UpToDate
            && peer.disk > DiskState::Inconsistent
            && peer.current != self.gens.current
            && self.gens.history.contains(&peer.current);
        if behind {
            return PromoteAnswer::YouAreOutdated;
        }
        self.surveys.epoch += 1;
        self.promise = Some(Promise { peer: node, until: self.now.after(PROMISE_MS) });
        PromoteAnswer::Yes
    }

    fn end_promise(&mut self, node: NodeId) {
        if self.promise.as_ref().is_some_and(|p| p.peer == node) {
            self.promise = None;
        }
    }

    pub(crate) fn promote_answered(&mut self, node: NodeId, id: u64, answer: PromoteAnswer) {
        let Some(promotion) = self.promotion.as_mut().filter(|p| p.id == id && !p.committed) else {
            return;
        };
        let force = promotion.force;
        match answer {
            PromoteAnswer::Yes => {
                promotion.waiting.remove(node);
            }
            PromoteAnswer::YouAreOutdated if force => {
                promotion.waiting.remove(node);
            }
            PromoteAnswer::YouAreOutdated => self.end_promotion(Err(Refusal::Outdated)),
            PromoteAnswer::IAmPrimary => self.end_promotion(Err(Refusal::PeerIsPrimary(node))),
            PromoteAnswer::Busy => self.end_promotion(Err(Refusal::PeerBusy(node))),
        }
    }

    /// Commits what everyone agreed to, and ends demotions and stops that have nothing to wait for.
    pub(crate) fn finish_role_changes(&mut self) {
        self.answer_prepares();
        let ready = self.promotion.as_ref().is_some_and(|p| !p.committed && p.waiting.is_empty())
            && !self.is_reported()
            && !self.is_adopting()
            && self.peer_writes.is_empty();
        if ready && self.ask_for_promotion() && self.flush_before_decree() {
            self.commit_promotion();
        }
        if let Some(id) = self.demotion
            && self.in_flight() == 0
            && self.role == Role::Primary
            && self.bump.is_none()
        {
            self.send_settled();
            self.role = Role::Secondary;
            self.forget_trails();
            self.bump_for = PeerSet::EMPTY;
            self.following = None;
            self.request_superblock(After::Demoted(id));
        }
        self.progress_stop();
    }

    /// Whether a promotion that is under way makes half of one state and half of another the current
    /// data.
    pub(crate) fn is_decreeing(&self) -> bool {
        self.promotion.as_ref().is_some_and(|p| p.force && !p.committed)
            && self.disk == DiskState::Inconsistent
            && !self.has_good_data()
    }

    /// Blocks of a resync must be durable before the disk says that it is consistent. Whether they are.
    fn flush_before_decree(&mut self) -> bool {
        if !self.is_decreeing() {
            return true;
        }
        if !self.resync_writes.is_empty() {
            return false;
        }
        let (done, came) = (self.flush_done, self.resync_writes_begun);
        match self.promotion.as_ref().and_then(|p| p.flush) {
            Some((number, covers)) if covers == came => number <= done,
            _ => {
                self.disk_flush(DiskJob::DecreeFlush);
                let number = self.flush_issued;
                self.promotion.iter_mut().for_each(|p| p.flush = Some((number, came)));
                false
            }
        }
    }

    fn commit_promotion(&mut self) {
        let force = self.promotion.as_ref().is_some_and(|p| p.force);
        if let Some(refusal) = self.promote_refusal(force) {
            self.end_promotion(Err(refusal));
            return;
        }
        let Some(promotion) = &mut self.promotion else { return };
        promotion.committed = true;
        self.last_write = 0;
        self.last_settled_sent = 0;
        self.void_bump = GenerationId::NONE;
        let decree = force && !self.has_good_data() && self.disk < DiskState::Consistent;
        if decree {
            self.decree();
        } else if self.disk == DiskState::Consistent {
            self.disk = DiskState::UpToDate;
        }
        let good = self.good_peers().next().and_then(|p| self.peers.get(&p));
        self.served = good.map_or(GenerationId::NONE, |p| p.current);
        self.role = Role::Primary;
        self.peers.values_mut().for_each(|p| p.known |= p.up);
        self.forget_trails();
        self.touched_by(None);
        self.following = None;
        self.outdated = false;
        // Nobody writes without it any more.
        self.leaving = 0;
        self.refresh_sets();
        self.bump_for = self.missing;
        self.unflushed.writes += 1;
        // What a crash left in doubt towards those that are away is what they miss from now on.
        for member in self.missing.iter() {
            self.merge_suspects(member);
        }
        self.request_superblock(After::Promoted);
    }

    /// A person says that the local data are the current data: a new generation.
    fn decree(&mut self) {
        let current = GenerationId(self.unique());
        let fresh = self.gens.current == GenerationId::JUST_CREATED;
        if self.disk == DiskState::Inconsistent {
            // Half of one state and half of another: no peer's data are what these came from.
            // What it was stays known, so that a peer with that past is found to be split off.
            let was = std::mem::replace(&mut self.gens.current, current);
            let past = if fresh { self.gens.filled_to(self.node) } else { was };
            self.gens.slots = [GenerationId::NONE; 32];
            self.gens.slots[self.node.index()] = past;
            self.gens.known = [GenerationId::NONE; 32];
        } else if fresh {
            self.gens.current = current;
        } else {
            self.gens.open(self.missing);
            self.gens.push(current);
        }
        self.lost_cache = false;
        for peer in self.peers.values_mut() {
            peer.filled_from = false;
            if peer.is_target() {
                peer.end_resync();
            }
        }
        self.disk = DiskState::UpToDate;
    }

    pub(crate) fn promoted(&mut self) {
        let Some(promotion) = self.promotion.take() else { return };
        let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        let id = promotion.id;
        for peer in &up {
            self.send(*peer, Message::Promote { id, step: PromoteStep::Commit });
        }
        self.announce();
        self.tell_who_is_level();
        if promotion.force {
            for peer in up {
                self.renegotiate(peer);
            }
        }
        self.act(Action::CommandDone(promotion.command, Ok(())));
        self.changed();
    }

    pub(crate) fn demote(&mut self, id: CommandId, force: bool) {
        if self.role != Role::Primary {
            self.act(Action::CommandDone(id, Ok(())));
        } else if self.demotion.is_some() {
            self.act(Action::CommandDone(id, Err(Refusal::Busy)));
        } else if !force && self.in_flight() > 0 {
            self.act(Action::CommandDone(id, Err(Refusal::InUse)));
        } else {
            self.demotion = Some(id);
        }
    }

    pub(crate) fn demoted(&mut self, id: CommandId) {
        self.demotion = None;
        self.announce();
        self.act(Action::CommandDone(id, Ok(())));
        self.changed();
    }

    /// Promotions do not wait for a peer that is gone; nor are they made behind the back of one that
    /// was Primary and had not answered.
    pub(crate) fn role_changes_lost_peer(&mut self, node: NodeId) {
        if let Some(promotion) = &mut self.promotion {
            let owes = promotion.waiting.contains(node);
            promotion.waiting.remove(node);
            if owes && promotion.primaries.contains(node) {
                self.end_promotion(Err(Refusal::PeerIsPrimary(node)));
            }
        }
        self.prepares.retain(|(asker, _)| *asker != node);
        self.end_promise(node);
    }

    pub(crate) fn role_deadline(&self) -> Option<Millis> {
        let promotion = self.promotion.as_ref().filter(|p| !p.committed).map(|p| p.deadline);
        let promise = self.promise.as_ref().map(|p| p.until);
        let stop = self.stopping.as_ref().map(|s| s.deadline);
        [promotion, promise, stop].into_iter().flatten().min()
    }

    pub(crate) fn tick_roles(&mut self) {
        let late = |at: Option<Millis>| at.is_some_and(|at| at <= self.now);
        let promotion_late =
            late(self.promotion.as_ref().filter(|p| !p.committed).map(|p| p.deadline));
        let promise_late = late(self.promise.as_ref().map(|p| p.until));
        if promotion_late {
            let silent = self.promotion.as_ref().map(|p| p.waiting.intersection(p.primaries));
            let primary = silent.and_then(|silent| silent.iter().next());
            self.end_promotion(Err(primary.map_or(Refusal::TimedOut, Refusal::PeerIsPrimary)));
        }
        if promise_late {
            self.promise = None;
        }
    }

    pub(crate) fn detach(&mut self, id: CommandId) {
        let refusal = self.detach_refusal();
        if refusal.is_none() && self.others_go_on() && self.disk >= DiskState::Consistent {
            // What is written from now on is not on this disk, which must say so itself: whoever has
            // it may be gone when this disk comes back.
            self.detaching = true;
            self.request_superblock(After::Detaching(id));
        } else {
            self.detach_now(id);
        }
    }

    fn detach_refusal(&self) -> Option<Refusal> {
        if !self.has_disk() {
            Some(Refusal::Diskless)
        } else if self.role == Role::Primary && self.good_peers().next().is_none() {
            Some(Refusal::LastUpToDate)
        } else {
            None
        }
    }

    /// Whether clients are served by other disks once this node's is gone.
    fn others_go_on(&self) -> bool {
        let primary = self.role == Role::Primary;
        primary || self.peers.keys().any(|node| self.is_left_behind_by(*node))
    }

    pub(crate) fn detach_now(&mut self, id: CommandId) {
        let refusal = self.detach_refusal();
        self.detaching = false;
        if refusal.is_none() {
            self.give_disk_up(DiskState::Diskless);
        } else {
            self.request_superblock(After::Nothing);
        }
        self.act(Action::CommandDone(id, refusal.map_or(Ok(()), Err)));
    }

    pub(crate) fn stop(&mut self, command: CommandId) {
        let deadline = self.now.after(STOP_TIMEOUT_MS);
        if let Some(promotion) = &self.promotion
            && !promotion.committed
        {
            self.end_promotion(Err(Refusal::Busy));
        }
        let mut behind = 0;
        if self.peers.keys().any(|p| self.is_left_behind_by(*p)) {
            self.leaving += 1;
            self.request_superblock(After::Nothing);
            behind = self.meta.as_ref().map_or(0, Meta::wanted);
        }
        self.stopping = Some(Stopping { command, deadline, behind, flushing: false });
    }

    fn progress_stop(&mut self) {
        let Some(stopping) = &self.stopping else { return };
        if stopping.flushing && stopping.deadline <= self.now {
            // The disk does not answer: it is left as a crash would leave it.
            self.act(Action::DiskHung);
            self.stopped();
            return;
        }
        let idle = self.in_flight() == 0
            && self.bump.is_none()
            && self.peer_writes.is_empty()
            && !self.healing.is_storing()
            && self.meta.as_ref().is_none_or(|meta| meta.durable() >= stopping.behind);
        if stopping.flushing || !(idle || stopping.deadline <= self.now) {
            return;
        }
        let deadline = self.now.after(STOP_TIMEOUT_MS);
        if let Some(stopping) = &mut self.stopping {
            (stopping.flushing, stopping.deadline) = (true, deadline);
        }
        let graceful = idle;
        if self.role == Role::Primary && graceful {
            self.send_settled();
        }
        let leaves_primary =
            self.leaving > 0 || self.peers.keys().any(|p| self.is_left_behind_by(*p));
        if self.role == Role::Primary {
            self.role = Role::Secondary;
            self.announce();
        }
        if leaves_primary && self.disk > DiskState::Outdated {
            self.disk = DiskState::Outdated;
            self.outdated = true;
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            self.send(node, Message::Goodbye);
            self.stand_alone(node);
        }
        if self.has_disk() && graceful {
            self.disk_flush(DiskJob::StopFlush);
        } else {
            self.stopped();
        }
    }

    pub(crate) fn stop_flushed(&mut self) {
        if !self.has_disk() {
            self.stopped();
            return;
        }
        // What a crash left in doubt stays so: it becomes bits, which a clean stop keeps.
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.merge_suspects(peer);
            self.note_lost_unsettled(peer);
        }
        self.write_dirty_pages();
        self.mark_clean();
        self.crashed_primary = false;
        self.request_superblock(After::Stopped);
    }

    pub(crate) fn stopped(&mut self) {
        let Some(stopping) = self.stopping.take() else { return };
        if self.meta.take().is_some() {
            self.act(Action::CloseDisk);
        }
        self.disk = DiskState::Diskless;
        self.act(Action::CommandDone(stopping.command, Ok(())));
        self.act(Action::Stopped);
        self.changed();
    }
}
