//! The disk of a node that follows has blocks that cannot be read, or that changed behind the daemon's
//! back: they come from its own journal or from the Primary, and the state that it holds stays.

use crate::logpeer::{
    SIZE, assert_same, wait_all, wait_fetched, wait_follows, wait_gone, wait_up_to_date,
};
use crate::{BLOCK, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{
    Bad, BadDisk, Cluster, Node, block_content, devices_unavailable, files, holds_within,
    wait_until,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What was on the disk before the resource was created: no journal has it.
const OLD: u64 = 17;

/// r0 on a disk with random content on the first node, and the second one follows it. Blocks 0 to 499
/// were written since.
fn pair(cluster: &Cluster, more: &[&str]) {
    alone(cluster);
    follows(cluster, more);
    write_blocks(&cluster[0], "r0", 1, 0..500);
    wait_all(&cluster[0]);
}

fn journal(node: &Node) -> String {
    node.dir().join("j").display().to_string()
}

/// The first node alone.
fn alone(cluster: &Cluster) {
    files::make_random(&cluster[0].disk("r0"), SIZE, OLD);
    let set = ["--set", "scrub-rate=0", "--set", "scrub-interval=0"];
    let journal = journal(&cluster[0]);
    let meta = ["--journal", &journal, "--journal-size", "64M"];
    cluster.create("r0", SIZE, &[&meta[..], &set].concat());
}

/// The second one follows it, and was filled.
fn follows(cluster: &Cluster, more: &[&str]) {
    let journal = journal(&cluster[1]);
    let log = ["join", "r0", "--protocol", "log", "--journal", &journal, "--journal-size", "64M"];
    let disk = cluster[1].disk("r0").display().to_string();
    let disk: &[&str] = if more.contains(&"--disk") { &[] } else { &["--disk", &disk] };
    if !disk.is_empty() {
        File::create(cluster[1].disk("r0")).and_then(|f| f.set_len(SIZE)).expect("it can be made");
    }
    cluster[1].ok(&[&log[..], disk, more].concat());
    wait_all(&cluster[0]);
}

/// The same; the second node keeps checksums.
pub(crate) fn with_checksums(cluster: &Cluster) {
    pair(cluster, &["--checksums"]);
    computed(cluster);
}

fn computed(cluster: &Cluster) {
    computed_by(cluster, 1);
    wait_all(&cluster[0]);
}

/// A node that was started follows again, and has the checksums that it had.
fn is_back(cluster: &Cluster, node: usize) {
    wait_follows(&cluster[node]);
    wait_all(&cluster[0]);
    // Those of pages that it could not bring in line when it was stopped are computed anew.
    cluster[node].wait_resource("r0", SYNC, "it has its checksums", |r| r.disk.checksums == "on");
}

fn computed_by(cluster: &Cluster, node: usize) {
    wait_until(SYNC, "the checksums are computed", || {
        // They are computed beside what is replayed.
        write_blocks(&cluster[0], "r0", 1, [499]);
        cluster[node].resource("r0").disk.checksums == "on"
    });
}

/// The blocks that a node says to have no good copy of.
fn listed(node: &Node) -> Vec<u64> {
    let shown = node.resource("r0").disk.unreadable;
    shown.iter().flat_map(|r| r.offset / BLOCK..(r.offset + r.length) / BLOCK).collect()
}

/// Waits until a node says of just these blocks that it has no good copy of them: the Primary may have
/// heard first of what led to it.
fn wait_listed(node: &Node, due: &[u64]) {
    let mut found = Vec::new();
    let same = holds_within(SOON, || {
        found = listed(node);
        found == due
    });
    assert!(same, "{found:?} are listed on {}, and not {due:?}", node.name());
}

/// The same on a disk that can be bad.
fn on_bad_disk(cluster: &Cluster, more: &[&str]) -> Option<BadDisk> {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return None;
    }
    let disk = BadDisk::new(cluster.scratch(), "bad", SIZE);
    pair(cluster, &[&["--disk", &disk.text()], more].concat());
    Some(disk)
}

/// Changes a byte of each of these blocks behind the daemon's back.
pub(crate) fn flip(path: &Path, blocks: impl IntoIterator<Item = u64>) {
    let disk = File::options().read(true).write(true).open(path).expect("it can be opened");
    for at in blocks.into_iter().map(|block| block * BLOCK + 1234) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).expect("it can be read");
        disk.write_all_at(&[byte[0] ^ 0x10], at).expect("it can be written");
    }
}

/// Waits until so many blocks were healed, and so many are left. Each of them is stored and read back by
/// itself: many take their time, and have it as long as it gets on.
pub(crate) fn losses(node: &Node, healed: u64, left: u64) {
    let (due, what) = ((healed, left), format!("{healed} are healed, {left} left"));
    let mut last = None;
    while last != Some(due) {
        node.wait_resource("r0", SYNC, &what, |r| {
            let now = Some((r.disk.healed_blocks, r.disk.unreadable_blocks));
            let moved = now != last;
            last = now;
            moved
        });
    }
}

pub(crate) fn scrub(node: &Node) -> u64 {
    let report = node.json(&["scrub", "r0", "--wait"]);
    assert_eq!(report["bytes_done"], SIZE, "{report}");
    report["unreadable_blocks"].as_u64().expect("it is a number")
}

fn content(path: &Path, blocks: std::ops::Range<u64>) -> Vec<u8> {
    let len = usize::try_from((blocks.end - blocks.start) * BLOCK).expect("it is small");
    let mut found = vec![0; len];
    let disk = File::open(path).expect("it can be opened");
    disk.read_exact_at(&mut found, blocks.start * BLOCK).expect("it can be read");
    found
}

fn fails(node: &Node, block: u64) -> bool {
    node.open("r0").read_at(&mut [0; 4096], block * BLOCK).is_err()
}

#[test]
fn row_061_062_what_changed_is_found_by_a_scrub_and_comes_from_the_journal_and_the_leader() {
    let mut cluster = cluster(2);
    with_checksums(&cluster);
    for round in 0..2 {
        flip(&cluster[1].disk("r0"), (10..20).chain(5000..5040));
        assert_eq!(scrub(&cluster[1]), 50, "round {round}");
        losses(&cluster[1], 50, 0);
        wait_up_to_date(&cluster[1]);
        assert_same(&cluster, 0, 1);
        assert_eq!(scrub(&cluster[1]), 0);
        cluster[1].wait_log("healed: ");
        // What was settled is found after a restart, too.
        cluster[1].restart();
        is_back(&cluster, 1);
        // What was kept of its scrubs is read beside the start.
        cluster[1].wait_resource("r0", SOON, "it knows of the last one", |r| r.scrub.is_some());
    }
    assert_eq!(cluster[0].peer("r0", "beta").disk, "UpToDate", "nothing was filled");
    let report = cluster[1].json(&["scrub", "r0", "--report"]);
    assert_eq!(report["last"]["state"], "done", "{report}");
}

#[test]
fn while_the_leader_is_away_losses_are_kept_over_kills_and_healed_when_it_is_back() {
    let mut cluster = cluster(2);
    let Some(disk) = on_bad_disk(&cluster, &[]) else { return };
    cluster[0].stop();
    disk.set_bad(Bad::Unreadable, [0, 1, 77].into_iter().chain(5000..5010));
    assert_eq!(scrub(&cluster[1]), 13);
    // Its own journal has those that were written.
    losses(&cluster[1], 3, 10);
    let shown = cluster[1].resource("r0").disk;
    let listed: Vec<_> = shown.unreadable.iter().map(|r| (r.offset, r.length)).collect();
    assert_eq!((&*shown.state, listed), ("UpToDate", vec![(5000 * BLOCK, 10 * BLOCK)]));
    cluster[1].kill9();
    cluster[1].start();
    losses(&cluster[1], 0, 10);
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    losses(&cluster[1], 10, 0);
    assert!(disk.bad_blocks().is_empty(), "they were stored in place");
    wait_all(&cluster[0]);
    cluster[1].restart();
    wait_follows(&cluster[1]);
    losses(&cluster[1], 0, 0);
    let here = disk.peek(0, usize::try_from(SIZE).expect("it is small"));
    assert!(here == content(&cluster[0].disk("r0"), 0..SIZE / BLOCK), "the disks are equal");
}

#[test]
fn what_the_disk_does_not_take_any_more_goes_to_its_spare() {
    let cluster = cluster(2);
    let spare = cluster[1].dir().join("spare");
    File::create(&spare).and_then(|file| file.set_len(8 << 20)).expect("it can be made");
    let spare = spare.display().to_string();
    let Some(disk) = on_bad_disk(&cluster, &["--spare", &spare]) else { return };
    let bad = (30..34).chain(6000..6004);
    disk.set_bad(Bad::Dead, bad.clone());
    assert_eq!(scrub(&cluster[1]), 8);
    losses(&cluster[1], 8, 0);
    assert_eq!(cluster[1].resource("r0").disk.remapped_sectors, 8);
    assert_eq!(scrub(&cluster[1]), 0);
    let due = content(&cluster[0].disk("r0"), 6000..6004);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 1, 0..500);
    let mut found = vec![0; due.len()];
    cluster[1].open("r0").read_at(&mut found, 6000 * BLOCK).expect("it can be read");
    assert!(found == due);
}

#[test]
fn what_was_replayed_over_a_lost_block_counts_only_when_it_reads_back() {
    let cluster = cluster(2);
    let spare = cluster[1].dir().join("spare");
    File::create(&spare).and_then(|file| file.set_len(8 << 20)).expect("it can be made");
    let spare = spare.display().to_string();
    let Some(disk) = on_bad_disk(&cluster, &["--spare", &spare]) else { return };
    cluster[1].ok(&["pause", "r0", "replay"]);
    write_blocks(&cluster[0], "r0", 2, 6000..6004);
    wait_fetched(&cluster[0], &cluster[1]);
    disk.set_bad(Bad::Stuck, 6000..6004);
    assert_eq!(scrub(&cluster[1]), 4);
    losses(&cluster[1], 0, 4);
    // The disk says that it takes what is replayed, and does not.
    cluster[1].ok(&["resume", "r0", "replay"]);
    losses(&cluster[1], 4, 0);
    assert_eq!(cluster[1].resource("r0").disk.remapped_sectors, 4);
    wait_all(&cluster[0]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, 6000..6004);
}

#[test]
fn a_state_that_is_held_is_healed_as_it_is_and_what_was_written_since_waits_for_the_replay() {
    let cluster = cluster(2);
    with_checksums(&cluster);
    let before = content(&cluster[1].disk("r0"), 5000..5020);
    cluster[1].ok(&["pause", "r0", "replay"]);
    // In the journal here with two contents, and in none with the one that is held.
    write_blocks(&cluster[0], "r0", 2, (0..50).chain(5000..5010));
    wait_fetched(&cluster[0], &cluster[1]);
    flip(&cluster[1].disk("r0"), (40..60).chain(5000..5020));
    assert_eq!(scrub(&cluster[1]), 40);
    losses(&cluster[1], 30, 10);
    let after = content(&cluster[1].disk("r0"), 5010..5020);
    assert!(after == before[10 * 4096..], "the Primary's, as nobody has written there since");
    for block in 40..60 {
        let held = content(&cluster[1].disk("r0"), block..block + 1);
        assert!(held == block_content(1, 1, block), "block {block} is that of the held state");
    }
    cluster[1].wait_resource("r0", SOON, "it says that the replay brings them", |r| {
        let problem = r.replay.as_ref().and_then(|replay| replay.problem.as_ref());
        problem.is_some_and(|text| text.contains("10 blocks") && text.contains("wait"))
    });
    let shown = cluster[1].resource("r0").disk.unreadable;
    let first = &shown[0];
    assert_eq!((first.offset, first.length), (5000 * BLOCK, 10 * BLOCK));
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    losses(&cluster[1], 30, 0);
    assert_same(&cluster, 0, 1);
    assert_eq!(scrub(&cluster[1]), 0);
}

#[test]
fn what_is_lost_fails_on_a_node_that_is_promoted_and_is_healed_when_it_follows_again() {
    let mut cluster = cluster(2);
    with_checksums(&cluster);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    flip(&cluster[1].disk("r0"), 5000..5010);
    assert_eq!(scrub(&cluster[1]), 10);
    losses(&cluster[1], 0, 10);
    // Without checksums the disk itself does not know any more that they are wrong.
    cluster[1].ok(&["set", "r0", "checksums=off"]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    let show = ["device", "r0", "--read-only", "--export-only"];
    cluster[1].refused(&show, 1, "some of its blocks are not what was written");
    cluster[1].ok(&["resume", "r0", "replay"]);
    cluster[1].ok(&["primary", "r0", "--force"]);
    assert_eq!(cluster[1].resource("r0").disk.unreadable_blocks, 10, "it is known at once");
    for block in [4999, 5000, 5009, 5010] {
        assert_eq!(fails(&cluster[1], block), (5000..5010).contains(&block), "block {block}");
    }
    check_blocks(&cluster[1], "r0", 1, 0..500);
    write_blocks(&cluster[1], "r0", 3, 5000..5004);
    check_blocks(&cluster[1], "r0", 3, 5000..5004);
    cluster[0].start();
    wait_all(&cluster[1]);
    // Who leads gives nothing that it knows to be wrong, though its disk would.
    cluster[0].ok(&["set", "r0", "checksums=on"]);
    wait_until(SYNC, "the checksums are computed", || {
        write_blocks(&cluster[1], "r0", 1, [499]);
        cluster[0].resource("r0").disk.checksums == "on"
    });
    wait_all(&cluster[1]);
    let good = content(&cluster[0].disk("r0"), 5005..5006);
    flip(&cluster[0].disk("r0"), [5005]);
    assert_eq!(scrub(&cluster[0]), 1);
    cluster[0].wait_log("unreadable: 1 block");
    losses(&cluster[0], 0, 1);
    let file = File::options().write(true).open(cluster[0].disk("r0")).expect("it can be opened");
    file.write_all_at(&good, 5005 * BLOCK).expect("it can be written");
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 3, 5000..5004);
    assert!(fails(&cluster[0], 5005), "that it was put right behind its back is not known");
    let mut client = cluster[0].open("r0");
    client.write_at(&good, 5005 * BLOCK).expect("it can be written");
    drop(client);
    cluster[1].wait_resource("r0", SYNC, "all is healed", |r| r.disk.unreadable_blocks == 0);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}

/// The first node keeps checksums, and some blocks changed behind its back that no journal has.
pub(crate) fn with_a_bad_primary(cluster: &Cluster) {
    alone(cluster);
    cluster[0].ok(&["set", "r0", "checksums=on"]);
    computed_by(cluster, 0);
    flip(&cluster[0].disk("r0"), (5000..5004).chain([0, 7000]));
}

#[test]
fn what_the_primary_is_known_to_have_lost_arrives_as_lost_at_a_node_that_is_filled() {
    let mut cluster = cluster(2);
    with_a_bad_primary(&cluster);
    assert_eq!(scrub(&cluster[0]), 6);
    // The disk itself does not know any more that they are wrong: it gives what it has.
    cluster[0].ok(&["set", "r0", "checksums=off"]);
    follows(&cluster, &[]);
    let lost = [0, 5000, 5001, 5002, 5003, 7000];
    wait_listed(&cluster[1], &lost);
    write_blocks(&cluster[0], "r0", 1, [0, 5001]);
    wait_all(&cluster[0]);
    losses(&cluster[1], 0, 4);
    cluster[1].kill9();
    cluster[1].start();
    wait_follows(&cluster[1]);
    wait_all(&cluster[0]);
    wait_listed(&cluster[1], &[5000, 5002, 5003, 7000]);
    cluster[1].ok(&["primary", "r0"]);
    for block in lost.into_iter().chain([1, 4999, 5004, 6999]) {
        let due = [5000, 5002, 5003, 7000].contains(&block);
        assert_eq!(fails(&cluster[1], block), due, "block {block}");
    }
    check_blocks(&cluster[1], "r0", 1, [0, 5001]);
    let mut found = vec![0; 4096];
    cluster[1].open("r0").read_at(&mut found, 5004 * BLOCK).expect("it can be read");
    assert!(found == content(&cluster[0].disk("r0"), 5004..5005));
}

#[test]
fn what_the_primary_does_not_know_to_have_lost_holds_no_filling_up() {
    let cluster = cluster(2);
    with_a_bad_primary(&cluster);
    follows(&cluster, &[]);
    let lost = [0, 5000, 5001, 5002, 5003, 7000];
    for node in cluster.nodes() {
        wait_listed(node, &lost);
    }
    // It gets them from elsewhere, and the other one from it.
    write_blocks(&cluster[0], "r0", 1, lost);
    wait_all(&cluster[0]);
    losses(&cluster[1], 0, 0);
    assert_same(&cluster, 0, 1);
}

#[test]
fn a_filling_whose_losses_cannot_be_noted_waits_and_says_so() {
    let cluster = cluster(2);
    with_a_bad_primary(&cluster);
    follows(&cluster, &[]);
    flip(&cluster[0].disk("r0"), 2000..2003);
    // Something else is where the list is written.
    let meta = cluster[1].state_dir().join("meta");
    let files = std::fs::read_dir(&meta).expect("it is there");
    let mut files = files.map(|file| file.expect("it can be read").path());
    let list = files.find(|path| path.extension().is_some_and(|ext| ext == "losses"));
    let in_the_way = list.expect("there is one").with_extension("new");
    std::fs::create_dir(&in_the_way).expect("it can be made");
    cluster[1].ok(&["invalidate", "r0"]);
    let words = "could not be written";
    let waits = cluster[1].wait_resource("r0", SYNC, "it says that it waits", |status| {
        let problem = status.replay.as_ref().and_then(|replay| replay.problem.as_ref());
        problem.is_some_and(|problem| problem.contains(words))
    });
    assert_eq!(waits.disk.state, "Inconsistent");
    wait_until(SOON, "it is a problem for a person", || {
        let shown = cluster[1].ok(&["status"]);
        shown.contains(words) && shown.contains("resource r0: it cannot be noted")
    });
    std::fs::remove_dir(&in_the_way).expect("it can be removed");
    wait_all(&cluster[0]);
    let lost = [0, 2000, 2001, 2002, 5000, 5001, 5002, 5003, 7000];
    wait_listed(&cluster[1], &lost);
    wait_until(SOON, "nothing is a problem any more", || {
        !cluster[1].ok(&["status"]).contains(words)
    });
}

/// A byte of the list of lost blocks of a node that is stopped changes.
fn rot_list(node: &Node) {
    let files = std::fs::read_dir(node.state_dir().join("meta")).expect("it is there");
    let mut files = files.map(|file| file.expect("it can be read").path());
    let list = files.find(|path| path.extension().is_some_and(|ext| ext == "losses"));
    let list = list.expect("there is one");
    let mut bytes = std::fs::read(&list).expect("it can be read");
    *bytes.last_mut().expect("it is not empty") ^= 1;
    std::fs::write(list, bytes).expect("it can be written");
}

#[test]
fn a_list_of_losses_that_rotted_may_have_had_every_block() {
    let mut cluster = cluster(2);
    with_checksums(&cluster);
    cluster[0].stop();
    flip(&cluster[1].disk("r0"), 5000..5010);
    assert_eq!(scrub(&cluster[1]), 10);
    losses(&cluster[1], 0, 10);
    // Without checksums the disk itself does not know any more that they are wrong.
    cluster[1].ok(&["set", "r0", "checksums=off"]);
    cluster[1].stop();
    rot_list(&cluster[1]);
    cluster[1].start();
    // Its own journal has those that were written.
    losses(&cluster[1], 500, SIZE / BLOCK - 500);
    cluster[1].wait_log(".losses cannot be used: its checksum does not fit; ");
    cluster[0].start();
    losses(&cluster[1], SIZE / BLOCK, 0);
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);

    flip(&cluster[1].disk("r0"), [5000]);
    cluster[1].stop();
    rot_list(&cluster[1]);
    cluster[1].start();
    wait_until(SOON, "the Primary is in reach", || {
        cluster[1].peer("r0", "alpha").connection == "Connected"
    });
    cluster[1].ok(&["invalidate", "r0"]);
    wait_all(&cluster[0]);
    cluster[1].wait_resource("r0", SYNC, "all is good", |r| r.disk.unreadable_blocks == 0);
    assert_same(&cluster, 0, 1);
}

#[test]
fn killed_on_either_side_in_the_middle_of_it_nothing_is_forgotten() {
    let mut cluster = cluster(2);
    with_checksums(&cluster);
    // All are on the list before anything is stored again: of a page that is being written to when the
    // daemon is killed, the checksums are computed anew.
    cluster[0].stop();
    flip(&cluster[1].disk("r0"), (1000..8000).step_by(2));
    assert_eq!(scrub(&cluster[1]), 3500);
    losses(&cluster[1], 0, 3500);
    cluster[0].start();
    for turn in [1, 0, 1] {
        cluster[1].wait_resource("r0", SYNC, "it heals", |r| {
            r.disk.healed_blocks > 100 || r.disk.unreadable_blocks == 0
        });
        cluster[turn].kill9();
        cluster[turn].start();
    }
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    wait_follows(&cluster[1]);
    // Each of these blocks is asked for, stored and read back by itself, and all have the time that this
    // takes on a loaded machine, as long as it gets on.
    let mut left = u64::MAX;
    while left > 0 {
        let now = cluster[1]
            .wait_resource("r0", SYNC, "more is healed", |r| r.disk.unreadable_blocks < left);
        left = now.disk.unreadable_blocks;
    }
    wait_all(&cluster[0]);
    assert_same(&cluster, 0, 1);
}
