//! The data of a node move to another disk while they are written to.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{
    Bad, BadDisk, Cluster, Ledger, Mount, Node, Scratch, Writer, WriterOptions, block_content,
    files, wait_until,
};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SIZE: u64 = 48 * MIB;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A new disk that holds something else, so that nothing is equal by chance.
fn new_disk(cluster: &Cluster, size: u64) -> PathBuf {
    let path = cluster.scratch().join("new");
    files::make_random(&path, size, 99);
    path
}

fn writer(node: &Node) -> Writer {
    let blocks = usize::try_from(SIZE / BLOCK / 2).expect("it is small");
    let options = WriterOptions { connections: 2, flush_every: 50, ..WriterOptions::default() };
    Writer::start(&node.uri("r0"), Ledger::spread(5, blocks, 2), options)
}

fn replacing(node: &Node) -> Option<holdfast_api::status::DiskReplacing> {
    node.resource("r0").disk.replacing
}

fn path_of(node: &Node) -> String {
    node.resource("r0").disk.path.unwrap_or_default()
}

/// Fills the odd blocks, which the writer leaves alone.
fn fill(node: &Node) {
    write_blocks(node, "r0", 7, (1..SIZE / BLOCK).step_by(2));
}

fn check_filled(node: &Node) {
    check_blocks(node, "r0", 7, (1..SIZE / BLOCK).step_by(97).map(|block| block | 1));
}

/// The old disk gets nothing any more: it is made useless, and nobody notices.
fn spoil(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).expect("it is there");
    for at in (0..SIZE).step_by(1 << 20) {
        file.write_all_at(&vec![0xee; 1 << 20], at).expect("it can be written");
    }
}

#[test]
fn the_disk_of_a_primary_is_replaced_while_it_is_written_to() {
    let mut cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    fill(&cluster[0]);
    let (old, new) = (cluster[0].disk("r0"), new_disk(&cluster, SIZE));
    let writer = writer(&cluster[0]);
    writer.wait_acknowledged(200);
    let said = cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    assert!(said.contains(&format!("is {} now", text(&new))), "{said}");
    writer.wait_acknowledged(writer.acknowledged() + 200);
    spoil(&old);
    let mut ledger = writer.stop_well();
    assert_eq!(path_of(&cluster[0]), text(&new));
    assert_eq!(replacing(&cluster[0]), None);
    ledger.verify_export(&cluster[0].uri("r0"));
    check_filled(&cluster[0]);
    let status = cluster[0].wait_synced("r0", SYNC);
    assert_eq!(status.disk.state, "UpToDate");
    files::assert_equal(&new, &cluster[1].disk("r0"), SIZE);
    // The new one is the disk also after a restart.
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
    assert_eq!(path_of(&cluster[0]), text(&new));
    ledger.verify_export(&cluster[0].uri("r0"));
    let events = cluster[0].log();
    assert!(events.contains("the disk was replaced"), "it is told");
}

#[test]
fn the_disk_of_a_secondary_is_replaced_without_a_resync() {
    let cluster = cluster(2);
    cluster.resource("r0", SIZE, 2);
    fill(&cluster[0]);
    let new = new_disk(&cluster, SIZE + 12_288);
    let writer = writer(&cluster[0]);
    let before = cluster[1].resource("r0").peers[0].resync_received_bytes;
    cluster[1].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    writer.wait_acknowledged(writer.acknowledged() + 100);
    let mut ledger = writer.stop_well();
    ledger.verify_export(&cluster[0].uri("r0"));
    let status = cluster[1].wait_synced("r0", SYNC);
    assert_eq!(status.peers[0].resync_received_bytes, before);
    files::assert_equal(&new, &cluster[0].disk("r0"), SIZE);
}

#[test]
fn the_disk_below_a_journal_is_replaced_while_it_is_written_to() {
    let mut cluster = cluster(1);
    let journal = text(&cluster.scratch().join("journal"));
    cluster.create("r0", SIZE, &["--journal", &journal, "--journal-size", "64M"]);
    fill(&cluster[0]);
    let (old, new) = (cluster[0].disk("r0"), new_disk(&cluster, SIZE));
    let writer = writer(&cluster[0]);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    writer.wait_acknowledged(writer.acknowledged() + 200);
    let mut ledger = writer.stop_well();
    spoil(&old);
    cluster[0].restart();
    cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
    ledger.verify_export(&cluster[0].uri("r0"));
    check_filled(&cluster[0]);
}

#[test]
fn killed_at_any_moment_there_is_one_disk_that_has_everything() {
    let mut cluster = cluster(1);
    // In memory, a block may be torn when its writer is killed.
    let scratch = Scratch::on_disk();
    let mut disk = scratch.join("old");
    files::make_sparse(&disk, SIZE);
    cluster[0].ok(&["create", "r0", "--disk", &text(&disk)]);
    fill(&cluster[0]);
    let blocks = usize::try_from(SIZE / BLOCK / 2).expect("it is small");
    let mut ledger = Ledger::spread(5, blocks, 2);
    let moments = [0.0, 20.0, 60.0, 99.0, 100.0, 100.0, 100.0, 100.0];
    for (round, moment) in moments.into_iter().enumerate() {
        let new = scratch.join(&format!("new{round}"));
        files::make_random(&new, SIZE, 99);
        let options = WriterOptions { connections: 2, ..WriterOptions::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--rate", "100M"]);
        wait_until(SYNC, "the moment", || {
            replacing(&cluster[0]).is_none_or(|replacing| {
                replacing.percent >= moment || replacing.state == "finishing"
            })
        });
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
        ledger.verify_export(&cluster[0].uri("r0"));
        check_filled(&cluster[0]);
        // What was begun goes on.
        cluster[0].wait_resource("r0", SYNC, "the new disk is used", |status| {
            status.disk.path == Some(text(&new)) && status.disk.replacing.is_none()
        });
        spoil(&disk);
        disk = new;
        ledger.verify_export(&cluster[0].uri("r0"));
        check_filled(&cluster[0]);
    }
}

#[test]
fn a_new_disk_that_fails_half_way_changes_nothing() {
    let cluster = cluster(1);
    cluster.create("r0", SIZE, &[]);
    fill(&cluster[0]);
    let mount = Mount::memory(&cluster.scratch().join("small"), 20 * MIB);
    let new = mount.path().join("new");
    files::make_sparse(&new, SIZE);
    let writer = writer(&cluster[0]);
    let path = text(&new);
    cluster[0].refused(&["replace-disk", "r0", "--disk", &path, "--wait"], 1, "no space is left");
    writer.wait_acknowledged(writer.acknowledged() + 100);
    let mut ledger = writer.stop_well();
    let status = cluster[0].resource("r0");
    assert_eq!(status.disk.path, Some(text(&cluster[0].disk("r0"))));
    assert_eq!(status.disk.state, "UpToDate");
    let replacing = status.disk.replacing.expect("it is shown that it failed");
    assert_eq!(replacing.state, "failed");
    ledger.verify_export(&cluster[0].uri("r0"));
    check_filled(&cluster[0]);
    mount.unmount();
    // Another one is taken.
    let new = new_disk(&cluster, SIZE);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    ledger.verify_export(&cluster[0].uri("r0"));
}

#[test]
fn a_move_that_fails_in_its_last_step_is_over() {
    let cluster = cluster(1);
    cluster.create("r0", SIZE, &[]);
    fill(&cluster[0]);
    let (first, meta) = (new_disk(&cluster, SIZE), cluster.scratch().join("other.meta"));
    let (path, place) = (text(&first), text(&meta));
    cluster[0].ok(&["replace-disk", "r0", "--disk", &path, "--meta", &place, "--rate", "8M"]);
    // Something else comes to where its metadata were to go, long before the move gets that far.
    std::fs::write(&meta, [3; 8192]).expect("it can be written");
    cluster[0].wait_resource("r0", SYNC, "the move has failed", |status| {
        status.disk.replacing.as_ref().is_some_and(|replacing| replacing.state == "failed")
    });
    // Another disk is taken at once, and the first one gets nothing any more.
    let second = cluster.scratch().join("second");
    files::make_random(&second, SIZE, 98);
    spoil(&first);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&second), "--wait"]);
    write_blocks(&cluster[0], "r0", 8, [0, 2]);
    assert_eq!(path_of(&cluster[0]), text(&second));
    check_filled(&cluster[0]);
    for block in [0, 1, 2] {
        assert_eq!(files::read(&first, block * BLOCK, 4096), [0xee; 4096], "block {block}");
    }
}

#[test]
fn a_move_can_be_ended_and_what_was_made_for_it_goes() {
    let cluster = cluster(1);
    cluster.create("r0", SIZE, &[]);
    fill(&cluster[0]);
    let new = cluster.scratch().join("made");
    let begin = ["replace-disk", "r0", "--disk", &text(&new), "--rate", "1M"];
    cluster[0].ok(&begin);
    assert!(new.exists());
    let status = replacing(&cluster[0]).expect("it is under way");
    assert_eq!((&*status.state, status.path), ("copying", text(&new)));
    assert_eq!(status.bytes_total, SIZE);
    cluster[0].refused(&begin, 1, "are being moved to");
    cluster[0].refused(&["resize", "r0"], 1, "is being replaced");
    cluster[0].refused(&["detach-disk", "r0", "--force"], 1, "are being moved to");
    let shown = cluster[0].ok(&["status", "r0"]);
    assert!(shown.contains(&format!("disk moves to {}", text(&new))), "{shown}");
    cluster[0].ok(&["replace-disk", "r0", "--stop"]);
    assert!(!new.exists());
    assert_eq!(replacing(&cluster[0]), None);
    assert_eq!(path_of(&cluster[0]), text(&cluster[0].disk("r0")));
    cluster[0].refused(&["replace-disk", "r0", "--stop"], 1, "is not being replaced");
    check_filled(&cluster[0]);
    // What is stopped meanwhile goes on when it is started again.
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--rate", "30M"]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["down", "r0"]);
    cluster[0].ok(&["up", "r0"]);
    cluster[0].wait_resource("r0", SYNC, "the new disk is used", |status| {
        status.disk.path == Some(text(&new)) && status.disk.replacing.is_none()
    });
    cluster[0].ok(&["primary", "r0"]);
    check_filled(&cluster[0]);
}

#[test]
fn disks_that_cannot_be_the_new_one_are_refused() {
    let cluster = cluster(1);
    cluster.create("r0", 8 * MIB, &[]);
    cluster.create("r1", 8 * MIB, &[]);
    let node = &cluster[0];
    let new = cluster.scratch().join("new");
    files::make_sparse(&new, 8 * MIB - 4096);
    let path = text(&new);
    let refused = |arguments: &[&str], words: &str| {
        node.refused(&[&["replace-disk", "r0"], arguments].concat(), 1, words);
    };
    refused(
        &["--disk", &path],
        "it has room for 7.9 MiB (8384512 bytes), the resource needs 8 MiB (8388608 bytes)",
    );
    refused(&["--disk", &text(&node.disk("r0"))], "is its disk already");
    refused(&["--disk", &text(&node.disk("r1"))], "belongs to the resource r1");
    refused(&["--disk", "/dev/nowhere"], "does not exist");
    refused(&["--disk", &text(&node.state_dir().join("x"))], "in the state directory");
    files::make_sparse(&new, 8 * MIB);
    let file = std::fs::File::options().write(true).open(&new).expect("it is there");
    file.write_all_at(&[0x53, 0xef], 1080).expect("it can be written");
    refused(&["--disk", &path], "which would be overwritten");
    node.ok(&["replace-disk", "r0", "--disk", &path, "--force", "--wait"]);
    assert_eq!(path_of(node), path);
    let content = block_content(1, 1, 0);
    let mut client = node.open("r0");
    client.write_at(&content, 0).expect("it can be written");
    client.flush().expect("it can be flushed");
    assert_eq!(files::read(&new, 0, content.len()), content);
}

#[test]
fn metadata_go_along_from_the_end_of_one_disk_to_the_end_of_another() {
    let mut cluster = cluster(2);
    let long = SIZE + 8 * MIB;
    files::make_sparse(&cluster[0].disk("r0"), long);
    let disk = text(&cluster[0].disk("r0"));
    let create = ["create", "r0", "--disk", &disk, "--meta", "internal", "--size", "48M"];
    cluster[0].ok(&create);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[0].wait_synced("r0", SYNC);
    fill(&cluster[0]);
    let new = new_disk(&cluster, long + MIB);
    let mut ledger = Ledger::new(1, 1);
    let beside = text(&cluster.scratch().join("beside.meta"));
    let last = cluster.scratch().join("last");
    files::make_random(&last, SIZE, 3);
    let made = cluster.scratch().join("made");
    let moves: [(&Path, Option<&str>); 3] =
        [(&new, None), (&last, Some(&beside)), (&made, Some("internal"))];
    for (round, (disk, meta)) in moves.into_iter().enumerate() {
        let writer = if round == 0 {
            writer(&cluster[0])
        } else {
            let options = WriterOptions { connections: 2, ..WriterOptions::default() };
            Writer::start(&cluster[0].uri("r0"), ledger, options)
        };
        let path = text(disk);
        let mut arguments = vec!["replace-disk", "r0", "--disk", &path, "--wait"];
        arguments.extend(meta.iter().flat_map(|meta| ["--meta", meta]));
        cluster[0].ok(&arguments);
        writer.wait_acknowledged(writer.acknowledged() + 200);
        // Not stopped in order: what is in the metadata counts.
        cluster[0].kill9();
        ledger = writer.join().0;
        cluster[0].start();
        cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
        ledger.verify_export(&cluster[0].uri("r0"));
        check_filled(&cluster[0]);
        let status = cluster[0].wait_synced("r0", SYNC);
        assert_eq!(status.disk.path, Some(path));
        assert!(!cluster[0].log().contains("damaged"), "the metadata are whole");
        files::assert_equal(disk, &cluster[1].disk("r0"), SIZE);
    }
    // The first disk is nobody's any more.
    let old = text(&cluster[0].disk("r0"));
    cluster[0].refused(&["meta", "check", &old, "--internal"], 1, "");
    assert!(!Path::new(&beside).exists(), "metadata that moved are gone where they were");
}

#[test]
fn what_the_old_disk_cannot_read_holds_the_move_up_until_it_is_written() {
    let cluster = cluster(1);
    let bad = BadDisk::new(cluster.scratch(), "bad", SIZE);
    cluster[0].ok(&["create", "r0", "--disk", &bad.text()]);
    fill(&cluster[0]);
    bad.set_bad(Bad::Unreadable, [33, 34, 700]);
    let new = new_disk(&cluster, SIZE);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new)]);
    cluster[0].wait_resource("r0", SYNC, "three blocks are left over", |status| {
        let replacing = status.disk.replacing.as_ref();
        replacing.is_some_and(|new| new.unreadable_blocks == 3 && new.bytes_done == SIZE)
    });
    let status = cluster[0].resource("r0");
    assert_eq!((&*status.disk.state, status.disk.path), ("UpToDate", Some(bad.text())));
    let problem = replacing(&cluster[0]).and_then(|new| new.problem).expect("it is told");
    assert!(problem.contains("at byte 135168"), "{problem}");
    bad.heal([33, 34, 700]);
    write_blocks(&cluster[0], "r0", 7, [33, 34, 700]);
    cluster[0].wait_resource("r0", SYNC, "the new disk is used", |status| {
        status.disk.path == Some(text(&new)) && status.disk.replacing.is_none()
    });
    check_filled(&cluster[0]);
    check_blocks(&cluster[0], "r0", 7, [33, 34, 35, 700]);
}

#[test]
fn spares_stay_with_the_old_disk_and_are_given_up() {
    let mut cluster = cluster(1);
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, 4 * MIB);
    cluster.create("r0", SIZE, &["--spare", &text(&spare)]);
    fill(&cluster[0]);
    cluster[0].ok(&["badblocks", "add", "r0", "@4096+8192"]);
    assert!(cluster[0].resource("r0").disk.remapped_sectors > 0);
    let new = new_disk(&cluster, SIZE);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    let status = cluster[0].resource("r0");
    assert_eq!((status.disk.remapped_sectors, status.disk.spares.len()), (0, 0));
    check_blocks(&cluster[0], "r0", 7, [1, 3, 5]);
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
    assert_eq!(path_of(&cluster[0]), text(&new));
    check_blocks(&cluster[0], "r0", 7, [1, 3, 5]);
    check_filled(&cluster[0]);
    // It is nobody's any more, so another disk can have it.
    let other = cluster.scratch().join("other");
    files::make_sparse(&other, 8 * MIB);
    cluster[0].ok(&["create", "r1", "--disk", &text(&other), "--spare", &text(&spare)]);
}

#[test]
fn a_resource_can_grow_after_its_disk_with_spares_was_replaced() {
    let mut cluster = cluster(1);
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, 4 * MIB);
    cluster.create("r0", SIZE, &["--spare", &text(&spare)]);
    fill(&cluster[0]);
    let new = new_disk(&cluster, 4 * SIZE);
    cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
    cluster[0].ok(&["resize", "r0"]);
    assert_eq!(cluster[0].resource("r0").size_bytes, 4 * SIZE);
    let added = || (SIZE / BLOCK..4 * SIZE / BLOCK).step_by(1000);
    write_blocks(&cluster[0], "r0", 8, added());
    cluster[0].kill9();
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "Primary", |status| status.role == "Primary");
    assert_eq!(cluster[0].resource("r0").size_bytes, 4 * SIZE);
    check_filled(&cluster[0]);
    check_blocks(&cluster[0], "r0", 8, added());
}

#[test]
fn a_disk_with_spares_that_stays_after_all_is_not_looked_at_for_holes() {
    let cluster = cluster(2);
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, 4 * MIB);
    cluster.create("r0", SIZE, &["--spare", &text(&spare)]);
    cluster[0].ok(&["badblocks", "add", "r0", "@4096+8192"]);
    write_blocks(&cluster[0], "r0", 7, [1, 2]);
    let (new, meta) = (new_disk(&cluster, SIZE), cluster.scratch().join("other.meta"));
    let (path, place) = (text(&new), text(&meta));
    cluster[0].ok(&["replace-disk", "r0", "--disk", &path, "--meta", &place, "--rate", "8M"]);
    // Something else comes to where its metadata were to go, long before the move gets that far.
    std::fs::write(&meta, [3; 8192]).expect("it can be written");
    cluster[0].wait_resource("r0", SYNC, "the move has failed", |status| {
        status.disk.replacing.as_ref().is_some_and(|replacing| replacing.state == "failed")
    });
    check_blocks(&cluster[0], "r0", 7, [1, 2]);
    // What is in the spares only lies in a hole of the disk.
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[0].wait_synced("r0", SYNC);
    for block in [1, 2] {
        let found = files::read(&cluster[1].disk("r0"), block * BLOCK, 4096);
        assert!(found == block_content(7, 1, block), "block {block}");
    }
}

#[test]
fn what_the_old_disk_cannot_read_comes_from_the_peer_and_from_the_journal() {
    for journal in [false, true] {
        let cluster = cluster(if journal { 1 } else { 2 });
        let bad = BadDisk::new(cluster.scratch(), "bad", SIZE);
        let directory = cluster[0].dir().join("r0.journal").display().to_string();
        let with: &[&str] =
            if journal { &["--journal", &directory, "--journal-size", "128M"] } else { &[] };
        cluster[0].ok(&[&["create", "r0", "--disk", &bad.text()], with].concat());
        if !journal {
            cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
            cluster[0].wait_synced("r0", SYNC);
        }
        fill(&cluster[0]);
        cluster[0].wait_resource("r0", SYNC, "all is on the disk", |status| {
            status.journal.as_ref().is_none_or(|journal| journal.dirty_bytes == 0)
        });
        let blocks = [33, 35, 701];
        let new = new_disk(&cluster, SIZE);
        bad.set_bad(Bad::Unreadable, blocks);
        cluster[0].ok(&["replace-disk", "r0", "--disk", &text(&new), "--wait"]);
        let status = cluster[0].resource("r0");
        assert_eq!((status.disk.path, status.disk.healed_blocks), (Some(text(&new)), 3));
        assert!(bad.bad_blocks().is_empty(), "the old one has them, too");
        check_filled(&cluster[0]);
    }
}
