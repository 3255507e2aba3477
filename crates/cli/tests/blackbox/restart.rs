//! A daemon that stops or dies and starts again takes up what it had.

use crate::{MIB, SOON, check_blocks, cluster, write_blocks};
use holdfast_api::status::PeerStatus;
use holdfast_testkit::{Rng, files, wait_until};
use std::time::{Duration, Instant};

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

/// The daemon is killed while it creates or joins a resource: afterwards that has happened or it
/// has not, and in the latter case it can be done again.
#[test]
fn a_daemon_that_is_killed_while_it_creates_or_joins() {
    let mut cluster = cluster(2);
    let mut rng = Rng::new(6);
    for round in 0..6 {
        let name = format!("r{round}");
        let joins = round % 2 == 1;
        if joins {
            cluster.create(&name, 4 * MIB, &[]);
        }
        let index = usize::from(joins);
        let disk = cluster[index].disk(&name);
        files::make_sparse(&disk, 4 * MIB);
        let disk = disk.display().to_string();
        let verb = if joins { "join" } else { "create" };
        let words = [verb, &name, "--disk", &disk];
        let mut command = cluster[index].command(&words);
        let running = std::thread::spawn(move || holdfast_testkit::run(&mut command));
        let (started, moment) = (Instant::now(), Duration::from_micros(rng.below(60_000)));
        wait_until(SOON, "the moment has come", || started.elapsed() > moment);
        cluster[index].kill9();
        let output = running.join().expect("the command ends");
        cluster[index].start();
        let there = cluster[index].status().resources.iter().any(|r| r.name == name);
        assert!(there || output.status != 0, "round {round}: it was said to be done: {output}");
        if !there {
            cluster[index].ok(&words);
        }
        if !joins {
            cluster[0].wait_resource(&name, SOON, "Primary", |r| r.role == "Primary");
            cluster.join_resource(&cluster[1], &name, 4 * MIB, &[]);
        }
        cluster[0].wait_resource(&name, SOON, "beta is a member", |r| r.peers.len() == 1);
        cluster[0].wait_synced(&name, SOON);
        write_blocks(&cluster[0], &name, 1, 0..5);
    }
}

/// What was decided while a node was away, it hears when it comes back.
#[test]
fn a_node_that_was_away_hears_what_was_decided() {
    let mut cluster = cluster(3);
    cluster.resource("r0", 4 * MIB, 3);
    cluster[2].stop();
    cluster[0].ok(&["set", "r0", "ping-int=7"]);
    cluster[1].ok(&["leave", "r0"]);
    cluster.create("r1", 4 * MIB, &[]);
    cluster[2].start();
    wait_until(SOON, "the option", || cluster[2].json(&["get", "r0", "ping-int"])["value"] == "7");
    cluster[2].wait_resource("r0", SOON, "one peer is left", |r| r.peers.len() == 1);
    cluster.join_resource(&cluster[2], "r1", 4 * MIB, &[]);
    for name in ["r0", "r1"] {
        cluster[2].wait_synced(name, SOON);
    }
}
