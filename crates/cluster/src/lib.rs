//! Who is in the cluster, and what its nodes agree on: identities, join tokens, pinned TLS and
//! the replicated records.
//!
//! No HTTP, no listener, no clock and no thread: the daemon owns a [`ClusterState`], passes it
//! the time, and carries its messages. [`NodeTls`] makes connections between nodes safe before a
//! byte of them is looked at. `docs/design/cluster.md` has the why.
//!
//! Everything that changes a file is blocking and short; call it where blocking is allowed.

mod address;
mod durable;
mod identity;
mod join;
mod records;
mod refusal;
mod state;
mod tls;
mod token;
mod validity;
mod views;

pub use address::{Address, MAX_ADDRESSES, resolve};
pub use identity::{Fingerprint, Identity};
pub use join::{
    JoinRequest, JoinResponse, MAX_JOIN_REQUEST_BYTES, MAX_JOIN_RESPONSE_BYTES,
    MAX_MERGE_REQUEST_BYTES, MergeRequest,
};
pub use records::{
    BATCH_BYTES, CLOCK_TROUBLE_MS, Digest, Key, MAX_KEY_BYTES, MAX_RECORDS, MAX_TOTAL_BYTES,
    MAX_VALUE_BYTES, MergeReport, Record, Records, Stamp, TOMBSTONE_KEEP_MS,
};
pub use refusal::{Code, Refusal};
pub use state::{
    Change, ClusterState, MAX_CLUSTER_NODES, MAX_SYNC_BYTES, Membership, Peek, SplitPlan,
    SyncMessage,
};
pub use tls::{
    ACCEPT_TIMEOUT, Caller, HANDSHAKE_TIMEOUT, NodeTls, PinSet, PinnedNode, Purpose, authorize,
    explain, peer_fingerprint,
};
pub use token::{JoinToken, MAX_LIVE_TOKENS, MAX_TTL_SECONDS, Secret, TokenId};
pub use uuid::Uuid;
pub use validity::Validity;
pub use views::{
    ClusterName, ClusterRecord, MemberRecord, NodeRecord, PairOptions, ResourceRecord,
    SLOT_HOLD_MS, SplitRecord, Trouble,
};

/// A point of wall-clock time in milliseconds since 1970-01-01 UTC, as the caller's clock says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The whole seconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }
}
