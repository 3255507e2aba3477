//! How the daemon of a node was started, and which files and devices it uses: the answer of
//! `GET /v1/daemon`. Nothing in it is secret.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the daemon of a node was started, and which files and devices it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DaemonInfo {
    /// The name of the node; empty for one that has none yet.
    pub node: String,
    /// The daemon's process; `null` when it does not run.
    pub pid: Option<u32>,
    /// Where the node keeps what it knows.
    pub state_dir: String,
    /// The control socket.
    pub socket: String,
    /// Where other nodes are listened for, `ADDR:PORT`.
    pub listen: String,
    /// Where NBD clients are listened for by TCP; `null` for nowhere.
    pub nbd_listen: Option<String>,
    /// Where the metrics are reached by TCP; `null` for nowhere.
    #[serde(default)]
    pub http: Option<String>,
    /// The directory of the certificate that NBD clients are shown; `null` without TLS.
    pub nbd_tls_certificates: Option<String>,
    /// Whether the daemon keeps its memory from being swapped out.
    pub lock_memory: bool,
    /// What all journals together may take, in bytes; `null` for no limit.
    pub journal_budget: Option<u64>,
    /// The nodes of the cluster, this one included, by name.
    pub nodes: Vec<KnownNode>,
    /// The resources that this node is a member of, by name.
    pub resources: Vec<ResourcePlaces>,
    /// Parts of the state directory that cannot be used, one sentence each.
    pub damaged: Vec<String>,
}

/// A node of the cluster, as the records have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KnownNode {
    /// Its name.
    pub name: String,
    /// Where it is reached, `HOST:PORT` each, in order of preference.
    pub addresses: Vec<String>,
    /// Whether it is the node that answers.
    pub own: bool,
}

/// The files and devices of one resource on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourcePlaces {
    /// Its name.
    pub name: String,
    /// The size of the resource, in bytes; 0 when the records do not have it.
    pub size_bytes: u64,
    /// The backing file or device, or the URI of an NBD export; `null` without a disk.
    pub disk: Option<String>,
    /// Where the metadata are; `null` at the end of the disk.
    pub meta: Option<String>,
    /// The spares of the disk that are files or devices of their own.
    pub spares: Vec<String>,
    /// The directory or device of the journal; `null` without one.
    pub journal: Option<String>,
    /// The bytes that the journal may take; 0 without one.
    pub journal_bytes: u64,
    /// Where the resource is archived to; `null` for nowhere.
    pub archive: Option<String>,
}
