//! `set` and `get`.

use super::blocking;
use crate::checksums;
use crate::journaled::MIN_SIZE;
use crate::journaled::open::room_on_device;
use crate::node::Node;
use crate::{commands::links::no_such_peer, peer_api};
use holdfast_api::options::{CHECKSUMS, OPTIONS, OptionMap, Scope, check_all, spec_of};
use holdfast_api::request::{Done, OptionValue, SetOptions};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, PairOptions, Uuid};
use holdfast_units::{ResourceId, format_size};
use std::sync::Arc;

/// The options that a link of its own can have in this version. All others hold for the resource.
const PER_PEER: [&str; 2] = ["connect-int", "replay-delay"];
/// The options that a running resource does not take over.
const AT_START: [&str; 2] = ["max-in-flight-bytes", "max-in-flight-requests"];

/// Sets options on all members, all of them or none.
///
/// # Errors
/// For the first that is not known or has a value that it does not take.
pub(crate) async fn set(
    node: &Arc<Node>,
    name: &str,
    request: &SetOptions,
) -> Result<Done, ApiError> {
    let mut set = check_all(&request.set)?;
    let sums = set.get(CHECKSUMS).map(|word| word == "on");
    let (id, peer) = find(node, name, request.peer.as_deref())?;
    let size = set.get("journal-size").and_then(|size| size.parse().ok()).unwrap_or(0);
    if (1..MIN_SIZE).contains(&size) {
        let message = format!("journal-size was not set: {size} bytes are too little for one");
        return Err(ApiError::new(ErrorCode::InvalidOption, message).hint("16M at least, or 0"));
    }
    fits_device(node, name, size).await?;
    if let (Some(_), Some(option)) = (peer, set.keys().find(|o| !PER_PEER.contains(&o.as_str()))) {
        return Err(not_per_peer(option));
    }
    let mut own_part = None;
    if let Some(on) = sums {
        set.remove(CHECKSUMS);
        let done = checksums::switch(node, name, on).await?;
        if set.is_empty() {
            return Ok(done);
        }
        own_part = Some(done.message);
    }
    let own = node.uuid;
    let changed = set.clone();
    node.cluster(move |state, now| {
        let records = state.records();
        let change = match peer {
            Some(peer) => {
                let mut options = records.pair_options(id, own, peer).options;
                options.extend(changed);
                Some(Change::pair(id, own, peer, &PairOptions { options }))
            }
            None => records.resource(id).map(|mut record| {
                record.options.extend(changed);
                Change::resource(&record)
            }),
        };
        state.change(change.into_iter().collect(), now)
    })
    .await?;
    peer_api::announce(node).await;
    let shown: Vec<String> = set.iter().map(|(key, value)| shown(key, value)).collect();
    let late: Vec<&str> = AT_START.into_iter().filter(|key| set.contains_key(*key)).collect();
    let mut message = format!("{} for resource {name}", shown.join(", "));
    if !late.is_empty() {
        message.push_str("; where it is up, it holds from the next start on");
    }
    if set.contains_key("al-extents") {
        message.push_str("; al-extents holds for metadata that are made from now on");
    }
    if let Some(own_part) = own_part {
        message = format!("{own_part}; {message}");
    }
    Ok(Done::new(message))
}

/// A journal cannot become longer than the device that it is on.
async fn fits_device(node: &Node, name: &str, size: u64) -> Result<(), ApiError> {
    let Some(journal) = node.resource_named(name)?.local().journal else { return Ok(()) };
    let dir = journal.dir.clone();
    let Some(room) = blocking(move || Ok(room_on_device(&dir))).await? else { return Ok(()) };
    if size <= room {
        return Ok(());
    }
    let (size, room) = (format_size(size), format_size(room));
    let message = format!(
        "journal-size was not set: the journal of resource {name} is on {}, which has room for {room}, \
         and {size} are asked for",
        journal.dir.display()
    );
    Err(ApiError::new(ErrorCode::NoSpace, message).hint("make the device larger, or give less"))
}

fn shown(key: &str, value: &str) -> String {
    let value =
        holdfast_api::options::find(key).map_or_else(|| value.to_owned(), |s| s.show(value));
    format!("{key} is {value}")
}

fn not_per_peer(option: &str) -> ApiError {
    let scope = holdfast_api::options::find(option).map(|spec| spec.scope);
    if scope == Some(Scope::Peer) {
        return ApiError::not_supported_yet(&format!("a value of {option} for one peer only"));
    }
    ApiError::new(
        ErrorCode::InvalidOption,
        format!("{option} was not set: it holds for a resource as a whole, not for a peer"),
    )
    .hint("leave --peer away")
}

/// The resource, and the peer if one was named.
fn find(
    node: &Node,
    name: &str,
    peer: Option<&str>,
) -> Result<(ResourceId, Option<Uuid>), ApiError> {
    let resource = node.resource_named(name)?;
    let Some(peer) = peer else { return Ok((resource.id, None)) };
    let peers = node.view().peers_of(resource.id, node.uuid);
    let found = peers.into_values().find(|member| member.name == peer);
    let found = found.ok_or_else(|| no_such_peer(name, peer))?;
    Ok((resource.id, Some(found.uuid)))
}

fn values(node: &Node, id: ResourceId, peer: Option<Uuid>) -> (OptionMap, Option<OptionMap>) {
    let records = &node.view().records;
    let mut resource = records.resource(id).map(|record| record.options).unwrap_or_default();
    // Each node has its own.
    let sums = node.resource(id).is_some_and(|resource| resource.local().checksums);
    resource.insert(CHECKSUMS.into(), if sums { "on" } else { "off" }.into());
    let own = peer.map(|peer| records.pair_options(id, node.uuid, peer).options);
    (resource, own)
}

/// All options.
///
/// # Errors
/// When there is no such resource or peer.
pub(crate) fn all(
    node: &Node,
    name: &str,
    peer: Option<&str>,
) -> Result<Vec<OptionValue>, ApiError> {
    let (id, uuid) = find(node, name, peer)?;
    let (resource, own) = values(node, id, uuid);
    let own = peer.zip(own.as_ref());
    Ok(OPTIONS.iter().map(|spec| spec.describe(&resource, own)).collect())
}

/// One option.
///
/// # Errors
/// When there is no such resource, peer or option.
pub(crate) fn one(
    node: &Node,
    name: &str,
    key: &str,
    peer: Option<&str>,
) -> Result<OptionValue, ApiError> {
    let (id, uuid) = find(node, name, peer)?;
    let (resource, own) = values(node, id, uuid);
    Ok(spec_of(key)?.describe(&resource, peer.zip(own.as_ref())))
}
