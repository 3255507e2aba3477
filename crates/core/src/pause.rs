//! Resyncs that stand still because this node or the peer was told so.
//!
//! A resync goes on by what its target asks for, catching up from the journal by what its source sends.
//! A node that has been told to stand still does neither, nor answers; it tells its peers, so that
//! both sides say so. Everything else goes on: what is copied already counts, writes are
//! replicated as before, and clear what they overwrite. The core does not keep it over a restart.

use crate::engine::Core;
use crate::event::{Action, CommandId, StandsStill};
use crate::peer::Peer;
use holdfast_units::{NodeId, ReplicationState};
use holdfast_wire::{FEATURE_PAUSE, Message, SyncPause};

impl Core {
    /// From now on, until it is told something else.
    pub(crate) fn pause_sync(&mut self, id: CommandId, pause: SyncPause) {
        if self.pause != pause {
            self.pause = pause;
            let up: Vec<NodeId> = self.peers.values().filter(|p| p.up).map(|p| p.node).collect();
            up.into_iter().for_each(|node| self.tell_pause(node));
            self.changed();
        }
        self.act(Action::CommandDone(id, Ok(())));
    }

    /// A connection is up: the peer takes this node for one that goes on.
    pub(crate) fn tell_pause_to_newcomer(&mut self, node: NodeId) {
        if self.pause != SyncPause::No {
            self.tell_pause(node);
        }
    }

    fn tell_pause(&mut self, node: NodeId) {
        let pause = self.pause;
        if self.peers.get(&node).is_some_and(|p| p.features & FEATURE_PAUSE != 0) {
            self.send(node, Message::SyncPaused { pause });
        }
    }

    /// The peer was told to stand still, or to go on.
    pub(crate) fn peer_pauses(&mut self, node: NodeId, pause: SyncPause) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.pause != pause
        {
            peer.pause = pause;
            self.changed();
        }
    }

    /// Whether this node, as the target, asks for nothing.
    pub(crate) fn stands_as_target(&self, peer: &Peer) -> bool {
        self.pause != SyncPause::No || peer.pause == SyncPause::Always
    }

    /// Whether this node, as the source, gives nothing.
    pub(crate) fn stands_as_source(&self, peer: &Peer) -> bool {
        self.pause == SyncPause::Always || peer.pause != SyncPause::No
    }

    /// Who has a resync with this peer stand still, if there is one and it does.
    pub(crate) fn stands_still(&self, peer: &Peer) -> Option<StandsStill> {
        let (here, there) = match peer.shown_replication() {
            ReplicationState::SyncTarget => {
                (self.pause != SyncPause::No, peer.pause == SyncPause::Always)
            }
            ReplicationState::SyncSource => {
                (self.pause == SyncPause::Always, peer.pause != SyncPause::No)
            }
            _ => return None,
        };
        (here || there).then_some(StandsStill { here, there })
    }

    /// Whether what a peer lacks is being copied from here, or to here, if nobody held it.
    pub(crate) fn is_resync_target(peer: &Peer) -> bool {
        peer.is_target() || peer.caught.is_some()
    }
}

/// The word for a resync that stands still.
pub(crate) const fn paused(going: ReplicationState) -> ReplicationState {
    match going {
        ReplicationState::SyncTarget => ReplicationState::PausedSyncT,
        ReplicationState::SyncSource => ReplicationState::PausedSyncS,
        other => other,
    }
}
