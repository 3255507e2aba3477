//! Two clusters that become one, and one that becomes two, while everything runs. Rows 106 to 109,
//! 140 and 145 of the list.

use crate::{MIB, SOON, SYNC, binary, check_blocks, cluster, rounds, seed, write_blocks};
use holdfast_testkit::{
    Cluster, ClusterOptions, Ledger, Node, Rng, Writer, WriterOptions, files, wait_until,
};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const SIZE: u64 = 16 * MIB;
const BLOCKS: usize = 512;

/// Makes a resource on the first of these nodes and lets the others be members.
fn resource(cluster: &Cluster, name: &str, nodes: &[usize]) {
    for (at, node) in nodes.iter().enumerate() {
        let node = &cluster[*node];
        let disk = node.disk(name);
        files::make_sparse(&disk, SIZE);
        let disk = disk.display().to_string();
        node.ok(&[if at == 0 { "create" } else { "join" }, name, "--disk", &disk]);
    }
    for node in nodes {
        let node = &cluster[*node];
        node.wait_resource(name, SYNC, "all members are known", |r| {
            r.peers.len() + 1 == nodes.len()
        });
        node.wait_synced(name, SYNC);
    }
}

/// Alpha and beta with r0, gamma and delta with r1: two clusters.
fn two() -> Cluster {
    let cluster = Cluster::strangers(&binary(), 4, ClusterOptions::default());
    for (one, other, name) in [(0, 1, "lab"), (2, 3, "office")] {
        cluster[one].ok(&["cluster", "create", "--name", name]);
        let token = cluster[one].ok(&["cluster", "token"]);
        cluster[other].ok(&["cluster", "join", token.trim()]);
    }
    resource(&cluster, "r0", &[0, 1]);
    resource(&cluster, "r1", &[2, 3]);
    cluster
}

fn names(node: &Node) -> Vec<String> {
    node.status().cluster.into_iter().flat_map(|c| c.nodes).map(|node| node.name).collect()
}

fn uuid(node: &Node) -> String {
    node.status().cluster.map(|cluster| cluster.uuid).unwrap_or_default()
}

const ALL: [&str; 4] = ["alpha", "beta", "delta", "gamma"];

#[track_caller]
fn wait_one(cluster: &Cluster) {
    wait_until(SYNC, "all nodes are in one cluster, and alive", || {
        cluster.nodes().iter().all(|node| {
            let status = node.status().cluster.unwrap_or_default();
            names(node) == ALL
                && status.nodes.iter().all(|node| node.alive)
                && status.problems.is_empty()
                && uuid(node) == uuid(&cluster[0])
        })
    });
    cluster[3].ok(&["cluster", "wait"]);
}

#[track_caller]
fn wait_two(cluster: &Cluster) {
    wait_until(SYNC, "there are two clusters, and all nodes are alive", || {
        [[0, 1], [2, 3]].iter().all(|part| {
            let mut due = part.map(|node| cluster[node].name().to_owned());
            due.sort();
            part.iter().all(|node| {
                let status = cluster[*node].status().cluster.unwrap_or_default();
                names(&cluster[*node]) == due
                    && status.nodes.iter().all(|node| node.alive)
                    && status.problems.is_empty()
                    && status.uuid == uuid(&cluster[part[0]])
            })
        })
    });
    assert_ne!(uuid(&cluster[0]), uuid(&cluster[2]));
}

fn write(cluster: &Cluster) -> [Writer; 2] {
    [(0, "r0"), (2, "r1")].map(|(node, name)| {
        let ledger = Ledger::new(seed() + node as u64, BLOCKS);
        let writer = Writer::start(&cluster[node].uri(name), ledger, WriterOptions::default());
        writer.wait_acknowledged(50);
        writer
    })
}

/// What goes on writing did so without an error, and both members have it all.
fn check(cluster: &Cluster, writers: [Writer; 2]) {
    for ((writer, name), nodes) in writers.into_iter().zip(["r0", "r1"]).zip([[0, 1], [2, 3]]) {
        writer.wait_acknowledged(writer.acknowledged() + 50);
        let mut ledger = writer.stop_well();
        for node in nodes {
            let status = cluster[node].wait_synced(name, SYNC);
            assert!(status.peers.iter().all(|peer| peer.connection == "Connected"));
        }
        ledger.verify_export(&cluster[nodes[0]].uri(name));
        cluster.assert_equal_disks(name, SIZE, &nodes);
    }
}

/// How often the links of a resource were made.
fn resynced(cluster: &Cluster) -> Vec<u64> {
    let of = |node: usize, name| {
        let peers = cluster[node].resource(name).peers;
        peers.iter().map(|peer| peer.resync_sent_bytes).sum()
    };
    vec![of(0, "r0"), of(2, "r1")]
}

#[test]
fn row_106_two_clusters_become_one_while_both_are_written_to() {
    let cluster = two();
    let token = cluster[0].ok(&["cluster", "token"]);
    let token = token.trim();
    let before = (uuid(&cluster[0]), uuid(&cluster[2]));
    // A common name is refused, and nothing has changed.
    resource(&cluster, "same", &[0]);
    resource(&cluster, "same", &[3]);
    cluster[2].refused(&["cluster", "merge", token], 1, "both have resources named same");
    assert_eq!((uuid(&cluster[0]), uuid(&cluster[2])), before);
    assert_eq!((names(&cluster[0]).len(), names(&cluster[2]).len()), (2, 2));
    cluster[3].ok(&["delete", "same"]);

    // Nor does a link end because a daemon stands still for a moment.
    cluster[0].ok(&["set", "r0", "ping-timeout=300"]);
    cluster[2].ok(&["set", "r1", "ping-timeout=300"]);
    let copied = resynced(&cluster);
    let writers = write(&cluster);
    let output = cluster[2].cli(&["cluster", "merge", token]);
    assert_eq!(output.status, 0, "{output}");
    assert!(output.stdout.contains("\nmerged into cluster lab "), "{output}");
    assert!(output.stdout.contains("... bringing the two together\n"), "{output}");
    for node in cluster.nodes() {
        assert_eq!(names(node), ALL, "all know all when it returns");
    }
    wait_one(&cluster);
    check(&cluster, writers);
    assert_eq!(resynced(&cluster), copied, "nothing is copied");
    // Again, on any node of it: nothing to do.
    for node in [2, 3] {
        cluster[node].ok(&["cluster", "merge", token, "-q"]);
    }
    // Row 107: a resource moves into the other half.
    let disk = cluster[2].disk("r0");
    cluster[2].ok(&["join", "r0", "--disk", &disk.display().to_string(), "--json"]);
    cluster[2].wait_synced("r0", SYNC);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[2].ok(&["primary", "r0"]);
    cluster[0].ok(&["leave", "r0"]);
    cluster[1].ok(&["leave", "r0"]);
    assert_eq!(cluster[2].resource("r0").role, "Primary");
}

#[test]
fn a_merge_needs_all_nodes_and_with_force_the_others_follow() {
    let mut cluster = two();
    cluster[3].stop();
    let token = cluster[0].ok(&["cluster", "token"]);
    let token = token.trim();
    cluster[2].refused(
        &["cluster", "merge", token],
        1,
        "these of its nodes were not reached: delta",
    );
    cluster[1].stop();
    // The refusal comes from the other side, too.
    cluster[3].start();
    cluster[2].refused(
        &["cluster", "merge", token],
        1,
        "these of its nodes were not reached: beta",
    );
    cluster[2].ok(&["cluster", "merge", token, "--force", "--timeout", "120"]);
    cluster[1].start();
    wait_one(&cluster);
    cluster[1].stop();
    cluster[0].refused(&["cluster", "wait", "--timeout", "1"], 1, "not reached: beta");
}

/// Starts a command and does not wait for it.
fn begin(node: &Node, arguments: &[&str]) -> Child {
    let mut command = node.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    command.spawn().expect("the command starts")
}

/// Kills the daemon of a node a moment after a command was begun on `by`, and starts it again.
pub(crate) fn kill_during(
    cluster: &mut Cluster,
    by: usize,
    arguments: &[&str],
    victim: usize,
    after: Duration,
) {
    let mut command = begin(&cluster[by], arguments);
    let started = Instant::now();
    wait_until(SOON, "the moment has come", || started.elapsed() >= after);
    cluster[victim].kill9();
    let _ = command.wait();
    cluster[victim].start();
}

#[test]
fn a_merge_that_was_interrupted_anywhere_and_repeated_ends_well() {
    let mut dice = Rng::new(seed());
    for round in 0..rounds() + 1 {
        let mut cluster = two();
        let token = cluster[0].ok(&["cluster", "token"]).trim().to_owned();
        let victim = [2, 0, 3][usize::try_from(round % 3).unwrap_or(0)];
        let after = Duration::from_millis(dice.below(60));
        kill_during(&mut cluster, 2, &["cluster", "merge", &token], victim, after);
        wait_until(SYNC, "it can be repeated", || {
            cluster[2].cli(&["cluster", "merge", &token]).status == 0
        });
        wait_one(&cluster);
        for (name, nodes) in [("r0", [0, 1]), ("r1", [2, 3])] {
            for node in nodes {
                cluster[node].wait_resource(name, SOON, "its members are connected", |status| {
                    status.peers.len() == 1 && status.peers[0].connection == "Connected"
                });
            }
        }
    }
}

fn merged() -> Cluster {
    let cluster = two();
    let token = cluster[0].ok(&["cluster", "token"]);
    cluster[2].ok(&["cluster", "merge", token.trim()]);
    wait_one(&cluster);
    cluster
}

#[test]
fn row_108_a_cluster_becomes_two_while_both_parts_are_written_to() {
    let mut cluster = merged();
    resource(&cluster, "both", &[1, 3]);
    let split = ["cluster", "split", "gamma", "delta", "--name", "office"];
    cluster[0].refused(&split, 1, "both (beta, delta)");
    assert_eq!(names(&cluster[3]), ALL);
    cluster[3].wait_synced("both", SYNC);
    cluster[3].ok(&["leave", "both"]);
    cluster[0].refused(&["cluster", "split", "nobody"], 4, "it has no node");
    cluster[0].refused(&["cluster", "split", "--cancel"], 1, "no split");

    let token = cluster[3].ok(&["cluster", "token"]);
    let writers = write(&cluster);
    let done = cluster[0].ok(&split);
    assert!(done.contains("\noffice (delta, gamma) is a cluster of its own now"), "{done}");
    wait_two(&cluster);
    check(&cluster, writers);
    for node in [0, 3] {
        let done = cluster[node].ok(&split);
        assert!(done.contains("already"), "{done}");
    }
    // What one part knew of the other is no use any more.
    cluster[0].refused(&["join", "r1", "--diskless"], 4, "");
    cluster[0].refused(&["cluster", "merge", token.trim()], 1, "");
    let restarted = [1, 2];
    for node in restarted {
        cluster[node].restart();
    }
    wait_two(&cluster);
    let resources = |node: &Node| -> Vec<String> {
        node.status().resources.into_iter().map(|resource| resource.name).collect()
    };
    assert_eq!(
        (resources(&cluster[0]), resources(&cluster[2])),
        (vec!["r0".into()], vec!["r1".into()])
    );
    // And together again: what each part has buried of the other is alive.
    let token = cluster[2].ok(&["cluster", "token"]);
    cluster[0].ok(&["cluster", "merge", token.trim()]);
    wait_one(&cluster);
    assert_eq!(resources(&cluster[1]), ["both", "r0"]);
    assert_eq!(resources(&cluster[3]), ["r1"]);
}

#[test]
fn a_split_that_was_interrupted_anywhere_ends_whole() {
    let mut dice = Rng::new(seed() + 1);
    for round in 0..rounds() + 1 {
        let mut cluster = merged();
        let split = ["cluster", "split", "gamma", "delta"];
        let victim = [0, 2, 1][usize::try_from(round % 3).unwrap_or(0)];
        let after = Duration::from_millis(dice.below(60));
        kill_during(&mut cluster, 0, &split, victim, after);
        wait_until(SYNC, "it can be repeated", || cluster[0].cli(&split).status == 0);
        wait_two(&cluster);
        for (name, nodes) in [("r0", [0, 1]), ("r1", [2, 3])] {
            for node in nodes {
                cluster[node].wait_resource(name, SOON, "its members are connected", |status| {
                    status.peers.len() == 1 && status.peers[0].connection == "Connected"
                });
            }
        }
    }
}

#[test]
fn a_split_needs_all_nodes() {
    let mut cluster = merged();
    cluster[1].stop();
    cluster[0].refused(&["cluster", "split", "gamma", "delta"], 1, "not reached: beta");
    assert_eq!(names(&cluster[2]), ALL);
    cluster[1].start();
    wait_one(&cluster);
}

#[test]
fn row_145_what_users_keep_in_the_cluster_is_the_same_everywhere() {
    let cluster = crate::cluster(2);
    cluster[0].ok(&["cluster", "set", "site.one=Berlin", "contact=ops=24"]);
    assert_eq!(cluster[1].ok(&["cluster", "get", "contact"]).trim(), "ops=24");
    assert_eq!(cluster[1].ok(&["cluster", "get"]), "contact=ops=24\nsite.one=Berlin\n");
    cluster[1].ok(&["cluster", "set", "contact="]);
    cluster[0].ok(&["cluster", "wait"]);
    cluster[0].refused(&["cluster", "get", "contact"], 4, "keeps nothing");
    for bad in ["../x=1", "a/b=1", ".hidden=1"] {
        cluster[0].refused(&["cluster", "set", bad], 1, "was not set");
    }
    let long = format!("k={}", "x".repeat(5000));
    cluster[0].refused(&["cluster", "set", "fine=1", &long], 1, "at most 4096 bytes");
    assert_eq!(cluster[1].ok(&["cluster", "get"]), "site.one=Berlin\n", "all or none");
}

#[test]
fn row_109_a_guest_sees_a_resource_and_has_nothing_of_it() {
    let mut cluster = crate::cluster(3);
    cluster.resource("r0", SIZE, 2);
    let guest = |cluster: &Cluster| {
        let mut guests = cluster[2].status().guests;
        (guests.len() == 1).then(|| guests.remove(0))
    };
    cluster[2].refused(&["status", "r0"], 4, "");
    cluster[2].refused(&["watch", "nothing"], 4, "no resource of that name");
    for options in [&["watch", "r0"][..], &["watch", "r0", "--stop"]] {
        cluster[0].refused(options, 1, "is a member");
    }
    cluster[2].ok(&["watch", "r0"]);
    let shown = guest(&cluster).expect("it is shown");
    assert_eq!((shown.name.as_str(), shown.size_bytes), ("r0", SIZE));
    // The members are asked, and may take their time.
    wait_until(SOON, "it is shown how they are", || {
        let shown = guest(&cluster).expect("it is shown");
        let members = shown.members.iter();
        let members = members.map(|m| (m.node.as_str(), m.role.as_str(), m.disk.as_str()));
        members.eq([("alpha", "Primary", "UpToDate"), ("beta", "Secondary", "UpToDate")])
    });
    assert!(cluster[2].ok(&["status", "r0"]).contains("guest: this node is no member"));
    assert!(cluster[2].status().resources.is_empty());
    // Over a restart, and when a member is away.
    cluster[2].restart();
    cluster[0].kill9();
    wait_until(SOON, "the silence is told", || {
        guest(&cluster).is_some_and(|guest| {
            let alpha = &guest.members[0];
            !alpha.alive && alpha.role == "Unknown" && guest.members[1].alive
        })
    });
    cluster[1]
        .wait_peer("r0", "alpha", SOON, "the Primary is gone", |p| p.connection != "Connected");
    cluster[1].ok(&["primary", "r0", "--force"]);
    wait_until(SOON, "the new role is told", || {
        guest(&cluster).is_some_and(|guest| guest.members[1].role == "Primary")
    });
    let there = |name: &str| cluster[2].state_dir().join(name).exists();
    assert!(there("watched.state") && !cluster[2].disk("r0").exists());
    cluster[2].ok(&["watch", "r0", "--stop"]);
    assert!(guest(&cluster).is_none() && !cluster[2].state_dir().join("watched.state").exists());
    // A guest that becomes a member is none any more.
    cluster[2].ok(&["watch", "r0"]);
    cluster.join_resource(&cluster[2], "r0", SIZE, &[]);
    wait_until(SOON, "it is no guest any more", || guest(&cluster).is_none());
}

/// Commands of several steps say what they do; `-q` silences that, and `--json` collects it.
#[test]
fn commands_tell_their_phases() {
    let cluster = crate::cluster(2);
    let disk = |node: &Node| {
        files::make_sparse(&node.disk("r0"), SIZE);
        node.disk("r0").display().to_string()
    };
    let (first, second) = (disk(&cluster[0]), disk(&cluster[1]));
    let created = cluster[0].cli(&["create", "r0", "--disk", &first]);
    assert_eq!(created.status, 0, "{created}");
    let told: Vec<&str> = created.stdout.lines().filter(|line| line.starts_with("...")).collect();
    let due = [
        "... checking the disk",
        "... writing its metadata",
        "... telling the other nodes of it",
        "... starting it",
    ];
    assert_eq!(told, due, "{created}");
    let joined = cluster[1].json(&["join", "r0", "--disk", &second]);
    let phases = joined["phases"].as_array().expect("they are collected");
    assert!(phases.iter().any(|phase| phase == "becoming a member"), "{joined}");
    assert!(joined["message"].as_str().is_some_and(|text| text.contains("is a member")));
    cluster[1].wait_synced("r0", SYNC);
    let grown = cluster[0].json(&["resize", "r0", "--size", &SIZE.to_string()]);
    assert_eq!(grown["phases"][0], "asking all members for their room");
    let left = cluster[1].cli(&["leave", "r0", "-q"]);
    assert_eq!((left.status, left.stdout.as_str(), left.stderr.as_str()), (0, "", ""));
    cluster[0].ok(&["secondary", "r0"]);
    let deleted = cluster[0].cli(&["delete", "r0"]);
    assert!(deleted.stdout.starts_with("... asking all members\n"), "{deleted}");
    // A refusal comes through as ever.
    let refused = cluster[0].cli(&["create", "r9", "--disk", "/no/such/dir/x"]);
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.starts_with("error: "), "{refused}");
}

/// The daemon dies in the middle of commands; they are repeated, and all is as it should be.
#[test]
fn commands_that_were_interrupted_are_repeated() {
    let mut dice = Rng::new(seed() + 2);
    let mut cluster = crate::cluster(2);
    for _ in 0..rounds() + 1 {
        for node in [0, 1] {
            files::make_sparse(&cluster[node].disk("r0"), SIZE);
        }
        let disks = [0, 1].map(|node| cluster[node].disk("r0").display().to_string());
        let journal = cluster[0].dir().join("r0.journal").display().to_string();
        let journal = ["--journal", &journal, "--journal-size", "16M"];
        let create = [&["create", "r0", "--disk", &disks[0]], &journal[..]].concat();
        let join = ["join", "r0", "--disk", &disks[1]];
        let is_there = |node: &Node| node.status().resources.len() == 1;
        let after = |dice: &mut Rng| Duration::from_millis(dice.below(80));
        kill_during(&mut cluster, 0, &create, 0, after(&mut dice));
        wait_until(SOON, "it is created", || {
            let output = cluster[0].cli(&create);
            output.status == 0 || output.stderr.contains("of this name")
        });
        wait_until(SOON, "it is Primary", || {
            is_there(&cluster[0]) && cluster[0].resource("r0").role == "Primary"
        });
        kill_during(&mut cluster, 1, &join, 1, after(&mut dice));
        wait_until(SOON, "it is a member", || {
            let output = cluster[1].cli(&join);
            output.status == 0 || output.stderr.contains("it is a member already")
        });
        cluster[1].wait_synced("r0", SYNC);
        kill_during(&mut cluster, 1, &["leave", "r0"], 1, after(&mut dice));
        wait_until(SOON, "it has left", || {
            let output = cluster[1].cli(&["leave", "r0"]);
            output.status == 0 || !is_there(&cluster[1])
        });
        wait_until(SOON, "the Primary knows", || cluster[0].resource("r0").peers.is_empty());
        cluster[0].ok(&["secondary", "r0"]);
        kill_during(&mut cluster, 0, &["delete", "r0"], 0, after(&mut dice));
        wait_until(SOON, "it is deleted", || {
            let output = cluster[0].cli(&["delete", "r0"]);
            output.status == 0 || !is_there(&cluster[0])
        });
        wait_until(SOON, "nothing is left", || {
            cluster.nodes().iter().all(|node| {
                let meta = std::fs::read_dir(node.state_dir().join("meta"));
                !is_there(node) && meta.into_iter().flatten().count() == 0
            })
        });
    }
}

/// Twenty daemons on one machine: all know each other, hear of what is decided anywhere, and of one that
/// is gone.
#[test]
fn row_150_a_cluster_of_twenty_nodes_agrees_and_notices_who_is_gone() {
    const NODES: usize = 20;
    let mut cluster = cluster(NODES);
    let alive = |node: &Node| {
        let nodes = node.status().cluster.map_or_else(Vec::new, |cluster| cluster.nodes);
        (nodes.len(), nodes.iter().filter(|node| node.alive).count())
    };
    for node in cluster.nodes() {
        wait_until(SYNC, "it sees all of them", || alive(node) == (NODES, NODES));
    }
    cluster.resource("r0", 8 * MIB, 1);
    let last = &cluster[NODES - 1];
    files::make_sparse(&last.disk("r0"), 8 * MIB);
    let disk = last.disk("r0").display().to_string();
    // Twenty daemons may have a machine to themselves that is too small for them: it may take a while.
    wait_until(SYNC, "it joins", || {
        let joined = last.cli(&["join", "r0", "--disk", &disk]);
        joined.status == 0 || joined.stderr.contains("already")
    });
    last.wait_synced("r0", SYNC);
    last.ok(&["cluster", "set", "room=seven"]);
    for node in cluster.nodes() {
        let told = || node.cli(&["cluster", "get", "room"]).stdout.contains("seven");
        wait_until(SOON, "it has heard of it", told);
    }
    write_blocks(&cluster[0], "r0", 1, 0..20);
    cluster[7].kill9();
    for node in [0, 6, 8, NODES - 1] {
        wait_until(SYNC, "it misses one", || alive(&cluster[node]) == (NODES, NODES - 1));
    }
    cluster[7].start();
    wait_until(SYNC, "all are there again", || alive(&cluster[3]) == (NODES, NODES));
    check_blocks(&cluster[0], "r0", 1, 0..20);
    // What they say to each other all the time is little.
    for node in cluster.nodes() {
        assert!(node.memory() < 400 * MIB, "{} has {} bytes", node.name(), node.memory());
    }
}
