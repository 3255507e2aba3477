//! Base images of what the disk of the Primary does not have itself, or has no good copy of.

use crate::archive::{now, place_of, restore, wait_complete};
use crate::logpeer::{SIZE, disk_state};
use crate::logpeer_healing::{scrub, with_a_bad_primary};
use crate::logpeer_missed::lacks_a_hundred_blocks;
use crate::{BLOCK, SOON, cluster, write_blocks};
use holdfast_testkit::{Cluster, block_content, files, wait_until};
use std::path::Path;

fn archive(cluster: &Cluster) {
    cluster[0].ok(&["set", "r0", &format!("archive={}", place_of(cluster).display())]);
    cluster[0].ok(&["set", "r0", "archive-interval=1s"]);
}

fn check_copy(copy: &Path, seed: u64, blocks: impl IntoIterator<Item = u64>) {
    for block in blocks {
        let found = files::read(copy, block * BLOCK, 4096);
        assert!(
            found == block_content(seed, 1, block),
            "block {block} holds {:02x?}",
            &found[..32]
        );
    }
}

#[test]
fn what_the_disk_of_a_primary_missed_comes_into_its_base_image_from_the_peer() {
    let cluster = lacks_a_hundred_blocks();
    archive(&cluster);
    wait_complete(&cluster[0], now());
    write_blocks(&cluster[0], "r0", 3, 150..160);
    wait_complete(&cluster[0], now());
    assert_eq!(disk_state(&cluster[0]), "Inconsistent", "it lacks them still");
    let copy = cluster.scratch().join("copy");
    restore(&cluster[0], &place_of(&cluster), "latest", &copy);
    check_copy(&copy, 1, (0..100).chain(200..300));
    check_copy(&copy, 2, (100..150).chain(160..200));
    check_copy(&copy, 3, 150..160);
}

#[test]
fn what_nobody_has_keeps_a_base_image_back_and_not_the_journal() {
    let cluster = cluster(1);
    with_a_bad_primary(&cluster);
    assert_eq!(scrub(&cluster[0]), 6);
    // The disk itself does not know any more that they are wrong: it gives what it has.
    cluster[0].ok(&["set", "r0", "checksums=off"]);
    archive(&cluster);
    let told = cluster[0].wait_resource("r0", SOON, "it is told", |r| {
        let archive = r.archive.as_ref();
        archive.is_some_and(|archive| {
            assert_eq!(archive.complete_unix_ms, 0, "there is no image");
            archive.problem.is_some()
        })
    });
    assert_eq!(
        told.archive.and_then(|archive| archive.problem).as_deref(),
        Some(
            "no base image can be made, for what lies at byte 0: no member in reach has a good copy \
             of it"
        )
    );
    // While it is tried again, it may be something else for a moment.
    wait_until(SOON, "a person is told", || {
        let told = cluster[0].ok(&["status"]);
        told.contains("not everything is archived at present: no base image")
    });
    write_blocks(&cluster[0], "r0", 1, [0, 7000]);
    let head = cluster[0].resource("r0").journal.expect("it has one").head;
    cluster[0].wait_resource("r0", SOON, "the journal goes on meanwhile", |r| {
        r.archive.as_ref().is_some_and(|archive| archive.position >= head)
    });
    cluster[0].wait_resource("r0", SOON, "the next one is told", |r| {
        let problem = r.archive.as_ref().and_then(|archive| archive.problem.as_ref());
        problem.is_some_and(|problem| problem.contains("at byte 20480000: no member"))
    });
    // Written anew it is good.
    write_blocks(&cluster[0], "r0", 2, 5000..5004);
    cluster[0].wait_resource("r0", SOON, "all is well", |r| {
        let archive = r.archive.as_ref();
        archive.is_some_and(|archive| archive.problem.is_none() && archive.complete_unix_ms > 0)
    });
    wait_complete(&cluster[0], now());
    let copy = cluster.scratch().join("copy");
    restore(&cluster[0], &place_of(&cluster), "latest", &copy);
    check_copy(&copy, 1, [0, 7000]);
    check_copy(&copy, 2, 5000..5004);
    cluster[0].ok(&["secondary", "r0"]);
    files::assert_equal(&copy, &cluster[0].disk("r0"), SIZE);
}
