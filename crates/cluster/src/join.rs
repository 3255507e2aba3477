use crate::{ClusterName, NodeRecord, Record, Secret, TokenId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A [`JoinRequest`] as JSON is never longer, in bytes.
pub const MAX_JOIN_REQUEST_BYTES: usize = 16 << 10;
/// A [`MergeRequest`] as JSON is never longer, in bytes: the names of 10,000 records at most.
pub const MAX_MERGE_REQUEST_BYTES: usize = 2 << 20;
/// A [`JoinResponse`] as JSON is never longer, in bytes: all records, their values quoted.
pub const MAX_JOIN_RESPONSE_BYTES: usize = 40 << 20;

/// What a joining node says to the node that issued its token, over a
/// [`crate::Purpose::Join`] connection. Its certificate is that of the connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The cluster that the token is of.
    pub cluster: Uuid,
    /// The token's number.
    pub token: TokenId,
    /// The token's secret.
    pub secret: Secret,
    /// The joining node's UUID.
    pub node: Uuid,
    /// The joining node's name.
    pub name: String,
    /// Where the joining node listens for other nodes (`host:port`).
    pub addresses: Vec<String>,
}

/// What the issuing node answers: all that the joining node must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinResponse {
    /// The cluster's UUID.
    pub cluster: Uuid,
    /// The cluster's name.
    pub name: String,
    /// All records, the joining node's own among them.
    pub records: Vec<Record>,
}

/// What a node says to the node that issued a token so that its whole cluster is merged into that
/// one's, over a [`crate::Purpose::Join`] connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergeRequest {
    /// The cluster that the token is of.
    pub cluster: Uuid,
    /// The token's number.
    pub token: TokenId,
    /// The token's secret.
    pub secret: Secret,
    /// The asking node, as its own cluster knows it.
    pub node: NodeRecord,
    /// Its cluster.
    pub from: ClusterName,
    /// The nodes of its cluster.
    pub nodes: Vec<(String, Uuid)>,
    /// The resources of its cluster, with their ids.
    pub resources: Vec<(String, String)>,
    /// Whether it is to be done; else it is only asked whether it can be.
    pub commit: bool,
}
