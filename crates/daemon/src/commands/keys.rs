//! What users keep in the cluster, and waiting until every node knows the same.

use crate::node::Node;
use crate::peer_api::announce;
use crate::peers::sync_with_all;
use holdfast_api::request::{ClusterSet, ClusterWait, Done, MAX_WAIT_SECONDS};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Change, Key};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest value, in bytes.
const MAX_VALUE: usize = 4096;
/// How many keys there can be.
const MAX_KEYS: usize = 1000;
/// How long is waited when nobody says.
const WAIT: Duration = Duration::from_secs(60);
/// How long one node may take for each attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// All keys with their values.
///
/// # Errors
/// `NO_CLUSTER`.
pub(crate) fn all(node: &Node) -> Result<BTreeMap<String, String>, ApiError> {
    need_cluster(node)?;
    Ok(node.view().records.keys().into_iter().collect())
}

/// Keeps values, or forgets keys.
///
/// # Errors
/// `INVALID_REQUEST` for what cannot be kept; `NO_CLUSTER`.
pub(crate) async fn set(node: &Arc<Node>, call: ClusterSet) -> Result<Done, ApiError> {
    need_cluster(node)?;
    let mut changes = Vec::new();
    let mut keys = all(node)?;
    for (name, value) in &call.set {
        let refuse = |why: String| {
            let message = format!("the key {name:?} was not set: {why}");
            ApiError::new(ErrorCode::InvalidRequest, message)
        };
        let key = Key::user(name).ok_or_else(|| {
            refuse(
                "its name must be 1 to 64 letters, digits, '.', '_' and '-', no '.' first".into(),
            )
        })?;
        if value.len() > MAX_VALUE {
            return Err(refuse(format!("a value has at most {MAX_VALUE} bytes")));
        }
        if value.is_empty() {
            keys.remove(name);
            changes.push(Change::delete(key));
        } else {
            keys.insert(name.clone(), value.clone());
            changes.push(Change::put(key, value).map_err(crate::refuse::cluster)?);
        }
    }
    if keys.len() > MAX_KEYS {
        let message = format!("nothing was set: a cluster keeps at most {MAX_KEYS} keys");
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    node.cluster(move |state, now| state.change(changes, now)).await?;
    announce(node).await;
    Ok(Done::new(String::new()))
}

/// Answers when every node has the same records as this one.
///
/// # Errors
/// `PEER_NOT_REACHABLE` with the nodes that were not reached in time.
pub(crate) async fn wait(node: &Arc<Node>, call: &ClusterWait) -> Result<Done, ApiError> {
    need_cluster(node)?;
    let seconds = call.timeout_seconds.unwrap_or(WAIT.as_secs_f64());
    let limit = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|limit| limit.as_secs() <= MAX_WAIT_SECONDS)
        .ok_or_else(|| {
            let message = format!("nothing was waited for: {seconds} seconds cannot be waited");
            ApiError::new(ErrorCode::InvalidRequest, message)
        })?;
    let end = Instant::now() + limit;
    loop {
        let before = node.view().records.digest().root();
        let reached = sync_with_all(node, ATTEMPT).await;
        let same = before == node.view().records.digest().root();
        let others = node.others();
        let missing: Vec<String> =
            others.iter().map(|n| n.name.clone()).filter(|n| !reached.contains(n)).collect();
        if missing.is_empty() && same {
            let count = others.len() + 1;
            return Ok(Done::new(format!("all {count} nodes have the same configuration")));
        }
        if Instant::now() >= end {
            let why = match missing.is_empty() {
                true => "it was changed all the time".to_owned(),
                false => format!("these nodes were not reached: {}", missing.join(", ")),
            };
            let message = format!("the cluster was not found to agree: {why}");
            return Err(ApiError::new(ErrorCode::PeerNotReachable, message));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn need_cluster(node: &Node) -> Result<(), ApiError> {
    super::cluster::show(node).map(|_| ())
}
