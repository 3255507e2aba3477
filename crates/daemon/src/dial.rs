//! Makes the data links that a resource wants. Of two nodes the one with the higher number dials;
//! the other one waits for it.

use crate::node::{Node, PeerMember};
use crate::opening::{Opening, open_link};
use crate::peer_api::{AboutResource, DIAL};
use crate::peers::{CALL_TIMEOUT, call_node, connect};
use crate::resource::Resource;
use crate::shard::{LinkOrigin, ResourceHandle};
use crate::task::Task;
use holdfast_api::options::Settings;
use holdfast_api::request::Done;
use holdfast_cluster::Purpose;
use holdfast_units::{NodeId, PeerSet, ResourceId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long one attempt may take in all.
const ATTEMPT: Duration = Duration::from_secs(15);
/// A link that stood so long was a good one: when it is lost, the next attempt is made at once.
const STOOD: Duration = Duration::from_secs(3);

/// Dials for a resource until it is closed.
pub(crate) async fn run(node: Arc<Node>, resource: Arc<Resource>, handle: ResourceHandle) {
    ask_to_dial(&node, resource.id);
    let (dial_now, resource) = (Arc::clone(&resource), resource.id);
    let mut wanted = handle.wanted_links();
    let mut view = node.watch_view();
    let mut dialling: BTreeMap<NodeId, Task> = BTreeMap::new();
    let mut last: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        let set: PeerSet = *wanted.borrow_and_update();
        let cluster = Arc::clone(&view.borrow_and_update());
        let own = cluster.slot_of(resource, node.uuid);
        let peers = cluster.core_peers_of(resource, node.uuid);
        dialling.retain(|peer, task| {
            let keep = set.contains(*peer) && !task.is_finished();
            if !keep {
                last.insert(*peer, Instant::now());
            }
            keep
        });
        for peer in peers.into_values() {
            let Some(own) = own.filter(|own| *own > peer.slot) else { continue };
            if !set.contains(peer.slot) || dialling.contains_key(&peer.slot) {
                continue;
            }
            let soon = last.get(&peer.slot).is_none_or(|at| at.elapsed() > STOOD);
            let slot = peer.slot;
            let opening = Opening { resource, from: own, to: slot };
            let task = dial(Arc::clone(&node), handle.clone(), peer, opening, soon);
            dialling.insert(slot, Task::spawn(task));
        }
        let changed = tokio::select! {
            changed = wanted.changed() => changed,
            changed = view.changed() => {
                // Addresses may be others now: who waits for the next attempt tries at once.
                dialling.clear();
                last.clear();
                changed
            }
            () = dial_now.dial_now.notified() => {
                dialling.clear();
                last.clear();
                Ok(())
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Asks the peers that dial this node not to wait with their next attempt: it has just become
/// ready for them. Who is not reached finds out by itself.
pub(crate) fn ask_to_dial(node: &Arc<Node>, resource: ResourceId) {
    let view = node.view();
    let Some(own) = view.slot_of(resource, node.uuid) else { return };
    for peer in view.core_peers_of(resource, node.uuid).into_values().filter(|peer| peer.slot > own)
    {
        let Some(record) = view.records.node(peer.uuid) else { continue };
        let node = Arc::clone(node);
        tokio::spawn(async move {
            let call = AboutResource { resource };
            let ask = call_node::<_, Done>(&node, &record, DIAL, &call, CALL_TIMEOUT);
            tokio::select! {
                asked = ask => if let Err(error) = asked {
                    tracing::debug!(peer = record.name, "{}", error.message);
                },
                () = node.stopped() => {}
            }
        });
    }
}

async fn dial(
    node: Arc<Node>,
    handle: ResourceHandle,
    peer: PeerMember,
    opening: Opening,
    soon: bool,
) {
    let mut first = soon;
    loop {
        if !std::mem::take(&mut first) {
            tokio::time::sleep(pause(&node, opening.resource, &peer)).await;
        }
        let attempt = tokio::time::timeout(ATTEMPT, attempt(&node, &handle, &peer, &opening));
        match attempt.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                tracing::debug!(resource = handle.name(), peer = peer.name, why, "no link");
            }
            Err(_) => {
                tracing::debug!(resource = handle.name(), peer = peer.name, "no link in time");
            }
        }
    }
}

async fn attempt(
    node: &Node,
    handle: &ResourceHandle,
    peer: &PeerMember,
    opening: &Opening,
) -> Result<(), String> {
    let (socket, to) = connect(&peer.addresses, &peer.name).await.map_err(|e| e.message)?;
    let mut stream = node
        .tls
        .connect(socket, Purpose::Data, peer.uuid, &to)
        .await
        .map_err(|refusal| refusal.message)?;
    let opened = open_link(&mut stream, opening).await;
    opened.map_err(|error| holdfast_cluster::explain(&error, &to).message)??;
    handle.add_link(peer.slot, LinkOrigin::Dialled, Box::new(stream));
    Ok(())
}

/// `connect-int`, a quarter more or less, so that nodes do not dial in step.
fn pause(node: &Node, resource: ResourceId, peer: &PeerMember) -> Duration {
    let records = &node.view().records;
    let options = records.resource(resource).map(|record| record.options).unwrap_or_default();
    let own = records.pair_options(resource, node.uuid, peer.uuid).options;
    let interval = Settings::resolve(&options, Some(&own)).connect_int;
    // Without random numbers all nodes pause equally long, which is no harm.
    let jitter = getrandom::u32().unwrap_or(u32::MAX / 2) % 512;
    interval * (768 + jitter) / 1024
}
