//! `verify` and `scrub`: what changed behind the daemon's back is found, and repaired from the copies
//! that are right.

use crate::{BLOCK, MIB, SOON, SYNC, cluster, write_blocks};
use holdfast_api::survey::SurveyReports;
use holdfast_testkit::{Cluster, Node, Rng, files};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Nodes whose disks hold the same random data, alpha Primary.
fn filled(count: usize, size: u64, arguments: &[&str]) -> Cluster {
    let cluster = cluster(count);
    files::make_random(&cluster[0].disk("r0"), size, 17);
    cluster.create("r0", size, arguments);
    for node in &cluster.nodes()[1..] {
        cluster.join_resource(node, "r0", size, &[]);
    }
    // Each with each: those that joined have met when both say so.
    for node in cluster.nodes() {
        node.wait_resource("r0", SYNC, "all members are known", |r| r.peers.len() == count - 1);
        node.wait_synced("r0", SYNC);
    }
    cluster
}

/// Flips one bit in each of these blocks, past the daemon.
fn flip(path: &Path, blocks: impl IntoIterator<Item = u64>) {
    let file = File::options().read(true).write(true).open(path).expect("the disk is a file");
    for block in blocks {
        let at = block * BLOCK + block % BLOCK;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is long enough");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("it can be written");
    }
    file.sync_all().expect("it can be synced");
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field} is a number in {report}"))
}

fn counts(report: &Value) -> (u64, u64) {
    (number(report, "differing_blocks"), number(report, "repaired_blocks"))
}

fn reports(node: &Node, what: &str) -> SurveyReports {
    serde_json::from_value(node.json(&[what, "r0", "--report"])).expect("it is a report")
}

/// Waits until the scrub has ended, and gives what came out.
fn wait_scrub(node: &Node, state: &str) -> SurveyReports {
    node.wait_resource("r0", SYNC, &format!("the scrub to be {state}"), |resource| {
        resource.scrub.as_ref().is_some_and(|scrub| scrub.state == state)
    });
    reports(node, "scrub")
}

#[test]
fn a_thousand_flipped_blocks_are_found_and_repaired_from_the_majority() {
    let size = 64 * MIB;
    let cluster = filled(3, size, &["--set", "scrub-rate=0"]);
    write_blocks(&cluster[0], "r0", 1, 0..50);
    let blocks = Rng::new(5).distinct(1000, size / BLOCK);
    flip(&cluster[0].disk("r0"), blocks.iter().copied().step_by(2));
    flip(&cluster[1].disk("r0"), blocks.iter().copied().skip(1).step_by(2));

    let report = cluster[2].json(&["scrub", "r0", "--wait"]);
    assert_eq!(counts(&report), (1000, 1000), "{report}");
    assert_eq!(report["state"], "done");
    assert_eq!(number(&report, "bytes_compared"), size);
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);

    let report = cluster[0].json(&["verify", "r0"]);
    assert_eq!(counts(&report), (0, 0), "{report}");
    assert_eq!(
        cluster[2].metric("holdfast_survey_repaired_blocks", &["kind=\"scrub\""]),
        Some(1000.0)
    );
}

#[test]
fn of_two_copies_the_primarys_counts_when_a_person_says_so() {
    let size = 32 * MIB;
    let cluster = filled(2, size, &["--set", "scrub-rate=0"]);
    let blocks = Rng::new(6).distinct(20, size / BLOCK);
    flip(&cluster[1].disk("r0"), blocks.iter().copied());

    cluster[1].refused(&["verify", "r0"], 1, "20 blocks of 4096 bytes differ");
    cluster[0].wait_peer("r0", "beta", SOON, "they are marked, as DRBD does", |peer| {
        peer.out_of_sync_bytes == 20 * BLOCK
    });
    let report = cluster[0].json(&["scrub", "r0", "--report"]);
    assert!(report["last"].is_null(), "nobody has scrubbed");
    cluster[0].refused(&["scrub", "r0", "--wait"], 1, "20 of them are not repaired");

    let report = cluster[1].json(&["verify", "r0", "--repair"]);
    assert_eq!(counts(&report), (20, 20), "{report}");
    cluster.assert_equal_disks("r0", size, &[0, 1]);
    cluster[0].wait_peer("r0", "beta", SOON, "no mark is left", |peer| peer.out_of_sync_bytes == 0);
    cluster[0].ok(&["verify", "r0"]);

    // Only a part of the device, and only with one peer.
    flip(&cluster[1].disk("r0"), [0, 1, 2, 3]);
    let part = ["verify", "r0", "--start", "8K", "--stop", "1M", "--peer", "beta", "--repair"];
    assert_eq!(counts(&cluster[0].json(&part)), (2, 2));
    cluster[0].refused(&["verify", "r0"], 1, "2 blocks of 4096 bytes differ");
    cluster[0].refused(&["verify", "r0", "--start", "1"], 1, "not whole blocks");
    cluster[0].refused(&["verify", "r0", "--peer", "gamma"], 4, "gamma");
}

#[test]
fn a_scrub_goes_on_where_the_daemon_was_killed_and_finds_the_rest() {
    let size = 48 * MIB;
    // So slow that it is not through before it was killed, and seen, and paused.
    let mut cluster = filled(3, size, &["--set", "scrub-rate=2M"]);
    let last = size / BLOCK - 1;
    flip(&cluster[1].disk("r0"), [0, last]);
    cluster[1].ok(&["scrub", "r0"]);
    cluster[1].refused(&["scrub", "r0"], 1, "one is running already");
    cluster[1].wait_resource("r0", SYNC, "a third of the scrub", |resource| {
        resource.scrub.as_ref().is_some_and(|scrub| scrub.percent > 33.0)
    });
    cluster[1].kill9();
    cluster[1].start();
    let begun = cluster[1].wait_resource("r0", SOON, "the scrub to go on", |resource| {
        resource.scrub.as_ref().is_some_and(|scrub| scrub.state == "running")
    });
    let before = begun.scrub.expect("it was waited for");
    assert!(before.percent > 15.0, "it begins anew at {} %", before.percent);
    cluster[1].ok(&["scrub", "r0", "--pause"]);
    cluster[1].kill9();
    cluster[1].start();
    for index in [1, 0] {
        cluster[index].wait_synced("r0", SYNC);
    }
    let paused = reports(&cluster[1], "scrub").current.expect("it is not over");
    assert_eq!(paused.state, "paused");
    cluster[1].ok(&["set", "r0", "scrub-rate=0"]);
    cluster[1].ok(&["scrub", "r0", "--resume"]);
    let report = wait_scrub(&cluster[1], "done").last.expect("it has ended");
    assert_eq!((report.differing_blocks, report.repaired_blocks), (2, 2), "{report:?}");
    let places: Vec<u64> = report.places.iter().map(|place| place.offset / BLOCK).collect();
    assert_eq!(places, [0, last]);
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);
}

#[test]
fn a_verify_waits_for_a_member_that_was_killed_and_there_is_one_at_a_time() {
    let size = 32 * MIB;
    // So slow that it is not through before all of this was seen.
    let mut cluster = filled(3, size, &["--set", "verify-rate=1M"]);
    flip(&cluster[2].disk("r0"), [7, size / BLOCK - 1]);
    cluster[0].ok(&["verify", "r0", "--repair", "--no-wait"]);
    cluster[0].refused(&["verify", "r0"], 1, "one is running already");
    let running = |peer: &holdfast_api::status::PeerStatus| {
        peer.replication == "VerifyS" && peer.verify.as_ref().is_some_and(|v| v.percent > 10.0)
    };
    cluster[0].wait_peer("r0", "beta", SYNC, "a tenth of the verify", running);
    cluster[1].wait_peer("r0", "alpha", SOON, "it takes part", |p| p.replication == "VerifyT");
    cluster[0].ok(&["verify", "r0", "--pause"]);
    cluster[0].wait_resource("r0", SOON, "the verify to be paused", |resource| {
        resource.verify.as_ref().is_some_and(|verify| verify.state == "paused")
    });
    cluster[0].ok(&["verify", "r0", "--resume"]);
    cluster[2].kill9();
    write_blocks(&cluster[0], "r0", 3, 100..140);
    cluster[0].wait_resource("r0", SOON, "the verify to wait", |resource| {
        resource.verify.as_ref().is_some_and(|verify| verify.state == "waiting")
    });
    cluster[2].start();
    cluster[0].ok(&["set", "r0", "verify-rate=0"]);
    let done = cluster[0].wait_resource("r0", SYNC, "the verify to end", |resource| {
        resource.verify.as_ref().is_some_and(|verify| verify.state == "done")
    });
    let verify = done.verify.expect("it was waited for");
    assert_eq!((verify.differing_blocks, verify.repaired_blocks), (2, 2), "{verify:?}");
    cluster.assert_equal_disks("r0", size, &[0, 1, 2]);
    cluster[0].refused(&["verify", "r0", "--cancel"], 1, "none is running");
}

#[test]
fn a_scrub_is_made_when_it_is_due_also_alone() {
    let size = 16 * MIB;
    let cluster = filled(1, size, &["--set", "scrub-interval=1", "--set", "scrub-rate=0"]);
    let report = wait_scrub(&cluster[0], "done").last.expect("it has ended");
    assert_eq!((report.bytes_done, report.bytes_compared), (size, 0), "{report:?}");
    cluster[0].refused(&["verify", "r0"], 1, "there is no connection");
}
