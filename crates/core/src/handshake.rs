//! The handshake: reports, verdicts, and what follows from a verdict.

use crate::decide::{decide, doubts, knows_newer, mirror};
use crate::engine::Core;
use crate::event::Notice;
use crate::peer::Peer;
use crate::persist::After;
use holdfast_units::{ConnectionState, DiskState, GenerationId, NodeId, ReplicationState, Role};
use holdfast_wire::{Message, StateReport, Verdict};

/// The Primary that a node sees, and whether that has a disk: then it fills everybody itself, as soon
/// as it has good data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Stand {
    pub(crate) primary: Option<NodeId>,
    pub(crate) good: bool,
}

impl Core {
    /// The Primary that this node is or is connected to.
    pub(crate) fn stand(&self) -> Stand {
        if self.role == Role::Primary {
            let good = self.has_disk();
            return Stand { primary: Some(self.node), good };
        }
        let primary = self.peers.values().find(|p| p.up && p.role == Role::Primary);
        let has_disk = |p: &Peer| p.disk > DiskState::Failed && p.disk != DiskState::DUnknown;
        let good = primary.is_some_and(has_disk);
        Stand { primary: primary.map(|p| p.node), good }
    }

    /// Whether this node is a Primary or is connected to one.
    pub(crate) fn is_near_primary(&self) -> bool {
        self.stand().primary.is_some()
    }

    /// Whether another node than these two fills both.
    pub(crate) fn is_filled_by_other(&self, node: NodeId) -> bool {
        let stand = self.stand();
        stand.good && stand.primary.is_some_and(|p| p != node && p != self.node)
    }

    /// A Primary came, went, or lost its data: who copies from whom is found anew.
    pub(crate) fn follow_stand(&mut self) {
        let stand = self.stand();
        if stand == self.stood {
            return;
        }
        if stand.primary != self.stood.primary {
            self.peers.values_mut().for_each(|p| p.vouched = false);
            self.coming = None;
        }
        self.stood = stand;
        self.surveys.epoch += 1;
        self.report_again();
        let mine = stand.primary == Some(self.node);
        let unsettled = |p: &&Peer| {
            let by_primary = mine || stand.primary == Some(p.node);
            p.up && self.is_unequal(p) && !(by_primary && p.is_busy())
        };
        let nodes: Vec<NodeId> = self.peers.values().filter(unsettled).map(|p| p.node).collect();
        for node in nodes {
            // A resync that is running must not end before that.
            self.peers.get_mut(&node).into_iter().for_each(|p| p.overtaken |= p.is_fed());
            self.renegotiate(node);
        }
    }

    /// Whether the two disks are not known to be the same.
    pub(crate) fn is_unequal(&self, peer: &Peer) -> bool {
        let disks = peer.disk > DiskState::Failed && peer.disk != DiskState::DUnknown;
        disks && self.has_disk() && !self.is_equal(peer)
    }

    fn is_equal(&self, peer: &Peer) -> bool {
        peer.replication == ReplicationState::Established && self.could_be_equal(peer)
    }

    /// Whether nothing that is known here stands between the two disks.
    pub(crate) fn could_be_equal(&self, peer: &Peer) -> bool {
        peer.disk == DiskState::UpToDate
            && self.disk == DiskState::UpToDate
            && peer.current == self.gens.current
            && peer.bitmap.count() == 0
    }

    /// Sends a report to a peer with a lower number, as soon as it may be sent.
    pub(crate) fn want_report(&mut self, node: NodeId) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.report_wanted = true;
        peer.awaiting = None;
        peer.handshake_since = now;
    }

    /// Sends the reports that are due.
    pub(crate) fn send_reports(&mut self) {
        if self.is_adopting() || self.bump.is_some() {
            // What is being taken over must be durable before it is told, and what a report says must
            // not change before it is answered.
            return;
        }
        let nodes: Vec<NodeId> =
            self.peers.values().filter(|p| p.report_wanted).map(|p| p.node).collect();
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
        peer.handshake_since = now;
        let report = self.report(node);
        self.send(node, Message::State(Box::new(report)));
    }

    /// Asks a peer with a higher number for a report.
    fn wish_for_report(&mut self, node: NodeId) {
        let report = self.report(node);
        self.send(node, Message::State(Box::new(report)));
    }

    fn report(&self, to: NodeId) -> StateReport {
        let peer = &self.peers[&to];
        let stand = self.stand();
        let mut report = StateReport {
            serial: peer.serial,
            generations: self.gens.report(to),
            role: self.role,
            disk: self.disk,
            doubtful: self.al.as_ref().is_some_and(|al| al.has_suspects(to)),
            crashed_primary: self.crashed_primary,
            lost_cache: self.lost_cache,
            filled_from: self.filled_from(),
            filled_to: self.gens.filled_to(self.node),
            following: self.following,
            discard_my_data: peer.discard_my_data,
            primary: stand.primary,
            primary_good: stand.good,
            serves: self.serves(),
            // A Primary that was not there when that one was lost knows no more of it than that.
            saw_failure: peer.failed || (self.role == Role::Primary && !peer.known),
            bits: peer.bitmap.count(),
            replays: GenerationId::NONE,
            replays_restarted: false,
            untouched: false,
        };
        self.report_replay(peer, &mut report);
        report
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
        for peer in self.peers.values_mut() {
            peer.replace_report();
        }
    }

    /// The same for what one peer was told.
    pub(crate) fn report_again_to(&mut self, node: NodeId) {
        self.peers.get_mut(&node).into_iter().for_each(Peer::replace_report);
    }

    pub(crate) fn state_reported(&mut self, node: NodeId, report: Box<StateReport>) {
        if self.node > node {
            // The lower node wishes a verdict on a fresh report: an older one is void there.
            self.want_report(node);
        } else if let Some(peer) = self.peers.get_mut(&node) {
            peer.reported = Some(report);
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
            if self.sees_another_primary(node) {
                // Perhaps it is only not noticed yet that that one is gone.
                continue;
            }
            let Some(theirs) = self.peers.get_mut(&node).and_then(|p| p.reported.take()) else {
                continue;
            };
            let mut mine = self.report(node);
            let mut verdict = decide(self.node, &mine, node, &theirs);
            if self.mark_lost_unsettled(node, verdict) {
                mine = self.report(node);
                verdict = decide(self.node, &mine, node, &theirs);
            }
            let answers = theirs.serial;
            self.send(node, Message::Verdict { answers, verdict, state: Box::new(mine.clone()) });
            self.peers.get_mut(&node).into_iter().for_each(|p| p.verdict_serial = answers);
            self.apply_verdict(node, verdict, &mine, &theirs);
        }
    }

    /// Whether one of two is a Primary and the other one is still connected to another Primary.
    /// Nobody gets the writes of two.
    fn sees_another_primary(&self, node: NodeId) -> bool {
        let Some(theirs) = self.peers.get(&node).and_then(|p| p.reported.as_ref()) else {
            return false;
        };
        let mine = self.stand().primary;
        let one_is_primary = (self.role == Role::Primary) != (theirs.role == Role::Primary);
        one_is_primary && mine.is_some() && theirs.primary.is_some() && mine != theirs.primary
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
        let verdict = mirror(verdict);
        // What that marks counts for this verdict or, if that says that nothing differs, brings a new one.
        self.mark_lost_unsettled(node, verdict);
        let mine = self.report(node);
        self.apply_verdict(node, verdict, &mine, state);
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
            | Verdict::SourceReplay
            | Verdict::TargetReplay
                if !self.has_disk() || self.sizes_differ(node) =>
            {
                // The disk failed since it was reported; or one of the two has yet to grow, and what is
                // said of the other's blocks is not for it.
                self.reset(node);
                return;
            }
            _ => {
                let was_up = self.peers.get(&node).is_some_and(|p| p.up);
                self.peer_is_up(node, theirs);
                self.start_replication(node, verdict, mine, theirs);
                if !was_up {
                    self.tell_pause_to_newcomer(node);
                }
                return;
            }
        }
        self.stand_alone(node);
    }

    fn peer_is_up(&mut self, node: NodeId, theirs: &StateReport) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.up = true;
        peer.known |= self.role == Role::Primary;
        peer.connection = ConnectionState::Connected;
        peer.role = theirs.role;
        peer.disk = theirs.disk;
        let failed = theirs.disk == DiskState::Failed && !peer.failed;
        peer.failed |= failed;
        peer.current = theirs.generations.current;
        peer.seen |= theirs.disk > DiskState::Failed;
        peer.discard_my_data = false;
        peer.early.append(&mut peer.held);
        std::mem::swap(&mut peer.early, &mut peer.held);
        peer.end_resync();
        if failed {
            self.request_superblock(After::Nothing);
        }
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
        let paused = matches!(verdict, Verdict::PausedSource | Verdict::PausedTarget);
        let decided = both_disks && !paused && verdict != Verdict::NoGoodData;
        if matches!(verdict, Verdict::SourceBitmap) {
            self.resume_fill(node, theirs);
        }
        if decided && doubts(mine, node, theirs) {
            self.merge_suspects(node);
        } else if decided && let Some(al) = &mut self.al {
            al.take_suspects(node);
        }
        if verdict != Verdict::SourceReplay {
            self.peers.get_mut(&node).into_iter().for_each(|p| p.trail = None);
        }
        match verdict {
            Verdict::SourceReplay => self.begin_feed(node, theirs),
            Verdict::TargetReplay => self.begin_to_be_caught_up(node),
            Verdict::SourceBitmap | Verdict::SourceFull => {
                self.become_source(node, verdict == Verdict::SourceFull, theirs);
            }
            Verdict::TargetBitmap | Verdict::TargetFull => {
                let full = verdict == Verdict::TargetFull;
                self.become_target(node, full, theirs.generations.current);
            }
            Verdict::PausedSource | Verdict::PausedTarget => {
                self.wait_for_primary(node, verdict == Verdict::PausedTarget, theirs);
            }
            Verdict::InSync if both_disks => {
                debug_assert!(!doubts(mine, node, theirs), "in sync although in doubt");
                self.in_sync(node, theirs);
            }
            _ => self.connected_without_data(node, mine, theirs),
        }
        self.clear_crash_marks();
        self.refresh_sets();
        self.missed_by_unknown(node, theirs);
        self.connected_during_promotion(node);
        self.changed();
    }

    /// A member that was away may have filled another one meanwhile, and take it for equal: it must know
    /// durably what that one misses from now on.
    fn missed_by_unknown(&mut self, node: NodeId, theirs: &StateReport) {
        if self.role != Role::Primary || theirs.disk <= DiskState::Inconsistent {
            return;
        }
        let slots = &theirs.generations.slots;
        let unknown = self.missing.iter().filter(|m| *m != node && slots[m.index()].is_none());
        self.bump_for = self.bump_for.union(unknown.collect());
    }

    /// A Primary fills both, or goes on without the one that does not see it.
    fn wait_for_primary(&mut self, node: NodeId, target: bool, theirs: &StateReport) {
        let (stand, current) = (self.stand(), self.gens.current);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.replication =
            if target { ReplicationState::PausedSyncT } else { ReplicationState::PausedSyncS };
        peer.left_to_primary = true;
        if peer.vouched && stand.primary.is_some() && stand.primary == theirs.primary {
            // That came after the reports were made.
            self.take_word_for(node);
        }
        let left_behind = target
            && stand.primary.is_none()
            && self.disk > DiskState::Outdated
            && theirs.generations.current != current;
        if left_behind {
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        self.next_source();
    }

    /// The peer's disk equals the local one.
    fn in_sync(&mut self, node: NodeId, theirs: &StateReport) {
        self.gens.slots[node.index()] = GenerationId::NONE;
        self.gens.known[node.index()] = theirs.generations.current;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.failed = false;
        peer.replication = ReplicationState::Established;
        let newer_bits = peer.bitmap.count() > 0;
        let (mine, other) = (self.disk, peer.disk);
        // Who knows that newer data are somewhere does not forget it for one that knows nothing.
        let good = mine == DiskState::UpToDate
            || other == DiskState::UpToDate
            || (mine == DiskState::Consistent && other == DiskState::Consistent);
        if good && other > DiskState::Inconsistent && mine > DiskState::Inconsistent {
            // It comes to the same conclusion.
            peer.disk = DiskState::UpToDate;
            self.set_disk(DiskState::UpToDate);
        }
        if !theirs.lost_cache {
            self.lost_cache = false;
        }
        if self.role == Role::Primary {
            self.tell_synced(node);
        }
        self.next_source();
        self.settle_with_all();
        self.note_level(node);
        self.request_superblock(After::Nothing);
        if newer_bits {
            // Noted since the reports were made.
            self.renegotiate(node);
        }
    }

    /// When every member with a disk is connected and has the same data, nobody has newer ones.
    pub(crate) fn settle_with_all(&mut self) {
        let unknown = matches!(self.disk, DiskState::Outdated | DiskState::Consistent);
        let same = |p: &Peer| {
            p.up && p.replication == ReplicationState::Established
                && p.disk >= DiskState::Outdated
                && p.disk != DiskState::DUnknown
                && p.current == self.gens.current
                && p.bitmap.count() == 0
        };
        let mut members = self.peers.values().filter(|p| !p.diskless).peekable();
        // One that leaves a Primary is Outdated before it is gone.
        let alone = self.role == Role::Primary || !self.stand().good;
        if unknown && alone && members.peek().is_some() && members.all(same) {
            self.set_disk(DiskState::UpToDate);
            self.request_superblock(After::Nothing);
        }
    }

    /// Connected, but there is nothing to copy: a side has no disk, or neither has good data.
    fn connected_without_data(&mut self, node: NodeId, mine: &StateReport, theirs: &StateReport) {
        let they_have_disk = theirs.disk > DiskState::Failed;
        let both_disks = they_have_disk && self.has_disk();
        if let Some(peer) = self.peers.get_mut(&node) {
            // Without a common past in the disks, writes would only mix them up.
            peer.replication =
                if both_disks { ReplicationState::Off } else { ReplicationState::Established };
        }
        let served = theirs.serves;
        let current = if served.is_none() { theirs.generations.current } else { served };
        if theirs.disk == DiskState::UpToDate {
            self.learn_generation(current);
        }
        let other_served = !theirs.serves.is_none() && theirs.serves != self.gens.current;
        let newer_known = !self.is_near_primary() && knows_newer(theirs, mine);
        if both_disks && (other_served || newer_known) && self.disk > DiskState::Outdated {
            self.set_disk(DiskState::Outdated);
            self.request_superblock(After::Nothing);
        }
        // A Primary without a disk knows which generation is the current one.
        if !they_have_disk
            && theirs.role == Role::Primary
            && !current.is_none()
            && self.disk >= DiskState::Outdated
        {
            let only_disk = self.peers.values().all(|p| p.diskless);
            let newest = is_newest(node, theirs, mine, only_disk);
            self.set_disk(if newest { DiskState::UpToDate } else { DiskState::Outdated });
            self.request_superblock(After::Nothing);
        }
        if !self.has_disk() && self.role == Role::Primary && theirs.disk >= DiskState::Outdated {
            let only_disk =
                !self.diskful && self.peers.values().all(|p| p.diskless || p.node == node);
            let newest = is_newest(self.node, mine, theirs, only_disk);
            // It comes to the same conclusion.
            let disk = if newest { DiskState::UpToDate } else { DiskState::Outdated };
            self.peers.get_mut(&node).into_iter().for_each(|p| p.disk = disk);
        }
        self.forget_bits_without_disk(node);
        // It may have been the source of a resync that is over by that.
        self.next_source();
    }

    /// When nothing is suspect or noted any more, the crash is history.
    pub(crate) fn clear_crash_marks(&mut self) {
        let mut members = self.peers.values().filter(|p| !p.diskless);
        let suspect = |p: &Peer| self.al.as_ref().is_some_and(|al| al.has_suspects(p.node));
        let suspects = members.clone().any(suspect);
        let bits = members.any(|p| p.bitmap.count() > 0);
        let cleared =
            (self.crashed_primary && !suspects) || (self.lost_cache && !suspects && !bits);
        if cleared {
            self.crashed_primary = false;
            self.lost_cache &= bits;
            self.request_superblock(After::Nothing);
        }
    }
}

/// Whether a member's disk is what the clients of a Primary without a disk work on. What it lost in a
/// crash was answered to clients that are still there; an only disk is all that there is.
fn is_newest(primary: NodeId, its: &StateReport, disk: &StateReport, only_disk: bool) -> bool {
    let current = if its.serves.is_none() { its.generations.current } else { its.serves };
    let lacking = disk.lost_cache || doubts(disk, primary, its);
    current == disk.generations.current && (!lacking || only_disk)
}
