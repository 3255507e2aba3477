//! Who leads a node that follows by the log: roles that change beside it, and journals that fail.

use crate::logpeer::{
    assert_same, follow, hold_back, look_at_journal, wait_all, wait_fetched, wait_gone,
    wait_up_to_date,
};
use crate::{MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{Cluster, Node, files};

const SIZE: u64 = 32 * MIB;

fn journal_of(node: &Node, size: &str) -> [String; 4] {
    let dir = node.dir().join("r0.journal").display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), size.to_owned()]
}

/// A pair, and a third node that follows by the log.
pub(crate) fn pair_and_follower() -> Cluster {
    let cluster = cluster(3);
    let journal = |node: &Node| journal_of(node, "64M");
    let words = |journal: &[String; 4]| journal.each_ref().map(String::clone);
    let first = words(&journal(&cluster[0]));
    cluster.create("r0", SIZE, &first.each_ref().map(String::as_str));
    let second = words(&journal(&cluster[1]));
    let second = second.each_ref().map(String::as_str);
    cluster.join_resource(&cluster[1], "r0", SIZE, &second);
    let third = words(&journal(&cluster[2]));
    let third = third.each_ref().map(String::as_str);
    cluster.join_resource(&cluster[2], "r0", SIZE, &[&["--protocol", "log"], &third[..]].concat());
    let beta = |p: &holdfast_api::status::PeerStatus| p.disk == "UpToDate";
    cluster[0].wait_peer("r0", "beta", SYNC, "the pair is equal", beta);
    cluster
}

/// Waits until the third node has everything of a Primary.
pub(crate) fn wait_third(primary: &Node) {
    look_at_journal(primary);
    primary.wait_resource("r0", SYNC, "gamma has everything", |r| {
        r.peers.iter().any(|peer| {
            peer.node == "gamma"
                && peer.connection == "Connected"
                && peer.disk == "UpToDate"
                && peer.replay.as_ref().is_some_and(|replay| {
                    r.journal.as_ref().is_some_and(|j| replay.replayed == j.head)
                })
        })
    });
}

fn switch(from: &Node, to: &Node) {
    from.ok(&["secondary", "r0"]);
    to.ok(&["primary", "r0"]);
}

#[test]
fn what_the_other_node_of_a_pair_wrote_is_not_lost_by_a_follower_that_never_saw_it() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_third(&cluster[0]);
    // What the other node of the pair writes goes past the journal of the first one.
    cluster[2].stop();
    switch(&cluster[0], &cluster[1]);
    write_blocks(&cluster[1], "r0", 2, 100..200);
    switch(&cluster[1], &cluster[0]);
    cluster[2].start();
    wait_third(&cluster[0]);
    assert_same(&cluster, 0, 2);
    // Who took what it has for everything would lead with less.
    cluster[2].ok(&["primary", "r0"]);
    check_blocks(&cluster[2], "r0", 2, (100..200).step_by(7));
    check_blocks(&cluster[2], "r0", 1, (200..300).step_by(7));
}

#[test]
fn a_follower_finds_the_other_node_of_a_pair_when_that_leads() {
    let cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_third(&cluster[0]);
    switch(&cluster[0], &cluster[1]);
    write_blocks(&cluster[1], "r0", 2, 100..200);
    // It does not stay with a node that has nothing new and says so for ever; what the other one
    // leads by is a history of its own, and no split brain.
    wait_third(&cluster[1]);
    assert_ne!(cluster[2].peer("r0", "alpha").role, "Primary");
    assert_same(&cluster, 1, 2);
    switch(&cluster[1], &cluster[0]);
    write_blocks(&cluster[0], "r0", 3, 150..250);
    wait_third(&cluster[0]);
    assert_same(&cluster, 0, 2);
}

#[test]
fn whose_journal_failed_serves_nobody() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    // The next segments cannot get their names.
    let dir = cluster[0].dir().join("r0.journal");
    for number in 2..40 {
        let name = dir.join(format!("segment-{number:016x}"));
        if !name.exists() {
            std::fs::create_dir_all(name.join("occupied")).expect("it is made");
        }
    }
    for round in 2..6 {
        write_blocks(&cluster[0], "r0", round, 0..1024);
    }
    cluster[0].wait_resource("r0", SOON, "the journal has failed", |r| {
        r.journal.as_ref().is_some_and(|journal| journal.problem.is_some())
    });
    let lost = |p: &holdfast_api::status::PeerStatus| p.connection != "Connected";
    cluster[1].wait_peer("r0", "alpha", SOON, "nobody leads it any more", lost);
    cluster[0].wait_peer("r0", "beta", SOON, "nobody is said to have everything", lost);
    check_blocks(&cluster[0], "r0", 5, (0..1024).step_by(31));
}

#[test]
fn a_delay_counts_after_a_restart_and_without_a_primary_until_it_is_taken_away() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..50);
    wait_all(&cluster[0]);
    let round = hold_back(&cluster, 1);
    wait_fetched(&cluster[0], &cluster[1]);
    cluster[0].kill9();
    cluster[1].kill9();
    let before = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    cluster[1].start();
    // What it had written and not made durable is replayed first.
    let status = cluster[1].wait_resource("r0", SOON, "its disk is a state", |r| {
        r.replay.is_some() && r.disk.state == "UpToDate"
    });
    let replay = status.replay.expect("it follows");
    assert!(replay.replayed < replay.fetched);
    for _ in 0..20 {
        let now = cluster[1].resource("r0").replay.expect("it follows");
        assert_eq!(now.replayed, replay.replayed, "nobody leads, and the delay counts");
    }
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), before);
    // The delay counts only for who follows.
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", round, 0..50);
}

#[test]
fn force_is_refused_while_the_primary_is_in_reach_and_its_disk_stays_with_a_follower() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[1].refused(&["primary", "r0", "--force"], 1, "in reach");
    assert_eq!(cluster[0].resource("r0").role, "Primary");
    // The disk that the journal is replayed onto is not taken from under it.
    cluster[1].refused(&["detach-disk", "r0"], 1, "follows the journal");
    let other = cluster[1].dir().join("other").display().to_string();
    files::make_sparse(std::path::Path::new(&other), SIZE);
    cluster[1].refused(&["attach-disk", "r0", "--disk", &other], 1, "follows the journal");
    write_blocks(&cluster[0], "r0", 2, 0..100);
    wait_all(&cluster[0]);
    wait_up_to_date(&cluster[1]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn who_is_disconnected_by_a_person_gets_nothing_until_it_is_connected() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    for arguments in [&["disconnect", "r0"][..], &["disconnect", "r0", "--peer", "beta"]] {
        cluster[0].ok(arguments);
        let apart = |p: &holdfast_api::status::PeerStatus| p.connection == "StandAlone";
        cluster[0].wait_peer("r0", "beta", SOON, "it is disconnected", apart);
        let lost = |p: &holdfast_api::status::PeerStatus| p.connection != "Connected";
        cluster[1].wait_peer("r0", "alpha", SOON, "it hears of it", lost);
        cluster[0].ok(&["connect", "r0"]);
        write_blocks(&cluster[0], "r0", 2, 0..100);
        wait_all(&cluster[0]);
    }
    assert_same(&cluster, 0, 1);
}

#[test]
fn nobody_leads_by_what_is_not_whole() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    // Its disk is to be filled, and nobody does.
    cluster[1].ok(&["pause", "r0", "fetch"]);
    cluster[1].ok(&["invalidate", "r0"]);
    cluster[0].ok(&["disconnect", "r0"]);
    cluster[1]
        .wait_resource("r0", SOON, "its disk counts no more", |r| r.disk.state == "Inconsistent");
    wait_gone(&cluster[1], "alpha");
    cluster[1].refused(&["primary", "r0", "--force"], 1, "Inconsistent");
    cluster[1].ok(&["resume", "r0", "fetch"]);
    cluster[0].ok(&["connect", "r0"]);
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    // Its journal is gone.
    cluster[0].stop();
    cluster[1].stop();
    let dir = cluster[1].dir().join("r0.journal");
    let away = cluster[1].dir().join("away");
    std::fs::rename(&dir, &away).expect("it is renamed");
    cluster[1].start();
    let refused = cluster[1].cli(&["primary", "r0", "--force"]);
    assert_ne!(refused.status, 0, "it leads without its journal");
    cluster[1].stop();
    std::fs::rename(&away, &dir).expect("it is renamed");
    cluster[1].start();
    // It shows how it follows a moment behind its start.
    cluster[1].wait_resource("r0", SOON, "it follows", |r| r.replay.is_some());
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 1, (0..100).step_by(7));
}

#[test]
fn a_journal_that_is_too_small_for_a_copy_is_refused_before_anything_is_made() {
    let cluster = cluster(2);
    let first = journal_of(&cluster[0], "1G");
    cluster.create("r0", SIZE, &first.each_ref().map(String::as_str));
    files::make_sparse(&cluster[1].disk("r0"), SIZE);
    let disk = cluster[1].disk("r0").display().to_string();
    let small = journal_of(&cluster[1], "64M");
    let small = small.each_ref().map(String::as_str);
    let join = ["join", "r0", "--disk", disk.as_str(), "--protocol", "log"];
    cluster[1].refused(&[&join, &small[..]].concat(), 1, "too small");
    let enough = journal_of(&cluster[1], "192M");
    let enough = enough.each_ref().map(String::as_str);
    cluster[1].ok(&[&join, &enough[..]].concat());
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
}
