//! Many resources on two nodes. `HOLDFAST_RESOURCES` says how many.

use crate::{MIB, SYNC, check_blocks, cluster, number_of, write_blocks};
use holdfast_testkit::{Cluster, Node, holds_within, wait_until};
use std::fs;
use std::time::{Duration, Instant};

const SIZE: u64 = MIB;
/// How long one command may take however many resources there are.
const COMMAND: Duration = Duration::from_secs(20);

/// What one daemon takes of its machine.
#[derive(Debug)]
struct Taken {
    threads: u64,
    files: u64,
    memory: u64,
}

fn taken(node: &Node) -> Taken {
    let count = |what: &str| {
        let entries = fs::read_dir(format!("/proc/{}/{what}", node.pid()));
        entries.expect("a process has these").count() as u64
    };
    Taken { threads: count("task"), files: count("fd"), memory: node.memory() }
}

/// Panics when a resource costs more of a machine than it should, for longer than a start takes. The more
/// there is to do, the more of what all of them do at a start goes on at a time, each with a thread that
/// stays for some seconds.
#[track_caller]
fn assert_modest(idle: &Taken, node: &Node, resources: u64) {
    let mut now = taken(node);
    let modest = holds_within(SYNC, || {
        now = taken(node);
        // Each resource has a thread for a moment now and then, 512 together at most.
        now.threads < idle.threads + resources.min(512) + 64
            && now.files < idle.files + 12 * resources + 64
            && now.memory < idle.memory + (64 + resources) * MIB
    });
    assert!(modest, "node {}: {idle:?}, {now:?}", node.name());
}

/// Runs a command; how long it took.
fn timed(node: &Node, arguments: &[&str]) -> (String, Duration) {
    let start = Instant::now();
    let text = node.ok(arguments);
    (text, start.elapsed())
}

fn wait_all_synced(cluster: &Cluster, count: usize) {
    for (node, role) in cluster.nodes().iter().zip(["Primary", "Secondary"]) {
        // All of them at a time, on a machine that may have much else to do.
        wait_until(3 * SYNC, "all resources are up to date", || {
            let resources = node.status().resources;
            let good = resources.iter().filter(|resource| {
                resource.role == role
                    && resource.disk.state == "UpToDate"
                    && resource.peers.iter().all(|peer| {
                        peer.replication == "Established"
                            && peer.disk == "UpToDate"
                            && peer.out_of_sync_bytes == 0
                    })
            });
            good.count() == count
        });
    }
}

#[test]
fn row_149_many_resources_are_up_to_date_come_back_and_do_not_slow_commands_down() {
    let count = usize::try_from(number_of("HOLDFAST_RESOURCES", 32)).expect("it is a number");
    let mut cluster = cluster(2);
    let names: Vec<String> = (0..count).map(|number| format!("r{number}")).collect();
    let idle = taken(&cluster[0]);
    for name in &names {
        cluster.create(name, SIZE, &[]);
    }
    for name in &names {
        cluster.join_resource(&cluster[1], name, SIZE, &[]);
    }
    wait_all_synced(&cluster, count);
    for (number, name) in names.iter().enumerate() {
        write_blocks(&cluster[0], name, number as u64, [0, 100]);
    }
    for killed in [false, true] {
        for node in cluster.nodes() {
            let (text, took) = timed(node, &["status"]);
            assert!(names.iter().all(|name| text.contains(name.as_str())), "{text}");
            assert!(took < COMMAND, "status took {took:?}");
            let (text, took) = timed(node, &["status", "--json"]);
            let json: serde_json::Value = serde_json::from_str(&text).expect("it prints JSON");
            assert_eq!(json["resources"].as_array().map(Vec::len), Some(count));
            assert!(took < COMMAND, "status --json took {took:?}");
        }
        let option = format!("ping-int={}", 5 + u8::from(killed));
        let (_, took) = timed(&cluster[1], &["set", &names[count / 2], &option]);
        assert!(took < COMMAND, "set took {took:?}");
        for node in cluster.nodes() {
            assert_modest(&idle, node, count as u64);
        }
        for index in [0, 1] {
            if killed {
                cluster[index].kill9();
            } else {
                cluster[index].stop();
            }
        }
        for index in [0, 1] {
            cluster[index].start();
        }
        wait_all_synced(&cluster, count);
    }
    for (number, name) in names.iter().enumerate() {
        check_blocks(&cluster[0], name, number as u64, [0, 100]);
        cluster.assert_equal_disks(name, SIZE, &[0, 1]);
    }
}
