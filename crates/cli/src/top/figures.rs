//! What `top` shows: the differences of two looks at a node.

use crate::args::Sort;
use holdfast_api::latency::{Latency, StageLatency, quantile};
use holdfast_api::status::{IoStatus, NodeStatus, PeerStatus, ResourceStatus, ResyncStatus};
use serde::Serialize;
use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// What a daemon said at a moment.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) status: NodeStatus,
    pub(super) latency: Latency,
}

/// A node between two looks.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Figures {
    pub(super) node: String,
    /// The time between the two looks.
    pub(super) seconds: f64,
    pub(super) nodes_alive: usize,
    pub(super) nodes: usize,
    pub(super) problems: Vec<String>,
    pub(super) resources: Vec<Row>,
}

/// A resource.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) device: Option<String>,
    pub(super) role: String,
    pub(super) disk: String,
    pub(super) peers_connected: usize,
    pub(super) reads_per_second: f64,
    pub(super) writes_per_second: f64,
    pub(super) read_bytes_per_second: f64,
    pub(super) write_bytes_per_second: f64,
    /// 99 of 100 requests of clients took no longer; `None` when there were none.
    pub(super) p99_seconds: Option<f64>,
    /// What the peer that lacks most lacks, or what this node has not replayed.
    pub(super) behind_bytes: u64,
    /// For how long that has been so, with a log peer.
    pub(super) lag_seconds: f64,
    pub(super) peers: Vec<Peer>,
    pub(super) stages: Vec<Stage>,
}

/// A peer of a resource.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Peer {
    pub(super) node: String,
    pub(super) role: String,
    pub(super) disk: String,
    pub(super) connection: String,
    pub(super) replication: String,
    pub(super) protocol: String,
    pub(super) behind_bytes: u64,
    pub(super) lag_seconds: f64,
    pub(super) sent_bytes_per_second: f64,
    pub(super) received_bytes_per_second: f64,
    pub(super) pending_requests: u64,
    pub(super) resync: Option<ResyncStatus>,
}

/// One operation at one stage.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Stage {
    pub(super) stage: String,
    pub(super) peer: Option<String>,
    pub(super) op: String,
    pub(super) per_second: f64,
    pub(super) mean_seconds: f64,
    pub(super) p50_seconds: f64,
    pub(super) p99_seconds: f64,
}

/// How fast a number grew. A number below the one before began anew.
fn rate(now: u64, before: u64, over: f64) -> f64 {
    let grown = if now < before { now } else { now - before };
    grown as f64 / over
}

impl Figures {
    /// What lies between two looks.
    pub(super) fn between(before: &Look, now: &Look) -> Self {
        let over = now.at.saturating_duration_since(before.at);
        let over = over.max(Duration::from_millis(1)).as_secs_f64();
        let resources = now.status.resources.iter().map(|resource| {
            let old = before.status.resources.iter().find(|old| old.name == resource.name);
            row(resource, old.unwrap_or(resource), (&before.latency, &now.latency), over)
        });
        let nodes = now.status.cluster.iter().flat_map(|cluster| &cluster.nodes);
        Self {
            node: now.status.node.clone(),
            seconds: over,
            nodes_alive: nodes.clone().filter(|node| node.alive).count(),
            nodes: nodes.count(),
            problems: now.status.cluster.iter().flat_map(|one| one.problems.clone()).collect(),
            resources: resources.collect(),
        }
    }

    pub(super) fn sort(&mut self, by: Sort) {
        let key = |row: &Row| match by {
            Sort::Name => 0.0,
            Sort::Iops => row.reads_per_second + row.writes_per_second,
            Sort::Throughput => row.read_bytes_per_second + row.write_bytes_per_second,
            Sort::Latency => row.p99_seconds.unwrap_or(-1.0),
            Sort::Behind => row.behind_bytes as f64,
        };
        let larger = |a: &Row, b: &Row| key(b).partial_cmp(&key(a)).unwrap_or(Ordering::Equal);
        self.resources.sort_by(|a, b| larger(a, b).then_with(|| a.name.cmp(&b.name)));
    }
}

fn row(
    resource: &ResourceStatus,
    before: &ResourceStatus,
    latency: (&Latency, &Latency),
    over: f64,
) -> Row {
    let (io, io_before) = (io_of(resource), io_of(before));
    let grown = |of: fn(&IoStatus) -> u64| rate(of(&io), of(&io_before), over);
    let stages = stages_of(&resource.name, latency);
    let mut clients: Vec<u64> = Vec::new();
    for stage in stages.iter().filter(|stage| stage.stage == "client") {
        clients.resize(stage.buckets.len().max(clients.len()), 0);
        clients.iter_mut().zip(&stage.buckets).for_each(|(sum, bucket)| *sum += bucket);
    }
    let peers: Vec<Peer> = resource
        .peers
        .iter()
        .map(|now| {
            let old = before.peers.iter().find(|old| old.node == now.node);
            peer(now, old.unwrap_or(now), over)
        })
        .collect();
    let own = resource.replay.as_ref();
    let lags = peers.iter().map(|peer| peer.lag_seconds).chain(own.map(|own| own.lag_seconds));
    let behind = peers.iter().map(|peer| peer.behind_bytes).chain(own.map(|own| own.lag_bytes));
    Row {
        name: resource.name.clone(),
        size_bytes: resource.size_bytes,
        device: resource.device.clone(),
        role: resource.role.clone(),
        disk: resource.disk.state.clone(),
        peers_connected: peers.iter().filter(|peer| peer.connection == "Connected").count(),
        reads_per_second: grown(|io| io.reads),
        writes_per_second: grown(|io| io.writes),
        read_bytes_per_second: grown(|io| io.read_bytes),
        write_bytes_per_second: grown(|io| io.written_bytes),
        p99_seconds: quantile(&clients, 0.99),
        behind_bytes: behind.max().unwrap_or(0),
        lag_seconds: lags.fold(0.0, f64::max),
        peers,
        stages: stages.iter().filter(|stage| stage.count > 0).map(|one| shown(one, over)).collect(),
    }
}

fn io_of(resource: &ResourceStatus) -> IoStatus {
    resource.io.clone().unwrap_or_default()
}

fn peer(now: &PeerStatus, before: &PeerStatus, over: f64) -> Peer {
    let replay = now.replay.as_ref();
    Peer {
        node: now.node.clone(),
        role: now.role.clone(),
        disk: now.disk.clone(),
        connection: now.connection.clone(),
        replication: now.replication.clone(),
        protocol: now.protocol.clone(),
        behind_bytes: now.out_of_sync_bytes.max(replay.map_or(0, |replay| replay.lag_bytes)),
        lag_seconds: replay.map_or(0.0, |replay| replay.lag_seconds),
        sent_bytes_per_second: rate(now.sent_bytes, before.sent_bytes, over),
        received_bytes_per_second: rate(now.received_bytes, before.received_bytes, over),
        pending_requests: now.pending_requests,
        resync: now.resync.clone(),
    }
}

/// What came at each stage of a resource between the two.
fn stages_of(name: &str, (before, now): (&Latency, &Latency)) -> Vec<StageLatency> {
    let of = |latency: &Latency| -> Vec<StageLatency> {
        let found = latency.resources.iter().find(|resource| resource.name == name);
        found.map(|resource| resource.stages.clone()).unwrap_or_default()
    };
    let old = of(before);
    let since = |stage: StageLatency| match old.iter().find(|old| stage.is_of(old)) {
        Some(old) => stage.since(old),
        None => stage,
    };
    of(now).into_iter().map(since).collect()
}

fn shown(stage: &StageLatency, over: f64) -> Stage {
    Stage {
        stage: stage.stage.clone(),
        peer: stage.peer.clone(),
        op: stage.op.clone(),
        per_second: stage.count as f64 / over,
        mean_seconds: stage.sum_seconds / stage.count.max(1) as f64,
        p50_seconds: quantile(&stage.buckets, 0.5).unwrap_or(0.0),
        p99_seconds: quantile(&stage.buckets, 0.99).unwrap_or(0.0),
    }
}
