//! What black-box tests are made with: real daemons in scratch directories, their command line,
//! a writer that keeps account of what was acknowledged, a TCP proxy that breaks connections.
//!
//! * [`Cluster`] makes nodes, [`Node`] is one: a directory, and a daemon while it runs.
//! * [`Writer`] writes numbered blocks without pause, its [`Ledger`] says what must be there.
//! * [`Proxy`] stands between nodes and cuts, stalls, delays and counts.
//! * [`BadDisk`] is a file whose blocks fail on command.
//! * [`guide`] reads the commands that the documentation shows.
//! * [`files`] compares and fills backing files, [`wait_until`] is the one way to wait.
//!
//! Everything here is for tests: what goes wrong panics with what is known about it, and a panic
//! prints the end of each node's log. Every wait has a limit. Only processes that were started
//! here are ever killed, by their number.

mod bad_disk;
mod cluster;
mod device;
mod far;
pub mod files;
pub mod guide;
mod node;
mod panics;
mod program;
mod proxy;
mod rng;
mod scratch;
mod wait;
mod writer;

pub use bad_disk::{Bad, BadDisk, IoCounts};
pub use cluster::{Cluster, ClusterOptions};
pub use device::{Mount, devices_unavailable, unmount};
pub use far::Far;
pub use node::Node;
pub use program::{Output, run, run_ok, run_with_limit};
pub use proxy::{Cut, Proxy};
pub use rng::Rng;
pub use scratch::Scratch;
pub use wait::{holds_within, wait_until};
pub use writer::{BLOCK, Ledger, Writer, WriterOptions, block_content};
