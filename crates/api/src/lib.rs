//! The control API of Holdfast: the types of its HTTP calls and of `status --json`, the registry of
//! options with their ranges, the error codes, and a client.
//!
//! Whoever talks to a daemon, the `holdfast` command included, uses exactly this. The calls are
//! listed in [`calls`]; the same list makes the OpenAPI document.

pub mod attachment;
pub mod badblocks;
pub mod calls;
pub mod client;
pub mod daemon;
pub mod error;
pub mod events;
pub mod health;
pub mod journal;
pub mod latency;
pub mod options;
pub mod phases;
pub mod request;
pub mod routes;
pub mod status;
pub mod survey;
pub mod words;

pub use client::{Client, ClientError, EventStream};
pub use error::{ApiError, ErrorBody, ErrorCode};
pub use events::{Event, EventKind};
