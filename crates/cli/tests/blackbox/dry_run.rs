//! Commands that are only tried.

use crate::{MIB, SOON, binary, cluster};
use holdfast_testkit::{Node, wait_until};
use std::path::Path;

/// Everything that a node says of itself, but for what changes by itself.
fn state(node: &Node) -> (Vec<String>, Vec<String>, Option<String>) {
    let status = node.status();
    let resources = status.resources.into_iter().map(|one| format!("{} {}", one.name, one.role));
    let cluster = status.cluster;
    let nodes = cluster.as_ref().map(|cluster| cluster.nodes.clone()).unwrap_or_default();
    let nodes = nodes.into_iter().map(|node| node.name).collect();
    (resources.collect(), nodes, cluster.map(|cluster| cluster.uuid))
}

#[test]
fn a_command_that_is_tried_says_what_it_would_do_and_changes_nothing() {
    let mut cluster = cluster(3);
    cluster.resource("r0", 4 * MIB, 2);
    cluster.create("r1", 4 * MIB, &[]);
    cluster[0].ok(&["secondary", "r0"]);
    let before: Vec<_> = cluster.nodes().iter().map(state).collect();
    let records = cluster[0].ok(&["cluster", "get"]);
    let mut stranger = Node::new(Path::new(&binary()), "delta", &cluster.scratch().join("delta"));
    stranger.start();
    let stranger = &stranger;
    let token = cluster[0].ok(&["cluster", "token"]);
    let token = token.trim();

    let tried = |node: &Node, arguments: &[&str], words: &[&str]| {
        let said = node.ok(&[arguments, &["--dry-run"]].concat());
        for words in words.iter().chain(&["nothing was changed"]) {
            assert!(said.contains(words), "{words}: {said}");
        }
        let json = node.json(&[arguments, &["--dry-run"]].concat());
        assert!(json["phases"].as_array().is_some_and(|phases| !phases.is_empty()), "{json}");
    };
    let go_on = "it would go on with: telling";
    tried(&cluster[1], &["leave", "r0"], &[go_on]);
    tried(&cluster[1], &["delete", "r0"], &[go_on, "ending it on all members"]);
    tried(&cluster[1], &["rename", "r0", "data"], &[go_on, "resource r0 could be data"]);
    tried(&cluster[2], &["cluster", "leave"], &[go_on, "node gamma could leave"]);
    tried(&cluster[0], &["cluster", "split", "gamma"], &["deciding it", "gamma could become"]);
    tried(stranger, &["cluster", "join", token], &["asking the node that issued the token"]);

    // What would be refused is.
    let client = cluster[0].open("r1");
    cluster[0].refused(&["rename", "r1", "x", "--dry-run"], 1, "have it open");
    drop(client);
    cluster[0].refused(&["leave", "r1", "--dry-run"], 1, "Primary");
    cluster[0].refused(&["rename", "r0", "r1", "--dry-run"], 1, "the cluster has a resource r1");
    cluster[1].refused(&["cluster", "leave", "--dry-run"], 1, "is a member of");
    cluster[0].refused(&["cluster", "split", "beta", "--dry-run"], 1, "r0");
    cluster[0].refused(&["cluster", "remove", "gamma", "--force", "--dry-run"], 1, "it is alive");

    cluster[2].stop();
    wait_until(SOON, "gamma is seen to be away", || {
        let output = cluster[0].cli(&["cluster", "remove", "gamma", "--force", "--dry-run"]);
        output.status == 0 && output.stdout.contains("node gamma could be removed")
    });
    cluster[0].refused(&["cluster", "split", "beta", "--dry-run"], 1, "not reached");
    cluster[2].start();
    let after: Vec<_> = cluster.nodes().iter().map(state).collect();
    assert_eq!(before, after);
    assert_eq!(records, cluster[0].ok(&["cluster", "get"]));
    assert_eq!(state(stranger).2, None);

    // The token is as good as before; merging is tried with another one.
    stranger.ok(&["cluster", "create", "--name", "apart"]);
    let other = stranger.ok(&["cluster", "token"]);
    let uuid = state(&cluster[0]).2;
    tried(&cluster[0], &["cluster", "merge", other.trim()], &["bringing the two together"]);
    assert_eq!(state(&cluster[0]).2, uuid);
    stranger.ok(&["cluster", "leave", "--force"]);
    stranger.ok(&["cluster", "join", token]);
}
