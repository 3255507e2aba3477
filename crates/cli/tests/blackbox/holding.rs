//! Resyncs that stand still, and waiting until nobody has a resource open.

use crate::{BLOCK, MIB, SOON, SYNC, cluster, write_blocks};
use holdfast_api::status::PeerStatus;
use holdfast_testkit::{Cluster, ClusterOptions, Node, files, wait_until};
use std::process::Stdio;

const SIZE: u64 = 64 * MIB;
/// What is asked for at a time while a node is filled slowly.
const IN_FLIGHT: u64 = MIB;

/// Alpha has data, and beta is filled as slowly as can be.
fn filling(cluster: &Cluster) {
    files::make_random(&cluster[0].disk("r0"), SIZE, 31);
    cluster.create("r0", SIZE, &["--set", "resync-rate=1M", "--set", "resync-in-flight=1M"]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[1].wait_peer("r0", "alpha", SYNC, "it is being filled", |peer| {
        peer.replication == "SyncTarget" && peer.resync.is_some()
    });
}

fn done(node: &Node, name: &str, peer: &str) -> Option<u64> {
    node.peer(name, peer).resync.map(|resync| resync.bytes_done)
}

fn stands(peer: &PeerStatus) -> bool {
    peer.replication.starts_with("PausedSync")
}

/// Waits until both sides say that it stands still, and that nothing comes any more.
#[track_caller]
fn wait_still(cluster: &Cluster, here: usize, words: &str) {
    cluster[0].wait_peer("r0", "beta", SOON, "the source says so", stands);
    cluster[1].wait_peer("r0", "alpha", SOON, "the target says so", stands);
    let mut last = done(&cluster[1], "r0", "alpha");
    wait_until(SOON, "what was asked for has come", || {
        let now = done(&cluster[1], "r0", "alpha");
        std::mem::replace(&mut last, now) == now
    });
    let text = cluster[here].ok(&["status", "r0"]);
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_filling_stands_still_on_either_side_also_over_a_restart_and_goes_on() {
    let mut cluster = cluster(2);
    filling(&cluster);
    for holder in [1, 0] {
        cluster[holder].ok(&["pause", "r0", "sync"]);
        wait_still(&cluster, holder, "paused on this node; `holdfast resume r0 sync`");
        let other = cluster[1 - holder].ok(&["status", "r0"]);
        let words = format!("held by node {}", cluster[holder].name());
        assert!(other.contains(&words), "{other}");
        // Now it would be quick.
        cluster[0].ok(&["set", "r0", "resync-rate=0"]);
        let before = done(&cluster[1], "r0", "alpha");
        cluster[holder].restart();
        wait_still(&cluster, holder, "paused on this node");
        // What clients write is replicated all the same.
        cluster[0].wait_resource("r0", SOON, "it is Primary again", |r| r.role == "Primary");
        let written = u64::from(holder == 0) + 1;
        write_blocks(&cluster[0], "r0", written, 0..20);
        let held = files::read(&cluster[1].disk("r0"), 5 * BLOCK, 4096);
        assert!(held == holdfast_testkit::block_content(written, 1, 5));
        // What had been asked for may still have come. Without the pause all of it would have.
        let now = done(&cluster[1], "r0", "alpha");
        let most = before.map(|done| done + 40 * BLOCK + 2 * IN_FLIGHT);
        assert!(now.is_some() && now <= most, "{before:?} {now:?}");
        cluster[0].ok(&["set", "r0", "resync-rate=1M"]);
        for node in cluster.nodes() {
            wait_until(SOON, "it has heard of the rate", || {
                node.json(&["get", "r0", "resync-rate"])["value"].as_str()
                    == Some(&*MIB.to_string())
            });
        }
        cluster[holder].ok(&["resume", "r0", "sync"]);
        cluster[1].wait_peer("r0", "alpha", SOON, "it goes on", |peer| !stands(peer));
    }
    // Both at once, from one node.
    let said = cluster[1].ok(&["pause", "r0", "sync", "--all"]);
    assert!(said.contains("is paused on beta, alpha"), "{said}");
    wait_still(
        &cluster,
        0,
        "paused on this node; `holdfast resume r0 sync` lets it go on; held by node beta",
    );
    cluster[0].ok(&["set", "r0", "resync-rate=0"]);
    cluster[0].ok(&["resume", "r0", "sync"]);
    wait_still(&cluster, 1, "paused on this node");
    cluster[0].ok(&["resume", "r0", "sync", "--peer", "beta"]);
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    cluster[0].refused(&["pause", "r0", "fetch", "--all"], 1, "no member has a fetch");
    cluster[0].refused(&["pause", "r0", "sync", "--peer", "gamma"], 4, "gamma");
    cluster[0].ok(&["pause", "r0", "sync", "--peer", "alpha"]);
    // It is seen before anything stands still by it.
    assert!(cluster[0].resource("r0").resyncs_paused);
    let text = cluster[0].ok(&["status", "r0"]);
    assert!(text.contains("resyncs are paused on this node: `holdfast resume r0 sync`"), "{text}");
    cluster[0].ok(&["resume", "r0", "sync", "--peer", "alpha"]);
}

#[test]
fn no_more_than_so_many_are_filled_at_a_time_and_the_others_follow_by_themselves() {
    let arguments = ["--max-resyncs", "1"];
    let options = ClusterOptions { arguments: &arguments, ..ClusterOptions::default() };
    let cluster = Cluster::with(&crate::binary(), 2, options);
    let names = ["r0", "r1", "r2"];
    // So much that none is through before the last one has begun.
    let size = 32 * MIB;
    for name in names {
        files::make_random(&cluster[0].disk(name), size, 3);
    }
    for name in names {
        cluster.create(name, size, &["--set", "resync-rate=1M", "--set", "resync-in-flight=1M"]);
        cluster.join_resource(&cluster[1], name, size, &[]);
    }
    let going = |name: &&str| {
        let peer = cluster[1].peer(name, "alpha");
        peer.replication == "SyncTarget"
    };
    let waiting = |name: &&str| {
        let why = cluster[1].peer(name, "alpha").resync_paused;
        why.is_some_and(|why| why.contains("max-resyncs of this node is 1"))
    };
    let mut first = "";
    wait_until(SYNC, "one goes on and two wait", || {
        let on: Vec<&str> = names.into_iter().filter(|name| going(name)).collect();
        first = on.first().copied().unwrap_or_default();
        on.len() == 1 && names.iter().filter(|name| waiting(name)).count() == 2
    });
    // A person's word frees its place.
    cluster[1].ok(&["pause", first, "sync"]);
    let mut second = "";
    wait_until(SYNC, "another one has its turn", || {
        let on = names.into_iter().find(|name| *name != first && going(name));
        second = on.unwrap_or_default();
        on.is_some()
    });
    // What the node that it comes from holds keeps nobody waiting, either.
    cluster[0].ok(&["pause", second, "sync"]);
    wait_until(SYNC, "the last one has its turn", || {
        names.iter().any(|name| ![first, second].contains(name) && going(name))
    });
    cluster[0].ok(&["resume", second, "sync"]);
    for name in names {
        cluster[0].ok(&["set", name, "resync-rate=0"]);
    }
    for name in names.iter().filter(|name| **name != first) {
        cluster[1].wait_synced(name, SYNC);
    }
    cluster[1].ok(&["resume", first, "sync"]);
    for name in names {
        cluster[1].wait_synced(name, SYNC);
        cluster.assert_equal_disks(name, size, &[0, 1]);
    }
}

#[test]
fn waiting_ends_when_nobody_has_it_open() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster[0].ok(&["wait", "r0", "--for", "closed"]);
    let client = cluster[0].open("r0");
    cluster[0].wait_resource("r0", SOON, "it is seen to be open", |r| r.open_count == 1);
    cluster[0].refused(&["wait", "r0", "--for", "closed", "--timeout", "0.3"], 5, "was given up");
    cluster[0].refused(&["wait", "r0", "--for", "closed", "--peer", "beta"], 1, "on its node only");
    cluster[1].ok(&["wait", "r0", "--for", "closed"]);
    let mut waiting = cluster[0].command(&["wait", "r0", "--for", "closed"]);
    let mut waiting = waiting.stdout(Stdio::piped()).spawn().expect("it starts");
    drop(client);
    wait_until(SOON, "the waiting ends", || {
        waiting.try_wait().expect("it can be asked").is_some_and(|end| end.success())
    });
}
