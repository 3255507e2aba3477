//! `join`: this node becomes a member of a resource.

use super::create::{al_extents, refuse_attached, told_of_spares};
use super::{blocking, journal, used_disks};
use crate::checksums;
use crate::disk::{Existing, Prepared, Wanted, growth, room};
use crate::events::unix_ms;
use crate::journaled::open::segment_bytes;
use crate::local::{Local, LocalDisk, LocalJournal};
use crate::node::{ClusterView, LOG, Node};
use crate::peer_api::{self, JOIN_RESOURCE, JoinResource, MAKE_ROOM, MakeRoom};
use crate::peers::{CALL_TIMEOUT, REMOVED, call_node, sync_with, sync_with_all};
use crate::phases::phase;
use crate::refuse;
use crate::resource::{self, Resource};
use crate::shard::InitialContent;
use crate::spares::Planned;
use holdfast_api::options::check;
use holdfast_api::request::{Done, ResourceJoin};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{
    Change, ClusterState, Code, Key, MemberRecord, NodeRecord, Refusal, ResourceRecord, Trouble,
    UnixMillis, Uuid,
};
use holdfast_units::{BLOCK_SIZE, DiskState, NodeId, ResourceId, format_size};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the other nodes are asked for news before a name is said to be unknown.
const SYNC_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes this node a member of a resource.
///
/// # Errors
/// What is in the way; nothing has changed then.
pub(crate) async fn join(
    node: &Arc<Node>,
    name: &str,
    request: ResourceJoin,
) -> Result<Done, ApiError> {
    holdfast_units::check_name(name)?;
    let protocol = match request.protocol.as_deref() {
        Some(LOG) => LOG.to_owned(),
        other => check("protocol", other.unwrap_or("C"))?,
    };
    let what = format!("node {} did not join resource {name}", node.name);
    let spares = !request.spare.is_empty() || request.spare_size.is_some();
    if request.diskless && spares {
        let message = format!("{what}: a member without a disk has no spares");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("leave --spare and --spare-size away, or give --disk PATH"));
    }
    if request.disk.is_some() == request.diskless {
        let message = format!("{what}: it needs either a disk or to be diskless");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("give --disk PATH, or --diskless"));
    }
    let _making = node.making.lock().await;
    refuse_attached(node, name, &what)?;
    phase("hearing what the other nodes know");
    let record = find(node, name, &what).await?;
    if node.resource(record.id).is_some() {
        let message = format!("{what}: it is a member already");
        return Err(ApiError::new(ErrorCode::AlreadyMember, message)
            .hint(format!("`holdfast status {name}` shows it")));
    }
    phase("checking what is asked for");
    let checked = match &request.disk {
        Some(disk) => {
            let wanted = Wanted {
                what: what.clone(),
                resource: record.id,
                disk: disk.clone(),
                meta: request.meta.clone(),
                size: Some(record.size_bytes),
                al_extents: al_extents(&record.options),
                state_dir: node.settings.state_dir.clone(),
                used: used_disks(node),
                // It may be the disk that this node had before, or any other one.
                existing: if request.force {
                    Existing::Overwrite
                } else {
                    Existing::OverwriteUnknown
                },
                spares: Planned::of(&request.spare, request.spare_size, request.force),
            };
            Some(blocking(move || wanted.check()).await?)
        }
        None => None,
    };
    let follows = protocol == LOG;
    if follows && (request.diskless || request.journal.is_none()) {
        let message = format!("{what}: a node that follows by the log needs a disk and a journal");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("give --disk PATH and --journal PATH"));
    }
    if request.diskless && request.journal.is_some() {
        let message = format!("{what}: a member without a disk has no journal");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message)
            .hint("leave --journal away, or give --disk PATH"));
    }
    let journal =
        journal::wanted(node, &what, request.journal.as_ref(), request.journal_size).await?;
    let journal_bytes = journal.as_ref().map_or(0, |spec| spec.size);
    let call =
        JoinResource { resource: record.id, diskless: request.diskless, protocol, journal_bytes };
    phase("becoming a member");
    let slot = become_member(node, &record, &call, &what).await?;
    let prepared = match checked {
        Some(checked) => {
            phase("writing the metadata of its disk");
            let others = others_with_disk(&node.view(), record.id, node.uuid);
            // Should the daemon die meanwhile, the same command makes it anew.
            let prepare =
                move || checked.prepare(slot, &others, InitialContent::Nothing, |_| Ok(()));
            let made = blocking(prepare).await;
            match made {
                Ok(prepared) => Some(Arc::new(prepared)),
                Err(error) => {
                    forget(node, &record, None, None).await;
                    return Err(error);
                }
            }
        }
        None => None,
    };
    let mut journaled = None;
    if let Some(spec) = journal {
        phase("making its journal");
        let (id, what) = (record.id, what.clone());
        match blocking(move || journal::make(&what, &spec, id, slot)).await {
            Ok(made) => journaled = Some(made),
            Err(error) => {
                forget(node, &record, prepared, None).await;
                return Err(error);
            }
        }
    }
    phase("starting it");
    let place = match &prepared {
        Some(prepared) => format!(
            "with the disk {}{}",
            prepared.disk.path.display(),
            told_of_spares(&prepared.disk, prepared.ends.spare)
        ),
        None => "without a disk".to_owned(),
    };
    let by_file = || checksums::wanted(&mut node.resource_defaults(name), false);
    let sums = request.checksums || (!request.diskless && by_file());
    if let Err(error) = establish(node, &record, prepared.as_deref(), journaled.clone(), sums).await
    {
        forget(node, &record, prepared, journaled).await;
        return Err(ApiError { message: format!("{what}: {}", error.message), ..error });
    }
    let unused = match prepared {
        Some(prepared) => unused(prepared.disk.clone(), record.size_bytes).await,
        None => String::new(),
    };
    Ok(Done::new(format!(
        "node {} is a member of resource {name} {place}; {} by itself{unused}",
        node.name,
        if follows { "it follows the Primary's journal" } else { "sync starts" }
    )))
}

/// How much of a larger disk stays unused, in words; nothing when that is not known.
async fn unused(disk: LocalDisk, size: u64) -> String {
    let path = disk.path.display().to_string();
    let room = blocking(move || growth::room(&disk)).await;
    match room.map(|room| room.saturating_sub(size)) {
        Ok(rest) if rest >= BLOCK_SIZE => {
            format!("; {} of {path} stay unused, as the resource is smaller", format_size(rest))
        }
        _ => String::new(),
    }
}

/// The record of the resource, after a look at what the other nodes know.
async fn find(node: &Arc<Node>, name: &str, what: &str) -> Result<ResourceRecord, ApiError> {
    if node.view().membership.is_none() {
        let message = format!("{what}: the node is in no cluster");
        return Err(ApiError::new(ErrorCode::NoCluster, message).hint(
            "run `holdfast cluster token` on a node of the cluster, and `holdfast cluster \
                   join TOKEN` here",
        ));
    }
    let reached = sync_with_all(node, SYNC_TIMEOUT).await;
    if let Some(record) = node.record_named(name) {
        return Ok(record);
    }
    let others = node.others();
    if let Some(other) = others.iter().find(|other| node.peers.health(other.uuid).refuses) {
        let message = format!("{what}: node {} refuses this node", other.name);
        return Err(ApiError::new(ErrorCode::PeerRefused, message).hint(REMOVED));
    }
    let missing = others.len() - reached.len().min(others.len());
    let why = if missing == 0 {
        "the cluster has no resource of that name".to_owned()
    } else {
        format!("no resource of that name is known, and {missing} nodes were not reached")
    };
    Err(ApiError::new(ErrorCode::NoSuchResource, format!("{what}: {why}"))
        .hint("`holdfast status` on the other nodes lists their resources"))
}

/// Has the first member that is reached write this node into the records, and tells all others.
async fn become_member(
    node: &Arc<Node>,
    record: &ResourceRecord,
    call: &JoinResource,
    what: &str,
) -> Result<NodeId, ApiError> {
    let view = node.view();
    let mut members: Vec<NodeRecord> = view
        .records
        .members(record.id)
        .into_iter()
        .filter(|member| member.node != node.uuid)
        .filter_map(|member| view.records.node(member.node))
        .collect();
    members.sort_by_key(|member| member.uuid);
    let mut unreached = ApiError::new(
        ErrorCode::PeerNotReachable,
        format!("{what}: no member of the resource is left in the cluster"),
    );
    for member in &members {
        let answer: Result<Done, ApiError> =
            call_node(node, member, JOIN_RESOURCE, call, CALL_TIMEOUT).await;
        match answer {
            Ok(_) => {
                sync_with(node, member).await?;
                // Who is not reached now hears of it later, and connects then.
                sync_with_all(node, SYNC_TIMEOUT).await;
                return own_slot(node, record, what).await;
            }
            Err(error) if error.code == ErrorCode::PeerNotReachable => {
                unreached = ApiError { message: format!("{what}: {}", error.message), ..error };
            }
            Err(error) => {
                return Err(ApiError { message: format!("{what}: {}", error.message), ..error });
            }
        }
    }
    Err(unreached)
}

async fn own_slot(
    node: &Arc<Node>,
    record: &ResourceRecord,
    what: &str,
) -> Result<NodeId, ApiError> {
    let view = node.view();
    let twice = view.conflicts().iter().any(|trouble| {
        matches!(trouble, Trouble::SlotTwice { resource, loses, .. }
            if *resource == record.id && *loses == node.uuid)
    });
    if twice {
        forget(node, record, None, None).await;
        let message = format!("{what}: another node joined in the same moment");
        return Err(ApiError::new(ErrorCode::Busy, message).hint("try again"));
    }
    view.slot_of(record.id, node.uuid).ok_or_else(|| {
        ApiError::new(ErrorCode::Internal, format!("{what}: the records did not arrive"))
            .hint("try again")
    })
}

async fn establish(
    node: &Arc<Node>,
    record: &ResourceRecord,
    prepared: Option<&Prepared>,
    journal: Option<LocalJournal>,
    checksums: bool,
) -> Result<(), ApiError> {
    let local = Local {
        id: record.id,
        name: record.name.clone(),
        disk: prepared.map(|prepared| prepared.disk.clone()),
        journal,
        replacing: None,
        retired: None,
        checksums,
        attached: true,
        up: true,
        primary: false,
        follows: false,
        size: None,
        expendable: false,
        lineage: Vec::new(),
        sync_paused: false,
        shows_past: false,
        pending: false,
        disconnected: BTreeSet::new(),
    };
    let (store, saved) = (node.store.clone(), local.clone());
    blocking(move || store.save(&saved)).await?;
    let resource = Resource::new(local);
    node.add_resource(Arc::clone(&resource));
    resource::start(node, &resource, false).await
}

/// Takes back what had been done for a member that could not be made.
async fn forget(
    node: &Arc<Node>,
    record: &ResourceRecord,
    prepared: Option<Arc<Prepared>>,
    journal: Option<LocalJournal>,
) {
    let id = record.id;
    if let Some(resource) = node.resource(id) {
        if let Err(error) = resource::stop(&resource).await {
            tracing::warn!("{}", error.message);
        }
        node.remove_resource(id);
    }
    let key = Key::member(id, node.uuid);
    let forgotten = node.cluster(move |state, now| state.change(vec![Change::delete(key)], now));
    if let Err(error) = forgotten.await {
        tracing::warn!("undoing a failed join: {}", error.message);
    }
    let store = node.store.clone();
    let undone = blocking(move || {
        journal.iter().for_each(journal::remove);
        if let Some(prepared) = prepared {
            prepared.undo();
        }
        store.remove(id)
    });
    if let Err(error) = undone.await {
        tracing::warn!("undoing a failed join: {}", error.message);
    }
    peer_api::announce(node).await;
}

/// The other members that a member keeps bitmaps of.
pub(super) fn others_with_disk(view: &ClusterView, id: ResourceId, own: Uuid) -> Vec<NodeId> {
    let others = view.core_peers_of(id, own).into_values();
    others.filter(|peer| !peer.diskless).map(|peer| peer.slot).collect()
}

/// Has every member in reach make room for the bitmap of a member to come. Who is not reached does
/// it when it hears of the member, and takes it as a peer when it has the room.
///
/// # Errors
/// `NO_SPACE`, with the name of a node that has none.
pub(super) async fn room_elsewhere(
    node: &Arc<Node>,
    id: ResourceId,
    slot: NodeId,
    newcomer: Uuid,
) -> Result<(), ApiError> {
    let view = node.view();
    let mut tasks = tokio::task::JoinSet::new();
    for peer in view.core_peers_of(id, node.uuid).into_values() {
        let Some(record) = view.records.node(peer.uuid).filter(|_| peer.uuid != newcomer) else {
            continue;
        };
        let (node, call) = (Arc::clone(node), MakeRoom { resource: id, slot: slot.number() });
        tasks.spawn(async move {
            call_node::<_, Done>(&node, &record, MAKE_ROOM, &call, SYNC_TIMEOUT).await
        });
    }
    let asked = tasks.join_all().await.into_iter();
    let refused = |error: &ApiError| error.code == ErrorCode::NoSpace;
    asked.filter_map(Result::err).find(refused).map_or(Ok(()), Err)
}

/// Makes room in this node's metadata for the bitmap of a member to come. A disk that is not in
/// use needs none now.
///
/// # Errors
/// `NO_SPACE`; nothing has changed then.
pub(crate) async fn make_room(
    node: &Arc<Node>,
    id: ResourceId,
    slot: NodeId,
) -> Result<(), ApiError> {
    let Some(resource) = node.resource(id) else { return Ok(()) };
    let failed = resource.view().is_some_and(|view| view.snapshot.disk <= DiskState::Failed);
    let local = resource.local();
    let Some(disk) = local.disk.filter(|_| local.attached && !failed) else { return Ok(()) };
    let known = node.view().peers_of(id, node.uuid).contains_key(&slot);
    let name = node.name.clone();
    blocking(move || {
        room::reserve(&disk, id, &[slot]).map_err(|full| {
            if !known {
                room::give_back(&disk, id, slot);
            }
            full.refusal(&name)
        })
    })
    .await
}

/// A journal that holds a copy of another one has room for so many of its segments.
const JOURNAL_SEGMENTS: u64 = 3;

/// Another node asks this member to write it into the records.
///
/// # Errors
/// When the resource is not known here, or takes no more members.
pub(crate) async fn let_in(
    node: &Arc<Node>,
    newcomer: Uuid,
    call: JoinResource,
) -> Result<Done, ApiError> {
    let (own, id) = (node.uuid, call.resource);
    let view = node.view();
    let refuse = |why: &str| {
        ApiError::new(ErrorCode::PeerRefused, format!("node {} refused: {why}", node.name))
    };
    if view.records.resource(id).is_none() || view.records.member(id, own).is_none() {
        return Err(refuse("it is no member of the resource itself"));
    }
    if view.records.member(id, newcomer).is_some() {
        // It was written in before, and the answer was lost.
        return Ok(Done::new("it is a member"));
    }
    let log = call.protocol == LOG;
    let protocol = if log { call.protocol } else { check("protocol", &call.protocol)? };
    let journal = node.resource(id).and_then(|resource| resource.local().journal);
    if log && journal.is_none() {
        return Err(refuse("the resource has no journal here that could be followed").hint(
            "a journal comes with `holdfast create NAME --disk PATH --journal PATH`; what is on the disk \
             stays there when a resource is deleted and created again",
        ));
    }
    if let (true, Some(own)) = (log, &journal) {
        let least = JOURNAL_SEGMENTS * segment_bytes(own.size);
        if call.journal_bytes < least {
            let (has, least) = (format_size(call.journal_bytes), format_size(least));
            let why = format!(
                "a journal of {has} is too small to hold a copy of the one here: it needs {least}"
            );
            return Err(refuse(&why).hint(format!("give --journal-size {least} or more")));
        }
    }
    if !call.diskless && !log {
        let now = UnixMillis(unix_ms());
        let slot = view.records.free_slot(id, newcomer, now).map_err(refuse::cluster)?;
        if let Some(slot) = NodeId::new(slot) {
            make_room(node, id, slot).await?;
            room_elsewhere(node, id, slot, newcomer).await?;
        }
    }
    node.cluster(move |state, now| {
        refuse_parting(state, id, newcomer)?;
        let slot = state.records().free_slot(id, newcomer, now)?;
        let member = MemberRecord {
            resource: id,
            node: newcomer,
            slot,
            diskless: call.diskless,
            protocol,
            addresses: Vec::new(),
            joined_at: now.0,
        };
        state.change(vec![Change::member(&member)], now)
    })
    .await?;
    Ok(Done::new("it is a member now"))
}

/// While the cluster is being split, no resource gets members in both parts.
fn refuse_parting(state: &ClusterState, id: ResourceId, newcomer: Uuid) -> Result<(), Refusal> {
    let Some(cluster) = state.membership() else { return Ok(()) };
    let records = state.records();
    let parted = |member: &MemberRecord| records.are_to_part(cluster.uuid, member.node, newcomer);
    if !records.members(id).iter().any(parted) {
        return Ok(());
    }
    Err(Refusal::new(
        Code::NodeBusy,
        "the node was not made a member: the cluster is being split, and it is in the other part",
        "see `holdfast cluster status`",
    ))
}
