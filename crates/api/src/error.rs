//! What a refused call answers: a stable code, one sentence, and the way out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The exit status of a command that succeeded.
pub const EXIT_DONE: u8 = 0;
/// The exit status of a command that was refused or failed.
pub const EXIT_REFUSED: u8 = 1;
/// The exit status of a command that was written wrongly.
pub const EXIT_USAGE: u8 = 2;
/// The exit status when no daemon answers.
pub const EXIT_NOT_REACHABLE: u8 = 3;
/// The exit status when the named object does not exist.
pub const EXIT_NO_SUCH_OBJECT: u8 = 4;
/// The exit status when the time was over before the thing was done.
pub const EXIT_TIMED_OUT: u8 = 5;

/// Makes the enum of codes with their spelling, HTTP status and exit status.
macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $text:literal, $http:literal, $exit:ident;)*) => {
        /// Why a call was refused. The spelling never changes; codes may be added.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $text)] $code,)*
            /// A code of a newer daemon.
            #[serde(other, rename = "UNKNOWN")]
            Unknown,
        }

        impl ErrorCode {
            /// Every code that this version knows.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// The code as it travels and is printed.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $text,)* Self::Unknown => "UNKNOWN" }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$code => $http,)* Self::Unknown => 500 }
            }

            /// The exit status of a command that got it.
            #[must_use]
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$code => $exit,)* Self::Unknown => EXIT_REFUSED }
            }
        }
    };
}

codes! {
    /// The call is not one that the API has.
    NoSuchCall = "NO_SUCH_CALL", 404, EXIT_REFUSED;
    /// The body of the call cannot be read.
    InvalidRequest = "INVALID_REQUEST", 400, EXIT_REFUSED;
    /// A name that names may not be.
    InvalidName = "INVALID_NAME", 400, EXIT_REFUSED;
    /// A size that is zero, too large, or not a multiple of the block size.
    InvalidSize = "INVALID_SIZE", 400, EXIT_REFUSED;
    /// A path that is not absolute or otherwise unusable.
    InvalidPath = "INVALID_PATH", 400, EXIT_REFUSED;
    /// An address that cannot be read or resolved.
    InvalidAddress = "INVALID_ADDRESS", 400, EXIT_REFUSED;
    /// A value that the option does not take.
    InvalidOption = "INVALID_OPTION", 400, EXIT_REFUSED;
    /// The command line is wrong; never sent by a daemon.
    Usage = "USAGE", 400, EXIT_USAGE;
    /// The caller may not do this.
    Forbidden = "FORBIDDEN", 403, EXIT_REFUSED;
    /// No resource has this name.
    NoSuchResource = "NO_SUCH_RESOURCE", 404, EXIT_NO_SUCH_OBJECT;
    /// No node of the cluster has this name.
    NoSuchNode = "NO_SUCH_NODE", 404, EXIT_NO_SUCH_OBJECT;
    /// The resource has no such peer.
    NoSuchPeer = "NO_SUCH_PEER", 404, EXIT_NO_SUCH_OBJECT;
    /// No option has this name.
    NoSuchOption = "NO_SUCH_OPTION", 404, EXIT_NO_SUCH_OBJECT;
    /// There is no such local device.
    NoSuchDevice = "NO_SUCH_DEVICE", 404, EXIT_NO_SUCH_OBJECT;
    /// No attachment has this name.
    NoSuchAttachment = "NO_SUCH_ATTACHMENT", 404, EXIT_NO_SUCH_OBJECT;
    /// The disk has no such spare.
    NoSuchSpare = "NO_SUCH_SPARE", 404, EXIT_NO_SUCH_OBJECT;
    /// There is no archive of that resource.
    NoSuchArchive = "NO_SUCH_ARCHIVE", 404, EXIT_NO_SUCH_OBJECT;
    /// The resource exists in the cluster, but this node is no member of it.
    NotMember = "NOT_MEMBER", 409, EXIT_REFUSED;
    /// The node follows the journal of another one, and what was asked needs more.
    Follows = "FOLLOWS_LOG", 409, EXIT_REFUSED;
    /// The node does not follow the journal of another one.
    NotFollowing = "NOT_FOLLOWING", 409, EXIT_REFUSED;
    /// The node does not have everything that the Primary wrote, and a command needs that.
    Behind = "BEHIND", 409, EXIT_REFUSED;
    /// The node is already a member of the resource.
    AlreadyMember = "ALREADY_MEMBER", 409, EXIT_REFUSED;
    /// An object of this name exists.
    AlreadyExists = "ALREADY_EXISTS", 409, EXIT_REFUSED;
    /// The node belongs to no cluster.
    NoCluster = "NO_CLUSTER", 409, EXIT_REFUSED;
    /// The node belongs to a cluster already.
    AlreadyInCluster = "ALREADY_IN_CLUSTER", 409, EXIT_REFUSED;
    /// The resource has the largest number of nodes that it can have.
    TooManyNodes = "TOO_MANY_NODES", 409, EXIT_REFUSED;
    /// Other nodes are still members.
    HasMembers = "HAS_MEMBERS", 409, EXIT_REFUSED;
    /// The resource is down on this node.
    ResourceDown = "RESOURCE_DOWN", 409, EXIT_REFUSED;
    /// Another node is Primary.
    OtherPrimary = "OTHER_PRIMARY", 409, EXIT_REFUSED;
    /// The node is Primary and must not be.
    IsPrimary = "IS_PRIMARY", 409, EXIT_REFUSED;
    /// The node is not Primary and must be.
    NotPrimary = "NOT_PRIMARY", 409, EXIT_REFUSED;
    /// No up-to-date data is in reach.
    NoUpToDateData = "NO_UP_TO_DATE_DATA", 409, EXIT_REFUSED;
    /// Not enough nodes are in reach.
    NoQuorum = "NO_QUORUM", 409, EXIT_REFUSED;
    /// Two nodes wrote apart.
    SplitBrain = "SPLIT_BRAIN", 409, EXIT_REFUSED;
    /// The two sides hold data that was never the same.
    UnrelatedData = "UNRELATED_DATA", 409, EXIT_REFUSED;
    /// Somebody has it open.
    InUse = "IN_USE", 409, EXIT_REFUSED;
    /// It needs a connection to a peer.
    NotConnected = "NOT_CONNECTED", 409, EXIT_REFUSED;
    /// It is connected already.
    AlreadyConnected = "ALREADY_CONNECTED", 409, EXIT_REFUSED;
    /// Copies of the data differ.
    DataDiffers = "DATA_DIFFERS", 409, EXIT_REFUSED;
    /// A `verify` or `scrub` is running, or none is where one was meant.
    SurveyState = "SURVEY_STATE", 409, EXIT_REFUSED;
    /// A resync is running.
    ResyncRunning = "RESYNC_RUNNING", 409, EXIT_REFUSED;
    /// This would give up the last good copy of the data.
    LastGoodCopy = "LAST_GOOD_COPY", 409, EXIT_REFUSED;
    /// This node has no disk of the resource.
    NoDisk = "NO_DISK", 409, EXIT_REFUSED;
    /// The resource has no journal on this node.
    NoJournal = "NO_JOURNAL", 409, EXIT_REFUSED;
    /// The journal is gone, damaged, another resource's, or its directory cannot be used.
    JournalUnusable = "JOURNAL_UNUSABLE", 422, EXIT_REFUSED;
    /// An archive is damaged, another resource's, or cannot be read or written.
    ArchiveUnusable = "ARCHIVE_UNUSABLE", 422, EXIT_REFUSED;
    /// The state of that moment cannot be built.
    MomentNotAvailable = "MOMENT_NOT_AVAILABLE", 409, EXIT_REFUSED;
    /// This node has a disk of the resource already.
    AlreadyAttached = "ALREADY_ATTACHED", 409, EXIT_REFUSED;
    /// The backing file or device does not exist.
    DiskNotFound = "DISK_NOT_FOUND", 422, EXIT_REFUSED;
    /// The path is neither a file nor a block device, or may not be opened.
    DiskUnusable = "DISK_UNUSABLE", 422, EXIT_REFUSED;
    /// The backing device is mounted, claimed, or belongs to another resource.
    DiskBusy = "DISK_BUSY", 409, EXIT_REFUSED;
    /// The backing device is too small.
    DiskTooSmall = "DISK_TOO_SMALL", 422, EXIT_REFUSED;
    /// The backing device reported an error.
    DiskFailed = "DISK_FAILED", 500, EXIT_REFUSED;
    /// Metadata of a resource is there already.
    MetadataExists = "METADATA_EXISTS", 409, EXIT_REFUSED;
    /// The disk holds something that would be overwritten.
    DiskHoldsData = "DISK_HOLDS_DATA", 409, EXIT_REFUSED;
    /// The metadata cannot be used.
    MetadataInvalid = "METADATA_INVALID", 422, EXIT_REFUSED;
    /// The kernel offers no way to make a local device, or making it failed.
    DeviceUnavailable = "DEVICE_UNAVAILABLE", 422, EXIT_REFUSED;
    /// The NBD server cannot be reached, or its export not be used.
    ServerUnusable = "SERVER_UNUSABLE", 502, EXIT_REFUSED;
    /// The token cannot be read.
    InvalidToken = "INVALID_TOKEN", 400, EXIT_REFUSED;
    /// The token's time is over.
    TokenExpired = "TOKEN_EXPIRED", 409, EXIT_REFUSED;
    /// The token was used before, or never given out.
    TokenUsed = "TOKEN_USED", 409, EXIT_REFUSED;
    /// The other node cannot be reached.
    PeerNotReachable = "PEER_NOT_REACHABLE", 502, EXIT_REFUSED;
    /// The other node refused.
    PeerRefused = "PEER_REFUSED", 409, EXIT_REFUSED;
    /// The two nodes speak no common version.
    VersionMismatch = "VERSION_MISMATCH", 409, EXIT_REFUSED;
    /// The other node's certificate is not the one that was expected.
    CertificateMismatch = "CERTIFICATE_MISMATCH", 409, EXIT_REFUSED;
    /// Another command on the same object is under way.
    Busy = "BUSY", 409, EXIT_REFUSED;
    /// The daemon has as many callers, or readers of events, as it takes at a time.
    TooManyCallers = "TOO_MANY_CALLERS", 503, EXIT_REFUSED;
    /// The daemon is stopping.
    ShuttingDown = "SHUTTING_DOWN", 503, EXIT_REFUSED;
    /// A filesystem has no room for what is to be kept on it.
    NoSpace = "NO_SPACE", 507, EXIT_REFUSED;
    /// This version cannot do it.
    NotSupportedYet = "NOT_SUPPORTED_YET", 501, EXIT_REFUSED;
    /// The time was over.
    TimedOut = "TIMED_OUT", 504, EXIT_TIMED_OUT;
    /// No daemon answers; never sent by a daemon.
    NotReachable = "NOT_REACHABLE", 503, EXIT_NOT_REACHABLE;
    /// Something failed that should not; the log has more.
    Internal = "INTERNAL", 500, EXIT_REFUSED;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A refusal: `message` is one sentence, `WHAT happened to WHICH object: WHY`, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind of refusal it is.
    pub code: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// What to do about it, for people; absent when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// A refusal without a hint.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same in words alone: see [`without_numbers`].
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.message = without_numbers(&self.message);
        self
    }

    /// What every command says that this version does not have yet. `what` starts the sentence:
    /// `resize of resource r0`.
    #[must_use]
    pub fn not_supported_yet(what: &str) -> Self {
        Self::new(
            ErrorCode::NotSupportedYet,
            format!("{what} was refused: it is not supported by this version yet"),
        )
        .hint("nothing was changed; `holdfast --help` lists what this version does")
    }

    /// What every command says about a resource that does not exist.
    #[must_use]
    pub fn no_such_resource(name: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        Self::new(
            ErrorCode::NoSuchResource,
            format!("resource {name} was not found: this node has no resource of that name"),
        )
        .hint("`holdfast status` lists the resources of this node")
    }

    /// The same on a node that is in no cluster, where there can be none.
    #[must_use]
    pub fn no_resource_without_cluster(name: &str, node: &str) -> Self {
        let name: String = name.chars().take(80).collect();
        Self::new(
            ErrorCode::NoSuchResource,
            format!("resource {name} was not found: node {node} is in no cluster yet"),
        )
        .hint(format!(
            "`holdfast create {name} --disk PATH` makes it, and a cluster of this node alone; \
             `holdfast cluster join TOKEN` joins the cluster of others"
        ))
    }
}

/// The text without the numbers that the standard library puts behind the words of the system:
/// ` (os error 2)`.
#[must_use]
pub fn without_numbers(text: &str) -> String {
    const MARK: &str = " (os error ";
    let mut parts = text.split(MARK);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix(')') {
            Some(rest) => plain.push_str(rest),
            None => plain.extend([MARK, part]),
        }
    }
    plain
}

impl From<holdfast_units::NameError> for ApiError {
    fn from(why: holdfast_units::NameError) -> Self {
        Self::new(ErrorCode::InvalidName, why.to_string())
    }
}

/// The body of every answer that is not a success: `{"error":{...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ApiError,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_is_spelt_once_and_the_same_both_ways() {
        let mut seen = HashSet::new();
        for code in ErrorCode::ALL {
            let text = serde_json::to_value(code).unwrap();
            assert_eq!(text, code.as_str());
            assert_eq!(serde_json::from_value::<ErrorCode>(text).unwrap(), *code);
            assert!(seen.insert(code.as_str()), "{code} is there twice");
            let allowed = |c: char| c.is_ascii_uppercase() || c == '_';
            assert!(code.as_str().chars().all(allowed), "{code}");
        }
    }

    #[test]
    fn status_and_exit_agree() {
        for code in ErrorCode::ALL {
            let (http, exit) = (code.http_status(), code.exit_code());
            assert!((400..600).contains(&http), "{code}");
            assert_eq!(
                exit == EXIT_NO_SUCH_OBJECT,
                code.as_str().starts_with("NO_SUCH_") && *code != ErrorCode::NoSuchCall
            );
            assert_eq!(exit == EXIT_TIMED_OUT, http == 504, "{code}");
        }
        assert_eq!(ErrorCode::NotReachable.exit_code(), EXIT_NOT_REACHABLE);
        assert_eq!(ErrorCode::NotSupportedYet.exit_code(), EXIT_REFUSED);
        assert_eq!(ErrorCode::Usage.exit_code(), EXIT_USAGE);
    }

    #[test]
    fn a_refusal_looks_as_the_contract_says() {
        let error = ApiError::new(ErrorCode::SplitBrain, "m").hint("h");
        let body = serde_json::to_string(&ErrorBody { error }).unwrap();
        assert_eq!(body, r#"{"error":{"code":"SPLIT_BRAIN","message":"m","hint":"h"}}"#);
        let error = ApiError::new(ErrorCode::Internal, "m");
        let body = serde_json::to_string(&ErrorBody { error }).unwrap();
        assert_eq!(body, r#"{"error":{"code":"INTERNAL","message":"m"}}"#);
    }

    #[test]
    fn numbers_of_the_system_are_left_out() {
        assert_eq!(without_numbers("a: No (os error 2): b (os error 111)"), "a: No: b");
        for text in ["x (os error y)", "x (os error ", "x (os error 1", "", "(os error 1)"] {
            assert_eq!(without_numbers(text), text);
        }
        let error = ApiError::new(ErrorCode::Internal, "no (os error 5)").hint("h").plain();
        assert_eq!((&*error.message, error.hint.as_deref()), ("no", Some("h")));
    }

    #[test]
    fn a_code_of_a_newer_daemon_is_read() {
        let text = r#"{"error":{"code":"NEWER","message":"m"}}"#;
        let body: ErrorBody = serde_json::from_str(text).unwrap();
        assert_eq!(body.error.code, ErrorCode::Unknown);
    }
}
