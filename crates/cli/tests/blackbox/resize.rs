//! A resource becomes larger while it is in use.

use crate::device::skipped;
use crate::disks::{let_go, loop_device};
use crate::{
    BLOCK, MIB, SOON, SYNC, check_blocks, cluster, rounds, seed, wait_no_primary, write_blocks,
};
use holdfast_testkit::{
    Cluster, Ledger, Mount, Node, Rng, Writer, WriterOptions, block_content, files, run, run_ok,
    wait_until,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A page of a bitmap is for 126 MiB.
const SMALL: u64 = 8 * MIB;
const LARGE: u64 = 200 * MIB;

pub(crate) fn make_larger(node: &Node, size: u64) {
    let file = File::options().write(true).open(node.disk("r0")).expect("it is there");
    file.set_len(size).expect("it can grow");
}

pub(crate) fn size(node: &Node) -> u64 {
    node.resource("r0").size_bytes
}

/// Waits until a node has noticed that another one is not connected any more.
#[track_caller]
fn wait_gone(node: &Node, peer: &str) {
    node.wait_peer("r0", peer, SOON, "it is gone", |peer| peer.connection != "Connected");
}

pub(crate) fn last_of(size: u64) -> u64 {
    size / BLOCK - 1
}

#[test]
fn row_115_a_resource_grows_under_its_writers_and_fails_over() {
    let mut cluster = cluster(3);
    cluster.resource("r0", SMALL, 3);
    let all = [0, 1, 2];
    let ledger = Ledger::new(seed(), 1000);
    let options = WriterOptions { connections: 2, flush_every: 50, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
    let mut before = cluster[0].open("r0");
    for index in all {
        make_larger(&cluster[index], LARGE);
    }
    // What is on a disk past the end of the resource is not part of it.
    let file = File::options().write(true).open(cluster[1].disk("r0")).expect("it is there");
    for at in [SMALL, 100 * MIB, LARGE - BLOCK] {
        file.write_all_at(&[0xAA; 4096], at).expect("it has room");
    }
    writer.wait_acknowledged(200);
    cluster[1].refused(&["resize", "r0"], 1, "run it on alpha");
    cluster[0].ok(&["resize", "r0"]);
    assert_eq!(size(&cluster[0]), LARGE);
    for index in all {
        let is_large = |s: &holdfast_api::status::ResourceStatus| s.size_bytes == LARGE;
        cluster[index].wait_resource("r0", SOON, "it has grown", is_large);
        assert_eq!(cluster[index].resource("r0").disk.state, "UpToDate");
    }
    let resynced = cluster[0].metric("holdfast_out_of_sync_bytes", &["r0"]);
    assert!(resynced.is_none_or(|bytes| bytes == 0.0), "{resynced:?}");
    // Who was connected before can use it, too, when told of the size.
    let content = block_content(5, 1, last_of(LARGE));
    before.write_at(&content, LARGE - BLOCK).expect("it has room");
    assert!(before.write_at(&content, LARGE).is_err(), "not past the new end");
    write_blocks(&cluster[0], "r0", 5, [SMALL / BLOCK, 30_000, 40_000]);
    writer.wait_acknowledged(writer.acknowledged() + 200);
    let ledger = writer.stop_well();
    drop(before);

    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    assert_eq!(cluster[1].open("r0").size(), LARGE);
    let mut ledger = ledger;
    ledger.verify_export(&cluster[1].uri("r0"));
    check_blocks(&cluster[1], "r0", 5, [SMALL / BLOCK, 30_000, 40_000, last_of(LARGE)]);
    let mut zeroes = [1; 4096];
    cluster[1].open("r0").read_at(&mut zeroes, 100 * MIB).expect("it can be read");
    assert_eq!(zeroes, [0; 4096], "what was there before is not seen");
    write_blocks(&cluster[1], "r0", 6, [45_000, 50_000]);
    cluster[0].start();
    for index in all {
        cluster[index].wait_synced("r0", SYNC);
    }
    cluster.assert_equal_disks("r0", LARGE, &all);

    // A restart finds everything as it was left.
    for index in all {
        cluster[index].restart();
    }
    for index in all {
        cluster[index].wait_synced("r0", SYNC);
        assert_eq!(size(&cluster[index]), LARGE);
    }
}

#[test]
fn what_is_in_the_way_of_growing_is_named_and_changes_nothing() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SMALL, 2);
    let refused = |cluster: &Cluster, arguments: &[&str], words: &str| {
        cluster[0].refused(&[&["resize", "r0"], arguments].concat(), 1, words);
        for node in [&cluster[0], &cluster[1]] {
            assert_eq!((size(node), &*node.resource("r0").disk.state), (SMALL, "UpToDate"));
        }
    };
    refused(&cluster, &[], "no room for more");
    refused(&cluster, &["--size", "4M"], "cannot shrink");
    refused(&cluster, &["--size", "8388609"], "multiple of 4096");
    refused(&cluster, &["--size", "16M"], "8 MiB on node alpha, 8 MiB on node beta");
    make_larger(&cluster[0], 2 * SMALL);
    refused(&cluster, &["--size", "16M"], "there is room for 8 MiB on node beta");
    refused(&cluster, &[], "the disk of node beta has no room");
    cluster[0].ok(&["resize", "r0", "--size", "8M"]);
    assert_eq!(size(&cluster[0]), SMALL);
    make_larger(&cluster[1], 2 * SMALL);
    cluster[1].ok(&["disconnect", "r0"]);
    wait_gone(&cluster[0], "beta");
    refused_while(&cluster[0], "not connected");
    cluster[1].ok(&["connect", "r0"]);
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].wait_synced("r0", SYNC);
    cluster[1].stop();
    wait_gone(&cluster[0], "beta");
    refused_while(&cluster[0], "beta");
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].wait_synced("r0", SYNC);
    cluster[0].ok(&["resize", "r0"]);
    assert_eq!(size(&cluster[0]), 2 * SMALL);
}

fn refused_while(node: &Node, words: &str) {
    node.refused(&["resize", "r0"], 1, words);
    assert_eq!(size(node), SMALL);
}

#[test]
fn a_block_device_grows() {
    let mut cluster = cluster(1);
    let Some(device) = loop_device(&cluster, "file", &[]) else { return };
    cluster[0].ok(&["create", "r0", "--disk", &device]);
    assert_eq!(size(&cluster[0]), SMALL);
    let file = File::options().write(true).open(cluster.scratch().join("file"));
    file.expect("it is there").set_len(LARGE).expect("it can grow");
    run_ok(Command::new("losetup").args(["--set-capacity", &device]));
    let raw = File::options().write(true).open(&device).expect("it is there");
    raw.write_all_at(&[0xAA; 8192], SMALL - BLOCK).expect("it has room");
    raw.sync_all().expect("it works");
    drop(raw);
    cluster[0].ok(&["resize", "r0"]);
    assert_eq!(size(&cluster[0]), LARGE);
    let mut found = [0; 8192];
    cluster[0].open("r0").read_at(&mut found, SMALL - BLOCK).expect("it can be read");
    assert!(found[..4096] == [0xAA; 4096] && found[4096..] == [0; 4096], "only what is new");
    write_blocks(&cluster[0], "r0", 2, [last_of(LARGE)]);
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "it is Primary again", |s| s.role == "Primary");
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 2, [last_of(LARGE)]);
    assert_eq!(size(&cluster[0]), LARGE);
    cluster[0].stop();
    let_go(&device);
}

#[test]
fn metadata_at_the_end_of_a_disk_do_not_move() {
    let cluster = cluster(1);
    cluster.create("r0", SMALL, &["--meta", "internal"]);
    let before = size(&cluster[0]);
    make_larger(&cluster[0], 2 * SMALL);
    cluster[0].refused(&["resize", "r0"], 1, "at its end");
    assert_eq!(size(&cluster[0]), before);
}

#[test]
fn a_node_alone_and_one_without_a_disk_grow() {
    let cluster = cluster(2);
    cluster.resource("r0", SMALL, 1);
    make_larger(&cluster[0], 2 * SMALL);
    cluster[0].ok(&["resize", "r0", "--size", "12M"]);
    assert_eq!(size(&cluster[0]), 12 * MIB);
    cluster[1].ok(&["join", "r0", "--diskless"]);
    cluster[1].wait_resource("r0", SOON, "it is connected", |status| {
        status.peers.first().is_some_and(|peer| peer.connection == "Connected")
    });
    cluster[0].ok(&["secondary", "r0"]);
    wait_no_primary(&cluster[1], "r0", "alpha");
    cluster[1].ok(&["primary", "r0"]);
    cluster[1].ok(&["resize", "r0"]);
    assert_eq!(size(&cluster[1]), 2 * SMALL);
    write_blocks(&cluster[1], "r0", 3, [last_of(2 * SMALL)]);
    check_blocks(&cluster[1], "r0", 3, [last_of(2 * SMALL)]);
}

/// A node dies at any moment of it: then the resource has the old size or the new one on each node,
/// what is left is done by itself, and nothing is lost.
#[test]
fn a_node_may_die_while_it_grows() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SMALL, 2);
    let mut rng = Rng::new(seed());
    let mut ledger = Ledger::new(seed(), 1500);
    let mut present = SMALL;
    for round in 0..6 * rounds() {
        let next = present + 40 * MIB;
        for index in [0, 1] {
            make_larger(&cluster[index], next);
        }
        let options = WriterOptions { connections: 2, ..WriterOptions::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        let mut command = cluster[0].command(&["resize", "r0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut resize = command.spawn().expect("it starts");
        let victim = usize::try_from(round % 2).expect("it is small");
        // Between the first step and a moment after the last one.
        writer.wait_acknowledged(writer.acknowledged() + rng.below(600));
        cluster[victim].kill9();
        let (mut written, _) = writer.stop();
        if victim == 0 {
            resize.wait().expect("it ends with its daemon");
        }
        cluster[victim].start();
        let found = size(&cluster[victim]);
        resize.wait().expect("it ends");
        for index in [0, 1] {
            cluster[index].wait_synced("r0", SYNC);
        }
        cluster[0].ok(&["primary", "r0"]);
        let reached = size(&cluster[0]);
        assert!([present, next].contains(&reached), "{reached} bytes");
        eprintln!("round {round}: node {victim} came back with {found}, then {reached} bytes");
        written.verify_export(&cluster[0].uri("r0"));
        cluster[0].ok(&["resize", "r0", "--size", &next.to_string()]);
        assert_eq!(size(&cluster[0]), next);
        // When the Primary had grown already, the other one may be at it by itself.
        cluster[1].wait_resource("r0", SOON, "it has grown", |status| status.size_bytes == next);
        write_blocks(&cluster[0], "r0", round, [last_of(next), present / BLOCK]);
        check_blocks(&cluster[0], "r0", round, [last_of(next), present / BLOCK]);
        ledger = written;
        present = next;
    }
    for index in [0, 1] {
        cluster[index].wait_synced("r0", SYNC);
    }
    cluster.assert_equal_disks("r0", present, &[0, 1]);
}

/// All agreed, and one member died before it grew: it does so by itself when it has room. As long as
/// it has none it says so, is not connected, and is not promoted.
#[test]
fn a_member_that_has_not_grown_does_so_before_it_is_connected() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SMALL, 2);
    cluster[1].kill9();
    let meta = meta_of(&cluster[1]);
    let before = std::fs::read(&meta).expect("it can be read");
    cluster[1].start();
    for index in [0, 1] {
        cluster[index].wait_synced("r0", SYNC);
        make_larger(&cluster[index], LARGE);
    }
    cluster[0].ok(&["resize", "r0"]);
    cluster[1].kill9();
    write_blocks(&cluster[0], "r0", 4, [1, last_of(LARGE)]);
    // As if it had died before.
    std::fs::write(&meta, before).expect("it can be written");
    make_larger(&cluster[1], SMALL);
    cluster[1].start();
    wait_until(SOON, "it says what is wrong", || {
        let problems = cluster[1].status().cluster.expect("there is one").problems;
        problems.iter().any(|text| text.contains("has not grown") && text.contains("too small"))
    });
    assert_eq!(size(&cluster[1]), SMALL);
    cluster[0].wait_peer("r0", "beta", SOON, "it says what is wrong", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.code == "SIZES_DIFFER")
    });
    assert_ne!(cluster[0].peer("r0", "beta").connection, "Connected");
    write_blocks(&cluster[0], "r0", 4, [2, 3, last_of(LARGE) - 1]);
    cluster[1].refused(&["primary", "r0"], 1, "agreed on");
    assert_eq!(std::fs::metadata(cluster[1].disk("r0")).expect("it is there").len(), SMALL);

    make_larger(&cluster[1], LARGE);
    cluster[0].wait_synced("r0", SYNC);
    cluster[1].wait_synced("r0", SYNC);
    assert_eq!(size(&cluster[1]), LARGE);
    wait_until(SOON, "nothing is wrong any more", || {
        cluster[1].status().cluster.expect("there is one").problems.is_empty()
    });
    cluster.assert_equal_disks("r0", LARGE, &[0, 1]);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 4, [1, 2, 3, last_of(LARGE) - 1, last_of(LARGE)]);
}

/// The same of the Primary: it grows at its start, then it is Primary again.
#[test]
fn a_primary_that_died_before_it_grew_does_so_at_its_start() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SMALL, 2);
    write_blocks(&cluster[0], "r0", 4, [1]);
    cluster[0].kill9();
    let meta = meta_of(&cluster[0]);
    let before = std::fs::read(&meta).expect("it can be read");
    cluster[0].start();
    for index in [0, 1] {
        cluster[index].wait_synced("r0", SYNC);
        make_larger(&cluster[index], LARGE);
    }
    cluster[0].wait_resource("r0", SOON, "it is Primary again", |s| s.role == "Primary");
    cluster[0].ok(&["resize", "r0"]);
    cluster[0].kill9();
    std::fs::write(&meta, before).expect("it can be written");
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "it is Primary again", |s| s.role == "Primary");
    for index in [0, 1] {
        cluster[index].wait_synced("r0", SYNC);
        assert_eq!(size(&cluster[index]), LARGE);
    }
    cluster[0].ok(&["primary", "r0"]);
    assert_eq!(cluster[0].open("r0").size(), LARGE);
    write_blocks(&cluster[0], "r0", 4, [last_of(LARGE)]);
    check_blocks(&cluster[0], "r0", 4, [1, last_of(LARGE)]);
    cluster.assert_equal_disks("r0", LARGE, &[0, 1]);
}

pub(crate) fn meta_of(node: &Node) -> PathBuf {
    let found = std::fs::read_dir(node.state_dir().join("meta")).expect("it is there");
    let mut files = found.map(|entry| entry.expect("it can be read").path());
    files.next().expect("there is one")
}

#[test]
fn a_mounted_filesystem_grows_with_its_resource() {
    if skipped() {
        return;
    }
    let mut cluster = cluster(2);
    let (small, large) = (32 * MIB, 160 * MIB);
    cluster.resource("r0", small, 2);
    let path = device(&cluster, 0);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &path]));
    let mount = Mount::new(&path, &cluster[0].dir().join("mnt"));
    let content = vec![0x5A; 5_000_000];
    std::fs::write(mount.path().join("before"), &content).expect("it has room");
    for index in [0, 1] {
        make_larger(&cluster[index], large);
    }
    let said = cluster[0].ok(&["resize", "r0"]);
    assert!(!said.contains("keeps its size"), "{said}");
    let bytes = run_ok(Command::new("blockdev").args(["--getsize64", &path]));
    assert_eq!(bytes.trim(), large.to_string());
    let mount = grow_filesystem(&path, mount);
    let content = vec![0xA5; 60_000_000];
    std::fs::write(mount.path().join("after"), &content).expect("it has room now");
    mount.unmount();
    cluster[0].ok(&["device", "r0", "--remove"]);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    let path = device(&cluster, 1);
    run_ok(Command::new("fsck.ext4").args(["-f", "-n", &path]));
    let mount = Mount::new(&path, &cluster[1].dir().join("mnt"));
    assert_eq!(std::fs::read(mount.path().join("after")).expect("it is there"), content);
    assert_eq!(
        std::fs::metadata(mount.path().join("before")).expect("it is there").len(),
        5_000_000
    );
    mount.unmount();
    cluster[1].ok(&["device", "r0", "--remove"]);
    cluster[0].start();
    cluster[1].wait_synced("r0", SYNC);
    cluster[0].wait_synced("r0", SYNC);
    cluster.assert_equal_disks("r0", large, &[0, 1]);
}

/// While it is mounted, where this may be done: that takes CAP_SYS_RESOURCE.
fn grow_filesystem(device: &str, mount: Mount) -> Mount {
    let grown = run(Command::new("resize2fs").arg(device));
    if grown.status == 0 {
        return mount;
    }
    assert!(grown.stderr.contains("Permission denied"), "{}", grown.stderr);
    let point = mount.path().to_owned();
    mount.unmount();
    run_ok(Command::new("e2fsck").args(["-f", "-y", device]));
    run_ok(Command::new("resize2fs").arg(device));
    Mount::new(device, &point)
}

fn device(cluster: &Cluster, index: usize) -> String {
    let made = cluster[index].json(&["device", "r0"]);
    made["path"].as_str().expect("it has a path").to_owned()
}

#[test]
fn room_on_the_disks_is_told_and_used() {
    let cluster = cluster(2);
    files::make_sparse(&cluster[0].disk("r0"), 3 * SMALL);
    let disk = cluster[0].disk("r0").display().to_string();
    cluster[0].ok(&["create", "r0", "--disk", &disk, "--size", "8M"]);
    assert_eq!(size(&cluster[0]), SMALL);
    files::make_sparse(&cluster[1].disk("r0"), 2 * SMALL);
    let disk = cluster[1].disk("r0").display().to_string();
    let said = cluster[1].ok(&["join", "r0", "--disk", &disk]);
    assert!(said.contains(&format!("8 MiB of {disk} stay unused")), "{said}");
    cluster[1].wait_synced("r0", SYNC);
    let room = |node: usize| cluster[node].resource("r0").disk.room_bytes;
    wait_until(SOON, "both say how much room there is", || {
        (room(0), room(1)) == (Some(3 * SMALL), Some(2 * SMALL))
    });
    let text = cluster[1].ok(&["status", "r0"]);
    assert!(text.contains("this node's disk has room for 16 MiB: `holdfast resize r0`"), "{text}");
    cluster[0].ok(&["resize", "r0"]);
    assert_eq!(size(&cluster[0]), 2 * SMALL);
    wait_until(SOON, "all of beta's is used", || room(1).is_none());
    // A disk that is made larger is noticed.
    make_larger(&cluster[1], 4 * SMALL);
    wait_until(SOON, "it is told", || room(1) == Some(4 * SMALL));
}
