//! Generations: which data a disk holds, and what its peers miss.
//!
//! A new generation begins when a Primary goes on without a member that has a disk. It becomes
//! durable on every peer that still gets the writes, then here; only then do writes complete that
//! the lost member did not get (promise 2). Peers first: a Primary that dies in between leaves
//! nobody who would take its return for a split brain.

use crate::engine::Core;
use crate::event::LinkId;
use crate::peer::Peer;
use crate::persist::After;
use crate::planted::PlantedBug;
use holdfast_format::HISTORY_LEN;
use holdfast_units::{DiskState, GenerationId, NodeId, PeerSet, Role};
use holdfast_wire::{Generations, Message};

/// The generations of the local data.
#[derive(Clone, Debug)]
pub(crate) struct Gens {
    pub(crate) current: GenerationId,
    pub(crate) history: [GenerationId; HISTORY_LEN],
    /// By node: since which generation of its data the bitmap collects what it misses.
    pub(crate) slots: [GenerationId; 32],
    /// By node: the last generation that it is known to have durably.
    pub(crate) known: [GenerationId; 32],
}

impl Default for Gens {
    fn default() -> Self {
        Self {
            current: GenerationId::NONE,
            history: [GenerationId::NONE; HISTORY_LEN],
            slots: [GenerationId::NONE; 32],
            known: [GenerationId::NONE; 32],
        }
    }
}

impl Gens {
    /// Begins a new generation: the old one becomes the newest past one.
    pub(crate) fn push(&mut self, current: GenerationId) {
        let old = std::mem::replace(&mut self.current, current);
        if !old.is_none() && old != GenerationId::JUST_CREATED {
            self.history.rotate_right(1);
            self.history[0] = old;
        }
    }

    /// Opens the slots of members that miss writes from now on.
    pub(crate) fn open(&mut self, members: PeerSet) {
        for member in members.iter() {
            let i = member.index();
            if self.slots[i].is_none() {
                let known = self.known[i];
                self.slots[i] = if known.is_none() { self.current } else { known };
            }
        }
    }

    /// The generation that this node's disk is being filled up to, by the Primary or a source that
    /// it began with. It is kept in the node's own place in the table of members.
    pub(crate) fn filled_to(&self, node: NodeId) -> GenerationId {
        self.known[node.index()]
    }

    /// See [`Self::filled_to`].
    pub(crate) fn fill_to(&mut self, node: NodeId, generation: GenerationId) {
        self.known[node.index()] = generation;
    }

    /// What a peer is told.
    pub(crate) fn report(&self, to: NodeId) -> Generations {
        let i = to.index();
        let base = if self.slots[i].is_none() { self.known[i] } else { self.slots[i] };
        Generations { current: self.current, base, history: self.history, slots: self.slots }
    }
}

/// A new generation on its way.
#[derive(Debug)]
pub(crate) struct Bump {
    previous: GenerationId,
    current: GenerationId,
    opened: PeerSet,
    /// Peers that are there and do not get it.
    left: PeerSet,
    /// Peers that have not said that it is durable there.
    waiting: PeerSet,
    /// Peers that have said so and are still there.
    told: PeerSet,
    /// Peers have it; it is being written here.
    writing: bool,
}

/// A generation that a Primary told while this node was being filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewGeneration {
    pub(crate) previous: GenerationId,
    pub(crate) current: GenerationId,
    pub(crate) opened: PeerSet,
}

impl Core {
    /// Whether a verdict is being waited for that was asked for by a report of ours: what the
    /// report says must not change meanwhile.
    pub(crate) fn is_reported(&self) -> bool {
        self.peers.values().any(|p| p.awaiting.is_some())
    }

    pub(crate) fn needs_bump(&self) -> bool {
        self.role == Role::Primary
            && !self.bump_for.is_empty()
            // Without good data nothing is written, so there is nothing that anybody could miss.
            && self.has_good_data()
            && !self.has_bug(PlantedBug::NoGenerationBump)
    }

    pub(crate) fn start_bump_if_needed(&mut self) {
        if self.bump.is_none() && !self.needs_bump() {
            // Whoever was lost came back before a new generation began. One that got the journal has
            // what it missed, too.
            self.go_on_with_writes();
            self.go_on_with_flushes();
            if std::mem::take(&mut self.writes_held) {
                let running: Vec<usize> = self.writes.iter().map(|(key, _)| key).collect();
                running.into_iter().for_each(|key| self.write_progress(key));
            }
        }
        if self.bump.is_some() || !self.needs_bump() || self.is_reported() {
            return;
        }
        let wanted = !self.want_generation.is_empty()
            || self.flushes_wait
            || self.writes.iter().any(|(_, w)| !w.missed.intersection(self.bump_for).is_empty());
        if !wanted {
            return;
        }
        let serves = self.serves();
        let previous = if serves.is_none() { self.gens.current } else { serves };
        let current = GenerationId(self.unique());
        let left = self.came_back_with_less();
        let opened = self.missing.union(left);
        self.bump_for = PeerSet::EMPTY;
        let (waiting, told) = (self.receivers.difference(left), PeerSet::EMPTY);
        self.bump = Some(Bump { previous, current, opened, left, waiting, told, writing: false });
        for peer in waiting.iter() {
            self.send(peer, Message::NewGeneration { previous, current, opened });
        }
        self.bump_progress();
    }

    /// Peers that came back without a write that waits to be completed, where this node is being filled
    /// itself and so does not fill them, and another one has good data.
    fn came_back_with_less(&self) -> PeerSet {
        if self.may_adopt() {
            return PeerSet::EMPTY;
        }
        let fed = |node: &NodeId| self.peers.get(node).is_some_and(Peer::is_fed);
        let returned = self.bump_for.difference(self.missing).iter();
        let returned: PeerSet = returned.filter(|node| !fed(node)).collect();
        let others = self.good_peers().any(|node| !returned.contains(node));
        if others { returned } else { PeerSet::EMPTY }
    }

    /// A peer has the new generation durably.
    pub(crate) fn bump_answered(&mut self, peer: NodeId) {
        if let Some(bump) = &mut self.bump {
            bump.waiting.remove(peer);
            bump.told.insert(peer);
            self.bump_progress();
        }
    }

    /// A peer that was to have the new generation is gone.
    pub(crate) fn bump_lost(&mut self, peer: NodeId) {
        if let Some(bump) = &mut self.bump {
            bump.waiting.remove(peer);
            bump.told.remove(peer);
            self.bump_progress();
        }
    }

    fn bump_progress(&mut self) {
        let Some(bump) = &mut self.bump else { return };
        if !bump.waiting.is_empty() || bump.writing {
            return;
        }
        bump.writing = true;
        let (current, opened, told) = (bump.current, bump.opened, bump.told);
        if self.disk <= DiskState::Inconsistent && !self.good_peers().any(|p| told.contains(p)) {
            // Nobody that has it is left: there is no such generation.
            self.request_superblock(After::Bump);
            return;
        }
        self.served = current;
        // A node that is being filled takes the generations of its source over in the end.
        if self.may_adopt() {
            // Before the new current: the slot tells what the member had until now.
            self.gens.open(opened);
            self.gens.push(current);
            self.lost_cache = false;
            for peer in self.receivers.difference(opened).iter() {
                self.gens.known[peer.index()] = current;
            }
        }
        self.request_superblock(After::Bump);
    }

    /// The new generation is durable here.
    pub(crate) fn bump_done(&mut self) {
        let Some(bump) = self.bump.take() else { return };
        let here = self.disk > DiskState::Inconsistent;
        if !here && !self.good_peers().any(|p| bump.told.contains(p)) {
            // Nobody that has it is left.
            self.served = bump.previous;
            self.void_bump = bump.current;
            self.bump_for = self.bump_for.union(bump.opened);
            self.refresh_sets();
        } else {
            self.void_bump = GenerationId::NONE;
        }
        self.announce();
        for peer in bump.left.iter() {
            self.renegotiate(peer);
        }
        self.tell_who_is_level();
        self.go_on_with_writes();
        self.go_on_with_flushes();
        let held: Vec<usize> =
            self.writes.iter().filter(|(_, w)| !w.missed.is_empty()).map(|(k, _)| k).collect();
        for key in held {
            self.write_progress(key);
        }
        self.changed();
    }

    /// Starts the writes that waited for a new generation.
    fn go_on_with_writes(&mut self) {
        if self.holds_writes() {
            return;
        }
        let waiting = std::mem::take(&mut self.want_generation);
        self.runnable.extend(waiting.into_iter().map(crate::locks::Owner::Write));
    }

    /// A Primary told of its new generation.
    pub(crate) fn adopt_generation(
        &mut self,
        from: NodeId,
        previous: GenerationId,
        current: GenerationId,
        opened: PeerSet,
    ) {
        if self.may_adopt() && self.gens.current == previous {
            let mut opened = opened;
            opened.remove(self.node);
            self.gens.open(opened);
            self.gens.push(current);
            // Whoever kept more in its cache is left behind now, and will be filled from here.
            self.lost_cache = false;
            for member in opened.iter() {
                if let Some(peer) = self.peers.get_mut(&member) {
                    peer.vouched = false;
                    // What it is being filled with from here is not all of this one.
                    peer.overtaken |= peer.is_fed();
                }
            }
            let link = self.link_of(from).unwrap_or(LinkId(0));
            self.request_superblock(After::GenerationAdopted { peer: from, link, current });
            self.hold(from);
            self.report_again();
        } else {
            // A resync target takes its source's generations over when it has everything. A source
            // that is not the Primary may not have had this one then.
            self.coming = Some(NewGeneration { previous, current, opened });
            if let Some(peer) = self.peers.get_mut(&from).filter(|p| p.fill_goal == previous) {
                // It gets all of this one too.
                peer.fill_goal = current;
                if self.gens.filled_to(self.node) == previous {
                    self.gens.fill_to(self.node, current);
                    self.request_superblock(After::Nothing);
                }
            }
            self.send(from, Message::GenerationAck { current });
        }
    }

    /// The generation of the data that this Primary's clients work on while its own disk has failed or
    /// is being filled with them.
    pub(crate) fn serves(&self) -> GenerationId {
        let elsewhere =
            self.role == Role::Primary && self.diskful && self.disk != DiskState::UpToDate;
        if elsewhere { self.served } else { GenerationId::NONE }
    }

    fn may_adopt(&self) -> bool {
        !self.has_disk() || self.disk > DiskState::Inconsistent
    }
}
