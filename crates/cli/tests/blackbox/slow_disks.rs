//! A disk that answers late, or not at all, below a Primary whose peer is well.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, wait_no_primary, write_blocks};
use holdfast_testkit::{BadDisk, Cluster, devices_unavailable, wait_until};
use std::time::{Duration, Instant};

const SIZE: u64 = 16 * MIB;

/// Two nodes in sync, the first Primary on a disk that can be slowed down; `None` where there is none.
fn on_slow_disk() -> Option<(Cluster, BadDisk)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return None;
    }
    let cluster = cluster(2);
    let disk = BadDisk::new(cluster.scratch(), "slow", SIZE);
    cluster[0].ok(&["create", "r0", "--disk", &disk.text()]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[0].wait_synced("r0", SYNC);
    write_blocks(&cluster[0], "r0", 1, 0..256);
    check_blocks(&cluster[0], "r0", 1, 0..256);
    Some((cluster, disk))
}

#[test]
fn row_067_reads_of_a_slow_disk_are_answered_by_the_peer() {
    // A peer is asked after a fraction of a second, but this machine may stand still for seconds.
    const DELAY: Duration = Duration::from_secs(6);
    let Some((cluster, disk)) = on_slow_disk() else { return };
    let node = &cluster[0];
    let before = node.resource("r0").disk;
    let mut client = node.open("r0");
    let mut found = [0; 4096];
    disk.delay(DELAY, Duration::ZERO);
    for block in 0..8 {
        let begin = Instant::now();
        client.read_at(&mut found, block * BLOCK).expect("the peer has it");
        let took = begin.elapsed();
        assert!(found[..] == holdfast_testkit::block_content(1, 1, block)[..], "block {block}");
        assert!(took < DELAY * 3 / 4, "block {block} took {took:?}");
    }
    let seen = node.resource("r0").disk;
    assert_eq!(seen.state, "UpToDate");
    assert_eq!(seen.hedged_reads_won, before.hedged_reads_won + 8);
    assert!(seen.hedged_reads >= seen.hedged_reads_won);
    let of_it = ["resource=\"r0\""];
    let told = node.metric("holdfast_disk_hedged_reads_won_total", &of_it);
    assert_eq!(told, Some(seen.hedged_reads_won as f64));
    // What is written meanwhile is what is read from then on.
    write_blocks(node, "r0", 2, 0..4);
    check_blocks(node, "r0", 2, 0..4);
    // Without the option a read takes as long as the disk does.
    node.ok(&["set", "r0", "read-hedge=0"]);
    let begin = Instant::now();
    client.read_at(&mut found, 100 * BLOCK).expect("it is only slow");
    assert!(begin.elapsed() >= DELAY, "{:?}", begin.elapsed());
    disk.delay(Duration::ZERO, Duration::ZERO);
    assert_eq!(node.resource("r0").disk.io_errors, 0, "slow is not broken");
    check_blocks(node, "r0", 2, 0..4);
    check_blocks(node, "r0", 1, 4..256);
}

#[test]
fn row_068_a_disk_that_hangs_is_given_up_after_disk_timeout() {
    let Some((cluster, disk)) = on_slow_disk() else { return };
    let node = &cluster[0];
    node.ok(&["set", "r0", "disk-timeout=3s"]);
    assert!(node.ok(&["get", "r0"]).contains("disk-timeout"));
    disk.stall(true);
    let begin = Instant::now();
    // Reads go to the peer at once, writes when the disk was given up.
    check_blocks(node, "r0", 1, 0..4);
    write_blocks(node, "r0", 2, 0..16);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    check_blocks(node, "r0", 2, 0..16);
    check_blocks(node, "r0", 1, 16..256);
    let seen = node.wait_resource("r0", SOON, "it is given up", |r| r.disk.state != "UpToDate");
    assert_eq!((&*seen.role, &*seen.disk.state), ("Primary", "Failed"));
    let problem = seen.disk.problem.expect("it is told");
    assert!(problem.contains("has not answered for longer than it may"), "{problem}");
    write_blocks(node, "r0", 3, 0..8);
    node.refused(&["attach-disk", "r0"], 1, "Primary");
    node.ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[1], "r0", "alpha");
    cluster[1].ok(&["primary", "r0"]);
    // It is not used again before it has answered everything: what it has in hand it may store yet.
    node.refused(&["attach-disk", "r0"], 1, "has not answered yet");
    write_blocks(&cluster[1], "r0", 4, 0..2);
    disk.stall(false);
    wait_until(SYNC, "it can be attached again", || node.cli(&["attach-disk", "r0"]).status == 0);
    node.wait_synced("r0", SYNC);
    // The copy has what was written since, and nothing older came over it.
    for (node, other) in cluster.nodes().iter().zip(["beta", "alpha"]).rev() {
        wait_no_primary(node, "r0", other);
        node.ok(&["primary", "r0"]);
        check_blocks(node, "r0", 4, 0..2);
        check_blocks(node, "r0", 3, 2..8);
        check_blocks(node, "r0", 2, 8..16);
        check_blocks(node, "r0", 1, 16..256);
        node.ok(&["secondary", "r0"]);
    }
    node.ok(&["down", "r0"]);
    for (block, seed) in [(0, 4), (2, 3), (7, 3), (8, 2), (15, 2), (16, 1), (255, 1)] {
        let stored = disk.peek(block * BLOCK, 4096);
        assert!(stored == holdfast_testkit::block_content(seed, 1, block), "block {block}");
    }
}
