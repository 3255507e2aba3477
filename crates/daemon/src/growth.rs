//! The size of a resource: how a node comes to what the members agreed on.
//!
//! The record of the resource says how large it is to be. It only says a larger size when every
//! member's disk was found, or made, to have room for it and to read as zeroes there. So each node may
//! grow at any time from then on, by itself, and does so as soon as it hears of it. See
//! `docs/design/daemon.md`.

use crate::commands::blocking;
use crate::commands::updown::publish;
use crate::disk::growth;
use crate::logpeer::FollowOrders;
use crate::node::Node;
use crate::resource::{Resource, told};
use crate::shard::{ResourceHandle, ResourceView};
use crate::{peer_api, refuse};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::Change;
use holdfast_core::{Command, Refusal};
use holdfast_device::LocalDevice;
use holdfast_units::{DiskState, NodeId, format_size};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;

/// How long growing that failed is not tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often it is looked how large the disk is.
const MEASURE: Duration = Duration::from_secs(5);
/// How long a promotion waits for it, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// How large a resource is to be, as far as this node knows.
pub(crate) fn goal(node: &Node, resource: &Resource, view: &ResourceView) -> u64 {
    let record = node.view().records.resource(resource.id);
    let heard = view.snapshot.peers.iter().filter_map(|peer| peer.size);
    let agreed = record.map_or(0, |record| record.size_bytes);
    heard.fold(agreed.max(view.snapshot.own_size), u64::max)
}

/// Keeps a running resource as large as its members agreed on, and its local device as large as the
/// resource, until the resource is closed. Looks at how large the disk is now and then.
pub(crate) async fn run(node: Arc<Node>, resource: Arc<Resource>, handle: ResourceHandle) {
    tokio::select! {
        () = keep_size(node, Arc::clone(&resource), handle) => {}
        () = measure(resource) => {}
    }
}

/// Keeps, for status, how large a resource the disk has room for.
async fn measure(resource: Arc<Resource>) {
    loop {
        let local = resource.local();
        let disk = local.disk.filter(|_| local.attached);
        let room = match disk {
            Some(disk) => blocking(move || growth::room(&disk)).await.ok(),
            None => None,
        };
        let before = std::mem::replace(&mut resource.state().room, room);
        if before != room {
            resource.changed();
        }
        tokio::time::sleep(MEASURE).await;
    }
}

async fn keep_size(node: Arc<Node>, resource: Arc<Resource>, handle: ResourceHandle) {
    let mut views = handle.watch();
    let mut cluster = node.watch_view();
    // The size that could not be reached, and when it is tried again.
    let mut failed: Option<(u64, Instant)> = None;
    loop {
        let goal = goal(&node, &resource, &handle.snapshot());
        let waits = failed.is_some_and(|(size, until)| size == goal && Instant::now() < until);
        if !waits {
            let grown = grow(&node, &resource, &handle, goal).await;
            let pause = match grown {
                Ok(true) => None,
                Ok(false) => Some(LOOK),
                Err(_) => Some(RETRY),
            };
            failed = pause.map(|pause| (goal, Instant::now() + pause));
            note(&node, &resource, grown.err());
            raise_record(&node, &resource, &handle).await;
        }
        resize_device(&node, &resource, &handle).await;
        tokio::select! {
            changed = views.changed() => if changed.is_err() { break },
            changed = cluster.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(pause_of(failed)), if failed.is_some() => {}
        }
    }
}

/// How long it is until growing is tried again.
fn pause_of(failed: Option<(u64, Instant)>) -> Duration {
    failed.map_or(RETRY, |(_, until)| until.saturating_duration_since(Instant::now()))
}

/// As [`run`], for a node that follows by the log: its disk is made ready, that is said durably, and
/// only then records are replayed there.
pub(crate) async fn follow(node: Arc<Node>, resource: Arc<Resource>, orders: FollowOrders) {
    let keep = async {
        let mut cluster = node.watch_view();
        loop {
            let grown = grow_follower(&node, &resource, &orders).await;
            let failed = grown.is_err();
            note(&node, &resource, grown.err());
            tokio::select! {
                changed = cluster.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = measure(Arc::clone(&resource)) => {}
    }
}

/// Grows this node's part of a resource that it follows to what was agreed on.
async fn grow_follower(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    orders: &FollowOrders,
) -> Result<(), ApiError> {
    let record = node.view().records.resource(resource.id);
    let wanted = record.map_or(0, |record| record.size_bytes);
    if resource.local().size.is_some_and(|size| size >= wanted) {
        return Ok(());
    }
    let prepared = prepare(node, resource, wanted).await?;
    {
        let _begun = resource.begin().await?;
        resource.change_local(node, |local| local.size = local.size.max(Some(wanted))).await?;
    }
    orders.grown(wanted).await;
    drop(prepared);
    publish(node, resource);
    Ok(())
}

/// How large a resource the disk of a node that follows is ready for, with what its metadata say:
/// they are from when it led or joined. What it grew by since is in its state file.
///
/// # Errors
/// When the state file cannot be written.
pub(crate) async fn settle_size(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
) -> Result<u64, ApiError> {
    let local = resource.local();
    let (id, disk) = (resource.id, local.disk.clone());
    let by_metadata = blocking(move || Ok(disk.and_then(|disk| growth::present_size(&disk, id))));
    let known = by_metadata.await?.max(local.size);
    let size = known
        .unwrap_or_else(|| node.view().records.resource(id).map_or(0, |record| record.size_bytes));
    resource.change_local(node, |local| local.size = Some(size)).await?;
    Ok(size)
}

/// Keeps, for status, why it has not the size that was agreed on.
fn note(node: &Node, resource: &Resource, error: Option<ApiError>) {
    let name = resource.name();
    let why = error.map(|error| {
        format!("resource {name} has not grown on node {}: {}", node.name, told(&error))
    });
    let before = std::mem::replace(&mut resource.state().growth_trouble, why.clone());
    if before == why {
        return;
    }
    if let Some(why) = why {
        tracing::warn!(resource = name, "{why}");
        node.hub.notice(&name, None, &why);
    }
    resource.changed();
}

/// Grows this node's part to `size`. Not yet, where its disk has come into use meanwhile: that is to be
/// made ready first.
async fn grow(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    handle: &ResourceHandle,
    size: u64,
) -> Result<bool, ApiError> {
    if handle.snapshot().snapshot.own_size >= size {
        return Ok(true);
    }
    if resource.local().replacing.is_some() {
        let message = "its data are being moved to another disk on this node, which gets the size \
                       that it has now";
        return Err(ApiError::new(ErrorCode::Busy, message).hint("it grows after that by itself"));
    }
    // Nobody else prepares a larger size while the core takes this one.
    let Prepared { guard, disk_ready } = prepare(node, resource, size).await?;
    // Who follows by the log hears of it before anything is written there.
    resource.most.fetch_max(size, Ordering::SeqCst);
    let result = handle.command(Command::Grow { size, disk_ready }).await;
    if result == Err(Refusal::DiskNotReady) {
        return Ok(false);
    }
    if result == Err(Refusal::TimedOut) {
        // It may still happen.
        let mut views = handle.watch();
        // The core was closed: it does not happen any more.
        let _ = views.wait_for(|view| view.snapshot.own_size >= size).await;
    }
    drop(guard);
    result.map(|()| true).map_err(|refusal| {
        refuse::core("growing was refused", &resource.name(), refusal, |slot| {
            node.view().slot_name(resource.id, slot)
        })
    })
}

/// What [`prepare`] did.
pub(crate) struct Prepared {
    /// Whoever has it keeps others from doing the same.
    guard: OwnedMutexGuard<()>,
    /// Not where no disk was seen in use.
    pub(crate) disk_ready: bool,
}

/// Makes this node's disk and metadata ready for `size`, durably: nothing of it is used before the
/// core takes the size.
///
/// # Errors
/// What is in the way; nothing that is in use has changed then.
pub(crate) async fn prepare(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    size: u64,
) -> Result<Prepared, ApiError> {
    let guard = Arc::clone(&resource.growth).lock_owned().await;
    let in_use = resource.view().is_some_and(|view| view.snapshot.disk > DiskState::Failed);
    let local = resource.local();
    let in_use = in_use && local.attached || resource.following().is_some();
    let Some(disk) = local.disk.filter(|_| in_use) else {
        return Ok(Prepared { guard, disk_ready: false });
    };
    let peers = node.view().peers_of(resource.id, node.uuid).into_values();
    let members: Vec<NodeId> = peers.filter(|peer| !peer.diskless).map(|peer| peer.slot).collect();
    let id = resource.id;
    // The guard goes along: what has begun ends, even when nobody waits for it any more.
    blocking(move || {
        growth::prepare(&disk, id, &members, local.size, size)?;
        Ok(Prepared { guard, disk_ready: true })
    })
    .await
}

/// The record may have lost a size: one that changed something else knew only the size before.
async fn raise_record(node: &Arc<Node>, resource: &Arc<Resource>, handle: &ResourceHandle) {
    let size = handle.snapshot().snapshot.own_size;
    let behind = |record: &holdfast_cluster::ResourceRecord| record.size_bytes < size;
    if !node.view().records.resource(resource.id).is_some_and(|record| behind(&record)) {
        return;
    }
    let id = resource.id;
    let raised = node
        .cluster(move |state, now| {
            let record = state.records().resource(id).filter(|record| record.size_bytes < size);
            let change = record.map(|mut record| {
                record.size_bytes = size;
                Change::resource(&record)
            });
            state.change(change.into_iter().collect(), now)
        })
        .await;
    match raised {
        Ok(_) => drop(peer_api::announce(node).await),
        Err(error) => tracing::warn!(resource = resource.name(), "{}", error.message),
    }
}

/// Gives the local device the size of the resource, as far as the kernel can do that.
async fn resize_device(node: &Arc<Node>, resource: &Arc<Resource>, handle: &ResourceHandle) {
    let size = handle.snapshot().snapshot.size;
    let device = resource.state().device.clone();
    let Some(device) = device.filter(|device| device.size < size) else { return };
    let (cell, backend) = (Arc::clone(&device.device), Arc::clone(&device.backend));
    let resized = tokio::task::spawn_blocking(move || {
        let mut device = cell.lock().unwrap_or_else(PoisonError::into_inner);
        device.as_mut().map(|device: &mut LocalDevice| {
            backend.look_again().map_err(|error| error.to_string())?;
            device.resize(size).map_err(|error| error.to_string())
        })
    });
    let why = match resized.await {
        // It is being taken away.
        Ok(None) | Err(_) => return,
        Ok(Some(Ok(true))) => None,
        Ok(Some(Ok(false))) => {
            Some("the kernel cannot change the size of a device of this kind".to_owned())
        }
        Ok(Some(Err(why))) => Some(why),
    };
    let name = resource.name();
    if let Some(why) = &why {
        let text = format!(
            "{} keeps its size: {why}; it has the new one when it is made again",
            device.path
        );
        tracing::warn!(resource = name, "{text}");
        node.hub.notice(&name, None, &text);
    }
    if let Some(device) = &mut resource.state().device {
        (device.size, device.kept_size) = (size, why);
    }
    resource.changed();
}

/// That this node's part has the size that was agreed on; it is waited for, for a moment.
///
/// # Errors
/// When it has not: clients must not be given the end that the device had before.
pub(crate) async fn need_grown(node: &Node, resource: &Resource) -> Result<(), ApiError> {
    let Some(handle) = resource.handle() else { return Ok(()) };
    let deadline = Instant::now() + PATIENCE;
    let (size, goal) = loop {
        let view = handle.snapshot();
        let (size, goal) = (view.snapshot.own_size, goal(node, resource, &view));
        if size >= goal {
            return Ok(());
        }
        let in_trouble = resource.state().growth_trouble.is_some();
        if in_trouble || Instant::now() >= deadline {
            break (size, goal);
        }
        tokio::time::sleep(LOOK).await;
    };
    Err(not_grown(resource, size, goal))
}

fn not_grown(resource: &Resource, size: u64, goal: u64) -> ApiError {
    let (name, shown) = (resource.name(), format_size(size));
    let message = format!(
        "primary was refused for {name}: it has {shown} ({size} bytes) on this node, and its \
         members agreed on {goal} bytes"
    );
    let trouble = resource.state().growth_trouble.clone();
    let hint = trouble.unwrap_or_else(|| "try again in a few seconds".to_owned());
    ApiError::new(ErrorCode::DiskTooSmall, message).hint(hint)
}

/// The same for a node that follows by the log, and is to lead.
///
/// # Errors
/// As [`need_grown`].
pub(crate) fn need_follower_grown(node: &Node, resource: &Resource) -> Result<(), ApiError> {
    let goal = node.view().records.resource(resource.id).map_or(0, |record| record.size_bytes);
    match resource.local().size {
        Some(size) if size < goal => Err(not_grown(resource, size, goal)),
        _ => Ok(()),
    }
}

/// Waits until a view is as wanted. Whether it came to that.
pub(crate) async fn wait(
    handle: &ResourceHandle,
    limit: Duration,
    mut wanted: impl FnMut(&ResourceView) -> bool,
) -> bool {
    let mut views = handle.watch();
    let waiting = tokio::time::timeout(limit, views.wait_for(|view| wanted(view)));
    waiting.await.is_ok_and(|met| met.is_ok())
}
