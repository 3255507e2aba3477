//! Disks with blocks that cannot be read. The numbers are those of the list for disks that wear out.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{Bad, BadDisk, Cluster, block_content, devices_unavailable, files};

const SIZE: u64 = 16 * MIB;

/// `count` members of `r0`, each on a disk of its own that can be bad, with data in blocks 0..1024.
fn on_bad_disks(count: usize, journal: bool) -> Option<(Cluster, Vec<BadDisk>)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return None;
    }
    let cluster = cluster(count);
    let disk = |i: usize| BadDisk::new(cluster.scratch(), &format!("bad{i}"), SIZE);
    let disks: Vec<BadDisk> = (0..count).map(disk).collect();
    for (i, (node, disk)) in cluster.nodes().iter().zip(&disks).enumerate() {
        let (verb, disk) = (if i == 0 { "create" } else { "join" }, disk.text());
        let directory = node.dir().join("r0.journal").display().to_string();
        let more: &[&str] =
            if journal { &["--journal", &directory, "--journal-size", "16M"] } else { &[] };
        node.ok(&[&[verb, "r0", "--disk", &disk], more].concat());
    }
    cluster.wait_members("r0", count, SYNC);
    write_blocks(&cluster[0], "r0", 1, 0..1024);
    Some((cluster, disks))
}

fn content(blocks: std::ops::Range<u64>) -> Vec<u8> {
    blocks.flat_map(|block| block_content(1, 1, block)).collect()
}

/// Waits until nothing is left to heal; how many blocks were.
fn healed(cluster: &Cluster, index: usize, blocks: u64) {
    cluster[index].wait_resource("r0", SOON, "its blocks are healed", |status| {
        status.disk.healed_blocks == blocks && status.disk.unreadable_blocks == 0
    });
}

#[test]
fn rows_011_012_015_016_017_075_bad_blocks_are_healed_from_the_peer_in_place() {
    let Some((cluster, disks)) = on_bad_disks(2, false) else { return };
    // One in the middle of a long read, a burst, and the last one.
    let bad: Vec<u64> = std::iter::once(75).chain(300..420).chain([1023]).collect();
    disks[0].set_bad(Bad::Unreadable, bad.iter().copied());
    for block in &bad {
        disks[0].poke(block * BLOCK, &[0xEE; 4096]);
    }
    let mut client = cluster[0].open("r0");
    for first in (0..1024).step_by(256) {
        let mut found = vec![0; usize::try_from(256 * BLOCK).unwrap()];
        client.read_at(&mut found, first * BLOCK).expect("no error reaches a client");
        assert!(found == content(first..first + 256), "blocks from {first}");
    }
    healed(&cluster, 0, bad.len() as u64);
    assert!(disks[0].bad_blocks().is_empty(), "they were stored in place");
    assert_eq!(disks[0].peek(0, 4 << 20), content(0..1024), "and so are their neighbours");
    let status = cluster[0].resource("r0");
    assert_eq!(status.disk.state, "UpToDate");
    assert!(status.disk.io_errors >= bad.len() as u64);
    let metrics = cluster[0].get("/metrics").expect("there are metrics");
    let line = format!("holdfast_disk_healed_blocks_total{{resource=\"r0\"}} {}", bad.len());
    assert!(metrics.contains(&line), "{metrics}");
}

#[test]
fn row_014_what_nobody_has_fails_alone_until_it_is_written() {
    let Some((mut cluster, disks)) = on_bad_disks(1, false) else { return };
    disks[0].set_bad(Bad::Unreadable, [40, 41]);
    let mut client = cluster[0].open("r0");
    let mut block = vec![0; 4096];
    for _ in 0..2 {
        assert!(client.read_at(&mut block, 40 * BLOCK).is_err());
    }
    client.read_at(&mut block, 39 * BLOCK).expect("its neighbour can be read");
    let mut many = vec![0; 64 << 10];
    assert!(client.read_at(&mut many, 32 * BLOCK).is_err(), "a request that touches them fails");
    drop(client);
    let disk = cluster[0]
        .wait_resource("r0", SOON, "both are listed", |status| status.disk.unreadable_blocks == 2);
    let listed: Vec<(u64, u64)> =
        disk.disk.unreadable.iter().map(|range| (range.offset, range.length)).collect();
    assert_eq!((disk.disk.state.as_str(), listed), ("UpToDate", vec![(40 * BLOCK, 2 * BLOCK)]));
    // It is not forgotten, but tried again.
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].ok(&["primary", "r0"]);
    assert_eq!(cluster[0].resource("r0").disk.unreadable_blocks, 2);
    let mut client = cluster[0].open("r0");
    assert!(client.read_at(&mut block, 41 * BLOCK).is_err());
    client.write_at(&[7; 8192], 40 * BLOCK).expect("it can be written");
    client.read_at(&mut block, 41 * BLOCK).expect("and read");
    assert_eq!(block, [7; 4096]);
    drop(client);
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "none is listed any more", |status| {
        status.disk.unreadable_blocks == 0
    });
}

/// A disk alone, of which two blocks could not be read, and can now.
fn could_not_be_read(more: &[&str]) -> Option<(Cluster, BadDisk)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return None;
    }
    let cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "bad0", SIZE);
    cluster[0].ok(&[&["create", "r0", "--disk", &disk.text()], more].concat());
    write_blocks(&cluster[0], "r0", 1, 0..1024);
    disk.set_bad(Bad::Unreadable, [40, 41]);
    let mut client = cluster[0].open("r0");
    for block in [40, 41] {
        assert!(client.read_at(&mut [0; 4096], block * BLOCK).is_err());
    }
    drop(client);
    listed(&cluster, 2);
    disk.heal_all();
    Some((cluster, disk))
}

fn listed(cluster: &Cluster, blocks: u64) {
    cluster[0].wait_resource("r0", SOON, "as many are listed", |status| {
        status.disk.unreadable_blocks == blocks
    });
}

#[test]
fn a_block_that_could_not_be_read_is_had_as_soon_as_it_can_be() {
    let Some((mut cluster, disk)) = could_not_be_read(&[]) else { return };
    check_blocks(&cluster[0], "r0", 1, 40..41);
    listed(&cluster, 1);
    check_blocks(&cluster[0], "r0", 1, 0..1024);
    listed(&cluster, 0);
    // By a scrub, and by a start.
    for by_scrub in [true, false] {
        disk.set_bad(Bad::Unreadable, [7]);
        assert!(cluster[0].open("r0").read_at(&mut [0; 4096], 7 * BLOCK).is_err());
        listed(&cluster, 1);
        disk.heal_all();
        if by_scrub {
            cluster[0].ok(&["scrub", "r0", "--wait"]);
        } else {
            cluster[0].kill9();
            cluster[0].start();
        }
        listed(&cluster, 0);
    }
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 1, 0..1024);
}

#[test]
fn with_spares_and_checksums_too() {
    let spare = ["--spare-size", "1M", "--checksums"];
    let Some((mut cluster, disk)) = could_not_be_read(&spare) else { return };
    check_blocks(&cluster[0], "r0", 1, 0..1024);
    listed(&cluster, 0);
    assert_eq!(cluster[0].resource("r0").disk.lost_sectors, 0);
    // What cannot be read is in the table, and is had behind a restart, too.
    disk.set_bad(Bad::Unreadable, [7]);
    assert!(cluster[0].open("r0").read_at(&mut [0; 4096], 7 * BLOCK).is_err());
    listed(&cluster, 1);
    cluster[0].kill9();
    disk.heal_all();
    cluster[0].start();
    listed(&cluster, 0);
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 1, 0..1024);
}

#[test]
fn alone_what_the_disk_does_not_take_is_had_from_the_journal_each_time() {
    let Some((mut cluster, disk)) = alone_with_journal(&["--journal-size", "64M"]) else { return };
    spoil(&disk, Bad::Stuck, [9, 10]);
    for _ in 0..3 {
        check_blocks(&cluster[0], "r0", 1, 0..64);
        assert_eq!(cluster[0].resource("r0").disk.unreadable_blocks, 0);
    }
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].ok(&["primary", "r0"]);
    check_blocks(&cluster[0], "r0", 1, 0..64);
    // The journal is given what is new, and nothing else is read for it.
    write_blocks(&cluster[0], "r0", 2, [9]);
    written_back(&cluster);
    check_blocks(&cluster[0], "r0", 2, [9]);
    check_blocks(&cluster[0], "r0", 1, 10..64);
    disk.heal_all();
    check_blocks(&cluster[0], "r0", 2, [9]);
    check_blocks(&cluster[0], "r0", 1, 10..64);
    let status = cluster[0].resource("r0");
    assert_eq!((status.disk.unreadable_blocks, status.disk.state.as_str()), (0, "UpToDate"));
}

#[test]
fn row_013_a_block_that_cannot_be_stored_again_is_read_from_the_peer() {
    let Some((cluster, disks)) = on_bad_disks(2, false) else { return };
    disks[0].set_bad(Bad::Stuck, [9]);
    check_blocks(&cluster[0], "r0", 1, 0..16);
    cluster[0]
        .wait_resource("r0", SOON, "it is listed", |status| status.disk.unreadable_blocks == 1);
    check_blocks(&cluster[0], "r0", 1, 0..16);
    assert_eq!(cluster[0].resource("r0").disk.state, "UpToDate");
}

#[test]
fn row_018_many_readers_over_many_bad_blocks() {
    let Some((cluster, disks)) = on_bad_disks(2, false) else { return };
    disks[0].set_bad(Bad::Unreadable, (0..1000).step_by(2));
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let node = &cluster[0];
            let blocks = (0..1024).map(move |block| (block * 7 + reader) % 1024);
            scope.spawn(move || check_blocks(node, "r0", 1, blocks));
        }
    });
    // A read that had begun before a block was healed may find it bad, and has it healed once more.
    cluster[0].wait_resource("r0", SOON, "its blocks are healed", |status| {
        status.disk.healed_blocks >= 500 && status.disk.unreadable_blocks == 0
    });
    assert!(disks[0].bad_blocks().is_empty());
}

#[test]
fn row_069_a_disk_that_is_gone_has_no_bad_blocks() {
    let Some((cluster, disks)) = on_bad_disks(2, false) else { return };
    disks[0].fail_all(true);
    check_blocks(&cluster[0], "r0", 1, 0..64);
    let status = cluster[0]
        .wait_resource("r0", SOON, "its disk has failed", |status| status.disk.state == "Failed");
    assert_eq!((status.disk.unreadable_blocks, status.disk.healed_blocks), (0, 0));
}

#[test]
fn row_072_a_rebuild_over_a_bad_block_ends_and_lists_it() {
    let Some((mut cluster, disks)) = on_bad_disks(2, false) else { return };
    cluster[1].stop();
    write_blocks(&cluster[0], "r0", 2, 100..200);
    disks[0].set_bad(Bad::Unreadable, [150]);
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    for index in 0..2 {
        let status = cluster[index].wait_resource("r0", SOON, "the block is listed", |status| {
            status.disk.unreadable_blocks == 1
        });
        assert_eq!(status.disk.unreadable[0].offset, 150 * BLOCK);
    }
    // What the other one had there is old: nobody gets to see it.
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0"]);
    let mut client = cluster[1].open("r0");
    assert!(client.read_at(&mut [0; 4096], 150 * BLOCK).is_err());
    drop(client);
    check_blocks(&cluster[1], "r0", 2, (100..150).chain(151..200));
    write_blocks(&cluster[1], "r0", 3, [150]);
    for index in 0..2 {
        cluster[index].wait_resource("r0", SOON, "it is written", |status| {
            status.disk.unreadable_blocks == 0
        });
    }
    check_blocks(&cluster[1], "r0", 3, [150]);
}

#[test]
fn a_rebuild_takes_a_bad_block_from_a_third_member() {
    let Some((mut cluster, disks)) = on_bad_disks(3, false) else { return };
    cluster[1].stop();
    write_blocks(&cluster[0], "r0", 2, 100..200);
    disks[0].set_bad(Bad::Unreadable, [150, 151]);
    cluster[1].start();
    cluster[0].wait_synced("r0", SYNC);
    healed(&cluster, 0, 2);
    assert_eq!(cluster[1].resource("r0").disk.unreadable_blocks, 0);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, 100..200);
}

#[test]
fn behind_a_journal_bad_blocks_are_healed_too() {
    let Some((cluster, disks)) = on_bad_disks(2, true) else { return };
    cluster[0].wait_resource("r0", SOON, "all is written back", |status| {
        status.journal.as_ref().is_some_and(|journal| journal.dirty_bytes == 0)
    });
    disks[0].set_bad(Bad::Unreadable, 10..20);
    write_blocks(&cluster[0], "r0", 2, [12]);
    check_blocks(&cluster[0], "r0", 1, (0..12).chain(13..32));
    check_blocks(&cluster[0], "r0", 2, [12]);
    cluster[0].wait_resource("r0", SOON, "all is written back", |status| {
        let journal = status.journal.as_ref();
        journal.is_some_and(|journal| journal.dirty_bytes == 0) && status.disk.healed_blocks >= 9
    });
    assert!(disks[0].bad_blocks().is_empty());
    check_blocks(&cluster[0], "r0", 1, (0..12).chain(13..32));
    check_blocks(&cluster[0], "r0", 2, [12]);
}

/// A resource of one member with a journal, with data in blocks 0..1024, all of which are written back.
fn alone_with_journal(more: &[&str]) -> Option<(Cluster, BadDisk)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return None;
    }
    let cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "bad0", SIZE);
    let directory = cluster[0].dir().join("r0.journal").display().to_string();
    let create = ["create", "r0", "--disk", &disk.text(), "--journal", &directory];
    cluster[0].ok(&[&create, more].concat());
    write_blocks(&cluster[0], "r0", 1, 0..1024);
    written_back(&cluster);
    Some((cluster, disk))
}

fn written_back(cluster: &Cluster) {
    cluster[0].wait_resource("r0", SOON, "all is written back", |status| {
        status.journal.as_ref().is_some_and(|journal| journal.dirty_bytes == 0)
    });
}

/// Blocks that nobody can read, with something else in them.
fn spoil(disk: &BadDisk, bad: Bad, blocks: impl IntoIterator<Item = u64> + Clone) {
    disk.set_bad(bad, blocks.clone());
    for block in blocks {
        disk.poke(block * BLOCK, &[0xEE; 4096]);
    }
}

#[test]
fn row_011_alone_bad_blocks_are_healed_from_the_records_of_the_journal() {
    let Some((mut cluster, disk)) = alone_with_journal(&["--journal-size", "64M"]) else { return };
    // Written twice, as zeroes, and by halves of a longer request.
    write_blocks(&cluster[0], "r0", 2, 100..140);
    let mut client = cluster[0].open("r0");
    client.write_at(&[0; 8 * 4096], 200 * BLOCK).expect("the Primary takes writes");
    client.flush().expect("the Primary can flush");
    drop(client);
    written_back(&cluster);
    let check = |cluster: &Cluster| {
        check_blocks(&cluster[0], "r0", 1, (0..100).chain(140..200).chain(208..1024));
        check_blocks(&cluster[0], "r0", 2, 100..140);
        let mut zeroes = vec![1; 8 * 4096];
        let read = cluster[0].open("r0").read_at(&mut zeroes, 200 * BLOCK);
        read.expect("no error reaches a client");
        assert!(zeroes.iter().all(|byte| *byte == 0));
    };
    let bad: Vec<u64> = (90..110).chain(198..210).chain([500, 1023]).collect();
    spoil(&disk, Bad::Unreadable, bad.iter().copied());
    check(&cluster);
    healed(&cluster, 0, bad.len() as u64);
    assert!(disk.bad_blocks().is_empty(), "they were stored in place");
    assert_eq!(disk.peek(0, 100 * 4096), content(0..100), "and hold what they held");
    // A node that was killed, and a Secondary that only checks its disk.
    spoil(&disk, Bad::Unreadable, bad.iter().copied());
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["scrub", "r0", "--wait"]);
    healed(&cluster, 0, bad.len() as u64);
    assert!(disk.bad_blocks().is_empty());
    cluster[0].ok(&["primary", "r0"]);
    // That changed nothing that the records say.
    spoil(&disk, Bad::Unreadable, bad.iter().copied());
    check(&cluster);
    healed(&cluster, 0, 2 * bad.len() as u64);
    assert_eq!(cluster[0].resource("r0").disk.state, "UpToDate");
    // What a block gets later counts, whatever the journal has of before.
    write_blocks(&cluster[0], "r0", 3, [500]);
    written_back(&cluster);
    spoil(&disk, Bad::Unreadable, [500]);
    check_blocks(&cluster[0], "r0", 3, [500]);
}

#[test]
fn row_014_alone_what_the_journal_has_given_up_fails_alone() {
    let Some((cluster, disk)) = alone_with_journal(&["--journal-size", "16M"]) else { return };
    // The records of the first blocks go with their segments.
    for seed in 2..6 {
        write_blocks(&cluster[0], "r0", seed, 512..1024);
        written_back(&cluster);
        write_blocks(&cluster[0], "r0", seed, 2048..3072);
        written_back(&cluster);
    }
    spoil(&disk, Bad::Unreadable, [7, 8, 3071]);
    let mut client = cluster[0].open("r0");
    let mut block = vec![0; 4096];
    for bad in [7, 8] {
        assert!(client.read_at(&mut block, bad * BLOCK).is_err(), "nobody has block {bad}");
    }
    drop(client);
    check_blocks(&cluster[0], "r0", 1, (0..7).chain(9..512));
    check_blocks(&cluster[0], "r0", 5, 2048..3072);
    let status = cluster[0].wait_resource("r0", SOON, "both are listed", |status| {
        status.disk.unreadable_blocks == 2 && status.disk.healed_blocks == 1
    });
    let listed: Vec<(u64, u64)> =
        status.disk.unreadable.iter().map(|range| (range.offset, range.length)).collect();
    assert_eq!((status.disk.state.as_str(), listed), ("UpToDate", vec![(7 * BLOCK, 2 * BLOCK)]));
}

#[test]
fn row_013_alone_what_cannot_be_stored_in_place_goes_from_the_journal_to_the_spare() {
    if let Some(why) = devices_unavailable() {
        eprintln!("skipped: {why}");
        return;
    }
    let cluster = cluster(1);
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, MIB);
    let spare = spare.display().to_string();
    let disk = BadDisk::new(cluster.scratch(), "bad0", SIZE);
    let directory = cluster[0].dir().join("r0.journal").display().to_string();
    let create = ["create", "r0", "--disk", &disk.text(), "--journal", &directory];
    cluster[0].ok(&[&create[..], &["--spare", &spare]].concat());
    write_blocks(&cluster[0], "r0", 1, 0..64);
    written_back(&cluster);
    spoil(&disk, Bad::Unreadable, [5]);
    spoil(&disk, Bad::Stuck, [9]);
    spoil(&disk, Bad::Dead, [12]);
    check_blocks(&cluster[0], "r0", 1, 0..64);
    let status = cluster[0].wait_resource("r0", SOON, "they are healed", |status| {
        (status.disk.healed_blocks, status.disk.remapped_sectors) == (3, 2)
    });
    assert_eq!(status.disk.unreadable_blocks, 0);
    assert_eq!(disk.bad_blocks(), [9, 12], "one was stored in place");
    check_blocks(&cluster[0], "r0", 1, 0..64);
}
