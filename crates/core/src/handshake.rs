//! The handshake: reports, verdicts, and what follows from a verdict.

use crate::decide::{decide, doubts, have_same_primary, is_history, mirror};
use crate::engine::Core;
use crate::event::Notice;
use crate::link::Peer;
use crate::persist::After;
use holdfast_units::{ConnectionState, DiskState, GenerationId, NodeId, ReplicationState, Role};
use holdfast_wire::{Message, StateReport, Verdict};

/// So many answers of a Primary must have come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    primary: NodeId,
    pongs: u64,
}

impl Core {
    /// Whether this node is a Primary or is connected to one.
    pub(crate) fn is_near_primary(&self) -> bool {
        self.role == Role::Primary || self.peers.values().any(|p| p.up && p.role == Role::Primary)
    }

    /// Sends a report to a peer with a lower number, as soon as it may be sent.
    pub(crate) fn want_report(&mut self, node: NodeId) {
        let (now, barrier) = (self.now, self.begin_barrier(node));
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.report_wanted = true;
        peer.barrier = barrier;
        peer.handshake_since = now;
    }

    /// What this node must have received before it can be compared with a peer that may have lost
    /// the Primary which this node follows: all that the Primary has sent until now. Then no write
    /// that the peer has answered is missing here, so it is no loss if the peer gets what is here.
    fn begin_barrier(&mut self, with: NodeId) -> Option<Barrier> {
        let primary = self.peers.values().find(|p| p.up && p.role == Role::Primary)?.node;
        if primary == with || self.role == Role::Primary {
            return None;
        }
        self.ping(primary);
        Some(Barrier { primary, pongs: self.peers[&primary].pings })
    }

    fn has_passed(&self, barrier: Barrier) -> bool {
        self.peers
            .get(&barrier.primary)
            .is_none_or(|p| !p.up || p.role != Role::Primary || p.pongs >= barrier.pongs)
    }

    /// Sends the reports that nothing stands before any more.
    pub(crate) fn send_reports(&mut self) {
        let due = |p: &&Peer| p.report_wanted && p.barrier.is_none_or(|b| self.has_passed(b));
        let nodes: Vec<NodeId> = self.peers.values().filter(due).map(|p| p.node).collect();
        for node in nodes {
            self.report_state(node);
        }
    }

    fn report_state(&mut self, node: NodeId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.serial += 1;
        peer.awaiting = Some(peer.serial);
        peer.report_wanted = false;
        peer.barrier = None;
        peer.handshake_since = now;
        let report = self.report(node);
        self.send(node, Message::State(Box::new(report)));
    }

    /// Asks a peer with a higher number for a report.
    fn wish_for_report(&mut self, node: NodeId) {
        let lost = self.primaries_lost;
        self.peers.get_mut(&node).into_iter().for_each(|p| p.asked_at = lost);
        let report = self.report(node);
        self.send(node, Message::State(Box::new(report)));
    }

    fn report(&self, to: NodeId) -> StateReport {
        let peer = &self.peers[&to];
        StateReport {
            serial: peer.serial,
            generations: self.gens.report(to),
            role: self.role,
            disk: self.disk,
            doubtful: self.al.as_ref().is_some_and(|al| al.has_suspects(to)),
            crashed_primary: self.crashed_primary,
            boot_changed: self.boot_changed,
            following: self.following,
            discard_my_data: peer.discard_my_data,
            near_primary: self.is_near_primary(),
            bits: peer.bitmap.count(),
            noted: peer.noted,
            has: self.has,
        }
    }

    /// Asks for a new verdict on a connection that is up.
    pub(crate) fn renegotiate(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node).filter(|p| p.up) else { return };
        if self.node < node {
            self.wish_for_report(node);
        } else if peer.awaiting.is_none() && !peer.report_wanted {
            self.want_report(node);
        }
    }

    /// What reports said that nobody has answered yet is not so any more: newer ones replace them.
    pub(crate) fn report_again(&mut self) {
        let open = |p: &&Peer| p.awaiting.is_some();
        let nodes: Vec<NodeId> = self.peers.values().filter(open).map(|p| p.node).collect();
        for node in nodes {
            self.report_state(node);
        }
    }

    /// The Primary is gone: do those that are left hold the same?
    pub(crate) fn renegotiate_all(&mut self) {
        let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
        for node in up {
            self.renegotiate(node);
        }
    }

    /// Nobody writes any more: those that were left behind can catch up for good.
    pub(crate) fn renegotiate_unequal(&mut self) {
        let outdated = self.disk == DiskState::Outdated;
        let unequal = |p: &&Peer| {
            p.replication == ReplicationState::Established
                && p.role != Role::Primary
                && (outdated || p.disk == DiskState::Outdated || p.bitmap.count() > 0)
        };
        let nodes: Vec<NodeId> = self.peers.values().filter(unequal).map(|p| p.node).collect();
        for node in nodes {
            self.renegotiate(node);
        }
    }

    pub(crate) fn state_reported(&mut self, node: NodeId, report: Box<StateReport>) {
        if self.node > node {
            // The lower node wishes a verdict on a fresh report: an older one is void there.
            self.want_report(node);
        } else if let Some(peer) = self.peers.get_mut(&node) {
            peer.reported = Some(report);
            peer.barrier = None;
        }
    }

    /// Decides on the reports that came, when nothing is in the way.
    pub(crate) fn answer_states(&mut self) {
        let waiting: Vec<NodeId> =
            self.peers.values().filter(|p| p.reported.is_some()).map(|p| p.node).collect();
        for node in waiting {
            if self.bump.is_some() || self.is_reported() || self.is_adopting() {
                return;
            }
            if self.peers.get(&node).is_some_and(|p| p.generations_sent) {
                // It is taking over what this node sent: its next report will say so.
                continue;
            }
            if !self.is_comparable(node) {
                continue;
            }
            let Some(theirs) = self.peers.get_mut(&node).and_then(|p| p.reported.take()) else {
                continue;
            };
            let mine = self.report(node);
            let verdict = decide(self.node, &mine, node, &theirs);
            let answers = theirs.serial;
            self.send(node, Message::Verdict { answers, verdict, state: Box::new(mine.clone()) });
            self.peers.get_mut(&node).into_iter().for_each(|p| p.verdict_serial = answers);
            self.apply_verdict(node, verdict, &mine, &theirs);
        }
    }

    /// Whether the one of the two that follows a Primary has all that the other one can have got
    /// from that Primary. If not, this node does what it can for it.
    fn is_comparable(&mut self, node: NodeId) -> bool {
        let Some(peer) = self.peers.get(&node) else { return false };
        let Some(theirs) = &peer.reported else { return false };
        let near = self.is_near_primary();
        if near == theirs.near_primary || theirs.role == Role::Primary {
            return true;
        }
        if theirs.near_primary {
            // It must report after this node has lost its Primary.
            let fresh = peer.asked_at == self.primaries_lost;
            if !fresh {
                self.peers.get_mut(&node).into_iter().for_each(|p| p.reported = None);
                self.wish_for_report(node);
            }
            return fresh;
        }
        match peer.barrier {
            Some(barrier) => self.has_passed(barrier),
            None => {
                let barrier = self.begin_barrier(node);
                self.peers.get_mut(&node).into_iter().for_each(|p| p.barrier = barrier);
                barrier.is_none()
            }
        }
    }

    pub(crate) fn verdict_arrived(
        &mut self,
        node: NodeId,
        answers: u32,
        verdict: Verdict,
        state: &StateReport,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.awaiting != Some(answers) {
            return;
        }
        peer.awaiting = None;
        peer.verdict_serial = answers;
        let mine = self.report(node);
        self.apply_verdict(node, mirror(verdict), &mine, state);
    }

    /// What a verdict, seen from this node, leads to.
    fn apply_verdict(
        &mut self,
        node: NodeId,
        verdict: Verdict,
        mine: &StateReport,
        theirs: &StateReport,
    ) {
        match verdict {
            Verdict::SplitBrain => self.notice(Notice::SplitBrain(node)),
            Verdict::Unrelated => self.notice(Notice::UnrelatedData(node)),
            Verdict::TwoPrimaries => self.notice(Notice::TwoPrimaries(node)),
            Verdict::PrimaryMustNotBeTarget => {
                let text = "a Primary would have to give up data that are in use".to_owned();
                self.notice(Notice::PeerRefused(node, text));
            }
            Verdict::SourceBitmap
            | Verdict::SourceFull
            | Verdict::TargetBitmap
            | Verdict::TargetFull
                if !self.has_disk() =>
            {
                // The disk failed since it was reported.
                self.reset(node);
                return;
            }
            _ => {
                self.peer_is_up(node, theirs);
                self.start_replication(node, verdict, mine, theirs);
                return;
            }
        }
        self.stand_alone(node);
    }

    fn peer_is_up(&mut self, node: NodeId, theirs: &StateReport) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.up = true;
        peer.connection = ConnectionState::Connected;
        peer.role = theirs.role;
        peer.disk = theirs.disk;
        peer.epoch = theirs.has.epoch;
        peer.current = theirs.generations.current;
        peer.seen |= theirs.disk > DiskState::Failed;
        peer.discard_my_data = false;
        peer.early.append(&mut peer.held);
        std::mem::swap(&mut peer.early, &mut peer.held);
        peer.end_resync();
        self.follow(node);
    }

    /// Remembers which Primary this node follows.
    pub(crate) fn follow(&mut self, node: NodeId) {
        let primary = self.peers.get(&node).is_some_and(|p| p.role == Role::Primary);
        if primary && self.following != Some(node) {
            self.following = Some(node);
            self.request_superblock(After::Nothing);
        }
    }

    fn start_replication(
        &mut self,
        node: NodeId,
        verdict: Verdict,
        mine: &StateReport,
        theirs: &StateReport,
    ) {
        let both_disks = mine.disk > DiskState::Failed && theirs.disk > DiskState::Failed;
        let same = mine.generations.current == theirs.generations.current;
        let consistent =
            mine.disk > DiskState::Inconsistent && theirs.disk > DiskState::Inconsistent;
        if same && consistent && is_history(mine, node, theirs) {
            self.forget_older_bits(node);
        }
        let decided = both_disks && verdict != Verdict::NoGoodData;
        if decided && doubts(mine, node, theirs) {
            self.merge_suspects(node);
        } else if decided && let Some(al) = &mut self.al {
            al.take_suspects(node);
        }
        match verdict {
            Verdict::SourceBitmap | Verdict::SourceFull => {
                self.become_source(node, verdict == Verdict::SourceFull, theirs);
            }
            Verdict::TargetBitmap | Verdict::TargetFull => {
                self.become_target(node, verdict == Verdict::TargetFull);
            }
            Verdict::InSync if both_disks => {
                debug_assert!(!doubts(mine, node, theirs), "in sync although in doubt");
                self.in_sync(node, theirs.generations.current);
                if !have_same_primary(mine, theirs) {
                    self.level_with(node, theirs);
                }
            }
            _ => self.connected_without_data(node, theirs),
        }
        self.clear_crash_marks();
        self.refresh_sets();
        self.connected_during_promotion(node);
        self.changed();
    }

    /// Both are of one generation: what was noted for an older one of the peer is over.
    fn forget_older_bits(&mut self, node: NodeId) {
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.peers.get_mut(&node).into_iter().for_each(Peer::clear_bits);
    }

    /// The peer's disk equals the local one.
    pub(crate) fn in_sync(&mut self, node: NodeId, theirs: GenerationId) {
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.gens.known[node.index()] = theirs;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.replication = ReplicationState::Established;
        if peer.role == Role::Primary {
            // From here on its writes come without a gap.
            self.has_stands = false;
        }
        if peer.disk == DiskState::Consistent && self.disk >= DiskState::Consistent {
            // It comes to the same conclusion; its report says so in a moment.
            peer.disk = DiskState::UpToDate;
        }
        let good = peer.disk >= DiskState::Consistent || self.disk >= DiskState::Consistent;
        if good && self.disk > DiskState::Inconsistent {
            self.set_disk(DiskState::UpToDate);
        }
        if self.role == Role::Primary {
            self.tell_synced(node);
        }
        self.next_source();
        self.request_superblock(After::Nothing);
    }

    /// Both have the same, so this node has what the other one has received.
    fn level_with(&mut self, node: NodeId, theirs: &StateReport) {
        let same_epoch = self.has.epoch == theirs.has.epoch;
        let newer = same_epoch && self.has.seq < theirs.has.seq;
        if self.role != Role::Primary
            && (newer || self.has.epoch == 0 || (!same_epoch && theirs.role == Role::Primary))
        {
            self.has = theirs.has;
        }
        // Something may have been noted since the reports were made.
        if self.peers.get(&node).is_some_and(|p| p.bitmap.count() > 0) {
            self.renegotiate(node);
        }
    }

    /// Connected, but there is nothing to copy: a side has no disk, or neither has good data.
    fn connected_without_data(&mut self, node: NodeId, theirs: &StateReport) {
        let they_have_disk = theirs.disk > DiskState::Failed;
        let both_disks = they_have_disk && self.has_disk();
        if let Some(peer) = self.peers.get_mut(&node) {
            // Without a common past in the disks, writes would only mix them up.
            peer.replication =
                if both_disks { ReplicationState::Off } else { ReplicationState::Established };
        }
        let current = theirs.generations.current;
        if !self.has_disk() && !self.diskful && theirs.disk == DiskState::UpToDate {
            self.gens.current = current;
        }
        // A Primary without a disk knows which generation is the current one.
        if !they_have_disk
            && theirs.role == Role::Primary
            && !current.is_none()
            && self.disk >= DiskState::Outdated
        {
            let newest = current == self.gens.current;
            self.set_disk(if newest { DiskState::UpToDate } else { DiskState::Outdated });
            self.request_superblock(After::Nothing);
        }
        // It may have been the source of a resync that is over by that.
        self.next_source();
    }

    /// When nothing is suspect any more, the crash is history.
    fn clear_crash_marks(&mut self) {
        let suspect = self
            .peers
            .values()
            .filter(|p| !p.diskless)
            .any(|p| self.al.as_ref().is_some_and(|al| al.has_suspects(p.node)));
        if !suspect && (self.crashed_primary || self.boot_changed) {
            self.crashed_primary = false;
            self.boot_changed = false;
            self.request_superblock(After::Nothing);
        }
    }
}
