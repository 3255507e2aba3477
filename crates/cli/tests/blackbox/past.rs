//! The past state of a log peer whose replay is paused, read while fetching goes on.

use crate::device::skipped;
use crate::logpeer::{SIZE, follow, wait_all};
use crate::{BLOCK, SOON, cluster, seed, write_blocks};
use holdfast_nbd::{Client, ConnectOptions};
use holdfast_testkit::{Ledger, Mount, Node, Writer, WriterOptions, files, run_ok, unmount};
use std::fs;
use std::process::Command;

/// All that a client of the export reads.
fn read_all(client: &mut Client) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(SIZE).expect("it fits")];
    for (at, part) in (0..).step_by(1 << 20).zip(content.chunks_mut(1 << 20)) {
        client.read_at(part, at).expect("the past state can be read");
    }
    content
}

fn fetched(node: &Node) -> u64 {
    node.resource("r0").replay.expect("it follows").fetched
}

const SHOW: [&str; 4] = ["device", "r0", "--read-only", "--export-only"];

#[test]
fn a_paused_log_peer_shows_a_state_that_stays_while_it_fetches() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..500);
    wait_all(&cluster[0]);
    cluster[0].refused(&SHOW, 1, "does not follow a journal");
    cluster[1].refused(&SHOW, 1, "it replays the journal");
    cluster[1].refused(&["device", "r0"], 1, "follows the journal");
    cluster[1].ok(&["pause", "r0", "replay"]);
    let disk = fs::read(cluster[1].disk("r0")).expect("it is there");
    let frozen = &disk[..usize::try_from(SIZE).expect("it fits")];

    let uri = cluster[1].uri("r0");
    assert!(cluster[1].ok(&SHOW).contains("nbd+unix"), "it prints where");
    let mut client =
        Client::connect(&uri, &ConnectOptions::default()).expect("the export is there");
    assert!(client.is_read_only() && client.size() == SIZE);
    assert!(client.write_at(&[1; 4096], 0).is_err(), "nobody writes to the past");
    let before = fetched(&cluster[1]);
    let options = WriterOptions::default();
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(seed(), 1000), options);
    for _ in 0..4 {
        writer.wait_acknowledged(writer.acknowledged() + 100);
        assert!(read_all(&mut client) == frozen, "it stays what it was");
    }
    drop(writer.stop_well());
    cluster[1].wait_resource("r0", SOON, "it fetches meanwhile", |r| {
        assert!(r.read_only && r.open_count == 1 && r.role == "Secondary");
        let replay = r.replay.as_ref().expect("it follows");
        replay.fetched > before + 100 * BLOCK && replay.fetched == replay.head
    });

    // Nothing takes it away from who reads it.
    for line in [
        &["resume", "r0", "replay"][..],
        &["device", "r0", "--remove"],
        &["connect", "r0", "--discard-my-data"],
        &["down", "r0"],
    ] {
        cluster[1].refused(line, 1, "NBD clients have its past state open");
    }
    cluster[1].refused(&["primary", "r0", "--force"], 1, "alpha leads, and is in reach");
    assert!(read_all(&mut client) == frozen);

    // It is there again after a crash, and the same.
    drop(client);
    cluster[1].kill9();
    cluster[1].start();
    cluster[1].wait_resource("r0", SOON, "it is shown again", |r| r.read_only);
    let mut client = cluster[1].open("r0");
    assert!(read_all(&mut client) == frozen);
    drop(client);
    cluster[1].wait_resource("r0", SOON, "it is closed", |r| r.open_count == 0);
    cluster[1].ok(&["device", "r0", "--remove"]);
    assert!(Client::connect(&uri, &ConnectOptions::default()).is_err());
    assert!(!cluster[1].resource("r0").read_only);
    cluster[1].ok(&SHOW);

    // Going on takes it away by itself when nobody has it open.
    cluster[1].ok(&["resume", "r0", "replay"]);
    assert!(Client::connect(&uri, &ConnectOptions::default()).is_err());
    wait_all(&cluster[0]);
    cluster[1].refused(&["device", "r0", "--remove"], 4, "it has none");
    crate::logpeer::assert_same(&cluster, 0, 1);
}

#[test]
fn a_file_system_is_mounted_from_the_past_state_of_a_log_peer() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    follow(&cluster, "64M");
    let device = |node: &Node, words: &[&str]| {
        let made = node.json(&[&["device", "r0"], words].concat());
        made["path"].as_str().expect("it has a path").to_owned()
    };
    let primary = device(&cluster[0], &[]);
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", &primary]));
    let mount = Mount::new(&primary, &cluster[0].dir().join("mnt"));
    fs::write(mount.path().join("old"), b"as it was").expect("it can be written");
    run_ok(Command::new("sync").arg("-f").arg(mount.path()));
    wait_all(&cluster[0]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    fs::write(mount.path().join("new"), b"as it is").expect("it can be written");
    fs::remove_file(mount.path().join("old")).expect("it is there");
    run_ok(Command::new("sync").arg("-f").arg(mount.path()));
    let frozen = files::fingerprint(&cluster[1].disk("r0"), SIZE);

    let past = device(&cluster[1], &["--read-only"]);
    // The mounted file system was in use at that moment: its journal is not replayed read-only.
    let point = cluster[1].dir().join("past");
    fs::create_dir_all(&point).expect("it can be made");
    let point_text = point.display().to_string();
    run_ok(Command::new("mount").args(["-o", "ro,noload", &past, &point_text]));
    let old = fs::read(point.join("old"));
    let has_new = point.join("new").exists();
    cluster[1].refused(&["resume", "r0", "replay"], 1, &point_text);
    unmount(&point);
    assert_eq!(old.expect("the old file is there"), b"as it was");
    assert!(!has_new);
    assert!(fs::write(&past, b"x").is_err(), "the device is read-only");
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), frozen);
    cluster[1].ok(&["resume", "r0", "replay"]);
    assert!(!std::path::Path::new(&past).exists(), "the device went with it");
    mount.unmount();
    wait_all(&cluster[0]);
    crate::logpeer::assert_same(&cluster, 0, 1);
}

#[test]
fn a_state_that_is_held_is_not_given_up_when_the_journal_was_cut() {
    let cluster = cluster(2);
    follow(&cluster, "16M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    cluster[1].ok(&["pause", "r0", "fetch"]);
    let frozen = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    cluster[1].ok(&SHOW);
    for round in 0..8 {
        write_blocks(&cluster[0], "r0", 10 + round, 0..1024);
    }
    cluster[1].wait_peer("r0", "alpha", SOON, "it is told", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.code == "REPLAY_PAUSED")
    });
    cluster[1].ok(&["resume", "r0", "fetch"]);
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), frozen);
    assert_eq!(cluster[1].resource("r0").disk.state, "UpToDate");
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    crate::logpeer::assert_same(&cluster, 0, 1);
}
