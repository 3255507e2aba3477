//! The status document, made of what the parts of the daemon know.

use crate::checksums;
use crate::guests;
use crate::health;
use crate::journaled::{JournalHandle, JournalView};
use crate::local::LocalSpare;
use crate::logpeer::{self, FollowView};
use crate::node::Node;
use crate::peers::version;
use crate::problems;
use crate::replacing::Replacing;
use crate::resource::{Resource, State};
use crate::resyncs;
use crate::shard::ResourceView;
use crate::spares::SparesView;
use crate::survey;
use holdfast_api::attachment::AttachmentStatus;
use holdfast_api::error::without_numbers;
use holdfast_api::options::Settings;
use holdfast_api::status::{
    ClusterNode, ClusterStatus, DiskStatus, IoStatus, JournalStatus, MAX_OPENERS, NodeStatus,
    PeerStatus, ResourceStatus, ResyncStatus, SpareStatus, UnreadableRange,
};
use holdfast_core::{PeerSnapshot, ResyncProgress, SurveyKind};
use holdfast_nbd::{NbdUri, PeerAddress};
use holdfast_store::{SpareFill, SpareInfo};
use holdfast_units::{
    BLOCK_SIZE, ByteRange, ConnectionState, DiskState, GenerationId, NodeId, ReplicationState, Role,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Everything that this node knows, with what is known of its attachments.
pub(crate) fn node(node: &Arc<Node>, attachments: Vec<AttachmentStatus>) -> NodeStatus {
    let mut resources: Vec<ResourceStatus> =
        node.resources().iter().map(|one| resource(node, one)).collect();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let cluster = cluster(node);
    let guests = guests::show(node);
    NodeStatus {
        version: version(),
        node: node.name.clone(),
        cluster,
        resources,
        attachments,
        guests,
    }
}

/// Asks the shards for the newest figures of all resources.
pub(crate) async fn refresh(node: &Arc<Node>) {
    for resource in node.resources() {
        health::look(node, &resource).await;
        if let Some(handle) = resource.handle() {
            handle.refresh().await;
        }
    }
}

/// The cluster; `None` when the node is in none.
pub(crate) fn cluster(node: &Node) -> Option<ClusterStatus> {
    let view = node.view();
    let membership = view.membership.as_ref()?;
    let mut nodes: Vec<ClusterNode> = view
        .records
        .nodes()
        .into_iter()
        .map(|record| {
            let address = record.addresses.first().cloned().unwrap_or_default();
            if record.uuid == node.uuid {
                return ClusterNode {
                    name: record.name,
                    address,
                    alive: true,
                    last_seen_seconds: 0,
                    version: version(),
                    clock_offset_seconds: Some(0.0),
                };
            }
            let health = node.peers.health(record.uuid);
            let silent = health.last_seen.map(|at| at.elapsed().as_secs());
            ClusterNode {
                name: record.name,
                address,
                alive: health.alive,
                last_seen_seconds: if health.alive { 0 } else { silent.unwrap_or(0) },
                version: health.version,
                clock_offset_seconds: health.clock_offset,
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let uuid = membership.uuid.to_string();
    Some(ClusterStatus {
        uuid,
        name: membership.name.clone(),
        nodes,
        problems: problems::of_cluster(node).into_iter().collect(),
    })
}

/// One resource.
pub(crate) fn resource(node: &Node, resource: &Resource) -> ResourceStatus {
    let cluster = node.view();
    let record = cluster.records.resource(resource.id);
    let names: BTreeMap<NodeId, String> = cluster
        .peers_of(resource.id, node.uuid)
        .into_iter()
        .map(|(slot, peer)| (slot, peer.name))
        .collect();
    let options = record.as_ref().map(|record| record.options.clone()).unwrap_or_default();
    let protocol = Settings::resolve(&options, None).protocol;
    let verify = survey::shown(node, resource, SurveyKind::Verify);
    let scrub = survey::shown(node, resource, SurveyKind::Scrub);
    let state = resource.state();
    let view = state.running.as_ref().map(|running| running.handle.snapshot());
    let snapshot = view.as_ref().map(|view| &view.snapshot);
    let mut peers: Vec<PeerStatus> = match snapshot {
        Some(snapshot) => snapshot
            .peers
            .iter()
            .map(|peer| {
                let name = names.get(&peer.node).cloned();
                let name = name.unwrap_or_else(|| format!("number-{}", peer.node));
                let serving =
                    state.serving.as_deref().filter(|serving| serving.is_guest(peer.node));
                if serving.is_some() && peer.connection != ConnectionState::Connected {
                    // It follows by the log until it is taken back.
                    return logpeer::peer_of_follower(name, peer.node, serving);
                }
                let resync_paused = resyncs::why(node, &state, peer, &name);
                let shown = peer_status(peer, name, &protocol, &state);
                PeerStatus { resync_paused, ..shown }
            })
            .collect(),
        None => names.values().map(|name| peer_of_down(name, &protocol)).collect(),
    };
    let following = state.following.as_ref().map(|following| following.view());
    if let Some(view) = &following {
        peers = logpeer::peers_of_leader(view, names.clone().into_iter());
    } else if snapshot.is_some() {
        let members = cluster.peers_of(resource.id, node.uuid);
        let own = cluster.follows_by_log(resource.id, node.uuid);
        let followers = members.into_values().filter(|peer| peer.log || own);
        let serving = state.serving.as_deref();
        peers.extend(followers.map(|peer| {
            let mut shown = logpeer::peer_of_follower(peer.name, peer.slot, serving);
            if state.local.disconnected.contains(&peer.uuid) {
                "StandAlone".clone_into(&mut shown.connection);
            }
            shown
        }));
    }
    for (slot, problem) in &state.apart {
        let peer = peers.iter_mut().find(|peer| names.get(slot) == Some(&peer.node));
        if let Some(peer) = peer.filter(|peer| peer.problem.is_none()) {
            peer.problem = Some(problem.clone());
        }
    }
    peers.sort_by(|a, b| a.node.cmp(&b.node));
    let name = state.local.name.clone();
    for problem in peers.iter_mut().filter_map(|peer| peer.problem.as_mut()) {
        problem.hint = problem.hint.replace(" NAME ", &format!(" {name} "));
    }
    let device = state.device.as_ref();
    let mut openers = openers(view.as_deref(), &state);
    let open_count = u32::try_from(openers.len()).unwrap_or(u32::MAX);
    openers.truncate(MAX_OPENERS);
    let agreed = record.map_or(0, |record| record.size_bytes);
    let size = match (&following, snapshot) {
        (Some(_), _) => state.local.size.unwrap_or(agreed),
        (None, Some(snapshot)) => snapshot.size,
        (None, None) => agreed,
    };
    let in_use = following.is_some() || snapshot.is_some();
    let healed = following.as_ref().and_then(|view| view.status.as_ref()).map(|s| &s.healed);
    let mut disk = DiskStatus {
        state: match &following {
            Some(view) => logpeer::disk_word(view),
            None => snapshot.map_or(DiskState::Diskless, |s| s.disk).as_str(),
        }
        .to_owned(),
        path: state.local.disk.as_ref().map(|disk| disk.path.display().to_string()),
        room_bytes: state.room.filter(|room| in_use && *room >= size + BLOCK_SIZE),
        io_errors: snapshot.map_or(0, |s| s.io_errors),
        healed_blocks: healed.map_or_else(|| snapshot.map_or(0, |s| s.healed_blocks), |h| h.healed),
        hedged_reads: snapshot.map_or(0, |s| s.hedged_reads),
        hedged_reads_won: snapshot.map_or(0, |s| s.hedged_reads_won),
        unreadable_blocks: healed
            .map_or_else(|| snapshot.map_or(0, |s| s.unreadable_blocks), |h| h.blocks),
        unreadable: match healed {
            Some(healed) => healed.first.iter().map(shown).collect(),
            None => snapshot.map_or_else(Vec::new, |s| s.unreadable.iter().map(shown).collect()),
        },
        problem: match &following {
            Some(view) => view.failure.as_deref().map(without_numbers),
            None => disk_problem(&state, view.as_deref()),
        },
        replacing: state.replacing.as_ref().map(Replacing::show),
        ..spares(&state, view.as_deref(), following.as_ref(), checksums::status(&state))
    };
    disk.health = health::show(node, &state, &disk);
    ResourceStatus {
        role: match &following {
            Some(_) => Role::Secondary,
            None => snapshot.map_or(Role::Unknown, |s| s.role),
        }
        .as_str()
        .to_owned(),
        size_bytes: size,
        suspended: Vec::new(),
        quorum: true,
        open_count,
        openers,
        device: device.map(|device| device.path.clone()),
        read_only: state.past.is_some(),
        resyncs_paused: state.local.sync_paused,
        device_kind: device.map(|device| device.kind.to_owned()),
        device_waits_seconds: (state.device_waits)
            .map(|until| until.saturating_duration_since(Instant::now()).as_secs()),
        nbd_uri: NbdUri::unix(node.settings.nbd_socket(), name.clone()).to_string(),
        disk,
        generation: snapshot.map_or(GenerationId::NONE, |s| s.generation).to_string(),
        promotable: match &following {
            Some(view) => logpeer::disk_word(view) == "UpToDate",
            None => snapshot.is_some_and(|s| s.promotable),
        },
        journal: journal(&state).map(|shown| match &following {
            Some(view) => logpeer::journal_of(view, shown),
            None => shown,
        }),
        io: view.as_deref().map(io),
        replay: following.as_ref().and_then(logpeer::replay_of),
        archive: state.archive.clone(),
        verify,
        scrub,
        peers,
        name,
    }
}

fn io(view: &ResourceView) -> IoStatus {
    IoStatus {
        reads: view.reads,
        read_bytes: view.read_bytes,
        writes: view.writes,
        written_bytes: view.written_bytes,
        flushes: view.flushes,
        under_way: u64::try_from(view.under_way).unwrap_or(u64::MAX),
        oldest_seconds: view.oldest.map_or(0.0, |(came, _)| came.elapsed().as_secs_f64()),
        oldest_op: view.oldest.map(|(_, op)| op.as_str().to_owned()),
    }
}

fn shown(range: &ByteRange) -> UnreadableRange {
    UnreadableRange { offset: range.offset, length: range.len }
}

/// The journal, as far as it can be seen: that of a resource that is down is empty here.
fn journal(state: &State) -> Option<JournalStatus> {
    let local = state.local.journal.as_ref()?;
    let running = state.running.as_ref();
    let view = running.and_then(|running| running.handle.journal()).map(JournalHandle::view);
    let of = |get: fn(&JournalView) -> u64| view.as_ref().map_or(0, get);
    Some(JournalStatus {
        head: of(|view| view.head.0),
        tail: of(|view| view.tail.0),
        bytes: of(|view| view.bytes),
        limit_bytes: view.as_ref().map_or(local.size, |view| view.limit_bytes),
        emergency: view.as_ref().is_some_and(|view| view.emergency),
        path: local.dir.display().to_string(),
        durable: of(|view| view.durable.0),
        written_back: of(|view| view.written_back.0),
        dirty_bytes: of(|view| view.dirty_bytes),
        needed_bytes: of(|view| view.figures.needed_bytes),
        budget_bytes: of(|view| view.figures.budget_bytes),
        warning_percent: state.space.level(),
        cuts: of(|view| view.figures.cuts),
        slowed_writes: of(|view| view.figures.slowed),
        compression: view.as_ref().map_or_else(String::new, |v| v.compression.as_str().to_owned()),
        payload_bytes: of(|view| view.figures.payload_bytes),
        stored_bytes: of(|view| view.figures.stored_bytes),
        syncs: of(|view| view.figures.syncs),
        sync_micros: of(|view| view.figures.sync_micros),
        longest_sync_micros: of(|view| view.figures.longest_sync_micros),
        problem: view.and_then(|view| view.problem.as_deref().map(without_numbers)),
    })
}

/// The spares of the disk: as they are while they are in use, otherwise where they are.
fn spares(
    state: &State,
    view: Option<&ResourceView>,
    following: Option<&FollowView>,
    of_checksums: DiskStatus,
) -> DiskStatus {
    let in_use = view.and_then(|view| view.spares.as_ref());
    let in_use = in_use.or_else(|| following.and_then(|view| view.spares.as_ref()));
    let Some(SparesView { stats, spares }) = in_use else {
        let known = state.local.disk.iter().flat_map(|disk| &disk.spares);
        let place = |spare: &LocalSpare| SpareStatus {
            path: spare.path().map(|path| path.display().to_string()),
            offset: spare.region_offset(),
            ..SpareStatus::default()
        };
        return DiskStatus { spares: known.map(place).collect(), ..of_checksums };
    };
    let one = |spare: &SpareInfo| SpareStatus {
        id: spare.id.to_string(),
        path: spare.path.as_ref().map(|path| path.display().to_string()),
        offset: spare.region.map(|range| range.offset),
        sectors: spare.slots,
        free: spare.free,
        remapped: spare.mapped,
        lost: spare.lost,
        bad: spare.bad_slots,
        leaving: spare.leaving,
    };
    DiskStatus {
        remapped_sectors: stats.mapped,
        spare_sectors_free: stats.free,
        spare_sectors: stats.slots,
        lost_sectors: stats.lost,
        spare_fill: Some(fill_word(stats.fill).to_owned()),
        spares: spares.iter().map(one).collect(),
        ..of_checksums
    }
}

/// One word for how full spares are.
const fn fill_word(fill: SpareFill) -> &'static str {
    match fill {
        SpareFill::Fine => "fine",
        SpareFill::Low => "low",
        SpareFill::Critical => "critical",
        SpareFill::Full => "full",
    }
}

/// Why the disk is not in use although it should be, and the way out.
fn disk_problem(state: &State, view: Option<&ResourceView>) -> Option<String> {
    if state.trouble.is_some() {
        return state.trouble.clone();
    }
    let view = view.filter(|view| view.snapshot.disk <= DiskState::Failed)?;
    let failure = view.failure.as_ref()?;
    let name = &state.local.name;
    let what = without_numbers(&failure.what);
    Some(if failure.full {
        format!("{what}; make room there, then `holdfast attach-disk {name}`")
    } else {
        format!("{what}; replace it, or `holdfast attach-disk {name}` when it is well again")
    })
}

/// Who has a resource open: users of the local device, and NBD clients other than that device.
fn openers(view: Option<&ResourceView>, state: &State) -> Vec<String> {
    let mut openers = state.device.as_ref().map_or_else(Vec::new, |device| device.openers.clone());
    let mut clients = view.map_or_else(Vec::new, nbd_clients);
    clients.extend(state.past.iter().flat_map(|past| logpeer::past::clients(past)));
    openers.extend(clients.iter().map(|client| format!("NBD client {client}")));
    openers
}

/// The NBD clients of a resource that are not its local device, in words.
pub(crate) fn nbd_clients(view: &ResourceView) -> Vec<String> {
    strangers(&view.openers)
}

/// Those of the clients that are not this process, in words.
pub(crate) fn strangers(clients: &[PeerAddress]) -> Vec<String> {
    let own = i32::try_from(std::process::id()).ok();
    let is_own = |opener: &PeerAddress| match opener {
        PeerAddress::Unix { pid, .. } => pid.is_some() && *pid == own,
        PeerAddress::Tcp(_) => false,
    };
    clients.iter().filter(|opener| !is_own(opener)).map(ToString::to_string).collect()
}

fn peer_status(peer: &PeerSnapshot, node: String, protocol: &str, state: &State) -> PeerStatus {
    let shown = |resync: ResyncProgress| {
        let rate = state.rates.get(&peer.node);
        let rate = rate.map_or(0, |meter| meter.rate(Instant::now(), resync.done));
        let left = resync.total.saturating_sub(resync.done);
        ResyncStatus {
            percent: percent(resync.done, resync.total),
            bytes_done: resync.done,
            bytes_total: resync.total,
            rate_bytes_per_second: rate,
            eta_seconds: left.checked_div(rate).unwrap_or(0),
        }
    };
    PeerStatus {
        node,
        connection: peer.connection.as_str().to_owned(),
        role: peer.role.as_str().to_owned(),
        disk: peer.disk.as_str().to_owned(),
        replication: peer.replication.as_str().to_owned(),
        protocol: protocol.to_owned(),
        out_of_sync_bytes: peer.out_of_sync,
        pending_requests: peer.pending,
        tls: peer.connection == ConnectionState::Connected,
        resync: peer.resync.map(shown),
        resync_paused: None,
        verify: peer.verify.map(shown),
        sent_bytes: peer.sent + peer.resync_sent,
        received_bytes: peer.received + peer.resync_received,
        resync_sent_bytes: peer.resync_sent,
        resync_received_bytes: peer.resync_received,
        replay: None,
        problem: state
            .problems
            .get(&peer.node)
            .filter(|_| peer.connection != ConnectionState::Connected)
            .map(|problem| problem.what.clone()),
    }
}

fn peer_of_down(name: &str, protocol: &str) -> PeerStatus {
    PeerStatus {
        node: name.to_owned(),
        connection: ConnectionState::Unconnected.as_str().to_owned(),
        role: Role::Unknown.as_str().to_owned(),
        disk: DiskState::DUnknown.as_str().to_owned(),
        replication: ReplicationState::Off.as_str().to_owned(),
        protocol: protocol.to_owned(),
        ..PeerStatus::default()
    }
}

/// With two digits.
pub(crate) fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        return 100.0;
    }
    let hundredths = u128::from(done.min(total)) * 10_000 / u128::from(total);
    f64::from(u32::try_from(hundredths).unwrap_or(10_000)) / 100.0
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn percent_has_two_digits_and_ends_at_a_hundred() {
        let same = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(same(percent(1, 3), 33.33));
        assert!(same(percent(5, 0), 100.0));
        assert!(same(percent(7, 3), 100.0));
        assert!(same(percent(u64::MAX / 2, u64::MAX), 49.99));
    }
}
