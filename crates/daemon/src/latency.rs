//! `/v1/latency`: what the shards have timed, with the names of the peers.

use crate::node::Node;
use crate::resource::Resource;
use crate::shard::{Spread, Spreads, StageOp};
use holdfast_api::latency::{BUCKET_BOUNDS_MICROS, Latency, ResourceLatency, StageLatency};
use holdfast_units::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Asks the shards. A resource that is down, or does not answer within a second, is left out.
pub(crate) async fn of_node(node: &Arc<Node>) -> Latency {
    let mut resources = Vec::new();
    for resource in node.resources() {
        resources.extend(of_resource(node, &resource).await);
    }
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let bounds_seconds = BUCKET_BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).collect();
    Latency { bounds_seconds, resources }
}

async fn of_resource(node: &Node, resource: &Resource) -> Option<ResourceLatency> {
    let times = resource.handle()?.stage_times().await?;
    let members = node.view().peers_of(resource.id, node.uuid);
    let names: BTreeMap<NodeId, String> =
        members.into_iter().map(|(slot, peer)| (slot, peer.name)).collect();
    let mut stages = Vec::new();
    push(&mut stages, "client", None, &times.client);
    if let Some(disk) = &times.disk {
        push(&mut stages, "disk", None, disk);
    }
    for (peer, spreads) in &times.peers {
        // One that is no member any more has no name, and nobody asks for it.
        if let Some(name) = names.get(peer) {
            push(&mut stages, "peer", Some(name), spreads);
        }
    }
    Some(ResourceLatency { name: resource.name(), stages })
}

fn push(stages: &mut Vec<StageLatency>, stage: &str, peer: Option<&String>, spreads: &Spreads) {
    let shown = |(op, spread): (StageOp, &Spread)| {
        let count = spread.count();
        (count > 0).then(|| StageLatency {
            stage: stage.to_owned(),
            peer: peer.cloned(),
            op: op.as_str().to_owned(),
            count,
            sum_seconds: spread.sum_nanos as f64 / 1e9,
            buckets: spread.buckets.to_vec(),
        })
    };
    stages.extend(StageOp::ALL.into_iter().zip(spreads).filter_map(shown));
}
