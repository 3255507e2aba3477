//! Slow peers, silent peers, large devices: memory and time stay within their bounds.

use crate::{
    BLOCK, MIB, SOON, SYNC, binary, check_blocks, cluster, cluster_with_proxies, write_blocks,
};
use holdfast_nbd::{Client, ConnectOptions};
use holdfast_testkit::{Cluster, ClusterOptions, Ledger, Rng, Writer, WriterOptions, wait_until};
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn row_020_a_write_waits_for_the_peer() {
    let cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    // However long it is frozen, it is not given up.
    cluster[0].ok(&["set", "r0", "ping-int=120", "ko-count=0"]);
    cluster[1].freeze();
    let ledger = Ledger::new(20, 1024);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
    let start = Instant::now();
    wait_until(SOON, "a second", || start.elapsed() > Duration::from_secs(1));
    assert_eq!(writer.acknowledged(), 0, "a write was acknowledged without the peer");
    cluster[1].thaw();
    writer.wait_acknowledged(10);
    let mut ledger = writer.stop_well();
    ledger.verify_file(&cluster[0].disk("r0"));
    ledger.verify_file(&cluster[1].disk("r0"));
    assert_eq!(cluster[0].peer("r0", "beta").connection, "Connected");
}

/// A peer that is silent, but whose connection stands, is dropped in time; writes go on.
#[test]
fn a_silent_peer_is_dropped_and_comes_back() {
    let cluster = cluster_with_proxies(2);
    cluster.resource("r0", 4 * MIB, 2);
    cluster[0].ok(&["set", "r0", "ping-int=1", "ping-timeout=5", "timeout=5", "ko-count=2"]);
    for node in cluster.nodes() {
        node.proxy().stall();
    }
    let ledger = Ledger::new(21, 1024);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
    let start = Instant::now();
    writer.wait_acknowledged(10);
    let took = start.elapsed();
    assert!(took > Duration::from_millis(300) && took < SOON, "{took:?}");
    assert_ne!(cluster[0].peer("r0", "beta").connection, "Connected");
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    cluster[0].wait_peer("r0", "beta", SYNC, "it comes back", |peer| peer.disk == "UpToDate");
    let mut ledger = writer.stop_well();
    cluster[0].wait_synced("r0", SOON);
    ledger.verify_file(&cluster[1].disk("r0"));
}

#[test]
fn row_155_a_slow_peer_does_not_fill_the_memory() {
    let cluster = cluster(2);
    cluster.resource("r0", 256 * MIB, 2);
    cluster[0].ok(&["set", "r0", "ping-int=120", "ko-count=0"]);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    let before = cluster[0].memory();
    cluster[1].freeze();
    // Far more than may be in flight at once.
    let uri = cluster[0].uri("r0");
    let clients = (0..150).map(|index: u64| {
        let uri = uri.clone();
        thread::spawn(move || {
            let options = ConnectOptions { timeout: Some(SYNC), ..ConnectOptions::default() };
            let mut client = Client::connect(&uri, &options).expect("the export can be opened");
            client.write_at(&vec![7; 1 << 20], index * MIB).expect("it is written in the end");
        })
    });
    let clients: Vec<_> = clients.collect();
    let mut most = 0;
    let start = Instant::now();
    wait_until(SOON, "three seconds", || {
        most = most.max(cluster[0].memory());
        start.elapsed() > Duration::from_secs(3)
    });
    assert!(clients.iter().any(|client| !client.is_finished()), "nobody had to wait");
    cluster[1].thaw();
    for client in clients {
        client.join().expect("the write ends well");
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 200 * MIB, "{} MiB more, {} MiB before", grown / MIB, before / MIB);
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", 256 * MIB, &[0, 1]);
}

/// No daemon takes more memory than it may for a terabyte and two peers.
#[track_caller]
fn assert_little_memory(cluster: &Cluster, when: &str) {
    for node in cluster.nodes().iter().filter(|node| node.is_running()) {
        let used = node.memory();
        assert!(used < 150 * MIB, "{when}: node {} uses {} MiB", node.name(), used / MIB);
    }
}

fn terabyte_in_little_memory(on_disk: bool) {
    let options = ClusterOptions { on_disk, ..ClusterOptions::default() };
    let mut cluster = Cluster::with(&binary(), 3, options);
    let (size, missed) = (1 << 40, 400);
    let probe = File::create(cluster.scratch().join("probe")).expect("a file can be made");
    if let Err(why) = probe.set_len(size) {
        eprintln!("skipped: a file of a terabyte cannot be made here: {why}");
        return;
    }
    cluster.create("r0", size, &[]);
    for node in &cluster.nodes()[1..] {
        cluster.join_resource(node, "r0", size, &[]);
    }
    let all_synced = |cluster: &Cluster| {
        for node in cluster.nodes() {
            node.wait_resource("r0", SOON, "both peers are known", |r| r.peers.len() == 2);
            node.ok(&["wait", "r0", "--for", "synced", "--timeout", "50"]);
        }
    };
    all_synced(&cluster);
    assert_little_memory(&cluster, "after the first sync");
    // All over the device, so that no two are in one page of a bitmap or one extent.
    let blocks = Rng::new(43).distinct(missed, size / BLOCK);
    let last = [0, size / BLOCK - 1];
    write_blocks(&cluster[0], "r0", 1, last);
    cluster[1].stop();
    write_blocks(&cluster[0], "r0", 2, blocks.iter().copied());
    let missed = missed as u64 * BLOCK;
    cluster[0].wait_peer("r0", "beta", SOON, "all is noted", |p| p.out_of_sync_bytes == missed);
    assert_little_memory(&cluster, "while a member misses writes");
    cluster[1].start();
    all_synced(&cluster);
    assert_little_memory(&cluster, "after a resync");
    let received = cluster[1].peer("r0", "alpha").resync_received_bytes;
    assert!(received <= missed / 20 * 21, "{received} bytes for {missed}");
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);
    check_blocks(&cluster[0], "r0", 1, last);
    check_blocks(&cluster[0], "r0", 2, blocks);
}

#[test]
fn a_terabyte_with_two_peers_takes_little_memory() {
    terabyte_in_little_memory(false);
}

#[test]
fn a_terabyte_on_a_disk_with_two_peers_takes_little_memory() {
    terabyte_in_little_memory(true);
}

#[test]
fn two_daemons_do_not_share_a_state_directory_or_a_port() {
    let cluster = Cluster::strangers(&binary(), 1, ClusterOptions::default());
    let node = &cluster[0];
    let scratch = holdfast_testkit::Scratch::new();
    let text = |path: std::path::PathBuf| path.display().to_string();
    let start = |state: String, listen: &str| {
        let socket = text(scratch.join("control.sock"));
        let mut command = std::process::Command::new(binary());
        command.args(["daemon", "--name", "other", "--listen", listen]);
        command.args(["--state-dir", &state, "--socket", &socket]);
        holdfast_testkit::run(&mut command)
    };
    let same_state = start(text(node.state_dir()), "127.0.0.1:0");
    let same_port = start(text(scratch.join("state")), &node.address().to_string());
    for output in [same_state, same_port] {
        assert_eq!(output.status, 1, "{output}");
        assert_eq!(output.stderr.matches("error: ").count(), 1, "{output}");
    }
    assert!(node.status().cluster.is_none());
}
