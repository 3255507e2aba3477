//! Checksums of a disk's blocks: kept across restarts and crashes, added and removed while the resource
//! is in use; what changes behind the daemon's back is found.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{Bad, BadDisk, Node, devices_unavailable, wait_until};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const SIZE: u64 = 64 * MIB;

fn wait_for(node: &Node, state: &str) {
    node.wait_resource("r0", SYNC, state, |r| r.disk.checksums == state);
}

fn sums(node: &Node) -> Option<PathBuf> {
    let files = std::fs::read_dir(node.state_dir().join("meta")).expect("it is there");
    let mut paths = files.map(|entry| entry.expect("it can be read").path());
    paths.find(|path| path.extension().is_some_and(|name| name == "checksums"))
}

#[test]
fn they_come_with_a_resource_and_last_over_stops_and_kills() {
    let mut cluster = cluster(2);
    cluster.create("r0", SIZE, &["--checksums"]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--checksums"]);
    cluster.wait_members("r0", 2, SOON);
    for index in [0, 1] {
        wait_for(&cluster[index], "on");
        assert!(sums(&cluster[index]).is_some());
    }
    assert!(cluster[0].ok(&["get", "r0", "checksums"]).contains("on"));
    write_blocks(&cluster[0], "r0", 1, 0..300);
    for round in 0..2 {
        // At once, without anything to compute: all was settled.
        cluster[1].restart();
        let seen = cluster[1].resource("r0").disk;
        assert_eq!((&*seen.checksums, seen.checksums_percent), ("on", 100), "round {round}");
        cluster[0].wait_synced("r0", SOON);
        cluster[0].kill9();
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
        wait_for(&cluster[0], "on");
        check_blocks(&cluster[0], "r0", 1, 0..300);
        cluster[0].wait_synced("r0", SOON);
    }
    for index in [0, 1] {
        let disk = cluster[index].resource("r0").disk;
        assert_eq!((disk.checksum_errors, disk.io_errors), (0, 0));
        assert_eq!(cluster[index].metric("holdfast_disk_checksums_ratio", &["r0"]), Some(1.0));
    }
    cluster[1].ok(&["leave", "r0"]);
    assert_eq!(sums(&cluster[1]), None);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["delete", "r0"]);
    assert_eq!(sums(&cluster[0]), None);
}

#[test]
fn they_are_added_and_removed_on_one_node_while_the_resource_is_in_use() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    let node = &cluster[0];
    write_blocks(node, "r0", 1, 0..500);
    assert_eq!(node.resource("r0").disk.checksums, "off");
    node.ok(&["set", "r0", "checksums=on"]);
    write_blocks(node, "r0", 2, 200..700);
    wait_for(node, "on");
    assert!(node.ok(&["set", "r0", "checksums=on"]).contains("already"));
    assert_eq!(cluster[1].resource("r0").disk.checksums, "off", "each node has its own");
    assert!(cluster[1].ok(&["get", "r0", "checksums"]).contains("off"));
    check_blocks(node, "r0", 1, 0..200);
    check_blocks(node, "r0", 2, 200..700);
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    let node = &cluster[0];
    assert_eq!(node.resource("r0").disk.checksums, "on");
    node.ok(&["set", "r0", "checksums=off"]);
    assert_eq!(node.resource("r0").disk.checksums, "off");
    assert_eq!(sums(node), None);
    check_blocks(node, "r0", 2, 200..700);
    cluster[0].restart();
    assert_eq!(cluster[0].resource("r0").disk.checksums, "off");
    cluster[0].refused(&["set", "r0", "checksums=maybe"], 1, "checksums");
}

#[test]
fn a_disk_that_is_attached_again_keeps_its_own_and_another_disk_gets_new_ones() {
    let cluster = cluster(2);
    cluster.create("r0", SIZE, &[]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--checksums"]);
    cluster.wait_members("r0", 2, SOON);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    let node = &cluster[1];
    wait_for(node, "on");
    node.ok(&["detach-disk", "r0"]);
    node.ok(&["attach-disk", "r0"]);
    assert_eq!(node.resource("r0").disk.checksums, "on");
    node.wait_synced("r0", SOON);
    cluster[0].wait_synced("r0", SOON);
    node.ok(&["detach-disk", "r0"]);
    let other = node.dir().join("other");
    std::fs::File::create(&other).and_then(|file| file.set_len(SIZE)).expect("it can be made");
    node.ok(&["attach-disk", "r0", "--disk", &other.display().to_string()]);
    // The other one hears of its new disk a moment later.
    node.wait_synced("r0", SYNC);
    cluster[0].wait_synced("r0", SYNC);
    wait_for(node, "on");
    write_blocks(&cluster[0], "r0", 3, 50..150);
    cluster[0].ok(&["secondary", "r0"]);
    node.ok(&["primary", "r0"]);
    check_blocks(node, "r0", 3, 50..150);
    assert_eq!(node.resource("r0").disk.checksum_errors, 0);
}

#[test]
fn they_go_with_a_journal_with_a_log_peer_and_with_growth() {
    let mut cluster = cluster(2);
    let journal = |node: &Node| node.dir().join("j").display().to_string();
    let of_first = journal(&cluster[0]);
    let meta = ["--journal", &of_first, "--journal-size", "64M", "--checksums"];
    cluster.create("r0", SIZE, &meta);
    let of_second = journal(&cluster[1]);
    let log = ["--protocol", "log", "--journal", &of_second, "--journal-size", "64M"];
    cluster.join_resource(&cluster[1], "r0", SIZE, &[&log[..], &["--checksums"]].concat());
    for seed in 1..4 {
        write_blocks(&cluster[0], "r0", seed, seed * 100..seed * 100 + 200);
        crate::logpeer::wait_all(&cluster[0]);
        cluster[usize::from(seed == 2)].kill9();
        cluster[usize::from(seed == 2)].start();
        cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    }
    crate::logpeer::wait_all(&cluster[0]);
    wait_for(&cluster[0], "on");
    check_blocks(&cluster[0], "r0", 3, 300..500);
    cluster[1].restart();
    write_blocks(&cluster[0], "r0", 4, 600..700);
    crate::logpeer::wait_all(&cluster[0]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 3, 300..500);
    check_blocks(&cluster[1], "r0", 4, 600..700);
    for node in cluster.nodes() {
        assert_eq!(node.resource("r0").disk.checksum_errors, 0);
    }
}

#[test]
fn what_grew_has_them_too() {
    let cluster = cluster(1);
    cluster.create("r0", 2 * SIZE, &["--checksums", "--size", "64M"]);
    wait_for(&cluster[0], "on");
    cluster[0].ok(&["resize", "r0", "--size", "128M"]);
    write_blocks(&cluster[0], "r0", 1, [100, 16_000, 16_500, 32_000]);
    wait_for(&cluster[0], "on");
    check_blocks(&cluster[0], "r0", 1, [100, 16_000, 16_500, 32_000]);
}

/// Changes a byte of each of these blocks behind the daemon's back.
fn flip(node: &Node, blocks: impl IntoIterator<Item = u64>) {
    let path = node.disk("r0");
    let disk = File::options().read(true).write(true).open(path).expect("it can be opened");
    for block in blocks {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, block * BLOCK + 1234).expect("it can be read");
        disk.write_all_at(&[byte[0] ^ 0x10], block * BLOCK + 1234).expect("it can be written");
    }
}

fn fails(node: &Node, block: u64) -> bool {
    node.open("r0").read_at(&mut [0; 4096], block * BLOCK).is_err()
}

#[test]
fn row_064_065_without_a_peer_only_the_blocks_that_changed_fail_until_they_are_written() {
    let mut cluster = cluster(1);
    cluster.create("r0", SIZE, &["--checksums"]);
    wait_for(&cluster[0], "on");
    write_blocks(&cluster[0], "r0", 1, 0..200);
    for round in 0..2 {
        let node = &cluster[0];
        flip(node, [5, 64, 9000]);
        // Two blocks in each other's place.
        let disk = File::options().read(true).write(true).open(node.disk("r0")).expect("it opens");
        let (mut one, mut other) = (vec![0; 4096], vec![0; 4096]);
        disk.read_exact_at(&mut one, 20 * BLOCK).expect("it can be read");
        disk.read_exact_at(&mut other, 30 * BLOCK).expect("it can be read");
        disk.write_all_at(&other, 20 * BLOCK).expect("it can be written");
        disk.write_all_at(&one, 30 * BLOCK).expect("it can be written");
        let bad = [5, 20, 30, 64, 9000];
        for block in bad {
            assert!(fails(node, block), "round {round}: block {block}");
        }
        check_blocks(node, "r0", 1, (0..200).filter(|block| !bad.contains(block)));
        assert!(node.resource("r0").disk.checksum_errors >= 5);
        assert_eq!(node.resource("r0").role, "Primary", "the disk stays in use");
        write_blocks(node, "r0", 1, bad);
        check_blocks(node, "r0", 1, (0..200).chain([9000]));
        // What was settled is found after a restart, too.
        cluster[0].restart();
        cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    }
}

#[test]
fn row_062_064_with_a_peer_what_changed_is_healed_and_nobody_notices() {
    let cluster = cluster(2);
    cluster.create("r0", SIZE, &["--checksums"]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--checksums"]);
    cluster.wait_members("r0", 2, SOON);
    wait_for(&cluster[0], "on");
    write_blocks(&cluster[0], "r0", 1, 0..1000);
    let wrong = (0..1000).step_by(7);
    flip(&cluster[0], wrong.clone());
    check_blocks(&cluster[0], "r0", 1, 0..1000);
    let healed = wrong.count() as u64;
    cluster[0].wait_resource("r0", SOON, "all are healed", |r| r.disk.healed_blocks == healed);
    assert!(cluster[0].resource("r0").disk.checksum_errors >= healed);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn they_move_with_the_data_to_another_disk() {
    let cluster = cluster(1);
    let node = &cluster[0];
    cluster.create("r0", SIZE, &["--checksums"]);
    wait_for(node, "on");
    write_blocks(node, "r0", 1, 0..300);
    let other = node.dir().join("other");
    File::create(&other).and_then(|file| file.set_len(SIZE)).expect("it can be made");
    let other = other.display().to_string();
    node.ok(&["replace-disk", "r0", "--disk", &other]);
    write_blocks(node, "r0", 2, 200..400);
    node.wait_resource("r0", SYNC, "it is on the other disk", |r| {
        r.disk.path.as_deref() == Some(&*other)
    });
    check_blocks(node, "r0", 1, 0..200);
    check_blocks(node, "r0", 2, 200..400);
    let disk = File::options().write(true).open(&other).expect("it can be opened");
    disk.write_all_at(&[0xee], 150 * BLOCK).expect("it can be written");
    assert!(fails(node, 150) && !fails(node, 151));
}

#[test]
fn a_log_peer_that_got_them_while_it_follows_has_them_when_its_disk_is_opened_anew() {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return;
    }
    let mut cluster = cluster(2);
    let disk = BadDisk::new(cluster.scratch(), "bad", SIZE);
    let journal = |node: &Node| node.dir().join("j").display().to_string();
    let (first, second) = (journal(&cluster[0]), journal(&cluster[1]));
    cluster.create("r0", SIZE, &["--journal", &first, "--journal-size", "64M"]);
    let join = ["join", "r0", "--disk", &disk.text(), "--protocol", "log", "--journal", &second];
    cluster[1].ok(&[&join[..], &["--journal-size", "64M"]].concat());
    write_blocks(&cluster[0], "r0", 1, 0..500);
    crate::logpeer::wait_all(&cluster[0]);
    cluster[1].ok(&["set", "r0", "checksums=on"]);
    // They are computed beside what is replayed.
    wait_until(SYNC, "they are computed", || {
        write_blocks(&cluster[0], "r0", 1, [499]);
        cluster[1].resource("r0").disk.checksums == "on"
    });
    disk.set_bad(Bad::Unwritable, [100]);
    write_blocks(&cluster[0], "r0", 2, [100]);
    wait_until(SYNC, "its disk has failed", || {
        cluster[1].log().contains("does not follow any more")
    });
    disk.heal([100]);
    cluster[1].wait_resource("r0", SYNC, "it has replayed what it has", |r| {
        let replay = r.replay.as_ref();
        r.disk.state == "UpToDate" && replay.is_some_and(|replay| replay.replayed == replay.fetched)
    });
    assert_ne!(cluster[1].resource("r0").disk.checksums, "off");
    crate::logpeer::wait_all(&cluster[0]);
    cluster[1].restart();
    cluster[1].wait_resource("r0", SYNC, "the node that leads is in reach", |r| {
        r.disk.state == "UpToDate" && r.peers.iter().all(|peer| peer.connection == "Connected")
    });
    crate::logpeer::wait_all(&cluster[0]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, [100]);
    check_blocks(&cluster[1], "r0", 1, (0..500).filter(|block| *block != 100));
    assert_eq!(cluster[1].resource("r0").disk.checksum_errors, 0);
}

#[test]
fn nobody_reads_or_writes_behind_those_of_a_log_peer() {
    let cluster = cluster(2);
    crate::logpeer::follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    crate::logpeer::wait_all(&cluster[0]);
    let node = &cluster[1];
    node.ok(&["set", "r0", "checksums=on"]);
    node.ok(&["pause", "r0", "replay"]);
    let show = ["device", "r0", "--read-only", "--export-only"];
    node.refused(&show, 1, "checksums are kept for its disk");
    node.ok(&["set", "r0", "checksums=off"]);
    node.ok(&show);
    node.refused(&["set", "r0", "checksums=on"], 1, "its past state is shown read-only");
    node.ok(&["device", "r0", "--remove"]);
    node.ok(&["set", "r0", "checksums=on"]);
}
