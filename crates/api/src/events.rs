//! What `/v1/events` sends: one [`Event`] a server-sent event, the kind as its name, the event as
//! JSON in `data`, the sequence number as its id.
//!
//! A stream starts with a dump of everything that is there (kind `exists`), closes the dump with
//! one event whose object is [`END_OF_DUMP`], and goes on with the changes.
//!
//! Who has read up to a number asks for what came after it (`?since=NUMBER`). The stream then starts with
//! that instead of the dump, or, when it is not kept any more, with one event of the kind `missed` and
//! the dump.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// The object of the event that closes the dump.
pub const END_OF_DUMP: &str = "-";

/// What happened to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// It was there when the stream began.
    Exists,
    /// It came into being.
    Create,
    /// Some of its fields changed; only those are in `fields`.
    Change,
    /// It is gone.
    Destroy,
    /// What happened after the number that was asked for is not known any more; a dump follows. The
    /// fields `since` and `reason` say more.
    Missed,
    /// A handler was called.
    Call,
    /// A handler answered.
    Response,
}

impl EventKind {
    /// The word as it travels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exists => "exists",
            Self::Create => "create",
            Self::Change => "change",
            Self::Destroy => "destroy",
            Self::Missed => "missed",
            Self::Call => "call",
            Self::Response => "response",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number; grows by one from event to event of a daemon's life, and is higher in a later life.
    /// Events of a dump bear the number of the last change that they contain.
    pub seq: u64,
    /// When it happened, in milliseconds since 1970.
    pub time_unix_ms: u64,
    /// What happened.
    pub kind: EventKind,
    /// To what: `node`, `cluster`, `resource`, `disk`, `device`, `peer`, `attachment`, `leg`; `-` closes
    /// the dump; `events` with `missed`.
    pub object: String,
    /// The name of the resource, or of the node or cluster; empty for `-` and `events`.
    pub name: String,
    /// The peer of the resource, for objects that belong to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it is like now, in the words of `status --json`.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

impl Event {
    /// The event that closes the dump.
    #[must_use]
    pub fn end_of_dump(seq: u64, time_unix_ms: u64) -> Self {
        Self {
            seq,
            time_unix_ms,
            kind: EventKind::Exists,
            object: END_OF_DUMP.into(),
            name: String::new(),
            peer: None,
            fields: BTreeMap::new(),
        }
    }

    /// The event that says that what came after a number is not known any more.
    #[must_use]
    pub fn missed(seq: u64, time_unix_ms: u64, since: u64, reason: &str) -> Self {
        let fields = [("since", since.to_string()), ("reason", reason.to_owned())];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        Self {
            kind: EventKind::Missed,
            object: "events".into(),
            fields: fields.into(),
            ..Self::end_of_dump(seq, time_unix_ms)
        }
    }

    /// Whether this closes the dump.
    #[must_use]
    pub fn is_end_of_dump(&self) -> bool {
        self.object == END_OF_DUMP
    }
}

/// One line: `change peer name:r0 peer:beta connection:Connected`, and `exists -`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.object)?;
        if !self.name.is_empty() {
            write!(f, " name:{}", self.name)?;
        }
        if let Some(peer) = &self.peer {
            write!(f, " peer:{peer}")?;
        }
        self.fields.iter().try_for_each(|(key, value)| write!(f, " {key}:{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_json() {
        let event = Event {
            seq: 7,
            time_unix_ms: 9,
            kind: EventKind::Change,
            object: "peer".into(),
            name: "r0".into(),
            peer: Some("beta".into()),
            fields: [("connection".to_owned(), "Connected".to_owned())].into(),
        };
        assert_eq!(event.to_string(), "change peer name:r0 peer:beta connection:Connected");
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"seq":7,"time_unix_ms":9,"kind":"change","object":"peer","name":"r0","peer":"beta","fields":{"connection":"Connected"}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        let end = Event::end_of_dump(7, 9);
        assert_eq!(end.to_string(), "exists -");
        assert!(end.is_end_of_dump() && !event.is_end_of_dump());
    }
}
