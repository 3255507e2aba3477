//! A resource with a journal on one node: what is completed is kept, wherever the daemon dies.

use crate::logpeer::{look_at_journal, wait_gone};
use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, rounds, seed, write_blocks};
use holdfast_testkit::{
    Cluster, ClusterOptions, Ledger, Node, Rng, Scratch, Writer, WriterOptions, block_content,
    wait_until,
};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: u64 = 32 * MIB;
const BLOCKS: usize = 8192;

fn dir_of(node: &Node) -> PathBuf {
    node.dir().join("r0.journal")
}

/// A cluster of one, whose resource r0 has a journal of the smallest size.
fn with_journal() -> Cluster {
    let cluster = cluster(1);
    create(&cluster, &dir_of(&cluster[0]));
    cluster
}

fn create(cluster: &Cluster, dir: &Path) {
    let dir = dir.display().to_string();
    cluster.create("r0", SIZE, &["--journal", &dir, "--journal-size", "16M"]);
}

/// The journal as it is now.
fn journal(node: &Node) -> holdfast_api::status::JournalStatus {
    look_at_journal(node);
    node.resource("r0").journal.expect("it has one")
}

fn wait_primary(node: &Node) {
    node.wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
}

fn wait_written_back(node: &Node) {
    wait_until(SOON, "all is written back", || {
        let journal = journal(node);
        journal.dirty_bytes == 0 && journal.written_back == journal.head
    });
}

/// The files of a journal, by their names.
fn files(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it can be listed").flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    files.sort();
    files
}

#[test]
fn nothing_completed_is_lost_by_kill_9_under_load() {
    let mut cluster = with_journal();
    let mut ledger = Ledger::new(seed(), BLOCKS);
    let mut dice = Rng::new(seed());
    for round in 0..rounds() + 2 {
        let options = WriterOptions {
            connections: 1 + dice.below(4),
            flush_every: [0, 1, 7][usize::try_from(round % 3).unwrap()],
            ..WriterOptions::default()
        };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        // More than the journal holds, so that it is written back and recycled meanwhile.
        writer.wait_acknowledged(2000 + dice.below(3000));
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        wait_primary(&cluster[0]);
        ledger.verify_export(&cluster[0].uri("r0"));
    }
    let journal = journal(&cluster[0]);
    assert!(journal.bytes <= journal.limit_bytes, "{journal:?}");
    assert!(journal.tail > 0, "segments were given up: {journal:?}");
    cluster[0].ok(&["secondary", "r0"]);
    ledger.verify_file(&cluster[0].disk("r0"));
}

#[test]
fn nothing_is_lost_by_kill_9_while_it_is_written_back() {
    let mut cluster = with_journal();
    let mut ledger = Ledger::new(seed(), BLOCKS);
    for _ in 0..3 {
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
        writer.wait_acknowledged(1500);
        ledger = writer.stop_well();
        // An idle moment: now it is written back. It may be through before anybody looks.
        let before = journal(&cluster[0]).written_back;
        wait_until(SOON, "write-back has begun", || {
            let journal = journal(&cluster[0]);
            journal.written_back > before || journal.dirty_bytes == 0
        });
        cluster[0].kill9();
        cluster[0].start();
        wait_primary(&cluster[0]);
        ledger.verify_export(&cluster[0].uri("r0"));
    }
    wait_written_back(&cluster[0]);
    ledger.verify_file(&cluster[0].disk("r0"));
}

/// Reads are right as soon as it is up, though nothing is written back; and so is the disk after
/// another crash before that.
#[test]
fn a_full_journal_is_read_at_once_after_a_restart() {
    let mut cluster = with_journal();
    write_blocks(&cluster[0], "r0", 1, 0..1000);
    cluster[0].kill9();
    for _ in 0..2 {
        cluster[0].start();
        wait_primary(&cluster[0]);
        check_blocks(&cluster[0], "r0", 1, (0..1000).step_by(37));
        cluster[0].kill9();
    }
    cluster[0].start();
    wait_primary(&cluster[0]);
    // What is written now is newer than what was recovered.
    write_blocks(&cluster[0], "r0", 2, 500..600);
    cluster[0].stop();
    cluster[0].start();
    wait_primary(&cluster[0]);
    check_blocks(&cluster[0], "r0", 1, 0..500);
    check_blocks(&cluster[0], "r0", 2, 500..600);
}

#[test]
fn after_a_clean_stop_everything_is_on_the_disk() {
    let mut cluster = with_journal();
    let writer = Writer::start(
        &cluster[0].uri("r0"),
        Ledger::new(seed(), BLOCKS),
        WriterOptions { connections: 4, ..WriterOptions::default() },
    );
    writer.wait_acknowledged(3000);
    let mut ledger = writer.stop_well();
    cluster[0].stop();
    ledger.verify_file(&cluster[0].disk("r0"));
    // So it can do without the journal, but only on purpose.
    let dir = dir_of(&cluster[0]);
    fs::rename(&dir, dir.with_extension("away")).expect("it can be moved");
    cluster[0].start();
    let status = cluster[0].resource("r0");
    assert_eq!(status.disk.state, "Diskless");
    let problem = status.disk.problem.expect("it says why");
    assert!(problem.contains("is gone") && problem.contains("--discard-journal"), "{problem}");
    let words = "no other node has its data";
    cluster[0].refused(&["attach-disk", "r0", "--discard-journal"], 1, words);
    cluster[0].ok(&["attach-disk", "r0", "--discard-journal", "--force"]);
    cluster[0].ok(&["primary", "r0"]);
    ledger.verify_export(&cluster[0].uri("r0"));
    write_blocks(&cluster[0], "r0", 9, 0..10);
    check_blocks(&cluster[0], "r0", 9, 0..10);
}

#[test]
fn zeroes_and_discards_go_through_the_journal() {
    let mut cluster = with_journal();
    write_blocks(&cluster[0], "r0", 1, 0..64);
    let mut client = cluster[0].open("r0");
    client.write_zeroes(8 * 4096, 16 * 4096).expect("it can be zeroed");
    client.trim(32 * 4096, 8 * 4096).expect("it can be trimmed");
    drop(client);
    cluster[0].kill9();
    cluster[0].start();
    wait_primary(&cluster[0]);
    let blank = |node: &Node, from: u64, blocks: u64| {
        let mut found = vec![1; usize::try_from(blocks * 4096).unwrap()];
        node.open("r0").read_at(&mut found, from * 4096).expect("it can be read");
        assert!(found.iter().all(|byte| *byte == 0));
    };
    blank(&cluster[0], 8, 16);
    blank(&cluster[0], 32, 8);
    check_blocks(&cluster[0], "r0", 1, (0..8).chain(24..32).chain(40..64));
    cluster[0].ok(&["secondary", "r0"]);
    let mut found = vec![1; 16 * 4096];
    let disk = fs::File::open(cluster[0].disk("r0")).expect("it is there");
    disk.read_exact_at(&mut found, 8 * 4096).expect("it can be read");
    assert!(found.iter().all(|byte| *byte == 0), "the disk has them, too");
}

#[test]
fn a_journal_that_is_not_this_resources_is_not_used() {
    let mut cluster = with_journal();
    let (dir, other) = (dir_of(&cluster[0]), cluster[0].dir().join("r1.journal"));
    let place = other.display().to_string();
    let shared = dir.display().to_string();
    let disk = cluster[0].dir().join("r1.disk").display().to_string();
    let make = |journal: &str| {
        ["create", "r1", "--disk", &disk, "--size", "4M", "--journal", journal].join(" ")
    };
    let line = make(&shared);
    let words: Vec<&str> = line.split(' ').collect();
    cluster[0].refused(&words, 1, "belongs to the resource r0");
    assert!(!Path::new(&disk).exists(), "nothing is left");
    cluster.create("r1", 4 * MIB, &["--journal", &place, "--journal-size", "16M"]);
    write_blocks(&cluster[0], "r0", 1, 0..100);
    cluster[0].stop();
    let away = dir.with_extension("away");
    fs::rename(&dir, &away).expect("it can be moved");
    fs::rename(&other, &dir).expect("it can be moved");
    cluster[0].start();
    let problem = cluster[0].resource("r0").disk.problem.expect("it says why");
    assert!(problem.contains("it belongs to another resource"), "{problem}");
    let problem = cluster[0].resource("r1").disk.problem.expect("it says why");
    assert!(problem.contains("the directory or device does not exist"), "{problem}");
    cluster[0].refused(&["attach-disk", "r0"], 1, "belongs to another resource");
    // All is well when they are where they belong.
    fs::rename(&dir, &other).expect("it can be moved");
    fs::rename(&away, &dir).expect("it can be moved");
    for name in ["r0", "r1"] {
        cluster[0].ok(&["attach-disk", name]);
        cluster[0].ok(&["primary", name]);
    }
    check_blocks(&cluster[0], "r0", 1, 0..100);
}

/// The segment of a node's journal that has this content of a block, and where.
fn place_of(node: &Node, content: &[u8]) -> (PathBuf, u64) {
    let found = files(&dir_of(node), "segment-").into_iter().find_map(|path| {
        let segment = fs::read(&path).expect("it can be read");
        let at = segment.windows(64).position(|part| part == &content[..64])?;
        Some((path, at as u64))
    });
    found.expect("it was written")
}

#[test]
fn a_damaged_journal_is_found_and_named() {
    let mut cluster = with_journal();
    let disk = cluster[0].disk("r0");
    // Flushed, so it was durable, and not written back. An idle moment is enough for that, and then nobody
    // needs the journal any more: it is killed again behind writes to other blocks.
    let mut first = 0;
    loop {
        write_blocks(&cluster[0], "r0", 1, first..first + 200);
        write_blocks(&cluster[0], "r0", 2, first..first + 200);
        cluster[0].kill9();
        let on_disk = holdfast_testkit::files::read(&disk, first * BLOCK, 200 * 4096);
        if on_disk.iter().all(|byte| *byte == 0) {
            break;
        }
        cluster[0].start();
        wait_primary(&cluster[0]);
        first += 200;
        assert!(first < 8000, "it was always written back before it could be killed");
    }
    let (segment, at) = place_of(&cluster[0], &block_content(1, 1, first));
    let file = fs::File::options().write(true).open(&segment).expect("it is there");
    file.write_all_at(&[0xa5; 512], at + 100).expect("it can be written");
    cluster[0].start();
    let problem = cluster[0].resource("r0").disk.problem.expect("it says why");
    let name = segment.file_name().expect("it has one").to_string_lossy().into_owned();
    let number = name.strip_prefix("segment-").map(|digits| u64::from_str_radix(digits, 16));
    let number = number.expect("that is how they are named").expect("it is a number");
    assert!(problem.contains(&format!("is damaged in segment {number} ")), "{problem}");
    cluster[0].refused(&["primary", "r0"], 1, "no node in reach has up-to-date data");
}

#[test]
fn what_a_journal_cannot_be_made_of_is_refused_and_leaves_nothing() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = node.disk("r0").display().to_string();
    let tmp = node.dir().display().to_string();
    let state = node.state_dir().join("j").display().to_string();
    for (journal, size, words) in [
        (format!("{tmp}/no/such"), "16M", "No such file or directory"),
        (format!("{tmp}/j"), "1M", "it must have"),
        (format!("{tmp}/j"), "1000T", "it must have"),
        (format!("{tmp}/j"), "15T", "its filesystem has"),
        (state, "16M", "is in the state directory"),
    ] {
        let line = [
            "create",
            "r0",
            "--disk",
            &disk,
            "--size",
            "4M",
            "--journal",
            &journal,
            "--journal-size",
            size,
        ];
        node.refused(&line, 1, words);
        assert!(!Path::new(&disk).exists() && !Path::new(&journal).exists(), "{journal}");
    }
    assert!(node.status().resources.is_empty());
}

/// A small filesystem in memory. It goes with the value.
struct Small(PathBuf);

impl Small {
    /// `None` where this user cannot mount.
    fn new(dir: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(dir).expect("it can be made");
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir);
        mount.status().is_ok_and(|status| status.success()).then(|| Self(dir.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The filesystem of the journal is filled by somebody else: segments are given up and used again
/// with what room there is.
#[test]
fn a_full_filesystem_slows_the_journal_and_loses_nothing() {
    let mut cluster = cluster(1);
    let place = cluster[0].dir().join("small");
    let Some(_small) = Small::new(&place, "40m") else { return };
    create(&cluster, &place.join("j"));
    write_blocks(&cluster[0], "r0", 1, 2000..2600);
    let hog = place.join("hog");
    let filled = fs::write(&hog, vec![0_u8; 40 << 20]);
    assert!(filled.is_err(), "it is full now");
    let options = WriterOptions { connections: 2, ..WriterOptions::default() };
    let writer = Writer::start(&cluster[0].uri("r0"), Ledger::new(7, 1024), options);
    writer.wait_acknowledged(6000);
    cluster[0].kill9();
    let mut ledger = writer.join().0;
    cluster[0].start();
    wait_primary(&cluster[0]);
    ledger.verify_export(&cluster[0].uri("r0"));
    assert_eq!(cluster[0].resource("r0").disk.state, "UpToDate");
    cluster[0].ok(&["secondary", "r0"]);
    ledger.verify_file(&cluster[0].disk("r0"));
}

#[test]
fn status_metrics_and_log_show_the_journal() {
    let cluster = with_journal();
    let node = &cluster[0];
    // Nothing has asked for the first segment yet, as a look at it would.
    let before = node.resource("r0").journal.expect("it has one");
    assert_eq!((before.head, before.bytes, before.limit_bytes), (0, 0, 16 * MIB));
    write_blocks(node, "r0", 1, 0..100);
    let after = journal(node);
    assert!(after.head >= 100 * 4096 && after.durable == after.head, "{after:?}");
    assert_eq!((after.bytes, after.emergency), (4 * MIB, false));
    wait_written_back(node);
    node.ok(&["log", "rotate", "r0"]);
    write_blocks(node, "r0", 2, 0..10);
    let log = node.json(&["log", "ls", "r0"]);
    let segments = log["segments"].as_array().expect("a list");
    assert_eq!(segments.len(), 2, "{log}");
    assert_eq!(segments[0]["origin"], "alpha");
    assert_eq!(segments[1]["begin"], segments[0]["end"]);
    assert!(node.ok(&["log", "ls", "r0"]).contains("leading"));
    assert!(node.ok(&["log", "trim", "r0"]).contains("4 MiB"));
    let log = node.json(&["log", "ls", "r0"]);
    assert_eq!(log["segments"].as_array().map(Vec::len), Some(1), "{log}");
    assert_eq!(log["tail"], log["segments"][0]["begin"]);
    // Without a journal there is nothing to look at.
    cluster.create("r1", 4 * MIB, &[]);
    node.refused(&["log", "ls", "r1"], 1, "has no journal");
    assert!(node.resource("r1").journal.is_none());
    node.ok(&["down", "r0"]);
    node.refused(&["log", "ls", "r0"], 1, "down on this node");
}

#[test]
fn leaving_takes_the_journal_away_and_keeps_the_data() {
    let cluster = with_journal();
    let mut ledger = Ledger::new(3, 2048);
    let writer = Writer::start(&cluster[0].uri("r0"), ledger, WriterOptions::default());
    writer.wait_acknowledged(1500);
    ledger = writer.stop_well();
    cluster[0].ok(&["delete", "r0"]);
    assert!(!dir_of(&cluster[0]).exists(), "its directory is gone");
    ledger.verify_file(&cluster[0].disk("r0"));
}

#[test]
fn a_resource_with_a_journal_grows() {
    let mut cluster = with_journal();
    write_blocks(&cluster[0], "r0", 1, 0..100);
    let disk = fs::File::options().write(true).open(cluster[0].disk("r0")).expect("it is there");
    disk.set_len(SIZE + 8 * MIB).expect("it can grow");
    cluster[0].ok(&["resize", "r0"]);
    let end = (SIZE + 8 * MIB) / 4096;
    write_blocks(&cluster[0], "r0", 2, end - 50..end);
    cluster[0].kill9();
    cluster[0].start();
    wait_primary(&cluster[0]);
    check_blocks(&cluster[0], "r0", 1, 0..100);
    check_blocks(&cluster[0], "r0", 2, end - 50..end);
}

/// Two members with journals: a synchronous pair. The new Primary's own journal leads then, and
/// what the old one has left goes to its disk before the other's writes do.
#[test]
fn roles_change_between_members_with_journals() {
    let mut cluster = cluster(2);
    create(&cluster, &dir_of(&cluster[0]));
    let dir = dir_of(&cluster[1]).display().to_string();
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--journal", &dir, "--journal-size", "16M"]);
    for node in cluster.nodes() {
        node.wait_resource("r0", SOON, "both know each other", |r| r.peers.len() == 1);
        node.wait_synced("r0", SYNC);
    }
    let mut ledger = Ledger::new(seed(), 2048);
    for round in 0..4 {
        let (primary, other) = (round % 2, 1 - round % 2);
        let uri = cluster[primary].uri("r0");
        let writer = Writer::start(&uri, ledger, WriterOptions::default());
        writer.wait_acknowledged(700);
        if round == 3 {
            // A failover instead of a handover.
            cluster[primary].kill9();
            ledger = writer.join().0;
            wait_gone(&cluster[other], cluster[primary].name());
            cluster[other].ok(&["primary", "r0", "--force"]);
            ledger.verify_export(&cluster[other].uri("r0"));
            write_blocks(&cluster[other], "r0", 77, 3000..3050);
            cluster[primary].start();
            cluster[other].wait_synced("r0", SYNC);
            cluster[other].ok(&["secondary", "r0"]);
        } else {
            ledger = writer.stop_well();
            cluster[primary].ok(&["secondary", "r0"]);
            cluster[other].ok(&["primary", "r0"]);
            ledger.verify_export(&cluster[other].uri("r0"));
        }
    }
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    ledger.verify_file(&cluster[0].disk("r0"));
}

/// The disk and the journal on a real filesystem, where frames go around the page cache.
#[test]
fn it_works_on_a_real_disk() {
    let scratch = Scratch::on_disk();
    let dir = scratch.path().to_owned();
    let mut cluster = Cluster::with(&crate::binary(), 1, ClusterOptions::default());
    let (disk, log) = (dir.join("d").display().to_string(), dir.join("j").display().to_string());
    let line = [
        "create",
        "r0",
        "--disk",
        &disk,
        "--size",
        "32M",
        "--journal",
        &log,
        "--journal-size",
        "16M",
    ];
    cluster[0].ok(&line);
    let mut ledger = Ledger::new(seed(), BLOCKS);
    for flush_every in [1, 0] {
        let options = WriterOptions { connections: 4, flush_every, ..WriterOptions::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        writer.wait_acknowledged(3000);
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        wait_primary(&cluster[0]);
        ledger.verify_export(&cluster[0].uri("r0"));
    }
    cluster[0].ok(&["secondary", "r0"]);
    ledger.verify_file(Path::new(&disk));
}
