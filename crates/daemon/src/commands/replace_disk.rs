//! `replace-disk`: the data of this node move to another disk while the resource is used.

use super::create::al_extents;
use super::disk::refuse_following;
use super::updown::publish;
use super::{blocking, used_disks};
use crate::disk::{self, Existing, Owner, Wanted};
use crate::local::{LocalDisk, LocalReplacing};
use crate::node::Node;
use crate::replacing::{self, Replacing, open_error};
use crate::resource::Resource;
use crate::shard::open_successor;
use crate::spares::Planned;
use holdfast_api::request::{Done, META_INTERNAL, ReplaceDisk};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_units::DiskState;
use std::path::Path;
use std::sync::Arc;

const WHAT: &str = "replace-disk was refused";

fn refused(name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("{WHAT} for {name}: {why}"))
}

/// Begins to move the data to another disk, or ends that.
///
/// # Errors
/// When the new disk cannot be used, the old one is not, or a move is under way; with `stop`, when
/// none is.
pub(crate) async fn replace(
    node: &Arc<Node>,
    name: &str,
    request: &ReplaceDisk,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _making = node.making.lock().await;
    let _begun = resource.begin().await?;
    if request.stop {
        return stop(node, &resource, request).await;
    }
    refuse_following(&resource, WHAT)?;
    // Not while it grows: what is copied would end too early.
    let Ok(_growth) = Arc::clone(&resource.growth).try_lock_owned() else {
        return Err(refused(name, ErrorCode::Busy, "it is growing").hint("try again in a moment"));
    };
    let handle = resource.need_handle()?;
    let view = handle.snapshot();
    let local = resource.local();
    let old = local.disk.clone().filter(|_| view.snapshot.disk > DiskState::Failed);
    let Some(old) = old else {
        let why = "its disk is not in use on this node";
        return Err(refused(name, ErrorCode::NoDisk, why).hint(format!(
            "`holdfast attach-disk {name} --disk PATH --force` fills another disk from a peer"
        )));
    };
    if let Some(under_way) = &local.replacing {
        let path = under_way.disk.path.display();
        let why = format!("its data are being moved to {path} already");
        return Err(refused(name, ErrorCode::Busy, &why).hint(format!(
            "wait for the end of that, or end it with `holdfast replace-disk {name} --stop`"
        )));
    }
    let Some(path) = request.disk.clone() else {
        return Err(refused(name, ErrorCode::InvalidPath, "no new disk was named")
            .hint("name one with --disk PATH"));
    };
    let wanted = wanted(node, &resource, &old, path, view.snapshot.own_size, request)?;
    let begin = move || {
        let (disk, made_file) = wanted.check()?.prepare_data()?;
        open_successor(&disk.spec()).map(|successor| (disk.clone(), made_file, successor)).map_err(
            |error| {
                if made_file {
                    disk::remove_file(&disk.path);
                }
                let error = open_error(&error);
                ApiError { message: format!("{WHAT}: {}", error.message), ..error }
            },
        )
    };
    let (disk, made_file, successor) = blocking(begin).await?;
    let what = LocalReplacing { disk, rate: request.rate, made_file };
    let noted = what.clone();
    if let Err(error) = resource.change_local(node, |local| local.replacing = Some(noted)).await {
        if made_file {
            let path = what.disk.path.clone();
            blocking(move || {
                disk::remove_file(&path);
                Ok(())
            })
            .await?;
        }
        return Err(error);
    }
    let path = what.disk.path.display().to_string();
    let replacing = Replacing::begin(node, &resource, &handle, what, Some(successor));
    resource.state().replacing = Some(replacing);
    publish(node, &resource);
    Ok(Done::new(format!(
        "the data of resource {name} on this node are being moved from {} to {path}",
        old.path.display()
    )))
}

/// What the new disk has to be.
fn wanted(
    node: &Arc<Node>,
    resource: &Resource,
    old: &LocalDisk,
    path: String,
    size: u64,
    request: &ReplaceDisk,
) -> Result<Wanted, ApiError> {
    let name = resource.name();
    let record = node.view().records.resource(resource.id);
    let record = record.ok_or_else(|| ApiError::no_such_resource(&name))?;
    let paths = [Some(&old.path), old.meta.as_ref()];
    let own = |p: &&std::path::PathBuf| {
        p.as_path() == Path::new(&path) || disk::same_object(p, Path::new(&path))
    };
    if let Some(hit) = paths.into_iter().flatten().find(own) {
        let what = if *hit == old.path { "its disk" } else { "where its metadata are" };
        let why = format!("{path} is {what} already");
        return Err(refused(&name, ErrorCode::DiskBusy, &why).hint("name another disk"));
    }
    let meta = meta_of(node, resource, old, request);
    let mut used = used_disks(node);
    used.retain(|used| used.owner != Owner::Resource(name.clone()));
    Ok(Wanted {
        what: format!("{WHAT} for {name}"),
        resource: resource.id,
        disk: path,
        meta,
        size: Some(size),
        al_extents: al_extents(&record.options),
        state_dir: node.settings.state_dir.clone(),
        used,
        spares: Planned::default(),
        existing: if request.force { Existing::Overwrite } else { Existing::OverwriteUnknown },
    })
}

/// Where the metadata will be, as a person would say it.
fn meta_of(
    node: &Node,
    resource: &Resource,
    old: &LocalDisk,
    request: &ReplaceDisk,
) -> Option<String> {
    let usual = disk::own_meta(&node.settings.state_dir, resource.id);
    let now = match &old.meta {
        None => Some(META_INTERNAL.to_owned()),
        Some(meta) => (*meta != usual).then(|| meta.display().to_string()),
    };
    request.meta.clone().or(now)
}

/// Ends a move, or forgets one that has failed.
async fn stop(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    request: &ReplaceDisk,
) -> Result<Done, ApiError> {
    let name = resource.name();
    if request.disk.is_some() {
        return Err(refused(&name, ErrorCode::InvalidPath, "--stop names no disk")
            .hint("leave --disk away"));
    }
    let shown = resource.state().replacing.take();
    let wish = resource.local().replacing;
    let failed = shown.as_ref().is_some_and(Replacing::has_failed);
    if let Some(shown) = shown {
        shown.stop();
    }
    let Some(wish) = wish else {
        publish(node, resource);
        if failed {
            return Ok(Done::new(format!("the move of resource {name} had failed before")));
        }
        let why = "its disk is not being replaced";
        return Err(refused(&name, ErrorCode::NoDisk, why));
    };
    replacing::forget_now(node, resource, &wish).await?;
    publish(node, resource);
    let path = wish.disk.path.display();
    Ok(Done::new(format!(
        "the data of resource {name} are not moved to {path}; its disk stays as it was"
    )))
}
