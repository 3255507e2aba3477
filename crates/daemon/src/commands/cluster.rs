//! The commands of the cluster.

use super::create::CLUSTER_NAME;
use super::leave::retire;
use super::roles::{need_closed, release};
use crate::events::unix_ms;
use crate::node::Node;
use crate::options::NODE_PORT;
use crate::peer_api::{JOIN, SYNC, SyncAnswer, SyncCall};
use crate::peers::{CALL_TIMEOUT, call_node, connect, request, sync_with_all, version};
use crate::phases::{phase, would};
use crate::{peer_api, refuse, status};
use holdfast_api::request::{
    ClusterCreate, ClusterCreated, ClusterJoin, ClusterLeave, ClusterRemove, ClusterToken, Done,
    TokenCreated,
};
use holdfast_api::status::ClusterStatus;
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{Address, JoinResponse, JoinToken, NodeRecord, SyncMessage};
use std::sync::Arc;
use std::time::Duration;

/// How long a token is good for when nobody says, in seconds.
const TOKEN_SECONDS: u64 = 3600;
/// How long the newcomer tries to reach the other nodes.
const GREETING: Duration = Duration::from_secs(5);

/// Makes a cluster of this node.
///
/// # Errors
/// When it is in one already.
pub(crate) async fn create(
    node: &Arc<Node>,
    request: ClusterCreate,
) -> Result<ClusterCreated, ApiError> {
    let _making = node.making.lock().await;
    let name = request.name.unwrap_or_else(|| CLUSTER_NAME.to_owned());
    let addresses = node.advertised();
    let made =
        node.cluster(move |state, now| state.create_cluster(Some(&name), &addresses, now)).await?;
    Ok(ClusterCreated { uuid: made.uuid.to_string(), name: made.name })
}

/// Makes a join token.
///
/// # Errors
/// When the node is in no cluster, or the address or time cannot be.
pub(crate) async fn token(
    node: &Arc<Node>,
    request: ClusterToken,
) -> Result<TokenCreated, ApiError> {
    let ttl = request.ttl_seconds.unwrap_or(TOKEN_SECONDS);
    let given = request.addr.map(|text| Address::parse(&text, Some(NODE_PORT))).transpose();
    let addresses: Vec<Address> = given.map_err(refuse::cluster)?.into_iter().collect();
    let token = node.cluster(move |state, now| state.issue_token(ttl, &addresses, now)).await?;
    let expires_unix_ms = token.expires.saturating_mul(1000);
    Ok(TokenCreated { token: token.reveal(), expires_unix_ms })
}

/// Joins a cluster by a token. Afterwards both sides, and all nodes that can be reached, know each
/// other.
///
/// # Errors
/// When the token is not good, its node is not reached, or this node is in a cluster already.
pub(crate) async fn join(node: &Arc<Node>, call: ClusterJoin) -> Result<ClusterStatus, ApiError> {
    let _making = node.making.lock().await;
    let token = JoinToken::parse(call.token.trim()).map_err(refuse::cluster)?;
    let addresses = node.advertised();
    let asked = token.clone();
    let body = node.cluster(move |state, _| state.join_request(&asked, &addresses)).await?;
    if call.dry_run {
        return try_to_join(node, &token).await;
    }
    let exchange = async {
        let issuers: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
        let (socket, to) = connect(&issuers, "that issued the token").await?;
        let stream = node.tls.connect_to_join(socket, token.issuer, &to).await;
        request::<_, _, JoinResponse>(stream.map_err(refuse::cluster)?, &to, JOIN, &body).await
    };
    phase("asking the node that issued the token");
    let response = tokio::time::timeout(CALL_TIMEOUT + GREETING, exchange).await;
    let response = response.unwrap_or_else(|_| {
        let message = "the cluster was not joined: the node that issued the token did not answer";
        Err(ApiError::new(ErrorCode::PeerNotReachable, message))
    })?;
    node.cluster(move |state, now| state.accept(&token, response, now)).await?;
    phase("telling the other nodes");
    sync_with_all(node, GREETING).await;
    status::cluster(node).ok_or_else(|| {
        ApiError::new(ErrorCode::Internal, "the cluster was joined, and is not there any more")
    })
}

/// Whether the node that issued a token answers, and is the one; the token is not used up. What it would
/// say to the token is not known.
async fn try_to_join(node: &Arc<Node>, token: &JoinToken) -> Result<ClusterStatus, ApiError> {
    phase("looking for the node that issued the token");
    let reach = async {
        let issuers: Vec<String> = token.addresses.iter().map(ToString::to_string).collect();
        let (socket, to) = connect(&issuers, "that issued the token").await?;
        let stream = node.tls.connect_to_join(socket, token.issuer, &to).await;
        stream.map(drop).map_err(refuse::cluster)
    };
    let reached = tokio::time::timeout(CALL_TIMEOUT, reach).await;
    reached.unwrap_or_else(|_| {
        let message =
            "the cluster cannot be joined: the node that issued the token does not answer";
        Err(ApiError::new(ErrorCode::PeerNotReachable, message))
    })?;
    would(&["asking the node that issued the token", "telling the other nodes"]);
    Ok(ClusterStatus { uuid: token.cluster.to_string(), ..ClusterStatus::default() })
}

/// Leaves the cluster. With force also when the others cannot be told, or resources are here.
///
/// # Errors
/// When that would not be good, and there is no force.
pub(crate) async fn leave(node: &Arc<Node>, call: ClusterLeave) -> Result<Done, ApiError> {
    let _making = node.making.lock().await;
    let force = call.force;
    let others = node.others();
    let message = node
        .cluster(move |state, now| {
            let records = state.plan_leave(force, now)?;
            let cluster = state.start_sync()?;
            Ok(SyncMessage { records, ..cluster })
        })
        .await?;
    if call.dry_run {
        for resource in node.resources() {
            need_closed(&resource, "cluster leave was refused").await?;
        }
        if !force {
            need_one(node, &others).await?;
        }
        would(&["telling the other nodes", "forgetting the cluster here"]);
        let message = format!("nothing was changed; node {} could leave the cluster", node.name);
        return Ok(Done::new(message));
    }
    for resource in node.resources() {
        // With force only: without it there are none. Nobody loses what is in use, though.
        release(node, &resource, "cluster leave was refused", false).await?;
    }
    phase("telling the other nodes");
    let mut told = others.is_empty();
    for other in &others {
        let call = SyncCall { version: version(), clock_ms: unix_ms(), message: message.clone() };
        let answer: Result<SyncAnswer, ApiError> =
            call_node(node, other, SYNC, &call, CALL_TIMEOUT).await;
        // One that does not know this node any more was told before.
        told |= answer.map_or_else(|error| error.code == ErrorCode::PeerRefused, |_| true);
    }
    if !told && !force {
        return Err(ApiError::new(
            ErrorCode::PeerNotReachable,
            format!("node {} did not leave the cluster: no other node was reached", node.name),
        )
        .hint("with --force it leaves without telling anybody"));
    }
    phase("forgetting the cluster here");
    for resource in node.resources() {
        retire(node, &resource).await;
    }
    node.cluster(|state, _| state.finish_leave()).await?;
    let whom = if told { "" } else { "; the others were not told" };
    Ok(Done::new(format!("node {} left the cluster{whom}", node.name)))
}

/// That another node is reached, if there is one.
async fn need_one(node: &Arc<Node>, others: &[NodeRecord]) -> Result<(), ApiError> {
    phase("looking for another node");
    if others.is_empty() || !sync_with_all(node, GREETING).await.is_empty() {
        return Ok(());
    }
    let message = format!("node {} cannot leave the cluster: no other node is reached", node.name);
    Err(ApiError::new(ErrorCode::PeerNotReachable, message)
        .hint("with --force it leaves without telling anybody"))
}

/// Removes a node that is gone for good.
///
/// # Errors
/// When it is alive, is not known, or there is no force.
pub(crate) async fn remove(node: &Arc<Node>, call: ClusterRemove) -> Result<Done, ApiError> {
    let found = node.view().records.node_named(&call.node);
    if let Some(found) = found.filter(|found| node.peers.health(found.uuid).alive) {
        let message = format!("node {} was not removed: it is alive", found.name);
        return Err(ApiError::new(ErrorCode::InUse, message)
            .hint(format!("run `holdfast cluster leave` on {}", found.name)));
    }
    if node.view().records.node_named(&call.node).is_none() && was_node(node, &call.node) {
        return Ok(Done::new(format!("node {} is not in the cluster any more", call.node)));
    }
    let (name, force) = (call.node.clone(), call.force);
    if call.dry_run {
        let found = node.cluster(move |state, _| state.check_removal(&name, force)).await?;
        let view = node.view();
        let parts = view.records.memberships(found.uuid);
        let parts = parts.iter().filter_map(|part| view.records.resource(part.resource));
        let parts: Vec<String> = parts.map(|resource| resource.name).collect();
        would(&["telling the other nodes"]);
        let with = match parts.is_empty() {
            true => String::new(),
            false => format!(", and with it its part in {}", parts.join(", ")),
        };
        let message = format!("nothing was changed; node {} could be removed{with}", found.name);
        return Ok(Done::new(message));
    }
    node.cluster(move |state, now| state.remove(&name, force, now)).await?;
    phase("telling the other nodes");
    peer_api::announce(node).await;
    Ok(Done::new(format!("node {} was removed from the cluster", call.node)))
}

/// Whether a node of this name left the cluster or was removed.
fn was_node(node: &Node, name: &str) -> bool {
    let view = node.view();
    let mut gone = view.records.of_kind("node").filter(|record| record.deleted);
    gone.any(|record| {
        let read: Option<NodeRecord> = serde_json::from_str(&record.value).ok();
        read.is_some_and(|node| node.name == name)
    })
}

/// The nodes.
///
/// # Errors
/// When the node is in no cluster.
pub(crate) fn show(node: &Node) -> Result<ClusterStatus, ApiError> {
    status::cluster(node).ok_or_else(|| {
        ApiError::new(
            ErrorCode::NoCluster,
            format!("the cluster is not shown: node {} is in none", node.name),
        )
        .hint("use `holdfast cluster create`, or `holdfast cluster join TOKEN`")
    })
}
