use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What a refusal is about: stable words for programs, as they stand in `--json` errors.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// A code of a newer version of Holdfast, received from a peer.
            #[serde(other, rename = "REFUSED")]
            Other,
        }

        impl Code {
            /// The word as it is printed.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Other => "REFUSED" }
            }
        }
    };
}

codes! {
    /// A node, cluster or resource name is not allowed.
    BadName = "BAD_NAME",
    /// An address cannot be read, or there are too many.
    BadAddress = "BAD_ADDRESS",
    /// A host name has no address.
    NameNotResolved = "NAME_NOT_RESOLVED",
    /// The node is not in a cluster.
    NotMember = "NOT_A_MEMBER",
    /// The node is in a cluster already.
    AlreadyMember = "ALREADY_A_MEMBER",
    /// The name belongs to another object of the cluster.
    NameTaken = "NAME_TAKEN",
    /// Another node has this identity.
    NodeExists = "NODE_EXISTS",
    /// The cluster has no such node.
    NodeUnknown = "NODE_UNKNOWN",
    /// The node still has something that must be given up first.
    NodeBusy = "NODE_BUSY",
    /// The action needs `--force`.
    ForceNeeded = "FORCE_NEEDED",
    /// No split of the cluster is under way.
    NoSplit = "NO_SPLIT",
    /// A message of, or for, another cluster.
    OtherCluster = "OTHER_CLUSTER",
    /// The cluster has as many nodes as it can have.
    ClusterFull = "CLUSTER_FULL",
    /// The text is not a join token.
    TokenGarbled = "TOKEN_GARBLED",
    /// The token's time is over.
    TokenExpired = "TOKEN_EXPIRED",
    /// The token was used already.
    TokenUsed = "TOKEN_USED",
    /// The token was not issued here.
    TokenUnknown = "TOKEN_UNKNOWN",
    /// The secret is not the token's.
    TokenWrongSecret = "TOKEN_WRONG_SECRET",
    /// Too many tokens are waiting to be used.
    TooManyTokens = "TOO_MANY_TOKENS",
    /// The life time asked for a token is not allowed.
    BadTtl = "BAD_TTL",
    /// The certificate is not that of a node of this cluster.
    CertificateUnknown = "CERTIFICATE_UNKNOWN",
    /// The certificate or its signature is not valid, or there is none.
    CertificateInvalid = "CERTIFICATE_INVALID",
    /// The other side refused this node's certificate.
    RefusedByPeer = "REFUSED_BY_PEER",
    /// Another node of the cluster answered.
    WrongNode = "WRONG_NODE",
    /// The connection says no purpose that this node knows.
    ProtocolUnknown = "PROTOCOL_UNKNOWN",
    /// The TLS handshake failed.
    HandshakeFailed = "HANDSHAKE_FAILED",
    /// The TLS handshake took too long.
    HandshakeTimeout = "HANDSHAKE_TIMEOUT",
    /// A record is not valid: key, size or content.
    BadRecord = "BAD_RECORD",
    /// The replicated records have no room left.
    RecordsFull = "RECORDS_FULL",
    /// The slot belongs to another member of the resource.
    SlotTaken = "SLOT_TAKEN",
    /// The resource has as many members as it can have.
    NoSlot = "NO_SLOT",
    /// The state directory is used by another daemon.
    StateDirBusy = "STATE_DIR_BUSY",
    /// A file of the state directory is damaged.
    StateDamaged = "STATE_DAMAGED",
    /// A file of the state directory was written by a newer version.
    StateTooNew = "STATE_TOO_NEW",
    /// A file of the state directory cannot be read or written.
    StateIo = "STATE_IO",
    /// The system gave no random numbers.
    NoRandom = "NO_RANDOM",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why something was not done: nothing has changed. A code for programs, a sentence and a way out
/// for people; it never holds a secret. It travels between nodes as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What it is about.
    pub code: Code,
    /// One sentence without a full stop: WHAT happened to WHICH object: WHY.
    pub message: String,
    /// What to do; empty when there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

impl Refusal {
    /// A refusal with a hint.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

/// At most 80 characters of a text from outside, quoted, for a message.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::{Code, Refusal};

    #[test]
    fn a_refusal_travels_and_newer_codes_are_not_fatal() {
        let refusal = Refusal::new(Code::TokenUsed, "it was used", "make another");
        let text = serde_json::to_string(&refusal).unwrap();
        assert!(text.contains("\"TOKEN_USED\""), "{text}");
        assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), refusal);
        let newer: Refusal = serde_json::from_str(r#"{"code":"NEW","message":"m"}"#).unwrap();
        assert_eq!(newer.code, Code::Other);
    }
}
