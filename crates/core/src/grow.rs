//! The device becomes larger while it is in use.
//!
//! What a new size adds reads as zeroes on every disk before any node takes the size, so nothing of
//! it is out of sync. A node takes it when its superblock says so, and tells those that it is
//! connected to by another `Hello`. Clients get it when nobody who is connected has less. Two nodes
//! of different sizes are not connected: the smaller one grows first.

use crate::engine::Core;
use crate::event::{Action, CommandId, Notice, Refusal};
use crate::peer::Peer;
use crate::persist::After;
use holdfast_format::{MAX_DEVICE_SIZE, Placement};
use holdfast_units::{BLOCK_SIZE, NodeId};

impl Core {
    pub(crate) fn grow(&mut self, command: CommandId, size: u64, disk_ready: bool) {
        if let Err(refusal) = self.begin_to_grow(command, size, disk_ready) {
            self.act(Action::CommandDone(command, Err(refusal)));
        }
    }

    fn begin_to_grow(
        &mut self,
        command: CommandId,
        size: u64,
        disk_ready: bool,
    ) -> Result<(), Refusal> {
        if size <= self.config.size {
            self.act(Action::CommandDone(command, Ok(())));
            return Ok(());
        }
        if !size.is_multiple_of(BLOCK_SIZE) || size > MAX_DEVICE_SIZE {
            return Err(Refusal::CannotGrow);
        }
        if self.has_disk() && !disk_ready {
            return Err(Refusal::DiskNotReady);
        }
        if let Some(meta) = &mut self.meta {
            let layout = meta.layout();
            if layout.device_size() != self.config.size {
                return Err(Refusal::Busy);
            }
            // At a disk's end the bitmaps would have to move.
            if matches!(layout.placement(), Placement::Internal { .. }) {
                return Err(Refusal::CannotGrow);
            }
            let larger = layout.with_device_size(size).map_err(|_| Refusal::CannotGrow)?;
            meta.set_layout(larger);
        }
        self.request_superblock(After::Grown { command, size });
        Ok(())
    }

    /// The superblock has the new size. Without a disk there is nothing to wait for.
    pub(crate) fn grown(&mut self, command: CommandId, size: u64) {
        self.config.size = size;
        let blocks = self.blocks();
        // The bitmaps of a resync that is being prepared may be under way: it begins anew.
        let busy: Vec<NodeId> =
            self.peers.values().filter(|p| p.is_busy()).map(|p| p.node).collect();
        for node in busy {
            self.reset(node);
        }
        self.peers.values_mut().for_each(|peer| peer.grow(blocks));
        self.healing.grow(blocks);
        let told: Vec<NodeId> =
            self.peers.values().filter(|p| p.link.is_some()).map(|p| p.node).collect();
        for node in told {
            let greeting = self.greeting(node);
            self.send(node, greeting);
        }
        self.act(Action::CommandDone(command, Ok(())));
        self.changed();
    }

    /// Whether the connection to a peer of this size stands. One that was there when both had the
    /// same may grow before this node does, or after it.
    pub(crate) fn is_welcome(&mut self, node: NodeId, theirs: u64) -> bool {
        let ours = self.config.size;
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        let news = peer.size.replace(theirs) != Some(theirs);
        let welcome = peer.hello || theirs == ours;
        let told = std::mem::replace(&mut peer.size_told, !welcome);
        if news {
            self.changed();
        }
        if !welcome {
            if !told {
                self.notice(Notice::SizesDiffer { peer: node, theirs, ours });
            }
            self.reset(node);
        }
        welcome
    }

    /// Whether a connected peer has grown and this node has not, or the other way round.
    pub(crate) fn sizes_differ(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.size != Some(self.config.size))
    }

    /// Clients get what every connected member has room for.
    pub(crate) fn follow_sizes(&mut self) {
        if self.client_size == self.config.size {
            return;
        }
        let sizes = self.peers.values().filter(|p| p.hello).filter_map(|p| p.size);
        let size = sizes.fold(self.config.size, u64::min);
        if size > self.client_size {
            self.client_size = size;
            self.notice(Notice::Grown(size));
            self.changed();
        }
    }
}

impl Peer {
    /// The device has so many blocks now; no new one differs.
    fn grow(&mut self, blocks: u64) {
        let parts = [
            &mut self.left_to_fill,
            &mut self.differing,
            &mut self.noted_since_start,
            &mut self.stored_now,
            &mut self.unsettled_given_up,
            &mut self.lost_unsettled,
            &mut self.account,
            &mut self.fresher,
            &mut self.missed_meanwhile,
            &mut self.missed_again,
        ];
        let before = self.stored_before.iter_mut().map(|(_, stored)| stored);
        let all = parts.into_iter().flatten().chain(before);
        for bitmap in all.chain(std::iter::once(&mut self.bitmap)) {
            bitmap.resize(blocks, false);
        }
        self.unsettled.grow(blocks);
    }
}
