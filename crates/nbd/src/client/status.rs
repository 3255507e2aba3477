use super::remembered::Remembered;
use std::fmt;
use std::time::Duration;

/// What a remote disk is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RemoteState {
    /// No server has been reached yet.
    Connecting,
    /// Writes that a restarted server may have lost are written again.
    Restoring,
    /// Requests go to the server.
    Connected,
    /// The server is away, and tried again.
    Reconnecting,
    /// What answers is another export; nothing is sent to it.
    Refused,
    /// After an abort: requests wait for the end of the hold.
    Held,
    /// It is over.
    Closed,
}

impl RemoteState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Restoring => "Restoring",
            Self::Connected => "Connected",
            Self::Reconnecting => "Reconnecting",
            Self::Refused => "Refused",
            Self::Held => "Held",
            Self::Closed => "Closed",
        }
    }
}

impl fmt::Display for RemoteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ConnectionState {
    /// There is none in this place.
    Idle,
    /// It is being made or checked.
    Connecting,
    /// It takes requests.
    Live,
}

impl ConnectionState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Connecting => "Connecting",
            Self::Live => "Live",
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One of the connections. Counters go on when it is made again.
#[derive(Clone, Debug)]
pub struct ConnectionStatus {
    /// What it is doing.
    pub state: ConnectionState,
    /// Where it leads, or led last.
    pub uri: String,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes of data read.
    pub bytes_read: u64,
    /// Bytes of data written.
    pub bytes_written: u64,
    /// Bytes read in the last second or so.
    pub read_rate: u64,
    /// Bytes written in the last second or so.
    pub write_rate: u64,
    /// Requests that wait for an answer.
    pub under_way: usize,
    /// How often it was made again.
    pub reconnects: u64,
    /// How long it has been live.
    pub live_for: Option<Duration>,
    /// Why it ended last, or could not be made.
    pub last_error: Option<String>,
}

/// One server, or several of which one is used.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// What it is doing.
    pub state: RemoteState,
    /// How long it has been in this state.
    pub state_for: Duration,
    /// The server in use, or the one that was used last.
    pub uri: String,
    /// Requests that are not over.
    pub pending: usize,
    /// Bytes of writes that are kept because no flush has covered them.
    pub unflushed_bytes: u64,
    /// Requests that were sent again because their connection broke.
    pub resent: u64,
    /// Writes that were written again because the server may have lost them.
    pub restored: u64,
    /// How often all connections were lost.
    pub outages: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// What the export looks like, in one short text; changes with its content.
    pub identity: String,
    /// What the export holds in some places, as far as that is known and durable.
    pub remembered: Remembered,
    /// One for each connection that there may be.
    pub connections: Vec<ConnectionStatus>,
}

/// What one leg of a mirror is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LegState {
    /// It has everything.
    InSync,
    /// It has missed writes, and is away or failing.
    Behind,
    /// It has missed writes, and is getting them.
    Syncing,
}

impl LegState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InSync => "InSync",
            Self::Behind => "Behind",
            Self::Syncing => "Syncing",
        }
    }
}

impl fmt::Display for LegState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One leg of a mirror.
#[derive(Clone, Debug)]
pub struct LegStatus {
    /// What it is worth.
    pub state: LegState,
    /// Bytes that it has missed and not got yet.
    pub missing_bytes: u64,
    /// Bytes that were copied to it since the start.
    pub copied_bytes: u64,
    /// Its server.
    pub session: SessionStatus,
}

/// What is to be known about a remote disk.
#[derive(Clone, Debug)]
pub struct RemoteStatus {
    /// What it is doing; of a mirror, its best leg.
    pub state: RemoteState,
    /// Bytes.
    pub size: u64,
    /// What the export looks like, in one short text; changes with its content.
    pub identity: String,
    /// Requests that are not over.
    pub pending: usize,
    /// The server or servers; one, except of a mirror.
    pub legs: Vec<LegStatus>,
}
