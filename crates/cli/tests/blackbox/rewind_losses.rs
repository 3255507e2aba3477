//! Copies past the daemon (`rewind --into`) of disks that are known not to hold what was written.

use crate::logpeer::{SIZE, wait_all};
use crate::logpeer_healing::{flip, losses, scrub, with_a_bad_primary, with_checksums};
use crate::{SOON, cluster, write_blocks};
use holdfast_testkit::{Cluster, files};
use std::path::PathBuf;

/// The copy, and the command that makes it.
fn copy_of(cluster: &Cluster) -> (PathBuf, [String; 6]) {
    let copy = cluster.scratch().join("copy");
    let into = copy.display().to_string();
    let words = ["rewind", "r0", "--to", "latest", "--into", &into].map(str::to_owned);
    (copy, words)
}

#[test]
fn a_disk_with_lost_blocks_is_not_copied_until_they_are_good() {
    let cluster = cluster(1);
    let node = &cluster[0];
    with_a_bad_primary(&cluster);
    assert_eq!(scrub(node), 6);
    let (copy, words) = copy_of(&cluster);
    let words = words.each_ref().map(String::as_str);
    let refused = |why: &str| {
        node.refused(&words, 1, why);
        assert!(!copy.exists());
    };
    node.ok(&["down", "r0"]);
    refused("checksums are kept for its disk");
    node.ok(&["set", "r0", "checksums=off"]);
    refused("6 blocks of its disk are not what was written");
    node.ok(&["up", "r0"]);
    node.ok(&["primary", "r0"]);
    write_blocks(node, "r0", 1, (5000..5004).chain([0, 7000]));
    node.ok(&["down", "r0"]);
    // Its journal failed, and was being written to the disk when the node died.
    let rescued = node.dir().join("j/rescued");
    std::fs::write(&rescued, [0; 4096]).expect("it can be written");
    refused("its disk was written to past the journal");
    std::fs::remove_file(&rescued).expect("it is there");
    node.ok(&words);
    files::assert_equal(&copy, &node.disk("r0"), SIZE);
}

#[test]
fn nor_is_that_of_a_log_peer_up_or_down() {
    let mut cluster = cluster(2);
    with_checksums(&cluster);
    cluster[0].stop();
    flip(&cluster[1].disk("r0"), 5000..5010);
    assert_eq!(scrub(&cluster[1]), 10);
    losses(&cluster[1], 0, 10);
    cluster[1].ok(&["pause", "r0", "replay"]);
    let (copy, words) = copy_of(&cluster);
    let words = words.each_ref().map(String::as_str);
    cluster[1].refused(&words, 1, "checksums are kept for its disk");
    cluster[1].ok(&["set", "r0", "checksums=off"]);
    cluster[1].refused(&words, 1, "10 blocks of its disk are not what was written");
    cluster[1].ok(&["down", "r0"]);
    cluster[1].refused(&words, 1, "10 blocks of its disk are not what was written");
    assert!(!copy.exists());
    cluster[1].ok(&["up", "r0"]);
    cluster[0].start();
    cluster[0].wait_resource("r0", SOON, "Primary again", |r| r.role == "Primary");
    losses(&cluster[1], 10, 0);
    cluster[1].ok(&words);
    cluster[1].ok(&["resume", "r0", "replay"]);
    wait_all(&cluster[0]);
    files::assert_equal(&copy, &cluster[0].disk("r0"), SIZE);
}
