//! What an administrator does and sees: up, down, roles, options, waiting.

use crate::{BLOCK, MIB, SOON, SYNC, binary, check_blocks, cluster, write_blocks};
use holdfast_testkit::{Cluster, ClusterOptions, files, run_ok, wait_until};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// Panics unless the object has each of these keys.
#[track_caller]
fn assert_keys(value: &Value, keys: &str) {
    for key in keys.split_whitespace() {
        assert!(value.get(key).is_some(), "there is no {key} in {value}");
    }
}

#[test]
fn row_001_up_and_down_show_in_status_and_events() {
    let cluster = cluster(2);
    cluster.resource("r0", 16 * MIB, 2);
    let status = cluster[0].json(&["status"]);
    assert_keys(&status, "version node cluster resources");
    assert_keys(&status["cluster"], "uuid name nodes");
    assert_keys(&status["cluster"]["nodes"][0], "name address alive last_seen_seconds version");
    let resource = &status["resources"][0];
    assert_keys(
        resource,
        "name role size_bytes suspended quorum open_count device device_kind nbd_uri disk \
         generation promotable journal replay peers",
    );
    assert_keys(
        &resource["disk"],
        "state path io_errors checksum_errors healed_blocks remapped_sectors spare_sectors_free",
    );
    assert_keys(
        &resource["peers"][0],
        "node connection role disk replication protocol out_of_sync_bytes pending_requests tls \
         resync",
    );
    assert_eq!(resource["role"], "Primary");
    assert_eq!(resource["size_bytes"], 16 * MIB);
    assert_eq!(resource["peers"][0]["tls"], true);
    assert_eq!(cluster[0].json(&["status", "r0"])["resources"][0]["name"], "r0");

    let dump = cluster[0].ok(&["events", "--json"]);
    let events: Vec<Value> =
        dump.lines().map(|line| serde_json::from_str(line).expect("an event is JSON")).collect();
    let told = |object: &str, name: &str| {
        events.iter().any(|e| e["kind"] == "exists" && e["object"] == object && e["name"] == name)
    };
    assert!(told("resource", "r0") && told("peer", "r0"), "{dump}");

    // From now on, what happens.
    let log = cluster.scratch().join("events");
    let mut follower = cluster[0]
        .command(&["events", "--json", "--follow"])
        .stdout(std::fs::File::create(&log).expect("it can be made"))
        .spawn()
        .expect("the command starts");
    let told = |kind: &str, field: &str, value: &str| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.into_iter().any(|e| e["kind"] == kind && e["fields"][field] == value)
    };
    wait_until(SOON, "the dump is there", || told("exists", "role", "Primary"));

    cluster[1].ok(&["down", "r0"]);
    assert_eq!(cluster[1].resource("r0").role, "Unknown");
    cluster[0].wait_peer("r0", "beta", SOON, "the peer is gone", |p| p.connection != "Connected");
    wait_until(SOON, "the change of the peer is told", || told("change", "disk", "DUnknown"));
    follower.kill().and_then(|()| follower.wait()).expect("it is a child");
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[1].ok(&["up", "r0"]);
    cluster[0].wait_synced("r0", SOON);

    // A Primary that was taken down is Primary when it is up again.
    cluster[0].ok(&["down", "all"]);
    assert_eq!(cluster[0].resource("r0").role, "Unknown");
    cluster[0].ok(&["up", "all"]);
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    check_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", 16 * MIB, &[0, 1]);
}

#[test]
fn row_008_create_keeps_what_is_on_the_disk() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let len = 32 * MIB;
    let path = |name: &str| node.dir().join(name);
    let text = |name: &str| path(name).display().to_string();
    for name in ["own", "beside", "inside"] {
        files::make_random(&path(name), len, 8);
    }
    let before = files::fingerprint(&path("own"), len);

    // In the state directory, and in a file beside it: all of the disk is the device.
    node.ok(&["create", "r0", "--disk", &text("own")]);
    let meta = text("beside.meta");
    node.ok(&["create", "r1", "--disk", &text("beside"), "--meta", &meta]);
    for (resource, file) in [("r0", "own"), ("r1", "beside")] {
        assert_eq!(node.resource(resource).size_bytes, len);
        assert_eq!(files::fingerprint(&path(file), len), before, "{file}");
    }
    // At the disk's end: all but the end, and not where a file system would be cut off.
    files::make_sparse(&path("ext4"), len);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(path("ext4")));
    let filesystem = files::fingerprint(&path("ext4"), len);
    let on_ext4 = ["create", "r2", "--disk", &text("ext4"), "--meta", "internal"];
    node.refused(&on_ext4, 1, "filesystem");
    assert_eq!(files::fingerprint(&path("ext4"), len), filesystem);
    let said = node.ok(&["create", "r2", "--disk", &text("inside"), "--meta", "internal"]);
    assert!(said.contains("hold its metadata"), "{said}");
    let size = node.resource("r2").size_bytes;
    assert!(size > len / 2 && size < len && size.is_multiple_of(BLOCK), "{size}");
    files::assert_equal(&path("own"), &path("inside"), size);
    write_blocks(node, "r2", 1, [0, size / BLOCK - 1]);
    check_blocks(node, "r2", 1, [0, size / BLOCK - 1]);

    node.ok(&["down", "all"]);
    for (arguments, device) in [
        (vec!["meta", "dump", &meta], len),
        (vec!["meta", "dump", "--internal", &text("inside")], size),
    ] {
        let dump = node.json(&arguments);
        assert_eq!(dump["size_bytes"], device);
        assert_eq!(dump["al_extents"], 1237);
        assert_eq!(dump["findings"], serde_json::json!([]));
        assert!(dump["generation"].as_str().is_some_and(|g| g.len() == 16), "{dump}");
    }
    node.ok(&["meta", "check", &meta]);
    node.refused(&["meta", "check", &text("own")], 1, "was not read");
}

#[test]
fn row_073_a_second_primary_is_refused() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster[1].refused(&["primary", "r0"], 1, "alpha");
    assert_eq!(cluster[1].resource("r0").role, "Secondary");
    assert!(!cluster[1].resource("r0").promotable);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].wait_resource("r0", SOON, "promotable", |r| r.promotable);
    cluster[1].ok(&["primary", "r0"]);
    cluster[0].wait_peer("r0", "beta", SOON, "the role is told", |p| p.role == "Primary");
    cluster[0].refused(&["primary", "r0"], 1, "beta");
    write_blocks(&cluster[1], "r0", 1, [7]);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}

/// Both ask for the role at the same time: one gets it.
#[test]
fn row_073_of_two_promotions_at_once_one_wins() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster[0].ok(&["secondary", "r0"]);
    for round in 0..10 {
        let race: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| {
                let mut command = node.command(&["primary", "r0"]);
                std::thread::spawn(move || holdfast_testkit::run(&mut command))
            })
            .collect();
        let ends: Vec<_> = race.into_iter().map(|run| run.join().expect("it ends")).collect();
        let winners: Vec<usize> = (0..2).filter(|index| ends[*index].status == 0).collect();
        let primaries: Vec<usize> =
            (0..2).filter(|index| cluster[*index].resource("r0").role == "Primary").collect();
        assert_eq!(winners, primaries, "round {round}: {ends:?}");
        assert!(primaries.len() < 2, "round {round}: {ends:?}");
        for index in primaries {
            cluster[index].ok(&["secondary", "r0"]);
        }
        for node in cluster.nodes() {
            node.wait_resource("r0", SOON, "nobody is Primary", |r| {
                r.role == "Secondary" && r.peers[0].role == "Secondary"
            });
        }
    }
    // Where both were refused, what they had promised each other may hold for a moment.
    wait_until(SOON, "one alone gets it", || cluster[1].cli(&["primary", "r0"]).status == 0);
}

#[test]
fn row_076_an_open_device_is_not_demoted() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    let mut client = cluster[0].open("r0");
    let told = cluster[0].wait_resource("r0", SOON, "one has it open", |r| r.open_count == 1);
    let own = format!("NBD client unix, process {}", std::process::id());
    assert_eq!(told.openers, [&*own]);
    let text = cluster[0].ok(&["status", "r0"]);
    assert!(text.contains(&format!("in use: {own}\n")), "{text}");
    cluster[0].refused(&["secondary", "r0"], 1, "open");
    client.write_at(&[1; 512], 0).expect("it is still Primary");
    drop(client);
    cluster[0].wait_resource("r0", SOON, "nobody has it open", |r| r.open_count == 0);
    cluster[0].ok(&["secondary", "r0"]);

    cluster[0].ok(&["primary", "r0"]);
    let mut client = cluster[0].open("r0");
    cluster[0].ok(&["secondary", "r0", "--force"]);
    assert_eq!(cluster[0].resource("r0").role, "Secondary");
    assert!(client.write_at(&[1; 512], 0).is_err(), "a Secondary took a write");
}

#[test]
fn row_077_primary_by_force_takes_the_data_as_it_is() {
    let mut cluster = cluster(2);
    let size = 32 * MIB;
    files::make_random(&cluster[0].disk("r0"), size, 77);
    cluster.create("r0", size, &["--set", "resync-rate=2M"]);
    cluster.join_resource(&cluster[1], "r0", size, &[]);
    cluster[1].wait_resource("r0", SOON, "a resync runs", |r| {
        r.peers.first().is_some_and(|peer| peer.resync.is_some())
    });
    cluster[0].kill9();
    let lost = |p: &holdfast_api::status::PeerStatus| p.connection != "Connected";
    cluster[1].wait_peer("r0", "alpha", SOON, "the source is gone", lost);
    assert_eq!(cluster[1].resource("r0").disk.state, "Inconsistent");
    cluster[1].refused(&["primary", "r0"], 1, "r0");
    assert_eq!(cluster[1].resource("r0").role, "Secondary");
    cluster[1].ok(&["primary", "r0", "--force"]);
    let status = cluster[1].resource("r0");
    assert_eq!((&*status.role, &*status.disk.state), ("Primary", "UpToDate"));
    write_blocks(&cluster[1], "r0", 1, [3]);
    check_blocks(&cluster[1], "r0", 1, [3]);
}

#[test]
fn row_134_waiting_ends_when_it_is_so_and_when_the_time_is_over() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    for state in ["uptodate", "connected", "established", "primary", "synced"] {
        cluster[0].ok(&["wait", "r0", "--for", state, "--timeout", "20"]);
    }
    cluster[0].ok(&["wait", "r0", "--for", "secondary", "--peer", "beta", "--timeout", "20"]);
    cluster[1].stop();
    cluster[0].wait_peer("r0", "beta", SOON, "it is away", |p| p.connection != "Connected");
    for state in ["connected", "established", "synced"] {
        let start = Instant::now();
        cluster[0].refused(&["wait", "r0", "--for", state, "--timeout", "0.3"], 5, state);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300) && took < SOON, "{took:?}");
    }
    // It ends as soon as the peer comes.
    let mut waiting = cluster[0]
        .command(&["wait", "r0", "--for", "synced", "--timeout", "30"])
        .spawn()
        .expect("the command starts");
    cluster[1].start();
    assert!(waiting.wait().expect("it is a child").success());
    cluster[0].wait_synced("r0", SOON);
}

#[test]
fn row_141_waiting_ends_when_a_state_has_ended() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    for state in ["secondary", "replayed"] {
        let text = cluster[0].cli(&["wait", "r0", "--while", state, "--timeout", "0"]);
        assert_eq!(text.status == 0, state == "secondary", "{text}");
    }
    for (state, peer) in [("primary", None), ("connected", None), ("uptodate", Some("beta"))] {
        let peer = peer.map_or(vec![], |peer| vec!["--peer", peer]);
        let wait = [&["wait", "r0", "--while", state][..], &peer].concat();
        let short = [&wait[..], &["--timeout", "0.3"]].concat();
        let start = Instant::now();
        cluster[0].refused(&short, 5, &format!("the end of {state} of resource r0"));
        assert!(start.elapsed() >= Duration::from_millis(300), "{state}");
        // It ends as soon as that does.
        let long = [&wait[..], &["--timeout", "30"]].concat();
        let mut waiting = cluster[0].command(&long).spawn().expect("the command starts");
        match state {
            "primary" => drop(cluster[0].ok(&["secondary", "r0"])),
            "connected" => cluster[1].stop(),
            _ => drop(cluster[1].ok(&["detach-disk", "r0"])),
        }
        let end = waiting.wait().expect("it is a child");
        assert!(end.success(), "{state}: {end}");
        if state == "connected" {
            cluster[1].start();
            cluster[0].wait_synced("r0", SOON);
        }
    }
}

#[test]
fn options_are_checked_shown_and_kept() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster[0].ok(&["set", "r0", "ping-int=3", "resync-rate=64M"]);
    let value =
        |cluster: &Cluster, key: &str| cluster[0].json(&["get", "r0", key])["value"].clone();
    for restarted in [false, true] {
        if restarted {
            cluster[0].restart();
        }
        assert_eq!(value(&cluster, "ping-int"), "3");
        assert_eq!(value(&cluster, "resync-rate"), (64 * MIB).to_string());
        assert_eq!(value(&cluster, "timeout"), "60");
    }
    let all = cluster[0].json(&["get", "r0"]);
    let all = all.as_array().expect("all options are a list");
    assert!(all.len() >= 12, "{all:?}");
    for option in all {
        assert_keys(option, "name value default unit range scope description");
    }
    // One that is wrong keeps the others from being set.
    cluster[0].refused(&["set", "r0", "ping-int=5", "connect-int=0"], 1, "connect-int");
    assert_eq!(value(&cluster, "ping-int"), "3");
    // They are the resource's, so the other node has them, too.
    wait_until(SOON, "the other node has heard", || {
        cluster[1].json(&["get", "r0", "ping-int"])["value"] == "3"
    });
}

#[test]
fn a_member_leaves_and_a_resource_is_deleted_and_the_data_stay() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, [0, 5]);
    // A member that is down cannot tell whether anybody else has its data.
    cluster[1].ok(&["down", "r0"]);
    cluster[1].refused(&["leave", "r0", "--dry-run"], 1, "may have the last good data");
    cluster[1].refused(&["leave", "r0"], 1, "may have the last good data");
    cluster[1].ok(&["up", "r0"]);
    cluster[1].wait_synced("r0", SYNC);
    cluster[1].ok(&["leave", "r0"]);
    assert!(cluster[1].status().resources.is_empty());
    cluster[0].wait_resource("r0", SOON, "no peer is left", |r| r.peers.is_empty());
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
    let before = files::fingerprint(&cluster[0].disk("r0"), 4 * MIB);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["delete", "r0"]);
    assert!(cluster[0].status().resources.is_empty());
    assert_eq!(files::fingerprint(&cluster[0].disk("r0"), 4 * MIB), before);
    // Name and disk are free again, and the data are kept once more.
    cluster.resource("r0", 4 * MIB, 2);
    check_blocks(&cluster[0], "r0", 1, [0, 5]);
    assert_eq!(files::fingerprint(&cluster[0].disk("r0"), 4 * MIB), before);
}

#[test]
fn a_node_leaves_and_a_lost_one_is_removed() {
    let mut cluster = cluster(3);
    let names = |cluster: &Cluster, index: usize| -> Vec<String> {
        let status = cluster[index].status().cluster.expect("it is in a cluster");
        status.nodes.into_iter().map(|node| node.name).collect()
    };
    assert_eq!(names(&cluster, 2), ["alpha", "beta", "gamma"]);
    cluster[2].ok(&["cluster", "leave"]);
    assert!(cluster[2].status().cluster.is_none());
    for index in [0, 1] {
        wait_until(SOON, "the others have heard", || names(&cluster, index) == ["alpha", "beta"]);
    }
    cluster[1].kill9();
    wait_until(SOON, "its silence is noticed", || {
        let nodes = cluster[0].status().cluster.expect("it is in a cluster").nodes;
        nodes.iter().any(|node| node.name == "beta" && !node.alive)
    });
    cluster[0].ok(&["cluster", "remove", "beta", "--force"]);
    assert_eq!(names(&cluster, 0), ["alpha"]);
    // Who was removed hears of it, and of the way out.
    cluster[1].start();
    wait_until(SOON, "it is told", || {
        let problems = cluster[1].status().cluster.expect("it thinks so").problems;
        problems.iter().any(|problem| problem.contains("alpha refuses this node"))
    });
    let disk = cluster[1].disk("r0");
    files::make_sparse(&disk, 4 * MIB);
    let join = cluster[1].cli(&["join", "r0", "--disk", &disk.display().to_string()]);
    assert!(join.stderr.contains("alpha refuses this node"), "{join}");
    assert!(join.stderr.contains("`holdfast cluster leave --force`"), "{join}");
    cluster[1].ok(&["cluster", "leave", "--force"]);
    // Who has left can come back.
    cluster.join(2);
    assert_eq!(names(&cluster, 0), ["alpha", "gamma"]);
}

#[test]
fn a_node_leaves_with_its_own_resource_when_it_is_told_to() {
    let cluster = cluster(1);
    let node = &cluster[0];
    cluster.create("r0", 4 * MIB, &[]);
    write_blocks(node, "r0", 1, 0..3);
    node.refused(&["cluster", "leave"], 1, "r0");
    let open = node.open("r0");
    for command in [&["cluster", "leave", "--force"][..], &["down", "r0"]] {
        let output = node.cli(command);
        assert!(output.stderr.contains("have it open"), "{output}");
        assert!(output.stderr.contains("`holdfast secondary r0 --force`"), "{output}");
    }
    drop(open);
    node.ok(&["cluster", "leave", "--force"]);
    let status = node.status();
    assert!(status.cluster.is_none() && status.resources.is_empty());
    // The data stay, and the disk is free.
    node.ok(&["create", "r0", "--disk", &node.disk("r0").display().to_string()]);
    check_blocks(node, "r0", 1, 0..3);
}

#[test]
fn a_diskless_member_reads_and_writes_through_its_peer() {
    let cluster = cluster(2);
    cluster.create("r0", 4 * MIB, &[]);
    write_blocks(&cluster[0], "r0", 1, [0, 1]);
    cluster[1].ok(&["join", "r0", "--diskless"]);
    let peer = |p: &holdfast_api::status::PeerStatus| p.connection == "Connected";
    cluster[1].wait_peer("r0", "alpha", SOON, "connected", peer);
    assert_eq!(cluster[1].resource("r0").disk.state, "Diskless");
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 1, [0, 1]);
    write_blocks(&cluster[1], "r0", 2, [1, 2]);
    check_blocks(&cluster[1], "r0", 2, [1, 2]);
    let found = files::read(&cluster[0].disk("r0"), BLOCK, 4096);
    assert!(found == holdfast_testkit::block_content(2, 1, 1));
}

#[test]
fn nodes_reach_each_other_by_ipv6() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6 on loopback");
        return;
    }
    let options = ClusterOptions { listen: Some("[::1]:0"), ..ClusterOptions::default() };
    let cluster = Cluster::with(&binary(), 2, options);
    assert!(cluster[0].address().is_ipv6() && cluster[1].address().is_ipv6());
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, [0, 5]);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}

#[test]
fn a_name_finds_its_node_by_the_resolver() {
    let options = ClusterOptions { listen: Some("localhost:0"), ..ClusterOptions::default() };
    let cluster = Cluster::strangers(&binary(), 2, options);
    cluster[0].ok(&["cluster", "create"]);
    let address = format!("localhost:{}", cluster[0].address().port());
    let token = cluster[0].ok(&["cluster", "token", "--addr", &address]);
    cluster[1].ok(&["cluster", "join", token.trim()]);
    assert_eq!(cluster[1].status().cluster.map(|c| c.nodes.len()), Some(2));
}

#[test]
fn several_resources_are_named_with_commas_or_as_all() {
    let cluster = cluster(1);
    let node = &cluster[0];
    for name in ["r0", "r1", "r2"] {
        cluster.create(name, MIB, &[]);
    }
    let roles = || ["r0", "r1", "r2"].map(|name| node.resource(name).role);
    node.ok(&["secondary", "r0,r2"]);
    assert_eq!(roles(), ["Secondary", "Primary", "Secondary"]);
    // One that fails does not keep the others from it.
    node.refused(&["secondary", "r0,nothing,r1"], 4, "1 of 3 resources were not changed: nothing");
    assert_eq!(roles(), ["Secondary"; 3]);
    node.ok(&["primary", "all"]);
    assert_eq!(roles(), ["Primary"; 3]);
    node.refused(&["pause", "r0,", "sync"], 2, "");
    node.ok(&["down", "r1,r0"]);
    node.ok(&["up", "all"]);
}
