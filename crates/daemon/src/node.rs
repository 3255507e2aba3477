//! The node: what all parts of the control plane share.

use crate::attachment::Attachments;
use crate::config::ResourceDefaults;
use crate::events::{Hub, Part, of_cluster, unix_ms};
use crate::local::{Damaged, LocalStore};
use crate::options::Settings;
use crate::peers::Peers;
use crate::refuse;
use crate::resource::Resource;
use crate::shard::Shard;
use crate::status;
use holdfast_api::options::OptionMap;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{
    Address, ClusterState, Membership, NodeRecord, NodeTls, Records, Refusal, ResourceRecord,
    Trouble, UnixMillis, Uuid,
};
use holdfast_units::{NodeId, ResourceId};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::watch;

/// The protocol of a member that follows the Primary's journal.
pub(crate) const LOG: &str = "log";

/// The cluster as this node knows it, at one moment.
pub(crate) struct ClusterView {
    /// `None` when the node is in no cluster.
    pub(crate) membership: Option<Membership>,
    /// What the nodes agree on.
    pub(crate) records: Records,
    /// The members of each resource, by slot: read out of the records once, as it is looked at
    /// often.
    members: BTreeMap<ResourceId, BTreeMap<NodeId, PeerMember>>,
    /// What does not fit together in the records, from the first look on.
    conflicts: OnceLock<Vec<Trouble>>,
}

/// A member of a resource, as a peer of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PeerMember {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) slot: NodeId,
    pub(crate) diskless: bool,
    /// It follows the Primary's journal.
    pub(crate) log: bool,
    /// Where its data link is, in order of preference.
    pub(crate) addresses: Vec<String>,
}

impl ClusterView {
    fn new(state: &ClusterState) -> Self {
        let records = state.records().clone();
        let nodes: BTreeMap<Uuid, NodeRecord> =
            records.nodes().into_iter().map(|node| (node.uuid, node)).collect();
        let mut found = records.all_members();
        // Where two claim a slot, the one that was first has it.
        found.sort_by_key(|member| (member.joined_at, member.node));
        let mut members: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for member in found {
            let Some(slot) = NodeId::new(member.slot) else { continue };
            let Some(node) = nodes.get(&member.node) else { continue };
            let own = !member.addresses.is_empty();
            let addresses = if own { member.addresses } else { node.addresses.clone() };
            let (uuid, name, diskless) = (node.uuid, node.name.clone(), member.diskless);
            let log = member.protocol == LOG;
            let peer = PeerMember { uuid, name, slot, diskless, log, addresses };
            members.entry(member.resource).or_default().entry(slot).or_insert(peer);
        }
        let membership = state.membership().cloned();
        Self { membership, records, members, conflicts: OnceLock::new() }
    }

    /// What does not fit together in the records, clocks left aside.
    pub(crate) fn conflicts(&self) -> &[Trouble] {
        self.conflicts.get_or_init(|| self.records.conflicts())
    }

    /// The members of a resource other than `own`, by slot.
    pub(crate) fn peers_of(&self, resource: ResourceId, own: Uuid) -> BTreeMap<NodeId, PeerMember> {
        let members = self.members.get(&resource).into_iter().flatten();
        let peers = members.filter(|(_, peer)| peer.uuid != own);
        peers.map(|(slot, peer)| (*slot, peer.clone())).collect()
    }

    /// The members other than `own` that it is connected to by a data link: the core's peers.
    pub(crate) fn core_peers_of(
        &self,
        resource: ResourceId,
        own: Uuid,
    ) -> BTreeMap<NodeId, PeerMember> {
        let mut peers = self.peers_of(resource, own);
        let follows = self.follows_by_log(resource, own);
        peers.retain(|_, peer| !peer.log && !follows);
        peers
    }

    /// Whether a member follows the Primary's journal.
    pub(crate) fn follows_by_log(&self, resource: ResourceId, node: Uuid) -> bool {
        self.records.member(resource, node).is_some_and(|member| member.protocol == LOG)
    }

    /// The slot of a node in a resource; `None` when it is no member.
    pub(crate) fn slot_of(&self, resource: ResourceId, node: Uuid) -> Option<NodeId> {
        self.records.member(resource, node).and_then(|member| NodeId::new(member.slot))
    }

    /// The name of the member with this slot, for messages.
    pub(crate) fn slot_name(&self, resource: ResourceId, slot: NodeId) -> String {
        let member = self.members.get(&resource).and_then(|members| members.get(&slot));
        member.map_or_else(|| format!("number {slot}"), |member| member.name.clone())
    }
}

/// The parts that a [`Node`] is made of.
pub(crate) struct Parts {
    pub(crate) settings: Settings,
    pub(crate) listen: SocketAddr,
    pub(crate) nbd_tcp: Option<SocketAddr>,
    pub(crate) cluster: ClusterState,
    pub(crate) store: LocalStore,
    pub(crate) shard: Shard,
    pub(crate) boot: [u8; 16],
}

/// What all parts of the control plane share.
pub(crate) struct Node {
    /// This node's UUID.
    pub(crate) uuid: Uuid,
    /// This node's name.
    pub(crate) name: String,
    pub(crate) settings: Settings,
    /// Where other nodes are really listened for.
    pub(crate) listen: SocketAddr,
    /// Where NBD clients are listened for by TCP.
    pub(crate) nbd_tcp: Option<SocketAddr>,
    pub(crate) store: LocalStore,
    pub(crate) tls: NodeTls,
    shard: Mutex<Option<Arc<Shard>>>,
    pub(crate) boot: [u8; 16],
    pub(crate) hub: Hub,
    pub(crate) peers: Peers,
    /// Held while something is created or joined, so that two cannot take the same name or disk.
    pub(crate) making: tokio::sync::Mutex<()>,
    cluster: Arc<Mutex<ClusterState>>,
    view: watch::Sender<Arc<ClusterView>>,
    resources: Mutex<BTreeMap<ResourceId, Arc<Resource>>>,
    /// The remote exports that are attached here.
    pub(crate) attachments: Attachments,
    /// The resources that this node is no member of and shows.
    pub(crate) guests: crate::guests::Guests,
    /// The room of all journals together.
    pub(crate) space: crate::space::NodeSpace,
    /// What the devices below the disks say of themselves.
    pub(crate) smart: crate::health::Smart,
    /// State files of resources that could not be used at the start.
    damaged: Mutex<Vec<Damaged>>,
    /// For the options of resources that are made here, as the configuration file has them now.
    resource_defaults: Mutex<ResourceDefaults>,
    stopping: watch::Sender<bool>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let cluster = parts.cluster;
        let (view, _) = watch::channel(Arc::new(ClusterView::new(&cluster)));
        let node = Self {
            uuid: cluster.identity().uuid(),
            name: cluster.identity().name().to_owned(),
            resource_defaults: Mutex::new(parts.settings.resource_defaults.clone()),
            settings: parts.settings,
            listen: parts.listen,
            nbd_tcp: parts.nbd_tcp,
            store: parts.store,
            tls: cluster.tls(),
            shard: Mutex::new(Some(Arc::new(parts.shard))),
            boot: parts.boot,
            hub: Hub::new(),
            peers: Peers::default(),
            making: tokio::sync::Mutex::default(),
            cluster: Arc::new(Mutex::new(cluster)),
            view,
            resources: Mutex::default(),
            attachments: Attachments::default(),
            guests: crate::guests::Guests::default(),
            space: crate::space::NodeSpace::default(),
            smart: crate::health::Smart::default(),
            damaged: Mutex::default(),
            stopping: watch::channel(false).0,
        };
        node.cluster_changed();
        Arc::new(node)
    }

    /// What the configuration file has for the options of a resource of this name.
    pub(crate) fn resource_defaults(&self, name: &str) -> OptionMap {
        self.resource_defaults.lock().unwrap_or_else(PoisonError::into_inner).of(name)
    }

    /// Has other defaults for resources hold; whether they are others than before.
    pub(crate) fn set_resource_defaults(&self, defaults: &ResourceDefaults) -> bool {
        let mut held = self.resource_defaults.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *held != *defaults;
        if changed {
            held.clone_from(defaults);
        }
        changed
    }

    /// The cluster as it is now.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view.borrow())
    }

    /// Tells of every change of [`Self::view`].
    pub(crate) fn watch_view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.subscribe()
    }

    /// Does something with the cluster's state on a thread that may block, and publishes what
    /// has changed.
    ///
    /// # Errors
    /// The refusal of `what`, as a sentence for people.
    pub(crate) async fn cluster<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut ClusterState, UnixMillis) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, ApiError> {
        let cluster = Arc::clone(&self.cluster);
        let publish = self.view.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut state = cluster.lock().unwrap_or_else(PoisonError::into_inner);
            let result = what(&mut state, UnixMillis(unix_ms()));
            // Under the lock, so that views are published in the order of the changes.
            publish.send_if_modified(|view| {
                let same = view.membership.as_ref() == state.membership()
                    && view.records.has_the_same(state.records());
                if !same {
                    *view = Arc::new(ClusterView::new(&state));
                }
                !same
            });
            result
        });
        let result = work.await.map_err(|e| refuse::internal("the cluster's state failed", &e))?;
        self.cluster_changed();
        result.map_err(refuse::cluster)
    }

    /// Tells the readers of events how the cluster is now.
    pub(crate) fn cluster_changed(&self) {
        self.hub.update(Part::Cluster, of_cluster(status::cluster(self).as_ref()));
    }

    /// The resources that this node is a member of, by id.
    pub(crate) fn resources(&self) -> Vec<Arc<Resource>> {
        self.lock_resources().values().cloned().collect()
    }

    /// The resource with this id.
    pub(crate) fn resource(&self, id: ResourceId) -> Option<Arc<Resource>> {
        self.lock_resources().get(&id).cloned()
    }

    pub(crate) fn add_resource(&self, resource: Arc<Resource>) {
        self.lock_resources().insert(resource.id, resource);
    }

    /// Forgets a resource; whether it was there.
    pub(crate) fn remove_resource(&self, id: ResourceId) -> bool {
        self.lock_resources().remove(&id).is_some()
    }

    /// The state files that cannot be used.
    pub(crate) fn damaged(&self) -> Vec<Damaged> {
        self.lock_damaged().clone()
    }

    /// The one of the resource with this name, and its id.
    pub(crate) fn damaged_named(&self, name: &str) -> Option<(ResourceId, Damaged)> {
        let id = self.record_named(name)?.id;
        let found = self.lock_damaged().iter().find(|file| file.id == Some(id)).cloned();
        found.map(|file| (id, file))
    }

    pub(crate) fn set_damaged(&self, files: Vec<Damaged>) {
        *self.lock_damaged() = files;
    }

    /// Its file is not there any more.
    pub(crate) fn forget_damaged(&self, id: ResourceId) {
        self.lock_damaged().retain(|file| file.id != Some(id));
    }

    fn lock_damaged(&self) -> MutexGuard<'_, Vec<Damaged>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_resources(&self) -> MutexGuard<'_, BTreeMap<ResourceId, Arc<Resource>>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resource with this name that this node is a member of.
    ///
    /// # Errors
    /// `NO_SUCH_RESOURCE`, or `NOT_MEMBER` when only other nodes have it.
    pub(crate) fn resource_named(&self, name: &str) -> Result<Arc<Resource>, ApiError> {
        let named = |resource: &&Arc<Resource>| resource.name() == name;
        if let Some(resource) = self.resources().iter().find(named) {
            return Ok(Arc::clone(resource));
        }
        // One that has not taken over the name yet that the cluster knows it by.
        let known = self.record_named(name).and_then(|record| self.resource(record.id));
        if let Some(resource) = known {
            return Ok(resource);
        }
        if let Some((_, file)) = self.damaged_named(name) {
            return Err(ApiError::new(
                ErrorCode::ResourceDown,
                format!("resource {name} is not usable on node {}: {}", self.name, file.problem),
            )
            .hint(format!(
                "`holdfast leave {name}` gives this node's part in it up; the data stay on the disk"
            )));
        }
        if self.view().records.resource_named(name).is_some() {
            return Err(ApiError::new(
                ErrorCode::NotMember,
                format!("resource {name} is not here: node {} is no member of it", self.name),
            )
            .hint(format!("`holdfast join {name} --disk PATH` makes it one")));
        }
        if self.view().membership.is_none() {
            return Err(ApiError::no_resource_without_cluster(name, &self.name));
        }
        Err(ApiError::no_such_resource(name))
    }

    /// The record of a resource with this name, wherever its members are.
    pub(crate) fn record_named(&self, name: &str) -> Option<ResourceRecord> {
        self.view().records.resource_named(name)
    }

    /// The nodes of the cluster other than this one.
    pub(crate) fn others(&self) -> Vec<NodeRecord> {
        let mut nodes = self.view().records.nodes();
        nodes.retain(|node| node.uuid != self.uuid);
        nodes
    }

    /// Where other nodes should call this one.
    pub(crate) fn advertised(&self) -> Vec<Address> {
        if !self.settings.advertise.is_empty() {
            return self.settings.advertise.clone();
        }
        let ip = self.listen.ip();
        let ip = if ip.is_unspecified() { outward(ip).unwrap_or(ip) } else { ip };
        vec![Address::from(SocketAddr::new(ip, self.listen.port()))]
    }

    /// The thread that the resources live on.
    ///
    /// # Errors
    /// `SHUTTING_DOWN` when it has ended.
    pub(crate) fn shard(&self) -> Result<Arc<Shard>, ApiError> {
        let shard = self.shard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shard.ok_or_else(shutting_down)
    }

    /// Ends the thread that the resources live on; they are closed already.
    pub(crate) async fn stop_shard(&self) {
        let shard = self.shard.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Somebody who just opens a resource may still hold it; it ends with them then.
        if let Some(shard) = shard.and_then(Arc::into_inner) {
            shard.stop().await;
        }
    }

    /// Says that the daemon is stopping.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether the daemon is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Ends when the daemon is stopping.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender lives as long as the node does.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// What a command gets when the daemon is stopping.
pub(crate) fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::ShuttingDown, "the command was refused: the daemon is stopping")
        .hint("start the daemon again and repeat the command")
}

/// The address by which this machine reaches others; nothing is sent to find it out.
fn outward(any: IpAddr) -> Option<IpAddr> {
    let (bind, to) = match any {
        IpAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        IpAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let socket = UdpSocket::bind(bind).ok()?;
    socket.connect(to).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}
