//! A streamed peer that was away shortly is caught up from the journal of the Primary, and is a past
//! state of it all the while.

use crate::{BLOCK, MIB, SOON, SYNC, cluster_with_proxies};
use holdfast_testkit::{Cluster, Cut, Node, Rng, files, wait_until};
use std::collections::BTreeMap;

const SIZE: u64 = 64 * MIB;
/// The blocks that are written to.
const BLOCKS: u64 = 512;
/// A flush comes after so many writes.
const FLUSH_EVERY: u64 = 16;

/// Two nodes, of which the first has a journal of this size. Peers are caught up at this rate: as slowly
/// as can be where it is watched.
fn pair(journal: &str, rate: &str) -> Cluster {
    let cluster = cluster_with_proxies(2);
    let dir = cluster[0].dir().join("r0.journal").display().to_string();
    cluster.create("r0", SIZE, &["--journal", &dir, "--journal-size", journal]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[0].wait_resource("r0", SYNC, "the peer is known", |r| r.peers.len() == 1);
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].wait_synced("r0", SYNC);
    cluster[0].ok(&["set", "r0", &format!("resync-rate={rate}")]);
    cluster
}

/// Numbered writes of one client, each after the one before, with a flush now and then.
#[derive(Default)]
struct Numbered {
    /// The blocks, in order; the number of a write is its place, from 1.
    writes: Vec<u64>,
}

impl Numbered {
    fn write(&mut self, node: &Node, count: u64) {
        let mut client = node.open("r0");
        let mut dice = Rng::new(self.writes.len() as u64);
        for _ in 0..count {
            let block = dice.below(BLOCKS);
            self.writes.push(block);
            let number = self.writes.len() as u64;
            let content = number.to_le_bytes().repeat(512);
            client.write_at(&content, block * BLOCK).expect("the Primary takes writes");
            if number.is_multiple_of(FLUSH_EVERY) {
                client.flush().expect("the Primary can flush");
            }
        }
    }

    /// Panics unless the disk is what a crash could have left: all up to some flush, and any of the
    /// writes up to the next one. The number of the last write that it has.
    fn assert_past_state(&self, node: &Node) -> u64 {
        let mut shown = BTreeMap::new();
        for block in 0..BLOCKS {
            let content = files::read(&node.disk("r0"), block * BLOCK, 4096);
            let number = u64::from_le_bytes(content[..8].try_into().expect("eight bytes"));
            assert_eq!(content, number.to_le_bytes().repeat(512), "block {block} is torn");
            shown.insert(block, number);
        }
        let last = shown.values().copied().max().unwrap_or(0);
        let flushed = last.saturating_sub(1) / FLUSH_EVERY * FLUSH_EVERY;
        for (number, block) in (1..=flushed).zip(&self.writes) {
            assert!(shown[block] >= number, "write {last} is there, and {number} is not");
        }
        last
    }
}

fn cut(cluster: &Cluster) {
    cluster.nodes().iter().for_each(|node| node.proxy().cut(Cut::Reset));
    cluster[0].wait_peer("r0", "beta", SOON, "the cut is noticed", |p| p.connection != "Connected");
}

fn heal(cluster: &Cluster) {
    cluster.nodes().iter().for_each(|node| node.proxy().heal());
}

/// The peer is being caught up: behind, and consistent.
fn wait_caught_up_in_part(cluster: &Cluster) {
    let status = cluster[1].wait_resource("r0", SOON, "it is being caught up", |status| {
        assert_ne!(status.disk.state, "Inconsistent");
        status.peers.iter().any(|peer| {
            peer.replication == "SyncTarget"
                && peer.resync.as_ref().is_some_and(|resync| resync.bytes_done > 0)
        })
    });
    assert_eq!(status.disk.state, "Outdated");
    cluster[0].wait_peer("r0", "beta", SOON, "the Primary says so, too", |peer| {
        (&*peer.replication, &*peer.disk) == ("SyncSource", "Outdated")
            && peer.resync.as_ref().is_some_and(|resync| resync.bytes_total > 0)
    });
}

/// Waits until the peer has everything. How it comes to that is not watched any more, so it may be quick.
fn wait_level(cluster: &Cluster) {
    cluster[0].ok(&["set", "r0", "resync-rate=0"]);
    wait_until(SYNC, "it has everything", || {
        let state = cluster[1].resource("r0").disk.state;
        assert_ne!(state, "Inconsistent", "it is a past state all the while");
        state == "UpToDate" && cluster[0].peer("r0", "beta").replication == "Established"
    });
}

fn assert_equal(cluster: &Cluster) {
    cluster[0].ok(&["secondary", "r0"]);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn a_short_outage_is_caught_up_from_the_journal() {
    let cluster = pair("64M", "1M");
    let mut numbered = Numbered::default();
    numbered.write(&cluster[0], 500);
    cut(&cluster);
    numbered.write(&cluster[0], 3000);
    heal(&cluster);
    wait_caught_up_in_part(&cluster);
    // Cut off in the middle, it goes on where it was. What had come by then may still be on its way to the
    // disk, which is looked at while it stands still.
    cut(&cluster);
    cluster[1].freeze();
    let then = numbered.assert_past_state(&cluster[1]);
    cluster[1].thaw();
    assert!(then > 500 && then < 3500, "{then}");
    let carried = cluster[0].peer("r0", "beta").resync_sent_bytes;
    numbered.write(&cluster[0], 500);
    heal(&cluster);
    // Writes that come meanwhile are behind all that.
    numbered.write(&cluster[0], 500);
    wait_level(&cluster);
    let both = cluster[0].peer("r0", "beta").resync_sent_bytes;
    assert!(carried > 0 && both <= 4000 * BLOCK + 4 * MIB, "{carried}, then {both}");
    assert_equal(&cluster);
}

#[test]
fn a_peer_that_is_killed_while_it_is_caught_up_has_a_past_state() {
    let mut cluster = pair("64M", "1M");
    let mut numbered = Numbered::default();
    numbered.write(&cluster[0], 500);
    cut(&cluster);
    numbered.write(&cluster[0], 3000);
    heal(&cluster);
    wait_caught_up_in_part(&cluster);
    cluster[1].kill9();
    numbered.assert_past_state(&cluster[1]);
    cut(&cluster);
    cluster[1].start();
    cluster[1]
        .wait_resource("r0", SOON, "it knows that it is behind", |r| r.disk.state == "Outdated");
    cluster[1].refused(&["primary", "r0"], 1, "");
    heal(&cluster);
    wait_level(&cluster);
    assert_equal(&cluster);
}

#[test]
fn a_peer_that_is_restarted_is_caught_up_from_the_journal() {
    let mut cluster = pair("64M", "1M");
    let mut numbered = Numbered::default();
    numbered.write(&cluster[0], 500);
    cluster[1].stop();
    numbered.write(&cluster[0], 2000);
    cluster[1].start();
    wait_caught_up_in_part(&cluster);
    wait_level(&cluster);
    assert_equal(&cluster);
}

#[test]
fn an_outage_past_the_budget_goes_by_the_bitmap() {
    let cluster = pair("16M", "0");
    let mut numbered = Numbered::default();
    numbered.write(&cluster[0], 500);
    cut(&cluster);
    numbered.write(&cluster[0], 8000);
    heal(&cluster);
    wait_until(SYNC, "it has everything", || {
        cluster[1].resource("r0").disk.state == "UpToDate"
            && cluster[0].peer("r0", "beta").replication == "Established"
    });
    let carried = cluster[0].peer("r0", "beta").resync_sent_bytes;
    let changed = BLOCKS * BLOCK;
    assert!(carried <= changed, "{carried} bytes for {changed} that changed");
    assert_equal(&cluster);
}
