//! A disk that wears out, as a whole: many random bad blocks, or blocks that changed silently, below a
//! load that checks what it reads. `HOLDFAST_BAD_BLOCKS` is how many; the disk has a MiB for each.

use crate::device::{device, skipped};
use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, number_of, seed, write_blocks};
use holdfast_testkit::{Bad, BadDisk, Cluster, Mount, Node, Rng, block_content, files, run_ok};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long a load on a disk of full size may take.
const LOAD: Duration = Duration::from_secs(600);
const BATCH: usize = 256;

fn count() -> usize {
    usize::try_from(number_of("HOLDFAST_BAD_BLOCKS", 60)).expect("it is small")
}

/// 64 MiB for the 60 blocks that there usually are, 1 GiB for a thousand.
fn size() -> u64 {
    (count() as u64 * MIB).next_multiple_of(64 * MIB)
}

fn blocks() -> u64 {
    size() / BLOCK
}

/// Blocks that are bad, by how.
#[derive(Default)]
struct Worn {
    unreadable: BTreeSet<u64>,
    stuck: BTreeSet<u64>,
    unwritable: BTreeSet<u64>,
    dead: BTreeSet<u64>,
}

impl Worn {
    /// Each kind takes a quarter of these blocks.
    fn spread(disk: &BadDisk, numbers: &[u64]) -> Self {
        let every = |first: usize| numbers.iter().copied().skip(first).step_by(4).collect();
        let (unreadable, stuck, unwritable, dead) = (every(0), every(1), every(2), every(3));
        Self { unreadable, stuck, unwritable, dead }.set(disk)
    }

    /// The same, but that the disk admits what it does not take.
    fn honest(disk: &BadDisk, numbers: &[u64]) -> Self {
        let every = |first: usize| numbers.iter().copied().skip(first).step_by(3).collect();
        let (unreadable, unwritable, dead) = (every(0), every(1), every(2));
        Self { unreadable, unwritable, dead, ..Self::default() }.set(disk)
    }

    fn set(self, disk: &BadDisk) -> Self {
        let worn = self;
        disk.set_bad(Bad::Unreadable, worn.unreadable.iter().copied());
        disk.set_bad(Bad::Stuck, worn.stuck.iter().copied());
        disk.set_bad(Bad::Unwritable, worn.unwritable.iter().copied());
        disk.set_bad(Bad::Dead, worn.dead.iter().copied());
        worn
    }

    /// Reads of them fail.
    fn hidden(&self) -> BTreeSet<u64> {
        self.unreadable.iter().chain(&self.stuck).chain(&self.dead).copied().collect()
    }

    /// They never take data again.
    fn useless(&self) -> BTreeSet<u64> {
        self.stuck.iter().chain(&self.dead).copied().collect()
    }

    /// What is written to them must be elsewhere.
    fn moved(&self) -> BTreeSet<u64> {
        self.stuck.iter().chain(&self.dead).chain(&self.unwritable).copied().collect()
    }
}

fn bad_disk(cluster: &Cluster) -> (BadDisk, String) {
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, (2 * count() as u64 + 64) * BLOCK);
    (BadDisk::new(cluster.scratch(), "old", size()), spare.display().to_string())
}

/// The blocks that are in the spare, and those that are lost.
fn table(node: &Node) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let table = node.json(&["badblocks", "ls", "r0"]);
    let rows = table["rows"].as_array().expect("it is a list");
    let of = |state: &str| {
        let rows = rows.iter().filter(|row| row["state"] == state);
        rows.map(|row| row["offset"].as_u64().expect("it is a number") / BLOCK).collect()
    };
    (of("mapped"), of("lost"))
}

/// As [`write_blocks`] to all of the device, with long requests.
fn fill(node: &Node, seed: u64) {
    let mut client = node.open("r0");
    for first in (0..blocks()).step_by(BATCH) {
        let content: Vec<u8> = batch(first).flat_map(|b| block_content(seed, 1, b)).collect();
        client.write_at(&content, first * BLOCK).expect("the Primary takes writes");
    }
    client.flush().expect("the Primary can flush");
}

/// All of the device is as [`fill`] made it.
fn check_filled(node: &Node, seed: u64) {
    let mut client = node.open("r0");
    let mut found = vec![0; BATCH * 4096];
    for first in (0..blocks()).step_by(BATCH) {
        client.read_at(&mut found, first * BLOCK).expect("the Primary can be read");
        for (block, found) in batch(first).zip(found.chunks(4096)) {
            assert!(found == block_content(seed, 1, block), "block {block} is another one");
        }
    }
}

fn batch(first: u64) -> Range<u64> {
    first..first + BATCH as u64
}

/// Reads all of the device; with `write`, writes it again as it is.
fn pass(node: &Node, write: bool) {
    let mut client = node.open("r0");
    let mut data = vec![0; BATCH * 4096];
    for offset in (0..size()).step_by(data.len()) {
        client.read_at(&mut data, offset).expect("no error reaches a client");
        if write {
            client.write_at(&data, offset).expect("no error reaches a client");
        }
    }
    client.flush().expect("the Primary can flush");
}

/// A load that reads what it wrote, and ends with an error when it is something else.
fn fio(dir: &Path, name: &str, more: &[&str]) -> Command {
    let mut command = Command::new("fio");
    command.arg(format!("--name={name}")).arg(format!("--directory={}", dir.display()));
    command.arg(format!("--size={}k", size() / 1024 * 5 / 8));
    command.args(["--rw=randwrite", "--bsrange=4k-64k", "--bs_unaligned=0", "--thread"]);
    command.args(["--ioengine=libaio", "--iodepth=8", "--direct=1", "--fsync=256"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--do_verify=1"]);
    command.args(["--randrepeat=1", "--fallocate=none", "--eta=never", "--output=/dev/null"]);
    command.arg("--verify_state_save=0");
    command.args(more);
    command
}

fn ext4(device: &str, block: &str) {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-b", block, "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    run_ok(command.arg(device));
}

/// Rows 10 to 18, 55, 75, 89: nobody above notices, and the counts are those of what was bad.
#[test]
fn row_089_a_file_system_on_a_disk_with_bad_blocks_and_a_peer() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    let (disk, spare) = bad_disk(&cluster);
    cluster[0].ok(&["create", "r0", "--disk", &disk.text(), "--spare", &spare]);
    cluster.join_resource(&cluster[1], "r0", size(), &[]);
    cluster[0].wait_synced("r0", SYNC);
    let path = device(&cluster, 0);
    ext4(&path, "1024");
    let mount = Mount::new(&path, &cluster[0].dir().join("mnt"));
    run_ok(&mut fio(mount.path(), "load", &[]));

    // What goes bad while nobody writes: all of it is healed by reading, and nothing else is counted.
    let numbers = Rng::new(seed()).distinct(count(), blocks());
    let (first, second) = numbers.split_at(count() / 2);
    let first = Worn::spread(&disk, first);
    pass(&cluster[0], false);
    let hidden = first.hidden().len() as u64;
    let status = cluster[0].wait_resource("r0", SYNC, "all are healed", |status| {
        status.disk.healed_blocks == hidden
            && status.disk.unreadable_blocks == 0
            && status.disk.remapped_sectors >= first.useless().len() as u64
    });
    assert_eq!(table(&cluster[0]), (first.useless(), BTreeSet::new()));
    assert_eq!(status.disk.remapped_sectors, first.useless().len() as u64);
    let left: BTreeSet<u64> = disk.bad_blocks().into_iter().collect();
    assert!(left.is_disjoint(&first.unreadable), "these were stored in place");

    // What goes bad below a load.
    let (dir, limit) = (mount.path().to_owned(), LOAD);
    let load = std::thread::spawn(move || {
        let mut command = fio(&dir, "load", &["--randseed=7"]);
        holdfast_testkit::run_with_limit(&mut command, limit)
    });
    let second = Worn::spread(&disk, second);
    let ended = load.join().expect("it does not panic");
    assert_eq!(ended.status, 0, "{ended}");
    mount.unmount();
    run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
    cluster[0].ok(&["device", "r0", "--remove"]);

    // When all was read, what cannot be kept in place is elsewhere; when all was written, all is.
    pass(&cluster[0], false);
    cluster[0].wait_resource("r0", SYNC, "all are healed", |status| {
        let most = hidden + second.hidden().len() as u64;
        (hidden..=most).contains(&status.disk.healed_blocks) && status.disk.unreadable_blocks == 0
    });
    let due: BTreeSet<u64> = &first.useless() | &second.useless();
    let all: BTreeSet<u64> = &first.moved() | &second.moved();
    let (mapped, lost) = table(&cluster[0]);
    assert!(mapped.is_superset(&due) && mapped.is_subset(&all) && lost.is_empty());
    pass(&cluster[0], true);
    assert_eq!(table(&cluster[0]), (all.clone(), BTreeSet::new()));
    let status = cluster[0].resource("r0");
    assert_eq!(status.disk.remapped_sectors, all.len() as u64);
    assert_eq!(status.disk.spare_sectors_free, status.disk.spare_sectors - all.len() as u64);
    assert_eq!((status.disk.state.as_str(), status.disk.lost_sectors), ("UpToDate", 0));
    let told = format!("{} blocks of the disk are in its spares", all.len());
    assert!(cluster[0].ok(&["status", "r0"]).contains(&told), "{told}");
    // No block of the other one is wrong.
    let report = cluster[0].json(&["verify", "r0"]);
    assert_eq!(report["differing_blocks"], 0, "{report}");
    println!(
        "{} MiB, {} bad blocks: {} healed, {} remapped, {} read errors and {} write errors seen",
        size() / MIB,
        count(),
        status.disk.healed_blocks,
        status.disk.remapped_sectors,
        disk.counts().read_errors,
        disk.counts().write_errors,
    );
}

/// Rows 10, 14, 16, 19: writes all succeed; of reads only those fail that nobody can answer.
#[test]
fn row_014_alone_only_reads_of_bad_blocks_that_were_never_written_fail() {
    if skipped() {
        return;
    }
    let cluster = cluster(1);
    let (disk, spare) = bad_disk(&cluster);
    let node = &cluster[0];
    node.ok(&["create", "r0", "--disk", &disk.text(), "--spare", &spare]);
    fill(node, 1);
    let worn = Worn::spread(&disk, &Rng::new(seed()).distinct(count(), blocks()));
    let mut rng = Rng::new(seed() + 1);
    let written: BTreeSet<u64> = (0..blocks()).filter(|_| rng.below(2) == 0).collect();
    write_blocks(node, "r0", 2, written.iter().copied());

    let mut client = node.open("r0");
    let failed: BTreeSet<u64> = (0..blocks())
        .filter(|block| client.read_at(&mut [0; 4096], block * BLOCK).is_err())
        .collect();
    drop(client);
    // Nobody can know of a write that the disk answered and did not make, before it is read.
    let swallowed: BTreeSet<u64> = &worn.stuck & &written;
    let kept: BTreeSet<u64> = &written - &swallowed;
    assert_eq!(failed, &worn.hidden() - &kept);
    check_blocks(node, "r0", 2, kept.iter().copied());
    let readable =
        (0..blocks()).filter(|block| !written.contains(block) && !failed.contains(block));
    check_blocks(node, "r0", 1, readable);
    let status = node.resource("r0");
    assert_eq!(table(node).0, &worn.moved() & &kept);
    assert_eq!(status.disk.unreadable_blocks, failed.len() as u64);
    assert_eq!((status.disk.healed_blocks, status.disk.state.as_str()), (0, "UpToDate"));

    // But once it was, what is written there is looked at before it is answered.
    fill(node, 3);
    check_filled(node, 3);
    assert_eq!(table(node), (worn.moved(), BTreeSet::new()));
    let status = node.resource("r0");
    assert_eq!(status.disk.remapped_sectors, worn.moved().len() as u64);
    assert_eq!((status.disk.unreadable_blocks, status.disk.lost_sectors), (0, 0));
    println!(
        "alone, {} bad blocks: {} could not be read, {} of them since the disk swallowed the write",
        count(),
        failed.len(),
        swallowed.len(),
    );
}

/// Rows 10, 89: a file system is made on a disk that is bad already, without a peer.
#[test]
fn row_089_alone_a_file_system_is_made_on_a_disk_with_bad_blocks() {
    if skipped() {
        return;
    }
    let cluster = cluster(1);
    let (disk, spare) = bad_disk(&cluster);
    // What mkfs looks for before it writes anything is at the ends.
    let numbers = Rng::new(seed()).distinct(count(), blocks() - 64);
    let numbers: Vec<u64> = numbers.into_iter().map(|number| number + 32).collect();
    let worn = Worn::honest(&disk, &numbers);
    cluster[0].ok(&["create", "r0", "--disk", &disk.text(), "--spare", &spare]);
    let path = device(&cluster, 0);
    ext4(&path, "4096");
    let mount = Mount::new(&path, &cluster[0].dir().join("mnt"));
    run_ok(&mut fio(mount.path(), "load", &[]));
    mount.unmount();
    run_ok(Command::new("e2fsck").args(["-f", "-n", &path]));
    cluster[0].ok(&["device", "r0", "--remove"]);
    let (mapped, lost) = table(&cluster[0]);
    assert!(mapped.is_subset(&worn.moved()) && lost.is_empty());
    assert!(mapped.len() * 2 > worn.moved().len(), "most of the disk was written to");
    assert_eq!(cluster[0].resource("r0").disk.state, "UpToDate");
}

/// Row 36: when the spare is full, the disk is given up, and the peer serves the data.
#[test]
fn row_036_with_a_peer_a_full_spare_costs_nobody_a_write() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    let disk = BadDisk::new(cluster.scratch(), "old", 16 * MIB);
    let spare = cluster.scratch().join("spare");
    files::make_sparse(&spare, 14 * BLOCK);
    let spare = spare.display().to_string();
    cluster[0].ok(&["create", "r0", "--disk", &disk.text(), "--spare", &spare]);
    cluster.join_resource(&cluster[1], "r0", 16 * MIB, &[]);
    cluster[0].wait_synced("r0", SYNC);
    disk.set_bad(Bad::Dead, 100..120);
    write_blocks(&cluster[0], "r0", 1, 0..1024);
    check_blocks(&cluster[0], "r0", 1, 0..1024);
    let status = cluster[0]
        .wait_resource("r0", SOON, "the disk is given up", |status| status.disk.problem.is_some());
    let problem = status.disk.problem.expect("just looked");
    assert!(problem.contains("spare"), "{problem}");
    assert_eq!(status.role, "Primary");
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is a number in {report}"))
}

/// Rows 61, 62, 64: with checksums, what changes silently is found by whoever reads it, the rest by one
/// scrub, and so is what cannot be read.
#[test]
fn row_064_with_checksums_blocks_that_changed_are_healed_by_reads_and_one_scrub() {
    if skipped() {
        return;
    }
    let cluster = cluster(2);
    let disks = ["a", "b"].map(|name| BadDisk::new(cluster.scratch(), name, size()));
    for (verb, index) in [("create", 0), ("join", 1)] {
        let disk = disks[index].text();
        let mut call = vec![verb, "r0", "--disk", &disk, "--checksums"];
        if index == 0 {
            call.extend(["--set", "scrub-rate=0"]);
        }
        cluster[index].ok(&call);
    }
    cluster[0].wait_synced("r0", SYNC);
    fill(&cluster[0], 1);
    for node in cluster.nodes() {
        node.wait_resource("r0", SYNC, "it has checksums", |status| status.disk.checksums == "on");
    }
    let numbers = Rng::new(seed()).distinct(count() * 2, blocks());
    let (here, there) = numbers.split_at(count());
    here.iter().for_each(|block| disks[0].corrupt(*block));
    let (changed, latent) = there.split_at(count() / 2);
    changed.iter().for_each(|block| disks[1].corrupt(*block));
    disks[1].set_bad(Bad::Unreadable, latent.iter().copied());

    let (read, unread) = here.split_at(count() / 2);
    check_blocks(&cluster[0], "r0", 1, read.iter().copied());
    cluster[0].wait_resource("r0", SOON, "those that were read are healed", |status| {
        status.disk.healed_blocks == read.len() as u64
    });
    cluster[0].ok(&["scrub", "r0", "--wait"]);
    let found = (unread.len() + there.len()) as u64;
    for (index, healed, wrong) in [(0, here.len(), here.len()), (1, there.len(), changed.len())] {
        let what = format!("{healed} blocks are healed on node {index}, of {found} by the scrub");
        let (healed, wrong) = (healed as u64, wrong as u64);
        let status = cluster[index].wait_resource("r0", SOON, &what, |status| {
            status.disk.healed_blocks == healed && status.disk.unreadable_blocks == 0
        });
        assert!(status.disk.checksum_errors >= wrong);
        assert_eq!((status.disk.unreadable_blocks, status.disk.state.as_str()), (0, "UpToDate"));
    }
    assert!(disks[1].bad_blocks().is_empty(), "they were stored in place");
    println!("{} MiB with checksums: {found} blocks found and healed by one scrub", size() / MIB);
    files::assert_equal(disks[0].below(), disks[1].below(), size());
    check_filled(&cluster[0], 1);
    assert_eq!(number(&cluster[0].json(&["verify", "r0"]), "differing_blocks"), 0);
}

/// Rows 62, 66: without checksums two copies that are equal are right, and the third one is repaired.
#[test]
fn row_066_without_checksums_the_majority_of_three_repairs_what_changed() {
    if skipped() {
        return;
    }
    let cluster = cluster(3);
    let disks = ["a", "b", "c"].map(|name| BadDisk::new(cluster.scratch(), name, size()));
    for (index, node) in cluster.nodes().iter().enumerate() {
        let disk = disks[index].text();
        let verb = if index == 0 { "create" } else { "join" };
        node.ok(&[verb, "r0", "--disk", &disk]);
    }
    cluster[0].ok(&["set", "r0", "scrub-rate=0"]);
    // Each with each: those that joined have met when both say so.
    for node in cluster.nodes() {
        node.wait_resource("r0", SYNC, "all members are known", |status| status.peers.len() == 2);
        node.wait_synced("r0", SYNC);
    }
    fill(&cluster[0], 1);
    let corrupt = |seed: u64| {
        let numbers = Rng::new(seed).distinct(count(), blocks());
        for (index, block) in numbers.iter().enumerate() {
            disks[index % 3].corrupt(*block);
        }
    };
    for (round, call) in
        [&["scrub", "r0", "--wait"][..], &["verify", "r0", "--repair"]].into_iter().enumerate()
    {
        corrupt(seed() + round as u64);
        let report = cluster[0].json(call);
        let found = (number(&report, "differing_blocks"), number(&report, "repaired_blocks"));
        assert_eq!(found, (count() as u64, count() as u64), "{report}");
        check_filled(&cluster[0], 1);
        for other in &disks[1..] {
            files::assert_equal(disks[0].below(), other.below(), size());
        }
    }
}
