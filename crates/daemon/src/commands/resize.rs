//! `resize`: all members agree on a larger size, then each grows by itself.

use super::blocking;
use crate::disk::growth;
use crate::growth::{goal, prepare, wait};
use crate::local::LocalDisk;
use crate::logpeer;
use crate::node::{Node, PeerMember};
use crate::peer_api::{self, AboutResource, GROW, MakeReady, ROOM_TO_GROW, RoomToGrow};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::phase;
use crate::resource::Resource;
use holdfast_api::request::{Done, Resize};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, NodeRecord};
use holdfast_core::PeerSnapshot;
use holdfast_units::{
    BLOCK_SIZE, ConnectionState, DiskState, ReplicationState, ResourceId, Role, format_size,
};
use std::sync::Arc;
use std::time::Duration;

/// How long a member may take to make its disk read as zeroes.
const ZEROING: Duration = Duration::from_secs(3600);
/// How long all members may take to grow, once that was agreed on.
const GROWING: Duration = Duration::from_secs(30);
/// How long the local device may take to follow.
const DEVICE: Duration = Duration::from_secs(10);
const WHAT: &str = "resize was refused";

fn refused(name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("{WHAT} for {name}: {why}"))
}

/// Makes a resource larger on all members.
///
/// # Errors
/// What is in the way on which node; nothing has changed then. `TIMED_OUT` when not everybody has
/// grown in time: it goes on by itself.
pub(crate) async fn resize(
    node: &Arc<Node>,
    name: &str,
    request: &Resize,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let handle = resource.need_handle()?;
    let view = handle.snapshot();
    if let Some(primary) = view.snapshot.peers.iter().find(|peer| peer.role == Role::Primary) {
        let primary = node.view().slot_name(resource.id, primary.node);
        return Err(refused(name, ErrorCode::OtherPrimary, &format!("node {primary} is Primary"))
            .hint(format!("run it on {primary}")));
    }
    if let Some(size) = request.size.filter(|size| !size.is_multiple_of(BLOCK_SIZE)) {
        let why = format!("{size} bytes are not a multiple of 4096");
        return Err(refused(name, ErrorCode::InvalidSize, &why)
            .hint(format!("{} would do", size / BLOCK_SIZE * BLOCK_SIZE)));
    }
    phase("asking all members for their room");
    let rooms = rooms(node, &resource).await?;
    let present = goal(node, &resource, &view);
    let size = choose(name, request.size, present, &rooms)?;
    if size == present {
        let shown = format_size(size);
        return Ok(Done::new(format!("resource {name} has {shown} ({size} bytes) already")));
    }
    phase("making all disks ready");
    make_ready(node, &resource, size).await?;
    phase("agreeing on the size");
    agree(node, &resource, size).await?;
    // Who is not reached now hears of it later.
    let _ = peer_api::announce(node).await;
    phase("growing on all members");
    if !wait(&handle, GROWING, |view| view.snapshot.size >= size).await {
        let message = format!(
            "resource {name} has not grown to {size} bytes everywhere: {} seconds were over",
            GROWING.as_secs()
        );
        return Err(ApiError::new(ErrorCode::TimedOut, message).hint(format!(
            "it was agreed on, and each node grows when it can; `holdfast status {name}` on each \
             node says what is in the way"
        )));
    }
    let mut message = format!("resource {name} has {} ({size} bytes) now", format_size(size));
    let later = logpeer::not_grown(node, &resource, size).await;
    if !later.is_empty() {
        message.push_str(&format!(
            "; it grows later on {}, which follow by the log: `holdfast status {name}` there says \
             what is in the way",
            later.join(", ")
        ));
    }
    if let Some(why) = device_keeps(&resource, size).await {
        message.push_str("; ");
        message.push_str(&why);
    }
    Ok(Done::new(message))
}

/// The members with a disk other than this node.
fn peers(node: &Node, resource: &Resource) -> Vec<(PeerMember, Option<NodeRecord>)> {
    let view = node.view();
    let peers = view.peers_of(resource.id, node.uuid).into_values();
    let with_disk = peers.filter(|peer| !peer.diskless);
    with_disk.map(|peer| (view.records.node(peer.uuid), peer)).map(|(r, p)| (p, r)).collect()
}

/// How much room each member with a disk has, with its name.
async fn rooms(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<Vec<(String, u64)>, ApiError> {
    let mut rooms = Vec::new();
    if let Some(room) = room(node, resource).await? {
        rooms.push((node.name.clone(), room));
    }
    for (peer, record) in peers(node, resource) {
        let Some(record) = record else { continue };
        let about = AboutResource { resource: resource.id };
        let found: RoomToGrow = call_node(node, &record, ROOM_TO_GROW, &about, CALL_TIMEOUT)
            .await
            .map_err(|error| {
                if error.code == ErrorCode::PeerNotReachable {
                    let why = format!("node {} is not reached", peer.name);
                    return refused(&resource.name(), ErrorCode::PeerNotReachable, &why)
                        .hint("all members with a disk must be there: start its daemon first");
                }
                error
            })?;
        rooms.extend(found.bytes.map(|bytes| (peer.name, bytes)));
    }
    Ok(rooms)
}

/// The same as [`room`], for another node.
///
/// # Errors
/// As [`room`]; also when this node does not have the resource.
pub(crate) async fn room_of(node: &Arc<Node>, id: ResourceId) -> Result<Option<u64>, ApiError> {
    room(node, &member(node, id)?).await
}

/// A resource that another node takes this one for a member of.
fn member(node: &Node, id: ResourceId) -> Result<Arc<Resource>, ApiError> {
    node.resource(id).ok_or_else(|| {
        let why = format!("node {} has no part in it that it can use", node.name);
        refused(&id.to_string(), ErrorCode::NotMember, &why)
            .hint("`holdfast status` on that node says what is wrong with it")
    })
}

/// How large a resource this node's disk has room for; `None` without a disk.
///
/// # Errors
/// When the resource is not as it has to be on this node.
async fn room(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<Option<u64>, ApiError> {
    let name = resource.name();
    if resource.following().is_some() {
        // Whatever its disk is, and however far behind: all that is new reads as zeroes there.
        let Some(disk) = resource.local().disk else { return Ok(None) };
        return room_on(node, name, disk).await.map(Some);
    }
    let handle = resource.handle().ok_or_else(|| {
        let why = format!("it is down on node {}", node.name);
        refused(&name, ErrorCode::ResourceDown, &why)
            .hint(format!("run `holdfast up {name}` on {} first", node.name))
    })?;
    let view = handle.snapshot();
    for peer in &view.snapshot.peers {
        check_peer(node, resource, view.snapshot.disk, peer)?;
    }
    let local = resource.local();
    if local.replacing.is_some() {
        let why = format!("the disk of node {} is being replaced", node.name);
        return Err(refused(&name, ErrorCode::Busy, &why).hint(format!(
            "wait until that is done, or end it with `holdfast replace-disk {name} --stop`"
        )));
    }
    let Some(disk) = local.disk else { return Ok(None) };
    if !local.attached || view.snapshot.disk != DiskState::UpToDate {
        let why = format!("the disk of node {} is {}", node.name, view.snapshot.disk);
        return Err(refused(&name, ErrorCode::NoUpToDateData, &why)
            .hint("all disks must be UpToDate first"));
    }
    room_on(node, name, disk).await.map(Some)
}

async fn room_on(node: &Node, name: String, disk: LocalDisk) -> Result<u64, ApiError> {
    let here = node.name.clone();
    blocking(move || {
        growth::room(&disk).map_err(|error| ApiError {
            message: format!("{WHAT} for {name}: node {here}: {}", error.message),
            ..error
        })
    })
    .await
}

/// That nothing is copied or missed between this node and a peer.
fn check_peer(
    node: &Node,
    resource: &Resource,
    own: DiskState,
    peer: &PeerSnapshot,
) -> Result<(), ApiError> {
    let name = resource.name();
    let peer_name = node.view().slot_name(resource.id, peer.node);
    let between = format!("{} and {peer_name}", node.name);
    if peer.connection != ConnectionState::Connected {
        let why = format!("nodes {between} are not connected");
        return Err(refused(&name, ErrorCode::NotConnected, &why)
            .hint("all members must be connected and UpToDate first"));
    }
    let one_has_none = peer.diskless || own <= DiskState::Failed;
    if !one_has_none && peer.resync.is_some() {
        let why = format!("a resync is running between {between}");
        return Err(refused(&name, ErrorCode::ResyncRunning, &why)
            .hint(format!("`holdfast wait {name} --for synced` waits for its end")));
    }
    let level = peer.disk == DiskState::UpToDate
        && peer.replication == ReplicationState::Established
        && peer.out_of_sync == 0;
    if one_has_none || level {
        return Ok(());
    }
    let why = format!("the disks of {between} are not known to be equal");
    Err(refused(&name, ErrorCode::NoUpToDateData, &why).hint("all disks must be UpToDate first"))
}

/// The new size.
fn choose(
    name: &str,
    wanted: Option<u64>,
    present: u64,
    rooms: &[(String, u64)],
) -> Result<u64, ApiError> {
    let Some((where_to, least)) = rooms.iter().min_by_key(|(_, room)| *room) else {
        return Err(refused(name, ErrorCode::NoDisk, "no member has a disk"));
    };
    let size = wanted.unwrap_or(*least);
    if size < present {
        let why = format!(
            "it has {} ({present} bytes), and a resource cannot shrink",
            format_size(present)
        );
        return Err(refused(name, ErrorCode::InvalidSize, &why)
            .hint("create a smaller resource and copy what is on this one"));
    }
    let larger = "make the disk of each member larger first (a file with `truncate --size`, a \
                  volume with `lvextend`)";
    if wanted.is_none() && size == present {
        let why = format!("the disk of node {where_to} has no room for more than it has");
        return Err(refused(name, ErrorCode::DiskTooSmall, &why).hint(larger));
    }
    let small: Vec<String> = rooms
        .iter()
        .filter(|(_, room)| *room < size)
        .map(|(node, room)| format!("{} on node {node}", format_size(*room)))
        .collect();
    if !small.is_empty() {
        let why = format!(
            "{} ({size} bytes) do not fit: there is room for {}",
            format_size(size),
            small.join(", ")
        );
        return Err(refused(name, ErrorCode::DiskTooSmall, &why).hint(larger));
    }
    Ok(size)
}

/// Has every member make its disk and metadata ready.
async fn make_ready(node: &Arc<Node>, resource: &Arc<Resource>, size: u64) -> Result<(), ApiError> {
    let mut tasks = tokio::task::JoinSet::new();
    for (_, record) in peers(node, resource) {
        let Some(record) = record else { continue };
        let (node, call) = (Arc::clone(node), MakeReady { resource: resource.id, size });
        tasks.spawn(async move {
            call_node::<_, Done>(&node, &record, GROW, &call, ZEROING).await.map(drop)
        });
    }
    let (here, own) = (Arc::clone(node), Arc::clone(resource));
    tasks.spawn(async move { ready(&here, own.id, size).await });
    tasks.join_all().await.into_iter().collect()
}

/// Makes this node's disk and metadata ready. Also asked by other nodes.
///
/// # Errors
/// What is in the way; nothing has changed then.
pub(crate) async fn ready(node: &Arc<Node>, id: ResourceId, size: u64) -> Result<(), ApiError> {
    let resource = member(node, id)?;
    let prepared = prepare(node, &resource, size).await.map_err(|error| ApiError {
        message: format!("{WHAT} for {}: node {}: {}", resource.name(), node.name, error.message),
        ..error
    })?;
    if resource.local().disk.is_some() && !prepared.disk_ready {
        // It was in use when the sizes were asked for.
        let why = format!("the disk of node {} is not in use at present", node.name);
        return Err(refused(&resource.name(), ErrorCode::Busy, &why).hint("try again"));
    }
    Ok(())
}

/// Writes down that it is so large. From then on each node may grow.
async fn agree(node: &Arc<Node>, resource: &Arc<Resource>, size: u64) -> Result<(), ApiError> {
    let (id, name) = (resource.id, resource.name());
    let asked = peers(node, resource).len();
    let own = node.uuid;
    let agreed = node.cluster(move |state, now| {
        let members = state.records().members(id);
        let with_disk = members.iter().filter(|m| m.node != own && !m.diskless).count();
        let record = state.records().resource(id);
        // Who joined meanwhile was not asked.
        let record = record.filter(|record| with_disk == asked && record.size_bytes < size);
        let Some(mut record) = record else { return Ok(false) };
        record.size_bytes = size;
        state.change(vec![Change::resource(&record)], now).map(|_| true)
    });
    if agreed.await? {
        return Ok(());
    }
    let why = "its members or its size have changed meanwhile";
    Err(refused(&name, ErrorCode::Busy, why).hint("try again"))
}

/// Why the local device did not become as large as the resource; `None` when it did, or there is
/// none.
async fn device_keeps(resource: &Arc<Resource>, size: u64) -> Option<String> {
    let mut changes = resource.watch();
    let followed = || {
        let state = resource.state();
        state.device.as_ref().is_none_or(|device| device.size >= size)
    };
    let waiting = async { while !followed() && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(DEVICE, waiting).await;
    let device = resource.state().device.clone()?;
    if device.size < size {
        return Some(format!("{} has not followed yet", device.path));
    }
    device.kept_size.map(|why| {
        format!("{} keeps its size: {why}; it has the new one when it is made again", device.path)
    })
}

#[cfg(test)]
mod tests;
