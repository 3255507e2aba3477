//! A log peer whose journal rots, whose disk fails, whose Primary's journal is damaged; and what it tells
//! of a filling.

use crate::logpeer::{SIZE, assert_same, disk_state, follow, head_of, wait_all, wait_fetched};
use crate::{MIB, SOON, SYNC, check_blocks, cluster, cluster_with_proxies, write_blocks};
use holdfast_testkit::{Cluster, Mount, Node, files, run_ok, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

/// The newest segment of a node's journal.
fn segment_of(node: &Node) -> PathBuf {
    let dir = node.dir().join("r0.journal");
    let names = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("a file").path());
    let is_segment = |path: &PathBuf| path.display().to_string().contains("/segment-");
    names.filter(is_segment).max().expect("it has one")
}

/// Puts bytes there that nobody wrote, so many bytes into the newest segment.
fn rot(node: &Node, at: u64) {
    let file = File::options().write(true).open(segment_of(node)).expect("it can be opened");
    file.write_all_at(&[0xEE; 64], at).expect("it can be written");
    file.sync_all().expect("it is durable");
}

#[test]
fn what_has_rotted_in_the_journal_of_a_log_peer_is_fetched_again() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..50);
    wait_all(&cluster[0]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    write_blocks(&cluster[0], "r0", 2, 0..400);
    wait_fetched(&cluster[0], &cluster[1]);
    cluster[1].wait_resource("r0", SOON, "it has fetched all of it", |r| {
        r.replay.as_ref().is_some_and(|replay| {
            replay.fetched == replay.head && replay.fetched > replay.replayed + MIB
        })
    });
    cluster[1].stop();
    rot(&cluster[1], 4096 + 900_000);
    cluster[1].start();
    // It shows how it follows a moment behind its start.
    let status = cluster[1].wait_resource("r0", SOON, "it follows", |r| r.replay.is_some());
    assert_eq!(status.replay.expect("it follows").paused, ["replay"]);
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    let peer = cluster[1].peer("r0", "alpha");
    assert!(peer.received_bytes > 100_000, "what was cut off came again: {peer:?}");
    assert!(peer.received_bytes < SIZE / 4, "nothing was filled for it: {peer:?}");
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, 0..400);
}

#[test]
fn damage_in_the_journal_of_the_primary_is_told_by_a_log_peer_with_its_position() {
    let cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..50);
    wait_all(&cluster[0]);
    let fetched = cluster[1].resource("r0").replay.expect("it follows").fetched;
    cluster[1].ok(&["pause", "r0", "fetch"]);
    write_blocks(&cluster[0], "r0", 2, 0..400);
    let head = head_of(&cluster[0]);
    rot(&cluster[0], 4096 + 900_000);
    cluster[1].ok(&["resume", "r0", "fetch"]);
    let peer = cluster[1].wait_peer("r0", "alpha", SOON, "it says which position", |peer| {
        peer.problem.as_ref().is_some_and(|problem| problem.code == "JOURNAL_DAMAGED")
    });
    let problem = peer.problem.expect("it was waited for");
    let position = problem.message.split("position ").nth(1).expect("it names one");
    let digits = position.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
    let position: u64 = digits.and_then(|word| word.parse().ok()).expect("a number");
    assert!((fetched..head).contains(&position), "{problem:?}");
    assert_eq!(disk_state(&cluster[1]), "UpToDate", "what was before that counts");
    // It does not stand still in silence, nor does it ask for the same all the time.
    wait_until(SYNC, "it is told that nothing comes", || {
        cluster[1].log().contains("nothing was fetched for 30 seconds")
    });
    assert!(cluster[1].log().contains("is damaged"), "and why");
    let received = cluster[1].peer("r0", "alpha").received_bytes;
    assert!(received < 200 * MIB, "{received} bytes came");
    // Reads and writes of the Primary do not need it; who follows is filled past it.
    check_blocks(&cluster[0], "r0", 2, 0..400);
    cluster[1].ok(&["invalidate", "r0"]);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
    cluster[1].wait_peer("r0", "alpha", SOON, "nothing is wrong", |peer| peer.problem.is_none());
}

#[test]
fn a_log_peer_whose_disk_fails_says_so_and_goes_on_when_it_can() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    let cluster = cluster(2);
    let journal = cluster[0].dir().join("r0.journal").display().to_string();
    cluster.create("r0", SIZE, &["--journal", &journal, "--journal-size", "64M"]);
    let small = Mount::memory(&cluster[1].dir().join("small"), 4 * MIB);
    let disk = small.path().join("disk");
    files::make_sparse(&disk, SIZE);
    let (disk, journal) = (disk.display().to_string(), cluster[1].dir().join("r0.journal"));
    let journal = journal.display().to_string();
    let join = ["join", "r0", "--disk", &disk, "--protocol", "log", "--journal", &journal];
    cluster[1].ok(&[&join[..], &["--journal-size", "64M"]].concat());
    wait_all(&cluster[0]);
    // More than there is room for.
    write_blocks(&cluster[0], "r0", 1, 0..2000);
    // It tries again now and then, and shows another state for that moment.
    cluster[1].wait_resource("r0", SOON, "it says that its disk failed", |r| {
        let why = r.disk.problem.as_ref();
        why.is_some_and(|why| why.contains("No space left")) && r.disk.state == "Failed"
    });
    assert!(cluster[1].log().contains("this node does not follow any more"));
    wait_until(SOON, "people are told", || {
        cluster[1].ok(&["status", "r0"]).contains("No space left")
    });
    // Nobody waits for it.
    write_blocks(&cluster[0], "r0", 2, 100..300);
    run_ok(Command::new("mount").args(["-o", "remount,size=64m"]).arg(small.path()));
    wait_all(&cluster[0]);
    cluster[1].wait_resource("r0", SOON, "nothing is wrong", |r| r.disk.problem.is_none());
    let own = cluster[0].disk("r0");
    wait_until(SOON, "all is written back", || {
        cluster[0].resource("r0").journal.expect("it has one").dirty_bytes == 0
    });
    files::assert_equal(&own, disk.as_ref(), SIZE);
}

fn slow_filling() -> Cluster {
    let cluster = cluster_with_proxies(2);
    files::make_random(&cluster[0].disk("r0"), SIZE, 3);
    for node in cluster.nodes() {
        // Three connections carry it: nearly half a minute.
        node.proxy().limit_rate(400_000);
    }
    follow(&cluster, "64M");
    cluster
}

#[test]
fn the_filling_of_a_log_peer_is_told_in_percent() {
    let cluster = slow_filling();
    let mut seen = Vec::new();
    wait_until(SYNC, "half of it is there", || {
        let peer = cluster[1].peer("r0", "alpha");
        if let Some(resync) = &peer.resync {
            assert_eq!(peer.replication, "SyncTarget");
            assert_eq!(resync.bytes_done + peer.out_of_sync_bytes, resync.bytes_total);
            let percent = resync.bytes_done as f64 * 100.0 / resync.bytes_total as f64;
            assert!((resync.percent - percent).abs() < 0.2, "{resync:?}");
            seen.push(resync.percent);
        }
        seen.last().is_some_and(|percent| *percent > 40.0)
    });
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!(disk_state(&cluster[1]), "Inconsistent");
    let left = cluster[1].metric("holdfast_out_of_sync_bytes", &["r0"]);
    assert!(left.is_some_and(|bytes| bytes > 0.0 && bytes < SIZE as f64), "{left:?}");
    let text = cluster[1].ok(&["status", "r0"]);
    assert!(text.contains(" %"), "{text}");
    for node in cluster.nodes() {
        node.proxy().heal();
    }
    wait_all(&cluster[0]);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is filled", |peer| peer.resync.is_none());
    assert_same(&cluster, 0, 1);
}

/// After a split brain the side that follows leaves with its data, and the other one goes on.
#[test]
fn a_log_peer_that_wrote_apart_leaves_and_keeps_its_disk() {
    let mut cluster = cluster(2);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    cluster[0].freeze();
    cluster[1].wait_peer("r0", "alpha", SOON, "it is gone", |p| p.connection != "Connected");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 0..50);
    cluster[1].kill9();
    cluster[0].thaw();
    write_blocks(&cluster[0], "r0", 3, 200..250);
    cluster[1].start();
    let apart = |p: &holdfast_api::status::PeerStatus| {
        p.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
    };
    cluster[1].wait_peer("r0", "alpha", SOON, "it is told", apart);
    let before = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    cluster[1].ok(&["leave", "r0"]);
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), before, "the data stay");
    cluster[0].wait_resource("r0", SOON, "nothing is wrong", |r| r.peers.is_empty());
    write_blocks(&cluster[0], "r0", 4, 0..20);
    check_blocks(&cluster[0], "r0", 3, 200..250);
}
