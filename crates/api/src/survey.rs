//! `verify` and `scrub`: what they are told, and how they go.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `verify`: compares the data of connected members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// What to do.
    #[serde(default)]
    pub action: SurveyWord,
    /// The first byte, a multiple of 4096; the start of the device when left out.
    #[serde(default)]
    pub start: Option<u64>,
    /// The byte behind the last one, a multiple of 4096; the end of the device when left out.
    #[serde(default)]
    pub stop: Option<u64>,
    /// Only with this peer.
    #[serde(default)]
    pub peer: Option<String>,
    /// Write what is right to the copies that are wrong.
    #[serde(default)]
    pub repair: bool,
}

/// `scrub`: reads everything on this node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// What to do.
    #[serde(default)]
    pub action: SurveyWord,
}

/// What is done to a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SurveyWord {
    /// It begins.
    #[default]
    Start,
    /// It stops for a while, also over a restart of the daemon where it is a scrub.
    Pause,
    /// It goes on.
    Resume,
    /// It ends.
    Stop,
}

/// How a `verify` or a `scrub` goes, or went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SurveyReport {
    /// `running`, `paused`, `waiting`, `done`, `stopped` or `failed`.
    pub state: String,
    /// Why it waits, was stopped or failed; `null` otherwise.
    pub reason: Option<String>,
    /// Whether copies that are wrong are repaired: `never`, `majority` or `always`.
    pub repair: String,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When it ended; `null` while it goes on.
    pub ended_unix_ms: Option<u64>,
    /// How much is done, 0 to 100.
    pub percent: f64,
    /// How much was read here, in bytes.
    pub bytes_done: u64,
    /// How much there is to read here, in bytes.
    pub bytes_total: u64,
    /// How much of that was compared with at least one peer, in bytes.
    pub bytes_compared: u64,
    /// How much could not be compared although it was to be, in bytes.
    pub bytes_skipped: u64,
    /// The present rate.
    pub rate_bytes_per_second: u64,
    /// Seconds until it is done at this rate; 0 while the rate is 0.
    pub eta_seconds: u64,
    /// Blocks of 4096 bytes that differed, counted for each node whose copy was another one.
    pub differing_blocks: u64,
    /// Those of them that were repaired.
    pub repaired_blocks: u64,
    /// Blocks that this node could not read; they are healed from a peer where one has them.
    pub unreadable_blocks: u64,
    /// The peers that it was compared with, by name.
    pub peers: Vec<String>,
    /// The first places that differed; left out in `status`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<SurveyPlace>,
}

/// Where copies differed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SurveyPlace {
    /// The node whose copy was another one than the others', or than the one that counts.
    pub node: String,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether it was repaired.
    pub repaired: bool,
    /// Whether most of three or more copies agreed that it was wrong.
    pub majority: bool,
}

/// The answer to `GET`: the run that goes on, and the one before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SurveyReports {
    /// The run that goes on; `null` when none does.
    pub current: Option<SurveyReport>,
    /// The last one that ended; `null` when there was none.
    pub last: Option<SurveyReport>,
    /// When the next scrub is due, in milliseconds since 1970; `null` when none is.
    #[serde(default)]
    pub next_unix_ms: Option<u64>,
}
