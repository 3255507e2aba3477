//! Disks with bad sectors, and spares for them.

use crate::{BLOCK, MIB, SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_testkit::{
    Bad, BadDisk, Cluster, Node, devices_unavailable, files, run_ok, wait_until,
};
use serde_json::Value;
use std::path::Path;

const SIZE: u64 = 16 * MIB;

/// Says why bad disks cannot be had here, if so.
fn unavailable() -> bool {
    let why = devices_unavailable();
    why.iter().for_each(|why| eprintln!("skipped: {why}"));
    why.is_some()
}

/// An empty file in the cluster's directory.
fn empty(cluster: &Cluster, name: &str, size: u64) -> String {
    let path = cluster.scratch().join(name);
    files::make_sparse(&path, size);
    path.display().to_string()
}

/// The blocks that the table lists, with their state.
fn listed(node: &Node, name: &str) -> Vec<(u64, String)> {
    let table = node.json(&["badblocks", "ls", name]);
    let rows = table["rows"].as_array().expect("it is a list").iter();
    let of = |row: &Value| {
        let state = row["state"].as_str().expect("it is a text").to_owned();
        (row["offset"].as_u64().expect("it is a number") / BLOCK, state)
    };
    rows.map(of).collect()
}

fn mapped(node: &Node, name: &str) -> Vec<u64> {
    listed(node, name).into_iter().filter(|row| row.1 == "mapped").map(|row| row.0).collect()
}

fn wait_primary(node: &Node, name: &str) {
    node.wait_resource(name, SOON, "Primary again", |status| {
        status.role == "Primary" && status.disk.state == "UpToDate"
    });
}

/// Row 7: sectors of 512 and of 4096 bytes, of a disk and its spare, and on the nodes of one resource.
#[test]
fn row_007_sectors_of_512_and_4096_bytes_are_mixed() {
    const LONG: u64 = 4 * MIB;
    if unavailable() {
        return;
    }
    let mut cluster = cluster(2);
    let device = |name: &str, size: u64, sector: u64| {
        let disk = BadDisk::with_blocks(cluster.scratch(), name, size, sector);
        let path = disk.loop_device();
        (disk, path)
    };
    let text = |(_, path): &(BadDisk, std::path::PathBuf)| path.display().to_string();
    let disks = [device("a", LONG, 512), device("b", LONG, 4096)];
    let spares = [device("a-spare", MIB, 4096), device("b-spare", MIB, 512)];
    for ((_, path), sector) in disks.iter().chain(&spares).zip(["512", "4096", "4096", "512"]) {
        let said = run_ok(std::process::Command::new("blockdev").arg("--getss").arg(path));
        assert_eq!(said.trim(), sector, "{}", path.display());
    }
    let words = ["--disk", &text(&disks[0]), "--spare", &text(&spares[0])];
    cluster[0].ok(&[&["create", "r0"], &words[..]].concat());
    let words = ["--disk", &text(&disks[1]), "--spare", &text(&spares[1])];
    cluster[1].ok(&[&["join", "r0"], &words[..]].concat());
    cluster.wait_members("r0", 2, SYNC);
    write_blocks(&cluster[0], "r0", 1, 0..LONG / BLOCK);
    // One sector of eight in a block of the one, a whole block of the other, and the last of each.
    disks[0].0.set_bad(Bad::Dead, [100 * 8 + 3, LONG / 512 - 1]);
    disks[1].0.set_bad(Bad::Dead, [200, LONG / BLOCK - 1]);
    let last = LONG / BLOCK - 1;
    let new = || (90..210).chain(last - 3..last + 1);
    write_blocks(&cluster[0], "r0", 2, new());
    let check = |node: &Node| {
        check_blocks(node, "r0", 2, new());
        check_blocks(node, "r0", 1, (0..last).filter(|block| !new().any(|one| one == *block)));
    };
    check(&cluster[0]);
    for (at, bad) in [(0, [100, last]), (1, [200, last])] {
        assert_eq!(mapped(&cluster[at], "r0"), bad, "node {at}");
        assert_eq!(cluster[at].resource("r0").disk.state, "UpToDate");
    }
    // Also after a crash of both, and as the other one has it.
    cluster[0].kill9();
    cluster[1].kill9();
    cluster[0].start();
    cluster[1].start();
    wait_primary(&cluster[0], "r0");
    cluster.wait_members("r0", 2, SYNC);
    check(&cluster[0]);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0"]);
    check(&cluster[1]);
    assert_eq!(mapped(&cluster[1], "r0"), [200, last]);
    cluster[1].stop();
    cluster[0].stop();
}

/// Rows 1, 10, 13, 16 to 20, 32, 43, 55, 76: a write that the disk does not take is in the spare when it
/// is answered, and stays there.
#[test]
fn row_010_writes_go_to_the_spare_and_stay_there() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "old", SIZE);
    let spare = empty(&cluster, "spare", 4 * MIB);
    let said = cluster[0].ok(&["create", "old", "--disk", &disk.text(), "--spare", &spare]);
    assert!(said.contains(&format!("its bad sectors go to {spare}")), "{said}");
    cluster.create("other", MIB, &["--spare", &empty(&cluster, "spare2", MIB)]);
    let node = &cluster[0];
    assert_eq!(node.resource("old").size_bytes, SIZE);
    let all = 0..SIZE / BLOCK;
    write_blocks(node, "old", 1, all.clone());
    let bad: Vec<u64> = [100, 101, 102, 500].into_iter().chain(2048..2248).collect();
    disk.set_bad(Bad::Dead, bad.iter().copied());
    // Of requests that touch one bad block among good ones, too.
    let mut client = node.open("old");
    let content: Vec<u8> =
        (90..110).flat_map(|b| holdfast_testkit::block_content(2, 1, b)).collect();
    client.write_at(&content, 90 * BLOCK).expect("the write succeeds");
    drop(client);
    let rest = || (500..501).chain(2040..2260);
    write_blocks(node, "old", 2, rest());
    let new = || (90..110).chain(rest());
    check_blocks(node, "old", 2, new());
    check_blocks(node, "old", 1, all.filter(|block| !new().any(|one| one == *block)));
    let status = node.resource("old");
    let count = bad.len() as u64;
    assert_eq!((status.disk.remapped_sectors, status.disk.lost_sectors), (count, 0));
    assert_eq!(status.disk.spare_sectors_free, status.disk.spare_sectors - count);
    assert_eq!((status.disk.io_errors, status.disk.spares[0].remapped), (0, count));
    assert_eq!(node.resource("other").disk.remapped_sectors, 0);
    assert_eq!(mapped(node, "old"), bad);
    let labels = ["resource=\"old\""];
    assert_eq!(node.metric("holdfast_remapped_sectors", &labels), Some(204.0));
    let csv = node.ok(&["badblocks", "ls", "old", "--csv"]);
    assert_eq!(csv.lines().filter(|line| line.starts_with("lba,")).count(), 1);
    assert_eq!(csv.lines().count(), bad.len() + 1);
    assert!(csv.contains("\n800,409600,4096,mapped,write-error,"), "{csv}");
    node.wait_log("is in the spare");
    node.wait_log("a write failed");

    cluster[0].kill9();
    cluster[0].start();
    let node = &cluster[0];
    wait_primary(node, "old");
    assert_eq!(mapped(node, "old"), bad);
    check_blocks(node, "old", 2, new());
    // New ones get other slots.
    disk.set_bad(Bad::Dead, 3000..3050);
    write_blocks(node, "old", 3, 2990..3060);
    check_blocks(node, "old", 3, 2990..3060);
    check_blocks(node, "old", 2, new());
    assert_eq!(node.resource("old").disk.remapped_sectors, count + 50);
}

/// Rows 2, 33: what cannot be a spare is refused with the reason, and nothing has changed.
#[test]
fn row_033_what_cannot_be_a_spare_is_refused() {
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = empty(&cluster, "disk", 4 * MIB);
    let used = cluster.scratch().join("used");
    files::make_random(&used, MIB, 1);
    let before = std::fs::read(&used).expect("it can be read");
    let used = used.display().to_string();
    let small = empty(&cluster, "small", 4 * BLOCK);
    let dir = cluster.scratch().display().to_string();
    for (spare, why) in [
        (vec!["--spare", "/nowhere/x"], "does not exist"),
        (vec!["--spare", &disk], "is the disk, its metadata, or given twice"),
        (vec!["--spare", &dir], "neither a regular file nor a block device"),
        (vec!["--spare", &used], "it is not empty"),
        (vec!["--spare", &small], "20480"),
        (vec!["--spare", &small, "--spare", &small], "given twice"),
        (vec!["--spare-size", "5000"], "no multiple of 4096"),
        (vec!["--spare-size", "4M"], "too small"),
    ] {
        let call = [&["create", "r0", "--disk", &disk], &spare[..]].concat();
        node.refused(&call, 1, why);
        assert!(node.status().resources.is_empty(), "{spare:?}");
    }
    assert_eq!(std::fs::read(&used).expect("it can be read"), before);
    node.refused(&["create", "r0", "--disk", &disk, "--spare", &used], 1, "add --force");
    let room = std::fs::read(&disk).expect("it can be read");
    assert!(room.iter().all(|byte| *byte == 0), "nothing was written to the disk");
    let meta = node.state_dir().join("meta");
    assert!(!meta.exists() || std::fs::read_dir(meta).expect("a directory").next().is_none());
    let many: Vec<String> = (0..17).map(|n| empty(&cluster, &format!("s{n}"), 5 * BLOCK)).collect();
    let too_many = many.iter().flat_map(|path| ["--spare", path]);
    let call: Vec<&str> = ["create", "r0", "--disk", &disk].into_iter().chain(too_many).collect();
    node.refused(&call, 1, "16 spares at most");
    assert!(node.status().resources.is_empty());
    node.ok(&call[..call.len() - 2]);
    node.refused(&["spare", "add", "r0", &many[16]], 1, "has 16 spares already");
    // By any path that leads to it.
    let link = cluster.scratch().join("link").display().to_string();
    std::os::unix::fs::symlink(&many[3], &link).expect("it can be made");
    node.ok(&["spare", "remove", "r0", &link]);
    node.ok(&["spare", "add", "r0", &many[16]]);
    assert_eq!(node.resource("r0").disk.spares.len(), 16);
    let list = empty(&cluster, "list", 0);
    node.refused(
        &["badblocks", "import", "r0", &list, "--block-size", "0"],
        1,
        "no size of a block",
    );
    node.ok(&["secondary", "r0"]);
    node.ok(&["delete", "r0"]);
    // The smallest that is possible.
    let least = empty(&cluster, "least", 5 * BLOCK);
    node.ok(&["create", "r0", "--disk", &disk, "--spare", &least]);
    assert_eq!(node.resource("r0").disk.spare_sectors, 1);
    let taken = ["create", "r1", "--disk", &used, "--spare", &disk];
    node.refused(&taken, 1, "belongs to the resource r0");
    let other = empty(&cluster, "other", 4 * MIB);
    let taken = ["create", "r1", "--disk", &other, "--spare", &least];
    node.refused(&taken, 1, "belongs to the resource r0");
    // What is on the disk is kept, what is on the spare is not.
    let content = cluster.scratch().join("content");
    files::make_random(&content, 4 * MIB, 2);
    let before = std::fs::read(&content).expect("it can be read");
    let content = content.display().to_string();
    node.ok(&["create", "r1", "--disk", &content, "--spare", &used, "--force"]);
    assert!(node.resource("r1").disk.spare_sectors > 200);
    assert!(std::fs::read(&content).expect("it can be read") == before);
}

fn swap(one: &Path, other: &Path) {
    let between = one.with_extension("between");
    std::fs::rename(one, &between).expect("it can be renamed");
    std::fs::rename(other, one).expect("it can be renamed");
    std::fs::rename(between, other).expect("it can be renamed");
}

/// The disk of a resource is left out, for this reason.
fn left_out(node: &Node, name: &str, why: &str) {
    let status = node.resource(name);
    let problem = status.disk.problem.unwrap_or_default();
    assert_eq!(status.disk.state, "Diskless", "{problem}");
    assert!(problem.contains(why), "{problem}");
}

/// A disk that holds something and is refused for want of a spare holds all of it still.
#[test]
fn what_is_refused_for_its_spare_changes_nothing_on_the_disk() {
    let cluster = cluster(1);
    let [disk, spare] = [("full", 16 * MIB), ("used", MIB)].map(|(name, len)| {
        let path = cluster.scratch().join(name);
        std::fs::write(&path, vec![7; usize::try_from(len).expect("it fits")])
            .expect("it can be written");
        path.display().to_string()
    });
    let before = file(&disk);
    for with in [["--spare", &spare], ["--spare-size", "15M"]] {
        let words = ["create", "r1", "--disk", &disk, "--meta", "internal"];
        cluster[0].refused(&[&words[..], &with[..]].concat(), 1, "not empty");
        assert!(file(&disk) == before, "{with:?}");
    }
}

/// Rows 23 to 25, 27: a disk is never used without its spares, nor with those of another one.
#[test]
fn row_024_a_missing_foreign_or_broken_spare_is_refused() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "a", 4 * MIB);
    let spares = ["s1", "s2"].map(|name| empty(&cluster, name, MIB));
    cluster[0].ok(&["create", "r1", "--disk", &disk.text(), "--spare", &spares[0]]);
    cluster.create("r2", 4 * MIB, &["--spare", &spares[1]]);
    disk.set_bad(Bad::Dead, [7]);
    write_blocks(&cluster[0], "r1", 1, 0..20);
    let paths = spares.each_ref().map(Path::new);
    let away = cluster.scratch().join("away");

    cluster[0].stop();
    std::fs::rename(paths[0], &away).expect("it can be renamed");
    let content = disk.peek(0, 4 << 20);
    cluster[0].start();
    left_out(&cluster[0], "r1", &spares[0]);
    cluster[0].refused(&["attach-disk", "r1"], 1, &spares[0]);
    assert_eq!(disk.peek(0, 4 << 20), content);
    std::fs::rename(&away, paths[0]).expect("it can be renamed");
    cluster[0].ok(&["attach-disk", "r1"]);
    wait_primary(&cluster[0], "r1");
    check_blocks(&cluster[0], "r1", 1, 0..20);

    cluster[0].stop();
    let before = paths.map(|path| std::fs::read(path).expect("it can be read"));
    swap(paths[0], paths[1]);
    cluster[0].start();
    left_out(&cluster[0], "r1", "it belongs to disk");
    left_out(&cluster[0], "r2", "it belongs to disk");
    cluster[0].stop();
    swap(paths[0], paths[1]);
    assert_eq!(paths.map(|path| std::fs::read(path).expect("it can be read")), before);

    // One copy of each: it starts, and both are whole again.
    let mut broken = before[0].clone();
    broken[..2 * 4096].fill(0);
    std::fs::write(paths[0], &broken).expect("it can be written");
    cluster[0].start();
    wait_primary(&cluster[0], "r1");
    check_blocks(&cluster[0], "r1", 1, 0..20);
    cluster[0].stop();
    assert_eq!(std::fs::read(paths[0]).expect("it can be read")[..4096], before[0][..4096]);

    // All copies: nothing is made anew.
    broken[(1 << 20) - 4 * 4096..].fill(0);
    std::fs::write(paths[0], &broken).expect("it can be written");
    cluster[0].start();
    left_out(&cluster[0], "r1", "it has no header");
    cluster[0].stop();
    assert!(std::fs::read(paths[0]).expect("it can be read") == broken, "it was written to");
    std::fs::write(paths[0], &before[0]).expect("it can be written");
    cluster[0].start();
    wait_primary(&cluster[0], "r1");
    check_blocks(&cluster[0], "r1", 1, 0..20);
}

/// Rows 35, 37: spares come and go while the disk is used; the room that is left is told in time.
#[test]
fn row_037_spares_come_and_go_while_the_disk_is_used() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "old", SIZE);
    let first = empty(&cluster, "first", 104 * BLOCK);
    let second = empty(&cluster, "second", 2 * MIB);
    let node = &cluster[0];
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &first]);
    assert_eq!(node.resource("old").disk.spare_sectors, 100);
    let problems = || node.status().cluster.expect("a cluster").problems.join("\n");
    disk.set_bad(Bad::Dead, 0..98);
    write_blocks(node, "old", 1, 0..79);
    assert_eq!(node.resource("old").disk.spare_fill.as_deref(), Some("fine"));
    write_blocks(node, "old", 1, 79..80);
    node.wait_log("the spares of the disk are 80 % full, 20 slots are free");
    assert!(problems().contains("`holdfast spare add old PATH` makes room"), "{}", problems());
    write_blocks(node, "old", 1, 80..95);
    node.wait_log("the spares of the disk are 95 % full");
    write_blocks(node, "old", 1, 95..98);
    assert_eq!(node.resource("old").disk.spare_fill.as_deref(), Some("critical"));
    node.refused(&["spare", "remove", "old", &first, "--empty"], 1, "it is the last one");

    let said = node.ok(&["spare", "add", "old", &second]);
    assert!(said.contains("there is room for"), "{said}");
    node.refused(&["spare", "add", "old", &second], 1, "has that spare already");
    assert_eq!(problems(), "");
    assert_eq!(node.resource("old").disk.spares.len(), 2);
    node.refused(&["spare", "remove", "old", &first], 1, "it holds 98 blocks");
    let said = node.ok(&["spare", "remove", "old", &first, "--empty", "--dry-run"]);
    assert!(said.contains("98 blocks moved") && said.contains("nothing was changed"), "{said}");
    assert_eq!(node.resource("old").disk.spares.len(), 2);
    let shown = node.ok(&["spare", "ls", "old"]);
    assert!(shown.contains(&first) && shown.contains(&second), "{shown}");
    // The node cannot write what it knows when the disk has given it up: repeated, the command ends.
    let states = std::fs::read_dir(node.state_dir().join("resources")).expect("it is there");
    let state = states.map(|entry| entry.expect("it is read").path()).next().expect("there is one");
    let in_the_way = state.with_extension("new");
    std::fs::create_dir(&in_the_way).expect("it can be made");
    assert_eq!(node.cli(&["spare", "remove", "old", &first, "--empty"]).status, 1);
    assert_eq!(node.resource("old").disk.spares.len(), 1);
    std::fs::remove_dir(&in_the_way).expect("it can be removed");
    let said = node.ok(&["spare", "remove", "old", &first, "--empty", "--dry-run"]);
    assert!(said.contains("would be forgotten; nothing was changed"), "{said}");
    let said = node.ok(&["spare", "remove", "old", &first, "--empty"]);
    assert!(said.contains("does not use the spare") && said.contains("is forgotten"), "{said}");
    node.refused(&["spare", "remove", "old", &first], 4, "its disk has no spare");
    assert_eq!(node.resource("old").disk.spares.len(), 1);
    check_blocks(node, "old", 1, 0..98);

    // It is free for something else now, and not missed.
    std::fs::remove_file(&first).expect("it can be removed");
    cluster[0].restart();
    wait_primary(&cluster[0], "old");
    check_blocks(&cluster[0], "old", 1, 0..98);
    assert_eq!(cluster[0].resource("old").disk.remapped_sectors, 98);
}

/// A resource whose blocks 10 and 11 are in its first spare; the paths of that, and of another one.
fn moved_by_hand(cluster: &Cluster) -> [String; 2] {
    let disk = empty(cluster, "disk", 4 * MIB);
    let spares = ["first", "second"].map(|name| empty(cluster, name, MIB));
    let node = &cluster[0];
    node.ok(&["create", "old", "--disk", &disk, "--spare", &spares[0]]);
    write_blocks(node, "old", 1, 0..20);
    node.ok(&["badblocks", "add", "old", "80-95"]);
    write_blocks(node, "old", 2, 10..12);
    spares
}

fn check_moved(node: &Node) {
    wait_primary(node, "old");
    check_blocks(node, "old", 2, 10..12);
    check_blocks(node, "old", 1, (0..10).chain(12..20));
}

/// The node cannot write what it knows, while this is done.
fn without_state(node: &Node, what: impl FnOnce()) {
    let states = std::fs::read_dir(node.state_dir().join("resources")).expect("it is there");
    let state = states.map(|entry| entry.expect("it is read").path()).next().expect("there is one");
    let in_the_way = state.with_extension("new");
    std::fs::create_dir(&in_the_way).expect("it can be made");
    what();
    std::fs::remove_dir(&in_the_way).expect("it can be removed");
}

fn file(path: &str) -> Vec<u8> {
    std::fs::read(path).expect("it can be read")
}

/// What a node has noted of how often the tables of the spares of its only resource were written.
fn noted(node: &Node) -> std::path::PathBuf {
    let mut dir = std::fs::read_dir(node.state_dir().join("spares")).expect("it is there");
    dir.next().expect("it was noted").expect("it is read").path()
}

/// Row 24: nor with an older image of its spare, whose blocks would be old.
#[test]
fn row_024_an_older_image_of_a_spare_is_refused() {
    let mut cluster = cluster(1);
    let [first, _] = moved_by_hand(&cluster);
    cluster[0].restart();
    check_moved(&cluster[0]);
    let path = noted(&cluster[0]);
    let before = std::fs::read(&path).expect("it can be read");
    let older = file(&first);
    cluster[0].ok(&["badblocks", "add", "old", "160-167"]);
    write_blocks(&cluster[0], "old", 3, 20..21);
    wait_until(SOON, "the node notes that the table was written", || {
        std::fs::read(&path).is_ok_and(|now| now != before)
    });
    cluster[0].kill9();
    let newest = file(&first);
    std::fs::write(&first, &older).expect("it can be written");
    cluster[0].start();
    left_out(&cluster[0], "old", "an older image of it was put back");
    cluster[0].refused(&["attach-disk", "old"], 1, &path.display().to_string());
    assert!(file(&first) == older, "it was written to");
    std::fs::write(&first, newest).expect("it can be written");
    cluster[0].ok(&["attach-disk", "old"]);
    check_moved(&cluster[0]);
    check_blocks(&cluster[0], "old", 3, 20..21);
    // The way out for who has put back the disk, too.
    cluster[0].stop();
    std::fs::write(&first, &older).expect("it can be written");
    cluster[0].start();
    left_out(&cluster[0], "old", "an older image of it was put back");
    std::fs::remove_file(&path).expect("it can be removed");
    cluster[0].ok(&["attach-disk", "old"]);
    check_moved(&cluster[0]);
    // What is not readable keeps no disk away, and what is gone stays nowhere.
    cluster[0].stop();
    std::fs::write(&path, "nothing").expect("it can be written");
    cluster[0].start();
    check_moved(&cluster[0]);
    cluster[0].ok(&["delete", "old"]);
    assert!(!path.exists());
}

/// Row 37: adding a second spare is cut off when it is made and noted, before any header names it.
#[test]
fn row_037_adding_a_spare_is_cut_off() {
    let mut cluster = cluster(1);
    let [first, second] = moved_by_hand(&cluster);
    without_state(&cluster[0], || {
        assert_eq!(cluster[0].cli(&["spare", "add", "old", &second]).status, 1);
    });
    assert_eq!(cluster[0].resource("old").disk.spares.len(), 1);
    let before = [file(&first), file(&second)];
    cluster[0].ok(&["spare", "add", "old", &second]);
    cluster[0].kill9();
    for (path, content) in [&first, &second].into_iter().zip(before) {
        std::fs::write(path, content).expect("it can be written");
    }
    cluster[0].start();
    check_moved(&cluster[0]);
    assert_eq!(cluster[0].resource("old").disk.spares.len(), 1);
    // Again, and cut off while it is made anew, so that it is nobody's spare: it keeps no disk away.
    let left = file(&second);
    std::fs::write(&second, vec![7; left.len()]).expect("it can be written");
    cluster[0].refused(&["spare", "add", "old", &second], 1, "spare add");
    cluster[0].restart();
    check_moved(&cluster[0]);
    std::fs::write(&second, left).expect("it can be written");
    cluster[0].ok(&["spare", "add", "old", &second]);
    assert_eq!(cluster[0].resource("old").disk.spares.len(), 2);
    cluster[0].ok(&["spare", "remove", "old", &first, "--empty"]);
    std::fs::remove_file(&first).expect("it can be removed");
    cluster[0].restart();
    check_moved(&cluster[0]);
}

/// Row 37: removing a spare is cut off when the others do not name it any more, and it does not know.
#[test]
fn row_037_removing_a_spare_is_cut_off() {
    let mut cluster = cluster(1);
    let [first, second] = moved_by_hand(&cluster);
    for away in [true, false] {
        cluster[0].ok(&["spare", "add", "old", &second]);
        let before = file(&second);
        without_state(&cluster[0], || {
            assert_eq!(cluster[0].cli(&["spare", "remove", "old", &second]).status, 1);
        });
        cluster[0].kill9();
        std::fs::write(&second, &before).expect("it can be written");
        if away {
            std::fs::remove_file(&second).expect("it can be removed");
            cluster[0].start();
            left_out(&cluster[0], "old", &second);
            cluster[0].refused(&["spare", "remove", "old", &first], 1, &second);
        } else {
            cluster[0].start();
            check_moved(&cluster[0]);
        }
        let words = ["spare", "remove", "old", &second];
        let said = cluster[0].ok(&[&words[..], &["--dry-run"]].concat());
        assert!(said.contains("would be forgotten; nothing was changed"), "{said}");
        let said = cluster[0].ok(&words);
        assert!(said.contains("is forgotten"), "{said}");
        cluster[0].refused(&words, if away { 1 } else { 4 }, "");
        if away {
            cluster[0].ok(&["attach-disk", "old"]);
            check_moved(&cluster[0]);
            std::fs::write(&second, &before).expect("it can be written");
        }
    }
    std::fs::remove_file(&second).expect("it can be removed");
    cluster[0].restart();
    check_moved(&cluster[0]);
    // One that the disk needs is not forgotten, whether or not it is there.
    cluster[0].stop();
    let kept = file(&first);
    std::fs::remove_file(&first).expect("it can be removed");
    cluster[0].start();
    left_out(&cluster[0], "old", &first);
    cluster[0].refused(&["spare", "remove", "old", &first], 1, "spare remove was refused");
    std::fs::write(&first, kept).expect("it can be written");
    cluster[0].ok(&["attach-disk", "old"]);
    check_moved(&cluster[0]);
}

/// Row 37: a spare that holds nothing dies. It is taken away, and the disk is not given up.
#[test]
fn row_037_a_dead_spare_that_holds_nothing_is_taken_away() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "old", 4 * MIB);
    let first = empty(&cluster, "first", MIB);
    let [second, third] =
        ["second", "third"].map(|name| BadDisk::new(cluster.scratch(), name, MIB));
    let node = &cluster[0];
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &first]);
    disk.set_bad(Bad::Dead, 0..4);
    write_blocks(node, "old", 1, 0..4);
    node.ok(&["spare", "add", "old", &second.text()]);
    second.fail_all(true);
    second.fail_flushes(true);
    let said = node.ok(&["spare", "remove", "old", &second.text()]);
    assert!(said.contains("is taken away; its header does not take a note"), "{said}");
    // Nor is one that dies when it comes.
    third.fail_flushes(true);
    assert_eq!(node.cli(&["spare", "add", "old", &third.text()]).status, 1);
    assert_eq!(node.resource("old").disk.spares.len(), 1);
    disk.set_bad(Bad::Dead, 4..6);
    write_blocks(node, "old", 2, 0..6);
    cluster[0].restart();
    wait_primary(&cluster[0], "old");
    check_blocks(&cluster[0], "old", 2, 0..6);
}

/// Row 37: a spare that begins to fail, also where its header is, is replaced.
#[test]
fn row_037_a_spare_whose_header_takes_no_writes_is_replaced() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "old", 4 * MIB);
    let first = BadDisk::new(cluster.scratch(), "first", 14 * BLOCK);
    let second = empty(&cluster, "second", MIB);
    let node = &cluster[0];
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &first.text()]);
    disk.set_bad(Bad::Dead, 0..4);
    write_blocks(node, "old", 1, 0..4);
    // Both copies of the header: which spares there are cannot be noted.
    first.set_bad(Bad::Unwritable, [0, 13]);
    let tried = node.cli(&["spare", "add", "old", &second]);
    assert_eq!(tried.status, 1, "{tried:?}");
    assert!(tried.stderr.contains("the same command tries it again"), "{tried:?}");
    let shown = node.ok(&["spare", "ls", "old"]);
    assert!(shown.contains("(leaving)"), "{shown}");
    node.refused(&["spare", "add", "old", &second], 1, "the same command tries it again");
    // One of them.
    first.heal([13]);
    let said = node.ok(&["spare", "add", "old", &second]);
    assert!(said.contains("there is room for"), "{said}");
    let problems = node.status().cluster.expect("a cluster").problems.join("\n");
    assert!(problems.contains("can be written in one place only"), "{problems}");
    node.refused(&["spare", "add", "old", &second], 1, "has that spare already");
    cluster[0].restart();
    wait_primary(&cluster[0], "old");
    check_blocks(&cluster[0], "old", 1, 0..4);
    cluster[0].ok(&["spare", "remove", "old", &first.text(), "--empty"]);
    assert_eq!(cluster[0].resource("old").disk.spares.len(), 1);
    cluster[0].restart();
    wait_primary(&cluster[0], "old");
    check_blocks(&cluster[0], "old", 1, 0..4);
}

/// A disk that had none gets its first spare on a node that is not Primary.
#[test]
fn row_037_the_first_spare_comes_later() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    let disk = BadDisk::new(cluster.scratch(), "old", 4 * MIB);
    let spare = empty(&cluster, "spare", MIB);
    let node = &cluster[0];
    node.ok(&["create", "old", "--disk", &disk.text()]);
    node.refused(&["badblocks", "ls", "old"], 1, "its disk has no spare on this node");
    node.refused(&["spare", "add", "old", &spare], 1, "this node is Primary");
    write_blocks(node, "old", 1, 0..50);
    node.ok(&["secondary", "old"]);
    node.ok(&["spare", "add", "old", &spare]);
    node.ok(&["primary", "old"]);
    disk.set_bad(Bad::Dead, [3, 4]);
    write_blocks(node, "old", 1, 0..50);
    cluster[0].restart();
    wait_primary(&cluster[0], "old");
    check_blocks(&cluster[0], "old", 1, 0..50);
    assert_eq!(mapped(&cluster[0], "old"), [3, 4]);
}

/// A part of the disk itself is the spare, with the metadata elsewhere and at its end.
#[test]
fn row_001_the_end_of_the_disk_can_be_the_spare() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(1);
    for (name, meta) in [("out", None), ("in", Some("internal"))] {
        let disk = BadDisk::new(cluster.scratch(), name, SIZE);
        let mut call = vec!["create", name, "--disk"];
        let text = disk.text();
        call.extend([&*text, "--spare-size", "4M"]);
        call.extend(meta.iter().flat_map(|place| ["--meta", *place]));
        let said = cluster[0].ok(&call);
        assert!(said.contains("4 MiB at the end of") && said.contains("its spare"), "{said}");
        let size = cluster[0].resource(name).size_bytes;
        assert!(size <= 12 * MIB && size > 11 * MIB, "{size}");
        let last = size / BLOCK - 1;
        disk.set_bad(Bad::Dead, [0, last]);
        write_blocks(&cluster[0], name, 1, [0, 1, last - 1, last]);
        cluster[0].kill9();
        cluster[0].start();
        wait_primary(&cluster[0], name);
        check_blocks(&cluster[0], name, 1, [0, 1, last - 1, last]);
        assert_eq!(mapped(&cluster[0], name), [0, last]);
        cluster[0].refused(&["resize", name], 1, "at its");
        cluster[0].ok(&["delete", name]);
    }
}

/// With a journal before the disk, and on a node that follows it.
#[test]
fn row_010_journals_and_log_peers_have_spares_too() {
    if unavailable() {
        return;
    }
    let mut cluster = cluster(2);
    let disks = ["a", "b"].map(|name| BadDisk::new(cluster.scratch(), name, 8 * MIB));
    let spares = ["sa", "sb"].map(|name| empty(&cluster, name, MIB));
    let journals = ["ja", "jb"].map(|name| cluster.scratch().join(name).display().to_string());
    let texts = disks.each_ref().map(BadDisk::text);
    let with = |at: usize| {
        let journal = ["--journal", &journals[at], "--journal-size", "16M"];
        [&["--disk", &texts[at], "--spare", &spares[at]], &journal[..]].concat()
    };
    cluster[0].ok(&[&["create", "r0"], &with(0)[..]].concat());
    cluster[1].ok(&[&["join", "r0", "--protocol", "log"], &with(1)[..]].concat());
    cluster[1].wait_resource("r0", SYNC, "filled", |status| status.disk.state == "UpToDate");
    disks[0].set_bad(Bad::Dead, 10..13);
    disks[1].set_bad(Bad::Dead, 20..25);
    write_blocks(&cluster[0], "r0", 1, 0..64);
    for (node, count) in [(0, 3), (1, 5)] {
        cluster[node].wait_resource("r0", SYNC, "written back over bad blocks", |status| {
            status.disk.remapped_sectors == count
        });
    }
    assert_eq!(mapped(&cluster[0], "r0"), [10, 11, 12]);
    for node in 0..2 {
        cluster[node].kill9();
        cluster[node].start();
    }
    wait_primary(&cluster[0], "r0");
    check_blocks(&cluster[0], "r0", 1, 0..64);
    cluster[1].wait_resource("r0", SYNC, "following again", |status| {
        status.disk.state == "UpToDate"
            && status.disk.remapped_sectors == 5
            && status.peers.iter().all(|peer| peer.connection == "Connected")
    });
    // What it has is what was written.
    cluster[0].stop();
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 1, 0..64);
}

/// Rows 41, 42, 44: by hand, and from lists; a dry run changes nothing.
#[test]
fn row_041_blocks_are_moved_by_hand_and_back() {
    if unavailable() {
        return;
    }
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = BadDisk::new(cluster.scratch(), "old", 8 * MIB);
    let spare = empty(&cluster, "spare", MIB);
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &spare]);
    write_blocks(node, "old", 1, 0..100);
    let before = (disk.peek(0, 8 << 20), std::fs::read(&spare).expect("it can be read"));
    let now = || (disk.peek(0, 8 << 20), std::fs::read(&spare).expect("it can be read"));
    let said = node.ok(&["badblocks", "add", "old", "80-95", "@48K", "--dry-run"]);
    assert!(said.contains("3 blocks of 4096 bytes") && said.contains("nothing"), "{said}");
    assert!(now() == before, "a dry run changed something");
    node.ok(&["badblocks", "add", "old", "80-95", "@48K"]);
    assert_eq!(mapped(node, "old"), [10, 11, 12]);
    // The spare counts.
    disk.poke(10 * BLOCK, &[0xee; 3 * 4096]);
    check_blocks(node, "old", 1, 0..100);
    node.refused(&["badblocks", "add", "old", "@8M"], 1, "not inside of the resource");
    node.refused(&["badblocks", "remove", "old", "800"], 1, "no block of it is in a spare");
    let dry = node.ok(&["badblocks", "remove", "old", "--all", "--dry-run"]);
    assert!(dry.contains("3 blocks") && mapped(node, "old").len() == 3, "{dry}");
    disk.set_bad(Bad::Unwritable, [11]);
    let done = node.json(&["badblocks", "remove", "old", "--all"]);
    assert_eq!((&done["returned"], &done["failed"]), (&2.into(), &1.into()));
    assert_eq!(mapped(node, "old"), [11]);
    assert_eq!(disk.peek(10 * BLOCK, 4096), holdfast_testkit::block_content(1, 1, 10));
    check_blocks(node, "old", 1, 0..100);

    disk.set_bad(Bad::Unreadable, [40]);
    let list = cluster.scratch().join("list");
    std::fs::write(&list, "80\n81\n160\n").expect("it can be written");
    let list = list.display().to_string();
    let done = node.json(&["badblocks", "import", "old", &list]);
    assert_eq!((&done["moved"], &done["lost"]), (&1.into(), &1.into()), "{done}");
    assert_eq!(mapped(node, "old"), [11, 20]);
    assert!(listed(node, "old").contains(&(40, "lost".to_owned())));
    // What is lost is lost until it is written.
    write_blocks(node, "old", 1, 40..41);
    check_blocks(node, "old", 1, 0..100);
    assert_eq!(node.resource("old").disk.lost_sectors, 0);
    let map = cluster.scratch().join("map");
    let text = "# Mapfile\n0x0 + 1\n0x00000000 0x32000 +\n0x00032000 0x2000 -\n";
    std::fs::write(&map, text).expect("it can be written");
    node.ok(&["badblocks", "import", "old", &map.display().to_string()]);
    assert_eq!(mapped(node, "old"), [11, 20, 50, 51]);
    node.wait_log("it is on a list of bad blocks");
    std::fs::write(&map, "no list").expect("it can be written");
    node.refused(&["badblocks", "import", "old", &map.display().to_string()], 1, "line 1");
}

/// A list that takes more than one call is refused as a whole, and counted as a whole.
#[test]
fn a_long_list_is_imported_as_a_whole_or_not_at_all() {
    const BLOCKS: u64 = 24_004;
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = empty(&cluster, "disk", BLOCKS * BLOCK);
    let spare = empty(&cluster, "spare", 46 * MIB);
    node.ok(&["create", "old", "--disk", &disk, "--spare", &spare]);
    let free = node.resource("old").disk.spare_sectors_free;
    assert!((11_000..12_000).contains(&free), "{free}");
    let list = cluster.scratch().join("list");
    let write = |sectors: &mut dyn Iterator<Item = u64>| {
        let lines: Vec<String> = sectors.map(|sector| sector.to_string()).collect();
        std::fs::write(&list, lines.join("\n")).expect("it can be written");
    };
    let path = list.display().to_string();
    let import = |more: &[&'static str]| -> Vec<String> {
        let words = ["badblocks", "import", "old", &path, "--block-size", "512"];
        words.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let refused = |more: &[&'static str]| {
        let words = import(more);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let why = format!("12001 blocks need a slot, and the spares have {free}");
        node.refused(&words, 1, &why);
    };
    let json = |more: &[&'static str]| {
        let words = import(more);
        node.json(&words.iter().map(String::as_str).collect::<Vec<_>>())
    };

    // Each call alone has room; all of them together have none.
    write(&mut (0..12_001).map(|n| n * 16));
    refused(&["--dry-run"]);
    refused(&[]);
    assert!(mapped(node, "old").is_empty());
    // Two sectors of a block are one block, wherever the list is cut.
    write(&mut (0..11_000).flat_map(|n| [n * 16, n * 16 + 5]));
    let would = json(&["--dry-run"]);
    assert_eq!((&would["moved"], &would["free"]), (&11_000.into(), &free.into()), "{would}");
    assert!(mapped(node, "old").is_empty());
    // A list of the whole disk names what is behind the end of the resource.
    write(&mut [40, 47, 80].into_iter().chain((0..11_000).map(|n| (BLOCKS + n * 2) * 8)));
    let done = json(&[]);
    assert_eq!((&done["moved"], &done["outside"]), (&2.into(), &11_000.into()), "{done}");
    write(&mut [160, BLOCKS * 8].into_iter());
    let words = import(&[]);
    let said = node.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("1 block of the list lies behind its end and was left out"), "{said}");
    assert_eq!(mapped(node, "old"), [5, 10, 20]);
    // What badblocks(8) says of a disk in order.
    write(&mut std::iter::empty());
    let words = import(&[]);
    let said = node.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("the list names no block"), "{said}");
    node.refused(&["badblocks", "add", "old", "192032"], 1, "not inside of the resource");
}

/// Rows 36, 38: slots that fail are replaced; when none is left the write fails, and says so.
#[test]
fn row_038_a_spare_fails_and_is_exhausted() {
    if unavailable() {
        return;
    }
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = BadDisk::new(cluster.scratch(), "old", 4 * MIB);
    let spare = BadDisk::new(cluster.scratch(), "spare", 14 * BLOCK);
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &spare.text()]);
    assert_eq!(node.resource("old").disk.spare_sectors, 10);
    // The slots begin behind the header and the table.
    spare.set_bad(Bad::Dead, 2..4);
    disk.set_bad(Bad::Dead, 0..9);
    write_blocks(node, "old", 1, 0..8);
    check_blocks(node, "old", 1, 0..8);
    let status = node.resource("old").disk;
    assert_eq!((status.remapped_sectors, status.spares[0].bad), (8, 2));
    assert_eq!((status.spare_sectors_free, status.spare_fill.as_deref()), (0, Some("full")));
    node.wait_log("the spares of the disk are full");
    let mut client = node.open("old");
    client.write_at(&[1; 4096], 8 * BLOCK).expect_err("no slot is left");
    let status = node
        .wait_resource("old", SOON, "the disk is given up", |status| status.disk.problem.is_some());
    let problem = status.disk.problem.expect("just looked");
    assert!(problem.contains("spare"), "{problem}");
}

/// The end of a resource: what is in the spare goes back, and the spare is free.
#[test]
fn row_082_delete_leaves_the_data_on_the_disk() {
    if unavailable() {
        return;
    }
    let cluster = cluster(1);
    let node = &cluster[0];
    let disk = BadDisk::new(cluster.scratch(), "old", 4 * MIB);
    let spare = empty(&cluster, "spare", MIB);
    node.ok(&["create", "old", "--disk", &disk.text(), "--spare", &spare]);
    disk.set_bad(Bad::Dead, 5..8);
    write_blocks(node, "old", 1, 0..10);
    disk.heal_all();
    node.ok(&["delete", "old"]);
    wait_until(SOON, "the resource has ended", || node.status().resources.is_empty());
    for block in 0..10 {
        assert_eq!(disk.peek(block * BLOCK, 4096), holdfast_testkit::block_content(1, 1, block));
    }
    // Neither disk nor spare belongs to anybody.
    node.ok(&["create", "new", "--disk", &disk.text(), "--spare", &spare]);
    check_blocks(node, "new", 1, 0..10);
    disk.set_bad(Bad::Dead, [9]);
    write_blocks(node, "new", 2, [9]);
    node.ok(&["delete", "new"]);
    wait_until(SOON, "the resource has ended", || node.status().resources.is_empty());
    // The block that the disk does not take is not thrown away.
    node.wait_log("1 block of the resource");
    let again = ["create", "newer", "--disk", &disk.text(), "--spare", &spare];
    node.refused(&again, 1, "it is not empty");
}
