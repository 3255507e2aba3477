//! Remote NBD exports as local block devices: what `attach`, `attachments`, `detach` and `abort`
//! send and get.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long requests wait for a server that is away when nobody says, in seconds.
pub const DEFAULT_IO_TIMEOUT_SECONDS: f64 = 60.0;
/// How long new requests are held after `abort` when nobody says, in seconds.
pub const DEFAULT_HOLD_SECONDS: f64 = 5.0;

/// `attach`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Where the export is: the first that answers is used, the others are for when it fails. With
    /// `mirror`, each holds a copy.
    pub uris: Vec<String>,
    /// The name of the device; when left out that of the export, or one that is free.
    #[serde(default)]
    pub name: Option<String>,
    /// Connections to a server, 1 to 16; 1 when left out.
    #[serde(default)]
    pub connections: Option<u16>,
    /// How: `auto` (also when left out), `ublk`, `nbd` or `fuse`.
    #[serde(default)]
    pub via: Option<String>,
    /// Every URI is a copy, and all are kept equal.
    #[serde(default)]
    pub mirror: bool,
    /// With `mirror`: the first server has the data, the others are filled from it. Otherwise all
    /// must hold the same.
    #[serde(default)]
    pub copy_first: bool,
    /// The directory with the certificates for URIs that demand TLS.
    #[serde(default)]
    pub tls_certificates: Option<String>,
    /// What the export must look like, as `attachments` has shown it.
    #[serde(default)]
    pub identity: Option<String>,
    /// Attach it again after a restart of the daemon.
    #[serde(default)]
    pub persist: bool,
    /// Allow no writes.
    #[serde(default)]
    pub read_only: bool,
    /// Others write to the export, too: a server that comes back is known by its size and name, not
    /// by its content.
    #[serde(default)]
    pub shared: bool,
    /// How many seconds a request may take, also while no server is there; then it fails. 60 when
    /// left out; 0 is for ever.
    #[serde(default)]
    pub io_timeout_seconds: Option<f64>,
}

/// The answer to `attach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attached {
    /// The name of the attachment.
    pub name: String,
    /// The block device.
    pub path: String,
    /// How it is made: `ublk`, `nbd` or `fuse`.
    pub kind: String,
    /// Why in this way, as a phrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the export looks like; changes with its content.
    pub identity: String,
}

/// `detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Also while it is open, or its server away: what is pending fails.
    #[serde(default)]
    pub force: bool,
}

/// `abort`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Abort {
    /// For how many seconds new requests are held; 5 when left out.
    #[serde(default)]
    pub hold_seconds: Option<f64>,
}

/// An attachment, as `attachments` shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentStatus {
    /// Its name.
    pub name: String,
    /// The block device; `null` until the server has been reached.
    pub device: Option<String>,
    /// How the device is made: `ublk`, `nbd` or `fuse`.
    pub device_kind: Option<String>,
    /// `Connecting`, `Restoring`, `Connected`, `Reconnecting`, `Refused`, `Held` or `Closed`.
    pub state: String,
    /// The size of the device, in bytes; 0 until it is known.
    pub size_bytes: u64,
    /// Where the export is, as given.
    pub uris: Vec<String>,
    /// Whether every URI is a copy.
    pub mirror: bool,
    /// Whether it comes back after a restart of the daemon.
    pub persist: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How many seconds a request may take; `null` for ever.
    pub io_timeout_seconds: Option<f64>,
    /// What the export looks like; changes with its content.
    pub identity: String,
    /// Requests that are not over.
    pub pending_requests: u64,
    /// Bytes read in the last second or so.
    pub read_bytes_per_second: u64,
    /// Bytes written in the last second or so.
    pub write_bytes_per_second: u64,
    /// Why it is not as it should be; `null` when it is.
    pub problem: Option<String>,
    /// The server in use, or each server of a mirror; empty until one has been reached.
    pub legs: Vec<AttachmentLeg>,
}

/// A server of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentLeg {
    /// Of a mirror: `InSync`, `Behind` or `Syncing`. Otherwise `InSync`.
    pub leg: String,
    /// As [`AttachmentStatus::state`].
    pub state: String,
    /// For how many seconds it has been in this state.
    pub state_seconds: f64,
    /// The server in use, or the one that was used last.
    pub uri: String,
    /// Bytes that it has missed and not got yet.
    pub missing_bytes: u64,
    /// Bytes that were copied to it since the start.
    pub copied_bytes: u64,
    /// Requests that are not over.
    pub pending_requests: u64,
    /// Bytes of writes that are kept here because no flush has covered them.
    pub unflushed_bytes: u64,
    /// Requests that were sent again because their connection broke.
    pub resent_requests: u64,
    /// Writes that were written again because the server may have lost them.
    pub restored_writes: u64,
    /// How often all connections were lost.
    pub outages: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// One for each connection that there may be.
    pub connections: Vec<AttachmentConnection>,
}

/// A connection of an attachment. Counters go on when it is made again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttachmentConnection {
    /// `Idle`, `Connecting` or `Live`.
    pub state: String,
    /// Where it leads, or led last.
    pub uri: String,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes read in the last second or so.
    pub read_bytes_per_second: u64,
    /// Bytes written in the last second or so.
    pub write_bytes_per_second: u64,
    /// Requests that wait for an answer.
    pub under_way: u64,
    /// How often it was made again.
    pub reconnects: u64,
    /// For how many seconds it has been live; `null` when it is not.
    pub live_seconds: Option<f64>,
    /// Why it ended last, or could not be made.
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::Attach;

    #[test]
    fn what_may_be_left_out_may_and_what_is_misspelt_is_refused() {
        let call: Attach = serde_json::from_str(r#"{"uris":["nbd://h/x"]}"#).unwrap();
        assert_eq!(call, Attach { uris: vec!["nbd://h/x".into()], ..Attach::default() });
        assert!(serde_json::from_str::<Attach>(r#"{"uris":[],"conections":2}"#).is_err());
        assert!(serde_json::from_str::<Attach>("{}").is_err());
    }
}
