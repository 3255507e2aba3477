//! A resource gets another name.

use crate::clusters::kill_during;
use crate::device::{device, skipped};
use crate::{MIB, SOON, SYNC, check_blocks, cluster, rounds, seed, wait_no_primary, write_blocks};
use holdfast_testkit::{Cluster, Node, Rng, files, wait_until};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const SIZE: u64 = 16 * MIB;

fn names(node: &Node) -> Vec<String> {
    node.status().resources.into_iter().map(|resource| resource.name).collect()
}

#[track_caller]
fn wait_names(nodes: &[&Node], due: &[&str]) {
    for node in nodes {
        wait_until(SOON, &format!("{} has {due:?}", node.name()), || names(node) == due);
    }
}

/// Waits until the daemon has noticed that the last client has hung up.
#[track_caller]
fn wait_closed(node: &Node, name: &str) {
    node.wait_resource(name, SOON, "it is closed", |resource| resource.open_count == 0);
}

#[test]
fn a_resource_gets_another_name_on_all_nodes_while_it_is_replicated() {
    let mut cluster = cluster(3);
    cluster.resource("r0", SIZE, 2);
    cluster.resource("other", SIZE, 1);
    cluster[2].ok(&["watch", "r0"]);
    write_blocks(&cluster[0], "r0", 1, 0..20);

    let client = cluster[0].open("r0");
    for node in &cluster.nodes()[..2] {
        node.refused(&["rename", "r0", "data"], 1, "NBD clients have it open");
    }
    drop(client);
    wait_closed(&cluster[0], "r0");
    cluster[0].refused(&["rename", "r0", "other"], 1, "the cluster has a resource other");
    cluster[1].refused(&["rename", "r0", "r0"], 1, "that is its name already");
    cluster[2].refused(&["rename", "r0", "data"], 1, "no member of it");
    cluster[0].refused(&["rename", "nothing", "data"], 4, "nothing");
    wait_names(&[&cluster[0]], &["other", "r0"]);

    // By the Secondary; the Primary never stops being one.
    let done = cluster[1].ok(&["rename", "r0", "data"]);
    assert!(done.contains("\nresource r0 is data now\n"), "{done}");
    wait_names(&[&cluster[0]], &["data", "other"]);
    wait_names(&[&cluster[1]], &["data"]);
    cluster[0].refused(&["status", "r0"], 4, "r0");
    // By the new name they meet anew; what is written before that would be copied.
    for node in &cluster.nodes()[..2] {
        node.wait_synced("data", SYNC);
    }
    check_blocks(&cluster[0], "data", 1, 0..20);
    write_blocks(&cluster[0], "data", 2, 10..30);
    let peer = cluster[0].peer("data", "beta");
    let (role, state, sent) = (&*peer.role, &*peer.replication, peer.resync_sent_bytes);
    assert_eq!((role, state, sent), ("Secondary", "Established", 0), "nothing was copied again");
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    wait_until(SOON, "the guest shows it", || {
        cluster[2].status().guests.iter().any(|guest| guest.name == "data")
    });
    // Once more is no error, as it may be repeated after an interruption.
    cluster[0].ok(&["rename", "r0", "data"]);

    for node in 0..2 {
        cluster[node].restart();
    }
    cluster[0].wait_resource("data", SOON, "it is Primary again", |r| r.role == "Primary");
    check_blocks(&cluster[0], "data", 2, 10..30);
    // The old name is free.
    cluster[2].ok(&[
        "create",
        "r0",
        "--disk",
        &cluster[2].disk("new").display().to_string(),
        "--size",
        "4M",
    ]);
}

#[test]
fn who_was_away_takes_names_over_when_it_is_back() {
    let mut cluster = cluster(2);
    for (name, seed) in [("a", 1), ("b", 2)] {
        cluster.resource(name, SIZE, 2);
        write_blocks(&cluster[0], name, seed, 0..10);
    }
    for killed in [false, true] {
        if killed {
            cluster[1].kill9();
        } else {
            cluster[1].stop();
        }
        for name in ["a", "b"] {
            wait_closed(&cluster[0], name);
        }
        // They change their names with each other.
        let done = cluster[0].ok(&["rename", "a", "c"]);
        assert!(
            done.contains("node beta (it does not answer) will take the name over later"),
            "{done}"
        );
        cluster[0].ok(&["rename", "b", "a"]);
        cluster[0].ok(&["rename", "c", "b"]);
        let (a, b) = if killed { (1, 2) } else { (2, 1) };
        check_blocks(&cluster[0], "a", a, 0..10);
        check_blocks(&cluster[0], "b", b, 0..10);
        cluster[1].start();
        let due = cluster[1].disk(if killed { "a" } else { "b" });
        wait_until(SOON, "beta has changed them, too", || {
            let found = cluster[1].status().resources.into_iter().find(|one| one.name == "a");
            found.is_some_and(|a| a.disk.path.as_deref() == due.to_str())
        });
        wait_names(&[&cluster[0], &cluster[1]], &["a", "b"]);
        for name in ["a", "b"] {
            cluster[1].wait_synced(name, SYNC);
        }
    }
    for (name, seed) in [("a", 1), ("b", 2)] {
        cluster[0].ok(&["secondary", name]);
        wait_no_primary(&cluster[1], name, "alpha");
        cluster[1].ok(&["primary", name]);
        check_blocks(&cluster[1], name, seed, 0..10);
    }
}

#[test]
fn who_has_it_open_keeps_the_old_name_until_it_is_closed() {
    let cluster = crate::cluster_with_proxies(2);
    cluster.resource("r0", SIZE, 2);
    let client = cluster[0].open("r0");
    for node in cluster.nodes() {
        node.proxy().cut(holdfast_testkit::Cut::Reset);
    }
    cluster[1]
        .wait_peer("r0", "alpha", SOON, "alpha is away", |peer| peer.connection != "Connected");
    cluster[1].ok(&["rename", "r0", "data"]);
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    let problems = |node: &Node| node.status().cluster.expect("it is in one").problems;
    wait_until(SOON, "it is told", || {
        problems(&cluster[0]).iter().any(|text| text.contains("data"))
    });
    assert_eq!(names(&cluster[0]), ["r0"]);
    drop(client);
    wait_names(&[&cluster[0], &cluster[1]], &["data"]);
    wait_until(SOON, "it is over", || problems(&cluster[0]).is_empty());
    write_blocks(&cluster[0], "data", 3, 0..10);
    cluster[0].wait_synced("data", SYNC);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn a_renaming_that_was_interrupted_anywhere_and_repeated_ends_well() {
    let mut dice = Rng::new(seed());
    let mut cluster = cluster(2);
    cluster.resource("n0", SIZE, 2);
    write_blocks(&cluster[0], "n0", 5, 0..10);
    for round in 0..3 * rounds() {
        let (old, new) = (format!("n{round}"), format!("n{}", round + 1));
        let victim = usize::try_from(round % 2).expect("small");
        let after = Duration::from_millis(dice.below(40));
        kill_during(&mut cluster, 0, &["rename", &old, &new], victim, after);
        wait_until(SOON, "it can be repeated", || {
            cluster[0].cli(&["rename", &old, &new]).status == 0
        });
        wait_names(&[&cluster[0], &cluster[1]], &[&new]);
        cluster[0].wait_resource(&new, SOON, "it is Primary again", |r| r.role == "Primary");
        cluster[0].wait_synced(&new, SYNC);
        check_blocks(&cluster[0], &new, 5, 0..10);
    }
}

fn follow(cluster: &Cluster) {
    for (index, node) in cluster.nodes().iter().enumerate() {
        let journal = node.dir().join("journal").display().to_string();
        let place = ["--journal", &journal, "--journal-size", "64M"];
        match index {
            0 => cluster.create("r0", SIZE, &place),
            _ => cluster.join_resource(
                node,
                "r0",
                SIZE,
                &[&["--protocol", "log"], &place[..]].concat(),
            ),
        }
    }
}

#[test]
fn a_log_peer_goes_on_under_the_new_name_and_may_lead_by_it() {
    let cluster = cluster(2);
    follow(&cluster);
    write_blocks(&cluster[0], "r0", 7, 0..50);
    cluster[1].ok(&["wait", "r0", "--for", "replayed"]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    cluster[1].ok(&["device", "r0", "--read-only", "--export-only"]);
    let client = cluster[1].open("r0");
    cluster[0].refused(&["rename", "r0", "data"], 1, "node beta");
    drop(client);
    wait_closed(&cluster[1], "r0");
    cluster[0].ok(&["rename", "r0", "data"]);
    wait_names(&[&cluster[0], &cluster[1]], &["data"]);
    wait_until(SOON, "the past state is shown again", || cluster[1].resource("data").read_only);
    check_blocks(&cluster[1], "data", 7, 0..50);
    wait_closed(&cluster[1], "data");
    cluster[1].ok(&["device", "data", "--remove"]);
    cluster[1].ok(&["resume", "data", "replay"]);
    write_blocks(&cluster[0], "data", 8, 20..40);
    cluster[1].ok(&["primary", "data"]);
    check_blocks(&cluster[1], "data", 8, 20..40);
}

#[test]
fn its_device_moves_to_the_new_name() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    let path = device(&cluster, 0);
    let open = std::fs::File::open(&path).expect("the device can be opened");
    cluster[1].refused(&["rename", "r0", "data"], 1, "open");
    drop(open);
    wait_until(SOON, "it is closed", || cluster[0].resource("r0").open_count == 0);
    cluster[1].ok(&["rename", "r0", "data"]);
    // Where the record comes before the call, the node is at it by itself.
    wait_names(&[&cluster[0]], &["data"]);
    wait_until(SOON, "it is made again", || cluster[0].resource("data").device.is_some());
    assert!(!Path::new(&path).exists(), "{path}");
    let path = cluster[0].resource("data").device.expect("it was made again");
    assert_eq!(Path::new(&path).file_name().and_then(|name| name.to_str()), Some("data"));
    assert_eq!(files::read(Path::new(&path), 0, 4096), vec![0; 4096]);
    cluster[0].ok(&["device", "data", "--remove"]);
}

#[test]
fn of_two_names_given_on_two_nodes_at_once_one_holds_and_nobody_waits() {
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    let mut name = "r0".to_owned();
    for round in 0..3 {
        let new = ["x", "y"].map(|letter| format!("{letter}{round}"));
        let renaming = [0, 1].map(|node| {
            let mut command = cluster[node].command(&["rename", &name, &new[node]]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        });
        let ended = renaming.map(|child| child.wait_with_output().expect("it ends"));
        for output in &ended {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(!said.contains("does not answer"), "they waited for each other: {said}");
        }
        wait_until(SOON, "both know it by one name", || {
            let known = [0, 1].map(|node| cluster[node].status().resources[0].name.clone());
            known[0] == known[1] && new.contains(&known[0])
        });
        name = cluster[0].status().resources[0].name.clone();
    }
    write_blocks(&cluster[0], &name, 7, 0..10);
}
