//! A person gives up one node's data: all is compared, and what differs is copied anew.

use crate::engine::Core;
use crate::event::{CommandId, Refusal};
use crate::peer::Peer;
use holdfast_units::{DiskState, NodeId, ReplicationState, Role};
use holdfast_wire::Message;

impl Core {
    pub(crate) fn invalidate(&mut self, id: CommandId, which: Option<NodeId>) {
        let changing = self.promotion.is_some() || self.promise.is_some();
        let result = match which {
            _ if changing => Err(Refusal::Busy),
            Some(node) => self.invalidate_peer(node),
            None => self.invalidate_here(),
        };
        self.act(crate::Action::CommandDone(id, result));
    }

    fn invalidate_peer(&mut self, node: NodeId) -> Result<(), Refusal> {
        let peer = self.peers.get(&node).ok_or(Refusal::NoSuchPeer)?;
        if !peer.up {
            return Err(Refusal::NotConnected);
        }
        if let Some(primary) = self.stand().primary.filter(|p| *p != self.node) {
            return Err(Refusal::PeerIsPrimary(primary));
        }
        if peer.replication != ReplicationState::Established {
            return Err(Refusal::ResyncRunning);
        }
        if peer.disk <= DiskState::Failed {
            return Err(Refusal::Diskless);
        }
        if self.disk != DiskState::UpToDate {
            return Err(Refusal::NoUpToDateData);
        }
        if self.sizes_differ(node) {
            return Err(Refusal::Busy);
        }
        self.send(node, Message::Invalidate { receiver: true });
        self.give_all_to(node);
        Ok(())
    }

    fn invalidate_here(&mut self) -> Result<(), Refusal> {
        if !self.has_disk() {
            return Err(Refusal::Diskless);
        }
        if self.role == Role::Primary {
            return Err(Refusal::IsPrimary);
        }
        if self.peers.values().any(|p| p.resync.is_some() || p.is_target()) {
            return Err(Refusal::ResyncRunning);
        }
        let stand = self.stand();
        let established = |n: &NodeId| {
            self.peers.get(n).is_some_and(|p| p.replication == ReplicationState::Established)
        };
        let from = match stand.primary.filter(|_| stand.good) {
            Some(primary) => self.good_peers().find(|p| *p == primary),
            None => self.good_peers().find(established),
        };
        let source = from.filter(established).ok_or(Refusal::NoUpToDateData)?;
        if self.sizes_differ(source) {
            return Err(Refusal::Busy);
        }
        self.send(source, Message::Invalidate { receiver: false });
        self.get_all_from(source);
        Ok(())
    }

    pub(crate) fn peer_invalidates(&mut self, node: NodeId, receiver: bool) {
        let established =
            self.peers.get(&node).is_some_and(|p| p.replication == ReplicationState::Established);
        let good = self.has_disk()
            && if receiver { self.role != Role::Primary } else { self.disk == DiskState::UpToDate };
        if !established || !good || self.sizes_differ(node) {
            // It crossed something else: what both hold now decides.
            self.reset(node);
        } else if receiver {
            self.get_all_from(node);
        } else {
            self.give_all_to(node);
        }
    }

    fn give_all_to(&mut self, node: NodeId) {
        let current = self.gens.current;
        self.peers.get_mut(&node).into_iter().for_each(Peer::end_resync);
        self.feed(node, true, current);
        self.refresh_sets();
        self.changed();
    }

    fn get_all_from(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.end_resync();
            // A disk that is in doubt is equal for the most part.
            peer.compares = true;
        }
        self.become_target(node, true, self.gens.current);
        self.refresh_sets();
        self.changed();
    }
}
