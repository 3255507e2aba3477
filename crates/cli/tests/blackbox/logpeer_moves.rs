//! A pair and a far site: who leads moves there and back, and forced promotions are seen by all.

use crate::logpeer::{assert_same, disk_state, look_at_journal, wait_gone};
use crate::logpeer_roles::pair_and_follower;
use crate::{SOON, SYNC, check_blocks, seed, write_blocks};
use holdfast_api::status::{PeerStatus, ResourceStatus};
use holdfast_testkit::{Cluster, Node, Rng, holds_within, wait_until};
use std::process::Stdio;
use std::time::Duration;

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// Whether a peer has a current copy, in the way that it is to have it.
fn is_well(primary: &Node, status: &ResourceStatus, peer: &PeerStatus) -> bool {
    let pair = primary.name() != "gamma" && peer.node != "gamma";
    let head = status.journal.as_ref().map(|journal| journal.head);
    let has_all = match &peer.replay {
        _ if pair => peer.replication == "Established",
        Some(replay) => Some(replay.replayed) == head,
        None => false,
    };
    peer.connection == "Connected" && peer.disk == "UpToDate" && peer.problem.is_none() && has_all
}

/// Waits until all members have their copies again: the pair streams, and the far site follows.
fn settle(cluster: &Cluster, primary: usize) {
    let node = &cluster[primary];
    look_at_journal(node);
    let status = node.wait_resource("r0", SYNC, "everybody has a copy as before", |r| {
        r.role == "Primary" && r.peers.len() == 2 && r.peers.iter().all(|p| is_well(node, r, p))
    });
    assert_eq!(status.peers.len(), 2);
    for other in (0..3).filter(|other| *other != primary) {
        // Whoever leads may have heard of it first.
        let what = format!("{} has a copy as before", NAMES[other]);
        cluster[other].wait_resource("r0", SOON, &what, |r| {
            r.disk.state == "UpToDate" && r.role == "Secondary"
        });
        assert_same(cluster, primary, other);
    }
}

fn is_split(peer: &PeerStatus) -> bool {
    peer.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
}

fn wait_split(node: &Node, peer: &str) -> String {
    let peer = node.wait_peer("r0", peer, SOON, "split brain is told", is_split);
    peer.problem.map(|problem| problem.message).unwrap_or_default()
}

#[test]
fn a_pair_moves_to_the_far_site_and_back_to_either_node_and_is_a_pair_again() {
    let mut cluster = pair_and_follower();
    let mut round = 1;
    write_blocks(&cluster[0], "r0", round, 0..300);
    settle(&cluster, 0);
    for back in [0, 1] {
        cluster[2].ok(&["primary", "r0"]);
        round += 1;
        write_blocks(&cluster[2], "r0", round, 100 * round..100 * round + 150);
        settle(&cluster, 2);
        cluster[back].ok(&["primary", "r0"]);
        round += 1;
        write_blocks(&cluster[back], "r0", round, 100 * round..100 * round + 150);
        settle(&cluster, back);
    }
    // They stream: what is written when one of them dies at once is on the other one.
    round += 1;
    write_blocks(&cluster[1], "r0", round, 0..200);
    cluster[1].kill9();
    cluster[0].wait_peer("r0", "beta", SOON, "it is gone", |p| p.connection != "Connected");
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", round, (0..200).step_by(7));
    cluster[1].start();
    settle(&cluster, 0);
}

#[test]
fn who_was_away_during_both_moves_is_taken_back() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    settle(&cluster, 0);
    cluster[1].stop();
    cluster[2].ok(&["primary", "r0"]);
    write_blocks(&cluster[2], "r0", 2, 100..200);
    // It hears by itself that the far site leads, and that all it has is there.
    cluster[1].start();
    settle(&cluster, 2);
    cluster[1].stop();
    cluster[0].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 3, 150..250);
    cluster[1].start();
    settle(&cluster, 0);
    check_blocks(&cluster[0], "r0", 2, (100..150).step_by(7));
    // Away from one move to the other.
    cluster[1].stop();
    cluster[2].ok(&["primary", "r0"]);
    write_blocks(&cluster[2], "r0", 4, 100..200);
    cluster[0].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 5, 150..250);
    cluster[1].start();
    settle(&cluster, 0);
}

#[test]
fn moves_in_which_the_old_or_the_new_leader_is_killed_lose_and_part_nothing() {
    let mut cluster = pair_and_follower();
    let mut dice = Rng::new(seed());
    let mut leader = 0;
    for round in 0..8_u64 {
        write_blocks(&cluster[leader], "r0", 2 * round + 1, 0..200);
        settle(&cluster, leader);
        let to = match leader {
            2 => usize::try_from(round / 2 % 2).expect("it is small"),
            _ => 2,
        };
        let mut command = cluster[to].command(&["primary", "r0"]);
        let mut moving = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command can be run");
        // Somewhere in the middle of it, or just behind its end.
        let moment = Duration::from_millis(dice.below(1500));
        let _ = holds_within(moment, || false);
        let victim = if round % 4 < 2 { leader } else { to };
        cluster[victim].kill9();
        let _ = moving.wait();
        cluster[victim].start();
        // Whoever leads goes on; when nobody does, it needs no force.
        let mut led = None;
        wait_until(SYNC, "somebody leads", || {
            let primary = |i: &usize| cluster[*i].resource("r0").role == "Primary";
            led = (0..3).find(primary);
            if led.is_none() {
                let _ = cluster[to].cli(&["primary", "r0"]);
            }
            led.is_some()
        });
        leader = led.expect("it was found");
        check_blocks(&cluster[leader], "r0", 2 * round + 1, (0..200).step_by(11));
        write_blocks(&cluster[leader], "r0", 2 * round + 2, 100..200);
        settle(&cluster, leader);
    }
}

#[test]
fn two_primaries_that_wrote_apart_both_say_so_until_a_person_decides() {
    let cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    settle(&cluster, 0);
    cluster[0].ok(&["disconnect", "r0", "--peer", "gamma"]);
    let gone = |p: &PeerStatus| p.connection != "Connected";
    cluster[2].wait_peer("r0", "alpha", SOON, "it hears of it", gone);
    cluster[2].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[0], "r0", 2, 0..100);
    write_blocks(&cluster[2], "r0", 3, 50..150);
    cluster[0].ok(&["connect", "r0"]);
    let here = wait_split(&cluster[0], "gamma");
    let there = wait_split(&cluster[2], "alpha");
    for told in [&here, &there] {
        assert!(told.contains("Primary") && told.contains("bytes only there"), "{told}");
    }
    // Of the pair nobody gives anything up for that.
    assert_eq!(cluster[0].peer("r0", "beta").replication, "Established");
    cluster[2].ok(&["secondary", "r0"]);
    wait_split(&cluster[0], "gamma");
    wait_split(&cluster[2], "alpha");
    for words in [&["primary", "r0"][..], &["primary", "r0", "--force"]] {
        let refused = cluster[2].cli(words);
        assert_eq!(refused.status, 1, "{refused}");
        assert!(refused.stderr.contains("split brain"), "{refused}");
        assert!(refused.stderr.contains("--discard-my-data"), "{refused}");
    }
    cluster[2].ok(&["connect", "r0", "--discard-my-data"]);
    settle(&cluster, 0);
    check_blocks(&cluster[0], "r0", 2, (0..100).step_by(7));
}

#[test]
fn a_node_of_the_pair_that_has_more_than_the_far_site_keeps_it_until_a_person_decides() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    settle(&cluster, 0);
    cluster[2].ok(&["pause", "r0", "fetch"]);
    write_blocks(&cluster[0], "r0", 2, 0..100);
    cluster[0].kill9();
    let gone = |p: &PeerStatus| p.connection != "Connected";
    cluster[2].wait_peer("r0", "alpha", SOON, "it is gone", gone);
    cluster[2].refused(&["primary", "r0"], 1, "");
    cluster[2].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[2], "r0", 3, 200..300);
    // What only it has of the acknowledged writes is not replaced.
    wait_split(&cluster[1], "gamma");
    wait_split(&cluster[2], "beta");
    assert_eq!(disk_state(&cluster[1]), "UpToDate");
    cluster[1].refused(&["primary", "r0"], 1, "gamma is Primary");
    // Nor for another one than who is named.
    cluster[1].ok(&["connect", "r0", "--peer", "alpha", "--discard-my-data"]);
    assert!(cluster[1].resource("r0").replay.is_none(), "it follows nobody by the log");
    assert_eq!(disk_state(&cluster[1]), "UpToDate");
    cluster[0].start();
    wait_split(&cluster[0], "gamma");
    wait_split(&cluster[2], "alpha");
    for loser in [0, 1] {
        cluster[loser].ok(&["connect", "r0", "--discard-my-data"]);
    }
    settle(&cluster, 2);
    check_blocks(&cluster[2], "r0", 1, (0..200).step_by(7));
    cluster[0].ok(&["primary", "r0"]);
    settle(&cluster, 0);
}

#[test]
fn after_secondary_another_node_leads_without_force_if_nobody_has_more() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    settle(&cluster, 0);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[2].ok(&["primary", "r0"]);
    write_blocks(&cluster[2], "r0", 2, 100..200);
    settle(&cluster, 2);
    cluster[2].ok(&["secondary", "r0"]);
    cluster[0].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 3, 150..250);
    settle(&cluster, 0);
    // Who cannot be asked may have led again.
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].stop();
    wait_gone(&cluster[2], "alpha");
    cluster[2].refused(&["primary", "r0"], 1, "alpha cannot be asked");
    // Nor is its copy given up for one that nobody has in reach.
    cluster[2].refused(&["invalidate", "r0"], 1, "not in reach");
    cluster[2].refused(&["connect", "r0", "--discard-my-data"], 1, "not in reach");
    cluster[0].start();
    let connected = |p: &PeerStatus| p.connection == "Connected";
    cluster[0].wait_peer("r0", "beta", SOON, "it is there again", connected);
    cluster[0].ok(&["primary", "r0"]);
    settle(&cluster, 0);
}
