//! `spare add` and `spare remove`: more or less room for the bad sectors of this node's disk.

use super::badblocks::with_spares;
use super::roles::release;
use super::updown::{publish, refuse_primary};
use super::{blocking, used_disks};
use crate::disk::{Existing, Wanted, same_object};
use crate::local::{LocalDisk, LocalSpare};
use crate::node::Node;
use crate::phases::phase;
use crate::resource::{self, Resource};
use crate::spares::{self, Planned};
use holdfast_api::badblocks::{SpareAdd, SpareRemove};
use holdfast_api::request::Done;
use holdfast_api::words::counted;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_format::remap::MAX_SPARES;
use holdfast_store::{RemapOp, SpareInfo};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ADD: &str = "spare add was refused";
const REMOVE: &str = "spare remove was refused";
/// What can be done when the members could not be written to the headers of all spares.
const AGAIN: &str = "the same command tries it again; until then the spare gets no bad blocks";

fn refuse(what: &str, name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("{what} for {name}: {why}"))
}

/// Gives this node's disk another spare. While it is in use, when it has some already; the first one
/// it gets while it is not in use for a moment.
///
/// # Errors
/// What is in the way; nothing has changed then.
pub(crate) async fn add(node: &Arc<Node>, name: &str, call: &SpareAdd) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _making = node.making.lock().await;
    let _begun = resource.begin().await?;
    let mut disk = resource
        .local()
        .disk
        .ok_or_else(|| refuse(ADD, name, ErrorCode::NoDisk, "this node has no disk of it"))?;
    let path = PathBuf::from(&call.path);
    if let Some(handle) = resource.handle() {
        handle.refresh().await;
    }
    let listed = disk.spares.iter().any(|spare| spare.path() == Some(&path));
    let in_use = resource.view().and_then(|view| view.spares.clone());
    let is_it = |spare: &&SpareInfo| spare.path.as_deref() == Some(&path);
    let held = in_use.as_ref().and_then(|view| view.spares.iter().find(is_it));
    if let Some(held) = held {
        if !held.leaving {
            let why = "its disk has that spare already";
            return Err(refuse(ADD, name, ErrorCode::AlreadyExists, why));
        }
        phase("adding the spare");
        again(node, &resource, &path, held).await?;
    } else {
        let count = in_use.as_ref().map_or(disk.spares.len(), |view| view.spares.len());
        if count >= MAX_SPARES && !listed {
            let why = format!("its disk has {MAX_SPARES} spares already, and more cannot be");
            return Err(refuse(ADD, name, ErrorCode::InUse, &why).hint(format!(
                "`holdfast spare remove {name} PATH --empty` takes a small one away first"
            )));
        }
        check(node, name, &disk, &path, listed).await?;
        if disk.spares.len() > 1 && is_left_out(node, &resource, &path, ADD).await? {
            // It is made anew: while that takes, it must keep no start away.
            let left_out = LocalSpare::Path(path.clone());
            forget(node, &resource, &left_out).await?;
            disk.spares.retain(|spare| *spare != left_out);
        }
        let first = disk.spares.is_empty();
        phase("making the spare");
        if first || in_use.is_none() {
            while_stopped(node, &resource, &disk, &path, call.force).await?;
        } else {
            online(node, &resource, &disk, &path, call.force).await?;
        }
    }
    if let Some(handle) = resource.handle() {
        handle.refresh().await;
    }
    publish(node, &resource);
    let free = resource.view().and_then(|view| view.spares.clone());
    let room = free.map_or_else(String::new, |view| {
        format!("; there is room for {} bad blocks now", view.stats.free)
    });
    Ok(Done::new(format!("the disk of resource {name} has the spare {}{room}", path.display())))
}

/// That nobody uses the path for something else.
async fn check(
    node: &Arc<Node>,
    name: &str,
    disk: &LocalDisk,
    path: &Path,
    listed: bool,
) -> Result<(), ApiError> {
    let wanted = Wanted {
        what: format!("{ADD} for {name}"),
        resource: holdfast_units::ResourceId([0; 16]),
        disk: disk.path.display().to_string(),
        meta: None,
        size: None,
        al_extents: 1,
        state_dir: node.settings.state_dir.clone(),
        used: if listed { Vec::new() } else { used_disks(node) },
        existing: Existing::Keep,
        spares: Planned::default(),
    };
    let (disk, path) = (disk.clone(), path.to_owned());
    blocking(move || {
        if crate::remote::uri_of(&disk.path).is_some() {
            return Err(wanted.no_remote());
        }
        wanted.check_spare(&disk, &path, &[])
    })
    .await
}

/// Adds it to the others while the disk is used.
async fn online(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    disk: &LocalDisk,
    path: &Path,
    force: bool,
) -> Result<(), ApiError> {
    let name = resource.name();
    let handle = resource.need_handle()?;
    let size = handle.snapshot().disk.as_ref().map_or(0, |disk| disk.size);
    let (spec, id, own) = (disk.spec(), resource.id, path.to_owned());
    let loaded = blocking(move || {
        let disk_id = spares::disk_id(&spec, size, id).ok_or_else(|| {
            ApiError::new(ErrorCode::MetadataInvalid, "the metadata of the disk cannot be read")
        })?;
        spares::another(&own, size, id, disk_id, force)
    })
    .await
    .map_err(|error| under(&name, error))?;
    // Before it is used: a start that does not know of it would be refused. One that is known and not
    // used is left out.
    remember(node, resource, path).await?;
    let added = handle.remap(RemapOp::AddSpare(loaded)).await;
    let Err(failed) = added else { return Ok(()) };
    let why = match failed.error {
        Some(error) if error.errno == Some(Errno::INVAL.raw_os_error()) => {
            "it does not fit to the disk's other spares".to_owned()
        }
        Some(error) => error.to_string(),
        None => "the disk is not in use any more".to_owned(),
    };
    let refusal = refuse(ADD, &name, ErrorCode::DiskFailed, &why);
    // A disk that was given up meanwhile may have it, or not: its next start tells.
    if uses(resource, path).await == Some(false) {
        forget(node, resource, &LocalSpare::Path(path.to_owned())).await?;
        return Err(refusal);
    }
    Err(refusal.hint(AGAIN))
}

/// Whether the disk uses the spare of this path; `None` when the disk is not in use, or cannot tell.
async fn uses(resource: &Resource, path: &Path) -> Option<bool> {
    if let Some(handle) = resource.handle()
        && !handle.refresh().await
    {
        return None;
    }
    let view = resource.view().and_then(|view| view.spares.clone())?;
    Some(view.spares.iter().any(|held| held.path.as_deref() == Some(path)))
}

/// Tries once more with a spare that the disk has, and that gets nothing since it could not be added, or
/// not be removed.
async fn again(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    path: &Path,
    held: &SpareInfo,
) -> Result<(), ApiError> {
    let handle = resource.need_handle()?;
    remember(node, resource, path).await?;
    handle.remap(RemapOp::AdmitSpare { spare: held.id }).await.map(drop).map_err(|failed| {
        let why = failed.error.map_or_else(|| "its disk is gone".to_owned(), |e| e.to_string());
        refuse(ADD, &resource.name(), ErrorCode::DiskFailed, &why).hint(AGAIN)
    })
}

async fn remember(node: &Arc<Node>, resource: &Arc<Resource>, path: &Path) -> Result<(), ApiError> {
    let new = LocalSpare::Path(path.to_owned());
    resource
        .change_local(node, |local| {
            if let Some(disk) = &mut local.disk
                && !disk.spares.contains(&new)
            {
                disk.spares.push(new);
            }
        })
        .await
}

/// Stops the resource here for as long as it takes.
async fn while_stopped(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    disk: &LocalDisk,
    path: &Path,
    force: bool,
) -> Result<(), ApiError> {
    let name = resource.name();
    let was_up = resource.is_up();
    refuse_primary(resource, ADD).map_err(|error| {
        let why = "the first spare of a disk is made while nobody uses the resource here";
        ApiError { message: format!("{}; {why}", error.message), ..error }
    })?;
    if resource.handle().is_some() {
        release(node, resource, ADD, false).await?;
    }
    resource::stop(resource).await?;
    let made = offline(node, resource, disk, path, force).await;
    if was_up {
        let started = resource::start(node, resource, true).await;
        return made.and(started);
    }
    made.map_err(|error| under(&name, error))
}

async fn offline(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    disk: &LocalDisk,
    path: &Path,
    force: bool,
) -> Result<(), ApiError> {
    let (spec, id, own) = (disk.spec_in(&node.store, resource.id), resource.id, path.to_owned());
    if spec.spares.is_empty() {
        let of = spec.clone();
        let disk_id = blocking(move || spares::first(&of, &own, id, force)).await;
        let disk_id = disk_id.map_err(|error| under(&resource.name(), error))?;
        remember(node, resource, path).await?;
        return blocking(move || spares::mark(&spec, id, disk_id)).await;
    }
    let made = blocking(move || spares::with_another(&spec, &own, id, force)).await;
    let made = made.map_err(|error| under(&resource.name(), error))?;
    let Some((disk, loaded)) = made else { return Ok(()) };
    remember(node, resource, path).await?;
    let added = blocking(move || spares::add_offline(disk, loaded)).await;
    added.map_err(|error| under(&resource.name(), error))
}

fn under(name: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("{ADD} for {name}: {}", error.message), ..error }
}

/// Whether this node has noted a spare that is none of the disk's: adding or removing it was cut off.
async fn is_left_out(
    node: &Node,
    resource: &Resource,
    path: &Path,
    what: &str,
) -> Result<bool, ApiError> {
    let listed = |disk: &LocalDisk| disk.spares.iter().any(|spare| spare.path() == Some(path));
    let Some(disk) = resource.local().disk.filter(listed) else { return Ok(false) };
    match uses(resource, path).await {
        Some(used) => return Ok(!used),
        // It is in use, and too busy to tell: nothing is forgotten on what it said last.
        None if resource.view().is_some_and(|view| view.spares.is_some()) => return Ok(false),
        None => {}
    }
    let spec = disk.spec_in(&node.store, resource.id);
    let (id, path) = (resource.id, path.to_owned());
    let member = blocking(move || spares::is_member(&spec, &path, id)).await;
    member.map(|member| !member).map_err(|error| {
        let message = format!("{what} for {}: {}", resource.name(), error.message);
        ApiError { message, ..error }
    })
}

/// A spare as this node has noted it, whatever path was given that leads to it.
fn as_listed(resource: &Resource, given: &str) -> String {
    let spares = resource.local().disk.map(|disk| disk.spares).unwrap_or_default();
    let mut paths = spares.iter().filter_map(LocalSpare::path);
    let same = paths.find(|path| same_object(path, Path::new(given)));
    same.map_or_else(|| given.to_owned(), |path| path.display().to_string())
}

/// Forgets a spare that is none of the disk's, also when the disk is not in use for want of it.
async fn forget_left_out(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    call: &SpareRemove,
) -> Result<Done, ApiError> {
    let (name, shown) = (resource.name(), &call.spare);
    if call.dry_run {
        return Ok(Done::new(format!(
            "the disk of resource {name} does not use the spare {shown}, which would be forgotten; \
             nothing was changed"
        )));
    }
    forget(node, resource, &LocalSpare::Path(PathBuf::from(shown))).await?;
    Ok(Done::new(format!(
        "the disk of resource {name} does not use the spare {shown}, which is forgotten; it can be \
         used for something else"
    )))
}

async fn forget(node: &Node, resource: &Arc<Resource>, gone: &LocalSpare) -> Result<(), ApiError> {
    resource
        .change_local(node, |local| {
            if let Some(disk) = &mut local.disk {
                disk.spares.retain(|spare| spare != gone);
            }
        })
        .await
}

/// Takes a spare away.
///
/// # Errors
/// When it holds something and is not to be emptied, is the last one, or there is none like it.
pub(crate) async fn remove(
    node: &Arc<Node>,
    name: &str,
    call: &SpareRemove,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let call = &SpareRemove { spare: as_listed(&resource, &call.spare), ..call.clone() };
    if is_left_out(node, &resource, Path::new(&call.spare), REMOVE).await? {
        return forget_left_out(node, &resource, call).await;
    }
    let (resource, handle, view) = with_spares(node, name, REMOVE).await?;
    let is_it = |spare: &&SpareInfo| {
        let path = spare.path.as_ref().map(|path| path.display().to_string());
        spare.id.to_string() == call.spare || path.as_deref() == Some(&call.spare)
    };
    let Some(spare) = view.spares.iter().find(is_it) else {
        let why = format!("its disk has no spare {}", call.spare);
        return Err(refuse(REMOVE, name, ErrorCode::NoSuchSpare, &why)
            .hint(format!("`holdfast spare ls {name}` lists them, with their ids")));
    };
    if view.spares.len() == 1 {
        let why = "it is the last one, and a disk that has had spares keeps one";
        return Err(refuse(REMOVE, name, ErrorCode::InUse, why)
            .hint(format!("`holdfast spare add {name} PATH` first, to have another")));
    }
    let busy = spare.mapped + spare.lost;
    let free = view.stats.free - spare.free;
    if busy > 0 && !call.empty {
        let why = format!("it holds {}", counted(busy, "block"));
        return Err(refuse(REMOVE, name, ErrorCode::InUse, &why)
            .hint("add --empty to move them to the other spares first"));
    }
    if busy > free {
        let blocks = counted(busy, "block");
        let why = format!("it holds {blocks}, and the other spares have room for {free}");
        return Err(refuse(REMOVE, name, ErrorCode::NoSpace, &why)
            .hint(format!("`holdfast spare add {name} PATH` makes room")));
    }
    let shown =
        spare.path.as_ref().map_or_else(|| spare.id.to_string(), |p| p.display().to_string());
    if call.dry_run {
        return Ok(Done::new(format!(
            "the spare {shown} of resource {name} would be taken away, and {} moved to the others; \
             nothing was changed",
            counted(busy, "block")
        )));
    }
    phase("emptying the spare");
    let (id, empty) = (spare.id, call.empty);
    let removed = handle.remap(RemapOp::RemoveSpare { spare: id, empty }).await;
    let report = removed.map_err(|failed| {
        let why = failed.error.map_or_else(|| "its disk is gone".to_owned(), |e| e.to_string());
        refuse(REMOVE, name, ErrorCode::DiskFailed, &why)
            .hint(format!("`holdfast spare ls {name}` shows how things are"))
    })?;
    let gone = match (&spare.path, spare.region) {
        (Some(path), _) => Some(LocalSpare::Path(path.clone())),
        (None, Some(range)) => Some(LocalSpare::Region { offset: range.offset, len: range.len }),
        (None, None) => None,
    };
    if let Some(gone) = gone {
        forget(node, &resource, &gone).await?;
    }
    handle.refresh().await;
    publish(node, &resource);
    let then = if report.not_retired {
        "its header does not take a note of that, so it looks used to whoever is to use it next"
    } else {
        "it can be used for something else"
    };
    Ok(Done::new(format!("the spare {shown} of resource {name} is taken away; {then}")))
}
