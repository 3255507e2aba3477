//! A resource grows while others follow it by the log.

use crate::logpeer::{
    SIZE, disk_state, follow, look_at_journal, wait_all, wait_follows, wait_gone,
};
use crate::resize::{last_of, make_larger, meta_of, size};
use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, rounds, seed, write_blocks};
use holdfast_testkit::{Cluster, Ledger, Node, Rng, Writer, WriterOptions, wait_until};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Stdio;

const LARGE: u64 = 200 * MIB;

fn wait_size(node: &Node, wanted: u64) {
    node.wait_resource("r0", SOON, "it has grown", |r| r.size_bytes == wanted);
}

/// All disks are the same, when what the Primary's journal has is written back.
fn assert_equal(cluster: &Cluster, size: u64) {
    for node in cluster.nodes().iter().filter(|node| node.resource("r0").role == "Primary") {
        look_at_journal(node);
        wait_until(SOON, "all is written back", || {
            let journal = node.resource("r0").journal.expect("it has one");
            journal.dirty_bytes == 0 && journal.written_back == journal.head
        });
    }
    let all: Vec<usize> = (0..cluster.nodes().len()).collect();
    cluster.assert_equal_disks("r0", size, &all);
}

#[test]
fn a_resource_grows_under_its_writers_while_others_follow_it_by_the_log() {
    let mut cluster = cluster(3);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    let ledger = Ledger::new(seed(), 1000);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
    let mut before = cluster[0].open("r0");
    for index in [0, 1] {
        make_larger(&cluster[index], LARGE);
    }
    cluster[1].refused(&["resize", "r0"], 1, "run it on the Primary");
    cluster[0].refused(&["resize", "r0"], 1, "the disk of node gamma has no room");
    make_larger(&cluster[2], LARGE);
    wait_until(SOON, "it is told how much room there is", || {
        cluster[2].resource("r0").disk.room_bytes == Some(LARGE)
    });
    // What is on a disk past the end of the resource is not part of it.
    let file = File::options().write(true).open(cluster[1].disk("r0")).expect("it is there");
    for at in [SIZE, 100 * MIB, LARGE - BLOCK] {
        file.write_all_at(&[0xAA; 4096], at).expect("it has room");
    }
    // One of them does not replay meanwhile.
    cluster[2].ok(&["pause", "r0", "replay"]);
    writer.wait_acknowledged(200);
    let received = cluster[1].peer("r0", "alpha").received_bytes;
    cluster[0].ok(&["resize", "r0"]);
    for node in cluster.nodes() {
        wait_size(node, LARGE);
    }
    let content = holdfast_testkit::block_content(5, 1, last_of(LARGE));
    before.write_at(&content, LARGE - BLOCK).expect("it has room");
    assert!(before.write_at(&content, LARGE).is_err(), "not past the new end");
    write_blocks(&cluster[0], "r0", 5, [SIZE / BLOCK, 30_000, 40_000]);
    writer.wait_acknowledged(writer.acknowledged() + 200);
    let mut ledger = writer.stop_well();
    drop(before);
    assert_eq!(disk_state(&cluster[2]), "UpToDate", "it holds its state");
    cluster[2].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    assert_equal(&cluster, LARGE);
    let came = cluster[1].peer("r0", "alpha").received_bytes - received;
    // What the writer wrote came by the journal, and how much that was is a matter of time.
    let written = ledger.begun() as u64 * BLOCK;
    assert!(came < LARGE / 4 + written * 9 / 8, "{came} bytes came: nothing is filled for it");

    // A restart finds it as it was left; it leads, and grows again from there.
    cluster[1].restart();
    wait_size(&cluster[1], LARGE);
    wait_follows(&cluster[1]);
    wait_all(&cluster[0]);
    cluster[1].ok(&["primary", "r0"]);
    assert_eq!(cluster[1].open("r0").size(), LARGE);
    ledger.verify_export(&cluster[1].uri("r0"));
    check_blocks(&cluster[1], "r0", 5, [SIZE / BLOCK, 30_000, 40_000, last_of(LARGE)]);
    let mut zeroes = [1; 4096];
    cluster[1].open("r0").read_at(&mut zeroes, 100 * MIB).expect("it can be read");
    assert_eq!(zeroes, [0; 4096], "what was there before is not seen");
    for node in cluster.nodes() {
        make_larger(node, LARGE + 40 * MIB);
    }
    wait_all(&cluster[1]);
    cluster[1].ok(&["resize", "r0"]);
    write_blocks(&cluster[1], "r0", 6, [45_000, last_of(LARGE + 40 * MIB)]);
    for node in cluster.nodes() {
        wait_size(node, LARGE + 40 * MIB);
    }
    wait_all(&cluster[1]);
    assert_equal(&cluster, LARGE + 40 * MIB);
    // Who led before leads again, with what it has.
    cluster[1].kill9();
    wait_gone(&cluster[0], "beta");
    cluster[0].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[0], "r0", 6, [45_000, last_of(LARGE + 40 * MIB)]);
}

/// A node dies at any moment of it: what was agreed on happens by itself, what was not can be
/// repeated, and nothing is lost.
#[test]
fn a_primary_or_its_log_peer_may_die_while_they_grow() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    wait_all(&cluster[0]);
    let mut rng = Rng::new(seed());
    let mut ledger = Ledger::new(seed(), 1500);
    let mut present = SIZE;
    for round in 0..4 * rounds() {
        let next = present + 40 * MIB;
        for node in cluster.nodes() {
            make_larger(node, next);
        }
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
        let mut command = cluster[0].command(&["resize", "r0"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut resize = command.spawn().expect("it starts");
        let victim = usize::try_from(round % 2).expect("it is small");
        // Between the first step and a moment after the last one.
        writer.wait_acknowledged(writer.acknowledged() + rng.below(400));
        cluster[victim].kill9();
        let (mut written, _) = writer.stop();
        if victim == 0 {
            resize.wait().expect("it ends with its daemon");
        }
        cluster[victim].start();
        resize.wait().expect("it ends");
        cluster[0].wait_resource("r0", SOON, "it is Primary again", |r| r.role == "Primary");
        let reached = size(&cluster[0]);
        assert!([present, next].contains(&reached), "{reached} bytes");
        eprintln!("round {round}: node {victim} died, then there are {reached} of {next} bytes");
        written.verify_export(&cluster[0].uri("r0"));
        cluster[0].ok(&["resize", "r0", "--size", &next.to_string()]);
        write_blocks(&cluster[0], "r0", round, [last_of(next), present / BLOCK]);
        wait_size(&cluster[1], next);
        wait_all(&cluster[0]);
        check_blocks(&cluster[0], "r0", round, [last_of(next), present / BLOCK]);
        assert_equal(&cluster, next);
        ledger = written;
        present = next;
    }
    cluster[1].ok(&["primary", "r0"]);
    ledger.verify_export(&cluster[1].uri("r0"));
}

fn state_of(node: &Node) -> PathBuf {
    let found = std::fs::read_dir(node.state_dir().join("resources")).expect("it is there");
    let mut files = found.map(|entry| entry.expect("it can be read").path());
    files.find(|path| path.extension().is_some_and(|e| e == "state")).expect("there is one")
}

/// All agreed, and a log peer died before it grew: it does so at its start. As long as it has no room
/// it says so, replays nothing that it has no room for, and does not lead.
#[test]
fn a_log_peer_that_has_not_grown_says_so_and_does_it_when_it_can() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[1].stop();
    let kept = [meta_of(&cluster[1]), state_of(&cluster[1])];
    let before = kept.each_ref().map(|path| std::fs::read(path).expect("it can be read"));
    cluster[1].start();
    wait_follows(&cluster[1]);
    wait_all(&cluster[0]);
    for node in cluster.nodes() {
        make_larger(node, LARGE);
    }
    cluster[0].ok(&["resize", "r0"]);
    wait_size(&cluster[1], LARGE);
    cluster[1].kill9();
    // As if it had died before.
    for (path, content) in kept.iter().zip(before) {
        std::fs::write(path, content).expect("it can be written");
    }
    make_larger(&cluster[1], SIZE);
    write_blocks(&cluster[0], "r0", 4, [1, last_of(LARGE)]);
    cluster[1].start();
    wait_until(SOON, "it says what is wrong", || {
        let problems = cluster[1].status().cluster.expect("there is one").problems;
        problems.iter().any(|text| text.contains("has not grown") && text.contains("too small"))
    });
    assert_eq!(size(&cluster[1]), SIZE);
    cluster[1].wait_peer("r0", "alpha", SOON, "the Primary does not take it", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.message.contains("has grown"))
    });
    write_blocks(&cluster[0], "r0", 4, [2, 3, last_of(LARGE) - 1]);
    cluster[1].refused(&["primary", "r0"], 1, "agreed on");
    assert_eq!(std::fs::metadata(cluster[1].disk("r0")).expect("it is there").len(), SIZE);

    make_larger(&cluster[1], LARGE);
    wait_size(&cluster[1], LARGE);
    wait_all(&cluster[0]);
    wait_until(SOON, "nothing is wrong any more", || {
        cluster[1].status().cluster.expect("there is one").problems.is_empty()
    });
    assert_equal(&cluster, LARGE);
    cluster[0].kill9();
    cluster[1].wait_peer("r0", "alpha", SYNC, "it is gone", |peer| peer.connection != "Connected");
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 4, [1, 2, 3, last_of(LARGE) - 1, last_of(LARGE)]);
}
