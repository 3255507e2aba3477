//! The room of journals: warnings before it is gone, what happens then, and changing it.

use crate::{MIB, SOON, SYNC};
use holdfast_api::status::JournalStatus;
use holdfast_testkit::{Cluster, ClusterOptions, Node, files, wait_until};
use std::time::Instant;

const SIZE: u64 = 128 * MIB;
/// Large pieces: then what the journal takes for them is about as much.
const PIECE: u64 = 128 << 10;

fn journal_of(node: &Node, name: &str, size: &str) -> [String; 4] {
    let dir = node.dir().join(format!("{name}.journal")).display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), size.to_owned()]
}

fn create(cluster: &Cluster, name: &str, size: &str) {
    let journal = journal_of(&cluster[0], name, size);
    cluster.create(name, SIZE, &journal.each_ref().map(String::as_str));
}

/// r0 on the first node, followed by the second one, which is then away.
fn followed(cluster: &mut Cluster, size: &str) {
    create(cluster, "r0", size);
    let journal = journal_of(&cluster[1], "r0", size);
    let journal = journal.each_ref().map(String::as_str);
    cluster.join_resource(
        &cluster[1],
        "r0",
        SIZE,
        &[&["--protocol", "log"], &journal[..]].concat(),
    );
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "50"]);
    cluster[1].kill9();
}

fn journal(node: &Node, name: &str) -> JournalStatus {
    node.resource(name).journal.expect("it has a journal")
}

fn problems(node: &Node) -> Vec<String> {
    node.status().cluster.map(|cluster| cluster.problems).unwrap_or_default()
}

/// Writes these MiB.
fn write(node: &Node, name: &str, seed: u8, mib: std::ops::Range<u64>) {
    let mut client = node.open(name);
    for at in mib.start * MIB / PIECE..mib.end * MIB / PIECE {
        let fill = seed.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0]);
        let content: Vec<u8> = (0..PIECE).map(|byte| fill ^ byte.to_le_bytes()[1]).collect();
        client.write_at(&content, at * PIECE).expect("the Primary takes writes");
    }
    client.flush().expect("the Primary can flush");
}

#[test]
fn warnings_come_before_the_journal_is_full_and_the_primary_goes_on_when_it_is() {
    let mut cluster = crate::cluster(2);
    followed(&mut cluster, "64M");
    let node = &cluster[0];
    let budget = journal(node, "r0").budget_bytes;
    assert!((40 * MIB..64 * MIB).contains(&budget), "{budget}");
    write(node, "r0", 1, 0..budget / MIB * 7 / 10);
    assert_eq!((journal(node, "r0").warning_percent, problems(node)), (0, Vec::new()));
    write(node, "r0", 2, 0..budget / MIB * 13 / 100);
    wait_until(SOON, "the first warning", || journal(node, "r0").warning_percent == 80);
    wait_until(SOON, "it is a problem", || {
        let found = problems(node);
        found.iter().any(|text| text.contains("r0: more than 80 % of its journal is needed"))
    });
    node.wait_log("more than 80 % of its journal is needed");
    assert_eq!(node.metric("holdfast_journal_warning_ratio", &["resource=\"r0\""]), Some(0.8));
    assert!(node.metric("holdfast_problems", &[]).is_some_and(|count| count >= 1.0));
    write(node, "r0", 3, 0..budget / MIB * 10 / 100);
    wait_until(SOON, "the second warning", || journal(node, "r0").warning_percent == 90);
    assert_eq!(journal(node, "r0").cuts, 0);
    // More than there is room for: the Primary goes on, and the follower needs its bits.
    write(node, "r0", 4, 0..80);
    wait_until(SOON, "it was cut", || {
        let journal = journal(node, "r0");
        journal.cuts > 0 && journal.emergency && journal.bytes <= 64 * MIB
    });
    node.wait_peer("r0", "beta", SOON, "it needs its bits", |peer| peer.replication == "Emergency");
    assert!(node.metric("holdfast_journal_cuts_total", &[]).is_some_and(|cuts| cuts > 0.0));
    // Back by itself.
    cluster[1].start();
    let node = &cluster[0];
    node.wait_resource("r0", SYNC, "it has caught up", |r| {
        let journal = r.journal.as_ref().expect("it has one");
        !journal.emergency && journal.warning_percent == 0 && r.peers[0].disk == "UpToDate"
    });
    wait_until(SOON, "nothing is wrong any more", || problems(node).is_empty());
    let journal = journal(node, "r0");
    assert!(journal.syncs > 0 && journal.sync_micros >= journal.longest_sync_micros);
}

#[test]
fn a_journal_grows_and_shrinks_while_it_is_in_use() {
    let mut cluster = crate::cluster(2);
    followed(&mut cluster, "32M");
    cluster[0].refused(&["set", "r0", "journal-size=1M"], 1, "too little");
    cluster[0].ok(&["set", "r0", "journal-size=128M"]);
    wait_until(SOON, "it has more room", || journal(&cluster[0], "r0").limit_bytes == 128 * MIB);
    write(&cluster[0], "r0", 1, 0..90);
    let before = journal(&cluster[0], "r0");
    assert!(before.cuts == 0 && before.bytes > 90 * MIB, "{before:?}");
    // Kept over a restart, with all that is in it.
    cluster[0].kill9();
    cluster[0].start();
    wait_until(SOON, "it is Primary again", || cluster[0].resource("r0").role == "Primary");
    let after = journal(&cluster[0], "r0");
    assert_eq!((after.limit_bytes, after.tail), (128 * MIB, before.tail));
    write(&cluster[0], "r0", 2, 90..91);
    // Smaller: what is too much is given up, and noted.
    cluster[0].ok(&["set", "r0", "journal-size=32M"]);
    wait_until(SOON, "it takes less", || {
        let journal = journal(&cluster[0], "r0");
        journal.limit_bytes == 32 * MIB && journal.bytes <= 32 * MIB && journal.cuts > 0
    });
    cluster[1].start();
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "50"]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].wait_resource("r0", SYNC, "it has everything", |r| r.disk.state == "UpToDate");
    cluster[0].wait_resource("r0", SYNC, "all is on the disk", |r| {
        r.journal.as_ref().is_none_or(|journal| journal.dirty_bytes == 0)
    });
    files::assert_equal(&cluster[0].disk("r0"), &cluster[1].disk("r0"), SIZE);
}

#[test]
fn large_writes_are_slowed_down_before_the_journal_is_cut_and_small_ones_and_reads_are_not() {
    let mut cluster = crate::cluster(2);
    followed(&mut cluster, "64M");
    let node = &cluster[0];
    for bad in ["100", "abc", "-1"] {
        node.refused(&["set", "r0", &format!("journal-throttle={bad}")], 1, "journal-throttle");
    }
    node.ok(&["set", "r0", "journal-throttle=30"]);
    write(node, "r0", 1, 0..4);
    assert_eq!(journal(node, "r0").slowed_writes, 0);
    write(node, "r0", 1, 4..24);
    let mut client = node.open("r0");
    let mut time = |len: u64, count: u64| {
        let content = vec![7; usize::try_from(len).expect("it is small")];
        let begun = Instant::now();
        for at in 0..count {
            client.write_at(&content, at * len).expect("the Primary takes writes");
            let mut found = vec![0; 4096];
            client.read_at(&mut found, at * len).expect("the Primary can be read");
        }
        begun.elapsed()
    };
    wait_until(SOON, "they are slowed down", || {
        time(PIECE, 1);
        journal(node, "r0").slowed_writes > 0
    });
    // This machine may stand still at any moment, so the quickest of some counts.
    let mut quickest = |len| (0..3).map(|_| time(len, 10)).min().expect("there are three");
    let large = quickest(PIECE);
    assert!((800..3000).contains(&large.as_millis()), "{large:?}");
    let slowed = journal(node, "r0").slowed_writes;
    let small = quickest(4096);
    assert!(small.as_millis() < 700, "{small:?}");
    assert_eq!(journal(node, "r0").slowed_writes, slowed, "small ones are not slowed down");
    // The place in the journal for which they are slowed down is lost: that is of no use any more.
    let content = vec![7; 32 << 10];
    for at in 0..(80 * MIB) >> 15 {
        client.write_at(&content, at << 15).expect("the Primary takes writes");
    }
    drop(client);
    let full_speed = |node: &Node| {
        wait_until(SOON, "writes are not slowed down any more", || {
            let before = journal(node, "r0").slowed_writes;
            write(node, "r0", 3, 0..4);
            journal(node, "r0").slowed_writes == before
        });
    };
    wait_until(SOON, "it was cut", || journal(node, "r0").emergency);
    full_speed(node);
    let full = journal(node, "r0");
    assert!(full.needed_bytes * 100 > full.budget_bytes * 30, "{full:?}");
    // Nor are they with the follower back.
    cluster[1].start();
    let node = &cluster[0];
    node.wait_resource("r0", SYNC, "it has caught up", |r| {
        r.peers[0].disk == "UpToDate"
            && r.journal.as_ref().is_some_and(|j| j.needed_bytes * 100 < j.budget_bytes * 30)
    });
    // What is needed is known a moment later to whoever slows writes down.
    full_speed(node);
}

#[test]
fn a_node_has_one_budget_for_all_its_journals() {
    let arguments = ["--journal-budget", "64M"];
    let options = ClusterOptions { arguments: &arguments, ..ClusterOptions::default() };
    let mut cluster = Cluster::with(&crate::binary(), 2, options);
    followed(&mut cluster, "64M");
    let node = &cluster[0];
    assert_eq!(journal(node, "r0").limit_bytes, 64 * MIB);
    create(&cluster, "r1", "64M");
    for name in ["r0", "r1"] {
        wait_until(SOON, "they share it", || journal(node, name).limit_bytes == 32 * MIB);
    }
    write(node, "r1", 1, 0..60);
    write(node, "r0", 1, 0..60);
    wait_until(SOON, "both keep their part", || {
        ["r0", "r1"].iter().all(|name| journal(node, name).bytes <= 32 * MIB)
    });
    node.ok(&["secondary", "r1"]);
    node.ok(&["delete", "r1"]);
    wait_until(SOON, "the room is free again", || journal(node, "r0").limit_bytes == 64 * MIB);
    let output = holdfast_testkit::run(std::process::Command::new(crate::binary()).args([
        "daemon",
        "--journal-budget",
        "1M",
    ]));
    assert_eq!(output.status, 1, "{output}");
    assert!(output.stderr.contains("journal-budget cannot be used"), "{output}");
}
