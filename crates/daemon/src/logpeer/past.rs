//! The past state that a node which follows holds while its replay is paused, for who wants to read
//! it: `device NAME --read-only`.

use super::roles::until;
use crate::commands::{blocking, device};
use crate::node::Node;
use crate::resource::{Resource, told};
use crate::shard::{PastHandle, PastSpec};
use crate::status;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_journal::ship::{FollowStatus, Holding};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A client that has just hung up may still be seen for a moment.
const CLIENT_WAIT: Duration = Duration::from_secs(1);
/// After a start, what was begun before a crash is replayed first.
const START_WAIT: Duration = Duration::from_secs(60);
/// How many openers a refusal names.
const SHOWN: usize = 3;

/// Whether the disk stays as it is, and is a state.
fn is_held(status: &FollowStatus) -> bool {
    status.replay_paused && matches!(status.holding, Holding::StateAt(_))
}

/// Shows the disk of this node as the read-only export of its name; one that is shown already is
/// fine.
///
/// # Errors
/// When this node does not follow, replays, or its disk is no state.
pub(crate) async fn show(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    if resource.state().past.is_some() {
        return Ok(());
    }
    let name = resource.name();
    let refuse = |code, why: &str| {
        ApiError::new(code, format!("{name} was not shown read-only on this node: {why}"))
    };
    let following = resource.following().ok_or_else(|| {
        let why = "it does not follow a journal, so its disk is no state that stays";
        refuse(ErrorCode::NotFollowing, why).hint(format!(
            "run it on a log peer; where the resource is Primary, `holdfast device {name}`"
        ))
    })?;
    let status = following.view().status.ok_or_else(|| {
        refuse(ErrorCode::DiskFailed, "its disk or its journal cannot be used")
            .hint(format!("`holdfast status {name}` says why"))
    })?;
    if !status.replay_paused {
        return Err(refuse(ErrorCode::Follows, "it replays the journal, so its disk changes")
            .hint(format!("`holdfast pause {name} replay` first; it fetches all the same")));
    }
    if !is_held(&status) {
        return Err(refuse(ErrorCode::NoUpToDateData, "its disk is no state of the Primary's yet")
            .hint(format!(
                "`holdfast resume {name} replay`, and pause it again when the disk is UpToDate"
            )));
    }
    let disk = resource.local().disk.ok_or_else(|| refuse(ErrorCode::NoDisk, "it has no disk"))?;
    if !disk.spares.is_empty() {
        let why = "its disk has spares, and showing one with parts of it elsewhere is not supported \
                   by this version";
        return Err(refuse(ErrorCode::NotSupportedYet, why));
    }
    if resource.local().checksums {
        let why = "checksums are kept for its disk, and showing one so that they are looked at is not \
                   supported by this version";
        return Err(refuse(ErrorCode::NotSupportedYet, why).hint(format!(
            "`holdfast set {name} checksums=off` first, and `checksums=on` when replay goes on"
        )));
    }
    if status.healed.old > 0 {
        let why = "some of its blocks are not what was written, and were not healed yet";
        return Err(refuse(ErrorCode::NoUpToDateData, why).hint(format!(
            "`holdfast status {name}` says how many; the Primary and the replay have them"
        )));
    }
    let path = disk.path;
    let size = status::resource(node, resource).size_bytes;
    let shown = node.shard()?.show(PastSpec { name: name.clone(), path, size }).await;
    let shown = shown.map_err(|error| refuse(ErrorCode::DiskFailed, &error.to_string()))?;
    resource.state().past = Some(Arc::new(shown));
    resource.change_local(node, |local| local.shows_past = true).await
}

/// The clients that have the export open and are not the own device, in words.
pub(crate) fn clients(past: &PastHandle) -> Vec<String> {
    let clients = past.clients();
    status::strangers(&clients)
}

/// Takes export and device away, unless somebody has them open.
///
/// # Errors
/// `IN_USE` with who has it open; all is as before then.
pub(crate) async fn hide(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &str,
) -> Result<(), ApiError> {
    let Some(past) = resource.state().past.clone() else { return Ok(()) };
    let name = resource.name();
    let mut changes = past.watch();
    let free = async { while !clients(&past).is_empty() && changes.changed().await.is_ok() {} };
    if tokio::time::timeout(CLIENT_WAIT, free).await.is_err() {
        let clients = clients(&past);
        let mut shown: Vec<String> = clients.iter().take(SHOWN).cloned().collect();
        if clients.len() > SHOWN {
            shown.push(format!("{} more", clients.len() - SHOWN));
        }
        let message = format!(
            "{what} for {name}: NBD clients have its past state open ({})",
            shown.join("; ")
        );
        return Err(ApiError::new(ErrorCode::InUse, message)
            .hint("disconnect the clients first; the state that they read would change"));
    }
    device::take_away(node, resource, false).await.map_err(|error| {
        let hint = match error.code {
            ErrorCode::InUse => Some("unmount or close it first".to_owned()),
            _ => error.hint,
        };
        ApiError { message: format!("{what} for {name}: {}", error.message), hint, ..error }
    })?;
    past.close().await;
    resource.state().past = None;
    Ok(())
}

/// As [`hide`], for good: it is not shown after a restart either.
///
/// # Errors
/// As [`hide`], and when that cannot be written.
pub(crate) async fn end(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &str,
) -> Result<(), ApiError> {
    hide(node, resource, what).await?;
    resource.change_local(node, |local| local.shows_past = false).await
}

/// Shows again, after a start, what was shown before it, and takes over the device that was left.
pub(crate) fn show_again(node: &Arc<Node>, resource: &Arc<Resource>) {
    if !resource.state().local.shows_past {
        return;
    }
    let (node, resource) = (Arc::clone(node), Arc::clone(resource));
    tokio::spawn(async move {
        let name = resource.name();
        if let Err(error) = again(&node, &resource).await {
            let why = told(&error);
            tracing::error!(resource = name, "{why}");
            node.hub.notice(&name, None, &why);
            device::give_up_left(&node, &name, &why).await;
            resource.state().device_waits = None;
        }
        crate::commands::updown::publish(&node, &resource);
    });
}

async fn again(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    let (of, name) = (Arc::clone(node), resource.name());
    let left = blocking(move || Ok(device::is_left(&of, &name))).await?;
    resource.state().device_waits = left.then(|| Instant::now() + START_WAIT);
    if let Some(following) = resource.following() {
        // When it does not come to that, showing it says why.
        let _ = until(&following, START_WAIT, is_held).await;
    }
    let _begun = resource.begin().await?;
    if !resource.local().shows_past || resource.following().is_none() {
        return Ok(());
    }
    show(node, resource).await?;
    device::take_over(node, resource).await.map(drop)
}
