//! `/metrics`: the status document as Prometheus text.

mod health;
mod journal;

use holdfast_api::attachment::{AttachmentConnection, AttachmentStatus};
use holdfast_api::status::{
    ArchiveStatus, DiskReplacing, JournalStatus, NodeStatus, PeerStatus, ReplayStatus,
    ResourceStatus,
};
use holdfast_api::survey::SurveyReport;
use journal::OF_JOURNAL;
use std::fmt::Write;
use std::time::Duration;

/// One metric: its name, kind and help, and its lines.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: Vec<(String, u64)>,
}

/// The text.
pub(crate) fn text(status: &NodeStatus) -> String {
    let mut out = String::new();
    let mut put =
        |name, kind, help, lines| write_metric(&mut out, &Metric { name, kind, help, lines });
    let version = labels(&[("version", &status.version), ("node", &status.node)]);
    put("holdfast_info", "gauge", "The daemon that answers.", vec![(version, 1)]);
    let nodes = status.cluster.iter().flat_map(|cluster| &cluster.nodes);
    let alive = nodes.map(|n| (labels(&[("node", &n.name)]), u64::from(n.alive))).collect();
    put("holdfast_node_alive", "gauge", "Whether a node of the cluster answers.", alive);
    let problems = status.cluster.as_ref().map_or(0, |cluster| cluster.problems.len());
    let problems = vec![(labels(&[("node", &status.node)]), problems as u64)];
    put(
        "holdfast_problems",
        "gauge",
        "What a person must put right, as this node sees it.",
        problems,
    );
    for (name, kind, help, value) in OF_RESOURCE {
        let lines = status
            .resources
            .iter()
            .map(|resource| (labels(&[("resource", &resource.name)]), value(resource)))
            .collect();
        put(name, kind, help, lines);
    }
    for (name, kind, help, value) in OF_SPARES {
        let with = status.resources.iter().filter(|r| r.disk.spare_fill.is_some());
        let line = |r: &ResourceStatus| (labels(&[("resource", &r.name)]), value(r));
        put(name, kind, help, with.map(line).collect());
    }
    put("holdfast_role", "gauge", "This node's role, 1 for the one that it has.", {
        let role =
            |r: &ResourceStatus| vec![("resource", r.name.clone()), ("role", r.role.clone())];
        words(status, role)
    });
    put("holdfast_disk_state", "gauge", "This node's disk, 1 for the state that it is in.", {
        let disk = |r: &ResourceStatus| {
            vec![("resource", r.name.clone()), ("state", r.disk.state.clone())]
        };
        words(status, disk)
    });
    for Metric { name, kind, help, lines } in health::of(status) {
        put(name, kind, help, lines);
    }
    for (name, kind, help, value) in OF_JOURNAL {
        let journals = status.resources.iter().filter_map(|r| Some((r, r.journal.as_ref()?)));
        let line = |(r, j): (&ResourceStatus, &JournalStatus)| {
            (labels(&[("resource", &r.name)]), value(j))
        };
        put(name, kind, help, journals.map(line).collect());
    }
    for (name, kind, help, value) in OF_REPLAY {
        // This node's own lag has no peer, that of a peer has its name.
        let own = status.resources.iter().filter_map(|r| Some((r, None, r.replay.as_ref()?)));
        let theirs = peers(status).filter_map(|(r, p)| Some((r, Some(p), p.replay.as_ref()?)));
        let line = |(r, p, replay): (&ResourceStatus, Option<&PeerStatus>, &ReplayStatus)| {
            let peer = p.map(|p| ("peer", p.node.as_str()));
            let list: Vec<_> = [("resource", r.name.as_str())].into_iter().chain(peer).collect();
            (labels(&list), value(replay))
        };
        put(name, kind, help, own.chain(theirs).map(line).collect());
    }
    for (name, kind, help, value) in OF_REPLACING {
        let moves = status.resources.iter().filter_map(|r| Some((r, r.disk.replacing.as_ref()?)));
        let line = |(r, new): (&ResourceStatus, &DiskReplacing)| {
            (labels(&[("resource", &r.name)]), value(new))
        };
        put(name, kind, help, moves.map(line).collect());
    }
    for (name, kind, help, value) in OF_ARCHIVE {
        let archives = status.resources.iter().filter_map(|r| Some((r, r.archive.as_ref()?)));
        let line = |(r, a): (&ResourceStatus, &ArchiveStatus)| {
            (labels(&[("resource", &r.name)]), value(a))
        };
        put(name, kind, help, archives.map(line).collect());
    }
    for (name, kind, help, value) in OF_SURVEY {
        let runs = status.resources.iter().flat_map(|r| {
            let both = [("verify", &r.verify), ("scrub", &r.scrub)];
            both.into_iter().filter_map(move |(what, run)| Some((r, what, run.as_ref()?)))
        });
        let line = |(r, what, run): (&ResourceStatus, &str, &SurveyReport)| {
            (labels(&[("resource", &r.name), ("kind", what)]), value(run))
        };
        put(name, kind, help, runs.map(line).collect());
    }
    for (name, kind, help, value) in OF_PEER {
        let lines = peers(status).map(|(r, p)| (peer_labels(r, p, None), value(p))).collect();
        put(name, kind, help, lines);
    }
    for (name, help, word) in WORDS_OF_PEER {
        let lines =
            peers(status).map(|(r, p)| (peer_labels(r, p, Some(("state", word(p)))), 1)).collect();
        put(name, "gauge", help, lines);
    }
    for (name, kind, help, value) in OF_ATTACHMENT {
        let line = |a: &AttachmentStatus| (labels(&[("attachment", &a.name)]), value(a));
        let lines = status.attachments.iter().map(line).collect();
        put(name, kind, help, lines);
    }
    out
}

type OfAttachment = (&'static str, &'static str, &'static str, fn(&AttachmentStatus) -> u64);

const OF_ATTACHMENT: [OfAttachment; 8] = [
    ("holdfast_attachment_connected", "gauge", "Whether the server answers.", |a| {
        u64::from(a.state == "Connected")
    }),
    ("holdfast_attachment_pending_requests", "gauge", "Requests that are not over.", |a| {
        a.pending_requests
    }),
    ("holdfast_attachment_read_bytes_total", "counter", "Bytes read from servers.", |a| {
        connections(a).map(|one| one.read_bytes).sum()
    }),
    ("holdfast_attachment_written_bytes_total", "counter", "Bytes written to servers.", |a| {
        connections(a).map(|one| one.written_bytes).sum()
    }),
    ("holdfast_attachment_errors_total", "counter", "Requests answered with an error.", |a| {
        connections(a).map(|one| one.errors).sum()
    }),
    ("holdfast_attachment_reconnects_total", "counter", "Connections made again.", |a| {
        connections(a).map(|one| one.reconnects).sum()
    }),
    ("holdfast_attachment_outages_total", "counter", "Losses of all connections.", |a| {
        a.legs.iter().map(|leg| leg.outages).sum()
    }),
    ("holdfast_attachment_missing_bytes", "gauge", "What servers of a mirror lack.", |a| {
        a.legs.iter().map(|leg| leg.missing_bytes).sum()
    }),
];

fn connections(attachment: &AttachmentStatus) -> impl Iterator<Item = &AttachmentConnection> {
    attachment.legs.iter().flat_map(|leg| &leg.connections)
}

type OfResource = (&'static str, &'static str, &'static str, fn(&ResourceStatus) -> u64);
type OfPeer = (&'static str, &'static str, &'static str, fn(&PeerStatus) -> u64);
type WordOfPeer = (&'static str, &'static str, fn(&PeerStatus) -> &str);

const OF_RESOURCE: [OfResource; 8] = [
    ("holdfast_size_bytes", "gauge", "The size of a resource.", |r| r.size_bytes),
    ("holdfast_open_count", "gauge", "Clients that have it open here.", |r| {
        u64::from(r.open_count)
    }),
    ("holdfast_promotable", "gauge", "Whether primary would succeed here.", |r| {
        u64::from(r.promotable)
    }),
    ("holdfast_disk_io_errors_total", "counter", "Disk errors since the start.", |r| {
        r.disk.io_errors
    }),
    (
        "holdfast_disk_healed_blocks_total",
        "counter",
        "Blocks that could not be read and were repaired from a peer since the start.",
        |r| r.disk.healed_blocks,
    ),
    (
        "holdfast_disk_unreadable_blocks",
        "gauge",
        "Blocks of which there is no good copy on the disk.",
        |r| r.disk.unreadable_blocks,
    ),
    (
        "holdfast_disk_checksum_errors_total",
        "counter",
        "Blocks that were read and did not fit their checksum, since the disk was opened.",
        |r| r.disk.checksum_errors,
    ),
    (
        "holdfast_disk_checksums_percent",
        "gauge",
        "How much of the disk has checksums, in percent.",
        |r| u64::from(r.disk.checksums_percent),
    ),
];

type OfReplacing = (&'static str, &'static str, &'static str, fn(&DiskReplacing) -> u64);

const OF_REPLACING: [OfReplacing; 4] = [
    ("holdfast_replacing_bytes", "gauge", "What a new disk gets before it is used.", |new| {
        new.bytes_total
    }),
    ("holdfast_replacing_done_bytes", "gauge", "How much of it was copied.", |new| new.bytes_done),
    ("holdfast_replacing_unreadable_blocks", "gauge", "Blocks the old disk cannot read.", |new| {
        new.unreadable_blocks
    }),
    ("holdfast_replacing_failed", "gauge", "Whether a new disk could not be used.", |new| {
        u64::from(new.state == "failed")
    }),
];

/// Of disks with spares for bad sectors, in blocks of 4096 bytes.
const OF_SPARES: [OfResource; 5] = [
    ("holdfast_remapped_sectors", "gauge", "Blocks of the disk that live in a spare.", |r| {
        r.disk.remapped_sectors
    }),
    ("holdfast_lost_sectors", "gauge", "Blocks of the disk that have no good copy here.", |r| {
        r.disk.lost_sectors
    }),
    ("holdfast_spare_sectors", "gauge", "Blocks for which the spares were made.", |r| {
        r.disk.spare_sectors
    }),
    ("holdfast_spare_sectors_free", "gauge", "Blocks for which they have room.", |r| {
        r.disk.spare_sectors_free
    }),
    ("holdfast_spare_sectors_bad", "gauge", "Slots of the spares that failed.", |r| {
        r.disk.spares.iter().map(|spare| spare.bad).sum()
    }),
];

type OfSurvey = (&'static str, &'static str, &'static str, fn(&SurveyReport) -> u64);

const OF_SURVEY: [OfSurvey; 7] = [
    ("holdfast_survey_running", "gauge", "Whether a verify or scrub goes on.", |run| {
        u64::from(run.ended_unix_ms.is_none())
    }),
    (
        "holdfast_survey_read_bytes",
        "gauge",
        "What the last verify or scrub has read here.",
        |run| run.bytes_done,
    ),
    ("holdfast_survey_total_bytes", "gauge", "What it has to read here.", |run| run.bytes_total),
    ("holdfast_survey_differing_blocks", "gauge", "Blocks that it found to differ.", |run| {
        run.differing_blocks
    }),
    ("holdfast_survey_repaired_blocks", "gauge", "Those of them that it repaired.", |run| {
        run.repaired_blocks
    }),
    ("holdfast_survey_unreadable_blocks", "gauge", "Blocks that it could not read here.", |run| {
        run.unreadable_blocks
    }),
    (
        "holdfast_survey_ended_timestamp_seconds",
        "gauge",
        "When the last verify or scrub ended; 0 while it goes on.",
        |run| run.ended_unix_ms.unwrap_or(0) / 1000,
    ),
];

type OfReplay = (&'static str, &'static str, &'static str, fn(&ReplayStatus) -> u64);

const OF_REPLAY: [OfReplay; 11] = [
    ("holdfast_log_head", "gauge", "The end of the Primary's journal, as far as is known.", |r| {
        r.head
    }),
    ("holdfast_log_fetched", "gauge", "What lies before is in the log peer's journal.", |r| {
        r.fetched
    }),
    ("holdfast_log_replayed", "gauge", "What lies before is on the log peer's disk.", |r| {
        r.replayed
    }),
    ("holdfast_log_fetch_lag_bytes", "gauge", "What is not fetched yet.", |r| {
        r.head.saturating_sub(r.fetched)
    }),
    ("holdfast_log_lag_bytes", "gauge", "What is not replayed yet.", |r| r.lag_bytes),
    ("holdfast_log_lag_milliseconds", "gauge", "For how long that has been there.", |r| {
        u64::try_from(Duration::from_secs_f64(r.lag_seconds.clamp(0.0, 1e9)).as_millis())
            .unwrap_or(u64::MAX)
    }),
    ("holdfast_log_fetch_bytes_per_second", "gauge", "How fast the journal comes.", |r| {
        r.fetch_bytes_per_second
    }),
    ("holdfast_log_replay_bytes_per_second", "gauge", "How fast it is replayed.", |r| {
        r.replay_bytes_per_second
    }),
    ("holdfast_log_fetch_paused", "gauge", "Whether fetching is paused.", |r| {
        u64::from(r.paused.iter().any(|what| what == "fetch"))
    }),
    ("holdfast_log_replay_paused", "gauge", "Whether replaying is paused.", |r| {
        u64::from(r.paused.iter().any(|what| what == "replay"))
    }),
    ("holdfast_log_stalled", "gauge", "Whether something keeps it from getting on.", |r| {
        u64::from(r.problem.is_some())
    }),
];

type OfArchive = (&'static str, &'static str, &'static str, fn(&ArchiveStatus) -> u64);

const OF_ARCHIVE: [OfArchive; 5] = [
    ("holdfast_archive_position", "gauge", "What lies before is archived.", |a| a.position),
    (
        "holdfast_archive_complete_milliseconds",
        "gauge",
        "What was completed until then is archived, since 1970; 0: nothing is.",
        |a| a.complete_unix_ms,
    ),
    (
        "holdfast_archive_oldest_milliseconds",
        "gauge",
        "The oldest moment that can be restored, since 1970; 0: none can.",
        |a| a.oldest_unix_ms,
    ),
    ("holdfast_archive_making_base", "gauge", "Whether a base image is being made.", |a| {
        u64::from(a.base_percent.is_some())
    }),
    ("holdfast_archive_failed", "gauge", "Whether nothing is archived at present.", |a| {
        u64::from(a.problem.is_some())
    }),
];

const OF_PEER: [OfPeer; 8] = [
    ("holdfast_out_of_sync_bytes", "gauge", "Data that differ or may differ.", |p| {
        p.out_of_sync_bytes
    }),
    ("holdfast_pending_requests", "gauge", "Requests that the peer has not answered.", |p| {
        p.pending_requests
    }),
    ("holdfast_connected", "gauge", "Whether the peer is connected.", |p| {
        u64::from(p.connection == "Connected")
    }),
    ("holdfast_sent_bytes_total", "counter", "Payload sent to the peer.", |p| p.sent_bytes),
    ("holdfast_received_bytes_total", "counter", "Payload received from the peer.", |p| {
        p.received_bytes
    }),
    ("holdfast_resync_sent_bytes_total", "counter", "Payload of resyncs sent.", |p| {
        p.resync_sent_bytes
    }),
    ("holdfast_resync_received_bytes_total", "counter", "Payload of resyncs received.", |p| {
        p.resync_received_bytes
    }),
    ("holdfast_resync_left_bytes", "gauge", "What the running resync has to do.", |p| {
        p.resync.as_ref().map_or(0, |r| r.bytes_total.saturating_sub(r.bytes_done))
    }),
];

const WORDS_OF_PEER: [WordOfPeer; 4] = [
    ("holdfast_connection_state", "The connection, 1 for its state.", |p| &p.connection),
    ("holdfast_replication_state", "Replication, 1 for its state.", |p| &p.replication),
    ("holdfast_peer_disk_state", "The peer's disk, 1 for its state.", |p| &p.disk),
    ("holdfast_peer_role", "The peer's role, 1 for the one that it has.", |p| &p.role),
];

fn words(
    status: &NodeStatus,
    of: impl Fn(&ResourceStatus) -> Vec<(&'static str, String)>,
) -> Vec<(String, u64)> {
    let line = |resource| {
        let list = of(resource);
        let list: Vec<(&str, &str)> = list.iter().map(|(k, v)| (*k, v.as_str())).collect();
        (labels(&list), 1)
    };
    status.resources.iter().map(line).collect()
}

fn peers(status: &NodeStatus) -> impl Iterator<Item = (&ResourceStatus, &PeerStatus)> {
    status.resources.iter().flat_map(|r| r.peers.iter().map(move |p| (r, p)))
}

fn peer_labels(r: &ResourceStatus, p: &PeerStatus, word: Option<(&str, &str)>) -> String {
    let mut list = vec![("resource", r.name.as_str()), ("peer", p.node.as_str())];
    list.extend(word);
    labels(&list)
}

/// `{a="b"}`, the values escaped as the format wants it.
fn labels(list: &[(&str, &str)]) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let list: Vec<String> =
        list.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
    format!("{{{}}}", list.join(","))
}

fn write_metric(out: &mut String, metric: &Metric) {
    let Metric { name, kind, help, lines } = metric;
    // Writing into a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in lines {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::attachment::AttachmentLeg;

    #[test]
    fn every_line_is_a_comment_or_a_number_with_labels() {
        let mut status = NodeStatus {
            node: "al\"pha".into(),
            resources: vec![ResourceStatus {
                name: "r0".into(),
                role: "Primary".into(),
                peers: vec![PeerStatus {
                    node: "beta".into(),
                    connection: "Connected".into(),
                    out_of_sync_bytes: 4096,
                    replay: Some(ReplayStatus {
                        head: 9000,
                        fetched: 8000,
                        lag_seconds: 2.5,
                        paused: vec!["replay".into()],
                        ..ReplayStatus::default()
                    }),
                    ..PeerStatus::default()
                }],
                archive: Some(ArchiveStatus {
                    position: 77,
                    problem: Some("no room".into()),
                    ..ArchiveStatus::default()
                }),
                ..ResourceStatus::default()
            }],
            ..NodeStatus::default()
        };
        let leg = AttachmentLeg {
            connections: vec![
                AttachmentConnection { read_bytes: 3, ..AttachmentConnection::default() },
                AttachmentConnection { read_bytes: 4, ..AttachmentConnection::default() },
            ],
            ..AttachmentLeg::default()
        };
        let attachment = AttachmentStatus {
            name: "d1".into(),
            state: "Connected".into(),
            legs: vec![leg],
            ..AttachmentStatus::default()
        };
        status.attachments.push(attachment);
        let text = text(&status);
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("holdfast_") && name.ends_with('}'), "{line}");
            value.parse::<u64>().unwrap();
        }
        for line in [
            "holdfast_info{version=\"\",node=\"al\\\"pha\"} 1",
            "holdfast_role{resource=\"r0\",role=\"Primary\"} 1",
            "holdfast_out_of_sync_bytes{resource=\"r0\",peer=\"beta\"} 4096",
            "holdfast_connected{resource=\"r0\",peer=\"beta\"} 1",
            "holdfast_log_fetch_lag_bytes{resource=\"r0\",peer=\"beta\"} 1000",
            "holdfast_log_lag_milliseconds{resource=\"r0\",peer=\"beta\"} 2500",
            "holdfast_log_replay_paused{resource=\"r0\",peer=\"beta\"} 1",
            "holdfast_archive_position{resource=\"r0\"} 77",
            "holdfast_archive_failed{resource=\"r0\"} 1",
            "holdfast_attachment_connected{attachment=\"d1\"} 1",
            "holdfast_attachment_read_bytes_total{attachment=\"d1\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
