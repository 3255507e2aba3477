//! Two nodes wrote apart: it is found, nobody's data is touched, a person says whose are good.

use crate::{MIB, SOON, SYNC, check_blocks, cluster, cluster_with_proxies, write_blocks};
use holdfast_api::status::PeerStatus;
use holdfast_testkit::{Cluster, Cut, files};

const SIZE: u64 = 8 * MIB;

fn stand_alone(peer: &PeerStatus) -> bool {
    peer.connection == "StandAlone"
}

fn gone(peer: &PeerStatus) -> bool {
    peer.connection != "Connected"
}

fn prints(cluster: &Cluster) -> [u64; 2] {
    [0, 1].map(|index| files::fingerprint(&cluster[index].disk("r0"), SIZE))
}

/// Both have noticed, and nothing was copied in either direction.
#[track_caller]
fn assert_detected(cluster: &Cluster, before: [u64; 2]) {
    cluster[0].wait_peer("r0", "beta", SOON, "it is noticed", stand_alone);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is noticed", stand_alone);
    assert_eq!(prints(cluster), before, "somebody's data was touched");
    // Two that are Primary may meet before the second one has written.
    cluster[0].wait_peer("r0", "beta", SOON, "it is named", |peer| peer.problem.is_some());
    let problem = cluster[0].peer("r0", "beta").problem.expect("it was there");
    match problem.code.as_str() {
        "TWO_PRIMARIES" => assert_named(cluster, "TWO_PRIMARIES", "not connected to"),
        _ => assert_named(cluster, "SPLIT_BRAIN", "split brain with"),
    }
}

/// Both say what it is, and how it is solved.
#[track_caller]
fn assert_named(cluster: &Cluster, code: &str, words: &str) {
    for (index, other) in [(0, "beta"), (1, "alpha")] {
        let node = &cluster[index];
        node.wait_peer("r0", other, SOON, "it is named", |peer| peer.problem.is_some());
        let problem = node.peer("r0", other).problem.expect("it was there");
        assert_eq!(problem.code, code);
        // Without a limit of time.
        let wait = node.cli(&["wait", "r0", "--for", "connected", "--json"]);
        let code = if code == "TWO_PRIMARIES" { "OTHER_PRIMARY" } else { code };
        assert!(wait.status == 1 && wait.stderr.contains(code), "{wait}");
        let text = node.ok(&["status", "r0"]);
        for part in [
            &format!("{words} {other}"),
            "`holdfast secondary r0`",
            "`holdfast connect r0 --discard-my-data`",
            "`holdfast connect r0`",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

/// Gives up beta's data.
#[track_caller]
fn resolve(cluster: &Cluster) {
    if cluster[1].resource("r0").role == "Primary" {
        cluster[1].refused(&["connect", "r0", "--discard-my-data"], 1, "Primary");
        cluster[1].ok(&["secondary", "r0"]);
    }
    cluster[1].ok(&["connect", "r0", "--discard-my-data"]);
    cluster[0].ok(&["connect", "r0"]);
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].wait_synced("r0", SYNC);
    for (index, other) in [(0, "beta"), (1, "alpha")] {
        let well = |peer: &PeerStatus| peer.problem.is_none();
        cluster[index].wait_peer("r0", other, SOON, "nothing is wrong any more", well);
    }
}

#[test]
fn row_066_068_apart_by_the_network() {
    let cluster = cluster_with_proxies(2);
    cluster.resource("r0", SIZE, 2);
    write_blocks(&cluster[0], "r0", 1, 0..30);
    for node in cluster.nodes() {
        node.proxy().cut(Cut::Reset);
    }
    cluster[0].wait_peer("r0", "beta", SOON, "the cut is noticed", gone);
    cluster[1].wait_peer("r0", "alpha", SOON, "the cut is noticed", gone);
    cluster[1].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 2, 10..20);
    write_blocks(&cluster[1], "r0", 3, 15..25);
    let before = prints(&cluster);
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    assert_detected(&cluster, before);
    // Both go on as they are.
    write_blocks(&cluster[0], "r0", 4, 40..41);
    check_blocks(&cluster[1], "r0", 3, 15..25);
    resolve(&cluster);
    check_blocks(&cluster[0], "r0", 2, 10..20);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    let peer = cluster[1].peer("r0", "alpha");
    assert!(peer.resync_received_bytes <= 60 * 4096, "{peer:?}");
}

#[test]
fn row_066_068_apart_by_a_crash_of_each() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    write_blocks(&cluster[0], "r0", 1, 0..30);
    cluster[1].stop();
    cluster[0].wait_peer("r0", "beta", SOON, "it is gone", gone);
    write_blocks(&cluster[0], "r0", 2, 10..20);
    cluster[0].kill9();
    cluster[1].start();
    // Nobody can know that alpha went on: a person decides.
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 3, 15..25);
    let before = prints(&cluster);
    cluster[0].start();
    assert_detected(&cluster, before);
    resolve(&cluster);
    if cluster[0].resource("r0").role != "Primary" {
        cluster[0].ok(&["primary", "r0"]);
    }
    check_blocks(&cluster[0], "r0", 2, 10..20);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn row_066_apart_by_disconnect_and_force() {
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    cluster[1].ok(&["disconnect", "r0"]);
    cluster[0].wait_peer("r0", "beta", SOON, "it is gone", gone);
    write_blocks(&cluster[0], "r0", 2, 10..20);
    // It knows that the other one goes on.
    cluster[1].wait_resource("r0", SOON, "it is outdated", |r| r.disk.state == "Outdated");
    cluster[1].refused(&["primary", "r0"], 1, "r0");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 3, 15..25);
    let before = prints(&cluster);
    cluster[1].ok(&["connect", "r0"]);
    assert_detected(&cluster, before);
    resolve(&cluster);
    check_blocks(&cluster[0], "r0", 2, 10..20);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

/// The Primary stands still for so long that it is replaced, and then goes on as if nothing had
/// happened.
#[test]
fn row_066_apart_by_a_primary_that_slept() {
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    // Not so soon that one that only stands still for a moment is given up.
    cluster[0].ok(&["set", "r0", "ping-int=1", "ping-timeout=30"]);
    write_blocks(&cluster[0], "r0", 1, 0..30);
    holdfast_testkit::wait_until(SOON, "beta has heard", || {
        cluster[1].json(&["get", "r0", "ping-int"])["value"] == "1"
    });
    cluster[0].freeze();
    cluster[1].wait_peer("r0", "alpha", SOON, "its silence is noticed", gone);
    cluster[1].ok(&["primary", "r0"]);
    write_blocks(&cluster[1], "r0", 3, 15..25);
    cluster[0].thaw();
    // It does not know yet, and takes writes.
    write_blocks(&cluster[0], "r0", 2, 10..20);
    let before = prints(&cluster);
    assert_detected(&cluster, before);
    check_blocks(&cluster[0], "r0", 2, 10..20);
    check_blocks(&cluster[1], "r0", 3, 15..25);
    resolve(&cluster);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

/// Apart, but only one side was written to: that is no split brain.
#[test]
fn row_066_one_side_that_wrote_is_no_split_brain() {
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["disconnect", "r0"]);
    cluster[0].wait_peer("r0", "beta", SOON, "it is gone", gone);
    cluster[0].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 2, 10..20);
    cluster[1].ok(&["connect", "r0"]);
    cluster[1].wait_synced("r0", SYNC);
    check_blocks(&cluster[0], "r0", 2, 10..20);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn a_half_filled_disk_that_was_forced_is_split_off() {
    let mut cluster = cluster(2);
    files::make_random(&cluster[0].disk("r0"), SIZE, 71);
    // So slow that it is not through before it was seen and alpha is dead.
    cluster.create("r0", SIZE, &["--set", "resync-rate=256K", "--set", "resync-in-flight=1M"]);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    // Beta never had all of the data, and is made to begin with what it has.
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[1].wait_peer("r0", "alpha", SOON, "a resync runs", |p| p.resync.is_some());
    cluster[0].kill9();
    cluster[1].wait_peer("r0", "alpha", SOON, "it is gone", gone);
    assert_eq!(cluster[1].resource("r0").disk.state, "Inconsistent");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 5..15);
    let before = prints(&cluster);
    cluster[0].start();
    cluster[0].wait_peer("r0", "beta", SOON, "it is noticed", stand_alone);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is noticed", stand_alone);
    assert_eq!(prints(&cluster), before, "somebody's data was touched");
    assert_named(&cluster, "SPLIT_BRAIN", "split brain with");
    // The way out is the same: one side is thrown away, here as a whole.
    cluster[0].ok(&["set", "r0", "resync-rate=0"]);
    resolve(&cluster);
    if cluster[0].resource("r0").role != "Primary" {
        cluster[0].ok(&["primary", "r0"]);
    }
    check_blocks(&cluster[0], "r0", 1, 0..10);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn row_071_data_without_a_common_past_are_refused() {
    let cluster = cluster(2);
    cluster.create("r0", SIZE, &[]);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    // Beta never meets alpha's data, and is made to begin with its own.
    cluster[0].ok(&["down", "r0"]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 5..15);
    let before = prints(&cluster);
    cluster[0].ok(&["up", "r0"]);
    cluster[0].wait_peer("r0", "beta", SOON, "it is noticed", stand_alone);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is noticed", stand_alone);
    assert_eq!(prints(&cluster), before, "somebody's data was touched");
    assert_named(&cluster, "UNRELATED_DATA", "not connected to");
    // The way out is the same: one side is thrown away, here as a whole.
    resolve(&cluster);
    if cluster[0].resource("r0").role != "Primary" {
        cluster[0].ok(&["primary", "r0"]);
    }
    check_blocks(&cluster[0], "r0", 1, 0..10);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

/// The other way out: one side leaves with its data, and the other one goes on.
#[test]
fn one_side_leaves_and_keeps_its_disk() {
    let mut cluster = cluster_with_proxies(2);
    cluster.resource("r0", SIZE, 2);
    write_blocks(&cluster[0], "r0", 1, 0..30);
    for node in cluster.nodes() {
        node.proxy().cut(Cut::Reset);
    }
    cluster[0].wait_peer("r0", "beta", SOON, "the cut is noticed", gone);
    cluster[1].wait_peer("r0", "alpha", SOON, "the cut is noticed", gone);
    // Alone it has the last good copy.
    cluster[1].refused(&["leave", "r0"], 1, "no other node in reach has up-to-date data");
    cluster[1].ok(&["primary", "r0"]);
    write_blocks(&cluster[0], "r0", 2, 10..20);
    write_blocks(&cluster[1], "r0", 3, 15..25);
    let before = prints(&cluster);
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    assert_detected(&cluster, before);
    cluster[1].refused(&["leave", "r0"], 1, "Primary");
    cluster[1].ok(&["secondary", "r0"]);
    holdfast_testkit::wait_until(SOON, "it leaves when it sees the other one", || {
        cluster[1].cli(&["leave", "r0"]).status == 0
    });
    assert_eq!(prints(&cluster), before, "the data stay");
    assert!(cluster[1].status().resources.is_empty());
    cluster[0].wait_resource("r0", SOON, "nothing is wrong", |r| r.peers.is_empty());
    check_blocks(&cluster[0], "r0", 2, 10..20);
    write_blocks(&cluster[0], "r0", 4, 40..41);
    let disk = cluster[1].disk("r0").display().to_string();
    cluster[1].ok(&["join", "r0", "--disk", &disk, "--force"]);
    cluster[1].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    cluster[0].stop();
}
