//! One virtual machine: a core or none, its disks, and what its driver has to remember.

use crate::data_disk::DataDisk;
use crate::journal::Journal;
use crate::meta_disk::{MetaDisk, PLACEMENT};
use crate::plan::Plan;
use holdfast_core::{Config, Core, LinkId, Options, PeerConfig, RequestId, Snapshot};
use holdfast_format::{MetaLayout, Superblock, al_blocks_for, format_blocks};
use holdfast_units::{ByteRange, ConnectionState, DiskState, NodeId, ResourceId, Role};
use std::collections::{BTreeMap, BTreeSet};

/// The resource of every run.
pub(crate) const RESOURCE: ResourceId = ResourceId(*b"holdfast-sim-res");

/// A client's request that has not been answered.
pub(crate) struct Pending {
    pub(crate) what: Asked,
    /// The oracle's time at which it began.
    pub(crate) since: u64,
    /// The same of the journal's.
    pub(crate) logged_since: u64,
    pub(crate) was_primary: bool,
    pub(crate) was_up_to_date: bool,
    /// When it began.
    pub(crate) at: u64,
    /// Those of them that had good data, as it said.
    pub(crate) good: Vec<(usize, LinkId)>,
    /// Blocks of a read that a node said then that it had no good copy of.
    pub(crate) lost: Vec<(usize, u64)>,
    /// The peers that the Primary reached then, by which connection.
    pub(crate) reached: Vec<(usize, LinkId)>,
}

/// What a client asked for.
pub(crate) enum Asked {
    Write { write: u64, range: ByteRange, zeroes: bool, fua: bool },
    Read { range: ByteRange },
    Flush,
}

/// See the module.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) core: Option<Core>,
    /// Counts the starts, so that what was meant for an earlier life is dropped.
    pub(crate) life: u64,
    pub(crate) boot: u64,
    pub(crate) diskless: bool,
    /// The core uses the disks.
    pub(crate) disk_open: bool,
    pub(crate) data: DataDisk,
    pub(crate) meta: MetaDisk,
    pub(crate) journal: Journal,
    /// Its disk is what this node's journal has made of it, in that term as Primary.
    pub(crate) caught_up_by: Option<(usize, u64)>,
    pub(crate) snap: Option<Snapshot>,
    /// What it was before the event that is being carried out, when that changed it.
    pub(crate) snap_before: Option<Snapshot>,
    /// Peers that a person disconnected: remembered over restarts.
    pub(crate) standalone: BTreeSet<usize>,
    pub(crate) wants: BTreeSet<usize>,
    pub(crate) pending: BTreeMap<RequestId, Pending>,
    pub(crate) tick_at: Option<u64>,
    /// What the node's clock shows more than the virtual time, in milliseconds.
    pub(crate) clock_ahead: u64,
    /// A start is in the queue of happenings.
    pub(crate) starting: bool,
    /// Metadata or data reported an error in this life.
    pub(crate) failed: bool,
    /// A person said that this node's own data may be given up.
    pub(crate) may_give_up: bool,
    /// The power failed since the copy was last known to be equal to another one.
    pub(crate) lost_cache: bool,
}

impl Node {
    /// Whether some of these blocks cannot be read.
    pub(crate) fn has_unreadable(&self, blocks: std::ops::Range<u64>) -> bool {
        self.data.has_bad(blocks.clone())
            || self.core.as_ref().map(Core::unreadable).is_some_and(|list| {
                list.old.count_range(blocks.clone()) + list.unread.count_range(blocks) > 0
            })
    }

    /// Whether its core says that what it has of the block may be old.
    pub(crate) fn says_lost(&self, block: u64) -> bool {
        self.core.as_ref().is_some_and(|core| core.unreadable().old.get(block))
    }
}

/// Node numbers of virtual nodes are their indices.
pub(crate) fn node_id(index: usize) -> NodeId {
    u8::try_from(index).ok().and_then(NodeId::new).expect("clusters are small")
}

/// The id of a machine's boot, by its number.
fn boot_id(boot: u64, node: NodeId) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&boot.to_le_bytes());
    id[8] = node.number();
    id
}

impl Node {
    pub(crate) fn new(index: usize, plan: &Plan, slots: u8) -> Self {
        let (diskless, size, al_extents) =
            (plan.diskless[index], plan.size_at_start, plan.al_extents);
        let id = node_id(index);
        let layout = MetaLayout::new(size, al_extents, al_blocks_for(al_extents), slots, PLACEMENT)
            .expect("the plan gives possible sizes");
        let mut superblock = Superblock::new(RESOURCE, id, boot_id(1, id), layout);
        let blocks = format_blocks(&mut superblock);
        Self {
            id,
            core: None,
            life: 0,
            boot: 1,
            diskless,
            disk_open: false,
            data: DataDisk::default(),
            meta: MetaDisk::new(layout.area().end(), &blocks),
            journal: Journal::new(plan.journals[index]),
            caught_up_by: None,
            snap: None,
            snap_before: None,
            standalone: BTreeSet::new(),
            wants: BTreeSet::new(),
            pending: BTreeMap::new(),
            tick_at: None,
            clock_ahead: 0,
            starting: false,
            failed: false,
            may_give_up: false,
            lost_cache: false,
        }
    }

    /// What a core of this node is made of.
    pub(crate) fn config(
        &self,
        diskless: &[bool],
        size: u64,
        options: &Options,
        seed: u64,
    ) -> Config {
        let boot = boot_id(self.boot, self.id);
        let peers = diskless.iter().enumerate().filter(|(peer, _)| *peer != self.id.index());
        Config {
            sync_pause: holdfast_wire::SyncPause::No,
            node: self.id,
            resource: RESOURCE,
            size,
            boot,
            peers: peers
                .map(|(peer, diskless)| PeerConfig {
                    node: node_id(peer),
                    diskless: *diskless,
                    standalone: self.standalone.contains(&peer),
                })
                .collect(),
            options: options.clone(),
            seed,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub(crate) fn role(&self) -> Role {
        self.snap.as_ref().map_or(Role::Unknown, |snap| snap.role)
    }

    pub(crate) fn is_primary(&self) -> bool {
        self.role() == Role::Primary
    }

    pub(crate) fn disk(&self) -> DiskState {
        self.snap.as_ref().map_or(DiskState::DUnknown, |snap| snap.disk)
    }

    pub(crate) fn is_up_to_date(&self) -> bool {
        self.disk() == DiskState::UpToDate
    }

    /// How this node sees a peer.
    pub(crate) fn peer(&self, peer: usize) -> Option<&holdfast_core::PeerSnapshot> {
        let id = node_id(peer);
        self.snap.as_ref().and_then(|snap| snap.peers.iter().find(|p| p.node == id))
    }

    /// Whether this node takes itself to be connected to the peer.
    pub(crate) fn is_connected_to(&self, peer: usize) -> bool {
        self.peer(peer).is_some_and(|p| p.connection == ConnectionState::Connected)
    }
}
