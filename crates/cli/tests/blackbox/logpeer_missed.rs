//! A node that leads although its own disk misses what others wrote: a log peer is never called
//! up-to-date with a mixture of both.

use crate::logpeer::{assert_same, disk_state, wait_gone};
use crate::logpeer_roles::{pair_and_follower, wait_third};
use crate::{BLOCK, SOON, SYNC, check_blocks, write_blocks};
use holdfast_testkit::{Cluster, block_content, files, wait_until};

/// Whether the disk of a node has what [`write_blocks`] gave to a block.
fn has(cluster: &Cluster, node: usize, seed: u64, block: u64) -> bool {
    let disk = cluster[node].disk("r0");
    files::read(&disk, block * BLOCK, 4096) == block_content(seed, 1, block)
}

/// Alpha is Primary again, with a disk that lacks blocks 100 to 199 and gets none of them for now.
pub(crate) fn lacks_a_hundred_blocks() -> Cluster {
    let cluster = pair_and_follower();
    write_blocks(&cluster[0], "r0", 1, 0..300);
    wait_third(&cluster[0]);
    cluster[0].ok(&["detach-disk", "r0"]);
    write_blocks(&cluster[0], "r0", 2, 100..200);
    cluster[0].ok(&["secondary", "r0"]);
    cluster[0].ok(&["pause", "r0", "sync"]);
    cluster[0].ok(&["attach-disk", "r0"]);
    cluster[0].wait_peer("r0", "beta", SOON, "it would be filled", |peer| {
        peer.replication == "PausedSyncT"
    });
    assert_eq!(disk_state(&cluster[0]), "Inconsistent");
    cluster[0].ok(&["primary", "r0"]);
    cluster
}

#[test]
fn a_log_peer_is_filled_when_the_disk_of_who_leads_it_missed_writes() {
    let mut cluster = lacks_a_hundred_blocks();
    write_blocks(&cluster[0], "r0", 3, 250..300);
    wait_until(SYNC, "it has all of it", || {
        let mixed = || (250..300).any(|b| has(&cluster, 2, 3, b)) && !has(&cluster, 2, 2, 150);
        let before = mixed();
        let state = disk_state(&cluster[2]);
        assert!(state != "UpToDate" || !before || !mixed(), "a mixture is called up-to-date");
        (100..200).all(|b| has(&cluster, 2, 2, b)) && (250..300).all(|b| has(&cluster, 2, 3, b))
    });
    wait_third(&cluster[0]);
    assert!(!has(&cluster, 0, 2, 150), "what it leads with lacks them still");
    // It is what the clients of the other one read, and goes on.
    write_blocks(&cluster[0], "r0", 4, 0..10);
    wait_third(&cluster[0]);
    cluster[0].kill9();
    cluster[1].kill9();
    wait_gone(&cluster[2], "alpha");
    cluster[2].ok(&["primary", "r0", "--force"]);
    check_blocks(&cluster[2], "r0", 4, 0..10);
    check_blocks(&cluster[2], "r0", 1, 10..100);
    check_blocks(&cluster[2], "r0", 2, 100..200);
    check_blocks(&cluster[2], "r0", 3, 250..300);
}

#[test]
fn what_a_disk_that_missed_writes_gets_later_is_followed_as_it_comes() {
    let cluster = lacks_a_hundred_blocks();
    wait_third(&cluster[0]);
    cluster[0].ok(&["resume", "r0", "sync"]);
    write_blocks(&cluster[0], "r0", 3, 150..160);
    cluster[0].wait_resource("r0", SYNC, "its disk has all", |r| r.disk.state == "UpToDate");
    wait_third(&cluster[0]);
    assert_same(&cluster, 0, 1);
    assert_same(&cluster, 0, 2);
    check_blocks(&cluster[0], "r0", 2, 160..200);
}
