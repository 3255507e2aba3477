//! Resources that this node is no member of and is asked to show: what their members say of
//! themselves. Nothing of the data is here.

use crate::node::Node;
use crate::peer_api::AboutResource;
use crate::peers::call_node;
use crate::{refuse, statefile, status};
use holdfast_api::request::{Done, Watch};
use holdfast_api::status::{GuestMember, GuestStatus};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::NodeRecord;
use holdfast_units::{DiskState, ResourceId, Role};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A node that is no member asks a member how a resource is there.
pub(crate) const LOOK: &str = "/peer/v1/look";

/// The first word of the file, and the version of its content.
const HEAD: &str = "holdfast-watched 1 ";
/// How many resources can be watched.
const MOST: usize = 256;
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// What is watched, and what was heard of it last.
#[derive(Default)]
pub(crate) struct Guests(Mutex<BTreeMap<ResourceId, Vec<GuestMember>>>);

/// How a resource is on a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Look {
    role: String,
    disk: String,
}

impl Look {
    /// On this node; `None` when it is no member.
    pub(crate) fn of(node: &Node, id: ResourceId) -> Option<Self> {
        let resource = node.resource(id)?;
        let status = status::resource(node, &resource);
        Some(Self { role: status.role, disk: status.disk.state })
    }
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ResourceId, Vec<GuestMember>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn path(node: &Node) -> PathBuf {
    node.settings.state_dir.join("watched.state")
}

/// Reads what was watched before the stop. A file that cannot be used is told and left out.
pub(crate) fn take_up(node: &Node) {
    let path = path(node);
    if !path.exists() {
        return;
    }
    match statefile::read::<BTreeSet<String>>(&path, HEAD) {
        Ok(ids) => {
            let ids = ids.into_iter().filter_map(|id| id.parse().ok());
            *node.guests.lock() = ids.map(|id| (id, Vec::new())).collect();
        }
        Err(why) => tracing::warn!("nothing is watched any more: {}: {why}", path.display()),
    }
}

/// Begins or ceases to show a resource.
///
/// # Errors
/// `ALREADY_MEMBER` for one that this node is a member of; `NO_SUCH_RESOURCE`.
pub(crate) async fn watch(node: &Arc<Node>, name: &str, call: &Watch) -> Result<Done, ApiError> {
    let known = node.record_named(name).ok_or_else(|| {
        ApiError::new(
            ErrorCode::NoSuchResource,
            format!("resource {name} was not found: the cluster has no resource of that name"),
        )
    })?;
    if node.view().records.member(known.id, node.uuid).is_some() {
        let what = if call.stop { "unwatched" } else { "watched" };
        let message = format!("resource {name} is not {what}: node {} is a member", node.name);
        return Err(ApiError::new(ErrorCode::AlreadyMember, message)
            .hint(format!("`holdfast status {name}` shows it")));
    }
    let mut ids: BTreeSet<ResourceId> = node.guests.lock().keys().copied().collect();
    if call.stop {
        ids.remove(&known.id);
    } else {
        ids.insert(known.id);
    }
    if ids.len() > MOST {
        let message = format!("resource {name} is not watched: {MOST} are, and no more can be");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    store(node, ids).await?;
    Ok(Done::new(match call.stop {
        true => format!("resource {name} is not watched any more"),
        false => format!("resource {name} is watched: `holdfast status {name}` shows it"),
    }))
}

async fn store(node: &Arc<Node>, ids: BTreeSet<ResourceId>) -> Result<(), ApiError> {
    let path = path(node);
    let texts: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
    crate::commands::blocking(move || {
        let written = match texts.is_empty() {
            true => statefile::remove(&path),
            false => statefile::write(&path, HEAD, &texts),
        };
        written.map_err(|error| refuse::internal("what is watched could not be stored", &error))
    })
    .await?;
    let mut guests = node.guests.lock();
    guests.retain(|id, _| ids.contains(id));
    for id in ids {
        guests.entry(id).or_default();
    }
    Ok(())
}

/// Asks the members of what is watched how it is there.
pub(crate) async fn refresh(node: &Arc<Node>) {
    let view = node.view();
    let watched: Vec<ResourceId> = node.guests.lock().keys().copied().collect();
    let over = |id: &ResourceId| {
        view.records.resource(*id).is_none() || view.records.member(*id, node.uuid).is_some()
    };
    if watched.iter().any(over) {
        let left = watched.iter().filter(|id| !over(id)).copied().collect();
        // It is tried again with the next look.
        let _ = store(node, left).await;
    }
    let asking = watched.into_iter().filter(|id| !over(id)).flat_map(|id| {
        let members = view.peers_of(id, node.uuid).into_values();
        let found = members.filter_map(|member| view.records.node(member.uuid));
        found.map(move |record| (id, record)).collect::<Vec<_>>()
    });
    let asking = asking.map(|(id, record)| async move { (id, ask(node, id, record).await) });
    let mut found: BTreeMap<ResourceId, Vec<GuestMember>> = BTreeMap::new();
    for (id, member) in futures_util::future::join_all(asking).await {
        found.entry(id).or_default().push(member);
    }
    let mut guests = node.guests.lock();
    for (id, mut members) in found {
        members.sort_by(|a, b| a.node.cmp(&b.node));
        if let Some(known) = guests.get_mut(&id) {
            *known = members;
        }
    }
}

async fn ask(node: &Arc<Node>, id: ResourceId, record: NodeRecord) -> GuestMember {
    let silent = |problem: String| GuestMember {
        node: record.name.clone(),
        alive: false,
        role: Role::Unknown.as_str().to_owned(),
        disk: DiskState::DUnknown.as_str().to_owned(),
        problem: Some(problem),
    };
    let health = node.peers.health(record.uuid);
    if !health.alive && health.failed {
        return silent(format!("node {} does not answer", record.name));
    }
    let call = AboutResource { resource: id };
    let look: Result<Look, ApiError> = call_node(node, &record, LOOK, &call, LIMIT).await;
    match look {
        Ok(look) => GuestMember {
            node: record.name,
            alive: true,
            role: look.role,
            disk: look.disk,
            problem: None,
        },
        Err(error) => silent(error.message),
    }
}

/// What was heard last.
pub(crate) fn show(node: &Node) -> Vec<GuestStatus> {
    let view = node.view();
    let guests = node.guests.lock();
    let shown = guests.iter().filter_map(|(id, members)| {
        let record = view.records.resource(*id)?;
        let (name, size_bytes) = (record.name, record.size_bytes);
        Some(GuestStatus { name, size_bytes, members: members.clone() })
    });
    let mut shown: Vec<GuestStatus> = shown.collect();
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    shown
}
