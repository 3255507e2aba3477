//! The peers of resources.

use super::resource::of;
use super::{Families, Kind, Row, n, ratio, with, yes};
use holdfast_api::status::{NodeStatus, PeerStatus, ResyncStatus};

const OF_PEER: [Row<PeerStatus>; 8] = [
    ("holdfast_out_of_sync_bytes", Kind::Gauge, "Data that differ or may differ.", |p| {
        n(p.out_of_sync_bytes)
    }),
    ("holdfast_pending_requests", Kind::Gauge, "Requests that the peer has not answered.", |p| {
        n(p.pending_requests)
    }),
    ("holdfast_connected", Kind::Gauge, "Whether the peer is connected.", |p| {
        yes(p.connection == "Connected")
    }),
    ("holdfast_peer_tls", Kind::Gauge, "Whether the connection is encrypted.", |p| yes(p.tls)),
    ("holdfast_sent_bytes_total", Kind::Counter, "Payload sent to the peer.", |p| n(p.sent_bytes)),
    ("holdfast_received_bytes_total", Kind::Counter, "Payload received from the peer.", |p| {
        n(p.received_bytes)
    }),
    ("holdfast_resync_sent_bytes_total", Kind::Counter, "Payload of resyncs sent.", |p| {
        n(p.resync_sent_bytes)
    }),
    ("holdfast_resync_received_bytes_total", Kind::Counter, "Payload of resyncs received.", |p| {
        n(p.resync_received_bytes)
    }),
];

/// Of what is running between the two.
const OF_RESYNC: [Row<ResyncStatus>; 4] = [
    ("holdfast_resync_done_bytes", Kind::Gauge, "What the running resync has done.", |r| {
        n(r.bytes_done)
    }),
    ("holdfast_resync_size_bytes", Kind::Gauge, "What the running resync has to do.", |r| {
        n(r.bytes_total)
    }),
    ("holdfast_resync_rate_bytes_per_second", Kind::Gauge, "How fast it goes.", |r| {
        n(r.rate_bytes_per_second)
    }),
    (
        "holdfast_resync_eta_seconds",
        Kind::Gauge,
        "How long it takes from now on; 0 when that is not known.",
        |r| n(r.eta_seconds),
    ),
];

/// The same of a verify.
const OF_VERIFY: [Row<ResyncStatus>; 3] = [
    ("holdfast_peer_verify_ratio", Kind::Gauge, "The part that is compared with the peer.", |r| {
        ratio(r.percent)
    }),
    ("holdfast_peer_verify_rate_bytes_per_second", Kind::Gauge, "How fast that goes.", |r| {
        n(r.rate_bytes_per_second)
    }),
    (
        "holdfast_peer_verify_eta_seconds",
        Kind::Gauge,
        "How long it takes from now on; 0 when that is not known.",
        |r| n(r.eta_seconds),
    ),
];

type Word = (&'static str, &'static str, &'static str, fn(&PeerStatus) -> &str);

const WORDS: [Word; 5] = [
    ("holdfast_connection_state", "state", "The connection, 1 for its state.", |p| &p.connection),
    ("holdfast_replication_state", "state", "Replication, 1 for its state.", |p| &p.replication),
    ("holdfast_peer_disk_state", "state", "The peer's disk, 1 for its state.", |p| &p.disk),
    ("holdfast_peer_role", "state", "The peer's role, 1 for the one that it has.", |p| &p.role),
    ("holdfast_peer_protocol", "protocol", "How writes travel to the peer, 1 for the way.", |p| {
        &p.protocol
    }),
];

pub(super) fn add(all: &mut Families, status: &NodeStatus) {
    let peers = status
        .resources
        .iter()
        .flat_map(|r| r.peers.iter().map(move |peer| (with(&of(r), "peer", &peer.node), peer)));
    all.table(&OF_PEER, peers.clone());
    for (name, key, help, word) in WORDS {
        all.info(name, help, peers.clone().map(|(labels, p)| with(&labels, key, word(p))));
    }
    all.info(
        "holdfast_peer_problem",
        "Why there is no connection to a peer, 1 for the reason.",
        peers
            .clone()
            .filter_map(|(labels, p)| Some(with(&labels, "code", &p.problem.as_ref()?.code))),
    );
    // Without a resync nothing is left to do: an alert can wait for it.
    all.put(
        "holdfast_resync_left_bytes",
        Kind::Gauge,
        "What the running resync has still to do; 0 when there is none.",
        peers.clone().map(|(labels, p)| {
            let left = p.resync.as_ref().map_or(0, |r| r.bytes_total.saturating_sub(r.bytes_done));
            (labels, left as f64)
        }),
    );
    let resyncs = peers.clone().filter_map(|(labels, p)| Some((labels, p.resync.as_ref()?)));
    all.table(&OF_RESYNC, resyncs);
    let verifies = peers.filter_map(|(labels, p)| Some((labels, p.verify.as_ref()?)));
    all.table(&OF_VERIFY, verifies);
}
