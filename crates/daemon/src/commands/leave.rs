//! `leave` and `delete`, and the end of a resource on this node.

use super::roles::{need_closed, release};
use super::{blocking, device, journal};
use crate::checksums;
use crate::disk;
use crate::events::{Objects, Part};
use crate::local::LocalDisk;
use crate::logpeer;
use crate::node::Node;
use crate::peer_api::{self, AboutResource, MAY_DELETE};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::{phase, would};
use crate::problems;
use crate::replacing;
use crate::resource::{self, Resource};
use crate::status;
use crate::survey;
use holdfast_api::request::{Done, ResourceDelete, ResourceLeave};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, Key};
use holdfast_units::{DiskState, ResourceId, Role};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Ends this node's membership. The data stay on the disk.
///
/// # Errors
/// When it is Primary or open here, the last member, or has the last good copy.
pub(crate) async fn leave(
    node: &Arc<Node>,
    name: &str,
    call: &ResourceLeave,
) -> Result<Done, ApiError> {
    if let Some((id, _)) = node.damaged_named(name) {
        if call.dry_run {
            would(&["telling the other nodes", "ending it here"]);
            let message = format!("nothing was changed; node {} could leave {name}", node.name);
            return Ok(Done::new(message));
        }
        return leave_damaged(node, name, id).await;
    }
    let resource = node.resource_named(name)?;
    let begun = resource.begin().await?;
    let what = "leave was refused";
    phase("checking that nobody here needs it");
    super::updown::refuse_primary(&resource, what)?;
    if node.view().peers_of(resource.id, node.uuid).is_empty() {
        let message = format!("{what} for {name}: this node is its only member");
        return Err(ApiError::new(ErrorCode::LastGoodCopy, message)
            .hint(format!("`holdfast delete {name}` deletes it; the data stay on the disk")));
    }
    if let Some(view) = resource.view() {
        let snapshot = &view.snapshot;
        let elsewhere = snapshot.peers.iter().any(|peer| peer.disk == DiskState::UpToDate);
        let elsewhere = elsewhere || is_apart(node, &resource);
        if snapshot.disk >= DiskState::Consistent && !elsewhere {
            let message = format!("{what} for {name}: no other node in reach has up-to-date data");
            return Err(ApiError::new(ErrorCode::LastGoodCopy, message)
                .hint("connect another member and wait until it is UpToDate"));
        }
        if !call.dry_run {
            release(node, &resource, what, false).await?;
        }
    } else if resource.following().is_some() {
        if !logpeer::is_elsewhere(node, &resource).await {
            let message = format!("{what} for {name}: no other node in reach has what is here");
            return Err(ApiError::new(ErrorCode::LastGoodCopy, message).hint(
                "connect the node that leads, or another member that has as much, and wait for it",
            ));
        }
    } else if resource.local().disk.is_some() && !cannot_start(node, &resource).await {
        // Nobody can tell here how its data are, nor whether others have them.
        let message = format!("{what} for {name}: it is down, and may have the last good data");
        return Err(ApiError::new(ErrorCode::LastGoodCopy, message)
            .hint(format!("`holdfast up {name}` first: then that can be seen")));
    }
    if call.dry_run {
        need_closed(&resource, what).await?;
        would(&["telling the other nodes", "ending it here"]);
        let message =
            format!("nothing was changed; node {} could leave resource {name}", node.name);
        return Ok(Done::new(message));
    }
    phase("telling the other nodes");
    let (id, own) = (resource.id, node.uuid);
    node.cluster(move |state, now| {
        let options = pair_keys(state.records(), id, Some(&own.to_string()));
        let keys = std::iter::once(Key::member(id, own)).chain(options);
        state.change(keys.map(Change::delete).collect(), now)
    })
    .await?;
    peer_api::announce(node).await;
    drop(begun);
    phase("ending it here");
    retire(node, &resource).await;
    Ok(Done::new(format!("node {} left resource {name}; the data stay on its disk", node.name)))
}

/// Whether a member that is down cannot be started, and another one leads: nobody waits for its data.
async fn cannot_start(node: &Arc<Node>, resource: &Arc<Resource>) -> bool {
    let failed = resource.local().up && resource.state().trouble.is_some();
    failed && logpeer::is_elsewhere(node, resource).await
}

/// Whether another member that is alive has data of its own: both met, and had written apart.
fn is_apart(node: &Node, resource: &Resource) -> bool {
    let members = node.view().peers_of(resource.id, node.uuid);
    let state = resource.state();
    let met = state.problems.iter().filter(|(_, problem)| problem.what.code == "SPLIT_BRAIN");
    let mut apart = met.map(|(slot, _)| slot).chain(state.apart.keys());
    apart.any(|slot| members.get(slot).is_some_and(|peer| node.peers.health(peer.uuid).alive))
}

/// Ends the membership in a resource whose state file cannot be used: where its disk is, nobody knows.
async fn leave_damaged(node: &Arc<Node>, name: &str, id: ResourceId) -> Result<Done, ApiError> {
    let own = node.uuid;
    let last = node.view().peers_of(id, own).is_empty();
    node.cluster(move |state, now| {
        let records = state.records();
        let options = pair_keys(records, id, Some(&own.to_string()));
        let member = records.member(id, own).map(|_| Key::member(id, own));
        let resource = records.resource(id).filter(|_| last).map(|_| Key::resource(id));
        let keys = member.into_iter().chain(resource).chain(options);
        state.change(keys.map(Change::delete).collect(), now)
    })
    .await?;
    peer_api::announce(node).await;
    let (store, meta) = (node.store.clone(), disk::own_meta(&node.settings.state_dir, id));
    let sums = checksums::path(&node.settings.state_dir, id);
    blocking(move || {
        if meta.exists() {
            disk::wipe(&LocalDisk::new(meta.clone(), Some(meta)), id);
        }
        checksums::remove(&sums)?;
        store.remove(id)
    })
    .await?;
    node.forget_damaged(id);
    survey::forget(node, id);
    forget_losses(node, id);
    node.cluster_changed();
    let ended = if last { ", which has ended with its last member" } else { "" };
    Ok(Done::new(format!(
        "node {} left resource {name}{ended}; the data stay on its disk",
        node.name
    )))
}

fn forget_losses(node: &Node, id: ResourceId) {
    if let Err(error) = logpeer::forget_losses(&logpeer::losses_path(&node.settings.state_dir, id))
    {
        tracing::warn!("a list of lost blocks was not removed: {error}");
    }
}

/// The keys of the options of links of a resource; only of those of one node, if that is given.
fn pair_keys(
    records: &holdfast_cluster::Records,
    resource: ResourceId,
    node: Option<&str>,
) -> Vec<Key> {
    let prefix = format!("option/{resource}/");
    let records = records.of_kind("option").filter(|record| !record.deleted);
    records
        .map(|record| record.key.clone())
        .filter(|key| key.as_str().starts_with(&prefix))
        .filter(|key| node.is_none_or(|node| key.as_str().contains(node)))
        .collect()
}

/// Deletes a resource on all its members. The data stay on the disks.
///
/// # Errors
/// When it is in use on a member, or a member is not reached.
pub(crate) async fn delete(
    node: &Arc<Node>,
    name: &str,
    call: &ResourceDelete,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let begun = resource.begin().await?;
    let what = "delete was refused";
    let id = resource.id;
    phase("asking all members");
    let view = node.view();
    for peer in view.peers_of(id, node.uuid).values() {
        let Some(record) = view.records.node(peer.uuid) else { continue };
        let about = AboutResource { resource: id };
        let asked: Result<Done, ApiError> =
            call_node(node, &record, MAY_DELETE, &about, CALL_TIMEOUT).await;
        asked.map_err(|error| match error.code {
            ErrorCode::PeerNotReachable => {
                let why = format!("{what} for {name}: member {} was not reached", peer.name);
                ApiError::new(ErrorCode::HasMembers, why).hint(format!(
                    "start the daemon there; if node {0} is gone for good, `holdfast cluster \
                     remove {0} --force`",
                    peer.name
                ))
            }
            _ => ApiError { message: format!("{what} for {name}: {}", error.message), ..error },
        })?;
    }
    if call.dry_run {
        need_closed(&resource, what).await?;
        would(&["telling all nodes", "ending it on all members"]);
        return Ok(Done::new(format!("nothing was changed; resource {name} could be deleted")));
    }
    if resource.handle().is_some() {
        release(node, &resource, what, false).await?;
    }
    phase("telling all nodes");
    node.cluster(move |state, now| {
        let records = state.records();
        let members: Vec<Key> =
            records.members(id).iter().map(|m| Key::member(id, m.node)).collect();
        let known = records.resource(id).map(|_| Key::resource(id));
        let keys = pair_keys(records, id, None).into_iter().chain(members).chain(known);
        state.change(keys.map(Change::delete).collect(), now)
    })
    .await?;
    peer_api::announce(node).await;
    drop(begun);
    phase("ending it here");
    retire(node, &resource).await;
    Ok(Done::new(format!("resource {name} was deleted; the data stay on the disks")))
}

/// Whether another node may delete a resource that this node is a member of.
///
/// # Errors
/// When it is Primary or open here.
pub(crate) fn may_delete(node: &Node, id: ResourceId) -> Result<(), ApiError> {
    let Some(resource) = node.resource(id) else { return Ok(()) };
    let status = status::resource(node, &resource);
    if status.role == Role::Primary.as_str() {
        let message = format!("node {} is Primary", node.name);
        return Err(ApiError::new(ErrorCode::OtherPrimary, message).hint(format!(
            "run `holdfast secondary {0}` on {1}, or `holdfast delete {0}` there",
            status.name, node.name
        )));
    }
    if status.open_count > 0 {
        let message = format!("it is open on node {}", node.name);
        return Err(ApiError::new(ErrorCode::InUse, message));
    }
    Ok(())
}

/// Whether the records say that this node's part in a resource has ended.
pub(crate) fn is_over(node: &Node, id: ResourceId) -> bool {
    let view = node.view();
    let gone = |key: &Key| view.records.version(key).is_some_and(|record| record.deleted);
    gone(&Key::resource(id)) || gone(&Key::member(id, node.uuid))
}

/// Ends a resource on this node: device, core, metadata, local state. The data stay. Does nothing
/// when it has ended already.
pub(crate) async fn retire(node: &Arc<Node>, resource: &Arc<Resource>) {
    let Ok(_begun) = resource.begin().await else { return };
    if !node.remove_resource(resource.id) {
        return;
    }
    if let Err(error) = device::take_away(node, resource, true).await {
        tracing::warn!("{}", error.message);
    }
    if let Err(error) = resource::stop(resource).await {
        tracing::warn!("{}", error.message);
    }
    let (store, local) = (node.store.clone(), resource.local());
    // Both of what follows open the disk.
    replacing::settle(&local).await;
    let (state_dir, ended) = (node.settings.state_dir.clone(), Arc::clone(resource));
    let ended = blocking(move || {
        if let Some(disk) = &local.disk {
            let spec = disk.spec_in(&store, local.id);
            if let Some(journal) = &local.journal {
                journal::end(&local.name, local.id, &spec, journal);
            }
            disk::give_up(disk, &spec, local.id);
        }
        if let Err(error) = checksums::remove(&checksums::path(&state_dir, local.id)) {
            tracing::warn!("{}", error.message);
        }
        logpeer::end(&state_dir, &ended);
        store.remove(local.id)
    });
    survey::forget(node, resource.id);
    forget_losses(node, resource.id);
    if let Err(error) = ended.await {
        tracing::error!("{}", error.message);
    }
    let name = resource.name();
    tracing::info!("resource {name} has ended on this node; its data stay on the disk");
    node.hub.update(Part::Resource(&name), Objects::new());
    resource.changed();
}

/// Ends the resources that the records say are over, whenever the records change.
pub(crate) async fn follow_records(node: Arc<Node>) {
    let mut view = node.watch_view();
    let mut told = BTreeSet::new();
    loop {
        view.mark_unchanged();
        for resource in node.resources() {
            if is_over(&node, resource.id) {
                let node = Arc::clone(&node);
                tokio::spawn(async move { retire(&node, &resource).await });
            }
        }
        let troubles = problems::of_cluster(&node);
        troubles.difference(&told).for_each(|trouble| tracing::warn!("{trouble}"));
        told = troubles;
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = node.stopped() => return,
        }
    }
}
