//! What a node missed, it gets: exactly that, in the right direction, and to the end.

use crate::{
    BLOCK, MIB, SOON, SYNC, check_blocks, cluster, cluster_with_proxies, wait_no_primary,
    write_blocks,
};
use holdfast_api::status::PeerStatus;
use holdfast_testkit::{Cluster, Cut, Ledger, Rng, Writer, WriterOptions, files};
use std::os::unix::fs::FileExt;

const EXTENT: u64 = 4 * MIB;

/// Alpha Primary, with random data; the others join at a rate of so many bytes a second, and
/// nobody waits.
fn slow_first_sync(cluster: &Cluster, size: u64, rate: &str) {
    files::make_random(&cluster[0].disk("r0"), size, 31);
    let rate = format!("resync-rate={rate}");
    cluster.create("r0", size, &["--set", &rate, "--set", "resync-in-flight=1M"]);
    for node in &cluster.nodes()[1..] {
        cluster.join_resource(node, "r0", size, &[]);
    }
}

/// Lets the rest of a resync go as fast as it can: what was to be seen while it is slow was seen.
fn speed_up(cluster: &Cluster) {
    cluster[0].ok(&["set", "r0", "resync-rate=0"]);
}

fn gone(peer: &PeerStatus) -> bool {
    peer.connection != "Connected"
}

/// Waits until the node has got so much of its resync from alpha.
#[track_caller]
fn wait_percent(cluster: &Cluster, index: usize, percent: f64) {
    let node = &cluster[index];
    node.wait_peer("r0", "alpha", SYNC, &format!("{percent} % of the resync"), |peer| {
        peer.resync.as_ref().is_some_and(|resync| resync.percent >= percent)
    });
}

#[test]
fn row_016_older_data_are_never_taken_for_good() {
    let mut cluster = cluster(2);
    let size = 8 * MIB;
    cluster.create("r0", size, &[]);
    let meta = cluster[1].dir().join("r0.meta");
    cluster.join_resource(&cluster[1], "r0", size, &["--meta", &meta.display().to_string()]);
    cluster[0].wait_synced("r0", SYNC);
    write_blocks(&cluster[0], "r0", 1, 0..20);

    // A copy of disk and metadata is taken, new data are written, the copy is put back.
    cluster[1].stop();
    let disk = cluster[1].disk("r0");
    let copies =
        [(disk.with_extension("old-disk"), &disk), (meta.with_extension("old-meta"), &meta)];
    for (copy, file) in &copies {
        files::copy(file, copy);
    }
    write_blocks(&cluster[0], "r0", 2, 10..30);
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].stop();
    write_blocks(&cluster[0], "r0", 3, 40..50);
    for (copy, file) in &copies {
        files::copy(copy, file);
    }
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    check_blocks(&cluster[0], "r0", 2, 10..30);
    check_blocks(&cluster[0], "r0", 3, 40..50);
}

#[test]
fn row_016_a_disk_that_missed_writes_is_made_good_before_it_counts() {
    let cluster = cluster(2);
    let size = 8 * MIB;
    cluster.resource("r0", size, 2);
    write_blocks(&cluster[0], "r0", 1, 0..20);
    cluster[0].ok(&["detach-disk", "r0"]);
    assert_eq!(cluster[0].resource("r0").disk.state, "Diskless");
    // The Primary goes on with its peer's disk.
    check_blocks(&cluster[0], "r0", 1, 0..20);
    write_blocks(&cluster[0], "r0", 2, 10..30);
    cluster[0].ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[1], "r0", "alpha");
    cluster[1].ok(&["primary", "r0"]);
    cluster[0].ok(&["attach-disk", "r0"]);
    cluster[0].wait_synced("r0", SYNC);
    check_blocks(&cluster[1], "r0", 2, 10..30);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    let peer = cluster[1].peer("r0", "alpha");
    assert!((20 * BLOCK..=2 * EXTENT).contains(&peer.resync_sent_bytes), "{peer:?}");
}

#[test]
fn row_024_a_killed_primary_costs_its_hot_extents() {
    let mut cluster = cluster(2);
    let (size, hot) = (1024 * MIB, 5);
    cluster.resource("r0", size, 2);
    write_blocks(&cluster[0], "r0", 24, (0..hot).map(|i| i * 50 * EXTENT / BLOCK + 7));
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_synced("r0", SYNC);
    let peer = cluster[1].peer("r0", "alpha");
    let carried = peer.resync_received_bytes + peer.resync_sent_bytes;
    assert!(carried <= hot * EXTENT, "{carried} bytes for {hot} hot extents");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn row_025_hot_extents_are_bounded_by_the_activity_log() {
    let mut cluster = cluster(2);
    let size = 1024 * MIB;
    let file = cluster[0].disk("r0");
    files::make_sparse(&file, size);
    cluster.create("r0", size, &["--set", "al-extents=67"]);
    cluster.join_resource(&cluster[1], "r0", size, &[]);
    cluster[0].wait_synced("r0", SYNC);
    let extents = Rng::new(25).distinct(200, size / EXTENT);
    write_blocks(&cluster[0], "r0", 25, extents.iter().map(|extent| extent * EXTENT / BLOCK));
    check_blocks(&cluster[0], "r0", 25, extents.iter().map(|extent| extent * EXTENT / BLOCK));
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_synced("r0", SYNC);
    let peer = cluster[1].peer("r0", "alpha");
    let carried = peer.resync_received_bytes + peer.resync_sent_bytes;
    assert!(carried <= 67 * EXTENT, "{} hot extents", carried / EXTENT);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

/// A peer that is away for 500 writes of one block, stopped or killed.
#[test]
fn row_027_exactly_the_changed_blocks_are_carried() {
    let mut cluster = cluster(2);
    let size = 64 * MIB;
    cluster.resource("r0", size, 2);
    let mut rng = Rng::new(27);
    for killed in [false, true] {
        write_blocks(&cluster[0], "r0", rng.next(), rng.clone().distinct(50, size / BLOCK));
        if killed {
            cluster[1].kill9();
        } else {
            cluster[1].stop();
        }
        cluster[0].wait_peer("r0", "beta", SOON, "the peer is gone", gone);
        let sent_before = cluster[0].peer("r0", "beta").resync_sent_bytes;
        let seed = rng.next();
        write_blocks(&cluster[0], "r0", seed, rng.distinct(500, size / BLOCK));
        let missed = 500 * BLOCK;
        let bits = cluster[0].wait_peer("r0", "beta", SOON, "it is counted", |peer| {
            peer.out_of_sync_bytes >= missed
        });
        assert_eq!(bits.out_of_sync_bytes, missed, "killed: {killed}");
        let metric = cluster[0].metric("holdfast_out_of_sync_bytes", &["peer=\"beta\""]);
        assert_eq!(metric, Some(500.0 * 4096.0));
        cluster[1].start();
        for index in [0, 1] {
            cluster[index].wait_synced("r0", SYNC);
        }
        let received = cluster[1].peer("r0", "alpha").resync_received_bytes;
        let sent = cluster[0].peer("r0", "beta").resync_sent_bytes - sent_before;
        for carried in [received, sent] {
            assert!(carried.abs_diff(missed) * 20 <= missed, "{carried} of {missed}: {killed}");
        }
        cluster.assert_equal_disks("r0", size, &[0, 1]);
    }
}

#[test]
fn row_029_what_a_peer_missed_is_known_after_a_restart() {
    let mut cluster = cluster(2);
    let size = 64 * MIB;
    cluster.resource("r0", size, 2);
    cluster[1].stop();
    let blocks = Rng::new(29).distinct(300, size / BLOCK);
    write_blocks(&cluster[0], "r0", 29, blocks);
    let missed = 300 * BLOCK;
    let counted = |cluster: &Cluster| {
        let known = |peer: &PeerStatus| peer.out_of_sync_bytes >= missed;
        cluster[0].wait_peer("r0", "beta", SOON, "what it missed is known", known).out_of_sync_bytes
    };
    assert_eq!(counted(&cluster), missed);
    cluster[0].ok(&["down", "r0"]);
    cluster[0].ok(&["up", "r0"]);
    assert_eq!(counted(&cluster), missed, "after down and up");
    cluster[0].restart();
    assert_eq!(counted(&cluster), missed, "after a restart");
    cluster[0].kill9();
    cluster[0].start();
    assert!(counted(&cluster) >= missed, "after a kill");
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn row_030_a_promotion_without_a_write_costs_nothing() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 8 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].ok(&["secondary", "r0"]);
    let before = cluster[0].resource("r0").generation;
    cluster[1].wait_resource("r0", SOON, "it has the same generation", |r| r.generation == before);
    cluster[1].stop();
    cluster[0].wait_peer("r0", "beta", SOON, "the peer is gone", gone);
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].ok(&["secondary", "r0"]);
    assert_eq!(cluster[0].resource("r0").generation, before, "nothing was written");
    cluster[1].start();
    for index in [0, 1] {
        cluster[index].wait_synced("r0", SOON);
    }
    let peer = cluster[0].peer("r0", "beta");
    assert_eq!((peer.resync_sent_bytes, peer.resync_received_bytes), (0, 0));
    assert_eq!(cluster[1].resource("r0").generation, before);
}

#[test]
fn row_031_a_new_member_gets_all_data() {
    let cluster = cluster(2);
    let size = 32 * MIB;
    slow_first_sync(&cluster, size, "1M");
    let mut percents = Vec::new();
    cluster[1].wait_resource("r0", SYNC, "the first sync ends", |status| {
        if let Some(peer) = status.peers.first()
            && let Some(resync) = &peer.resync
        {
            assert_eq!(status.disk.state, "Inconsistent");
            assert_eq!(peer.replication, "SyncTarget");
            assert!(resync.bytes_done <= resync.bytes_total, "{resync:?}");
            percents.push(resync.percent);
            // It is slow until it was looked at often enough, however seldom that is.
            if percents.len() == 6 {
                speed_up(&cluster);
            }
        }
        status.disk.state == "UpToDate"
    });
    assert!(percents.len() > 5, "it was looked at only {} times", percents.len());
    assert!(percents.is_sorted(), "{percents:?}");
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    let received = cluster[1].peer("r0", "alpha").resync_received_bytes;
    assert!(received.abs_diff(size) * 20 <= size, "{received}");
}

/// Beta stays away for several generations of alpha's data, made with gamma coming and going.
#[test]
fn row_034_the_newer_data_win_over_several_generations() {
    let mut cluster = cluster(3);
    let size = 16 * MIB;
    cluster.resource("r0", size, 3);
    write_blocks(&cluster[0], "r0", 1, 0..50);
    cluster[1].stop();
    let mut generations = vec![cluster[0].resource("r0").generation];
    for turn in 2..5 {
        cluster[2].kill9();
        let gone_by = |cluster: &Cluster| cluster[0].wait_peer("r0", "gamma", SOON, "gone", gone);
        gone_by(&cluster);
        write_blocks(&cluster[0], "r0", turn, 10 * turn..10 * turn + 10);
        generations.push(cluster[0].resource("r0").generation);
        cluster[2].start();
        cluster[0].wait_peer("r0", "gamma", SYNC, "in sync again", |peer| {
            peer.replication == "Established" && peer.disk == "UpToDate"
        });
    }
    generations.dedup();
    assert!(generations.len() >= 4, "{generations:?}");
    cluster[1].start();
    for index in [1, 0, 2] {
        cluster[index].wait_synced("r0", SYNC);
    }
    check_blocks(&cluster[0], "r0", 4, 40..50);
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);

    // The other way: the one that was Primary comes back to one that has gone on.
    cluster[0].stop();
    cluster[1].wait_peer("r0", "alpha", SOON, "it is gone", gone);
    cluster[1].ok(&["primary", "r0"]);
    write_blocks(&cluster[1], "r0", 9, 45..55);
    cluster[0].start();
    for index in [1, 0, 2] {
        cluster[index].wait_synced("r0", SYNC);
    }
    check_blocks(&cluster[1], "r0", 9, 45..55);
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);
}

/// One block of data in every MiB, wherever it is in it, and zeroes that take space here.
#[test]
fn a_sparse_file_stays_sparse_on_a_new_member() {
    let cluster = cluster(2);
    let size = 256 * MIB;
    let source = cluster[0].disk("r0");
    files::make_sparse(&source, size);
    let file = std::fs::File::options().write(true).open(&source).expect("it was just made");
    let mut rng = Rng::new(32);
    for mib in 0..size / MIB {
        let at = mib * MIB + rng.next() % 256 * BLOCK;
        file.write_all_at(&[7; 4096], at).expect("the file can be written");
    }
    file.write_all_at(&vec![0; 1 << 20], 8 * MIB).expect("the file can be written");
    file.write_all_at(&[7; 8192], 9 * MIB - 4096).expect("the file can be written");
    let taken = files::allocated(&source);
    assert!((MIB..3 * MIB).contains(&taken), "{taken}");
    cluster.create("r0", size, &[]);
    cluster.join_resource(&cluster[1], "r0", size, &[]);
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    let stored = files::allocated(&cluster[1].disk("r0"));
    assert!(stored <= taken / 10 * 11, "{stored} bytes are stored for {taken}");
    let received = cluster[1].peer("r0", "alpha").resync_received_bytes;
    assert!(received <= taken / 10 * 11, "{received} bytes were carried for {taken}");
}

/// Who is killed in the middle of a resync.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Target,
    Source,
}

fn cut_in_the_middle(victim: Victim) {
    let mut cluster = cluster(2);
    let size = 64 * MIB;
    // So slow that it is not over before the node dies.
    slow_first_sync(&cluster, size, "4M");
    wait_percent(&cluster, 1, 40.0);
    // The counters of the one that lives on tell of both parts.
    let carried = if victim == Victim::Target {
        cluster[1].kill9();
        cluster[1].start();
        speed_up(&cluster);
        cluster[1].wait_synced("r0", SYNC);
        cluster[0].wait_synced("r0", SOON);
        cluster[0].peer("r0", "beta").resync_sent_bytes
    } else {
        cluster[0].kill9();
        cluster[0].start();
        speed_up(&cluster);
        cluster[0].wait_synced("r0", SYNC);
        cluster[1].wait_synced("r0", SOON);
        cluster[1].peer("r0", "alpha").resync_received_bytes
    };
    assert!(carried >= size / 10 * 9, "only {carried} of {size} bytes were carried");
    assert!(carried * 10 <= size * 11, "{carried} bytes were carried for {size}");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn row_036_a_resync_continues_after_the_target_was_killed() {
    cut_in_the_middle(Victim::Target);
}

#[test]
fn row_036_a_resync_continues_after_the_source_was_killed() {
    cut_in_the_middle(Victim::Source);
}

#[test]
fn row_036_a_resync_continues_after_the_network_was_cut() {
    let cluster = cluster_with_proxies(2);
    let size = 64 * MIB;
    // So slow that it is not over before the second cut.
    slow_first_sync(&cluster, size, "4M");
    for (percent, how) in [(20.0, Cut::Reset), (45.0, Cut::Finish)] {
        wait_percent(&cluster, 1, percent);
        for node in cluster.nodes() {
            node.proxy().cut(how);
        }
        cluster[1].wait_peer("r0", "alpha", SOON, "the cut is noticed", gone);
        assert_eq!(cluster[1].resource("r0").disk.state, "Inconsistent");
        for node in cluster.nodes() {
            node.proxy().heal();
        }
    }
    speed_up(&cluster);
    cluster[0].wait_synced("r0", SYNC);
    let carried = cluster[0].peer("r0", "beta").resync_sent_bytes;
    assert!(carried * 10 <= size * 11, "{carried} bytes were carried for {size}");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn row_037_a_resync_under_full_write_load_finishes() {
    let mut cluster = cluster(2);
    let size = 64 * MIB;
    files::make_random(&cluster[0].disk("r0"), size, 37);
    cluster.create("r0", size, &[]);
    // Only the first half is written to, so that the rest has to come by the resync.
    let blank = vec![0; 1 << 20];
    let mut client = cluster[0].open("r0");
    for part in 0..size / 2 / MIB {
        client.write_at(&blank, part * MIB).expect("the Primary takes writes");
    }
    let ledger = Ledger::new(37, usize::try_from(size / 2 / BLOCK).expect("it is small"));
    let options = WriterOptions { connections: 8, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
    writer.wait_acknowledged(100);
    cluster.join_resource(&cluster[1], "r0", size, &[]);
    cluster[1].wait_resource("r0", SYNC, "up to date", |r| r.disk.state == "UpToDate");
    let then = writer.acknowledged();
    writer.wait_acknowledged(then + 200);
    let mut ledger = writer.stop_well();
    // Once more, by bitmap this time.
    cluster[1].kill9();
    let options = WriterOptions { connections: 8, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
    writer.wait_acknowledged(1000);
    cluster[1].start();
    cluster[1].wait_resource("r0", SYNC, "up to date", |r| r.disk.state == "UpToDate");
    let then = writer.acknowledged();
    writer.wait_acknowledged(then + 200);
    ledger = writer.stop_well();
    cluster[0].wait_synced("r0", SOON);
    ledger.verify_export(&cluster[0].uri("r0"));
    cluster[0].stop();
    cluster[1].stop();
    ledger.verify_file(&cluster[1].disk("r0"));
    cluster.assert_equal_disks("r0", size, &[0, 1]);
}

#[test]
fn row_038_two_targets_are_synced_at_the_same_time() {
    let cluster = cluster(3);
    let size = 32 * MIB;
    // So slow that the first one is not through before the second one has begun.
    slow_first_sync(&cluster, size, "1M");
    let state = |cluster: &Cluster, index: usize| {
        let peer = cluster[0].peer("r0", cluster[index].name());
        (peer.replication, peer.resync.map_or(0.0, |resync| resync.percent))
    };
    holdfast_testkit::wait_until(SOON, "both are on the way", || {
        let states = [state(&cluster, 1), state(&cluster, 2)];
        states.iter().all(|(word, percent)| word == "SyncSource" && *percent > 5.0)
    });
    speed_up(&cluster);
    for index in 0..3 {
        cluster[index].wait_synced("r0", SYNC);
    }
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);
}

#[test]
fn invalidated_data_are_fetched_again() {
    let cluster = cluster(2);
    let size = 16 * MIB;
    files::make_random(&cluster[0].disk("r0"), size, 3);
    cluster.create("r0", size, &["--set", "resync-rate=16M"]);
    cluster.join_resource(&cluster[1], "r0", size, &[]);
    cluster[0].wait_synced("r0", SYNC);
    // What is equal is compared and not sent; what something else has changed on a disk is.
    for by_primary in [false, true] {
        let before = cluster[1].peer("r0", "alpha").resync_received_bytes;
        let disk = std::fs::OpenOptions::new().write(true).open(cluster[1].disk("r0"));
        let disk = disk.expect("it can be opened");
        for at in [0, 5 * MIB, 5 * MIB + 8192, size - BLOCK] {
            disk.write_all_at(&[0x5A; 4096], at).expect("it can be written");
        }
        if by_primary {
            cluster[0].ok(&["invalidate", "r0", "--peer", "beta"]);
        } else {
            cluster[1].ok(&["invalidate", "r0"]);
        }
        // Neither of them may show yet that it has begun.
        cluster[1].wait_peer("r0", "alpha", SYNC, "it is fetched again", |peer| {
            peer.resync_received_bytes >= before + 4 * BLOCK
        });
        cluster[1].wait_synced("r0", SYNC);
        cluster[0].wait_synced("r0", SYNC);
        let received = cluster[1].peer("r0", "alpha").resync_received_bytes - before;
        assert!((4 * BLOCK..size / 20).contains(&received), "{received}");
        cluster.assert_equal_disks("r0", size, &[0, 1]);
    }
}

/// The role moves to a node that is still being synced: what it does not have, it reads from the
/// other one, and what is written there is not overwritten by the resync.
#[test]
fn a_target_of_a_resync_can_be_primary() {
    let cluster = cluster(2);
    let size = 32 * MIB;
    slow_first_sync(&cluster, size, "1M");
    let copy = cluster.scratch().join("copy");
    files::copy(&cluster[0].disk("r0"), &copy);
    wait_percent(&cluster, 1, 10.0);
    cluster[0].ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[1], "r0", "alpha");
    cluster[1].ok(&["primary", "r0"]);
    assert_eq!(cluster[1].resource("r0").disk.state, "Inconsistent");
    let mut client = cluster[1].open("r0");
    let mut rng = Rng::new(9);
    for block in rng.distinct(200, size / 2 / BLOCK) {
        let mut found = vec![0; 4096];
        let at = size / 2 + block * BLOCK;
        client.read_at(&mut found, at).expect("it is read from the other node");
        assert!(found == files::read(&copy, at, 4096), "block {}", at / BLOCK);
    }
    drop(client);
    // Random data are there already, so each block is written before it is checked.
    let blocks = usize::try_from(size / 2 / BLOCK).expect("it is small");
    let blank = vec![0; 1 << 20];
    let mut client = cluster[1].open("r0");
    for part in 0..size / 2 / MIB {
        client.write_at(&blank, part * MIB).expect("the Primary takes writes");
    }
    let options = WriterOptions { connections: 4, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[1].uri("r0"), Ledger::new(9, blocks), options);
    speed_up(&cluster);
    cluster[1].wait_resource("r0", SYNC, "up to date", |r| r.disk.state == "UpToDate");
    let then = writer.acknowledged();
    writer.wait_acknowledged(then + 100);
    let mut ledger = writer.stop_well();
    cluster[1].wait_synced("r0", SOON);
    ledger.verify_export(&cluster[1].uri("r0"));
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    let half = files::read(&copy, size / 2, usize::try_from(size / 2).expect("it is small"));
    assert!(files::read(&cluster[1].disk("r0"), size / 2, half.len()) == half);
}
