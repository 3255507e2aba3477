use super::dial::DialOptions;
use super::remembered::Remembered;
use super::session::Limits;
use crate::NbdUri;
use std::path::PathBuf;
use std::time::Duration;

/// The most connections to one server.
pub const MAX_CONNECTIONS: usize = 16;
/// The most URIs of one disk.
pub const MAX_URIS: usize = 16;

/// How a remote disk is reached, and how long is waited for what.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// Where the export is: the first that answers is used, the others are for when it fails. With
    /// [`RemoteOptions::mirror`], each holds a copy.
    pub uris: Vec<NbdUri>,
    /// Connections to a server, 1 to [`MAX_CONNECTIONS`]. One is used when the server does not
    /// keep several coherent.
    pub connections: usize,
    /// How long a request may take altogether, also while no server is there. `None` is for ever.
    pub timeout: Option<Duration>,
    /// How long a connection may take until it is ready for requests.
    pub connect_timeout: Duration,
    /// How long a server may owe an answer without a sign of life before its connection is given
    /// up.
    pub silence: Duration,
    /// The longest pause between attempts to reach a server.
    pub longest_pause: Duration,
    /// Where `ca-cert.pem`, `client-cert.pem` and `client-key.pem` are; a URI may name another
    /// directory. Only used for URIs that demand TLS.
    pub tls_certificates: Option<PathBuf>,
    /// Refuse changes, whatever the server would allow.
    pub read_only: bool,
    /// Whether a server that comes back must have the content that it had. To be switched off only
    /// for an export that others write to as well.
    pub content_check: bool,
    /// What [`super::RemoteStatus::identity`] must be when the disk is opened.
    pub identity: Option<String>,
    /// What the export held when it was seen last; one that holds something else is refused. Not for
    /// mirrors, which know it from their state directory.
    pub remembered: Option<Remembered>,
    /// How many bytes of writes are kept until a flush has covered them.
    pub unflushed_limit: u64,
    /// Every URI is a copy, and all are kept equal.
    pub mirror: Option<MirrorOptions>,
}

/// How copies are kept equal.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// How long a server may be away before the others go on without it.
    pub patience: Duration,
    /// Where it is written down which server lacks what, one directory for each mirror; those of
    /// other mirrors are beside it. Without it that is forgotten with the process.
    pub state_dir: Option<PathBuf>,
    /// What to believe of the servers.
    pub start: MirrorStart,
}

/// What to believe of the servers of a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorStart {
    /// What is written down; where nothing is, that they hold the same. Samples of them are compared.
    Equal,
    /// The first one is right, unless it is written down that it lacks something: all others are
    /// compared with it and filled where they differ.
    CopyFirst,
}

impl Default for MirrorOptions {
    fn default() -> Self {
        let patience = Duration::from_secs(2);
        Self { patience, state_dir: None, start: MirrorStart::Equal }
    }
}

impl RemoteOptions {
    /// One connection to the first of these that answers; requests wait for a minute.
    #[must_use]
    pub fn new(uris: Vec<NbdUri>) -> Self {
        Self {
            uris,
            connections: 1,
            timeout: Some(Duration::from_secs(60)),
            connect_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            longest_pause: Duration::from_secs(5),
            tls_certificates: None,
            read_only: false,
            content_check: true,
            identity: None,
            remembered: None,
            unflushed_limit: 64 << 20,
            mirror: None,
        }
    }

    /// What is wrong with them, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        if self.uris.is_empty() || self.uris.len() > MAX_URIS {
            Some(format!("a disk has 1 to {MAX_URIS} URIs"))
        } else if self.connections == 0 || self.connections > MAX_CONNECTIONS {
            Some(format!("a disk has 1 to {MAX_CONNECTIONS} connections"))
        } else if self.mirror.is_some() && !(2..=4).contains(&self.uris.len()) {
            Some("a mirror has 2 to 4 URIs".to_owned())
        } else if self.timeout == Some(Duration::ZERO) {
            Some("the timeout is zero; leave it out to wait for ever".to_owned())
        } else {
            None
        }
    }

    pub(super) fn dial(&self) -> DialOptions {
        DialOptions {
            patience: self.connect_timeout,
            silence: self.silence,
            certificates: self.tls_certificates.clone(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits {
            timeout: self.timeout,
            unflushed: self.unflushed_limit.max(1 << 16),
            ..Limits::default()
        }
    }
}
