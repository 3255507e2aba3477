//! The Primary dies: nothing that was acknowledged is lost.

use crate::{
    BLOCK, MIB, SOON, SYNC, check_blocks, cluster, cluster_with_proxies, rounds, seed, write_blocks,
};
use holdfast_testkit::{Cut, Ledger, Mount, Rng, Writer, WriterOptions, files, wait_until};
use std::time::{Duration, Instant};

#[test]
fn acknowledged_writes_survive_the_death_of_a_secondary_and_of_the_primary() {
    failover_rounds(16 * MIB, Ledger::new(seed(), 4096), &[]);
}

/// The same with a device so large, and so few hot extents, that most of what a dead node missed is
/// known by bitmaps only.
#[test]
fn acknowledged_writes_survive_on_a_device_with_few_hot_extents() {
    failover_rounds(512 * MIB, Ledger::spread(seed(), 4096, 32), &["--set", "al-extents=67"]);
}

/// Three nodes, a client that writes without pause. In each round a Secondary is killed, then the
/// Primary, at moments that differ, sometimes with all that was still on the network; the third
/// node is promoted; both dead ones come back.
fn failover_rounds(size: u64, mut ledger: Ledger, arguments: &[&str]) {
    let mut cluster = cluster_with_proxies(3);
    cluster.create("r0", size, arguments);
    for node in &cluster.nodes()[1..] {
        cluster.join_resource(node, "r0", size, &[]);
    }
    cluster[0].wait_resource("r0", SOON, "all are members", |r| r.peers.len() == 2);
    for node in cluster.nodes() {
        node.wait_synced("r0", SYNC);
    }
    let mut rng = Rng::new(seed());
    let mut primary = 0;
    for round in 0..rounds() {
        let (first, next) = match rng.below(2) {
            0 => ((primary + 1) % 3, (primary + 2) % 3),
            _ => ((primary + 2) % 3, (primary + 1) % 3),
        };
        let options = WriterOptions { connections: 4, flush_every: 50, ..Default::default() };
        let writer = Writer::start(&cluster[primary].uri("r0"), ledger, options);
        writer.wait_acknowledged(1 + rng.below(300));
        cluster[first].kill9();
        let so_far = writer.acknowledged();
        writer.wait_acknowledged(so_far + 1 + rng.below(300));
        let lose_network = rng.below(2) == 0;
        if lose_network {
            // Nothing arrives any more, so nothing may be acknowledged any more.
            cluster.nodes().iter().for_each(|node| node.proxy().stall());
            let stalled = Instant::now();
            wait_until(SOON, "a moment", || stalled.elapsed() > Duration::from_millis(50));
        }
        cluster[primary].kill9();
        if lose_network {
            cluster.nodes().iter().for_each(|node| node.proxy().cut(Cut::Reset));
            cluster.nodes().iter().for_each(|node| node.proxy().heal());
        }
        let errors;
        (ledger, errors) = writer.join();
        assert_eq!(errors.len(), 4, "round {round}: a connection survived its server");
        let dead = cluster[primary].name().to_owned();
        cluster[next].wait_peer("r0", &dead, SOON, "the Primary is gone", |peer| {
            peer.connection != "Connected"
        });

        cluster[next].ok(&["primary", "r0"]);
        ledger.verify_export(&cluster[next].uri("r0"));
        // The new Primary is written to before the others come back.
        let writer = Writer::start(
            &cluster[next].uri("r0"),
            ledger,
            WriterOptions { connections: 2, limit: 50, ..Default::default() },
        );
        let errors;
        (ledger, errors) = writer.join();
        assert!(errors.is_empty(), "round {round}: {errors:?}");
        let back = if rng.below(2) == 0 { [first, primary] } else { [primary, first] };
        for index in back {
            cluster[index].start();
        }
        for index in [next, first, primary] {
            cluster[index].wait_synced("r0", SYNC);
        }
        for index in 0..3 {
            assert_eq!(
                cluster[index].resource("r0").role == "Primary",
                index == next,
                "round {round}"
            );
            ledger.verify_file(&cluster[index].disk("r0"));
        }
        cluster.assert_equal_disks("r0", size, &[next, first, primary]);
        primary = next;
    }
}

#[test]
fn row_022_what_a_killed_peer_has_is_a_state_that_once_was() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let mut rng = Rng::new(22);
    let mut ledger = Ledger::new(22, 1024);
    for _ in 0..3 {
        // Each write waits for the one before: the peer must have all up to some write.
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
        writer.wait_acknowledged(50 + rng.below(400));
        let acknowledged = writer.acknowledged();
        cluster[1].kill9();
        let writer_after = writer.acknowledged();
        ledger = writer.stop_well();
        assert!(writer_after >= acknowledged);
        let newest = ledger.verify_prefix(&cluster[1].disk("r0"));
        assert!(newest > 0);
        cluster[1].start();
        cluster[0].wait_synced("r0", SOON);
        cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
    }
}

#[test]
fn row_023_what_was_flushed_is_on_every_node_when_all_are_killed() {
    let mut cluster = cluster(3);
    cluster.resource("r0", 4 * MIB, 3);
    write_blocks(&cluster[0], "r0", 23, 0..200);
    for index in 0..3 {
        cluster[index].kill9();
    }
    for index in 0..3 {
        let found = files::read(&cluster[index].disk("r0"), 199 * BLOCK, 4096);
        assert!(found == holdfast_testkit::block_content(23, 1, 199), "node {index}");
    }
    for index in [2, 0, 1] {
        cluster[index].start();
    }
    cluster[0].wait_synced("r0", SOON);
    if cluster[0].resource("r0").role != "Primary" {
        cluster[0].ok(&["primary", "r0"]);
    }
    check_blocks(&cluster[0], "r0", 23, 0..200);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1, 2]);
}

#[test]
fn row_035_a_crashed_primary_that_comes_back_is_the_source() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 16 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    // The peer does not get what is written now, and the client gets no answer.
    cluster[1].freeze();
    let options = WriterOptions { connections: 4, ..WriterOptions::default() };
    let disk = cluster[0].disk("r0");
    let before = files::fingerprint(&disk, 16 * MIB);
    let ledger = Ledger::new(35, 4096);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
    wait_until(SOON, "the Primary's own disk has a write", || {
        files::fingerprint(&disk, 16 * MIB) != before
    });
    assert_eq!(writer.acknowledged(), 0, "a write was acknowledged that the peer does not have");
    cluster[0].kill9();
    cluster[1].kill9();
    let _ = writer.join();
    assert!(files::first_difference(&disk, &cluster[1].disk("r0"), 16 * MIB).is_some());
    let crashed = files::fingerprint(&disk, 16 * MIB);

    cluster[0].start();
    cluster[1].start();
    cluster[0].wait_synced("r0", SOON);
    assert_eq!(files::fingerprint(&disk, 16 * MIB), crashed, "the source was overwritten");
    cluster.assert_equal_disks("r0", 16 * MIB, &[0, 1]);
    let peer = cluster[1]
        .wait_peer("r0", "alpha", SOON, "it was filled", |peer| peer.resync_received_bytes > 0);
    assert_eq!(peer.resync_sent_bytes, 0, "{peer:?}");
}

/// The old Primary comes back after another one was promoted and written to.
#[test]
fn row_035_a_crashed_primary_that_was_replaced_is_the_target() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 16 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].kill9();
    cluster[1]
        .wait_peer("r0", "alpha", SOON, "the Primary is gone", |p| p.connection != "Connected");
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 1, 0..100);
    write_blocks(&cluster[1], "r0", 2, 50..150);
    cluster[0].start();
    cluster[1].wait_synced("r0", SOON);
    assert_eq!(cluster[0].resource("r0").role, "Secondary");
    assert_eq!(cluster[1].resource("r0").role, "Primary");
    check_blocks(&cluster[1], "r0", 1, 0..50);
    check_blocks(&cluster[1], "r0", 2, 50..150);
    cluster.assert_equal_disks("r0", 16 * MIB, &[0, 1]);
}

/// The disk of the Primary, and then that of a Secondary, fails: here by a full file system.
#[test]
fn a_failed_disk_is_given_up_and_the_data_stay_within_reach() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    for failing in [0, 1] {
        let cluster = cluster(2);
        let size = 16 * MIB;
        let small = Mount::memory(&cluster[failing].dir().join("small"), 4 * MIB);
        let disk = small.path().join("disk");
        files::make_sparse(&disk, size);
        let disk = disk.display().to_string();
        let normal = cluster[1 - failing].disk("r0");
        files::make_sparse(&normal, size);
        let normal = normal.display().to_string();
        let disks = if failing == 0 { [&disk, &normal] } else { [&normal, &disk] };
        cluster[0].ok(&["create", "r0", "--disk", disks[0]]);
        cluster[1].ok(&["join", "r0", "--disk", disks[1]]);
        cluster.wait_members("r0", 2, SYNC);

        // More than there is room for: the client notices nothing.
        write_blocks(&cluster[0], "r0", 4, 0..3000);
        check_blocks(&cluster[0], "r0", 4, 0..3000);
        let status = cluster[failing].wait_resource("r0", SOON, "the disk is given up", |r| {
            ["Failed", "Diskless"].contains(&&*r.disk.state)
        });
        assert!(status.disk.io_errors > 0, "{status:?}");
        assert_eq!(cluster[1 - failing].resource("r0").disk.state, "UpToDate");
        // The role moves to where the good disk is, and back.
        if failing == 0 {
            cluster[0].ok(&["secondary", "r0"]);
            cluster[1].ok(&["primary", "r0"]);
            check_blocks(&cluster[1], "r0", 4, 0..3000);
        }
    }
}
