//! A daemon that stops or dies and starts again takes up what it had.

use crate::{MIB, SOON, check_blocks, cluster, write_blocks};
use holdfast_api::status::PeerStatus;

#[test]
fn roles_switches_and_connections_come_back_after_a_clean_restart() {
    let mut cluster = cluster(3);
    cluster.resource("r0", 4 * MIB, 3);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    cluster[0].wait_synced("r0", SOON);
    check_blocks(&cluster[0], "r0", 1, 0..10);
    let carried: u64 = cluster[0].resource("r0").peers.iter().map(|p| p.resync_sent_bytes).sum();
    assert_eq!(carried, 0, "a clean restart costs no resync");

    cluster[1].ok(&["disconnect", "r0"]);
    cluster[2].ok(&["down", "r0"]);
    for index in [1, 2] {
        cluster[index].restart();
    }
    let apart = |peer: &PeerStatus| peer.connection == "StandAlone";
    cluster[1].wait_peer("r0", "alpha", SOON, "it stays apart", apart);
    assert_eq!(cluster[2].resource("r0").role, "Unknown");
    write_blocks(&cluster[0], "r0", 2, 5..15);
    cluster[1].ok(&["connect", "r0"]);
    cluster[2].ok(&["up", "r0"]);
    for index in [0, 1, 2] {
        cluster[index].wait_synced("r0", SOON);
    }
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1, 2]);
}

#[test]
fn a_killed_primary_comes_back_as_primary() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    check_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}

#[test]
fn all_nodes_restart_in_any_order() {
    let mut cluster = cluster(3);
    cluster.resource("r0", 4 * MIB, 3);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    for index in [0, 1, 2] {
        cluster[index].stop();
    }
    for index in [1, 2, 0] {
        cluster[index].start();
    }
    cluster[0].wait_synced("r0", SOON);
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    check_blocks(&cluster[0], "r0", 1, 0..10);
    write_blocks(&cluster[0], "r0", 2, 5..15);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1, 2]);
}

#[test]
fn a_node_alone_takes_up_its_resource() {
    let mut cluster = cluster(1);
    cluster.create("r0", 4 * MIB, &[]);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    for killed in [false, true, true] {
        if killed {
            cluster[0].kill9();
        } else {
            cluster[0].stop();
        }
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
        check_blocks(&cluster[0], "r0", 1, 0..10);
    }
}

/// A client that has it open while the daemon is told to stop gets its answers, and the daemon
/// ends in time.
#[test]
fn a_stop_under_load_ends_in_good_order() {
    use holdfast_testkit::{Ledger, Writer, WriterOptions};
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let options = WriterOptions { connections: 4, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(5, 1024), options);
    writer.wait_acknowledged(200);
    cluster[0].stop();
    let (mut ledger, errors) = writer.join();
    assert_eq!(errors.len(), 4);
    cluster[0].start();
    cluster[0].wait_synced("r0", SOON);
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    ledger.verify_export(&cluster[0].uri("r0"));
    ledger.verify_file(&cluster[1].disk("r0"));
}

#[test]
fn a_resource_comes_back_when_its_disk_is_away() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[1].stop();
    let disk = cluster[1].disk("r0");
    std::fs::rename(&disk, disk.with_extension("away")).expect("it can be moved");
    cluster[1].start();
    let connected = |peer: &PeerStatus| peer.connection == "Connected";
    cluster[1].wait_peer("r0", "alpha", SOON, "connected without its disk", connected);
    assert_eq!(cluster[1].resource("r0").disk.state, "Diskless");
    write_blocks(&cluster[0], "r0", 2, 5..15);
    std::fs::rename(disk.with_extension("away"), &disk).expect("it can be moved back");
    cluster[1].ok(&["attach-disk", "r0"]);
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}
