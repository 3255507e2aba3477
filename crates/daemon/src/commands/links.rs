//! `connect`, `disconnect` and `invalidate`.

use super::core_command;
use crate::dial::ask_to_dial;
use crate::logpeer::{self, Following, past};
use crate::node::{Node, PeerMember};
use crate::refuse;
use crate::resource::Resource;
use holdfast_api::request::{Connect, Disconnect, Done, Invalidate};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::Command;
use holdfast_journal::ship::{FollowStatus, Holding};
use holdfast_units::NodeId;
use std::sync::Arc;

/// The peers that a command is about: one, or all.
fn chosen(
    node: &Node,
    resource: &Resource,
    peer: Option<&str>,
) -> Result<(Option<NodeId>, Vec<PeerMember>), ApiError> {
    let peers = node.view().peers_of(resource.id, node.uuid);
    match peer {
        None => Ok((None, peers.into_values().collect())),
        Some(name) => {
            let found = peers.into_values().find(|peer| peer.name == name);
            let found = found.ok_or_else(|| no_such_peer(&resource.name(), name))?;
            Ok((Some(found.slot), vec![found]))
        }
    }
}

/// Whether a command about this peer, or all, is one for the core: it does not know of log peers.
fn is_of_core(node: &Node, resource: &Resource, peer: Option<NodeId>) -> bool {
    let known = node.view().core_peers_of(resource.id, node.uuid);
    peer.is_none_or(|peer| known.contains_key(&peer))
}

/// That a resource has no peer of this name.
pub(crate) fn no_such_peer(resource: &str, peer: &str) -> ApiError {
    let message = format!("peer {peer} of resource {resource} was not found: it is no member");
    ApiError::new(ErrorCode::NoSuchPeer, message)
        .hint(format!("`holdfast status {resource}` lists the peers"))
}

/// Connects to peers, now and after a restart.
///
/// # Errors
/// When it is down, or Primary and its data were to be given up.
pub(crate) async fn connect(
    node: &Arc<Node>,
    name: &str,
    request: &Connect,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let (peer, members) = chosen(node, &resource, request.peer.as_deref())?;
    if let Some(following) = resource.following() {
        if request.discard_my_data {
            give_up(node, &resource, &following, "connect was refused").await?;
        }
        resource.dial_now.notify_one();
        return Ok(Done::new(format!("resource {name} follows {}", names(&members))));
    }
    if request.discard_my_data
        && let Some(leader) = logpeer::follow_giving_up(node, &resource, peer).await?
    {
        return Ok(Done::new(format!("resource {name} follows {leader}")));
    }
    if is_of_core(node, &resource, peer) {
        let command = Command::Connect { peer, discard_my_data: request.discard_my_data };
        core_command(node, &resource, "connect was refused", command).await?;
    }
    resource
        .change_local(node, |local| {
            local.disconnected.retain(|uuid| members.iter().all(|peer| peer.uuid != *uuid));
            if request.discard_my_data {
                // It says of which data those were that are given up.
                local.lineage.clear();
            }
        })
        .await?;
    resource.dial_now.notify_one();
    ask_to_dial(node, resource.id);
    Ok(Done::new(format!("resource {name} connects to {}", names(&members))))
}

/// Disconnects from peers, now and after a restart.
///
/// # Errors
/// When it is down.
pub(crate) async fn disconnect(
    node: &Arc<Node>,
    name: &str,
    request: &Disconnect,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let (peer, members) = chosen(node, &resource, request.peer.as_deref())?;
    if is_of_core(node, &resource, peer) {
        let command = Command::Disconnect { peer };
        core_command(node, &resource, "disconnect was refused", command).await?;
    } else {
        resource.need_handle()?;
    }
    resource
        .change_local(node, |local| {
            local.disconnected.extend(members.iter().map(|peer| peer.uuid));
        })
        .await?;
    Ok(Done::new(format!("resource {name} is disconnected from {}", names(&members))))
}

/// The data of a node that follows are given up, and copied again.
async fn give_up(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    following: &Following,
    what: &str,
) -> Result<(), ApiError> {
    let view = following.view();
    let whole =
        |status: &FollowStatus| !matches!(status.holding, Holding::Nothing | Holding::Filling);
    // It may be the last good copy there is.
    if view.leader.is_none() && view.status.as_ref().is_some_and(whole) {
        let name = resource.name();
        let message = format!("{what} for {name}: the node that leads is not in reach");
        return Err(ApiError::new(ErrorCode::NoUpToDateData, message).hint(format!(
            "the data of this node would be replaced by nothing: connect it first; `holdfast status \
             {name}` says when it is"
        )));
    }
    past::end(node, resource, what).await?;
    following.discard().await.map_err(|why| {
        let message = format!("{what} for {}: {why}", resource.name());
        ApiError::new(ErrorCode::DiskFailed, message)
    })
}

fn names(members: &[PeerMember]) -> String {
    if members.is_empty() {
        return "nobody: it has no peers".to_owned();
    }
    members.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Gives this node's data up and has them copied again.
///
/// # Errors
/// When no up-to-date data are in reach, or the node whose data are given up is Primary.
pub(crate) async fn invalidate(
    node: &Arc<Node>,
    name: &str,
    request: &Invalidate,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let (peer, _) = chosen(node, &resource, request.peer.as_deref())?;
    if let (Some(following), None) = (resource.following(), peer) {
        give_up(node, &resource, &following, "invalidate was refused").await?;
        return Ok(Done::new(format!("resource {name} fetches the data of this node again")));
    }
    let handle = resource.need_handle()?;
    handle.command(Command::Invalidate { peer }).await.map_err(|refusal| {
        let view = node.view();
        refuse::invalidate(name, peer, refusal, |slot| view.slot_name(resource.id, slot))
    })?;
    Ok(Done::new(match &request.peer {
        None => format!("resource {name} fetches the data of this node again"),
        Some(peer) => format!("resource {name} replaces the data of {peer} by this node's"),
    }))
}
