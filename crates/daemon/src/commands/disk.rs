//! `attach-disk` and `detach-disk`.

use super::create::al_extents;
use super::join::{others_with_disk, room_elsewhere};
use super::roles::release;
use super::updown::{publish, refuse_primary};
use super::{blocking, core_command, journal, used_disks};
use crate::checksums;
use crate::disk::{self, Checked, Existing, Owner, Wanted};
use crate::local::{LocalDisk, LocalJournal};
use crate::node::Node;
use crate::peer_api;
use crate::resource::{self, Resource};
use crate::revert::revert;
use crate::shard::InitialContent;
use crate::spares::Planned;
use holdfast_api::request::{AttachDisk, DetachDisk, Done, META_INTERNAL};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Change;
use holdfast_core::Command;
use holdfast_units::{DiskState, NodeId, ResourceId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// So long a disk that has failed may take to be let go of.
const LET_GO: Duration = Duration::from_secs(3);

/// Starts to use this node's disk: the one that it had, or another, which then gets all data from
/// a peer.
///
/// # Errors
/// When a disk is in use already, this node is Primary, or the disk cannot be used.
pub(crate) async fn attach(
    node: &Arc<Node>,
    name: &str,
    request: &AttachDisk,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _making = node.making.lock().await;
    let _begun = resource.begin().await?;
    let what = "attach-disk was refused";
    refuse_following(&resource, what)?;
    let has_disk = resource.view().is_some_and(|view| view.snapshot.disk > DiskState::Failed);
    if has_disk {
        let message = format!("{what} for {name}: its disk is in use");
        return Err(ApiError::new(ErrorCode::AlreadyAttached, message)
            .hint(format!("`holdfast detach-disk {name}` first")));
    }
    // The core takes a disk only at its start.
    refuse_primary(&resource, what)?;
    refuse_held(&resource, what).await?;
    let local = resource.local();
    let same = match (&request.disk, &local.disk) {
        (None, Some(_)) => request.meta.is_none(),
        (Some(path), Some(disk)) => Path::new(path) == disk.path && request.meta.is_none(),
        (_, None) => false,
    };
    let others = others_with_disk(&node.view(), resource.id, node.uuid);
    let fresh = request.discard_journal && !others.is_empty();
    may_discard_journal(&resource, request, &others, what)?;
    let mut planned = None;
    let next = if same && !fresh {
        local.disk.clone()
    } else {
        let path = request.disk.clone().or_else(|| local.disk.as_ref().map(path_text));
        let Some(path) = path else {
            let message = format!("{what} for {name}: this node never had a disk of it");
            return Err(ApiError::new(ErrorCode::NoDisk, message).hint("name one with --disk PATH"));
        };
        let other = local.disk.as_ref().is_none_or(|disk| disk.path != Path::new(&path));
        let existing = match other && !request.force {
            true => Existing::OverwriteUnknown,
            false => Existing::Overwrite,
        };
        let meta = match same {
            true => local.disk.as_ref().and_then(|disk| meta_text(node, resource.id, disk)),
            false => request.meta.clone(),
        };
        // The same disk keeps its spares, which are made anew with its metadata.
        let spares = match (other, &local.disk) {
            (false, Some(disk)) => Planned::again(disk),
            _ => Planned::default(),
        };
        planned = Some(plan(node, &resource, path, meta, (existing, spares), what).await?);
        None
    };
    let slot = node.view().slot_of(resource.id, node.uuid);
    let slot = slot.ok_or_else(|| ApiError::no_such_resource(name))?;
    let was_up = resource.handle().is_some();
    if was_up {
        // A device that an earlier run left goes on to wait: for the disk that is its own.
        if !(same && resource.state().device_waits.is_some()) {
            release(node, &resource, what, false).await?;
        }
        resource::stop(&resource).await?;
    }
    // What it holds belongs to the disk, or the state, that is given up.
    let void = local.journal.clone().filter(|_| !same || request.discard_journal);
    let attempt = format!("{what} for {name}");
    // Overwriting metadata is the first thing that cannot be taken back.
    // They are those of the other disk.
    let sums = checksums::path(&node.settings.state_dir, resource.id);
    let sums = (!same || fresh).then_some(sums);
    let made = make(&attempt, void.clone(), sums, planned).await;
    if made.is_err() && was_up {
        resource::start(node, &resource, true).await?;
        publish(node, &resource);
    }
    let next = made?.or(next);
    // Metadata in the same place were overwritten by the new ones.
    let stays = |old: &LocalDisk| {
        next.as_ref()
            .is_some_and(|next| *old == *next || (old.meta.is_some() && old.meta == next.meta))
    };
    let old = local.disk.filter(|old| !stays(old));
    // Its spares were made anew, too.
    let same_path =
        old.as_ref().zip(next.as_ref()).is_some_and(|(old, next)| old.path == next.path);
    resource
        .change_local(node, |local| {
            if local.disk != next {
                // There is nothing to be moved from.
                local.replacing = None;
            }
            local.disk = next;
            local.attached = true;
        })
        .await?;
    if let Some(journal) = void {
        // Not before the old disk is forgotten: that one lacks what is only in the journal. On the
        // new one that does no harm, which gets everything from a peer.
        let id = resource.id;
        blocking(move || journal::renew(&attempt, &journal, id, slot)).await?;
    }
    tell_diskful(node, &resource).await?;
    if let Some(old) = old {
        let id = resource.id;
        // The old disk may be broken: what cannot be removed stays.
        blocking(move || {
            if same_path {
                disk::wipe(&old, id);
            } else {
                disk::abandon(&old, id);
            }
            Ok(())
        })
        .await?;
    }
    if was_up {
        let started = resource::start(node, &resource, false).await;
        if let Err(error) = started {
            revert(node, &resource, &error, |local| local.attached = false).await;
            return Err(error);
        }
    }
    let disk = resource.local().disk.map(|disk| path_text(&disk)).unwrap_or_default();
    Ok(Done::new(format!("resource {name} uses its disk {disk} on this node")))
}

/// A disk that was given up may have requests of this node in hand, which it carries out later. It is
/// not used again before they have ended, and nothing is put in its place.
async fn refuse_held(resource: &Resource, what: &str) -> Result<(), ApiError> {
    let Some(handle) = resource.handle() else { return Ok(()) };
    let mut views = handle.watch();
    let let_go = views.wait_for(|view| view.disk.is_none());
    if tokio::time::timeout(LET_GO, let_go).await.is_ok() {
        return Ok(());
    }
    let name = resource.name();
    let message = format!(
        "{what} for {name}: the disk that was given up has not answered yet what it was asked before"
    );
    Err(ApiError::new(ErrorCode::Busy, message)
        .hint("try again when it answers, or when it was taken away and its requests have failed"))
}

/// Whether the journal may be given up with what is only in it.
fn may_discard_journal(
    resource: &Resource,
    request: &AttachDisk,
    others: &[NodeId],
    what: &str,
) -> Result<(), ApiError> {
    if !request.discard_journal {
        return Ok(());
    }
    let name = resource.name();
    if resource.local().journal.is_none() {
        let message = format!("{what} for {name}: it has no journal on this node");
        return Err(
            ApiError::new(ErrorCode::NoJournal, message).hint("leave --discard-journal away")
        );
    }
    if others.is_empty() && !request.force {
        let message = format!(
            "{what} for {name}: no other node has its data, and without the journal this disk \
             misses some of them"
        );
        return Err(ApiError::new(ErrorCode::LastGoodCopy, message)
            .hint("bring the journal back; to go on with what is on the disk, add --force"));
    }
    Ok(())
}

/// Where the metadata of a disk are, as a person would say it.
fn meta_text(node: &Node, resource: ResourceId, disk: &LocalDisk) -> Option<String> {
    let Some(meta) = &disk.meta else { return Some(META_INTERNAL.to_owned()) };
    let usual = *meta == disk::own_meta(&node.settings.state_dir, resource);
    (!usual).then(|| meta.display().to_string())
}

fn path_text(disk: &LocalDisk) -> String {
    disk.path.display().to_string()
}

/// A disk that is to be made ready.
struct Plan {
    disk: Checked,
    slot: NodeId,
    others: Vec<NodeId>,
}

/// Makes new metadata on a disk that gets all its data from a peer. What a journal that is given up
/// says of the disk before, and its checksums, are forgotten first.
async fn make(
    attempt: &str,
    void: Option<LocalJournal>,
    sums: Option<PathBuf>,
    planned: Option<Plan>,
) -> Result<Option<LocalDisk>, ApiError> {
    let attempt = attempt.to_owned();
    blocking(move || {
        if let Some(journal) = &void {
            journal::forget_disk(&attempt, journal)?;
        }
        if let Some(sums) = &sums {
            checksums::remove(sums)?;
        }
        let Some(Plan { disk, slot, others }) = planned else { return Ok(None) };
        disk.prepare(slot, &others, InitialContent::Nothing, |_| Ok(())).map(|made| Some(made.disk))
    })
    .await
}

/// Looks at a disk that is to be used; nothing on it changes.
async fn plan(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    path: String,
    meta: Option<String>,
    (existing, spares): (Existing, Planned),
    what: &str,
) -> Result<Plan, ApiError> {
    let view = node.view();
    let name = resource.name();
    let record = view.records.resource(resource.id);
    let slot = view.slot_of(resource.id, node.uuid);
    let (Some(record), Some(slot)) = (record, slot) else {
        return Err(ApiError::no_such_resource(&name));
    };
    let mut used = used_disks(node);
    used.retain(|used| used.owner != Owner::Resource(name.clone()));
    let wanted = Wanted {
        what: format!("{what} for {name}"),
        resource: resource.id,
        disk: path,
        meta,
        size: Some(record.size_bytes),
        al_extents: al_extents(&record.options),
        state_dir: node.settings.state_dir.clone(),
        used,
        existing,
        spares,
    };
    let others = others_with_disk(&view, resource.id, node.uuid);
    if view.records.member(resource.id, node.uuid).is_some_and(|member| member.diskless) {
        // The others keep no bitmap of a member without a disk.
        room_elsewhere(node, resource.id, slot, node.uuid)
            .await
            .map_err(|e| ApiError { message: format!("{what} for {name}: {}", e.message), ..e })?;
    }
    let disk = blocking(move || wanted.check()).await?;
    Ok(Plan { disk, slot, others })
}

/// A member that was diskless on purpose is so no more.
async fn tell_diskful(node: &Arc<Node>, resource: &Resource) -> Result<(), ApiError> {
    let member = node.view().records.member(resource.id, node.uuid);
    let Some(mut member) = member.filter(|member| member.diskless) else { return Ok(()) };
    member.diskless = false;
    node.cluster(move |state, now| state.change(vec![Change::member(&member)], now)).await?;
    peer_api::announce(node).await;
    Ok(())
}

/// A node that follows by the log is nothing without its disk.
pub(super) fn refuse_following(resource: &Resource, what: &str) -> Result<(), ApiError> {
    if resource.following().is_none() {
        return Ok(());
    }
    let name = resource.name();
    let why = "this node follows the journal of another one, onto the disk that it has";
    Err(ApiError::new(ErrorCode::Follows, format!("{what} for {name}: {why}"))
        .hint(format!("`holdfast down {name}` stops it; `leave` and `join` give it another disk")))
}

/// Who wants another disk does not want to give up the one that has the data.
fn refuse_replacing(resource: &Resource, what: &str) -> Result<(), ApiError> {
    let Some(replacing) = resource.local().replacing else { return Ok(()) };
    let (name, path) = (resource.name(), replacing.disk.path.display().to_string());
    let message = format!("{what} for {name}: its data are being moved to {path}");
    Err(ApiError::new(ErrorCode::Busy, message)
        .hint(format!("end that with `holdfast replace-disk {name} --stop` first")))
}

/// Ceases to use this node's disk, now and after a restart.
///
/// # Errors
/// When it is the last good copy of a Primary, or none is in use.
pub(crate) async fn detach(
    node: &Arc<Node>,
    name: &str,
    request: &DetachDisk,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let what = "detach-disk was refused";
    refuse_following(&resource, what)?;
    let done = || Done::new(format!("resource {name} does not use its disk on this node"));
    refuse_replacing(&resource, what)?;
    if resource.local().disk.is_none() {
        let message = format!("{what} for {name}: this node has no disk of it");
        return Err(ApiError::new(ErrorCode::NoDisk, message));
    }
    if let Some(view) = resource.view()
        && view.snapshot.disk > DiskState::Failed
    {
        let good = view.snapshot.peers.iter().any(|peer| peer.disk == DiskState::UpToDate);
        if !good && view.snapshot.disk == DiskState::UpToDate && !request.force {
            let message = format!("{what} for {name}: no other node in reach has up-to-date data");
            return Err(ApiError::new(ErrorCode::LastGoodCopy, message)
                .hint("connect a peer and let it become UpToDate, or add --force"));
        }
        core_command(node, &resource, what, Command::Detach).await?;
    }
    resource.change_local(node, |local| local.attached = false).await?;
    // That it is not used is as wanted now.
    resource.state().trouble = None;
    publish(node, &resource);
    Ok(done())
}
