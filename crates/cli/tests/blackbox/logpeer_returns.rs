//! Nodes that come back after another one led: what only one of them has is neither passed over nor
//! replaced.

use crate::logpeer::{assert_same, disk_state, follow, wait_all, wait_gone};
use crate::logpeer_roles::{pair_and_follower, wait_third};
use crate::{SOON, SYNC, check_blocks, cluster, write_blocks};
use holdfast_api::status::PeerStatus;
use holdfast_testkit::{Cluster, Node, files, wait_until};

const SIZE: u64 = 32 * crate::MIB;

/// The next segments of its journal cannot get their names: it fails, and the node goes on without.
fn fail_journal(node: &Node) {
    let dir = node.dir().join("r0.journal");
    for number in 2..60 {
        let name = dir.join(format!("segment-{number:016x}"));
        if !name.exists() {
            std::fs::create_dir_all(name.join("occupied")).expect("it is made");
        }
    }
    for round in 50..54 {
        write_blocks(node, "r0", round, 0..1024);
    }
    node.wait_resource("r0", SOON, "the journal has failed", |r| {
        r.journal.as_ref().is_some_and(|journal| journal.problem.is_some())
    });
}

/// What was in the way of its journal is gone.
fn mend_journal(node: &Node) {
    let dir = node.dir().join("r0.journal");
    for entry in std::fs::read_dir(&dir).expect("it is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("it is removed");
        }
    }
}

/// The first of so many nodes is Primary, the others follow it and have all that it wrote.
pub(crate) fn followed(nodes: usize) -> Cluster {
    let cluster = cluster(nodes);
    follow(&cluster, "64M");
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_all(&cluster[0]);
    cluster
}

pub(crate) fn is_split(peer: &PeerStatus) -> bool {
    peer.problem.as_ref().is_some_and(|problem| problem.code == "SPLIT_BRAIN")
}

#[test]
fn who_was_primary_waits_when_another_one_led_meanwhile_and_has_more() {
    let mut cluster = followed(2);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 100..200);
    cluster[1].ok(&["secondary", "r0"]);
    // Nobody leads; what it has is an old state.
    cluster[0].start();
    wait_until(SOON, "it says why it is not Primary", || {
        assert_eq!(cluster[0].resource("r0").role, "Secondary");
        let log = cluster[0].log();
        log.contains(
            "stays Secondary: node beta may have newer data; `holdfast primary r0 --force`",
        )
    });
    // Nor by a command that does not say that this is wanted.
    let refused = cluster[0].cli(&["primary", "r0", "--json"]);
    assert!(refused.status == 1 && refused.stderr.contains("BEHIND"), "{refused}");
    assert!(refused.stderr.contains("node beta may have newer data"), "{refused}");
    assert_eq!(cluster[0].resource("r0").role, "Secondary");
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, (100..200).step_by(7));
    wait_all(&cluster[1]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn a_member_that_comes_without_its_disk_is_not_filled_when_that_comes_back() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_third(&cluster[0]);
    cluster[2].ok(&["pause", "r0", "fetch"]);
    write_blocks(&cluster[0], "r0", 2, 100..200);
    cluster[0].kill9();
    cluster[1].stop();
    let disk = cluster[1].disk("r0");
    let away = disk.with_extension("away");
    std::fs::rename(&disk, &away).expect("it is renamed");
    cluster[1].start();
    assert_eq!(disk_state(&cluster[1]), "Diskless");
    std::fs::rename(&away, &disk).expect("it is renamed");
    let kept = files::fingerprint(&disk, SIZE);
    // It is told who leads, with data that are older than those of its disk.
    wait_gone(&cluster[2], "alpha");
    cluster[2].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[2], "r0", 3, 250..300);
    assert_eq!(disk_state(&cluster[1]), "Diskless");
    cluster[1].stop();
    cluster[1].start();
    cluster[1].wait_peer("r0", "gamma", SOON, "it is told", is_split);
    assert_eq!(files::fingerprint(&disk, SIZE), kept);
    cluster[2].ok(&["secondary", "r0"]);
    cluster[1].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[1], "r0", 2, (100..200).step_by(7));
}

#[test]
fn a_detached_disk_is_not_used_for_following_until_it_is_attached() {
    let mut cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_third(&cluster[0]);
    cluster[1].ok(&["detach-disk", "r0"]);
    let kept = files::fingerprint(&cluster[1].disk("r0"), SIZE);
    cluster[2].ok(&["primary", "r0"]);
    write_blocks(&cluster[2], "r0", 2, 0..50);
    assert_eq!(disk_state(&cluster[1]), "Diskless");
    cluster[1].stop();
    cluster[1].start();
    assert_eq!(disk_state(&cluster[1]), "Diskless");
    assert_eq!(files::fingerprint(&cluster[1].disk("r0"), SIZE), kept);
    cluster[1].ok(&["attach-disk", "r0"]);
    wait_all(&cluster[2]);
    assert_same(&cluster, 2, 1);
}

#[test]
fn of_two_that_were_primary_the_one_with_newer_data_leads_although_a_third_is_silent() {
    let mut cluster = followed(3);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 2, 100..200);
    cluster[1].kill9();
    cluster[2].freeze();
    // Each asks the silent one for seconds, and the other one meanwhile.
    std::thread::scope(|scope| {
        for node in &mut cluster.nodes_mut()[..2] {
            scope.spawn(|| node.start());
        }
    });
    wait_until(SYNC, "the old one follows the new one", || {
        let old = cluster[0].resource("r0");
        assert_ne!(old.role, "Primary", "it leads with old data");
        old.replay.is_some()
    });
    cluster[1].wait_resource("r0", SOON, "the new one leads", |r| r.role == "Primary");
    cluster[2].thaw();
    check_blocks(&cluster[1], "r0", 2, (100..200).step_by(7));
    wait_all(&cluster[1]);
    assert_same(&cluster, 1, 0);
}

#[test]
fn what_went_past_the_failed_journal_of_a_primary_is_not_replaced_unasked() {
    let mut cluster = followed(2);
    fail_journal(&cluster[0]);
    write_blocks(&cluster[0], "r0", 2, 2000..2100);
    cluster[0].kill9();
    mend_journal(&cluster[0]);
    let kept = files::fingerprint(&cluster[0].disk("r0"), SIZE);
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    write_blocks(&cluster[1], "r0", 3, 0..50);
    cluster[0].start();
    cluster[0].wait_peer("r0", "beta", SOON, "it is told", is_split);
    cluster[1].wait_peer("r0", "alpha", SOON, "it is told there", is_split);
    assert_eq!(disk_state(&cluster[0]), "UpToDate");
    assert_eq!(cluster[0].resource("r0").role, "Secondary");
    assert_eq!(files::fingerprint(&cluster[0].disk("r0"), SIZE), kept);
    cluster[0].ok(&["connect", "r0", "--discard-my-data"]);
    wait_all(&cluster[1]);
    assert_same(&cluster, 0, 1);
}

#[test]
fn a_log_peer_whose_journal_failed_while_it_led_keeps_its_data_as_a_secondary() {
    let mut cluster = followed(2);
    cluster[0].kill9();
    wait_gone(&cluster[1], "alpha");
    cluster[1].ok(&["primary", "r0", "--force"]);
    fail_journal(&cluster[1]);
    write_blocks(&cluster[1], "r0", 2, 2000..2100);
    cluster[1].ok(&["secondary", "r0"]);
    assert_eq!(disk_state(&cluster[1]), "UpToDate");
    cluster[1].wait_log("the node does not follow");
    // Nor is it given up by a start.
    cluster[1].kill9();
    mend_journal(&cluster[1]);
    cluster[1].start();
    assert_eq!(disk_state(&cluster[1]), "UpToDate");
    // Nor for who comes back with less.
    cluster[0].start();
    wait_until(SOON, "it says why it is not Primary", || {
        assert_eq!(cluster[0].resource("r0").role, "Secondary");
        cluster[0].log().contains("stays Secondary: node beta may have newer data")
    });
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, (2000..2100).step_by(7));
}

#[test]
fn a_log_peer_leaves_when_another_one_has_what_it_has_and_also_without_its_disk() {
    let mut cluster = followed(3);
    cluster[2].stop();
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["down", "r0"]);
    // The daemon lives, and that is all.
    cluster[1].refused(&["leave", "r0"], 1, "no other node in reach has what is here");
    cluster[0].ok(&["up", "r0"]);
    cluster[1].ok(&["leave", "r0"]);
    cluster[0].ok(&["primary", "r0"]);
    // Its disk is gone for good.
    let disk = cluster[2].disk("r0");
    std::fs::rename(&disk, disk.with_extension("away")).expect("it is renamed");
    cluster[2].start();
    cluster[2].ok(&["leave", "r0"]);
    cluster[0].wait_resource("r0", SYNC, "it has gone", |r| r.peers.is_empty());
}
