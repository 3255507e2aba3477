//! What `status --json` and `GET /v1/status` print.
//!
//! State words are those of DRBD 9 as strings, sizes are bytes, times are seconds, rates are bytes
//! per second. Fields may be added; none is renamed or removed.

use crate::attachment::AttachmentStatus;
use crate::health::DiskHealth;
use crate::survey::SurveyReport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Everything that one node knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// The daemon's version.
    pub version: String,
    /// The name of the node that answers.
    pub node: String,
    /// The cluster that the node belongs to; `null` before `cluster create` or `cluster join`.
    pub cluster: Option<ClusterStatus>,
    /// The resources that this node is a member of, by name.
    pub resources: Vec<ResourceStatus>,
    /// The exports of other machines that are attached to this node, by name.
    #[serde(default)]
    pub attachments: Vec<AttachmentStatus>,
    /// The resources that this node only watches, by name; left out when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<GuestStatus>,
}

/// A resource that the node is no member of and watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestStatus {
    /// Its name.
    pub name: String,
    /// The size of the device, in bytes.
    pub size_bytes: u64,
    /// Its members, as they say themselves, by name.
    pub members: Vec<GuestMember>,
}

/// A member of a resource, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestMember {
    /// The node.
    pub node: String,
    /// Whether it answered.
    pub alive: bool,
    /// Its role, or `Unknown`.
    pub role: String,
    /// Its disk, or `DUnknown`.
    pub disk: String,
    /// Why it did not answer; `null` when it did.
    pub problem: Option<String>,
}

/// A cluster, as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// What makes it the same cluster everywhere.
    pub uuid: String,
    /// Its name, for people.
    pub name: String,
    /// All nodes, the answering one included, by name.
    pub nodes: Vec<ClusterNode>,
    /// What a person must put right, one sentence each; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A node of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// Where it listens, `HOST:PORT`.
    pub address: String,
    /// Whether it answers now. Always true for the answering node itself.
    pub alive: bool,
    /// Seconds since it was last heard of; 0 while it is alive.
    pub last_seen_seconds: u64,
    /// The version of its daemon, as last heard.
    pub version: String,
    /// How far its clock is ahead of the answering node's, in seconds; `null` when not known.
    #[serde(default)]
    pub clock_offset_seconds: Option<f64>,
}

/// How many of those who have a resource open are told one by one.
pub const MAX_OPENERS: usize = 64;

/// A resource, as one of its nodes sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceStatus {
    /// Its name.
    pub name: String,
    /// This node's role: `Primary`, `Secondary`, or `Unknown` while the resource is down here.
    pub role: String,
    /// The size of the device, in bytes.
    pub size_bytes: u64,
    /// Why I/O is held, one word a reason; empty when it flows.
    pub suspended: Vec<String>,
    /// Whether enough nodes are in reach.
    pub quorum: bool,
    /// How many clients have it open here.
    pub open_count: u32,
    /// Who they are, the first [`MAX_OPENERS`] of them, in words: `mounted at /srv/db`, `open in fio
    /// (process 4711)`, `NBD client 10.0.0.7:4711`; left out when there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub openers: Vec<String>,
    /// The local block device; `null` when there is none.
    pub device: Option<String>,
    /// How the local device is made: `ublk`, `nbd` or `fuse`; `null` when there is none.
    pub device_kind: Option<String>,
    /// This node follows the journal, and shows the past state that it holds: device and export are
    /// read-only.
    #[serde(default)]
    pub read_only: bool,
    /// The device that an earlier run of the daemon left waits, with its I/O, until this node is
    /// Primary again: after so many more seconds its I/O fails. `null` when there is none.
    pub device_waits_seconds: Option<u64>,
    /// Where the NBD export is while this node is Primary.
    pub nbd_uri: String,
    /// This node's disk.
    pub disk: DiskStatus,
    /// The current data generation, in hexadecimal.
    pub generation: String,
    /// Whether `primary` would succeed here now.
    pub promotable: bool,
    /// A person has resyncs of this resource held on this node: `pause NAME sync`; left out when not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resyncs_paused: bool,
    /// The journal; `null` when the resource has none.
    pub journal: Option<JournalStatus>,
    /// The archive that this node writes to; left out when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveStatus>,
    /// The `verify` that goes on here, or the last one; left out when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<SurveyReport>,
    /// The `scrub` that goes on here, or the last one; left out when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<SurveyReport>,
    /// What clients have done here since it was started; left out while it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoStatus>,
    /// Fetch and replay of a log peer; `null` when this node is none.
    pub replay: Option<ReplayStatus>,
    /// The other nodes of the resource.
    pub peers: Vec<PeerStatus>,
}

/// Requests of clients of a resource, and their bytes, since it was started on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IoStatus {
    /// Reads.
    pub reads: u64,
    /// What they read.
    pub read_bytes: u64,
    /// Writes, zeroes and discards.
    pub writes: u64,
    /// What they wrote: zeroes and discards count with their length.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that are not answered yet.
    #[serde(default)]
    pub under_way: u64,
    /// For how long the oldest of them has been under way, in seconds; 0 when there is none.
    #[serde(default)]
    pub oldest_seconds: f64,
    /// What that one does: `read`, `write`, `discard` or `flush`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_op: Option<String>,
}

/// A node's own disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskStatus {
    /// `Diskless`, `Attaching`, `Inconsistent`, `UpToDate`, ...
    pub state: String,
    /// The backing file or device; `null` without a disk.
    pub path: Option<String>,
    /// How large a resource it has room for now, in bytes, when that is more than the resource has; left out
    /// otherwise, and when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_bytes: Option<u64>,
    /// Reads, writes and flushes of it and of its metadata that failed since it was attached.
    pub io_errors: u64,
    /// Blocks whose checksum did not match.
    pub checksum_errors: u64,
    /// Whether a checksum is kept for each block: `off`, `building`, `on`, or `failed`; empty when
    /// that is not known, because the disk is not in use.
    #[serde(default)]
    pub checksums: String,
    /// How many percent of the disk have theirs.
    #[serde(default)]
    pub checksums_percent: u8,
    /// Why none are kept although they should be; `null` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums_problem: Option<String>,
    /// Blocks that were repaired from a peer.
    pub healed_blocks: u64,
    /// Reads of clients that a peer was asked for because this disk was slow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hedged_reads: u64,
    /// Those of them that the peer answered first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hedged_reads_won: u64,
    /// Blocks of 4 KiB of which there is no good copy on this disk: who reads them gets them from a peer, or
    /// an error. Writing them, and a peer that has them, puts an end to that.
    #[serde(default)]
    pub unreadable_blocks: u64,
    /// Where the first of them are, at most 64 stretches.
    #[serde(default)]
    pub unreadable: Vec<UnreadableRange>,
    /// Blocks of 4096 bytes that live in a spare.
    pub remapped_sectors: u64,
    /// Blocks of 4096 bytes for which the spares still have room.
    pub spare_sectors_free: u64,
    /// Blocks for which the spares were made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spare_sectors: u64,
    /// Blocks that have no good copy here: reads fail until they are written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_sectors: u64,
    /// How full the spares are: `fine`, `low` from 80 %, `critical` from 95 %, `full`; left out
    /// without spares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare_fill: Option<String>,
    /// The spares for bad sectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spares: Vec<SpareStatus>,
    /// Why it is not in use although it should be (which file, which error, and the way out);
    /// `null` when it is, or there is none.
    #[serde(default)]
    pub problem: Option<String>,
    /// The data are being moved to another disk, or that has failed; left out otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacing: Option<DiskReplacing>,
    /// How well the disk is, and why; left out without a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<DiskHealth>,
}

/// How far the data of a node have been moved to another disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskReplacing {
    /// The new backing file or device.
    pub path: String,
    /// `waiting` (the old disk is not in use), `copying`, `finishing`, or `failed`: the old disk
    /// stays.
    pub state: String,
    /// How much was copied, 0 to 100, with two digits.
    pub percent: f64,
    /// The same in bytes.
    pub bytes_done: u64,
    /// Of how many.
    pub bytes_total: u64,
    /// How fast it goes now.
    pub rate_bytes_per_second: u64,
    /// How long it takes from now on; 0 when that is not known.
    pub eta_seconds: u64,
    /// Blocks of 4096 bytes that the old disk could not read, and that nobody has written since. As
    /// long as there are any, the move does not end.
    pub unreadable_blocks: u64,
    /// What is in the way, one sentence; `null` when nothing is.
    pub problem: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A spare of a disk. Counts are of blocks of 4096 bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SpareStatus {
    /// Its id, as its header and the table have it; empty while it is not in use.
    pub id: String,
    /// The file or block device; `null` when it is a part of the disk itself.
    pub path: Option<String>,
    /// Where it begins on the disk, in bytes, when it is a part of it.
    pub offset: Option<u64>,
    /// For how many blocks it has slots.
    pub sectors: u64,
    /// How many of them can be taken.
    pub free: u64,
    /// Blocks that are in it.
    pub remapped: u64,
    /// Slots that are kept for blocks without a good copy.
    pub lost: u64,
    /// Slots that failed.
    pub bad: u64,
    /// It is being removed.
    pub leaving: bool,
}

/// A stretch of blocks that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnreadableRange {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

/// The transaction log of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JournalStatus {
    /// The position after the newest record.
    pub head: u64,
    /// The position of the oldest record that is kept.
    pub tail: u64,
    /// How much it holds, in bytes.
    pub bytes: u64,
    /// How much it may hold, in bytes.
    pub limit_bytes: u64,
    /// Whether it was full and had to be cut.
    pub emergency: bool,
    /// The directory of its files.
    #[serde(default)]
    pub path: String,
    /// Everything before this position is durable in it.
    #[serde(default)]
    pub durable: u64,
    /// Everything before this position is durable on the disk, too.
    #[serde(default)]
    pub written_back: u64,
    /// Bytes of the disk that are newer in the journal.
    #[serde(default)]
    pub dirty_bytes: u64,
    /// The bytes of the segments that the disk or a follower still needs.
    #[serde(default)]
    pub needed_bytes: u64,
    /// When it holds more than this, the oldest records are cut off, also what followers need.
    #[serde(default)]
    pub budget_bytes: u64,
    /// The warning that `needed_bytes` of `budget_bytes` has reached: 80, 90, or 0 for none.
    #[serde(default)]
    pub warning_percent: u64,
    /// How often it was cut although a follower needed what was cut off, since it was opened.
    #[serde(default)]
    pub cuts: u64,
    /// How many large writes were answered later so that followers keep up (`journal-throttle`),
    /// since it was opened.
    #[serde(default)]
    pub slowed_writes: u64,
    /// How it stores what is written: `none`, `lz4` or `zstd` (`journal-compression`).
    #[serde(default)]
    pub compression: String,
    /// Bytes that were written into it, as they were submitted, since it was opened; zeroes do not
    /// count.
    #[serde(default)]
    pub payload_bytes: u64,
    /// Bytes that these take in it, without headers and padding.
    #[serde(default)]
    pub stored_bytes: u64,
    /// How often something in it was made durable, since it was opened.
    #[serde(default)]
    pub syncs: u64,
    /// The time that this took in all, in microseconds.
    #[serde(default)]
    pub sync_micros: u64,
    /// The longest of these times, in microseconds.
    #[serde(default)]
    pub longest_sync_micros: u64,
    /// Why it is not used any more; `null` while it is.
    #[serde(default)]
    pub problem: Option<String>,
}

/// The archive that a Primary writes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ArchiveStatus {
    /// Where it is.
    pub place: String,
    /// Everything before this position of the journal is archived.
    pub position: u64,
    /// What was completed until then is archived, in milliseconds since 1970; 0 when nothing is.
    pub complete_unix_ms: u64,
    /// The oldest moment of the newest line that can be restored, in milliseconds since 1970; 0
    /// when none can.
    pub oldest_unix_ms: u64,
    /// How much of a base image that is being made is copied; `null` when none is.
    pub base_percent: Option<f64>,
    /// Why not everything is archived at present; `null` when all is well.
    pub problem: Option<String>,
}

/// How far a log peer has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplayStatus {
    /// The position up to which records are here.
    pub fetched: u64,
    /// The position up to which records are on the disk.
    pub replayed: u64,
    /// Bytes behind the Primary.
    pub lag_bytes: u64,
    /// Seconds behind the Primary.
    pub lag_seconds: f64,
    /// What is held: `fetch`, `replay`.
    pub paused: Vec<String>,
    /// The position up to which there are records at the Primary, as far as is known.
    #[serde(default)]
    pub head: u64,
    /// How fast records come.
    #[serde(default)]
    pub fetch_bytes_per_second: u64,
    /// How fast they are replayed.
    #[serde(default)]
    pub replay_bytes_per_second: u64,
    /// Seconds until it has caught up at this rate; 0 while the rate is 0.
    #[serde(default)]
    pub eta_seconds: u64,
    /// What keeps it from getting on, one sentence; `null` when nothing does.
    #[serde(default)]
    pub problem: Option<String>,
}

/// Another node of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// `StandAlone`, `Connecting`, `Connected`, ...
    pub connection: String,
    /// Its role, or `Unknown`.
    pub role: String,
    /// Its disk, or `DUnknown`.
    pub disk: String,
    /// `Off`, `Established`, `SyncSource`, `SyncTarget`, ...
    pub replication: String,
    /// How writes travel to it: `C`, `B`, `A` or `log`.
    pub protocol: String,
    /// How much of the data differs or may differ, in bytes.
    pub out_of_sync_bytes: u64,
    /// Requests that it has not answered yet.
    pub pending_requests: u64,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The running resync; `null` when there is none.
    pub resync: Option<ResyncStatus>,
    /// Why the resync stands still; left out when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_paused: Option<String>,
    /// The `verify` that is running between the two; left out when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<ResyncStatus>,
    /// Payload of writes and resync sent to it since the daemon started, in bytes.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Payload of writes and resync received from it since the daemon started, in bytes.
    #[serde(default)]
    pub received_bytes: u64,
    /// The part of `sent_bytes` that was resync.
    #[serde(default)]
    pub resync_sent_bytes: u64,
    /// The part of `received_bytes` that was resync.
    #[serde(default)]
    pub resync_received_bytes: u64,
    /// How far it has come, if it follows this node's journal; `null` otherwise.
    #[serde(default)]
    pub replay: Option<ReplayStatus>,
    /// Why there is no connection, when that is known; `null` while there is one.
    #[serde(default)]
    pub problem: Option<PeerProblem>,
}

/// Why two nodes of a resource are not connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerProblem {
    /// `SPLIT_BRAIN`, `UNRELATED_DATA`, `TWO_PRIMARIES`, `PEER_REFUSED` or `PROTOCOL_ERROR`.
    pub code: String,
    /// What it is, one sentence.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// A running resync.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResyncStatus {
    /// How much is done, 0 to 100.
    pub percent: f64,
    /// How much is done, in bytes.
    pub bytes_done: u64,
    /// How much there is to do, in bytes.
    pub bytes_total: u64,
    /// The present rate.
    pub rate_bytes_per_second: u64,
    /// Seconds until it is done at this rate; 0 while the rate is 0.
    pub eta_seconds: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn full() -> NodeStatus {
        NodeStatus {
            version: "0.1.0".into(),
            node: "alpha".into(),
            cluster: Some(ClusterStatus {
                nodes: vec![ClusterNode::default()],
                ..ClusterStatus::default()
            }),
            resources: vec![ResourceStatus {
                journal: Some(JournalStatus::default()),
                replay: Some(ReplayStatus::default()),
                peers: vec![PeerStatus {
                    resync: Some(ResyncStatus::default()),
                    problem: Some(PeerProblem::default()),
                    replay: Some(ReplayStatus::default()),
                    ..PeerStatus::default()
                }],
                ..ResourceStatus::default()
            }],
            attachments: vec![AttachmentStatus::default()],
            guests: Vec::new(),
        }
    }

    /// The document of the interface contract, with the fields that were added since.
    fn contract() -> Value {
        let replay = json!({"fetched": 0, "replayed": 0, "lag_bytes": 0, "lag_seconds": 0.0,
            "paused": [], "head": 0, "fetch_bytes_per_second": 0, "replay_bytes_per_second": 0,
            "eta_seconds": 0, "problem": null});
        let peers = json!([{"node": "", "connection": "", "role": "", "disk": "",
                    "replication": "", "protocol": "", "out_of_sync_bytes": 0,
                    "pending_requests": 0, "tls": false,
                    "resync": {"percent": 0.0, "bytes_done": 0, "bytes_total": 0,
                        "rate_bytes_per_second": 0, "eta_seconds": 0},
                    "sent_bytes": 0, "received_bytes": 0,
                    "resync_sent_bytes": 0, "resync_received_bytes": 0, "replay": replay,
                    "problem": {"code": "", "message": "", "hint": ""}}]);
        let journal = json!({"head": 0, "tail": 0, "bytes": 0, "limit_bytes": 0,
                    "emergency": false, "path": "", "durable": 0, "written_back": 0,
                    "dirty_bytes": 0, "needed_bytes": 0, "budget_bytes": 0, "warning_percent": 0,
                    "cuts": 0, "slowed_writes": 0, "compression": "", "payload_bytes": 0,
                    "stored_bytes": 0, "syncs": 0, "sync_micros": 0, "longest_sync_micros": 0,
                    "problem": null});
        json!({
            "version": "0.1.0", "node": "alpha",
            "cluster": {"uuid": "", "name": "", "nodes": [{"name": "", "address": "",
                "alive": false, "last_seen_seconds": 0, "version": "",
                "clock_offset_seconds": null}], "problems": []},
            "resources": [{
                "name": "", "role": "", "size_bytes": 0, "suspended": [], "quorum": false,
                "open_count": 0, "device": null, "device_kind": null, "read_only": false, "device_waits_seconds": null,
                "nbd_uri": "",
                "disk": {"state": "", "path": null, "io_errors": 0, "checksum_errors": 0,
                    "checksums": "", "checksums_percent": 0,
                    "healed_blocks": 0, "unreadable_blocks": 0, "unreadable": [], "remapped_sectors": 0, "spare_sectors_free": 0,
                    "problem": null},
                "generation": "", "promotable": false,
                "journal": journal,
                "replay": replay,
                "peers": peers,
            }],
            "attachments": [{
                "name": "", "device": null, "device_kind": null, "state": "", "size_bytes": 0,
                "uris": [], "mirror": false, "persist": false, "read_only": false,
                "io_timeout_seconds": null, "identity": "", "pending_requests": 0,
                "read_bytes_per_second": 0, "write_bytes_per_second": 0, "problem": null,
                "legs": [],
            }],
        })
    }

    #[test]
    fn the_document_is_the_contract_field_by_field() {
        assert_eq!(serde_json::to_value(full()).unwrap(), contract());
    }

    #[test]
    fn it_reads_back_and_absent_parts_are_null() {
        let text = serde_json::to_string(&full()).unwrap();
        assert_eq!(serde_json::from_str::<NodeStatus>(&text).unwrap(), full());
        let empty = serde_json::to_value(NodeStatus::default()).unwrap();
        let due = json!({"version": "", "node": "", "cluster": null, "resources": [],
            "attachments": []});
        assert_eq!(empty, due);
        let resource = serde_json::to_value(ResourceStatus::default()).unwrap();
        assert!(resource["journal"].is_null() && resource["replay"].is_null());
        assert!(serde_json::to_value(PeerStatus::default()).unwrap()["resync"].is_null());
    }

    #[test]
    fn a_document_without_the_added_fields_is_read() {
        let mut old = contract();
        let peer = old["resources"][0]["peers"][0].as_object_mut().unwrap();
        peer.retain(|key, _| !key.ends_with("sent_bytes") && !key.ends_with("received_bytes"));
        peer.remove("problem");
        peer.remove("replay");
        old["resources"][0]["disk"].as_object_mut().unwrap().remove("problem");
        old["cluster"].as_object_mut().unwrap().remove("problems");
        old.as_object_mut().unwrap().remove("attachments");
        old["cluster"]["nodes"][0].as_object_mut().unwrap().remove("clock_offset_seconds");
        let mut expected = full();
        expected.resources[0].peers[0].problem = None;
        expected.resources[0].peers[0].replay = None;
        expected.attachments.clear();
        assert_eq!(serde_json::from_value::<NodeStatus>(old).unwrap(), expected);
    }
}
