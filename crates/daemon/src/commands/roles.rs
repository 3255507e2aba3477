//! `primary` and `secondary`.

use super::{core_command, device};
use crate::growth;
use crate::logpeer::{self, Claim, Claims, past};
use crate::node::Node;
use crate::resource::Resource;
use crate::status::nbd_clients;
use holdfast_api::request::{Done, Primary, Secondary};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_core::Command;
use holdfast_units::{ConnectionState, DiskState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a promotion of a disk that is only Consistent waits for the peers, and how often it
/// looks.
const FIRST_CONTACT: Duration = Duration::from_secs(10);
const CONTACT_STEP: Duration = Duration::from_millis(50);
/// How long the export may take to follow the role.
const EXPORT_WAIT: Duration = Duration::from_secs(3);
/// How long clients that are about to leave are waited for.
const CLIENT_WAIT: Duration = Duration::from_secs(1);
/// How long reads for other nodes are waited for, and how often it is looked.
pub(crate) const READS_END: Duration = Duration::from_secs(4);
const READS_LOOK: Duration = Duration::from_millis(50);
/// How many openers a refusal names.
const SHOWN: usize = 3;

/// Makes this node Primary, now and after a restart.
///
/// # Errors
/// Who or what is in the way.
pub(crate) async fn primary(
    node: &Arc<Node>,
    name: &str,
    request: &Primary,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    let _claim = Claim::new(&resource, Claims::Now);
    if resource.following().is_some() {
        let limit = time_limit(name, request.timeout_seconds)?;
        return logpeer::promote(node, &resource, request.force, limit).await;
    }
    if !request.force {
        meet_peers(node, &resource).await;
        growth::need_grown(node, &resource).await?;
        logpeer::need_no_newer(node, &resource).await?;
    }
    let command = Command::Promote { force: request.force };
    core_command(node, &resource, "primary was refused", command).await?;
    resource.change_local(node, |local| local.primary = true).await?;
    wait_exported(&resource).await;
    Ok(Done::new(format!("resource {name} is Primary on this node")))
}

/// What a person allows for it; none when nobody says.
fn time_limit(name: &str, seconds: Option<f64>) -> Result<Option<Duration>, ApiError> {
    let read = |seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            let message =
                format!("primary was refused for {name}: it cannot take {seconds} seconds");
            ApiError::new(ErrorCode::InvalidRequest, message)
        })
    };
    seconds.map(read).transpose()
}

/// A disk that is only Consistent may be an old one: before it is made current by a promotion, each
/// peer has been met, or found to be out of reach. That takes a moment after a start.
async fn meet_peers(node: &Arc<Node>, resource: &Arc<Resource>) {
    let Some(handle) = resource.handle() else { return };
    let deadline = Instant::now() + FIRST_CONTACT;
    while Instant::now() < deadline {
        let view = handle.snapshot();
        if view.snapshot.disk != DiskState::Consistent {
            return;
        }
        let members = node.view().core_peers_of(resource.id, node.uuid);
        let met = view.snapshot.peers.iter().all(|peer| {
            let out_of_reach =
                || members.get(&peer.node).is_none_or(|m| node.peers.health(m.uuid).failed);
            peer.diskless
                || peer.connection == ConnectionState::Connected
                || peer.connection == ConnectionState::StandAlone
                || out_of_reach()
        });
        if met {
            return;
        }
        tokio::time::sleep(CONTACT_STEP).await;
    }
}

/// Waits until clients can open the export; not longer than a moment.
pub(crate) async fn wait_exported(resource: &Resource) {
    let Some(handle) = resource.handle() else { return };
    let mut view = handle.watch();
    // When it does not come, a client will be told why.
    let _ = tokio::time::timeout(EXPORT_WAIT, view.wait_for(|view| view.exported)).await;
}

/// Makes this node Secondary, now and after a restart.
///
/// # Errors
/// Who has it open.
pub(crate) async fn secondary(
    node: &Arc<Node>,
    name: &str,
    request: &Secondary,
) -> Result<Done, ApiError> {
    let resource = node.resource_named(name)?;
    let _begun = resource.begin().await?;
    if resource.following().is_some() {
        return Ok(Done::new(format!("resource {name} is Secondary on this node")));
    }
    resource.need_handle()?;
    let what = "secondary was refused";
    release(node, &resource, what, request.force).await?;
    demote(node, &resource, what, request.force, Instant::now() + READS_END).await?;
    resource.change_local(node, |local| local.primary = false).await?;
    logpeer::follow_again(node, &resource).await?;
    Ok(Done::new(format!("resource {name} is Secondary on this node")))
}

/// Has the core step back. Nobody has the resource open any more, but a node that is being filled or
/// healed may just be given a part of the disk, which is a read as that of a client: it waits for that, not
/// beyond `until`.
///
/// # Errors
/// The core's refusal.
pub(crate) async fn demote(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &str,
    force: bool,
    until: Instant,
) -> Result<(), ApiError> {
    loop {
        let asked = core_command(node, resource, what, Command::Demote { force }).await;
        if !asks_again(&asked, until) {
            return asked;
        }
        tokio::time::sleep(READS_LOOK).await;
    }
}

/// Whether what was answered may be another answer in a moment that is not too late.
fn asks_again(asked: &Result<(), ApiError>, until: Instant) -> bool {
    let in_use = asked.as_ref().is_err_and(|error| error.code == ErrorCode::InUse);
    in_use && Instant::now() + READS_LOOK < until
}

/// Makes sure that nobody here uses a resource: refuses while clients have it open, and takes its
/// local device away. With force, users lose it.
///
/// # Errors
/// `IN_USE` with who has it open.
pub(crate) async fn release(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    what: &str,
    force: bool,
) -> Result<(), ApiError> {
    if !force {
        refuse_clients(resource, what).await?;
    }
    let waits = resource.state().device_waits.is_some();
    device::take_away(node, resource, force).await.map_err(|error| {
        let name = resource.name();
        let hint = match error.code {
            // Who has it open cannot let go while its I/O waits.
            ErrorCode::InUse if !waits => Some(way_out("unmount or close it first", &name)),
            _ => error.hint,
        };
        ApiError { message: format!("{what} for {name}: {}", error.message), hint, ..error }
    })
}

/// Only `secondary` has a force that users lose a resource by.
fn way_out(first: &str, name: &str) -> String {
    format!("{first}, or run `holdfast secondary {name} --force`, which fails their requests")
}

/// That nobody has a resource open here; nothing changes.
///
/// # Errors
/// `IN_USE` with who has it open.
pub(crate) async fn need_closed(resource: &Resource, what: &str) -> Result<(), ApiError> {
    let name = resource.name();
    refuse_clients(resource, what).await?;
    device::look(resource).await;
    let (openers, readers, waits) = {
        let state = resource.state();
        let openers = state.device.as_ref().map_or_else(Vec::new, |one| one.openers.clone());
        let readers = state.past.as_ref().map_or_else(Vec::new, |past| past::clients(past));
        (openers, readers, state.device_waits.is_some())
    };
    let why = match (openers.first().or(readers.first()), openers.len() + readers.len()) {
        _ if waits => "its device is in use since before the daemon was started".to_owned(),
        (None, _) => return Ok(()),
        (Some(first), 1) => format!("it is open ({first})"),
        (Some(first), count) => format!("it is open ({first} and {} more)", count - 1),
    };
    Err(ApiError::new(ErrorCode::InUse, format!("{what} for {name}: {why}"))
        .hint(way_out("unmount or close it first", &name)))
}

/// Refuses when NBD clients have a resource open. One that has just hung up may still be seen for a
/// moment, so it waits a little for them to go.
pub(crate) async fn refuse_clients(resource: &Resource, what: &str) -> Result<(), ApiError> {
    let Some(handle) = resource.handle() else { return Ok(()) };
    let mut views = handle.watch();
    let none = views.wait_for(|view| nbd_clients(view).is_empty());
    // The view ends with the resource: nobody has it open then.
    let Err(_) = tokio::time::timeout(CLIENT_WAIT, none).await else { return Ok(()) };
    let clients = nbd_clients(&handle.snapshot());
    if clients.is_empty() {
        return Ok(());
    }
    let mut shown: Vec<String> = clients.iter().take(SHOWN).cloned().collect();
    if clients.len() > SHOWN {
        shown.push(format!("{} more", clients.len() - SHOWN));
    }
    let message =
        format!("{what} for {}: NBD clients have it open ({})", resource.name(), shown.join("; "));
    Err(ApiError::new(ErrorCode::InUse, message)
        .hint(way_out("disconnect the clients first", &resource.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_asked_again_and_not_past_its_time() {
        let of = |code| Err(ApiError::new(code, "it was refused"));
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        assert!(asks_again(&of(ErrorCode::InUse), later));
        assert!(!asks_again(&of(ErrorCode::InUse), now + READS_LOOK / 2));
        assert!(!asks_again(&of(ErrorCode::NoQuorum), later));
        assert!(!asks_again(&Ok(()), later));
    }
}
