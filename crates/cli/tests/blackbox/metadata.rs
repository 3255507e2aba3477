//! Metadata after crashes and with damage.

use crate::{MIB, SOON, SYNC, cluster, write_blocks};
use holdfast_testkit::{
    Cluster, Ledger, Mount, Rng, Writer, WriterOptions, files, run, run_ok, wait_until,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const SIZE: u64 = 64 * MIB;

/// Two nodes, whose metadata are in `r0.meta` in their directories.
fn with_metadata_beside() -> Cluster {
    let cluster = cluster(2);
    cluster.create("r0", SIZE, &["--meta", &meta(&cluster, 0), "--set", "al-extents=67"]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--meta", &meta(&cluster, 1)]);
    cluster[0].wait_synced("r0", SOON);
    cluster
}

fn meta(cluster: &Cluster, index: usize) -> String {
    cluster[index].dir().join("r0.meta").display().to_string()
}

#[test]
fn row_154_metadata_are_whole_whenever_the_daemon_is_killed() {
    let mut cluster = with_metadata_beside();
    let mut rng = Rng::new(154);
    let mut ledger = Ledger::new(154, usize::try_from(SIZE / 4096).expect("it is small"));
    for round in 0..6 {
        let options = WriterOptions { connections: 4, flush_every: 7, ..Default::default() };
        let writer = Writer::start(&cluster[0].uri("r0"), ledger, options);
        writer.wait_acknowledged(1 + rng.below(60));
        // Changes of generation and bitmaps are under way, too.
        let peer_first = rng.below(2) == 0;
        if peer_first {
            cluster[1].kill9();
            let so_far = writer.acknowledged();
            writer.wait_acknowledged(so_far + rng.below(10));
        }
        cluster[0].kill9();
        (ledger, _) = writer.join();
        for index in [0, 1] {
            if !cluster[index].is_running() {
                let checked = cluster[index].cli(&["meta", "check", &meta(&cluster, index)]);
                assert_eq!(checked.status, 0, "round {round}: {checked}");
            }
        }
        cluster[0].start();
        if peer_first {
            cluster[1].start();
        }
        // All that was hot is all of it.
        cluster[0].wait_synced("r0", SYNC);
        if cluster[0].resource("r0").role != "Primary" {
            cluster[0].ok(&["primary", "r0"]);
        }
        ledger.verify_export(&cluster[0].uri("r0"));
        cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
    }
}

/// The offset and length of every run of blocks that has something in it.
fn used_blocks(path: &str) -> Vec<u64> {
    let len = std::fs::metadata(path).expect("it is there").len();
    let used = (0..len / 4096).filter(|block| {
        files::read(path.as_ref(), block * 4096, 4096).iter().any(|byte| *byte != 0)
    });
    used.collect()
}

#[test]
fn row_154_one_torn_block_is_survived_and_told() {
    let mut cluster = with_metadata_beside();
    crate::write_blocks(&cluster[0], "r0", 1, 0..50);
    cluster[1].stop();
    let path = meta(&cluster, 1);
    let whole = std::fs::read(&path).expect("it can be read");
    let blocks = used_blocks(&path);
    assert!(blocks.len() >= 3, "{blocks:?}");
    // Every 7th, so that superblocks and activity log are among them, and the first and last.
    let chosen: Vec<u64> =
        blocks.iter().copied().step_by(7).chain(blocks.last().copied()).collect();
    for block in chosen {
        let file = File::options().write(true).open(&path).expect("it can be opened");
        // The second half of a block is of another write.
        file.write_all_at(&[0xa5; 2048], block * 4096 + 2048).expect("it can be written");
        drop(file);
        let checked = cluster[1].cli(&["meta", "check", &path]);
        assert!(checked.status == 0 || checked.status == 1, "{checked}");
        cluster[1].start();
        // The other one may not have noticed yet that it was away.
        for index in [1, 0] {
            cluster[index].wait_synced("r0", SYNC);
        }
        cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
        cluster[1].stop();
        std::fs::write(&path, &whole).expect("it can be written");
    }
}

#[test]
fn row_154_metadata_beyond_repair_are_refused_and_the_daemon_lives() {
    let mut cluster = with_metadata_beside();
    crate::write_blocks(&cluster[0], "r0", 1, 0..50);
    cluster[1].stop();
    let path = meta(&cluster, 1);
    let len = std::fs::metadata(&path).expect("it is there").len();
    let mut noise = vec![0; usize::try_from(len.min(4 * MIB)).expect("it is small")];
    Rng::new(1).fill(&mut noise);
    std::fs::write(&path, &noise).expect("it can be written");
    let before = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    cluster[1].refused(&["meta", "check", &path], 1, "r0.meta");
    cluster[1].start();
    let status = cluster[1].wait_resource("r0", SOON, "it is without its disk", |status| {
        ["Diskless", "Failed"].contains(&&*status.disk.state)
    });
    assert!(!status.promotable || status.peers[0].disk == "UpToDate");
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), before, "the disk was touched");
    cluster[1].refused(&["attach-disk", "r0"], 1, "r0.meta");
    // The way out: leave, and join anew.
    cluster[1].ok(&["leave", "r0"]);
    std::fs::remove_file(&path).expect("it can be removed");
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--meta", &path]);
    cluster[0].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", SIZE, &[0, 1]);
}

#[test]
fn a_state_directory_that_is_damaged_stops_the_start_with_one_sentence() {
    let mut cluster = cluster(1);
    cluster[0].stop();
    let path = cluster[0].state_dir().join("cluster.state");
    let whole = std::fs::read(&path).expect("it is there");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&path, flipped).expect("it can be written");
    let mut command = cluster[0].command(&["daemon", "--listen", "127.0.0.1:0", "--state-dir"]);
    let output = run(command.arg(cluster[0].state_dir()));
    assert_eq!(output.status, 1, "{output}");
    assert_eq!(output.stderr.matches("error: ").count(), 1, "{output}");
    std::fs::write(&path, whole).expect("it can be written");
    cluster[0].start();
    assert!(cluster[0].status().cluster.is_some());
}

#[test]
fn a_resource_whose_state_file_is_damaged_is_named_and_can_be_left() {
    let mut cluster = cluster(2);
    cluster.resource("r0", 4 * MIB, 2);
    write_blocks(&cluster[0], "r0", 1, 0..10);
    cluster[1].stop();
    let dir = cluster[1].state_dir().join("resources");
    let files = std::fs::read_dir(dir).expect("it is there").flatten().map(|entry| entry.path());
    let files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "state")).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    std::fs::write(file, "nonsense").expect("it can be written");
    cluster[1].start();
    let text = cluster[1].ok(&["status"]);
    assert!(text.contains("resource r0 is left out") && text.contains("leave r0"), "{text}");
    let output = cluster[1].cli(&["primary", "r0"]);
    assert!(output.status == 1 && output.stderr.contains("cannot be used"), "{output}");
    cluster[1].ok(&["leave", "r0"]);
    assert!(!file.exists());
    assert!(!cluster[1].ok(&["status"]).contains("left out"));
    cluster[0].wait_resource("r0", SOON, "it has left", |status| status.peers.is_empty());
    let disk = cluster[1].disk("r0").display().to_string();
    cluster[1].ok(&["join", "r0", "--disk", &disk]);
    cluster[1].wait_synced("r0", SOON);
    cluster.assert_equal_disks("r0", 4 * MIB, &[0, 1]);
}

/// The bitmaps of all members, of a resource of at most 128 MiB: the last 32 blocks.
fn punch_bitmaps(meta: &Path) {
    let len = std::fs::metadata(meta).expect("it is there").len();
    let offset = (len - 32 * 4096).to_string();
    let hole = ["--punch-hole", "--offset", &offset, "--length", "131072"];
    run_ok(Command::new("fallocate").args(hole).arg(meta));
}

/// Takes all the room that is left.
fn fill(small: &Mount) {
    let of = format!("of={}", small.path().join("filler").display());
    let filled = run(Command::new("dd").args(["if=/dev/zero", "bs=4k", &of]));
    assert_ne!(filled.status, 0, "the filesystem is full");
}

#[test]
fn metadata_that_cannot_be_written_are_what_the_problem_names() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    let cluster = cluster(2);
    let small = Mount::memory(&cluster[0].dir().join("small"), MIB);
    let path = small.path().join("m");
    let text = path.display().to_string();
    cluster.create("r0", SIZE, &["--meta", &text]);
    write_blocks(&cluster[0], "r0", 1, 0..50);
    cluster.join_resource(&cluster[1], "r0", SIZE, &[]);
    cluster[0].wait_synced("r0", SOON);
    cluster[0].ok(&["secondary", "r0"]);
    // What the daemon writes between the two would have its room.
    cluster[0].freeze();
    punch_bitmaps(&path);
    fill(&small);
    cluster[0].thaw();
    let _ = cluster[1].cli(&["invalidate", "r0"]);
    let failed = cluster[0].wait_resource("r0", SOON, "it fails", |r| r.disk.state == "Failed");
    let problem = failed.disk.problem.expect("it is said what failed");
    let words = format!("the metadata in {text} could not be written: No space left on device; ");
    assert!(problem.starts_with(&words), "{problem}");
    std::fs::remove_file(small.path().join("filler")).expect("it was just made");
    cluster[0].ok(&["attach-disk", "r0"]);
    assert_eq!(cluster[0].resource("r0").disk.problem, None);
}

#[test]
fn metadata_that_are_gone_are_named() {
    let mut cluster = with_metadata_beside();
    cluster[1].stop();
    let path = meta(&cluster, 1);
    std::fs::rename(&path, format!("{path}.away")).expect("it can be renamed");
    cluster[1].start();
    let words = format!("the metadata in {path} cannot be opened: No such file or directory; ");
    let problem = || cluster[1].resource("r0").disk.problem;
    wait_until(SOON, "it is said why", || problem().is_some());
    let found = problem().expect("it is said why");
    assert!(found.starts_with(&words), "{found}");
    cluster[1].refused(&["attach-disk", "r0"], 1, &path);
    assert!(problem().expect("it is said why").starts_with(&words));
    // Without a disk on purpose there is no problem.
    cluster[1].ok(&["detach-disk", "r0"]);
    assert_eq!(problem(), None);
    std::fs::rename(format!("{path}.away"), &path).expect("it can be renamed");
    cluster[1].ok(&["attach-disk", "r0"]);
    assert_eq!(problem(), None);
    cluster[1].wait_synced("r0", SOON);
}

/// What is left on the filesystem, in bytes.
fn room_left(small: &Mount) -> u64 {
    let output = run_ok(Command::new("stat").args(["-f", "-c", "%a %S"]).arg(small.path()));
    let numbers = output.split_whitespace().map(|text| text.parse::<u64>().expect("a number"));
    numbers.product()
}

fn make_room(small: &Mount) {
    std::fs::remove_file(small.path().join("filler")).expect("it was just made");
}

#[test]
fn a_member_for_whose_bitmap_there_is_no_room_is_refused() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    // 33 blocks of bitmap a member.
    let size = 4096 * MIB;
    let cluster = cluster(3);
    let small = Mount::memory(&cluster[0].dir().join("small"), MIB);
    let text = small.path().join("m").display().to_string();
    cluster.create("r0", size, &["--meta", &text]);
    write_blocks(&cluster[0], "r0", 1, 0..50);
    let filler = small.path().join("filler");
    let fill_all_but = |bytes: u64| {
        // What the daemon writes meanwhile would take room.
        cluster[0].freeze();
        let len = (room_left(&small) - bytes).to_string();
        run_ok(Command::new("fallocate").args(["--length", &len]).arg(&filler));
        assert_eq!(room_left(&small), bytes);
        cluster[0].thaw();
    };
    fill_all_but(20 * 4096);
    let disk = |index: usize| {
        let disk = cluster[index].disk("r0");
        files::make_sparse(&disk, size);
        disk.display().to_string()
    };
    let words = format!(
        "node beta did not join resource r0: node alpha has no room for its bitmap: the metadata \
         in {text} take 132 KiB more, and no space is left on their filesystem\nhint: make room on \
         the filesystem of {text} on node alpha, then try again"
    );
    cluster[1].refused(&["join", "r0", "--disk", &disk(1)], 1, &words);
    wait_until(SOON, "it was given back", || room_left(&small) == 20 * 4096);
    assert!(cluster[1].status().resources.is_empty());
    let status = cluster[0].resource("r0");
    assert_eq!((&*status.disk.state, status.peers.len()), ("UpToDate", 0));
    // A member without a disk needs no room; when it gets one, it does.
    cluster[1].ok(&["join", "r0", "--diskless"]);
    let attach = ["attach-disk", "r0", "--disk", &disk(1)];
    cluster[1].refused(&attach, 1, "attach-disk was refused for r0: node alpha has no room");
    assert_eq!(cluster[1].resource("r0").disk.state, "Diskless");
    make_room(&small);
    cluster[1].ok(&attach);
    cluster[0].wait_synced("r0", SOON);
    // Nor is one taken that another member has no room for.
    fill_all_but(0);
    cluster[2].refused(&["join", "r0", "--disk", &disk(2)], 1, "node alpha has no room");
    // The room for the member that there is stays its own.
    cluster[0].ok(&["invalidate", "r0", "--peer", "beta"]);
    cluster[0].wait_synced("r0", SOON);
    write_blocks(&cluster[0], "r0", 2, 0..50);
    assert_eq!(cluster[0].resource("r0").disk.state, "UpToDate");
    make_room(&small);
    cluster[2].ok(&["join", "r0", "--disk", &disk(2)]);
    cluster[0].wait_synced("r0", SOON);
}

#[test]
fn who_hears_late_of_a_member_takes_it_when_there_is_room() {
    if let Some(why) = holdfast_testkit::devices_unavailable() {
        eprintln!("skipped: no file system can be mounted: {why}");
        return;
    }
    let cluster = cluster(3);
    let small = Mount::memory(&cluster[1].dir().join("small"), MIB);
    let text = small.path().join("m").display().to_string();
    cluster.create("r0", SIZE, &[]);
    cluster.join_resource(&cluster[1], "r0", SIZE, &["--meta", &text]);
    cluster[0].wait_synced("r0", SOON);
    fill(&small);
    cluster[1].freeze();
    cluster.join_resource(&cluster[2], "r0", SIZE, &[]);
    cluster[1].thaw();
    cluster[1].wait_log("node gamma is not taken as a peer: node beta has no room for its bitmap");
    let told = || cluster[1].ok(&["cluster", "status"]).contains("gamma is not taken as a peer");
    wait_until(SOON, "it is told", told);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is back", |peer| peer.disk == "UpToDate");
    cluster[1].wait_resource("r0", SOON, "its disk is good", |r| r.disk.state == "UpToDate");
    make_room(&small);
    cluster[1].wait_peer("r0", "gamma", SOON, "it is taken", |peer| peer.disk == "UpToDate");
    wait_until(SOON, "nothing is wrong any more", || !told());
    cluster[0].wait_synced("r0", SOON);
}
