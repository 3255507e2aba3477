//! Journals that store what is written compressed.

use crate::{MIB, SOON, SYNC, check_blocks, write_blocks};
use holdfast_api::status::JournalStatus;
use holdfast_testkit::{Cluster, Node, files, wait_until};

const SIZE: u64 = 32 * MIB;

fn journal_of(node: &Node) -> [String; 4] {
    let dir = node.dir().join("r0.journal").display().to_string();
    ["--journal".to_owned(), dir, "--journal-size".to_owned(), "64M".to_owned()]
}

fn journal(node: &Node) -> JournalStatus {
    node.resource("r0").journal.expect("it has a journal")
}

/// r0 on three nodes: the first one, one that streams, and one that follows by the log.
fn three() -> Cluster {
    let cluster = crate::cluster(3);
    let of = |node: &Node| journal_of(node);
    let first = of(&cluster[0]);
    cluster.create("r0", SIZE, &first.each_ref().map(String::as_str));
    for (node, protocol) in [(1, "C"), (2, "log")] {
        let journal = of(&cluster[node]);
        let journal = journal.each_ref().map(String::as_str);
        let more = [&["--protocol", protocol], &journal[..]].concat();
        cluster.join_resource(&cluster[node], "r0", SIZE, &more);
        cluster[node].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "50"]);
    }
    cluster
}

/// What a database writes: half of each page is the same as in many others.
fn write(node: &Node, seed: u8, mib: std::ops::Range<u64>) {
    let mut client = node.open("r0");
    for piece in mib.start * 16..mib.end * 16 {
        let mark = piece.to_le_bytes();
        let content: Vec<u8> = (0..64 << 10_u32)
            .map(|byte| match byte % 64 {
                at @ 0..8 => mark[at as usize] ^ seed,
                at => seed.wrapping_add(at as u8),
            })
            .collect();
        client.write_at(&content, piece << 16).expect("the Primary takes writes");
    }
    client.flush().expect("the Primary can flush");
}

#[test]
fn a_compressed_journal_is_shorter_and_loses_nothing() {
    let mut cluster = three();
    cluster[0].refused(&["set", "r0", "journal-compression=gzip"], 1, "journal-compression");
    write(&cluster[0], 1, 0..4);
    let before = journal(&cluster[0]);
    assert_eq!((&*before.compression, before.payload_bytes), ("none", before.stored_bytes));
    for (round, kind) in [(2, "lz4"), (3, "zstd")] {
        cluster[0].ok(&["set", "r0", &format!("journal-compression={kind}")]);
        wait_until(SOON, "the journal knows", || journal(&cluster[0]).compression == kind);
        let before = journal(&cluster[0]);
        write(&cluster[0], round, 0..24);
        let after = journal(&cluster[0]);
        let stored = after.stored_bytes - before.stored_bytes;
        let payload = after.payload_bytes - before.payload_bytes;
        assert!(payload == 24 * MIB && stored < payload / 4, "{kind}: {stored} of {payload}");
        assert!(after.head - before.head < payload / 3, "{after:?}");
        assert!(cluster[0].ok(&["status", "r0"]).contains(kind));
    }
    let stored = cluster[0].metric("holdfast_journal_stored_bytes_total", &["resource=\"r0\""]);
    assert!(stored.is_some_and(|bytes| bytes > 0.0));
    // What one was away for comes from the journal, and what the daemon left when it was killed.
    cluster[1].kill9();
    write_blocks(&cluster[0], "r0", 77, 0..500);
    cluster[1].start();
    cluster[1].ok(&["wait", "r0", "--for", "uptodate", "--timeout", "50"]);
    write_blocks(&cluster[0], "r0", 78, 200..300);
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_resource("r0", SYNC, "it is back", |r| r.disk.state == "UpToDate");
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 77, (0..200).chain(300..500));
    check_blocks(&cluster[0], "r0", 78, 200..300);
    cluster[0].ok(&["set", "r0", "journal-compression=none"]);
    wait_until(SOON, "the journal knows", || journal(&cluster[0]).compression == "none");
    write(&cluster[0], 9, 20..22);
    cluster[2].ok(&["wait", "r0", "--for", "replayed", "--timeout", "50"]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[2].wait_resource("r0", SYNC, "it has everything", |r| r.disk.state == "UpToDate");
    for node in &cluster.nodes()[..2] {
        // What is in a journal gets to the disk a moment later.
        node.wait_resource("r0", SYNC, "all is on the disk", |status| {
            status.journal.as_ref().is_none_or(|journal| journal.dirty_bytes == 0)
        });
    }
    for node in [1, 2] {
        files::assert_equal(&cluster[0].disk("r0"), &cluster[node].disk("r0"), SIZE);
    }
}

#[test]
fn what_becomes_shorter_is_packed_on_the_way_to_a_log_peer() {
    let cluster = crate::cluster_with_proxies(2);
    for (index, node) in cluster.nodes().iter().enumerate() {
        let journal = journal_of(node);
        let journal = journal.each_ref().map(String::as_str);
        match index {
            0 => cluster.create("r0", SIZE, &journal),
            _ => {
                let more = [&["--protocol", "log"], &journal[..]].concat();
                cluster.join_resource(node, "r0", SIZE, &more);
            }
        }
    }
    // Nothing has ever been written: it has all that there is.
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "50"]);
    let carried = || -> u64 {
        let ways = cluster.nodes().iter().map(|node| node.proxy().forwarded());
        ways.map(|(there, back)| there + back).sum()
    };
    let before = carried();
    let mut client = cluster[0].open("r0");
    for at in 0..16 {
        client.write_at(&vec![7; 1 << 20], at * MIB).expect("it takes writes");
    }
    client.flush().expect("it can flush");
    drop(client);
    cluster[1].ok(&["wait", "r0", "--for", "replayed", "--timeout", "50"]);
    wait_until(SOON, "all of it is there", || {
        files::read(&cluster[1].disk("r0"), 15 * MIB, 4096) == vec![7; 4096]
    });
    let carried = carried() - before;
    assert!(carried < 4 * MIB, "{carried} bytes for 16 MiB of one byte");
}
