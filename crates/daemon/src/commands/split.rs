//! `cluster split`: some nodes become a cluster of their own, while everything runs.

use super::merge::need_all;
use crate::events::unix_ms;
use crate::node::Node;
use crate::peer_api::{SYNC, SyncAnswer, SyncCall, announce};
use crate::peers::{CALL_TIMEOUT, call_node, sync_with_all, version};
use crate::phases::{phase, would};
use holdfast_api::request::{ClusterSplit, Done};
use holdfast_api::{ApiError, ErrorCode};
use holdfast_cluster::{ClusterRecord, NodeRecord, SplitPlan, SyncMessage};
use std::sync::Arc;
use std::time::Duration;

/// How long the nodes may take to have the same records.
const GREETING: Duration = Duration::from_secs(5);

/// Splits the cluster. Repeated after it was interrupted, it goes on where it was.
///
/// # Errors
/// When a resource has members in both parts, or a node is not reached.
pub(crate) async fn split(node: &Arc<Node>, call: ClusterSplit) -> Result<Done, ApiError> {
    let _making = node.making.lock().await;
    if call.cancel {
        return cancel(node, &call).await;
    }
    let (nodes, name) = (call.nodes, call.name);
    let wanted = nodes.clone();
    if let Some(done) = done_before(node, &nodes) {
        return Ok(done);
    }
    phase("checking that all nodes are in reach");
    need_all(node, false, "split").await?;
    phase("checking that no resource has members in both parts");
    if call.dry_run {
        let plan =
            node.cluster(move |state, _| state.check_split(&wanted, name.as_deref())).await?;
        let fate = match plan {
            SplitPlan::Planned(fate) => fate,
            SplitPlan::Done(fate) => return Ok(told(&fate, "is a cluster of its own already")),
        };
        would(&["having every node take note of it", "deciding it", "carrying it out here"]);
        let names = fate.split.as_ref().map(|split| split.names().join(", ")).unwrap_or_default();
        let message =
            format!("nothing was changed; {names} could become the cluster {}", fate.name);
        return Ok(Done::new(message));
    }
    let plan =
        node.cluster(move |state, now| state.plan_split(&wanted, name.as_deref(), now)).await?;
    let fate = match plan {
        SplitPlan::Planned(fate) => fate,
        SplitPlan::Done(fate) => return Ok(told(&fate, "is a cluster of its own already")),
    };
    phase("having every node take note of it");
    note_everywhere(node).await?;
    phase("deciding it");
    let uuid = fate.uuid;
    let decided = node.cluster(move |state, now| state.decide_split(uuid, now)).await?;
    let message = node.cluster(|state, _| state.start_sync()).await?;
    let message = SyncMessage { records: vec![decided.clone()], ..message };
    let goes =
        |other: &NodeRecord| fate.split.as_ref().is_some_and(|split| split.takes(other.uuid));
    let own_goes = fate.split.as_ref().is_some_and(|split| split.takes(node.uuid));
    let (ours, theirs): (Vec<_>, Vec<_>) =
        node.others().into_iter().partition(|other| goes(other) == own_goes);
    // Once this node has carried it out it cannot speak to the other part any more.
    let mut missing = tell(node, theirs, &message).await;
    phase("carrying it out here");
    missing.extend(tell(node, ours, &message).await);
    node.cluster(move |state, now| state.merge(vec![decided], now)).await?;
    announce(node).await;
    if !missing.is_empty() {
        phase(format!("not reached, they follow by themselves: {}", missing.join(", ")));
    }
    Ok(told(&fate, "is a cluster of its own now"))
}

fn told(fate: &ClusterRecord, what: &str) -> Done {
    let names = fate.split.as_ref().map(|split| split.names().join(", ")).unwrap_or_default();
    Done::new(format!("{} ({names}) {what}: {}", fate.name, fate.uuid))
}

/// A split of these nodes that was carried out before: nobody of the other part is asked.
fn done_before(node: &Node, nodes: &[String]) -> Option<Done> {
    let view = node.view();
    let cluster = view.membership.as_ref()?.uuid;
    let mut wanted = nodes.to_vec();
    wanted.sort();
    wanted.dedup();
    let fate = view.records.split_before(&wanted, cluster)?;
    Some(told(&fate, "is a cluster of its own already"))
}

/// Has every node know of the plan; takes it back when that does not succeed.
async fn note_everywhere(node: &Arc<Node>) -> Result<(), ApiError> {
    let reached = sync_with_all(node, GREETING).await;
    let others = node.others().into_iter().map(|other| other.name);
    let missing: Vec<String> = others.filter(|name| !reached.contains(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Nobody has heard that it was decided, for it was not.
    node.cluster(holdfast_cluster::ClusterState::cancel_split).await?;
    announce(node).await;
    let message =
        format!("the cluster was not split: these nodes were not reached: {}", missing.join(", "));
    Err(ApiError::new(ErrorCode::PeerNotReachable, message)
        .hint("repeat it when their daemons are in reach"))
}

async fn tell(node: &Arc<Node>, whom: Vec<NodeRecord>, message: &SyncMessage) -> Vec<String> {
    let mut tasks = tokio::task::JoinSet::new();
    for other in whom {
        let (node, message) = (Arc::clone(node), message.clone());
        tasks.spawn(async move {
            let call = SyncCall { version: version(), clock_ms: unix_ms(), message };
            let answer: Result<SyncAnswer, ApiError> =
                call_node(&node, &other, SYNC, &call, CALL_TIMEOUT).await;
            answer.err().map(|_| other.name)
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

async fn cancel(node: &Arc<Node>, call: &ClusterSplit) -> Result<Done, ApiError> {
    if !call.nodes.is_empty() || call.name.is_some() {
        let message = "the split was not taken back: --cancel takes no nodes and no name";
        return Err(ApiError::new(ErrorCode::InvalidRequest, message));
    }
    phase("checking that no node has carried it out");
    need_all(node, false, "kept together").await?;
    if call.dry_run {
        let message = "nothing was changed; all nodes that could have carried a split out are here";
        return Ok(Done::new(message));
    }
    let fate = node.cluster(holdfast_cluster::ClusterState::cancel_split).await?;
    announce(node).await;
    Ok(Done::new(format!("the split of {} was taken back", fate.name)))
}
