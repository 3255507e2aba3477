use crate::identity::io_refusal;
use crate::records::{BATCH_BYTES, Digest, Key, MergeReport, Record, Records};
use crate::refusal::shown;
use crate::token::Tokens;
use crate::{
    Address, Code, Fingerprint, Identity, JoinRequest, JoinResponse, JoinToken, MAX_ADDRESSES,
    NodeRecord, NodeTls, PinSet, PinnedNode, Refusal, UnixMillis, Uuid,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

mod change;
mod fate;
mod file;
mod merge;
mod split;
#[cfg(test)]
mod tests;

pub use change::Change;
use change::{apply, forget_node};
pub use split::SplitPlan;

/// How many nodes a cluster can have.
pub const MAX_CLUSTER_NODES: usize = 128;
/// A [`SyncMessage`] as JSON is never longer, in bytes.
pub const MAX_SYNC_BYTES: usize = 8 << 20;

/// The cluster that this node is in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// The cluster's UUID.
    pub uuid: Uuid,
    /// The cluster's name.
    pub name: String,
    /// When this node created or joined it, in milliseconds since 1970-01-01 UTC.
    pub joined_at: u64,
    /// This node's UUID when it did.
    pub node: Uuid,
}

/// All of it is one file, so that what belongs together (a used token and the node that used it)
/// is durable together.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Data {
    cluster: Option<Membership>,
    records: Records,
    tokens: Tokens,
    /// The splits of clusters that were carried out here, or did not concern this node.
    #[serde(default)]
    settled: BTreeSet<Uuid>,
}

/// What two nodes of a cluster say to each other to have the same records, as JSON over
/// [`crate::Purpose::Control`]. One node sends [`ClusterState::start_sync`]; each side gives what
/// it hears to [`ClusterState::sync`], and sends the message that comes out. When two messages
/// in a row carry no records, both have the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncMessage {
    /// The cluster that it is about.
    pub cluster: Uuid,
    /// What the cluster was before: clusters that were merged into it, or that it was split from.
    /// A node of one of these learns by this exchange what became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formerly: Vec<Uuid>,
    /// What the sender has.
    pub digest: Digest,
    /// Some of what the receiver lacks.
    pub records: Vec<Record>,
}

/// The node's part in a cluster: identity, membership, records and tokens, kept in its state
/// directory. Every change is durable before the call returns; a refused or failed one changes
/// nothing (after [`Code::StateIo`] it may show after a restart, whole).
#[derive(Debug)]
pub struct ClusterState {
    dir: PathBuf,
    /// Held open for its lock.
    _lock: File,
    identity: Identity,
    pins: PinSet,
    data: Data,
}

/// What a state directory says of the node and its cluster, without the lock of the daemon that may
/// be using it: every file in it is replaced as a whole, so what is read is one version or another.
#[derive(Clone, Debug, Default)]
pub struct Peek {
    /// The node's name; `None` for one that was never started.
    pub name: Option<String>,
    /// The node's UUID.
    pub uuid: Option<Uuid>,
    /// What the cluster's nodes agree on.
    pub records: Records,
}

impl Peek {
    /// Reads a state directory. One that is not there holds nothing. Changes nothing.
    ///
    /// # Errors
    /// [`Code::StateDamaged`], [`Code::StateTooNew`], [`Code::StateIo`].
    pub fn at(state_dir: &Path) -> Result<Self, Refusal> {
        if !state_dir.is_dir() {
            return Ok(Self::default());
        }
        let data = file::load(state_dir)?;
        let identity = Identity::load(state_dir)?;
        let name = identity.as_ref().map(|identity| identity.name().to_owned());
        let uuid = identity.as_ref().map(Identity::uuid);
        Ok(Self { name, uuid, records: data.records })
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Data").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterState {
    /// Opens a state directory; makes it, and the node's identity, when they are not there.
    /// `name` is the node name that was asked for, `default` the one for a new node when none
    /// was. A node in a cluster keeps its name.
    ///
    /// # Errors
    /// [`Code::StateDirBusy`], [`Code::StateDamaged`], [`Code::StateTooNew`], [`Code::StateIo`],
    /// [`Code::BadName`], [`Code::AlreadyMember`] when the name would change.
    pub fn open(state_dir: &Path, name: Option<&str>, default: &str) -> Result<Self, Refusal> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|e| io_refusal("make", state_dir, &e))?;
        let lock = lock(state_dir)?;
        let data = file::load(state_dir)?;
        let mut identity = match Identity::load(state_dir)? {
            Some(identity) => identity,
            None => Identity::create(state_dir, name.unwrap_or(default))?,
        };
        match (&data.cluster, name) {
            (Some(cluster), Some(name)) if name != identity.name() => {
                return Err(Refusal::new(
                    Code::AlreadyMember,
                    format!(
                        "the node's name cannot become {}: it is {} in the cluster {}",
                        shown(name),
                        identity.name(),
                        cluster.name
                    ),
                    "start without --name; to have another name, leave the cluster and join again",
                ));
            }
            (None, Some(name)) if name != identity.name() => identity.rename(state_dir, name)?,
            _ => {}
        }
        let pins = PinSet::new();
        let state = Self { dir: state_dir.to_owned(), _lock: lock, identity, pins, data };
        state.check_identity()?;
        state.renew_pins();
        Ok(state)
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificates of the other nodes; always as the records say.
    #[must_use]
    pub fn pins(&self) -> PinSet {
        self.pins.clone()
    }

    /// Makes and takes this node's connections. It follows the pins.
    #[must_use]
    pub fn tls(&self) -> NodeTls {
        NodeTls::new(&self.identity, self.pins())
    }

    /// The cluster that the node is in; `None` when it is in none.
    #[must_use]
    pub fn membership(&self) -> Option<&Membership> {
        self.data.cluster.as_ref()
    }

    /// Whether the node is in a cluster.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.data.cluster.is_some()
    }

    /// Whether the node thinks that it is in a cluster, but was removed by another node.
    #[must_use]
    pub fn was_removed(&self) -> bool {
        let own = self.data.records.version(&Key::node(self.identity.uuid()));
        self.is_member() && own.is_none_or(|record| record.deleted)
    }

    /// What the cluster's nodes agree on.
    #[must_use]
    pub fn records(&self) -> &Records {
        &self.data.records
    }

    /// The nodes of the cluster other than this one.
    #[must_use]
    pub fn others(&self) -> Vec<NodeRecord> {
        let mut nodes = self.data.records.nodes();
        nodes.retain(|node| node.uuid != self.identity.uuid());
        nodes
    }

    /// Makes a cluster of this node alone, reachable at these addresses. Without a name it is
    /// called as the node is.
    ///
    /// # Errors
    /// [`Code::AlreadyMember`], [`Code::BadName`], [`Code::BadAddress`], [`Code::StateIo`].
    pub fn create_cluster(
        &mut self,
        name: Option<&str>,
        addresses: &[Address],
        now: UnixMillis,
    ) -> Result<Membership, Refusal> {
        self.refuse_member()?;
        let name = name.unwrap_or(self.identity.name());
        check_name(name)?;
        check_addresses(addresses)?;
        let cluster = Membership {
            uuid: Uuid::new_v4(),
            name: name.to_owned(),
            joined_at: now.0,
            node: self.identity.uuid(),
        };
        let mut next = Data { cluster: Some(cluster.clone()), ..Data::default() };
        let own = self.own_record(addresses, now);
        apply(&mut next.records, vec![Change::node(&own)], own.uuid, now)?;
        self.commit(next)?;
        Ok(cluster)
    }

    /// Makes a token with which one node can join within `ttl_seconds`. It names these
    /// addresses, or, when there are none, those that the cluster knows this node by.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::NodeUnknown`] when this node was removed, [`Code::BadTtl`], [`Code::TooManyTokens`], [`Code::BadAddress`],
    /// [`Code::StateIo`].
    pub fn issue_token(
        &mut self,
        ttl_seconds: u64,
        addresses: &[Address],
        now: UnixMillis,
    ) -> Result<JoinToken, Refusal> {
        let (cluster, known) = (self.need_member()?.uuid, self.need_own()?);
        let addresses = match addresses {
            [] => read_addresses(&known.addresses)?,
            given => given.to_vec(),
        };
        check_addresses(&addresses)?;
        if addresses.is_empty() {
            return Err(Refusal::new(
                Code::BadAddress,
                "no token was made: this node has no address that another could call",
                "give one with --addr HOST:PORT, or start the daemon with --listen ADDR:7850",
            ));
        }
        let mut next = self.data.clone();
        let (id, secret, expires) = next.tokens.issue(ttl_seconds, now)?;
        self.commit(next)?;
        let issuer = self.identity.fingerprint();
        Ok(JoinToken { cluster, id, secret, issuer, addresses, expires })
    }

    /// What this node must say to the issuer of a token to join; it listens at these addresses.
    ///
    /// # Errors
    /// [`Code::AlreadyMember`], [`Code::BadAddress`].
    pub fn join_request(
        &self,
        token: &JoinToken,
        addresses: &[Address],
    ) -> Result<JoinRequest, Refusal> {
        self.refuse_member()?;
        check_addresses(addresses)?;
        Ok(JoinRequest {
            cluster: token.cluster,
            token: token.id,
            secret: token.secret.clone(),
            node: self.identity.uuid(),
            name: self.identity.name().to_owned(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        })
    }

    /// Lets a node in. `certificate` is that of the connection ([`crate::Caller::Joiner`]).
    /// The token is used up, the node known and its certificate pinned, durably, before this
    /// returns. A node that did not hear the answer may ask again with the same token.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::OtherCluster`], the codes of tokens, [`Code::BadName`],
    /// [`Code::NameTaken`], [`Code::NodeExists`], [`Code::BadAddress`], [`Code::ClusterFull`],
    /// [`Code::RecordsFull`], [`Code::StateIo`]. The token is not used up then.
    pub fn admit(
        &mut self,
        request: &JoinRequest,
        certificate: Fingerprint,
        now: UnixMillis,
    ) -> Result<JoinResponse, Refusal> {
        let cluster = self.need_member()?;
        if request.cluster != cluster.uuid {
            return Err(other_cluster("the join request", &cluster.name));
        }
        self.need_own()?;
        let mut next = self.data.clone();
        let known = self.data.records.node(request.node);
        let again = known.is_some_and(|node| node.fingerprint == certificate)
            && next.tokens.was_used_by(request.token, &request.secret, &certificate);
        if !again {
            next.tokens.redeem(request.token, &request.secret, certificate, now)?;
            self.check_newcomer(request, certificate)?;
            let node = NodeRecord {
                uuid: request.node,
                name: request.name.clone(),
                addresses: request.addresses.clone(),
                fingerprint: certificate,
                joined_at: now.0,
            };
            let own = self.identity.uuid();
            apply(&mut next.records, vec![Change::node(&node)], own, now)?;
            self.commit(next)?;
        }
        self.join_response()
    }

    /// What a node is told that was let in.
    fn join_response(&self) -> Result<JoinResponse, Refusal> {
        let cluster = self.need_member()?;
        Ok(JoinResponse {
            cluster: cluster.uuid,
            name: cluster.name.clone(),
            records: self.data.records.iter().cloned().collect(),
        })
    }

    /// Takes the answer to a [`JoinRequest`]: from now on the node is in the cluster.
    ///
    /// # Errors
    /// [`Code::AlreadyMember`], [`Code::OtherCluster`], [`Code::BadRecord`],
    /// [`Code::RecordsFull`], [`Code::NodeUnknown`] when the answer does not know this node or
    /// its own sender, [`Code::StateIo`].
    pub fn accept(
        &mut self,
        token: &JoinToken,
        response: JoinResponse,
        now: UnixMillis,
    ) -> Result<MergeReport, Refusal> {
        self.refuse_member()?;
        if response.cluster != token.cluster {
            return Err(other_cluster("the answer to the join request", "the join token"));
        }
        check_name(&response.name)?;
        let cluster = Membership {
            uuid: response.cluster,
            name: response.name,
            joined_at: now.0,
            node: self.identity.uuid(),
        };
        let mut next = Data { cluster: Some(cluster), ..Data::default() };
        let report = next.records.merge(response.records, now)?;
        let own = next.records.node(self.identity.uuid());
        let knows_own = own.is_some_and(|node| node.fingerprint == self.identity.fingerprint());
        let knows_issuer = next.records.nodes().iter().any(|n| n.fingerprint == token.issuer);
        if !knows_own || !knows_issuer {
            return Err(Refusal::new(
                Code::NodeUnknown,
                "the answer to the join request is refused: it does not know both nodes",
                "check that both nodes run versions of Holdfast that work together",
            ));
        }
        self.commit(next)?;
        Ok(report)
    }

    /// Makes changes, all or none, and says which records have changed. What would not fit
    /// together (a name or a slot twice) is refused.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::NodeUnknown`] when this node was removed,
    /// [`Code::BadRecord`], [`Code::RecordsFull`], [`Code::NameTaken`],
    /// [`Code::SlotTaken`], [`Code::StateIo`].
    pub fn change(&mut self, changes: Vec<Change>, now: UnixMillis) -> Result<Vec<Key>, Refusal> {
        self.need_own()?;
        let mut next = self.data.clone();
        let changed = apply(&mut next.records, changes, self.identity.uuid(), now)?;
        if !changed.is_empty() {
            self.commit(next)?;
        }
        Ok(changed)
    }

    /// Tells the cluster where this node listens; whether that was news.
    ///
    /// # Errors
    /// As [`ClusterState::change`], and [`Code::BadAddress`].
    pub fn set_addresses(
        &mut self,
        addresses: &[Address],
        now: UnixMillis,
    ) -> Result<bool, Refusal> {
        check_addresses(addresses)?;
        let mut own = self.need_own()?;
        own.addresses = addresses.iter().map(ToString::to_string).collect();
        Ok(!self.change(vec![Change::node(&own)], now)?.is_empty())
    }

    /// The first half of leaving: the records that say so, for the other nodes to merge.
    /// Nothing changes here. When one of them has them, or with force when none can be reached,
    /// [`ClusterState::finish_leave`] is the second half.
    ///
    /// # Errors
    /// [`Code::NotMember`]; [`Code::NodeBusy`] when the node still is a member of resources and
    /// there is no force.
    pub fn plan_leave(&self, force: bool, now: UnixMillis) -> Result<Vec<Record>, Refusal> {
        self.need_member()?;
        let own = self.identity.uuid();
        let resources = self.data.records.memberships(own);
        if let (Some(first), false) = (resources.first(), force) {
            let name = self.data.records.resource(first.resource).map(|r| r.name);
            return Err(Refusal::new(
                Code::NodeBusy,
                format!(
                    "this node did not leave the cluster: it is a member of {} resources, of {} \
                     for one",
                    resources.len(),
                    name.unwrap_or_else(|| first.resource.to_string())
                ),
                "leave them first with `holdfast leave NAME`, or add --force",
            ));
        }
        let mut records = self.data.records.clone();
        let gone = forget_node(&mut records, own, own, now)?;
        Ok(gone.iter().filter_map(|key| records.version(key).cloned()).collect())
    }

    /// Forgets the cluster, its records, its tokens and its certificates. The node keeps its
    /// identity.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::StateIo`].
    pub fn finish_leave(&mut self) -> Result<(), Refusal> {
        self.need_member()?;
        self.commit(Data::default())
    }

    /// The node that [`Self::remove`] would remove; nothing changes.
    ///
    /// # Errors
    /// As [`Self::remove`].
    pub fn check_removal(&self, node: &str, force: bool) -> Result<NodeRecord, Refusal> {
        self.need_own()?;
        let records = &self.data.records;
        let by_uuid = || node.parse().ok().and_then(|uuid| records.node(uuid));
        let Some(found) = records.node_named(node).or_else(by_uuid) else {
            return Err(Refusal::new(
                Code::NodeUnknown,
                format!("the node {} was not removed: the cluster has no such node", shown(node)),
                "see `holdfast cluster status`",
            ));
        };
        if found.uuid == self.identity.uuid() {
            return Err(Refusal::new(
                Code::NodeBusy,
                format!("the node {} was not removed: it is this node itself", found.name),
                "use `holdfast cluster leave` here, or remove it on another node",
            ));
        }
        if !force {
            return Err(Refusal::new(
                Code::ForceNeeded,
                format!("the node {} was not removed: this is for one that is gone", found.name),
                "if it still runs, use `holdfast cluster leave` there; else add --force",
            ));
        }
        Ok(found)
    }

    /// Removes a node that is gone for good, by name or UUID: it, and its part in resources, are
    /// deleted, and its certificate is not accepted any more. Says which records have changed.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::NodeUnknown`] (also when this node was removed itself),
    /// [`Code::NodeBusy`] for this node itself,
    /// [`Code::ForceNeeded`] without force, [`Code::StateIo`].
    pub fn remove(
        &mut self,
        node: &str,
        force: bool,
        now: UnixMillis,
    ) -> Result<Vec<Key>, Refusal> {
        let found = self.check_removal(node, force)?;
        let mut next = self.data.clone();
        let gone = forget_node(&mut next.records, found.uuid, self.identity.uuid(), now)?;
        self.commit(next)?;
        Ok(gone)
    }

    /// The first message of an exchange with another node.
    ///
    /// # Errors
    /// [`Code::NotMember`].
    pub fn start_sync(&self) -> Result<SyncMessage, Refusal> {
        let cluster = self.need_member()?.uuid;
        let records = &self.data.records;
        let formerly = records.formerly(cluster);
        Ok(SyncMessage { cluster, formerly, digest: records.digest(), records: Vec::new() })
    }

    /// Takes a message of the node `from` and makes the next one for it; also what has changed.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::OtherCluster`], [`Code::BadRecord`], [`Code::RecordsFull`],
    /// [`Code::StateIo`].
    pub fn sync(
        &mut self,
        from: Uuid,
        message: SyncMessage,
        now: UnixMillis,
    ) -> Result<(SyncMessage, MergeReport), Refusal> {
        let cluster = self.need_member()?;
        let is_same = message.cluster == cluster.uuid
            || message.formerly.contains(&cluster.uuid)
            || self.data.records.formerly(cluster.uuid).contains(&message.cluster);
        // A call of one that is gone may still have been under way.
        if !is_same || self.data.records.node(from).is_none() {
            return Err(other_cluster("the records of another node", &cluster.name));
        }
        let report = self.merge(message.records, now)?;
        self.data.records.note_seen(from, &message.digest);
        let mut answer = self.start_sync()?;
        answer.records = self.data.records.missing_from(&message.digest, BATCH_BYTES);
        Ok((answer, report))
    }

    /// Takes in records from another node of the cluster, all or none.
    ///
    /// # Errors
    /// [`Code::NotMember`], [`Code::BadRecord`], [`Code::RecordsFull`], [`Code::StateIo`].
    pub fn merge(&mut self, list: Vec<Record>, now: UnixMillis) -> Result<MergeReport, Refusal> {
        self.need_member()?;
        if list.is_empty() {
            return Ok(MergeReport::default());
        }
        let mut next = self.data.clone();
        // What became of the cluster decides whether the rest is for this node.
        let (fates, rest): (Vec<Record>, _) = list.into_iter().partition(|r| r.key.is_fate());
        let mut report = next.records.merge(fates, now)?;
        if !fate::settle(&mut next, self.identity.uuid())? {
            let more = next.records.merge(rest, now)?;
            report.changed.extend(more.changed);
            report.clock_ahead.extend(more.clock_ahead);
        }
        if !report.changed.is_empty() {
            self.commit(next)?;
        }
        Ok(report)
    }

    /// Forgets old tombstones that all nodes have ([`Records::prune`]); how many. To be called
    /// now and then.
    ///
    /// # Errors
    /// [`Code::StateIo`].
    pub fn prune(&mut self, now: UnixMillis) -> Result<usize, Refusal> {
        let others: BTreeSet<Uuid> = self.others().iter().map(|node| node.uuid).collect();
        let mut next = self.data.clone();
        let pruned = next.records.prune(&others, now);
        if pruned > 0 {
            self.commit(next)?;
        }
        Ok(pruned)
    }

    fn check_newcomer(&self, request: &JoinRequest, by: Fingerprint) -> Result<(), Refusal> {
        check_name(&request.name)?;
        read_addresses(&request.addresses)?;
        let refuse = |code, why: String, hint| {
            let message = format!("the node {} was not let in: {why}", request.name);
            Err(Refusal::new(code, message, hint))
        };
        let nodes = self.data.records.nodes();
        let same = |n: &&NodeRecord| n.uuid == request.node || n.fingerprint == by;
        let known = nodes.iter().find(same);
        if known.is_some_and(|n| n.uuid != request.node || n.fingerprint != by) {
            return refuse(
                Code::NodeExists,
                "another node of the cluster has its identity".to_owned(),
                "a state directory was copied: delete its identity directory and join again",
            );
        }
        if nodes.iter().any(|n| n.name == request.name && n.uuid != request.node) {
            return refuse(
                Code::NameTaken,
                "the cluster has another node of this name".to_owned(),
                "start its daemon with another --name; the token can still be used",
            );
        }
        if known.is_none() && nodes.len() >= MAX_CLUSTER_NODES {
            return refuse(
                Code::ClusterFull,
                format!("the cluster has {MAX_CLUSTER_NODES} nodes, and more it cannot have"),
                "remove a node first",
            );
        }
        Ok(())
    }

    fn check_identity(&self) -> Result<(), Refusal> {
        let node = self.data.cluster.as_ref().map(|cluster| cluster.node);
        let own = self.data.records.node(self.identity.uuid());
        let same_node = node.is_none_or(|uuid| uuid == self.identity.uuid());
        let same_key = own.is_none_or(|n| n.fingerprint == self.identity.fingerprint());
        if same_node && same_key {
            return Ok(());
        }
        Err(Refusal::new(
            Code::StateDamaged,
            format!(
                "the state directory {} cannot be used: the identity in it is not the one that \
                 is a node of the cluster",
                self.dir.display()
            ),
            "restore the identity directory and cluster.state from the same backup",
        ))
    }

    fn own_record(&self, addresses: &[Address], now: UnixMillis) -> NodeRecord {
        NodeRecord {
            uuid: self.identity.uuid(),
            name: self.identity.name().to_owned(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            fingerprint: self.identity.fingerprint(),
            joined_at: now.0,
        }
    }

    fn need_member(&self) -> Result<&Membership, Refusal> {
        self.data.cluster.as_ref().ok_or_else(|| {
            let name = self.identity.name();
            Refusal::new(
                Code::NotMember,
                format!("the command was refused for node {name}: it is in no cluster yet"),
                "use `holdfast cluster create`, or `holdfast cluster join TOKEN`",
            )
        })
    }

    /// This node's record: without it, what this node says does not reach the cluster.
    fn need_own(&self) -> Result<NodeRecord, Refusal> {
        self.need_member()?;
        self.data.records.node(self.identity.uuid()).ok_or_else(removed)
    }

    fn refuse_member(&self) -> Result<(), Refusal> {
        self.data.cluster.as_ref().map_or(Ok(()), |cluster| {
            Err(Refusal::new(
                Code::AlreadyMember,
                format!(
                    "the node {} is in the cluster {} already",
                    self.identity.name(),
                    cluster.name
                ),
                "to go to another cluster, use `holdfast cluster leave` first",
            ))
        })
    }

    fn commit(&mut self, mut next: Data) -> Result<(), Refusal> {
        fate::settle(&mut next, self.identity.uuid())?;
        next.settled.retain(|cluster| next.records.fate(*cluster).is_some());
        file::save(&self.dir, &next, &mut |_| Ok(()))?;
        self.data = next;
        self.renew_pins();
        Ok(())
    }

    fn renew_pins(&self) {
        let pin = |n: NodeRecord| (n.fingerprint, PinnedNode { uuid: n.uuid, name: n.name });
        self.pins.replace(self.others().into_iter().map(pin));
    }
}

fn lock(dir: &Path) -> Result<File, Refusal> {
    let path = dir.join("cluster.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| io_refusal("open", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(e)) => Err(io_refusal("lock", &path, &e)),
        Err(TryLockError::WouldBlock) => Err(Refusal::new(
            Code::StateDirBusy,
            format!("the state directory {} is used by another daemon", dir.display()),
            "stop that daemon, or give this one its own --state-dir",
        )),
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let hint = "names have letters, digits, '.', '_' and '-', and begin with a letter or digit";
    holdfast_units::check_name(name).map_err(|e| Refusal::new(Code::BadName, e.to_string(), hint))
}

fn check_addresses(addresses: &[Address]) -> Result<(), Refusal> {
    if addresses.len() <= MAX_ADDRESSES {
        return Ok(());
    }
    Err(Refusal::new(
        Code::BadAddress,
        format!("a node cannot have {} addresses: {MAX_ADDRESSES} at most", addresses.len()),
        "give fewer",
    ))
}

fn read_addresses(texts: &[String]) -> Result<Vec<Address>, Refusal> {
    let addresses: Vec<Address> = texts
        .iter()
        .take(MAX_ADDRESSES + 1)
        .map(|text| Address::parse(text, None))
        .collect::<Result<_, _>>()?;
    check_addresses(&addresses)?;
    Ok(addresses)
}

fn other_cluster(what: &str, expected: &str) -> Refusal {
    Refusal::new(
        Code::OtherCluster,
        format!("{what} is refused: it is not for the cluster of {expected}"),
        "check with `holdfast cluster status` which cluster each node is in",
    )
}

fn removed() -> Refusal {
    Refusal::new(
        Code::NodeUnknown,
        "this node was removed from its cluster by another node",
        "use `holdfast cluster leave --force`, then join again with a new token",
    )
}
