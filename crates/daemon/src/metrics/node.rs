//! The node, its cluster, and what it only watches.

use super::{Families, Kind, Row, label, n, with, yes};
use holdfast_api::status::{ClusterNode, GuestMember, GuestStatus, NodeStatus};

const OF_NODE: [Row<ClusterNode>; 3] = [
    ("holdfast_node_alive", Kind::Gauge, "Whether a node of the cluster answers.", |node| {
        yes(node.alive)
    }),
    (
        "holdfast_node_silent_seconds",
        Kind::Gauge,
        "For how long a node of the cluster has not been heard of; 0 while it answers.",
        |node| n(node.last_seen_seconds),
    ),
    (
        "holdfast_node_clock_offset_seconds",
        Kind::Gauge,
        "How far the clock of a node of the cluster is ahead of this node's.",
        |node| node.clock_offset_seconds,
    ),
];

const OF_GUEST: [Row<GuestStatus>; 1] = [(
    "holdfast_guest_size_bytes",
    Kind::Gauge,
    "The size of a resource that this node only watches.",
    |guest| n(guest.size_bytes),
)];

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let own = with(&label("node", &status.node), "version", &status.version);
    all.info("holdfast_info", "The daemon that answers.", [own].into_iter());
    let cluster = status.cluster.iter();
    all.info(
        "holdfast_cluster_info",
        "The cluster that this node belongs to.",
        cluster.clone().map(|one| with(&label("cluster", &one.name), "uuid", &one.uuid)),
    );
    all.put(
        "holdfast_problems",
        Kind::Gauge,
        "What a person must put right, as this node sees it.",
        [(
            label("node", &status.node),
            cluster.clone().map(|cluster| cluster.problems.len()).sum::<usize>() as f64,
        )]
        .into_iter(),
    );
    let nodes = cluster.flat_map(|cluster| &cluster.nodes);
    all.table(&OF_NODE, nodes.clone().map(|node| (label("node", &node.name), node)));
    all.info(
        "holdfast_node_info",
        "The version of the daemon of each node of the cluster.",
        nodes.map(|node| with(&label("node", &node.name), "version", &node.version)),
    );
    let guests = status.guests.iter();
    all.table(&OF_GUEST, guests.clone().map(|guest| (label("resource", &guest.name), guest)));
    let members = guests.flat_map(|guest| {
        let of = |member: &GuestMember| with(&label("resource", &guest.name), "node", &member.node);
        guest.members.iter().map(move |member| (of(member), member))
    });
    all.put(
        "holdfast_guest_member_alive",
        Kind::Gauge,
        "Whether a member of a resource that this node only watches answers.",
        members.clone().map(|(labels, member)| (labels, f64::from(u8::from(member.alive)))),
    );
    all.info(
        "holdfast_guest_member_role",
        "The role of such a member, 1 for the one that it has.",
        members.clone().map(|(labels, member)| with(&labels, "role", &member.role)),
    );
    all.info(
        "holdfast_guest_member_disk_state",
        "The disk of such a member, 1 for the state that it is in.",
        members.map(|(labels, member)| with(&labels, "state", &member.disk)),
    );
}
