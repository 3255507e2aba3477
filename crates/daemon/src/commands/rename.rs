//! `rename`: another name for a resource, on all nodes, while it is replicated.
//!
//! To the nodes a resource is its id. Its name stands in its record, which is what counts, and in the
//! state file of each member: the name of its export and device there. The record is changed
//! first; then every member takes the name over as soon as nobody has the resource open there.

use super::create::refuse_attached;
use super::device;
use super::roles::{need_closed, release};
use super::updown::publish;
use crate::events::{Objects, Part};
use crate::logpeer::past;
use crate::node::Node;
use crate::peer_api::{self, RENAME, RenameMember};
use crate::peers::{CALL_TIMEOUT, call_node};
use crate::phases::{phase, would};
use crate::problems;
use crate::resource::{Resource, told};
use crate::shard::RenameRefused;
use holdfast_api::options::Settings;
use holdfast_api::request::{Done, Rename};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, ResourceRecord};
use holdfast_device::Via;
use holdfast_units::{ResourceId, check_name};
use std::sync::Arc;
use std::time::Duration;

const WHAT: &str = "rename was refused";
/// How long the connections of a local device that was taken away may take to end.
const OWN_CLIENTS: Duration = Duration::from_secs(1);
/// How often a name is tried to be taken over that somebody is in the way of.
const RETRY: Duration = Duration::from_secs(1);
/// How long a member waits for another command before it takes a name over for who asks.
const BRIEF: Duration = Duration::from_secs(2);

/// Gives a resource another name. Repeated after it was interrupted, it goes on where it was.
///
/// # Errors
/// When the name cannot be had, or a member that is reached has the resource open; nothing has
/// changed then.
pub(crate) async fn rename(
    node: &Arc<Node>,
    name: &str,
    request: &Rename,
) -> Result<Done, ApiError> {
    let new = &request.new;
    check_name(new)?;
    let making = node.making.lock().await;
    let resource = match node.resource_named(name) {
        Ok(resource) => resource,
        Err(error) => renamed_before(node, name, new).ok_or(error)?,
    };
    let _begun = resource.begin().await?;
    let id = resource.id;
    if name == new && known_name(node, id).is_none_or(|known| known == *new) {
        return Err(refused(name, ErrorCode::InvalidRequest, "that is its name already"));
    }
    if known_name(node, id).as_ref() != Some(new) {
        phase("asking all members");
        if let Some(other) = node.record_named(new).filter(|other| other.id != id) {
            let why = format!("the cluster has a resource {}", other.name);
            return Err(refused(name, ErrorCode::AlreadyExists, &why).hint("choose another name"));
        }
        refuse_archived(node, id, name, new)?;
        may_rename(node, &resource, new).await?;
        let asked = ask_members(node, id, new, false).await;
        let missing = asked.map_err(|error| ApiError {
            message: format!("{WHAT} for {name}: {}", error.message),
            ..error
        })?;
        if request.dry_run {
            would(&["telling all nodes", "taking the name over on all members"]);
            let mut message = format!("nothing was changed; resource {name} could be {new}");
            if !missing.is_empty() {
                message.push_str(&format!(", and later so on {}", missing.join(", ")));
            }
            return Ok(Done::new(message));
        }
        phase("telling all nodes");
        tell_all(node, &resource, name, new).await?;
    } else if request.dry_run {
        would(&["taking the name over on all members"]);
        return Ok(Done::new(format!(
            "nothing was changed; {name} is {new} in the cluster already"
        )));
    }
    drop(making);
    phase("taking the name over on all members");
    take_over(node, &resource).await.map_err(|error| {
        let message = format!(
            "{name} is {new} in the cluster now, and has its old name on node {} as long as it is \
             in use there: {}",
            node.name, error.message
        );
        ApiError { message, ..error }
    })?;
    let late = ask_members(node, id, new, true).await?;
    if let Some(known) = known_name(node, id).filter(|known| known != new) {
        let why = format!("another command gave it the name {known} in the same moment");
        return Err(refused(name, ErrorCode::Busy, &why).hint("look at holdfast status"));
    }
    let mut message = format!("resource {name} is {new} now");
    if !late.is_empty() {
        message.push_str(&format!(
            "; {} will take the name over later: when it is reached, and nobody has it open there",
            late.join(", ")
        ));
    }
    Ok(Done::new(message))
}

fn refused(name: &str, code: ErrorCode, why: &str) -> ApiError {
    ApiError::new(code, format!("{WHAT} for {name}: {why}"))
}

/// An archive is found by its resource's name. Under another one a new archive would begin, and who
/// restores by the old name would get another resource's data one day.
fn refuse_archived(node: &Node, id: ResourceId, name: &str, new: &str) -> Result<(), ApiError> {
    let options = node.view().records.resource(id).map(|record| record.options);
    let place = options.and_then(|options| Settings::resolve(&options, None).archive);
    let Some(place) = place else { return Ok(()) };
    let why = format!("its archive in {place} is kept under its name");
    Err(refused(name, ErrorCode::InUse, &why).hint(format!(
        "`holdfast set {name} archive=none` first; to go on with the archive afterwards, rename \
         {name} to {new} there, too, and set it again"
    )))
}

/// The name that the cluster knows a resource by.
fn known_name(node: &Node, id: ResourceId) -> Option<String> {
    node.view().records.resource(id).map(|record| record.name)
}

/// The resource that an earlier attempt has given its new name.
fn renamed_before(node: &Node, name: &str, new: &str) -> Option<Arc<Resource>> {
    let record = node.record_named(new)?;
    let same = record.formerly.as_deref() == Some(name);
    node.resource(record.id).filter(|_| same)
}

/// Writes the record and tells the other nodes. One that gave the name away at the same moment keeps it
/// if its resource is the older one; then all is as before.
async fn tell_all(
    node: &Arc<Node>,
    resource: &Resource,
    name: &str,
    new: &str,
) -> Result<(), ApiError> {
    let id = resource.id;
    let before = node.view().records.resource(id);
    let before = before.ok_or_else(|| ApiError::no_such_resource(name))?;
    let formerly = Some(before.name.clone());
    write(node, ResourceRecord { name: new.to_owned(), formerly, ..before.clone() }).await?;
    peer_api::announce(node).await;
    let Some(others) = problems::name_is_lost(node, id) else { return Ok(()) };
    write(node, before).await?;
    peer_api::announce(node).await;
    let why = format!("{others} created a resource {new} in the same moment");
    Err(refused(name, ErrorCode::AlreadyExists, &why).hint("choose another name"))
}

/// Writes the names of a resource; what else changed in its record meanwhile stays.
async fn write(node: &Arc<Node>, names: ResourceRecord) -> Result<(), ApiError> {
    node.cluster(move |state, now| {
        let record = state.records().resource(names.id).map(|record| {
            let ResourceRecord { name, formerly, .. } = names;
            Change::resource(&ResourceRecord { name, formerly, ..record })
        });
        state.change(record.into_iter().collect(), now)
    })
    .await
    .map(drop)
}

/// Asks the other members, or has them take the name over. Those that do not now, and why.
///
/// # Errors
/// Before the name is given: who or what is in the way on a member that is reached.
async fn ask_members(
    node: &Arc<Node>,
    id: ResourceId,
    new: &str,
    now: bool,
) -> Result<Vec<String>, ApiError> {
    let view = node.view();
    let mut late = Vec::new();
    for peer in view.peers_of(id, node.uuid).into_values() {
        let Some(record) = view.records.node(peer.uuid) else { continue };
        let call = RenameMember { resource: id, new: new.to_owned(), now };
        let asked: Result<Done, ApiError> =
            call_node(node, &record, RENAME, &call, CALL_TIMEOUT).await;
        match asked {
            Err(error) if !now && error.code != ErrorCode::PeerNotReachable => return Err(error),
            Err(error) if error.code == ErrorCode::PeerNotReachable => {
                late.push(format!("node {} (it does not answer)", peer.name));
            }
            Err(error) => late.push(format!("node {} ({})", peer.name, error.message)),
            Ok(_) => {}
        }
    }
    Ok(late)
}

/// What another node asks of this one.
///
/// # Errors
/// Who or what is in the way here.
pub(crate) async fn on_member(node: &Arc<Node>, call: &RenameMember) -> Result<(), ApiError> {
    // One whose state file is damaged has the name of the records.
    let Some(resource) = node.resource(call.resource) else { return Ok(()) };
    let done = if call.now {
        // This node may be at it by itself. Not waited for longer: who asks has a command of this resource
        // under way, and so may this node, which waits for who asks.
        match tokio::time::timeout(BRIEF, resource.begin()).await {
            Ok(Ok(_begun)) => take_over(node, &resource).await,
            _ => {
                let why = "another command is under way";
                Err(refused(&resource.name(), ErrorCode::Busy, why))
            }
        }
    } else {
        may_rename(node, &resource, &call.new).await
    };
    done.map_err(|error| {
        let message = format!("node {}: {}", node.name, error.message);
        ApiError { message, ..error }
    })
}

/// That nothing here is in the way of a name.
async fn may_rename(node: &Arc<Node>, resource: &Arc<Resource>, new: &str) -> Result<(), ApiError> {
    let name = resource.name();
    refuse_attached(node, new, &format!("{WHAT} for {name}"))?;
    if let Some(other) = holder(node, resource, new)
        && known_name(node, other.id).as_deref() == Some(new)
    {
        let why = format!("node {} has a resource {new}", node.name);
        return Err(refused(&name, ErrorCode::AlreadyExists, &why).hint("choose another name"));
    }
    need_closed(resource, WHAT).await
}

/// Another resource that has this name here.
fn holder(node: &Node, resource: &Resource, name: &str) -> Option<Arc<Resource>> {
    let mut others = node.resources().into_iter().filter(|other| other.id != resource.id);
    others.find(|other| other.name() == name)
}

/// The name that a resource is to take over here, if it has another one. While another one has that
/// and is to be renamed itself, its id will do: so two can change their names with each other.
fn wanted(node: &Node, resource: &Resource) -> Result<Option<String>, ApiError> {
    let name = resource.name();
    let Some(new) = known_name(node, resource.id).filter(|new| *new != name) else {
        return Ok(None);
    };
    let Some(other) = holder(node, resource, &new) else { return Ok(Some(new)) };
    if known_name(node, other.id).is_none_or(|known| known == new) {
        let why = format!("another resource of this node has the name {new}");
        return Err(refused(&name, ErrorCode::AlreadyExists, &why));
    }
    let id = resource.id.to_string();
    Ok(Some(id).filter(|id| *id != name))
}

/// Takes over here what the cluster calls a resource, while no other command changes it.
///
/// # Errors
/// Who or what is in the way; it goes on under its old name then.
pub(crate) async fn take_over(node: &Arc<Node>, resource: &Arc<Resource>) -> Result<(), ApiError> {
    let name = resource.name();
    let Some(new) = wanted(node, resource)? else { return Ok(()) };
    refuse_attached(node, &new, &format!("{WHAT} for {name}"))?;
    let device = {
        let state = resource.state();
        state.device.as_ref().filter(|_| state.past.is_none()).map(|device| device.kind)
    };
    if resource.handle().is_some() {
        release(node, resource, WHAT, false).await?;
    }
    past::hide(node, resource, WHAT).await?;
    let taken = switch(node, resource, &name, &new).await;
    if let Some(via) = device.and_then(|kind| kind.parse::<Via>().ok())
        && let Err(error) = device::attach(node, resource, via, false).await
    {
        let text = format!("its device was not made again: {}", told(&error));
        tracing::warn!(resource = resource.name(), "{text}");
        node.hub.notice(&resource.name(), None, &text);
    }
    if resource.is_up() {
        past::show_again(node, resource);
        publish(node, resource);
    }
    taken
}

/// First durably, then the export: a crash in between is a start with the new name.
async fn switch(
    node: &Arc<Node>,
    resource: &Arc<Resource>,
    name: &str,
    new: &str,
) -> Result<(), ApiError> {
    let to = |name: &str| {
        let name = name.to_owned();
        async move { resource.change_local(node, |local| local.name = name).await }
    };
    to(new).await?;
    if let Some(handle) = resource.handle() {
        let mut view = handle.watch();
        let closed = view.wait_for(|view| view.open_count == 0);
        // Who is in the way all the same is told below.
        let _ = tokio::time::timeout(OWN_CLIENTS, closed).await;
        if let Err(why) = handle.rename(new).await {
            to(name).await?;
            let code = match why {
                RenameRefused::Open => ErrorCode::InUse,
                RenameRefused::Taken => ErrorCode::AlreadyExists,
                RenameRefused::Closed => ErrorCode::Busy,
            };
            return Err(refused(name, code, &why.to_string()));
        }
    }
    node.hub.update(Part::Resource(name), Objects::new());
    tracing::info!("resource {name} is {new} now");
    Ok(())
}

/// Takes names over that were given while the daemon did not run, before the resources are started. A
/// device that an earlier run left keeps its resource's old name until it is closed.
pub(crate) async fn at_start(node: &Arc<Node>) {
    // Two that change names with each other need a second look.
    for _ in 0..2 {
        for resource in node.resources() {
            let name = resource.name();
            if known_name(node, resource.id).is_none_or(|known| known == name)
                || device::is_left(node, &name)
            {
                continue;
            }
            if let Err(error) = take_over(node, &resource).await {
                tracing::warn!("{}", error.message);
            }
        }
    }
}

/// Takes names over whenever the records change, until the daemon stops.
pub(crate) async fn follow_records(node: Arc<Node>) {
    let mut view = node.watch_view();
    loop {
        view.mark_unchanged();
        let mut waits = false;
        for resource in node.resources() {
            waits |= !has_taken_over(&node, &resource).await;
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if waits => {}
            () = node.stopped() => return,
        }
    }
}

/// Whether a resource has the name here that the cluster knows it by, or is about to have.
async fn has_taken_over(node: &Arc<Node>, resource: &Arc<Resource>) -> bool {
    let name = resource.name();
    let Some(new) = known_name(node, resource.id).filter(|new| *new != name) else {
        resource.state().rename_trouble = None;
        return true;
    };
    // A command that is under way may be the one that renames it.
    let Some(_begun) = resource.try_begin() else { return false };
    let Err(error) = take_over(node, resource).await else { return false };
    let text = format!(
        "resource {name} is called {new} in the cluster, and takes the name over on node {} as soon \
         as nothing is in the way: {}",
        node.name,
        told(&error)
    );
    let before = resource.state().rename_trouble.replace(text.clone());
    if before.as_ref() != Some(&text) {
        tracing::warn!(resource = name, "{text}");
    }
    false
}
