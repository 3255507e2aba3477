//! Metadata after crashes and with damage.

use crate::{MIB, SOON, cluster, write_blocks};
use holdfast_testkit::{Cluster, Ledger, Rng, Writer, WriterOptions, files, run};
use std::fs::File;
use std::os::unix::fs::FileExt;

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
        cluster[0].wait_synced("r0", SOON);
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
        cluster[0].wait_synced("r0", SOON);
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
    let status = cluster[1].resource("r0");
    assert!(["Diskless", "Failed"].contains(&&*status.disk.state), "{status:?}");
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
