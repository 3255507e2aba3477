//! The text of a status document in which everything is set.

use super::*;
use holdfast_api::attachment::{AttachmentConnection, AttachmentLeg, AttachmentStatus};
use holdfast_api::health::{
    DiskErrors, DiskHealth, DiskLatency, HealthReason, HotRegion, SmartAttribute, SmartStatus,
};
use holdfast_api::latency::{BUCKET_BOUNDS_MICROS, ResourceLatency, StageLatency};
use holdfast_api::status::{
    ArchiveStatus, ClusterNode, ClusterStatus, DiskReplacing, DiskStatus, GuestMember, GuestStatus,
    IoStatus, JournalStatus, PeerProblem, PeerStatus, ReplayStatus, ResourceStatus, ResyncStatus,
    SpareStatus, UnreadableRange,
};
use holdfast_api::survey::{SurveyPlace, SurveyReport};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

fn disk() -> DiskStatus {
    let smart = SmartStatus {
        device: "/dev/sda".into(),
        passed: Some(true),
        temperature_celsius: Some(-3),
        power_on_hours: Some(7),
        attributes: vec![SmartAttribute { id: Some(5), ..SmartAttribute::default() }],
        read_unix_ms: 1,
        problem: Some("p".into()),
        ..SmartStatus::default()
    };
    let health = DiskHealth {
        reasons: vec![HealthReason::default()],
        errors: DiskErrors { read: 3, ..DiskErrors::default() },
        last_error_unix_ms: Some(1500),
        counted_since_unix_ms: 1,
        latency: vec![DiskLatency { kind: "read".into(), p99_micros: 1500, ..Default::default() }],
        oldest_pending_micros: 2_500_000,
        hot_regions: vec![HotRegion::default()],
        smart: vec![smart],
        ..DiskHealth::default()
    };
    DiskStatus {
        state: "UpToDate".into(),
        path: Some("/d".into()),
        checksums: "on".into(),
        checksums_percent: 50,
        checksums_problem: Some("p".into()),
        unreadable: vec![UnreadableRange::default()],
        spare_sectors: 9,
        hedged_reads: 4,
        hedged_reads_won: 2,
        lost_sectors: 1,
        spare_fill: Some("fine".into()),
        spares: vec![SpareStatus {
            path: Some("/s".into()),
            offset: Some(1),
            bad: 4,
            ..SpareStatus::default()
        }],
        problem: Some("p".into()),
        replacing: Some(DiskReplacing { problem: Some("p".into()), ..DiskReplacing::default() }),
        health: Some(health),
        ..DiskStatus::default()
    }
}

fn full() -> NodeStatus {
    let replay = ReplayStatus {
        head: 9000,
        fetched: 8000,
        lag_seconds: 2.5,
        paused: vec!["replay".into()],
        problem: Some("p".into()),
        ..ReplayStatus::default()
    };
    let peer = PeerStatus {
        node: "beta".into(),
        connection: "Connected".into(),
        out_of_sync_bytes: 4096,
        resync: Some(ResyncStatus { bytes_total: 10, bytes_done: 4, ..ResyncStatus::default() }),
        verify: Some(ResyncStatus { percent: 25.0, ..ResyncStatus::default() }),
        replay: Some(replay.clone()),
        problem: Some(PeerProblem { code: "SPLIT_BRAIN".into(), ..PeerProblem::default() }),
        ..PeerStatus::default()
    };
    let run = SurveyReport {
        reason: Some("r".into()),
        started_unix_ms: 1,
        ended_unix_ms: Some(2500),
        peers: vec!["beta".into()],
        places: vec![SurveyPlace::default()],
        ..SurveyReport::default()
    };
    let resource = ResourceStatus {
        name: "r0".into(),
        role: "Primary".into(),
        suspended: vec!["no-quorum".into()],
        openers: vec!["mounted at /mnt".into()],
        device: Some("/dev/holdfast/r0".into()),
        device_kind: Some("ublk".into()),
        device_waits_seconds: Some(3),
        disk: disk(),
        journal: Some(JournalStatus {
            sync_micros: 1_500_000,
            warning_percent: 80,
            compression: "lz4".into(),
            problem: Some("p".into()),
            ..JournalStatus::default()
        }),
        archive: Some(ArchiveStatus {
            position: 77,
            complete_unix_ms: 1234,
            oldest_unix_ms: 1,
            base_percent: Some(5.0),
            problem: Some("no room".into()),
            ..ArchiveStatus::default()
        }),
        verify: Some(run.clone()),
        scrub: Some(run),
        resyncs_paused: true,
        io: Some(IoStatus { reads: 5, oldest_op: Some("write".into()), ..IoStatus::default() }),
        replay: Some(replay),
        peers: vec![peer],
        ..ResourceStatus::default()
    };
    let connection = |read_bytes| AttachmentConnection {
        read_bytes,
        state: "Live".into(),
        live_seconds: Some(1.0),
        last_error: Some("e".into()),
        ..AttachmentConnection::default()
    };
    let leg = AttachmentLeg {
        last_error: Some("e".into()),
        connections: vec![connection(3), connection(4)],
        ..AttachmentLeg::default()
    };
    let attachment = AttachmentStatus {
        name: "d1".into(),
        state: "Connected".into(),
        mirror: true,
        device: Some("/dev/holdfast/d1".into()),
        device_kind: Some("nbd".into()),
        uris: vec!["nbd://h/x".into()],
        io_timeout_seconds: Some(60.0),
        problem: Some("p".into()),
        legs: vec![leg],
        ..AttachmentStatus::default()
    };
    let node = ClusterNode {
        name: "beta".into(),
        clock_offset_seconds: Some(-0.5),
        ..ClusterNode::default()
    };
    NodeStatus {
        version: "1".into(),
        node: "al\"pha".into(),
        cluster: Some(ClusterStatus {
            nodes: vec![node],
            problems: vec!["one".into(), "two".into()],
            ..ClusterStatus::default()
        }),
        resources: vec![resource],
        attachments: vec![attachment],
        guests: vec![GuestStatus {
            name: "g".into(),
            members: vec![GuestMember { problem: Some("p".into()), ..GuestMember::default() }],
            ..GuestStatus::default()
        }],
    }
}

fn latency() -> Latency {
    let mut buckets = vec![0; BUCKET_BOUNDS_MICROS.len() + 1];
    (buckets[0], buckets[6], buckets[19]) = (2, 3, 1);
    let stage = |stage: &str, peer: Option<&str>| StageLatency {
        stage: stage.into(),
        peer: peer.map(str::to_owned),
        op: "write".into(),
        count: 6,
        sum_seconds: 20.5,
        buckets: buckets.clone(),
    };
    let stages = vec![stage("client", None), stage("disk", None), stage("peer", Some("beta"))];
    let resources = vec![ResourceLatency { name: "r0".into(), stages }];
    Latency { resources, ..Latency::default() }
}

/// The path of each value that is neither a list nor an object.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            leaves(value, &format!("{path}{dot}{key}"), found);
        }),
        Value::Array(items) => {
            assert!(!items.is_empty(), "{path} is empty: nobody sees what it would hold");
            items.iter().for_each(|item| leaves(item, &format!("{path}[]"), found));
        }
        Value::Null => panic!("{path} is null: nobody sees what it would hold"),
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn each_field_of_the_status_is_told_or_it_is_said_why_not() {
    let status = full();
    let mut found = BTreeSet::new();
    leaves(&serde_json::to_value(&status).unwrap(), "", &mut found);
    let table: BTreeMap<&str, Told> = STATUS_FIELDS.iter().copied().collect();
    assert_eq!(table.len(), STATUS_FIELDS.len(), "no path is there twice");
    let known: BTreeSet<String> = table.keys().map(|path| (*path).to_owned()).collect();
    let missing: Vec<_> = found.difference(&known).collect();
    let too_much: Vec<_> = known.difference(&found).collect();
    assert!(missing.is_empty() && too_much.is_empty(), "{missing:?} {too_much:?}");
    let text = text(&status, &latency(), Format::Prometheus);
    for (path, told) in table {
        match told {
            Told::By(metric) => {
                let is_of = |line: &str| line.split(['{', ' ']).next() == Some(metric);
                assert!(text.lines().any(is_of), "{path}: {metric} is missing in\n{text}");
            }
            Told::Not(why) => assert!(why.contains(' '), "{path}: {why} is no reason"),
        }
    }
}

#[test]
fn values_are_in_base_units_and_labels_are_escaped() {
    let text = text(&full(), &latency(), Format::Prometheus);
    for line in [
        "holdfast_info{node=\"al\\\"pha\",version=\"1\"} 1",
        "holdfast_problems{node=\"al\\\"pha\"} 2",
        "holdfast_node_clock_offset_seconds{node=\"beta\"} -0.5",
        "holdfast_role{resource=\"r0\",role=\"Primary\"} 1",
        "holdfast_client_reads_total{resource=\"r0\"} 5",
        "holdfast_out_of_sync_bytes{resource=\"r0\",peer=\"beta\"} 4096",
        "holdfast_resync_left_bytes{resource=\"r0\",peer=\"beta\"} 6",
        "holdfast_connected{resource=\"r0\",peer=\"beta\"} 1",
        "holdfast_log_fetch_lag_bytes{resource=\"r0\",peer=\"beta\"} 1000",
        "holdfast_log_lag_seconds{resource=\"r0\",peer=\"beta\"} 2.5",
        "holdfast_log_lag_seconds{resource=\"r0\"} 2.5",
        "holdfast_log_replay_paused{resource=\"r0\",peer=\"beta\"} 1",
        "holdfast_journal_sync_seconds_total{resource=\"r0\"} 1.5",
        "holdfast_journal_warning_ratio{resource=\"r0\"} 0.8",
        "holdfast_archive_position{resource=\"r0\"} 77",
        "holdfast_archive_complete_timestamp_seconds{resource=\"r0\"} 1.234",
        "holdfast_archive_failed{resource=\"r0\"} 1",
        "holdfast_survey_ended_timestamp_seconds{resource=\"r0\",kind=\"scrub\"} 2.5",
        "holdfast_disk_errors_total{resource=\"r0\",kind=\"read\"} 3",
        "holdfast_disk_recent_latency_seconds{resource=\"r0\",kind=\"read\",percentile=\"99\"} 0.0015",
        "holdfast_disk_oldest_pending_seconds{resource=\"r0\"} 2.5",
        "holdfast_disk_checksums_ratio{resource=\"r0\"} 0.5",
        "holdfast_spare_sectors_bad{resource=\"r0\"} 4",
        "holdfast_attachment_connected{attachment=\"d1\"} 1",
        "holdfast_attachment_read_bytes_total{attachment=\"d1\"} 7",
        "holdfast_attachment_connections{attachment=\"d1\",state=\"Live\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_histogram_counts_upwards() {
    let text = text(&NodeStatus::default(), &latency(), Format::Prometheus);
    let name = "holdfast_peer_answer_duration_seconds";
    let labels = "resource=\"r0\",peer=\"beta\",op=\"write\"";
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
    assert_eq!(lines.len(), 22, "{lines:?}");
    for (at, end) in [
        (0, "_bucket{L,le=\"0.00001\"} 2"),
        (5, "_bucket{L,le=\"0.0005\"} 2"),
        (6, "_bucket{L,le=\"0.001\"} 5"),
        (15, "_bucket{L,le=\"1.0\"} 5"),
        (18, "_bucket{L,le=\"10.0\"} 5"),
        (19, "_bucket{L,le=\"+Inf\"} 6"),
        (20, "_sum{L} 20.5"),
        (21, "_count{L} 6"),
    ] {
        assert_eq!(lines[at], format!("{name}{}", end.replace('L', labels)));
    }
}

#[test]
fn both_formats_have_the_same_lines_under_heads_of_their_own() {
    let (status, latency) = (full(), latency());
    let old = text(&status, &latency, Format::Prometheus);
    let new = text(&status, &latency, Format::OpenMetrics);
    let values = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    };
    assert_eq!(values(&old), values(&new));
    assert!(old.contains("\n# TYPE holdfast_client_reads_total counter\n"));
    assert!(new.contains("\n# TYPE holdfast_client_reads counter\n"));
    assert!(new.ends_with("\n# EOF\n") && !old.contains("# EOF"));
    for (header, due) in [
        (None, Format::Prometheus),
        (Some("*/*"), Format::Prometheus),
        (Some("text/plain;version=0.0.4;q=1"), Format::Prometheus),
        (
            Some("text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.8"),
            Format::OpenMetrics,
        ),
    ] {
        assert_eq!(Format::accepted(header), due, "{header:?}");
        assert!(due.content_type().contains("; version="));
    }
}
