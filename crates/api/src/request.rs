//! The bodies of the calls and of their answers, one struct a command.
//!
//! Sizes are bytes. A field that may be left out is an `Option` or has a default; a field that a
//! call does not know is refused, so that a misspelt one cannot be overlooked.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The word for `meta` that places the metadata at the disk's end.
pub const META_INTERNAL: &str = "internal";

/// The longest that one `wait` call may take, in seconds. Clients that wait longer ask again.
pub const MAX_WAIT_SECONDS: u64 = 3600;

/// A call that takes no argument: `{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// The answer of a command that only does something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// What was done, in one sentence for people, without a full stop.
    pub message: String,
}

impl Done {
    /// Says what was done.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// `cluster create`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterCreate {
    /// The cluster's name; `holdfast` when left out.
    #[serde(default)]
    pub name: Option<String>,
}

/// The answer to `cluster create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterCreated {
    /// What makes it the same cluster everywhere.
    pub uuid: String,
    /// Its name.
    pub name: String,
}

/// `cluster token`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterToken {
    /// How long it is good for, in seconds; one hour when left out.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    /// Where the new node finds this one, `HOST:PORT`; the node's own address when left out.
    #[serde(default)]
    pub addr: Option<String>,
}

/// The answer to `cluster token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    /// What `cluster join` takes, once.
    pub token: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_unix_ms: u64,
}

/// `cluster join`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterJoin {
    /// What `cluster token` printed on a node of the cluster.
    pub token: String,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `cluster leave`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterLeave {
    /// Leave also when the others cannot be told, or resources are still here.
    #[serde(default)]
    pub force: bool,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `cluster remove`: for a node that is gone for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterRemove {
    /// Which node.
    pub node: String,
    /// Must be true: the node is not asked.
    #[serde(default)]
    pub force: bool,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `cluster merge`: this node's cluster becomes a part of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterMerge {
    /// What `cluster token` printed on a node of the other cluster.
    pub token: String,
    /// Also when nodes of one of the two are not reached: they follow when they are.
    #[serde(default)]
    pub force: bool,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `cluster split`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSplit {
    /// The nodes that become a cluster of their own.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// The name of that; the present one with `-2` when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// Takes back a split that was begun and not decided; without nodes then.
    #[serde(default)]
    pub cancel: bool,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `cluster wait`: answers when every node has the same records, or refuses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterWait {
    /// How long, at most [`MAX_WAIT_SECONDS`]; 60 when left out.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
}

/// `cluster set`: all of them, or none when one is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSet {
    /// Key and value of each; an empty value forgets the key.
    pub set: BTreeMap<String, String>,
}

/// `create`: a resource, on its first node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceCreate {
    /// Its name.
    pub name: String,
    /// The backing file or device, an absolute path. A file that is not there is made when `size`
    /// says how large.
    pub disk: String,
    /// The device's size in bytes; the disk's when left out.
    #[serde(default)]
    pub size: Option<u64>,
    /// Where the metadata is: `internal`, an absolute path, or left out for the state directory.
    #[serde(default)]
    pub meta: Option<String>,
    /// Where the journal is, an absolute path of a directory; there is none when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// How large it may grow, in bytes; 1 GiB when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_size: Option<u64>,
    /// Its spares for bad sectors: files or block devices of their own, absolute paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare: Vec<String>,
    /// Bytes at the end of the disk that are its spare: the resource is so much smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare_size: Option<u64>,
    /// Overwrite spares that hold something. What is on the disk is kept all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Keep a checksum for each block of the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checksums: bool,
    /// Options, as `set` takes them.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
}

/// `join`: this node becomes a member of a resource. Either `disk` or `diskless`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceJoin {
    /// The backing file or device, an absolute path. A file that is not there is made.
    #[serde(default)]
    pub disk: Option<String>,
    /// Join without a disk: reads and writes go to the peers.
    #[serde(default)]
    pub diskless: bool,
    /// Where the metadata is: `internal`, an absolute path, or left out for the state directory.
    #[serde(default)]
    pub meta: Option<String>,
    /// Where the journal is, an absolute path of a directory; there is none when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
    /// How large it may grow, in bytes; 1 GiB when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_size: Option<u64>,
    /// Its spares for bad sectors: files or block devices of their own, absolute paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare: Vec<String>,
    /// Bytes at the end of the disk that are its spare: the resource is so much smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare_size: Option<u64>,
    /// Keep a checksum for each block of the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checksums: bool,
    /// How writes travel to this node; `C` when left out.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Overwrite the disk also when it holds a filesystem, a partition table or the like.
    #[serde(default)]
    pub force: bool,
}

/// `leave`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceLeave {
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceDelete {
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `primary`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Primary {
    /// Take this node's data as the good one, also when it is not known to be up to date.
    #[serde(default)]
    pub force: bool,
    /// On a log peer: how long taking over may take before the Primary is Primary again; about two minutes
    /// when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
}

/// `secondary`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Secondary {
    /// Fail what is pending, also while somebody has it open.
    #[serde(default)]
    pub force: bool,
}

/// `connect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// Only this peer; all when left out.
    #[serde(default)]
    pub peer: Option<String>,
    /// After a split brain: this node's data is the one to give up.
    #[serde(default)]
    pub discard_my_data: bool,
}

/// `disconnect`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disconnect {
    /// Only this peer; all when left out.
    #[serde(default)]
    pub peer: Option<String>,
    /// Do not ask the peer.
    #[serde(default)]
    pub force: bool,
}

/// `invalidate`: this node's data is to be fetched again, or a peer's is to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Invalidate {
    /// Fetch only from this peer; from any when left out.
    #[serde(default)]
    pub peer: Option<String>,
}

/// `resize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new size in bytes, a multiple of 4096; as much as the smallest disk of the members has
    /// room for when left out.
    #[serde(default)]
    pub size: Option<u64>,
}

/// `rename`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The name that it gets.
    pub new: String,
    /// Only check, and say what would be done; nothing changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// `attach-disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachDisk {
    /// The backing file or device, an absolute path; the one it had when left out.
    #[serde(default)]
    pub disk: Option<String>,
    /// Where the metadata is: `internal`, an absolute path, or left out for where it was.
    #[serde(default)]
    pub meta: Option<String>,
    /// Overwrite another disk also when it holds a filesystem, a partition table or the like. With
    /// `discard_journal`: do so also when no other node has the data.
    #[serde(default)]
    pub force: bool,
    /// Begin with an empty journal. What was only in the old one is lost here: the disk gets all
    /// data from a peer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard_journal: bool,
}

/// `detach-disk`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachDisk {
    /// Detach also the last good copy.
    #[serde(default)]
    pub force: bool,
}

/// `replace-disk`: the data of this node move to another disk while the resource is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceDisk {
    /// The new backing file or device, an absolute path, or the URI of an NBD export. Left out only
    /// with `stop`.
    #[serde(default)]
    pub disk: Option<String>,
    /// Where the metadata will be: `internal`, an absolute path, or left out: at the end of the new
    /// disk if they are at the end of the old one, otherwise where they are.
    #[serde(default)]
    pub meta: Option<String>,
    /// Overwrite the new disk also when it holds a filesystem, a partition table or the like.
    #[serde(default)]
    pub force: bool,
    /// At most so many bytes a second; 0, or left out: as fast as the load allows.
    #[serde(default)]
    pub rate: u64,
    /// End the move that is under way: the old disk stays.
    #[serde(default)]
    pub stop: bool,
}

/// What `pause` and `resume` switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PauseWhat {
    /// Resync to and from this node.
    Sync,
    /// Fetching of the journal.
    Fetch,
    /// Replay of the journal.
    Replay,
    /// All I/O of clients.
    Io,
}

impl PauseWhat {
    /// The word as it travels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Fetch => "fetch",
            Self::Replay => "replay",
            Self::Io => "io",
        }
    }
}

/// `pause` and `resume`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Which switch.
    pub what: PauseWhat,
    /// On this member instead of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// On all members that it means something to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// `watch`: this node shows a resource that it is no member of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Not any more.
    #[serde(default)]
    pub stop: bool,
}

/// What `wait` waits for. Without a peer, what speaks of peers must hold for every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum WaitFor {
    /// This node's disk (with a peer: that peer's disk) is UpToDate.
    UpToDate,
    /// The connection is Connected.
    Connected,
    /// Replication is Established.
    Established,
    /// This node (with a peer: that peer) is Primary.
    Primary,
    /// This node (with a peer: that peer) is Secondary.
    Secondary,
    /// Connected, no resync is running, and nothing is out of sync.
    Synced,
    /// The journal is replayed to its end.
    Replayed,
    /// Nobody has it open on this node: no NBD client, and no user of its local device.
    Closed,
}

impl WaitFor {
    /// Every word.
    pub const ALL: &[Self] = &[
        Self::UpToDate,
        Self::Connected,
        Self::Established,
        Self::Primary,
        Self::Secondary,
        Self::Synced,
        Self::Replayed,
        Self::Closed,
    ];

    /// The word as it travels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UpToDate => "uptodate",
            Self::Connected => "connected",
            Self::Established => "established",
            Self::Primary => "primary",
            Self::Secondary => "secondary",
            Self::Synced => "synced",
            Self::Replayed => "replayed",
            Self::Closed => "closed",
        }
    }
}

/// `wait`: answers when it has come true, or has ended; or refuses with `TIMED_OUT`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// What to wait for.
    #[serde(rename = "for")]
    pub what: WaitFor,
    /// The opposite: until that is no longer so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ended: bool,
    /// Only this peer.
    #[serde(default)]
    pub peer: Option<String>,
    /// How long, at most [`MAX_WAIT_SECONDS`]; 60 when left out. 0 asks whether it is so now.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
}

impl Wait {
    /// What is waited for, in words: `connected`, `the end of connected`.
    #[must_use]
    pub fn goal(&self) -> String {
        let state = self.what.as_str();
        if self.ended { format!("the end of {state}") } else { state.to_owned() }
    }
}

/// `device`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// How: `auto` (also when left out), `ublk`, `nbd` or `fuse`.
    #[serde(default)]
    pub via: Option<String>,
    /// On a log peer whose replay is paused: the past state that it holds, read-only. Writable when
    /// left out, and on the Primary only.
    #[serde(default)]
    pub read_only: bool,
    /// With `read_only`: only the NBD export, no block device.
    #[serde(default)]
    pub export_only: bool,
}

/// `rewind` of a log peer in place: to a position, to a time, or, with neither, to everything that it
/// has fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rewind {
    /// With all records before this position of the journal.
    #[serde(default)]
    pub position: Option<u64>,
    /// With everything that was written until then: milliseconds since 1970.
    #[serde(default)]
    pub time_unix_ms: Option<u64>,
}

/// What must be known of a disk before it is copied past the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopySource {
    /// Blocks that can be read, but are not what was written, and were not healed.
    pub old_blocks: u64,
    /// Checksums are kept, which nobody looks at who reads it past the daemon.
    pub checksums: bool,
}

/// The answer to `rewind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rewound {
    /// The position whose state the disk is; left out while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// It was restored from the archive.
    pub from_archive: bool,
    /// What happened, for people.
    pub message: String,
}

/// The answer to `device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceMade {
    /// The block device; with `export_only` the URI of the export.
    pub path: String,
    /// How it is made: `ublk`, `nbd` or `fuse`; with `export_only` `export`.
    pub kind: String,
    /// Why in this way, as a phrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `set`: all of them, or none when one is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetOptions {
    /// Name and value of each.
    pub set: BTreeMap<String, String>,
    /// Only towards this peer (options with the scope `peer`); for all when left out.
    #[serde(default)]
    pub peer: Option<String>,
}

/// One option of a resource, as `get` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OptionValue {
    /// Its name.
    pub name: String,
    /// The peer that the value is for; absent when it is for the resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it is now: a plain number in `unit`, or a word.
    pub value: String,
    /// What it is when nobody set it.
    pub default: String,
    /// The unit of number options: `s`, `ds`, `bytes`, `bytes/s`; empty for counts and words.
    pub unit: String,
    /// What it can be, for people.
    pub range: String,
    /// `resource` or `peer`.
    pub scope: String,
    /// What it does.
    pub description: String,
}

/// The answer of `GET /v1/version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionInfo {
    /// The daemon's version.
    pub version: String,
    /// The revision that it was built from, or `unknown`.
    pub git: String,
    /// The oldest version of the node protocol that it speaks.
    pub protocol_min: u32,
    /// The newest version of the node protocol that it speaks.
    pub protocol_max: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_travel_as_they_are_printed() {
        for what in WaitFor::ALL {
            assert_eq!(serde_json::to_value(what).unwrap(), what.as_str());
        }
        for what in [PauseWhat::Sync, PauseWhat::Fetch, PauseWhat::Replay, PauseWhat::Io] {
            assert_eq!(serde_json::to_value(what).unwrap(), what.as_str());
        }
        let wait: Wait = serde_json::from_str(r#"{"for":"synced"}"#).unwrap();
        let synced =
            Wait { what: WaitFor::Synced, ended: false, peer: None, timeout_seconds: None };
        assert_eq!(wait, synced);
        let wait: Wait = serde_json::from_str(r#"{"for":"synced","ended":true}"#).unwrap();
        assert_eq!(wait, Wait { ended: true, ..synced });
    }

    #[test]
    fn what_may_be_left_out_may_and_what_is_misspelt_is_refused() {
        let create: ResourceCreate =
            serde_json::from_str(r#"{"name":"r0","disk":"/dev/sdx"}"#).unwrap();
        assert_eq!((create.size, create.meta, create.set.len()), (None, None, 0));
        assert_eq!(serde_json::from_str::<Primary>("{}").unwrap(), Primary::default());
        assert!(serde_json::from_str::<Primary>(r#"{"forse":true}"#).is_err());
        assert!(serde_json::from_str::<Empty>(r#"{"x":1}"#).is_err());
        assert!(serde_json::from_str::<ResourceCreate>(r#"{"name":"r0"}"#).is_err());
        assert!(serde_json::from_str::<Wait>(r#"{"for":"sync"}"#).is_err());
    }
}
