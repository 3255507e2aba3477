//! What is left of members, nodes and resources that are gone: nothing. Rows 100 to 104.

use crate::{MIB, SOON, SYNC, check_blocks, write_blocks};
use holdfast_testkit::{Cluster, Node, wait_until};

const SIZE: u64 = 32 * MIB;

fn journal_of(node: &Node) -> [String; 4] {
    let dir = node.dir().join("r0.journal").display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), "64M".to_owned()]
}

fn create(cluster: &Cluster) {
    cluster.create("r0", SIZE, &journal_of(&cluster[0]).each_ref().map(String::as_str));
}

fn follow(cluster: &Cluster, node: usize) {
    let node = &cluster[node];
    let journal = journal_of(node);
    let journal = journal.each_ref().map(String::as_str);
    cluster.join_resource(node, "r0", SIZE, &[&["--protocol", "log"], &journal[..]].concat());
    node.ok(&["wait", "r0", "--for", "uptodate", "--timeout", "50"]);
}

/// Writes 24 MiB in segments of 4 MiB, so that there is something to give up.
fn fill(node: &Node) {
    write_blocks(node, "r0", 7, 0..6144);
}

fn journal(node: &Node) -> (u64, u64, u64) {
    let journal = node.resource("r0").journal.expect("it has a journal");
    (journal.tail, journal.head, journal.bytes)
}

fn notes(node: &Node) -> usize {
    let dirs = std::fs::read_dir(node.state_dir().join("logpeers")).into_iter().flatten();
    dirs.flatten().flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten()).count()
}

fn trim(node: &Node) {
    wait_until(SOON, "it is written back", || {
        node.ok(&["log", "trim", "r0"]);
        let journal = node.resource("r0").journal.expect("it has a journal");
        journal.dirty_bytes == 0
    });
    node.ok(&["log", "trim", "r0"]);
}

#[test]
fn row_102_the_journal_of_a_follower_that_is_gone_for_good_is_given_up() {
    let mut cluster = crate::cluster(3);
    create(&cluster);
    follow(&cluster, 1);
    wait_until(SOON, "it is noted how far it is", || notes(&cluster[0]) == 1);
    cluster[1].kill9();
    fill(&cluster[0]);
    trim(&cluster[0]);
    let (tail, head, bytes) = journal(&cluster[0]);
    assert!(head - tail > 20 * MIB, "all is kept for the one that is away: {tail}..{head}");
    wait_until(SOON, "its silence is known", || {
        cluster[0].cli(&["cluster", "remove", "beta", "--force"]).status == 0
    });
    // Again is no failure.
    cluster[0].ok(&["cluster", "remove", "beta", "--force"]);
    wait_until(SOON, "the space has returned", || {
        trim(&cluster[0]);
        let (tail, _, now) = journal(&cluster[0]);
        head - tail < 9 * MIB && now < bytes
    });
    cluster[0].wait_resource("r0", SOON, "it is no member", |r| r.peers.is_empty());
    wait_until(SOON, "nothing is noted of it", || notes(&cluster[0]) == 0);
    let names = |node: &Node| node.status().cluster.map_or(0, |cluster| cluster.nodes.len());
    wait_until(SOON, "it is listed nowhere", || names(&cluster[0]) == 2 && names(&cluster[2]) == 2);
    check_blocks(&cluster[0], "r0", 7, 0..6144);
}

#[test]
fn row_102_also_when_the_primary_was_away_when_it_was_removed() {
    let mut cluster = crate::cluster(3);
    create(&cluster);
    follow(&cluster, 1);
    cluster[1].kill9();
    fill(&cluster[0]);
    cluster[0].kill9();
    wait_until(SOON, "its silence is known", || {
        cluster[2].cli(&["cluster", "remove", "beta", "--force"]).status == 0
    });
    cluster[0].start();
    wait_until(SOON, "it is Primary again", || cluster[0].resource("r0").role == "Primary");
    wait_until(SOON, "the space has returned", || {
        trim(&cluster[0]);
        let (tail, head, _) = journal(&cluster[0]);
        head - tail < 9 * MIB
    });
    wait_until(SOON, "nothing is noted of it", || notes(&cluster[0]) == 0);
    check_blocks(&cluster[0], "r0", 7, 0..6144);
}

#[test]
fn row_104_a_resource_that_is_made_again_begins_with_nothing() {
    let cluster = crate::cluster(2);
    let left = |node: &Node| {
        let journal = node.dir().join("r0.journal");
        let files = |dir: &std::path::Path| std::fs::read_dir(dir).into_iter().flatten().count();
        (files(&journal), files(&node.state_dir().join("meta")), notes(node))
    };
    for round in 0..2 {
        create(&cluster);
        let (_, head, _) = journal(&cluster[0]);
        assert_eq!(head, 0, "round {round}");
        follow(&cluster, 1);
        write_blocks(&cluster[0], "r0", round, 0..256);
        cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
        check_blocks(&cluster[0], "r0", round, 0..256);
        cluster[0].wait_resource("r0", SYNC, "the follower is there", |r| r.peers.len() == 1);
        cluster[0].ok(&["secondary", "r0"]);
        cluster[0].ok(&["delete", "r0"]);
        wait_until(SOON, "nothing is left", || {
            cluster.nodes().iter().all(|node| left(node) == (0, 0, 0))
        });
        // The disk of the follower is not known to be one: it is overwritten when it is asked for.
        std::fs::remove_file(cluster[1].disk("r0")).expect("it is there");
    }
}
