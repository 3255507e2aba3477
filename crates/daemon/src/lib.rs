//! The daemon of a node: it wires the rooms together.
//!
//! ```text
//!   command ──HTTP on a Unix socket──▶ http ──▶ commands ──┐
//!   node ──TLS──▶ peer_api (records, joins, data links) ───┼──▶ Node: records, local state
//!                                                          ▼
//!   keeper, dial: one of each for every resource ──▶ shard: cores, disks, NBD, links
//! ```
//!
//! The control plane runs on a tokio runtime of its own; data never pass through it. See
//! `docs/design/daemon.md`.

mod archiving;
mod attachment;
mod checksums;
mod comeback;
mod commands;
pub mod config;
mod daemon;
mod dial;
mod disk;
mod doorstep;
mod events;
mod growth;
mod guests;
mod health;
mod http;
mod inherited;
mod inventory;
mod journaled;
mod keeper;
mod latency;
mod listeners;
mod local;
mod log;
mod logpeer;
mod memory;
mod metrics;
mod node;
mod opening;
mod options;
mod peer_api;
mod peers;
mod phases;
mod problems;
mod rate;
mod refuse;
mod remote;
mod replacing;
mod resource;
mod resyncs;
mod revert;
mod run;
mod scrape;
mod service;
pub mod shard;
mod space;
mod spares;
mod statefile;
mod status;
mod survey;
mod task;

pub use holdfast_device::hold as hold_device;
pub use inherited::{Inherited, inherited_sockets};
pub use inventory::inventory;
pub use memory::guard_memory;
pub use metrics::{STATUS_FIELDS, Told};
pub use options::{
    DEFAULT_SOCKET, DEFAULT_STATE_DIR, DaemonOptions, Effective, NbdAccess, Origin, conflicts_in,
    effective, overlap,
};
pub use run::run;
