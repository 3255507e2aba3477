//! What a person has to put right, in words: records that do not fit together, peers that cannot be
//! connected.

use crate::events::unix_ms;
use crate::health;
use crate::logpeer;
use crate::node::Node;
use crate::peers::REMOVED;
use crate::resource::Problem;
use crate::space;
use crate::spares;
use holdfast_api::status::PeerProblem;
use holdfast_cluster::{Key, Records, Trouble, Uuid};
use holdfast_core::{Notice, Snapshot};
use holdfast_units::{ConnectionState, NodeId, ResourceId};
use std::collections::{BTreeMap, BTreeSet};

/// After so many milliseconds a split that is not decided is one.
const SPLIT_MS: u64 = 30_000;

/// A sentence for each problem of the cluster as this node sees it, with the way out; none when all
/// is well.
pub(crate) fn of_cluster(node: &Node) -> BTreeSet<String> {
    let view = node.view();
    let records = &view.records;
    // How far a clock is ahead changes with every look; it is told with the records' nodes.
    let found = view.conflicts().iter().map(|trouble| sentence(records, trouble));
    let others = node.others().into_iter().filter(|other| node.peers.health(other.uuid).refuses);
    let refusing = others.map(|other| {
        let name = other.name;
        format!("node {name} refuses this node: it does not know its certificate; {REMOVED}")
    });
    let damaged = node.damaged().into_iter().map(|file| {
        let name = file.id.and_then(|id| records.resource(id)).map(|record| record.name);
        match name {
            Some(name) => format!(
                "resource {name} is left out on this node: {}; `holdfast leave {name}` gives this \
                 node's part in it up (the data stay on the disk), then it can join again",
                file.problem
            ),
            None => format!("a resource is left out on this node: {}", file.problem),
        }
    });
    let left_out = node.resources().into_iter().flat_map(|resource| {
        let state = resource.state();
        let left_out = state.no_room.values().chain(&state.growth_trouble);
        let left_out = left_out.chain(&state.rename_trouble).cloned();
        let following = state.following.as_ref();
        let unkept = following.and_then(|following| logpeer::unkept(&following.view()));
        let unkept = unkept.map(|why| format!("resource {}: {why}", state.local.name));
        left_out.chain(spares::problems(&state)).chain(unkept).collect::<Vec<_>>()
    });
    let split = late_split(node);
    let space = space::problems(node);
    let health = health::problems(node);
    let found = found.chain(refusing).chain(damaged).chain(left_out).chain(split).chain(space);
    found.chain(health).collect()
}

/// A split that was begun a while ago and is not decided.
fn late_split(node: &Node) -> Option<String> {
    let view = node.view();
    let cluster = view.membership.as_ref()?;
    let (fate, split) = view.records.planned_split(cluster.uuid)?;
    let begun = view.records.version(&Key::cluster(fate.uuid))?.stamp.ms;
    (unix_ms().saturating_sub(begun) > SPLIT_MS).then(|| {
        let names = split.names().join(" ");
        format!(
            "a split of the cluster was begun and is not decided: `holdfast cluster split {names}` \
             goes on, `holdfast cluster split --cancel` takes it back"
        )
    })
}

/// Whether another resource has the name of this one and keeps it; the nodes that have that one.
pub(crate) fn name_is_lost(node: &Node, resource: ResourceId) -> Option<String> {
    let view = node.view();
    view.conflicts().iter().find_map(|trouble| match trouble {
        Trouble::ResourceNameTwice { keeps, loses, .. } if *loses == resource => {
            Some(members(&view.records, *keeps))
        }
        _ => None,
    })
}

fn sentence(records: &Records, trouble: &Trouble) -> String {
    match trouble {
        Trouble::ResourceNameTwice { name, keeps, loses } => format!(
            "two resources have the name {name}: the one of {} was the first; on {} run \
             `holdfast rename {name} NEW`",
            members(records, *keeps),
            members(records, *loses)
        ),
        Trouble::SlotTwice { resource, keeps, loses, .. } => {
            let record = records.resource(*resource);
            let name = record.map_or_else(|| resource.to_string(), |record| record.name);
            format!(
                "two nodes joined resource {name} apart and have the same number in it: {0} keeps \
                 it; on {1} run `holdfast leave {name}` and join again",
                node_name(records, *keeps),
                node_name(records, *loses)
            )
        }
        Trouble::NodeNameTwice { .. } | Trouble::Unreadable { .. } | Trouble::ClockAhead { .. } => {
            trouble.to_string()
        }
    }
}

fn members(records: &Records, resource: ResourceId) -> String {
    let members = records.members(resource);
    let mut names: Vec<String> = members.iter().map(|m| node_name(records, m.node)).collect();
    names.sort();
    if names.is_empty() { "no node".to_owned() } else { names.join(", ") }
}

fn node_name(records: &Records, node: Uuid) -> String {
    records.node(node).map_or_else(|| node.to_string(), |record| record.name)
}

/// Why a peer is not connected, if that is what a notice of the core says, and the way out.
pub(crate) fn of_notice(notice: &Notice, resource: &str) -> Option<(NodeId, PeerProblem)> {
    let again = format!("`holdfast connect {resource}` tries again");
    let victim = format!(
        "on the node whose changes are to be given up run `holdfast secondary {resource}` if it is \
         Primary, then `holdfast connect {resource} --discard-my-data`; on the other one run \
         `holdfast connect {resource}`"
    );
    let (peer, code, message, hint) = match notice {
        Notice::SplitBrain(peer) => {
            let what = "split brain: both nodes wrote apart";
            (peer, "SPLIT_BRAIN", what.to_owned(), victim)
        }
        Notice::UnrelatedData(peer) => {
            let what =
                "not connected: the data of the two nodes have nothing to do with each other";
            (peer, "UNRELATED_DATA", what.to_owned(), victim)
        }
        Notice::TwoPrimaries(peer) => {
            let what = "not connected: both nodes are Primary";
            (peer, "TWO_PRIMARIES", what.to_owned(), victim)
        }
        Notice::PeerRefused(peer, why) => {
            (peer, "PEER_REFUSED", format!("not connected: {why}"), again)
        }
        Notice::ProtocolError(peer, why) => {
            let hint = "it is tried again; check that both nodes run versions of Holdfast that \
                        work together";
            (peer, "PROTOCOL_ERROR", format!("protocol error: {why}"), hint.to_owned())
        }
        Notice::SizesDiffer { peer, theirs, ours } => {
            let message = format!(
                "not connected: the resource has {theirs} bytes there and {ours} bytes here"
            );
            let hint = format!(
                "the smaller of the two grows by itself as soon as its disk is large enough; \
                 `holdfast status {resource}` on that node says what is in the way"
            );
            (peer, "SIZES_DIFFER", message, hint)
        }
        Notice::DiskFailed
        | Notice::Grown(_)
        | Notice::SurveyEnded(..)
        | Notice::Healed(_)
        | Notice::Unreadable { .. }
        | Notice::PeerDiskFailed(_)
        | Notice::PeerTimeout(_)
        | Notice::ResyncStarted(..)
        | Notice::ResyncFinished(..)
        | Notice::MetaDamaged(_) => return None,
    };
    Some((*peer, PeerProblem { code: code.to_owned(), message, hint }))
}

/// Forgets the problems of peers that are connected again.
pub(crate) fn forget_solved(problems: &mut BTreeMap<NodeId, Problem>, snapshot: &Snapshot) {
    problems.retain(|peer, problem| {
        let Some(peer) = snapshot.peers.iter().find(|p| p.node == *peer) else { return false };
        let connected = peer.connection == ConnectionState::Connected;
        problem.seen_apart |= !connected;
        // Until the end of the connection is seen, it is the old one.
        !(connected && problem.seen_apart)
    });
}
