//! A resource with an archive: every moment is restored as it was, wherever the daemon died.

use crate::{BLOCK, MIB, SOON, cluster, seed, write_blocks};
use holdfast_testkit::{Cluster, Ledger, Node, Rng, Writer, WriterOptions, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const SIZE: u64 = 16 * MIB;

pub(crate) fn place_of(cluster: &Cluster) -> PathBuf {
    cluster.scratch().join("archive")
}

/// A cluster of one, whose resource r0 has a journal and is archived every second.
fn archived() -> Cluster {
    let cluster = cluster(1);
    let dir = cluster[0].dir().join("r0.journal").display().to_string();
    cluster.create("r0", SIZE, &["--journal", &dir, "--journal-size", "32M"]);
    // So that the journal is one that can be known again.
    cluster[0].open("r0").write_zeroes(0, BLOCK).expect("it can be zeroed");
    let place = format!("archive={}", place_of(&cluster).display());
    cluster[0].ok(&["set", "r0", &place]);
    cluster[0].ok(&["set", "r0", "archive-interval=1s"]);
    wait_complete(&cluster[0], now());
    cluster
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    u64::try_from(since.as_millis()).expect("this century")
}

/// Waits until everything that was completed until then is archived.
pub(crate) fn wait_complete(node: &Node, millis: u64) {
    wait_until(SOON, "the archive is complete", || {
        let archive = node.resource("r0").archive;
        archive.is_some_and(|archive| {
            assert_eq!(archive.problem, None);
            archive.complete_unix_ms >= millis && archive.base_percent.is_none()
        })
    });
}

fn content(node: &Node) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(SIZE).expect("it fits")];
    let mut client = node.open("r0");
    for (at, part) in (0..).step_by(1 << 20).zip(content.chunks_mut(1 << 20)) {
        client.read_at(part, at).expect("the Primary can be read");
    }
    content
}

pub(crate) fn restore(node: &Node, place: &Path, to: &str, into: &Path) -> String {
    let (place, into) = (place.display().to_string(), into.display().to_string());
    node.ok(&["restore", "r0", "--from", &place, "--to", to, "--into", &into])
}

#[test]
fn twenty_moments_are_restored_byte_for_byte() {
    let mut cluster = archived();
    let place = place_of(&cluster);
    let mut dice = Rng::new(seed());
    let mut moments = Vec::new();
    for round in 0..20 {
        let blocks: Vec<u64> =
            (0..20 + dice.below(100)).map(|_| dice.below(SIZE / BLOCK)).collect();
        write_blocks(&cluster[0], "r0", 100 + round, blocks);
        if round % 3 == 0 {
            let at = dice.below(SIZE / BLOCK - 300) * BLOCK;
            cluster[0].open("r0").trim(at, 256 * BLOCK).expect("it can be trimmed");
        }
        let state = content(&cluster[0]);
        let then = now();
        // No later write is of the same millisecond.
        wait_until(SOON, "the clock goes on", || now() > then);
        moments.push((then, state));
        match round {
            // Another base image, while it is written to.
            4 => drop(cluster[0].ok(&["set", "r0", "archive-base-age=1s"])),
            9 => {
                let list = ["archive", "ls", &place.display().to_string()];
                wait_until(SOON, "another base image is finished", || {
                    let listed = cluster[0].json(&list);
                    let bases = &listed["archives"][0]["lines"][0]["bases"];
                    bases.as_array().is_some_and(|bases| bases.len() > 1)
                });
                cluster[0].ok(&["set", "r0", "archive-base-age=7d"]);
            }
            7 | 13 => {
                // A line without a segment would not be gone on with.
                wait_until(SOON, "something of the journal is archived", || {
                    let archive = cluster[0].resource("r0").archive;
                    archive.is_some_and(|archive| archive.complete_unix_ms >= then)
                });
                cluster[0].kill9();
                cluster[0].start();
                cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
            }
            16 => drop(cluster[0].ok(&["log", "rotate", "r0"])),
            _ => {}
        }
    }
    wait_complete(&cluster[0], now());
    // Nothing of it needs a daemon.
    cluster[0].kill9();
    for (index, (millis, state)) in moments.iter().enumerate() {
        let into = cluster.scratch().join(format!("copy-{index}"));
        let to = format!("@{}.{:03}", millis / 1000, millis % 1000);
        restore(&cluster[0], &place, &to, &into);
        assert!(fs::read(&into).expect("it is there") == *state, "moment {index}");
    }

    // What it says of itself.
    let shown = place.display().to_string();
    let listed = cluster[0].json(&["archive", "ls", &shown]);
    let line = &listed["archives"][0]["lines"][0];
    assert!(line["bases"].as_array().expect("a list").len() > 1, "{listed}");
    let last = line["restorable"]["to"].as_u64().expect("a number").to_string();
    let copy = cluster.scratch().join("by-position");
    restore(&cluster[0], &place, &last, &copy);
    assert!(fs::read(&copy).expect("it is there") == moments[19].1);
    assert!(cluster[0].ok(&["archive", "ls", &shown]).contains("LINE"));
    assert!(cluster[0].ok(&["archive", "verify", &shown]).contains("is whole"));

    // Refusals change nothing.
    let into = copy.display().to_string();
    let base = ["restore", "r0", "--from", &shown, "--into", &into, "--to"];
    let with = |to: &'static str| base.iter().copied().chain([to]).collect::<Vec<_>>();
    cluster[0].refused(&with("latest"), 1, "there is a file of that name already");
    cluster[0].refused(&with("@5"), 1, "older than the oldest");
    cluster[0].refused(&with("2999-01-01T00:00:00Z"), 1, "not archived yet");
    cluster[0].refused(&with("whenever"), 2, "is no moment");
    let other = ["restore", "r9", "--from", &shown, "--into", &into, "--to", "latest"];
    cluster[0].refused(&other, 4, "there is no archive of resource r9 (there is r0)");
    let nowhere = ["archive", "ls", "/nonexistent/archive"];
    cluster[0].refused(&nowhere, 1, "the archive /nonexistent/archive was not opened");

    // Rot is found, and what is rotten is named.
    let log = place.join("r0/log");
    let names = fs::read_dir(&log).expect("it can be listed").flatten();
    let rotten = names.map(|entry| entry.path()).max().expect("there is one");
    let mut bytes = fs::read(&rotten).expect("it is there");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&rotten, bytes).expect("it can be written");
    let name = rotten.file_name().expect("it has one").to_str().expect("it is text");
    cluster[0].refused(&["archive", "verify", &shown], 1, "1 objects are missing or broken");
    fs::remove_file(&copy).expect("it is there");
    cluster[0].refused(&with("latest"), 1, name);
    assert!(!copy.exists(), "nothing is called so that is no state");
}

#[test]
fn every_moment_under_load_is_a_prefix() {
    let mut cluster = archived();
    let place = place_of(&cluster);
    let mut dice = Rng::new(seed());
    let mut ledger = Ledger::new(seed(), 4000);
    for round in 0..2 {
        let options = WriterOptions { connections: 1, flush_every: 5, ..WriterOptions::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        let mut times = Vec::new();
        for _ in 0..4 {
            writer.wait_acknowledged(writer.acknowledged() + 200 + dice.below(200));
            times.push(now());
        }
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
        ledger.verify_export(&cluster[0].uri("r0"));
        wait_complete(&cluster[0], now());
        // The write that the first kill met may never have been made: no prefix has it then.
        let mut newest = 0;
        for (index, millis) in times.iter().enumerate().filter(|_| round == 0) {
            let into = cluster.scratch().join(format!("copy-{index}"));
            let to = format!("@{}.{:03}", millis / 1000, millis % 1000);
            restore(&cluster[0], &place, &to, &into);
            let prefix = ledger.verify_prefix(&into);
            assert!(prefix > newest, "later moments have more");
            newest = prefix;
        }
    }
    let into = cluster.scratch().join("latest");
    restore(&cluster[0], &place, "latest", &into);
    ledger.verify_file(&into);
}

/// Puts each of two files or directories in the place of the other.
fn exchange(one: &Path, other: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).expect("they can be exchanged");
}

#[test]
fn an_archive_that_cannot_be_written_is_told_and_taken_up_again() {
    let cluster = archived();
    let place = place_of(&cluster);
    // At once, so that the directory cannot be made anew meanwhile.
    let away = place.with_extension("away");
    fs::write(&away, b"in the way").expect("it can be written");
    exchange(&place, &away);
    write_blocks(&cluster[0], "r0", 1, 0..50);
    cluster[0].wait_resource("r0", SOON, "it is told", |r| {
        r.archive.as_ref().is_some_and(|archive| archive.problem.is_some())
    });
    assert!(cluster[0].ok(&["status"]).contains("not everything is archived at present"));
    write_blocks(&cluster[0], "r0", 2, 30..90);
    let state = content(&cluster[0]);
    exchange(&place, &away);
    cluster[0].wait_resource("r0", SOON, "all is well again", |r| {
        r.archive.as_ref().is_some_and(|archive| archive.problem.is_none())
    });
    wait_complete(&cluster[0], now());
    let into = cluster.scratch().join("copy");
    restore(&cluster[0], &place, "latest", &into);
    assert!(fs::read(&into).expect("it is there") == state);
    // No gap: it went on where it was.
    let listed = cluster[0].json(&["archive", "ls", &place.display().to_string(), "r0"]);
    assert_eq!(listed["archives"][0]["lines"].as_array().map(Vec::len), Some(1));

    cluster[0].ok(&["set", "r0", "archive=none"]);
    cluster[0].wait_resource("r0", SOON, "nothing is archived", |r| r.archive.is_none());
    cluster[0].refused(&["set", "r0", "archive=here"], 1, "must be the absolute path");
}

#[test]
fn a_copy_is_rewound_while_the_resource_stays_as_it_is() {
    let cluster = cluster(1);
    let dir = cluster[0].dir().join("r0.journal").display().to_string();
    cluster.create("r0", SIZE, &["--journal", &dir, "--journal-size", "32M"]);
    let copy = cluster.scratch().join("copy");
    let into = copy.display().to_string();
    let to = |to: &str| ["rewind", "r0", "--to", to, "--into", &into].map(str::to_owned);
    let run = |moment: &str| {
        let words = to(moment);
        cluster[0].ok(&words.each_ref().map(String::as_str))
    };
    let refused = |moment: &str, words: &str| {
        let line = to(moment);
        cluster[0].refused(&line.each_ref().map(String::as_str), 1, words);
        assert!(!copy.exists());
    };
    let before = now();
    let mut moments = Vec::new();
    for round in 0..6 {
        write_blocks(&cluster[0], "r0", round, 0..300);
        let then = now();
        wait_until(SOON, "the clock goes on", || now() > then);
        moments.push((then, content(&cluster[0])));
    }
    refused("latest", "it is up on this node");
    cluster[0].ok(&["down", "r0"]);
    let disk = fs::read(cluster[0].disk("r0")).expect("it is there");
    for (millis, state) in &moments {
        run(&format!("@{}.{:03}", millis / 1000, millis % 1000));
        assert!(fs::read(&copy).expect("it is there") == *state);
        fs::remove_file(&copy).expect("it is there");
    }
    assert!(run("latest").contains("is resource r0 as it was at position"));
    assert!(fs::read(&copy).expect("it is there") == moments[5].1);
    fs::remove_file(&copy).expect("it is there");
    // What was there before the first write to a block is nowhere.
    refused("4096", "what was there before is not in the journal");
    refused(&format!("@{}", before / 1000 - 5), "older than the journal");
    refused("99999999999", "it is not in the journal");
    cluster[0].refused(&["rewind", "r0", "--to", "latest"], 1, "does not follow a journal");
    assert!(fs::read(cluster[0].disk("r0")).expect("it is there") == disk);
    cluster[0].ok(&["up", "r0"]);
    cluster[0].ok(&["primary", "r0"]);
    assert!(content(&cluster[0]) == moments[5].1);
}

/// Two nodes, of which the second one follows the journal of the first.
fn with_follower() -> Cluster {
    let cluster = cluster(2);
    let journal = |node: &Node| node.dir().join("r0.journal").display().to_string();
    let (first, second) = (journal(&cluster[0]), journal(&cluster[1]));
    cluster.create("r0", SIZE, &["--journal", &first, "--journal-size", "64M"]);
    let arguments = ["--protocol", "log", "--journal", &second, "--journal-size", "64M"];
    cluster.join_resource(&cluster[1], "r0", SIZE, &arguments);
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "60"]);
    cluster
}

#[test]
fn a_log_peer_that_does_not_replay_is_copied_at_every_later_moment() {
    let cluster = with_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    let copy = cluster.scratch().join("copy");
    let into = copy.display().to_string();
    let line = ["rewind", "r0", "--to", "latest", "--into", &into];
    cluster[1].refused(&line, 1, "it replays the journal");
    cluster[1].ok(&["pause", "r0", "replay"]);
    let mut moments = Vec::new();
    for round in 0..5 {
        write_blocks(&cluster[0], "r0", 10 + round, 200..500 + 10 * round);
        let then = now();
        wait_until(SOON, "the clock goes on", || now() > then);
        moments.push((then, content(&cluster[0])));
    }
    let head = cluster[0].resource("r0").journal.expect("it has one").head;
    cluster[1].wait_resource("r0", SOON, "all is fetched", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.fetched >= head)
    });
    let disk = fs::read(cluster[1].disk("r0")).expect("it is there");
    for (millis, state) in &moments {
        let to = format!("@{}.{:03}", millis / 1000, millis % 1000);
        cluster[1].ok(&["rewind", "r0", "--to", &to, "--into", &into]);
        assert!(fs::read(&copy).expect("it is there") == *state);
        fs::remove_file(&copy).expect("it is there");
    }
    assert!(fs::read(cluster[1].disk("r0")).expect("it is there") == disk, "it stays as it is");
    cluster[1].ok(&["resume", "r0", "replay"]);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
}

#[test]
fn whoever_is_primary_goes_on_with_the_archive() {
    let cluster = with_follower();
    let place = place_of(&cluster);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].ok(&["set", "r0", &format!("archive={}", place.display())]);
    cluster[0].ok(&["set", "r0", "archive-interval=1s"]);
    wait_complete(&cluster[0], now());
    let mut moments = Vec::new();
    for (turn, primary) in [1, 0, 1].into_iter().enumerate() {
        // It may be just about to follow again.
        let other = cluster[1 - primary].name();
        cluster[primary]
            .wait_peer("r0", other, SOON, "it follows", |peer| peer.connection == "Connected");
        cluster[primary].ok(&["primary", "r0"]);
        let tag = u64::try_from(turn).expect("it is small") + 2;
        write_blocks(&cluster[primary], "r0", tag, 50 * tag..50 * tag + 100);
        let then = now();
        wait_until(SOON, "the clock goes on", || now() > then);
        moments.push((then, content(&cluster[primary])));
        wait_complete(&cluster[primary], now());
        let other = &cluster[1 - primary];
        other.wait_resource("r0", SOON, "the other one does not", |r| r.archive.is_none());
    }
    let listed = cluster[0].json(&["archive", "ls", &place.display().to_string()]);
    assert_eq!(listed["archives"][0]["lines"].as_array().map(Vec::len), Some(1), "{listed}");
    for (index, (millis, state)) in moments.iter().enumerate() {
        let into = cluster.scratch().join(format!("copy-{index}"));
        let to = format!("@{}.{:03}", millis / 1000, millis % 1000);
        restore(&cluster[0], &place, &to, &into);
        assert!(fs::read(&into).expect("it is there") == *state, "moment {index}");
    }
}

fn rewind(node: &Node, to: &str) -> serde_json::Value {
    node.json(&["rewind", "r0", "--to", to])
}

fn disk_of(node: &Node) -> Vec<u8> {
    let mut disk = fs::read(node.disk("r0")).expect("it is there");
    disk.truncate(usize::try_from(SIZE).expect("it fits"));
    disk
}

fn at(millis: u64) -> String {
    format!("@{}.{:03}", millis / 1000, millis % 1000)
}

/// Writes here and there, and says when, and what the disk is then.
fn moment(node: &Node, dice: &mut Rng, tag: u64) -> (u64, Vec<u8>) {
    let blocks: Vec<u64> = (0..20 + dice.below(60)).map(|_| dice.below(SIZE / BLOCK)).collect();
    write_blocks(node, "r0", tag, blocks);
    if dice.below(3) == 0 {
        let at = dice.below(SIZE / BLOCK - 100) * BLOCK;
        node.open("r0").trim(at, 64 * BLOCK).expect("it can be trimmed");
    }
    let then = now();
    // No later write is of the same millisecond.
    wait_until(SOON, "the clock goes on", || now() > then);
    (then, content(node))
}

fn wait_fetched(cluster: &Cluster) {
    let head = || cluster[0].resource("r0").journal.expect("it has one").head;
    cluster[1].wait_resource("r0", SOON, "all is fetched", |r| {
        r.replay.as_ref().is_some_and(|replay| replay.fetched >= head())
    });
}

fn assert_follows_again(cluster: &Cluster) {
    cluster[1].ok(&["resume", "r0", "replay"]);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    let state = content(&cluster[0]);
    wait_until(SOON, "it is equal to the Primary", || disk_of(&cluster[1]) == state);
}

#[test]
fn a_paused_log_peer_is_rewound_to_any_record_that_it_has_there_and_back() {
    let mut cluster = with_follower();
    let mut dice = Rng::new(seed());
    // So that all that was there before is in its journal.
    cluster[0].open("r0").write_zeroes(0, SIZE).expect("it can be zeroed");
    write_blocks(&cluster[0], "r0", 1, 0..300);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    cluster[0].refused(&["rewind", "r0", "--to", "latest"], 1, "does not follow a journal");
    cluster[1].refused(&["rewind", "r0", "--to", "latest"], 1, "it replays the journal");
    cluster[1].ok(&["pause", "r0", "replay"]);
    let start = disk_of(&cluster[1]);
    let early = now() - 3_600_000;
    let moments: Vec<_> = (0..20).map(|i| moment(&cluster[0], &mut dice, 10 + i)).collect();
    wait_fetched(&cluster);
    assert!(disk_of(&cluster[1]) == start);
    for (index, (millis, state)) in moments.iter().enumerate() {
        let done = rewind(&cluster[1], &at(*millis));
        assert!(disk_of(&cluster[1]) == *state, "moment {index}: {done}");
        assert_eq!(done["from_archive"], false);
        let resource = cluster[1].resource("r0");
        assert_eq!(resource.replay.expect("it follows").paused, ["replay"]);
        assert_eq!(resource.disk.state, "UpToDate");
    }
    // Back, in any order, by what the journal holds.
    for index in [11, 3, 19, 0, 7] {
        let (millis, state) = &moments[index];
        let done = rewind(&cluster[1], &at(*millis));
        assert!(disk_of(&cluster[1]) == *state, "back to moment {index}: {done}");
    }
    // Killed in the middle of it, it is the one or the other, and goes on by itself.
    for index in [19, 2, 15] {
        let before = disk_of(&cluster[1]);
        let (millis, state) = &moments[index];
        let to = at(*millis);
        let mut command = cluster[1].command(&["rewind", "r0", "--to", &to]);
        let mut running = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it runs");
        // Killed at some moment of it, or behind it.
        let moment = std::time::Duration::from_millis(dice.below(60));
        holdfast_testkit::holds_within(moment, || {
            running.try_wait().is_ok_and(|end| end.is_some())
        });
        cluster[1].kill9();
        let _ = running.wait();
        cluster[1].start();
        cluster[1].wait_resource("r0", SOON, "it is a state", |r| r.disk.state == "UpToDate");
        let now = disk_of(&cluster[1]);
        assert!(now == *state || now == before, "moment {index}");
    }
    cluster[1].refused(&["rewind", "r0", "--to", &at(early)], 1, "archive");
    cluster[1].refused(&["rewind", "r0", "--to", "99999999999"], 1, "it is not in the journal");
    assert_follows_again(&cluster);
}

#[test]
fn a_log_peer_goes_back_further_than_its_journal_by_the_archive() {
    let mut cluster = with_follower();
    let mut dice = Rng::new(seed());
    write_blocks(&cluster[0], "r0", 1, 0..300);
    let (first, state) = moment(&cluster[0], &mut dice, 2);
    wait_fetched(&cluster);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "60"]);
    cluster[1].ok(&["pause", "r0", "replay"]);
    cluster[1].refused(&["rewind", "r0", "--to", "4096"], 1, "an archive");
    cluster[0].ok(&["set", "r0", &format!("archive={}", place_of(&cluster).display())]);
    cluster[0].ok(&["set", "r0", "archive-interval=1s"]);
    wait_complete(&cluster[0], now());
    wait_until(SOON, "the other node has heard of the archive", || {
        let value = cluster[1].json(&["get", "r0", "archive"])["value"].clone();
        value == place_of(&cluster).display().to_string()
    });
    let (second, second_state) = moment(&cluster[0], &mut dice, 3);
    let (_, third_state) = moment(&cluster[0], &mut dice, 4);
    wait_complete(&cluster[0], now());
    wait_fetched(&cluster);
    rewind(&cluster[1], "latest");
    assert!(disk_of(&cluster[1]) == third_state);
    // Before the first image there is nothing.
    cluster[1].refused(&["rewind", "r0", "--to", &at(first)], 1, "older than the oldest");
    assert!(disk_of(&cluster[1]) == third_state && state != third_state);
    let done = rewind(&cluster[1], &at(second));
    assert_eq!(done["from_archive"], true, "{done}");
    assert!(disk_of(&cluster[1]) == second_state);
    assert_eq!(cluster[1].resource("r0").disk.state, "UpToDate");
    // Its journal goes on from there.
    assert_follows_again(&cluster);
    assert_eq!(cluster[1].resource("r0").disk.state, "UpToDate");

    // Where nothing goes on from there, it is compared with the Primary and filled when it resumes.
    cluster[1].ok(&["pause", "r0", "replay"]);
    for round in 0..6 {
        write_blocks(&cluster[0], "r0", 50 + round, 0..4096);
        wait_fetched(&cluster);
        rewind(&cluster[1], "latest");
    }
    wait_complete(&cluster[0], now());
    // Killed in the middle of it the disk is nothing, and says so, or one of both.
    let before = disk_of(&cluster[1]);
    let to = at(second);
    let mut command = cluster[1].command(&["rewind", "r0", "--to", &to]);
    let mut running = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    let moment = std::time::Duration::from_millis(20 + dice.below(150));
    holdfast_testkit::holds_within(moment, || running.try_wait().is_ok_and(|end| end.is_some()));
    cluster[1].kill9();
    let _ = running.wait();
    cluster[1].start();
    cluster[1].wait_resource("r0", SOON, "it is up", |r| r.replay.is_some());
    let found = cluster[1].resource("r0").disk.state;
    let now = disk_of(&cluster[1]);
    assert!(found == "Inconsistent" || now == before || now == second_state, "{found}");
    let done = rewind(&cluster[1], &at(second));
    assert!(disk_of(&cluster[1]) == second_state, "{done}");
    assert_eq!(cluster[1].resource("r0").disk.state, "UpToDate");
    assert_follows_again(&cluster);
}

/// A loop device over a file; `None` where none can be made.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let made =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let made = made.ok().filter(|made| made.status.success())?;
        Some(Self(String::from_utf8(made.stdout).ok()?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_state_is_restored_onto_a_block_device() {
    let cluster = archived();
    let place = place_of(&cluster).display().to_string();
    write_blocks(&cluster[0], "r0", 1, 0..700);
    let state = content(&cluster[0]);
    wait_complete(&cluster[0], now());
    let backing = cluster.scratch().join("device");
    fs::write(&backing, vec![0x5a; usize::try_from(SIZE + MIB).expect("it fits")])
        .expect("it can be written");
    let Some(device) = Loop::over(&backing) else {
        return eprintln!("skipped: no loop device can be made");
    };
    let line = ["restore", "r0", "--from", &place, "--to", "latest", "--into", &device.0];
    cluster[0].refused(&line, 1, "there is data");
    let held = fs::OpenOptions::new().read(true).open(&device.0).expect("it can be opened");
    cluster[0].ok(&[&line[..], &["--overwrite"]].concat());
    drop(held);
    let mut found = fs::read(&device.0).expect("it can be read");
    assert_eq!(found.len() as u64, SIZE + MIB);
    assert!(found[state.len()..].iter().all(|byte| *byte == 0x5a), "what is behind stays");
    found.truncate(state.len());
    assert!(found == state);
    // One that is too small is refused.
    drop(device);
    fs::write(&backing, vec![0; 1 << 20]).expect("it can be written");
    let Some(device) = Loop::over(&backing) else { return };
    let line = ["restore", "r0", "--from", &place, "--to", "latest", "--into", &device.0];
    cluster[0].refused(&line, 1, "the state needs");
}

#[test]
fn a_resource_is_renamed_with_its_archive_or_not_at_all() {
    let cluster = archived();
    let (node, place) = (&cluster[0], place_of(&cluster));
    let (then, before) = moment(node, &mut Rng::new(seed()), 1);
    wait_complete(node, then);
    for more in [&["--dry-run"][..], &[]] {
        let rename = [&["rename", "r0", "r1"], more].concat();
        node.refused(&rename, 1, "its archive in");
    }
    assert_eq!(node.resource("r0").name, "r0");
    node.ok(&["set", "r0", "archive=none"]);
    wait_until(SOON, "archiving has ended", || node.resource("r0").archive.is_none());
    node.ok(&["rename", "r0", "r1"]);
    fs::rename(place.join("r0"), place.join("r1")).expect("it is there");
    node.ok(&["set", "r1", &format!("archive={}", place.display())]);
    write_blocks(node, "r1", 2, 0..20);
    let later = now();
    wait_until(SOON, "the archive goes on", || {
        let archive = node.resource("r1").archive;
        archive
            .is_some_and(|archive| archive.problem.is_none() && archive.complete_unix_ms >= later)
    });
    // What was before is still there, under the new name.
    let into = cluster.scratch().join("before");
    let from = place.display().to_string();
    let to = at(then);
    let restore = ["restore", "r1", "--from", &from, "--to", &to, "--into"];
    node.ok(&[&restore[..], &[&into.display().to_string()]].concat());
    assert!(fs::read(&into).expect("it is restored") == before, "it is the state of then");
}
