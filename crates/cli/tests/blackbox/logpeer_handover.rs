//! A Primary that is to step back for a log peer, and it does not come to that: it is Primary as before,
//! with its local device.

use crate::device::device;
use crate::logpeer::{SIZE, wait_all, wait_follows};
use crate::{SOON, check_blocks, cluster_with_proxies, write_blocks};
use holdfast_testkit::{BadDisk, Cluster, Cut, devices_unavailable, files, wait_until};
use std::process::Stdio;

/// r0 with a local device on the first node, and the second one follows it. The disk of node `slow` can
/// be stalled. `None` where there are no such disks.
fn pair(slow: usize) -> Option<(Cluster, BadDisk)> {
    if let Some(why) = devices_unavailable() {
        eprintln!("not tested: {why}");
        return None;
    }
    let cluster = cluster_with_proxies(2);
    let disk = BadDisk::new(cluster.scratch(), "slow", SIZE);
    for (index, node) in cluster.nodes().iter().enumerate() {
        let path = if index == slow { disk.path() } else { node.disk("r0") };
        if index != slow {
            files::make_sparse(&path, SIZE);
        }
        let (path, journal) = (path.display().to_string(), node.dir().join("j"));
        let journal = journal.display().to_string();
        let begin =
            if index == 0 { &["create", "r0"][..] } else { &["join", "r0", "--protocol", "log"] };
        let places = ["--disk", &path, "--journal", &journal, "--journal-size", "64M"];
        node.ok(&[begin, &places].concat());
    }
    write_blocks(&cluster[0], "r0", 1, 0..100);
    wait_all(&cluster[0]);
    device(&cluster, 0);
    Some((cluster, disk))
}

/// The first node is Primary and has its device, when nothing changes it any more.
fn assert_as_before(cluster: &Cluster) {
    cluster[0].ok(&["up", "r0"]);
    let seen = cluster[0].resource("r0");
    assert_eq!(seen.role, "Primary");
    assert!(seen.device.is_some(), "its device was taken away");
}

#[test]
fn a_primary_does_not_step_back_for_a_node_that_has_given_up_waiting() {
    let Some((cluster, disk)) = pair(0) else { return };
    disk.stall(true);
    write_blocks(&cluster[0], "r0", 2, 0..100);
    // What its journal has cannot be written back in that time. It is said a second before that is over:
    // when the machine stands still just then, the answer comes too late.
    let refused = cluster[1].cli(&["--timeout", "8", "primary", "r0"]);
    let too_late = refused.status == 5;
    let in_time = refused.status == 1 && refused.stderr.contains("does not have yet");
    assert!(in_time || too_late, "{refused}");
    assert_as_before(&cluster);
    // The connection is lost, and who wanted to lead says so by the next one.
    let primary = cluster[1].command(&["primary", "r0"]).stderr(Stdio::null()).spawn();
    let mut primary = primary.expect("the command can be run");
    wait_until(SOON, "it is asked once more", || {
        cluster[0].log().matches("asks this node to step back").count() > 1
    });
    cluster[0].proxy().cut_once(Cut::Reset);
    assert!(!primary.wait().expect("it ends").success());
    assert_as_before(&cluster);
    disk.stall(false);
    wait_until(SOON, "all is written back", || {
        cluster[0].resource("r0").journal.is_some_and(|journal| journal.dirty_bytes == 0)
    });
    assert_as_before(&cluster);
    wait_all(&cluster[0]);
    // It may be just about to come back.
    wait_follows(&cluster[1]);
    cluster[1].ok(&["primary", "r0"]);
    assert_eq!(cluster[0].resource("r0").device, None);
    check_blocks(&cluster[1], "r0", 2, 0..100);
}

#[test]
fn a_primary_that_stepped_back_in_vain_has_its_device_again() {
    let Some((cluster, disk)) = pair(1) else { return };
    disk.stall(true);
    write_blocks(&cluster[0], "r0", 2, 0..100);
    let too_late = "the rest of the journal did not come in time";
    cluster[1].refused(&["--timeout", "10", "primary", "r0"], 5, too_late);
    assert_as_before(&cluster);
    disk.stall(false);
    wait_all(&cluster[0]);
    cluster[1].ok(&["primary", "r0"]);
    check_blocks(&cluster[1], "r0", 2, 0..100);
}
