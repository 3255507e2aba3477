//! Black-box tests: real daemons, the real command, real clients, `kill -9` in the middle.
//!
//! Every test has daemons, directories and ports of its own. The numbers in the names are those of
//! the list of features that users of such systems rely on. From the environment:
//!
//! * `HOLDFAST_ROUNDS`: how often the failover goes round; `HOLDFAST_SEED`: what its moments are;
//! * `HOLDFAST_OUTAGE_MIB`: how much is written while a log peer cannot be reached;
//! * `HOLDFAST_RESOURCES`: how many resources two nodes share;
//! * `HOLDFAST_BAD_BLOCKS`: how many blocks of a disk that wears out are bad; it has a MiB for each;
//! * `HOLDFAST_BINARY`: another command to test than the one that was just built;
//! * `HOLDFAST_KEEP`: set, it keeps the files of a test that failed.

mod admin;
mod archive;
mod archive_base;
mod attach;
mod bad_sectors;
mod bounds;
mod catch_up;
mod checksums;
mod clusters;
mod config;
mod device;
mod disks;
mod doctor;
mod dry_run;
mod failover;
mod gone;
mod guide;
mod healing;
mod health;
mod holding;
mod hostile;
mod import;
mod joining;
mod journal;
mod journal_device;
mod journal_faults;
mod lines;
mod logpeer;
mod logpeer_delay;
mod logpeer_faults;
mod logpeer_handover;
mod logpeer_healing;
mod logpeer_missed;
mod logpeer_moves;
mod logpeer_resize;
mod logpeer_returns;
mod logpeer_roles;
mod logpeer_switches;
mod many;
mod metadata;
mod monitoring;
mod names;
mod nbd_abuse;
mod nbd_clients;
mod nbd_contexts;
mod nbd_tls;
mod outage;
mod packed;
mod past;
mod refusals;
mod remote_disk;
mod renaming;
mod replace_disk;
mod resize;
mod restart;
mod resync;
mod rewind_losses;
mod serve;
mod service;
mod slow_disks;
mod space;
mod split_brain;
mod status_forms;
mod support;
mod surveys;
mod worn_disks;

use holdfast_testkit::{Cluster, ClusterOptions, Node, block_content};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// A block, the unit of replication.
const BLOCK: u64 = 4096;
/// How long anything that should be quick may take.
const SOON: Duration = Duration::from_secs(30);
/// How long a resync of a small resource may take.
const SYNC: Duration = Duration::from_secs(60);

/// The command under test.
fn binary() -> String {
    std::env::var("HOLDFAST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_holdfast").to_owned())
}

/// How many rounds of a failover there are.
fn rounds() -> u64 {
    number_of("HOLDFAST_ROUNDS", 2)
}

/// What decides the moments at which nodes are killed in those rounds, and what is written.
fn seed() -> u64 {
    number_of("HOLDFAST_SEED", 2024)
}

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn cluster(count: usize) -> Cluster {
    Cluster::new(&binary(), count)
}

/// Nodes with a fault proxy in front of each.
fn cluster_with_proxies(count: usize) -> Cluster {
    let options = ClusterOptions { proxies: true, ..ClusterOptions::default() };
    Cluster::with(&binary(), count, options)
}

/// Waits until a node has heard that another one is not Primary, which is a moment after that has become
/// Secondary: until then it refuses to be promoted.
#[track_caller]
fn wait_no_primary(node: &Node, resource: &str, peer: &str) {
    node.wait_peer(resource, peer, SOON, "it is not Primary", |peer| peer.role != "Primary");
}

/// Writes a recognisable content into each of these blocks.
fn write_blocks(node: &Node, resource: &str, seed: u64, blocks: impl IntoIterator<Item = u64>) {
    let mut client = node.open(resource);
    for block in blocks {
        let content = block_content(seed, 1, block);
        client.write_at(&content, block * BLOCK).expect("the Primary takes writes");
    }
    client.flush().expect("the Primary can flush");
}

/// Panics unless each of these blocks has the content that [`write_blocks`] gave it.
fn check_blocks(node: &Node, resource: &str, seed: u64, blocks: impl IntoIterator<Item = u64>) {
    let mut client = node.open(resource);
    for block in blocks {
        let mut found = vec![0; block_content(0, 0, 0).len()];
        client.read_at(&mut found, block * BLOCK).expect("the Primary can be read");
        let due = block_content(seed, 1, block);
        assert!(found == due, "block {block} on {} holds {:02x?}", node.name(), &found[..32]);
    }
}
