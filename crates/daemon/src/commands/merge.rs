//! `cluster merge`: this node's cluster becomes a part of another one, while everything runs.

use crate::node::Node;
use crate::peer_api::{MERGE, spread};
use crate::peers::{CALL_TIMEOUT, connect, request, sync_with_all};
use crate::phases::{phase, would};
use crate::{commands, refuse, status};
use holdfast_api::request::ClusterMerge;
use holdfast_api::status::ClusterStatus;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Fingerprint, JoinResponse, JoinToken, MergeRequest, Uuid};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the nodes of a cluster may take to have the same records.
const GREETING: Duration = Duration::from_secs(5);
/// How long nodes that do not know each other yet are tried again.
const SPREAD: Duration = Duration::from_secs(20);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(300);

/// What a node says to the issuer of the token.
#[derive(Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) request: MergeRequest,
    /// Also when nodes are not reached.
    pub(crate) force: bool,
}

/// Merges this node's cluster into the one of the token. Repeated after it was interrupted, it goes
/// on where it was.
///
/// # Errors
/// When names are in both, nodes are not reached, or the token is not good.
pub(crate) async fn merge(node: &Arc<Node>, call: ClusterMerge) -> Result<ClusterStatus, ApiError> {
    let _making = node.making.lock().await;
    let token = JoinToken::parse(call.token.trim()).map_err(refuse::cluster)?;
    let view = node.view();
    let Some(cluster) = &view.membership else {
        let message = format!("the cluster was not merged: node {} is in none", node.name);
        return Err(ApiError::new(ErrorCode::NoCluster, message)
            .hint("use `holdfast cluster join TOKEN` for a node without a cluster"));
    };
    if cluster.uuid == token.cluster && is_own(node, &token) {
        let message = format!("the cluster {} was not merged: the token is its own", cluster.name);
        return Err(ApiError::new(ErrorCode::AlreadyInCluster, message)
            .hint("make a token with `holdfast cluster token` on a node of the other cluster"));
    }
    let mut is_there = cluster.uuid == token.cluster;
    if !is_there {
        phase("checking that all nodes of this cluster are in reach");
        need_all(node, call.force, "merged").await?;
        // Another node of this cluster may have done it already.
        let now = node.view();
        is_there = now.membership.as_ref().is_some_and(|cluster| cluster.uuid == token.cluster);
    }
    if !is_there {
        phase("asking the other cluster whether the names fit together");
        let checked = ask(node, &token, call.force, false).await?;
        let own = token.clone();
        node.cluster(move |state, now| state.check_cluster(&own, &checked, now)).await?;
        if call.dry_run {
            would(&["bringing the two together", "telling all nodes of both"]);
            return commands::cluster::show(node);
        }
        phase("bringing the two together");
        let response = ask(node, &token, call.force, true).await?;
        let own = token.clone();
        node.cluster(move |state, now| state.accept_cluster(&own, response, now)).await?;
        tracing::info!("the cluster was merged into another one");
    }
    if call.dry_run {
        would(&["telling all nodes of both"]);
        return commands::cluster::show(node);
    }
    phase("telling all nodes of both");
    let missing = tell_all(node).await;
    if !missing.is_empty() {
        phase(format!("not reached yet, they follow by themselves: {}", missing.join(", ")));
    }
    status::cluster(node).ok_or_else(|| {
        ApiError::new(ErrorCode::Internal, "the cluster was merged, and is not there any more")
    })
}

/// Whether the token cannot be that of a merge that was done: nothing was merged into this cluster,
/// or its issuer is not a node any more.
fn is_own(node: &Node, token: &JoinToken) -> bool {
    let records = &node.view().records;
    records.formerly(token.cluster).is_empty()
        || !records.nodes().iter().any(|node| node.fingerprint == token.issuer)
}

/// Lets another cluster in, or says whether it could be.
///
/// # Errors
/// When that cannot be.
pub(crate) async fn take_in(
    node: &Arc<Node>,
    fingerprint: Fingerprint,
    call: Call,
) -> Result<JoinResponse, ApiError> {
    let Call { request, force } = call;
    let (asking, commit) = (request.node.uuid, request.commit);
    let (name, from) = (request.node.name.clone(), request.from.name.clone());
    // Only who has the token causes any work.
    let check = MergeRequest { commit: false, ..request.clone() };
    node.cluster(move |state, now| state.admit_cluster(&check, fingerprint, now)).await?;
    if !commit {
        // It may be known from an attempt that was interrupted, and not know this cluster yet.
        need_all_but(node, Some(asking), force, "merged with another one").await?;
    }
    let answer =
        node.cluster(move |state, now| state.admit_cluster(&request, fingerprint, now)).await?;
    if commit {
        tracing::info!("node {name} brings its cluster {from} into this one");
        spread(node, asking).await;
    }
    Ok(answer)
}

/// That all nodes of this cluster have the same records.
///
/// # Errors
/// `PEER_NOT_REACHABLE` with the names of the others, unless with force.
pub(crate) async fn need_all(node: &Arc<Node>, force: bool, what: &str) -> Result<(), ApiError> {
    need_all_but(node, None, force, what).await
}

async fn need_all_but(
    node: &Arc<Node>,
    but: Option<Uuid>,
    force: bool,
    what: &str,
) -> Result<(), ApiError> {
    let reached = sync_with_all(node, GREETING).await;
    let others = node.others().into_iter().filter(|other| Some(other.uuid) != but);
    let others = others.map(|other| other.name);
    let missing: Vec<String> = others.filter(|name| !reached.contains(name)).collect();
    if missing.is_empty() || force {
        return Ok(());
    }
    let cluster = status::cluster(node).map(|cluster| cluster.name).unwrap_or_default();
    let message = format!(
        "the cluster {cluster} was not {what}: these of its nodes were not reached: {}",
        missing.join(", ")
    );
    let hint = "start their daemons; those that are gone for good `holdfast cluster remove NODE \
                --force` removes";
    Err(ApiError::new(ErrorCode::PeerNotReachable, message).hint(hint))
}

/// Tries until every node has the same records; those that were not reached.
async fn tell_all(node: &Arc<Node>) -> Vec<String> {
    let end = Instant::now() + SPREAD;
    loop {
        let reached = sync_with_all(node, GREETING).await;
        let others = node.others().into_iter().map(|other| other.name);
        let missing: Vec<String> = others.filter(|name| !reached.contains(name)).collect();
        if missing.is_empty() || Instant::now() >= end {
            return missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(
    node: &Arc<Node>,
    token: &JoinToken,
    force: bool,
    commit: bool,
) -> Result<JoinResponse, ApiError> {
    let own = token.clone();
    let request_body = node.cluster(move |state, _| state.merge_request(&own, commit)).await?;
    let body = Call { request: request_body, force };
    let exchange = async {
        let issuers: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
        let (socket, to) = connect(&issuers, "that issued the token").await?;
        let stream = node.tls.connect_to_join(socket, token.issuer, &to).await;
        request::<_, _, JoinResponse>(stream.map_err(refuse::cluster)?, &to, MERGE, &body).await
    };
    let response = tokio::time::timeout(CALL_TIMEOUT + GREETING, exchange).await;
    response.unwrap_or_else(|_| {
        let message = "the cluster was not merged: the node that issued the token did not answer";
        Err(ApiError::new(ErrorCode::PeerNotReachable, message))
    })
}
