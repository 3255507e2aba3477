//! The commands of the API, one function a call. Each checks everything before it changes
//! anything, and undoes what it has done when a later step fails.

pub(crate) mod attach;
pub(crate) mod badblocks;
pub(crate) mod cluster;
pub(crate) mod copy_source;
pub(crate) mod create;
pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod join;
pub(crate) mod journal;
pub(crate) mod keys;
pub(crate) mod leave;
pub(crate) mod links;
pub(crate) mod merge;
pub(crate) mod options;
pub(crate) mod rename;
pub(crate) mod replace_disk;
pub(crate) mod resize;
pub(crate) mod roles;
pub(crate) mod spare;
pub(crate) mod split;
pub(crate) mod survey;
pub(crate) mod updown;
pub(crate) mod wait;

use crate::disk::{Owner, Used};
use crate::local::LocalDisk;
use crate::node::{Node, shutting_down};
use crate::refuse;
use crate::resource::Resource;
use holdfast_api::ApiError;
use holdfast_core::{Command, Refusal};
use std::sync::Arc;

/// Runs something that blocks.
///
/// # Errors
/// Those of `work`, and `INTERNAL` when it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| refuse::internal("a command failed", &error))?
}

/// That the daemon is not stopping.
///
/// # Errors
/// `SHUTTING_DOWN`.
pub(crate) fn need_running(node: &Node) -> Result<(), ApiError> {
    if node.is_stopping() { Err(shutting_down()) } else { Ok(()) }
}

/// The disks that are in use on this node, and exports as far as they could be disks.
fn used_disks(node: &Node) -> Vec<Used> {
    let of_resources = node.resources().into_iter().flat_map(|resource| {
        let local = resource.local();
        let new = local.replacing.map(|replacing| replacing.disk);
        let owner = Owner::Resource(local.name);
        local.disk.into_iter().chain(new).map(move |disk| Used { owner: owner.clone(), disk })
    });
    let attached = node.attachments.all().into_iter().flat_map(|attachment| {
        let owner = Owner::Attachment(attachment.name.clone());
        let uris = attachment.record().uris.into_iter();
        uris.map(move |uri| Used { owner: owner.clone(), disk: LocalDisk::new(uri.into(), None) })
    });
    of_resources.chain(attached).collect()
}

/// Gives the core a command; `what` names the attempt for the refusal (`primary was refused`).
///
/// # Errors
/// `RESOURCE_DOWN`, or the core's refusal as a sentence.
pub(crate) async fn core_command(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &str,
    command: Command,
) -> Result<(), ApiError> {
    let handle = resource.need_handle()?;
    handle.command(command).await.map_err(|refusal| core_refusal(node, resource, what, refusal))
}

pub(crate) fn core_refusal(
    node: &Node,
    resource: &Resource,
    what: &str,
    refusal: Refusal,
) -> ApiError {
    let view = node.view();
    refuse::core(what, &resource.name(), refusal, |slot| view.slot_name(resource.id, slot))
}
