//! Switches and roles of log peers: from another node, twice, and in time.

use crate::logpeer::{assert_same, disk_state, follow, wait_all, wait_up_to_date};
use crate::{MIB, SOON, SYNC, check_blocks, cluster, cluster_with_proxies, write_blocks};
use holdfast_testkit::{Node, Rng, wait_until};
use std::process::Stdio;
use std::time::Instant;

fn paused(node: &Node) -> Vec<String> {
    node.resource("r0").replay.map_or_else(Vec::new, |replay| replay.paused)
}

#[test]
fn switches_of_a_log_peer_are_turned_from_the_primary_and_twice() {
    let mut cluster = cluster(3);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    for what in ["fetch", "replay"] {
        for _ in 0..2 {
            let said = cluster[0].ok(&["pause", "r0", what, "--all"]);
            assert!(said.contains("is paused on "), "{said}");
            for node in &cluster.nodes()[1..] {
                assert!(said.contains(node.name()), "{said}");
                wait_until(SOON, "it is paused", || paused(node) == [what]);
            }
        }
        // One of them goes on.
        for _ in 0..2 {
            cluster[0].ok(&["resume", "r0", what, "--peer", "beta"]);
            wait_until(SOON, "it goes on", || paused(&cluster[1]).is_empty());
        }
        assert_eq!(paused(&cluster[2]), [what]);
        cluster[1].ok(&["resume", "r0", what, "--all"]);
        wait_until(SOON, "all go on", || paused(&cluster[2]).is_empty());
    }
    cluster[2].stop();
    cluster[0].refused(&["pause", "r0", "replay", "--all"], 1, "it is paused on beta");
    wait_until(SOON, "it is paused", || paused(&cluster[1]) == ["replay"]);
    cluster[0].refused(&["pause", "r0", "replay"], 1, "does not follow a journal");
    cluster[1].refused(&["pause", "r0", "sync"], 1, "pause r0 replay");
}

#[test]
fn the_journal_of_a_log_peer_is_made_larger_while_it_is_in_use() {
    let cluster = cluster(2);
    follow(&cluster, "16M");
    write_blocks(&cluster[0], "r0", 1, 0..50);
    wait_all(&cluster[0]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    let is_full = || {
        let peers = cluster[1].resource("r0").peers;
        peers.iter().any(|peer| peer.problem.as_ref().is_some_and(|p| p.code == "NO_SPACE"))
    };
    let has_all = || {
        let durable = cluster[0].resource("r0").journal.expect("it has one").durable;
        cluster[1].resource("r0").replay.is_some_and(|replay| replay.fetched == durable)
    };
    let mut tag = 1;
    while !is_full() {
        tag += 1;
        write_blocks(&cluster[0], "r0", tag, 0..100);
        wait_until(SYNC, "it is fetched, or there is no room", || is_full() || has_all());
    }
    wait_until(SOON, "there is a warning", || {
        let problems = cluster[1].status().cluster.expect("it is in one").problems;
        problems.iter().any(|problem| problem.contains("is not replayed"))
    });
    cluster[0].ok(&["set", "r0", "journal-size=64M"]);
    wait_until(SYNC, "it fetches on", || !is_full() && has_all());
    assert_eq!(paused(&cluster[1]), ["replay"]);
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn roles_and_switches_can_be_given_twice() {
    let cluster = cluster(2);
    cluster.resource("r0", 8 * MIB, 2);
    for command in [&["secondary", "r0"][..], &["primary", "r0"], &["secondary", "r0"]] {
        for _ in 0..2 {
            cluster[0].ok(command);
        }
    }
    for command in ["disconnect", "connect", "down", "up"] {
        for _ in 0..2 {
            cluster[1].ok(&[command, "r0"]);
        }
    }
    for command in ["pause", "resume"] {
        for _ in 0..2 {
            cluster[1].ok(&[command, "r0", "sync"]);
        }
    }
    cluster[0].wait_synced("r0", SYNC);
}

#[test]
fn a_log_peer_is_down_and_up_and_goes_on_from_its_own_position() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[1].ok(&["down", "r0"]);
    assert_eq!(disk_state(&cluster[1]), "Diskless");
    write_blocks(&cluster[0], "r0", 2, 50..80);
    cluster[1].ok(&["up", "r0"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    wait_up_to_date(&cluster[1]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, 50..80);
}

/// Content that cannot be packed.
fn write_noise(node: &Node, mib: u64) {
    let mut rng = Rng::new(9);
    let mut client = node.open("r0");
    for at in 0..mib {
        let noise: Vec<u8> = (0..MIB / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
        client.write_at(&noise, at * MIB).expect("the Primary takes writes");
    }
    client.flush().expect("it can flush");
}

#[test]
fn a_handover_that_takes_too_long_is_given_up_and_the_old_primary_goes_on() {
    let cluster = cluster_with_proxies(2);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    for node in cluster.nodes() {
        node.proxy().limit_rate(200_000);
    }
    write_noise(&cluster[0], 28);
    let began = Instant::now();
    // It asks around first, and comes far enough to say how much it lacks.
    let output = cluster[1].cli(&["primary", "r0", "--timeout", "6"]);
    assert_eq!(output.status, 5, "{output}");
    assert!(output.stderr.contains("behind"), "{output}");
    // Who says no time waits for a minute.
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(cluster[0].resource("r0").role, "Primary");
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    write_blocks(&cluster[0], "r0", 3, 0..20);
    wait_all(&cluster[0]);
    // Now there is time enough.
    cluster[1].ok(&["primary", "r0", "--timeout", "30"]);
    check_blocks(&cluster[1], "r0", 3, 0..20);
}

#[test]
fn while_another_node_takes_over_the_old_primary_is_not_primary_again() {
    let cluster = cluster_with_proxies(2);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    // What it lacks takes a while: three connections carry it, in some ten seconds.
    cluster[0].proxy().limit_rate(400_000);
    write_noise(&cluster[0], 12);
    let mut command = cluster[1].command(&["primary", "r0"]);
    let mut moving = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command can be run");
    wait_until(SOON, "it steps back", || cluster[0].resource("r0").role == "Secondary");
    cluster[0].refused(&["primary", "r0"], 1, "primary was refused");
    cluster[0].proxy().heal();
    assert!(moving.wait().expect("it ends").success());
    assert_eq!(cluster[1].resource("r0").role, "Primary");
    cluster[0].refused(&["primary", "r0", "--force"], 1, "");
    wait_all(&cluster[1]);
    assert_same(&cluster, 0, 1);
}
